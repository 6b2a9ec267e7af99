//! Commands on nodes, with and without the system's `ssh`.

use super::stdio;
use crate::engine::quote;
use crate::error::{Context, Error, Kind, Result};
use crate::supervisor::{Client, remote};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;

/// Becomes the system's `ssh`, so that a person has a whole terminal.
pub async fn ssh(client: &Client, node: &str, command: &[String]) -> Result<()> {
    let status = client.status().await?;
    if !status.nodes.iter().any(|n| n.name == node) {
        return Err(no_node(node, &status));
    }
    let error = ssh_command(&client.place().ssh_config(), node, command).exec();
    let hint = "install ssh (Debian: openssh-client), or use `stackproof lab exec`";
    Err(Error::host("cannot start ssh").because(error).hint(hint))
}

fn ssh_command(config: &Path, node: &str, command: &[String]) -> Command {
    let mut ssh = Command::new("ssh");
    ssh.arg("-F").arg(config).arg(node).args(command);
    // ssh runs the ProxyCommand with it: a service user's is nologin, another's speaks no sh.
    ssh.env("SHELL", "/bin/sh");
    ssh
}

/// The remote exit code is ours. 255 stands for one that does not fit.
pub async fn exec(client: &Client, node: &str, command: &[String]) -> Result<ExitCode> {
    let status = client.status().await?;
    let shell = remote::login(client, &status, node).await?;
    let line = format!("exec {}", quote::words(command));
    let code = remote::run(&shell, &line, stdio::input(), |from, piece| match from {
        remote::From::Stdout => stdio::output(piece),
        remote::From::Stderr => stdio::error(piece),
    })
    .await?;
    shell.close().await;
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)))
}

/// What ssh's ProxyCommand is. Its ordinary end is to be `told`: a client that is done hangs up.
pub async fn proxy(
    client: &Client,
    host: &str,
    port: u16,
    told: oneshot::Receiver<()>,
) -> Result<()> {
    let stream = client.dial(host, port).await?;
    let (mut from, mut to) = stream.into_split();
    let feed = async {
        let mut pieces = stdio::input();
        while let Some(piece) = pieces.recv().await {
            if to.write_all(&piece).await.is_err() {
                break;
            }
        }
        let _ = to.shutdown().await;
        std::future::pending::<()>().await
    };
    let show = async {
        let mut piece = vec![0; 32 * 1024];
        loop {
            match from.read(&mut piece).await {
                Ok(n @ 1..) => stdio::output(&piece[..n])?,
                _ => return Ok::<_, std::io::Error>(()),
            }
        }
    };
    tokio::select! {
        out = show => out.doing(Kind::Host, || "standard output".into()),
        () = feed => unreachable!("feeding never resolves"),
        _ = told => Ok(()),
    }
}

pub fn no_node(name: &str, status: &crate::supervisor::status::Status) -> Error {
    let known: Vec<&str> = status.nodes.iter().map(|n| n.name.as_str()).collect();
    Error::input(format!("lab {} has no node `{name}`", status.name))
        .hint(format!("its nodes are: {}", known.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The real `ssh`, where there is one, with a way in that leads nowhere.
    #[test]
    fn ssh_runs_its_proxy_command_for_a_service_user() {
        let dir = tempfile::tempdir().unwrap();
        let (config, ran) = (dir.path().join("config"), dir.path().join("ran"));
        let text = format!("Host a\n  ProxyCommand touch {}; exit 1\n", ran.display());
        std::fs::write(&config, text).unwrap();
        let script = r#"SHELL=/usr/sbin/nologin exec "$@""#;
        let ssh = ssh_command(&config, "a", &["true".into()]);
        let words = ssh.get_args().map(ToOwned::to_owned);
        let mut outer = Command::new("sh");
        outer.args(["-c", script, "sh", "env"]);
        outer.args(
            ssh.get_envs().filter_map(|(name, value)| {
                Some(format!("{}={}", name.to_str()?, value?.to_str()?))
            }),
        );
        let out = outer.arg("ssh").args(words).output().unwrap();
        if out.status.code() == Some(127) {
            eprintln!("not run: no ssh on this host");
            return;
        }
        assert!(ran.exists(), "{}", String::from_utf8_lossy(&out.stderr));
    }
}
