//! Faults as they are asked for. Those of nodes and cables are done here; those of the wire by
//! the switch, through [`seam::wire`](super::seam::wire).

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "fault")]
pub enum Fault {
    /// Cuts the cable of one NIC, or of all of a network. The guests are not told.
    Cut {
        network: String,
        node: Option<String>,
    },
    Heal {
        network: String,
        node: Option<String>,
    },
    /// The processor stands still, as in a machine that hangs.
    Freeze {
        node: String,
    },
    Thaw {
        node: String,
    },
    /// Ends the machine as a power failure would.
    Kill {
        node: String,
    },
    /// Switches a dead machine on again, on its disk as it was left.
    PowerOn {
        node: String,
    },
    /// The reset button: power cut and on again.
    Reset {
        node: String,
    },
    /// Fills the disk of a node up to the last byte, from within.
    Fill {
        node: String,
    },
    /// Gives the room back that [`Fault::Fill`] took.
    Free {
        node: String,
    },
    Wire(Wire),
}

/// What the switch does to frames. Deterministic: the fate of frame n on a port follows from the
/// seed, the port and n.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "wire")]
pub enum Wire {
    /// Nodes of different groups do not hear each other on the network.
    Partition { network: String, groups: Vec<Vec<String>> },
    /// All fields together; what is not given is not disturbed.
    Disturb { network: String, node: Option<String>, disturbance: Disturbance },
    /// Ends partitions and disturbances of the network.
    Clear { network: String },
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Disturbance {
    pub seed: u64,
    /// Of a hundred frames.
    pub loss_percent: Option<f64>,
    pub duplicate_percent: Option<f64>,
    pub reorder_percent: Option<f64>,
    pub latency_ms: Option<f64>,
    pub jitter_ms: Option<f64>,
    /// Bits a second.
    pub bandwidth: Option<u64>,
}

/// `NETWORK` or `NODE/NETWORK`.
pub fn port(text: &str) -> Result<(Option<String>, String)> {
    let wrong = || {
        Error::input(format!("`{text}` names no network and no port"))
            .hint("write NETWORK (all of it) or NODE/NETWORK (one NIC)")
    };
    match text.split_once('/') {
        None if !text.is_empty() => Ok((None, text.to_owned())),
        Some((node, network))
            if !node.is_empty() && !network.is_empty() && !network.contains('/') =>
        {
            Ok((Some(node.to_owned()), network.to_owned()))
        }
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_and_a_port_are_told_apart_and_all_else_is_refused() {
        assert_eq!(port("management").unwrap(), (None, "management".into()));
        assert_eq!(port("a/external").unwrap(), (Some("a".into()), "external".into()));
        for wrong in ["", "/", "a/", "/x", "a/b/c"] {
            assert!(port(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn every_fault_survives_its_way_over_the_socket() {
        let disturbance = Disturbance { loss_percent: Some(1.5), ..Default::default() };
        let network = || "management".to_owned();
        for fault in [
            Fault::Cut { network: network(), node: Some("a".into()) },
            Fault::Freeze { node: "a".into() },
            Fault::Wire(Wire::Disturb { network: network(), node: None, disturbance }),
            Fault::Wire(Wire::Partition { network: network(), groups: vec![vec!["a".into()]] }),
        ] {
            let text = serde_json::to_string(&fault).unwrap();
            assert_eq!(serde_json::from_str::<Fault>(&text).unwrap(), fault, "{text}");
        }
    }
}
