//! A machine's saved memory, mapped instead of read: the new machine sees the pages in their file,
//! and gets a page of its own where it writes. So a restore takes the same short time whatever the
//! memory's size, and pages that nobody touches are never read.
//!
//! The file is QEMU's (mapped-ram): the page at guest address `a` lies at `pages_offset + a`, a page
//! of zeros is a hole. QEMU would read all of them; it is given a copy of the file without them
//! instead, in which the bitmap says that there are none, and leaves its memory as it was mapped.

use crate::error::{Context, Error, Kind, Result};
use crate::lab::qemu::MappedMemory;
use crate::lab::sparse;
use rustix::fs::{Advice, fadvise};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

/// The head of the file is within this: names of the machine type and of capabilities.
const HEAD: u64 = 16 << 10;

/// How the section of the memory begins: its name, instance 0, version 4.
const SECTION: &[u8] = b"\x03ram\0\0\0\0\0\0\0\x04";

/// `QEMU_VM_SECTION_START` and the section's number are before its name.
const START: u8 = 1;

/// In the low bits of the first number of that section: what the rest of the number is.
const MEM_SIZE: u64 = 0x04;

/// The version of the layout of a block's pages that we know, and their size.
const LAYOUT: (u32, u64) = (1, 4096);

/// Where the guest's memory lies in a file of QEMU's.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Pages {
    bitmap: u64,
    offset: u64,
    length: u64,
}

/// Takes the pages of a guest with so much `memory` out of `file`: `devices` is made, with all the
/// rest. Nothing is made, and there is no answer, where the file is laid out in a way that we do not
/// know: QEMU can read it all the same.
pub(super) fn split(file: &Path, memory: u64, devices: &Path) -> Result<Option<MappedMemory>> {
    let doing = || format!("cannot take {} apart", file.display());
    let from = File::open(file).doing(Kind::Host, doing)?;
    let mut head = Vec::new();
    (&from).take(HEAD).read_to_end(&mut head).doing(Kind::Host, doing)?;
    let Some(pages) = pages(&head).filter(|p| p.length == memory) else { return Ok(None) };
    let meta = from.metadata().doing(Kind::Host, doing)?;
    let (size, bytes) = (meta.len(), meta.blocks() * 512);
    let tail = pages.offset.saturating_add(pages.length);
    if tail >= size {
        // Cut off: let QEMU say so.
        return Ok(None);
    }
    let mut new = File::options();
    let to = new.write(true).create_new(true).mode(0o600).open(devices);
    let to = to.map_err(|e| Error::host("cannot make a file").at(devices, None).because(e))?;
    let copied = || -> std::io::Result<()> {
        to.set_len(size)?;
        to.write_all_at(&head[..pages.bitmap as usize], 0)?;
        sparse::parts(&from, tail, size, |start, end| {
            sparse::read(&from, start, end, |at, piece| to.write_all_at(piece, at))
        })
    };
    copied().doing(Kind::Host, doing)?;
    let file = std::path::absolute(file).doing(Kind::Host, doing)?;
    Ok(Some(MappedMemory { file, offset: pages.offset, bytes }))
}

/// Has the kernel read what of the pages is not in its cache yet, in the order of the file, while
/// the guest runs: its faults would read it piece by piece.
pub(super) fn read_ahead(mapped: MappedMemory) {
    // Not one of tokio's threads, which an ending program waits for. Without it all is as well, but
    // slower.
    let thread = std::thread::Builder::new().name("read-ahead".into());
    let _ = thread.spawn(move || ask_for(&mapped));
}

fn ask_for(mapped: &MappedMemory) -> std::io::Result<()> {
    let file = File::open(&mapped.file)?;
    let size = file.metadata()?.len();
    sparse::parts(&file, mapped.offset, size, |start, end| {
        let length = std::num::NonZeroU64::new(end - start);
        Ok(fadvise(&file, start, length, Advice::WillNeed)?)
    })
}

/// Reads the head of the file as far as its first block of memory, which is the guest's.
fn pages(head: &[u8]) -> Option<Pages> {
    if !head.starts_with(b"QEVM") {
        return None;
    }
    let found = head.windows(SECTION.len()).position(|w| w == SECTION)?;
    if head.get(found.checked_sub(5)?) != Some(&START) {
        return None;
    }
    let mut rest = head.get(found + SECTION.len()..)?;
    if be64(&mut rest)? & 0xfff != MEM_SIZE {
        return None;
    }
    let name = usize::from(*take(&mut rest, 1)?.first()?);
    take(&mut rest, name)?;
    let length = be64(&mut rest)?;
    let version = u32::from_be_bytes(take(&mut rest, 4)?.try_into().ok()?);
    let page = be64(&mut rest)?;
    let (bitmap, offset) = (be64(&mut rest)?, be64(&mut rest)?);
    let here = (head.len() - rest.len()) as u64;
    // The bitmap is next, and has its room before the pages.
    let fits = bitmap == here && offset >= bitmap + length / page.max(1) / 8;
    ((version, page) == LAYOUT && fits).then_some(Pages { bitmap, offset, length })
}

fn be64(rest: &mut &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(take(rest, 8)?.try_into().ok()?))
}

fn take<'a>(rest: &mut &'a [u8], n: usize) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(n)?;
    *rest = left;
    Some(taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// As QEMU 10 writes it, for a guest of 8 MiB of which the page at 1 MiB is not zero.
    fn file() -> Vec<u8> {
        let mut head = b"QEVM\0\0\0\x03\x07\0\0\0\x0bpc-q35-10.0\x05\x1aconfiguration/capabilities\
            \0\0\0\x01\0\0\0\x01\nmapped-ram\x01\0\0\0\x01"
            .to_vec();
        head.extend(SECTION);
        head.extend(((8 * MIB + 0x4000) | MEM_SIZE).to_be_bytes());
        head.extend(b"\x03ram");
        head.extend((8 * MIB).to_be_bytes());
        head.extend(1u32.to_be_bytes());
        head.extend(4096u64.to_be_bytes());
        let bitmap = head.len() as u64 + 16;
        head.extend(bitmap.to_be_bytes());
        head.extend(MIB.to_be_bytes());
        let mut file = head;
        file.resize(10 * MIB as usize, 0);
        file[bitmap as usize + 32] = 1;
        file[2 * MIB as usize..][..4].copy_from_slice(b"page");
        file[9 * MIB as usize..][..7].copy_from_slice(b"devices");
        file
    }

    fn take_apart(file: &[u8], memory: u64) -> (Option<MappedMemory>, Option<Vec<u8>>) {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("memory"), dir.path().join("devices"));
        std::fs::write(&from, file).unwrap();
        let mapped = split(&from, memory, &to).unwrap();
        if let Some(mapped) = &mapped {
            ask_for(mapped).unwrap();
        }
        (mapped, std::fs::read(to).ok())
    }

    #[test]
    fn the_rest_of_the_file_has_all_but_the_pages_and_says_that_there_are_none() {
        let whole = file();
        let (mapped, rest) = take_apart(&whole, 8 * MIB);
        assert_eq!(mapped.unwrap().offset, MIB);
        let rest = rest.unwrap();
        let bitmap = pages(&whole).unwrap().bitmap as usize;
        assert_eq!(rest.len(), whole.len());
        assert_eq!(rest[..bitmap], whole[..bitmap]);
        assert!(rest[bitmap..9 * MIB as usize].iter().all(|b| *b == 0));
        assert_eq!(rest[9 * MIB as usize..], whole[9 * MIB as usize..]);
    }

    #[test]
    fn a_file_that_is_laid_out_in_another_way_is_left_to_qemu() {
        let whole = file();
        let other = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut file = whole.clone();
            change(&mut file);
            take_apart(&file, 8 * MIB)
        };
        let find = |what: &[u8]| whole.windows(what.len()).position(|w| w == what).unwrap();
        let version = find(b"\0\0\0\x01\0\0\0\0\0\0\x10\0");
        assert_eq!(other(&|f| f[0] = b'q'), (None, None));
        assert_eq!(other(&|f| f[version + 3] = 2), (None, None));
        assert_eq!(other(&|f| f[version + 10] = 0x20), (None, None));
        assert_eq!(other(&|f| f.truncate(100)), (None, None));
        assert_eq!(other(&|f| f.truncate(9 * MIB as usize)), (None, None));
        assert_eq!(take_apart(&whole, 16 * MIB), (None, None));
        assert_eq!(take_apart(b"", 16 * MIB), (None, None));
    }
}
