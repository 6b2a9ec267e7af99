//! A cluster kept as a checkpoint, and taken up again.

use super::{Boot, Cluster};
use crate::cli::session::Work;
use crate::error::Result;
use crate::lab::Lab;
use crate::lab::checkpoint::{After, Notes};
use crate::roles::secrets::Secrets;
use crate::supervisor::nodes::{self, Resync};
use serde_json::json;
use std::path::Path;

/// A cluster as it stood, with the secrets that it had. [`Cluster::wake`] is next.
pub async fn restore(work: &Work, boot: &Boot<'_>, from: &Path) -> Result<Cluster> {
    let (options, patience) = (boot.options(work), work.patience());
    let restored = Lab::restore(from, &options, &patience, &work.redactor).await?;
    let secrets = Secrets::of_then(&restored.notes.0["secrets"]).map_err(|e| e.at(from, None))?;
    Cluster::new(restored.lab, secrets, boot.logs, work)
}

impl Cluster {
    /// Gives back what the nodes keep and do not need.
    pub async fn slim(&self, work: &Work) -> Result<()> {
        nodes::slim(&self.lab, &self.nodes, &work.patience()).await
    }

    /// What a checkpoint would take now at most, in bytes.
    pub fn size(&self) -> Result<u64> {
        self.lab.checkpoint_size()
    }

    /// Why a machine is dead, where one is.
    pub fn death(&self) -> Option<String> {
        self.lab.death().cause()
    }

    /// Saves the cluster as the folder `into`, which must not exist yet. It goes on.
    pub async fn checkpoint(&mut self, work: &Work, into: &Path) -> Result<()> {
        // A restored node would try to go on with our connections.
        self.resync.stop().await;
        self.disconnect(work);
        // The cloud is for `lab up --restore`, whose user may know nothing of roles.
        let cloud = self.declare(work)?.cloud();
        let notes = Notes(json!({ "secrets": self.secrets.reveal(), "cloud": cloud }));
        let saved = self.lab.checkpoint(into, notes, After::GoOn, &work.patience()).await.map(drop);
        self.connect(work)?;
        if saved.is_err() && self.death().is_some() {
            return saved;
        }
        // They stood still also where it failed, and whatever they show, it is as good as it is.
        match self.clocks(work).await {
            Ok(resync) => self.resync = resync,
            Err(e) => {
                work.events.warning(format!("the nodes stood still while they were saved: {e}"));
            }
        }
        saved
    }

    /// Tells a cluster that was restored what time it is, and waits for its first answer where it has
    /// one to give.
    pub async fn wake(&mut self, work: &Work, has_keystone: bool) -> Result<()> {
        let answer = async {
            match has_keystone {
                true => self.answers(work).await,
                false => Ok(()),
            }
        };
        // Who answers too early is asked again.
        let (resync, ()) = tokio::try_join!(self.clocks(work), answer)?;
        self.resync = resync;
        Ok(())
    }

    /// They stood still for as long as their memory lay on the disk.
    async fn clocks(&self, work: &Work) -> Result<Resync> {
        let patience = work.patience();
        let unstepped = self.lab.step_clocks(&patience).await?;
        let off = nodes::set_clocks(&self.nodes, &unstepped, &patience).await?;
        Ok(nodes::resync(&self.nodes, &off, &patience))
    }

    /// The first answer. The agents' heartbeats are looked at by the proof.
    async fn answers(&self, work: &Work) -> Result<()> {
        let asleep = self.declare(work)?.cloud().asleep(&self.lab)?;
        asleep.token(&work.patience(), &work.redactor).await.map(drop)
    }
}
