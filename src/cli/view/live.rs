//! Live bars: one for the phase, one a node, one a long job; checks and notes scroll above them.

use super::plain::{amount, check_line, waited_line};
use super::{View, human_time, one_line};
use crate::event::{Event, Level, Stamped};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle, TermLike};
use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

/// Spinners turn this often.
const TURN: Duration = Duration::from_millis(250);

/// Draws a second at most.
const HZ: u8 = 8;
/// indicatif 0.18 subtracts below zero, and so panics, where a wide character does not fit on a
/// line: it is never told of a narrower terminal than this.
const NARROWEST: u16 = 20;

pub struct Live {
    bars: MultiProgress,
    verbose: bool,
    colour: bool,
    phases: BTreeMap<String, ProgressBar>,
    nodes: BTreeMap<String, ProgressBar>,
    jobs: BTreeMap<String, ProgressBar>,
    /// Spinners turn on a thread of indicatif's, which tests do without.
    turning: bool,
}

impl Live {
    /// Bars on standard error.
    pub fn new(verbose: bool, colour: bool) -> Live {
        Self::on(console::Term::stderr(), verbose, colour, true)
    }

    fn on(term: impl TermLike + 'static, verbose: bool, colour: bool, turning: bool) -> Live {
        let target = ProgressDrawTarget::term_like_with_hz(Box::new(WideEnough(term)), HZ);
        Live {
            bars: MultiProgress::with_draw_target(target),
            verbose,
            colour,
            phases: BTreeMap::new(),
            nodes: BTreeMap::new(),
            jobs: BTreeMap::new(),
            turning,
        }
    }

    fn line(&self, text: &str) {
        let _ = self.bars.println(text);
    }

    fn spinner(&self, template: &str) -> ProgressBar {
        let bar = self.bars.add(ProgressBar::new_spinner().with_style(style(template)));
        if self.turning {
            bar.enable_steady_tick(TURN);
        }
        bar
    }
}

impl View for Live {
    fn show(&mut self, stamped: &Stamped) {
        match &stamped.event {
            Event::PhaseStarted { phase } => {
                let bar = self.spinner("{spinner} {msg} {elapsed}");
                bar.set_message(one_line(phase));
                if let Some(old) = self.phases.insert(phase.clone(), bar) {
                    old.finish_and_clear();
                }
            }
            Event::PhaseEnded { phase, took, ok } => {
                if let Some(bar) = self.phases.remove(phase) {
                    bar.finish_and_clear();
                }
                for (_, bar) in std::mem::take(&mut self.nodes) {
                    bar.finish_and_clear();
                }
                let how = if *ok { "done" } else { "FAILED" };
                self.line(&format!("== {} {how} in {}", one_line(phase), human_time(*took)));
            }
            Event::Node { node, doing, done, total } => {
                let bar = match self.nodes.get(node) {
                    Some(bar) => bar.clone(),
                    None => {
                        let bar = self.spinner("  {prefix:<12} {msg}");
                        bar.set_prefix(one_line(node));
                        self.nodes.insert(node.clone(), bar.clone());
                        bar
                    }
                };
                if *total > 0 {
                    bar.set_style(style("  {prefix:<12} [{bar:24}] {pos}/{len} {wide_msg}"));
                    bar.set_length(*total);
                    bar.set_position((*done).min(*total));
                } else {
                    bar.set_style(style("  {prefix:<12} {spinner} {wide_msg}"));
                }
                bar.set_message(one_line(doing));
            }
            Event::Progress { what, done, total, unit } => {
                let bar = match self.jobs.get(what) {
                    Some(bar) => bar.clone(),
                    None => {
                        let bar = self.spinner("  {prefix} {msg}");
                        bar.set_prefix(one_line(what));
                        self.jobs.insert(what.clone(), bar.clone());
                        bar
                    }
                };
                if let Some(total) = total.filter(|t| *t > 0) {
                    bar.set_style(style("  {prefix} [{bar:24}] {wide_msg}"));
                    bar.set_length(total);
                    bar.set_position((*done).min(total));
                } else {
                    bar.set_style(style("  {prefix} {spinner} {wide_msg}"));
                }
                bar.set_message(amount(*done, *total, *unit));
            }
            Event::ProgressEnded { what, ok: _ } => {
                if let Some(bar) = self.jobs.remove(what) {
                    bar.finish_and_clear();
                }
            }
            Event::Check(check) => self.line(&check_line(check, self.colour)),
            Event::Waited { what, took, deadline, ok } => {
                if !ok || self.verbose {
                    self.line(&waited_line(what, *took, *deadline, *ok));
                }
            }
            Event::Note { level, text } => {
                let text = one_line(text);
                match level {
                    Level::Detail if !self.verbose => {}
                    Level::Detail | Level::Info => self.line(&text),
                    Level::Warning => self.line(&format!("warning: {text}")),
                }
            }
        }
    }

    fn finish(&mut self) {
        for bars in [&mut self.phases, &mut self.nodes, &mut self.jobs] {
            for (_, bar) in std::mem::take(bars) {
                bar.finish_and_clear();
            }
        }
        let _ = self.bars.clear();
    }
}

/// A terminal that never says it is too narrow. On one that is, bars wrap: ugly, but no panic.
#[derive(Debug)]
struct WideEnough<T>(T);

impl<T: TermLike> TermLike for WideEnough<T> {
    fn width(&self) -> u16 {
        self.0.width().max(NARROWEST)
    }
    fn height(&self) -> u16 {
        self.0.height()
    }
    fn move_cursor_up(&self, n: usize) -> io::Result<()> {
        self.0.move_cursor_up(n)
    }
    fn move_cursor_down(&self, n: usize) -> io::Result<()> {
        self.0.move_cursor_down(n)
    }
    fn move_cursor_right(&self, n: usize) -> io::Result<()> {
        self.0.move_cursor_right(n)
    }
    fn move_cursor_left(&self, n: usize) -> io::Result<()> {
        self.0.move_cursor_left(n)
    }
    fn write_line(&self, s: &str) -> io::Result<()> {
        self.0.write_line(s)
    }
    fn write_str(&self, s: &str) -> io::Result<()> {
        self.0.write_str(s)
    }
    fn clear_line(&self) -> io::Result<()> {
        self.0.clear_line()
    }
    fn flush(&self) -> io::Result<()> {
        self.0.flush()
    }
}

/// The templates are ours and tested: a wrong one is a defect that the tests find.
fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_spinner())
        .progress_chars("=> ")
}

#[cfg(test)]
mod tests {
    use super::super::super::record::tests::at;
    use super::super::tests::every_event;
    use super::*;
    use std::sync::{Arc, Mutex};

    /// A terminal of any size that keeps what was written on it.
    #[derive(Clone, Debug)]
    struct Screen {
        size: (u16, u16),
        text: Arc<Mutex<String>>,
    }

    impl TermLike for Screen {
        fn width(&self) -> u16 {
            self.size.0
        }
        fn height(&self) -> u16 {
            self.size.1
        }
        fn move_cursor_up(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_down(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_right(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_left(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn write_line(&self, s: &str) -> io::Result<()> {
            self.write_str(s)
        }
        fn write_str(&self, s: &str) -> io::Result<()> {
            self.text.lock().unwrap().push_str(s);
            Ok(())
        }
        fn clear_line(&self) -> io::Result<()> {
            Ok(())
        }
        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
    }

    fn on(size: (u16, u16)) -> (Live, Arc<Mutex<String>>) {
        let text = Arc::new(Mutex::new(String::new()));
        let screen = Screen { size, text: text.clone() };
        (Live::on(screen, true, true, false), text)
    }

    #[test]
    fn no_terminal_size_makes_it_panic() {
        for size in [(0, 0), (1, 1), (2, 1), (3, 2), (7, 3), (80, 24), (1000, 1), (u16::MAX, 500)] {
            for text in ["", "openstack1", "漢字漢字漢字漢字\u{1F600}", "{msg}\n\u{1b}[31m"]
            {
                let (mut view, _) = on(size);
                for event in every_event(text) {
                    view.show(&at(0.0, event));
                }
                for event in every_event(text).into_iter().rev() {
                    view.show(&at(1.0, event));
                }
                view.finish();
            }
        }
    }

    #[test]
    fn bars_name_their_node_and_count_and_checks_scroll_above() {
        let (mut view, text) = on((100, 30));
        let node = |done| Event::Node {
            node: "openstack2".into(),
            doing: "apply nova".into(),
            done,
            total: 40,
        };
        view.show(&at(0.0, Event::PhaseStarted { phase: "provision".into() }));
        view.show(&at(0.0, node(17)));
        for event in every_event("ping") {
            view.show(&at(0.0, event));
        }
        view.finish();
        let text = text.lock().unwrap();
        for wanted in ["openstack2", "apply nova", "17/40", "provision", "FAIL", "ping"] {
            assert!(text.contains(wanted), "no {wanted} in {text}");
        }
    }

    #[test]
    fn every_template_is_understood() {
        for template in [
            "{spinner} {msg} {elapsed}",
            "  {prefix:<12} {msg}",
            "  {prefix:<12} [{bar:24}] {pos}/{len} {wide_msg}",
            "  {prefix:<12} {spinner} {wide_msg}",
            "  {prefix} {msg}",
            "  {prefix} [{bar:24}] {wide_msg}",
            "  {prefix} {spinner} {wide_msg}",
        ] {
            assert!(ProgressStyle::with_template(template).is_ok(), "{template}");
        }
    }
}
