//! What layers really take of the disk.
//!
//! Their memory files are sparse, and a frozen disk may be the same file in several layers: blocks
//! are counted, not lengths, and every file once.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Files by what they are on the disk, with the bytes of their blocks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage(BTreeMap<(u64, u64), u64>);

impl Usage {
    /// Of a folder and everything in it. What vanishes while we look takes nothing.
    pub fn of(folder: &Path) -> io::Result<Usage> {
        let mut usage = Usage::default();
        usage.add(folder)?;
        Ok(usage)
    }

    fn add(&mut self, path: &Path) -> io::Result<()> {
        let meta = match fs::symlink_metadata(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            meta => meta?,
        };
        self.0.insert((meta.dev(), meta.ino()), meta.blocks() * 512);
        if meta.is_dir() {
            let entries = match fs::read_dir(path) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
                entries => entries?,
            };
            for entry in entries {
                self.add(&entry?.path())?;
            }
        }
        Ok(())
    }

    /// Of all of them together.
    pub fn together<'u>(all: impl IntoIterator<Item = &'u Usage>) -> Usage {
        let mut together = Usage::default();
        all.into_iter().for_each(|one| together.0.extend(one.0.iter().map(|(k, v)| (*k, *v))));
        together
    }

    pub fn bytes(&self) -> u64 {
        self.0.values().sum()
    }
}

#[cfg(test)]
impl Usage {
    /// Files that share nothing with others unless they have the same number.
    pub fn made_up(files: &[(u64, u64)]) -> Usage {
        Usage(files.iter().map(|&(number, bytes)| ((0, number), bytes)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn holes_take_nothing_and_a_file_with_two_names_is_counted_once() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        fs::create_dir(&a).unwrap();
        fs::create_dir(&b).unwrap();
        let mut sparse = fs::File::create(a.join("memory")).unwrap();
        sparse.set_len(1 << 30).unwrap();
        sparse.write_all(&[1; 4096]).unwrap();
        sparse.sync_all().unwrap();
        let alone = Usage::of(&a).unwrap().bytes();
        assert!((4096..1 << 20).contains(&alone), "{alone}");
        fs::hard_link(a.join("memory"), b.join("memory")).unwrap();
        let both = [Usage::of(&a).unwrap(), Usage::of(&b).unwrap()];
        let together = Usage::together(&both).bytes();
        assert!(together < both[0].bytes() + both[1].bytes(), "{together}");
        assert!(together >= both[0].bytes());
        assert_eq!(Usage::of(&dir.path().join("gone")).unwrap().bytes(), 0);
    }
}
