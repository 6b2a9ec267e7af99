//! From the deepest layer that serves to a cloud that is ready.

use super::{Proof, evidence};
use crate::cli::session::Work;
use crate::cluster::stage_keys::rungs_of;
use crate::cluster::{self, Boot, Cluster};
use crate::engine::plan::Stage;
use crate::error::{Error, Result};
use crate::lab::spec::LabSpec;
use crate::layers::budget::Space;
use crate::layers::{Climb, Layers, Site, Way};
use crate::roles;
use std::path::Path;

/// A cloud that is ready: nothing was left to be changed by a second run. Says whether it is proven
/// already: what is kept as the last layer has passed the proof, whose things are gone from it, but
/// not what services made ready to make them. So the next proof is quicker.
pub async fn cloud(
    work: &Work,
    spec: &LabSpec,
    boot: Boot<'_>,
    proof: Proof<'_>,
) -> Result<(Way<Cluster>, bool)> {
    let args = proof.args;
    let rungs = rungs_of(spec, &boot.hypervisor, boot.accel, work.nested, boot.images)?;
    let layers = (!args.cold).then(|| Layers::open(&work.env.store)).transpose()?;
    let climb = Climb {
        layers: layers.as_ref(),
        rungs: &rungs,
        lab: &spec.name,
        memory: spec.memory(),
        space: Space { max: args.layers_max, ..Space::default() },
        events: &work.events,
    };
    // With `--keep` the proof leaves things behind, which belong into no layer.
    let first = (!args.keep).then_some(proof);
    let mut ascent = Ascent { work, spec, boot, proof: first };
    let way = climb.climb(&mut ascent).await?;
    // Whoever came from the last layer has made no second run yet, and no proof.
    let warm = way.from.as_ref().is_some_and(|(stage, _)| *stage == ready());
    if warm {
        let second = super::second_run(work, &way.lab).await;
        if let Err(e) = second {
            let e = evidence(work, &way.lab, ascent.boot.logs, e).await;
            return Err(way.explain(e));
        }
    }
    Ok((way, first.is_some() && !warm))
}

fn ready() -> Stage {
    roles::Stage::CloudReady.into()
}

/// What a run of e2e does at each stage.
struct Ascent<'a> {
    work: &'a Work,
    spec: &'a LabSpec,
    boot: Boot<'a>,
    /// To be made before the last stage is reached.
    proof: Option<Proof<'a>>,
}

impl Site for Ascent<'_> {
    type Lab = Cluster;

    async fn boot(&mut self) -> Result<Cluster> {
        self.work.learn(|facts| facts.from_layer = None);
        self.work.events.phase("boot", cluster::boot(self.work, self.spec, &self.boot)).await
    }

    async fn restore(&mut self, stage: Stage, checkpoint: &Path) -> Result<Cluster> {
        let restored = async {
            let mut cluster = cluster::restore(self.work, &self.boot, checkpoint).await?;
            cluster.wake(stage >= roles::Stage::Keystone.into()).await?;
            Ok::<_, Error>(cluster)
        };
        let cluster = self.work.events.phase("restore", restored).await?;
        // A warm run is called one wherever its numbers are read.
        self.work.learn(|facts| facts.from_layer = Some(stage.to_string()));
        Ok(cluster)
    }

    async fn advance(&mut self, cluster: &mut Cluster, done: Stage, until: Stage) -> Result<()> {
        match self.provision(cluster, done, until).await {
            Err(e) => Err(evidence(self.work, cluster, self.boot.logs, e).await),
            ok => ok,
        }
    }

    async fn slim(&mut self, cluster: &mut Cluster) -> Result<()> {
        cluster.slim().await
    }

    fn size(&self, cluster: &Cluster) -> Result<u64> {
        cluster.size()
    }

    fn death(&self, cluster: &Cluster) -> Option<String> {
        cluster.death()
    }

    async fn checkpoint(&mut self, cluster: &mut Cluster, into: &Path) -> Result<()> {
        cluster.checkpoint(into).await
    }
}

impl Ascent<'_> {
    async fn provision(&self, cluster: &Cluster, done: Stage, until: Stage) -> Result<()> {
        let events = &self.work.events;
        let part = cluster.part(done, until)?;
        if !part.steps.is_empty() {
            let first = events.phase(&phase(done, until), cluster.apply(&part)).await?;
            let changed = first.changed.len();
            events.info(format!("{changed} resources changed, {} as declared", first.unchanged));
        }
        if until != ready() {
            return Ok(());
        }
        super::second_run(self.work, cluster).await?;
        match self.proof {
            Some(proof) => proof.of(self.work, cluster, self.boot.logs).await,
            None => Ok(()),
        }
    }
}

/// All of it in one go is just `provision`.
fn phase(done: Stage, until: Stage) -> String {
    match done == roles::Stage::Booted.into() && until == ready() {
        true => "provision".into(),
        false => format!("provision {until}"),
    }
}
