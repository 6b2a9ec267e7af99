//! A running cluster: boot, restore, checkpoint, provision, node checks, secret scan, evidence and
//! proof. `e2e` and the supervisor use it alike. It prints nothing and knows no command line.
//!
//! * [`context`]: what a verb passes in.
//! * [`host`]: the tools, the accelerator and the room that a cluster needs; [`images`]: what its
//!   nodes boot, fetched or built; [`fits`]: whether the nodes can boot it; [`instance`]: what the
//!   proof's instance boots.
//! * [`topology`]: the lab as the roles see it; [`stage_keys`]: the keys of the stages made on it.
//! * [`provision`]: boots a cluster and applies the roles; [`checkpoint`]: saves and restores it.
//! * [`node_tasks`]: what is done on the nodes around a checkpoint; [`credentials`]: the cloud as
//!   its users know it.
//! * [`node_checks`], [`prove`], [`secret_scan`]: the checks; [`diagnostics`]: the evidence after a
//!   failure.

pub mod checkpoint;
pub mod context;
pub mod credentials;
pub mod diagnostics;
pub mod fits;
pub mod host;
pub mod images;
pub mod instance;
pub mod node_checks;
pub mod node_tasks;
pub mod prove;
pub mod provision;
pub mod secret_scan;
mod ssh_adapter;
pub mod stage_keys;
pub mod topology;

pub use checkpoint::restore;
pub use context::RunContext;
pub use provision::{Boot, Cluster, boot};

use std::path::{Path, PathBuf};

/// The folder of running labs in a store.
pub fn runs(store: &Path) -> PathBuf {
    store.join("runs")
}
