//! What connections need of a running lab, cloned out of it: they come and go while the machines
//! stay their owner's alone.

use super::status::{NetworkStatus, NodeStatus};
use crate::error::{Error, Result};
use crate::lab::Lab;
use crate::lab::console::Console;
use crate::lab::outside::{Leg, TcpStream};
use crate::lab::spec::Subnet;
use crate::wait::{Death, Speed};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::watch;

/// One TCP connection into the lab, on the reference machine.
const CONNECTING: Duration = Duration::from_secs(10);

/// The way into the lab's networks. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Reach {
    /// The network and the address that a node is reached at.
    pub nodes: BTreeMap<String, (String, Ipv4Addr)>,
    pub legs: Vec<(String, Subnet, Leg)>,
    pub speed: Speed,
}

impl Reach {
    pub fn of(lab: &Lab, speed: &Speed) -> Reach {
        let nodes = lab.nodes().iter().map(|n| (n.name().to_owned(), n.login.clone()));
        let legs = lab.spec().networks.iter().filter_map(|network| {
            Some((network.name.clone(), network.subnet, lab.leg(&network.name)?.clone()))
        });
        Reach { nodes: nodes.collect(), legs: legs.collect(), speed: speed.clone() }
    }

    /// The leg and the address that `host` means: a node, or any address of a network that has a
    /// leg of ours.
    pub fn target(&self, host: &str, port: u16) -> Result<(&Leg, SocketAddrV4)> {
        if let Some((network, address)) = self.nodes.get(host) {
            let leg = self.legs.iter().find(|(name, ..)| name == network);
            let (.., leg) = leg.ok_or_else(|| Error::internal(format!("no leg on {network}")))?;
            return Ok((leg, SocketAddrV4::new(*address, port)));
        }
        let Ok(address) = host.parse::<Ipv4Addr>() else {
            return Err(no_node(host, self.nodes.keys()));
        };
        match self.legs.iter().find(|(_, subnet, _)| subnet.contains(address)) {
            Some((.., leg)) => Ok((leg, SocketAddrV4::new(address, port))),
            None => {
                let known: Vec<String> =
                    self.legs.iter().map(|(name, subnet, _)| format!("{name} {subnet}")).collect();
                Err(Error::input(format!("{address} is in no network of the lab that we reach"))
                    .hint(format!("we have a leg on: {}", known.join(", "))))
            }
        }
    }

    pub async fn dial(&self, host: &str, port: u16) -> Result<TcpStream> {
        let (leg, at) = self.target(host, port)?;
        leg.connect(at, self.speed.scale(CONNECTING)).await
    }
}

/// The error for a node that is not in the lab, with those that are.
pub fn no_node<'n>(name: &str, known: impl Iterator<Item = &'n String>) -> Error {
    let known: Vec<&str> = known.map(String::as_str).collect();
    Error::input(format!("the lab has no node `{name}`"))
        .hint(format!("its nodes are: {}", known.join(", ")))
}

/// A node as far as connections need it.
#[derive(Debug)]
pub struct Seen {
    base: NodeStatus,
    death: Death,
    resets: watch::Receiver<u64>,
    pub console: Console,
}

/// A lab that is up.
#[derive(Debug)]
pub struct Handles {
    pub reach: Reach,
    pub nodes: Vec<Seen>,
    pub networks: Vec<NetworkStatus>,
    pub user: String,
    pub logs: PathBuf,
}

impl Handles {
    pub fn of(lab: &Lab, speed: &Speed) -> Handles {
        let networks = lab.spec().networks.iter().map(|n| NetworkStatus {
            name: n.name.clone(),
            subnet: n.subnet.to_string(),
            outside: n.outside,
            mtu: n.mtu,
        });
        let nodes = lab.nodes().iter().map(|node| {
            let spec = &node.spec;
            let base = NodeStatus {
                name: spec.name.clone(),
                state: "up".into(),
                addresses: spec.nics.iter().map(|n| (n.network.clone(), n.address)).collect(),
                cut: Vec::new(),
                memory: spec.memory,
                cpus: spec.cpus,
                image: spec.image.clone(),
                roles: spec.roles.clone(),
                pid: node.vm.pid(),
                reboots: 0,
                console: node.vm.console().path().to_owned(),
            };
            let (death, resets) = (node.vm.death(), node.vm.resets());
            Seen { base, death, resets, console: node.vm.console().clone() }
        });
        Handles {
            reach: Reach::of(lab, speed),
            nodes: nodes.collect(),
            networks: networks.collect(),
            user: lab.login_user().to_owned(),
            logs: lab.logs().to_owned(),
        }
    }

    pub fn node(&self, name: &str) -> Result<&Seen> {
        let found = self.nodes.iter().find(|n| n.base.name == name);
        found.ok_or_else(|| no_node(name, self.reach.nodes.keys()))
    }
}

impl Seen {
    pub fn name(&self) -> &str {
        &self.base.name
    }

    pub fn status(&self, frozen: bool, cut: Vec<String>) -> NodeStatus {
        let state = match self.death.cause() {
            Some(cause) => format!("dead: {cause}"),
            None if frozen => "frozen".into(),
            None => "up".into(),
        };
        NodeStatus { state, cut, reboots: *self.resets.borrow(), ..self.base.clone() }
    }
}
