//! A cluster kept as a checkpoint, and taken up again.

use super::context::RunContext;
use super::node_tasks::{self, Resync};
use super::provision::{Boot, Cluster};
use crate::error::Result;
use crate::lab::Lab;
use crate::lab::checkpoint::{After, Notes};
use crate::roles::secrets::Secrets;
use serde_json::json;
use std::path::Path;

/// A cluster as it stood, with the secrets that it had. [`Cluster::wake`] is next.
pub async fn restore(run: &RunContext, boot: &Boot<'_>, from: &Path) -> Result<Cluster> {
    let (options, patience) = (boot.options(run), run.patience());
    let restored = Lab::restore(from, &options, &patience, &run.redactor).await?;
    let secrets = Secrets::of_then(&restored.notes.0["secrets"]).map_err(|e| e.at(from, None))?;
    Cluster::new(restored.lab, secrets, boot.logs, run)
}

impl Cluster {
    /// Gives back what the nodes keep and do not need.
    pub async fn slim(&self) -> Result<()> {
        node_tasks::slim(&self.lab, &self.nodes, &self.run.patience()).await
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
    pub async fn checkpoint(&mut self, into: &Path) -> Result<()> {
        // A restored node would try to go on with our connections.
        self.resync.stop().await;
        self.disconnect();
        // The cloud is for `lab up --restore`, whose user may know nothing of roles.
        let cloud = self.declare()?.cloud();
        let notes = Notes(json!({ "secrets": self.secrets.reveal(), "cloud": cloud }));
        let saved =
            self.lab.checkpoint(into, notes, After::GoOn, &self.run.patience()).await.map(drop);
        self.connect()?;
        if saved.is_err() && self.death().is_some() {
            return saved;
        }
        // They stood still also where it failed, and whatever they show, it is as good as it is.
        match self.clocks().await {
            Ok(resync) => self.resync = resync,
            Err(e) => {
                self.run
                    .events
                    .warning(format!("the nodes stood still while they were saved: {e}"));
            }
        }
        saved
    }

    /// Tells a cluster that was restored what time it is, and waits for its first answer where it has
    /// one to give.
    pub async fn wake(&mut self, has_keystone: bool) -> Result<()> {
        let answer = async {
            match has_keystone {
                true => self.answers().await,
                false => Ok(()),
            }
        };
        // Who answers too early is asked again.
        let (resync, ()) = tokio::try_join!(self.clocks(), answer)?;
        self.resync = resync;
        Ok(())
    }

    /// They stood still for as long as their memory lay on the disk.
    async fn clocks(&self) -> Result<Resync> {
        let patience = self.run.patience();
        let unstepped = self.lab.step_clocks(&patience).await?;
        let off = node_tasks::set_clocks(&self.nodes, &unstepped, &patience).await?;
        Ok(node_tasks::resync(&self.nodes, &off, &patience))
    }

    /// The first answer. The agents' heartbeats are looked at by the proof.
    async fn answers(&self) -> Result<()> {
        let asleep = self.declare()?.cloud().asleep(&self.lab)?;
        asleep.token(&self.run.patience(), &self.run.redactor).await.map(drop)
    }
}
