//! A cluster kept as a checkpoint, and taken up again.

use super::{Boot, Cluster};
use crate::cli::session::Work;
use crate::error::{Error, Kind, Result};
use crate::lab::Lab;
use crate::lab::checkpoint::{After, Notes, SLIM};
use crate::roles::secrets::Secrets;
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
    let secrets = Secrets::parse(&restored.notes.0).map_err(|e| e.at(from, None))?;
    let cluster = Cluster::new(restored.lab, secrets, boot.logs, work)?;
    for name in restored.unstepped {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let set = format!("date -u -s @{}.{:03}", now.as_secs(), now.subsec_millis());
        cluster.on_each(work, "its clock to be set", SETTING, &set, Some(&name)).await?;
    }
    Ok(cluster)
}

impl Cluster {
    /// Saves the cluster as the folder `into`, which must not exist yet. It goes on.
    pub async fn checkpoint(&mut self, work: &Work, into: &Path) -> Result<()> {
        self.on_each(work, "its caches to be dropped", SLIMMING, SLIM, None).await?;
        // A restored node would try to go on with our connections.
        self.disconnect(work);
        let notes = Notes(self.secrets.reveal());
        let saved = self.lab.checkpoint(into, notes, After::GoOn, &work.patience()).await;
        self.connect(work)?;
        saved.map(drop)
    }

    /// Runs a script on all nodes at once, or on `only` one.
    async fn on_each(
        &self,
        work: &Work,
        what: &str,
        nominal: Duration,
        script: &str,
        only: Option<&str>,
    ) -> Result<()> {
        let mut runs = JoinSet::new();
        for node in self.nodes.iter().filter(|n| only.is_none_or(|only| n.name == only)) {
            let (node, patience) = (node.clone(), work.patience());
            let (what, script) =
                (format!("{} for {what}", node.name), format!("{{ {script}; }}\n"));
            runs.spawn(async move {
                let run = async { node.shell.script(script).await };
                let out = patience.within(&what, nominal, &node.death, run).await?;
                if out.status == 0 {
                    return Ok(());
                }
                Err(Error::new(Kind::Lab, format!("waited for {what}: it failed"))
                    .evidence(out.stderr_tail(5)))
            });
        }
        runs.join_all().await.into_iter().collect()
    }
}
