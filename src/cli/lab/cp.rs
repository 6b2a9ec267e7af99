//! Files and folders to and from nodes. A file goes through `cat` with its size counted on both
//! sides and appears whole or not at all; a folder goes through `tar`.

use crate::cli::session::Work;
use crate::cli::view::human_bytes;
use crate::cli::{print, print_error};
use crate::engine::{quote, ssh};
use crate::error::{Context, Error, Kind, Result};
use crate::fsutil::{NamedWriter, WriteTarget};
use crate::supervisor::{Client, remote};
use bytes::Bytes;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;

const PIECE: usize = 64 * 1024;
/// Pieces on their way.
const DEPTH: usize = 8;
const TAR: &str = "folders go through `tar`: is it installed here and on the node?";

enum Side {
    Here(PathBuf),
    Node { node: String, path: String },
}

/// `NODE:PATH` is on a node, unless a slash comes first: `./a:b` is here.
fn side(text: &str, cwd: &Path) -> Side {
    match text.split_once(':') {
        Some((node, path)) if !node.is_empty() && !node.contains('/') => {
            // Where `scp` goes: the login's own folder.
            let path = if path.is_empty() { "." } else { path };
            Side::Node { node: node.to_owned(), path: path.to_owned() }
        }
        _ => Side::Here(cwd.join(text)),
    }
}

pub async fn run(work: &Work, client: &Client, from: &str, to: &str, sudo: bool) -> Result<()> {
    let to_stdout = matches!(side(to, &work.env.cwd), Side::Here(here)
        if WriteTarget::resolve(&here).is_ok_and(|to| to == WriteTarget::Descriptor(1)));
    let (size, what) = match (side(from, &work.env.cwd), side(to, &work.env.cwd)) {
        (Side::Here(here), Side::Node { node, path }) => {
            (Remote::login(client, &node, sudo).await?.put(&here, &path).await?, from)
        }
        (Side::Node { node, path }, Side::Here(here)) => {
            (Remote::login(client, &node, sudo).await?.get(&path, &here).await?, from)
        }
        _ => {
            return Err(Error::input("one side must be here and the other on a node")
                .hint("write stackproof lab cp NODE:/etc/hosts . or the other way round"));
        }
    };
    let text = format!("{what}: {} copied\n", human_bytes(size));
    match to_stdout {
        true => print_error(&text, &work.redactor),
        false => print(&text, &work.redactor),
    }
}

struct Remote {
    node: String,
    shell: ssh::Client,
    sudo: bool,
}

impl Remote {
    async fn login(client: &Client, node: &str, sudo: bool) -> Result<Remote> {
        let status = client.status().await?;
        let shell = remote::login(client, &status, node).await?;
        Ok(Remote { node: node.to_owned(), shell, sudo })
    }

    fn command(&self, script: &str) -> String {
        let sudo: &[&str] = if self.sudo { &["sudo", "-n"] } else { &[] };
        format!("exec {}", quote::words(sudo.iter().chain(&["sh", "-c", script])))
    }

    /// Runs a script; its failure is an error with what it said. `out` takes standard output.
    async fn script(
        &self,
        script: &str,
        stdin: mpsc::Receiver<Bytes>,
        mut out: impl FnMut(&[u8]) -> std::io::Result<()>,
    ) -> Result<()> {
        let mut said = Vec::new();
        let command = self.command(script);
        let status = remote::run(&self.shell, &command, stdin, |from, piece| match from {
            remote::From::Stdout => out(piece),
            remote::From::Stderr => {
                said.extend_from_slice(&piece[..piece.len().min(4096)]);
                Ok(())
            }
        });
        let status = status.await.map_err(|e| e.while_doing(&self.node))?;
        if status == 0 {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&said).into_owned();
        let error = Error::lab(format!("{} could not do its part (exit code {status})", self.node))
            .evidence(said.lines().filter(|l| !l.trim().is_empty()));
        Err(match advice(&said, self.sudo) {
            Some(hint) => error.hint(hint),
            None => error,
        })
    }

    /// Gives the bytes that were sent.
    async fn put(&self, here: &Path, path: &str) -> Result<u64> {
        let doing = || format!("{} cannot be read", here.display());
        let meta = std::fs::metadata(here).doing(Kind::Input, doing)?;
        if meta.is_dir() {
            return self.put_folder(here, path).await;
        }
        let (size, mode) = (meta.len(), meta.permissions().mode() & 0o777);
        let name = here.file_name().unwrap_or_default().to_string_lossy();
        let script = format!(
            "set -e; p={p}; if [ -d \"$p\" ]; then p=\"$p/\"{name}; fi; t=\"$p.stackproof-$$\"; \
             trap 'rm -f \"$t\"' EXIT; umask 077; cat >\"$t\"; [ $(wc -c <\"$t\") -eq {size} ] || \
             {{ echo 'not all of it arrived' >&2; exit 1; }}; chmod {mode:o} \"$t\"; \
             mv -f \"$t\" \"$p\"; trap - EXIT",
            p = quote::word(path),
            name = quote::word(&name),
        );
        let file = tokio::fs::File::open(here).await.doing(Kind::Input, doing)?;
        let (to, pieces) = mpsc::channel(DEPTH);
        // Exactly what was promised: a file that grows meanwhile is cut, one that shrinks refused.
        let feed = feed(file.take(size), to);
        let (fed, done) = tokio::join!(feed, self.script(&script, pieces, |_| Ok(())));
        // Why the node refused says more than that its input was not taken.
        done?;
        fed.doing(Kind::Input, doing)
    }

    async fn put_folder(&self, here: &Path, path: &str) -> Result<u64> {
        let here = std::fs::canonicalize(here)
            .doing(Kind::Input, || format!("{} cannot be read", here.display()))?;
        let (parent, name) = parts(&here)?;
        let mut tar = tar(&["-C", parent, "-cf", "-", "--", name], Stdio::null(), Stdio::piped())?;
        let out = tar.0.stdout.take().expect("piped");
        let out = tokio::process::ChildStdout::from_std(out)
            .doing(Kind::Host, || "tar's output".into())?;
        let (to, pieces) = mpsc::channel(DEPTH);
        // An existing folder takes it in; else it gets the new name, as `cp -r` does.
        let script = format!(
            "set -e; p={p}; if [ -d \"$p\" ]; then exec tar -C \"$p\" -xf -; fi; \
             t=\"$p.stackproof-$$\"; trap 'rm -rf \"$t\"' EXIT; mkdir \"$t\"; tar -C \"$t\" -xf -; \
             mv \"$t\"/{name} \"$p\"",
            p = quote::word(path),
            name = quote::word(name),
        );
        let (fed, done) = tokio::join!(feed(out, to), self.script(&script, pieces, |_| Ok(())));
        done?;
        tar.ended()?;
        fed.doing(Kind::Host, || "tar's output".into())
    }

    /// Gives the bytes that came.
    async fn get(&self, path: &str, here: &Path) -> Result<u64> {
        let name = path.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
        let into = match here.is_dir() {
            true if !["", ".", ".."].contains(&name) => here.join(name),
            _ => here.to_owned(),
        };
        let script = format!(
            "set -e; p={p}; if [ -d \"$p\" ]; then echo folder; exec tar -C \"$p\" -cf - .; fi; \
             s=$(wc -c <\"$p\"); echo file $s $(stat -c %a \"$p\"); exec head -c $s \"$p\"",
            p = quote::word(path),
        );
        let (to, none) = mpsc::channel::<Bytes>(1);
        drop(to);
        let mut taken = Taken { into, head: Vec::new(), what: What::Unknown, bytes: 0 };
        let done = self.script(&script, none, |piece| taken.take(piece)).await;
        done?;
        taken.finish(path)
    }
}

/// What may help, by what the node's programs said.
fn advice(said: &str, sudo: bool) -> Option<&'static str> {
    let says = |what: &str| said.lines().any(|line| line.contains(what));
    if says("sudo: ") {
        Some("sudo on the node refuses: its words say why")
    } else if says("tar: ") && (says("not found") || says("No such file")) {
        Some(TAR)
    } else if says("Permission denied") && !sudo {
        Some("--sudo does it as root")
    } else {
        None
    }
}

/// Feeds a command until the end of `from`, or of the command.
async fn feed(
    mut from: impl tokio::io::AsyncRead + Unpin,
    to: mpsc::Sender<Bytes>,
) -> std::io::Result<u64> {
    let (mut piece, mut all) = (vec![0; PIECE], 0);
    loop {
        let n = from.read(&mut piece).await?;
        if n == 0 || to.send(Bytes::copy_from_slice(&piece[..n])).await.is_err() {
            return Ok(all);
        }
        all += n as u64;
    }
}

/// What is coming from a node: a line that says what it is, then the bytes.
struct Taken {
    into: PathBuf,
    head: Vec<u8>,
    what: What,
    bytes: u64,
}

enum What {
    Unknown,
    File {
        size: u64,
        file: NamedWriter,
    },
    /// Beside the target, to be renamed.
    Folder {
        tar: Tar,
        folder: tempfile::TempDir,
    },
}

impl Taken {
    fn take(&mut self, piece: &[u8]) -> std::io::Result<()> {
        if let What::Unknown = self.what {
            self.head.extend_from_slice(piece);
            let Some(end) = self.head.iter().position(|b| *b == b'\n') else { return Ok(()) };
            let rest = self.head.split_off(end + 1);
            self.open()?;
            return self.write(&rest);
        }
        self.write(piece)
    }

    fn open(&mut self) -> std::io::Result<()> {
        let wrong = || std::io::Error::other("the node said something else than what it sends");
        let head = String::from_utf8_lossy(&self.head).into_owned();
        let parent = match self.into.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        self.what = match head.split_whitespace().collect::<Vec<_>>().as_slice() {
            ["file", size, mode] => {
                let mode = u32::from_str_radix(mode, 8).map_err(|_| wrong())? & 0o777;
                let size = size.parse().map_err(|_| wrong())?;
                What::File { size, file: NamedWriter::open(&self.into, mode)? }
            }
            ["folder"] => {
                let folder = tempfile::Builder::new().prefix(".stackproof-").tempdir_in(parent)?;
                let at = folder.path().to_string_lossy().into_owned();
                let tar = tar(&["-C", &at, "-xf", "-"], Stdio::piped(), Stdio::null())
                    .map_err(std::io::Error::other)?;
                What::Folder { tar, folder }
            }
            _ => return Err(wrong()),
        };
        Ok(())
    }

    fn write(&mut self, piece: &[u8]) -> std::io::Result<()> {
        self.bytes += piece.len() as u64;
        match &mut self.what {
            What::File { file, .. } => file.write_all(piece),
            What::Folder { tar, .. } => tar.0.stdin.as_mut().expect("piped").write_all(piece),
            What::Unknown => Ok(()),
        }
    }

    /// Puts it where it was wanted, if all of it came.
    fn finish(self, path: &str) -> Result<u64> {
        let Taken { into, what, bytes, .. } = self;
        let doing = || format!("{} cannot be written", into.display());
        match what {
            What::File { size, file } if size == bytes => {
                file.finish().doing(Kind::Host, doing)?;
            }
            What::Folder { mut tar, folder } => {
                drop(tar.0.stdin.take());
                tar.ended()?;
                if into.exists() {
                    return Err(Error::host(doing()).hint("it is there already: choose another"));
                }
                let mode = std::fs::Permissions::from_mode(0o755);
                std::fs::set_permissions(folder.path(), mode).doing(Kind::Host, doing)?;
                std::fs::rename(folder.path(), &into).doing(Kind::Host, doing)?;
                // There is nothing left of it to remove.
                let _ = folder.keep();
            }
            What::File { size, .. } => {
                return Err(Error::lab(format!("{bytes} of {size} bytes of {path} came")));
            }
            What::Unknown => return Err(Error::lab(format!("nothing of {path} came"))),
        }
        Ok(bytes)
    }
}

/// The host's `tar`; killed when dropped before its end.
struct Tar(Child);

fn tar(args: &[&str], stdin: Stdio, stdout: Stdio) -> Result<Tar> {
    let mut command = Command::new("tar");
    command.args(args).stdin(stdin).stdout(stdout).stderr(Stdio::piped());
    let child = command.spawn();
    Ok(Tar(child.map_err(|e| Error::host("cannot start tar").because(e).hint(TAR))?))
}

impl Tar {
    fn ended(&mut self) -> Result<()> {
        let mut said = String::new();
        if let Some(mut from) = self.0.stderr.take() {
            let _ = std::io::Read::read_to_string(&mut from, &mut said);
        }
        let status: ExitStatus = self.0.wait().doing(Kind::Host, || "tar".into())?;
        if status.success() {
            return Ok(());
        }
        Err(Error::host(format!("tar: {status}")).evidence(said.lines()))
    }
}

impl Drop for Tar {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The folder that holds `path`, and its name there.
fn parts(path: &Path) -> Result<(&str, &str)> {
    path.parent()
        .and_then(Path::to_str)
        .zip(path.file_name().and_then(|n| n.to_str()))
        .ok_or_else(|| Error::input("not a folder with a name in UTF-8").at(path, None))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_colon_after_a_slash_is_a_file_here() {
        let cwd = Path::new("/w");
        assert!(matches!(side("a:/etc/hosts", cwd),
            Side::Node { node, path } if node == "a" && path == "/etc/hosts"));
        assert!(matches!(side("a:", cwd), Side::Node { path, .. } if path == "."));
        for (text, wanted) in [("./a:b", "/w/./a:b"), ("x", "/w/x"), (":x", "/w/:x")] {
            assert!(matches!(side(text, cwd), Side::Here(p) if p == Path::new(wanted)), "{text}");
        }
    }

    #[test]
    fn the_advice_fits_what_the_node_said() {
        let tty = "sudo: sorry, you must have a tty to run sudo";
        assert!(advice(tty, true).unwrap().contains("sudo"));
        assert_eq!(advice("sh: 1: exec: tar: not found", true), Some(TAR));
        assert!(advice("cat: /root/x: Permission denied", false).unwrap().contains("--sudo"));
        assert_eq!(advice("cat: /root/x: Permission denied", true), None);
        assert_eq!(advice("cp: no space left on device", true), None);
    }

    fn taken(dir: &Path, pieces: &[&[u8]]) -> Result<u64> {
        let into = dir.join("file");
        let mut taken = Taken { into, head: Vec::new(), what: What::Unknown, bytes: 0 };
        for piece in pieces {
            taken.take(piece).doing(Kind::Host, || "take".into())?;
        }
        taken.finish("x")
    }

    #[test]
    fn a_file_appears_whole_with_its_mode_however_its_bytes_come_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        assert!(taken(dir.path(), &[b"file 4 640\nab"]).is_err(), "half of it");
        assert!(taken(dir.path(), &[]).is_err(), "nothing");
        assert!(taken(dir.path(), &[b"motd\n"]).is_err(), "something else");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left");
        assert_eq!(taken(dir.path(), &[b"fi", b"le 4 640", b"\na", b"b\nc"]).unwrap(), 4);
        assert_eq!(std::fs::read(&file).unwrap(), b"ab\nc");
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o640);
    }
}
