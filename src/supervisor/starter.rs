//! The start of an owner, seen from both ends of the socket pair that is its standard input. Until
//! the lab is up, and whoever waits for it has said that he heard so, the pair is a lease: he holds
//! the other end, and when he is gone, however he went, the lab goes too.

use super::place::Place;
use super::protocol::{self, Refusal};
use super::status::Status;
use crate::error::{Context, Error, Kind, Result};
use crate::event::{Event, Events};
use crate::wait::{Death, Life};
use serde::{Deserialize, Serialize};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream as StdStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

/// An owner that is told to stop kills its machines and removes their files.
const STOPS: Duration = Duration::from_secs(20);

/// For the answer to the news that the lab is up. Local processes: nothing scales this.
const HEARS: Duration = Duration::from_secs(60);

/// The only byte that the starter ever sends: it has heard that the lab is up.
const HEARD: u8 = b'!';

/// What an owner tells while it starts.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum News {
    Event(Event),
    Up(Box<Status>),
    Failed(Refusal),
}

/// The owner's end.
#[derive(Debug)]
pub struct Starter {
    news: mpsc::UnboundedSender<News>,
    writer: JoinHandle<()>,
    gone: Death,
    heard: oneshot::Receiver<()>,
}

impl Starter {
    /// `fd` is the owner's standard input. Must be called within a runtime.
    pub fn new(fd: OwnedFd) -> Result<Starter> {
        let doing = || "the starter's socket cannot be used".to_owned();
        let stream = StdStream::from(fd);
        stream.set_nonblocking(true).doing(Kind::Internal, doing)?;
        let stream = UnixStream::from_std(stream).doing(Kind::Internal, doing)?;
        let (mut from, mut to) = stream.into_split();
        let (life, gone) = Life::new();
        let (hears, heard) = oneshot::channel();
        // It says one thing at most: all else that is read is its end.
        tokio::spawn(async move {
            if let Ok(HEARD) = from.read_u8().await {
                let _ = hears.send(());
                // The lease is over, and its end is no news any more.
                std::future::pending::<()>().await;
            }
            life.ends("whoever started the lab is gone");
        });
        let (news, mut rest) = mpsc::unbounded_channel::<News>();
        let writer = tokio::spawn(async move {
            while let Some(news) = rest.recv().await {
                let last = !matches!(news, News::Event(_));
                if protocol::write(&mut to, &news).await.is_err() || last {
                    break;
                }
            }
        });
        Ok(Starter { news, writer, gone, heard })
    }

    pub fn tell(&self, news: News) {
        let _ = self.news.send(news);
    }
    /// For those who tell events while the starter is in use elsewhere.
    pub fn teller(&self) -> mpsc::UnboundedSender<News> {
        self.news.clone()
    }
    pub fn gone(&self) -> Death {
        self.gone.clone()
    }
    /// Tells that it failed, and waits until that is on its way.
    pub async fn failed(self, why: Refusal) {
        self.tell(News::Failed(why));
        let _ = tokio::time::timeout(STOPS, self.writer).await;
    }
    /// Tells that it is up; false where nobody is there any more to hear it. One who is there and
    /// says nothing (stopped with Ctrl-Z, say) is taken to have heard.
    pub async fn up(mut self, status: Status) -> bool {
        self.tell(News::Up(Box::new(status)));
        let heard = async {
            tokio::select! {
                heard = self.heard => heard.is_ok(),
                _ = self.gone.wait() => false,
            }
        };
        tokio::time::timeout(HEARS, heard).await.unwrap_or(true)
    }
}

/// The other end: an owner that is starting. Dropped before the lab is up, it takes the half-made
/// lab down and waits until that is done.
#[derive(Debug)]
pub struct Starting {
    place: Place,
    child: Child,
    stream: Option<UnixStream>,
    done: bool,
}

impl Starting {
    /// Starts `command`, which becomes the owner of `place`. Must be called within a runtime.
    pub fn spawn(mut command: Command, place: &Place) -> Result<Starting> {
        place.make()?;
        let doing = || format!("cannot start the owner of lab {}", place.name());
        let mut log = std::fs::OpenOptions::new();
        let log = log.create(true).append(true).mode(0o600).open(place.log());
        let log = log.doing(Kind::Host, doing)?;
        let (ours, theirs) = StdStream::pair().doing(Kind::Host, doing)?;
        ours.set_nonblocking(true).doing(Kind::Host, doing)?;
        let stream = UnixStream::from_std(ours).doing(Kind::Host, doing)?;
        command.stdin(Stdio::from(OwnedFd::from(theirs)));
        command.stdout(log.try_clone().doing(Kind::Host, doing)?).stderr(log);
        let child = command.spawn().doing(Kind::Host, doing)?;
        // The command keeps a copy of the owner's end: its end would never be seen.
        drop(command);
        Ok(Starting { place: place.clone(), child, stream: Some(stream), done: false })
    }

    /// The owner's.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Passes the owner's events on until the lab is up, or failed to come up.
    pub async fn follow(mut self, events: &Events) -> Result<Status> {
        let stream = self.stream.as_mut().expect("there until the drop");
        loop {
            match protocol::read::<News>(stream).await {
                Ok(Some(News::Event(event))) => events.send(event),
                Ok(Some(News::Up(status))) => {
                    // Not before it is said may anybody take the lab for up: an owner that does
                    // not hear it ends.
                    if stream.write_u8(HEARD).await.is_err() {
                        return Err(self.silent());
                    }
                    self.done = true;
                    return Ok(*status);
                }
                Ok(Some(News::Failed(refusal))) => return Err(refusal.into()),
                Ok(None) => return Err(self.silent()),
                Err(e) => return Err(self.silent().because(e)),
            }
        }
    }

    fn silent(&self) -> Error {
        let log = std::fs::read(self.place.log()).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().filter(|l| !l.trim().is_empty()).collect();
        let last = &lines[lines.len().saturating_sub(10)..];
        Error::lab(format!("the owner of lab {} ended without a word", self.place.name()))
            .at(self.place.log(), None)
            .evidence(last.iter().copied())
            .hint("was it killed? start the lab again with `stackproof lab up`")
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        let Some(stream) = self.stream.take().filter(|_| !self.done) else { return };
        let Ok(stream) = stream.into_std() else { return };
        let ends = || -> std::io::Result<()> {
            stream.set_nonblocking(false)?;
            stream.set_read_timeout(Some(STOPS))?;
            stream.shutdown(std::net::Shutdown::Write)?;
            // Ends with the owner: it is its standard input until then.
            std::io::copy(&mut (&stream).take(u64::MAX), &mut std::io::sink()).map(drop)
        };
        if ends().is_err() {
            // It does not listen any more. Its machines die with it.
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}
