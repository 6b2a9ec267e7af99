//! What happens, typed. Progress bars, plain lines and JSON are all readers of this stream; no
//! other room prints.

use std::time::{Duration, Instant};
use tokio::sync::mpsc;

#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub enum Event {
    /// A named part of the whole run (`images`, `boot`, `provision`, `proof`, ...).
    PhaseStarted {
        phase: String,
    },
    PhaseEnded {
        phase: String,
        took: Duration,
        ok: bool,
    },
    /// What a node is doing now. `done` of `total` where that can be counted.
    Node {
        node: String,
        doing: String,
        done: u64,
        total: u64,
    },
    /// Bytes or items of a long job that belongs to no node (a download, a build).
    Progress {
        what: String,
        done: u64,
        total: Option<u64>,
        unit: Unit,
    },
    ProgressEnded {
        what: String,
        ok: bool,
    },
    /// A check of the proof ended.
    Check(Check),
    /// A wait ended: shown beside its deadline.
    Waited {
        what: String,
        took: Duration,
        deadline: Duration,
        ok: bool,
    },
    /// Something a person may want to know.
    Note {
        level: Level,
        text: String,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Unit {
    Bytes,
    Items,
    /// Milliseconds of an expected duration (a build whose end can only be estimated).
    Millis,
}

#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub enum Level {
    Detail,
    Info,
    Warning,
}

/// One check of the proof. `Skip` always carries the reason as its evidence.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Check {
    pub name: String,
    pub status: Status,
    pub seconds: f64,
    pub evidence: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Pass,
    Fail,
    Skip,
}

/// An event and when it happened, counted from the start of the run.
#[derive(Clone, Debug)]
pub struct Stamped {
    pub at: Duration,
    pub event: Event,
}

/// Where events are sent. Cheap to clone; sending never blocks, and goes nowhere once the reader
/// is gone.
#[derive(Clone, Debug)]
pub struct Events {
    start: Instant,
    to: Option<mpsc::UnboundedSender<Stamped>>,
}

impl Events {
    pub fn channel() -> (Events, mpsc::UnboundedReceiver<Stamped>) {
        let (to, from) = mpsc::unbounded_channel();
        (Events { start: Instant::now(), to: Some(to) }, from)
    }

    /// For callers that want no events.
    pub fn silent() -> Events {
        Events { start: Instant::now(), to: None }
    }

    pub fn send(&self, event: Event) {
        if let Some(to) = &self.to {
            // The reader may have ended first: nothing is owed to it then.
            let _ = to.send(Stamped { at: self.start.elapsed(), event });
        }
    }

    pub fn node(&self, node: &str, doing: impl Into<String>, done: u64, total: u64) {
        self.send(Event::Node { node: node.into(), doing: doing.into(), done, total });
    }
    pub fn info(&self, text: impl Into<String>) {
        self.send(Event::Note { level: Level::Info, text: text.into() });
    }
    pub fn detail(&self, text: impl Into<String>) {
        self.send(Event::Note { level: Level::Detail, text: text.into() });
    }
    pub fn warning(&self, text: impl Into<String>) {
        self.send(Event::Note { level: Level::Warning, text: text.into() });
    }

    /// Runs `work` as the phase `name`, reporting its start, end and outcome.
    pub async fn phase<T, E>(
        &self,
        name: &str,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let start = Instant::now();
        self.send(Event::PhaseStarted { phase: name.into() });
        let out = work.await;
        self.send(Event::PhaseEnded { phase: name.into(), took: start.elapsed(), ok: out.is_ok() });
        out
    }
}
