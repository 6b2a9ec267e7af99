//! Removes a folder that is known as ours by a file in it, its mark: that one goes last, so that
//! what is left where we are killed meanwhile is still ours, and swept.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

pub fn remove(folder: &Path, mark: &str) -> io::Result<()> {
    in_order(folder, mark)?.iter().try_for_each(|path| match remove_one(path) {
        // A dying machine takes its sockets along.
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        done => done,
    })?;
    std::fs::remove_dir(folder)
}

/// What is in it, the mark at the end.
fn in_order(folder: &Path, mark: &str) -> io::Result<Vec<PathBuf>> {
    let names = folder.read_dir()?.map(|entry| entry.map(|e| e.file_name()));
    let mut names = names.collect::<io::Result<Vec<_>>>()?;
    names.sort_by_key(|name| name == mark);
    Ok(names.into_iter().map(|name| folder.join(name)).collect())
}

fn remove_one(path: &Path) -> io::Result<()> {
    match path.symlink_metadata()?.is_dir() {
        true => std::fs::remove_dir_all(path),
        false => std::fs::remove_file(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_goes_last_whatever_the_others_are_called() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("f");
        for name in ["a", "owner.d", "z"] {
            std::fs::create_dir_all(folder.join(name)).unwrap();
            std::fs::write(folder.join(name).join("file"), "x").unwrap();
        }
        for name in ["b", "owner", "y"] {
            std::fs::write(folder.join(name), "x").unwrap();
        }
        let order = in_order(&folder, "owner").unwrap();
        assert_eq!((order.len(), order.last()), (6, Some(&folder.join("owner"))));
        remove(&folder, "owner").unwrap();
        assert!(!folder.exists());
        assert_eq!(remove(&folder, "owner").unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn a_link_in_it_is_removed_and_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (folder, there) = (dir.path().join("f"), dir.path().join("there"));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::create_dir_all(&there).unwrap();
        std::os::unix::fs::symlink(&there, folder.join("link")).unwrap();
        remove(&folder, "owner").unwrap();
        assert!(there.is_dir());
    }
}
