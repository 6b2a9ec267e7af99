//! Tasks of the source tree. It only dispatches to cargo, and depends on nothing, so that it is
//! there at once.

use std::collections::BTreeSet;
use std::process::{Child, Command, ExitCode};
use std::time::{Duration, Instant};

/// What `cargo test` may take, tests built before: nextest ends what hangs by itself. `make test`
/// takes 10 minutes where nothing is built, on two cores without KVM.
const UNIT_LIMIT: Duration = Duration::from_secs(20 * 60);
const VMTEST_LIMIT: Duration = Duration::from_secs(60 * 60);
/// Within this, the kernel ends what it was told to kill, even where it writes a core or waits for
/// a disk.
const ENDING: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(200);

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
        // Half of the time they wait for something. Who says a number of his own is obeyed.
        if std::env::var_os(THREADS).is_none() {
            let cpus = std::thread::available_parallelism().map_or(1, |n| n.get());
            command.env(THREADS, (2 * cpus).to_string());
        }
        return ended(command);
    }
    let which = ["--workspace", "--lib", "--bins", "--test", "cli", "--test", "flake"];
    plain(&which, &[], rest, UNIT_LIMIT)
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
        plain(&["--test", "vmtests"], &["--test-threads", "1"], rest, VMTEST_LIMIT)?
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
    // Whoever asks for tests is not served by none: read by the harness of vmtests/.
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
            let left = end(&family(child.id()), &mut child);
            let limit = limit.as_secs();
            let told = format!("a test hangs: {command:?} was ended after {limit} s");
            return Err(match left.as_slice() {
                [] => told,
                pids => format!("{told}, but for the processes {pids:?}, which could not be"),
            });
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// Kills a child with its family, and waits until they are gone: a signal that was sent has not
/// ended anything yet. Returns those that it did not end in time.
fn end(family: &BTreeSet<u32>, child: &mut Child) -> Vec<u32> {
    let start = Instant::now();
    let pids = family.iter().map(u32::to_string);
    let _ = Command::new("kill").arg("-KILL").args(pids).status();
    loop {
        // Reaps it, where it has ended.
        let _ = child.try_wait();
        let left: Vec<u32> = family.iter().copied().filter(|pid| runs(*pid)).collect();
        if left.is_empty() || start.elapsed() >= ENDING {
            return left;
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// Whether a process runs: it is neither gone, nor ended and not reaped yet by whoever has
/// inherited it.
fn runs(pid: u32) -> bool {
    stat(pid).is_some_and(|stat| !stat.starts_with(['Z', 'X']))
}

/// What the kernel tells of a process behind its name, which stands in brackets and may hold
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

/// The cargo that runs us, without what it told us about our package. Build scripts that look at
/// that (ring's does) would run anew, and all that depends on them be compiled anew, whenever `cargo
/// xtask` follows a `cargo build` or the other way round.
fn program() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in std::env::vars_os() {
        let told = |prefix| name.to_str().is_some_and(|name| name.starts_with(prefix));
        if told("CARGO_PKG_") || told("CARGO_MANIFEST_") {
            command.env_remove(name);
        }
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn what_hangs_is_ended_with_its_children_and_called_so() {
        let file = std::env::temp_dir().join(format!("xtask-hang-{}", std::process::id()));
        let script = format!("sleep 1000 & echo $! >{}; wait", file.display());
        let told = watched(sh(&script), Duration::from_secs(2)).unwrap_err();
        assert!(told.contains("a test hangs"), "{told}");
        let pid = std::fs::read_to_string(&file).unwrap();
        let _ = std::fs::remove_file(&file);
        let pid = pid.trim().parse().unwrap();
        assert!(!runs(pid), "its child {pid} lives");
    }

    #[test]
    fn cargo_is_told_nothing_about_our_package() {
        for name in ["CARGO_MANIFEST_DIR", "CARGO_PKG_NAME"] {
            // The test runner tells us, as `cargo run` does.
            assert!(std::env::var_os(name).is_some(), "{name}");
            let kept = !program().get_envs().any(|(n, value)| n == name && value.is_none());
            assert!(!kept, "{name}");
        }
    }

    #[test]
    fn a_process_runs_until_it_has_ended() {
        let mut child = sh("exec sleep 1000").spawn().unwrap();
        assert!(runs(child.id()));
        assert_eq!(end(&family(child.id()), &mut child), []);
        assert!(!runs(child.id()));
    }
}
