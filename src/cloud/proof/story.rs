//! The proof in order: what stands on what. Checks that do not stand on each other, nor disturb each
//! other, run at once.

use super::checks::{cloud, end, instance, namespace, network, people, reach};
use super::context::Context;
use super::inputs::ProofInputs;
use crate::cloud::Later;
use crate::error::Result;

/// How a check that did not fail ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// With what was seen.
    Pass(String),
    /// With the reason.
    Skip(String),
}

pub type Run = for<'a> fn(&'a Context) -> Later<'a, Result<Finding>>;

/// One check.
pub struct Step {
    /// The seeds' ids it stands for, and what holds when it passes.
    pub name: &'static str,
    /// Checks without which this one would say nothing.
    pub needs: &'static [&'static str],
    /// Checks that it would disturb: it begins when they have ended, however they did.
    pub spares: &'static [&'static str],
    pub run: Run,
}

impl Step {
    /// Whether it begins only when the check of that name has ended.
    pub fn waits_for(&self, name: &str) -> bool {
        self.needs.contains(&name) || self.spares.contains(&name)
    }
}

const VXLAN: &str = "S3.1 traffic crosses VXLAN";

/// Why a step has no place in this lab; None where it has.
pub fn no_place(step: &Step, inputs: &ProofInputs) -> Option<&'static str> {
    (step.name == VXLAN && inputs.beyond_tunnels().is_empty())
        .then_some("the network node is the only hypervisor: no tunnel leaves it")
}

macro_rules! story {
    ($(
        $name:literal
        $(after [$($need:literal),* $(,)?])?
        $(sparing [$($spared:literal),* $(,)?])?
        => $run:path;
    )*) => {
        &[$(Step {
            name: $name,
            needs: &[$($($need),*)?],
            spares: &[$($($spared),*)?],
            run: |context| Box::pin($run(context)),
        }),*]
    };
}
#[cfg(test)]
pub(super) use story;

/// Each step stands on earlier ones, so that the first that failed explains the others. The last
/// begins when all others have ended.
pub const STORY: &[Step] = story! {
    // The cloud as such.
    "S4.6 administrator's token" => cloud::token;
    "S4.4 catalog" after ["S4.6 administrator's token"] => cloud::catalog;
    "S4.8 network agents alive" after ["S4.4 catalog"] => cloud::agents;
    "S4.8 compute services up" after ["S4.4 catalog"] => cloud::compute_services;

    // The setting.
    "S3.1 provider network public" after ["S4.8 network agents alive"] => network::public;
    "S4.5 project and user" after ["S4.4 catalog"] => people::member;
    "S4.3 flavors are the administrator's" after ["S4.5 project and user"] => people::flavor;
    "S4.7 private image" after ["S4.5 project and user"] => people::image;
    "S3.3 key pair" after ["S4.5 project and user"] => people::key_pair;
    "S3.2 network and subnet" after
        ["S4.8 network agents alive", "S4.5 project and user"] => network::internal;
    "S3.4 router and interface accepted" after ["S3.2 network and subnet"] => network::router_made;
    "S3.4 gateway accepted" after
        ["S3.4 router and interface accepted", "S3.1 provider network public"] => network::gateway;
    "S4.9 security group without ingress" after
        ["S4.5 project and user"] => network::group;

    // The instance. It begins once its subnet has a router: before, metadata would come another
    // way, and that way would end while it boots.
    "S3.3 server accepted" after [
        "S4.8 compute services up", "S4.3 flavors are the administrator's", "S4.7 private image",
        "S3.3 key pair", "S3.4 router and interface accepted",
        "S4.9 security group without ingress",
    ] => instance::accepted;
    "S3.4 router answers outside" after ["S3.4 gateway accepted"] => network::router;
    "S3.8 floating IP allocated" after ["S3.4 gateway accepted"] => reach::floating_ip_allocated;
    "S4.8 instance's port active" after ["S3.3 server accepted"] => instance::port_active;
    "S3.3 server active on its host" after
        ["S4.8 instance's port active"] => instance::active;
    "S4.8 ports bound and active" after ["S3.3 server active on its host"] => instance::ports;
    "S3.6 namespaces of router and DHCP" after
        ["S4.8 ports bound and active", "S3.4 router answers outside"]
        => namespace::router_and_dhcp;
    "S4.11 console log" after ["S4.8 ports bound and active"] => instance::console;
    "S3.8 floating IP" after [
        "S3.8 floating IP allocated", "S4.8 instance's port active", "S3.4 router answers outside",
    ] => reach::floating_ip;

    // From outside.
    "S3.7 silence without ingress rules" after
        ["S4.11 console log", "S3.8 floating IP"] => reach::silence_without_rules;
    // Another project's user, while there is nothing but to listen or to wait for the instance.
    "S4.5 a stranger's project and user" after ["S4.5 project and user"]
        sparing ["S4.11 console log", "S3.8 floating IP"] => people::stranger;
    "S4.7 no stranger sees the image" after
        ["S4.5 a stranger's project and user", "S4.7 private image"] => people::image_unseen;
    "S4.5 stranger deleted and seen gone" after
        ["S4.7 no stranger sees the image"] => end::stranger;
    "S3.7 silence in the router's namespace" after
        ["S4.11 console log", "S3.6 namespaces of router and DHCP"] => namespace::silence;
    "S3.7 ping answers once ICMP is let in" after
        ["S3.7 silence without ingress rules"]
        sparing ["S3.7 silence in the router's namespace"] => reach::ping;
    "S3.9 SSH login returns the nonce" after
        ["S3.7 ping answers once ICMP is let in"] => reach::ssh;
    "S3.9 ping and SSH from the router's namespace" after
        ["S3.9 SSH login returns the nonce", "S3.7 silence in the router's namespace"]
        => namespace::reach;
    "S4.12 guest sees its address and MTU" after
        ["S3.9 SSH login returns the nonce"] => reach::guest_view;
    "S4.11 gateway and metadata answer inside" after
        ["S3.9 SSH login returns the nonce"] => reach::inside;
    "S3.1 traffic crosses VXLAN" after
        ["S3.7 ping answers once ICMP is let in"] => reach::vxlan;
    "S3.6 fixed address silent outside" after
        ["S3.7 ping answers once ICMP is let in"] => reach::fixed_silent;
    "S4.12 address availability" after ["S3.8 floating IP"]
        sparing ["S4.11 console log"] => network::availability;
    "S3.5 hard reboot" after ["S3.9 SSH login returns the nonce"]
        sparing [
            "S3.9 ping and SSH from the router's namespace", "S3.6 fixed address silent outside",
        ] => instance::reboot;
    "S4.12 silence without floating IP" after
        ["S3.7 ping answers once ICMP is let in"]
        sparing [
            "S3.9 SSH login returns the nonce", "S3.6 fixed address silent outside",
            "S3.5 hard reboot",
        ] => reach::silence_without_floating_ip;
    // What the instance was made of it needs no more, nor does the silence.
    "S3.3 image, flavor and key pair deleted and seen gone" after
        ["S4.7 private image", "S4.3 flavors are the administrator's", "S3.3 key pair"]
        sparing ["S3.5 hard reboot", "S4.7 no stranger sees the image"] => end::ingredients;

    // Whatever happened.
    "S3 everything deleted and seen gone" => end::cleanup;
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_check_waits_for_earlier_ones_and_names_are_unique() {
        let mut earlier = Vec::new();
        for step in STORY {
            for before in step.needs.iter().chain(step.spares) {
                let name = step.name;
                assert!(earlier.contains(before), "`{name}` waits for `{before}`, not told before");
            }
            // Without it its dependents would be told on no ground.
            assert!(!step.needs.contains(&VXLAN), "`{}` needs what may be left out", step.name);
            assert!(!earlier.contains(&step.name), "`{}` twice", step.name);
            earlier.push(step.name);
        }
        assert!(earlier.contains(&VXLAN));
        assert!(STORY.last().unwrap().needs.is_empty(), "cleanup runs whatever happened");
    }
}
