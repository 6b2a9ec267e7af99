//! The frames waiting to be written to one QEMU socket, already in the form of the wire: each
//! preceded by its length, all in one buffer, so that one `write` carries many.
//!
//! While nothing waits, frames are written at once by who brings them: they are copied once less,
//! and nobody has to be woken for them. What the socket does not take is left to the port's writer.

use super::counters::Tally;
use std::io::{self, IoSlice};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::Notify;

/// A queue holding this many bytes takes no further frame. Deep enough for four full TCP windows
/// of a guest, shallow enough that a ping behind a bulk transfer is answered in milliseconds.
pub(super) const DEPTH: usize = 256 * 1024;

#[derive(Debug)]
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    /// Told when something waits, or the queue was closed.
    filled: Notify,
    /// Told when nothing waits any more.
    emptied: Notify,
    /// Counts each success in writing to the socket.
    writes: AtomicU64,
    socket: Arc<OwnedWriteHalf>,
    /// Frames that went to the machine whole.
    pub sent: Tally,
}

#[derive(Debug, Default)]
struct Waiting {
    batch: Batch,
    /// The writer has a batch in hand, which goes first.
    writing: bool,
    closed: bool,
}

/// Frames in the form of the wire.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub bytes: Vec<u8>,
    pub frames: u64,
    /// The bytes of the frames alone.
    content: u64,
    begun: Begun,
}

/// The rest of a frame whose beginning is on the wire already: whatever happens it must follow, or
/// the stream means nothing any more. It is at the front of the batch.
#[derive(Clone, Copy, Debug, Default)]
struct Begun {
    rest: usize,
    content: u64,
}

impl Batch {
    /// Forgets all but a frame that was begun; says how many frames were lost.
    pub fn forget(&mut self) -> u64 {
        let kept = u64::from(self.begun.rest > 0);
        let lost = self.frames - kept;
        self.bytes.truncate(self.begun.rest);
        (self.frames, self.content) = (kept, self.begun.content);
        lost
    }

    fn clear(&mut self) {
        self.bytes.clear();
        (self.frames, self.content, self.begun) = (0, 0, Begun::default());
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Push {
    Done,
    Full,
    Closed,
}

/// Frames in the form of the wire: several in one piece, or one in two.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wire<'a> {
    pub parts: [&'a [u8]; 2],
    pub frames: u64,
}

impl<'a> Wire<'a> {
    /// One or more frames, each preceded by its length.
    pub fn run(bytes: &'a [u8], frames: u64) -> Wire<'a> {
        Wire { parts: [bytes, &[]], frames }
    }
    /// `length` is that of `frame`.
    pub fn frame(length: &'a [u8; 4], frame: &'a [u8]) -> Wire<'a> {
        Wire { parts: [length, frame], frames: 1 }
    }

    fn len(&self) -> usize {
        self.parts[0].len() + self.parts[1].len()
    }

    /// The frame in which byte `at` is: how many are before it, where it begins, where it ends.
    /// `at` is less than the length of all.
    fn frame_at(&self, at: usize) -> (u64, usize, usize) {
        if self.frames == 1 {
            return (0, 0, self.len());
        }
        let (mut before, mut begin, run) = (0, 0, self.parts[0]);
        loop {
            let head = run[begin..].first_chunk::<4>().expect("whole frames, and `at` in them");
            let end = begin + 4 + u32::from_be_bytes(*head) as usize;
            if at < end {
                return (before, begin, end);
            }
            (before, begin) = (before + 1, end);
        }
    }
}

impl Queue {
    pub fn new(socket: OwnedWriteHalf) -> Queue {
        Queue {
            waiting: Mutex::default(),
            filled: Notify::new(),
            emptied: Notify::new(),
            writes: AtomicU64::new(0),
            socket: Arc::new(socket),
            sent: Tally::default(),
        }
    }

    /// Never waits.
    pub fn push(&self, wire: &Wire<'_>) -> Push {
        let mut waiting = self.lock();
        if waiting.closed {
            return Push::Closed;
        }
        if waiting.batch.bytes.len() >= DEPTH {
            return Push::Full;
        }
        let first = waiting.batch.frames == 0;
        let mut written = 0;
        if first && !waiting.writing {
            written = self.write_now(wire);
            if written == wire.len() {
                self.sent.add(wire.frames, written as u64 - 4 * wire.frames);
                return Push::Done;
            }
        }
        let (whole, begin, end) = wire.frame_at(written);
        self.sent.add(whole, begin as u64 - 4 * whole);
        let batch = &mut waiting.batch;
        if written > begin {
            batch.begun = Begun { rest: end - written, content: (end - begin - 4) as u64 };
        }
        let left = wire.frames - whole;
        batch.frames += left;
        batch.content += (wire.len() - begin) as u64 - 4 * left;
        let mut skip = written;
        for part in wire.parts {
            let from = skip.min(part.len());
            batch.bytes.extend_from_slice(&part[from..]);
            skip -= from;
        }
        drop(waiting);
        if first {
            self.filled.notify_one();
        }
        Push::Done
    }

    /// Writes what the socket takes at once; says how many bytes that were. An error is left to
    /// the writer, who will meet it too.
    fn write_now(&self, wire: &Wire<'_>) -> usize {
        let written = match wire.parts {
            [bytes, []] => self.socket.try_write(bytes),
            parts => self.socket.try_write_vectored(&parts.map(IoSlice::new)),
        };
        let written = written.unwrap_or(0);
        if written > 0 {
            self.wrote();
        }
        written
    }

    /// Swaps all that waits into `batch`, whose frames were written (its memory is used again).
    /// False once the queue is closed.
    pub async fn take(&self, batch: &mut Batch) -> bool {
        batch.clear();
        loop {
            {
                let mut waiting = self.lock();
                waiting.writing = false;
                if waiting.closed {
                    return false;
                }
                if waiting.batch.frames > 0 {
                    std::mem::swap(&mut waiting.batch, batch);
                    waiting.writing = true;
                    break;
                }
            }
            self.filled.notified().await;
        }
        self.emptied.notify_waiters();
        true
    }

    /// Writes a whole batch. Waits as long as the machine takes.
    pub async fn write(&self, batch: &Batch) -> io::Result<()> {
        let mut rest = &batch.bytes[..];
        while !rest.is_empty() {
            self.socket.writable().await?;
            match self.socket.try_write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    rest = &rest[written..];
                    self.wrote();
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e),
            }
        }
        self.sent.add(batch.frames, batch.content);
        Ok(())
    }

    /// A future told when the queue is emptied next. It listens from its first poll or `enable`.
    pub fn emptied(&self) -> tokio::sync::futures::Notified<'_> {
        self.emptied.notified()
    }

    fn wrote(&self) {
        self.writes.fetch_add(1, Ordering::Relaxed);
    }

    /// A number that moves whenever the machine takes something.
    ///
    /// Writing alone does not show that: the kernel calls a unix socket writable only when three
    /// quarters of its buffer are free again, which a slow reader needs long for. What it still
    /// holds for the reader does.
    pub fn progress(&self) -> u64 {
        let held = outgoing::bytes(self.socket.as_ref().as_ref());
        (self.writes.load(Ordering::Relaxed) << 32) ^ held
    }

    /// True when every frame taken was written.
    pub fn is_idle(&self) -> bool {
        let waiting = self.lock();
        waiting.batch.frames == 0 && !waiting.writing
    }

    /// Forgets what waits; says how many frames that were.
    pub fn clear(&self) -> u64 {
        let lost = self.lock().batch.forget();
        self.emptied.notify_waiters();
        lost
    }

    /// Forgets what waits, takes no more, ends the writer and the connection. Says how many frames
    /// were lost.
    pub fn close(&self) -> u64 {
        let mut waiting = self.lock();
        waiting.closed = true;
        let lost = std::mem::take(&mut waiting.batch).frames;
        drop(waiting);
        // Wakes a writer that waits for a machine that takes nothing. Already closed is well.
        let socket: &tokio::net::UnixStream = self.socket.as_ref().as_ref();
        let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Both);
        self.filled.notify_one();
        self.emptied.notify_waiters();
        lost
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Nothing panics while holding it, so poison would be a defect elsewhere: go on.
        self.waiting.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// The bytes that a unix socket's peer has yet to read.
mod outgoing {
    use rustix::ioctl;
    use std::os::fd::AsFd;

    /// Of linux/sockios.h; the number of `TIOCOUTQ`, the same on all machines of Linux but a few.
    const SIOCOUTQ: ioctl::Opcode = 0x5411;

    /// Nothing where the socket is gone.
    pub fn bytes(socket: impl AsFd) -> u64 {
        // SAFETY: SIOCOUTQ of a socket writes one int where its argument points, as `Getter` does.
        let asked = unsafe {
            let get = ioctl::Getter::<SIOCOUTQ, std::ffi::c_int>::new();
            ioctl::ioctl(socket, get)
        };
        asked.map_or(0, |held| held.unsigned_abs().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixStream;

    /// A queue, and the machine's end of its socket.
    fn queue() -> (Queue, UnixStream, tokio::net::unix::OwnedReadHalf) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (read, write) = ours.into_split();
        (Queue::new(write), theirs, read)
    }

    fn push(queue: &Queue, frame: &[u8]) -> Push {
        queue.push(&Wire::frame(&(frame.len() as u32).to_be_bytes(), frame))
    }

    fn framed(frame: &[u8]) -> Vec<u8> {
        [&(frame.len() as u32).to_be_bytes()[..], frame].concat()
    }

    fn drain(socket: &UnixStream) -> Vec<u8> {
        let mut all = Vec::new();
        while socket.try_read_buf(&mut all).is_ok_and(|n| n > 0) {}
        all
    }

    #[tokio::test]
    async fn an_idle_queue_writes_at_once_and_a_run_in_one_piece() {
        let (queue, machine, _read) = queue();
        machine.writable().await.unwrap();
        queue.socket.writable().await.unwrap();
        assert_eq!(push(&queue, b"abc"), Push::Done);
        let run = [framed(b"de"), framed(b"f")].concat();
        assert_eq!(queue.push(&Wire::run(&run, 2)), Push::Done);
        machine.readable().await.unwrap();
        assert_eq!(drain(&machine), b"\0\0\0\x03abc\0\0\0\x02de\0\0\0\x01f");
        assert_eq!((queue.sent.frames(), queue.sent.bytes()), (3, 6));
        assert!(queue.is_idle());
    }

    /// Runs of frames of all lengths until the queue is full, and how many frames that were.
    fn fill(queue: &Queue) -> (Vec<u8>, u64) {
        let (mut all, mut frames) = (Vec::new(), 0);
        for length in (1..5000usize).cycle() {
            let run: Vec<u8> =
                (0..3).flat_map(|i| framed(&vec![(length + i) as u8; length + i])).collect();
            match queue.push(&Wire::run(&run, 3)) {
                Push::Done => {
                    all.extend(run);
                    frames += 3;
                }
                push => {
                    assert_eq!(push, Push::Full);
                    break;
                }
            }
        }
        (all, frames)
    }

    #[tokio::test]
    async fn a_full_socket_leaves_the_rest_to_the_writer_and_nothing_is_torn() {
        let (queue, machine, _read) = queue();
        queue.socket.writable().await.unwrap();
        let (all, frames) = fill(&queue);
        assert!(!queue.is_idle());
        let writer = async {
            let mut batch = Batch::default();
            while queue.sent.frames() < frames {
                assert!(queue.take(&mut batch).await);
                queue.write(&batch).await.unwrap();
            }
        };
        let reader = async {
            let mut got = Vec::new();
            while got.len() < all.len() {
                machine.readable().await.unwrap();
                got.extend(drain(&machine));
            }
            got
        };
        let ((), got) = tokio::join!(writer, reader);
        assert!(got == all);
        assert_eq!(queue.sent.bytes(), all.len() as u64 - 4 * frames);
    }

    #[tokio::test]
    async fn what_is_forgotten_is_counted_and_never_half_of_a_frame() {
        let (queue, machine, _read) = queue();
        queue.socket.writable().await.unwrap();
        let (all, frames) = fill(&queue);
        let lost = queue.clear();
        assert!(lost > 0);
        // The end of the frame that was begun, if one was, and the next frame after it.
        push(&queue, b"next");
        let mut batch = Batch::default();
        let writer = async {
            assert!(queue.take(&mut batch).await);
            queue.write(&batch).await.unwrap();
        };
        let reader = async {
            let mut got = Vec::new();
            while !got.ends_with(&framed(b"next")) {
                machine.readable().await.unwrap();
                got.extend(drain(&machine));
            }
            got
        };
        let ((), got) = tokio::join!(writer, reader);
        let kept = &got[..got.len() - 8];
        assert!(all.starts_with(kept));
        let whole = Wire::run(&all, frames).frame_at(kept.len());
        assert_eq!((whole.0, whole.1), (frames - lost, kept.len()), "a frame was torn");
        assert_eq!(queue.sent.frames(), frames - lost + 1);
        assert_eq!(queue.sent.bytes(), kept.len() as u64 - 4 * (frames - lost) + 4);
    }

    #[tokio::test]
    async fn a_full_queue_refuses_until_it_is_taken_and_a_closed_one_for_ever() {
        let (queue, _machine, _read) = queue();
        fill(&queue);
        assert_eq!(push(&queue, b"x"), Push::Full);
        let mut batch = Batch::default();
        assert!(queue.take(&mut batch).await);
        assert_eq!(push(&queue, b"x"), Push::Done);
        assert_eq!(queue.close(), 1);
        assert_eq!(push(&queue, b"x"), Push::Closed);
        assert!(!queue.take(&mut batch).await);
    }

    #[tokio::test]
    async fn progress_moves_with_every_read_of_the_machine_and_only_then() {
        let (queue, machine, _read) = queue();
        queue.socket.writable().await.unwrap();
        fill(&queue);
        let before = queue.progress();
        assert_eq!(queue.progress(), before);
        machine.readable().await.unwrap();
        machine.try_read(&mut [0; 64 * 1024]).unwrap();
        assert_ne!(queue.progress(), before);
    }
}
