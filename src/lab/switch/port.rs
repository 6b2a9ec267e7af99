//! One port: where frames for it go, whether its link is up, and what it counted.

use super::Counters;
use super::queue::{Push, Queue};
use super::table::{Tap, View};
use crate::lab::wire;
use crate::wait::{Death, Life};
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// How long a full port that drains nothing at all holds its senders back. After that its frames
/// are dropped (and counted) until it drains again, so that a paused machine stops nobody else.
pub(super) const STALL: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct PortCore {
    pub name: String,
    out: Out,
    up: AtomicBool,
    /// Full for [`STALL`] without any progress.
    stalled: AtomicBool,
    pub life: Life,
    rx_frames: AtomicU64,
    rx_bytes: AtomicU64,
    tx_frames: AtomicU64,
    tx_bytes: AtomicU64,
    dropped: AtomicU64,
}

/// Where the frames for a port go.
#[derive(Debug)]
enum Out {
    Socket(Queue),
    Station(mpsc::Sender<Bytes>),
}

impl PortCore {
    pub fn socket(name: &str) -> (Arc<PortCore>, Death) {
        Self::new(name, Out::Socket(Queue::default()))
    }
    pub fn station(name: &str, to: mpsc::Sender<Bytes>) -> (Arc<PortCore>, Death) {
        Self::new(name, Out::Station(to))
    }

    fn new(name: &str, out: Out) -> (Arc<PortCore>, Death) {
        let (life, death) = Life::new();
        let core = PortCore {
            name: name.into(),
            out,
            up: AtomicBool::new(true),
            stalled: AtomicBool::new(false),
            life,
            rx_frames: AtomicU64::new(0),
            rx_bytes: AtomicU64::new(0),
            tx_frames: AtomicU64::new(0),
            tx_bytes: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
        };
        (Arc::new(core), death)
    }

    /// The queue of a port that serves a socket.
    pub fn queue(&self) -> Option<&Queue> {
        match &self.out {
            Out::Socket(queue) => Some(queue),
            Out::Station(_) => None,
        }
    }

    pub fn counters(&self) -> Counters {
        Counters {
            rx_frames: self.rx_frames.load(Relaxed),
            rx_bytes: self.rx_bytes.load(Relaxed),
            tx_frames: self.tx_frames.load(Relaxed),
            tx_bytes: self.tx_bytes.load(Relaxed),
            dropped: self.dropped.load(Relaxed),
        }
    }
    pub fn sent(&self, frames: u64, bytes: u64) {
        self.tx_frames.fetch_add(frames, Relaxed);
        self.tx_bytes.fetch_add(bytes, Relaxed);
    }
    pub fn dropped(&self, frames: u64) {
        self.dropped.fetch_add(frames, Relaxed);
    }

    pub fn is_up(&self) -> bool {
        self.up.load(Relaxed)
    }
    pub fn set_link(&self, up: bool) {
        self.up.store(up, Relaxed);
        if let (false, Some(queue)) = (up, self.queue()) {
            self.dropped(queue.clear());
        }
    }

    /// Takes no more frames; says why to those who ask.
    pub fn close(&self, cause: String) {
        if let Some(queue) = self.queue() {
            self.dropped(queue.close());
        }
        self.life.ends(cause);
    }

    /// Hands over one frame for this port. Waits while the port is full and drains.
    async fn deliver(&self, frame: &mut Payload<'_>) {
        if !self.is_up() {
            return self.dropped(1);
        }
        match self.offer(frame) {
            Push::Done => {}
            Push::Closed => self.dropped(1),
            Push::Full if self.stalled.load(Relaxed) => self.dropped(1),
            Push::Full => self.deliver_when_room(frame).await,
        }
    }

    async fn deliver_when_room(&self, frame: &mut Payload<'_>) {
        loop {
            let before = self.progress();
            // Listening begins before the second look, or news between the two would be missed.
            let waited = match &self.out {
                Out::Socket(queue) => {
                    let mut emptied = std::pin::pin!(queue.emptied());
                    emptied.as_mut().enable();
                    match self.offer(frame) {
                        Push::Full => timeout(STALL, emptied).await.is_ok(),
                        done => return self.settle(done),
                    }
                }
                Out::Station(to) => timeout(STALL, to.reserve()).await.is_ok(),
            };
            if !self.is_up() {
                return self.dropped(1);
            }
            match self.offer(frame) {
                Push::Full if !waited && self.progress() == before => {
                    self.stalled.store(true, Relaxed);
                    return self.dropped(1);
                }
                Push::Full => {}
                done => return self.settle(done),
            }
        }
    }

    fn settle(&self, push: Push) {
        if push != Push::Done {
            self.dropped(1);
        }
    }

    fn offer(&self, frame: &mut Payload<'_>) -> Push {
        let push = match &self.out {
            Out::Socket(queue) => queue.push(frame.bytes),
            Out::Station(to) => match to.try_reserve() {
                Ok(permit) => {
                    self.sent(1, frame.bytes.len() as u64);
                    permit.send(frame.share());
                    Push::Done
                }
                Err(mpsc::error::TrySendError::Full(())) => Push::Full,
                Err(mpsc::error::TrySendError::Closed(())) => Push::Closed,
            },
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
            Out::Station(_) => self.tx_frames.load(Relaxed),
        }
    }
}

/// One frame on its way, copied at most once however many in-process readers want it.
pub(super) struct Payload<'a> {
    bytes: &'a [u8],
    shared: Option<Bytes>,
}

impl<'a> Payload<'a> {
    pub fn borrowed(bytes: &'a [u8]) -> Payload<'a> {
        Payload { bytes, shared: None }
    }
    pub fn shared(bytes: &'a Bytes) -> Payload<'a> {
        Payload { bytes, shared: Some(bytes.clone()) }
    }
    fn share(&mut self) -> Bytes {
        self.shared.get_or_insert_with(|| Bytes::copy_from_slice(self.bytes)).clone()
    }
}

/// Takes one frame in from `from`: counts, taps, learns, and delivers it.
pub(super) async fn forward(view: &mut View, from: &Arc<PortCore>, mut frame: Payload<'_>) {
    let bytes = frame.bytes;
    from.rx_frames.fetch_add(1, Relaxed);
    from.rx_bytes.fetch_add(bytes.len() as u64, Relaxed);
    let Some((dst, src)) = addresses(bytes) else {
        // Shorter than an Ethernet header: no receiver could be found for it.
        return from.dropped(1);
    };
    if !from.is_up() {
        return from.dropped(1);
    }
    let table = view.table().clone();
    for tap in &table.taps {
        copy_to(tap, view, &mut frame);
    }
    if !wire::is_group(&src) && !table.learned.get(&src).is_some_and(|p| Arc::ptr_eq(p, from)) {
        view.domain.learn(src, from);
    }
    if !wire::is_group(&dst)
        && let Some(port) = table.learned.get(&dst)
    {
        // A frame for a neighbour on its own port has already arrived.
        if !Arc::ptr_eq(port, from) {
            port.deliver(&mut frame).await;
        }
        return;
    }
    for port in table.ports.iter().filter(|p| !Arc::ptr_eq(p, from)) {
        port.deliver(&mut frame).await;
    }
}

fn addresses(bytes: &[u8]) -> Option<(wire::Mac, wire::Mac)> {
    let header = bytes.first_chunk::<{ wire::ETHERNET_HEADER }>()?;
    Some((*header.first_chunk()?, *header[6..].first_chunk()?))
}

fn copy_to(tap: &Tap, view: &View, frame: &mut Payload<'_>) {
    if !(tap.wanted)(frame.bytes) {
        return;
    }
    match tap.to.try_reserve() {
        Ok(permit) => permit.send(frame.share()),
        Err(mpsc::error::TrySendError::Full(())) => {
            view.domain.lost_copies.fetch_add(1, Relaxed);
        }
        Err(mpsc::error::TrySendError::Closed(())) => view.domain.remove_dead_taps(),
    }
}
