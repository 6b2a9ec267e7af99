//! The frames waiting to be written to one QEMU socket, already in the form of the wire: each
//! preceded by its length, all in one buffer, so that one `write` carries many.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::Notify;

/// A queue holding this many bytes takes no further frame. Deep enough for four full TCP windows
/// of a guest, shallow enough that a ping behind a bulk transfer is answered in milliseconds.
pub(super) const DEPTH: usize = 256 * 1024;

#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: Mutex<Batch>,
    /// Told when `waiting` is no longer empty, or closed.
    filled: Notify,
    /// Told when `waiting` was emptied.
    emptied: Notify,
    /// Counts each success in writing to the socket: a queue whose count moves is not stalled.
    progress: AtomicU64,
}

/// Frames in the form of the wire.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub bytes: Vec<u8>,
    pub frames: u64,
    closed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Push {
    Done,
    Full,
    Closed,
}

impl Queue {
    /// Never waits.
    pub fn push(&self, frame: &[u8]) -> Push {
        let mut batch = self.lock();
        if batch.closed {
            return Push::Closed;
        }
        if batch.bytes.len() >= DEPTH {
            return Push::Full;
        }
        // The switch lets no frame in that is longer than `LONGEST_FRAME`.
        batch.bytes.extend_from_slice(&(frame.len() as u32).to_be_bytes());
        batch.bytes.extend_from_slice(frame);
        batch.frames += 1;
        let first = batch.frames == 1;
        drop(batch);
        if first {
            self.filled.notify_one();
        }
        Push::Done
    }

    /// Swaps all that waits into `batch`, which is emptied first (its memory is used again).
    /// False once the queue is closed.
    pub async fn take(&self, batch: &mut Batch) -> bool {
        batch.bytes.clear();
        batch.frames = 0;
        loop {
            {
                let mut waiting = self.lock();
                if waiting.closed {
                    return false;
                }
                if waiting.frames > 0 {
                    std::mem::swap(&mut *waiting, batch);
                    break;
                }
            }
            self.filled.notified().await;
        }
        self.emptied.notify_waiters();
        true
    }

    /// A future told when the queue is emptied next. It listens from its first poll or `enable`.
    pub fn emptied(&self) -> tokio::sync::futures::Notified<'_> {
        self.emptied.notified()
    }

    pub fn waiting(&self) -> usize {
        self.lock().frames as usize
    }
    pub fn wrote(&self) {
        self.progress.fetch_add(1, Ordering::Relaxed);
    }
    pub fn progress(&self) -> u64 {
        self.progress.load(Ordering::Relaxed)
    }

    /// Forgets what waits; says how many frames that were.
    pub fn clear(&self) -> u64 {
        let mut waiting = self.lock();
        waiting.bytes.clear();
        let lost = std::mem::take(&mut waiting.frames);
        drop(waiting);
        self.emptied.notify_waiters();
        lost
    }

    /// Forgets what waits, takes no more, ends the writer. Says how many frames were lost.
    pub fn close(&self) -> u64 {
        let mut waiting = self.lock();
        waiting.closed = true;
        waiting.bytes = Vec::new();
        let lost = std::mem::take(&mut waiting.frames);
        drop(waiting);
        self.filled.notify_one();
        self.emptied.notify_waiters();
        lost
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Batch> {
        // Nothing panics while holding it, so poison would be a defect elsewhere: go on.
        self.waiting.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn frames_come_out_in_order_and_in_the_form_of_the_wire() {
        let queue = Queue::default();
        assert_eq!(queue.push(b"abc"), Push::Done);
        assert_eq!(queue.push(b"de"), Push::Done);
        let mut batch = Batch::default();
        assert!(queue.take(&mut batch).await);
        assert_eq!(batch.bytes, b"\0\0\0\x03abc\0\0\0\x02de");
        assert_eq!(batch.frames, 2);
    }

    #[tokio::test]
    async fn a_full_queue_refuses_until_it_is_taken_and_a_closed_one_for_ever() {
        let queue = Queue::default();
        while queue.push(&[0; 1500]) == Push::Done {}
        assert_eq!(queue.push(b"x"), Push::Full);
        let mut batch = Batch::default();
        assert!(queue.take(&mut batch).await);
        assert_eq!(queue.push(b"x"), Push::Done);
        assert_eq!(queue.close(), 1);
        assert_eq!(queue.push(b"x"), Push::Closed);
        assert!(!queue.take(&mut batch).await);
    }
}
