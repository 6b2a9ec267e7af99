//! Brings nodes to a declared state over SSH. Knows no OpenStack.
//!
//! A role declares typed resources; the engine observes all of a node's resources in one round
//! trip, shows the difference, changes what differs, and observes again.

pub mod plan;
pub mod resource;
