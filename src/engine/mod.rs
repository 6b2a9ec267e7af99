//! Brings nodes to a declared state over SSH. Knows no OpenStack.
//!
//! A role declares typed resources; the engine observes all of a node's resources in one round
//! trip, shows the difference, changes what differs, and observes again.
//!
//! * [`resource`]: what a resource is; [`resources`]: the generic ones.
//! * [`plan`]: steps and the order between them, checked before anything is touched.
//! * [`canonical`]: a step's declarations as digests, to tell whether they changed.
//! * [`batch`]: many fragments of shell in one script, framed.
//! * [`observe`], [`apply`]: the engine proper; [`journal`]: what it writes down for people.
//! * [`inventory`], [`transport`], [`ssh`]: nodes and how they are reached.

pub mod apply;
pub mod batch;
pub mod canonical;
pub mod ini;
pub mod inventory;
pub mod journal;
pub mod observe;
pub mod plan;
pub mod quote;
pub mod resource;
pub mod resources;
pub mod ssh;
pub mod transport;
