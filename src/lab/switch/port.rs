//! One port: where frames for it go, whether its link is up, and what it counted.

use super::capture::Spool;
use super::counters::{Counters, Tally};
use super::impairment::Direction;
use super::lane::{Lane, Lanes, Verdict};
use super::queue::{Push, Queue, Wire};
use super::stall::{Stall, TICK};
use super::table::Domain;
use crate::wait::{Death, Life};
use bytes::Bytes;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

#[derive(Debug)]
pub(super) struct PortCore {
    pub name: String,
    out: Out,
    /// What makes the port's frames special: one load on their way tells that nothing does.
    marks: AtomicU8,
    lanes: Lanes,
    captures: Mutex<Vec<Track>>,
    /// Full for a second without any progress.
    stalled: AtomicBool,
    pub life: Life,
    pub received: Tally,
    dropped: AtomicU64,
    separated: AtomicU64,
}

/// Where the frames for a port go.
#[derive(Debug)]
enum Out {
    Socket(Queue),
    Station { to: mpsc::Sender<Bytes>, sent: Tally },
}

/// The port's place in a capture.
#[derive(Debug)]
struct Track {
    spool: Arc<Spool>,
    interface: u32,
}

/// The link is cut.
const CUT: u8 = 1;
/// A capture wants the port's frames.
const CAPTURED: u8 = 2;

/// Frames of that direction must go through its lane.
const fn faulty(direction: Direction) -> u8 {
    match direction {
        Direction::From => 4,
        Direction::To => 8,
    }
}

impl PortCore {
    pub fn socket(name: &str, lanes: Lanes, to: OwnedWriteHalf) -> (Arc<PortCore>, Death) {
        Self::new(name, lanes, Out::Socket(Queue::new(to)))
    }
    pub fn station(name: &str, lanes: Lanes, to: mpsc::Sender<Bytes>) -> (Arc<PortCore>, Death) {
        Self::new(name, lanes, Out::Station { to, sent: Tally::default() })
    }

    fn new(name: &str, lanes: Lanes, out: Out) -> (Arc<PortCore>, Death) {
        let (life, death) = Life::new();
        let core = PortCore {
            name: name.into(),
            out,
            marks: AtomicU8::new(0),
            lanes,
            captures: Mutex::default(),
            stalled: AtomicBool::new(false),
            life,
            received: Tally::default(),
            dropped: AtomicU64::new(0),
            separated: AtomicU64::new(0),
        };
        (Arc::new(core), death)
    }

    /// The queue of a port that serves a socket.
    pub fn queue(&self) -> Option<&Queue> {
        match &self.out {
            Out::Socket(queue) => Some(queue),
            Out::Station { .. } => None,
        }
    }

    pub fn counters(&self) -> Counters {
        let sent = match &self.out {
            Out::Socket(queue) => &queue.sent,
            Out::Station { sent, .. } => sent,
        };
        Counters {
            rx_frames: self.received.frames(),
            rx_bytes: self.received.bytes(),
            tx_frames: sent.frames(),
            tx_bytes: sent.bytes(),
            dropped: self.dropped.load(Relaxed),
            separated: self.separated.load(Relaxed),
            from: self.lane(Direction::From).counters(),
            to: self.lane(Direction::To).counters(),
        }
    }
    pub fn dropped(&self, frames: u64) {
        if frames > 0 {
            self.dropped.fetch_add(frames, Relaxed);
        }
    }
    pub fn separated(&self) {
        self.separated.fetch_add(1, Relaxed);
    }

    /// True when nothing makes its frames special.
    pub fn is_plain(&self) -> bool {
        self.marks.load(Relaxed) == 0
    }
    fn is_marked(&self, mark: u8) -> bool {
        self.marks.load(Relaxed) & mark != 0
    }
    fn mark(&self, mark: u8, on: bool) {
        if on {
            self.marks.fetch_or(mark, Relaxed);
        } else {
            self.marks.fetch_and(!mark, Relaxed);
        }
    }

    pub fn is_up(&self) -> bool {
        !self.is_marked(CUT)
    }
    pub fn set_link(&self, up: bool) {
        self.mark(CUT, !up);
        if let (false, Some(queue)) = (up, self.queue()) {
            self.dropped(queue.clear());
        }
    }

    fn lane(&self, direction: Direction) -> &Arc<Lane> {
        &self.lanes[direction as usize]
    }
    /// Has the lanes' faults noticed, after they changed.
    pub fn look_at_lanes(&self) {
        for direction in Direction::BOTH {
            self.lane(direction).look(|needed| self.mark(faulty(direction), needed));
        }
    }
    /// Called by the lane, which has no fault and holds nothing.
    pub fn leave_lane(&self, direction: Direction) {
        self.mark(faulty(direction), false);
    }
    /// What becomes of a frame of that direction.
    pub fn fate(
        self: &Arc<Self>,
        direction: Direction,
        domain: &Arc<Domain>,
        frame: &Bytes,
    ) -> Verdict {
        if !self.is_marked(faulty(direction)) {
            return Verdict::Pass(1);
        }
        self.lane(direction).enter(domain, self, frame)
    }

    /// Shows all further frames to a capture.
    pub fn capture(&self, spool: &Arc<Spool>) {
        let interface = spool.interface(&self.name);
        self.tracks().push(Track { spool: spool.clone(), interface });
        self.mark(CAPTURED, true);
    }
    pub fn end_capture(&self, spool: &Arc<Spool>) {
        let mut tracks = self.tracks();
        tracks.retain(|t| !Arc::ptr_eq(&t.spool, spool));
        self.mark(CAPTURED, !tracks.is_empty());
    }
    pub fn show(&self, direction: Direction, frame: &[u8]) {
        if self.is_marked(CAPTURED) {
            for track in self.tracks().iter() {
                track.spool.push(track.interface, direction, frame);
            }
        }
    }
    fn tracks(&self) -> MutexGuard<'_, Vec<Track>> {
        self.captures.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Takes no more frames; says why to those who ask.
    pub fn close(&self, cause: String) {
        if let Some(queue) = self.queue() {
            self.dropped(queue.close());
        }
        self.life.ends(cause);
    }

    /// One frame from the network. Waits while the port is full and drains.
    pub async fn deliver(self: &Arc<Self>, domain: &Arc<Domain>, frame: &Bytes) {
        if let Verdict::Pass(copies) = self.fate(Direction::To, domain, frame) {
            for _ in 0..copies {
                self.put_frame(frame).await;
            }
        }
    }

    /// Behind the port's fault.
    pub async fn put_frame(&self, frame: &Bytes) {
        let length = (frame.len() as u32).to_be_bytes();
        if self.put(&Payload::Frame(&length, frame)).await {
            self.show(Direction::To, frame);
        }
    }

    /// Frames in the form of the wire, for a plain port that serves a socket.
    pub async fn put_run(&self, bytes: &[u8], frames: u64) {
        self.put(&Payload::Run(Wire::run(bytes, frames))).await;
    }

    /// False when it was dropped.
    async fn put(&self, payload: &Payload<'_>) -> bool {
        let done = self.is_up()
            && match self.offer(payload) {
                Push::Full if self.stalled.load(Relaxed) => false,
                Push::Full => self.put_when_room(payload).await,
                push => push == Push::Done,
            };
        if !done {
            self.dropped(payload.frames());
        }
        done
    }

    async fn put_when_room(&self, payload: &Payload<'_>) -> bool {
        let mut stall = Stall::new(self.progress());
        loop {
            let asked = Instant::now();
            // Listening begins before the second look, or news between the two would be missed.
            match &self.out {
                Out::Socket(queue) => {
                    let mut emptied = std::pin::pin!(queue.emptied());
                    emptied.as_mut().enable();
                    match self.offer(payload) {
                        Push::Full => drop(timeout(TICK, emptied).await),
                        push => return push == Push::Done,
                    }
                }
                Out::Station { to, .. } => drop(timeout(TICK, to.reserve()).await),
            }
            if !self.is_up() {
                return false;
            }
            match self.offer(payload) {
                Push::Full if stall.look(asked.elapsed(), self.progress()) => {
                    self.stalled.store(true, Relaxed);
                    return false;
                }
                Push::Full => {}
                push => return push == Push::Done,
            }
        }
    }

    fn offer(&self, payload: &Payload<'_>) -> Push {
        let push = match (&self.out, payload) {
            (Out::Socket(queue), Payload::Frame(length, frame)) => {
                queue.push(&Wire::frame(length, frame))
            }
            (Out::Socket(queue), Payload::Run(wire)) => queue.push(wire),
            (Out::Station { to, sent }, Payload::Frame(_, frame)) => match to.try_reserve() {
                Ok(permit) => {
                    sent.add(1, frame.len() as u64);
                    permit.send((*frame).clone());
                    Push::Done
                }
                Err(mpsc::error::TrySendError::Full(())) => Push::Full,
                Err(mpsc::error::TrySendError::Closed(())) => Push::Closed,
            },
            (Out::Station { .. }, Payload::Run(_)) => {
                unreachable!("a station takes frames one by one")
            }
        };
        if push == Push::Done && self.stalled.load(Relaxed) {
            self.stalled.store(false, Relaxed);
        }
        push
    }

    /// A number that moves when the port drains.
    fn progress(&self) -> u64 {
        match &self.out {
            Out::Socket(queue) => queue.progress(),
            // A frame gets into a full station only after another one got out.
            Out::Station { sent, .. } => sent.frames(),
        }
    }

    /// Frames that wait in the port, at least one if any does.
    pub fn waiting(&self) -> usize {
        let queued = match &self.out {
            Out::Socket(queue) => usize::from(!queue.is_idle()),
            Out::Station { to, .. } => to.max_capacity() - to.capacity(),
        };
        queued + self.lanes.iter().map(|lane| lane.waiting()).sum::<usize>()
    }
}

/// Frames on their way into one port.
enum Payload<'a> {
    /// One frame, and its length as the wire has it.
    Frame(&'a [u8; 4], &'a Bytes),
    Run(Wire<'a>),
}

impl Payload<'_> {
    fn frames(&self) -> u64 {
        match self {
            Payload::Frame(..) => 1,
            Payload::Run(wire) => wire.frames,
        }
    }
}
