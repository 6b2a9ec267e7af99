//! What a run came to, on standard output.

use crate::cli::record::{NotRun, Outcome, Record};
use crate::cli::table::Table;
use crate::cli::view::human_time;
use crate::event::Status;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

/// So many waits, those that came closest to their deadlines, are shown; the JSON has all.
const WAITS: usize = 5;

pub fn text(record: &Record, json: Option<&Path>) -> String {
    let time = |seconds: f64| human_time(Duration::from_secs_f64(seconds.max(0.0)));
    let word = match record.result {
        Outcome::Pass => "PASS",
        Outcome::Fail => "FAIL",
        Outcome::Error => "ERROR",
        Outcome::Interrupted => "INTERRUPTED",
    };
    let mut out = format!("{word} in {}", time(record.seconds));
    if let Some(accelerator) = &record.accelerator {
        let _ = write!(out, ", {accelerator}");
        if let Some(factor) = record.speed_factor {
            let _ = write!(out, " (deadlines times {factor:.1})");
        }
    }
    if let Some(stage) = &record.from_layer {
        let _ = write!(out, ", warm (from the layer {stage})");
    }
    let _ = writeln!(
        out,
        "\nchecks: {} passed, {} failed, {} skipped",
        record.count(Status::Pass),
        record.count(Status::Fail),
        record.count(Status::Skip)
    );
    let phases: Vec<String> = record
        .phases
        .iter()
        .map(|p| format!("{} {}{}", p.name, time(p.seconds), if p.ok { "" } else { " (not ok)" }))
        .collect();
    if !phases.is_empty() {
        let _ = writeln!(out, "phases: {}", phases.join(", "));
    }
    if !record.waits.is_empty() {
        let mut waits: Vec<_> = record.waits.iter().collect();
        waits.sort_by(|a, b| (b.seconds / b.deadline).total_cmp(&(a.seconds / a.deadline)));
        let mut table = Table::new(["  WAITED", "DEADLINE", "FOR"]);
        for wait in waits.iter().take(WAITS) {
            let took = format!("  {}", time(wait.seconds));
            table.row([&took, &time(wait.deadline), &wait.what]);
        }
        let _ = write!(out, "waits: {}, the closest to their deadlines:\n{table}", waits.len());
    }
    if let Some(mib) = record.peak_memory_mib {
        let _ = writeln!(out, "memory: {mib} MiB at most, QEMU excluded");
    }
    for NotRun { name, reason } in &record.not_run {
        let _ = writeln!(out, "not run: {name}: {reason}");
    }
    if let Some(json) = json {
        let _ = writeln!(out, "json: {}", json.display());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::record::tests::{at, check, ended};
    use crate::event::Event;

    #[test]
    fn the_verdict_comes_first_and_what_was_not_run_is_said() {
        let mut record = Record::default();
        let wait = |what: &str, took, deadline| {
            let (took, deadline) = (Duration::from_secs(took), Duration::from_secs(deadline));
            at(0.0, Event::Waited { what: what.into(), took, deadline, ok: true })
        };
        for event in [
            ended(30.0, "boot", 30.0, true),
            check(31.0, "ping", Status::Pass, ""),
            wait("loose", 1, 100),
            wait("tight", 90, 100),
        ] {
            record.note(&event);
        }
        record.accelerator = Some("tcg".into());
        record.speed_factor = Some(7.0);
        record.not_run =
            vec![NotRun { name: "cirros-0.6.3".into(), reason: "not in the store".into() }];
        record.close(Duration::from_secs(65), None);
        let text = text(&record, Some(Path::new("out.json")));
        assert!(text.starts_with("PASS in 1 min 05 s, tcg (deadlines times 7.0)\n"), "{text}");
        assert!(text.contains("checks: 1 passed, 0 failed, 0 skipped\n"), "{text}");
        assert!(text.contains("phases: boot 30.0 s\n"), "{text}");
        assert!(text.find("tight") < text.find("loose"), "{text}");
        assert!(text.contains("not run: cirros-0.6.3: not in the store\n"), "{text}");
        assert!(text.ends_with("json: out.json\n"), "{text}");
    }

    #[test]
    fn a_warm_run_is_called_one_for_people_and_for_programs() {
        let mut record = Record::default();
        record.from_layer = Some("nova".into());
        record.close(Duration::from_secs(1), None);
        assert!(text(&record, None).contains(", warm (from the layer nova)\n"));
        assert_eq!(serde_json::to_value(&record).unwrap()["from_layer"], "nova");
        let cold = Record::default();
        assert!(!text(&cold, None).contains("warm"));
        assert!(serde_json::to_value(&cold).unwrap()["from_layer"].is_null());
    }

    #[test]
    fn waits_without_a_deadline_do_not_panic() {
        let mut record = Record::default();
        for what in ["a", "b"] {
            let (took, deadline) = (Duration::ZERO, Duration::ZERO);
            record.note(&at(0.0, Event::Waited { what: what.into(), took, deadline, ok: true }));
        }
        record.close(Duration::ZERO, None);
        assert!(text(&record, None).starts_with("ERROR"));
    }
}
