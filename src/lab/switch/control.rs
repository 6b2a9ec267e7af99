//! What tests and people do to a network: faults, cuts, partitions, captures.

use super::capture::Capture;
use super::impairment::{Direction, Impairment};
use super::table::{Domain, Split, Wanted};
use super::{Counters, Network, Switch};
use crate::error::{Error, Result};
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

impl Switch {
    /// A switch whose faults draw their fates from `seed`.
    pub fn seeded(seed: u64) -> Switch {
        let switch = Switch::default();
        switch.set_seed(seed);
        switch
    }

    /// Faults set from now on draw their fates from `seed` (0 unless set): the fate of frame `n`
    /// since the fault was set follows from the seed, the port's name, the direction and `n`.
    pub fn set_seed(&self, seed: u64) {
        self.0.seed.store(seed, Ordering::Relaxed);
    }

    pub fn seed(&self) -> u64 {
        self.0.seed.load(Ordering::Relaxed)
    }

    /// All networks, by name.
    pub fn networks(&self) -> Vec<Network> {
        self.lock().values().cloned().collect()
    }

    /// The network of that name, if there is one; unlike [`Switch::network`] makes none.
    pub fn find(&self, name: &str) -> Result<Network> {
        let networks = self.lock();
        networks.get(name).cloned().ok_or_else(|| unknown("network", name, networks.keys()))
    }

    /// The network of the port `NODE/NETWORK`, wherever it is.
    pub fn network_of(&self, port: &str) -> Result<Network> {
        let networks = self.networks();
        let found = networks.iter().find(|n| n.ports().iter().any(|name| name == port));
        found.cloned().ok_or_else(|| {
            unknown("port", port, networks.iter().flat_map(Network::ports).collect::<Vec<_>>())
        })
    }

    /// Frames still under way, on any network; 0 when all are delivered.
    pub fn waiting(&self) -> usize {
        self.networks().iter().map(Network::waiting).sum()
    }
}

impl Network {
    /// The names of all ports that ever were plugged: a machine that is down keeps its name.
    pub fn ports(&self) -> Vec<String> {
        self.0.registry().lanes.keys().cloned().collect()
    }

    /// What a plugged port counted; None for one that is not plugged now.
    pub fn counters(&self, port: &str) -> Result<Option<Counters>> {
        let name = self.0.resolve(port)?;
        Ok(self.0.plugged().iter().find(|p| p.name == name).map(|p| p.counters()))
    }

    /// Sets, changes or (with None) ends the fault of a port in one direction. It stays with the
    /// port's name when its machine connects anew. Frames count from 0 again; those that wait
    /// already keep their times, and nothing overtakes them.
    ///
    /// `port` is `NODE/NETWORK`, or `NODE` alone. An error names the ports that there are.
    pub fn set_fault(
        &self,
        port: &str,
        direction: Direction,
        fault: Option<Impairment>,
    ) -> Result<()> {
        let name = self.0.resolve(port)?;
        self.0.set_fault(|known| known == name, direction, fault);
        Ok(())
    }

    /// The same for all ports of the network, and for those that come later.
    pub fn set_fault_everywhere(&self, direction: Direction, fault: Option<Impairment>) {
        self.0.registry().everywhere[direction as usize] = fault;
        self.0.set_fault(|_| true, direction, fault);
    }

    /// The faults that are set.
    pub fn faults(&self) -> Vec<(String, Direction, Impairment)> {
        let registry = self.0.registry();
        let lanes = registry.lanes.iter().flat_map(|(name, lanes)| {
            Direction::BOTH.into_iter().zip(lanes).map(move |(way, lane)| (name, way, lane))
        });
        lanes.filter_map(|(name, way, lane)| Some((name.clone(), way, lane.fault()?))).collect()
    }

    /// From now on frames pass only between ports of one group; ports not named are a group of
    /// their own. Counted as [`Counters::separated`] where they came from. Replaces a cut or an
    /// earlier partition.
    pub fn partition<G: AsRef<[S]>, S: AsRef<str>>(&self, groups: &[G]) -> Result<()> {
        let mut of = HashMap::new();
        for (group, ports) in groups.iter().enumerate() {
            for port in ports.as_ref() {
                let name = self.0.resolve(port.as_ref())?;
                if of.get(&name).is_some_and(|other| *other != group) {
                    return Err(Error::input(format!("{name} is in two groups of a partition"))
                        .hint("each port in one group; those left out are one together"));
                }
                of.insert(name, group);
            }
        }
        self.0.set_split(Split::Groups(Arc::new(of)));
        Ok(())
    }

    /// From now on no frame passes between any ports. Their machines are not told.
    pub fn cut(&self) {
        self.0.set_split(Split::Cut);
    }

    /// Ends a cut or a partition. Faults stay, as do links that were cut one by one.
    pub fn heal(&self) {
        self.0.set_split(Split::Whole);
    }

    /// Writes the frames of one port, or of all, to `file` as pcapng until the capture is dropped
    /// or finished, at most `most` bytes. Where they are seen: see [`Capture`]'s module. A slow
    /// disk loses frames (counted), never slows the network.
    pub fn capture(&self, port: Option<&str>, file: &Path, most: Option<u64>) -> Result<Capture> {
        let port = port.map(|name| self.0.resolve(name)).transpose()?;
        Ok(self.begin(port, Capture::start(self.0.clone(), file, most)?))
    }

    /// The same into anything that can be written to, called `name` in errors.
    pub fn capture_into(
        &self,
        port: Option<&str>,
        to: impl std::io::Write + Send + 'static,
        name: &Path,
        most: Option<u64>,
    ) -> Result<Capture> {
        let port = port.map(|name| self.0.resolve(name)).transpose()?;
        Ok(self.begin(port, Capture::into(self.0.clone(), to, name, most)?))
    }

    fn begin(&self, port: Option<String>, capture: Capture) -> Capture {
        self.0.begin_capture(Wanted { port, spool: capture.spool().clone() });
        capture
    }

    /// Frames still under way; 0 when all are delivered.
    pub fn waiting(&self) -> usize {
        self.0.plugged().iter().map(|port| port.waiting()).sum()
    }
}

impl Domain {
    /// The full name of a port that is named `NODE/NETWORK` or `NODE`.
    fn resolve(&self, port: &str) -> Result<String> {
        let registry = self.registry();
        let full = format!("{port}/{}", self.name);
        // Our own leg is called `outside/NETWORK`, so `outside` alone is it.
        let found = [port, &full].into_iter().find(|name| registry.lanes.contains_key(*name));
        found.map(str::to_owned).ok_or_else(|| {
            let error = unknown("port", port, registry.lanes.keys());
            error.while_doing(format!("network `{}`", self.name))
        })
    }

    fn set_fault(
        &self,
        of: impl Fn(&str) -> bool,
        direction: Direction,
        fault: Option<Impairment>,
    ) {
        let registry = self.registry();
        let seed = self.seed.load(Ordering::Relaxed);
        for (name, lanes) in registry.lanes.iter().filter(|(name, _)| of(name)) {
            lanes[direction as usize].set(fault, seed, name);
        }
        for port in self.plugged().iter().filter(|p| of(&p.name)) {
            port.look_at_lanes();
        }
    }

    fn begin_capture(&self, wanted: Wanted) {
        let mut registry = self.registry();
        for port in self.plugged().iter().filter(|p| wanted.wants(&p.name)) {
            port.capture(&wanted.spool);
        }
        registry.captures.push(wanted);
    }

    pub(super) fn end_capture(&self, spool: &Arc<super::capture::Spool>) {
        let mut registry = self.registry();
        registry.captures.retain(|c| !Arc::ptr_eq(&c.spool, spool));
        for port in self.plugged() {
            port.end_capture(spool);
        }
    }
}

fn unknown(what: &str, name: &str, all: impl IntoIterator<Item = impl AsRef<str>>) -> Error {
    let all: Vec<_> = all.into_iter().map(|n| format!("`{}`", n.as_ref())).collect();
    let hint = match all.as_slice() {
        [] => format!("there is no {what} yet"),
        all => format!("there is {}", all.join(", ")),
    };
    Error::input(format!("there is no {what} `{name}`")).hint(hint)
}
