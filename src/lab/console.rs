//! A machine's serial console: captured with time stamps, watched for markers and for signs that
//! the guest is lost.

use crate::error::{Error, Result};
use crate::secret::Redactor;
use crate::wait::{Death, Patience};
use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::{oneshot, watch};

/// Lines kept in memory; the file has them all.
const KEPT: usize = 1000;

/// A line without an end is cut here (bytes).
const LONGEST: usize = 8192;

/// An unfinished line is shown to waiters when nothing came for so long.
const QUIET: Duration = Duration::from_millis(200);

/// What a lost guest says on a line of its own, and what that means. Anybody may print such a line on
/// the console, so it is a suspicion (see [`super::vm`]).
const TROUBLE: &[TroubleSign] = &[
    TroubleSign::begins("Kernel panic - not syncing", "its kernel panicked"),
    TroubleSign::begins("You are in emergency mode", "it fell into emergency mode"),
    TroubleSign::begins("Entering emergency mode", "it fell into emergency mode"),
    TroubleSign {
        begins: "",
        ends: "Dropping to a shell!",
        meaning: "its initramfs did not find the root file system",
    },
    TroubleSign::begins("No bootable device", "its BIOS found nothing to boot"),
];

/// A line that says that the guest is lost, and what it means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    pub meaning: &'static str,
    pub line: String,
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.meaning, self.line)
    }
}

struct TroubleSign {
    begins: &'static str,
    ends: &'static str,
    meaning: &'static str,
}

impl TroubleSign {
    const fn begins(begins: &'static str, meaning: &'static str) -> TroubleSign {
        TroubleSign { begins, ends: "", meaning }
    }
    fn is_in(&self, line: &str) -> bool {
        let said = without_stamp(line);
        said.starts_with(self.begins) && said.ends_with(self.ends)
    }
}

/// What a line says behind the kernel's stamps: `[    1.234567]`, and `[    T1]` with the caller.
fn without_stamp(line: &str) -> &str {
    let mut said = line.trim();
    while let Some((stamp, rest)) = said.strip_prefix('[').and_then(|s| s.split_once(']')) {
        let stamp = stamp.trim().trim_start_matches(['T', 'C']);
        if stamp.is_empty() || !stamp.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
            break;
        }
        said = rest.trim_start();
    }
    said
}

/// The captured console. Cheap to clone; the capture ends with the stream.
#[derive(Clone, Debug)]
pub struct Console(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    state: Mutex<State>,
    end: watch::Sender<End>,
}

/// How far the capture is.
#[derive(Debug, Default)]
struct End {
    /// The number that the next line gets.
    next: u64,
    ended: bool,
}

#[derive(Debug, Default)]
struct State {
    lines: VecDeque<Line>,
    /// The number that the next line gets.
    next: u64,
    /// The beginning of a line whose end has not come: a prompt, perhaps.
    partial: String,
    partial_at: Duration,
    waiters: Vec<Waiter>,
    trouble: Option<Trouble>,
}

/// One line, redacted, without control characters.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// Counts from 0 over the whole capture.
    pub number: u64,
    /// Since the start of the run.
    pub at: Duration,
    pub text: String,
}

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "[{:9.3}] {}", self.at.as_secs_f64(), self.text)
    }
}

#[derive(Debug)]
struct Waiter {
    marker: String,
    found: oneshot::Sender<Line>,
}

impl Console {
    /// Captures `stream` into a new file, time stamps counted from `start`. `on_trouble` is called
    /// with each line that says that the guest is lost. Must be called within a runtime.
    pub fn capture(
        stream: impl AsyncRead + Send + Unpin + 'static,
        path: &Path,
        start: Instant,
        redactor: Redactor,
        on_trouble: impl FnMut(String) + Send + 'static,
    ) -> Result<Console> {
        let mut options = std::fs::OpenOptions::new();
        let file = options.write(true).create(true).truncate(true).mode(0o600).open(path).map_err(
            |e| Error::host("cannot write the console's file").at(path, None).because(e),
        )?;
        let (path, end) = (path.to_owned(), watch::Sender::default());
        let console = Console(Arc::new(Shared { path, state: Mutex::default(), end }));
        let shared = Arc::clone(&console.0);
        let on_trouble: Box<dyn FnMut(String) + Send> = Box::new(on_trouble);
        let capture = Capture { shared, file, start, redactor, on_trouble, raw: Vec::new() };
        tokio::spawn(capture.run(stream));
        Ok(console)
    }

    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// The number of the next line: give it to [`Console::wait_for`] to find only what comes now.
    pub fn position(&self) -> u64 {
        self.0.state().next
    }

    /// The last `count` lines with their stamps, and an unfinished one.
    pub fn last(&self, count: usize) -> Vec<String> {
        let state = self.0.state();
        let from = state.lines.len().saturating_sub(count);
        let mut out: Vec<String> = state.lines.range(from..).map(Line::to_string).collect();
        if !state.partial.is_empty() {
            out.push(state.partial.clone());
        }
        out
    }

    /// The lines from number `from` on that are still in memory, once there is one; with none, the
    /// capture has ended. Cancel-safe; callers may be many.
    pub async fn lines_from(&self, from: u64) -> Vec<Line> {
        let mut end = self.0.end.subscribe();
        // An error is the end of the capture: what is there is the last.
        let _ = end.wait_for(|end| end.ended || end.next > from).await;
        let state = self.0.state();
        state.lines.iter().filter(|l| l.number >= from).cloned().collect()
    }

    /// Why the guest is lost, if its console says so.
    pub fn trouble(&self) -> Option<Trouble> {
        self.0.state().trouble.clone()
    }

    /// The guest lives, whatever was printed.
    pub fn dismiss_trouble(&self) {
        self.0.state().trouble = None;
    }

    /// Waits for a line (or the beginning of one) from number `since` on that contains `marker`.
    /// The error shows the console's last lines.
    pub async fn wait_for(
        &self,
        marker: &str,
        since: u64,
        nominal: Duration,
        patience: &Patience,
        death: &Death,
    ) -> Result<Line> {
        let what = format!("`{marker}` on the console");
        let found = self.find(marker, since);
        let seen = patience.within(&what, nominal, death, async {
            match found.await {
                Ok(line) => Ok(line),
                // The capture ended: only the death or the deadline can end the wait.
                Err(_) => std::future::pending().await,
            }
        });
        seen.await.map_err(|e| e.evidence(self.last(10)).at(self.path(), None))
    }

    /// Resolves with the first such line, seen or yet to come.
    fn find(&self, marker: &str, since: u64) -> oneshot::Receiver<Line> {
        let (found, line) = oneshot::channel();
        let mut state = self.0.state();
        let seen = state.lines.iter().find(|l| l.number >= since && l.text.contains(marker));
        if let Some(line) = seen {
            let _ = found.send(line.clone());
        } else if state.partial.contains(marker) {
            let text = state.partial.clone();
            let _ = found.send(Line { number: state.next, at: state.partial_at, text });
        } else {
            // The others may have given up: forget them here, for there may never be a line again.
            state.waiters.retain(|w| !w.found.is_closed());
            state.waiters.push(Waiter { marker: marker.to_owned(), found });
        }
        line
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("the console's lock")
    }
}

impl State {
    fn tell_waiters(&mut self, line: &Line) {
        for i in (0..self.waiters.len()).rev() {
            if line.text.contains(&self.waiters[i].marker) {
                // It may have given up: then the line is nobody's.
                let _ = self.waiters.swap_remove(i).found.send(line.clone());
            }
        }
    }
}

/// The task that reads.
struct Capture {
    shared: Arc<Shared>,
    file: File,
    start: Instant,
    redactor: Redactor,
    on_trouble: Box<dyn FnMut(String) + Send>,
    /// The bytes of the unfinished line.
    raw: Vec<u8>,
}

impl Capture {
    async fn run(mut self, mut stream: impl AsyncRead + Unpin) {
        let mut chunk = vec![0u8; 4096];
        loop {
            let read = stream.read(&mut chunk);
            // A line is mostly finished by the next read; one that is not, after a while, is a
            // prompt.
            let read = match tokio::time::timeout(QUIET, read).await {
                Ok(read) => read,
                Err(_) => {
                    self.show_partial();
                    stream.read(&mut chunk).await
                }
            };
            // An error ends the stream as its end does: QEMU's death is told by its supervisor.
            let Ok(n @ 1..) = read else { break };
            for &byte in &chunk[..n] {
                match byte {
                    b'\n' | b'\r' => self.end_line(),
                    _ => self.raw.push(byte),
                }
                if self.raw.len() >= LONGEST {
                    self.end_line();
                }
            }
        }
        self.end_line();
        // Nobody will be told anything any more.
        self.shared.state().waiters.clear();
        self.shared.end.send_modify(|end| end.ended = true);
    }

    fn end_line(&mut self) {
        let text = self.redactor.clean(&plain(&self.raw));
        self.raw.clear();
        let mut state = self.shared.state();
        state.partial.clear();
        if text.trim().is_empty() {
            return;
        }
        let line = Line { number: state.next, at: self.start.elapsed(), text };
        state.next += 1;
        if state.lines.len() == KEPT {
            state.lines.pop_front();
        }
        state.lines.push_back(line.clone());
        state.tell_waiters(&line);
        let trouble = TROUBLE.iter().find(|sign| sign.is_in(&line.text));
        let news = trouble
            .map(|sign| Trouble { meaning: sign.meaning, line: line.text.trim().to_owned() });
        if let Some(news) = &news
            && state.trouble.is_none()
        {
            state.trouble = Some(news.clone());
        }
        let next = state.next;
        drop(state);
        self.shared.end.send_modify(|end| end.next = next);
        // A full disk must not end the capture: the lines in memory still explain the failure.
        let _ = writeln!(self.file, "{line}");
        if let Some(news) = news {
            (self.on_trouble)(news.to_string());
        }
    }

    /// A prompt has no line end, and somebody may wait for it.
    fn show_partial(&mut self) {
        if self.raw.is_empty() {
            return;
        }
        let text = self.redactor.clean(&plain(&self.raw));
        let mut state = self.shared.state();
        let line = Line { number: state.next, at: self.start.elapsed(), text };
        state.tell_waiters(&line);
        (state.partial, state.partial_at) = (line.text, line.at);
    }
}

/// Text without terminal control sequences.
fn plain(raw: &[u8]) -> String {
    let text = String::from_utf8_lossy(raw);
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\x1b' => match chars.next() {
                // CSI: parameters, then one final character.
                Some('[') => while chars.next().is_some_and(|c| !('@'..='~').contains(&c)) {},
                // OSC: up to the bell or the string terminator.
                Some(']') => {
                    while let Some(c) = chars.next() {
                        if c == '\x07' || (c == '\x1b' && chars.next_if_eq(&'\\').is_some()) {
                            break;
                        }
                    }
                }
                // A character set and the like: one more character.
                Some('(' | ')' | '#' | '%') => drop(chars.next()),
                _ => {}
            },
            '\t' => out.push(c),
            c if c.is_control() => {}
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Events;
    use crate::secret::Secret;
    use crate::wait::{Life, Speed};
    use tokio::io::{AsyncWriteExt, DuplexStream};

    struct Bench {
        guest: Option<DuplexStream>,
        console: Console,
        trouble: Arc<Mutex<Vec<String>>>,
        redactor: Redactor,
        _dir: tempfile::TempDir,
    }

    impl Bench {
        fn new() -> Bench {
            let dir = tempfile::tempdir().unwrap();
            let (guest, ours) = tokio::io::duplex(65536);
            let (trouble, redactor) = (Arc::new(Mutex::new(Vec::new())), Redactor::default());
            let told = Arc::clone(&trouble);
            let console = Console::capture(
                ours,
                &dir.path().join("console.log"),
                Instant::now(),
                redactor.clone(),
                move |t| told.lock().unwrap().push(t),
            )
            .unwrap();
            Bench { guest: Some(guest), console, trouble, redactor, _dir: dir }
        }
        async fn says(&mut self, text: &str) {
            self.guest.as_mut().unwrap().write_all(text.as_bytes()).await.unwrap();
        }
        async fn wait(&self, marker: &str, since: u64) -> Result<Line> {
            let patience = Patience::new(Speed::new(1.0), Events::silent());
            let nominal = Duration::from_secs(20);
            self.console.wait_for(marker, since, nominal, &patience, &Death::never()).await
        }
        /// All that was written, once the capture has ended.
        async fn file(&mut self) -> String {
            self.says("\nthe end of it\n").await;
            self.guest = None;
            self.wait("the end of it", 0).await.unwrap();
            std::fs::read_to_string(self.console.path()).unwrap()
        }
    }

    #[tokio::test]
    async fn lines_are_stamped_numbered_and_free_of_control_sequences() {
        let mut bench = Bench::new();
        bench.says("\x1b[0;32m  OK  \x1b[0m up\r\n\r\n\x1b]0;title\x07second\x1b(B\rthird\n").await;
        let third = bench.wait("third", 0).await.unwrap();
        assert_eq!(third.number, 2);
        let last = bench.console.last(2);
        assert!(last[0].starts_with("[    ") && last[0].ends_with("] second"), "{last:?}");
        let file = bench.file().await;
        assert!(file.lines().next().unwrap().ends_with("]   OK   up"), "{file}");
    }

    #[tokio::test]
    async fn a_marker_may_have_come_already_or_come_later_without_a_line_end() {
        let mut bench = Bench::new();
        bench.says("one\ntwo\n").await;
        assert_eq!(bench.wait("two", 0).await.unwrap().number, 1);
        assert_eq!(bench.wait("one", 0).await.unwrap().number, 0);
        let later = bench.console.find("login:", 0);
        bench.says("three\nnode lo").await;
        bench.says("gin: ").await;
        let prompt = later.await.unwrap();
        assert_eq!((prompt.number, prompt.text.as_str()), (3, "node login: "));
        assert_eq!(bench.console.last(1).last().unwrap(), "node login: ");
        assert_eq!(bench.wait("login:", 0).await.unwrap().text, "node login: ");
    }

    #[tokio::test]
    async fn only_lines_from_the_position_on_count() {
        let mut bench = Bench::new();
        bench.says("up\n").await;
        bench.wait("up", 0).await.unwrap();
        let from = bench.console.position();
        bench.says("other\nup again\n").await;
        assert_eq!(bench.wait("up", from).await.unwrap().text, "up again");
    }

    #[tokio::test]
    async fn secrets_never_reach_the_file_the_memory_or_a_waiter() {
        let mut bench = Bench::new();
        bench.redactor.add(&Secret::new("hunter2hunter2"));
        bench.says("password=hunter2").await;
        bench.says("hunter2 end\nprompt hunter2hunter2>").await;
        let line = bench.wait("end", 0).await.unwrap();
        assert_eq!(line.text, "password=[secret] end");
        bench.wait("prompt", 0).await.unwrap();
        assert!(!bench.console.last(9).concat().contains("hunter2hunter2"));
        let file = bench.file().await;
        assert!(file.contains("[secret]") && !file.contains("hunter2hunter2"), "{file}");
    }

    #[tokio::test]
    async fn a_panic_is_told_with_its_line() {
        let mut bench = Bench::new();
        bench
            .says("[ 1.0] Kernel panic - not syncing: VFS: no root\nKernel panic - not syncing\n")
            .await;
        bench.file().await;
        let told = bench.trouble.lock().unwrap().clone();
        let wanted = "its kernel panicked: [ 1.0] Kernel panic - not syncing: VFS: no root";
        assert_eq!(told[0], wanted);
        assert_eq!(bench.console.trouble().unwrap().to_string(), wanted);
    }

    #[test]
    fn the_kernels_stamps_are_not_what_it_says() {
        for line in ["[    1.234567] x", "[    1.2][    T1] x", "[ 1.2] [ C0] x", " x", "x"] {
            assert_eq!(without_stamp(line), "x", "{line}");
        }
        assert_eq!(without_stamp("[  OK  ] x"), "[  OK  ] x");
        let dropped = "ALERT!  UUID=1 does not exist.  Dropping to a shell!";
        assert!(TROUBLE.iter().any(|sign| sign.is_in(dropped)));
    }

    #[tokio::test]
    async fn ordinary_lines_are_no_trouble() {
        let mut bench = Bench::new();
        bench.says("Linux version 6.12\nReached target emergency-ish\nlogin: \n").await;
        bench.says("test: Kernel panic - not syncing: just a word\n").await;
        bench.says("root@a:~# journalctl | grep 'Kernel panic - not syncing'\n").await;
        bench.says("Nov 28 10:00:00 b kernel: Kernel panic - not syncing: VFS\n").await;
        bench.file().await;
        assert_eq!(bench.console.trouble(), None);
    }

    #[tokio::test]
    async fn endless_lines_are_cut_and_memory_stays_bounded() {
        let mut bench = Bench::new();
        bench.says(&"x".repeat(3 * LONGEST)).await;
        bench.says(&"line\n".repeat(2 * KEPT)).await;
        bench.file().await;
        let state = bench.console.0.state();
        assert_eq!(state.lines.len(), KEPT);
        assert!(state.next as usize > 2 * KEPT);
        assert!(state.lines.iter().all(|l| l.text.len() <= LONGEST));
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_in_vain_shows_the_last_lines() {
        let mut bench = Bench::new();
        bench.says("stuck here\n").await;
        let error = bench.wait("never", 0).await.unwrap_err();
        assert!(error.message().contains("`never` on the console"), "{error}");
        assert!(error.evidence_lines().iter().any(|l| l.ends_with("stuck here")), "{error:?}");
        assert_eq!(error.file().unwrap().0, bench.console.path());
    }

    #[tokio::test]
    async fn a_wait_ends_with_the_death_of_the_machine() {
        let mut bench = Bench::new();
        bench.says("last words\n").await;
        bench.wait("last words", 0).await.unwrap();
        bench.guest = None;
        let (life, death) = Life::new();
        life.ends("QEMU was killed");
        let patience = Patience::new(Speed::new(1.0), Events::silent());
        let wait = bench.console.wait_for("x", 0, Duration::from_secs(60), &patience, &death);
        let error = wait.await.unwrap_err();
        assert!(error.message().ends_with("but QEMU was killed"), "{error}");
    }
}
