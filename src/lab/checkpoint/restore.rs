//! A lab brought back as it was.

use super::folder::link;
use super::manifest::{self, Manifest, NodeRecord, Notes};
use super::mapped;
use super::platform::{Platform, hardware};
use crate::error::{Context, Error, FailureCause, Kind, Result};
use crate::lab::LabOptions;
use crate::lab::agent::{Agent, ClockSetting};
use crate::lab::clock::ClockAim;
use crate::lab::cluster::{Kit, Lab, Node, SEED};
use crate::lab::disk::{Chain, layer_name, read_header};
use crate::lab::keys::SshKey;
use crate::lab::qemu::Incoming;
use crate::lab::spec::{LabSpec, NodeSpec};
use crate::secret::{Redactor, Secret};
use crate::wait::{Patience, Poll, together};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Until a guest agent has set its clock, on the reference machine: a process or two in the guest,
/// whose pages may have to be read, a few times.
const CLOCK_TIMEOUT: Duration = Duration::from_secs(10);
const CLOCK_INTERVAL: Duration = Duration::from_millis(200);

/// In a machine's directory while it is restored.
const WITHOUT_PAGES: &str = "devices";

/// A checkpoint on disk whose manifest was read. Nothing is started and nothing written by looking.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    folder: PathBuf,
    manifest: Manifest,
    spec: LabSpec,
}

/// A lab that goes on where its checkpoint was made. Its clocks are still those of the checkpoint:
/// [`Lab::step_clocks`] is next, before anything is asked that looks at the time.
#[derive(Debug)]
pub struct Restored {
    pub lab: Lab,
    /// What the maker of the checkpoint noted.
    pub notes: Notes,
}

impl Checkpoint {
    /// Reads what is in `folder`.
    pub fn open(folder: &Path) -> Result<Checkpoint> {
        let manifest = Manifest::read(folder)?;
        let spec = manifest.spec()?;
        let names = |nodes: &mut dyn Iterator<Item = &String>| nodes.cloned().collect::<Vec<_>>();
        let (of_spec, of_records) = (
            names(&mut spec.nodes.iter().map(|n| &n.name)),
            names(&mut manifest.nodes.iter().map(|n| &n.name)),
        );
        if of_spec != of_records {
            let message = format!("the checkpoint has {of_records:?} of a lab with {of_spec:?}");
            let error = Error::input(message).at(folder.join(manifest::FILE), None);
            return Err(error.caused_by(FailureCause::FilesDamaged));
        }
        Ok(Checkpoint { folder: folder.to_owned(), manifest, spec })
    }

    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }
    pub fn spec(&self) -> &LabSpec {
        &self.spec
    }

    /// The memory of each of its machines.
    pub fn memories(&self) -> Vec<PathBuf> {
        let of = |n: &NodeRecord| self.folder.join(&n.name).join(manifest::MEMORY);
        self.manifest.nodes.iter().map(of).collect()
    }

    /// Says why it cannot be restored here: another QEMU, accelerator, processor or virtual
    /// hardware; files missing, cut off or changed; an image gone or changed. Milliseconds.
    pub fn check(&self, options: &LabOptions) -> Result<()> {
        let here = Platform::here(&options.hypervisor, options.accel)?;
        let at = |e: Error| match e.file() {
            Some(_) => e,
            None => e.at(self.folder.join(manifest::FILE), None),
        };
        self.manifest.platform.check(&here).map_err(at)?;
        for (spec, record) in self.spec.nodes.iter().zip(&self.manifest.nodes) {
            self.check_node(spec, record, options).map_err(at)?;
        }
        self.key(Path::new(manifest::LOGIN_KEY)).map(drop)
    }

    fn check_node(&self, spec: &NodeSpec, record: &NodeRecord, options: &LabOptions) -> Result<()> {
        let folder = self.folder.join(&record.name);
        let machine = self.spec.machine(spec, &record.image.boot(), &self.chain(record), options);
        if hardware(&machine) != record.hardware {
            let message = format!("the machine of {} is built in another way today", record.name);
            return Err(Error::input(message).blameless().hint(
                "another version of stackproof made this checkpoint: make a new one with this",
            ));
        }
        for (name, what, print) in record.files() {
            let what = format!("{what} of {} in the checkpoint", record.name);
            let checked = print.check(&what, &folder.join(name));
            checked.map_err(|e| e.hint("this checkpoint is lost: remove it and make a new one"))?;
        }
        record.image.check(&record.name)?;
        // What QEMU will follow is read here first.
        let mut below = record.image.disk.path.clone();
        for index in 0..record.layers.len() {
            let file = folder.join(layer_name(index));
            let found = read_header(&file).map_err(damaged)?.below;
            if found.as_ref() != Some(&below) {
                let message = format!("this layer should lie on {}", below.display());
                let found = found.map_or("nothing".into(), |f| f.display().to_string());
                return Err(Error::input(format!("{message}, and lies on {found}"))
                    .at(file, None)
                    .caused_by(FailureCause::FilesDamaged)
                    .hint("this is no checkpoint as it was made: remove it and make a new one"));
            }
            below = layer_name(index).into();
        }
        self.key(&Path::new(&record.name).join(manifest::HOST_KEY)).map(drop)
    }

    /// Its layers as they will lie in a directory of a run; here in the checkpoint's own.
    fn chain(&self, record: &NodeRecord) -> Chain {
        Chain::new(&self.folder.join(&record.name), record.layers.len())
    }

    fn key(&self, file: &Path) -> Result<SshKey> {
        let file = self.folder.join(file);
        let bad = |e: std::io::Error| {
            let is_gone = e.kind() == std::io::ErrorKind::NotFound;
            let error =
                Error::input("cannot read a key of the checkpoint").at(&file, None).because(e);
            if is_gone { error.caused_by(FailureCause::FilesDamaged) } else { error }
        };
        let pem = Secret::new(std::fs::read_to_string(&file).map_err(bad)?);
        SshKey::from_private_pem(&pem)
            .map_err(|e| e.at(&file, None).caused_by(FailureCause::FilesDamaged))
    }
}

/// What a file of the checkpoint says of itself is wrong; one that cannot be read may be whole.
fn damaged(e: Error) -> Error {
    match e.kind() {
        Kind::Input => e.caused_by(FailureCause::FilesDamaged),
        _ => e,
    }
}

impl Lab {
    /// Brings back the lab that was saved in the folder `from`: new machines with the old memory,
    /// disks and addresses in a run directory of their own, which needs the checkpoint no more.
    /// Restored as often as wanted, also at once. Whatever does not fit is refused before anything
    /// is started ([`Checkpoint::check`]); a failure leaves neither a process nor a file.
    pub async fn restore(
        from: &Path,
        options: &LabOptions,
        patience: &Patience,
        redactor: &Redactor,
    ) -> Result<Restored> {
        let start = Instant::now();
        let (folder, wanted) = (from.to_owned(), options.clone());
        let checked = tokio::task::spawn_blocking(move || {
            let saved = Checkpoint::open(&folder)?;
            saved.check(&wanted).map(|()| saved)
        });
        let saved = checked
            .await
            .map_err(|e| Error::internal("looking at a checkpoint panicked").because(e))??;
        let login_key = saved.key(Path::new(manifest::LOGIN_KEY))?;
        let mut lab = Lab::without_nodes(&saved.spec, login_key, options, redactor)?;
        let records = saved.spec.nodes.iter().zip(&saved.manifest.nodes);
        let restored = together(records.map(|(spec, record)| {
            lab.restore_node(&saved, spec, record, options, patience, redactor, start)
        }));
        for node in restored.await.into_iter().collect::<Result<Vec<_>>>()? {
            lab.take_in(node);
        }
        let runs = together(lab.nodes.iter().map(|n| n.vm.run())).await;
        runs.into_iter().collect::<Result<Vec<()>>>()?;
        for node in &lab.nodes {
            patience.events.node(node.name(), "restored", 2, 2);
        }
        Ok(Restored { lab, notes: saved.manifest.notes })
    }

    /// Sets the clocks of all nodes to ours, which they have lost while they stood still. Names the
    /// nodes whose clocks no guest agent has set: those without one, and those whose agent did not
    /// get it right in time. Only a machine that died is an error.
    pub async fn step_clocks(&self, patience: &Patience) -> Result<Vec<String>> {
        let stepped = together(self.nodes.iter().map(|n| step_clock(n, patience))).await;
        let mut unstepped = Vec::new();
        for (node, stepped) in self.nodes.iter().zip(stepped) {
            if !stepped? {
                unstepped.push(node.name().to_owned());
            }
        }
        Ok(unstepped)
    }

    /// One machine with its memory, standing still.
    #[allow(clippy::too_many_arguments)]
    async fn restore_node(
        &self,
        saved: &Checkpoint,
        spec: &NodeSpec,
        record: &NodeRecord,
        options: &LabOptions,
        patience: &Patience,
        redactor: &Redactor,
        start: Instant,
    ) -> Result<Node> {
        patience.events.node(&spec.name, "restoring", 0, 2);
        let from = saved.folder.join(&record.name);
        let dir = self.dir.subdir(&record.name)?;
        let image = record.image.boot();
        let lease = image.lease()?;
        // Names of our own for the files: the checkpoint may be removed while the lab runs.
        link(&from.join(SEED), &dir.join(SEED))?;
        let layers = record.layers.len();
        for index in 0..layers {
            link(&from.join(layer_name(index)), &dir.join(layer_name(index)))?;
        }
        let disk = Chain::new(&dir, layers);
        let below = Chain::new(&dir, layers - 1);
        let size = read_header(&below.top())?.virtual_size;
        options.hypervisor.layer(&below, &disk, size).await?;
        let host_key = saved.key(&Path::new(&record.name).join(manifest::HOST_KEY))?;
        let mut machine = self.spec.machine(spec, &image, &disk, options);
        let (memory, devices) = (from.join(manifest::MEMORY), dir.join(WITHOUT_PAGES));
        let mapped = mapped::split(&memory, machine.memory, &devices)?;
        let load = if mapped.is_some() { &devices } else { &memory };
        machine.incoming = Some(mapped.clone().map_or(Incoming::Read, Incoming::Mapped));
        let kit = Kit { machine, image, host_key, disk, lease };
        let node = self.power_on(spec, kit, options, patience, redactor, start).await?;
        node.vm.load_memory(load).await?;
        if let Some(mapped) = mapped {
            // QEMU has read it, and has the other one open, whatever becomes of its name.
            std::fs::remove_file(load)
                .doing(Kind::Host, || format!("cannot remove {}", load.display()))?;
            mapped::read_ahead(mapped);
        }
        Ok(node)
    }
}

/// Sets the clock of a node that runs, again and again until it is right; false where no agent is
/// there to do it, or it could not.
async fn step_clock(node: &Node, patience: &Patience) -> Result<bool> {
    if !node.vm.has_agent().await? {
        return Ok(false);
    }
    let dir = node.kit.disk.dir();
    let what = format!("the clock of {} to be set", node.name());
    let aim = tokio::sync::Mutex::new(ClockAim::default());
    let step = || async {
        let mut aim = aim.lock().await;
        let set = async { Agent::connect(dir).await?.set_clock(&mut aim).await };
        match set.await {
            Ok(ClockSetting::Right) => Poll::Ready(()),
            Ok(off) => Poll::NotYet(off.to_string()),
            // An agent that falls silent may be about to start again.
            Err(e) => Poll::NotYet(e.to_string()),
        }
    };
    let death = node.vm.death();
    match patience.until(&what, CLOCK_TIMEOUT, CLOCK_INTERVAL, &death, step).await {
        Ok(()) => Ok(true),
        Err(e) if e.cause() == Some(FailureCause::TimedOut) => {
            let seen = e.evidence_lines().join("; ");
            patience.events.warning(format!("{e} ({seen}): it will be set over SSH"));
            Ok(false)
        }
        Err(e) => Err(e),
    }
}
