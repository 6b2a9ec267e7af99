//! Brings a plan's nodes to their declared state, and says what it changed.

use super::batch::{self, OnFailure, Piece};
use super::inventory::Node;
use super::journal::Journal;
use super::observe::{Sight, observe};
use super::plan::{Order, Plan, Step};
use super::resource::{Resource, Script, Verdict};
use super::ssh;
use crate::error::{Error, FailureCause, Kind, Result, last_lines};
use crate::wait::{Death, Patience, Poll};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// What a run found and did.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub took: Duration,
    /// In the order of the plan.
    pub steps: Vec<StepReport>,
    /// In the order in which it happened; of a check, what would be changed.
    pub changed: Vec<Change>,
    /// How many resources were as declared from the start.
    pub unchanged: usize,
    /// Units that were running and were restarted: `unit keystone.service on openstack1`.
    pub restarts: Vec<String>,
}

#[derive(Clone, Debug)]
pub struct StepReport {
    pub id: String,
    pub node: String,
    /// From its turn to its verification; zero for a step that was as declared.
    pub took: Duration,
    pub changed: usize,
}

#[derive(Clone, Debug)]
pub struct Change {
    pub node: String,
    pub step: String,
    pub resource: String,
    /// Cleaned of secrets.
    pub differences: Vec<String>,
}

/// Observes and changes nodes.
#[derive(Clone, Debug)]
pub struct Engine {
    nodes: Vec<Node>,
    patience: Patience,
    journal: Journal,
    per_node: usize,
}

/// How long one observation may take on the reference machine, reconnecting included.
const OBSERVING: Duration = Duration::from_secs(60);
/// Between two tries to reach a node again.
const AGAIN: Duration = Duration::from_secs(1);
/// What a round trip may add to a resource's own patience.
const ROUND_TRIP: Duration = Duration::from_secs(10);
const STDERR_LINES: usize = 12;

impl Engine {
    pub fn new(nodes: Vec<Node>, patience: Patience, journal: Journal) -> Engine {
        Engine { nodes, patience, journal, per_node: 3 }
    }

    /// How many steps may be applied at once on one node. Default 3.
    pub fn per_node(mut self, steps: usize) -> Engine {
        self.per_node = steps.max(1);
        self
    }

    /// Looks only: what `apply` would change, found in one round trip a node.
    pub async fn check(&self, plan: &Plan, death: &Death) -> Result<Report> {
        let start = Instant::now();
        self.validate(plan)?;
        let sights = mortal(death, "observed", self.observe_all(plan)).await?;
        let mut report = Report::default();
        for (step, sights) in plan.steps.iter().zip(&sights) {
            for (resource, sight) in step.resources.iter().zip(sights) {
                match &sight.verdict {
                    Verdict::Same => report.unchanged += 1,
                    Verdict::Differs(lines) => {
                        report.changed.push(self.change(step, resource.as_ref(), lines));
                    }
                }
            }
            report.steps.push(step_report(step, Duration::ZERO, 0));
        }
        report.took = start.elapsed();
        Ok(report)
    }

    /// Observes everything, applies what differs, and observes everything again. Ends at once when
    /// a node dies or `death` comes, that of anything the nodes stand on; after a step has failed no
    /// other is begun. To cancel it, drop the future.
    pub async fn apply(&self, plan: impl Into<Arc<Plan>>, death: &Death) -> Result<Report> {
        let plan = plan.into();
        let order = self.validate(&plan)?;
        mortal(death, "provisioned", self.apply_all(plan, order)).await
    }

    fn validate(&self, plan: &Plan) -> Result<Order> {
        let names: Vec<&str> = self.nodes.iter().map(|n| n.name.as_str()).collect();
        plan.validate(&names)
    }

    async fn apply_all(&self, plan: Arc<Plan>, order: Order) -> Result<Report> {
        let start = Instant::now();
        let sights = self.observe_all(&plan).await?;
        let mut run = Run::new(self.clone(), plan.clone(), order, sights);
        let mut report = run.all().await?;
        if !report.changed.is_empty() {
            self.verify(&plan).await?;
        }
        report.took = start.elapsed();
        Ok(report)
    }

    /// The last word: everything observed once more, and all of it as declared.
    async fn verify(&self, plan: &Plan) -> Result<()> {
        let sights = self.observe_all(plan).await?;
        let mut wrong = Vec::new();
        for (step, sights) in plan.steps.iter().zip(&sights) {
            for (resource, sight) in step.resources.iter().zip(sights) {
                if let Verdict::Differs(lines) = &sight.verdict {
                    let lines = self.clean(lines).join("; ");
                    wrong.push(format!("{} on {}: {lines}", resource.id(), step.node));
                }
            }
        }
        if wrong.is_empty() {
            return Ok(());
        }
        wrong.iter().for_each(|w| self.journal.note("all", &format!("not as declared: {w}")));
        Err(Error::provision(format!(
            "{} resources are not as declared after every step was: one undoes what another does, \
             or something else changes them",
            wrong.len()
        ))
        .evidence(wrong))
    }

    fn clean(&self, lines: &[String]) -> Vec<String> {
        lines.iter().map(|l| self.journal.redactor().clean(l)).collect()
    }

    fn change(&self, step: &Step, resource: &dyn Resource, lines: &[String]) -> Change {
        Change {
            node: step.node.clone(),
            step: step.id.clone(),
            resource: resource.id(),
            differences: self.clean(lines),
        }
    }

    /// Every step's resources as they are, one round trip a node, all nodes at once.
    async fn observe_all(&self, plan: &Plan) -> Result<Vec<Vec<Sight>>> {
        let mut out: Vec<Vec<Sight>> = plan.steps.iter().map(|_| Vec::new()).collect();
        let looks = self.nodes.iter().map(|node| async move {
            let steps: Vec<(usize, &Step)> =
                plan.steps.iter().enumerate().filter(|(_, s)| s.node == node.name).collect();
            let resources: Vec<&dyn Resource> =
                steps.iter().flat_map(|(_, s)| s.resources.iter().map(AsRef::as_ref)).collect();
            self.patience.events.node(&node.name, "observing", 0, steps.len() as u64);
            let mut sights = self.look(node, &resources).await?.into_iter();
            let cut = |(i, step): (usize, &Step)| {
                (i, sights.by_ref().take(step.resources.len()).collect::<Vec<_>>())
            };
            Ok::<_, Error>(steps.into_iter().map(cut).collect::<Vec<_>>())
        });
        for part in all(looks).await? {
            part.into_iter().for_each(|(i, sights)| out[i] = sights);
        }
        Ok(out)
    }

    /// Observes on one node, reconnecting as long as patience lasts: looking changes nothing.
    async fn look(&self, node: &Node, resources: &[&dyn Resource]) -> Result<Vec<Sight>> {
        let limit = self.patience.speed.scale(OBSERVING).as_secs();
        let what = format!("the observation of {}", node.name);
        let tries = || async {
            match observe(node.shell.as_ref(), resources, limit).await {
                Ok(sights) => Poll::Ready(sights),
                Err(e) if ssh::is_lost(&e) => {
                    self.journal.note(&node.name, &format!("observing: {e}"));
                    Poll::NotYet(e.to_string())
                }
                Err(e) => Poll::Failed(e.while_doing(&what)),
            }
        };
        self.patience.until(&what, OBSERVING, AGAIN, &node.death, tries).await
    }

    fn node(&self, name: &str) -> Result<&Node> {
        let found = self.nodes.iter().find(|n| n.name == name);
        found.ok_or_else(|| Error::internal(format!("no node is called {name}")))
    }

    /// Applies `scripts` in one round trip; the pieces end with the first that failed.
    async fn change_node(
        &self,
        node: &Node,
        what: &str,
        seconds: u64,
        scripts: &[Script],
    ) -> Result<Vec<Piece>> {
        let nominal = Duration::from_secs(seconds);
        // The fragments' own limit comes first, so that they can say what they waited for.
        let limit = self.patience.speed.scale(nominal).as_secs().max(1);
        let work = batch::run(node.shell.as_ref(), scripts, limit, OnFailure::Stop);
        let what = format!("{what} on {}", node.name);
        let done = self.patience.within(&what, nominal + ROUND_TRIP, &node.death, work).await;
        // A machine that lives and is late with a change is no failure of the lab.
        done.map_err(|e| match e.cause() {
            Some(FailureCause::TimedOut) if node.death.cause().is_none() => {
                e.of_kind(Kind::Provision)
            }
            _ => e,
        })
    }

    /// What the node itself says of a failure; nothing if it cannot be asked.
    async fn explain(&self, node: &Node, resource: &dyn Resource) -> Vec<String> {
        let Some(script) = resource.evidence() else { return Vec::new() };
        let scripts = [script];
        let limit = self.patience.speed.scale(ROUND_TRIP).as_secs();
        let ask = batch::run(node.shell.as_ref(), &scripts, limit, OnFailure::GoOn);
        let what = format!("the journal of {}", resource.id());
        match self.patience.within(&what, ROUND_TRIP, &node.death, ask).await {
            Ok(pieces) => pieces
                .iter()
                .flat_map(|p| last_lines(&p.text(), 40))
                .map(|l| self.journal.redactor().clean(&l))
                .collect(),
            Err(_) => Vec::new(),
        }
    }

    /// Applies one step: what differs in order, observed again after each round of changes.
    async fn step(&self, step: &Step, first: Option<Vec<Sight>>) -> Result<StepDone> {
        let node = self.node(&step.node)?;
        let start = Instant::now();
        let resources: Vec<&dyn Resource> = step.resources.iter().map(AsRef::as_ref).collect();
        let mut done = StepDone::default();
        let mut sights = match first {
            Some(sights) => sights,
            None => self.look(node, &resources).await?,
        };
        let mut tries = vec![0; resources.len()];
        let mut lost_once = false;
        while let Some(round) = next_round(&resources, &sights) {
            for &i in &round {
                tries[i] += 1;
                if tries[i] > 2 {
                    return Err(self.undone(step, resources[i], &sights[i]));
                }
            }
            match self.round(step, node, &resources, &sights, &round, &mut done).await {
                Ok(()) => {}
                Err(e) if ssh::is_lost(&e) && !lost_once && node.death.cause().is_none() => {
                    // What was under way may or may not have happened: looking tells.
                    lost_once = true;
                    self.journal.note(&node.name, &format!("{}: {e}; looking again", step.id));
                    self.patience.events.warning(format!("{}: {e}; trying again", step.id));
                    sights = self.look(node, &resources).await?;
                    continue;
                }
                Err(e) => return Err(e.while_doing(format!("step {}", step.id))),
            }
            sights = self.look(node, &resources).await?;
            for &i in &round {
                if let Verdict::Differs(lines) = &sights[i].verdict {
                    return Err(self.not_converged(step, node, resources[i], lines, &done).await);
                }
            }
        }
        done.took = start.elapsed();
        Ok(done)
    }

    /// One round trip of changes.
    async fn round(
        &self,
        step: &Step,
        node: &Node,
        resources: &[&dyn Resource],
        sights: &[Sight],
        round: &[usize],
        done: &mut StepDone,
    ) -> Result<()> {
        let scripts: Vec<Script> =
            round.iter().map(|&i| resources[i].apply(&sights[i].seen)).collect();
        let seconds = patience_of(round.iter().map(|&i| resources[i].patience()));
        let what = match round {
            [one] => resources[*one].id(),
            [first, rest @ ..] => format!("{} and {} more", resources[*first].id(), rest.len()),
            [] => return Ok(()),
        };
        self.patience.events.detail(format!("{}: {what}", step.node));
        let start = Instant::now();
        let pieces = match self.change_node(node, &what, seconds, &scripts).await {
            Ok(pieces) => pieces,
            Err(e) if ssh::is_lost(&e) || node.death.cause().is_some() => return Err(e),
            Err(e) => {
                let i = round[0];
                let evidence = self.explain(node, resources[i]).await;
                self.journal.note(&node.name, &format!("{what}: {e}\n{}", evidence.join("\n")));
                return Err(e.evidence(evidence));
            }
        };
        for (&i, piece) in round.iter().zip(&pieces) {
            let (resource, sight) = (resources[i], &sights[i]);
            let Verdict::Differs(lines) = &sight.verdict else { continue };
            let change = self.change(step, resource, lines);
            let (id, lines) = (&change.resource, change.differences.join("; "));
            done.stderr = self.clean(&piece.stderr_tail(STDERR_LINES));
            if piece.status != 0 {
                let mut evidence = vec![format!("differed: {lines}")];
                evidence.extend(done.stderr.clone());
                evidence.extend(self.explain(node, resource).await);
                self.journal.note(
                    &node.name,
                    &format!("{id}: failed with {}\n{}", piece.status, evidence.join("\n")),
                );
                return Err(Error::provision(format!(
                    "{id} on {} could not be applied: exit status {}",
                    node.name, piece.status
                ))
                .evidence(evidence));
            }
            let took = start.elapsed().as_secs_f64();
            self.journal.note(&node.name, &format!("{id}: changed in {took:.1} s: {lines}"));
            if resource.restarts(&sight.seen) {
                done.restarts.push(format!("{id} on {}", node.name));
            }
            done.changed.push(change);
        }
        Ok(())
    }

    async fn not_converged(
        &self,
        step: &Step,
        node: &Node,
        resource: &dyn Resource,
        lines: &[String],
        done: &StepDone,
    ) -> Error {
        let lines = self.clean(lines).join("; ");
        let mut evidence = done.stderr.clone();
        evidence.extend(self.explain(node, resource).await);
        let text = format!(
            "step {}: {} on {} was applied without an error and still differs: {lines}",
            step.id,
            resource.id(),
            node.name
        );
        self.journal.note(&node.name, &text);
        Error::provision(text).evidence(evidence)
    }

    fn undone(&self, step: &Step, resource: &dyn Resource, sight: &Sight) -> Error {
        let lines = match &sight.verdict {
            Verdict::Differs(lines) => self.clean(lines).join("; "),
            Verdict::Same => String::new(),
        };
        Error::provision(format!(
            "step {}: {} on {} does not stay as it is applied: {lines}",
            step.id,
            resource.id(),
            step.node
        ))
    }
}

/// The next changes that can go in one round trip: the first that differs, and if that is quick,
/// the quick ones after it that also differ and write other paths.
fn next_round(resources: &[&dyn Resource], sights: &[Sight]) -> Option<Vec<usize>> {
    let mut differing = (0..resources.len()).filter(|&i| !sights[i].verdict.is_same());
    let first = differing.next()?;
    let mut round = vec![first];
    if resources[first].quick() {
        let mut written = resources[first].writes();
        for i in differing {
            let writes = resources[i].writes();
            if !resources[i].quick() || writes.iter().any(|w| written.contains(w)) {
                break;
            }
            written.extend(writes);
            round.push(i);
        }
    }
    Some(round)
}

/// For a round, in seconds on the reference machine: what the slowest of it may take, and a little
/// for each other. Only quick ones have company, and together they take no multiple of what one may.
fn patience_of(each: impl ExactSizeIterator<Item = u64>) -> u64 {
    let company = 2 * each.len().saturating_sub(1) as u64;
    each.max().unwrap_or(0) + company
}

/// Ends `work` when what the nodes stand on dies: a failure of the lab, and nobody's wish.
async fn mortal<T>(death: &Death, what: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
    let mut death = death.clone();
    tokio::select! {
        biased;
        cause = death.wait() => {
            Err(Error::lab(format!("while the nodes were being {what}: {cause}")))
        }
        out = work => out,
    }
}

#[derive(Debug, Default)]
struct StepDone {
    took: Duration,
    changed: Vec<Change>,
    restarts: Vec<String>,
    /// Last lines of the last change.
    stderr: Vec<String>,
}

fn step_report(step: &Step, took: Duration, changed: usize) -> StepReport {
    StepReport { id: step.id.clone(), node: step.node.clone(), took, changed }
}

/// One walk through the plan.
struct Run {
    engine: Engine,
    plan: Arc<Plan>,
    order: Order,
    sights: Vec<Vec<Sight>>,
    state: Vec<State>,
    /// Changes made so far on each node, shared with the steps that run: what was seen before
    /// another step's change may be stale.
    changes: Vec<Arc<AtomicU64>>,
    slots: Vec<Arc<Semaphore>>,
    report: Report,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting,
    Running,
    /// In its declared state; `true` if it, or one before it, was changed.
    Done(bool),
    Failed,
}

impl Run {
    fn new(engine: Engine, plan: Arc<Plan>, order: Order, sights: Vec<Vec<Sight>>) -> Run {
        let slots = engine.nodes.iter().map(|_| Arc::new(Semaphore::new(engine.per_node)));
        let changes = engine.nodes.iter().map(|_| Arc::default());
        let same = sights.iter().flatten().filter(|sight| sight.verdict.is_same());
        let report = Report {
            unchanged: same.count(),
            steps: plan.steps.iter().map(|s| step_report(s, Duration::ZERO, 0)).collect(),
            ..Report::default()
        };
        Run {
            state: vec![State::Waiting; plan.steps.len()],
            slots: slots.collect(),
            changes: changes.collect(),
            report,
            engine,
            plan,
            order,
            sights,
        }
    }

    async fn all(&mut self) -> Result<Report> {
        let mut running: JoinSet<(usize, Result<StepDone>)> = JoinSet::new();
        let mut failure: Option<(usize, Error)> = None;
        loop {
            if failure.is_none() {
                self.start_ready(&mut running);
            }
            // Dropping the set ends all that runs: so a death or a dropped future ends everything.
            let Some(ended) = running.join_next().await else { break };
            let (i, out) = ended.map_err(|e| Error::internal("a step's task failed").because(e))?;
            match out {
                Ok(done) => self.done(i, done),
                Err(e) => {
                    self.state[i] = State::Failed;
                    let node = self.engine.node(&self.plan.steps[i].node)?;
                    if node.death.cause().is_some() {
                        return Err(e);
                    }
                    match &failure {
                        None => failure = Some((i, e)),
                        Some(_) => self.engine.journal.note(&node.name, &format!("also: {e}")),
                    }
                }
            }
        }
        match failure {
            None => Ok(std::mem::take(&mut self.report)),
            Some((i, e)) => Err(self.with_skipped(i, e)),
        }
    }

    fn start_ready(&mut self, running: &mut JoinSet<(usize, Result<StepDone>)>) {
        // A step that needs nothing may free the next at once.
        loop {
            let mut again = false;
            for i in 0..self.state.len() {
                let before = &self.order.before[i];
                let is_done = |&b: &usize| matches!(self.state[b], State::Done(_));
                if self.state[i] != State::Waiting || !before.iter().all(is_done) {
                    continue;
                }
                let upstream = before.iter().any(|&b| self.state[b] == State::Done(true));
                if !upstream && self.sights[i].iter().all(|s| s.verdict.is_same()) {
                    self.done(i, StepDone::default());
                    again = true;
                } else {
                    self.start(i, upstream, running);
                }
            }
            if !again {
                return;
            }
        }
    }

    fn start(
        &mut self,
        i: usize,
        upstream: bool,
        running: &mut JoinSet<(usize, Result<StepDone>)>,
    ) {
        self.state[i] = State::Running;
        let (engine, plan) = (self.engine.clone(), self.plan.clone());
        let node = engine.nodes.iter().position(|n| n.name == plan.steps[i].node);
        let node = node.expect("the plan was validated against the nodes");
        let (slot, changes) = (self.slots[node].clone(), self.changes[node].clone());
        let sights = std::mem::take(&mut self.sights[i]);
        running.spawn(async move {
            let _slot = slot.acquire_owned().await.expect("slots are never closed");
            let step = &plan.steps[i];
            engine.patience.events.detail(format!("{}: begins", step.id));
            let fresh = !upstream && changes.load(Ordering::SeqCst) == 0;
            // Counted before anything is changed, so that no other step trusts an old sight.
            changes.fetch_add(1, Ordering::SeqCst);
            (i, engine.step(step, fresh.then_some(sights)).await)
        });
    }

    fn done(&mut self, i: usize, done: StepDone) {
        let upstream = self.order.before[i].iter().any(|&b| self.state[b] == State::Done(true));
        self.state[i] = State::Done(upstream || !done.changed.is_empty());
        let step = &self.plan.steps[i];
        self.report.steps[i] = step_report(step, done.took, done.changed.len());
        self.report.changed.extend(done.changed);
        self.report.restarts.extend(done.restarts);
        let of_node = || (0..self.state.len()).filter(|&s| self.plan.steps[s].node == step.node);
        let finished = of_node().filter(|&s| matches!(self.state[s], State::Done(_))).count();
        let total = of_node().count() as u64;
        self.engine.patience.events.node(&step.node, &step.id, finished as u64, total);
    }

    /// Adds to the failure what was not done because of it.
    fn with_skipped(&self, failed: usize, e: Error) -> Error {
        let waiting = || (0..self.state.len()).filter(|&i| self.state[i] == State::Waiting);
        let name = |i: usize| self.plan.steps[i].id.clone();
        let (after, other): (Vec<usize>, Vec<usize>) =
            waiting().partition(|&i| self.order.is_before(failed, i));
        let list = |these: &[usize]| these.iter().map(|&i| name(i)).collect::<Vec<_>>().join(", ");
        let mut lines = Vec::new();
        if !after.is_empty() {
            lines.push(format!("skipped, they come after {}: {}", name(failed), list(&after)));
        }
        if !other.is_empty() {
            lines.push(format!("not begun: {}", list(&other)));
        }
        for line in &lines {
            self.engine.journal.note(&self.plan.steps[failed].node, line);
        }
        e.evidence(lines)
    }
}

/// All of them at once in this task; the first error ends the rest.
async fn all<T>(work: impl IntoIterator<Item = impl Future<Output = Result<T>>>) -> Result<Vec<T>> {
    let mut work: Vec<_> = work.into_iter().map(|w| (Box::pin(w), None)).collect();
    std::future::poll_fn(|cx| {
        use std::task::Poll;
        let mut pending = false;
        for (future, out) in &mut work {
            if out.is_none() {
                match future.as_mut().poll(cx) {
                    Poll::Ready(Ok(value)) => *out = Some(value),
                    Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
                    Poll::Pending => pending = true,
                }
            }
        }
        if pending {
            return Poll::Pending;
        }
        Poll::Ready(Ok(work.iter_mut().filter_map(|(_, out)| out.take()).collect()))
    })
    .await
}

#[cfg(test)]
mod tests;
