//! A `vde_switch` of our own, and clients of it.

use super::peers;
use super::race::Datagrams;
use crate::error::{Context, Error, Kind, Result};
use crate::lab::process::{self, Process};
use crate::wait::{Death, Patience, Poll};
use std::io::{self, PipeWriter, Read, Write};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

pub const PROGRAM: &str = "vde_switch";
pub const INSTALL: &str = "it is not installed: `apt-get install vde2`";

const STARTS: Duration = Duration::from_secs(5);

/// `struct sockaddr_un`: the family, and room for a path.
const ADDRESS: usize = 110;
const AF_UNIX: u16 = 1;

/// A running switch; ended when dropped.
pub struct Vde {
    dir: tempfile::TempDir,
    process: Process,
    /// It reads commands from its standard input, and ends with that.
    _commands: PipeWriter,
}

impl Vde {
    /// None where there is no `vde_switch`.
    pub async fn start(patience: &Patience) -> Result<Option<Vde>> {
        let Some(program) = peers::find(PROGRAM) else {
            return Ok(None);
        };
        let cannot = || format!("cannot start {PROGRAM}");
        let dir = tempfile::tempdir().doing(Kind::Host, cannot)?;
        let (stdin, commands) = io::pipe().doing(Kind::Host, cannot)?;
        let mut command = Command::new(program);
        command.arg("--sock").arg(dir.path().join("switch")).args(["--mode", "600"]);
        command.stdin(stdin).stdout(Stdio::null()).stderr(Stdio::null());
        let process = Process::spawn(command).await?;
        let vde = Vde { dir, process, _commands: commands };
        let listens = || async {
            match UnixStream::connect(vde.control()) {
                Ok(_) => Poll::Ready(()),
                Err(e) => Poll::NotYet(e.to_string()),
            }
        };
        let every = Duration::from_millis(10);
        patience.until(PROGRAM, STARTS, every, &Death::never(), listens).await?;
        Ok(Some(vde))
    }

    /// The folder of its sockets, which QEMU's netdev `vde` is given.
    pub fn sockets(&self) -> PathBuf {
        self.dir.path().join("switch")
    }

    fn control(&self) -> PathBuf {
        self.sockets().join("ctl")
    }

    /// Resolves when it has ended by itself, with that as an error.
    pub async fn ended(&self) -> Error {
        let status = self.process.exit().await;
        Error::host(format!("{PROGRAM} {}", process::describe(status)))
    }

    /// Plugs a client in.
    pub fn plug(&self, name: &str) -> Result<Datagrams> {
        let plugged = plug(&self.control(), &self.dir.path().join(name));
        plugged.map_err(|e| Error::host(format!("{PROGRAM} takes no client")).because(e))
    }
}

/// Version 3 of the request that its clients send: magic, version, kind (0: a new port), the
/// address of our datagram socket, and a description. The answer is the address to send to.
fn plug(control: &Path, ours: &Path) -> io::Result<Datagrams> {
    // That of the race before may still be there.
    let _ = std::fs::remove_file(ours);
    let data = UnixDatagram::bind(ours)?;
    let mut control = UnixStream::connect(control)?;
    let mut request = Vec::new();
    for word in [0xfeed_face_u32, 3, 0] {
        request.extend(word.to_ne_bytes());
    }
    request.extend(address(ours));
    request.extend(b"bench");
    control.write_all(&request)?;
    let mut answer = [0; ADDRESS];
    control.read_exact(&mut answer)?;
    let path = answer[2..].split(|byte| *byte == 0).next().unwrap_or_default();
    data.connect(std::str::from_utf8(path).map_err(io::Error::other)?)?;
    Datagrams::new(data, control)
}

fn address(path: &Path) -> [u8; ADDRESS] {
    let mut address = [0; ADDRESS];
    address[..2].copy_from_slice(&AF_UNIX.to_ne_bytes());
    let path = path.as_os_str().as_encoded_bytes();
    // A path that is too long was refused when our socket was bound.
    address[2..2 + path.len()].copy_from_slice(path);
    address
}
