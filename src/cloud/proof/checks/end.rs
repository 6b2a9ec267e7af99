//! Everything deleted.

use super::{pass, wrong};
use crate::cloud::proof::context::Context;
use crate::cloud::proof::story::Finding;
use crate::error::Result;

pub async fn cleanup(c: &Context) -> Result<Finding> {
    if c.server.get().is_some() {
        // The last sight of it, for whoever has to explain a failure.
        let _ = c.read_console().await;
    }
    let cleared = c.ledger.clear(&c.inputs.patience, &c.inputs.death).await;
    if !cleared.leftovers.is_empty() {
        let count = cleared.leftovers.len();
        return Err(wrong(format!("{count} things are left over")).evidence(cleared.leftovers));
    }
    if cleared.gone.is_empty() {
        return Ok(Finding::Skip("nothing had been made".into()));
    }
    pass(format!("{} things, each seen gone: {}", cleared.gone.len(), cleared.gone.join(", ")))
}
