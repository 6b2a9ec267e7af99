//! The network between the VMs: a learning switch inside our process.
//!
//! QEMU's `-netdev stream` connects each NIC by a unix socket; every frame is preceded by its
//! length (4 bytes, big-endian). Each named network is one broadcast domain.
//!
//! No frame is lost while its receiver drains: a full port holds its senders back, and since each
//! port is written by a task of its own, two ports that saturate each other never lock up. A port
//! that drains nothing for a second (a paused machine) loses its frames, counted, until it does.
//!
//! Faults, cuts, partitions and captures are set from outside at any time (`control`). Where none
//! is, a frame pays one load for them.

mod capture;
mod control;
mod counters;
mod fate;
mod impairment;
mod lane;
mod pcapng;
mod port;
mod queue;
mod serve;
mod shaper;
mod stall;
mod table;
#[cfg(test)]
mod tests;
mod way;

pub use capture::{Capture, Captured};
pub use counters::{Counters, FaultCounters};
pub use fate::splitmix64;
pub use impairment::{Direction, Impairment, Probability, parse_delay, parse_rate};

use crate::wait::Death;
use bytes::Bytes;
use port::PortCore;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use table::{Domain, Tap, View};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

/// The longest frame taken, in bytes, without the length before it. A port that announces a
/// longer one (or an empty one) is unplugged.
pub const LONGEST_FRAME: usize = 65_550;

/// Frames in flight from and to a station.
const STATION_DEPTH: usize = 512;

/// Copies that wait for a tap's reader.
const TAP_DEPTH: usize = 4096;

/// All networks of one lab. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Switch(Arc<Networks>);

#[derive(Debug, Default)]
struct Networks {
    by_name: Mutex<BTreeMap<String, Network>>,
    seed: Arc<AtomicU64>,
}

/// One broadcast domain. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Network(Arc<Domain>);

/// A plugged port; unplugged when dropped.
#[derive(Debug)]
pub struct Port {
    domain: Arc<Domain>,
    core: Arc<PortCore>,
    death: Death,
    tasks: Vec<AbortHandle>,
}

/// An in-process station: frames without the length prefix. Dropping the receiver unplugs it, as
/// does dropping the port; frames sent before that are still delivered.
#[derive(Debug)]
pub struct Station {
    pub to_switch: mpsc::Sender<Bytes>,
    pub from_switch: mpsc::Receiver<Bytes>,
    pub port: Port,
}

impl Switch {
    pub fn new() -> Switch {
        Switch::default()
    }

    /// The network of that name, made at first mention.
    pub fn network(&self, name: &str) -> Network {
        let new = || Network(Arc::new(Domain::new(name, self.0.seed.clone())));
        self.lock().entry(name.to_owned()).or_insert_with(new).clone()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Network>> {
        self.0.by_name.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Network {
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Serves one QEMU NIC over `socket`. `name` is `NODE/NETWORK` in every report.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn plug(&self, name: &str, socket: UnixStream) -> Port {
        let (from, to) = socket.into_split();
        let (core, death) = PortCore::socket(name, self.0.lanes(name), to);
        self.0.add(&core);
        let view = View::new(self.0.clone());
        let tasks = vec![
            tokio::spawn(serve::read_socket(view, core.clone(), from)).abort_handle(),
            tokio::spawn(serve::write_socket(self.0.clone(), core.clone())).abort_handle(),
        ];
        Port { domain: self.0.clone(), core, death, tasks }
    }

    /// A port for something in our own process.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn station(&self, name: &str) -> Station {
        let (to_switch, from) = mpsc::channel(STATION_DEPTH);
        let (to, from_switch) = mpsc::channel(STATION_DEPTH);
        let (core, death) = PortCore::station(name, self.0.lanes(name), to.clone());
        self.0.add(&core);
        let view = View::new(self.0.clone());
        // Not aborted with the port: it ends by itself once what was sent is delivered.
        tokio::spawn(serve::read_station(view, core.clone(), from, to, death.clone()));
        let port = Port { domain: self.0.clone(), core, death, tasks: Vec::new() };
        Station { to_switch, from_switch, port }
    }

    /// Copies of the frames for which `wanted` is true, from now until the receiver is dropped.
    /// A slow reader loses copies (counted), never slows the network. `wanted` sees every frame
    /// that enters the network (behind the faults on its sender), without the length prefix, and
    /// must be quick.
    pub fn tap(
        &self,
        wanted: impl Fn(&[u8]) -> bool + Send + Sync + 'static,
    ) -> mpsc::Receiver<Bytes> {
        let (to, copies) = mpsc::channel(TAP_DEPTH);
        self.0.add_tap(Tap { wanted: Box::new(wanted), to });
        copies
    }

    /// Copies that all taps together lost because their readers were slow.
    pub fn lost_copies(&self) -> u64 {
        self.0.lost_copies.load(Ordering::Relaxed)
    }
}

impl Port {
    pub fn name(&self) -> &str {
        &self.core.name
    }

    /// Cuts or heals the link: while cut, frames in both directions are dropped and counted.
    pub fn set_link(&self, up: bool) {
        self.core.set_link(up);
    }

    pub fn counters(&self) -> Counters {
        self.core.counters()
    }

    /// Tells when the port was unplugged (its peer closed, or sent what is no frame) and why.
    pub fn death(&self) -> Death {
        self.death.clone()
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        serve::unplug(&self.domain, &self.core, "its port was dropped");
        for task in &self.tasks {
            task.abort();
        }
    }
}
