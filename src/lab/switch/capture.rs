//! Frames into a file that Wireshark opens.
//!
//! A capture of a port shows what its machine would: what came from it and entered the network
//! (`outbound`), and what was handed to it (`inbound`); both behind the faults of the port, so a
//! frame that a fault took is not there, and a late one has its late time. In a capture of a
//! network each port is an interface, and a frame is there once for each port that it passed.

use super::impairment::Direction;
use super::pcapng;
use super::table::Domain;
use crate::error::{Context, Error, Kind, Result};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};

/// What may wait for the disk, in bytes. A frame that finds more is left out, and counted: a slow
/// disk never slows the network.
const WAITING: usize = 8 * 1024 * 1024;

/// A running capture. Dropped, it ends, and its file is complete.
#[derive(Debug)]
pub struct Capture {
    domain: Arc<Domain>,
    spool: Arc<Spool>,
    path: PathBuf,
    writer: Option<JoinHandle<io::Result<()>>>,
}

/// What a capture saw until now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Captured {
    /// Frames in the file, or about to be.
    pub frames: u64,
    /// Frames left out: the disk was slow, or the file was full. The file tells them too, as
    /// `isb_ifdrop` of each interface.
    pub dropped: u64,
    /// The length of the file.
    pub bytes: u64,
}

impl Capture {
    /// Creates `path` (0600: the frames may hold secrets), or empties it.
    pub(super) fn start(domain: Arc<Domain>, path: &Path, most: Option<u64>) -> Result<Capture> {
        let doing = || format!("cannot write a capture to {}", path.display());
        let mut options = File::options();
        let file = options.write(true).create(true).truncate(true).mode(0o600).open(path);
        let file = file.doing(Kind::Host, doing)?;
        // A file may have been there before, readable by others. A device or a pipe is as it is.
        if file.metadata().doing(Kind::Host, doing)?.is_file() {
            let private = std::fs::Permissions::from_mode(0o600);
            file.set_permissions(private).doing(Kind::Host, doing)?;
        }
        Self::into(domain, file, path, most)
    }

    /// Writes to `to`, which is called `path` in errors. Its writes may block.
    pub(super) fn into(
        domain: Arc<Domain>,
        to: impl Write + Send + 'static,
        path: &Path,
        most: Option<u64>,
    ) -> Result<Capture> {
        let doing = || format!("cannot write a capture to {}", path.display());
        let spool = Arc::new(Spool::new(most));
        let writing = spool.clone();
        // A thread, and not a task: it writes to a disk. It ends when the spool is closed.
        let writer = std::thread::Builder::new().name("capture".into());
        let writer = writer.spawn(move || writing.drain(to)).doing(Kind::Host, doing)?;
        Ok(Capture { domain, spool, path: path.to_owned(), writer: Some(writer) })
    }

    pub(super) fn spool(&self) -> &Arc<Spool> {
        &self.spool
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
    pub fn captured(&self) -> Captured {
        self.spool.captured()
    }

    /// Ends it and says what is in the file; an error when something is not.
    pub async fn finish(mut self) -> Result<Captured> {
        let done = tokio::task::spawn_blocking(move || {
            let out = self.end();
            let doing = || format!("the capture {} is not complete", self.path.display());
            out.doing(Kind::Host, doing).map(|()| self.captured())
        });
        done.await.map_err(|e| Error::internal("the capture's end panicked").because(e))?
    }

    fn end(&mut self) -> io::Result<()> {
        let Some(writer) = self.writer.take() else { return Ok(()) };
        self.domain.end_capture(&self.spool);
        self.spool.close();
        writer.join().unwrap_or_else(|_| Err(io::Error::other("its writer panicked")))
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        // Nobody is left to be told; `finish` tells.
        let _ = self.end();
    }
}

/// Blocks on their way to the file, already in its form.
#[derive(Debug)]
pub(super) struct Spool {
    state: Mutex<State>,
    /// Told when something waits, or the spool is closed.
    filled: Condvar,
    /// The longest the file may become, in bytes.
    most: Option<u64>,
}

#[derive(Debug)]
struct State {
    waiting: Vec<u8>,
    interfaces: Vec<Interface>,
    /// The bytes of all blocks until now.
    bytes: u64,
    closed: bool,
}

#[derive(Debug)]
struct Interface {
    port: String,
    seen: u64,
    dropped: u64,
}

impl Spool {
    fn new(most: Option<u64>) -> Spool {
        let mut waiting = Vec::new();
        pcapng::section(&mut waiting, concat!("stackproof ", env!("CARGO_PKG_VERSION")));
        let bytes = waiting.len() as u64;
        let state = State { waiting, interfaces: Vec::new(), bytes, closed: false };
        Spool { state: Mutex::new(state), filled: Condvar::new(), most }
    }

    /// The number of a port's interface, made at first mention.
    pub fn interface(&self, port: &str) -> u32 {
        let mut state = self.lock();
        if let Some(known) = state.interfaces.iter().position(|i| i.port == port) {
            return known as u32;
        }
        state.add(|out| pcapng::interface(out, port));
        state.interfaces.push(Interface { port: port.to_owned(), seen: 0, dropped: 0 });
        self.filled.notify_one();
        state.interfaces.len() as u32 - 1
    }

    /// Never waits for the disk.
    pub fn push(&self, interface: u32, direction: Direction, frame: &[u8]) {
        let mut state = self.lock();
        if state.closed {
            return;
        }
        let length = pcapng::packet_length(frame.len());
        // Room is kept for the statistics at the end.
        let end = state.interfaces.len() * pcapng::STATISTICS_LENGTH;
        let full = self.most.is_some_and(|most| state.bytes + (length + end) as u64 > most);
        let late = state.waiting.len() + length > WAITING;
        let counts = &mut state.interfaces[interface as usize];
        counts.seen += 1;
        if full || late {
            counts.dropped += 1;
            return;
        }
        // Taken under the lock: times in the file never go back unless the clock does.
        state.add(|out| pcapng::packet(out, interface, now(), direction, frame));
        self.filled.notify_one();
    }

    fn captured(&self) -> Captured {
        let state = self.lock();
        let seen: u64 = state.interfaces.iter().map(|i| i.seen).sum();
        let dropped = state.interfaces.iter().map(|i| i.dropped).sum();
        Captured { frames: seen - dropped, dropped, bytes: state.bytes }
    }

    /// Takes no more; the writer ends once all is written.
    fn close(&self) {
        let mut state = self.lock();
        if !std::mem::replace(&mut state.closed, true) {
            let counts: Vec<_> = state.interfaces.iter().map(|i| (i.seen, i.dropped)).collect();
            for ((seen, dropped), id) in counts.into_iter().zip(0..) {
                state.add(|out| pcapng::statistics(out, id, now(), seen, dropped));
            }
        }
        self.filled.notify_one();
    }

    /// Writes until the spool is closed and empty. After an error the rest is left out.
    fn drain(&self, mut file: impl Write) -> io::Result<()> {
        let mut batch = Vec::new();
        loop {
            {
                let mut state = self.lock();
                while state.waiting.is_empty() && !state.closed {
                    let woken = self.filled.wait(state);
                    state = woken.unwrap_or_else(std::sync::PoisonError::into_inner);
                }
                if state.waiting.is_empty() {
                    return Ok(());
                }
                batch.clear();
                std::mem::swap(&mut state.waiting, &mut batch);
            }
            if let Err(e) = file.write_all(&batch) {
                self.lock().closed = true;
                return Err(e);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl State {
    fn add(&mut self, block: impl FnOnce(&mut Vec<u8>)) {
        let before = self.waiting.len();
        block(&mut self.waiting);
        self.bytes += (self.waiting.len() - before) as u64;
    }
}

/// Nanoseconds since 1970.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_nanos() as u64
}
