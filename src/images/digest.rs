//! Digests: what a file's content is called.
//!
//! A [`Digest`] names its algorithm, so that a SHA-256 can never be compared with a SHA-512. The
//! `sha2` crate picks the processor's SHA instructions at run time; hashing a file is then bound
//! by memory, like `openssl dgst`.

use crate::error::{Context, Error, Kind, Result};
use crate::event::{Event, Events, Unit};
use sha2::Digest as _;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Large enough that the system calls cost nothing, small enough to stay in the L2 cache between
/// the read and the hash.
const CHUNK: usize = 256 << 10;

/// How often a long hash reports its progress.
const REPORT_EVERY: u64 = 64 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    Sha256,
    Sha512,
}

impl Algorithm {
    pub const ALL: [Algorithm; 2] = [Algorithm::Sha256, Algorithm::Sha512];

    /// `sha256` or `sha512`: the word of manifests, and the folder in the store.
    pub fn name(self) -> &'static str {
        match self {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
        }
    }

    pub fn hex_len(self) -> usize {
        match self {
            Algorithm::Sha256 => 64,
            Algorithm::Sha512 => 128,
        }
    }
}

/// The digest of a content. Displayed as `sha256:hex`, in lower case.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Digest {
    Sha256([u8; 32]),
    Sha512([u8; 64]),
}

impl Digest {
    /// Reads `hex` (either case) as a digest of `algorithm`. The error says what is wrong with it.
    pub fn from_hex(algorithm: Algorithm, hex: &str) -> Result<Digest, String> {
        match algorithm {
            Algorithm::Sha256 => decode(algorithm, hex).map(Digest::Sha256),
            Algorithm::Sha512 => decode(algorithm, hex).map(Digest::Sha512),
        }
    }

    pub fn algorithm(&self) -> Algorithm {
        match self {
            Digest::Sha256(_) => Algorithm::Sha256,
            Digest::Sha512(_) => Algorithm::Sha512,
        }
    }

    pub fn hex(&self) -> String {
        let bytes: &[u8] = match self {
            Digest::Sha256(b) => b,
            Digest::Sha512(b) => b,
        };
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    /// The digest of bytes in memory.
    pub fn of(algorithm: Algorithm, bytes: &[u8]) -> Digest {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(bytes);
        hasher.finish()
    }
}

fn decode<const N: usize>(algorithm: Algorithm, hex: &str) -> Result<[u8; N], String> {
    if hex.len() != N * 2 {
        return Err(format!(
            "a {} has {} hexadecimal digits, this has {}",
            algorithm.name(),
            N * 2,
            hex.chars().count()
        ));
    }
    let mut out = [0; N];
    for (byte, pair) in out.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
        // Digit by digit: `from_str_radix` would take a sign.
        let digit = |c: u8| {
            (c as char).to_digit(16).ok_or_else(|| {
                format!("`{}` is not a hexadecimal digit", (c as char).escape_default())
            })
        };
        *byte = (digit(pair[0])? << 4 | digit(pair[1])?) as u8;
    }
    Ok(out)
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm().name(), self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// `sha256:hex` or `sha512:hex`.
impl FromStr for Digest {
    type Err = String;
    fn from_str(text: &str) -> Result<Digest, String> {
        let (name, hex) = text.split_once(':').ok_or("a digest is written `sha256:HEX`")?;
        let algorithm = Algorithm::ALL.into_iter().find(|a| a.name() == name).ok_or_else(|| {
            format!("unknown digest algorithm `{name}`: sha256 and sha512 are known")
        })?;
        Digest::from_hex(algorithm, hex)
    }
}

/// A hash being computed.
#[derive(Clone)]
pub enum Hasher {
    Sha256(sha2::Sha256),
    Sha512(sha2::Sha512),
}

impl Hasher {
    pub fn new(algorithm: Algorithm) -> Hasher {
        match algorithm {
            Algorithm::Sha256 => Hasher::Sha256(sha2::Sha256::new()),
            Algorithm::Sha512 => Hasher::Sha512(sha2::Sha512::new()),
        }
    }

    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Sha256(h) => h.update(bytes),
            Hasher::Sha512(h) => h.update(bytes),
        }
    }

    pub fn finish(self) -> Digest {
        match self {
            Hasher::Sha256(h) => Digest::Sha256(h.finalize().into()),
            Hasher::Sha512(h) => Digest::Sha512(h.finalize().into()),
        }
    }
}

/// Feeds the rest of `from` into `hasher`, calling `step` with the bytes read so far; an error of
/// `step` ends it. Returns how many bytes there were.
pub fn pump(
    mut from: impl Read,
    hasher: &mut Hasher,
    mut step: impl FnMut(u64) -> io::Result<()>,
) -> io::Result<u64> {
    let mut chunk = vec![0; CHUNK];
    let mut done = 0;
    loop {
        match from.read(&mut chunk) {
            Ok(0) => return Ok(done),
            Ok(n) => {
                hasher.update(&chunk[..n]);
                done += n as u64;
                step(done)?;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// The digest of a file. Blocks: for a file of any size use [`file_with_progress`] in async code.
pub fn file(path: &Path, algorithm: Algorithm) -> io::Result<Digest> {
    hash_file(path, algorithm, |_, _| Ok(()))
}

fn hash_file(
    path: &Path,
    algorithm: Algorithm,
    mut step: impl FnMut(u64, u64) -> io::Result<()>,
) -> io::Result<Digest> {
    let file = File::open(path)?;
    let total = file.metadata()?.len();
    // Only a hint to read ahead further; refused on pipes and some filesystems, at no loss.
    let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Sequential);
    let mut hasher = Hasher::new(algorithm);
    pump(file, &mut hasher, |done| step(done, total))?;
    Ok(hasher.finish())
}

/// The digest of a file, off the async threads, with progress called `what`, which ends well if the
/// digest is the `expected` one. Dropping the future ends the hashing at its next chunk.
pub async fn file_with_progress(
    path: &Path,
    expected: &Digest,
    what: &str,
    events: &Events,
) -> Result<Digest> {
    let (expected, algorithm) = (*expected, expected.algorithm());
    let stop = StopOnDrop(Arc::new(AtomicBool::new(false)));
    let stopped = stop.0.clone();
    let (path, what, events) = (path.to_owned(), what.to_owned(), events.clone());
    let job = tokio::task::spawn_blocking(move || {
        let mut next = 0;
        let digest = hash_file(&path, algorithm, |done, total| {
            if stopped.load(Ordering::Relaxed) {
                return Err(io::ErrorKind::Interrupted.into());
            }
            if done >= next || done == total {
                next = done + REPORT_EVERY;
                events.send(Event::Progress {
                    what: what.clone(),
                    done,
                    total: Some(total),
                    unit: Unit::Bytes,
                });
            }
            Ok(())
        });
        events
            .send(Event::ProgressEnded { what, ok: digest.as_ref().is_ok_and(|d| *d == expected) });
        digest.doing(Kind::Image, || "could not be hashed".into()).map_err(|e| e.at(&path, None))
    });
    job.await.map_err(|e| Error::internal("the hashing thread ended").because(e))?
}

struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn known_answers_come_out() {
        assert_eq!(Digest::of(Algorithm::Sha256, b"").hex(), EMPTY);
        assert_eq!(
            Digest::of(Algorithm::Sha256, b"abc").hex(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert_eq!(
            Digest::of(Algorithm::Sha512, b"abc").hex(),
            "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a\
             2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f"
        );
    }

    #[test]
    fn a_file_hashes_like_its_bytes_across_chunks() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let bytes: Vec<u8> = (0..CHUNK * 2 + 17).map(|i| (i * 31 % 251) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        for algorithm in Algorithm::ALL {
            assert_eq!(file(&path, algorithm).unwrap(), Digest::of(algorithm, &bytes));
        }
    }

    #[test]
    fn display_and_parse_are_inverse_and_upper_case_is_read() {
        for algorithm in Algorithm::ALL {
            let d = Digest::of(algorithm, b"x");
            assert_eq!(d.to_string().parse::<Digest>().unwrap(), d);
            assert_eq!(Digest::from_hex(algorithm, &d.hex().to_uppercase()).unwrap(), d);
        }
    }

    #[test]
    fn bad_digests_are_refused_with_the_reason() {
        let short = Digest::from_hex(Algorithm::Sha256, "abcd").unwrap_err();
        assert!(short.contains("64") && short.contains('4'), "{short}");
        let sign = format!("+{}", &EMPTY[1..]);
        assert!(Digest::from_hex(Algorithm::Sha256, &sign).unwrap_err().contains('+'));
        // 64 bytes, but not 64 characters: must not panic on a boundary.
        assert!(Digest::from_hex(Algorithm::Sha256, &"é".repeat(32)).is_err());
        assert!("md5:00".parse::<Digest>().unwrap_err().contains("md5"));
        assert!(EMPTY.parse::<Digest>().is_err());
    }

    #[tokio::test]
    async fn progress_ends_at_the_size_of_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, vec![7; 1000]).unwrap();
        let (events, mut seen) = Events::channel();
        let right = Digest::of(Algorithm::Sha256, &[7; 1000]);
        let d = file_with_progress(&path, &right, "hash f", &events).await.unwrap();
        assert_eq!(d, right);
        let mut last = None;
        while let Ok(e) = seen.try_recv() {
            if let Event::Progress { done, total, .. } = e.event {
                last = Some((done, total));
            }
        }
        assert_eq!(last, Some((1000, Some(1000))));
    }

    #[tokio::test]
    async fn another_digest_than_expected_does_not_end_well() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, "rotten").unwrap();
        for (content, wanted) in [("rotten", true), ("fresh", false)] {
            let (events, mut seen) = Events::channel();
            let expected = Digest::of(Algorithm::Sha256, content.as_bytes());
            file_with_progress(&path, &expected, "verify f", &events).await.unwrap();
            let mut ended = None;
            while let Ok(e) = seen.try_recv() {
                if let Event::ProgressEnded { ok, .. } = e.event {
                    ended = Some(ok);
                }
            }
            assert_eq!(ended, Some(wanted));
        }
    }

    #[tokio::test]
    async fn a_missing_file_is_named() {
        let e = file_with_progress(
            Path::new("/nonexistent/x"),
            &Digest::of(Algorithm::Sha256, b""),
            "hash x",
            &Events::silent(),
        )
        .await
        .unwrap_err();
        assert!(e.to_string().starts_with("/nonexistent/x: "), "{e}");
    }
}
