//! Tasks of the source tree. It only dispatches to cargo, and depends on nothing, so that it is
//! there at once.

use std::collections::BTreeSet;
use std::process::{Child, Command, ExitCode};
use std::time::{Duration, Instant};

/// What `cargo test` may take, tests built before. Nextest has limits of its own. `make test` takes
/// 10 minutes where nothing is built, on two cores without KVM.
const UNIT_TIMEOUT: Duration = Duration::from_secs(20 * 60);
const VMTEST_TIMEOUT: Duration = Duration::from_secs(60 * 60);
/// The kernel ends a killed process within this, even where it writes a core or waits for a disk.
const KILL_TIMEOUT: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// How many tests nextest runs at once.
const THREADS: &str = "NEXTEST_TEST_THREADS";

const USAGE: &str = "\
Usage: cargo xtask TASK

  unit [FILTER...]     the tests that need no guest
  vmtest [FILTER...]   the tests of vmtests/ against real guests, under cargo-nextest
                       (JUnit in target/nextest/vmtest/junit.xml)

Arguments are given on to the test runner. Without cargo-nextest the same tests run under plain
`cargo test`, one after the other, without JUnit, and all of them are ended after a time that is
far beyond what they need. `vmtest` fails where it ran no test.
";

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let task = arguments.next();
    let rest: Vec<String> = arguments.collect();
    let done = match task.as_deref() {
        Some("unit") => unit(&rest),
        Some("vmtest") => vmtest(&rest),
        Some("help" | "-h" | "--help") => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        _ => {
            eprint!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(code) => code,
        Err(problem) => {
            eprintln!("error: {problem}");
            ExitCode::FAILURE
        }
    }
}

type Outcome = Result<ExitCode, String>;

fn unit(rest: &[String]) -> Outcome {
    if nextest() {
        let mut command = program();
        command.args(["nextest", "run", "--workspace"]).args(rest);
        // Half of the time they wait for something. A number in the environment wins.
        if std::env::var_os(THREADS).is_none() {
            let cpus = std::thread::available_parallelism().map_or(1, |n| n.get());
            command.env(THREADS, (2 * cpus).to_string());
        }
        return ended(command);
    }
    let which = ["--workspace", "--lib", "--bins", "--test", "cli", "--test", "flake"];
    plain(&which, &[], rest, UNIT_TIMEOUT)
}

fn vmtest(rest: &[String]) -> Outcome {
    let code = if nextest() {
        let run = ["nextest", "run", "--profile", "vmtest", "--test", "vmtests"];
        cargo(&[&run[..], &["--no-tests", "fail"]].concat(), rest)?
    } else {
        eprintln!(
            "note: cargo-nextest is not installed: running one test after the other, without \
             JUnit. Get it with: cargo install cargo-nextest --locked"
        );
        plain(&["--test", "vmtests"], &["--test-threads", "1"], rest, VMTEST_TIMEOUT)?
    };
    // Nextest shows ignored tests as a number: the reasons belong beside it.
    cargo(&["test", "--quiet", "--test", "vmtests", "--", "--not-run"], &[])?;
    Ok(code)
}

/// `cargo test`, which is built first: the limit is for the tests.
fn plain(which: &[&str], options: &[&str], rest: &[String], limit: Duration) -> Outcome {
    let built = cargo(&[&["test", "--no-run"], which].concat(), &[])?;
    if built != ExitCode::SUCCESS {
        return Ok(built);
    }
    let mut command = program();
    command.arg("test").args(which).arg("--").args(options).args(rest);
    // Read by the harness of vmtests/: a run without any test fails.
    command.env("STACKPROOF_SOME_TEST", "1");
    watched(command, limit)
}

/// Runs a command, which is ended with all its children where it takes longer than `limit`.
fn watched(mut command: Command, limit: Duration) -> Outcome {
    let start = Instant::now();
    let mut child = command.spawn().map_err(|e| format!("{command:?} cannot be started: {e}"))?;
    loop {
        let status = child.try_wait().map_err(|e| format!("{command:?}: {e}"))?;
        if let Some(status) = status {
            return Ok(code_of(status));
        }
        if start.elapsed() >= limit {
            let ended = end(&family(child.id()), &mut child);
            let hang = format!("a test hangs: {command:?} was ended after {} s", limit.as_secs());
            return Err(match ended {
                Ok(()) => hang,
                Err(problem) => format!("{hang}, but {problem}"),
            });
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// Kills a child with its family, and waits until they are gone: a signal that was sent has not
/// ended anything yet.
fn end(family: &BTreeSet<u32>, child: &mut Child) -> Result<(), String> {
    let start = Instant::now();
    let sent = send_kill(kill(family));
    loop {
        // Reaps it, where it has ended.
        let _ = child.try_wait();
        let left: Vec<u32> = family.iter().copied().filter(|pid| runs(*pid)).collect();
        if left.is_empty() {
            return Ok(());
        }
        if start.elapsed() >= KILL_TIMEOUT {
            return Err(still_running(&left, sent));
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// Sends SIGKILL. The shell's builtin does it: a bare Debian root has no program `kill`.
fn kill(pids: &BTreeSet<u32>) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", "kill -KILL \"$@\"", "kill"]).args(pids.iter().map(u32::to_string));
    command
}

/// The error says how the command failed. One process that ended before makes it fail too, so that
/// only [`runs`] says whether a process was killed.
fn send_kill(mut command: Command) -> Result<(), String> {
    let out = command.output().map_err(|e| format!("{command:?} cannot be started: {e}"))?;
    if out.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&out.stderr);
    Err(format!("{command:?}: {}: {}", out.status, text.trim()))
}

fn still_running(pids: &[u32], sent: Result<(), String>) -> String {
    let seconds = KILL_TIMEOUT.as_secs();
    match sent {
        Ok(()) => format!("the processes {pids:?} still run {seconds} s after SIGKILL"),
        Err(problem) => format!("the processes {pids:?} still run ({problem})"),
    }
}

/// Whether a process runs: it is neither gone, nor ended and waiting for its parent to reap it.
fn runs(pid: u32) -> bool {
    stat(pid).is_some_and(|stat| !stat.starts_with(['Z', 'X']))
}

/// What the kernel says of a process after its name, which stands in brackets and may hold
/// anything: its state, its parent, ...
fn stat(pid: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(stat.rsplit_once(") ")?.1.to_owned())
}

/// A process and all that descend from it.
fn family(pid: u32) -> BTreeSet<u32> {
    let parents: Vec<(u32, u32)> = std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            Some((pid, stat(pid)?.split(' ').nth(1)?.parse().ok()?))
        })
        .collect();
    let mut family = BTreeSet::from([pid]);
    while let Some((child, _)) =
        parents.iter().find(|(c, p)| family.contains(p) && !family.contains(c))
    {
        family.insert(*child);
    }
    family
}

fn nextest() -> bool {
    program().args(["nextest", "--version"]).output().is_ok_and(|out| out.status.success())
}

fn cargo(arguments: &[&str], rest: &[String]) -> Outcome {
    let mut command = program();
    command.args(arguments).args(rest);
    ended(command)
}

fn ended(mut command: Command) -> Outcome {
    let status = command.status().map_err(|e| format!("{command:?} cannot be started: {e}"))?;
    Ok(code_of(status))
}

/// A signal gives no code; 1 is then the honest one.
fn code_of(status: std::process::ExitStatus) -> ExitCode {
    ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

/// The cargo that runs us, without the variables that describe our package. A build script that
/// reads them (ring's does) would run again, and all that depends on it be compiled again, whenever
/// `cargo xtask` follows a `cargo build` or the other way round.
fn program() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in std::env::vars_os() {
        let begins = |prefix| name.to_str().is_some_and(|name| name.starts_with(prefix));
        if begins("CARGO_PKG_") || begins("CARGO_MANIFEST_") {
            command.env_remove(name);
        }
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    fn sh(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn what_ends_in_time_keeps_its_code() {
        let limit = Duration::from_secs(600);
        assert_eq!(watched(sh("exit 0"), limit).unwrap(), ExitCode::SUCCESS);
        assert_eq!(watched(sh("exit 7"), limit).unwrap(), ExitCode::from(7));
    }

    #[test]
    fn what_hangs_is_ended_with_its_children() {
        let file = std::env::temp_dir().join(format!("xtask-hang-{}", std::process::id()));
        let script = format!("sleep 1000 & echo $! >{}; wait", file.display());
        let error = watched(sh(&script), Duration::from_secs(2)).unwrap_err();
        assert!(error.contains("a test hangs"), "{error}");
        assert!(error.ends_with("was ended after 2 s"), "{error}");
        let pid = std::fs::read_to_string(&file).unwrap();
        let _ = std::fs::remove_file(&file);
        let pid = pid.trim().parse().unwrap();
        assert!(!runs(pid), "its child {pid} lives");
    }

    #[test]
    fn no_program_named_kill_is_needed() {
        let folder = std::env::temp_dir().join(format!("xtask-path-{}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        std::os::unix::fs::symlink("/bin/sh", folder.join("sh")).unwrap();
        let mut child = sh("exec sleep 1000").spawn().unwrap();
        let mut command = kill(&BTreeSet::from([child.id()]));
        command.env("PATH", &folder);
        let sent = send_kill(command);
        std::fs::remove_dir_all(&folder).unwrap();
        if sent.is_err() {
            child.kill().unwrap();
        }
        let status = child.wait().unwrap();
        assert_eq!(sent, Ok(()));
        assert_eq!(status.signal(), Some(9));
    }

    #[test]
    fn a_failure_to_kill_names_its_reason() {
        // Above the largest number that the kernel gives to a process.
        let pid = (1 << 22) + 1;
        let sent = send_kill(kill(&BTreeSet::from([pid])));
        let error = still_running(&[pid], sent);
        assert!(error.contains("the processes [4194305] still run"), "{error}");
        assert!(error.contains("exit status: 1"), "{error}");
        assert!(error.to_lowercase().contains("no such process"), "{error}");
    }

    #[test]
    fn cargo_gets_no_description_of_our_package() {
        for name in ["CARGO_MANIFEST_DIR", "CARGO_PKG_NAME"] {
            // The test runner sets them, as `cargo run` does.
            assert!(std::env::var_os(name).is_some(), "{name}");
            let kept = !program().get_envs().any(|(n, value)| n == name && value.is_none());
            assert!(!kept, "{name}");
        }
    }

    #[test]
    fn a_process_runs_until_it_has_ended() {
        let mut child = sh("exec sleep 1000").spawn().unwrap();
        assert!(runs(child.id()));
        assert_eq!(end(&family(child.id()), &mut child), Ok(()));
        assert!(!runs(child.id()));
    }
}
