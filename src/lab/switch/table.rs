//! Who is plugged where. Readers keep a snapshot of the table and look only at a version number
//! before each frame: no lock is taken on the way of a frame unless something changed.

use super::port::PortCore;
use crate::lab::wire::Mac;
use bytes::Bytes;
use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use tokio::sync::mpsc;

/// Learned addresses of one network. A network that shows more has them all forgotten and
/// learns anew: flooding is always right, only slower.
const MOST_ADDRESSES: usize = 4096;

/// One broadcast domain.
#[derive(Debug)]
pub(super) struct Domain {
    pub name: String,
    table: Mutex<Arc<Table>>,
    version: AtomicU64,
    /// Copies that taps lost because their readers were slow.
    pub lost_copies: AtomicU64,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Table {
    pub ports: Vec<Arc<PortCore>>,
    pub learned: HashMap<Mac, Arc<PortCore>>,
    pub taps: Vec<Arc<Tap>>,
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
    pub fn new(name: &str) -> Domain {
        Domain {
            name: name.into(),
            table: Mutex::default(),
            version: AtomicU64::new(0),
            lost_copies: AtomicU64::new(0),
        }
    }

    pub fn add(&self, port: &Arc<PortCore>) {
        self.change(|t| t.ports.push(port.clone()));
    }

    /// Takes the port out, and with it what was learned of it.
    pub fn remove(&self, port: &Arc<PortCore>) {
        self.change(|t| {
            t.ports.retain(|p| !Arc::ptr_eq(p, port));
            t.learned.retain(|_, p| !Arc::ptr_eq(p, port));
        });
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

    pub fn waiting(&self) -> usize {
        self.lock().ports.iter().filter_map(|p| p.queue()).map(|q| q.waiting()).sum()
    }

    fn change(&self, edit: impl FnOnce(&mut Table)) {
        let mut table = self.lock();
        edit(Arc::make_mut(&mut table));
        self.version.fetch_add(1, Ordering::Release);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Arc<Table>> {
        self.table.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
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
        let table = domain.lock().clone();
        View { domain, table, version }
    }

    /// The table as it is now: one atomic load, unless it changed.
    pub fn table(&mut self) -> &Arc<Table> {
        let version = self.domain.version.load(Ordering::Acquire);
        if version != self.version {
            self.table = self.domain.lock().clone();
            self.version = version;
        }
        &self.table
    }
}
