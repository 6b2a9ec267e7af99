//! What is said over the control socket: one JSON object a line each way, then, for a stream, raw
//! bytes both ways until either side closes.

use super::fault::FaultRequest;
use super::status::Status;
use crate::cluster::credentials::Cloud;
use crate::error::{Error, FailureCause, Kind, Result};
use crate::secret::Redactor;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::PathBuf;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Counts up with every change that the other side would misread. A process older or newer than
/// its lab's owner is told so before anything is done.
pub const VERSION: u32 = 2;

/// No line of either side is longer (bytes).
const LONGEST: usize = 1 << 20;

/// The first and only line of a client.
#[derive(Debug, Serialize, Deserialize)]
pub struct Ask {
    pub version: u32,
    /// Read only where the versions agree.
    pub request: serde_json::Value,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "do")]
pub enum Request {
    Status,
    /// Ends the lab. The connection is closed when it is gone.
    Down,
    /// A TCP connection to a node by name, or to any address of the lab's networks; then raw.
    Dial {
        host: String,
        port: u16,
    },
    /// The last `lines` of a console, then raw text; goes on as long as the client listens when
    /// `follow`.
    Console {
        node: String,
        lines: usize,
        follow: bool,
    },
    /// Listens on the host's loopback. Ends with this connection unless `keep`.
    Forward {
        host: String,
        port: u16,
        listen: SocketAddr,
        keep: bool,
    },
    /// The HTTP proxy into the lab, and the cloud where one was provisioned.
    Proxy,
    Fault(FaultRequest),
    /// pcapng as raw bytes until the client closes.
    Capture {
        network: String,
        /// One port of it, or all.
        node: Option<String>,
    },
    Checkpoint {
        into: PathBuf,
    },
    /// Replaces the running machines by those of a checkpoint.
    Restore {
        from: PathBuf,
    },
}

/// The line that answers.
#[derive(Debug, Serialize, Deserialize)]
pub struct Reply {
    pub version: u32,
    #[serde(flatten)]
    pub said: Said,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Said {
    Answer(Answer),
    Refused(Refusal),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    Done,
    /// Raw bytes follow.
    Stream,
    Status(Box<Status>),
    Listening(SocketAddr),
    /// `url` holds the proxy's password.
    Proxy {
        url: String,
        cloud: Option<Cloud>,
    },
    /// What a person should know of what was done.
    Note(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    Starting,
    Up,
    Ended,
}

/// An error on its way to another process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Refusal {
    /// The exit code of its kind.
    kind: u8,
    message: String,
    hint: Option<String>,
    evidence: Vec<String>,
    /// Absent in what an older process says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cause: Option<FailureCause>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    blameless: bool,
}

impl Refusal {
    /// Without secrets.
    pub fn of(error: &Error, redactor: &Redactor) -> Refusal {
        Refusal {
            kind: error.kind().exit_code(),
            message: redactor.clean(&error.to_string()),
            hint: error.hint_text().map(|hint| redactor.clean(hint)),
            evidence: error.evidence_lines().iter().map(|l| redactor.clean(l)).collect(),
            cause: error.cause(),
            blameless: error.is_blameless(),
        }
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Error {
        let kind = Kind::ALL.into_iter().find(|k| k.exit_code() == refusal.kind);
        let error = Error::new(kind.unwrap_or(Kind::Internal), refusal.message);
        let mut error = error.evidence(refusal.evidence);
        if let Some(cause) = refusal.cause {
            error = error.caused_by(cause);
        }
        if refusal.blameless {
            error = error.blameless();
        }
        match refusal.hint {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }
}

/// Writes one line.
pub async fn write(
    to: &mut (impl AsyncWrite + Unpin),
    value: &impl Serialize,
) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    to.write_all(&line).await?;
    to.flush().await
}

/// Reads one line, and nothing after it: raw bytes may follow. `None` when the other side closed
/// without a word.
pub async fn read<T: DeserializeOwned>(
    from: &mut (impl AsyncRead + Unpin),
) -> std::io::Result<Option<T>> {
    let mut line = Vec::new();
    loop {
        // One byte at a time, once a connection: reading ahead would eat the stream.
        match from.read_u8().await {
            Ok(b'\n') => break,
            Ok(byte) => line.push(byte),
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof && line.is_empty() => {
                return Ok(None);
            }
            Err(e) => return Err(e),
        }
        if line.len() > LONGEST {
            return Err(std::io::Error::other("a line without an end"));
        }
    }
    Ok(Some(serde_json::from_slice(&line)?))
}

/// The error for two processes that do not speak the same.
pub fn versions_differ(theirs: u32, owner: Option<u32>) -> Error {
    let pid = owner.map_or("its process".into(), |pid| pid.to_string());
    Error::lab(format!(
        "another version of stackproof owns this lab: it speaks protocol {theirs}, this one {VERSION}"
    ))
    .hint(format!(
        "use the binary that started it, or end the lab: `stackproof lab down`, else `kill {pid}`"
    ))
}

pub fn check_version(version: u32, owner: Option<u32>) -> Result<()> {
    if version == VERSION { Ok(()) } else { Err(versions_differ(version, owner)) }
}
