use super::*;
use crate::event::Event;
use crate::layers::inputs::{Inputs, Key};
use std::fs;
use tokio::sync::mpsc::UnboundedReceiver;

/// A lab is the list of what was done to it; its checkpoint is that list in a file.
#[derive(Default)]
struct Fake {
    /// What was asked of the site, in order.
    did: Vec<String>,
    fails: Option<(&'static str, Kind)>,
    /// Of the failure.
    cause: Option<FailureCause>,
    /// A failure is nobody's fault.
    blameless: bool,
    /// A machine dies of its failure.
    deadly: bool,
    dead: bool,
    /// The bytes of a lab that has worked and was not slimmed since.
    fat: u64,
    slim: bool,
    /// Who it is and the inputs of its stages, where a lab shall say who booted it and which inputs
    /// it went through.
    whose: Option<(usize, [u32; 4])>,
}

impl Fake {
    fn act(&mut self, what: String) -> Result<()> {
        let fails = self.fails.filter(|(on, _)| what.starts_with(on));
        if !what.starts_with("slim") {
            self.slim = false;
            self.did.push(what);
        }
        self.dead |= self.deadly && fails.is_some();
        fails.map_or(Ok(()), |(on, kind)| {
            let error = Error::new(kind, format!("{on} failed"));
            let error = if self.blameless { error.blameless() } else { error };
            Err(match self.cause {
                // As it comes from below.
                Some(cause) => {
                    Error::new(kind, format!("{on} failed")).because(error.caused_by(cause))
                }
                None => error,
            })
        })
    }
}

impl Site for Fake {
    type Lab = Vec<String>;

    async fn boot(&mut self) -> Result<Vec<String>> {
        self.act("boot".into())?;
        Ok(vec![self.whose.map_or("booted".into(), |(who, _)| who.to_string())])
    }
    async fn restore(&mut self, _stage: Stage, checkpoint: &Path) -> Result<Vec<String>> {
        let text = fs::read_to_string(checkpoint.join("lab")).unwrap();
        let lab: Vec<String> = text.lines().map(str::to_owned).collect();
        self.act(format!("restore {}", lab.last().unwrap()))?;
        Ok(lab)
    }
    async fn advance(&mut self, lab: &mut Vec<String>, done: Stage, until: Stage) -> Result<()> {
        self.act(format!("{done} to {until}"))?;
        match self.whose {
            Some((_, values)) => lab.extend(
                (done.rank + 1..=until.rank).map(|n| format!("{}={}", NAMES[n], values[n])),
            ),
            None => lab.push(until.name.into()),
        }
        Ok(())
    }
    async fn slim(&mut self, lab: &mut Vec<String>) -> Result<()> {
        self.act(format!("slim {}", lab.last().unwrap()))?;
        self.slim = true;
        Ok(())
    }
    fn size(&self, lab: &Vec<String>) -> Result<u64> {
        Ok(lab.len() as u64 * 4096 + if self.slim { 0 } else { self.fat })
    }
    fn death(&self, _lab: &Vec<String>) -> Option<String> {
        self.dead.then(|| "a was killed".into())
    }
    async fn checkpoint(&mut self, lab: &mut Vec<String>, into: &Path) -> Result<()> {
        self.act(format!("keep {}", lab.last().unwrap()))?;
        fs::create_dir(into).unwrap();
        fs::write(into.join("lab"), lab.join("\n")).unwrap();
        Ok(())
    }
}

const NAMES: [&str; 4] = ["booted", "keystone", "nova", "ready"];

/// The rungs of a cloud in which `values` are the inputs of the stages.
fn rungs(values: [u32; 4]) -> Vec<Rung> {
    let mut all = Inputs::default();
    let mut before: Option<Key> = None;
    let mut rungs = Vec::new();
    for (rank, name) in NAMES.into_iter().enumerate() {
        let mut own = Inputs::default();
        if let Some(value) = values.get(rank) {
            own.set(format!("{name}: conf"), value.to_string());
        }
        let key = own.key(name, before.as_ref());
        all.extend(own);
        before = Some(key.clone());
        rungs.push(Rung { stage: Stage { rank, name }, key, inputs: all.clone() });
    }
    rungs
}

struct Bench {
    _dir: Option<tempfile::TempDir>,
    layers: Layers,
    events: Events,
    told: UnboundedReceiver<crate::event::Stamped>,
    max: Option<u64>,
    /// Of the lab, in bytes: what a stage is thought to take that was never kept.
    memory: u64,
}

impl Bench {
    fn new() -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let bench = Bench::at(dir.path());
        Bench { _dir: Some(dir), ..bench }
    }
    /// On layers that others use too.
    fn at(store: &Path) -> Bench {
        let layers = Layers::open(store).unwrap();
        let (events, told) = Events::channel();
        Bench { _dir: None, layers, events, told, max: None, memory: 1 << 20 }
    }
    fn climb<'a>(&'a self, rungs: &'a [Rung], layers: bool) -> Climb<'a> {
        Climb {
            layers: layers.then_some(&self.layers),
            rungs,
            lab: "l",
            memory: self.memory,
            // How full this host's disk is must not matter.
            space: Space { max: Some(self.max.unwrap_or(1 << 30)), keep_free: 0 },
            events: &self.events,
        }
    }
    async fn go(&self, values: [u32; 4]) -> (Vec<String>, Result<Way<Vec<String>>>) {
        self.go_with(values, None).await
    }
    async fn go_with(
        &self,
        values: [u32; 4],
        fails: Option<(&'static str, Kind)>,
    ) -> (Vec<String>, Result<Way<Vec<String>>>) {
        let (rungs, mut site) = (rungs(values), Fake { fails, ..Fake::default() });
        let out = self.climb(&rungs, true).climb(&mut site).await;
        (site.did, out)
    }
    /// A run that finds damaged files where it does `on`.
    async fn go_damaged(&self, on: &'static str) -> (Vec<String>, Result<Way<Vec<String>>>) {
        let cause = Some(FailureCause::FilesDamaged);
        let fails = Some((on, Kind::Input));
        let (rungs, mut site) = (rungs([1; 4]), Fake { fails, cause, ..Fake::default() });
        let out = self.climb(&rungs, true).climb(&mut site).await;
        (site.did, out)
    }
    fn said(&mut self) -> String {
        let mut all = String::new();
        while let Ok(stamped) = self.told.try_recv() {
            if let Event::Note { level, text } = stamped.event {
                all += &format!("{level:?}: {text}\n");
            }
        }
        all
    }
}

#[tokio::test]
async fn the_first_run_boots_and_keeps_and_the_second_begins_from_the_last_layer() {
    let mut bench = Bench::new();
    let (did, way) = bench.go([1, 1, 1, 1]).await;
    assert!(way.unwrap().from.is_none());
    assert_eq!(
        did,
        [
            "boot",
            "keep booted",
            "booted to keystone",
            "keep keystone",
            "keystone to nova",
            "keep nova",
            // Nothing is kept between: one advance.
            "nova to ready",
            "keep ready",
        ]
    );
    assert!(bench.said().contains("booting: no layer serves (booted: there is no layer of it)"));
    let (did, way) = bench.go([1, 1, 1, 1]).await;
    assert_eq!(did, ["restore ready"]);
    let way = way.unwrap();
    assert_eq!(way.from.as_ref().unwrap().0.name, "ready");
    assert_eq!(way.lab, ["booted", "keystone", "nova", "ready"]);
    assert!(!bench.said().contains("not deeper"));
}

/// As processes do: each opens the store itself, on a thread of its own. Their inputs differ from the
/// second stage or the last one on, and there is room for some of the layers only, so that layers go
/// while others are made and restored.
#[test]
fn runs_at_once_share_layers_and_each_ends_with_what_its_own_inputs_say() {
    let dir = tempfile::tempdir().unwrap();
    let run = |who: usize, values: [u32; 4]| {
        let mut bench = Bench::at(dir.path());
        (bench.memory, bench.max) = (1 << 14, Some(1 << 17));
        let mut site = Fake { whose: Some((who, values)), ..Fake::default() };
        let rungs = rungs(values);
        let climb = bench.climb(&rungs, true);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let way = runtime.block_on(climb.climb(&mut site)).unwrap();
        let wanted: Vec<_> = (1..4).map(|n| format!("{}={}", NAMES[n], values[n])).collect();
        assert_eq!(way.lab[1..], wanted, "{values:?}, from {:?}", way.from);
        let from = way.from.map_or(0, |(stage, _)| stage.rank);
        Seen {
            others: way.lab[0] != who.to_string(),
            deep: from == 3,
            partial: from == 1 || from == 2,
            evicted: bench.said().contains("removed the layer"),
        }
    };
    let seen: Vec<Seen> = std::thread::scope(|scope| {
        let lanes: Vec<_> = (0..6)
            .map(|who| {
                let (run, n) = (&run, who as u32);
                let each = (0..30).map(move |i| run(who, [1, (n + i) % 2, 1, n % 3]));
                scope.spawn(move || each.collect::<Vec<_>>())
            })
            .collect();
        lanes.into_iter().flat_map(|lane| lane.join().unwrap()).collect()
    });
    // Else nothing was shown.
    assert!(seen.iter().any(|s| s.others), "nobody used another's layer");
    assert!(seen.iter().any(|s| s.deep), "nobody began at the end");
    assert!(seen.iter().any(|s| s.partial), "nobody began in the middle");
    assert!(seen.iter().any(|s| s.evicted), "no layer made room for another");
    let layers = Layers::open(dir.path()).unwrap();
    assert!(layers.all().unwrap().iter().all(|l| l.about.stage != "?"));
    assert_eq!(layers.broken_bytes(), 0, "a layer was put aside as broken");
    assert_eq!(fs::read_dir(layers.root().join(".tmp")).unwrap().count(), 0);
}

/// What happened in one of many runs.
struct Seen {
    others: bool,
    deep: bool,
    partial: bool,
    evicted: bool,
}

#[tokio::test]
async fn one_changed_stage_begins_from_the_last_layer_before_it_and_says_what_changed() {
    let mut bench = Bench::new();
    bench.go([1, 1, 1, 1]).await.1.unwrap();
    bench.said();
    let (did, _) = bench.go([1, 1, 2, 1]).await;
    assert_eq!(
        did,
        ["restore keystone", "keystone to nova", "keep nova", "nova to ready", "keep ready"]
    );
    let said = bench.said();
    assert!(said.contains("restoring the layer keystone"), "{said}");
    assert!(said.contains("not deeper: nova: nova: conf: 1 -> 2"), "{said}");
    // And back again: the layers of before are still there.
    assert_eq!(bench.go([1, 1, 1, 1]).await.0, ["restore ready"]);
}

#[tokio::test]
async fn cold_neither_uses_layers_nor_makes_any() {
    let mut bench = Bench::new();
    bench.go([1, 1, 1, 1]).await.1.unwrap();
    bench.said();
    let (rungs, mut site) = (rungs([1, 1, 1, 1]), Fake::default());
    bench.climb(&rungs, false).climb(&mut site).await.unwrap();
    assert_eq!(site.did, ["boot", "booted to ready"]);
    assert!(bench.said().contains("layers are not used"));
    assert_eq!(bench.layers.all().unwrap().len(), 4);
}

#[tokio::test]
async fn a_broken_layer_is_told_and_put_aside_and_the_next_one_is_tried() {
    let mut bench = Bench::new();
    bench.go([1, 1, 1, 1]).await.1.unwrap();
    bench.said();
    let (did, way) = bench.go_damaged("restore ready").await;
    assert_eq!(did, ["restore ready", "restore nova", "nova to ready", "keep ready"]);
    assert_eq!(way.unwrap().from.unwrap().0.name, "nova");
    let said = bench.said();
    assert!(said.contains("Warning: the layer ready ("), "{said}");
    assert!(said.contains("restore ready failed: restore ready failed; it was moved to"), "{said}");
    assert!(bench.layers.broken_bytes() > 0);
}

#[tokio::test]
async fn what_was_put_aside_goes_where_its_room_is_needed() {
    let mut bench = Bench::new();
    bench.go([1, 1, 1, 1]).await.1.unwrap();
    bench.memory = 1 << 14;
    // Room for the four that are there, and not for the broken one beside them.
    bench.max = Some(super::taken(&bench.layers.all().unwrap()));
    bench.go_damaged("restore ready").await.1.unwrap();
    let said = bench.said();
    assert!(said.contains("removed the layer that was put aside as broken"), "{said}");
    assert!(said.contains("kept the layer ready"), "{said}");
    assert_eq!(bench.layers.broken_bytes(), 0);
}

#[tokio::test]
async fn two_broken_layers_are_a_defect_and_no_third_is_touched() {
    let bench = Bench::new();
    bench.go([1, 1, 1, 1]).await.1.unwrap();
    let (did, out) = bench.go_damaged("restore").await;
    assert_eq!(did, ["restore ready", "restore nova"]);
    let e = out.unwrap_err();
    assert!(e.message().contains("the layer nova"), "{e}");
    assert!(e.message().contains("after that of ready"), "{e}");
    assert!(e.hint_text().unwrap().contains("--cold"), "{e:?}");
    assert_eq!(bench.layers.all().unwrap().len(), 3);
}

/// What happened once: a clock that was set too late, on a slow machine.
#[tokio::test]
async fn failed_restore_of_whole_files_leaves_the_layer() {
    for kind in [Kind::Lab, Kind::Input, Kind::Provision, Kind::Proof, Kind::Internal] {
        let mut bench = Bench::new();
        bench.go([1, 1, 1, 1]).await.1.unwrap();
        bench.said();
        let (did, way) = bench.go_with([1, 1, 1, 1], Some(("restore ready", kind))).await;
        assert_eq!(did, ["restore ready", "restore nova", "nova to ready"]);
        assert_eq!(way.unwrap().from.unwrap().0.name, "nova");
        let said = bench.said();
        assert!(said.contains("restore ready failed; its files are whole and stay"), "{said}");
        assert_eq!((bench.layers.all().unwrap().len(), bench.layers.broken_bytes()), (4, 0));
        let (did, _) = bench.go([1, 1, 1, 1]).await;
        assert_eq!(did, ["restore ready"], "the next run takes it");
        // Two of them are a defect; both stay.
        let (did, out) = bench.go_with([1, 1, 1, 1], Some(("restore", kind))).await;
        assert_eq!(did, ["restore ready", "restore nova"]);
        assert_eq!(out.unwrap_err().kind(), kind);
        assert_eq!((bench.layers.all().unwrap().len(), bench.layers.broken_bytes()), (4, 0));
    }
}

#[tokio::test]
async fn what_says_nothing_against_a_layer_leaves_it_where_it_is() {
    for kind in [Kind::Host, Kind::Interrupted] {
        let bench = Bench::new();
        bench.go([1, 1, 1, 1]).await.1.unwrap();
        let (did, out) = bench.go_with([1, 1, 1, 1], Some(("restore", kind))).await;
        assert_eq!((did.len(), out.unwrap_err().kind()), (1, kind));
        assert_eq!(bench.layers.all().unwrap().len(), 4);
    }
}

#[tokio::test]
async fn a_failure_after_a_restore_names_the_layer_and_the_way_without() {
    let bench = Bench::new();
    bench.go([1, 1, 1, 1]).await.1.unwrap();
    let (_, out) = bench.go_with([1, 1, 1, 2], Some(("nova to", Kind::Provision))).await;
    let e = out.unwrap_err();
    assert!(e.evidence_lines()[0].contains("began from the layer nova ("), "{e:?}");
    assert!(e.evidence_lines()[0].contains("--cold"), "{e:?}");
}

#[tokio::test]
async fn without_room_the_run_goes_on_and_says_so() {
    let mut bench = Bench::new();
    bench.max = Some(0);
    let (did, way) = bench.go([1, 1, 1, 1]).await;
    way.unwrap();
    assert_eq!(did, ["boot", "booted to ready"]);
    let said = bench.said();
    assert!(
        said.contains("Warning: no room for the layers booted, keystone, nova, ready"),
        "{said}"
    );
    // With room for one the last is kept, as the one that saves most.
    bench.max = Some(630_000);
    let (did, _) = bench.go([1, 1, 1, 1]).await;
    assert_eq!(did, ["boot", "booted to ready", "keep ready"]);
}

#[tokio::test]
async fn layers_that_were_not_used_for_longest_go_for_new_ones() {
    let mut bench = Bench::new();
    bench.go([1, 1, 1, 1]).await.1.unwrap();
    let taken = |bench: &Bench| {
        let all = bench.layers.all().unwrap();
        super::super::usage::Usage::together(all.iter().map(|l| &l.usage)).bytes()
    };
    // Room for what is there and half a layer more.
    bench.max = Some(taken(&bench) + taken(&bench) / 8);
    bench.go([1, 2, 1, 1]).await.1.unwrap();
    assert!(taken(&bench) <= bench.max.unwrap());
    assert_eq!(bench.go([1, 2, 1, 1]).await.0, ["restore ready"]);
}

#[tokio::test]
async fn a_lab_that_dies_while_it_is_kept_ends_the_run_with_its_stage() {
    let bench = Bench::new();
    let rungs = rungs([1, 1, 1, 1]);
    let mut site = Fake { fails: Some(("keep nova", Kind::Lab)), deadly: true, ..Fake::default() };
    let e = bench.climb(&rungs, true).climb(&mut site).await.unwrap_err();
    assert!(e.message().starts_with("keeping the layer nova: keep nova failed"), "{e}");
    let stages: Vec<_> = bench.layers.all().unwrap().iter().map(|l| l.about.rank).collect();
    assert_eq!(stages.len(), 2, "what was kept before it stays: {stages:?}");
}

#[tokio::test]
async fn a_lab_that_lives_goes_on_without_the_layer_that_could_not_be_kept() {
    for (fails, did) in [("keep nova", "keep nova"), ("slim nova", "keystone to nova")] {
        let mut bench = Bench::new();
        let (all, way) = bench.go_with([1, 1, 1, 1], Some((fails, Kind::Lab))).await;
        assert_eq!(way.unwrap().lab.last().unwrap(), "ready");
        let last: Vec<_> = all.iter().rev().take(3).rev().map(String::as_str).collect();
        assert_eq!(last, [did, "nova to ready", "keep ready"]);
        let said = bench.said();
        assert!(said.contains("Warning: the layer nova is not kept: "), "{said}");
        assert!(said.contains(&format!("{fails} failed")), "{said}");
    }
}

#[tokio::test]
async fn the_size_of_a_lab_is_asked_when_it_is_slim() {
    let mut bench = Bench::new();
    // Room for all layers, and for none of a lab that keeps what it does not need.
    bench.max = Some(4 << 20);
    let rungs = rungs([1, 1, 1, 1]);
    let mut site = Fake { fat: 1 << 30, ..Fake::default() };
    bench.climb(&rungs, true).climb(&mut site).await.unwrap();
    assert_eq!(bench.layers.all().unwrap().len(), 4, "{:?} {}", site.did, bench.said());
}

#[tokio::test]
async fn a_layer_is_not_accused_of_a_busy_machine_another_version_or_an_image_that_is_elsewhere() {
    for (kind, blameless) in [(Kind::Lab, true), (Kind::Input, true), (Kind::Image, false)] {
        let mut bench = Bench::new();
        bench.go([1, 1, 1, 1]).await.1.unwrap();
        bench.said();
        let rungs = rungs([1, 1, 1, 1]);
        let fails = Some(("restore", kind));
        let mut site = Fake { fails, blameless, ..Fake::default() };
        bench.climb(&rungs, true).climb(&mut site).await.unwrap();
        let tried = ["restore ready", "restore nova", "restore keystone", "restore booted"];
        assert_eq!(site.did[..4], tried);
        assert_eq!(site.did[4], "boot");
        let said = bench.said();
        assert!(said.contains("which says nothing against it: restore failed"), "{said}");
        assert_eq!((bench.layers.all().unwrap().len(), bench.layers.broken_bytes()), (4, 0));
    }
}
