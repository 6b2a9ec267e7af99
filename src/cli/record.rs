//! The record of a run: what the events said, kept for the JSON object and the summary.

use super::failure::Failure;
use crate::error::Kind;
use crate::event::{Check, Event, Level, Stamped, Status};
use serde::Serialize;
use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    Pass,
    /// The cloud came up and a check of the proof failed.
    Fail,
    /// It never came to a verdict.
    Error,
    Interrupted,
}

#[derive(Clone, Debug, Serialize)]
pub struct Phase {
    pub name: String,
    pub seconds: f64,
    pub ok: bool,
}

#[derive(Clone, Debug, Serialize)]
pub struct Wait {
    pub what: String,
    pub seconds: f64,
    pub deadline: f64,
    pub ok: bool,
}

/// Something that could have been run and was not, and why.
#[derive(Clone, Debug, Serialize)]
pub struct NotRun {
    pub name: String,
    pub reason: String,
}

/// One run. Its fields, in this order, are the object of `--json`.
#[derive(Clone, Debug, Serialize)]
pub struct Record {
    pub result: Outcome,
    /// Of the whole run.
    pub seconds: f64,
    /// `kvm` or `tcg`; null when the run ended before it was measured.
    pub accelerator: Option<String>,
    /// How many times slower than the reference machine guests run here.
    pub speed_factor: Option<f64>,
    /// The stage of the layer that the run began from; null where it booted the nodes itself.
    pub from_layer: Option<String>,
    /// The most memory that this process held, in MiB; QEMU is not in it.
    pub peak_memory_mib: Option<f64>,
    pub phases: Vec<Phase>,
    pub checks: Vec<Check>,
    pub waits: Vec<Wait>,
    pub not_run: Vec<NotRun>,
    pub warnings: Vec<String>,
    pub error: Option<Failure>,
    /// Phases begun and not ended, with the time of their start.
    #[serde(skip)]
    open: Vec<(String, Duration)>,
}

impl Default for Record {
    fn default() -> Self {
        Record {
            result: Outcome::Error,
            seconds: 0.0,
            accelerator: None,
            speed_factor: None,
            from_layer: None,
            peak_memory_mib: None,
            phases: Vec::new(),
            checks: Vec::new(),
            waits: Vec::new(),
            not_run: Vec::new(),
            warnings: Vec::new(),
            error: None,
            open: Vec::new(),
        }
    }
}

impl Record {
    pub fn note(&mut self, stamped: &Stamped) {
        match &stamped.event {
            Event::PhaseStarted { phase } => self.open.push((phase.clone(), stamped.at)),
            Event::PhaseEnded { phase, took, ok } => {
                self.open.retain(|(open, _)| open != phase);
                self.phases.push(Phase { name: phase.clone(), seconds: seconds(*took), ok: *ok });
            }
            Event::Check(check) => self.checks.push(check.clone()),
            Event::Waited { what, took, deadline, ok } => self.waits.push(Wait {
                what: what.clone(),
                seconds: seconds(*took),
                deadline: seconds(*deadline),
                ok: *ok,
            }),
            Event::Note { level: Level::Warning, text } => self.warnings.push(text.clone()),
            Event::Node { .. }
            | Event::Progress { .. }
            | Event::ProgressEnded { .. }
            | Event::Note { .. } => {}
        }
    }

    /// Closes the record. A phase that never ended was cut off: it is kept as not ok. Passing takes
    /// a proof that ran: no error, at least one check passed, and none failed.
    pub fn close(&mut self, took: Duration, error: Option<Failure>) {
        for (name, since) in std::mem::take(&mut self.open) {
            let seconds = seconds(took.saturating_sub(since));
            self.phases.push(Phase { name, seconds, ok: false });
        }
        self.seconds = seconds(took);
        let any = |status| self.checks.iter().any(|c| c.status == status);
        self.result = match error.as_ref().map(|e| e.kind) {
            Some(Kind::Interrupted) => Outcome::Interrupted,
            Some(Kind::Proof) => Outcome::Fail,
            Some(_) => Outcome::Error,
            None if any(Status::Fail) => Outcome::Fail,
            None if any(Status::Pass) => Outcome::Pass,
            None => Outcome::Error,
        };
        self.error = error;
    }

    pub fn count(&self, status: Status) -> usize {
        self.checks.iter().filter(|c| c.status == status).count()
    }
}

/// Seconds to the millisecond: more digits would be noise.
fn seconds(d: Duration) -> f64 {
    (d.as_secs_f64() * 1000.0).round() / 1000.0
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::error::Error;

    pub fn at(seconds: f64, event: Event) -> Stamped {
        Stamped { at: Duration::from_secs_f64(seconds), event }
    }
    pub fn started(t: f64, phase: &str) -> Stamped {
        at(t, Event::PhaseStarted { phase: phase.into() })
    }
    pub fn ended(t: f64, phase: &str, took: f64, ok: bool) -> Stamped {
        let took = Duration::from_secs_f64(took);
        at(t, Event::PhaseEnded { phase: phase.into(), took, ok })
    }
    pub fn check(t: f64, name: &str, status: Status, evidence: &str) -> Stamped {
        let (name, evidence) = (name.into(), evidence.into());
        at(t, Event::Check(Check { name, status, seconds: 1.5, evidence }))
    }

    fn record(events: &[Stamped]) -> Record {
        let mut record = Record::default();
        events.iter().for_each(|e| record.note(e));
        record
    }

    #[test]
    fn the_object_has_the_documented_keys_and_shapes() {
        let mut r = record(&[
            started(0.0, "boot"),
            ended(3.0, "boot", 3.0, true),
            check(4.0, "ping", Status::Pass, "rtt 1 ms, TTL 63"),
            check(5.0, "cirros", Status::Skip, "not in the store"),
            at(
                6.0,
                Event::Waited {
                    what: "ssh".into(),
                    took: Duration::from_millis(1500),
                    deadline: Duration::from_secs(60),
                    ok: true,
                },
            ),
        ]);
        r.accelerator = Some("tcg".into());
        r.speed_factor = Some(7.25);
        r.close(Duration::from_millis(7_000), None);
        let json = serde_json::to_value(&r).unwrap();
        assert_eq!(json["result"], "pass");
        assert_eq!(json["seconds"], 7.0);
        assert_eq!(json["accelerator"], "tcg");
        assert_eq!(json["speed_factor"], 7.25);
        assert_eq!(json["phases"][0]["name"], "boot");
        assert_eq!(json["phases"][0]["seconds"], 3.0);
        assert_eq!(json["checks"][0]["status"], "pass");
        assert_eq!(json["checks"][0]["seconds"], 1.5);
        assert_eq!(json["checks"][0]["evidence"], "rtt 1 ms, TTL 63");
        assert_eq!(json["checks"][1]["status"], "skip");
        assert_eq!(json["waits"][0]["deadline"], 60.0);
        assert_eq!(json["waits"][0]["ok"], true);
        assert!(json["error"].is_null());
        let keys: Vec<_> = json.as_object().unwrap().keys().cloned().collect();
        assert_eq!(keys[..4], ["result", "seconds", "accelerator", "speed_factor"]);
    }

    #[test]
    fn an_error_has_its_kind_message_hint_evidence_and_logs() {
        let mut r = record(&[]);
        let error = Error::lab("openstack1 never booted").hint("Look at its console.");
        let mut failure = Failure::of(&error.evidence(["panic"]), &Default::default());
        failure.logs = Some("/logs".into());
        r.close(Duration::from_secs(1), Some(failure));
        let json = serde_json::to_value(&r).unwrap();
        assert_eq!(json["result"], "error");
        assert_eq!(json["error"]["kind"], "lab");
        assert_eq!(json["error"]["exit_code"], 5);
        assert_eq!(json["error"]["message"], "openstack1 never booted");
        assert_eq!(json["error"]["hint"], "Look at its console.");
        assert_eq!(json["error"]["evidence"][0], "panic");
        assert_eq!(json["error"]["logs"], "/logs");
    }

    fn outcome(events: &[Stamped], error: Option<Error>) -> Outcome {
        let mut r = record(events);
        r.close(Duration::ZERO, error.map(|e| Failure::of(&e, &Default::default())));
        r.result
    }

    #[test]
    fn a_run_without_a_passed_check_never_passes() {
        assert_eq!(outcome(&[], None), Outcome::Error);
        assert_eq!(outcome(&[check(0.0, "a", Status::Skip, "why")], None), Outcome::Error);
    }

    #[test]
    fn one_failed_check_fails_the_run_however_many_passed() {
        let checks = [check(0.0, "a", Status::Pass, ""), check(1.0, "b", Status::Fail, "no reply")];
        assert_eq!(outcome(&checks, None), Outcome::Fail);
    }

    #[test]
    fn the_kind_of_the_error_decides_the_result() {
        let pass = [check(0.0, "a", Status::Pass, "")];
        assert_eq!(outcome(&pass, Some(Error::interrupted())), Outcome::Interrupted);
        assert_eq!(outcome(&pass, Some(Error::new(Kind::Proof, "x"))), Outcome::Fail);
        assert_eq!(outcome(&pass, Some(Error::host("x"))), Outcome::Error);
    }

    #[test]
    fn a_phase_cut_off_is_kept_with_its_time_and_not_ok() {
        let mut r = record(&[started(2.0, "boot")]);
        r.close(
            Duration::from_secs(5),
            Some(Failure::of(&Error::interrupted(), &Default::default())),
        );
        assert_eq!(r.phases.len(), 1);
        assert_eq!((r.phases[0].seconds, r.phases[0].ok), (3.0, false));
    }
}
