//! The key of every stage.

use super::inputs::{Inputs, Key};
use crate::engine::canonical;
use crate::engine::plan::{Plan, Stage};

/// A stage of a lab's making, as a place where a run can stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rung {
    pub stage: Stage,
    pub key: Key,
    /// All that made it, those of the stages before included.
    pub inputs: Inputs,
}

/// The rungs of `stages`, in their order. `lab` is what made the lab before any step; `plan` must
/// have names in the place of secrets.
pub fn rungs(lab: Inputs, stages: &[Stage], plan: &Plan) -> Vec<Rung> {
    let mut rungs: Vec<Rung> = Vec::new();
    let mut all = Inputs::default();
    for &stage in stages {
        let mut own = if rungs.is_empty() { lab.clone() } else { Inputs::default() };
        own.extend(canonical::of_stage(plan, stage));
        let key = own.key(stage.name, rungs.last().map(|r| &r.key));
        all.extend(own);
        rungs.push(Rung { stage, key, inputs: all.clone() });
    }
    rungs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::keys::SshKey;
    use crate::layers::lab::tests::{of, two_node};
    use crate::roles;
    use crate::roles::secrets::Secrets;
    use crate::roles::topology::{Host, Login, NodeKey, Role, Topology, Virtualization};
    use std::net::Ipv4Addr;

    /// The cloud of a lab that was booted with other keys each time.
    fn topology() -> Topology {
        let new = || SshKey::ed25519("of this lab").unwrap();
        let host = |name: &str, roles: &[Role], last, nic: bool| Host {
            name: name.into(),
            roles: roles.into(),
            address: Ipv4Addr::new(192, 168, 103, last),
            host_key: new().public_line(),
            external_nic: nic.then(|| "external".into()),
        };
        let node_key = new();
        let (private, public) = (node_key.private_pem(), node_key.public_line());
        Topology {
            region: "RegionOne".into(),
            hosts: vec![
                host("openstack1", &[Role::Controller, Role::Network], 11, true),
                host("openstack2", &[Role::Compute], 12, false),
            ],
            virtualization: Virtualization::Qemu,
            ntp_upstream: Ipv4Addr::new(192, 168, 103, 1),
            ntp_allow: "192.168.0.0/16".into(),
            login: Login {
                user: "stack".into(),
                authorized_keys: vec![new().public_line()],
                node_key: NodeKey { private, public },
            },
        }
    }

    fn stages() -> Vec<Stage> {
        roles::Stage::ORDER.map(Into::into).into()
    }

    fn of_plan(plan: &Plan) -> Vec<Rung> {
        rungs(of(&two_node(|t| t)), &stages(), plan)
    }

    fn keys(rungs: &[Rung]) -> Vec<&Key> {
        rungs.iter().map(|r| &r.key).collect()
    }

    #[test]
    fn two_labs_with_other_secrets_and_login_keys_have_the_same_keys() {
        let symbolic = || of_plan(&roles::symbolic_plan(&topology()).unwrap());
        let one = symbolic();
        assert_eq!(one, symbolic());
        assert_eq!(one.len(), roles::Stage::ORDER.len());
        // A live control: with real secrets they would differ, from the first stage with steps.
        let real = || {
            let secrets = Secrets::generate().unwrap();
            of_plan(&roles::plan(&topology(), &secrets).unwrap())
        };
        let (a, b) = (real(), real());
        assert_eq!(a[0].key, b[0].key);
        for i in 1..a.len() {
            assert_ne!(a[i].key, b[i].key, "{}", a[i].stage);
        }
    }

    #[test]
    fn no_input_shows_a_secret() {
        let rungs = of_plan(&roles::symbolic_plan(&topology()).unwrap());
        let text = serde_json::to_string(&rungs.last().unwrap().inputs).unwrap();
        assert!(text.contains("nova: file /etc/nova/nova.conf on openstack1"), "{text}");
        for (name, secret) in Secrets::symbolic().iter() {
            assert!(!text.contains(secret.reveal()), "{name}");
        }
    }

    #[test]
    fn one_changed_value_changes_its_stage_and_all_after_it_and_none_before() {
        let before = of_plan(&roles::symbolic_plan(&topology()).unwrap());
        // Of every stage with steps, one step gets one resource more.
        for changed in roles::Stage::ORDER {
            let mut plan = roles::symbolic_plan(&topology()).unwrap();
            let stage: Stage = changed.into();
            let Some(step) = plan.steps.iter_mut().find(|s| s.stage == stage) else { continue };
            let file = crate::engine::resources::File::new("/etc/one-more", "");
            step.resources.push(Box::new(file));
            let after = of_plan(&plan);
            for (old, new) in before.iter().zip(&after) {
                assert_eq!(old.key == new.key, old.stage < stage, "{changed:?}: {}", old.stage);
            }
        }
    }

    #[test]
    fn a_changed_value_of_one_role_is_told_by_its_resource() {
        let mut other = topology();
        other.region = "RegionTwo".into();
        let before = of_plan(&roles::symbolic_plan(&topology()).unwrap());
        let after = of_plan(&roles::symbolic_plan(&other).unwrap());
        let same = |stage: roles::Stage| {
            let at = stage as usize;
            keys(&before)[at] == keys(&after)[at]
        };
        assert!(same(roles::Stage::Foundation) && !same(roles::Stage::Keystone));
        let last = after.last().unwrap().inputs.changes_since(&before.last().unwrap().inputs);
        assert!(
            last.contains(&"keystone: keystone administrator on openstack1: changed".into()),
            "{last:?}"
        );
        assert!(last.iter().all(|l| !l.starts_with("foundation:")), "{last:?}");
    }
}
