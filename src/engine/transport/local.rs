//! A shell on this host in a scratch directory: what the engine does, tried without a node.

use super::{Boxed, Output, Shell, Watch};
use crate::error::{Context, Kind, Result};
use bytes::Bytes;
use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

/// Runs commands unprivileged on this host with `$ROOT` set to a directory, whose `bin` comes
/// first in `$PATH`. Not a jail: fragments keep to `$ROOT` because they are written so.
#[derive(Clone, Debug)]
pub struct Local {
    root: PathBuf,
    /// In place of `sh`.
    interpreter: Option<Vec<String>>,
}

impl Local {
    /// Makes `ROOT/run`, where inputs are unpacked.
    pub fn new(root: impl Into<PathBuf>) -> Result<Local> {
        let root = root.into();
        std::fs::create_dir_all(root.join("run"))
            .doing(Kind::Host, || format!("making {}", root.display()))?;
        Ok(Local { root, interpreter: None })
    }
    /// Uses another shell (`["busybox", "sh"]`) for every `sh`.
    pub fn interpreter<S: Into<String>>(mut self, argv: impl IntoIterator<Item = S>) -> Local {
        self.interpreter = Some(argv.into_iter().map(Into::into).collect());
        self
    }
    pub fn root(&self) -> &Path {
        &self.root
    }
}

impl Shell for Local {
    fn exec<'a>(
        &'a self,
        argv: &'a [&'a str],
        stdin: Bytes,
        mut watch: Option<Watch<'a>>,
    ) -> Boxed<'a, Result<Output>> {
        Box::pin(async move {
            let mut words: Vec<&str> = argv.to_vec();
            if let (Some(other), Some(&"sh")) = (&self.interpreter, words.first()) {
                words.splice(0..1, other.iter().map(String::as_str));
            }
            let mut path = OsString::from(self.root.join("bin"));
            path.push(":");
            path.push(std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into()));
            let mut child = Command::new(words[0])
                .args(&words[1..])
                .env("ROOT", &self.root)
                .env("STAGE", self.root.join("run"))
                .env("PATH", path)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .kill_on_drop(true)
                .spawn()
                .doing(Kind::Host, || format!("starting {}", words[0]))?;
            let (mut to, mut from, mut errors) =
                (child.stdin.take(), child.stdout.take(), child.stderr.take());
            let feed = async {
                if let Some(mut to) = to.take() {
                    // A command that does not read its input is no error.
                    let _ = to.write_all(&stdin).await;
                }
            };
            let read = async {
                let (mut all, mut piece) = (Vec::new(), vec![0; 32 * 1024]);
                if let Some(from) = &mut from {
                    while let Ok(n @ 1..) = from.read(&mut piece).await {
                        if let Some(watch) = &mut watch {
                            watch(&piece[..n]);
                        }
                        all.extend_from_slice(&piece[..n]);
                    }
                }
                all
            };
            let read_errors = async {
                let mut all = Vec::new();
                if let Some(errors) = &mut errors {
                    let _ = errors.read_to_end(&mut all).await;
                }
                all
            };
            let ((), stdout, stderr, status) = tokio::join!(feed, read, read_errors, child.wait());
            let status = status.doing(Kind::Host, || format!("waiting for {}", words[0]))?;
            let status = status.code().unwrap_or(128 + status.signal().unwrap_or(0));
            Ok(Output { status, stdout, stderr })
        })
    }
}
