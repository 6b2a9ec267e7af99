//! Layers with a real guest: kept at each stage of a plan, and taken up again.

use super::test;
use crate::bench::{Bench, run};
use crate::registry::Test;
use stackproof::engine::apply::Engine;
use stackproof::engine::journal::Journal;
use stackproof::engine::plan::{Plan, Stage, Step};
use stackproof::engine::resources::File;
use stackproof::engine::transport::Shell;
use stackproof::error::Result;
use stackproof::lab::checkpoint::{After, Notes, Platform};
use stackproof::lab::spec::LabSpec;
use stackproof::lab::{BootImage, Lab};
use stackproof::layers::budget::Space;
use stackproof::layers::lab::{Image, inputs};
use stackproof::layers::{Climb, Layers, Rung, Site, rungs};
use stackproof::wait::Death;
use std::path::Path;

pub const TESTS: &[Test] =
    &[test("layers::one_changed_value_is_run_again_from_there_and_only_from_there", 1, || {
        run(one_changed_value())
    })];

const BOOTED: Stage = Stage { rank: 0, name: "booted" };
const FIRST: Stage = Stage { rank: 1, name: "first" };
const SECOND: Stage = Stage { rank: 2, name: "second" };
const READY: Stage = Stage { rank: 3, name: "ready" };

/// A role a stage, each with one file.
fn plan(first: &str, second: &str) -> Plan {
    let step = |stage: Stage, text: &str| {
        let file = File::new(format!("/srv/{stage}"), format!("{text}\n"));
        Step::new(stage.name, "a").with(file).stage(stage)
    };
    Plan { steps: vec![step(FIRST, first), step(SECOND, second).after("first")] }
}

struct Micro<'a> {
    bench: &'a Bench,
    spec: &'a LabSpec,
    values: (&'a str, &'a str),
    /// What was done, in order.
    did: Vec<String>,
}

impl Site for Micro<'_> {
    type Lab = Lab;

    async fn boot(&mut self) -> Result<Lab> {
        self.did.push("boot".into());
        self.bench.start_lab(self.spec, &self.bench.patience).await
    }

    async fn restore(&mut self, _stage: Stage, checkpoint: &Path) -> Result<Lab> {
        self.did.push("restore".into());
        let bench = self.bench;
        let (options, redactor) = (&bench.options, &bench.redactor);
        Ok(Lab::restore(checkpoint, options, &bench.patience, redactor).await?.lab)
    }

    async fn advance(&mut self, lab: &mut Lab, done: Stage, until: Stage) -> Result<()> {
        let part = plan(self.values.0, self.values.1).between(Some(done), until);
        let node = self.bench.engine_node(lab, &lab.nodes()[0])?;
        let journal = Journal::none(self.bench.redactor.clone());
        let engine = Engine::new(vec![node], self.bench.patience.clone(), journal);
        let report = engine.apply(part, &Death::never()).await?;
        self.did.extend(report.changed.into_iter().map(|c| c.resource));
        Ok(())
    }

    async fn slim(&mut self, _lab: &mut Lab) -> Result<()> {
        Ok(())
    }

    fn size(&self, lab: &Lab) -> Result<u64> {
        lab.checkpoint_size()
    }

    fn death(&self, lab: &Lab) -> Option<String> {
        lab.death().cause()
    }

    async fn checkpoint(&mut self, lab: &mut Lab, into: &Path) -> Result<()> {
        lab.checkpoint(into, Notes::default(), After::GoOn, &self.bench.patience).await.map(drop)
    }
}

/// What was done to bring a lab to its last stage, and the files as the guest has them then.
async fn climb(
    bench: &Bench,
    layers: &Layers,
    values: (&str, &str),
) -> Result<(Vec<String>, String)> {
    let spec = LabSpec::parse("micro.toml".as_ref(), &crate::bench::lab("micro", &["a"]))?;
    let rungs = rungs_of(bench, &spec, values)?;
    let climb = Climb {
        layers: Some(layers),
        rungs: &rungs,
        lab: &spec.name,
        memory: spec.memory(),
        space: Space { max: Some(4 << 30), keep_free: 0 },
        events: &bench.patience.events,
    };
    let mut site = Micro { bench, spec: &spec, values, did: Vec::new() };
    let way = climb.climb(&mut site).await?;
    let node = &way.lab.nodes()[0];
    let ssh: &dyn Shell = &bench.ssh(&way.lab, node)?;
    let seen = bench.ask(ssh, node, "cat /srv/first /srv/second").await?;
    Ok((site.did, seen))
}

fn rungs_of(bench: &Bench, spec: &LabSpec, (first, second): (&str, &str)) -> Result<Vec<Rung>> {
    let platform = Platform::here(&bench.options.hypervisor, bench.options.accel)?;
    let image = |_: &str| {
        let boot: BootImage = bench.image.clone();
        Some(Image { content: "probe-guest".into(), boot })
    };
    let lab = inputs(spec, &platform, &bench.options, image)?;
    Ok(rungs(lab, &[BOOTED, FIRST, SECOND, READY], &plan(first, second)))
}

async fn one_changed_value() -> Result<()> {
    let bench = Bench::new().await?;
    let layers = Layers::open(&bench.root().join("store"))?;

    let (did, seen) = climb(&bench, &layers, ("1", "1")).await?;
    assert_eq!(did, ["boot", "file /srv/first", "file /srv/second"]);
    assert!(seen == "1\n1", "{seen}");

    // Nothing changed: nothing is done, on the node that was there before.
    let (did, seen) = climb(&bench, &layers, ("1", "1")).await?;
    assert_eq!(did, ["restore"]);
    assert!(seen == "1\n1", "{seen}");

    // A value of the second role: only that role is run again, from the layer before it.
    let (did, seen) = climb(&bench, &layers, ("1", "2")).await?;
    assert_eq!(did, ["restore", "file /srv/second"]);
    assert!(seen == "1\n2", "{seen}");

    // A value of the first: both are, and the boot is not.
    let (did, seen) = climb(&bench, &layers, ("2", "2")).await?;
    assert_eq!(did, ["restore", "file /srv/first", "file /srv/second"]);
    assert!(seen == "2\n2", "{seen}");

    bench.assert_nothing_left();
    Ok(())
}
