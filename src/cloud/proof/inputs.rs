//! What the proof is told, and what it reaches the world through.

use super::console::ConsoleStyle;
use super::login::Login;
use super::nodes::Nodes;
use super::outside::{Outside, Wire};
use crate::cloud::http::Connector;
use crate::cloud::session::Credentials;
use crate::cloud::url::Url;
use crate::secret::Redactor;
use crate::wait::{Death, Patience};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;

/// A process that must be alive on a host: `neutron-l3-agent` on `openstack1`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Daemon {
    pub binary: String,
    pub host: String,
}

impl Daemon {
    pub fn new(binary: impl Into<String>, host: impl Into<String>) -> Daemon {
        Daemon { binary: binary.into(), host: host.into() }
    }
}

/// The image that the instance boots.
#[derive(Clone, Debug)]
pub struct Image {
    /// A qcow2 file.
    pub path: PathBuf,
    pub name: String,
    /// Who logs in with the key.
    pub user: String,
    /// Bytes.
    pub virtual_size: u64,
    pub console: ConsoleStyle,
    /// Whether its SSH host key outlives a reboot. It does where the key is made on a disk; a
    /// system that lives in memory makes a new one at each boot, and is known by the nonce alone.
    pub keeps_host_key: bool,
}

const GIB: u64 = 1 << 30;

impl Image {
    /// The flavor's disk in GiB: the virtual size rounded up, at least 1.
    pub fn disk(&self) -> u64 {
        self.virtual_size.div_ceil(GIB).max(1)
    }
    /// The flavor's memory in MiB: general-purpose systems need more than the small test guests.
    pub fn ram(&self) -> u64 {
        if self.is_large() { 1024 } else { 256 }
    }
    pub fn is_large(&self) -> bool {
        self.virtual_size > GIB
    }
}

/// The addresses of the two networks of the seeds (S3.1).
#[derive(Clone, Debug)]
pub struct Subnets {
    pub public_cidr: String,
    pub public_gateway: Ipv4Addr,
    /// First and last address that neutron may hand out.
    pub public_pool: (Ipv4Addr, Ipv4Addr),
    pub physical_network: String,
    pub fixed_cidr: String,
    pub fixed_gateway: Ipv4Addr,
    pub dns: Ipv4Addr,
    /// What instances see on the self-service network: VXLAN takes 50 bytes of 1500.
    pub fixed_mtu: u32,
}

impl Default for Subnets {
    fn default() -> Self {
        Subnets {
            public_cidr: "172.24.4.0/24".into(),
            public_gateway: Ipv4Addr::new(172, 24, 4, 1),
            public_pool: (Ipv4Addr::new(172, 24, 4, 100), Ipv4Addr::new(172, 24, 4, 199)),
            physical_network: "provider".into(),
            fixed_cidr: "10.5.5.0/24".into(),
            fixed_gateway: Ipv4Addr::new(10, 5, 5, 1),
            dns: Ipv4Addr::new(8, 8, 8, 8),
            fixed_mtu: 1450,
        }
    }
}

#[derive(Clone)]
pub struct ProofInputs {
    pub auth_url: Url,
    pub admin: Credentials,
    pub region: String,
    /// Addresses of the names that endpoints may use.
    pub names: BTreeMap<String, Ipv4Addr>,
    /// Types that the catalogue must have: `identity`, `image`, `placement`, ...
    pub services: Vec<String>,
    /// Neutron agents that must be alive.
    pub agents: Vec<Daemon>,
    /// Nova services that must be up.
    pub compute_services: Vec<Daemon>,
    /// The hypervisors with their tunnel addresses: all must be up, and the instance runs on one,
    /// which is not the network node where there is another.
    pub hypervisors: BTreeMap<String, Ipv4Addr>,
    /// Where routers and DHCP are.
    pub network_node: String,
    /// The tunnel address of the network node. Where it is the only hypervisor's too, no VXLAN is
    /// expected on the wire.
    pub network_tunnel: Ipv4Addr,
    pub image: Image,
    pub subnets: Subnets,
    /// Leaves the network `public` in place for a cloud that is kept.
    pub keep_public: bool,
    pub patience: Patience,
    /// Of any machine that the proof stands on.
    pub death: Death,
    pub redactor: Redactor,
}

impl ProofInputs {
    /// The hypervisors that the network node reaches through a tunnel.
    pub fn beyond_tunnels(&self) -> Vec<&str> {
        let beyond = self.hypervisors.iter().filter(|(_, tunnel)| **tunnel != self.network_tunnel);
        beyond.map(|(host, _)| host.as_str()).collect()
    }
}

/// What the proof reaches the world through.
#[derive(Clone)]
pub struct World {
    /// To the APIs (the leg on `management`).
    pub api: Arc<dyn Connector>,
    /// To the instance (the leg on `external`, and nothing else).
    pub outside: Arc<dyn Outside>,
    pub login: Arc<dyn Login>,
    /// The network that carries the tunnels.
    pub wire: Arc<dyn Wire>,
    /// To the nodes, as root.
    pub nodes: Arc<dyn Nodes>,
    /// The network that floating IPs are on.
    pub external: Arc<dyn Wire>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flavor_is_sized_from_the_virtual_size() {
        let image = |virtual_size| Image {
            path: "x.qcow2".into(),
            name: "x".into(),
            user: "x".into(),
            virtual_size,
            console: ConsoleStyle::generic(),
            keeps_host_key: true,
        };
        let sizes = |bytes| (image(bytes).disk(), image(bytes).ram());
        assert_eq!(sizes(0), (1, 256));
        assert_eq!(sizes(112 << 20), (1, 256));
        assert_eq!(sizes(GIB), (1, 256));
        assert_eq!(sizes(GIB + 1), (2, 1024));
        assert_eq!(sizes(10 * GIB), (10, 1024));
    }
}
