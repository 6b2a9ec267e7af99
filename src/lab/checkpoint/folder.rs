//! A checkpoint's folder while it is made: beside its final name, which it gets when all is in it.

use crate::error::{Context, Error, Kind, Result};
use crate::lab::removal;
use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

const SUFFIX: &str = ".partial";

/// In it as long as it is made; its lock is held by who makes it.
const OWNER: &str = ".owner";

/// Removed with everything in it unless finished.
#[derive(Debug)]
pub(super) struct Partial {
    path: PathBuf,
    to: PathBuf,
    finished: bool,
    _owner: File,
}

impl Partial {
    /// Begins the checkpoint `to`, which must not exist yet. What a killed process left of an
    /// earlier one is removed, and nothing that is somebody else's.
    pub fn create(to: &Path) -> Result<Partial> {
        let doing = || "cannot make the checkpoint's folder".to_owned();
        let to = std::path::absolute(to).doing(Kind::Host, doing)?;
        let mut name = to.file_name().unwrap_or_default().to_owned();
        if name.is_empty() {
            return Err(Error::input("a checkpoint needs a name").at(&to, None));
        }
        if name.as_encoded_bytes().ends_with(SUFFIX.as_bytes()) {
            let message = format!("a checkpoint's name cannot end in `{SUFFIX}`");
            return Err(Error::input(message)
                .at(&to, None)
                .hint("choose another name: this is what half-made ones are called"));
        }
        if to.symlink_metadata().is_ok() {
            return Err(Error::input("there is a checkpoint of that name already")
                .at(&to, None)
                .hint("remove it, or choose another name"));
        }
        name.push(SUFFIX);
        let path = to.with_file_name(name);
        let made = || -> std::io::Result<Claim> {
            if let Some(parent) = path.parent() {
                DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
            }
            let new = || DirBuilder::new().mode(0o700).create(&path);
            match new() {
                Err(e) if e.kind() == ErrorKind::AlreadyExists => match claim(&path, false)? {
                    Claim::Held(_dead) => {
                        removal::remove(&path, OWNER)?;
                        new()?;
                    }
                    // Killed between the folder's making and its locking: empty then.
                    Claim::Foreign if std::fs::remove_dir(&path).is_ok() => new()?,
                    other => return Ok(other),
                },
                made => made?,
            }
            claim(&path, true)
        };
        match made().doing(Kind::Host, doing).map_err(|e| e.at(&path, None))? {
            Claim::Held(owner) => Ok(Partial { path, to, finished: false, _owner: owner }),
            Claim::Busy => {
                Err(Error::input("another process is just making this checkpoint").at(&path, None))
            }
            Claim::Foreign => Err(Error::input("what is there is no half-made checkpoint of ours")
                .at(&path, None)
                .hint(
                    "it stands where the checkpoint would be made: move it, or choose another name",
                )),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A folder in it, as private.
    pub fn subdir(&self, name: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        let made = DirBuilder::new().mode(0o700).create(&path);
        made.map_err(|e| Error::host("cannot make a folder").at(&path, None).because(e))?;
        Ok(path)
    }

    /// A file in it that only we can read.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.path.join(name);
        let mut new = OpenOptions::new();
        let written = new.write(true).create_new(true).mode(0o600).open(&path);
        let written = written.and_then(|mut file| file.write_all(bytes));
        written.map_err(|e| Error::host("cannot write").at(&path, None).because(e))
    }

    /// Makes all that is in it durable, then `last` (a file's name and contents), and gives it its
    /// name. Seconds, where gigabytes go to a slow disk.
    pub fn finish(mut self, (name, bytes): (&str, &[u8])) -> Result<()> {
        let finish = || -> Result<()> {
            let doing = || "cannot make the checkpoint durable".to_owned();
            sync(&self.path).doing(Kind::Host, doing)?;
            self.write(name, bytes)?;
            let end = || -> std::io::Result<()> {
                File::open(self.path.join(name))?.sync_all()?;
                // Its name first: killed between the two, it is whole, and not a half-made one that
                // is nobody's.
                renameat_with(CWD, &self.path, CWD, &self.to, RenameFlags::NOREPLACE)?;
                std::fs::remove_file(self.to.join(OWNER))?;
                File::open(&self.to)?.sync_all()?;
                let parent = self.to.parent().unwrap_or(Path::new("/"));
                File::open(parent)?.sync_all()
            };
            end().doing(Kind::Host, doing)
        };
        finish().map_err(|e| e.at(&self.to, None))?;
        self.finished = true;
        Ok(())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.finished {
            // What cannot be removed now is removed by the next that wants the name.
            let _ = removal::remove(&self.path, OWNER);
        }
    }
}

/// What came of a try to take the owner's lock.
enum Claim {
    Held(File),
    /// Somebody holds it.
    Busy,
    /// There is none: nobody of us made this.
    Foreign,
}

/// Takes the owner's lock of a folder. `new` is for a folder that we have just made: in any other
/// a file of ours would make it look like ours.
fn claim(path: &Path, new: bool) -> std::io::Result<Claim> {
    if !path.symlink_metadata()?.is_dir() {
        return Ok(Claim::Foreign);
    }
    let mut open = OpenOptions::new();
    open.write(true).create(new).truncate(false).mode(0o600);
    let owner = match open.open(path.join(OWNER)) {
        Err(e) if e.kind() == ErrorKind::NotFound && !new => return Ok(Claim::Foreign),
        owner => owner?,
    };
    match flock(&owner, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Claim::Held(owner)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(Claim::Busy),
        Err(e) => Err(e.into()),
    }
}

fn sync(folder: &Path) -> std::io::Result<()> {
    for entry in folder.read_dir()? {
        let entry = entry?;
        match entry.file_type()?.is_dir() {
            true => sync(&entry.path())?,
            false => File::open(entry.path())?.sync_all()?,
        }
    }
    File::open(folder)?.sync_all()
}

/// Removes what killed processes left of checkpoints in `folder`. Returns what was removed.
pub fn sweep(folder: &Path) -> Result<Vec<PathBuf>> {
    let doing = || format!("cannot look through {}", folder.display());
    let mut removed = Vec::new();
    let entries = match folder.read_dir() {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(removed),
        entries => entries.doing(Kind::Host, doing)?,
    };
    for entry in entries {
        let entry = entry.doing(Kind::Host, doing)?;
        let (path, name) = (entry.path(), entry.file_name());
        let ours = name.as_encoded_bytes().ends_with(SUFFIX.as_bytes());
        if !ours || !path.join(OWNER).is_file() {
            continue;
        }
        let sweep = || match claim(&path, false)? {
            Claim::Held(_dead) => removal::remove(&path, OWNER).map(|()| true),
            Claim::Busy | Claim::Foreign => Ok(false),
        };
        if sweep().doing(Kind::Host, || format!("cannot remove {}", path.display()))? {
            removed.push(path);
        }
    }
    Ok(removed)
}

/// The same file in another folder: a second name for it, or a copy where the two are on different
/// file systems.
pub(super) fn link(from: &Path, to: &Path) -> Result<()> {
    let linked = match std::fs::hard_link(from, to) {
        Err(e) if e.kind() == ErrorKind::CrossesDevices => std::fs::copy(from, to).map(drop),
        linked => linked,
    };
    linked.map_err(|e| {
        Error::host(format!("cannot take over {}", from.display())).at(to, None).because(e)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn mode(path: &Path) -> u32 {
        path.metadata().unwrap().permissions().mode() & 0o777
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = folder.read_dir().unwrap();
        entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn the_final_name_is_there_when_all_is_and_everything_is_private() {
        let root = tempfile::tempdir().unwrap();
        let to = root.path().join("new/ready");
        let partial = Partial::create(&to).unwrap();
        let node = partial.subdir("a").unwrap();
        std::fs::write(node.join("memory"), "m").unwrap();
        partial.write("login.key", b"k").unwrap();
        assert!(!to.exists());
        partial.finish(("manifest.json", b"{}")).unwrap();
        assert_eq!(names(to.parent().unwrap()), ["ready"]);
        let mut inside = names(&to);
        inside.sort();
        assert_eq!(inside, ["a", "login.key", "manifest.json"]);
        assert_eq!([mode(&to), mode(&to.join("a"))], [0o700; 2]);
        assert_eq!([mode(&to.join("login.key")), mode(&to.join("manifest.json"))], [0o600; 2]);
        let again = Partial::create(&to).unwrap_err();
        assert!(again.message().contains("already"), "{again}");
    }

    #[test]
    fn an_unfinished_one_is_gone_a_killed_ones_is_swept_and_a_living_ones_is_not() {
        let root = tempfile::tempdir().unwrap();
        let to = root.path().join("ready");
        let partial = Partial::create(&to).unwrap();
        assert!(Partial::create(&to).unwrap_err().message().contains("another process"));
        assert!(sweep(root.path()).unwrap().is_empty());
        drop(partial);
        assert!(names(root.path()).is_empty());

        let killed = root.path().join("ready.partial");
        let leave = || {
            std::fs::create_dir(&killed).unwrap();
            std::fs::write(killed.join(OWNER), "").unwrap();
            std::fs::write(killed.join("memory"), "half").unwrap();
        };
        leave();
        assert_eq!(sweep(root.path()).unwrap(), std::slice::from_ref(&killed));
        leave();
        let foreign = root.path().join("photos.partial");
        std::fs::create_dir(&foreign).unwrap();
        assert!(!Partial::create(&to).unwrap().path().join("memory").exists());
        sweep(root.path()).unwrap();
        assert!(foreign.exists());
        assert!(sweep(Path::new("/nonexistent")).unwrap().is_empty());
    }

    #[test]
    fn a_folder_that_is_called_like_a_half_made_one_and_is_not_ours_stays_as_it_is() {
        let root = tempfile::tempdir().unwrap();
        let (to, foreign) = (root.path().join("photos"), root.path().join("photos.partial"));
        std::fs::create_dir(&foreign).unwrap();
        std::fs::write(foreign.join("one.jpg"), "x").unwrap();
        let error = Partial::create(&to).unwrap_err();
        assert!(error.message().contains("no half-made checkpoint"), "{error}");
        assert!(error.file().unwrap().0.ends_with("photos.partial") && error.hint_text().is_some());
        assert_eq!(names(&foreign), ["one.jpg"]);
        sweep(root.path()).unwrap();
        assert_eq!(names(&foreign), ["one.jpg"]);
        let error = Partial::create(&foreign.with_file_name("new.partial")).unwrap_err();
        assert_eq!(error.kind(), Kind::Input, "{error}");
        // A link is not followed, whatever it leads to.
        let (link, far) = (root.path().join("link.partial"), root.path().join("far"));
        std::fs::create_dir(&far).unwrap();
        std::fs::write(far.join(OWNER), "").unwrap();
        std::os::unix::fs::symlink(&far, &link).unwrap();
        assert!(Partial::create(&root.path().join("link")).is_err());
        assert_eq!(names(&far), [OWNER]);
        // Killed between the making of the folder and its lock.
        std::fs::create_dir(root.path().join("empty.partial")).unwrap();
        Partial::create(&root.path().join("empty")).unwrap();
    }

    #[test]
    fn a_name_that_was_taken_meanwhile_is_not_overwritten() {
        let root = tempfile::tempdir().unwrap();
        let to = root.path().join("ready");
        let partial = Partial::create(&to).unwrap();
        std::fs::create_dir(&to).unwrap();
        assert!(partial.finish(("manifest.json", b"{}")).is_err());
        assert_eq!(names(root.path()), ["ready"]);
        assert!(names(&to).is_empty());
    }

    #[test]
    fn a_linked_file_outlives_the_folder_that_it_came_from() {
        let root = tempfile::tempdir().unwrap();
        let (from, to) = (root.path().join("from"), root.path().join("to"));
        std::fs::write(&from, "layer").unwrap();
        link(&from, &to).unwrap();
        std::fs::remove_file(&from).unwrap();
        assert_eq!(std::fs::read(&to).unwrap(), b"layer");
        assert!(link(&from, &to).unwrap_err().file().is_some());
    }
}
