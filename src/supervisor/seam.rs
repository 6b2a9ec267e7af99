//! Where other rooms join: each function is the one call that the owner makes. Filled when those
//! rooms are merged; until then each says what is missing.

use super::fault::Wire;
use crate::error::{Error, Result};
use crate::lab::{Lab, LabOptions};
use crate::secret::Redactor;
use crate::wait::Patience;
use serde_json::Value;
use std::path::Path;
use std::pin::Pin;
use tokio::net::UnixStream;

fn missing(what: &str) -> Error {
    Error::internal(format!("this build has no {what}"))
}

/// `Lab::checkpoint`: `into` does not exist yet and holds secrets, as `notes` do.
pub async fn checkpoint(_: &mut Lab, _into: &Path, _notes: Value, _: &Patience) -> Result<()> {
    Err(missing("checkpoints"))
}

/// Whether a checkpoint is whole and fits this host, before anything is given up for it.
pub fn inspect(_from: &Path) -> Result<()> {
    Err(missing("checkpoints"))
}

/// `Lab::restore`: the running lab and the notes of its checkpoint.
pub async fn restore(
    _from: &Path,
    _: &LabOptions,
    _: &Patience,
    _: &Redactor,
) -> Result<(Lab, Value)> {
    Err(missing("checkpoints"))
}

/// Disturbances and partitions.
pub fn wire(_: &Lab, _: &Wire) -> Result<()> {
    Err(missing("faults of the wire"))
}

/// Writes pcapng into a client's stream until either ends.
pub type Writer = Box<dyn FnOnce(UnixStream) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send>;

/// Captures a network, or one node's port on it, from now on.
pub fn capture(_: &Lab, _network: &str, _node: Option<&str>) -> Result<Writer> {
    Err(missing("captures"))
}
