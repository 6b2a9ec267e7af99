//! The guest agent of a node: a line of JSON at a time through a virtio port, without network and
//! without login. Used where it runs; not every guest has one.

use super::clock::{ClockAim, ClockOffset, since_epoch};
use super::qemu::AGENT_SOCKET;
use crate::error::{Context, Error, Kind, Result};
use serde_json::{Value, json};
use std::fmt;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

/// A byte that no JSON holds: all before it belongs to somebody who spoke earlier.
const SENTINEL: u8 = 0xff;

/// No answer of those that are asked for comes near it, in bytes.
const LONGEST: u64 = 1 << 20;

/// A conversation with an agent. QEMU lets one be held at a time.
pub struct Agent<S>(BufReader<S>);

impl Agent<UnixStream> {
    /// Connects to the agent of the machine that runs in `dir`. Neither this nor what follows has a
    /// deadline of its own: an agent that does not run never answers.
    pub async fn connect(dir: &Path) -> Result<Agent<UnixStream>> {
        // By a descriptor of the directory: the address of a socket holds 107 bytes.
        let doing = || "cannot speak to the guest agent".to_owned();
        let dir = File::open(dir).doing(Kind::Lab, doing)?;
        let path = format!("/proc/self/fd/{}/{AGENT_SOCKET}", dir.as_raw_fd());
        let stream = UnixStream::connect(path).await.doing(Kind::Lab, doing)?;
        Agent::over(stream).await
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Agent<S> {
    /// Makes itself known: what is left of an earlier conversation is passed over.
    pub async fn over(stream: S) -> Result<Agent<S>> {
        let mut agent = Agent(BufReader::new(stream));
        let id = std::process::id();
        // Only here: the agent complains of this byte too, before it answers.
        let sent = agent.0.get_mut().write_all(&[SENTINEL]).await;
        sent.doing(Kind::Lab, || "cannot speak to the guest agent".into())?;
        agent.say("guest-sync-delimited", json!({ "id": id })).await?;
        loop {
            agent.skip_to_sentinel().await?;
            if agent.hear().await?.get("return") == Some(&json!(id)) {
                return Ok(agent);
            }
        }
    }

    /// Runs one command of the agent's.
    pub async fn call(&mut self, name: &str, arguments: Value) -> Result<Value> {
        self.say(name, arguments).await?;
        let answer = self.hear().await?;
        match (answer.get("return"), answer["error"]["desc"].as_str()) {
            (Some(value), _) => Ok(value.clone()),
            (None, Some(why)) => Err(Error::lab(format!("the agent refused `{name}`: {why}"))),
            (None, None) => Err(Error::lab(format!("the agent answered `{name}` with {answer}"))),
        }
    }

    /// Sets the guest's clock to ours, once. Says what is wrong where it is not right after that:
    /// the next try is aimed better.
    pub async fn set_clock(&mut self, aim: &mut ClockAim) -> Result<ClockSetting> {
        let target = aim.target().as_nanos() as i64;
        // It sets the clock first and then the hardware's by a program that not every guest has:
        // what the clock says afterwards is what counts.
        let set = self.call("guest-set-time", json!({ "time": target })).await;
        let asked = since_epoch();
        let shown = self.call("guest-get-time", json!({})).await?;
        let shown = Duration::from_nanos(shown.as_u64().unwrap_or(0));
        Ok(match aim.judge(asked, (shown, shown), since_epoch()) {
            None => ClockSetting::Right,
            Some(offset) => ClockSetting::Off { offset, refusal: set.err() },
        })
    }

    async fn say(&mut self, name: &str, arguments: Value) -> Result<()> {
        let line = format!("{}\n", json!({ "execute": name, "arguments": arguments }));
        let said = self.0.get_mut().write_all(line.as_bytes()).await;
        said.doing(Kind::Lab, || format!("cannot ask the guest agent for `{name}`"))
    }

    async fn hear(&mut self) -> Result<Value> {
        let mut line = Vec::new();
        let doing = || "the guest agent fell silent".to_owned();
        (&mut self.0).take(LONGEST).read_until(b'\n', &mut line).await.doing(Kind::Lab, doing)?;
        if line.is_empty() {
            return Err(Error::lab("the guest agent fell silent: its port was closed"));
        }
        serde_json::from_slice(&line).doing(Kind::Lab, || "the guest agent speaks no JSON".into())
    }

    async fn skip_to_sentinel(&mut self) -> Result<()> {
        let doing = || "the guest agent fell silent".to_owned();
        loop {
            let ready = self.0.fill_buf().await.doing(Kind::Lab, doing)?;
            if ready.is_empty() {
                return Err(Error::lab("the guest agent fell silent: its port was closed"));
            }
            let (used, found) = match ready.iter().position(|&b| b == SENTINEL) {
                Some(at) => (at + 1, true),
                None => (ready.len(), false),
            };
            self.0.consume(used);
            if found {
                return Ok(());
            }
        }
    }
}

/// What came of setting a guest's clock once.
#[derive(Debug)]
pub enum ClockSetting {
    Right,
    Off {
        offset: ClockOffset,
        /// What the agent said against it, which may have set the clock all the same.
        refusal: Option<Error>,
    },
}

impl fmt::Display for ClockSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ClockSetting::Right => f.write_str("its clock is right"),
            ClockSetting::Off { offset, refusal: None } => write!(f, "its clock is {offset}"),
            ClockSetting::Off { offset, refusal: Some(why) } => {
                write!(f, "its clock is {offset}: {why}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::DuplexStream;

    /// An agent of ours, whose clock shows `off` more than the host's, and which cannot set it
    /// where `deaf`.
    async fn agent(stream: DuplexStream, mut off: i64, deaf: bool) {
        let mut stream = BufReader::new(stream);
        // The rest of an answer to somebody who gave up.
        stream.get_mut().write_all(b"\"half\": 1}\n").await.unwrap();
        let mut line = Vec::new();
        while stream.read_until(b'\n', &mut line).await.unwrap() > 0 {
            let text = match line.strip_prefix(&[SENTINEL]) {
                Some(rest) => {
                    let error = b"{\"error\": {\"desc\": \"JSON parse error\"}}\n";
                    stream.get_mut().write_all(error).await.unwrap();
                    rest
                }
                None => &line,
            };
            let asked: Value = serde_json::from_slice(text).unwrap();
            let now = since_epoch().as_nanos() as i64;
            let answer = match asked["execute"].as_str().unwrap() {
                "guest-sync-delimited" => {
                    stream.get_mut().write_all(&[SENTINEL]).await.unwrap();
                    json!({ "return": asked["arguments"]["id"] })
                }
                "guest-set-time" => {
                    if !deaf {
                        off = asked["arguments"]["time"].as_i64().unwrap() - now;
                    }
                    json!({ "error": { "class": "GenericError", "desc": "no hwclock" } })
                }
                "guest-get-time" => json!({ "return": now + off }),
                other => json!({ "error": { "desc": format!("{other}?") } }),
            };
            stream.get_mut().write_all(format!("{answer}\n").as_bytes()).await.unwrap();
            line.clear();
        }
    }

    const DAY: i64 = 86_400_000_000_000;

    async fn with(off: i64, deaf: bool) -> Agent<DuplexStream> {
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        tokio::spawn(agent(theirs, off, deaf));
        Agent::over(ours).await.unwrap()
    }

    #[tokio::test]
    async fn a_clock_that_stood_still_for_a_day_is_stepped_though_there_is_no_hwclock() {
        let set = with(-DAY, false).await.set_clock(&mut ClockAim::default()).await.unwrap();
        assert!(matches!(set, ClockSetting::Right), "{set}");
    }

    #[tokio::test]
    async fn a_clock_that_cannot_be_set_is_told_with_the_agents_reason() {
        let set = with(-DAY, true).await.set_clock(&mut ClockAim::default()).await.unwrap();
        assert!(matches!(set, ClockSetting::Off { .. }));
        let text = set.to_string();
        assert!(text.contains("-86400.0 s off") && text.contains("no hwclock"), "{text}");
    }

    #[tokio::test]
    async fn an_unknown_command_and_a_closed_port_are_errors() {
        let mut agent = with(0, false).await;
        let error = agent.call("guest-dance", json!({})).await.unwrap_err();
        assert!(error.message().contains("guest-dance?"), "{error}");
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        drop(theirs);
        assert!(Agent::over(ours).await.is_err());
    }
}
