//! A plan: steps on nodes, each a list of resources, with an order between steps only where one
//! is needed. Everything else runs at once.

use super::resource::Resource;

#[derive(Debug)]
pub struct Step {
    /// Unique in the plan: `keystone/database@openstack1`.
    pub id: String,
    pub node: String,
    /// Applied in this order.
    pub resources: Vec<Box<dyn Resource>>,
    /// Ids of steps that must be in their declared state before this one is applied.
    pub after: Vec<String>,
}

#[derive(Debug, Default)]
pub struct Plan {
    pub steps: Vec<Step>,
}
