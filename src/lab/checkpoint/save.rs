//! Making a checkpoint of a running lab.

use super::fingerprint::Fingerprint;
use super::folder::{Partial, link};
use super::manifest::{self, ImageRecord, Manifest, NodeRecord, Notes};
use super::platform::{Platform, hardware};
use crate::error::{Context, Error, FailureCause, Kind, Result};
use crate::lab::cluster::{Lab, Node, SEED};
use crate::lab::disk::{Chain, layer_name};
use crate::lab::hypervisor::Hypervisor;
use crate::lab::qemu::{Incoming, Machine, MappedMemory};
use crate::lab::spec::{Bytes, MIB};
use crate::wait::{Patience, Poll, together};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

/// Frames under way reach a machine that stands still too, as far as its socket takes them.
const DRAINS: Duration = Duration::from_millis(300);

/// Freed memory begins to leave a machine after two seconds, and goes in pieces: after so long
/// without a piece all has left. Seconds of the host: the guest's own timers count them.
const QUIET: Duration = Duration::from_secs(5);
/// A piece is at least so large, in bytes; less comes and goes always.
const PIECE: u64 = 4 * MIB;
/// Until all has left, on the reference machine.
const SETTLES: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(250);

/// Left free on the disk beside the memory of all machines.
const SPARE: u64 = 256 * MIB;

/// What becomes of the lab when its checkpoint is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// Its guests go on where they were stopped.
    GoOn,
    /// Its guests stand still: it is about to be dropped. Saves the time of letting them run.
    StandStill,
}

impl Lab {
    /// Saves the whole lab into the folder `into`, which must not exist yet: all guests stopped
    /// together, frames under way delivered, disks frozen, memory written. Only a whole checkpoint
    /// ever has that name. It holds secrets: everything in it is for us alone (0700, 0600).
    ///
    /// Guests of a lab that goes on stand still for the time that their memory takes to be
    /// written. Connections of our own to the nodes are closed: a restored node would try to go on
    /// with them. Give back before what the guests keep and do not need ([`super::SLIM`],
    /// [`Lab::settles`]). A lab with a frozen node is refused: a restore would let it go on.
    ///
    /// A checkpoint that fails lets the guests go on. One that is dropped half-way leaves no file,
    /// and guests that may stand still.
    pub async fn checkpoint(
        &mut self,
        into: &Path,
        notes: Notes,
        after: After,
        patience: &Patience,
    ) -> Result<Manifest> {
        self.none_frozen().await?;
        // The guests hear of it while the rest is prepared.
        self.hang_up();
        let platform = Platform::here(&self.hypervisor, self.accel)?;
        let partial = Partial::create(into)?;
        self.check_room(partial.path())?;
        let saved = self.save(&partial, patience).await;
        if after == After::GoOn || saved.is_err() {
            // All of them, whatever becomes of one; the first error is the one that explains.
            let runs = together(self.nodes.iter().map(|n| n.vm.run())).await;
            let runs = runs.into_iter().collect::<Result<Vec<()>>>();
            saved?;
            runs?;
        }
        // The rest is done while the guests go on.
        let sources: Vec<_> = self.nodes.iter().map(Source::of).collect();
        let login_key = self.login_key.private_pem();
        let spec = self.spec.clone();
        patience.events.info(format!("writing the checkpoint of {} to disk", spec.name));
        let rest = tokio::task::spawn_blocking(move || {
            partial.write(manifest::LOGIN_KEY, login_key.reveal().as_bytes())?;
            let nodes = sources.iter().map(|s| s.put_into(&partial)).collect::<Result<_>>()?;
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            let manifest = Manifest::new(platform, &spec, nodes, notes, now.as_secs());
            partial.finish((manifest::FILE, &manifest.text()?)).map(|()| manifest)
        });
        rest.await.map_err(|e| Error::internal("making a checkpoint panicked").because(e))?
    }

    /// What needs the guests to stand still. They do afterwards.
    async fn save(&mut self, partial: &Partial, patience: &Patience) -> Result<()> {
        let paused = together(self.nodes.iter().map(|n| n.vm.pause())).await;
        paused.into_iter().collect::<Result<Vec<()>>>()?;
        self.drain(patience).await;
        let mut folders = Vec::new();
        for node in &self.nodes {
            folders.push(partial.subdir(node.name())?);
        }
        let hypervisor = &self.hypervisor;
        let nodes = self.nodes.iter_mut().zip(folders);
        let saved = together(nodes.map(|(node, to)| save_node(node, hypervisor, to))).await;
        saved.into_iter().collect::<Result<Vec<()>>>().map(drop)
    }

    /// Waits for the frames in our queues. All senders stand still, so there is an end; what a
    /// machine's socket does not take is lost to the checkpoint, as on a wire.
    async fn drain(&self, patience: &Patience) {
        let look = || async {
            match self.switch.waiting() {
                0 => Poll::Ready(()),
                left => Poll::NotYet(format!("{left} frames")),
            }
        };
        let every = Duration::from_millis(1);
        let drained = patience.until("frames under way", DRAINS, every, &self.death(), look).await;
        if let Err(e) = drained {
            patience.events.info(format!("the checkpoint is made without some frames: {e}"));
        }
    }

    /// The error for a lab with a node that stands still.
    pub async fn none_frozen(&self) -> Result<()> {
        for node in &self.nodes {
            if node.vm.is_paused().await? {
                let name = node.name();
                return Err(Error::input(format!(
                    "{name} is frozen, and all of a checkpoint's nodes run"
                ))
                .hint(format!("let it go on first: `stackproof lab fault thaw {name}`")));
            }
        }
        Ok(())
    }

    /// Closes all connections of ours into the lab.
    pub fn hang_up(&self) {
        self.legs().for_each(crate::lab::outside::Leg::hang_up);
    }

    /// Waits until the memory that the guests have freed has left their machines, or for long
    /// enough: what stays until then is saved too, and hurts nobody.
    pub async fn settles(&self, patience: &Patience) -> Result<()> {
        let least = std::sync::Mutex::new((u64::MAX, Instant::now()));
        let look = || async {
            let now = match self.resident() {
                Ok(now) => now,
                Err(e) => return Poll::Failed(e),
            };
            let mut least = least.lock().unwrap_or_else(|p| p.into_inner());
            if now.saturating_add(PIECE) <= least.0 {
                *least = (now, Instant::now());
            }
            match least.1.elapsed() >= QUIET {
                true => Poll::Ready(()),
                false => Poll::NotYet(format!("{} are held", Bytes(now))),
            }
        };
        let what = "freed memory to leave the machines";
        match patience.until(what, SETTLES, LOOK, &self.death(), look).await {
            Err(e) if e.cause() == Some(FailureCause::TimedOut) => Ok(()),
            out => out,
        }
    }

    fn resident(&self) -> Result<u64> {
        self.nodes.iter().map(|n| n.vm.resident()).sum()
    }

    /// What a checkpoint would take now at most, in bytes: the memory that the machines hold or see.
    pub fn checkpoint_size(&self) -> Result<u64> {
        let mapped = self.nodes.iter().filter_map(mapped).map(|m| m.bytes);
        Ok(self.resident()? + mapped.sum::<u64>() + SPARE)
    }

    /// Whether memory that a guest has freed stays in its machine: what is seen of a file cannot be
    /// given back, only be written over ([`super::BLANK`]).
    pub fn keeps_what_is_freed(&self) -> bool {
        self.nodes.iter().any(|n| mapped(n).is_some())
    }

    /// Refuses before anything is stopped when the disk cannot take the memory.
    fn check_room(&self, folder: &Path) -> Result<()> {
        let needed = self.checkpoint_size()?;
        let free = crate::fsutil::free_bytes(folder)
            .doing(Kind::Host, || format!("cannot ask for the room in {}", folder.display()))?;
        if needed > free {
            let (needed, free) = (Bytes(needed), Bytes(free));
            let message = format!("the checkpoint may take {needed}, and {free} are free there");
            return Err(Error::host(message)
                .at(folder, None)
                .hint("free some space, or keep checkpoints on another disk"));
        }
        Ok(())
    }
}

fn mapped(node: &Node) -> Option<&MappedMemory> {
    match &node.kit.machine.incoming {
        Some(Incoming::Mapped(memory)) => Some(memory),
        Some(Incoming::Read) | None => None,
    }
}

async fn save_node(node: &mut Node, hypervisor: &Hypervisor, to: PathBuf) -> Result<()> {
    node.kit.disk = node.vm.freeze_disk(hypervisor, &node.kit.disk).await?;
    node.vm.save_memory(&to.join(manifest::MEMORY)).await
}

/// What is put into a checkpoint for a node beside its memory.
struct Source {
    name: String,
    chain: Chain,
    machine: Machine,
    image: crate::lab::BootImage,
    host_key: crate::secret::Secret,
}

impl Source {
    fn of(node: &Node) -> Source {
        Source {
            name: node.name().to_owned(),
            chain: node.kit.disk.clone(),
            machine: node.kit.machine.clone(),
            image: node.kit.image.clone(),
            host_key: node.kit.host_key.private_pem(),
        }
    }

    fn put_into(&self, partial: &Partial) -> Result<NodeRecord> {
        let to = partial.path().join(&self.name);
        let key = Path::new(&self.name).join(manifest::HOST_KEY);
        partial.write(&key.to_string_lossy(), self.host_key.reveal().as_bytes())?;
        link(&self.chain.dir().join(SEED), &to.join(SEED))?;
        let mut layers = Vec::new();
        for index in 0..self.chain.frozen() {
            let layer = to.join(layer_name(index));
            link(&self.chain.layer(index), &layer)?;
            // Made with the mode that qemu-img and the umask gave it.
            private(&layer)?;
            layers.push(Fingerprint::of(&layer)?);
        }
        Ok(NodeRecord {
            name: self.name.clone(),
            hardware: hardware(&self.machine),
            image: ImageRecord::of(&self.image)?,
            memory: Fingerprint::of(&to.join(manifest::MEMORY))?,
            seed: Fingerprint::of(&to.join(SEED))?,
            layers,
        })
    }
}

fn private(file: &Path) -> Result<()> {
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o600))
        .map_err(|e| Error::host("cannot keep others out of a file").at(file, None).because(e))
}
