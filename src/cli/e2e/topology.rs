//! The lab as the cloud that the roles describe.

use crate::error::{Error, Result};
use crate::lab::spec::{LabSpec, NodeSpec};
use crate::roles::topology::{Host, Login, Role, Topology, Virtualization};
use std::net::Ipv4Addr;

/// S2.5: what the notes allow; a lab elsewhere allows its own management network.
const NTP_ALLOW: (Ipv4Addr, &str) = (Ipv4Addr::new(192, 168, 0, 0), "192.168.0.0/16");

/// The two networks of a cloud, told apart by what they carry.
pub struct Networks {
    /// Carries the nodes' addresses.
    pub management: String,
    /// Carries none: belongs to br-ex.
    pub external: String,
}

impl Networks {
    pub fn of(spec: &LabSpec) -> Result<Networks> {
        let has_addresses =
            |network: &str| spec.nodes.iter().any(|n| n.address_on(network).is_some());
        let find = |with: bool, what: &str| {
            spec.networks
                .iter()
                .find(|n| n.outside.is_some() && has_addresses(&n.name) == with)
                .map(|n| n.name.clone())
                .ok_or_else(|| Error::input(format!("no network {what}")).at(&spec.file, None))
        };
        Ok(Networks {
            management: find(true, "carries the nodes' addresses and a leg of ours")?,
            external: find(false, "without addresses on the nodes has a leg of ours")?,
        })
    }
}

fn host(
    node: &NodeSpec,
    networks: &Networks,
    spec: &LabSpec,
    host_key: impl Fn(&str) -> String,
) -> Result<Host> {
    let at = |e: Error| e.at(&spec.file, Some(node.line));
    let roles = node.roles.iter().map(|r| r.parse::<Role>().map_err(at)).collect::<Result<_>>()?;
    let address = node.address_on(&networks.management).ok_or_else(|| {
        at(Error::input(format!("{} has no address on {}", node.name, networks.management)))
    })?;
    let external = node.nics.iter().any(|n| n.network == networks.external);
    // The seed names each NIC after its network.
    let external_nic = external.then(|| networks.external.clone());
    let (name, host_key) = (node.name.clone(), host_key(&node.name));
    Ok(Host { name, roles, address, host_key, external_nic })
}

/// `login` is who the nodes were booted with, and its public keys; `nested` is the module that brings
/// KVM to the nodes, where it can (see [`crate::lab::accel::nested`]); `host_key` gives the public
/// host key that a node was booted with.
pub fn of(
    spec: &LabSpec,
    networks: &Networks,
    login: Login,
    nested: Option<&str>,
    host_key: impl Fn(&str) -> String,
) -> Result<Topology> {
    let host = |node| host(node, networks, spec, &host_key);
    let hosts = spec.nodes.iter().map(host).collect::<Result<Vec<_>>>()?;
    let management = spec.network(&networks.management).expect("found in this spec");
    let (notes, allow) = NTP_ALLOW;
    let in_notes = management.subnet.address.octets()[..2] == notes.octets()[..2];
    let topology = Topology {
        region: "RegionOne".into(),
        hosts,
        virtualization: match nested {
            Some(module) => Virtualization::Kvm { module: module.into() },
            None => Virtualization::Qemu,
        },
        ntp_upstream: management.outside.expect("has a leg"),
        ntp_allow: if in_notes { allow.into() } else { management.subnet.to_string() },
        login,
    };
    topology.check().map_err(|e| e.at(&spec.file, None))?;
    Ok(topology)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::roles::topology::NodeKey;
    use crate::secret::Secret;
    use std::path::Path;

    fn login() -> Login {
        let node_key = NodeKey { private: Secret::new("-"), public: "-".into() };
        Login { user: "stack".into(), authorized_keys: vec![], node_key }
    }

    fn host_key(node: &str) -> String {
        format!("ssh-ed25519 {node}")
    }

    fn lab(change: impl Fn(String) -> String) -> LabSpec {
        let text = std::fs::read_to_string("vmtests/labs/two-node.toml").unwrap();
        LabSpec::parse(Path::new("two-node.toml"), &change(text)).unwrap()
    }

    #[test]
    fn the_two_node_lab_is_a_controller_with_network_and_a_compute_node() {
        let spec = lab(|text| text);
        let networks = Networks::of(&spec).unwrap();
        assert_eq!(
            (networks.management.as_str(), networks.external.as_str()),
            ("management", "external")
        );
        let topology = of(&spec, &networks, login(), None, host_key).unwrap();
        assert_eq!(topology.controller().name, "openstack1");
        assert_eq!(topology.controller().external_nic.as_deref(), Some("external"));
        assert_eq!(topology.ntp_upstream, Ipv4Addr::new(192, 168, 103, 1));
        assert_eq!(topology.ntp_allow, "192.168.0.0/16");
    }

    #[test]
    fn networks_are_found_by_what_they_carry_and_not_by_their_names() {
        let spec = lab(|text| text.replace("management", "inside").replace("external", "outdoors"));
        let networks = Networks::of(&spec).unwrap();
        assert_eq!(
            (networks.management.as_str(), networks.external.as_str()),
            ("inside", "outdoors")
        );
        let topology = of(&spec, &networks, login(), None, host_key).unwrap();
        assert_eq!(topology.controller().external_nic.as_deref(), Some("outdoors"));
    }

    #[test]
    fn a_role_that_does_not_exist_is_told_with_its_file_and_line() {
        let spec = lab(|text| text.replace("\"compute\"", "\"compute\", \"storage\""));
        let networks = Networks::of(&spec).unwrap();
        let e = of(&spec, &networks, login(), None, host_key).unwrap_err();
        assert!(e.to_string().contains("storage"), "{e}");
        assert!(e.file().unwrap().1.is_some(), "{e}");
    }
}
