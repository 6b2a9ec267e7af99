//! Commands on a node, streamed: over SSH through the owner, without the `ssh` program.

use super::client::Client;
use super::handles::no_node;
use super::place::{IDENTITY, KNOWN_HOSTS};
use super::{login, status::Status};
use crate::engine::ssh::{self, HostKey, Key};
use crate::error::{Context, Error, Kind, Result};
use crate::secret::Secret;
use crate::wait::Death;
use bytes::Bytes;
use russh::ChannelMsg;
use std::time::Duration;
use tokio::sync::mpsc;

/// Connecting and logging in: seconds under emulation, more on a busy node.
const LOGS_IN: Duration = Duration::from_secs(300);

/// Which of the command's outputs a piece came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    Stdout,
    Stderr,
}

/// Logs in on a node with the lab's key, its host key pinned.
pub async fn login(client: &Client, status: &Status, node: &str) -> Result<ssh::Client> {
    if !status.nodes.iter().any(|n| n.name == node) {
        return Err(no_node(node, status.nodes.iter().map(|n| &n.name)));
    }
    let (key, host_key) = keys(client, node)?;
    let user = status.user.as_deref().unwrap_or_default();
    let what = format!("a login on {node}");
    let work = async {
        let stream = client.dial(node, 22).await?;
        ssh::Client::connect(stream, user, &key, host_key).await
    };
    client.patience().within(&what, LOGS_IN, &Death::never(), work).await
}

fn keys(client: &Client, node: &str) -> Result<(Key, HostKey)> {
    let dir = client.place().dir();
    let read = |name: &str| {
        let path = dir.join(name);
        std::fs::read_to_string(&path)
            .doing(Kind::Host, || format!("{} cannot be read", path.display()))
    };
    let key = Key::from_openssh(&Secret::new(read(IDENTITY)?))?;
    let alias = login::alias(client.place().name(), node);
    let known = read(KNOWN_HOSTS)?;
    let line = known.lines().find_map(|l| l.strip_prefix(&alias)?.strip_prefix(' '));
    let line = line.ok_or_else(|| {
        Error::internal(format!("no host key of {node}")).at(dir.join(KNOWN_HOSTS), None)
    })?;
    Ok((key, HostKey::pinned(line)?))
}

/// Runs `command` in the login shell. `stdin` is fed until its senders are gone; `out` takes each
/// piece as it comes, and its error ends the command. Gives the exit status, 128 and the number of
/// the signal where one ended it.
pub async fn run(
    client: &ssh::Client,
    command: &str,
    mut stdin: mpsc::Receiver<Bytes>,
    mut out: impl FnMut(From, &[u8]) -> std::io::Result<()>,
) -> Result<i32> {
    let lost = || ssh::lost("running a command over SSH");
    let channel = client.open().await?;
    channel.exec(true, command).await.map_err(|_| lost())?;
    let (mut from, to) = channel.split();
    let feed = async {
        while let Some(piece) = stdin.recv().await {
            // Whether the command takes all of its input is its own affair.
            if to.data_bytes(piece).await.is_err() {
                break;
            }
        }
        let _ = to.eof().await;
        std::future::pending::<()>().await
    };
    let read = async {
        let mut status = None;
        let written = |e: std::io::Error| Error::host("the output cannot be written").because(e);
        while let Some(message) = from.wait().await {
            match message {
                ChannelMsg::Data { data } => out(From::Stdout, &data).map_err(written)?,
                ChannelMsg::ExtendedData { data, .. } => {
                    out(From::Stderr, &data).map_err(written)?
                }
                ChannelMsg::ExitStatus { exit_status } => status = Some(exit_status as i32),
                ChannelMsg::ExitSignal { signal_name, .. } => {
                    status = Some(ssh::signal_code(&signal_name));
                }
                ChannelMsg::Failure => {
                    return Err(Error::lab("the SSH server refused to run a command"));
                }
                ChannelMsg::Close => break,
                _ => {}
            }
        }
        status.ok_or_else(lost)
    };
    tokio::select! {
        status = read => status,
        () = feed => unreachable!("feeding never resolves"),
    }
}
