//! A running lab: its networks, our legs on them, and its machines.

use super::accel::Accel;
use super::admission::{self, BootSlots};
use super::disk::Chain;
use super::hypervisor::Hypervisor;
use super::keys::SshKey;
use super::outside::Leg;
use super::qemu::{Boot, Disk, DiskFormat, Machine, NicArgs};
use super::rundir::RunDir;
use super::seed::{LOGIN, Seed};
use super::spec::{LabSpec, NetworkSpec, NicSpec, NodeSpec};
use super::switch::Switch;
use super::vm::{AnswerProbe, Vm, VmConfig};
use crate::error::{Context, Error, Kind, Result};
use crate::images::store::{self, Lease};
use crate::secret::Redactor;
use crate::wait::{Death, Life, Patience, Poll};
use russh::keys::PublicKey;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::AsyncReadExt;
use tokio::task::{AbortHandle, JoinSet};

/// From power on to an SSH banner, on the reference machine. A full node took 45 s under TCG on a
/// quiet machine of factor 10; there this allows 600 s.
pub const BOOTS: Duration = Duration::from_secs(60);

/// Between two tries of the SSH port.
const TRY_EVERY: Duration = Duration::from_millis(100);

/// One try: a booting node does not answer ARP, and costs a fresh question each time.
const ONE_TRY: Duration = Duration::from_secs(3);

/// From the connection to the server's version, on the reference machine, and never less than
/// [`ONE_TRY`]: given up earlier, a slow node starts a server for every try and finishes none.
const BANNER_TIMEOUT: Duration = Duration::from_secs(1);

const SSH: u16 = 22;

/// The seed in a node's directory.
pub(super) const SEED: &str = "seed.img";

/// What a node boots: an image of the store, never written to.
#[derive(Clone, Debug)]
pub struct BootImage {
    /// A qcow2.
    pub disk: PathBuf,
    /// Booted directly where there is one; else the disk's boot loader is.
    pub kernel: Option<PathBuf>,
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    pub append: String,
}

impl BootImage {
    /// Kernel and initrd lie in the folder of the disk, and stay with it.
    pub(super) fn lease(&self) -> Result<Option<Arc<Lease>>> {
        Ok(store::lease_of(&self.disk)?.map(Arc::new))
    }
}

#[derive(Clone, Debug)]
pub struct LabOptions {
    /// Run directories are made here.
    pub run_root: PathBuf,
    /// Boot slots are kept here: the same for all labs that share the host's processors.
    pub slots: PathBuf,
    pub hypervisor: Hypervisor,
    pub accel: Accel,
    /// What a node may take from power on to its SSH server's greeting, on the reference machine;
    /// [`BOOTS`] is enough for all images that we know.
    pub boots: Duration,
    /// Leave the run directory (disks, seeds with private keys) when the lab ends.
    pub keep: bool,
    /// Consoles and QEMU's logs are written here; None puts them into the run directory, whose
    /// end is theirs.
    pub logs: Option<PathBuf>,
}

/// A lab whose nodes all answered. Dropped, it is gone: machines killed, files removed.
///
/// The fields are dropped in their order: machines before the networks that they are plugged
/// into, and the directory last.
#[derive(Debug)]
pub struct Lab {
    pub(super) spec: LabSpec,
    watchers: Watchers,
    pub(super) nodes: Vec<Node>,
    legs: Vec<(String, Leg)>,
    pub(super) switch: Switch,
    pub(super) login_key: SshKey,
    death: Death,
    pub(super) hypervisor: Hypervisor,
    pub(super) accel: Accel,
    logs: PathBuf,
    pub(super) dir: RunDir,
}

/// A running node.
#[derive(Debug)]
pub struct Node {
    pub spec: NodeSpec,
    /// The network that we log in through, and the node's address on it.
    pub login: (String, Ipv4Addr),
    /// To be pinned.
    pub host_key: PublicKey,
    pub vm: Vm,
    pub(super) kit: Kit,
}

/// What a checkpoint has to know of a node beside its memory.
#[derive(Debug)]
pub(super) struct Kit {
    pub machine: Machine,
    pub image: BootImage,
    pub host_key: SshKey,
    /// In the node's directory: frozen layers, and the one on top that is written.
    pub disk: Chain,
    /// Keeps the image in its store as long as the lab lives.
    pub lease: Option<Arc<Lease>>,
}

impl Node {
    pub fn name(&self) -> &str {
        &self.spec.name
    }
}

impl Lab {
    /// Boots the lab and waits until every node's SSH server has spoken through our leg. `images`
    /// is asked once a node for the image that its spec names. Cancelled at any moment, it leaves
    /// neither a process nor a file.
    pub async fn start(
        spec: &LabSpec,
        images: impl Fn(&str) -> Result<BootImage>,
        options: &LabOptions,
        patience: &Patience,
        redactor: &Redactor,
    ) -> Result<Lab> {
        let lab = Lab::prepare(spec, images, options, patience, redactor).await?;
        lab.boot(&boot_slots(options)?, options.boots, patience).await?;
        Ok(lab)
    }

    /// Everything but letting the guests run.
    async fn prepare(
        spec: &LabSpec,
        images: impl Fn(&str) -> Result<BootImage>,
        options: &LabOptions,
        patience: &Patience,
        redactor: &Redactor,
    ) -> Result<Lab> {
        let start = Instant::now();
        let image = |node: &NodeSpec| {
            images(&node.image).map_err(|e| match e.file() {
                Some(_) => e,
                None => e.at(&spec.file, Some(node.image_line)),
            })
        };
        let images = spec.nodes.iter().map(image).collect::<Result<Vec<_>>>()?;
        let login_key = SshKey::ed25519("stackproof")?;
        let mut lab = Lab::without_nodes(spec, login_key, options, redactor)?;
        for (node, image) in spec.nodes.iter().zip(images) {
            let node = lab.make(node, image, options, patience, redactor, start).await?;
            lab.take_in(node);
        }
        Ok(lab)
    }

    /// The directory, the switch and our legs: everything that machines are plugged into.
    pub(super) fn without_nodes(
        spec: &LabSpec,
        login_key: SshKey,
        options: &LabOptions,
        redactor: &Redactor,
    ) -> Result<Lab> {
        let mut dir = RunDir::create(&options.run_root, &spec.name)?;
        admission::check(spec, admission::Room::look(dir.path())?, dir.path())?;
        if options.keep {
            dir.keep()?;
        }
        let logs = match &options.logs {
            Some(logs) => std::path::absolute(logs)
                .and_then(|logs| std::fs::create_dir_all(&logs).map(|()| logs))
                .doing(Kind::Host, || format!("cannot make {}", logs.display()))?,
            None => dir.path().to_owned(),
        };

        let switch = Switch::new();
        let legs = spec.networks.iter().filter_map(|n| Some((n.name.clone(), leg(&switch, n)?)));
        let legs = legs.collect();
        login_key.hide_in(redactor);
        let (any, death) = Life::new();
        Ok(Lab {
            spec: spec.clone(),
            watchers: Watchers { any: Arc::new(any), tasks: Vec::new() },
            nodes: Vec::new(),
            legs,
            switch,
            login_key,
            death,
            hypervisor: options.hypervisor.clone(),
            accel: options.accel,
            logs,
            dir,
        })
    }

    /// Makes a node from its image and starts its machine, standing still.
    async fn make(
        &self,
        node: &NodeSpec,
        image: BootImage,
        options: &LabOptions,
        patience: &Patience,
        redactor: &Redactor,
        start: Instant,
    ) -> Result<Node> {
        patience.events.node(&node.name, "starting", 0, 2);
        let dir = self.dir.subdir(&node.name)?;
        let disk = Chain::new(&dir, 0);
        let lease = image.lease()?;
        options.hypervisor.overlay(&image.disk, &disk.top(), node.disk).await?;
        let host_key = SshKey::ed25519(&node.name)?;
        self.write_seed(node, &host_key, &dir.join(SEED))?;
        let machine = self.spec.machine(node, &image, &disk, options);
        let kit = Kit { machine, image, host_key, disk, lease };
        self.power_on(node, kit, options, patience, redactor, start).await
    }

    /// Starts QEMU for a node whose files are in place.
    pub(super) async fn power_on(
        &self,
        node: &NodeSpec,
        kit: Kit,
        options: &LabOptions,
        patience: &Patience,
        redactor: &Redactor,
        start: Instant,
    ) -> Result<Node> {
        kit.host_key.hide_in(redactor);
        let networks = node.nics.iter();
        let networks = networks.map(|n| (n.network.clone(), self.switch.network(&n.network)));
        let (through, address) = node.login(&self.spec).expect("the spec was checked");
        let at = SocketAddrV4::new(address, SSH);
        let limit = patience.speed.scale(BANNER_TIMEOUT).max(ONE_TRY);
        let answers = self.leg(through).cloned().map(|leg| {
            AnswerProbe::new(move || {
                let leg = leg.clone();
                async move { matches!(try_banner(&leg, at, limit).await, Poll::Ready(())) }
            })
        });
        let config = VmConfig {
            answers,
            machine: kit.machine.clone(),
            dir: kit.disk.dir().to_owned(),
            logs: self.logs.clone(),
            networks: networks.collect(),
            start,
            redactor: redactor.clone(),
        };
        let vm = Vm::start(&options.hypervisor, config, patience).await?;
        let login = (through.to_owned(), address);
        let host_key = kit.host_key.public().clone();
        Ok(Node { spec: node.clone(), login, host_key, vm, kit })
    }

    /// From now on the node is the lab's, and its death the lab's death.
    pub(super) fn take_in(&mut self, node: Node) {
        self.watchers.watch(node.vm.death());
        self.nodes.push(node);
    }

    fn write_seed(&self, node: &NodeSpec, host_key: &SshKey, file: &Path) -> Result<()> {
        let seed = Seed::of(&self.spec, node, host_key, &self.login_key);
        seed.write(file)
    }

    /// Lets all guests run, as many at once as there are slots, and waits for their SSH servers.
    async fn boot(&self, slots: &BootSlots, boots: Duration, patience: &Patience) -> Result<()> {
        // The tasks hold no machine: dropped here, nothing of the lab outlives the drop.
        let mut waits = JoinSet::new();
        for node in &self.nodes {
            let slot = slots.take(node.name(), &node.vm.death(), patience).await?;
            node.vm.run().await?;
            patience.events.node(node.name(), "booting", 1, 2);
            let leg = self.leg(&node.login.0).expect("the spec was checked").clone();
            let at = SocketAddrV4::new(node.login.1, SSH);
            let (name, death) = (node.name().to_owned(), node.vm.death());
            let patience = patience.clone();
            waits.spawn(async move {
                let out = ssh_banner(&name, &leg, at, boots, &death, &patience).await;
                drop(slot);
                if out.is_ok() {
                    patience.events.node(&name, "up", 2, 2);
                }
                (name, out)
            });
        }
        while let Some(wait) = waits.join_next().await {
            let (name, out) =
                wait.map_err(|e| Error::internal("a wait for SSH panicked").because(e))?;
            out.map_err(|e| self.explain_boot(&name, e))?;
            if let Some(node) = self.node(&name) {
                node.vm.note_up();
            }
        }
        Ok(())
    }

    /// Switches a dead node on again: on its disk as it was left, with the MAC addresses that it
    /// had, and waits for its SSH server. All its cables are in.
    pub async fn power_on_again(
        &mut self,
        name: &str,
        options: &LabOptions,
        patience: &Patience,
        redactor: &Redactor,
    ) -> Result<()> {
        let at = self.nodes.iter().position(|n| n.name() == name);
        let at = at.ok_or_else(|| Error::internal(format!("the lab has no node {name}")))?;
        let old = &self.nodes[at];
        // What only looks dead would write to the same disk.
        old.vm.kill().await;
        old.vm.unplug();
        let dir = old.kit.disk.dir();
        remove_sockets(dir).doing(Kind::Host, || format!("cannot clear {}", dir.display()))?;
        let disk = Chain::new(dir, old.kit.disk.frozen());
        let machine = self.spec.machine(&old.spec, &old.kit.image, &disk, options);
        let (image, host_key) = (old.kit.image.clone(), old.kit.host_key.clone());
        let lease = old.kit.lease.clone();
        let kit = Kit { machine, image, host_key, disk, lease };
        let node =
            self.power_on(&old.spec, kit, options, patience, redactor, Instant::now()).await?;
        self.nodes[at] = node;
        // The lab's death was that of the old machine.
        self.watchers.end();
        let (any, death) = Life::new();
        (self.watchers.any, self.death) = (Arc::new(any), death);
        for node in &self.nodes {
            self.watchers.watch(node.vm.death());
        }
        let slots = boot_slots(options)?;
        let node = &self.nodes[at];
        let _slot = slots.take(name, &node.vm.death(), patience).await?;
        node.vm.run().await?;
        let leg = self.leg(&node.login.0).expect("the spec was checked");
        let there = SocketAddrV4::new(node.login.1, SSH);
        let spoke = ssh_banner(name, leg, there, options.boots, &node.vm.death(), patience).await;
        spoke.map_err(|e| self.explain_boot(name, e))?;
        node.vm.note_up();
        Ok(())
    }

    fn explain_boot(&self, name: &str, error: Error) -> Error {
        let Some(node) = self.node(name) else { return error };
        error
            .while_doing(format!("{name} did not boot"))
            .evidence(node.vm.evidence())
            .at(node.vm.console().path(), None)
            .hint("its console tells how far it came")
    }

    pub fn spec(&self) -> &LabSpec {
        &self.spec
    }
    pub fn accel(&self) -> Accel {
        self.accel
    }
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.iter().find(|n| n.spec.name == name)
    }
    /// Our own leg on a network.
    pub fn leg(&self, network: &str) -> Option<&Leg> {
        self.legs.iter().find(|(name, _)| name == network).map(|(_, leg)| leg)
    }
    pub(super) fn legs(&self) -> impl Iterator<Item = &Leg> {
        self.legs.iter().map(|(_, leg)| leg)
    }
    pub fn switch(&self) -> &Switch {
        &self.switch
    }
    /// Logs in on every node as [`LOGIN`].
    pub fn login_key(&self) -> &SshKey {
        &self.login_key
    }
    pub fn login_user(&self) -> &'static str {
        LOGIN
    }
    /// The death of any node.
    pub fn death(&self) -> Death {
        self.death.clone()
    }
    /// Where consoles and QEMU's logs are.
    pub fn logs(&self) -> &Path {
        &self.logs
    }
    /// Disks, seeds, sockets.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Ends the lab. Machines quit in order where their disks are kept, else they are killed.
    pub async fn stop(mut self) -> Result<()> {
        // A wanted end is no death.
        self.watchers.end();
        if self.dir.is_kept() {
            for node in &self.nodes {
                node.vm.quit().await?;
            }
        }
        Ok(())
    }
}

impl LabSpec {
    /// The machine that a node is. Nothing but the spec and the options decides what the guest sees:
    /// a restored one must be the same.
    pub(super) fn machine(
        &self,
        node: &NodeSpec,
        image: &BootImage,
        disk: &Chain,
        options: &LabOptions,
    ) -> Machine {
        let boot = match &image.kernel {
            Some(kernel) => Boot::Kernel {
                kernel: kernel.clone(),
                initrd: image.initrd.clone(),
                append: image.append.clone(),
            },
            None => Boot::Disk,
        };
        let network = |name: &str| self.network(name).expect("the spec was checked");
        let nic = |n: &NicSpec| NicArgs { mac: n.mac, mtu: network(&n.network).mtu };
        let one = |file, format, read_only| Disk { file, format, read_only };
        let seed = disk.dir().join(SEED);
        Machine {
            name: node.name.clone(),
            accel: options.accel,
            cpus: node.cpus,
            memory: node.memory,
            boot,
            disks: vec![
                one(disk.top(), DiskFormat::Qcow2, false),
                one(seed, DiskFormat::Raw, true),
            ],
            nics: node.nics.iter().map(nic).collect(),
            incoming: None,
            sandbox: options.hypervisor.sandbox,
        }
    }
}

fn leg(switch: &Switch, network: &NetworkSpec) -> Option<Leg> {
    let leg = Leg::new(&switch.network(&network.name), network.outside?, network.subnet.prefix);
    if network.ntp {
        leg.serve_ntp();
    }
    Some(leg)
}

fn boot_slots(options: &LabOptions) -> Result<BootSlots> {
    match options.accel {
        Accel::Kvm => Ok(BootSlots::unlimited()),
        Accel::Tcg => BootSlots::open(&options.slots),
    }
}

/// Those that a machine leaves in its directory: the next one makes its own.
fn remove_sockets(dir: &Path) -> std::io::Result<()> {
    for entry in dir.read_dir()? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "sock") {
            std::fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// Waits until an SSH server has said its version.
async fn ssh_banner(
    name: &str,
    leg: &Leg,
    at: SocketAddrV4,
    within: Duration,
    death: &Death,
    patience: &Patience,
) -> Result<()> {
    let what = format!("SSH of {name} at {at}");
    let limit = patience.speed.scale(BANNER_TIMEOUT).max(ONE_TRY);
    patience.until(&what, within, TRY_EVERY, death, || try_banner(leg, at, limit)).await
}

async fn try_banner(leg: &Leg, at: SocketAddrV4, limit: Duration) -> Poll<()> {
    let mut stream = match leg.connect(at, ONE_TRY).await {
        Ok(stream) => stream,
        Err(e) => return Poll::NotYet(e.to_string()),
    };
    let mut banner = [0u8; 8];
    match tokio::time::timeout(limit, stream.read_exact(&mut banner)).await {
        Ok(Ok(_)) if &banner == b"SSH-2.0-" => Poll::Ready(()),
        Ok(Ok(_)) => {
            let said = String::from_utf8_lossy(&banner).into_owned();
            Poll::Failed(Error::lab(format!("{at} does not speak SSH: it says `{said}`")))
        }
        Ok(Err(e)) => Poll::NotYet(format!("connected, then {e}")),
        Err(_) => Poll::NotYet("connected, and no banner yet".into()),
    }
}

/// The tasks that pass a node's death on as the lab's; ended with the lab.
#[derive(Debug)]
struct Watchers {
    any: Arc<Life>,
    tasks: Vec<AbortHandle>,
}

impl Watchers {
    fn watch(&mut self, mut one: Death) {
        let any = Arc::clone(&self.any);
        let task = tokio::spawn(async move {
            let cause = one.wait_cause().await;
            any.ends(cause);
        });
        self.tasks.push(task.abort_handle());
    }
    fn end(&mut self) {
        self.tasks.drain(..).for_each(|task| task.abort());
    }
}

impl Drop for Watchers {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
pub(super) mod tests;
