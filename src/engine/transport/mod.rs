//! How scripts reach a node.

#[cfg(test)]
mod canned;
mod local;
mod ssh;

#[cfg(test)]
pub use canned::Canned;
pub use local::Local;
pub use ssh::{Connector, Ssh, Stream};

use super::quote;
use crate::error::{Error, Result, last_lines};
use bytes::Bytes;
use std::fmt::Debug;
use std::pin::Pin;

/// What a command left behind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Output {
    /// Exit status; 128 and the number of the signal where one ended it.
    pub status: i32,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

impl Output {
    /// The last lines of stderr, for an error's evidence.
    pub fn stderr_tail(&self, lines: usize) -> Vec<String> {
        last_lines(&String::from_utf8_lossy(&self.stderr), lines)
    }
}

/// Called with each piece of standard output as it comes.
pub type Watch<'a> = &'a mut (dyn FnMut(&[u8]) + Send);

pub type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A way to run things as root on one node. Calls may be made at once; each is cut off by dropping
/// its future.
pub trait Shell: Send + Sync + Debug {
    /// Runs `argv` as root with `stdin`. Nothing secret may stand in `argv`. An error means that
    /// the command could not be run or was lost on the way, never that it exited with non-zero.
    fn exec<'a>(
        &'a self,
        argv: &'a [&'a str],
        stdin: Bytes,
        watch: Option<Watch<'a>>,
    ) -> Boxed<'a, Result<Output>>;

    /// Runs a whole script given over standard input. The script must be one compound command, so
    /// that half of it is never run when the connection breaks: [`batch`](super::batch) does that.
    fn script<'a>(&'a self, script: String) -> Boxed<'a, Result<Output>> {
        self.exec(&["sh", "-s"], Bytes::from(script), None)
    }

    /// Puts `content` at `path` on the node, atomically.
    fn upload<'a>(&'a self, path: &'a str, mode: u32, content: Bytes) -> Boxed<'a, Result<()>> {
        Box::pin(async move {
            let size = content.len();
            // A cut connection ends `cat` like the end of the file does: the size tells.
            let script = format!(
                "umask 077; p={p}; t=\"$p.stackproof-new\"; cat >\"$t\" && \
                 [ \"$(wc -c <\"$t\")\" -eq {size} ] && chmod {mode:o} \"$t\" && mv -f \"$t\" \"$p\" \
                 || {{ rm -f \"$t\"; exit 1; }}",
                p = quote::path(path)
            );
            let out = self.exec(&["sh", "-c", &script], content, None).await?;
            if out.status != 0 {
                return Err(Error::provision(format!("could not write {path} on the node"))
                    .evidence(out.stderr_tail(5)));
            }
            Ok(())
        })
    }

    /// Forgets the present connection: the next call makes a new one (the node was rebooted).
    fn reset<'a>(&'a self) -> Boxed<'a, ()> {
        Box::pin(async {})
    }
}
