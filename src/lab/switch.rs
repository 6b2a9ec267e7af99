//! The network between the VMs: a learning switch inside our process.
//!
//! QEMU's `-netdev stream` connects each NIC by a unix socket; every frame is preceded by its
//! length (4 bytes, big-endian). Each named network is one broadcast domain.

use bytes::Bytes;
use tokio::net::UnixStream;
use tokio::sync::mpsc;

/// All networks of one lab. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Switch {}

/// One broadcast domain. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Network {}

/// A plugged port; unplugged when dropped.
#[derive(Debug)]
pub struct Port {}

/// An in-process station: frames without the length prefix.
#[derive(Debug)]
pub struct Station {
    pub to_switch: mpsc::Sender<Bytes>,
    pub from_switch: mpsc::Receiver<Bytes>,
    pub port: Port,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub rx_frames: u64,
    pub rx_bytes: u64,
    pub tx_frames: u64,
    pub tx_bytes: u64,
    /// Dropped because the link was cut or the receiver's queue was gone, never silently otherwise.
    pub dropped: u64,
}

impl Switch {
    pub fn new() -> Switch {
        todo!()
    }
    /// The network of that name, made at first mention.
    pub fn network(&self, _name: &str) -> Network {
        todo!()
    }
}

impl Default for Switch {
    fn default() -> Self {
        Self::new()
    }
}

impl Network {
    /// Serves one QEMU NIC over `socket`. `name` is `NODE/NETWORK` in every report.
    pub fn plug(&self, _name: &str, _socket: UnixStream) -> Port {
        todo!()
    }
    /// A port for something in our own process.
    pub fn station(&self, _name: &str) -> Station {
        todo!()
    }
    /// Copies of the frames for which `wanted` is true, from now until the receiver is dropped.
    /// A slow reader loses copies (counted), never slows the network.
    pub fn tap(
        &self,
        _wanted: impl Fn(&[u8]) -> bool + Send + Sync + 'static,
    ) -> mpsc::Receiver<Bytes> {
        todo!()
    }
}

impl Port {
    /// Cuts or heals the link: while cut, frames in both directions are dropped and counted.
    pub fn set_link(&self, _up: bool) {
        todo!()
    }
    pub fn counters(&self) -> Counters {
        todo!()
    }
}
