//! One supervised machine: a QEMU in a private directory, its monitor, console and NICs, and the
//! news of its death.

mod transfer;

use super::console::{Console, Line};
use super::hypervisor::Hypervisor;
use super::process::{self, Process};
use super::qemu::{self, Machine};
use super::qmp::{Event, Qmp};
use super::switch::{Counters, Network, Port};
use crate::error::{Context, Error, Kind, Result, last_lines};
use crate::secret::Redactor;
use crate::wait::{Cause, Death, Life, Patience, Poll};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::AbortHandle;

/// From QEMU's start until it has connected to us: disks are opened, memory is mapped.
const CONNECTS: Duration = Duration::from_secs(20);

/// After `quit` QEMU closes its disks and goes.
const QUITS: Duration = Duration::from_secs(10);

/// How long the last events may trail the exit. They end with the monitor's socket, which ended with
/// QEMU: only a host that is out of breath takes longer than a moment, and it must not change why the
/// machine ended.
const LAST_EVENTS: Duration = Duration::from_secs(30);

/// For a guest that is said to be lost to show that it lives, on the reference machine.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
const ANSWER_INTERVAL: Duration = Duration::from_millis(250);

/// What [`Vm::start`] needs.
#[derive(Debug)]
pub struct VmConfig {
    pub machine: Machine,
    /// Private (0700), exists, and holds nothing of another machine.
    pub dir: PathBuf,
    /// `NAME.console.log` and `NAME.qemu.log` are written here.
    pub logs: PathBuf,
    /// The network of each NIC of the machine, in the same order.
    pub networks: Vec<(String, Network)>,
    /// The zero of the console's time stamps.
    pub start: Instant,
    pub redactor: Redactor,
    /// None where nothing can be asked: then its console alone says that the guest is lost.
    pub answers: Option<AnswerProbe>,
}

/// A machine. Dropped, it is killed and reaped.
#[derive(Debug)]
pub struct Vm {
    name: String,
    /// Bytes.
    memory: u64,
    process: Process,
    life: Arc<Life>,
    qmp: Qmp,
    console: Console,
    log: PathBuf,
    nics: Vec<Nic>,
    resets: watch::Receiver<u64>,
    stopping: Arc<AtomicBool>,
    /// Whether the guest has ever answered from outside.
    up: Arc<AtomicBool>,
    patience: Patience,
    tasks: Vec<AbortHandle>,
}

#[derive(Debug)]
struct Nic {
    network: String,
    plug: Arc<Mutex<Plug>>,
}

/// The switch's side of a NIC: outlives QEMU's connection, which may come anew.
#[derive(Debug)]
struct Plug {
    port: Option<Port>,
    up: bool,
}

impl Vm {
    /// Starts QEMU and connects everything. The guest stands still until [`Vm::run`].
    pub async fn start(
        hypervisor: &Hypervisor,
        config: VmConfig,
        patience: &Patience,
    ) -> Result<Vm> {
        let name = config.machine.name.clone();
        let doing = || format!("cannot prepare {name} in {}", config.dir.display());
        let monitor = listen(&config.dir, qemu::MONITOR_SOCKET).doing(Kind::Host, doing)?;
        let serial = listen(&config.dir, qemu::SERIAL_SOCKET).doing(Kind::Host, doing)?;
        let mut nics = Vec::new();
        let mut guard = Tasks::default();
        for (i, (network_name, network)) in config.networks.iter().enumerate() {
            let listener = listen(&config.dir, &qemu::nic_socket(i)).doing(Kind::Host, doing)?;
            let plug = Arc::new(Mutex::new(Plug { port: None, up: true }));
            let port_name = format!("{name}/{network_name}");
            let serve = serve_nic(listener, network.clone(), port_name, Arc::clone(&plug));
            guard.spawn(serve);
            nics.push(Nic { network: network_name.clone(), plug });
        }

        let log = config.logs.join(format!("{name}.qemu.log"));
        let log_file = private_log(&log).doing(Kind::Host, doing)?;
        let mut command = Command::new(&hypervisor.qemu);
        command.args(config.machine.arguments()).current_dir(&config.dir);
        command.stdin(Stdio::null()).stdout(log_file.try_clone().doing(Kind::Host, doing)?);
        command.stderr(log_file);
        let process = Process::spawn(command).await?;

        let (life, death) = Life::new();
        let life = Arc::new(life);
        let stopping = Arc::new(AtomicBool::new(false));
        let (resets_to, resets) = watch::channel(0);
        let (subscription_to, subscription) = oneshot::channel();
        let watch = Watch {
            name: name.clone(),
            life: Arc::clone(&life),
            log: log.clone(),
            redactor: config.redactor.clone(),
            stopping: Arc::clone(&stopping),
            resets: resets_to,
        };
        guard.spawn(watch.run(process.exit(), subscription));

        // QEMU connects in the order of its arguments: monitor, then console.
        let what = format!("QEMU of {name} to start");
        let connected = patience.within(&what, CONNECTS, &death, async {
            let monitor = monitor.accept().await.doing(Kind::Lab, || "no monitor".into())?;
            let serial = serial.accept().await.doing(Kind::Lab, || "no console".into())?;
            Ok((monitor.0, serial.0))
        });
        let (monitor, serial) = connected.await.map_err(|e| e.evidence(tail(&log, 10)))?;
        let (troubles_to, troubles) = mpsc::unbounded_channel();
        let console = Console::capture(
            serial,
            &config.logs.join(format!("{name}.console.log")),
            config.start,
            config.redactor.clone(),
            move |trouble| {
                let _ = troubles_to.send(trouble);
            },
        )?;
        // A restored guest was up when it was saved.
        let up = Arc::new(AtomicBool::new(config.machine.incoming.is_some()));
        let suspicion = Suspicion {
            name: name.clone(),
            life: Arc::clone(&life),
            console: console.clone(),
            up: Arc::clone(&up),
            answers: config.answers,
            patience: patience.clone(),
        };
        guard.spawn(suspicion.run(troubles));
        let qmp = Qmp::negotiate(monitor, patience, &death)
            .await
            .map_err(|e| e.while_doing(format!("{name}'s monitor")).evidence(tail(&log, 10)))?;
        // The watcher has gone where QEMU has: its exit is watched from before the monitor is there.
        let _ = subscription_to.send(qmp.subscribe());
        let (memory, patience) = (config.machine.memory, patience.clone());
        Ok(Vm {
            name,
            memory,
            process,
            life,
            qmp,
            console,
            log,
            nics,
            resets,
            stopping,
            up,
            patience,
            tasks: guard.keep(),
        })
    }

    pub fn name(&self) -> &str {
        &self.name
    }
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }
    pub fn qmp(&self) -> &Qmp {
        &self.qmp
    }
    pub fn console(&self) -> &Console {
        &self.console
    }
    /// The news of its death: QEMU's end, or a guest that its console says is lost.
    pub fn death(&self) -> Death {
        self.life.death()
    }
    /// The guest has answered: from now on a line on its console alone does not end it.
    pub fn note_up(&self) {
        self.up.store(true, Ordering::Relaxed);
    }
    /// What QEMU itself wrote.
    pub fn log(&self) -> &Path {
        &self.log
    }
    /// Grows with each reboot of the guest, by one or more: SeaBIOS resets the machine once more
    /// when it finds that it has run before.
    pub fn resets(&self) -> watch::Receiver<u64> {
        self.resets.clone()
    }
    /// The last lines of the console and of QEMU's own log, to go with an error.
    pub fn evidence(&self) -> Vec<String> {
        let mut lines = self.console.last(15);
        // A panic's own line is followed by a screen of registers.
        if let Some(trouble) = self.console.trouble()
            && !lines.iter().any(|line| line.contains(&trouble.line))
        {
            lines.insert(0, trouble.to_string());
        }
        lines.extend(tail(&self.log, 5));
        lines
    }

    /// Waits for a console line with `marker`, from line `since` on; see [`Console::wait_for`].
    pub async fn wait_for(&self, marker: &str, since: u64, nominal: Duration) -> Result<Line> {
        let death = self.death();
        self.console.wait_for(marker, since, nominal, &self.patience, &death).await
    }

    /// Lets the guest run.
    pub async fn run(&self) -> Result<()> {
        self.qmp.call(&qapi_qmp::cont {}).await.map(drop).map_err(|e| self.explain(e))
    }

    /// Resets the guest, as the button on the case would.
    pub async fn reset(&self) -> Result<()> {
        self.qmp.call(&qapi_qmp::system_reset {}).await.map(drop).map_err(|e| self.explain(e))
    }

    /// Takes what is left of a dead machine off its networks and its sockets, so that another can
    /// have its ports.
    pub(super) fn unplug(&self) {
        self.tasks.iter().for_each(AbortHandle::abort);
        self.nics.iter().for_each(|nic| lock(&nic.plug).port = None);
    }

    /// Asks the guest to power off (ACPI) and waits until QEMU has ended. `nominal` is for the
    /// guest's shutdown on the reference machine.
    pub async fn power_down(&self, nominal: Duration) -> Result<ExitStatus> {
        self.stopping.store(true, Ordering::Relaxed);
        let asked = self.qmp.call(&qapi_qmp::system_powerdown {}).await;
        asked.map_err(|e| self.explain(e))?;
        let what = format!("{} to power off", self.name);
        self.ended(&what, nominal).await
    }

    /// Ends QEMU in order: its disks are closed, the guest is not asked.
    pub async fn quit(&self) -> Result<ExitStatus> {
        self.stopping.store(true, Ordering::Relaxed);
        // QEMU may be gone before its answer is.
        let asked = self.qmp.call(&qapi_qmp::quit {}).await;
        if !self.process.has_ended() && self.qmp.is_open() {
            asked.map_err(|e| self.explain(e))?;
        }
        let what = format!("QEMU of {} to quit", self.name);
        self.ended(&what, QUITS).await
    }

    /// Ends QEMU at once and waits until it is gone.
    pub async fn kill(&self) -> ExitStatus {
        self.stopping.store(true, Ordering::Relaxed);
        self.process.kill();
        self.process.exit().await
    }

    async fn ended(&self, what: &str, nominal: Duration) -> Result<ExitStatus> {
        let (exit, never) = (self.process.exit(), Death::never());
        let wait = self.patience.within(what, nominal, &never, async { Ok(exit.await) });
        wait.await.map_err(|e| self.explain(e))
    }

    fn explain(&self, error: Error) -> Error {
        error.while_doing(&self.name).evidence(self.evidence())
    }

    /// Cuts or heals the cable of the NIC on `network`, at the switch: the guest is not told.
    pub fn set_link(&self, network: &str, up: bool) -> Result<()> {
        let mut plug = self.plug(network)?;
        plug.up = up;
        if let Some(port) = &plug.port {
            port.set_link(up);
        }
        Ok(())
    }

    /// What went through the NIC on `network` since QEMU last connected it.
    pub fn counters(&self, network: &str) -> Result<Counters> {
        Ok(self.plug(network)?.port.as_ref().map(Port::counters).unwrap_or_default())
    }

    fn plug(&self, network: &str) -> Result<std::sync::MutexGuard<'_, Plug>> {
        let nic = self.nics.iter().find(|n| n.network == network).ok_or_else(|| {
            Error::internal(format!("{} has no NIC on network {network}", self.name))
        })?;
        Ok(lock(&nic.plug))
    }

    /// Stops the guest in the middle of whatever it does, as a host does that is out of breath:
    /// its memory and its connections stay. Its clock stands still with it.
    pub async fn freeze(&self) -> Result<()> {
        self.qmp.call(&qapi_qmp::stop {}).await.map(drop).map_err(|e| self.explain(e))
    }

    /// Lets a frozen guest go on.
    pub async fn thaw(&self) -> Result<()> {
        self.run().await
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
        self.life.ends(format!("{} was stopped", self.name));
        self.tasks.iter().for_each(AbortHandle::abort);
        // The process is killed and reaped as it is dropped.
    }
}

fn lock(plug: &Mutex<Plug>) -> std::sync::MutexGuard<'_, Plug> {
    plug.lock().expect("a plug's lock")
}

/// Tasks that end with the start that made them, unless it succeeds.
#[derive(Default)]
struct Tasks(Vec<AbortHandle>);

impl Tasks {
    fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.0.push(tokio::spawn(task).abort_handle());
    }
    fn keep(mut self) -> Vec<AbortHandle> {
        std::mem::take(&mut self.0)
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        self.0.iter().for_each(AbortHandle::abort);
    }
}

/// Listens on `name` in `dir`, however long the path of `dir` is: the address of a socket holds
/// 107 bytes, so the directory is named by a descriptor of it.
fn listen(dir: &Path, name: &str) -> std::io::Result<UnixListener> {
    let dir = File::open(dir)?;
    UnixListener::bind(format!("/proc/self/fd/{}/{name}", dir.as_raw_fd()))
}

fn private_log(path: &Path) -> std::io::Result<File> {
    // Emptied: an earlier run's words would be taken for this one's. Opened to append: the two
    // streams of one process share it.
    let mut options = std::fs::OpenOptions::new();
    let log = options.append(true).create(true).mode(0o600).open(path)?;
    log.set_len(0)?;
    Ok(log)
}

/// Plugs every connection that QEMU makes for one NIC; the last one counts.
async fn serve_nic(listener: UnixListener, network: Network, name: String, plug: Arc<Mutex<Plug>>) {
    while let Ok((socket, _)) = listener.accept().await {
        replace_port(&network, &name, &plug, socket);
    }
}

fn replace_port(network: &Network, name: &str, plug: &Mutex<Plug>, socket: UnixStream) {
    let mut plug = lock(plug);
    // The old one first: a network holds no two ports of one name.
    plug.port = None;
    let port = network.plug(name, socket);
    port.set_link(plug.up);
    plug.port = Some(port);
}

/// Asks the guest, from outside, whether it still answers.
#[derive(Clone)]
pub struct AnswerProbe(Arc<dyn Fn() -> BoxedAnswer + Send + Sync>);

type BoxedAnswer = Pin<Box<dyn Future<Output = bool> + Send>>;

impl AnswerProbe {
    pub fn new<F: Future<Output = bool> + Send + 'static>(
        ask: impl Fn() -> F + Send + Sync + 'static,
    ) -> AnswerProbe {
        AnswerProbe(Arc::new(move || Box::pin(ask())))
    }
    fn ask(&self) -> BoxedAnswer {
        (self.0)()
    }
}

impl std::fmt::Debug for AnswerProbe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AnswerProbe")
    }
}

/// The task that judges what the console says of a lost guest. Anybody may print such a line, so a
/// guest that was up is given up only when it does not answer any more.
struct Suspicion {
    name: String,
    life: Arc<Life>,
    console: Console,
    up: Arc<AtomicBool>,
    answers: Option<AnswerProbe>,
    patience: Patience,
}

impl Suspicion {
    async fn run(self, mut troubles: mpsc::UnboundedReceiver<String>) {
        while let Some(trouble) = troubles.recv().await {
            if !self.is_alive().await {
                self.life.ends(format!("{} is lost: {trouble}", self.name));
                return;
            }
            self.console.dismiss_trouble();
            self.patience.events.warning(format!(
                "{}: its console says that it is lost, and its SSH server answers: it goes on ({trouble})",
                self.name
            ));
        }
    }

    async fn is_alive(&self) -> bool {
        let Some(answers) = self.answers.as_ref().filter(|_| self.up.load(Ordering::Relaxed))
        else {
            return false;
        };
        let what = format!("{} to answer after the line on its console", self.name);
        // Twice: another processor may still answer while one panics.
        let before = AtomicBool::new(false);
        let asked = async || match answers.ask().await {
            true if before.swap(true, Ordering::Relaxed) => Poll::Ready(()),
            _ => Poll::NotYet("no answer".into()),
        };
        let death = self.life.death();
        let wait = self.patience.until(&what, ANSWER_TIMEOUT, ANSWER_INTERVAL, &death, asked);
        wait.await.is_ok()
    }
}

/// The task that tells how the machine ended.
struct Watch {
    name: String,
    life: Arc<Life>,
    log: PathBuf,
    redactor: Redactor,
    stopping: Arc<AtomicBool>,
    resets: watch::Sender<u64>,
}

impl Watch {
    async fn run(
        self,
        exit: impl Future<Output = ExitStatus> + Send,
        subscription: oneshot::Receiver<mpsc::UnboundedReceiver<Event>>,
    ) {
        let mut powered_off = false;
        tokio::pin!(exit);
        let mut events = tokio::select! {
            biased;
            Ok(events) = subscription => events,
            // Before its monitor was there: no event can come.
            status = &mut exit => return self.life.ends(self.cause(status, powered_off)),
        };
        let status = loop {
            tokio::select! {
                biased;
                Some(event) = events.recv() => self.note(&event, &mut powered_off),
                status = &mut exit => break status,
            }
        };
        // Its last words may still be on their way. They end with the monitor.
        let rest = async {
            while let Some(event) = events.recv().await {
                self.note(&event, &mut powered_off);
            }
        };
        let _ = tokio::time::timeout(LAST_EVENTS, rest).await;
        self.life.ends(self.cause(status, powered_off));
    }

    fn note(&self, event: &Event, powered_off: &mut bool) {
        match event.typed() {
            Some(qapi_qmp::Event::RESET { data, .. }) => {
                // Firmware resets once more by itself (`subsystem-reset`): only whole resets count.
                use qapi_qmp::ShutdownCause::{guest_reset, host_qmp_system_reset};
                if matches!(data.reason, guest_reset | host_qmp_system_reset) {
                    self.resets.send_modify(|n| *n += 1);
                }
            }
            Some(qapi_qmp::Event::SHUTDOWN { data, .. }) => *powered_off = data.guest,
            Some(qapi_qmp::Event::GUEST_PANICKED { .. }) => {
                self.life.ends(format!("{} is lost: its kernel panicked", self.name));
            }
            // QEMU has stopped the guest, which would look as if it hung for ever.
            Some(qapi_qmp::Event::BLOCK_IO_ERROR { data, .. })
                if data.action == qapi_qmp::BlockErrorAction::stop =>
            {
                self.life.ends(self.disk_error(data.nospace == Some(true), &data.reason));
            }
            _ => {}
        }
    }

    fn disk_error(&self, full: bool, reason: &str) -> Cause {
        let name = &self.name;
        let (why, hint) = if full {
            (
                "the host's disk is full".to_owned(),
                "free some space where the store is, and run again",
            )
        } else {
            (format!("the host's disk fails: {reason}"), "look at the host's disk (`dmesg`)")
        };
        let text = format!("{name} was stopped in the middle of a write to its disk: {why}");
        Cause { text, kind: Kind::Host, hint: Some(hint.into()) }
    }

    fn cause(&self, status: ExitStatus, powered_off: bool) -> String {
        let name = &self.name;
        if self.stopping.load(Ordering::Relaxed) {
            return format!("{name} was stopped");
        }
        if powered_off {
            return format!("{name} powered itself off");
        }
        let how = process::describe(status);
        match tail(&self.log, 1).pop() {
            Some(last) => {
                format!("QEMU of {name} {how}; it said last: {}", self.redactor.clean(&last))
            }
            None => format!("QEMU of {name} {how}"),
        }
    }
}

/// QEMU's words on each piece of memory that a restored guest frees: its memory is mapped from a
/// file that nobody writes (see `checkpoint::mapped`), so that the piece stays. Nothing is wrong.
const KEEPS_FREED: &str = "Discarding RAM with readonly files is not supported";

/// The last `count` lines of a log that have something in them.
fn tail(log: &Path, count: usize) -> Vec<String> {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let kept: Vec<&str> = text.lines().filter(|l| !l.contains(KEEPS_FREED)).collect();
    last_lines(&kept.join("\n"), count)
}

#[cfg(test)]
mod tests;
