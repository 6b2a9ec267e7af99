//! What the tests with small guests share: a lab of probe-guests in a folder of its own, ways to
//! speak to them, and the proof that nothing is left.

pub use crate::dice::Dice;
use crate::registry;
use stackproof::cluster::node_tasks;
use stackproof::engine::inventory::{Family, Node as EngineNode};
use stackproof::engine::ssh::{HostKey, Key};
use stackproof::engine::transport::{Shell, Ssh};
use stackproof::error::{Error, Result};
use stackproof::event::Events;
use stackproof::lab::accel;
use stackproof::lab::hypervisor::Hypervisor;
use stackproof::lab::outside::Leg;
use stackproof::lab::spec::LabSpec;
use stackproof::lab::{BOOTS, BootImage, Lab, LabOptions, Node};
use stackproof::secret::Redactor;
use stackproof::wait::{Death, Patience, Poll, Speed};
use std::fmt::Write;
use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

pub const MANAGEMENT: &str = "management";

/// One command in a guest, on the reference machine.
pub const COMMAND: Duration = Duration::from_secs(20);

/// Runs a test to its end; an error is told with its evidence and its hint.
pub fn run(test: impl Future<Output = Result<()>>) -> std::result::Result<(), String> {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).enable_all().build().map_err(|e| e.to_string())?;
    runtime.block_on(test).map_err(|e| told(&e))
}

/// The error as a person would be shown it.
pub fn told(error: &Error) -> String {
    let mut text = error.to_string();
    for line in error.evidence_lines() {
        let _ = write!(text, "\n  | {line}");
    }
    if let Some(hint) = error.hint_text() {
        let _ = write!(text, "\n  hint: {hint}");
    }
    text
}

/// A folder, an accelerator with its measured speed, and the image.
pub struct Bench {
    root: tempfile::TempDir,
    pub options: LabOptions,
    pub image: BootImage,
    pub redactor: Redactor,
    pub patience: Patience,
    seen: watch::Receiver<Vec<String>>,
}

impl Bench {
    pub async fn new() -> Result<Bench> {
        let root = tempfile::tempdir().expect("a temporary folder");
        let hypervisor =
            Hypervisor::find("qemu-system-x86_64".as_ref(), "qemu-img".as_ref()).await?;
        let notes = accel::Notes::of_store(registry::store().expect("the registry looked").root());
        let judged = accel::judge(&hypervisor, root.path(), &notes, accel::Trust::Speed).await?;
        let (events, mut from) = Events::channel();
        let (to, seen) = watch::channel(Vec::new());
        tokio::spawn(async move {
            while let Some(stamped) = from.recv().await {
                to.send_modify(|all: &mut Vec<String>| all.push(format!("{:?}", stamped.event)));
            }
        });
        let built = registry::probe_guest()
            .ok_or_else(|| Error::image("run `stackproof images build probe-guest`"))?;
        let image = BootImage {
            disk: built.disk(),
            kernel: Some(built.kernel()),
            initrd: Some(built.initrd()),
            append: built.cmdline()?,
        };
        let options = LabOptions {
            run_root: root.path().join("runs"),
            slots: registry::shared("runs")?,
            hypervisor,
            accel: judged.accel,
            boots: BOOTS,
            keep: false,
            logs: Some(root.path().join("logs")),
        };
        let patience = Patience::new(Speed::new(judged.speed), events);
        Ok(Bench { root, options, image, redactor: Redactor::default(), patience, seen })
    }

    /// The test's own folder; everything of its labs is in it.
    pub fn root(&self) -> &Path {
        self.root.path()
    }

    pub fn logs(&self) -> PathBuf {
        self.root().join("logs")
    }

    /// A lab of guests with these names, booted until SSH speaks.
    pub async fn start(&self, nodes: &[&str]) -> Result<Lab> {
        self.start_with(nodes, &self.patience).await
    }

    pub async fn start_with(&self, nodes: &[&str], patience: &Patience) -> Result<Lab> {
        let spec = LabSpec::parse("micro.toml".as_ref(), &lab("micro", nodes))?;
        self.start_lab(&spec, patience).await
    }

    pub async fn start_lab(&self, spec: &LabSpec, patience: &Patience) -> Result<Lab> {
        let image = |_: &str| Ok(self.image.clone());
        Lab::start(spec, image, &self.options, patience, &self.redactor).await
    }

    /// All events until now.
    pub fn events(&self) -> Vec<String> {
        self.seen.borrow().clone()
    }

    /// Waits for an event whose text contains `words`.
    pub async fn event(&self, words: &str) -> Result<()> {
        let mut seen = self.seen.clone();
        let found = async {
            let any = seen.wait_for(|all| all.iter().any(|e| e.contains(words))).await;
            any.map(drop).map_err(|_| Error::internal("the events ended"))
        };
        self.patience.within(words, COMMAND, &Death::never(), found).await
    }

    /// SSH to a guest, pinned to the key that its seed gave it.
    pub fn ssh(&self, lab: &Lab, node: &Node) -> Result<Ssh> {
        let key = Key::from_openssh(&lab.login_key().private_pem())?;
        let host_key = HostKey::Pinned(node.host_key.clone());
        self.ssh_with(lab, node, key, host_key)
    }

    pub fn ssh_with(&self, lab: &Lab, node: &Node, key: Key, host_key: HostKey) -> Result<Ssh> {
        let leg = leg(lab).clone();
        let (at, speed) = (SocketAddrV4::new(node.login.1, 22), &self.patience.speed);
        let connect = node_tasks::connector(leg, at, speed, node.vm.death());
        let ssh = Ssh::new(node.name(), lab.login_user(), key, host_key, connect);
        Ok(ssh.handshake_within(speed.scale(node_tasks::HANDSHAKE)))
    }

    /// The same as a node of the engine.
    pub fn engine_node(&self, lab: &Lab, node: &Node) -> Result<EngineNode> {
        let shell = Arc::new(self.ssh(lab, node)?);
        Ok(EngineNode::new(node.name(), Family::Debian, shell).death(node.vm.death()))
    }

    /// Runs a script as root and gives what it printed, without the last newline.
    pub async fn ask(&self, shell: &dyn Shell, node: &Node, script: &str) -> Result<String> {
        // Over standard input, and not the name of the wait: a script may hold a secret.
        let what = format!("a script on {}", node.name());
        let work = shell.script(script.to_owned());
        let out = self.patience.within(&what, COMMAND, &node.vm.death(), work).await?;
        if out.status != 0 {
            return Err(Error::lab(format!("{what} ended with {}", out.status))
                .evidence(out.stderr_tail(10)));
        }
        Ok(String::from_utf8_lossy(&out.stdout).trim_end().to_owned())
    }

    /// Fails unless processes and run directories are gone now.
    pub fn assert_nothing_left(&self) {
        assert_eq!(processes_in(self.root()), [] as [i32; 0], "processes are left");
        assert_eq!(entries(&self.options.run_root), [] as [String; 0], "run directories are left");
    }
}

/// A lab file of probe-guests; the first has the address 192.168.103.11 on [`MANAGEMENT`].
pub fn lab(name: &str, nodes: &[&str]) -> String {
    let mut text = format!(
        "name = \"{name}\"\n\
         [networks.management]\nsubnet = \"192.168.103.0/24\"\noutside = \"192.168.103.1\"\n\
         [networks.external]\nsubnet = \"172.24.4.0/24\"\noutside = \"172.24.4.1\"\nmtu = 1400\n"
    );
    for (node, number) in nodes.iter().zip(11..) {
        let _ = write!(
            text,
            "[nodes.{node}]\nimage = \"probe-guest\"\nmemory = \"{GUEST}MiB\"\ncpus = 1\n\
             roles = [\"controller\", \"network\", \"compute\"]\n\
             [[nodes.{node}.nics]]\nnetwork = \"management\"\naddress = \"192.168.103.{number}\"\n\
             [[nodes.{node}.nics]]\nnetwork = \"external\"\n"
        );
    }
    text
}

/// The memory of one guest, in MiB.
pub const GUEST: u64 = 128;

pub fn leg(lab: &Lab) -> &Leg {
    lab.leg(MANAGEMENT).expect("the lab has a leg on it")
}

/// Every process whose working directory is below `root`: QEMU runs in its machine's.
pub fn processes_in(root: &Path) -> Vec<i32> {
    let ours = |p: std::fs::DirEntry| {
        let pid = p.file_name().to_str()?.parse().ok()?;
        let cwd = std::fs::read_link(p.path().join("cwd")).ok()?;
        cwd.starts_with(root).then_some(pid)
    };
    std::fs::read_dir("/proc").expect("/proc").flatten().filter_map(ours).collect()
}

pub async fn no_process_in(root: &Path, patience: &Patience) -> Result<()> {
    let gone = || async {
        match processes_in(root).as_slice() {
            [] => Poll::Ready(()),
            left => Poll::NotYet(format!("running: {left:?}")),
        }
    };
    let what = "the machines to end";
    patience.until(what, COMMAND, Duration::from_millis(20), &Death::never(), gone).await
}

/// The directories in `root`; none where it is missing.
pub fn entries(root: &Path) -> Vec<String> {
    let Ok(found) = root.read_dir() else { return Vec::new() };
    let dirs = found.flatten().filter(|e| e.path().is_dir());
    dirs.map(|e| e.file_name().to_string_lossy().into_owned()).collect()
}

/// Sends a signal to a process that we (or our children) started.
pub fn signal(pid: i32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(pid).expect("a pid");
    rustix::process::kill_process(pid, signal).expect("the process is there");
}
