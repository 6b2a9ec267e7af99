//! Locks between processes: a file that is held (`flock`) as long as its holder lives. The kernel
//! lets go of it however the process ends.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// Beside others of its kind: the thing is in use and must stay as it is.
    Shared,
    /// Alone: the thing is being made or removed.
    Exclusive,
}

/// A lock that is held until this is dropped.
#[derive(Debug)]
pub struct LockFile {
    file: File,
    path: PathBuf,
}

impl LockFile {
    /// Takes the lock at `path`, making the file (0600) where it is missing. `None` while another
    /// holder, in this process or in any other, is in the way.
    pub fn try_take(path: &Path, hold: Hold) -> io::Result<Option<LockFile>> {
        loop {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false).mode(0o600);
            let file = options.open(path)?;
            if !lock(&file, hold)? {
                return Ok(None);
            }
            // Its last holder may have removed it between the open and the lock: the lock on a file
            // without a name guards nothing.
            match fs::metadata(path) {
                Ok(named) if named.ino() == file.metadata()?.ino() => {
                    return Ok(Some(LockFile { file, path: path.to_owned() }));
                }
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Waits for the lock alone, without a deadline: for locks that are held for moments only, and
    /// whose file is never removed.
    pub fn moment(path: &Path) -> io::Result<LockFile> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(path)?;
        file.lock()?;
        Ok(LockFile { file, path: path.to_owned() })
    }

    /// Like [`LockFile::try_take`] for a file that is there already: one that is gone is not made.
    pub fn try_take_existing(path: &Path, hold: Hold) -> io::Result<Option<LockFile>> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        Ok(lock(&file, hold)?.then(|| LockFile { file, path: path.to_owned() }))
    }

    /// What the holder writes into it is for people to read.
    pub fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Removes the file and lets go of it. Only the exclusive holder may.
    pub fn remove(self) -> io::Result<()> {
        fs::remove_file(&self.path)
    }
}

fn lock(file: &File, hold: Hold) -> io::Result<bool> {
    let taken = match hold {
        Hold::Shared => file.try_lock_shared(),
        Hold::Exclusive => file.try_lock(),
    };
    match taken {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(e)) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn one_alone_or_many_together() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let take = |hold| LockFile::try_take(&path, hold).unwrap();
        let a = take(Hold::Shared).unwrap();
        let b = take(Hold::Shared).unwrap();
        assert!(take(Hold::Exclusive).is_none());
        drop((a, b));
        let alone = take(Hold::Exclusive).unwrap();
        assert!(take(Hold::Shared).is_none());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        alone.remove().unwrap();
        assert!(!path.exists());
        assert!(LockFile::try_take_existing(&path, Hold::Shared).is_err());
        assert!(take(Hold::Exclusive).is_some());
    }

    #[test]
    fn a_lock_on_a_removed_file_is_not_taken_for_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let old = LockFile::try_take(&path, Hold::Exclusive).unwrap().unwrap();
        fs::remove_file(&path).unwrap();
        let new = LockFile::try_take(&path, Hold::Exclusive).unwrap();
        assert!(new.is_some(), "the old one guards nothing any more");
        drop(old);
        assert!(LockFile::try_take(&path, Hold::Exclusive).unwrap().is_none());
    }
}
