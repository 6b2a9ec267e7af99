//! The command line: one file a verb. The only room that prints or reads the environment.

mod args;
mod e2e;
mod environment;
mod failure;
mod record;
mod root;
mod signal;
mod view;
mod write;

use crate::error::{Error, Kind, Result};
use crate::event::{Events, Stamped};
use crate::secret::Redactor;
use args::{Cli, Verb};
use clap::Parser;
use environment::Environment;
use failure::Failure;
use record::Record;
use signal::Stop;
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinHandle;

/// How long threads that are still busy (a download, a hash) may delay the exit.
const LINGER: Duration = Duration::from_secs(3);

/// Parses the command line, runs what it asks for and maps the error to the exit code.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            // Help and version come here too, with exit code 0.
            let _ = e.print();
            return ExitCode::from(u8::try_from(e.exit_code()).unwrap_or(Kind::Input.exit_code()));
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        // The signal task must run while another thread cleans up.
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
    match cli.verb {
        Verb::E2e(args) => e2e::run(session, args).await,
        _ => todo!(),
    }
}

/// What every verb needs: the environment, the stream of events with its reader, and the secrets.
pub struct Session {
    env: Environment,
    redactor: Redactor,
    events: Events,
    reader: JoinHandle<Record>,
    stop: Stop,
}

impl Session {
    fn new(env: Environment) -> Result<Session> {
        let stop = Stop::watch()?;
        let redactor = Redactor::default();
        let (events, from) = Events::channel();
        let reader = reader(&env, from, redactor.clone());
        Ok(Session { env, redactor, events, reader, stop })
    }
}

fn reader(
    env: &Environment,
    from: UnboundedReceiver<Stamped>,
    redactor: Redactor,
) -> JoinHandle<Record> {
    if env.live {
        tokio::spawn(view::follow(from, redactor, view::Live::new(env.verbose, env.colour)))
    } else {
        let plain = view::Plain::new(std::io::stderr(), env.verbose, env.colour);
        tokio::spawn(view::follow(from, redactor, plain))
    }
}

/// Prints an error that has no run around it.
fn report(error: &Error) -> ExitCode {
    let failure = Failure::of(error, &Redactor::default());
    let _ = std::io::stderr().write_all(failure.text().as_bytes());
    ExitCode::from(failure.exit_code)
}
