//! Running one of the host's tools: its output is read line by line and kept in a log, and it ends
//! when we do, however we do.

use crate::error::{Context, Error, Kind, Result};
use crate::wait::block_until;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};
use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::OnceLock;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::unix::pipe;
use tokio::process::Command;

/// How long a tool that was asked to stop may take to clean up before it is killed. Unpacked systems
/// are removed in a few seconds.
const FAREWELL: Duration = Duration::from_secs(20);

/// How many of a failed tool's last lines its error carries.
const EVIDENCE: usize = 20;

/// The path, and where administration tools and NixOS's set-uid programs are: an ordinary user's path
/// lacks the first, a service's the second.
pub fn search_path() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/sbin:/run/wrappers/bin");
    path
}

/// A tool about to be run. Standard input is empty; locale is C, so that output can be read.
#[derive(Debug)]
pub struct Tool {
    program: OsString,
    command: Command,
    log: Option<PathBuf>,
    /// What the tool is sent when we end first: by drop (its whole group) or by death (itself).
    farewell: Signal,
}

static ENVIRONMENT: OnceLock<Vec<(&'static str, String)>> = OnceLock::new();

/// Variables that every tool of this process gets; the first call counts. See
/// [`crate::outbound::OutboundVariables::for_programs`].
pub fn set_environment(variables: Vec<(&'static str, String)>) {
    let _ = ENVIRONMENT.set(variables);
}

impl Tool {
    pub fn new(program: impl AsRef<OsStr>) -> Tool {
        let mut command = Command::new(&program);
        command
            .env("PATH", search_path())
            .env("LC_ALL", "C.UTF-8")
            .env("DEBIAN_FRONTEND", "noninteractive");
        command.envs(ENVIRONMENT.get().into_iter().flatten().map(|(name, value)| (name, value)));
        Tool { program: program.as_ref().to_owned(), command, log: None, farewell: Signal::KILL }
    }

    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Tool {
        self.command.arg(arg);
        self
    }
    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Tool {
        self.command.args(args);
        self
    }
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Tool {
        self.command.env(name, value);
        self
    }
    pub fn dir(mut self, dir: impl AsRef<Path>) -> Tool {
        self.command.current_dir(dir);
        self
    }
    /// Appends everything that the tool says to this file.
    pub fn log(mut self, file: impl Into<PathBuf>) -> Tool {
        self.log = Some(file.into());
        self
    }
    /// For a tool that has to clean up behind itself: SIGTERM instead of SIGKILL when we end first. A
    /// dropped run then waits until it has ended, at most [`FAREWELL`], and kills what is left.
    pub fn asked_to_stop(mut self) -> Tool {
        self.farewell = Signal::TERM;
        self
    }

    /// Runs it to its end, giving each line of its output and errors to `line`.
    pub async fn run(self, line: impl FnMut(&str)) -> Result<()> {
        self.run_to(None, line).await
    }

    /// Runs it to its end and gives its standard output. Its errors go to the log alone.
    pub async fn output(self) -> Result<String> {
        let mut text = String::new();
        self.run(|l| {
            text.push_str(l);
            text.push('\n');
        })
        .await?;
        Ok(text)
    }

    /// As [`Tool::run`], with its standard output in `file` and its errors read here.
    pub async fn output_to(self, file: File) -> Result<()> {
        self.run_to(Some(file), |_| {}).await
    }

    async fn run_to(mut self, stdout: Option<File>, mut line: impl FnMut(&str)) -> Result<()> {
        let name = self.program.to_string_lossy().into_owned();
        let mut log = self.log.as_deref().map(open_log).transpose()?;
        let (reader, writer) =
            std::io::pipe().doing(Kind::Host, || format!("no pipe for `{name}`"))?;
        let out = match stdout {
            Some(file) => Stdio::from(file),
            None => writer.try_clone().doing(Kind::Host, || "no pipe".into())?.into(),
        };
        self.command.stdin(Stdio::null()).stdout(out).stderr(writer);
        let farewell = self.farewell;
        // Killed at once, it could not clean up: the group's guard ends what was asked to stop.
        self.command.process_group(0).kill_on_drop(farewell == Signal::KILL);
        // SAFETY: between fork and exec only prctl(2) is called, which is async-signal-safe and
        // allocates nothing. The spawning thread is the runtime's, which outlives the child.
        unsafe {
            self.command.pre_exec(move || {
                rustix::process::set_parent_process_death_signal(Some(farewell))?;
                Ok(())
            });
        }
        let mut child = self.command.spawn().map_err(|e| {
            let error = Error::host(format!("`{name}` could not be started")).because(e);
            error.hint("`stackproof host check` says what is missing and how to get it")
        })?;
        // The command holds the writing ends: with them open the pipe would never end.
        drop(self.command);
        let group = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        let guard = Group { group, farewell };

        let reader = pipe::Receiver::from_owned_fd(reader.into())
            .doing(Kind::Host, || format!("the output of `{name}` cannot be read"))?;
        let mut lines = BufReader::new(reader).split(b'\n');
        // Dropped before the pipe: who cleans up and says so must not die of a broken one.
        let guard = guard;
        let mut last = VecDeque::with_capacity(EVIDENCE);
        while let Some(bytes) =
            lines.next_segment().await.doing(Kind::Host, || format!("reading `{name}`"))?
        {
            let text = String::from_utf8_lossy(&bytes);
            // A progress line is overwritten by carriage returns: its last state is what it says.
            let text = text.trim_end_matches('\r');
            let text = text.rsplit('\r').next().unwrap_or_default();
            if let Some(log) = &mut log {
                // A full disk must not hide what the tool itself says.
                let _ = writeln!(log, "{text}");
            }
            if last.len() == EVIDENCE {
                last.pop_front();
            }
            last.push_back(text.to_owned());
            line(text);
        }
        let status = child.wait().await.doing(Kind::Host, || format!("waiting for `{name}`"))?;
        guard.ended();
        if status.success() {
            return Ok(());
        }
        let error = Error::host(format!("`{name}` failed ({status})")).evidence(last);
        Err(match &self.log {
            Some(log) => error.hint(format!("everything it said is in {}", log.display())),
            None => error,
        })
    }
}

fn open_log(path: &Path) -> Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
        .doing(Kind::Host, || "the log cannot be written".into())
        .map_err(|e| e.at(path, None))
}

/// The tool and all its children, ended when dropped before they ended by themselves.
struct Group {
    group: Option<Pid>,
    farewell: Signal,
}

impl Group {
    fn ended(mut self) {
        self.group = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let Some(group) = self.group else { return };
        // It may just have ended: then there is nothing to end.
        let _ = rustix::process::kill_process_group(group, self.farewell);
        if self.farewell == Signal::KILL {
            return;
        }
        // Looked at and not reaped: its number stays its own, and that of its group.
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        block_until(FAREWELL, || {
            !matches!(rustix::process::waitid(WaitId::Pid(group), look), Ok(None))
        });
        let _ = rustix::process::kill_process_group(group, Signal::KILL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wait::{Death, Patience, Poll, Speed};

    #[tokio::test]
    async fn a_failing_tool_shows_its_last_lines_and_its_log() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let script = "for i in $(seq 30); do echo line $i; done; echo why >&2; exit 3";
        let e = Tool::new("sh").args(["-c", script]).log(&log).run(|_| {}).await.unwrap_err();
        assert_eq!(e.evidence_lines().len(), EVIDENCE);
        assert_eq!(e.evidence_lines().last().unwrap(), "why");
        assert!(e.message().contains("exit status: 3"), "{e}");
        assert_eq!(std::fs::read_to_string(&log).unwrap().lines().count(), 31);
    }

    #[tokio::test]
    async fn a_missing_tool_says_where_to_look() {
        let e = Tool::new("no-such-tool-here").run(|_| {}).await.unwrap_err();
        assert_eq!(e.kind(), Kind::Host);
        assert!(e.hint_text().unwrap().contains("host check"));
    }

    #[tokio::test]
    async fn the_children_of_a_dropped_tool_end_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let pid_file = dir.path().join("pid");
        let script = format!("sleep 1000 & echo $! > {}; echo up; wait", pid_file.display());
        {
            let (up, mut seen) = tokio::sync::mpsc::unbounded_channel();
            let run = Tool::new("sh").args(["-c", &script]).run(|l| up.send(l.to_owned()).unwrap());
            tokio::select! {
                out = run => panic!("ended: {out:?}"),
                line = seen.recv() => assert_eq!(line.unwrap(), "up"),
            }
        }
        let pid = std::fs::read_to_string(&pid_file).unwrap();
        let stat = format!("/proc/{}/stat", pid.trim());
        Patience::new(Speed::new(1.0), crate::event::Events::silent())
            .until(
                "its end",
                Duration::from_secs(10),
                Duration::from_millis(5),
                &Death::never(),
                || async {
                    // An orphan may stay a zombie for a moment until init reaps it.
                    match std::fs::read_to_string(&stat) {
                        Ok(stat) if !stat.contains(") Z ") => Poll::NotYet(stat),
                        _ => Poll::Ready(()),
                    }
                },
            )
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn a_tool_that_cleans_up_is_waited_for_and_what_it_forgets_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        // Its child does not listen, and it takes its time to clean up.
        let script = format!(
            "trap '' TERM; sleep 1000 & echo $! >{}; trap 'sleep 0.3; echo cleaning; echo >{}; exit 1' TERM; \
             echo up; while :; do sleep 0.05; done",
            at("pid"),
            at("cleaned")
        );
        {
            let (up, mut seen) = tokio::sync::mpsc::unbounded_channel();
            let tool = Tool::new("sh").args(["-c", &script]).asked_to_stop();
            let run = tool.run(|l| up.send(l.to_owned()).unwrap());
            tokio::select! {
                out = run => panic!("ended: {out:?}"),
                line = seen.recv() => assert_eq!(line.unwrap(), "up"),
            }
        }
        assert!(Path::new(&at("cleaned")).exists(), "it was not let finish");
        let pid = std::fs::read_to_string(at("pid")).unwrap();
        let stat = format!("/proc/{}/stat", pid.trim());
        let gone = || std::fs::read_to_string(&stat).is_ok_and(|s| !s.contains(") Z "));
        assert!(block_until(Duration::from_secs(10), || !gone()), "its child lives");
    }

    #[tokio::test]
    async fn output_and_progress_lines_are_read_as_they_end() {
        let text = Tool::new("printf").arg("one\n10%%\r20%%\r\ntwo").output().await.unwrap();
        assert_eq!(text, "one\n20%\ntwo\n");
    }
}
