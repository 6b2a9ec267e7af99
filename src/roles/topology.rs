//! The cloud that the roles describe: which node does what, and under which addresses.
//!
//! The roles know nothing of virtual machines: the same topology could describe bare metal.

use crate::error::{Error, Result};
use crate::secret::Secret;
use std::net::Ipv4Addr;

/// What a node is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// The APIs, the databases, the queue, the schedulers.
    Controller,
    /// Routers, DHCP and metadata for self-service networks, and the way outside.
    Network,
    /// Instances.
    Compute,
}

impl Role {
    pub const ALL: [Role; 3] = [Role::Controller, Role::Network, Role::Compute];

    pub fn name(self) -> &'static str {
        match self {
            Role::Controller => "controller",
            Role::Network => "network",
            Role::Compute => "compute",
        }
    }
}

impl std::str::FromStr for Role {
    type Err = Error;
    fn from_str(text: &str) -> Result<Role> {
        Role::ALL.into_iter().find(|r| r.name() == text).ok_or_else(|| {
            Error::input(format!("unknown role `{text}`"))
                .hint("the roles are controller, network and compute")
        })
    }
}

#[derive(Clone, Debug)]
pub struct Host {
    pub name: String,
    pub roles: Vec<Role>,
    /// On the management network: APIs, database, queue and VXLAN use this address.
    pub address: Ipv4Addr,
    /// The public half of its SSH host key, `ssh-ed25519 AAAA…`.
    pub host_key: String,
    /// The NIC that belongs to br-ex on a network node.
    pub external_nic: Option<String>,
}

impl Host {
    pub fn has(&self, role: Role) -> bool {
        self.roles.contains(&role)
    }
}

/// What runs the instances of a compute node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Virtualization {
    /// KVM, which this module of the node's kernel brings; `emulated` where the node's processor, and
    /// so what that module drives, is an emulator.
    Kvm { module: String, emulated: bool },
    /// QEMU translates their code.
    Qemu,
}

#[derive(Clone, Debug)]
pub struct Topology {
    pub region: String,
    pub hosts: Vec<Host>,
    pub virtualization: Virtualization,
    /// The NTP server above the controller (S2.5 "upstream").
    pub ntp_upstream: Ipv4Addr,
    /// Networks whose clients the controller's chrony serves, as `address/prefix`.
    pub ntp_allow: String,
    /// Who may log in to the nodes, and with which public keys (S1.9).
    pub login: Login,
}

#[derive(Clone, Debug)]
pub struct Login {
    pub user: String,
    pub authorized_keys: Vec<String>,
    /// With which that user goes from node to node.
    pub node_key: NodeKey,
}

#[derive(Clone, Debug)]
pub struct NodeKey {
    /// As OpenSSH keeps it in a file.
    pub private: Secret,
    /// One line without its end.
    pub public: String,
}

impl Topology {
    /// Exactly one controller, at least one network node and one compute node, and an external NIC
    /// wherever routers run.
    pub fn check(&self) -> Result<()> {
        let count = |role| self.hosts.iter().filter(|h| h.has(role)).count();
        if count(Role::Controller) != 1 {
            return Err(Error::input(format!(
                "a cloud has exactly one controller; this lab declares {}",
                count(Role::Controller)
            ))
            .hint("give one node `roles = [\"controller\", ...]`"));
        }
        for role in [Role::Network, Role::Compute] {
            if count(role) == 0 {
                return Err(Error::input(format!("no node has the role `{}`", role.name())));
            }
        }
        for host in self.hosts.iter().filter(|h| h.has(Role::Network)) {
            if host.external_nic.is_none() {
                return Err(Error::input(format!(
                    "{} is a network node without a NIC on the external network",
                    host.name
                ))
                .hint("add a NIC without an address on the external network"));
            }
        }
        Ok(())
    }

    pub fn controller(&self) -> &Host {
        self.hosts.iter().find(|h| h.has(Role::Controller)).expect("checked: one controller")
    }

    pub fn with(&self, role: Role) -> impl Iterator<Item = &Host> {
        self.hosts.iter().filter(move |h| h.has(role))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn two_nodes() -> Topology {
        let host = |name: &str, roles: &[Role], last, nic: bool| Host {
            name: name.into(),
            roles: roles.into(),
            address: Ipv4Addr::new(192, 168, 103, last),
            host_key: format!("ssh-ed25519 HOST{last}"),
            external_nic: nic.then(|| "external".into()),
        };
        Topology {
            region: "RegionOne".into(),
            hosts: vec![
                host("openstack1", &[Role::Controller, Role::Network], 11, true),
                host("openstack2", &[Role::Compute], 12, true),
            ],
            virtualization: Virtualization::Kvm { module: "kvm_amd".into(), emulated: true },
            ntp_upstream: Ipv4Addr::new(192, 168, 103, 1),
            ntp_allow: "192.168.0.0/16".into(),
            login: Login {
                user: "stack".into(),
                authorized_keys: vec!["ssh-ed25519 AAAA".into()],
                node_key: NodeKey {
                    private: Secret::new("a private key of the nodes"),
                    public: "ssh-ed25519 NODE".into(),
                },
            },
        }
    }

    #[test]
    fn a_lab_without_a_compute_node_is_refused() {
        let mut t = two_nodes();
        t.check().unwrap();
        t.hosts.pop();
        assert!(t.check().unwrap_err().message().contains("compute"));
    }

    #[test]
    fn a_network_node_needs_an_external_nic() {
        let mut t = two_nodes();
        t.hosts[0].external_nic = None;
        assert!(t.check().unwrap_err().message().contains("openstack1"));
    }

    #[test]
    fn two_controllers_are_refused() {
        let mut t = two_nodes();
        t.hosts[1].roles.push(Role::Controller);
        assert!(t.check().unwrap_err().message().contains("declares 2"));
    }
}
