//! Speaking to the owner of a lab.

use super::place::{Found, Place, SOCKET};
use super::protocol::{self, Answer, Ask, Phase, Reply, Request, Said, VERSION};
use super::socket;
use super::status::Status;
use crate::error::{Context, Error, Kind, Result};
use crate::wait::{Death, Patience, Poll};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, getpid, pidfd_open};
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::time::Duration;
use tokio::net::UnixStream;

/// From the lock to the socket an owner needs moments.
const LISTENS: Duration = Duration::from_secs(10);
const TRY_EVERY: Duration = Duration::from_millis(50);
/// Answers that only need to be said. A busy machine is slow to say them.
const ANSWERS: Duration = Duration::from_secs(60);
/// Answers that first wait for a guest: the owner has its own, shorter deadline for that.
const WORKS: Duration = Duration::from_secs(1800);

/// Where one lab's owner is spoken to; a connection is made for each request.
#[derive(Clone, Debug)]
pub struct Client {
    place: Place,
    patience: Patience,
}

impl Client {
    pub fn new(place: Place, patience: Patience) -> Client {
        Client { place, patience }
    }

    pub fn place(&self) -> &Place {
        &self.place
    }
    pub fn patience(&self) -> &Patience {
        &self.patience
    }

    /// Asks, and gives the answer with the connection: what follows is raw, or its end is news.
    pub async fn open(&self, request: &Request) -> Result<(Answer, UnixStream)> {
        let (reply, stream) = self.exchange(request, VERSION).await?;
        protocol::check_version(reply.version, self.pid())?;
        match reply.said {
            Said::Answer(answer) => Ok((answer, stream)),
            Said::Refused(refusal) => Err(refusal.into()),
        }
    }

    /// Asks in the protocol of `version`, and gives whatever reply comes.
    async fn exchange(&self, request: &Request, version: u32) -> Result<(Reply, UnixStream)> {
        let mut stream = self.connect().await?;
        let nominal = match request {
            Request::Status | Request::Down | Request::Proxy => ANSWERS,
            _ => WORKS,
        };
        let asked = async {
            let request = serde_json::to_value(request)?;
            protocol::write(&mut stream, &Ask { version, request }).await?;
            protocol::read::<Reply>(&mut stream).await
        };
        let what = format!("the owner of lab {} to answer", self.place.name());
        let asked = async { asked.await.doing(Kind::Lab, || "the control socket".into()) };
        let reply = self.patience.within(&what, nominal, &Death::never(), asked).await;
        let reply = reply.map_err(|e| match e.hint_text() {
            Some(_) => e,
            None => e.hint(self.kill_hint()),
        })?;
        let Some(reply) = reply else {
            return Err(self.absent()?.unwrap_or_else(|| {
                Error::lab(format!("the owner of lab {} closed the connection", self.place.name()))
                    .at(self.place.log(), None)
                    .hint("its log tells why")
            }));
        };
        Ok((reply, stream))
    }

    /// Asks the owner to end. [`Request::Down`] is the same in every version, so an owner of another
    /// version is asked in its own.
    async fn ask_down(&self) -> Result<UnixStream> {
        let (mut reply, mut stream) = self.exchange(&Request::Down, VERSION).await?;
        if reply.version != VERSION {
            (reply, stream) = self.exchange(&Request::Down, reply.version).await?;
        }
        match reply.said {
            Said::Answer(_) => Ok(stream),
            Said::Refused(refusal) => Err(refusal.into()),
        }
    }

    pub async fn ask(&self, request: &Request) -> Result<Answer> {
        Ok(self.open(request).await?.0)
    }

    /// A raw connection to `host:port` in the lab.
    pub async fn dial(&self, host: &str, port: u16) -> Result<UnixStream> {
        let request = Request::Dial { host: host.to_owned(), port };
        Ok(self.open(&request).await?.1)
    }

    /// Of a lab that runs, asked; of one that has ended, as it was left.
    pub async fn status(&self) -> Result<Status> {
        if let Found::Ended(state) = self.place.look()? {
            return Ok(Status {
                name: self.place.name().to_owned(),
                phase: Phase::Ended,
                note: state.ended,
                pid: state.pid,
                started: state.started,
                uptime_seconds: 0.0,
                from: state.from,
                logs: Some(self.place.dir()),
                user: None,
                nodes: Vec::new(),
                networks: Vec::new(),
                forwards: Vec::new(),
                cloud: false,
                heartbeats: None,
            });
        }
        match self.ask(&Request::Status).await? {
            Answer::Status(status) => Ok(*status),
            _ => Err(unexpected()),
        }
    }

    /// Ends the lab and waits until nothing of it is left. One that has ended already is only
    /// forgotten. Tells whether it ran.
    pub async fn down(&self) -> Result<bool> {
        if let Found::Ended(_) = self.place.look()? {
            self.place.remove(&self.patience).await?;
            return Ok(false);
        }
        let mut stream = self.ask_down().await?;
        // Opened while the owner holds the other end: never another process of that pid.
        let pid = stream.peer_cred().ok().and_then(|cred| Pid::from_raw(cred.pid()?));
        // An owner within our own process, as tests have it, is gone when its place is.
        let pid = pid.filter(|pid| *pid != getpid());
        let owner = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        let what = format!("lab {} to end", self.place.name());
        // Closed when its owner has nothing left but to end.
        let closed = async {
            let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
            Ok(())
        };
        let never = Death::never();
        let hint = |e: Error| e.hint(self.kill_hint());
        self.patience.within(&what, ANSWERS, &never, closed).await.map_err(hint)?;
        let gone = || async {
            match self.place.look() {
                Ok(Found::Owned { pid, .. }) => Poll::NotYet(format!("process {pid:?} is there")),
                Ok(_) if owner.as_ref().is_some_and(runs) => Poll::NotYet("it is ending".into()),
                Ok(_) => Poll::Ready(()),
                Err(e) => Poll::Failed(e),
            }
        };
        self.patience.until(&what, ANSWERS, TRY_EVERY, &never, gone).await.map_err(hint)?;
        self.place.remove(&self.patience).await?;
        Ok(true)
    }

    async fn connect(&self) -> Result<UnixStream> {
        if let Some(error) = self.absent()? {
            return Err(error);
        }
        let attempt = || async {
            match socket::connect(&self.place.dir(), SOCKET).await {
                Ok(stream) => Poll::Ready(stream),
                Err(e)
                    if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) =>
                {
                    match self.absent() {
                        Ok(None) => Poll::NotYet("its owner does not listen yet".into()),
                        Ok(Some(error)) | Err(error) => Poll::Failed(error),
                    }
                }
                Err(e) => Poll::Failed(
                    Error::host("cannot connect to the lab's owner")
                        .at(self.place.dir().join(SOCKET), None)
                        .because(e),
                ),
            }
        };
        let what = format!("the owner of lab {} to listen", self.place.name());
        let wait = self.patience.until(&what, LISTENS, TRY_EVERY, &Death::never(), attempt).await;
        wait.map_err(|e| match e.hint_text() {
            Some(_) => e,
            None => e.hint(self.kill_hint()),
        })
    }

    /// The error where nobody owns the lab.
    fn absent(&self) -> Result<Option<Error>> {
        let name = self.place.name();
        Ok(match self.place.look()? {
            Found::Owned { .. } => None,
            Found::Ended(state) => {
                let why = state.ended.unwrap_or_default();
                Some(Error::lab(format!("lab {name} has ended: {why}")).hint(format!(
                    "start it again with `stackproof lab up`, or forget it with `stackproof lab \
                     down --name {name}`"
                )))
            }
            Found::Nothing => {
                Some(Error::input(format!("there is no lab {name}")).hint(
                    "`stackproof lab ls` shows what is there; `stackproof lab up` starts one",
                ))
            }
        })
    }

    fn pid(&self) -> Option<u32> {
        match self.place.look() {
            Ok(Found::Owned { pid, .. }) => pid,
            _ => None,
        }
    }

    fn kill_hint(&self) -> String {
        match self.pid() {
            Some(pid) => format!(
                "its machines end with it: `kill {pid}`, and `kill -9 {pid}` if that does nothing"
            ),
            None => "see `stackproof lab ls`".into(),
        }
    }
}

/// A pidfd is readable once its process has ended.
fn runs(process: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(process, PollFlags::IN)];
    matches!(poll(&mut fds, Some(&Timespec::default())), Ok(0))
}

/// The error for an answer of another shape than the question's.
pub fn unexpected() -> Error {
    Error::internal("the lab's owner gave an answer of another shape than was asked for")
}
