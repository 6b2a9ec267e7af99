//! What every verb stands on: the environment, the stream of events with its reader, the secrets
//! and the signals.

use super::args::Virtualization;
use super::environment::Environment;
use super::failure::Failure;
use super::record::{NotRun, Record};
use super::signal::Stop;
use super::view::{self, Shown};
use crate::cluster::{RunContext, host};
use crate::error::{Error, Result};
use crate::event::Events;
use crate::images::store::Store;
use crate::lab::accel::{Accel, Trust};
use crate::lab::hypervisor::Hypervisor;
use crate::secret::Redactor;
use crate::wait::Speed;
use std::ops::{Deref, DerefMut};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Instant;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

pub struct Session {
    pub env: Environment,
    pub redactor: Redactor,
    pub events: Events,
    stop: Stop,
    reader: JoinHandle<Record>,
    shown: Shown,
    end: oneshot::Sender<()>,
    start: Instant,
}

/// What the work of a verb is given. Cheap to clone. It is a [`RunContext`] with what the command
/// line adds, and dereferences to it, so that it is passed where the library wants one.
#[derive(Clone)]
pub struct Work {
    pub env: Environment,
    pub run: RunContext,
    pub facts: Arc<Mutex<Facts>>,
    pub shown: Shown,
}

impl Deref for Work {
    type Target = RunContext;
    fn deref(&self) -> &RunContext {
        &self.run
    }
}

impl DerefMut for Work {
    fn deref_mut(&mut self) -> &mut RunContext {
        &mut self.run
    }
}

/// What is learnt along the way and belongs to the record, whatever the end.
#[derive(Default)]
pub struct Facts {
    pub accelerator: Option<String>,
    /// The stage of the layer that was restored instead of booting.
    pub from_layer: Option<String>,
    pub not_run: Vec<NotRun>,
    /// Where consoles, journals and logs were saved.
    pub logs: Option<PathBuf>,
}

impl Work {
    /// Takes over what the user chose of the accelerators; for the verbs that have the options.
    pub fn choose(&mut self, virtualization: Virtualization) {
        (self.run.accel, self.run.nested) = (virtualization.accel(), virtualization.nested());
    }

    /// Has the accelerator chosen, and notes it in the record.
    pub async fn choose_accelerator(&self, hypervisor: &Hypervisor, trust: Trust) -> Result<Accel> {
        let accel = host::choose_accelerator(self, hypervisor, trust).await?;
        self.learn(|facts| facts.accelerator = Some(accel.to_string().to_lowercase()));
        Ok(accel)
    }

    /// The store of images. What could not be removed from it is told, and keeps nobody from it.
    pub fn store(&self) -> Result<Store> {
        let store = Store::open(&self.env.store)?;
        for problem in store.unswept() {
            self.events.warning(format!("left by a killed build: {problem}"));
        }
        Ok(store)
    }

    /// The store as it is, for verbs that only look.
    pub fn store_to_read(&self) -> Store {
        Store::read_only(&self.env.store)
    }

    /// Changes the facts. A poisoned lock is passed over: facts have no invariant to break.
    pub fn learn(&self, change: impl FnOnce(&mut Facts)) {
        change(&mut self.facts.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
    }
}

impl Session {
    /// Must be called within a tokio runtime.
    pub fn new(env: Environment) -> Result<Session> {
        let stop = Stop::watch()?;
        let redactor = Redactor::default();
        let (events, from) = Events::channel();
        let (end, ended) = oneshot::channel();
        let shown = Shown::default();
        let reader = if env.live {
            let live = view::Live::new(env.verbose, env.colour);
            tokio::spawn(view::follow(from, redactor.clone(), live, ended, shown.clone()))
        } else {
            let plain = view::Plain::new(std::io::stderr(), env.verbose, env.colour);
            tokio::spawn(view::follow(from, redactor.clone(), plain, ended, shown.clone()))
        };
        Ok(Session { env, redactor, stop, events, reader, shown, end, start: Instant::now() })
    }

    /// Runs `work` to its end or until a signal, and closes the record of it. The value is there
    /// when the work ended well.
    pub async fn conduct<T, F>(self, work: impl FnOnce(Work) -> F) -> (Record, Result<T>)
    where
        F: Future<Output = Result<T>>,
    {
        self.run(async |stop, given| {
            let events = given.events.clone();
            stop.or(&events, work(given)).await
        })
        .await
    }

    /// The same for work that goes on until a signal, and comes to its own end when it hears of it.
    pub async fn conduct_until_told<T, F>(
        self,
        work: impl FnOnce(Work, oneshot::Receiver<()>) -> F,
    ) -> (Record, Result<T>)
    where
        F: Future<Output = Result<T>>,
    {
        self.run(async |stop, given| {
            let (tell, told) = oneshot::channel();
            stop.tell(tell, work(given, told)).await
        })
        .await
    }

    async fn run<T>(
        self,
        conduct: impl AsyncFnOnce(Stop, Work) -> Result<T>,
    ) -> (Record, Result<T>) {
        let run = RunContext {
            store_dir: self.env.store.clone(),
            mirrors: self.env.mirrors(),
            outbound: self.env.outbound.clone(),
            events: self.events.clone(),
            redactor: self.redactor.clone(),
            speed: Speed::new(1.0),
            accel: None,
            nested: None,
        };
        let given = Work { env: self.env, run, facts: Arc::default(), shown: self.shown };
        let (speed, facts) = (given.speed.clone(), given.facts.clone());
        let out = conduct(self.stop, given).await;
        // The reader may have panicked; the result must not be lost with it.
        let _ = self.end.send(());
        let mut record = self.reader.await.unwrap_or_default();
        let facts = std::mem::take(&mut *facts.lock().unwrap_or_else(|p| p.into_inner()));
        if facts.accelerator.is_some() {
            record.speed_factor = Some(speed.factor());
        }
        record.accelerator = facts.accelerator;
        record.from_layer = facts.from_layer;
        record.not_run = facts.not_run;
        record.peak_memory_mib = peak_memory_mib();
        let failure = |e: &Error| {
            let mut failure = Failure::of(e, &self.redactor);
            failure.logs = facts.logs.clone();
            failure
        };
        let error = out.as_ref().err().map(failure);
        record.close(self.start.elapsed(), error);
        (record, out)
    }
}

/// The most memory that this process has held, without its children.
fn peak_memory_mib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some((kib / 102.4).round() / 10.0)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_peak_memory_of_a_living_process_is_known() {
        assert!(super::peak_memory_mib().unwrap() > 1.0);
    }
}
