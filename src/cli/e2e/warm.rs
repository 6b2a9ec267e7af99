//! From the deepest layer that serves to a cloud that is ready.

use super::rooms::{self, Boot, Cluster};
use super::topology::{self, Networks};
use super::{Proof, evidence, second_run};
use crate::cli::session::Work;
use crate::cluster::images::of_disk;
use crate::engine::plan::{Plan, Stage};
use crate::error::{Context, Error, Kind, Result};
use crate::lab::accel::{self, Accel};
use crate::lab::checkpoint::Platform;
use crate::lab::hypervisor::Hypervisor;
use crate::lab::spec::LabSpec;
use crate::lab::{BOOTS, BootImage, LabOptions};
use crate::layers::budget::Space;
use crate::layers::lab::Image;
use crate::layers::{Climb, Layers, Rung, Site, Way, lab, rungs};
use crate::roles;
use crate::roles::topology::{Login, NodeKey};
use crate::secret::Secret;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

/// The list of what was built, beside a built disk.
const SUMS: &str = "SHA256SUMS";

/// The keys of every stage of a cloud on the lab `spec`. An image that is not among `images` is not
/// in the store, and no layer has a key that is made from that.
pub fn rungs_of(
    spec: &LabSpec,
    hypervisor: &Hypervisor,
    accel: Accel,
    nested: Option<bool>,
    images: &BTreeMap<String, BootImage>,
) -> Result<Vec<Rung>> {
    let plan = symbolic_plan(spec, accel, nested)?;
    let images: BTreeMap<&str, Image> = images
        .iter()
        .map(|(name, boot)| Ok((name.as_str(), image(boot)?)))
        .collect::<Result<_>>()?;
    let absent = || Image { content: "not in the store".into(), boot: of_disk(PathBuf::new()) };
    let of = |name: &str| Some(images.get(name).cloned().unwrap_or_else(absent));
    let platform = Platform::here(hypervisor, accel)?;
    let (run_root, slots, hypervisor) = (PathBuf::new(), PathBuf::new(), hypervisor.clone());
    let options =
        LabOptions { run_root, slots, hypervisor, accel, boots: BOOTS, keep: false, logs: None };
    let made = lab::inputs(spec, &platform, &options, of)?;
    Ok(rungs(made, &roles::Stage::ORDER.map(Into::into), &plan))
}

/// The plan of a cloud on the lab `spec`, which refuses a lab that can carry none. `nested` is the
/// user's choice, if any.
pub fn symbolic_plan(spec: &LabSpec, accel: Accel, nested: Option<bool>) -> Result<Plan> {
    // Keys are no part of a plan that is symbolic.
    let none = NodeKey { private: Secret::new(""), public: String::new() };
    let user = crate::lab::seed::LOGIN.into();
    let login = Login { user, authorized_keys: Vec::new(), node_key: none };
    let nested = accel::nested(accel, nested)?;
    let networks = Networks::of(spec)?;
    topology::subnets(spec, &networks)?;
    let topology = topology::of(spec, &networks, login, nested, |_| String::new())?;
    roles::symbolic_plan(&topology)
}

/// An image by its content: a fetched file is called by its digest, what was built by the digest of
/// its inputs, which says nothing of the packages that were new on that day.
fn image(boot: &BootImage) -> Result<Image> {
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let folder = boot.disk.parent().unwrap_or(Path::new(""));
    let sums = folder.join(SUMS);
    let content = match std::fs::read(&sums) {
        Ok(list) => {
            let digest = crate::engine::canonical::digest(list);
            format!("{} with {}", name(folder), &digest[..12])
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => name(&boot.disk),
        Err(e) => return Err(e).doing(Kind::Host, || format!("cannot read {}", sums.display())),
    };
    Ok(Image { content, boot: boot.clone() })
}

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
        let second = second_run(work, &way.lab).await;
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
        self.work.events.phase("boot", rooms::boot(self.work, self.spec, &self.boot)).await
    }

    async fn restore(&mut self, stage: Stage, checkpoint: &Path) -> Result<Cluster> {
        let restored = async {
            let mut cluster = rooms::restore(self.work, &self.boot, checkpoint).await?;
            cluster.wake(self.work, stage >= roles::Stage::Keystone.into()).await?;
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
        cluster.slim(self.work).await
    }

    fn size(&self, cluster: &Cluster) -> Result<u64> {
        cluster.size()
    }

    fn death(&self, cluster: &Cluster) -> Option<String> {
        cluster.death()
    }

    async fn checkpoint(&mut self, cluster: &mut Cluster, into: &Path) -> Result<()> {
        cluster.checkpoint(self.work, into).await
    }
}

impl Ascent<'_> {
    async fn provision(&self, cluster: &Cluster, done: Stage, until: Stage) -> Result<()> {
        let events = &self.work.events;
        let part = cluster.part(self.work, done, until)?;
        if !part.steps.is_empty() {
            let first = events.phase(&phase(done, until), cluster.apply(&part)).await?;
            let changed = first.changed.len();
            events.info(format!("{changed} resources changed, {} as declared", first.unchanged));
        }
        if until != ready() {
            return Ok(());
        }
        second_run(self.work, cluster).await?;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn rungs(images: &BTreeMap<String, BootImage>) -> Vec<Rung> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let spec = LabSpec::load(&root.join("vmtests/labs/two-node.toml")).unwrap();
        let (qemu, img) = ("qemu".into(), "qemu-img".into());
        let (version, release) = ((10, 0, 2), "10.0.2".into());
        let hypervisor = Hypervisor { qemu, img, version, release, sandbox: true };
        rungs_of(&spec, &hypervisor, Accel::Tcg, None, images).unwrap()
    }

    fn built(folder: &Path, sums: &str) -> BTreeMap<String, BootImage> {
        std::fs::write(folder.join(SUMS), sums).unwrap();
        let kernel = Some(folder.join("kernel"));
        let boot = BootImage { kernel, ..of_disk(folder.join("disk.qcow2")) };
        [("debian-13-node".to_owned(), boot)].into()
    }

    #[test]
    fn an_image_built_anew_from_the_same_recipe_is_another_image() {
        let dir = tempfile::tempdir().unwrap();
        let before = rungs(&built(dir.path(), "one"));
        assert_eq!(before, rungs(&built(dir.path(), "one")));
        let after = rungs(&built(dir.path(), "two"));
        assert!(before.iter().zip(&after).all(|(a, b)| a.key != b.key));
        let changes = after[0].inputs.changes_since(&before[0].inputs);
        assert!(changes[0].starts_with("image debian-13-node: "), "{changes:?}");
        assert_eq!(changes.len(), 1);
    }

    #[test]
    fn without_the_image_there_are_keys_that_no_layer_has() {
        let dir = tempfile::tempdir().unwrap();
        let (there, absent) = (rungs(&built(dir.path(), "one")), rungs(&BTreeMap::new()));
        assert!(there.iter().zip(&absent).all(|(a, b)| a.key != b.key));
    }

    #[test]
    fn a_fetched_image_is_called_by_its_digest() {
        let image = image(&of_disk("/store/sha256/ab/abcd".into())).unwrap();
        assert_eq!(image.content, "abcd");
    }
}
