//! What a plan declares, as digests: equal exactly where the same would be sent to the nodes.
//!
//! The digest of a resource is taken from the resource's own scripts, not from a version that
//! somebody must remember to raise: how it is observed, and what is done, with which contents,
//! where nothing of it is there yet. So a changed value and a changed action both change it, and a
//! changed comment, name or deadline in the program does not.
//!
//! Plans that hold secrets give digests of secrets: ask with a plan that has names in their place.

use super::plan::{Plan, Stage, Step};
use super::resource::{Resource, Script};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// The sha256 of a text, in hexadecimal.
pub fn digest(bytes: impl AsRef<[u8]>) -> String {
    Sha256::digest(bytes.as_ref()).iter().map(|b| format!("{b:02x}")).collect()
}

/// Every step and every resource of a stage by a name for people, with its digest. The names begin
/// with the stage: `nova: file /etc/nova/nova.conf on openstack1`. `plan` must be the whole one:
/// parts of it have forgotten what their steps come after.
pub fn of_stage(plan: &Plan, stage: Stage) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for step in plan.steps.iter().filter(|s| s.stage == stage) {
        all.insert(format!("{}: step {}", step.stage, step.id), of_step(step));
        for resource in &step.resources {
            let name = format!("{}: {} on {}", step.stage, resource.id(), step.node);
            all.insert(name, of_resource(resource.as_ref()));
        }
    }
    all
}

/// Where it is applied, in which order, and after what. What its resources are is their own affair.
fn of_step(step: &Step) -> String {
    let mut after: Vec<&str> = step.after.iter().map(String::as_str).collect();
    after.sort_unstable();
    after.dedup();
    let order: Vec<String> = step.resources.iter().map(|r| r.id()).collect();
    digest(json!([step.node, after, order]).to_string())
}

/// One resource.
pub fn of_resource(resource: &dyn Resource) -> String {
    let probe = match resource.shared() {
        None => json!([script(&resource.probe())]),
        Some((probe, subject)) => {
            json!([probe.name, subject, script(&(probe.script)(&[subject.as_str()]))])
        }
    };
    let apply = script(&resource.apply(resource.nothing()));
    digest(json!([probe, apply, resource.writes(), resource.reads()]).to_string())
}

fn script(script: &Script) -> Value {
    let inputs: Vec<Value> =
        script.inputs.iter().map(|(name, input)| json!([name, digest(input.bytes())])).collect();
    json!([script.shell, inputs])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::resources::*;
    use crate::secret::Secret;

    /// Pairs of resources that differ in one declared thing each.
    fn pairs() -> Vec<[Box<dyn Resource>; 2]> {
        let secret = |text: &str| Secret::new(text.to_owned());
        vec![
            [File::new("/x", "1").boxed(), File::new("/x", "2").boxed()],
            [File::new("/x", "1").boxed(), File::new("/x", "1").mode(0o600).boxed()],
            [File::secret("/x", "1").boxed(), File::secret("/x", "2").boxed()],
            [Ini::new("/x").set("a", "b", "1").boxed(), Ini::new("/x").set("a", "b", "2").boxed()],
            [EnvFile::new("/x").set("A", "1").boxed(), EnvFile::new("/x").set("A", "2").boxed()],
            [Lines::new("/x").line("1").boxed(), Lines::new("/x").line("2").boxed()],
            [Block::new("/x", "m", "1").boxed(), Block::new("/x", "m", "2").boxed()],
            [Directory::new("/x").boxed(), Directory::new("/x").mode(0o700).boxed()],
            [
                Hosts::new().entry([192, 0, 2, 1], ["a"]).boxed(),
                Hosts::new().entry([192, 0, 2, 2], ["a"]).boxed(),
            ],
            [SymLink::new("/x", "/1").boxed(), SymLink::new("/x", "/2").boxed()],
            [Hostname::new("a").boxed(), Hostname::new("b").boxed()],
            [Locale::new("en_US.UTF-8").boxed(), Locale::new("en_GB.UTF-8").boxed()],
            [Masked::new(["a", "b"]).boxed(), Masked::new(["a", "c"]).boxed()],
            [Package::new(["a"]).boxed(), Package::new(["a", "b"]).boxed()],
            [Sysctl::new("a", "1").boxed(), Sysctl::new("a", "2").boxed()],
            [KernelModule::new("a").boxed(), KernelModule::new("b").boxed()],
            [Unit::new("a").boxed(), Unit::new("a").reads(["/x"]).boxed()],
            [Unit::new("a").boxed(), Unit::new("a").ready(Ready::Port(1)).boxed()],
            [Unit::new("a").boxed(), Unit::new("a").disabled().stopped().boxed()],
            [
                Account::new("a", "%", secret("one")).boxed(),
                Account::new("a", "%", secret("two")).boxed(),
            ],
            [
                RabbitUser::new("a", secret("one")).boxed(),
                RabbitUser::new("a", secret("two")).boxed(),
            ],
            [OvsBridge::new("a").boxed(), OvsBridge::new("a").port("x").boxed()],
            [OvsOption::new("a", "1").boxed(), OvsOption::new("a", "2").boxed()],
            [UserAccount::new("a").boxed(), UserAccount::new("a").group("wheel").boxed()],
        ]
    }

    #[test]
    fn every_declared_value_of_every_kind_changes_the_digest_and_nothing_else_does() {
        for ([a, b], [a_again, _]) in pairs().iter().zip(&pairs()) {
            assert_eq!(of_resource(a.as_ref()), of_resource(a_again.as_ref()), "{a:?}");
            assert_ne!(of_resource(a.as_ref()), of_resource(b.as_ref()), "{a:?} {b:?}");
        }
    }

    #[test]
    fn a_deadline_is_no_part_of_what_is_declared() {
        let (short, long) = (Unit::new("a").patience(5), Unit::new("a").patience(500));
        assert_eq!(of_resource(&short), of_resource(&long));
    }

    #[test]
    fn a_step_is_its_node_its_order_and_what_comes_before_it() {
        let step = || Step::new("s", "n").with(File::new("/a", "")).with(File::new("/b", ""));
        let same = of_step(&step().after("x").after("y"));
        assert_eq!(of_step(&step().after("y").after("x")), same);
        assert_ne!(of_step(&step().after("x")), same);
        let turned = Step::new("s", "n").with(File::new("/b", "")).with(File::new("/a", ""));
        assert_ne!(of_step(&turned), of_step(&step()));
    }

    #[test]
    fn names_tell_stage_resource_and_node() {
        let stage = Stage { rank: 1, name: "first" };
        let step = Step::new("s", "n").with(File::new("/a", "")).stage(stage);
        let plan = Plan { steps: vec![step, Step::new("of another stage", "n")] };
        let names: Vec<String> = of_stage(&plan, stage).into_keys().collect();
        assert_eq!(names, ["first: file /a on n", "first: step s"]);
    }
}
