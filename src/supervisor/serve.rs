//! The owner's side of the control socket: one task a connection, which ends with its client.

use super::owner::{Done, Job, Shared};
use super::protocol::{self, Answer, Ask, Refusal, Reply, Request, Said, VERSION};
use crate::error::{Context, Error, Kind, Result};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

/// A client says its one line at once. Local processes: nothing scales this.
const ASKS: Duration = Duration::from_secs(30);

pub async fn accept(listener: UnixListener, shared: Arc<Shared>) {
    // Dropped with this task: no connection outlives its owner.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                connections.spawn(connection(stream, shared.clone()));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(mut stream: UnixStream, shared: Arc<Shared>) {
    let request = match tokio::time::timeout(ASKS, ask(&mut stream)).await {
        Ok(Ok(Some(request))) => request,
        Ok(Err(e)) => {
            refuse(&mut stream, &shared, &e).await;
            return;
        }
        // A client that connects and says nothing only wanted to know whether somebody listens.
        Ok(Ok(None)) | Err(_) => return,
    };
    if let Err(e) = answer(&mut stream, request, &shared).await {
        refuse(&mut stream, &shared, &e).await;
    }
}

async fn ask(stream: &mut UnixStream) -> Result<Option<Request>> {
    let doing = || "the request cannot be read".to_owned();
    let Some(ask) = protocol::read::<Ask>(stream).await.doing(Kind::Input, doing)? else {
        return Ok(None);
    };
    protocol::check_version(ask.version, Some(std::process::id()))?;
    serde_json::from_value(ask.request).map(Some).doing(Kind::Input, doing)
}

async fn refuse(stream: &mut UnixStream, shared: &Shared, error: &Error) {
    let said = Said::Refused(Refusal::of(error, &shared.redactor));
    // A client that is gone is told nothing.
    let _ = protocol::write(stream, &Reply { version: VERSION, said }).await;
}

async fn say(stream: &mut UnixStream, answer: Answer) -> Result<()> {
    let reply = Reply { version: VERSION, said: Said::Answer(answer) };
    protocol::write(stream, &reply).await.doing(Kind::Lab, || "the client is gone".into())
}

/// An error before the answer is told to the client; after it, it only ends the connection.
async fn answer(stream: &mut UnixStream, request: Request, shared: &Arc<Shared>) -> Result<()> {
    match request {
        Request::Status => say(stream, Answer::Status(Box::new(shared.status()))).await,
        Request::Down => {
            say(stream, Answer::Done).await?;
            shared.down.send_replace(true);
            // Closed when the owner ends: that is the news.
            std::future::pending().await
        }
        Request::Proxy => {
            let (url, cloud) = shared.proxy()?;
            say(stream, Answer::Proxy { url, cloud }).await
        }
        Request::Dial { host, port } => {
            let reach = shared.reach()?;
            let mut far = reach.dial(&host, port).await?;
            say(stream, Answer::Stream).await?;
            let _ = tokio::io::copy_bidirectional(stream, &mut far).await;
            Ok(())
        }
        Request::Console { node, lines, follow } => {
            let console = shared.handles()?.node(&node)?.console.clone();
            say(stream, Answer::Stream).await?;
            // What goes wrong from here on is the client's end.
            let _ = show(stream, &console, lines, follow).await;
            Ok(())
        }
        Request::Forward { host, port, listen, keep } => {
            let way = shared.way();
            let held = shared.forwards.open(way, &host, port, listen, keep).await?;
            say(stream, Answer::Listening(held.listen)).await?;
            if keep {
                held.keep();
            } else {
                closed(stream).await;
            }
            Ok(())
        }
        Request::Fault(_)
        | Request::Capture { .. }
        | Request::Checkpoint { .. }
        | Request::Restore { .. } => {
            shared.handles()?;
            let (reply, done) = oneshot::channel();
            let ended = |_| Error::lab("the lab ended meanwhile");
            shared.jobs.send(Job { request, reply }).await.map_err(|_| ended(()))?;
            match done.await.map_err(|_| ended(()))?? {
                Done::Answer(answer) => say(stream, answer).await,
                Done::Capture(writer) => {
                    say(stream, Answer::Stream).await?;
                    let (ours, none) =
                        UnixStream::pair().doing(Kind::Host, || "a socket".into())?;
                    drop(none);
                    writer(std::mem::replace(stream, ours)).await;
                    Ok(())
                }
            }
        }
    }
}

/// Resolves when the client has closed its end. It has nothing more to say.
async fn closed(stream: &mut UnixStream) {
    let mut rest = [0; 64];
    while matches!(stream.read(&mut rest).await, Ok(1..)) {}
}

async fn show(
    stream: &mut UnixStream,
    console: &crate::lab::console::Console,
    lines: usize,
    follow: bool,
) -> std::io::Result<()> {
    let mut next = console.position().saturating_sub(lines as u64);
    let until = console.position();
    loop {
        if !follow && next >= until {
            return Ok(());
        }
        let new = tokio::select! {
            new = console.lines_from(next) => new,
            () = closed(stream) => return Ok(()),
        };
        // None: the machine is gone, and its console with it.
        let Some(last) = new.last() else { return Ok(()) };
        next = last.number + 1;
        let text: String = new.iter().map(|line| format!("{line}\n")).collect();
        stream.write_all(text.as_bytes()).await?;
    }
}
