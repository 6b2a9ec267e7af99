//! Machines and ourselves killed at any moment: the error is clear, and nothing is left.

use super::test;
use crate::bench::{Bench, COMMAND, Dice, entries, lab, no_process_in, processes_in, run, signal};
use crate::registry::Test;
use rustix::process::Signal;
use stackproof::error::{Context, Error, Kind, Result};
use stackproof::event::Events;
use stackproof::lab::rundir::sweep;
use stackproof::lab::spec::LabSpec;
use stackproof::lab::{Lab, LabOptions};
use stackproof::wait::{Death, Life, Patience, Poll};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

pub const TESTS: &[Test] = &[
    test("death::of_qemu_at_any_moment_of_the_boot_is_told_and_leaves_nothing", 1, || {
        run(of_qemu())
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

/// A lab that could carry a cloud, which has one controller.
fn pair() -> String {
    let both = lab("pair", &["a", "b"]);
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
