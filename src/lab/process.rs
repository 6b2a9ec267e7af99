//! A child process that cannot outlive us, however we die.
//!
//! The kernel kills it when its parent dies (PR_SET_PDEATHSIG). "Parent" there is the *thread*
//! that forked, not the process: a child forked by a thread of tokio's blocking pool would be
//! killed when that idle thread is retired. So each child gets a thread of its own, which forks
//! it, waits for it, and ends exactly when it does.

use crate::error::{Error, Result};
use rustix::process::{
    Pid, PidfdFlags, Signal, getpid, getppid, pidfd_open, pidfd_send_signal,
    set_parent_process_death_signal,
};
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus};
use std::sync::mpsc;
use std::time::Duration;
use tokio::sync::{oneshot, watch};

/// After SIGKILL a process ends as soon as the kernel has given its memory back: well within this,
/// also on a busy host.
const REAPED_WITHIN: Duration = Duration::from_secs(60);

/// A running child. Dropped, it is killed and reaped.
#[derive(Debug)]
pub struct Process {
    // Dropped in this order: killed, then waited for.
    child: Child,
    exit: watch::Receiver<Option<ExitStatus>>,
    _reaped: Reaped,
}

/// What can be killed. Dropped, it is.
#[derive(Debug)]
struct Child {
    pid: u32,
    /// Unlike the pid, never another process.
    pidfd: OwnedFd,
}

impl Child {
    fn kill(&self) {
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Closed by the child's thread as it ends. Dropped, it waits for that, for the moment that the
/// kernel needs: when a lab is gone, its processes are.
#[derive(Debug)]
struct Reaped(std::sync::Mutex<mpsc::Receiver<()>>);

impl Drop for Reaped {
    fn drop(&mut self) {
        let reaped = self.0.get_mut().unwrap_or_else(|e| e.into_inner());
        let _ = reaped.recv_timeout(REAPED_WITHIN);
    }
}

impl Process {
    /// Starts `command` in a process group of its own: a Ctrl-C at the terminal is for us alone,
    /// and we end the child in order.
    pub async fn spawn(mut command: Command) -> Result<Process> {
        let program = command.get_program().to_string_lossy().into_owned();
        let failed = move |e: std::io::Error| {
            let hint = match e.kind() {
                std::io::ErrorKind::NotFound => "install it, or see `stackproof host check`",
                _ => "see `stackproof host check`",
            };
            Error::host(format!("cannot start {program}")).because(e).hint(hint)
        };
        let us = getpid();
        let with_us = move || {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            // We may have died between the fork and the line above: nobody would tell the child.
            if getppid() != Some(us) {
                return Err(std::io::Error::other("the parent died"));
            }
            Ok(())
        };
        command.process_group(0);
        // SAFETY: between fork and exec only two system calls are made, both async-signal-safe;
        // nothing is allocated (the error of a dead parent is nobody's to see).
        unsafe { command.pre_exec(with_us) };

        // Given up at its `await`, this drops `start` first, and with it the child that was sent or
        // is still to come; then `reaped` waits for its end.
        let (reaping, reaped) = mpsc::channel::<()>();
        let reaped = Reaped(std::sync::Mutex::new(reaped));
        let (started, start) = oneshot::channel();
        let (exited, exit) = watch::channel(None);
        let thread = std::thread::Builder::new().name("child".into()).stack_size(256 << 10);
        let spawned = thread.spawn(move || {
            let _reaping = reaping;
            let mut child = match command.spawn() {
                Ok(child) => child,
                Err(e) => return drop(started.send(Err(e))),
            };
            // The command holds copies of what it gave to the child (its log, say).
            drop(command);
            match pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
                // Where nobody takes it, it is dropped, and so killed.
                Ok(pidfd) => drop(started.send(Ok(Child { pid: child.id(), pidfd }))),
                Err(e) => {
                    let _ = child.kill();
                    let _ = started.send(Err(e.into()));
                }
            }
            // Fails only if the child was reaped by somebody else, which nothing here does.
            let status = child.wait().unwrap_or_else(|_| ExitStatus::from_raw(0));
            let _ = exited.send(Some(status));
        });
        spawned.map_err(failed.clone())?;
        let ended = std::io::Error::other("its thread ended");
        let child = start.await.unwrap_or(Err(ended)).map_err(failed)?;
        Ok(Process { child, exit, _reaped: reaped })
    }

    pub fn pid(&self) -> u32 {
        self.child.pid
    }

    /// Sends SIGKILL. Nothing happens if it has ended already.
    pub fn kill(&self) {
        self.child.kill();
    }

    /// Resolves when it has ended and was reaped. Cancel-safe; callers may be many.
    pub fn exit(&self) -> impl Future<Output = ExitStatus> + Send + use<> {
        let mut exit = self.exit.clone();
        async move {
            match exit.wait_for(Option::is_some).await {
                Ok(status) => status.unwrap_or_default(),
                // The thread sends before it ends.
                Err(_) => ExitStatus::from_raw(Signal::KILL.as_raw()),
            }
        }
    }

    pub fn has_ended(&self) -> bool {
        self.exit.borrow().is_some()
    }
}

/// `exited with status 1`, `was killed by signal 9 (SIGKILL)`.
pub fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with status {code}"),
        (_, Some(9)) => "was killed by signal 9 (SIGKILL; out of memory?)".into(),
        (_, Some(signal)) => format!("was killed by signal {signal}"),
        _ => format!("ended: {status}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    fn sleeper() -> Command {
        let mut command = Command::new("sleep");
        command.arg("1000");
        command
    }

    fn alive(pid: u32) -> bool {
        std::path::Path::new(&format!("/proc/{pid}")).exists()
    }

    #[tokio::test]
    async fn a_dropped_process_is_killed_and_reaped() {
        let process = Process::spawn(sleeper()).await.unwrap();
        let pid = process.pid();
        assert!(alive(pid) && !process.has_ended());
        drop(process);
        assert!(!alive(pid), "not even a zombie is left");
    }

    #[tokio::test]
    async fn a_dropped_start_leaves_no_process() {
        for polls in 1..5 {
            let (mut held, holds) = std::io::pipe().unwrap();
            let mut command = sleeper();
            command.stdout(holds);
            let mut start = Box::pin(Process::spawn(command));
            for _ in 0..polls {
                let poll = std::future::poll_fn(|cx| {
                    std::task::Poll::Ready(start.as_mut().poll(cx).is_ready())
                });
                if poll.await {
                    break;
                }
                tokio::task::yield_now().await;
            }
            drop(start);
            // The pipe ends when nobody holds its other end, neither the child nor its thread: at
            // once, or the read would block.
            rustix::io::ioctl_fionbio(&held, true).unwrap();
            let ended = std::io::Read::read(&mut held, &mut [0]);
            assert_eq!(ended.expect("left alive"), 0, "after {polls} polls");
        }
    }

    #[tokio::test]
    async fn the_exit_status_is_told_to_every_waiter() {
        let mut command = Command::new("sh");
        command.args(["-c", "exit 3"]);
        let process = Process::spawn(command).await.unwrap();
        let (a, b) = tokio::join!(process.exit(), process.exit());
        assert_eq!((a.code(), b.code()), (Some(3), Some(3)));
        assert_eq!(describe(a), "exited with status 3");
        let process = Process::spawn(sleeper()).await.unwrap();
        process.kill();
        assert!(describe(process.exit().await).starts_with("was killed by signal 9"));
    }

    #[tokio::test]
    async fn a_missing_program_is_the_hosts_fault() {
        let error = Process::spawn(Command::new("/nonexistent/qemu")).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Host);
        assert!(error.to_string().contains("/nonexistent/qemu"), "{error}");
        assert!(error.hint_text().is_some());
    }

    /// The grandchild of a parent that is killed without a chance to clean up.
    #[tokio::test]
    async fn the_child_dies_with_us_when_we_are_killed() {
        // This test's own binary, run again as the parent that is killed.
        const FILE: &str = "STACKPROOF_TEST_CHILD_PID";
        if let Some(file) = std::env::var_os(FILE) {
            let process = Process::spawn(sleeper()).await.unwrap();
            std::fs::write(file, process.pid().to_string()).unwrap();
            process.exit().await;
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        let mut parent = Command::new(std::env::current_exe().unwrap());
        parent
            .env(FILE, &file)
            .args(["--exact", "lab::process::tests::the_child_dies_with_us_when_we_are_killed"]);
        parent.stdout(std::process::Stdio::null());
        let parent = Process::spawn(parent).await.unwrap();
        let until = std::time::Instant::now() + Duration::from_secs(60);
        let child = loop {
            let text = std::fs::read_to_string(&file).unwrap_or_default();
            if let Ok(pid) = text.parse::<u32>() {
                break pid;
            }
            assert!(std::time::Instant::now() < until, "the parent never started its child");
            tokio::task::yield_now().await;
        };
        assert!(alive(child));
        drop(parent);
        while std::fs::read_to_string(format!("/proc/{child}/stat"))
            .is_ok_and(|s| !s.contains(") Z "))
        {
            assert!(std::time::Instant::now() < until, "the child outlived its parent");
            tokio::task::yield_now().await;
        }
    }
}
