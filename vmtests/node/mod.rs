//! The tests with whole nodes: minutes each under emulation.

mod checkpoint;

use crate::registry::Test;

pub fn all() -> Vec<Test> {
    checkpoint::TESTS.to_vec()
}
