//! `stackproof lab`: a lab to live in.

pub mod args;
mod ask;
mod cp;
mod exec;
mod impairment;
mod kept;
mod own;
mod show;
mod stdio;
mod up;
mod which;

use super::finish;
use super::session::{Session, Work};
use crate::error::Result;
use args::{Lab, LabVerb};
use std::process::ExitCode;
use tokio::sync::oneshot;

pub use kept::{checkpoints, layer};

pub async fn run(session: Session, lab: Lab) -> Result<ExitCode> {
    let name = lab.name;
    let (record, out) = match lab.verb {
        LabVerb::Own(up) => return own::run(session, name, up, own::Way::Detached).await,
        LabVerb::Up(up) if up.foreground => {
            return own::run(session, name, up, own::Way::Foreground).await;
        }
        LabVerb::Capture { what, output } => {
            session
                .conduct_until_told(|work, told| async move {
                    let client = which::running(&work, name)?;
                    ask::capture(&work, &client, what, &output, told).await?;
                    Ok(ExitCode::SUCCESS)
                })
                .await
        }
        LabVerb::Console { node, lines, no_follow } => {
            session
                .conduct_until_told(|work, told| async move {
                    let client = which::running(&work, name)?;
                    until(told, ask::console(&client, node, lines, !no_follow)).await
                })
                .await
        }
        LabVerb::Forward { target, to, listen, background } => {
            session
                .conduct_until_told(|work, told| async move {
                    let client = which::running(&work, name)?;
                    let target = target.or(to).unwrap_or_default();
                    until(told, ask::forward(&work, &client, &target, listen, background)).await
                })
                .await
        }
        LabVerb::Proxy { host, port } => {
            session
                .conduct_until_told(|work, told| async move {
                    let client = which::running(&work, name)?;
                    exec::proxy(&client, &host, port, told).await?;
                    Ok(ExitCode::SUCCESS)
                })
                .await
        }
        verb => session.conduct(|work| act(work, name, verb)).await,
    };
    match (&record.error, out) {
        (None, Ok(code)) => Ok(code),
        (_, out) => finish(&record, out),
    }
}

/// `work`, whose ordinary end is Ctrl-C.
async fn until(
    told: oneshot::Receiver<()>,
    work: impl Future<Output = Result<()>>,
) -> Result<ExitCode> {
    tokio::select! {
        out = work => out.map(|()| ExitCode::SUCCESS),
        Ok(()) = told => Ok(ExitCode::SUCCESS),
    }
}

async fn act(work: Work, name: Option<String>, verb: LabVerb) -> Result<ExitCode> {
    let done = ExitCode::SUCCESS;
    match verb {
        LabVerb::Own(_)
        | LabVerb::Console { .. }
        | LabVerb::Forward { .. }
        | LabVerb::Capture { .. }
        | LabVerb::Proxy { .. } => unreachable!("dispatched before"),
        LabVerb::Up(up) => up::run(&work, name, up).await.map(|()| done),
        LabVerb::Ls { json } => show::ls(&work, json).await.map(|()| done),
        LabVerb::Down => ask::down(&work, name).await.map(|()| done),
        verb => {
            let client = match verb {
                LabVerb::Status { .. } => which::any(&work, name)?,
                _ => which::running(&work, name)?,
            };
            match verb {
                LabVerb::Status { json } => show::status(&work, &client, json).await,
                LabVerb::Ssh { node, command } => exec::ssh(&client, &node, &command).await,
                LabVerb::Exec { node, command } => {
                    return exec::exec(&client, &node, &command).await;
                }
                LabVerb::Cp { from, to, sudo } => cp::run(&work, &client, &from, &to, sudo).await,
                LabVerb::Rc { dir, force } => ask::rc(&work, &client, dir, force).await,
                LabVerb::Checkpoint { checkpoint } => {
                    ask::checkpoint(&work, &client, &checkpoint).await
                }
                LabVerb::Restore { checkpoint } => ask::restore(&work, &client, &checkpoint).await,
                LabVerb::Fault(fault) => ask::fault(&client, fault).await,
                LabVerb::Up(_)
                | LabVerb::Own(_)
                | LabVerb::Down
                | LabVerb::Ls { .. }
                | LabVerb::Console { .. }
                | LabVerb::Forward { .. }
                | LabVerb::Capture { .. }
                | LabVerb::Proxy { .. } => unreachable!("matched above"),
            }
            .map(|()| done)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn ctrl_c_is_an_ordinary_end() {
        let (tell, told) = oneshot::channel();
        tell.send(()).unwrap();
        let ended = until(told, std::future::pending()).await.unwrap();
        assert_eq!(format!("{ended:?}"), format!("{:?}", ExitCode::SUCCESS));
        let (_tell, told) = oneshot::channel();
        let failed = until(told, async { Err(crate::error::Error::lab("the lab has ended")) });
        assert!(failed.await.is_err());
    }
}
