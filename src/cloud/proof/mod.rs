//! The proof that a cloud works, seen from outside.
//!
//! [`story`] lists the checks with what each stands on; each is a small function over the
//! [`Context`], and ends as pass, fail or skip. Those that do not wait for each other run at once. A
//! check whose ground did not hold is skipped with the name of what failed, never passed. What was made is deleted and seen gone whatever happened before.

mod checks;
pub mod console;
pub mod context;
mod guest;
mod hidden;
pub mod inputs;
mod ledger;
pub mod login;
pub mod nodes;
pub mod outside;
mod silence;
pub mod story;
#[cfg(test)]
mod tests;
pub mod vxlan;

pub use context::Context;
pub use inputs::{Daemon, Image, ProofInputs, Subnets, World};

use crate::error::{Error, Kind, Result};
use crate::event::{Check, Event, Status};
use crate::wait::{Death, together};
use std::collections::BTreeMap;
use story::{Finding, Step};
use tokio::sync::SetOnce;
use tokio::time::Instant;

/// What the proof came to.
#[derive(Debug)]
pub struct Outcome {
    /// In the order of the story; one for each step that was told, run or not.
    pub checks: Vec<Check>,
    /// Steps that this lab has no place for, each with its reason: not told, and never passed.
    pub left_out: Vec<(String, String)>,
    /// Whose fault the first failure is, where it is not the cloud's.
    kind: Option<Kind>,
    /// Texts worth keeping (`instance-console.log`), by file name, without secrets.
    pub logs: Vec<(String, String)>,
}

impl Outcome {
    /// Whether every check passed: a skipped one proves nothing.
    pub fn passed(&self) -> bool {
        !self.checks.is_empty() && self.checks.iter().all(|c| c.status == Status::Pass)
    }
    /// The check that explains the others: the first that failed.
    pub fn first_failure(&self) -> Option<&Check> {
        self.checks.iter().find(|c| c.status == Status::Fail)
    }
    /// Why the proof is none; None when it passed. Where a machine had died, that is the reason,
    /// whatever was being looked at; a host or an image at fault is no failure of the cloud.
    pub fn error(&self, death: &Death) -> Option<Error> {
        if self.passed() {
            return None;
        }
        let Some(check) = self.first_failure() else {
            return Some(Error::new(Kind::Proof, "not every check was run"));
        };
        let error = match death.cause() {
            Some(cause) => Error::lab(format!("during the proof {cause}"))
                .evidence([format!("`{}` failed:", check.name)]),
            None => {
                let kind = self.kind.unwrap_or(Kind::Proof);
                Error::new(kind, format!("`{}` failed", check.name))
            }
        };
        Some(error.evidence(check.evidence.lines()))
    }
    /// How many checks ended in `status`.
    pub fn count(&self, status: Status) -> usize {
        self.checks.iter().filter(|c| c.status == status).count()
    }
}

/// Runs the whole story. What the cloud does wrong is in the outcome; an error is the host's.
pub async fn prove(inputs: ProofInputs, world: World) -> Result<Outcome> {
    tell(story::STORY, inputs, world).await
}

/// A check that ended.
struct Told {
    check: Check,
    /// Of its failure.
    kind: Option<Kind>,
    /// The check that it did not pass for: itself, or one that it stands on.
    root: Option<&'static str>,
}

/// Runs each step as soon as those that it waits for have ended.
async fn tell(story: &'static [Step], inputs: ProofInputs, world: World) -> Result<Outcome> {
    let context = Context::new(inputs, world)?;
    let mut left_out = Vec::new();
    let mut ends: BTreeMap<&str, SetOnce<Told>> = BTreeMap::new();
    for step in story {
        match story::no_place(step, &context.inputs) {
            Some(reason) => left_out.push((step.name.to_owned(), reason.to_owned())),
            None => drop(ends.insert(step.name, SetOnce::new())),
        }
    }
    let (all, context) = (&ends, &context);
    let one = |step: &'static Step| async move {
        let Some(end) = all.get(step.name) else { return };
        let is_last = story.last().is_some_and(|last| last.name == step.name);
        let others = story.iter().map(|other| other.name).filter(|other| *other != step.name);
        for other in others.filter(|other| is_last || step.waits_for(other)) {
            if let Some(other) = all.get(other) {
                other.wait().await;
            }
        }
        let root_of = |need: &&str| all.get(need)?.get()?.root;
        let told = run(step, step.needs.iter().find_map(root_of), context).await;
        context.inputs.patience.events.send(Event::Check(told.check.clone()));
        // Each step runs once.
        let _ = end.set(told);
    };
    together(story.iter().map(one)).await;
    let told: Vec<Told> =
        story.iter().filter_map(|step| ends.remove(step.name)?.into_inner()).collect();
    let kind = told.iter().find_map(|told| told.kind);
    let checks = told.into_iter().map(|told| told.check).collect();
    Ok(Outcome { checks, left_out, kind, logs: context.take_logs() })
}

/// Runs a step, unless a check that it stands on did not pass for the sake of `root`.
async fn run(step: &'static Step, root: Option<&'static str>, context: &Context) -> Told {
    let start = Instant::now();
    let found = match root {
        Some(root) => Ok(Finding::Skip(format!("`{root}` did not pass"))),
        None => (step.run)(context).await,
    };
    let (status, evidence, kind) = match found {
        Ok(Finding::Pass(seen)) => (Status::Pass, seen, None),
        Ok(Finding::Skip(reason)) => (Status::Skip, reason, None),
        Err(e) => (Status::Fail, explained(&e), Some(fault(&e))),
    };
    let check = Check {
        name: step.name.into(),
        status,
        seconds: start.elapsed().as_secs_f64(),
        evidence: context.inputs.redactor.clean(&evidence),
    };
    let root = (status != Status::Pass).then_some(root.unwrap_or(step.name));
    Told { check, kind, root }
}

/// What kind of failure an error of a check is: a wait in vain or a refusal is the cloud's, what is
/// wrong on our own side keeps its kind.
fn fault(e: &Error) -> Kind {
    match e.kind() {
        own @ (Kind::Internal | Kind::Image | Kind::Host | Kind::Input | Kind::Interrupted) => own,
        Kind::Proof | Kind::Lab | Kind::Provision => Kind::Proof,
    }
}

/// What was expected and seen, the lines that explain it, and the next step.
fn explained(e: &Error) -> String {
    let mut text = e.to_string();
    for line in e.evidence_lines() {
        text += &format!("\n  {line}");
    }
    if let Some(hint) = e.hint_text() {
        text += &format!("\n  next: {hint}");
    }
    text
}
