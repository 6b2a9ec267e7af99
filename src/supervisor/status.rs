//! What a running lab tells of itself. The JSON of `lab status --json` is this.

use super::protocol::Phase;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub name: String,
    pub phase: Phase,
    /// Why it ended, or what it is doing now besides running (a checkpoint).
    pub note: Option<String>,
    /// The owner's.
    pub pid: u32,
    /// Seconds since 1970.
    pub started: u64,
    pub uptime_seconds: f64,
    /// The lab file or the checkpoint.
    pub from: String,
    /// Consoles and QEMU's logs.
    pub logs: Option<PathBuf>,
    /// Who logs in on the nodes.
    pub user: Option<String>,
    pub nodes: Vec<NodeStatus>,
    pub networks: Vec<NetworkStatus>,
    pub forwards: Vec<ForwardStatus>,
    /// Whether a cloud was provisioned on it, so that `lab rc` has something to write.
    pub cloud: bool,
    /// Of a cloud that was restored.
    #[serde(default)]
    pub heartbeats: Option<Heartbeats>,
}

/// Whether the agents and services of a restored cloud were heard again. Until then its schedulers
/// take those for dead that slept for long: no server finds a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Heartbeats {
    /// These were not; none of them named before it was looked for the first time.
    Awaited(Vec<String>),
    /// All, so many.
    Heard(usize),
    /// Not within their time, or nobody could be asked.
    Missed(String),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeStatus {
    pub name: String,
    /// `up`, `frozen`, or `dead: CAUSE`.
    pub state: String,
    /// By network.
    pub addresses: BTreeMap<String, Option<Ipv4Addr>>,
    /// Networks whose cable is cut.
    pub cut: Vec<String>,
    /// Bytes.
    pub memory: u64,
    pub cpus: u32,
    pub image: String,
    pub roles: Vec<String>,
    /// QEMU's.
    pub pid: u32,
    pub reboots: u64,
    pub console: PathBuf,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NetworkStatus {
    pub name: String,
    pub subnet: String,
    /// Our own address on it, through which the host reaches it.
    pub outside: Option<Ipv4Addr>,
    pub mtu: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ForwardStatus {
    pub listen: SocketAddr,
    pub to: String,
    /// Stays until the lab ends; else it ends with the command that made it.
    pub keep: bool,
    /// Connections until now.
    pub connections: u64,
}
