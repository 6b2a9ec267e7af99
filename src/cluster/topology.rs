//! The lab as the cloud that the roles describe.

use crate::cloud::proof::Subnets;
use crate::error::{Error, Result};
use crate::lab::accel::Nested;
use crate::lab::spec::{LabSpec, NetworkSpec, NodeSpec, Subnet};
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

/// What neutron is set up for.
const MTU: u16 = 1500;
/// The external network lends floating IPs and gateways from a pool of its own.
const LONGEST_PREFIX: u8 = 28;

/// The addresses that the proof uses: of the lab's external network, and the instance's own.
pub fn subnets(spec: &LabSpec, networks: &Networks) -> Result<Subnets> {
    let network = |name: &str| spec.network(name).expect("found in this spec");
    let (management, external) = (network(&networks.management), network(&networks.external));
    let wrong = |n: &NetworkSpec, why: String| {
        Error::input(format!("the network `{}` {why}", n.name)).at(&spec.file, Some(n.line))
    };
    for n in [management, external] {
        if let Some(mtu) = n.mtu.filter(|mtu| *mtu < MTU) {
            return Err(wrong(n, format!("has an MTU of {mtu}, and neutron is set up for {MTU}"))
                .hint("leave `mtu` away, or make it larger"));
        }
    }
    let standard = Subnets::default();
    let instances: Subnet = standard.fixed_cidr.parse().expect("a subnet");
    if let Some(n) = spec.networks.iter().find(|n| n.subnet.overlaps(instances)) {
        return Err(wrong(n, format!("overlaps {instances}, where the proof's instance lives")));
    }
    if external.subnet.prefix > LONGEST_PREFIX {
        let why = format!("is too small for floating IPs: /{LONGEST_PREFIX} is the least");
        return Err(wrong(external, why));
    }
    let gateway = external.outside.expect("has a leg");
    Ok(Subnets {
        public_cidr: external.subnet.to_string(),
        public_gateway: gateway,
        public_pool: pool(external.subnet, gateway),
        ..standard
    })
}

/// From 100 to 199 of 256 parts of a subnet, or what is behind it where the gateway is in there.
fn pool(subnet: Subnet, gateway: Ipv4Addr) -> (Ipv4Addr, Ipv4Addr) {
    let (first, last) = (subnet.address.to_bits(), subnet.broadcast().to_bits());
    let at = |part: u64| {
        let offset = u64::from(last - first + 1) * part / 256;
        Ipv4Addr::from_bits((first + offset as u32).min(last - 1))
    };
    let usual = (at(100), at(199));
    if (usual.0..=usual.1).contains(&gateway) { (at(200), at(255)) } else { usual }
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

/// `login` is who the nodes were booted with, and its public keys; `nested` is what brings KVM to
/// the nodes, where it can (see [`crate::lab::accel::nested`]); `host_key` gives the public
/// host key that a node was booted with.
pub fn of(
    spec: &LabSpec,
    networks: &Networks,
    login: Login,
    nested: Option<Nested>,
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
            Some(Nested { module, emulated }) => {
                Virtualization::Kvm { module: module.into(), emulated }
            }
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
    fn the_proof_uses_the_labs_own_external_network() {
        let of = |text: String| {
            let spec = LabSpec::parse(Path::new("two-node.toml"), &text).unwrap();
            subnets(&spec, &Networks::of(&spec).unwrap())
        };
        let text = std::fs::read_to_string("vmtests/labs/two-node.toml").unwrap();
        let (seeds, standard) = (of(text.clone()).unwrap(), Subnets::default());
        assert_eq!(seeds.public_cidr, standard.public_cidr);
        assert_eq!(seeds.public_gateway, standard.public_gateway);
        assert_eq!(seeds.public_pool, standard.public_pool);

        let other =
            of(text.replace("172.24.4.0/24", "10.9.0.0/16").replace("172.24.4.1", "10.9.120.7"));
        let other = other.unwrap();
        assert_eq!(other.public_cidr, "10.9.0.0/16");
        assert_eq!(other.public_gateway, Ipv4Addr::new(10, 9, 120, 7));
        // Not around the gateway.
        let wanted = (Ipv4Addr::new(10, 9, 200, 0), Ipv4Addr::new(10, 9, 255, 0));
        assert_eq!(other.public_pool, wanted);

        for (from, to, why) in [
            ("172.24.4.0/24", "172.24.4.0/29", "too small"),
            ("172.24.4.0/24", "10.5.0.0/16", "overlaps 10.5.5.0/24"),
            ("outside = \"172.24.4.1\"", "outside = \"172.24.4.1\"\nmtu = 1400", "MTU of 1400"),
        ] {
            let changed = text.replace(from, to);
            assert_ne!(changed, text, "{from}");
            let changed = match why.starts_with("overlaps") {
                true => changed.replace("172.24.4.1", "10.5.0.1"),
                false => changed,
            };
            let e = of(changed).unwrap_err();
            assert!(e.message().contains(why), "{e}");
            assert!(e.file().unwrap().1.is_some(), "{e}");
        }
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
