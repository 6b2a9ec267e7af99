//! Machines and ourselves killed at any moment: the error is clear, and nothing is left.

use super::engine::{engine, plan};
use super::test;
use crate::bench::{Bench, COMMAND, Dice, entries, lab, no_process_in, processes_in, run, signal};
use crate::registry::Test;
use rustix::process::Signal;
use stackproof::error::{Context, Error, Kind, Result};
use stackproof::event::Events;
use stackproof::lab::checkpoint::{After, Notes};
use stackproof::lab::rundir::sweep;
use stackproof::lab::spec::LabSpec;
use stackproof::lab::{Lab, LabOptions};
use stackproof::wait::{Death, Life, Patience, Poll};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

pub const TESTS: &[Test] = &[
    test("death::of_qemu_at_any_moment_of_the_boot_is_told_and_leaves_nothing", 1, || {
        run(of_qemu())
    }),
    test("death::of_qemu_at_any_moment_of_a_warm_run_is_told_and_leaves_nothing", 1, || {
        run(of_qemu_in_a_warm_run())
    }),
    test("death::a_warm_run_given_up_at_any_moment_leaves_nothing", 1, || run(given_up())),
    test(
        "death::of_qemu_at_any_moment_of_a_checkpoint_is_told_and_leaves_no_half_of_one",
        1,
        || run(a_checkpoint_struck(Blow::Killed)),
    ),
    test("death::a_checkpoint_given_up_at_any_moment_is_whole_or_has_no_name", 1, || {
        run(a_checkpoint_struck(Blow::GivenUp))
    }),
    test("death::of_ourselves_at_any_moment_ends_every_machine", 2, || run(of_ourselves())),
    test("death::ctrl_c_of_e2e_at_any_moment_exits_130_and_leaves_nothing", 2, || run(ctrl_c())),
];

/// So many moments are drawn.
const DRAWS: usize = 10;

/// Between two looks at /proc.
const LOOK: Duration = Duration::from_millis(5);

/// The first process below `root`.
async fn machine_in(root: &Path, patience: &Patience, death: &Death) -> Result<i32> {
    let look = || async {
        match processes_in(root).first() {
            Some(pid) => Poll::Ready(*pid),
            None => Poll::NotYet("no machine yet".into()),
        }
    };
    patience.until("a machine to start", COMMAND, LOOK, death, look).await
}

async fn of_qemu() -> Result<()> {
    let (bench, mut dice) = (Bench::new().await?, Dice::new());
    let start = Instant::now();
    bench.start(&["victim"]).await?.stop().await?;
    let whole_boot = start.elapsed();
    for draw in 0..DRAWS {
        let moment = dice.moment(whole_boot);
        let killer = async {
            let pid = machine_in(bench.root(), &bench.patience, &Death::never()).await?;
            // The draw, not a wait for anything.
            tokio::time::sleep(moment).await;
            signal(pid, Signal::KILL);
            Ok::<_, Error>(())
        };
        let (started, killed) = tokio::join!(bench.start(&["victim"]), killer);
        killed?;
        let text = match started {
            Err(error) => {
                assert_eq!(error.kind(), Kind::Lab, "draw {draw}, {moment:?}: {error}");
                error.to_string()
            }
            // It was up sooner than the first time: then its lab tells.
            Ok(lab) => lab.death().wait().await,
        };
        assert!(
            text.contains("QEMU of victim was killed by signal 9"),
            "{draw}, {moment:?}: {text}"
        );
        bench.assert_nothing_left();
    }
    Ok(())
}

/// A booted guest, saved. Nothing of its lab is left.
async fn saved(bench: &Bench) -> Result<PathBuf> {
    let from = bench.root().join("checkpoints/booted");
    let mut lab = bench.start(&["a"]).await?;
    lab.checkpoint(&from, Notes::default(), After::StandStill, &bench.patience).await?;
    lab.stop().await?;
    bench.assert_nothing_left();
    Ok(from)
}

async fn restored(bench: &Bench, from: &Path) -> Result<Lab> {
    Ok(Lab::restore(from, &bench.options, &bench.patience, &bench.redactor).await?.lab)
}

/// A checkpoint restored, and its guest brought to a plan.
async fn warm_run(bench: &Bench, from: &Path) -> Result<Lab> {
    let lab = restored(bench, from).await?;
    let engine = engine(bench, &lab, &lab.nodes()[0])?;
    engine.apply(plan(), &lab.death()).await?;
    Ok(lab)
}

/// The same, and how long it took: so long are the moments.
async fn whole_warm_run(bench: &Bench, from: &Path) -> Result<Duration> {
    let start = Instant::now();
    let lab = warm_run(bench, from).await?;
    let took = start.elapsed();
    lab.stop().await?;
    Ok(took)
}

/// What became of the draws: where none struck in the middle, nothing was tested.
#[derive(Default)]
struct Struck {
    whole: Duration,
    middle: usize,
    over: usize,
}

impl Struck {
    fn new(whole: Duration) -> Struck {
        Struck { whole, ..Struck::default() }
    }

    /// What was to be struck was over before; it may be quicker than the first time.
    fn was_over(&mut self, took: Duration) {
        self.over += 1;
        self.whole = self.whole.min(took);
    }

    fn tell(&self) {
        eprintln!("struck in the middle {} times, too late {} times", self.middle, self.over);
        assert!(self.middle > 0, "no moment was tested");
    }
}

async fn of_qemu_in_a_warm_run() -> Result<()> {
    let (bench, mut dice) = (Bench::new().await?, Dice::new());
    let from = saved(&bench).await?;
    let mut struck = Struck::new(whole_warm_run(&bench, &from).await?);
    for draw in 0..DRAWS {
        let (moment, start) = (dice.moment(struck.whole), Instant::now());
        let killer = async {
            let pid = machine_in(bench.root(), &bench.patience, &Death::never()).await?;
            // The draw, not a wait for anything.
            tokio::time::sleep(moment).await;
            signal(pid, Signal::KILL);
            Ok::<_, Error>(())
        };
        let timed = async { (warm_run(&bench, &from).await, start.elapsed()) };
        let both = async { Ok(tokio::join!(timed, killer)) };
        let never = Death::never();
        let ran = bench.patience.within("the end of a run", COMMAND, &never, both).await?;
        let ((ran, took), killed) = ran;
        killed?;
        let text = match ran {
            Err(error) => {
                assert_eq!(error.kind(), Kind::Lab, "draw {draw}, {moment:?}: {error}");
                struck.middle += 1;
                error.to_string()
            }
            // Then its lab tells.
            Ok(lab) => {
                struck.was_over(took);
                lab.death().wait().await
            }
        };
        assert!(text.contains("QEMU of a was killed by signal 9"), "{draw}, {moment:?}: {text}");
        bench.assert_nothing_left();
    }
    struck.tell();
    Ok(())
}

/// What Ctrl-C does to whatever runs: its future is dropped.
async fn given_up() -> Result<()> {
    let (bench, mut dice) = (Bench::new().await?, Dice::new());
    let from = saved(&bench).await?;
    let mut struck = Struck::new(whole_warm_run(&bench, &from).await?);
    for draw in 0..DRAWS {
        let (moment, start) = (dice.moment(struck.whole), Instant::now());
        // The draw, not a deadline of anything.
        match tokio::time::timeout(moment, warm_run(&bench, &from)).await {
            Err(_) => struck.middle += 1,
            Ok(ran) => {
                struck.was_over(start.elapsed());
                drop(ran?);
            }
        }
        let left = (processes_in(bench.root()), entries(&bench.options.run_root));
        assert_eq!(left, (vec![], vec![]), "draw {draw}, {moment:?}");
    }
    struck.tell();
    // Nor was it harmed that they began from.
    whole_warm_run(&bench, &from).await.map(drop)
}

/// A checkpoint is whole or has no name, whatever ended its making.
async fn a_checkpoint_struck(how: Blow) -> Result<()> {
    let (bench, mut dice) = (Bench::new().await?, Dice::new());
    let from = saved(&bench).await?;
    let checkpoints = bench.root().join("checkpoints");
    let into = checkpoints.join("again");
    let mut lab = restored(&bench, &from).await?;
    let start = Instant::now();
    lab.checkpoint(&into, Notes::default(), After::GoOn, &bench.patience).await?;
    let mut struck = Struck::new(start.elapsed());
    drop(lab);
    for draw in 0..DRAWS {
        if into.exists() {
            restored(&bench, &into).await?.stop().await?;
            std::fs::remove_dir_all(&into).doing(Kind::Host, || "a checkpoint".into())?;
        }
        let mut lab = restored(&bench, &from).await?;
        let (pid, start) = (lab.nodes()[0].vm.pid() as i32, Instant::now());
        let moment = dice.moment(struck.whole);
        let when = format!("draw {draw}, {moment:?}");
        let save = async {
            let saved = lab.checkpoint(&into, Notes::default(), After::GoOn, &bench.patience).await;
            (saved, start.elapsed())
        };
        let saved = match how {
            Blow::GivenUp => tokio::time::timeout(moment, save).await.ok(),
            Blow::Killed => {
                let killer = async {
                    // The draw, not a wait for anything.
                    tokio::time::sleep(moment).await;
                    signal(pid, Signal::KILL);
                };
                let both = async { Ok(tokio::join!(save, killer).0) };
                let (what, never) = ("the end of a checkpoint", Death::never());
                Some(bench.patience.within(what, COMMAND, &never, both).await?)
            }
        };
        match saved {
            Some((Ok(_), took)) => {
                struck.was_over(took);
                assert!(into.exists(), "{when}");
            }
            Some((Err(error), _)) => {
                struck.middle += 1;
                assert_eq!(error.kind(), Kind::Lab, "{when}: {error}");
                let cause = "QEMU of a was killed by signal 9";
                assert!(error.to_string().contains(cause), "{when}: {error}");
                assert_eq!(entries(&checkpoints), ["booted"], "{when}");
            }
            None => struck.middle += 1,
        }
        drop(lab);
        bench.assert_nothing_left();
        // Given up in its last part, which is on the disk alone, it may still get its name.
        let settled = || async {
            let left = entries(&checkpoints);
            match left.iter().all(|name| name == "booted" || name == "again") {
                true => Poll::Ready(()),
                false => Poll::NotYet(format!("{left:?}")),
            }
        };
        let (what, never) = ("half of a checkpoint to go", Death::never());
        bench.patience.until(what, COMMAND, LOOK, &never, settled).await?;
    }
    struck.tell();
    Ok(())
}

/// How something is ended that is under way.
#[derive(Clone, Copy)]
enum Blow {
    /// QEMU is killed.
    Killed,
    /// As Ctrl-C does it: the future is dropped.
    GivenUp,
}

/// The child of [`of_ourselves`]: boots a lab in `root`, says `up`, and goes on until it is killed.
pub fn run_lab(root: &Path) -> std::result::Result<(), String> {
    run(async {
        let bench = Bench::new().await?;
        let options = LabOptions {
            run_root: root.join("runs"),
            logs: Some(root.join("logs")),
            ..bench.options.clone()
        };
        let spec = LabSpec::parse("micro.toml".as_ref(), &lab("orphans", &["a", "b"]))?;
        let image = |_: &str| Ok(bench.image.clone());
        let patience = Patience::new(bench.patience.speed.clone(), Events::silent());
        let lab = Lab::start(&spec, image, &options, &patience, &bench.redactor).await?;
        println!("up");
        Err(Error::lab(lab.death().wait().await))
    })
}

fn child(root: &Path) -> Result<Child> {
    let exe = std::env::current_exe().doing(Kind::Internal, || "who are we?".into())?;
    let mut command = Command::new(exe);
    command.arg("--run-lab").arg(root).stdin(Stdio::null()).stdout(Stdio::piped());
    command.kill_on_drop(true);
    command.spawn().doing(Kind::Host, || "starting ourselves".into())
}

async fn of_ourselves() -> Result<()> {
    let (bench, mut dice) = (Bench::new().await?, Dice::new());
    let root = bench.root().join("child");
    std::fs::create_dir(&root).doing(Kind::Host, || "a folder".into())?;
    let runs = root.join("runs");
    let mut whole_boot = None;
    for draw in 0..=DRAWS {
        let mut child = child(&root)?;
        let pid = child.id().expect("it is not reaped") as i32;
        match whole_boot {
            // The first is killed when its lab is up: so long are the others' moments.
            None => {
                let start = Instant::now();
                let mut said = BufReader::new(child.stdout.take().expect("a pipe")).lines();
                let up = async { said.next_line().await.doing(Kind::Lab, || "the child".into()) };
                let boots = Duration::from_secs(90);
                let up = bench.patience.within("a lab", boots, &Death::never(), up).await?;
                assert_eq!(up.as_deref(), Some("up"));
                assert_eq!(processes_in(&root).len(), 2, "both machines run");
                assert_eq!(entries(&runs).len(), 1);
                whole_boot = Some(start.elapsed());
            }
            // The draw, not a wait for anything.
            Some(whole) => tokio::time::sleep(dice.moment(whole)).await,
        }
        signal(pid, Signal::KILL);
        let status = child.wait().await.doing(Kind::Internal, || "reaping".into())?;
        assert_eq!(status.code(), None, "draw {draw}: killed before its own end, not {status}");
        no_process_in(&root, &bench.patience).await?;
        let left = entries(&runs);
        assert!(draw > 0 || left.len() == 1, "a killed run leaves its directory: {left:?}");
        let swept = sweep(&runs)?;
        assert!(swept.len() <= left.len());
        assert_eq!(entries(&runs), [] as [String; 0], "draw {draw}: not swept");
    }
    Ok(())
}

/// A lab that could carry a cloud: it has one controller, and networks of neutron's MTU.
fn pair() -> String {
    let both = lab("pair", &["a", "b"]).replace("mtu = 1400\n", "");
    let (a, b) = both.split_once("[nodes.b]").expect("the second node");
    format!("{a}[nodes.b]{}", b.replace("\"controller\", \"network\", ", ""))
}

async fn ctrl_c() -> Result<()> {
    let (bench, mut dice) = (Bench::new().await?, Dice::new());
    let store = bench.root().join("store");
    std::fs::create_dir(&store).doing(Kind::Host, || "a folder".into())?;
    // A store of its own, with the built image of the real one: so the runs are in our folder too.
    let shared = crate::registry::store().expect("the registry looked").root().join("derived");
    std::os::unix::fs::symlink(shared, store.join("derived"))
        .doing(Kind::Host, || "a link".into())?;
    let file = bench.root().join("pair.toml");
    std::fs::write(&file, pair()).doing(Kind::Host, || "a lab file".into())?;
    // What a killed run left is swept by the next, before anything else.
    let leftover = store.join("runs/run-pair-dead");
    std::fs::create_dir_all(&leftover).doing(Kind::Host, || "a leftover".into())?;
    std::fs::write(leftover.join("owner"), "").doing(Kind::Host, || "a leftover".into())?;

    for draw in 0..5 {
        let mut command = Command::new(env!("CARGO_BIN_EXE_stackproof"));
        command.args(["e2e", "--root", env!("CARGO_MANIFEST_DIR")]);
        command.arg("--store").arg(&store).arg("--lab").arg(&file);
        command.arg("--log-dir").arg(bench.root().join("logs"));
        command.current_dir("/").kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().doing(Kind::Host, || "starting stackproof".into())?;
        let pid = child.id().expect("it is not reaped") as i32;
        let (life, death) = Life::new();
        let out = tokio::spawn(async move {
            let out = child.wait_with_output().await.doing(Kind::Internal, || "reaping".into())?;
            life.ends(format!("it ended: {}", String::from_utf8_lossy(&out.stderr)));
            Ok(out)
        });
        machine_in(&store, &bench.patience, &death).await?;
        assert!(!leftover.exists(), "the leftover is swept before a machine starts");
        // The draw, not a wait for anything. Machines need longer than this to boot.
        tokio::time::sleep(dice.moment(Duration::from_millis(1500))).await;
        signal(pid, Signal::INT);
        let ended = async { out.await.doing(Kind::Internal, || "its task".into())? };
        let out = bench.patience.within("its end", COMMAND, &Death::never(), ended).await?;
        let said = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(130), "draw {draw}: {said}");
        assert!(said.contains("stopping and cleaning up"), "draw {draw}: {said}");
        assert_eq!(processes_in(bench.root()), [] as [i32; 0], "draw {draw}: machines are left");
        assert_eq!(entries(&store.join("runs")), [] as [String; 0], "draw {draw}");
    }
    Ok(())
}
