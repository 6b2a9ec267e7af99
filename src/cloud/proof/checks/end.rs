//! Everything deleted.

use super::{pass, wrong};
use crate::cloud::proof::context::Context;
use crate::cloud::proof::ledger::{Batch, Cleared};
use crate::cloud::proof::story::Finding;
use crate::error::Result;

pub async fn cleanup(c: &Context) -> Result<Finding> {
    if c.server.get().is_some() {
        // The last sight of it, for whoever has to explain a failure.
        let _ = c.read_console().await;
    }
    judge(c.ledger.clear(&c.inputs.patience, &c.inputs.death).await)
}

/// The stranger is needed no more long before the end: deleted while the instance boots, when the
/// controller has little to do.
pub async fn stranger(c: &Context) -> Result<Finding> {
    c.stranger()?;
    clear_batch(c, Batch::Stranger).await
}

/// What the instance was made of. Deleted while silence is listened to.
pub async fn ingredients(c: &Context) -> Result<Finding> {
    clear_batch(c, Batch::Ingredients).await
}

/// Deleted while it is listened to whether its address stays silent.
pub async fn floating_ip(c: &Context) -> Result<Finding> {
    clear_batch(c, Batch::FloatingIp).await
}

async fn clear_batch(c: &Context, batch: Batch) -> Result<Finding> {
    judge(c.ledger.clear_batch(batch, &c.inputs.patience, &c.inputs.death).await)
}

fn judge(cleared: Cleared) -> Result<Finding> {
    if !cleared.leftovers.is_empty() {
        let count = cleared.leftovers.len();
        return Err(wrong(format!("{count} things are left over")).evidence(cleared.leftovers));
    }
    if cleared.gone.is_empty() {
        return Ok(Finding::Skip("nothing had been made".into()));
    }
    pass(format!("{} things, each seen gone: {}", cleared.gone.len(), cleared.gone.join(", ")))
}
