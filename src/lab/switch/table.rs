//! Who is plugged where. Readers keep a snapshot of the table and look only at a version number
//! before each run of frames: no lock is taken on the way of a frame unless something changed.

use super::capture::Spool;
use super::impairment::{Direction, Impairment};
use super::lane::{Lane, Lanes};
use super::port::PortCore;
use crate::lab::mac::Mac;
use bytes::Bytes;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::mpsc;

/// Learned addresses of one network. A network that shows more has them all forgotten and
/// learns anew: flooding is always right, only slower.
const MOST_ADDRESSES: usize = 4096;

/// One broadcast domain.
#[derive(Debug)]
pub(super) struct Domain {
    pub name: String,
    /// Of the fates; the same for all networks of a switch.
    pub seed: Arc<AtomicU64>,
    table: Mutex<Arc<Table>>,
    version: AtomicU64,
    registry: Mutex<Registry>,
    /// Copies that taps lost because their readers were slow.
    pub lost_copies: AtomicU64,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Table {
    pub ports: Vec<Arc<PortCore>>,
    pub learned: HashMap<Mac, Arc<PortCore>>,
    pub taps: Vec<Arc<Tap>>,
    pub split: Split,
}

/// Which ports hear each other.
#[derive(Clone, Debug, Default)]
pub(super) enum Split {
    #[default]
    Whole,
    /// Nobody hears anybody.
    Cut,
    /// The group of each port by its name. Those not named are a group of their own.
    Groups(Arc<HashMap<String, usize>>),
}

impl Split {
    pub fn is_whole(&self) -> bool {
        matches!(self, Split::Whole)
    }
    pub fn joins(&self, one: &str, other: &str) -> bool {
        match self {
            Split::Whole => true,
            Split::Cut => false,
            Split::Groups(groups) => groups.get(one) == groups.get(other),
        }
    }
}

/// What is kept by a port's name, whether it is plugged or not: QEMU may connect anew.
#[derive(Debug, Default)]
pub(super) struct Registry {
    /// Every port that ever was plugged.
    pub lanes: BTreeMap<String, Lanes>,
    /// For ports that come later, per direction.
    pub everywhere: [Option<Impairment>; 2],
    pub captures: Vec<Wanted>,
}

/// A capture, of one port or of all.
#[derive(Debug)]
pub(super) struct Wanted {
    pub port: Option<String>,
    pub spool: Arc<Spool>,
}

impl Wanted {
    pub fn wants(&self, port: &str) -> bool {
        self.port.as_deref().is_none_or(|name| name == port)
    }
}

/// Decides which frames a tap wants.
type Filter = dyn Fn(&[u8]) -> bool + Send + Sync;

pub(super) struct Tap {
    pub wanted: Box<Filter>,
    pub to: mpsc::Sender<Bytes>,
}

impl fmt::Debug for Tap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tap").finish_non_exhaustive()
    }
}

impl Domain {
    pub fn new(name: &str, seed: Arc<AtomicU64>) -> Domain {
        Domain {
            name: name.into(),
            seed,
            table: Mutex::default(),
            version: AtomicU64::new(0),
            registry: Mutex::default(),
            lost_copies: AtomicU64::new(0),
        }
    }

    /// The lanes of the port of that name, made at its first plug.
    pub fn lanes(&self, port: &str) -> Lanes {
        let mut registry = self.registry();
        if let Some(lanes) = registry.lanes.get(port) {
            return lanes.clone();
        }
        let lanes = Direction::BOTH.map(|way| Arc::new(Lane::new(way)));
        for (lane, fault) in lanes.iter().zip(registry.everywhere) {
            lane.set(fault, self.seed.load(Ordering::Relaxed), port);
        }
        registry.lanes.insert(port.to_owned(), lanes.clone());
        lanes
    }

    pub fn add(&self, port: &Arc<PortCore>) {
        // Held until the port is in the table: a fault or a capture set meanwhile finds it.
        let registry = self.registry();
        for capture in registry.captures.iter().filter(|c| c.wants(&port.name)) {
            port.capture(&capture.spool);
        }
        port.look_at_lanes();
        self.change(|t| t.ports.push(port.clone()));
    }

    /// Takes the port out, and with it what was learned of it.
    pub fn remove(&self, port: &Arc<PortCore>) {
        self.change(|t| {
            t.ports.retain(|p| !Arc::ptr_eq(p, port));
            t.learned.retain(|_, p| !Arc::ptr_eq(p, port));
        });
    }

    /// The ports plugged now.
    pub fn plugged(&self) -> Vec<Arc<PortCore>> {
        self.table().ports.clone()
    }

    pub fn learn(&self, mac: Mac, port: &Arc<PortCore>) {
        self.change(|t| {
            // A frame may still be under way from a port that was just removed.
            if !t.ports.iter().any(|p| Arc::ptr_eq(p, port)) {
                return;
            }
            if t.learned.len() >= MOST_ADDRESSES && !t.learned.contains_key(&mac) {
                t.learned.clear();
            }
            t.learned.insert(mac, port.clone());
        });
    }

    pub fn add_tap(&self, tap: Tap) {
        self.change(|t| t.taps.push(Arc::new(tap)));
    }

    pub fn remove_dead_taps(&self) {
        self.change(|t| t.taps.retain(|tap| !tap.to.is_closed()));
    }

    pub fn set_split(&self, split: Split) {
        self.change(|t| t.split = split);
    }

    fn change(&self, edit: impl FnOnce(&mut Table)) {
        let mut table = self.table();
        edit(Arc::make_mut(&mut table));
        self.version.fetch_add(1, Ordering::Release);
    }

    fn table(&self) -> MutexGuard<'_, Arc<Table>> {
        self.table.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Taken before the table, never after.
    pub fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// One reader's snapshot of the table.
#[derive(Debug)]
pub(super) struct View {
    pub domain: Arc<Domain>,
    table: Arc<Table>,
    version: u64,
}

impl View {
    pub fn new(domain: Arc<Domain>) -> View {
        let version = domain.version.load(Ordering::Acquire);
        let table = domain.table().clone();
        View { domain, table, version }
    }

    /// The table as it is now: one atomic load, unless it changed.
    pub fn table(&mut self) -> &Arc<Table> {
        let version = self.domain.version.load(Ordering::Acquire);
        if version != self.version {
            self.table = self.domain.table().clone();
            self.version = version;
        }
        &self.table
    }
}
