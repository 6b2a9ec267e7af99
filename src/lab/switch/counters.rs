//! What a port counts.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What a port counted. `rx` came from the machine into the switch, `tx` went out to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub rx_frames: u64,
    pub rx_bytes: u64,
    pub tx_frames: u64,
    pub tx_bytes: u64,
    /// Frames lost in either direction without a fault's doing: the link was cut, the receiver
    /// stalled or was gone, or the frame was shorter than an Ethernet header.
    pub dropped: u64,
    /// Frames from this machine that a cut or partitioned network kept from a port they were for.
    pub separated: u64,
    /// What the fault on the frames from the machine did.
    pub from: FaultCounters,
    /// What the fault on the frames to the machine did.
    pub to: FaultCounters,
}

/// What the faults of one direction of a port did to its frames, since the first plug of a port of
/// that name. Never silently otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultCounters {
    /// Frames that met a fault.
    pub met: u64,
    /// Vanished by `loss`.
    pub lost: u64,
    pub duplicated: u64,
    /// Frames that had to wait: for their latency, or for their turn.
    pub delayed: u64,
    pub reordered: u64,
    /// Dropped because too much waited for the bandwidth already.
    pub over_rate: u64,
    /// Dropped because too many bytes were delayed already.
    pub overflowed: u64,
}

/// Frames and their bytes, without the lengths before them.
#[derive(Debug, Default)]
pub(super) struct Tally {
    frames: AtomicU64,
    bytes: AtomicU64,
}

impl Tally {
    pub fn add(&self, frames: u64, bytes: u64) {
        self.frames.fetch_add(frames, Relaxed);
        self.bytes.fetch_add(bytes, Relaxed);
    }
    pub fn frames(&self) -> u64 {
        self.frames.load(Relaxed)
    }
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }
}
