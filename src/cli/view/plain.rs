//! One line an event, for logs and pipes. What changes often is held back, so that a run of half an
//! hour is some hundred lines.

use super::{View, human_bytes, human_time, one_line};
use crate::event::{Event, Level, Stamped, Status, Unit};
use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

/// A node's or a job's lines are at least this far apart.
const APART: Duration = Duration::from_secs(5);
/// A job that goes on and on is shown at least this seldom.
const PROGRESS_APART: Duration = Duration::from_secs(15);
/// Waits shorter than this are of no interest unless they failed.
const SHORT_WAIT: Duration = Duration::from_secs(5);
/// Evidence is cut to this many characters on a line; the JSON has all of it.
const EVIDENCE: usize = 240;

pub struct Plain<W> {
    to: W,
    verbose: bool,
    colour: bool,
    sources: BTreeMap<String, Source>,
}

/// What was last said of one node or job, and what is held back.
#[derive(Default)]
struct Source {
    shown_at: Option<Duration>,
    shown: String,
    held: Option<String>,
}

impl<W: Write + Send> Plain<W> {
    pub fn new(to: W, verbose: bool, colour: bool) -> Self {
        Plain { to, verbose, colour, sources: BTreeMap::new() }
    }

    fn line(&mut self, at: Duration, text: &str) {
        // A closed pipe must not end the run: the verdict is also in the exit code.
        let _ = writeln!(self.to, "[{:>7.1}s] {text}", at.as_secs_f64());
        let _ = self.to.flush();
    }

    /// Shows `text` of `source` unless the last line is too recent; then it waits for its turn,
    /// and a later text takes its place.
    fn throttled(&mut self, at: Duration, source: &str, text: String, apart: Duration) {
        let entry = self.sources.entry(source.to_owned()).or_default();
        if entry.shown == text {
            entry.held = None;
            return;
        }
        let due = entry.shown_at.is_none_or(|last| at.saturating_sub(last) >= apart);
        if due {
            entry.shown_at = Some(at);
            entry.shown = text.clone();
            entry.held = None;
            self.line(at, &text);
        } else {
            entry.held = Some(text);
        }
    }

    fn release(&mut self, now: Duration, even_if_recent: bool) {
        let due: Vec<_> = self
            .sources
            .iter_mut()
            .filter(|(_, s)| {
                even_if_recent || s.shown_at.is_none_or(|last| now.saturating_sub(last) >= APART)
            })
            .filter_map(|(_, s)| {
                let text = s.held.take()?;
                s.shown_at = Some(now);
                s.shown = text.clone();
                Some(text)
            })
            .collect();
        for text in due {
            self.line(now, &text);
        }
    }
}

impl<W: Write + Send> View for Plain<W> {
    fn show(&mut self, stamped: &Stamped) {
        let at = stamped.at;
        match &stamped.event {
            Event::PhaseStarted { phase } => self.line(at, &format!("== {}", one_line(phase))),
            Event::PhaseEnded { phase, took, ok } => {
                self.release(at, true);
                let how = if *ok { "done" } else { "FAILED" };
                self.line(at, &format!("== {} {how} in {}", one_line(phase), human_time(*took)));
            }
            Event::Node { node, doing, done, total } => {
                let node = one_line(node);
                let text = format!("{node}: {}{}", one_line(doing), counted(*done, *total));
                self.throttled(at, &node, text, APART);
            }
            Event::Progress { what, done, total, unit } => {
                let what = one_line(what);
                let text = format!("{what}: {}", amount(*done, *total, *unit));
                self.throttled(at, &what, text, PROGRESS_APART);
            }
            Event::ProgressEnded { what, ok } => {
                let what = one_line(what);
                if self.sources.remove(&what).is_some() {
                    let end = if *ok { "done" } else { "FAILED" };
                    self.line(at, &format!("{what}: {end}"));
                }
            }
            Event::Check(check) => self.line(at, &check_line(check, self.colour)),
            Event::Waited { what, took, deadline, ok } => {
                if !ok || self.verbose || *took >= SHORT_WAIT {
                    self.line(at, &waited_line(what, *took, *deadline, *ok));
                }
            }
            Event::Note { level, text } => {
                let text = one_line(text);
                match level {
                    Level::Detail if !self.verbose => {}
                    Level::Detail | Level::Info => self.line(at, &text),
                    Level::Warning => self.line(at, &format!("warning: {text}")),
                }
            }
        }
    }

    fn tick(&mut self, now: Duration) {
        self.release(now, false);
    }
}

pub(super) fn counted(done: u64, total: u64) -> String {
    if total == 0 { String::new() } else { format!(" ({done}/{total})") }
}

pub(super) fn amount(done: u64, total: Option<u64>, unit: Unit) -> String {
    let show = |n: u64| match unit {
        Unit::Bytes => human_bytes(n),
        Unit::Items => n.to_string(),
        Unit::Millis => human_time(Duration::from_millis(n)),
    };
    match (total, unit) {
        (Some(total), Unit::Millis) => format!("{} of about {}", show(done), show(total)),
        (Some(total), _) if total > 0 => {
            let percent = (u128::from(done) * 100 / u128::from(total)).min(100);
            format!("{} of {} ({percent} %)", show(done), show(total))
        }
        _ => show(done),
    }
}

pub(super) fn check_line(check: &crate::event::Check, colour: bool) -> String {
    let (word, paint) = match check.status {
        Status::Pass => ("pass", "32"),
        Status::Fail => ("FAIL", "31"),
        Status::Skip => ("skip", "33"),
    };
    let word = if colour { format!("\u{1b}[{paint}m{word}\u{1b}[0m") } else { word.to_owned() };
    let evidence = one_line(&check.evidence);
    let mut cut: String = evidence.chars().take(EVIDENCE).collect();
    if cut.len() < evidence.len() {
        cut.push_str(" ...");
    }
    let name = one_line(&check.name);
    format!("{word} {name} ({:.1} s){}{cut}", check.seconds, if cut.is_empty() { "" } else { ": " })
}

pub(super) fn waited_line(what: &str, took: Duration, deadline: Duration, ok: bool) -> String {
    let how = if ok { "waited" } else { "waited in vain" };
    let (took, deadline) = (human_time(took), human_time(deadline));
    format!("{how} {took} for {} (deadline {deadline})", one_line(what))
}

#[cfg(test)]
mod tests {
    use super::super::super::record::tests::{at, check, ended, started};
    use super::super::tests::Kept;
    use super::*;

    fn lines(events: &[Stamped], verbose: bool) -> String {
        let sink = Kept::default();
        let mut view = Plain::new(sink.clone(), verbose, false);
        events.iter().for_each(|e| view.show(e));
        sink.text()
    }
    fn node(t: f64, doing: &str, done: u64, total: u64) -> Stamped {
        at(t, Event::Node { node: "openstack1".into(), doing: doing.into(), done, total })
    }

    #[test]
    fn phases_checks_and_notes_are_one_line_each_with_the_time_of_the_run() {
        let text = lines(
            &[
                started(0.0, "proof"),
                check(12.34, "ping", Status::Pass, "TTL 63\nrtt 3 ms"),
                check(13.0, "ssh", Status::Fail, "refused"),
                check(13.5, "cirros", Status::Skip, "not in the store"),
                at(14.0, Event::Note { level: Level::Warning, text: "little disk".into() }),
                at(14.0, Event::Note { level: Level::Detail, text: "hidden".into() }),
                ended(100.0, "proof", 100.0, false),
            ],
            false,
        );
        assert_eq!(
            text,
            "[    0.0s] == proof\n\
             [   12.3s] pass ping (1.5 s): TTL 63 / rtt 3 ms\n\
             [   13.0s] FAIL ssh (1.5 s): refused\n\
             [   13.5s] skip cirros (1.5 s): not in the store\n\
             [   14.0s] warning: little disk\n\
             [  100.0s] == proof FAILED in 1 min 40 s\n"
        );
    }

    #[test]
    fn a_node_that_changes_all_the_time_is_a_line_every_five_seconds_and_its_last_word_is_kept() {
        let mut events: Vec<_> =
            (0..1000).map(|i| node(f64::from(i) * 0.01, "apply", i as u64, 1000)).collect();
        events.push(ended(10.0, "provision", 10.0, true));
        let text = lines(&events, false);
        assert_eq!(text.lines().count(), 4, "{text}");
        assert!(text.contains("openstack1: apply (999/1000)\n"), "{text}");
    }

    #[test]
    fn what_was_held_back_is_shown_when_time_passes() {
        let sink = Kept::default();
        let mut view = Plain::new(sink.clone(), false, false);
        view.show(&node(0.0, "boot", 0, 0));
        view.show(&node(1.0, "ssh", 0, 0));
        view.tick(Duration::from_secs(2));
        assert!(!sink.text().contains("ssh"));
        view.tick(Duration::from_secs(6));
        assert!(sink.text().ends_with("openstack1: ssh\n"), "{}", sink.text());
    }

    #[test]
    fn a_download_of_many_pieces_is_few_lines_with_percent() {
        let what = "cirros-0.6.3";
        let mut events: Vec<_> = (0..=100u64)
            .map(|i| {
                let (done, total) = (i * 1024 * 1024, Some(100 * 1024 * 1024));
                let unit = Unit::Bytes;
                at(i as f64 / 10.0, Event::Progress { what: what.into(), done, total, unit })
            })
            .collect();
        events.push(at(11.0, Event::ProgressEnded { what: what.into(), ok: true }));
        let text = lines(&events, false);
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.contains("0 B of 100.0 MiB (0 %)") && text.contains("done"), "{text}");
    }

    #[test]
    fn a_job_that_failed_is_not_called_done() {
        let what = || "build x".to_owned();
        let begun = Event::Progress { what: what(), done: 0, total: Some(6), unit: Unit::Items };
        let ended = Event::ProgressEnded { what: what(), ok: false };
        let text = lines(&[at(0.0, begun), at(1.0, ended)], false);
        assert!(text.contains("build x: FAILED") && !text.contains("done"), "{text}");
    }

    #[test]
    fn short_waits_are_details_and_failed_ones_are_always_shown() {
        let wait = |took, ok| {
            let (took, deadline) = (Duration::from_secs(took), Duration::from_secs(60));
            at(0.0, Event::Waited { what: "a lease".into(), took, deadline, ok })
        };
        assert_eq!(lines(&[wait(1, true)], false), "");
        assert!(lines(&[wait(1, true)], true).contains("waited 1.0 s for a lease (deadline 1 min"));
        assert!(lines(&[wait(1, false)], false).contains("in vain"));
    }
}
