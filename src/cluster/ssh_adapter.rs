//! The proof's SSH login, by the engine's SSH client, and its look at the nodes.

use crate::cloud::proof::login::{HostKey, KeyPair, Login, Ran, Refusal, Shell};
use crate::cloud::proof::nodes::Nodes;
use crate::cloud::{Later, Stream};
use crate::engine::inventory::Node;
use crate::engine::ssh::{self, Client, Key};
use crate::engine::transport::Output;
use crate::error::{Error, Result};

pub struct SshLogin;

struct LoggedIn {
    client: Client,
    host_key: HostKey,
}

impl Login for SshLogin {
    fn connect<'a>(
        &'a self,
        stream: Box<dyn Stream>,
        user: &'a str,
        key: &'a KeyPair,
        pin: Option<&'a HostKey>,
    ) -> Later<'a, Result<Box<dyn Shell>, Refusal>> {
        Box::pin(async move {
            let key = Key::from_openssh(&key.private).map_err(Refusal::NotYet)?;
            // Always learned, and compared here: what the guest showed instead is worth telling.
            let client = Client::connect(stream, user, &key, ssh::HostKey::Learn).await;
            let client = client.map_err(|e| match ssh::is_key_refused(&e) {
                true => Refusal::Key(e),
                false => Refusal::NotYet(e),
            })?;
            let shown = client.host_key().and_then(|key| key.to_openssh().ok());
            let shown = shown
                .map(|line| HostKey(bare(&line)))
                .ok_or_else(|| Refusal::NotYet(Error::internal("a session without a host key")))?;
            match pin {
                Some(pin) if bare(&pin.0) != shown.0 => {
                    Err(Refusal::HostKeyChanged { seen: shown })
                }
                _ => Ok(Box::new(LoggedIn { client, host_key: shown }) as Box<dyn Shell>),
            }
        })
    }
}

/// The nodes by the engine's connections.
pub struct OnNodes(pub Vec<Node>);

impl Nodes for OnNodes {
    fn run<'a>(&'a self, node: &'a str, script: String) -> Later<'a, Result<Ran>> {
        Box::pin(async move {
            let found = self.0.iter().find(|n| n.name == node);
            let found = found.ok_or_else(|| Error::internal(format!("no node is named {node}")))?;
            found.shell.script(script).await.map(ran)
        })
    }
}

fn ran(out: Output) -> Ran {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ran {
        status: u32::try_from(out.status).ok(),
        stdout: text(&out.stdout),
        stderr: text(&out.stderr),
    }
}

/// Type and key, without the comment.
fn bare(line: &str) -> String {
    line.split_whitespace().take(2).collect::<Vec<_>>().join(" ")
}

impl Shell for LoggedIn {
    fn host_key(&self) -> HostKey {
        self.host_key.clone()
    }

    fn run<'a>(&'a mut self, command: &'a str) -> Later<'a, Result<Ran>> {
        Box::pin(async move { self.client.run(command, bytes::Bytes::new()).await.map(ran) })
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_pin_is_compared_without_its_comment() {
        assert_eq!(super::bare("ssh-ed25519 AAAA root@x\n"), super::bare("ssh-ed25519 AAAA"));
        assert_ne!(super::bare("ssh-ed25519 AAAA"), super::bare("ssh-ed25519 AAAB"));
    }
}
