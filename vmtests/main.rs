//! The tests that run against real guests: a harness that speaks the protocol of `cargo test` and
//! of cargo-nextest, and the list of the tests.
//!
//! A test declares what it needs. Its name begins with its size (`micro::` for one small guest,
//! `pair::` for two, `node::`), which follows from that: `.config/nextest.toml` gives each as many
//! processors. A test whose needs are not met is listed as ignored, never as passed; `--not-run`
//! says why.

mod bench;
mod dice;
mod micro;
mod node;
mod registry;
mod restores;

use libtest_mimic::{Arguments, Trial};
use std::process::ExitCode;

fn main() -> ExitCode {
    // A part of `death` that is to be killed, and so must be a process of its own.
    if let [_, flag, root] = std::env::args_os().collect::<Vec<_>>().as_slice()
        && flag == "--run-lab"
    {
        let Err(why) = micro::run_lab(root.as_ref()) else { return ExitCode::SUCCESS };
        eprintln!("{why}");
        return ExitCode::FAILURE;
    }
    let host = registry::Host::look();
    let tests = registry::all();
    if std::env::args().any(|arg| arg == "--not-run") {
        for test in &tests {
            if let Some(why) = host.lacks(&test.needs) {
                println!("not run: {}: {why}", test.name());
            }
        }
        return ExitCode::SUCCESS;
    }
    let arguments = Arguments::from_args();
    let mut trials = Vec::new();
    for test in tests {
        let lacking = host.lacks(&test.needs);
        if let Some(why) = &lacking
            && !arguments.list
        {
            eprintln!("not run: {}: {why}", test.name());
        }
        let name = test.name();
        let trial = Trial::test(name, move || {
            // Given back when the test is over, however it ends.
            let _room = registry::reserve(&test)?;
            (test.run)().map_err(Into::into)
        });
        trials.push(trial.with_ignored_flag(lacking.is_some()));
    }
    let done = libtest_mimic::run(&arguments, trials);
    // Set by `cargo xtask vmtest`: whoever asks for tests is not served by none.
    let none = !arguments.list && done.num_passed + done.num_failed == 0;
    if none && std::env::var_os("STACKPROOF_SOME_TEST").is_some() {
        eprintln!("error: no test was run: all are ignored, or the filter names none");
        return ExitCode::FAILURE;
    }
    done.exit_code()
}
