//! A cluster kept as a checkpoint, and taken up again.

use super::{Boot, Cluster};
use crate::cli::session::Work;
use crate::error::{Error, Result};
use crate::lab::Lab;
use crate::lab::checkpoint::{After, Notes, SLIM};
use crate::roles::secrets::Secrets;
use serde_json::json;
use std::path::Path;
use std::time::{Duration, SystemTime};
use tokio::task::JoinSet;

/// To give back what a node keeps and does not need, on the reference machine.
const SLIMMING: Duration = Duration::from_secs(30);
/// To set a clock, on the reference machine.
const SETTING: Duration = Duration::from_secs(10);

/// A cluster as it stood, with the secrets that it had.
pub async fn restore(work: &Work, boot: &Boot<'_>, from: &Path) -> Result<Cluster> {
    let (options, patience) = (boot.options(work), work.patience());
    let restored = Lab::restore(from, &options, &patience, &work.redactor).await?;
    let secrets = Secrets::parse(&restored.notes.0["secrets"]).map_err(|e| e.at(from, None))?;
    let cluster = Cluster::new(restored.lab, secrets, boot.logs, work)?;
    cluster.set_clocks(work, &restored.unstepped).await?;
    Ok(cluster)
}

impl Cluster {
    /// What a checkpoint would take now at most, in bytes.
    pub fn size(&self) -> Result<u64> {
        self.lab.checkpoint_size()
    }

    /// Saves the cluster as the folder `into`, which must not exist yet. It goes on.
    pub async fn checkpoint(&mut self, work: &Work, into: &Path) -> Result<()> {
        self.on(work, |_| true, "give back what it does not need", SLIMMING, SLIM).await?;
        // A restored node would try to go on with our connections.
        self.disconnect(work);
        // The cloud is for `lab up --restore`, whose user may know nothing of roles.
        let cloud = self.declare(work)?.cloud();
        let notes = Notes(json!({ "secrets": self.secrets.reveal(), "cloud": cloud }));
        let saved = self.lab.checkpoint(into, notes, After::GoOn, &work.patience()).await;
        self.connect(work)?;
        saved?;
        // They stood still for as long as their memory took to be written.
        let unstepped = self.lab.step_clocks(&work.patience()).await?;
        self.set_clocks(work, &unstepped).await
    }

    /// Waits for the first answer of a cloud that was restored. The agents' heartbeats are looked
    /// at by the proof.
    pub async fn answers(&self, work: &Work) -> Result<()> {
        let asleep = self.declare(work)?.cloud().asleep(&self.lab)?;
        asleep.token(&work.patience(), &work.redactor).await.map(drop)
    }

    /// For nodes without a guest agent.
    async fn set_clocks(&self, work: &Work, nodes: &[String]) -> Result<()> {
        let these = |name: &str| nodes.iter().any(|n| n == name);
        // Connected first: a connection takes longer than a clock may be wrong.
        self.on(work, these, "answer", SETTING, ":").await?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let set = format!("date -u -s @{}.{:03}", now.as_secs(), now.subsec_millis());
        self.on(work, these, "set its clock", SETTING, &set).await
    }

    /// Runs a script on some nodes, all at once; `what` says what they are to do.
    async fn on(
        &self,
        work: &Work,
        which: impl Fn(&str) -> bool,
        what: &str,
        nominal: Duration,
        script: &str,
    ) -> Result<()> {
        let mut runs = JoinSet::new();
        for node in self.nodes.iter().filter(|n| which(&n.name)) {
            let (node, patience) = (node.clone(), work.patience());
            let (what, script) = (format!("{} to {what}", node.name), format!("{{ {script}; }}\n"));
            runs.spawn(async move {
                let run = async { node.shell.script(script).await };
                let out = patience.within(&what, nominal, &node.death, run).await?;
                if out.status == 0 {
                    return Ok(());
                }
                Err(Error::lab(format!("waited for {what}, and it failed"))
                    .evidence(out.stderr_tail(5)))
            });
        }
        runs.join_all().await.into_iter().collect()
    }
}
