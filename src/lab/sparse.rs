//! Files with holes, of which only what was written is looked at.

use rustix::fs::{SeekFrom, seek};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// How much of a file is held in memory at once.
const PIECE: usize = 1 << 20;

/// Calls `each` for every part of the file between `start` and `end` that is no hole.
pub(crate) fn parts(
    file: &File,
    start: u64,
    end: u64,
    mut each: impl FnMut(u64, u64) -> io::Result<()>,
) -> io::Result<()> {
    let mut at = start;
    while at < end {
        let from = match seek(file, SeekFrom::Data(at)) {
            Ok(from) if from < end => from,
            // Behind the last of them.
            Ok(_) | Err(rustix::io::Errno::NXIO) => break,
            Err(e) => return Err(e.into()),
        };
        at = seek(file, SeekFrom::Hole(from))?.min(end);
        each(from, at)?;
    }
    Ok(())
}

/// Reads the file from `start` to `end`, and calls `each` for every piece with its place.
pub(crate) fn read(
    file: &File,
    start: u64,
    end: u64,
    mut each: impl FnMut(u64, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let within = |at: u64| PIECE.min((end - at) as usize);
    let mut buffer = vec![0; within(start)];
    let mut at = start;
    while at < end {
        let piece = &mut buffer[..within(at)];
        file.read_exact_at(piece, at)?;
        each(at, piece)?;
        at += piece.len() as u64;
    }
    Ok(())
}
