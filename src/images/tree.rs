//! Folders removed with everything in them, also where other users' files are in them: a build
//! without root that was killed leaves the files of its user namespace.

use crate::wait::block_until;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// A whole unpacked system is removed in seconds.
const REMOVING: Duration = Duration::from_secs(120);

/// Removes `path`. Where that is refused, it is done in a user namespace that has the users of
/// /etc/subuid.
pub fn remove(path: &Path) -> io::Result<()> {
    remove_with(path, |path| std::fs::remove_dir_all(path), Path::new("unshare"))
}

fn remove_with(
    path: &Path,
    plain: impl Fn(&Path) -> io::Result<()>,
    unshare: &Path,
) -> io::Result<()> {
    match plain(path) {
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            let why = |said: String| io::Error::new(e.kind(), format!("{e}; {said}"));
            in_namespace(path, unshare).map_err(why)
        }
        done => done,
    }
}

fn in_namespace(path: &Path, unshare: &Path) -> Result<(), String> {
    let name = unshare.display();
    let mut child = Command::new(unshare)
        .args(["--user", "--map-root-user", "--map-auto", "rm", "-rf", "--"])
        .arg(path)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| format!("`{name}` could not be started: {e}"))?;
    let mut status = None;
    block_until(REMOVING, || {
        status = child.try_wait().transpose();
        status.is_some()
    });
    match status {
        Some(Ok(status)) if status.success() => Ok(()),
        Some(Ok(status)) => Err(format!("`{name} rm` failed ({status})")),
        Some(Err(e)) => Err(format!("`{name}`: {e}")),
        None => {
            let _ = child.kill();
            let _ = child.wait();
            Err(format!("`{name} rm` took more than {} s", REMOVING.as_secs()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// A stand-in for `unshare` that does what `script` says with its arguments.
    fn stand_in(dir: &Path, script: &str) -> std::path::PathBuf {
        let path = dir.join("unshare");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    fn refused(_: &Path) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    #[test]
    fn what_may_not_be_removed_is_removed_by_those_whose_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let left = dir.path().join("left over");
        std::fs::create_dir_all(left.join("chroot/etc")).unwrap();
        let unshare =
            stand_in(dir.path(), "[ \"$3\" = --map-auto ] || exit 9; shift 3; exec \"$@\"");
        remove_with(&left, refused, &unshare).unwrap();
        assert!(!left.exists());
        // Not asked where nobody refused.
        let missing = remove_with(&left, |p| std::fs::remove_dir_all(p), &unshare).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_refusal_that_stays_one_tells_both_reasons() {
        let dir = tempfile::tempdir().unwrap();
        let unshare = stand_in(dir.path(), "exit 1");
        let e = remove_with(dir.path(), refused, &unshare).unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::PermissionDenied);
        assert!(e.to_string().contains("rm` failed (exit status: 1)"), "{e}");
        let e = remove_with(dir.path(), refused, Path::new("/nonexistent/unshare")).unwrap_err();
        assert!(e.to_string().contains("could not be started"), "{e}");
    }
}
