//! The proof that the cloud on a cluster works: its inputs, made from the lab, and its result.

use super::instance::InstanceImage;
use super::provision::{Cluster, Declared};
use super::{ssh_adapter, topology};
use crate::cloud::http::Connector;
use crate::cloud::proof::console::ConsoleStyle;
use crate::cloud::proof::{self, Daemon, ProofInputs, World};
use crate::cloud::url::Url;
use crate::diagnose::Text;
use crate::error::{Error, Result};
use crate::lab::Lab;
use crate::lab::outside::Leg;
use crate::lab::spec::{LabSpec, NodeSpec};
use std::sync::Arc;

const PROBE_GUEST: &str = "probe-guest";

/// What a proof came to.
#[must_use]
pub struct ProofResult {
    /// Checks that the lab has no place for, each with the reason.
    pub not_applicable: Vec<(String, String)>,
    /// The error is what failed.
    pub verdict: Result<()>,
}

fn leg(lab: &Lab, network: &str) -> Result<Leg> {
    lab.leg(network).cloned().ok_or_else(|| {
        Error::input(format!("the network `{network}` has no `outside` address"))
            .at(&lab.spec().file, None)
            .hint("the proof needs a leg of ours on the nodes' network and on the external one")
    })
}

impl Cluster {
    /// The whole story of the proof. Its checks are sent as events.
    pub async fn prove(
        &self,
        declared: &Declared,
        instance: &InstanceImage,
        keep: bool,
    ) -> Result<ProofResult> {
        let inputs = self.inputs(declared, instance, keep)?;
        let networks = self.networks()?;
        let management = leg(&self.lab, &networks.management)?;
        let world = World {
            api: Arc::new(management) as Arc<dyn Connector>,
            outside: Arc::new(leg(&self.lab, &networks.external)?),
            login: Arc::new(ssh_adapter::SshLogin),
            wire: Arc::new(self.lab.switch().network(&networks.management)),
            external: Arc::new(self.lab.switch().network(&networks.external)),
            nodes: Arc::new(ssh_adapter::OnNodes(self.nodes.clone())),
        };
        let outcome = proof::prove(inputs, world).await?;
        let error = outcome.error(&self.lab.death());
        let logs = outcome.logs.into_iter().map(|(name, content)| Text::new(name, content));
        self.kept.lock().unwrap_or_else(|p| p.into_inner()).extend(logs);
        Ok(ProofResult { not_applicable: outcome.left_out, verdict: error.map_or(Ok(()), Err) })
    }

    fn inputs(
        &self,
        declared: &Declared,
        instance: &InstanceImage,
        keep: bool,
    ) -> Result<ProofInputs> {
        let spec = self.lab.spec();
        with_role(spec, "controller")?;
        let network = with_role(spec, "network")?;
        with_role(spec, "compute")?;
        let management = self.networks()?.management;
        let address = |node: &NodeSpec| {
            node.address_on(&management).ok_or_else(|| {
                Error::input(format!("{} has no address on `{management}`", node.name))
                    .at(&spec.file, Some(node.line))
            })
        };
        let names = spec
            .nodes
            .iter()
            .map(|node| Ok((node.name.clone(), address(node)?)))
            .collect::<Result<_>>()?;
        Ok(ProofInputs {
            auth_url: Url::parse(&declared.auth_url)?,
            admin: declared.admin.clone(),
            region: declared.region.clone(),
            names,
            services: ["identity", "image", "placement", "compute", "network"]
                .map(str::to_owned)
                .into(),
            agents: agents(spec),
            compute_services: compute_services(spec),
            hypervisors: having(spec, "compute")
                .map(|node| Ok((node.name.clone(), address(node)?)))
                .collect::<Result<_>>()?,
            network_node: network.name.clone(),
            network_tunnel: address(network)?,
            image: proof::Image {
                path: instance.disk.clone(),
                name: instance.name.clone(),
                user: instance.user.clone(),
                virtual_size: instance.virtual_size,
                console: console_style(&instance.name),
                // It lives in memory; all others keep the key that they made on their disk.
                keeps_host_key: instance.name != PROBE_GUEST,
            },
            subnets: topology::subnets(spec, &self.networks()?)?,
            keep_public: keep,
            patience: self.run.patience(),
            death: self.lab.death(),
            redactor: self.run.redactor.clone(),
        })
    }
}

fn with_role<'s>(spec: &'s LabSpec, role: &str) -> Result<&'s NodeSpec> {
    spec.nodes.iter().find(|n| n.roles.iter().any(|r| r == role)).ok_or_else(|| {
        Error::input(format!("no node has the role `{role}`"))
            .at(&spec.file, None)
            .hint(format!("add \"{role}\" to the roles of a node"))
    })
}

fn having<'s>(spec: &'s LabSpec, role: &'s str) -> impl Iterator<Item = &'s NodeSpec> {
    spec.nodes.iter().filter(move |n| n.roles.iter().any(|r| r == role))
}

/// The Neutron agents that these roles bring, each once.
fn agents(spec: &LabSpec) -> Vec<Daemon> {
    let of_network = ["neutron-l3-agent", "neutron-dhcp-agent", "neutron-metadata-agent"];
    let mut all: Vec<Daemon> = having(spec, "network")
        .flat_map(|n| of_network.map(|binary| Daemon::new(binary, &n.name)))
        .collect();
    for node in having(spec, "network").chain(having(spec, "compute")) {
        all.push(Daemon::new("neutron-openvswitch-agent", &node.name));
    }
    all.sort();
    all.dedup();
    all
}

fn compute_services(spec: &LabSpec) -> Vec<Daemon> {
    let of_controller = ["nova-conductor", "nova-scheduler"];
    having(spec, "controller")
        .flat_map(|n| of_controller.map(|binary| Daemon::new(binary, &n.name)))
        .chain(having(spec, "compute").map(|n| Daemon::new("nova-compute", &n.name)))
        .collect()
}

/// probe-guest keeps CirrOS's contract.
fn console_style(image: &str) -> ConsoleStyle {
    if image == PROBE_GUEST || image.starts_with("cirros") {
        ConsoleStyle::cirros()
    } else {
        ConsoleStyle::generic()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use std::path::Path;

    fn spec(lab: &str) -> LabSpec {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        LabSpec::load(&root.join("vmtests/labs").join(lab)).unwrap()
    }

    #[test]
    fn one_node_that_is_network_and_compute_has_one_switch_agent() {
        let agents = agents(&spec("one-node.toml"));
        let switches = agents.iter().filter(|d| d.binary.contains("openvswitch")).count();
        assert_eq!((switches, agents.len()), (1, 4));
    }

    #[test]
    fn two_nodes_have_the_agents_and_services_of_their_roles() {
        let spec = spec("two-node.toml");
        assert_eq!(agents(&spec).len(), 5);
        let hosts: Vec<_> =
            compute_services(&spec).into_iter().map(|d| (d.binary, d.host)).collect();
        assert!(hosts.contains(&("nova-compute".into(), "openstack2".into())), "{hosts:?}");
        assert!(hosts.contains(&("nova-scheduler".into(), "openstack1".into())), "{hosts:?}");
    }

    #[test]
    fn a_lab_without_a_compute_node_is_an_input_error_that_names_the_role() {
        let mut spec = spec("two-node.toml");
        spec.nodes.retain(|n| n.name == "openstack1");
        let e = with_role(&spec, "compute").unwrap_err();
        assert_eq!(e.kind(), Kind::Input);
        assert!(e.to_string().contains("compute"), "{e}");
    }
}
