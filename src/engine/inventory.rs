//! The nodes, and how each is reached.

use super::transport::Shell;
use crate::wait::Death;
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

/// What differs between distributions stands in one table per family, in the roles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    Debian,
    El,
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::Debian => "debian",
            Family::El => "el",
        })
    }
}

/// One node. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Node {
    pub name: String,
    pub family: Family,
    /// By the name of the network.
    pub addresses: BTreeMap<String, IpAddr>,
    pub shell: Arc<dyn Shell>,
    /// Of the machine beneath: every wait for the node ends when it comes.
    pub death: Death,
}

impl Node {
    pub fn new(name: impl Into<String>, family: Family, shell: Arc<dyn Shell>) -> Node {
        let (name, addresses) = (name.into(), BTreeMap::new());
        Node { name, family, addresses, shell, death: Death::never() }
    }
    pub fn address(mut self, network: impl Into<String>, address: impl Into<IpAddr>) -> Node {
        self.addresses.insert(network.into(), address.into());
        self
    }
    pub fn death(mut self, death: Death) -> Node {
        self.death = death;
        self
    }
}
