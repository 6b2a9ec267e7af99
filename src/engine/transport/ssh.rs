//! One SSH connection a node, kept open and made again when it is gone.

use super::{Boxed, Output, Shell, Watch};
use crate::engine::quote;
use crate::engine::ssh::{Client, HostKey, Key, LONGEST_SILENCE};
use crate::error::Result;
use bytes::Bytes;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Mutex;

/// What a connection runs over.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// Opens a new stream to the node's SSH port; called again after each loss.
pub type Connector = Arc<dyn Fn() -> Boxed<'static, Result<Box<dyn Stream>>> + Send + Sync>;

/// A node over SSH. Scripts run in parallel channels of one connection. A user who is not root
/// needs `sudo` without a password.
pub struct Ssh {
    node: String,
    connect: Connector,
    user: String,
    key: Key,
    host_key: HostKey,
    handshake: Duration,
    silence: Duration,
    client: Mutex<Option<Client>>,
}

impl Ssh {
    /// The bound of one handshake, stream included, where none was set.
    const HANDSHAKE: Duration = Duration::from_secs(60);

    pub fn new(
        node: impl Into<String>,
        user: impl Into<String>,
        key: Key,
        host_key: HostKey,
        connect: Connector,
    ) -> Ssh {
        Ssh {
            node: node.into(),
            connect,
            user: user.into(),
            key,
            host_key,
            handshake: Self::HANDSHAKE,
            silence: LONGEST_SILENCE,
            client: Mutex::new(None),
        }
    }

    /// The longest a connection may take to be made.
    pub fn handshake_within(mut self, limit: Duration) -> Ssh {
        self.handshake = limit;
        self
    }

    /// The longest that a node may say nothing before its connection counts as lost.
    pub fn silent_for(mut self, limit: Duration) -> Ssh {
        self.silence = limit;
        self
    }

    /// The present connection, or a new one. Those who ask meanwhile wait for the same.
    pub async fn client(&self) -> Result<Client> {
        let mut slot = self.client.lock().await;
        if let Some(client) = slot.as_ref()
            && !client.is_closed()
        {
            return Ok(client.clone());
        }
        *slot = None;
        let work = async {
            let stream = (self.connect)().await?;
            let (user, host_key) = (&self.user, self.host_key.clone());
            Client::connect_patiently(stream, user, &self.key, host_key, self.silence).await
        };
        let client = match tokio::time::timeout(self.handshake, work).await {
            Ok(client) => client,
            Err(_) => Err(crate::engine::ssh::lost(format!(
                "no SSH session after {:.0} s",
                self.handshake.as_secs_f64()
            ))),
        }
        .map_err(|e| e.while_doing(format!("connecting to {}", self.node)))?;
        *slot = Some(client.clone());
        Ok(client)
    }

    fn command(&self, argv: &[&str]) -> String {
        let sudo = if self.user == "root" { "" } else { "sudo -n " };
        format!("exec {sudo}{}", quote::words(argv))
    }

    async fn forget(&self, client: &Client) {
        let mut slot = self.client.lock().await;
        // Another caller may have made a new one already.
        if slot.as_ref().is_some_and(|c| c.is_same(client)) {
            *slot = None;
        }
    }
}

impl Shell for Ssh {
    fn exec<'a>(
        &'a self,
        argv: &'a [&'a str],
        stdin: Bytes,
        mut watch: Option<Watch<'a>>,
    ) -> Boxed<'a, Result<Output>> {
        Box::pin(async move {
            let command = self.command(argv);
            let mut client = self.client().await?;
            let channel = match client.open().await {
                Ok(channel) => channel,
                // Nothing has run yet: a connection that died unnoticed may be made anew, once.
                Err(_) => {
                    self.forget(&client).await;
                    client = self.client().await?;
                    client.open().await?
                }
            };
            let out = client.run_on(channel, &command, stdin, watch.take()).await;
            if out.is_err() && client.is_closed() {
                self.forget(&client).await;
            }
            out.map_err(|e| e.while_doing(&self.node))
        })
    }

    fn reset<'a>(&'a self) -> Boxed<'a, ()> {
        Box::pin(async {
            if let Some(client) = self.client.lock().await.take() {
                client.close().await;
            }
        })
    }
}

impl fmt::Debug for Ssh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ssh").field("node", &self.node).field("user", &self.user).finish()
    }
}
