//! The command line: one file a verb. The only room that prints or reads the environment.

mod args;
mod bench;
mod cache;
mod e2e;
mod environment;
mod failure;
mod host;
mod images;
mod lab;
mod record;
mod root;
mod session;
mod signal;
mod table;
mod view;
mod write;

use crate::error::{Context, Error, Kind, Result};
use crate::secret::Redactor;
use args::{Cli, Verb};
use clap::Parser;
use environment::Environment;
use failure::Failure;
use record::Record;
use session::Session;
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

/// How long threads that are still busy (a download, a hash) may delay the exit.
const LINGER: Duration = Duration::from_secs(3);

/// Parses the command line, runs what it asks for and maps the error to the exit code.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            // Help and version come here too, with exit code 0.
            if let Err(error) = stdout_written(e.print()) {
                return report(&error);
            }
            return ExitCode::from(u8::try_from(e.exit_code()).unwrap_or(Kind::Input.exit_code()));
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        // At least two: the second signal must be heard while another thread cleans up.
        .worker_threads(std::thread::available_parallelism().map_or(2, |n| n.get().clamp(2, 8)))
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(e) => return report(&Error::host("threads cannot be started").because(e)),
    };
    let code = runtime.block_on(async {
        match tokio::spawn(run(cli)).await {
            Ok(Ok(code)) => code,
            Ok(Err(e)) => report(&e),
            // The panic's own message was printed by then.
            Err(panic) => report(&Error::internal("a part of stackproof panicked").because(panic)),
        }
    });
    runtime.shutdown_timeout(LINGER);
    code
}

async fn run(cli: Cli) -> Result<ExitCode> {
    let session = Session::new(Environment::read(&cli.global)?)?;
    crate::host::tool::set_environment(session.env.outbound.for_programs());
    sweep(&session);
    match cli.verb {
        Verb::E2e(args) => e2e::run(session, args).await,
        Verb::Images(verb) => images::run(session, verb).await,
        Verb::Host(verb) => host::run(session, verb).await,
        Verb::Cache(verb) => cache::run(session, verb).await,
        Verb::Bench(args) => bench::run(session, args).await,
        Verb::Lab(args) => lab::run(session, args).await,
    }
}

/// Removes what killed runs left. Failing at it must not keep anybody from what he asked for.
fn sweep(session: &Session) {
    let runs = crate::cluster::runs(&session.env.store);
    match crate::lab::rundir::sweep(&runs) {
        Ok(removed) => {
            for path in removed {
                session.events.info(format!("removed {}, left by a killed run", path.display()));
            }
        }
        Err(e) => session.events.warning(format!("runs could not be swept: {e}")),
    }
    match crate::lab::checkpoint::sweep(&lab::checkpoints(&session.env.store)) {
        Ok(removed) => {
            for path in removed {
                let path = path.display();
                session.events.info(format!("removed {path}, half a checkpoint of a killed run"));
            }
        }
        Err(e) => session.events.warning(format!("checkpoints could not be swept: {e}")),
    }
    if let Err(e) = crate::layers::Layers::sweep_in(&session.env.store) {
        session.events.warning(format!("layers could not be swept: {e}"));
    }
    match crate::supervisor::place::sweep(&runs) {
        Ok(swept) => {
            for name in swept {
                session.events.info(format!("lab {name} was left by a killed owner: cleaned up"));
            }
        }
        Err(e) => session.events.warning(format!("labs could not be swept: {e}")),
    }
}

/// Prints to standard output, without secrets. A closed pipe ends nothing: its reader has seen
/// enough. A full disk is an error: the text is the result.
fn print(text: &str, redactor: &Redactor) -> Result<()> {
    let mut out = std::io::stdout().lock();
    let written = out.write_all(redactor.clean(text).as_bytes()).and_then(|()| out.flush());
    stdout_written(written)
}

/// The same to standard error, where a failure cannot be reported.
fn print_error(text: &str, redactor: &Redactor) -> Result<()> {
    let _ = std::io::stderr().write_all(redactor.clean(text).as_bytes());
    Ok(())
}

fn stdout_written(written: std::io::Result<()>) -> Result<()> {
    match written {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => written.doing(Kind::Host, || "standard output cannot be written".into()),
    }
}

/// Tells the error of a closed record, if any, and gives its exit code.
fn finish<T>(record: &Record, out: Result<T>) -> Result<ExitCode> {
    match (&record.error, out) {
        (Some(failure), _) => Ok(tell(failure)),
        // The record of an error always has one.
        (None, Err(e)) => Err(e),
        (None, Ok(_)) => Ok(ExitCode::SUCCESS),
    }
}

/// Prints an error that has no run around it.
fn report(error: &Error) -> ExitCode {
    tell(&Failure::of(error, &Redactor::default()))
}

fn tell(failure: &Failure) -> ExitCode {
    let _ = std::io::stderr().write_all(failure.text().as_bytes());
    ExitCode::from(failure.exit_code)
}
