//! The host's QEMU: which one it is and what it can do.

use super::disk::{Chain, layer_name};
use super::qemu;
use crate::error::{Context, Error, Kind, Result, last_lines};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;
use tokio::process::Command;

/// No tool needs this long to print its version or to write an empty overlay.
const TOOL_PATIENCE: Duration = Duration::from_secs(60);

const INSTALL: &str = "QEMU 9.2 or newer is needed (Debian: qemu-system-x86 and qemu-utils); \
                       see `stackproof host check`";

/// QEMU and qemu-img, found to be there and new enough.
#[derive(Clone, Debug)]
pub struct Hypervisor {
    pub qemu: PathBuf,
    pub img: PathBuf,
    /// Major, minor, micro.
    pub version: (u32, u32, u32),
    /// The version with what its packager calls it: `10.0.2 (Debian 1:10.0.2+ds-2)`. A machine's
    /// memory is restored by no other.
    pub release: String,
    /// Whether it was built with seccomp.
    pub sandbox: bool,
}

impl Hypervisor {
    /// `qemu` and `img` are paths, or names to be looked up in the usual places.
    pub async fn find(qemu: &Path, img: &Path) -> Result<Hypervisor> {
        let out = run(qemu, &["-version".into()]).await?;
        let text = String::from_utf8_lossy(&out.stdout);
        let version = parse_version(&text).ok_or_else(|| {
            let first = text.lines().next().unwrap_or_default().to_owned();
            Error::host(format!("{} does not tell its version", qemu.display())).evidence([first])
        })?;
        if (version.0, version.1) < qemu::OLDEST {
            let (major, minor, micro) = version;
            let message = format!("{} is version {major}.{minor}.{micro}", qemu.display());
            return Err(Error::host(format!("{message}: too old")).hint(INSTALL));
        }
        // A QEMU built without seccomp refuses the option itself.
        let sandbox = run_any(qemu, &["-sandbox".into(), "on".into(), "-version".into()]).await?;
        run(img, &["--version".into()]).await?;
        let sandbox = sandbox.status.success();
        let release = release(&text).to_owned();
        Ok(Hypervisor { qemu: qemu.to_owned(), img: img.to_owned(), version, release, sandbox })
    }

    /// Makes `overlay` on top of the qcow2 `base`; see [`qemu::overlay_arguments`].
    pub async fn overlay(&self, base: &Path, overlay: &Path, size: Option<u64>) -> Result<()> {
        // An absolute path: the overlay is opened from another directory.
        let base = std::path::absolute(base)
            .doing(Kind::Image, || format!("cannot name {}", base.display()))?;
        let made = run(&self.img, &qemu::overlay_arguments(&base, overlay, size)).await;
        made.map(drop).map_err(|e| e.while_doing("cannot make a disk overlay"))
    }

    /// Makes the top of `above` on top of that of `below`, which may be in use. `size` in bytes is
    /// what the guest sees.
    pub async fn layer(&self, below: &Chain, above: &Chain, size: u64) -> Result<()> {
        let name = layer_name(below.frozen());
        let made = run(&self.img, &qemu::layer_arguments(name.as_ref(), &above.top(), size)).await;
        made.map(drop).map_err(|e| e.while_doing("cannot make a disk layer"))
    }
}

/// Runs a tool to its end; its failure is an error with what it said.
async fn run(program: &Path, args: &[OsString]) -> Result<Output> {
    let out = run_any(program, args).await?;
    if out.status.success() {
        return Ok(out);
    }
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    let status = super::process::describe(out.status);
    Err(Error::host(format!("{} {status}", program.display())).evidence(last_lines(&said, 5)))
}

async fn run_any(program: &Path, args: &[OsString]) -> Result<Output> {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).kill_on_drop(true);
    let failed = || Error::host(format!("cannot run {}", program.display())).hint(INSTALL);
    match tokio::time::timeout(TOOL_PATIENCE, command.output()).await {
        Ok(out) => out.map_err(|e| failed().because(e)),
        Err(_) => Err(failed().because(format!("no end after {} s", TOOL_PATIENCE.as_secs()))),
    }
}

/// From `QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)`.
fn parse_version(text: &str) -> Option<(u32, u32, u32)> {
    let (_, rest) = text.split_once("version ")?;
    let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
    let mut numbers = rest[..end].split('.').map(|n| n.parse().ok());
    Some((numbers.next()??, numbers.next()??, numbers.next().flatten().unwrap_or(0)))
}

/// All that follows the word `version` in the first line.
fn release(text: &str) -> &str {
    let line = text.lines().next().unwrap_or_default();
    line.split_once("version ").map_or(line, |(_, release)| release).trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_the_first_line() {
        let debian = "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2+deb13u1~bpo12+1)\nCopy";
        assert_eq!(parse_version(debian), Some((10, 0, 2)));
        assert_eq!(release(debian), "10.0.2 (Debian 1:10.0.2+ds-2+deb13u1~bpo12+1)");
        assert_eq!(parse_version("QEMU emulator version 9.2\n"), Some((9, 2, 0)));
        assert_eq!(parse_version("qemu: command not found"), None);
        assert_eq!(parse_version("version x"), None);
    }

    /// Programs that pretend, kept in the repository: one written by the test could still be open
    /// in a child that another test is just forking ("text file busy").
    fn pretender(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/qemu").join(name)
    }

    #[tokio::test]
    async fn an_old_a_mute_a_missing_and_a_broken_qemu_are_told_apart() {
        let find = async |qemu: &Path| Hypervisor::find(qemu, qemu).await.unwrap_err();
        let old = find(&pretender("old")).await;
        assert!(old.message().ends_with("is version 7.2.19: too old"), "{old}");
        assert!(old.hint_text().unwrap().contains("9.2"));
        let mute = find(&pretender("mute")).await;
        assert!(mute.message().ends_with("does not tell its version"), "{mute}");
        let missing = find(Path::new("/nonexistent/qemu")).await;
        assert_eq!(missing.kind(), Kind::Host);
        assert!(missing.message().contains("/nonexistent/qemu"), "{missing}");
        let broken = find(&pretender("broken")).await;
        assert_eq!(broken.evidence_lines(), ["cannot open libfoo"]);
    }

    #[tokio::test]
    async fn a_qemu_without_seccomp_is_used_without_it() {
        let qemu = pretender("no-seccomp");
        let found = Hypervisor::find(&qemu, &qemu).await.unwrap();
        assert_eq!((found.version, found.sandbox), ((9, 2, 0), false));
    }
}
