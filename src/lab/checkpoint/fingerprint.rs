//! Whether a file of gigabytes is still the one that it was, told in milliseconds.
//!
//! Its size and a hash of pieces spread evenly over it. A full hash would cost more than the whole
//! restore (half a second a GiB on one core), and what really happens to such files is told by
//! this: cut off, half copied, replaced by another build, zeros after a power cut. It is no guard
//! against somebody who changes single pages on purpose: he could change the manifest too.

use crate::error::{Context, Error, FailureCause, Kind, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Pieces read, and bytes of each. A file that is not longer than all of them is read whole.
const PIECES: u64 = 64;
const PIECE: u64 = 64 << 10;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fingerprint {
    pub bytes: u64,
    /// SHA-256 over the pieces, in hexadecimal.
    pub pieces: String,
}

impl Fingerprint {
    pub fn of(file: &Path) -> Result<Fingerprint> {
        let doing = || "cannot read".to_owned();
        read(file).doing(Kind::Host, doing).map_err(|e| e.at(file, None))
    }

    /// Refuses a file that is not the same; `what` it is goes into the error.
    pub fn check(&self, what: &str, file: &Path) -> Result<()> {
        let refuse = |why: String| {
            let error = Error::input(format!("{what} {why}")).at(file, None);
            Err(error.caused_by(FailureCause::FilesDamaged))
        };
        let bytes = match file.metadata() {
            Ok(meta) if meta.is_file() => meta.len(),
            Ok(_) => return refuse("is no file".into()),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return refuse("is missing".into());
            }
            Err(e) => return Err(Error::host(format!("cannot look at {what}")).because(e)),
        };
        if bytes < self.bytes {
            return refuse(format!("is cut off: {bytes} of {} bytes are there", self.bytes));
        }
        if bytes > self.bytes {
            return refuse(format!("has {bytes} bytes instead of {}", self.bytes));
        }
        match Fingerprint::of(file)? == *self {
            true => Ok(()),
            false => refuse("has other contents than it had".into()),
        }
    }
}

fn read(file: &Path) -> std::io::Result<Fingerprint> {
    let open = File::open(file)?;
    let bytes = open.metadata()?.len();
    let mut hash = Sha256::new();
    hash.update(bytes.to_be_bytes());
    let mut buffer = vec![0; PIECE as usize];
    let mut take = |from: u64| -> std::io::Result<()> {
        let piece = &mut buffer[..PIECE.min(bytes - from) as usize];
        open.read_exact_at(piece, from)?;
        hash.update(&piece);
        Ok(())
    };
    if bytes <= PIECES * PIECE {
        for from in (0..bytes).step_by(PIECE as usize) {
            take(from)?;
        }
    } else {
        // The first piece is the file's beginning and the last one its end.
        for n in 0..PIECES {
            take(((bytes - PIECE) as u128 * n as u128 / (PIECES - 1) as u128) as u64)?;
        }
    }
    let pieces = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
    Ok(Fingerprint { bytes, pieces })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_and_long_files_are_told_apart_from_changed_cut_grown_and_missing_ones() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("memory");
        for size in [0, 5, PIECE as usize, (PIECE * PIECES) as usize + 12_345] {
            let bytes: Vec<u8> =
                (0..size as u32).map(|i| (i.wrapping_mul(77) >> 7) as u8).collect();
            std::fs::write(&file, &bytes).unwrap();
            let print = Fingerprint::of(&file).unwrap();
            print.check("the memory", &file).unwrap();
            let told = |wanted: &str| {
                let error = print.check("the memory", &file).unwrap_err();
                assert!(error.message().contains(wanted), "{size}: {error}");
                assert_eq!(error.file().unwrap().0, file);
                assert_eq!(error.cause(), Some(FailureCause::FilesDamaged));
            };
            std::fs::write(&file, [&bytes[..], b"x"].concat()).unwrap();
            told("bytes instead of");
            if let [first, .., last] = bytes[..] {
                std::fs::write(&file, &bytes[..size - 1]).unwrap();
                told("is cut off");
                for (at, was) in [(0, first), (size - 1, last)] {
                    let mut changed = bytes.clone();
                    changed[at] = !was;
                    std::fs::write(&file, &changed).unwrap();
                    told("other contents");
                }
            }
            std::fs::remove_file(&file).unwrap();
            told("is missing");
        }
    }
}
