//! Where layers are kept.
//!
//! ```text
//! STORE/layers/KEY/checkpoint/   the lab as it stood
//!                  inputs.json   what made it, by names that can be explained
//!                  layer.json    its stage and lab, when it was made and what that took
//!                  used          its time of change is the time of the last use
//! STORE/layers/.locks/KEY        one lock for every name in use
//! STORE/layers/.tmp/KEY~XXXX/    layers being made or removed
//! STORE/layers/.broken/KEY/      the last one that did not restore, for a look
//! ```
//!
//! Invariants: what has its name is whole (it is made aside and renamed); the same layer is never
//! made twice at once; one in use is never removed; files are readable by us alone, for a layer
//! holds the lab's secrets.

use super::inputs::{Inputs, Key};
use super::rungs::Rung;
use super::usage::Usage;
use crate::error::{Context, Error, Kind, Result};
use crate::lockfile::{Hold, LockFile};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime};

/// In the store.
const LAYERS: &str = "layers";
const CHECKPOINT: &str = "checkpoint";
const INPUTS: &str = "inputs.json";
const ABOUT: &str = "layer.json";
const USED: &str = "used";

/// What is written in a layer about itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct About {
    pub stage: String,
    pub rank: usize,
    /// Whether it is of the last stage.
    pub last: bool,
    pub lab: String,
    /// Seconds since 1970.
    pub created: u64,
    /// How long the checkpoint took.
    pub seconds: f64,
}

/// A layer as it was found.
#[derive(Clone, Debug)]
pub struct Layer {
    pub key: Key,
    pub folder: PathBuf,
    pub about: About,
    pub inputs: Inputs,
    pub used: SystemTime,
    pub in_use: bool,
    pub usage: Usage,
}

/// A layer that stays as long as this lives.
#[derive(Debug)]
pub struct Held {
    pub key: Key,
    folder: PathBuf,
    lock: LockFile,
}

impl Held {
    pub fn checkpoint(&self) -> PathBuf {
        self.folder.join(CHECKPOINT)
    }
}

/// The layer that the checkpoint at this path belongs to, held; `None` where it is no layer's. One
/// that has been removed is an error.
pub fn hold(checkpoint: &Path) -> Result<Option<Held>> {
    let Some((store, key)) = of_layer(checkpoint) else { return Ok(None) };
    let held = Layers::open(store)?.find(&key)?;
    let gone = || {
        Error::input(format!("the layer {key} has just been removed"))
            .at(checkpoint, None)
            .hint("`stackproof cache ls` shows those that are there")
    };
    held.ok_or_else(gone).map(Some)
}

/// The store and the key of `STORE/layers/KEY/checkpoint`.
fn of_layer(checkpoint: &Path) -> Option<(&Path, Key)> {
    let folder = checkpoint.file_name().filter(|n| *n == CHECKPOINT).and(checkpoint.parent())?;
    let key = Key::parse(folder.file_name()?.to_str()?)?;
    let layers = folder.parent().filter(|l| l.file_name().is_some_and(|n| n == LAYERS))?;
    Some((layers.parent()?, key))
}

/// What came of the making of a layer.
#[derive(Debug, PartialEq, Eq)]
pub enum Made {
    New,
    /// It was there already.
    There,
    /// Another process is making it: there is nothing to be gained by waiting.
    Elsewhere,
}

/// The layers of a store.
#[derive(Clone, Debug)]
pub struct Layers {
    root: PathBuf,
}

impl Layers {
    /// The layers of the store at `store`, made where missing; what killed processes left behind
    /// is removed.
    pub fn open(store: &Path) -> Result<Layers> {
        let layers = Layers { root: store.join(LAYERS) };
        let make = || -> io::Result<()> {
            for folder in [&layers.root, &layers.locks(), &layers.tmp(), &layers.broken()] {
                DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
            }
            layers.sweep()
        };
        make().map_err(|e| layers.cannot("cannot be written").because(e))?;
        Ok(layers)
    }

    /// Removes what killed processes left half-made in the store at `store`, where it has layers.
    pub fn sweep_in(store: &Path) -> Result<()> {
        if Layers::are_in(store) { Layers::open(store).map(drop) } else { Ok(()) }
    }

    /// Whether a store has ever held layers.
    pub fn are_in(store: &Path) -> bool {
        store.join(LAYERS).is_dir()
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    fn locks(&self) -> PathBuf {
        self.root.join(".locks")
    }
    fn tmp(&self) -> PathBuf {
        self.root.join(".tmp")
    }
    fn broken(&self) -> PathBuf {
        self.root.join(".broken")
    }
    fn place(&self, key: &Key) -> PathBuf {
        self.root.join(key.as_str())
    }

    fn cannot(&self, what: &str) -> Error {
        Error::host(format!("the layers {what}")).at(&self.root, None)
    }

    /// Whoever only asks whether a layer is in use holds its lock for a moment too; under this one
    /// nobody is misled by it.
    fn moment(&self) -> io::Result<LockFile> {
        LockFile::moment(&self.root.join(".lock"))
    }

    fn lock(&self, key: &Key, hold: Hold) -> Result<Option<LockFile>> {
        let take = || -> io::Result<Option<LockFile>> {
            let _moment = self.moment()?;
            LockFile::try_take(&self.locks().join(key.as_str()), hold)
        };
        take().map_err(|e| self.cannot("cannot be locked").because(e))
    }

    fn in_use(&self, key: &Key) -> io::Result<bool> {
        let _moment = self.moment()?;
        let lock = self.locks().join(key.as_str());
        match LockFile::try_take_existing(&lock, Hold::Exclusive) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            taken => Ok(taken?.is_none()),
        }
    }

    /// Bytes free for this user where the layers are.
    pub fn free(&self) -> Result<u64> {
        crate::fsutil::free_bytes(&self.root)
            .map_err(|e| self.cannot("cannot be asked for free space").because(e))
    }

    /// Every layer, the last used first. One that cannot say what it is has no stage and is the
    /// oldest: it serves nobody and goes first.
    pub fn all(&self) -> Result<Vec<Layer>> {
        let look = || -> io::Result<Vec<Layer>> {
            let mut all = Vec::new();
            for entry in fs::read_dir(&self.root)? {
                let name = entry?.file_name();
                if let Some(key) = name.to_str().and_then(Key::parse) {
                    all.extend(self.look(key)?);
                }
            }
            all.sort_by(|a, b| b.used.cmp(&a.used).then(a.key.cmp(&b.key)));
            Ok(all)
        };
        look().map_err(|e| self.cannot("cannot be read").because(e))
    }

    /// `None` if another process has just removed it.
    fn look(&self, key: Key) -> io::Result<Option<Layer>> {
        let folder = self.place(&key);
        if !folder.exists() {
            return Ok(None);
        }
        let in_use = self.in_use(&key)?;
        let read = || -> io::Result<(About, Inputs, SystemTime)> {
            let used = fs::metadata(folder.join(USED))?.modified()?;
            Ok((read(&folder.join(ABOUT))?, read(&folder.join(INPUTS))?, used))
        };
        let unknown = || About {
            stage: "?".into(),
            rank: 0,
            last: false,
            lab: "?".into(),
            created: 0,
            seconds: 0.0,
        };
        let (about, inputs, used) =
            read().unwrap_or_else(|_| (unknown(), Inputs::default(), SystemTime::UNIX_EPOCH));
        let usage = Usage::of(&folder)?;
        Ok(Some(Layer { key, folder, about, inputs, used, in_use, usage }))
    }

    /// The layer with this key, if it is here and whole, held and marked as used.
    pub fn find(&self, key: &Key) -> Result<Option<Held>> {
        let folder = self.place(key);
        if !folder.is_dir() {
            return Ok(None);
        }
        // While another process makes or removes it, it is not here.
        let Some(lock) = self.lock(key, Hold::Shared)? else { return Ok(None) };
        if !folder.join(ABOUT).is_file() {
            return Ok(None);
        }
        mark_used(&folder).map_err(|e| self.cannot("cannot be marked as used").because(e))?;
        Ok(Some(Held { key: key.clone(), folder, lock }))
    }

    /// Makes the layer of `rung` with `make`, which makes the checkpoint as the folder that it is
    /// given and that is not there yet. What `make` leaves when it fails or is dropped is removed.
    pub async fn make<F, Fut>(&self, rung: &Rung, lab: &str, last: bool, make: F) -> Result<Made>
    where
        F: FnOnce(PathBuf) -> Fut,
        Fut: Future<Output = Result<()>>,
    {
        let Some(_lock) = self.lock(&rung.key, Hold::Exclusive)? else {
            let there = self.place(&rung.key).is_dir();
            return Ok(if there { Made::There } else { Made::Elsewhere });
        };
        let place = self.place(&rung.key);
        if place.is_dir() {
            return Ok(Made::There);
        }
        let cannot = || format!("the layer {} of {} cannot be kept", rung.stage, rung.key);
        let temp = tempfile::Builder::new()
            .prefix(&format!("{}~", rung.key.as_str()))
            .permissions(fs::Permissions::from_mode(0o700))
            .tempdir_in(self.tmp())
            .doing(Kind::Host, cannot)?;
        let start = Instant::now();

        make(temp.path().join(CHECKPOINT)).await?;

        let about = About {
            stage: rung.stage.name.to_owned(),
            rank: rung.stage.rank,
            last,
            lab: lab.to_owned(),
            created: now(),
            seconds: start.elapsed().as_secs_f64(),
        };
        let keep = || -> io::Result<()> {
            write(&temp.path().join(INPUTS), &rung.inputs)?;
            write(&temp.path().join(ABOUT), &about)?;
            mark_used(temp.path())?;
            make_private(temp.path())?;
            fs::rename(temp.path(), &place)?;
            File::open(&self.root)?.sync_all()
        };
        keep().doing(Kind::Host, cannot)?;
        // Its folder has gone to its place; there is nothing left for the guard to remove.
        let _ = temp.keep();
        Ok(Made::New)
    }

    /// Removes a layer unless somebody holds it; says whether it is gone.
    pub fn remove(&self, key: &Key) -> Result<bool> {
        let Some(lock) = self.lock(key, Hold::Exclusive)? else { return Ok(false) };
        let removed = self.take_away(key).and_then(|()| lock.remove());
        removed.map_err(|e| self.cannot("cannot be removed").because(e))?;
        Ok(true)
    }

    fn take_away(&self, key: &Key) -> io::Result<()> {
        let away = self.tmp().join(format!("{}~gone.{}", key.as_str(), std::process::id()));
        // Out of its place at once, so that nobody finds half of it.
        match fs::rename(self.place(key), &away) {
            Ok(()) => fs::remove_dir_all(&away),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// Puts a layer that did not restore aside, with the reason, so that it serves nobody and can
    /// be looked at. Only the last one is kept. Says where; `None` if others hold it too.
    pub fn put_aside(&self, held: Held, why: &str) -> Result<Option<PathBuf>> {
        let Held { key, lock, .. } = held;
        drop(lock);
        let Some(lock) = self.lock(&key, Hold::Exclusive)? else { return Ok(None) };
        let aside = self.broken().join(key.as_str());
        let put = || -> io::Result<()> {
            fs::remove_dir_all(self.broken())?;
            DirBuilder::new().mode(0o700).create(self.broken())?;
            fs::rename(self.place(&key), &aside)?;
            private_file(&aside.join("why"))?.write_all(why.as_bytes())?;
            lock.remove()
        };
        put().map_err(|e| self.cannot("cannot be put aside").because(e))?;
        Ok(Some(aside))
    }

    /// What was put aside takes so many bytes.
    pub fn broken_bytes(&self) -> u64 {
        let all = fs::read_dir(self.broken()).into_iter().flatten().flatten();
        all.map(|entry| Usage::of(&entry.path()).map_or(0, |u| u.bytes())).sum()
    }

    /// Removes what was put aside.
    pub fn remove_broken(&self) -> Result<()> {
        let remove = || -> io::Result<()> {
            for entry in fs::read_dir(self.broken())? {
                fs::remove_dir_all(entry?.path())?;
            }
            Ok(())
        };
        remove().map_err(|e| self.cannot("cannot be removed").because(e))
    }

    /// Removes half-made layers whose makers are dead.
    fn sweep(&self) -> io::Result<()> {
        let _moment = self.moment()?;
        for entry in fs::read_dir(self.tmp())? {
            let entry = entry?;
            let name = entry.file_name();
            let key = name.to_str().and_then(|n| Key::parse(n.split('~').next()?));
            let Some(key) = key else { continue };
            let lock = self.locks().join(key.as_str());
            if let Some(lock) = LockFile::try_take(&lock, Hold::Exclusive)? {
                match fs::remove_dir_all(entry.path()) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                    _ => {}
                }
                if !self.place(&key).exists() {
                    lock.remove()?;
                }
            }
        }
        Ok(())
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn private_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
}

fn mark_used(folder: &Path) -> io::Result<()> {
    private_file(&folder.join(USED))?.set_modified(SystemTime::now())
}

fn write(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let mut file = private_file(path)?;
    file.write_all(&serde_json::to_vec_pretty(value)?)?;
    file.sync_all()
}

fn read<T: DeserializeOwned>(path: &Path) -> io::Result<T> {
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

/// Takes from everybody else what they may do with a folder and everything in it.
fn make_private(path: &Path) -> io::Result<()> {
    let meta = fs::symlink_metadata(path)?;
    let mode = meta.permissions().mode();
    if meta.is_symlink() || !(meta.is_dir() || meta.is_file()) {
        return Err(io::Error::other(format!("{} is neither a file nor a folder", path.display())));
    }
    if mode & 0o077 != 0 {
        fs::set_permissions(path, fs::Permissions::from_mode(mode & 0o700))?;
    }
    if meta.is_dir() {
        for entry in fs::read_dir(path)? {
            make_private(&entry?.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
