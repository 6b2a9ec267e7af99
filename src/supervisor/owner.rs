//! The owner of a running lab: machines and networks are its alone, and everything asked of them
//! passes through one loop, so that two requests never meet in the middle of a machine.

use super::fault::FaultRequest;
use super::forward::{Forwards, Way};
use super::handles::{Handles, Reach, Seen, no_node};
use super::place::{Claim, Place, SOCKET};
use super::protocol::{Answer, Phase, Request};
use super::proxy::Proxy;
use super::seam::{self, Writer};
use super::status::{Heartbeats, Status};
use super::{login, serve, socket};
use crate::cluster::credentials::Cloud;
use crate::cluster::node_tasks::{self, Resync};
use crate::error::{Context, Error, Kind, Result};
use crate::lab::admission::Reservation;
use crate::lab::{Lab, LabOptions, Node};
use crate::layers::{self, Held};
use crate::secret::Redactor;
use crate::wait::Patience;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::AbortHandle;

/// Requests that wait for the loop.
const JOBS: usize = 16;

/// How a lab ended that was up.
#[derive(Debug, PartialEq)]
pub enum Ended {
    /// By `lab down`.
    Asked,
    /// With its last machine; the causes of all.
    Died(String),
    /// Before anybody had heard that it is up.
    GivenUp,
}

/// What a lab that came up runs with.
#[derive(Debug)]
pub struct Running {
    pub lab: Lab,
    /// For restoring another in its place.
    pub options: LabOptions,
    pub cloud: Option<Cloud>,
    /// Of a restored cloud; taken by who tells the lab's status.
    pub heartbeats: Option<watch::Receiver<Heartbeats>>,
    pub resync: Resync,
    /// The command that ssh reaches a node's port through; see [`login::write`].
    pub proxy_command: String,
    /// Given back with the lab.
    pub room: Reservation,
}

/// An owner listens from before its lab is up: it can be asked how far it is, and to end. Dropped,
/// it stops listening and leaves the reason of its end.
#[derive(Debug)]
pub struct Owner {
    claim: Claim,
    patience: Patience,
    shared: Arc<Shared>,
    jobs: mpsc::Receiver<Job>,
    accept: AbortHandle,
}

/// What the loop and the connections share. Connections hold no machine.
pub(super) struct Shared {
    pub name: String,
    pub from: String,
    pub started: u64,
    pub since: Instant,
    pub redactor: Redactor,
    pub forwards: Arc<Forwards>,
    pub jobs: mpsc::Sender<Job>,
    pub down: watch::Sender<bool>,
    now: Mutex<Now>,
}

#[derive(Default)]
struct Now {
    handles: Option<Arc<Handles>>,
    doing: Option<String>,
    /// Nothing new is to be connected: what the lab is being saved with would be cut off, and half
    /// known to a lab restored from it.
    closed: bool,
    frozen: BTreeSet<String>,
    /// Node and network.
    cut: BTreeSet<(String, String)>,
    proxy: Option<(String, Option<Cloud>)>,
    heartbeats: Option<watch::Receiver<Heartbeats>>,
}

/// One request for the loop.
pub(super) struct Job {
    pub request: Request,
    pub reply: oneshot::Sender<Result<Done>>,
}

pub(super) enum Done {
    Answer(Answer),
    Capture(Writer),
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Shared {
    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub fn handles(&self) -> Result<Arc<Handles>> {
        let now = self.now();
        now.handles.clone().ok_or_else(|| {
            let doing = now.doing.as_deref().unwrap_or("starting");
            Error::lab(format!("lab {} is not up: {doing}", self.name))
                .hint("`stackproof lab status` tells how far it is")
        })
    }

    /// The way into the lab, unless it is closed at the moment.
    pub fn reach(&self) -> Result<Reach> {
        let handles = self.handles()?;
        let now = self.now();
        if now.closed {
            let doing = now.doing.as_deref().unwrap_or("being saved");
            return Err(Error::lab(format!("lab {} takes no connections: {doing}", self.name))
                .hint("try again in a moment; `stackproof lab status` tells when it is over"));
        }
        Ok(handles.reach.clone())
    }

    pub fn way(self: &Arc<Self>) -> Way {
        let shared = Arc::downgrade(self);
        Arc::new(move || -> Result<Reach> {
            let shared = shared.upgrade().ok_or_else(|| Error::lab("the lab has ended"))?;
            shared.reach()
        })
    }

    pub fn proxy(&self) -> Result<(String, Option<Cloud>)> {
        self.handles()?;
        self.now().proxy.clone().ok_or_else(|| Error::internal("a lab without its proxy"))
    }

    pub fn status(&self) -> Status {
        let now = self.now();
        let phase = if now.handles.is_some() { Phase::Up } else { Phase::Starting };
        let handles = now.handles.as_deref();
        let cut = |node: &str| {
            now.cut.iter().filter(|(n, _)| n == node).map(|(_, network)| network.clone()).collect()
        };
        let nodes = handles.map(|h| {
            let one = |n: &Seen| n.status(now.frozen.contains(n.name()), cut(n.name()));
            h.nodes.iter().map(one).collect()
        });
        Status {
            name: self.name.clone(),
            phase,
            note: now.doing.clone(),
            pid: std::process::id(),
            started: self.started,
            uptime_seconds: self.since.elapsed().as_secs_f64(),
            from: self.from.clone(),
            logs: handles.map(|h| h.logs.clone()),
            user: handles.map(|h| h.user.clone()),
            nodes: nodes.unwrap_or_default(),
            networks: handles.map(|h| h.networks.clone()).unwrap_or_default(),
            forwards: self.forwards.status(),
            cloud: now.proxy.as_ref().is_some_and(|(_, cloud)| cloud.is_some()),
            heartbeats: now.heartbeats.as_ref().map(|h| h.borrow().clone()),
        }
    }
}

impl Owner {
    /// Listens. Must be called within a runtime.
    pub fn start(claim: Claim, patience: &Patience, redactor: &Redactor) -> Result<Owner> {
        let dir = claim.place().dir();
        let listener = socket::listen(&dir, SOCKET)
            .doing(Kind::Host, || format!("cannot listen in {}", dir.display()))?;
        let (to_jobs, jobs) = mpsc::channel(JOBS);
        let shared = Arc::new(Shared {
            name: claim.place().name().to_owned(),
            from: claim.state().from.clone(),
            started: claim.state().started,
            since: Instant::now(),
            redactor: redactor.clone(),
            forwards: Arc::default(),
            jobs: to_jobs,
            down: watch::Sender::new(false),
            now: Mutex::default(),
        });
        let accept = tokio::spawn(serve::accept(listener, shared.clone())).abort_handle();
        Ok(Owner { claim, patience: patience.clone(), shared, jobs, accept })
    }

    pub fn place(&self) -> &Place {
        self.claim.place()
    }

    /// What it is doing, for those who ask while it starts.
    pub fn doing(&self, what: &str) {
        self.shared.now().doing = Some(what.to_owned());
    }

    /// Resolves when somebody asked for the lab's end.
    pub fn asked_down(&self) -> impl Future<Output = ()> + Send + use<> {
        asked(&self.shared)
    }

    /// The lab never came up. Nothing is kept where nobody is left to read it.
    pub fn failed(mut self, error: &Error) {
        if error.kind() == Kind::Interrupted {
            self.claim.remove();
        }
        self.claim
            .ended(format!("it never came up: {}", self.shared.redactor.clean(&error.to_string())));
    }

    /// From now on everything can be asked. `up` is called with the first status, and tells whether
    /// somebody has heard it; else nobody knows of the lab, and it ends.
    pub async fn run(
        mut self,
        mut running: Running,
        up: impl AsyncFnOnce(Status) -> bool,
    ) -> Result<Ended> {
        let proxy = self.open(&mut running).await?;
        self.claim.up()?;
        let heard = tokio::select! {
            heard = up(self.shared.status()) => heard,
            // By somebody else, who has.
            () = asked(&self.shared) => true,
        };
        let ended = match heard {
            true => self.serve(&mut running).await,
            false => Ok(Ended::GivenUp),
        };
        self.shared.now().handles = None;
        drop(proxy);
        let stopped = match ended {
            // The machines went with a failed restore.
            Err(e) => {
                self.claim.ended(e.to_string());
                return Err(e);
            }
            Ok(gone @ (Ended::Asked | Ended::GivenUp)) => {
                self.claim.remove();
                gone
            }
            Ok(Ended::Died(why)) => {
                self.claim.ended(why.clone());
                Ended::Died(why)
            }
        };
        // What waits for the nodes is over, and not in vain.
        running.resync.stop().await;
        running.lab.stop().await?;
        Ok(stopped)
    }

    async fn open(&mut self, running: &mut Running) -> Result<Proxy> {
        let proxy = Proxy::start(self.shared.way()).await?;
        self.shared.redactor.add(&proxy.url);
        self.shared.redactor.add(&proxy.password);
        login::write(self.claim.place(), &running.lab, &running.proxy_command)?;
        let mut now = self.shared.now();
        now.proxy = Some((proxy.url.reveal().to_owned(), running.cloud.clone()));
        now.heartbeats = running.heartbeats.take();
        now.handles = Some(Arc::new(Handles::of(&running.lab, &self.patience.speed)));
        now.doing = None;
        drop(now);
        Ok(proxy)
    }

    async fn serve(&mut self, running: &mut Running) -> Result<Ended> {
        let down = asked(&self.shared);
        tokio::pin!(down);
        loop {
            let Job { request, reply } = tokio::select! {
                biased;
                () = &mut down => return Ok(Ended::Asked),
                causes = all_dead(&running.lab) => return Ok(Ended::Died(causes)),
                Some(job) = self.jobs.recv() => job,
            };
            let work = Work { shared: &self.shared, patience: &self.patience, running };
            let claim = &self.claim;
            let out = tokio::select! {
                biased;
                () = &mut down => return Ok(Ended::Asked),
                out = work.done(request, claim) => out,
            };
            match out {
                Ok(done) => drop(reply.send(done)),
                Err(fatal) => {
                    let told = Error::new(fatal.kind(), fatal.to_string());
                    let _ = reply.send(Err(told));
                    return Err(fatal);
                }
            }
        }
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.accept.abort();
    }
}

fn asked(shared: &Shared) -> impl Future<Output = ()> + Send + use<> {
    let mut down = shared.down.subscribe();
    async move {
        // The sender lives in what we were made from; without it there is nothing left to end.
        let _ = down.wait_for(|down| *down).await;
    }
}

/// Resolves with every node's cause of death, once none lives.
async fn all_dead(lab: &Lab) -> String {
    let mut causes = Vec::new();
    for node in lab.nodes() {
        causes.push(node.vm.death().wait().await);
    }
    causes.join("; ")
}

/// One request at work.
struct Work<'w> {
    shared: &'w Arc<Shared>,
    patience: &'w Patience,
    running: &'w mut Running,
}

impl Work<'_> {
    /// An outer error ends the lab: there is none any more.
    async fn done(self, request: Request, claim: &Claim) -> Result<Result<Done>> {
        let out = match request {
            Request::Fault(fault) => self.fault(fault).await,
            Request::Capture { network, node } => {
                return Ok(
                    seam::capture(&self.running.lab, &network, node.as_deref()).map(Done::Capture)
                );
            }
            Request::Checkpoint { into } => {
                {
                    let mut now = self.shared.now();
                    now.doing = Some(format!("writing checkpoint {}", into.display()));
                    now.closed = true;
                }
                let notes = Cloud::notes(self.running.cloud.as_ref());
                let Running { lab, resync, .. } = &mut *self.running;
                let out = seam::checkpoint(lab, resync, &into, notes, self.patience).await;
                self.renew();
                out.map(|()| Answer::Done)
            }
            Request::Restore { from } => match self.may_restore(&from) {
                // Held here: whoever asked may be gone before it is over.
                Ok(_held) => return self.restore(&from, claim).await.map(Ok),
                Err(e) => Err(e),
            },
            _ => Err(Error::internal("a request that is not for the loop")),
        };
        Ok(out.map(Done::Answer))
    }

    /// Whether the running lab may be given up for a checkpoint, which stays then as long as what is
    /// returned lives.
    fn may_restore(&self, from: &std::path::Path) -> Result<Option<Held>> {
        let held = layers::hold(from)?;
        seam::replaces(from, &self.running.lab, &self.running.options)?;
        Ok(held)
    }

    async fn restore(self, from: &std::path::Path, claim: &Claim) -> Result<Done> {
        let doing = format!("restoring {}", from.display());
        {
            let mut now = self.shared.now();
            now.handles = None;
            now.doing = Some(doing.clone());
        }
        self.running.resync.stop().await;
        // Two of them would need twice the memory: the old machines go first.
        for node in self.running.lab.nodes() {
            node.vm.kill().await;
        }
        let options = &self.running.options;
        let restored = seam::restore(from, options, self.patience, &self.shared.redactor).await;
        let seam::Back { lab, cloud, heartbeats, resync } =
            restored.map_err(|e| e.while_doing(doing))?;
        self.running.lab = lab;
        self.running.cloud = cloud;
        self.running.resync = resync;
        login::write(claim.place(), &self.running.lab, &self.running.proxy_command)?;
        {
            let mut now = self.shared.now();
            now.frozen.clear();
            now.cut.clear();
            now.heartbeats = heartbeats;
            if let Some((_, cloud)) = &mut now.proxy {
                *cloud = self.running.cloud.clone();
            }
        }
        self.renew();
        Ok(Done::Answer(Answer::Done))
    }

    fn renew(&self) {
        let handles = Handles::of(&self.running.lab, &self.patience.speed);
        let mut now = self.shared.now();
        now.handles = Some(Arc::new(handles));
        now.doing = None;
        now.closed = false;
    }

    fn node(&self, name: &str) -> Result<&Node> {
        let lab = &self.running.lab;
        let names: Vec<String> = lab.nodes().iter().map(|n| n.name().to_owned()).collect();
        lab.node(name).ok_or_else(|| no_node(name, names.iter()))
    }

    async fn fault(self, fault: FaultRequest) -> Result<Answer> {
        let alive = |node: &Node| match node.vm.death().cause() {
            Some(cause) => Err(Error::lab(format!("{} is dead: {cause}", node.name()))),
            None => Ok(()),
        };
        match fault {
            FaultRequest::Cut { at } => self.link(&at.network, at.node.as_deref(), false),
            FaultRequest::Heal { at } => self.link(&at.network, at.node.as_deref(), true),
            FaultRequest::Freeze { node } => {
                let node = self.node(&node)?;
                alive(node)?;
                node.vm.qmp().call(&qapi_qmp::stop {}).await?;
                self.shared.now().frozen.insert(node.name().to_owned());
                Ok(Answer::Done)
            }
            FaultRequest::Thaw { node } => {
                let node = self.node(&node)?;
                alive(node)?;
                node.vm.run().await?;
                self.shared.now().frozen.remove(node.name());
                Ok(Answer::Done)
            }
            FaultRequest::PowerCut { node } => {
                let node = self.node(&node)?;
                alive(node)?;
                let all = self.running.lab.nodes().iter();
                if all.filter(|n| alive(n).is_ok()).count() == 1 {
                    let name = node.name();
                    return Err(Error::input(format!(
                        "{name} is the last machine that is on: the lab would end with it"
                    ))
                    .hint(format!(
                        "`stackproof lab fault reset {name}` cuts its power and gives it back; \
                         `stackproof lab down` ends the lab"
                    )));
                }
                node.vm.kill().await;
                Ok(Answer::Done)
            }
            FaultRequest::PowerOn { node } => self.power_on(&node).await,
            FaultRequest::Reset { node } => {
                let node = self.node(&node)?;
                alive(node)?;
                node.vm.reset().await?;
                Ok(Answer::Done)
            }
            FaultRequest::Fill { node } => self.fill(&node, true).await,
            FaultRequest::Free { node } => self.fill(&node, false).await,
            FaultRequest::Partition { network, groups } => {
                seam::partition(&self.running.lab, &network, &groups).map(|()| Answer::Done)
            }
            FaultRequest::Disturb { at, impairment, seed } => {
                seam::disturb(&self.running.lab, &at, impairment, seed).map(|()| Answer::Done)
            }
            FaultRequest::Clear { network } => {
                seam::clear(&self.running.lab, &network).map(|()| Answer::Done)
            }
        }
    }

    async fn power_on(self, name: &str) -> Result<Answer> {
        let node = self.node(name)?;
        if node.vm.death().cause().is_none() {
            return Err(Error::input(format!("{name} is on"))
                .hint(format!("`stackproof lab fault power-cut {name}` switches it off")));
        }
        let Running { lab, options, .. } = &mut *self.running;
        self.shared.now().doing = Some(format!("switching {name} on"));
        let out = lab.power_on_again(name, options, self.patience, &self.shared.redactor).await;
        {
            let mut now = self.shared.now();
            now.frozen.remove(name);
            now.cut.retain(|(node, _)| node != name);
        }
        self.renew();
        out.map(|()| Answer::Done)
    }

    async fn fill(&self, node: &str, full: bool) -> Result<Answer> {
        let lab = &self.running.lab;
        let reached = node_tasks::reach(lab, &self.patience.speed)?;
        node_tasks::fill(&reached, self.node(node)?.name(), full, self.patience).await?;
        Ok(Answer::Done)
    }

    /// Cuts or heals one cable, or all of a network.
    fn link(&self, network: &str, node: Option<&str>, up: bool) -> Result<Answer> {
        let lab = &self.running.lab;
        if lab.spec().network(network).is_none() {
            let known: Vec<&str> = lab.spec().networks.iter().map(|n| n.name.as_str()).collect();
            return Err(Error::input(format!("the lab has no network `{network}`"))
                .hint(format!("its networks are: {}", known.join(", "))));
        }
        let on = |node: &Node| node.spec.nics.iter().any(|nic| nic.network == network);
        let nodes: Vec<&Node> = match node {
            Some(name) => vec![self.node(name)?],
            None => lab.nodes().iter().filter(|n| on(n)).collect(),
        };
        if let Some(without) = nodes.iter().find(|n| !on(n)) {
            let nics: Vec<&str> = without.spec.nics.iter().map(|n| n.network.as_str()).collect();
            return Err(Error::input(format!("{} has no NIC on {network}", without.name()))
                .hint(format!("its NICs are on: {}", nics.join(", "))));
        }
        let mut now = self.shared.now();
        for node in nodes {
            node.vm.set_link(network, up)?;
            let port = (node.name().to_owned(), network.to_owned());
            if up {
                now.cut.remove(&port);
            } else {
                now.cut.insert(port);
            }
        }
        Ok(Answer::Done)
    }
}
