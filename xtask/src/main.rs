//! Tasks of the source tree. It only dispatches to cargo, and depends on nothing, so that it is
//! there at once.

use std::process::{Command, ExitCode};

const USAGE: &str = "\
Usage: cargo xtask TASK

  unit [FILTER...]     the tests that need no guest
  vmtest [FILTER...]   the tests of vmtests/ against real guests, under cargo-nextest
                       (JUnit in target/nextest/vmtest/junit.xml)

Arguments are given on to the test runner. Without cargo-nextest the same tests run under plain
`cargo test`, one after the other, without JUnit.
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
        return cargo(&["nextest", "run", "--workspace"], rest);
    }
    let mut arguments = vec!["test", "--workspace", "--lib", "--bins", "--test", "cli"];
    arguments.extend(["--test", "flake", "--"]);
    cargo(&arguments, rest)
}

fn vmtest(rest: &[String]) -> Outcome {
    let code = if nextest() {
        cargo(&["nextest", "run", "--profile", "vmtest", "--test", "vmtests"], rest)?
    } else {
        eprintln!(
            "note: cargo-nextest is not installed: running one test after the other, without \
             JUnit. Get it with: cargo install cargo-nextest --locked"
        );
        cargo(&["test", "--test", "vmtests", "--", "--test-threads", "1"], rest)?
    };
    // Nextest shows ignored tests as a number: the reasons belong beside it.
    cargo(&["test", "--quiet", "--test", "vmtests", "--", "--not-run"], &[])?;
    Ok(code)
}

fn nextest() -> bool {
    Command::new(program())
        .args(["nextest", "--version"])
        .output()
        .is_ok_and(|out| out.status.success())
}

fn cargo(arguments: &[&str], rest: &[String]) -> Outcome {
    let status = Command::new(program())
        .args(arguments)
        .args(rest)
        .status()
        .map_err(|e| format!("cargo {} cannot be started: {e}", arguments.join(" ")))?;
    // A signal gives no code; 1 is then the honest one.
    let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
    Ok(ExitCode::from(code))
}

/// The cargo that runs us.
fn program() -> std::ffi::OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}
