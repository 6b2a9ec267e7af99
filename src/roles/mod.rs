//! What each service of the cloud needs, as data for the engine. One file a service; what, never
//! how. The ids `S1.6` and so on name the facts of the field notes that this project follows.

mod base;
mod context;
mod foundation;
mod glance;
mod keystone;
mod neutron;
mod nova;
mod placement;
pub mod resources;
pub mod secrets;
pub mod topology;
mod units;
mod uwsgi;

pub use keystone::PORT as KEYSTONE_PORT;
pub use neutron::{EXTERNAL_BRIDGE, PROVIDER};

use crate::engine::plan::Plan;
use crate::error::Result;
use context::Context;
use secrets::Secrets;
use topology::Topology;

/// Everything that makes the nodes of `topology` one cloud.
pub fn plan(topology: &Topology, secrets: &Secrets) -> Result<Plan> {
    topology.check()?;
    let cx = Context { topology, secrets };
    let mut steps = base::steps(cx);
    steps.extend(foundation::steps(cx));
    steps.extend(keystone::steps(cx));
    steps.extend(glance::steps(cx));
    steps.extend(placement::steps(cx));
    steps.extend(nova::steps(cx));
    steps.extend(neutron::steps(cx));
    Ok(Plan { steps })
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
