//! The verbs that ask a lab's owner for something and show what came.

use super::kept;
use super::{stdio, which};
use crate::cli::print;
use crate::cli::session::Work;
use crate::cloud::rc as rc_files;
use crate::cluster::credentials::environment;
use crate::error::{Context, Error, Kind, Result};
use crate::fsutil::{self, NamedWriter, WriteTarget};
use crate::secret::Secret;
use crate::supervisor::Client;
use crate::supervisor::client::unexpected;
use crate::supervisor::fault::{FaultRequest, PortName};
use crate::supervisor::protocol::{Answer, Request};
use crate::wait::Death;
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::oneshot;

/// For the end of a capture to arrive, on the reference machine.
const DRAINS: Duration = Duration::from_secs(30);

pub async fn down(work: &Work, name: Option<String>) -> Result<()> {
    let client = which::any(work, name)?;
    let name = client.place().name().to_owned();
    let before = client.status().await.ok();
    let ran = client.down().await?;
    let text = match before.and_then(|s| s.note).filter(|_| !ran) {
        Some(why) => format!("lab {name} had ended ({why}); what it left is removed\n"),
        None => format!("lab {name} is gone\n"),
    };
    print(&text, &work.redactor)?;
    Ok(())
}

pub async fn console(client: &Client, node: String, lines: usize, follow: bool) -> Result<()> {
    let request = Request::Console { node, lines, follow };
    let (_, stream) = client.open(&request).await?;
    pour(stream, stdio::output).await
}

/// Takes what a stream brings until it ends.
async fn pour(
    mut stream: impl AsyncRead + Unpin,
    mut out: impl FnMut(&[u8]) -> std::io::Result<()>,
) -> Result<()> {
    let mut piece = vec![0; 64 * 1024];
    loop {
        let n = stream.read(&mut piece).await.doing(Kind::Lab, || "the lab's owner".into())?;
        if n == 0 {
            return Ok(());
        }
        match out(&piece[..n]) {
            // Whoever read it has seen enough.
            Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
            out => out.doing(Kind::Host, || "the output cannot be written".into())?,
        }
    }
}

/// `NODE:PORT` or `ADDRESS:PORT`.
fn target(text: &str) -> Result<(String, u16)> {
    text.rsplit_once(':')
        .and_then(|(host, port)| Some((host.to_owned(), port.parse().ok()?)))
        .filter(|(host, port)| !host.is_empty() && *port > 0)
        .ok_or_else(|| {
            Error::input(format!("`{text}` is no target"))
                .hint("write NODE:PORT or ADDRESS:PORT, such as openstack1:80")
        })
}

pub async fn forward(
    work: &Work,
    client: &Client,
    to: &str,
    listen: SocketAddr,
    keep: bool,
) -> Result<()> {
    let (host, port) = target(to)?;
    let (answer, stream) = client.open(&Request::Forward { host, port, listen, keep }).await?;
    let Answer::Listening(at) = answer else { return Err(unexpected()) };
    let until = if keep { "until the lab ends" } else { "until Ctrl-C" };
    print(
        &format!("{at} leads to {to} of lab {}, {until}\n", client.place().name()),
        &work.redactor,
    )?;
    if keep {
        return Ok(());
    }
    // Nothing comes: its end is the lab's.
    pour(stream, |_| Ok(())).await?;
    Err(Error::lab("the lab has ended, and the forward with it"))
}

/// Writes openrc and clouds.yaml, and says how to use them.
pub async fn rc(work: &Work, client: &Client, dir: Option<PathBuf>, force: bool) -> Result<()> {
    let Answer::Proxy { url, cloud } = client.ask(&Request::Proxy).await? else {
        return Err(unexpected());
    };
    let proxy = Secret::new(url);
    work.redactor.add(&proxy);
    // Its password by itself too.
    if let Some((_, password)) =
        proxy.reveal().split_once('@').and_then(|(user, _)| user.rsplit_once(':'))
    {
        work.redactor.add(&Secret::new(password));
    }
    let dir = dir.map_or(work.env.cwd.clone(), |dir| work.env.cwd.join(dir));
    std::fs::create_dir_all(&dir)
        .doing(Kind::Host, || format!("{} cannot be made", dir.display()))?;
    let (rc, clouds) = (dir.join("openrc"), dir.join("clouds.yaml"));
    let text = match cloud {
        Some(cloud) => {
            cloud.hide_in(&work.redactor);
            let (rc_text, clouds_text) = cloud.files(&proxy)?;
            write_logins(&[(&rc, &rc_text), (&clouds, &clouds_text)], force)?;
            format!(
                "{}\n{}\nnext: . {} && openstack server list\n",
                rc.display(),
                clouds.display(),
                rc.display()
            )
        }
        None => {
            write_logins(&[(&rc, &environment(&proxy))], force)?;
            format!(
                "{}\nno cloud was provisioned on this lab: the file only leads HTTP into its \
                 networks\nnext: . {} && curl http://NODE/\n",
                rc.display(),
                rc.display()
            )
        }
    };
    print(&text, &work.redactor)?;
    Ok(())
}

/// Writes all of the files or none: one that stackproof did not write holds the way to another cloud.
fn write_logins(files: &[(&Path, &Secret)], force: bool) -> Result<()> {
    for (path, _) in files.iter().filter(|_| !force) {
        match std::fs::read(path) {
            Ok(contents) if !rc_files::is_ours(&contents) => {
                return Err(Error::input("stackproof did not write this file, so it stays")
                    .at(path, None)
                    .hint("choose another folder with --dir DIR, or replace it with --force"));
            }
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::input("cannot be read").at(path, None).because(e));
            }
            _ => {}
        }
    }
    for (path, text) in files {
        fsutil::write_private(path, text.reveal().as_bytes())
            .doing(Kind::Host, || format!("{} cannot be written", path.display()))?;
    }
    Ok(())
}

pub async fn checkpoint(work: &Work, client: &Client, name: &str) -> Result<()> {
    let into = kept::dir(work, name);
    if into.exists() {
        return Err(Error::input("there is such a checkpoint already")
            .at(&into, None)
            .hint("choose another name, or remove that folder"));
    }
    let text = format!("{}\n", into.display());
    client.ask(&Request::Checkpoint { into }).await?;
    print(&text, &work.redactor)?;
    Ok(())
}

pub async fn restore(work: &Work, client: &Client, name: &str) -> Result<()> {
    let kept = kept::find(work, name, None)?;
    work.events.info(format!("restoring {}", kept.text));
    client.ask(&Request::Restore { from: kept.dir.clone() }).await.map(drop)
}

pub async fn fault(client: &Client, fault: FaultRequest) -> Result<()> {
    client.ask(&Request::Fault(fault)).await.map(drop)
}

/// Until `told` or the lab's end: both are its ordinary end.
pub async fn capture(
    work: &Work,
    client: &Client,
    what: PortName,
    output: &Path,
    told: oneshot::Receiver<()>,
) -> Result<()> {
    let PortName { network, node } = what;
    let (_, stream) = client.open(&Request::Capture { network, node }).await?;
    if output == Path::new("-") {
        return drain(work, stream, stdio::output, told).await;
    }
    let path = work.env.cwd.join(output);
    let file = open_stream(&path);
    let mut file = file.doing(Kind::Host, || format!("{} cannot be written", path.display()))?;
    work.events.info(format!("capturing into {} until Ctrl-C", path.display()));
    drain(work, stream, |piece| file.write_all(piece), told).await
}

/// Opens what is written piece by piece: a regular file is there from the start, whatever else stands
/// there is written as [`fsutil`] does.
fn open_stream(path: &Path) -> std::io::Result<Box<dyn Write + Send>> {
    let WriteTarget::Regular(path) = WriteTarget::resolve(path)? else {
        return Ok(Box::new(NamedWriter::open(path, fsutil::PRIVATE_MODE)?));
    };
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(fsutil::PRIVATE_MODE);
    let file = options.open(path)?;
    // The mode above is for a new file; one that was there may be everybody's to read.
    file.set_permissions(std::fs::Permissions::from_mode(fsutil::PRIVATE_MODE))?;
    Ok(Box::new(file))
}

/// Pours until it is told to end, and then what is under way still: the last frames, and the
/// statistics that say how many were left out.
async fn drain(
    work: &Work,
    stream: UnixStream,
    out: impl FnMut(&[u8]) -> std::io::Result<()>,
    told: oneshot::Receiver<()>,
) -> Result<()> {
    let (from, mut to) = stream.into_split();
    let all = pour(from, out);
    tokio::pin!(all);
    tokio::select! {
        out = &mut all => return out,
        Ok(()) = told => {}
    }
    // The owner takes the end of what we say for the end of the capture.
    let _ = to.shutdown().await;
    let what = "the rest of the capture";
    work.patience().within(what, DRAINS, &Death::never(), all).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_host_and_a_port_and_all_else_is_refused_with_an_example() {
        assert_eq!(target("openstack1:80").unwrap(), ("openstack1".into(), 80));
        assert_eq!(target("172.24.4.10:22").unwrap(), ("172.24.4.10".into(), 22));
        for wrong in ["openstack1", ":80", "a:0", "a:65536", "a:http", ""] {
            let e = target(wrong).unwrap_err();
            assert!(e.hint_text().unwrap().contains("NODE:PORT"), "{wrong}: {e}");
        }
    }

    #[test]
    fn a_capture_follows_links_and_leaves_devices() {
        let dir = tempfile::tempdir().unwrap();
        let (link, file) = (dir.path().join("link"), dir.path().join("file"));
        std::os::unix::fs::symlink("file", &link).unwrap();
        std::fs::write(&file, "old").unwrap();
        open_stream(&link).unwrap().write_all(b"new").unwrap();
        assert!(link.is_symlink());
        assert_eq!(std::fs::read(&file).unwrap(), b"new");
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        open_stream(Path::new("/dev/null")).unwrap().write_all(b"x").unwrap();
        assert!(!Path::new("/dev/null").is_file());
    }

    #[test]
    fn logins_of_other_clouds_are_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (rc, clouds) = (dir.path().join("openrc"), dir.path().join("clouds.yaml"));
        let ours = Secret::new("# Written by stackproof.\nclouds:\n");
        let files: [(&Path, &Secret); 2] = [(&rc, &ours), (&clouds, &ours)];
        let read = |path: &Path| std::fs::read_to_string(path).unwrap();
        std::fs::write(&clouds, "clouds:\n  production:\n").unwrap();
        let e = write_logins(&files, false).unwrap_err();
        assert_eq!((e.kind(), e.file().unwrap().0), (Kind::Input, clouds.as_path()));
        assert!(!rc.exists() && read(&clouds).contains("production"));
        write_logins(&files, true).unwrap();
        assert_eq!(read(&clouds), ours.reveal());
        write_logins(&files, false).unwrap();
        assert_eq!(rc.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }
}
