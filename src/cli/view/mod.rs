//! Readers of the event stream for people: live bars on a terminal, plain lines elsewhere.

mod live;
mod plain;

use super::record::Record;
use crate::event::{Event, Stamped};
use crate::secret::Redactor;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::oneshot;

pub use live::Live;
pub use plain::Plain;

/// Shows events, which have no secrets in them any more.
pub trait View: Send {
    fn show(&mut self, event: &Stamped);
    /// Time passes without an event: what was held back may be due.
    fn tick(&mut self, _now: Duration) {}
    /// Removes what must not stay on the screen.
    fn finish(&mut self) {}
}

/// How often a quiet stream is looked at.
const TICK: Duration = Duration::from_secs(1);

/// Reads events, cleans, records and shows them, until every sender is gone or `end` comes: then
/// what was sent before is still read. Returns the record, still open. (Senders alone would not do:
/// a thread that is slow to end keeps one.)
pub async fn follow(
    mut events: UnboundedReceiver<Stamped>,
    redactor: Redactor,
    mut view: impl View,
    mut end: oneshot::Receiver<()>,
    shown: Shown,
) -> Record {
    let start = tokio::time::Instant::now();
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let read = |event: Stamped, view: &mut dyn View| {
        let event = cleaned(event, &redactor);
        shown.keep(&event);
        view.show(&event);
    };
    loop {
        tokio::select! {
            biased;
            event = events.recv() => match event {
                Some(event) => read(event, &mut view),
                None => break,
            },
            // A dropped sender of `end` is an end too.
            _ = &mut end => {
                while let Ok(event) = events.try_recv() {
                    read(event, &mut view);
                }
                break;
            }
            now = tick.tick() => view.tick(now - start),
        }
    }
    view.finish();
    shown.record()
}

/// All that was recorded and shown until now, to look for what must not be in it. Cheap to clone.
#[derive(Clone, Default)]
pub struct Shown(Arc<Mutex<(Record, BTreeSet<String>)>>);

impl Shown {
    fn keep(&self, event: &Stamped) {
        let mut both = self.0.lock().unwrap_or_else(|p| p.into_inner());
        both.0.note(event);
        // Numbers are left out, so that what is told again and again is kept once.
        for text in texts(&mut event.event.clone()) {
            if !both.1.contains(text.as_str()) {
                both.1.insert(std::mem::take(text));
            }
        }
    }

    fn record(&self) -> Record {
        self.0.lock().unwrap_or_else(|p| p.into_inner()).0.clone()
    }

    /// The record as JSON, and the texts that the view was given.
    pub fn text(&self) -> (String, String) {
        let both = self.0.lock().unwrap_or_else(|p| p.into_inner());
        let record = serde_json::to_string(&both.0).unwrap_or_default();
        (record, both.1.iter().map(|text| format!("{text}\n")).collect())
    }
}

/// The event without secrets in any of its texts.
fn cleaned(mut stamped: Stamped, redactor: &Redactor) -> Stamped {
    for text in texts(&mut stamped.event) {
        *text = redactor.clean(text);
    }
    stamped
}

/// Every text of an event.
fn texts(event: &mut Event) -> Vec<&mut String> {
    match event {
        Event::PhaseStarted { phase } | Event::PhaseEnded { phase, .. } => vec![phase],
        Event::Node { node, doing, .. } => vec![node, doing],
        Event::Progress { what, .. }
        | Event::ProgressEnded { what, .. }
        | Event::Waited { what, .. } => vec![what],
        Event::Check(check) => vec![&mut check.name, &mut check.evidence],
        Event::Note { text, .. } => vec![text],
    }
}

/// One line without control characters: what a guest printed must not move the cursor.
fn one_line(text: &str) -> String {
    text.lines()
        .map(|line| line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>())
        .map(|line| line.trim_end().to_owned())
        .filter(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join(" / ")
}

/// `3.2 s`, `1 min 05 s`.
pub fn human_time(d: Duration) -> String {
    let seconds = d.as_secs_f64();
    if seconds < 60.0 {
        format!("{seconds:.1} s")
    } else {
        format!("{} min {:02} s", d.as_secs() / 60, d.as_secs() % 60)
    }
}

/// `20.7 MiB`, `512 B`.
pub fn human_bytes(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut unit = "B";
    for next in ["KiB", "MiB", "GiB", "TiB"] {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::{at, check, started};
    use super::*;
    use crate::event::{Events, Level, Status, Unit};
    use crate::secret::Secret;

    /// A sink that keeps all that was written.
    #[derive(Clone, Default)]
    pub struct Kept(pub Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl Kept {
        pub fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    /// One event of every kind, with `text` in each of its strings.
    pub fn every_event(text: &str) -> Vec<Event> {
        let t = || text.to_owned();
        let d = Duration::from_secs(1);
        vec![
            Event::PhaseStarted { phase: t() },
            Event::Node { node: t(), doing: t(), done: 1, total: 2 },
            Event::Progress { what: t(), done: 1, total: Some(2), unit: Unit::Bytes },
            Event::Progress { what: t(), done: 1, total: None, unit: Unit::Items },
            Event::Progress { what: t(), done: 9, total: Some(2), unit: Unit::Millis },
            Event::ProgressEnded { what: t(), ok: true },
            check(0.0, text, Status::Pass, text).event,
            check(0.0, text, Status::Fail, text).event,
            check(0.0, text, Status::Skip, text).event,
            Event::Waited { what: t(), took: d, deadline: d, ok: true },
            Event::Waited { what: t(), took: d, deadline: d, ok: false },
            Event::Note { level: Level::Detail, text: t() },
            Event::Note { level: Level::Info, text: t() },
            Event::Note { level: Level::Warning, text: t() },
            Event::PhaseEnded { phase: t(), took: d, ok: false },
        ]
    }

    #[tokio::test]
    async fn no_sink_shows_a_secret_of_any_event() {
        let secret = "0123456789abcdef0123";
        let redactor = Redactor::default();
        redactor.add(&Secret::new(secret));
        let (events, from) = Events::channel();
        let (sink, shown) = (Kept::default(), Shown::default());
        let (_go_on, end) = oneshot::channel();
        let plain = Plain::new(sink.clone(), true, false);
        let reader = tokio::spawn(follow(from, redactor, plain, end, shown.clone()));
        for event in every_event(&format!("before {secret} after")) {
            events.send(event);
        }
        drop(events);
        let record = reader.await.unwrap();
        let (recorded, told) = shown.text();
        assert_eq!(recorded, serde_json::to_string(&record).unwrap());
        assert!(told.contains("before [secret] after"), "{told}");
        let all = format!("{}{recorded}{told}", sink.text());
        assert!(!all.contains(secret), "{all}");
        assert!(all.matches("[secret]").count() > 15, "the texts were shown at all: {all}");
    }

    #[tokio::test]
    async fn following_ends_with_the_last_sender_and_keeps_the_record() {
        let (events, from) = Events::channel();
        events.send(check(0.0, "a", Status::Pass, "seen").event);
        drop(events);
        let (_go_on, end) = oneshot::channel();
        let plain = Plain::new(Kept::default(), false, false);
        let record = follow(from, Redactor::default(), plain, end, Shown::default()).await;
        assert_eq!(record.count(Status::Pass), 1);
    }

    #[tokio::test]
    async fn the_end_comes_even_while_a_sender_lives_and_loses_nothing_sent_before() {
        let (events, from) = Events::channel();
        for _ in 0..100 {
            events.send(check(0.0, "a", Status::Pass, "seen").event);
        }
        let (now, end) = oneshot::channel();
        now.send(()).unwrap();
        let plain = Plain::new(Kept::default(), false, false);
        let record = follow(from, Redactor::default(), plain, end, Shown::default()).await;
        assert_eq!(record.count(Status::Pass), 100);
        drop(events);
    }

    #[test]
    fn what_a_guest_printed_cannot_move_the_cursor() {
        assert_eq!(one_line("\u{1b}[2Jboot\r\n\n  login:\t\n"), " [2Jboot /   login:");
    }

    #[test]
    fn sizes_and_times_are_told_in_their_largest_whole_unit() {
        assert_eq!(human_bytes(512), "512 B");
        assert_eq!(human_bytes(21_692_416), "20.7 MiB");
        assert_eq!(human_bytes(u64::MAX), "16777216.0 TiB");
        assert_eq!(human_time(Duration::from_millis(3_200)), "3.2 s");
        assert_eq!(human_time(Duration::from_secs(125)), "2 min 05 s");
    }

    #[test]
    fn no_view_panics_on_any_event_out_of_order() {
        let mut view = Plain::new(Kept::default(), true, true);
        let texts = ["", "x", "é漢字\u{1F600}", "{}{msg}{bar}", "a\nb\u{1b}[31m\0"];
        for text in texts {
            for event in every_event(text).into_iter().rev() {
                view.show(&at(0.0, event));
                view.tick(Duration::ZERO);
            }
        }
        view.show(&started(-0.0, "again"));
        view.finish();
    }
}
