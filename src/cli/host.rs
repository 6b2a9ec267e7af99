//! `stackproof host`: what this machine has for running labs.

use super::args::Host;
use super::finish;
use super::session::Session;
use crate::error::{Error, Result};
use std::process::ExitCode;

pub async fn run(session: Session, verb: Host) -> Result<ExitCode> {
    let (record, out) = session
        .conduct(|_work| async move {
            let _ = verb;
            Err::<(), _>(Error::internal("the room `host` is not joined to the command line yet"))
        })
        .await;
    finish(&record, out)
}
