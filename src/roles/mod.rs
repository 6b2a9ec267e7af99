//! What each service of the cloud needs, as data for the engine. One file a service; what, never
//! how. The ids `S1.6` and so on name the facts of the field notes that this project follows.

mod base;
mod context;
pub mod facts;
mod foundation;
mod glance;
mod keystone;
mod neutron;
mod nova;
mod placement;
pub mod resources;
pub mod secrets;
mod stage;
pub mod topology;
mod units;
mod uwsgi;

pub use keystone::PORT as KEYSTONE_PORT;
pub use neutron::{EXTERNAL_BRIDGE, PROVIDER};
pub use stage::Stage;

use crate::engine::plan::{Plan, Step};
use crate::error::Result;
use crate::secret::Secret;
use context::Context;
use secrets::Secrets;
use topology::{NodeKey, Topology};

/// Everything that makes the nodes of `topology` one cloud.
pub fn plan(topology: &Topology, secrets: &Secrets) -> Result<Plan> {
    topology.check()?;
    let cx = Context { topology, secrets };
    // Of the steps that could begin, the engine takes the first: the longest chains stand first.
    let parts = [
        (Stage::Foundation, base::steps(cx)),
        (Stage::Foundation, foundation::steps(cx)),
        (Stage::Keystone, keystone::steps(cx)),
        (Stage::Nova, nova::steps(cx)),
        (Stage::Neutron, neutron::steps(cx)),
        (Stage::GlancePlacement, placement::steps(cx)),
        (Stage::GlancePlacement, glance::steps(cx)),
    ];
    let staged = |(stage, steps): (Stage, Vec<Step>)| {
        steps.into_iter().map(move |step| step.stage(stage.into()))
    };
    Ok(Plan { steps: parts.into_iter().flat_map(staged).collect() })
}

/// The plan with a name in the place of every secret and of every login key: what is declared, the
/// same in every run and on every machine. Never to be applied.
pub fn symbolic_plan(topology: &Topology) -> Result<Plan> {
    let mut topology = topology.clone();
    topology.login.authorized_keys = vec!["the login key".into()];
    topology.login.node_key =
        NodeKey { private: Secret::new("the nodes' key"), public: "the nodes' public key".into() };
    for host in &mut topology.hosts {
        host.host_key = format!("the host key of {}", host.name);
    }
    plan(&topology, &Secrets::symbolic())
}

/// Every package that the roles need on Debian 13: baked into the node image.
pub fn packages() -> Vec<&'static str> {
    let mut all: Vec<&str> = [
        base::PACKAGES,
        foundation::PACKAGES,
        keystone::PACKAGES,
        glance::PACKAGES,
        placement::PACKAGES,
        nova::PACKAGES,
        neutron::PACKAGES,
    ]
    .concat();
    // S1.4: the client that the field notes use.
    all.push("python3-openstackclient");
    all.sort_unstable();
    all.dedup();
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::roles::topology::Role;

    #[test]
    fn the_plan_of_two_nodes_and_of_one_is_in_order() {
        let secrets = Secrets::generate().unwrap();
        let two = topology::tests::two_nodes();
        plan(&two, &secrets).unwrap().validate(&["openstack1", "openstack2"]).unwrap();
        let mut one = two.clone();
        one.hosts.truncate(1);
        one.hosts[0].roles = Role::ALL.to_vec();
        plan(&one, &secrets).unwrap().validate(&["openstack1"]).unwrap();
    }

    #[test]
    fn every_stage_with_steps_is_closed_and_stands_for_itself() {
        let (two, secrets) = (topology::tests::two_nodes(), Secrets::symbolic());
        let whole = || plan(&two, &secrets).unwrap();
        let with_steps: Vec<_> = whole().stages();
        let named = [Stage::Foundation, Stage::Keystone, Stage::GlancePlacement, Stage::Nova];
        let named = named.into_iter().chain([Stage::Neutron]);
        assert_eq!(with_steps, named.map(Into::into).collect::<Vec<_>>());
        let mut done = None;
        for stage in with_steps {
            let part = whole().between(done, stage);
            assert!(!part.steps.is_empty(), "{stage}");
            part.validate(&["openstack1", "openstack2"]).unwrap();
            done = Some(stage);
        }
    }

    #[test]
    fn no_secret_is_shown_by_a_plan_or_stands_in_a_script() {
        let secrets = Secrets::generate().unwrap();
        let plan = plan(&topology::tests::two_nodes(), &secrets).unwrap();
        let shown = format!("{plan:?}");
        let scripts: String = plan
            .steps
            .iter()
            .flat_map(|s| &s.resources)
            .map(|r| r.probe().shell + &r.apply("").shell)
            .collect();
        assert!(shown.contains("keystone.conf") && scripts.contains("keystone.conf"));
        for (name, secret) in secrets.iter() {
            assert!(!shown.contains(secret.reveal()), "{name} in the plan's text");
            assert!(!scripts.contains(secret.reveal()), "{name} in a script");
        }
    }

    /// All that the plan's resources would write on a node.
    pub(super) fn inputs(plan: &Plan, node: &str) -> String {
        let bytes: Vec<u8> = plan
            .steps
            .iter()
            .filter(|s| s.node == node)
            .flat_map(|s| &s.resources)
            .flat_map(|r| r.apply("").inputs)
            .flat_map(|(_, input)| input.bytes().to_vec())
            .collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    #[test]
    fn a_compute_node_gets_no_database_password() {
        let secrets = Secrets::generate().unwrap();
        let plan = plan(&topology::tests::two_nodes(), &secrets).unwrap();
        let text = inputs(&plan, "openstack2");
        // A live control: what it does need is there.
        assert!(text.contains(secrets.user("nova").reveal()));
        for service in ["nova", "neutron", "keystone", "glance", "placement"] {
            assert!(!text.contains(secrets.database(service).reveal()), "{service}");
        }
    }
}
