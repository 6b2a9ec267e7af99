//! Where a lab of a name has its private files, who owns it, and what is left when an owner was
//! killed.
//!
//! `ROOT/NAME.lock` is locked by the owner as long as it lives; the kernel gives the lock back
//! however it ends. The file is never removed: a lock on a file that is gone would exclude nobody.
//! `ROOT/NAME/` (0700) holds the control socket, the keys, the owner's log and `state.json`.

use super::protocol::Phase;
use crate::error::{Context, Error, FailureCause, Kind, Result};
use crate::wait::{Death, Patience, Poll};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// In the folder of the runs.
const LABS: &str = "labs";
const STATE: &str = "state.json";
/// Who looks whether a lock is held shares it for a moment, and who sweeps holds it: whoever wants
/// it alone just then tries again for so long.
const LOOKED_AT: Duration = Duration::from_secs(1);
const TRY_EVERY: Duration = Duration::from_millis(10);

/// To look whether somebody has the lock; others may look at the same time.
const LOOK: FlockOperation = FlockOperation::NonBlockingLockShared;
const ALONE: FlockOperation = FlockOperation::NonBlockingLockExclusive;

/// The place of one lab; it need not exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    name: String,
    root: PathBuf,
}

/// What `state.json` says: all that is known when there is no owner to be asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// The owner's.
    pub pid: u32,
    /// Seconds since 1970.
    pub started: u64,
    /// The lab file, or the checkpoint that was restored.
    pub from: String,
    pub phase: Phase,
    /// Why it ended, once it has.
    pub ended: Option<String>,
}

/// What a look at a place found.
#[derive(Debug, PartialEq)]
pub enum Found {
    /// No lab of that name.
    Nothing,
    /// An owner lives. The state may not be written yet.
    Owned { pid: Option<u32>, state: Option<State> },
    /// It ended and was not taken down: what is left tells why.
    Ended(State),
}

impl Place {
    /// `runs` is where runs have their folders. The name must be one for a lab: small letters,
    /// digits and hyphens, at most 40, a letter first.
    pub fn new(runs: &Path, name: &str) -> Result<Place> {
        let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
        let framed = name.starts_with(|c: char| c.is_ascii_lowercase()) && !name.ends_with('-');
        if !(name.bytes().all(plain) && framed && name.len() <= 40) {
            return Err(Error::input(format!("`{name}` is no name for a lab"))
                .hint("use at most 40 small letters, digits and hyphens, a letter first"));
        }
        Ok(Place { name: name.to_owned(), root: runs.join(LABS) })
    }

    pub fn name(&self) -> &str {
        &self.name
    }
    /// Everything private to the lab.
    pub fn dir(&self) -> PathBuf {
        self.root.join(&self.name)
    }
    /// What the owner printed: its events and errors.
    pub fn log(&self) -> PathBuf {
        self.dir().join("owner.log")
    }
    /// For `ssh -F`.
    pub fn ssh_config(&self) -> PathBuf {
        self.dir().join("ssh_config")
    }
    fn lock(&self) -> PathBuf {
        self.root.join(format!("{}.lock", self.name))
    }

    /// All labs that are there in `runs`, by name.
    pub fn all(runs: &Path) -> Vec<Place> {
        let dirs = std::fs::read_dir(runs.join(LABS)).into_iter().flatten().flatten();
        let dirs = dirs.filter(|e| e.file_type().is_ok_and(|t| t.is_dir()));
        let mut names: Vec<String> =
            dirs.filter_map(|e| e.file_name().to_str().map(str::to_owned)).collect();
        names.sort();
        names.iter().filter_map(|name| Place::new(runs, name).ok()).collect()
    }

    /// Makes the folder, without owning it: the log of an owner that is about to start is in it.
    pub fn make(&self) -> Result<()> {
        let doing = || format!("cannot make {}", self.dir().display());
        DirBuilder::new().recursive(true).mode(0o700).create(self.dir()).doing(Kind::Host, doing)
    }

    /// Who owns the place, and what it says of itself.
    pub fn look(&self) -> Result<Found> {
        match self.try_lock(false, LOOK)? {
            None => Ok(Found::Owned { pid: self.holder(), state: self.state() }),
            Some(Some(_lock)) => match self.state() {
                Some(mut state) => {
                    if state.ended.is_none() {
                        state.ended = Some(killed(state.pid));
                        state.phase = Phase::Ended;
                    }
                    Ok(Found::Ended(state))
                }
                None => Ok(Found::Nothing),
            },
            Some(None) => Ok(Found::Nothing),
        }
    }

    /// Makes the place ours until the claim is dropped. A living owner is an error that tells its
    /// pid. What a killed owner left is removed.
    pub async fn claim(&self, from: &str, patience: &Patience) -> Result<Claim> {
        self.make()?;
        let lock = self.alone(true, patience).await?;
        let mut lock = lock.ok_or_else(|| Error::internal("a lock was not made"))?;
        let doing = || format!("cannot write {}", self.lock().display());
        lock.set_len(0).doing(Kind::Host, doing)?;
        lock.rewind().doing(Kind::Host, doing)?;
        writeln!(lock, "{}", std::process::id()).doing(Kind::Host, doing)?;
        // The folder may have been removed by a sweep between its making and the lock.
        self.make()?;
        self.clear()?;
        let started = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let state = State {
            pid: std::process::id(),
            started: started.as_secs(),
            from: from.to_owned(),
            phase: Phase::Starting,
            ended: None,
        };
        let claim = Claim { place: self.clone(), state, remove: false, _lock: lock };
        claim.write()?;
        Ok(claim)
    }

    /// The error for a lab that somebody owns already.
    pub fn taken(&self, pid: Option<u32>) -> Error {
        let owner = pid.map_or("another process".into(), |pid| format!("process {pid}"));
        let name = &self.name;
        Error::lab(format!("lab {name} is there already, owned by {owner}")).hint(format!(
            "use it (`stackproof lab status --name {name}`), end it (`stackproof lab down --name \
             {name}`), or choose another name with --name"
        ))
    }

    /// Forgets a lab that has ended. A living owner is an error.
    pub async fn remove(&self, patience: &Patience) -> Result<()> {
        match self.alone(false, patience).await? {
            None => Ok(()),
            Some(_lock) => self.remove_dir(),
        }
    }

    /// The lock for ourselves, whoever looks at it or sweeps just now; a living owner is an error.
    /// `None` where there is no file of it and none is to be made.
    async fn alone(&self, make: bool, patience: &Patience) -> Result<Option<File>> {
        let attempt = || async {
            match self.try_lock(make, ALONE) {
                Ok(Some(lock)) => Poll::Ready(lock),
                Ok(None) => Poll::NotYet("another process holds the lock".into()),
                Err(e) => Poll::Failed(e),
            }
        };
        let what = format!("the lock of lab {}", self.name);
        let lock = patience.until(&what, LOOKED_AT, TRY_EVERY, &Death::never(), attempt).await;
        lock.map_err(|e| match e.cause() {
            Some(FailureCause::TimedOut) => self.taken(self.holder()),
            _ => e,
        })
    }

    /// Whether nobody owns it and something is to be cleared.
    fn is_left_over(&self) -> Result<bool> {
        let Some(_lock) = self.try_lock(false, LOOK)? else { return Ok(false) };
        Ok(match self.state() {
            Some(state) => state.ended.is_none(),
            None => !is_young(&self.dir()),
        })
    }

    fn remove_dir(&self) -> Result<()> {
        match std::fs::remove_dir_all(self.dir()) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::host("cannot remove the lab's folder").at(self.dir(), None).because(e))
            }
            _ => Ok(()),
        }
    }

    /// Removes what only a living owner has a use for: socket and keys. Logs and state stay.
    fn clear(&self) -> Result<()> {
        let dir = self.dir();
        for name in PRIVATE {
            let path = dir.join(name);
            match std::fs::remove_file(&path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::host("cannot remove a leftover").at(path, None).because(e));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The lock, if it is free: `Some(Some(file))`. `None` where somebody holds it, `Some(None)`
    /// where there is no file yet and none is to be made.
    fn try_lock(&self, make: bool, how: FlockOperation) -> Result<Option<Option<File>>> {
        let path = self.lock();
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(make).mode(0o600);
        let file = match options.open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Some(None)),
            Err(e) => {
                return Err(Error::host("cannot open the lab's lock").at(path, None).because(e));
            }
        };
        match flock(&file, how) {
            Ok(()) => Ok(Some(Some(file))),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(e) => Err(Error::host("cannot lock the lab").at(path, None).because(e)),
        }
    }

    /// The pid in the lock's file: its holder's, or the last holder's.
    fn holder(&self) -> Option<u32> {
        let mut text = String::new();
        File::open(self.lock()).ok()?.read_to_string(&mut text).ok()?;
        text.trim().parse().ok()
    }

    fn state(&self) -> Option<State> {
        serde_json::from_slice(&std::fs::read(self.dir().join(STATE)).ok()?).ok()
    }
}

/// The control socket's name in the folder of its lab.
pub const SOCKET: &str = "control.sock";
/// The private key that logs in on every node.
pub const IDENTITY: &str = "identity";
pub const KNOWN_HOSTS: &str = "known_hosts";
const PRIVATE: [&str; 6] = [SOCKET, IDENTITY, KNOWN_HOSTS, "ssh_config", "openrc", "clouds.yaml"];

fn killed(pid: u32) -> String {
    format!("its owner, process {pid}, was killed")
}

/// The place is ours. Dropped, it stays as the record of an end: `state.json` tells why, unless it
/// was [removed](Claim::remove).
#[derive(Debug)]
pub struct Claim {
    place: Place,
    state: State,
    remove: bool,
    _lock: File,
}

impl Claim {
    pub fn place(&self) -> &Place {
        &self.place
    }
    pub fn state(&self) -> &State {
        &self.state
    }
    /// The nodes answer.
    pub fn up(&mut self) -> Result<()> {
        self.state.phase = Phase::Up;
        self.write()
    }
    /// Why it ended; the first reason is the one that explains.
    pub fn ended(&mut self, why: impl Into<String>) {
        self.state.ended.get_or_insert(why.into());
    }
    /// The end was asked for: nothing is to be told later.
    pub fn remove(&mut self) {
        self.remove = true;
    }

    fn write(&self) -> Result<()> {
        let path = self.place.dir().join(STATE);
        let write = || -> std::io::Result<()> {
            // A reader sees the old or the new one, never half of it.
            let mut file = tempfile::NamedTempFile::new_in(self.place.dir())?;
            serde_json::to_writer(&mut file, &self.state)?;
            file.persist(&path)?;
            Ok(())
        };
        write().doing(Kind::Host, || format!("cannot write {}", path.display()))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // What fails here is swept by the next command.
        if self.remove {
            let _ = self.place.remove_dir();
            return;
        }
        let _ = self.place.clear();
        self.state.phase = Phase::Ended;
        self.ended("its owner was stopped by a signal");
        let _ = self.write();
    }
}

/// Removes what killed owners left: sockets and keys; the folder too where no word was written.
/// What stays tells `lab status` how the lab ended. Returns the names of the labs.
pub fn sweep(runs: &Path) -> Result<Vec<String>> {
    let mut swept = Vec::new();
    for place in Place::all(runs) {
        // Most need nothing: only looked at, they keep nobody who looks too from the truth.
        if !place.is_left_over()? {
            continue;
        }
        let Some(lock) = place.try_lock(false, ALONE)? else { continue };
        match place.state() {
            Some(state) if state.ended.is_some() => {}
            Some(state) => {
                let remove = false;
                let Some(_lock) = lock else { continue };
                // Dropped at once: that clears, and writes the end.
                let mut claim = Claim { place: place.clone(), state, remove, _lock };
                let pid = claim.state.pid;
                claim.ended(killed(pid));
                swept.push(place.name);
            }
            None => {
                if !is_young(&place.dir()) {
                    place.remove_dir()?;
                    swept.push(place.name);
                }
            }
        }
    }
    Ok(swept)
}

/// Only ever made by a start that came to nothing, or is about to take the lock.
fn is_young(dir: &Path) -> bool {
    let modified = dir.metadata().and_then(|m| m.modified()).ok();
    modified.and_then(|m| m.elapsed().ok()).is_some_and(|age| age < YOUNG)
}

/// A start needs less than this from making its folder to writing its state.
const YOUNG: Duration = Duration::from_secs(60);
