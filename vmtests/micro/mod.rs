//! The tests with guests of a hundred MiB: seconds each under emulation.

mod boot;
mod checkpoint;
mod death;
mod disk;
mod engine;
mod fault;
mod fault_wire;
mod layers;
mod network;
mod owner;
mod secrets;

use crate::bench::GUEST;
use crate::registry::{Needs, Test};

pub use death::run_lab;

pub fn all() -> Vec<Test> {
    [
        boot::TESTS,
        network::TESTS,
        engine::TESTS,
        death::TESTS,
        fault::TESTS,
        fault_wire::TESTS,
        disk::TESTS,
        checkpoint::TESTS,
        layers::TESTS,
        secrets::TESTS,
        owner::TESTS,
    ]
    .concat()
}

/// A test with so many guests at once.
const fn test(
    path: &'static str,
    guests: u32,
    run: fn() -> std::result::Result<(), String>,
) -> Test {
    let memory = guests as u64 * GUEST;
    let needs = Needs { guests, memory, probe_guest: true, node_image: false };
    Test { path, needs, run }
}
