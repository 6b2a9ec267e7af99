//! Memory and processors reserved across processes, so that labs wait their turn instead of
//! thrashing.
//!
//! Every lab has a ticket, a file in one folder, from its asking to its end: held by a lock, so
//! that it dies with its owner. Tickets are named by the time of their making; whoever asked first
//! is served first. All looking and changing happens under the folder's own lock.
//!
//! What a lab has reserved and its machines have not touched yet is still in the kernel's count of
//! what is available: it is taken off. What they have touched is not counted twice.

use super::{FOR_THE_HOST, PER_MACHINE};
use crate::error::{Context, Error, FailureCause, Kind, Result};
use crate::host::Memory;
use crate::lab::spec::{Bytes, LabSpec};
use crate::lockfile::{Hold, LockFile};
use crate::wait::{Death, Patience, Poll};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder};
use std::io::{self, Seek, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

/// So many guest processors may run on each of the host's: a lab's nodes mostly wait for one
/// another. A lab that is alone may have any number.
const GUESTS_PER_CPU: usize = 2;

/// Between two looks of one who waits.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What a lab takes of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Want {
    pub lab: String,
    /// Bytes, with what QEMU itself needs.
    pub memory: u64,
    /// Of all nodes together.
    pub cpus: u32,
}

impl Want {
    pub fn of(spec: &LabSpec) -> Want {
        let cpus = spec.nodes.iter().map(|n| n.cpus).sum();
        Want::machines(&spec.name, spec.nodes.len() as u64, spec.memory(), cpus)
    }

    /// So many machines; `memory` in bytes is what all their guests see together.
    pub fn machines(lab: &str, count: u64, memory: u64, cpus: u32) -> Want {
        Want { lab: lab.to_owned(), memory: memory + count * PER_MACHINE, cpus }
    }
}

/// What one who does not fit now does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Is refused.
    Now,
    /// Waits, at most so long on the reference machine.
    Within(Duration),
}

/// The memory and processors that a lab may use as long as this lives.
#[derive(Debug)]
pub struct Reservation {
    ticket: Option<Ticket>,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            ticket.remove();
        }
    }
}

/// The reservations of this user on this host.
#[derive(Clone, Debug)]
pub struct Ledger {
    folder: PathBuf,
    /// `/`, or a test's.
    root: PathBuf,
    cpus: usize,
}

/// What is written in a ticket.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Entry {
    #[serde(flatten)]
    want: Want,
    pid: u32,
    /// Seconds since 1970.
    since: u64,
    granted: bool,
}

#[derive(Debug)]
struct Ticket {
    lock: LockFile,
    name: String,
    entry: Entry,
}

enum Answer {
    Granted,
    /// Why not yet.
    Wait(String),
    /// Not even alone.
    Never(Error),
}

impl Ledger {
    /// The reservations kept in `folder` (made 0700 where missing).
    pub fn open(folder: impl Into<PathBuf>) -> Result<Ledger> {
        let cpus = std::thread::available_parallelism().map_or(1, |n| n.get());
        Ledger::of(folder.into(), Path::new("/"), cpus)
    }

    fn of(folder: PathBuf, root: &Path, cpus: usize) -> Result<Ledger> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .map_err(|e| Error::host("cannot make the folder").at(&folder, None).because(e))?;
        Ok(Ledger { folder, root: root.to_owned(), cpus })
    }

    /// Bytes that the machines of all labs with a reservation hold at the moment. With what is
    /// available, this is what a lab could have at most.
    pub fn in_use(&self) -> Result<u64> {
        let _lock = self.lock()?;
        let live = self.live(None).doing(Kind::Host, || self.cannot())?;
        Ok(used(&self.root, &pids(&live)).values().sum())
    }

    /// Reserves what `want` says, after all that asked before. Says once for whom it waits.
    pub async fn reserve(
        &self,
        want: &Want,
        turn: Turn,
        patience: &Patience,
    ) -> Result<Reservation> {
        // Removed when this future is dropped while it waits.
        let mut waiting = Reservation { ticket: Some(self.queue(want)?) };
        let ticket = waiting.ticket.as_mut().expect("just put there");
        let why = match self.ask(ticket)? {
            Answer::Granted => return Ok(waiting),
            Answer::Never(e) => return Err(e),
            Answer::Wait(why) => why,
        };
        let Turn::Within(limit) = turn else {
            return Err(Error::host(format!("lab {} must wait: {why}", want.lab))
                .hint("let it wait (without --no-wait), or end the other lab"));
        };
        patience.events.info(format!("lab {} waits its turn: {why}", want.lab));
        let what = format!("room for lab {}", want.lab);
        let ticket = std::sync::Mutex::new(ticket);
        patience
            .until(&what, limit, LOOK_EVERY, &Death::never(), || async {
                let mut ticket = ticket.lock().unwrap_or_else(|p| p.into_inner());
                match self.ask(&mut ticket) {
                    Ok(Answer::Granted) => Poll::Ready(()),
                    Ok(Answer::Wait(why)) => Poll::NotYet(why),
                    Ok(Answer::Never(e)) | Err(e) => Poll::Failed(e),
                }
            })
            .await
            .map_err(|e| match e.cause() {
                // Nothing of a lab has failed.
                Some(FailureCause::TimedOut) => Error::host(e.message().to_owned())
                    .evidence(e.evidence_lines().iter().cloned())
                    .hint("end the other lab, or wait longer"),
                _ => e,
            })?;
        Ok(waiting)
    }

    fn lock(&self) -> Result<LockFile> {
        let path = self.folder.join(".lock");
        LockFile::moment(&path)
            .map_err(|e| Error::host("cannot lock the reservations").at(&path, None).because(e))
    }

    fn cannot(&self) -> String {
        format!("the reservations in {} cannot be kept", self.folder.display())
    }

    fn queue(&self, want: &Want) -> Result<Ticket> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let _lock = self.lock()?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let (pid, count) = (std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let name = format!("{:020}-{pid}-{count:06}", now.as_nanos());
        let entry = Entry { want: want.clone(), pid, since: now.as_secs(), granted: false };
        let make = || -> io::Result<Ticket> {
            let lock = LockFile::try_take(&self.folder.join(&name), Hold::Exclusive)?;
            let lock = lock.ok_or_else(|| io::Error::other("a new ticket is held already"))?;
            let mut ticket = Ticket { lock, name: name.clone(), entry };
            ticket.write()?;
            Ok(ticket)
        };
        make().doing(Kind::Host, || self.cannot())
    }

    fn ask(&self, ticket: &mut Ticket) -> Result<Answer> {
        let _lock = self.lock()?;
        let doing = || self.cannot();
        let live = self.live(Some(&ticket.name)).doing(Kind::Host, doing)?;
        let answer = self.judge(&ticket.name, &ticket.entry.want, &live)?;
        if let Answer::Granted = answer {
            ticket.entry.granted = true;
            ticket.write().doing(Kind::Host, doing)?;
        }
        Ok(answer)
    }

    fn judge(&self, name: &str, want: &Want, live: &BTreeMap<String, Entry>) -> Result<Answer> {
        let granted: Vec<&Entry> = live.values().filter(|e| e.granted).collect();
        let used = used(&self.root, &granted.iter().map(|e| e.pid).collect());
        let available = Memory::look(&self.root)?.available;
        let needed = want.memory + FOR_THE_HOST;
        let at_most = available + used.values().sum::<u64>();
        if needed > at_most {
            return Ok(Answer::Never(
                Error::host(format!(
                    "lab {} needs {} of memory, and this host has {} for labs",
                    want.lab,
                    Bytes(needed),
                    Bytes(at_most)
                ))
                .hint("stop other programs, or lower `memory` in a copy of the lab file"),
            ));
        }
        if let Some(first) = live.range(..name.to_owned()).map(|(_, e)| e).find(|e| !e.granted) {
            return Ok(Answer::Wait(format!("{} asked before", first.who())));
        }
        let mut reserved: BTreeMap<u32, u64> = BTreeMap::new();
        granted.iter().for_each(|e| *reserved.entry(e.pid).or_default() += e.want.memory);
        let untouched: u64 = reserved
            .iter()
            .map(|(pid, bytes)| bytes.saturating_sub(used.get(pid).copied().unwrap_or(0)))
            .sum();
        let holders = || granted.iter().map(|e| e.who()).collect::<Vec<_>>().join(", ");
        let free = available.saturating_sub(untouched);
        if needed > free {
            return Ok(Answer::Wait(format!(
                "it needs {} of memory, {} are free beside {}",
                Bytes(needed),
                Bytes(free),
                holders()
            )));
        }
        let busy: u32 = granted.iter().map(|e| e.want.cpus).sum();
        let limit = self.cpus * GUESTS_PER_CPU;
        if !granted.is_empty() && (busy + want.cpus) as usize > limit {
            return Ok(Answer::Wait(format!(
                "it has {} processors, and {busy} of {limit} are taken by {}",
                want.cpus,
                holders()
            )));
        }
        Ok(Answer::Granted)
    }

    /// All tickets but `own` whose owners live, by their names; those of the dead are removed.
    fn live(&self, own: Option<&str>) -> io::Result<BTreeMap<String, Entry>> {
        let mut live = BTreeMap::new();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with('.') || Some(name.as_str()) == own {
                continue;
            }
            match LockFile::try_take_existing(&entry.path(), Hold::Exclusive) {
                Ok(Some(dead)) => dead.remove()?,
                Ok(None) => {
                    // Written under the lock that we hold: what does not parse is not ours.
                    if let Ok(entry) = serde_json::from_slice(&fs::read(entry.path())?) {
                        live.insert(name, entry);
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        Ok(live)
    }
}

impl Entry {
    /// `lab two-node (process 4242, for 3 min)`
    fn who(&self) -> String {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let minutes = now.as_secs().saturating_sub(self.since) / 60;
        format!("lab {} (process {}, for {minutes} min)", self.want.lab, self.pid)
    }
}

impl Ticket {
    fn write(&mut self) -> io::Result<()> {
        let text = serde_json::to_vec(&self.entry)?;
        let file = self.lock.file();
        file.set_len(0)?;
        file.rewind()?;
        file.write_all(&text)
    }

    fn remove(self) {
        // What cannot be removed is no longer held: the next one who looks removes it.
        let _ = self.lock.remove();
    }
}

fn pids(live: &BTreeMap<String, Entry>) -> BTreeSet<u32> {
    live.values().filter(|e| e.granted).map(|e| e.pid).collect()
}

/// Bytes that the descendants of each of `owners` hold and that nobody could take from them.
fn used(root: &Path, owners: &BTreeSet<u32>) -> BTreeMap<u32, u64> {
    let mut parents: BTreeMap<u32, u32> = BTreeMap::new();
    if !owners.is_empty() {
        for entry in fs::read_dir(root.join("proc")).into_iter().flatten().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else {
                continue;
            };
            if let Some(parent) = field(&entry.path().join("status"), "PPid:") {
                parents.insert(pid, parent as u32);
            }
        }
    }
    let mut used = BTreeMap::new();
    for &pid in parents.keys() {
        let mut up = pid;
        // A process that ended while we looked may cut a line of descent; none is a circle.
        while let Some(&parent) = parents.get(&up).filter(|p| **p != up) {
            if owners.contains(&parent) {
                let status = root.join("proc").join(pid.to_string()).join("status");
                let held = ["RssAnon:", "RssShmem:"].iter().filter_map(|f| field(&status, f));
                *used.entry(parent).or_default() += held.sum::<u64>() * 1024;
                break;
            }
            up = parent;
        }
    }
    used
}

/// A number of a /proc/PID/status; kB where it is one of memory.
fn field(status: &Path, name: &str) -> Option<u64> {
    let text = fs::read_to_string(status).ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix(name))?;
    line.trim().trim_end_matches("kB").trim().parse().ok()
}

#[cfg(test)]
mod tests;
