//! From the deepest layer that serves to the last stage, keeping layers on the way.

use super::budget::{self, Run, Space, Wanted};
use super::rungs::Rung;
use super::store::{Held, Layer, Layers, Made};
use super::why::{Standing, standing};
use crate::engine::plan::Stage;
use crate::error::{Error, FailureCause, Kind, Result};
use crate::event::Events;
use crate::lab::spec::Bytes;
use std::path::{Path, PathBuf};

/// What a run does with its lab. The stages are those of the rungs.
pub trait Site: Send {
    type Lab: Send;

    /// From nothing to the first stage.
    fn boot(&mut self) -> impl Future<Output = Result<Self::Lab>> + Send;

    /// A lab as it stood at `stage`. The layer is put aside for an error whose cause is
    /// [`FailureCause::FilesDamaged`] and for no other. One of the kind [`Kind::Host`] or
    /// [`Kind::Interrupted`] ends the run; after any other the run begins from an earlier stage.
    fn restore(
        &mut self,
        stage: Stage,
        checkpoint: &Path,
    ) -> impl Future<Output = Result<Self::Lab>> + Send;

    /// From a stage to a later one, all between them included.
    fn advance(
        &mut self,
        lab: &mut Self::Lab,
        done: Stage,
        until: Stage,
    ) -> impl Future<Output = Result<()>> + Send;

    /// Has the lab give back what it keeps and does not need. Its size is asked afterwards.
    fn slim(&mut self, lab: &mut Self::Lab) -> impl Future<Output = Result<()>> + Send;

    /// What a checkpoint of the lab would take now at most, in bytes.
    fn size(&self, lab: &Self::Lab) -> Result<u64>;

    /// Why a machine of the lab is dead, where one is.
    fn death(&self, lab: &Self::Lab) -> Option<String>;

    /// Keeps the lab as it stands as a folder that is not there yet; the lab goes on.
    fn checkpoint(
        &mut self,
        lab: &mut Self::Lab,
        into: &Path,
    ) -> impl Future<Output = Result<()>> + Send;
}

/// A run's use of layers.
#[derive(Debug)]
pub struct Climb<'a> {
    /// None neither uses layers nor makes any.
    pub layers: Option<&'a Layers>,
    /// From the first stage, which is reached by booting, to the last.
    pub rungs: &'a [Rung],
    pub lab: &'a str,
    /// Bytes, of all machines together: for the size of layers of which nothing is known.
    pub memory: u64,
    pub space: Space,
    pub events: &'a Events,
}

/// A lab at the last stage, and how it came there.
#[derive(Debug)]
pub struct Way<L> {
    pub lab: L,
    /// The stage of the layer that it began from, and that layer, which must stay as long as the
    /// lab runs.
    pub from: Option<(Stage, Held)>,
}

impl<L> Way<L> {
    /// To be told with an error that came after a restore: a layer must hide nothing.
    pub fn explain(&self, error: Error) -> Error {
        let Some((stage, held)) = &self.from else { return error };
        error.evidence([format!(
            "this run began from the layer {stage} ({}): --cold tells whether it fails without",
            held.key
        )])
    }
}

impl Climb<'_> {
    pub async fn climb<S: Site>(&self, site: &mut S) -> Result<Way<S::Lab>> {
        let before = self.layers.map(Layers::all).transpose()?.unwrap_or_default();
        let (lab, at, held) = self.start(site, &before).await?;
        let from = held.map(|held| (self.rungs[at].stage, held));
        let mut way = Way { lab, from };
        match self.rest(site, &mut way.lab, at).await {
            Ok(()) => Ok(way),
            Err(e) => Err(way.explain(e)),
        }
    }

    /// The lab at the rung that it begins from.
    async fn start<S: Site>(
        &self,
        site: &mut S,
        before: &[Layer],
    ) -> Result<(S::Lab, usize, Option<Held>)> {
        // The first layer that failed for a reason that may be a defect.
        let mut failed: Option<Stage> = None;
        for (at, rung) in self.rungs.iter().enumerate().rev() {
            let Some(layers) = self.layers else { break };
            let Some(held) = layers.find(&rung.key)? else { continue };
            let why = match self.why_not(at + 1, before) {
                Some(why) => format!("; not deeper: {why}"),
                None => String::new(),
            };
            let told = format!("restoring the layer {} ({}){why}", rung.stage, rung.key);
            self.events.info(told);
            let e = match site.restore(rung.stage, &held.checkpoint()).await {
                Ok(lab) => return Ok((lab, at, Some(held))),
                Err(e) if matches!(e.kind(), Kind::Host | Kind::Interrupted) => return Err(e),
                Err(e) => e,
            };
            let what = format!("the layer {} ({}) did not restore", rung.stage, rung.key);
            if e.is_blameless() || e.kind() == Kind::Image {
                self.events.warning(format!("{what}, which says nothing against it: {e}"));
                continue;
            }
            if let Some(first) = failed {
                // One failure is bad luck; two are a defect, which a third try would hide.
                return Err(e.while_doing(format!("{what}, after that of {first}")).hint(
                    "`--cold` runs without layers, `stackproof cache gc --all` removes them",
                ));
            }
            failed = Some(rung.stage);
            let kept = match e.cause() {
                Some(FailureCause::FilesDamaged) => layers
                    .put_aside(held, &e.to_string())?
                    .map_or(String::new(), |p| format!("; it was moved to {}", p.display())),
                _ => "; its files are whole and stay".into(),
            };
            self.events.warning(format!("{what}: {e}{kept}"));
        }
        match (self.layers, self.why_not(0, before)) {
            (None, _) => self.events.info("booting: layers are not used"),
            (Some(_), why) => {
                self.events.info(format!("booting: no layer serves ({})", why.unwrap_or_default()));
            }
        }
        Ok((site.boot().await?, 0, None))
    }

    /// Why the run begins from no layer of the rung `from` or of a deeper one.
    fn why_not(&self, from: usize, before: &[Layer]) -> Option<String> {
        let standings: Vec<(&Rung, Standing)> =
            self.rungs[from..].iter().map(|r| (r, standing(r, self.lab, before))).collect();
        // The shallowest that changed is the one that all deeper ones fail by.
        let changed = standings.iter().find(|(_, s)| matches!(s, Standing::Changed(_)));
        let (rung, standing) = changed.or(standings.first())?;
        Some(format!("{}: {}", rung.stage, standing.text()))
    }

    /// From the rung `at` to the last, stopping where a layer is kept.
    async fn rest<S: Site>(&self, site: &mut S, lab: &mut S::Lab, at: usize) -> Result<()> {
        let last = self.rungs.len() - 1;
        // Slim already as it stands: asked for its size, and perhaps kept, before anything is done.
        let mut slim = self.is_new(at)? && self.slimmed(site, lab, at).await?;
        let keep = self.choose(at, site.size(lab)?)?;
        let mut done = at;
        for (i, rung) in self.rungs.iter().enumerate().skip(at) {
            let kept = keep.iter().any(|k| k.key == rung.key);
            if !(kept || i == last) {
                continue;
            }
            if i > done {
                site.advance(lab, self.rungs[done].stage, rung.stage).await?;
                (done, slim) = (i, false);
            }
            if kept && (slim || self.slimmed(site, lab, i).await?) {
                let out = self.keep(site, lab, rung, i == last, &keep).await;
                self.without(site, lab, rung, out)?;
            }
        }
        Ok(())
    }

    /// Whether the lab stands at a rung of which there is no layer.
    fn is_new(&self, at: usize) -> Result<bool> {
        let Some(layers) = self.layers else { return Ok(false) };
        Ok(!layers.all()?.iter().any(|l| l.key == self.rungs[at].key))
    }

    async fn slimmed<S: Site>(&self, site: &mut S, lab: &mut S::Lab, at: usize) -> Result<bool> {
        let out = site.slim(lab).await;
        let slim = out.is_ok();
        self.without(site, lab, &self.rungs[at], out)?;
        Ok(slim)
    }

    /// A cloud that took many minutes is not thrown away for want of its copy: what keeps a layer
    /// from being made ends the run only where the lab itself did not live through it.
    fn without<S: Site>(&self, site: &S, lab: &S::Lab, rung: &Rung, out: Result<()>) -> Result<()> {
        match out {
            Err(e) if e.kind() == Kind::Interrupted || site.death(lab).is_some() => Err(e),
            Err(e) => {
                self.events.warning(format!("the layer {} is not kept: {e}", rung.stage));
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// The layers to be made from the rung `at` on, where the lab stands and has this size.
    fn choose(&self, at: usize, size: u64) -> Result<Vec<&Rung>> {
        let Some(layers) = self.layers else { return Ok(Vec::new()) };
        let there = layers.all()?;
        let wanted: Vec<Wanted> = self.rungs[at..]
            .iter()
            .filter(|r| !there.iter().any(|l| l.key == r.key))
            .map(|rung| {
                let estimate = || budget::estimate(&there, self.lab, rung.stage.name, self.memory);
                let here = rung.key == self.rungs[at].key;
                Wanted { rung, bytes: if here { size } else { estimate() } }
            })
            .collect();
        let names =
            |rungs: Vec<&Rung>| rungs.iter().map(|r| r.stage.name).collect::<Vec<_>>().join(", ");
        let limit = self.limit(layers, &there)?;
        let all: Vec<&Rung> = wanted.iter().map(|w| w.rung).collect();
        let chosen = budget::choose(&there, self.run(), wanted, limit);
        let not: Vec<&Rung> =
            all.into_iter().filter(|r| !chosen.iter().any(|c| c.key == r.key)).collect();
        if !not.is_empty() {
            self.events.warning(format!(
                "no room for the layers {}: layers may take {} (--layers-max says otherwise)",
                names(not),
                Bytes(limit)
            ));
        }
        Ok(chosen)
    }

    fn run(&self) -> Run<'_> {
        Run { lab: self.lab, rungs: self.rungs }
    }

    fn limit(&self, layers: &Layers, there: &[Layer]) -> Result<u64> {
        Ok(self.space.limit(taken(there), layers.free()?))
    }

    /// What was put aside as broken serves nobody: it goes first where room is needed.
    fn clear_aside(&self, layers: &Layers, there: &[Layer], bytes: u64, limit: u64) -> Result<()> {
        let aside = layers.broken_bytes();
        let wanted = taken(there).saturating_add(aside).saturating_add(bytes);
        let full = layers.free()? < bytes.saturating_add(self.space.keep_free);
        if aside > 0 && (wanted > limit || full) {
            layers.remove_broken()?;
            self.events.detail("removed the layer that was put aside as broken");
        }
        Ok(())
    }

    /// Makes one layer, after what must go for it is gone. Without room the run goes on without.
    async fn keep<S: Site>(
        &self,
        site: &mut S,
        lab: &mut S::Lab,
        rung: &Rung,
        last: bool,
        own: &[&Rung],
    ) -> Result<()> {
        let Some(layers) = self.layers else { return Ok(()) };
        let there = layers.all()?;
        let bytes = site.size(lab)?;
        let own: Vec<_> = own.iter().map(|r| r.key.clone()).collect();
        let skip = |why: String| {
            self.events.warning(format!("the layer {} is not kept: {why}", rung.stage));
            Ok(())
        };
        let limit = self.limit(layers, &there)?;
        self.clear_aside(layers, &there, bytes, limit)?;
        let Some(gone) = budget::evict(&there, Some(self.run()), &own, last, bytes, limit) else {
            return skip(format!("{} are needed, layers may take {}", Bytes(bytes), Bytes(limit)));
        };
        for key in gone {
            if layers.remove(&key)? {
                self.events.detail(format!("removed the layer {key} for that of {}", rung.stage));
            }
        }
        // Some files may be held elsewhere still, and others write too.
        let free = layers.free()?;
        let stays = self.space.keep_free;
        if free < bytes.saturating_add(stays) {
            return skip(format!(
                "{} are needed and {} must stay free, of {}",
                Bytes(bytes),
                Bytes(stays),
                Bytes(free)
            ));
        }
        let checkpoint = move |into: PathBuf| async move { site.checkpoint(lab, &into).await };
        let made = self
            .events
            .phase(&format!("layer {}", rung.stage), layers.make(rung, self.lab, last, checkpoint))
            .await
            .map_err(|e| e.while_doing(format!("keeping the layer {}", rung.stage)))?;
        self.events.info(match made {
            Made::New => format!("kept the layer {} ({})", rung.stage, rung.key),
            Made::There => format!("the layer {} is there already", rung.stage),
            Made::Elsewhere => format!("another run is making the layer {}", rung.stage),
        });
        Ok(())
    }
}

/// Bytes, files that several have counted once.
fn taken(layers: &[Layer]) -> u64 {
    super::usage::Usage::together(layers.iter().map(|l| &l.usage)).bytes()
}

#[cfg(test)]
mod tests;
