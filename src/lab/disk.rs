//! A node's disk: a chain of qcow2 files in the node's directory. All but the topmost are frozen.
//!
//! `disk.0.qcow2` lies on the image, by its absolute path; each further one lies on the one before
//! by its bare name. So a chain can be linked into another directory as it is, and a directory that
//! holds links to all its layers needs no other directory to live on.

use crate::error::{Context, Error, Kind, Result};
use crate::images::qcow2;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// The longest name of a backing file that qcow2 allows, in bytes.
const LONGEST_NAME: u32 = 1023;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    dir: PathBuf,
    /// So many layers are below the top.
    frozen: usize,
    /// So many were when QEMU opened the chain.
    opened: usize,
}

/// The file name of a layer, counted from the bottom.
pub fn layer_name(index: usize) -> String {
    format!("disk.{index}.qcow2")
}

impl Chain {
    /// `frozen` layers are in `dir`, or will be before a machine opens the chain.
    pub fn new(dir: &Path, frozen: usize) -> Chain {
        Chain { dir: dir.to_owned(), frozen, opened: frozen }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }
    pub fn frozen(&self) -> usize {
        self.frozen
    }
    pub fn layer(&self, index: usize) -> PathBuf {
        self.dir.join(layer_name(index))
    }
    /// The one that is written.
    pub fn top(&self) -> PathBuf {
        self.layer(self.frozen)
    }

    /// QEMU's name for the top's block node. `first` is what it was named at the start.
    pub fn node(&self, first: &str) -> String {
        match self.frozen - self.opened {
            0 => first.to_owned(),
            later => format!("{first}-{later}"),
        }
    }

    /// The chain as it is with one more layer on top.
    pub fn grown(&self) -> Chain {
        Chain { frozen: self.frozen + 1, ..self.clone() }
    }
}

/// What a layer says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerHeader {
    /// Bytes that the guest sees.
    pub virtual_size: u64,
    /// The name of the file below, as it stands in the header.
    pub below: Option<PathBuf>,
}

/// Reads a layer's header from its bytes, before any tool sees the file. What no layer of ours has
/// (another data file, encryption) is refused.
pub fn read_header(file: &Path) -> Result<LayerHeader> {
    let doing = || "cannot read a disk layer".to_owned();
    let open = File::open(file).doing(Kind::Host, doing).map_err(|e| e.at(file, None))?;
    let mut head = Vec::new();
    let read = (&open).take(qcow2::HEAD as u64).read_to_end(&mut head);
    read.doing(Kind::Host, doing).map_err(|e| e.at(file, None))?;
    let bad = |why: String| Error::input(format!("this is no disk layer: {why}")).at(file, None);
    let header = qcow2::parse(&head).map_err(|e| bad(e.to_string()))?;
    // A dirty bit is the mark of a QEMU that is still writing; nothing else is ours.
    if header.incompatible & !1 != 0 || header.crypt_method != 0 {
        return Err(bad("it has features that none of ours has".into()));
    }
    if header.backing_file_offset == 0 {
        return Ok(LayerHeader { virtual_size: header.virtual_size, below: None });
    }
    if header.backing_file_size > LONGEST_NAME {
        return Err(bad("the name of its backing file is too long".into()));
    }
    let mut name = vec![0; header.backing_file_size as usize];
    let read = open.read_exact_at(&mut name, header.backing_file_offset);
    read.doing(Kind::Host, doing).map_err(|e| e.at(file, None))?;
    use std::os::unix::ffi::OsStringExt;
    let below = Some(std::ffi::OsString::from_vec(name).into());
    Ok(LayerHeader { virtual_size: header.virtual_size, below })
}

/// The images that the disks of all nodes in `folder` lie on. `folder` is that of a run or of a
/// checkpoint: one folder a node. A disk that cannot be read is an error of its own.
pub fn images_below(folder: &Path) -> Vec<Result<PathBuf>> {
    let nodes = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let disks = nodes.map(|node| node.path().join(layer_name(0))).filter(|disk| disk.is_file());
    disks.filter_map(|disk| read_header(&disk).map(|header| header.below).transpose()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_images_of_a_folder_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/images/qcow2");
        for (node, disk) in [("a", "backing-file.qcow2"), ("b", "plain.qcow2"), ("c", "cut.txt")] {
            std::fs::create_dir(dir.path().join(node)).unwrap();
            let to = dir.path().join(node).join(layer_name(0));
            match fixtures.join(disk) {
                from if from.is_file() => drop(std::fs::copy(from, to).unwrap()),
                _ => std::fs::write(to, "cut").unwrap(),
            }
        }
        std::fs::create_dir(dir.path().join("logs")).unwrap();
        let (found, errors): (Vec<_>, Vec<_>) =
            images_below(dir.path()).into_iter().partition(Result::is_ok);
        assert_eq!((found.len(), errors.len()), (1, 1), "{found:?} {errors:?}");
        assert!(images_below(Path::new("/nonexistent")).is_empty());
    }

    #[test]
    fn a_chain_grows_and_names_its_top_for_qemu_from_where_it_was_opened() {
        let chain = Chain::new(Path::new("/r/a"), 2);
        assert_eq!(chain.top(), Path::new("/r/a/disk.2.qcow2"));
        assert_eq!(chain.node("disk0"), "disk0");
        let grown = chain.grown();
        assert_eq!((grown.frozen(), grown.top()), (3, "/r/a/disk.3.qcow2".into()));
        assert_eq!(grown.node("disk0"), "disk0-1");
        assert_eq!(grown.grown().node("disk0"), "disk0-2");
    }

    #[test]
    fn headers_are_read_and_what_is_not_ours_is_refused() {
        let fixture = |name: &str| {
            let root = Path::new(env!("CARGO_MANIFEST_DIR"));
            root.join(format!("fixtures/images/qcow2/{name}.qcow2"))
        };
        let plain = read_header(&fixture("plain")).unwrap();
        assert_eq!(plain.below, None);
        assert!(plain.virtual_size > 0);
        assert!(read_header(&fixture("backing-file")).unwrap().below.is_some());
        let e = read_header(&fixture("data-file")).unwrap_err();
        assert!(e.message().contains("features"), "{e}");
        let e = read_header(Path::new(file!())).unwrap_err();
        assert!(e.message().contains("no disk layer") && e.file().is_some(), "{e}");
        assert!(read_header(Path::new("/nonexistent")).is_err());
    }
}
