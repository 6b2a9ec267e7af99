use super::*;
use crate::engine::inventory::Family;
use crate::engine::resources::testing::{Root, root};
use crate::engine::resources::{Directory, File, Ini};
use crate::engine::transport::{Boxed, Local, Output, Shell, Watch};
use crate::error::Kind;
use crate::event::Events;
use crate::secret::{Redactor, Secret};
use crate::wait::{Life, Speed};
use bytes::Bytes;
use std::sync::Mutex;

/// A node on this host whose connection can be made to fail.
#[derive(Debug)]
struct Faulty {
    local: Local,
    /// Called with the number of the call (from 1) and its script; answers what goes wrong.
    fault: fn(usize, &str) -> Fault,
    calls: Mutex<usize>,
}

#[derive(Debug, PartialEq)]
enum Fault {
    None,
    /// Lost before anything ran.
    Lost,
    /// It ran, and its answer was lost.
    LostAfter,
    Hang,
}

impl Faulty {
    fn calls(&self) -> usize {
        *self.calls.lock().unwrap()
    }
}

impl Shell for Faulty {
    fn exec<'a>(
        &'a self,
        argv: &'a [&'a str],
        stdin: Bytes,
        watch: Option<Watch<'a>>,
    ) -> Boxed<'a, Result<Output>> {
        Box::pin(async move {
            let call = {
                let mut calls = self.calls.lock().unwrap();
                *calls += 1;
                *calls
            };
            match (self.fault)(call, &String::from_utf8_lossy(&stdin)) {
                Fault::None => self.local.exec(argv, stdin, watch).await,
                Fault::Lost => Err(ssh::lost("cut")),
                Fault::LostAfter => {
                    self.local.exec(argv, stdin, watch).await?;
                    Err(ssh::lost("cut"))
                }
                Fault::Hang => std::future::pending().await,
            }
        })
    }
}

struct World {
    root: Root,
    shell: Arc<Faulty>,
    engine: Engine,
    life: Life,
}

fn world_with(fault: fn(usize, &str) -> Fault) -> World {
    let root = root();
    let shell = Arc::new(Faulty { local: root.shell.clone(), fault, calls: Mutex::new(0) });
    let (life, death) = Life::new();
    let node = Node::new("n", Family::Debian, shell.clone()).death(death);
    let patience = Patience::new(Speed::new(1.0), Events::silent());
    let redactor = Redactor::default();
    redactor.add(&Secret::new("hunter2hunter2"));
    let journal = Journal::open(root.path("/journal"), redactor).unwrap();
    let engine = Engine::new(vec![node], patience, journal);
    World { root, shell, engine, life }
}

fn world() -> World {
    world_with(|_, _| Fault::None)
}

impl World {
    async fn apply(&self, steps: Vec<Step>) -> Result<Report> {
        self.engine.apply(Plan { steps }, &Death::never()).await
    }
}

/// A resource of shell, for what goes wrong.
#[derive(Debug)]
struct Raw {
    name: &'static str,
    probe: &'static str,
    apply: &'static str,
}

impl Resource for Raw {
    fn id(&self) -> String {
        self.name.into()
    }
    fn probe(&self) -> Script {
        Script::new(self.probe)
    }
    fn judge(&self, seen: &str) -> Verdict {
        match seen {
            "" => Verdict::Same,
            seen => Verdict::Differs(vec![seen.trim().to_owned()]),
        }
    }
    fn apply(&self, _: &str) -> Script {
        Script::new(self.apply)
    }
}

/// Makes the file `name` in the root and writes down when.
fn mark(name: &'static str) -> File {
    File::new(format!("/{name}"), name)
}

#[tokio::test]
async fn a_second_run_changes_nothing_in_one_round_trip() {
    let w = world();
    let steps = || {
        vec![
            Step::new("a", "n")
                .with(Directory::new("/etc/d").mode(0o750))
                .with(Ini::new("/etc/d/x.ini").set("a", "b", "c"))
                .with(Ini::new("/etc/d/y.ini").set("a", "b", "c")),
            Step::new("b", "n").with(mark("late")).after("a"),
        ]
    };
    let first = w.apply(steps()).await.unwrap();
    assert_eq!((first.changed.len(), first.unchanged), (4, 0));
    assert_eq!(first.steps.iter().map(|s| s.changed).collect::<Vec<_>>(), [3, 1]);
    let before = w.shell.calls();
    let second = w.apply(steps()).await.unwrap();
    assert_eq!((second.changed.len(), second.unchanged), (0, 4));
    assert_eq!(w.shell.calls() - before, 1);
    w.root.put("/etc/d/y.ini", "[a]\nb = by hand\n");
    let third = w.apply(steps()).await.unwrap();
    assert_eq!(third.changed.len(), 1);
    assert_eq!(third.changed[0].resource, "ini /etc/d/y.ini");
    assert_eq!(third.changed[0].differences, ["[a] b: by hand -> c"]);
}

#[tokio::test]
async fn a_check_changes_nothing_and_says_what_would_change() {
    let w = world();
    let plan = Plan { steps: vec![Step::new("a", "n").with(mark("x"))] };
    let report = w.engine.check(&plan, &Death::never()).await.unwrap();
    assert_eq!(report.changed[0].differences, ["absent"]);
    assert!(!w.root.path("/x").exists());
}

#[tokio::test]
async fn steps_run_in_their_order_and_independent_ones_at_once() {
    let w = world();
    // Each waits for the other: only two at once can end.
    let meet = |name, apply| {
        Step::new(name, "n").with(Raw { name, probe: GONE[usize::from(name == "q")], apply })
    };
    const GONE: [&str; 2] =
        ["[ -e \"$ROOT/p\" ] || echo absent; true", "[ -e \"$ROOT/q\" ] || echo absent; true"];
    let late = Step::new("late", "n")
        .with(Raw {
            name: "late",
            probe: "[ -e \"$ROOT/late\" ] || echo absent; true",
            apply: "[ -e \"$ROOT/p\" ] && [ -e \"$ROOT/q\" ] && : >\"$ROOT/late\"",
        })
        .after("p")
        .after("q");
    let steps = vec![
        late,
        meet("p", ": >\"$ROOT/p\"; until [ -e \"$ROOT/q\" ]; do sleep 0.02; done"),
        meet("q", ": >\"$ROOT/q\"; until [ -e \"$ROOT/p\" ]; do sleep 0.02; done"),
    ];
    let report = w.apply(steps).await.unwrap();
    assert_eq!(report.changed.last().unwrap().step, "late");
}

#[tokio::test]
async fn a_failed_apply_names_the_resource_the_status_and_its_last_words_without_secrets() {
    let w = world();
    let broken = Raw {
        name: "broken",
        probe: "echo 'is bad'",
        apply: "echo 'no such hunter2hunter2' >&2; exit 7",
    };
    let steps = vec![
        Step::new("a", "n").with(broken),
        Step::new("b", "n").with(mark("b")).after("a"),
        Step::new("c", "n").with(mark("c")).after("b"),
        Step::new("free", "n").with(mark("free")),
    ];
    let e = w.apply(steps).await.unwrap_err();
    assert_eq!(e.kind(), Kind::Provision);
    assert_eq!(e.message(), "step a: broken on n could not be applied: exit status 7");
    assert_eq!(
        e.evidence_lines(),
        ["differed: is bad", "no such [secret]", "skipped, they come after a: b, c"]
    );
    assert!(!w.root.path("/b").exists());
    assert!(w.root.path("/free").exists(), "a step that had begun ends well");
    let journal = w.root.get("/journal");
    assert!(journal.contains("broken: failed with 7") && !journal.contains("hunter2"), "{journal}");
}

#[tokio::test]
async fn what_does_not_converge_is_an_error_with_the_difference() {
    let w = world();
    let never = Raw { name: "never", probe: "echo 'still 1'", apply: "echo tried >&2" };
    let e = w.apply(vec![Step::new("a", "n").with(never)]).await.unwrap_err();
    assert_eq!(
        e.message(),
        "step a: never on n was applied without an error and still differs: still 1"
    );
    assert_eq!(e.evidence_lines(), ["tried"]);
}

#[tokio::test]
async fn resources_that_undo_each_other_are_found_out() {
    let w = world();
    let one = Raw {
        name: "one",
        probe: "[ -e \"$ROOT/x\" ] || echo 'no x'; true",
        apply: ": >\"$ROOT/x\"",
    };
    let two = Raw {
        name: "two",
        probe: "[ -e \"$ROOT/x\" ] && echo 'an x'; true",
        apply: "rm \"$ROOT/x\"",
    };
    let e = w.apply(vec![Step::new("a", "n").with(one).with(two)]).await.unwrap_err();
    assert!(e.message().contains("does not stay as it is applied"), "{e}");
}

#[tokio::test]
async fn a_connection_lost_while_changing_is_made_again_and_the_node_looked_at() {
    // Call 1 observes, call 2 applies.
    for fault in [
        (|n, _: &str| if n == 2 { Fault::Lost } else { Fault::None }) as fn(usize, &str) -> Fault,
        |n, _| if n == 2 { Fault::LostAfter } else { Fault::None },
        |n, _| if n == 1 { Fault::Lost } else { Fault::None },
    ] {
        let w = world_with(fault);
        w.apply(vec![Step::new("a", "n").with(mark("x"))]).await.unwrap();
        assert_eq!(w.root.get("/x"), "x");
    }
}

#[tokio::test]
async fn a_connection_that_is_lost_again_and_again_ends_the_run() {
    let w = world_with(|_, s| if s.contains("install -m") { Fault::Lost } else { Fault::None });
    let e = w.apply(vec![Step::new("a", "n").with(mark("x"))]).await.unwrap_err();
    assert!(e.message().starts_with("step a: cut"), "{e}");
}

#[tokio::test]
async fn a_death_ends_everything_at_once() {
    let w = world_with(|n, _| if n == 2 { Fault::Hang } else { Fault::None });
    let steps = vec![Step::new("a", "n").with(mark("x"))];
    let kill = async {
        while w.shell.calls() < 2 {
            tokio::task::yield_now().await;
        }
        w.life.ends("QEMU exited with status 1");
    };
    let (out, ()) = tokio::join!(w.apply(steps), kill);
    let e = out.unwrap_err();
    assert_eq!(e.kind(), Kind::Lab);
    assert!(e.message().ends_with("but QEMU exited with status 1"), "{e}");
}

#[tokio::test]
async fn a_death_of_what_the_nodes_stand_on_is_the_labs_failure() {
    let w = world_with(|n, _| if n == 2 { Fault::Hang } else { Fault::None });
    let (life, death) = Life::new();
    let plan = Plan { steps: vec![Step::new("a", "n").with(mark("x"))] };
    let stop = async {
        while w.shell.calls() < 2 {
            tokio::task::yield_now().await;
        }
        life.ends("QEMU of m was killed by signal 9");
    };
    let (out, ()) = tokio::join!(w.engine.apply(plan, &death), stop);
    let e = out.unwrap_err();
    // Not an interruption: nobody asked for it.
    assert_eq!(e.kind(), Kind::Lab);
    assert!(e.message().ends_with("QEMU of m was killed by signal 9"), "{e}");
}

#[tokio::test]
async fn a_change_that_is_late_is_the_provisions_failure_and_no_machines() {
    let w = world_with(|n, _| if n == 2 { Fault::Hang } else { Fault::None });
    let plan = Plan { steps: vec![Step::new("a", "n").with(mark("x"))] };
    let time_passes = async {
        while w.shell.calls() < 2 {
            tokio::task::yield_now().await;
        }
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(3600)).await;
        tokio::time::resume();
    };
    let never = Death::never();
    let (out, ()) = tokio::join!(w.engine.apply(plan, &never), time_passes);
    let e = out.unwrap_err();
    assert_eq!(e.kind(), Kind::Provision, "{e}");
    assert!(e.to_string().contains("in vain"), "{e}");
}

#[test]
fn quick_neighbours_go_together_unless_they_write_the_same_path() {
    let differs = || Sight { seen: String::new(), verdict: Verdict::Differs(vec!["x".into()]) };
    let (a, b, c) = (mark("a"), mark("b"), Ini::new("/a").set("s", "k", "v"));
    let slow = Raw { name: "slow", probe: "", apply: "" };
    let same = Sight { seen: String::new(), verdict: Verdict::Same };
    let round = |resources: &[&dyn Resource], sights: &[Sight]| next_round(resources, sights);
    let all = [differs(), differs(), differs()];
    assert_eq!(round(&[&a, &b, &c], &all), Some(vec![0, 1]));
    assert_eq!(round(&[&a, &slow, &b], &all), Some(vec![0]));
    assert_eq!(round(&[&slow, &a, &b], &all), Some(vec![0]));
    assert_eq!(round(&[&a, &slow, &b], &[differs(), same.clone(), differs()]), Some(vec![0, 2]));
    assert_eq!(round(&[&a], &[same]), None);
}

#[test]
fn a_round_may_take_what_its_slowest_may_and_no_multiple_of_it() {
    assert_eq!(patience_of([60].into_iter()), 60);
    assert_eq!(patience_of([20; 17].into_iter()), 52);
    assert_eq!(patience_of([20, 30, 20].into_iter()), 34);
}
