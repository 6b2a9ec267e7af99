//! A plan: steps on nodes, each a list of resources, with an order between steps only where one
//! is needed. Everything else runs at once.
//!
//! A plan may be cut into stages, applied one after the other: what a stage made can then be kept,
//! and taken up again later by a plan that begins after it.

use super::resource::Resource;
use crate::error::{Error, Result};
use std::collections::{BTreeSet, HashMap};
use std::fmt;

/// A part of a plan: all steps of it and of the stages before it are closed under dependencies.
/// What the stages are is for the makers of plans to say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stage {
    /// Stages are applied by rising rank.
    pub rank: usize,
    pub name: &'static str,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

#[derive(Debug)]
pub struct Step {
    /// Unique in the plan: `keystone/database@openstack1`.
    pub id: String,
    pub node: String,
    /// Applied in this order.
    pub resources: Vec<Box<dyn Resource>>,
    /// Ids of steps that must be in their declared state before this one is applied.
    pub after: Vec<String>,
    /// Of a plan without stages all steps have the same.
    pub stage: Stage,
}

impl Step {
    pub fn new(id: impl Into<String>, node: impl Into<String>) -> Step {
        let (id, node, stage) = (id.into(), node.into(), Stage::default());
        Step { id, node, resources: Vec::new(), after: Vec::new(), stage }
    }
    pub fn stage(mut self, stage: Stage) -> Step {
        self.stage = stage;
        self
    }
    pub fn with(mut self, resource: impl Resource + 'static) -> Step {
        self.resources.push(Box::new(resource));
        self
    }
    pub fn after(mut self, step: impl Into<String>) -> Step {
        self.after.push(step.into());
        self
    }
}

#[derive(Debug, Default)]
pub struct Plan {
    pub steps: Vec<Step>,
}

/// The order of a plan that has been checked: indices into `steps`.
#[derive(Clone, Debug)]
pub struct Order {
    /// For each step, those directly before it.
    pub before: Vec<Vec<usize>>,
    /// For each step, all that are before it at any distance.
    ancestors: Vec<BTreeSet<usize>>,
}

impl Order {
    pub fn is_before(&self, a: usize, b: usize) -> bool {
        self.ancestors[b].contains(&a)
    }
}

impl Plan {
    /// The stages that have steps, in their order.
    pub fn stages(&self) -> Vec<Stage> {
        let stages: BTreeSet<Stage> = self.steps.iter().map(|s| s.stage).collect();
        stages.into_iter().collect()
    }

    /// What is left of the plan where everything up to and with the stage `done` has been applied,
    /// and only up to and with the stage `until` is wanted. None is: from the beginning.
    ///
    /// That steps come after others of a stage that is done needs no saying any more.
    pub fn between(self, done: Option<Stage>, until: Stage) -> Plan {
        let is_done = |stage: Stage| done.is_some_and(|done| stage <= done);
        let gone: BTreeSet<String> =
            self.steps.iter().filter(|s| is_done(s.stage)).map(|s| s.id.clone()).collect();
        let wanted = |s: &Step| !is_done(s.stage) && s.stage <= until;
        let mut steps: Vec<Step> = self.steps.into_iter().filter(wanted).collect();
        steps.iter_mut().for_each(|s| s.after.retain(|a| !gone.contains(a)));
        Plan { steps }
    }

    /// Everything up to and with the stage `until`.
    pub fn until(self, until: Stage) -> Plan {
        self.between(None, until)
    }

    /// Checks everything that can be known without a node: ids, nodes, order, and that no two steps
    /// could write one path at once or write under a unit that has started already.
    pub fn validate(&self, nodes: &[&str]) -> Result<Order> {
        let index = self.index()?;
        for step in &self.steps {
            if !nodes.contains(&step.node.as_str()) {
                return Err(Error::input(format!(
                    "step {} is for the node {}, which is not there",
                    step.id, step.node
                ))
                .hint(format!("the nodes are: {}", nodes.join(", "))));
            }
        }
        let mut before = Vec::new();
        for step in &self.steps {
            let mut these = Vec::new();
            for name in &step.after {
                these.push(*index.get(name.as_str()).ok_or_else(|| {
                    Error::input(format!(
                        "step {} comes after {name}, which is not in the plan",
                        step.id
                    ))
                })?);
            }
            if let Some(&late) = these.iter().find(|&&b| self.steps[b].stage > step.stage) {
                let late = &self.steps[late];
                return Err(Error::input(format!(
                    "step {} of stage {} comes after {}, which is of the later stage {}",
                    step.id, step.stage, late.id, late.stage
                ))
                .hint("a stage is closed: move one of the steps to the other's stage"));
            }
            before.push(these);
        }
        let ancestors = self.ancestors(&before)?;
        let order = Order { before, ancestors };
        self.check_resources(&order)?;
        Ok(order)
    }

    fn index(&self) -> Result<HashMap<&str, usize>> {
        let mut index = HashMap::new();
        for (i, step) in self.steps.iter().enumerate() {
            if index.insert(step.id.as_str(), i).is_some() {
                return Err(Error::input(format!("two steps are called {}", step.id)));
            }
        }
        Ok(index)
    }

    fn ancestors(&self, before: &[Vec<usize>]) -> Result<Vec<BTreeSet<usize>>> {
        let mut done: Vec<Option<BTreeSet<usize>>> = vec![None; before.len()];
        let mut left: Vec<usize> = (0..before.len()).collect();
        while !left.is_empty() {
            let (ready, rest): (Vec<usize>, Vec<usize>) =
                left.iter().partition(|&&i| before[i].iter().all(|&b| done[b].is_some()));
            if ready.is_empty() {
                return Err(self.cycle(before, &rest));
            }
            for i in ready {
                let mut all = BTreeSet::new();
                for &b in &before[i] {
                    all.insert(b);
                    all.extend(done[b].iter().flatten());
                }
                done[i] = Some(all);
            }
            left = rest;
        }
        Ok(done.into_iter().flatten().collect())
    }

    /// Each of `stuck` waits for another of them: walking back must come round.
    fn cycle(&self, before: &[Vec<usize>], stuck: &[usize]) -> Error {
        let mut path = vec![stuck[0]];
        loop {
            let last = path[path.len() - 1];
            let Some(&next) = before[last].iter().find(|b| stuck.contains(b)) else {
                return Error::internal("a cycle in the plan that cannot be found");
            };
            if let Some(at) = path.iter().position(|&p| p == next) {
                let mut names: Vec<&str> =
                    path[at..].iter().map(|&i| self.steps[i].id.as_str()).collect();
                names.push(names[0]);
                return Error::input(format!(
                    "steps wait for one another: {}",
                    names.join(" after ")
                ));
            }
            path.push(next);
        }
    }

    fn check_resources(&self, order: &Order) -> Result<()> {
        // (node, id) and (node, path): where they were seen.
        let mut ids: HashMap<(&str, String), usize> = HashMap::new();
        let mut writers: HashMap<(&str, String), Vec<(usize, usize)>> = HashMap::new();
        for (s, step) in self.steps.iter().enumerate() {
            for (r, resource) in step.resources.iter().enumerate() {
                let id = resource.id();
                if let Some(other) = ids.insert((&step.node, id.clone()), s) {
                    return Err(Error::input(format!(
                        "{id} is declared twice on {}: in {} and in {}",
                        step.node, self.steps[other].id, step.id
                    )));
                }
                for path in resource.writes() {
                    writers.entry((&step.node, path)).or_default().push((s, r));
                }
            }
        }
        for ((node, path), all) in &writers {
            for (i, &(a, _)) in all.iter().enumerate() {
                for &(b, _) in &all[i + 1..] {
                    if a != b && !order.is_before(a, b) && !order.is_before(b, a) {
                        return Err(Error::input(format!(
                            "{} and {} both write {path} on {node}, with no order between them",
                            self.steps[a].id, self.steps[b].id
                        ))
                        .hint("put both into one resource, or one step after the other"));
                    }
                }
            }
        }
        for (s, step) in self.steps.iter().enumerate() {
            for (r, resource) in step.resources.iter().enumerate() {
                for path in resource.reads() {
                    let Some(all) = writers.get(&(step.node.as_str(), path.clone())) else {
                        continue;
                    };
                    for &(w, wr) in all {
                        if !(order.is_before(w, s) || (w == s && wr < r)) {
                            return Err(Error::input(format!(
                                "{} of {} reads {path}, which {} writes without being before it",
                                resource.id(),
                                step.id,
                                self.steps[w].id
                            )));
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
