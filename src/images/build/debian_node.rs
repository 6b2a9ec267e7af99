//! The recipe `debian-node`: a Debian system installed by mmdebstrap into an ext4 filesystem.
//!
//! As root, mmdebstrap works in mount and process namespaces of its own, so that nothing is left
//! mounted or running on the host, however the build ends. Not as root, it works in a user
//! namespace: the files belong to other users then, so the disk's image is made by a hook inside,
//! through a descriptor that was opened outside.

use super::{Job, apt};
use crate::error::{Context, Error, Kind, Result};
use crate::host::apt_config;
use crate::host::debian::Steps;
use crate::host::tool::Tool;
use serde::Deserialize;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    pub suite: String,
    pub architecture: String,
    pub disk_gib: u64,
    pub packages: Vec<String>,
    /// In the order in which the initramfs loads them.
    pub modules: Vec<String>,
    /// `cmdline` beside the image.
    pub cmdline: String,
}

/// Free space that a build needs: the unpacked system, its image, and the packages.
const ROOM: u64 = 9 << 30;

pub(super) async fn build(
    recipe: &Recipe,
    extra: &[String],
    files: &Path,
    job: &Job<'_>,
    out: &Path,
) -> Result<()> {
    enough_room(out)?;
    let work = tempfile::Builder::new()
        .prefix("build-")
        .tempdir_in(out)
        .doing(Kind::Host, || "no folder could be made to build in".into())
        .map_err(|e| e.at(out, None))?;
    let io = |e: std::io::Error| {
        Error::host("the build's folder cannot be written").at(work.path(), None).because(e)
    };
    let root = rustix::process::geteuid().is_root();
    // mmdebstrap's other users must be able to enter the folder that it works in.
    let chroot = work.path().join("chroot");
    fs::create_dir(&chroot).map_err(io)?;
    fs::set_permissions(&chroot, fs::Permissions::from_mode(0o1777)).map_err(io)?;

    let raw = work.path().join("disk.raw");
    let disk = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o666)
        .open(&raw)
        .and_then(|f| f.set_permissions(fs::Permissions::from_mode(0o666)).map(|()| f))
        .and_then(|f| f.set_len(recipe.disk_gib << 30).map(|()| f))
        .map_err(io)?;
    // Inherited by mmdebstrap and its hooks: reopened there by number, which needs no right to the
    // folders above it.
    let disk = rustix::io::dup(disk.as_fd()).map_err(|e| io(e.into()))?;
    rustix::io::fcntl_setfd(&disk, rustix::io::FdFlags::empty()).map_err(|e| io(e.into()))?;
    let disk_number = std::os::fd::AsRawFd::as_raw_fd(&disk);

    let packages: BTreeSet<&str> =
        recipe.packages.iter().chain(extra).map(String::as_str).collect();
    let include: Vec<&str> = packages.into_iter().collect();
    let hook = |name: &str| {
        let path = files.join(name);
        fs::read_to_string(&path)
            .doing(Kind::Input, || "a file of the recipe cannot be read".into())
            .map_err(|e| e.at(&path, None))
    };
    // Seen through a second mount, which has none of those that installing needed (/proc, /sys).
    let mkfs = format!(
        "set -e; plain=\"$1.plain\"; mkdir \"$plain\"; mount --bind \"$1\" \"$plain\"; \
         mke2fs -q -F -t ext4 -L root -O ^metadata_csum,^orphan_file -J size=64 \
         -E root_owner=0:0,assume_storage_prezeroed=1 -d \"$plain\" /proc/self/fd/{disk_number}; \
         umount \"$plain\"; rmdir \"$plain\""
    );

    let mut tool = if root {
        Tool::new("unshare")
            .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "mmdebstrap"])
            .arg("--mode=root")
    } else {
        Tool::new("mmdebstrap").arg("--mode=unshare").asked_to_stop()
    };
    tool = tool
        .args(["--variant=minbase", "--format=null", "--verbose"])
        .arg(format!("--architectures={}", recipe.architecture))
        .arg(format!("--include={}", include.join(",")))
        .arg("--aptopt=APT::Install-Recommends \"false\"")
        .arg("--aptopt=Acquire::Languages \"none\"")
        .arg("--aptopt=Acquire::Retries \"3\"")
        .arg("--dpkgopt=force-unsafe-io")
        .args(
            ["man", "doc", "locale", "info"]
                .map(|d| format!("--dpkgopt=path-exclude=/usr/share/{d}/*")),
        )
        .arg("--dpkgopt=path-include=/usr/share/doc/*/copyright")
        .arg(format!("--essential-hook={}", hook("before.sh")?))
        .arg(format!("--customize-hook={}", hook("after.sh")?))
        .arg(format!("--customize-hook=download /boot/vmlinuz {}", out.join("vmlinuz").display()))
        .arg(format!("--customize-hook=download /boot/initrd {}", out.join("initrd").display()))
        .arg(format!("--customize-hook={mkfs}"))
        .arg(&recipe.suite)
        .arg("-")
        .env("TMPDIR", &chroot)
        .env("MODULES", recipe.modules.join(" "))
        // The kernel's package would have one made that nobody uses.
        .env("INITRD", "No")
        .log(&job.log);
    // Not as --aptopt, which would stay in the image.
    for (name, value) in apt_config::proxy_variables().await {
        tool = tool.env(name, value);
    }
    let sources = work.path().join("debian.sources");
    fs::write(&sources, apt::sources(&job.mirrors, &recipe.suite)).map_err(io)?;
    tool = tool.arg(sources);
    let mut steps = Steps::default();
    let run = tool.run(|line| {
        if steps.read(line) {
            job.step(steps.done, steps.total());
        }
    });
    run.await.map_err(|e| explain(e, &job.log))?;
    drop(disk);

    fs::write(out.join("cmdline"), &recipe.cmdline).map_err(io)?;
    job.to_qcow2(&raw, &out.join("disk.qcow2")).await
}

fn enough_room(out: &Path) -> Result<()> {
    let stat = rustix::fs::statvfs(out)
        .doing(Kind::Host, || "the free space cannot be told".into())
        .map_err(|e| e.at(out, None))?;
    let free = stat.f_bavail * stat.f_frsize;
    if free >= ROOM {
        return Ok(());
    }
    Err(Error::host(format!(
        "the build needs {} GiB, and {:.1} GiB are free",
        ROOM >> 30,
        free as f64 / (1u64 << 30) as f64
    ))
    .at(out, None)
    .hint("free some space, or keep the images on another filesystem"))
}

/// Says of a failed build what apt said: mmdebstrap itself ends with how it cleaned up.
fn explain(error: Error, log: &Path) -> Error {
    let text = fs::read_to_string(log).unwrap_or_default();
    let said: Vec<&str> = text
        .lines()
        .filter(|l| l.starts_with("E: ") || l.starts_with("dpkg: error"))
        .filter(|l| !error.evidence_lines().iter().any(|e| e == l))
        .collect();
    Error::image("mmdebstrap could not make the system")
        .because(error.to_string())
        .evidence(error.evidence_lines().to_vec())
        .evidence(said[said.len().saturating_sub(10)..].iter().copied())
        .hint(format!("the whole log is {}", log.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_explained_by_what_apt_said_in_the_middle() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        fs::write(&log, "E: Unable to locate package nosuch\nI: removing tempdir\n").unwrap();
        let e = explain(Error::host("`mmdebstrap` failed").evidence(["I: removing"]), &log);
        assert_eq!(e.kind(), Kind::Image);
        assert_eq!(e.evidence_lines(), ["I: removing", "E: Unable to locate package nosuch"]);
    }
}
