//! A fault of a lab, as the command line, the control socket and the owner know it. The owner does
//! those of nodes and cables; the switch does those of frames, through [`seam`](super::seam).

use crate::error::{Error, Result};
use crate::lab::switch::Impairment;
use clap::Subcommand;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Subcommand)]
#[serde(rename_all = "snake_case", tag = "fault")]
pub enum FaultRequest {
    /// Pull a cable (NODE/NETWORK), or all of a network; the guests still see a link
    Cut {
        #[arg(value_name = "NETWORK|NODE/NETWORK")]
        at: PortName,
    },
    /// Put it back
    Heal {
        #[arg(value_name = "NETWORK|NODE/NETWORK")]
        at: PortName,
    },
    /// Split a network: nodes of different groups do not hear each other
    ///
    /// A node that is in no group is cut off from all of them. So is this host: `lab ssh`, `exec` and
    /// forwards through this network wait for `clear`.
    Partition {
        network: String,
        /// Nodes by comma, a group each: `a,b c`
        #[arg(required = true, num_args = 2.., value_name = "NODE,NODE")]
        groups: Vec<NodeGroup>,
    },
    /// Lose, delay, duplicate or reorder frames; deterministic for a seed
    ///
    /// `clear` ends all of them.
    Disturb {
        #[arg(value_name = "NETWORK|NODE/NETWORK")]
        at: PortName,
        #[command(flatten)]
        impairment: Impairment,
        /// What happens to frame n of a port follows from the seed, the port and n
        #[arg(long, default_value_t = 0)]
        seed: u64,
    },
    /// End partitions and disturbances of a network
    Clear { network: String },
    /// Stop a node's processors
    Freeze { node: String },
    /// Let them go on
    Thaw { node: String },
    /// End a node as a power failure would, unless it is the last one that is on
    #[command(alias = "kill")]
    PowerCut { node: String },
    /// Switch a dead node on again, on its disk as it was left, and wait for its SSH server
    PowerOn { node: String },
    /// Press a node's reset button
    Reset { node: String },
    /// Fill a node's disk up to the last byte, from within
    Fill { node: String },
    /// Give the room back that `fill` took
    Free { node: String },
}

/// A network, or the port of one node on it: `NETWORK` or `NODE/NETWORK`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct PortName {
    pub network: String,
    pub node: Option<String>,
}

impl FromStr for PortName {
    type Err = Error;
    fn from_str(text: &str) -> Result<PortName> {
        let (node, network) = match text.split_once('/') {
            None => (None, text),
            Some((node, network)) => (Some(node), network),
        };
        if network.is_empty() || network.contains('/') || node == Some("") {
            return Err(Error::input(format!("`{text}` names no network and no port"))
                .hint("write NETWORK (all of it) or NODE/NETWORK (one NIC)"));
        }
        Ok(PortName { network: network.to_owned(), node: node.map(str::to_owned) })
    }
}

impl fmt::Display for PortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.node {
            Some(node) => write!(f, "{node}/{}", self.network),
            None => f.write_str(&self.network),
        }
    }
}

impl From<PortName> for String {
    fn from(port: PortName) -> String {
        port.to_string()
    }
}

impl TryFrom<String> for PortName {
    type Error = Error;
    fn try_from(text: String) -> Result<PortName> {
        text.parse()
    }
}

/// Nodes on one side of a partition: `a,b`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeGroup(pub Vec<String>);

impl FromStr for NodeGroup {
    type Err = Error;
    fn from_str(text: &str) -> Result<NodeGroup> {
        Ok(NodeGroup(text.split(',').map(str::to_owned).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_and_ports_are_read() {
        let port = |text: &str| text.parse::<PortName>().map(|p| (p.node, p.network));
        assert_eq!(port("management").unwrap(), (None, "management".into()));
        assert_eq!(port("a/external").unwrap(), (Some("a".into()), "external".into()));
        for wrong in ["", "/", "a/", "/x", "a/b/c"] {
            assert!(port(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn every_fault_survives_the_socket() {
        let at = || "a/management".parse::<PortName>().unwrap();
        let network = || "management".to_owned();
        for fault in [
            FaultRequest::Cut { at: at() },
            FaultRequest::Freeze { node: "a".into() },
            FaultRequest::Disturb {
                at: at(),
                impairment: "loss=1.5% latency=20ms".parse().unwrap(),
                seed: 7,
            },
            FaultRequest::Partition { network: network(), groups: vec!["a,b".parse().unwrap()] },
        ] {
            let text = serde_json::to_string(&fault).unwrap();
            assert_eq!(serde_json::from_str::<FaultRequest>(&text).unwrap(), fault, "{text}");
        }
    }
}
