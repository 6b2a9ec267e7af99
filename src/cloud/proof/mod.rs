//! The proof that a cloud works, seen from outside.
//!
//! [`story`] lists the checks in order; each is a small function over the [`Context`], and ends as
//! pass, fail or skip. A check whose ground did not hold is skipped with the name of what failed,
//! never passed. What was made is deleted and seen gone whatever happened before.

mod checks;
pub mod console;
pub mod context;
mod guest;
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

use crate::error::{Error, Result};
use crate::event::{Check, Event, Status};
use std::collections::BTreeMap;
use story::{Finding, Step};
use tokio::time::Instant;

/// What the proof came to.
#[derive(Debug)]
pub struct Outcome {
    /// In the order of the story; one for each step, run or not.
    pub checks: Vec<Check>,
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
    /// How many checks ended in `status`.
    pub fn count(&self, status: Status) -> usize {
        self.checks.iter().filter(|c| c.status == status).count()
    }
}

/// Runs the whole story. What the cloud does wrong is in the outcome; an error is the host's.
pub async fn prove(inputs: ProofInputs, world: World) -> Result<Outcome> {
    tell(story::STORY, inputs, world).await
}

async fn tell(story: &[Step], inputs: ProofInputs, world: World) -> Result<Outcome> {
    let mut context = Context::new(inputs, world)?;
    let mut checks = Vec::new();
    // What did not pass, with the check at its root.
    let mut broken: BTreeMap<&str, &str> = BTreeMap::new();
    for step in story {
        let start = Instant::now();
        let ground = step.needs.iter().find_map(|need| broken.get(need));
        let found = match ground {
            Some(root) => Ok(Finding::Skip(format!("`{root}` did not pass"))),
            None => (step.run)(&mut context).await,
        };
        let (status, evidence) = match found {
            Ok(Finding::Pass(seen)) => (Status::Pass, seen),
            Ok(Finding::Skip(reason)) => (Status::Skip, reason),
            Err(e) => (Status::Fail, explained(&e)),
        };
        if status != Status::Pass {
            broken.insert(step.name, ground.copied().unwrap_or(step.name));
        }
        let check = Check {
            name: step.name.into(),
            status,
            seconds: start.elapsed().as_secs_f64(),
            evidence: context.inputs.redactor.clean(&evidence),
        };
        context.inputs.patience.events.send(Event::Check(check.clone()));
        checks.push(check);
    }
    Ok(Outcome { checks, logs: context.take_logs() })
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
