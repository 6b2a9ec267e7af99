//! A running cluster: boot, restore, checkpoint, provision, node checks, secret scan, evidence and
//! proof. `e2e` and the supervisor use it alike. It prints nothing and knows no command line.
//!
//! * [`context`]: what a verb passes in.
//! * [`host`]: the tools, the accelerator and the room that a cluster needs; [`images`]: what its
//!   nodes boot, fetched or built; [`fits`]: whether the nodes can boot it.

pub mod context;
pub mod fits;
pub mod host;
pub mod images;

pub use context::RunContext;

use std::path::{Path, PathBuf};

/// The folder of running labs in a store.
pub fn runs(store: &Path) -> PathBuf {
    store.join("runs")
}
