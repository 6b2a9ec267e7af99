//! A run's directory: private, and told apart from what a killed run left behind.
//!
//! Each run holds a lock on the file `owner` in its directory; the kernel gives it back however
//! the process ends. A directory whose lock is free is a leftover, and the next command sweeps it.
//! Nothing is ever removed that does not begin with our own words.

use super::removal;
use crate::error::{Context, Error, Kind, Result};
use rustix::fs::{FlockOperation, flock};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

const PREFIX: &str = "run-";
const OWNER: &str = "owner";
const KEPT: &str = "kept";
const MAGIC: &str = "stackproof run directory\n";

/// A directory that is removed with everything in it when this is dropped, unless kept.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    /// Locked as long as we live.
    _owner: File,
    keep: bool,
}

impl RunDir {
    /// Makes `ROOT/run-NAME-…`, and `root` where it is missing; both are ours alone (0700).
    pub fn create(root: &Path, name: &str) -> Result<RunDir> {
        let doing = || format!("cannot make a run directory in {}", root.display());
        DirBuilder::new().recursive(true).mode(0o700).create(root).doing(Kind::Host, doing)?;
        // Until the owner's lock is held, the new directory looks like a leftover.
        let _root = lock_root(root)?;
        let made = tempfile::Builder::new()
            .prefix(&format!("{PREFIX}{name}-"))
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o700))
            .tempdir_in(root)
            .doing(Kind::Host, doing)?;
        let mut owner = private_file(&made.path().join(OWNER)).doing(Kind::Host, doing)?;
        flock(&owner, FlockOperation::NonBlockingLockExclusive).doing(Kind::Host, doing)?;
        writeln!(owner, "{MAGIC}{}", std::process::id()).doing(Kind::Host, doing)?;
        let path = std::path::absolute(made.path()).doing(Kind::Host, doing)?;
        let _ = made.keep();
        Ok(RunDir { path, _owner: owner, keep: false })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn is_kept(&self) -> bool {
        self.keep
    }

    /// A directory in it, as private.
    pub fn subdir(&self, name: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(|e| Error::host("cannot make a directory").at(&path, None).because(e))?;
        Ok(path)
    }

    /// From now on neither the end of the run nor a sweep removes it.
    pub fn keep(&mut self) -> Result<()> {
        let mark = self.path.join(KEPT);
        private_file(&mark)
            .map_err(|e| Error::host("cannot keep the run").at(mark, None).because(e))?;
        self.keep = true;
        Ok(())
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        if !self.keep {
            // What cannot be removed now is swept later: the lock is free then.
            let _ = removal::remove(&self.path, OWNER);
        }
    }
}

fn private_file(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)
}

/// Held for moments only, so waiting for it needs no deadline.
fn lock_root(root: &Path) -> Result<File> {
    let path = root.join(".lock");
    let lock = private_file(&path).and_then(|file| {
        flock(&file, FlockOperation::LockExclusive).map(|()| file).map_err(Into::into)
    });
    lock.map_err(|e| Error::host("cannot lock the run directories").at(path, None).because(e))
}

/// Removes what killed runs left in `root`. Returns what was removed. Live and kept runs and
/// everything that is not ours stay.
pub fn sweep(root: &Path) -> Result<Vec<PathBuf>> {
    if !root.exists() {
        return Ok(Vec::new());
    }
    let dead = {
        let _root = lock_root(root)?;
        find_dead(root).doing(Kind::Host, || format!("cannot look through {}", root.display()))?
    };
    let mut removed = Vec::new();
    for (path, _owner) in dead {
        match removal::remove(&path, OWNER) {
            Ok(()) => removed.push(path),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => {
                return Err(Error::host("cannot remove a leftover").at(path, None).because(e));
            }
        }
    }
    Ok(removed)
}

/// Dead runs, each with its lock held: two sweeps never remove the same.
fn find_dead(root: &Path) -> std::io::Result<Vec<(PathBuf, Option<File>)>> {
    let mut dead = Vec::new();
    for entry in root.read_dir()? {
        let entry = entry?;
        let ours = entry.file_name().to_string_lossy().starts_with(PREFIX);
        // Links are not followed: a run directory is never one.
        if !ours || !entry.file_type()?.is_dir() {
            continue;
        }
        let path = entry.path();
        let Ok(mut owner) = OpenOptions::new().read(true).open(path.join(OWNER)) else {
            // Killed between its making and its locking: empty then, or else not ours.
            let _ = std::fs::remove_dir(&path);
            continue;
        };
        if flock(&owner, FlockOperation::NonBlockingLockExclusive).is_err() {
            continue;
        }
        let mut text = String::new();
        let _ = owner.read_to_string(&mut text);
        // An owner file that was locked and never written is a killed run's too.
        if (text.is_empty() || text.starts_with(MAGIC)) && !path.join(KEPT).exists() {
            dead.push((path, Some(owner)));
        }
    }
    Ok(dead)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn mode(path: &Path) -> u32 {
        path.metadata().unwrap().permissions().mode() & 0o777
    }

    /// What a killed process leaves: the directory, the lock given back.
    fn abandon(run: RunDir) -> PathBuf {
        let path = run.path().to_owned();
        let mut run = run;
        run.keep = true;
        drop(run);
        path
    }

    #[test]
    fn a_run_is_private_and_gone_when_dropped() {
        let base = tempfile::tempdir().unwrap();
        let root = base.path().join("deep/er");
        let run = RunDir::create(&root, "lab").unwrap();
        let sub = run.subdir("openstack1").unwrap();
        assert_eq!([mode(&root), mode(run.path()), mode(&sub)], [0o700; 3]);
        assert_eq!(mode(&run.path().join(OWNER)), 0o600);
        let path = run.path().to_owned();
        drop(run);
        assert!(!path.exists());
    }

    #[test]
    fn the_sweep_takes_the_dead_and_leaves_the_living_the_kept_and_the_foreign() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let alive = RunDir::create(root, "alive").unwrap();
        let dead = abandon(RunDir::create(root, "dead").unwrap());
        std::fs::write(dead.join("disk.qcow2"), "x").unwrap();
        let mut kept = RunDir::create(root, "kept").unwrap();
        kept.keep().unwrap();
        let kept = abandon(kept);
        let foreign = root.join("run-of-the-mill");
        std::fs::create_dir(&foreign).unwrap();
        std::fs::write(foreign.join(OWNER), "somebody else").unwrap();
        let unowned = root.join("run-unowned");
        std::fs::create_dir(&unowned).unwrap();
        std::fs::write(unowned.join("file"), "x").unwrap();
        let other = root.join("photos");
        std::fs::create_dir(&other).unwrap();
        std::os::unix::fs::symlink(&other, root.join("run-link")).unwrap();

        assert_eq!(sweep(root).unwrap(), std::slice::from_ref(&dead));
        assert!(!dead.exists());
        for stays in [alive.path(), &kept, &foreign, &unowned, &other, &root.join("run-link")] {
            assert!(stays.exists(), "{}", stays.display());
        }
        assert!(sweep(root).unwrap().is_empty());
    }

    #[test]
    fn a_run_killed_while_it_was_made_is_swept() {
        let root = tempfile::tempdir().unwrap();
        let (empty, unwritten) = (root.path().join("run-a"), root.path().join("run-b"));
        std::fs::create_dir(&empty).unwrap();
        std::fs::create_dir(&unwritten).unwrap();
        std::fs::write(unwritten.join(OWNER), "").unwrap();
        sweep(root.path()).unwrap();
        assert!(!empty.exists() && !unwritten.exists());
    }

    #[test]
    fn a_missing_root_has_nothing_to_sweep() {
        assert!(sweep(Path::new("/nonexistent/runs")).unwrap().is_empty());
    }

    #[test]
    fn a_root_that_cannot_be_made_is_the_hosts_fault() {
        let error = RunDir::create(Path::new("/dev/null/x"), "lab").unwrap_err();
        assert_eq!(error.kind(), Kind::Host);
        assert!(error.message().contains("/dev/null/x"), "{error}");
    }
}
