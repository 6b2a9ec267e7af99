//! Resources applied over SSH to a guest with busybox: no bash, no coreutils, no systemd.

use super::test;
use crate::bench::{Bench, COMMAND, run, signal};
use crate::registry::Test;
use stackproof::engine::apply::Engine;
use stackproof::engine::journal::Journal;
use stackproof::engine::plan::{Plan, Step};
use stackproof::engine::resource::{Resource, Script, Verdict};
use stackproof::engine::resources::{Block, Directory, File, Ini, Lines, SymLink};
use stackproof::error::{Kind, Result};
use stackproof::lab::{Lab, Node};
use stackproof::wait::Death;
use std::sync::Arc;
use std::time::Duration;

pub const TESTS: &[Test] = &[
    test("engine::a_second_run_changes_nothing_and_a_change_by_hand_is_mended", 1, || {
        run(converges())
    }),
    test("engine::a_guest_that_reboots_is_waited_for_and_declared_anew", 1, || run(reboot())),
    test("engine::a_guest_killed_mid_apply_is_named_at_once", 1, || run(killed())),
    test("engine::a_killed_neighbour_ends_an_apply_as_the_labs_failure", 2, || run(neighbour())),
];

pub(super) fn engine(bench: &Bench, lab: &Lab, node: &Node) -> Result<Engine> {
    let journal = Journal::open(bench.logs().join("engine.log"), bench.redactor.clone())?;
    Ok(Engine::new(vec![bench.engine_node(lab, node)?], bench.patience.clone(), journal))
}

const RESOURCES: usize = 7;

/// For a guest that is called `a`.
pub(super) fn plan() -> Arc<Plan> {
    let files = Step::new("files", "a")
        .with(Directory::new("/srv/x y/deep").mode(0o750))
        .with(File::new("/srv/x y/conf", "one\ntwo 'quoted' $HOME\nthree\n").mode(0o640))
        .with(File::secret("/srv/key", "a secret of nobody\n"))
        .with(File::new("/srv/bytes", vec![0u8, 1, 2, 255, 10, 0]));
    let edits = Step::new("edits", "a")
        .with(Lines::new("/etc/hosts").line("192.168.103.99 elsewhere"))
        .with(Block::new("/etc/profile", "locale", "export LANG=C\n"))
        .with(Ini::new("/srv/service.conf").set("DEFAULT", "my_ip", "192.168.103.11"));
    Arc::new(Plan { steps: vec![files, edits.after("files")] })
}

async fn converges() -> Result<()> {
    let bench = Bench::new().await?;
    let lab = bench.start(&["a"]).await?;
    let node = &lab.nodes()[0];
    let (engine, ssh, never) =
        (engine(&bench, &lab, node)?, bench.ssh(&lab, node)?, Death::never());

    let first = engine.apply(plan(), &never).await?;
    assert_eq!((first.changed.len(), first.unchanged), (RESOURCES, 0), "{first:?}");
    let second = engine.apply(plan(), &never).await?;
    assert_eq!((second.changed.len(), second.unchanged), (0, RESOURCES), "{second:?}");

    let shown = "stat -c '%a' '/srv/x y/deep' '/srv/x y/conf' /srv/key; cat '/srv/x y/conf'";
    let text = bench.ask(&ssh, node, shown).await?;
    assert_eq!(text, "750\n640\n600\none\ntwo 'quoted' $HOME\nthree");

    bench.ask(&ssh, node, "sed -i s/two/2/ '/srv/x y/conf'; chmod 600 '/srv/x y/conf'").await?;
    let found = engine.check(&plan(), &never).await?;
    let lines: Vec<&str> = found.changed.iter().map(|c| c.resource.as_str()).collect();
    assert_eq!(lines, ["file /srv/x y/conf"]);
    let differences = found.changed[0].differences.join("\n");
    assert!(differences.contains("mode: 0600 -> 0640"), "{differences}");
    assert!(differences.contains("line 2"), "{differences}");
    let mended = engine.apply(plan(), &never).await?;
    assert_eq!((mended.changed.len(), mended.unchanged), (1, RESOURCES - 1), "{mended:?}");
    assert_eq!(bench.ask(&ssh, node, shown).await?, text);
    assert!(engine.apply(plan(), &never).await?.changed.is_empty());

    let link = || Step::new("link", "a").with(SymLink::new("/srv/link", "/srv/key"));
    let plan = Arc::new(Plan { steps: vec![link()] });
    assert_eq!(engine.apply(plan.clone(), &never).await?.changed.len(), 1);
    assert_eq!(bench.ask(&ssh, node, "readlink /srv/link").await?, "/srv/key");
    assert!(engine.apply(plan, &never).await?.changed.is_empty());
    lab.stop().await
}

async fn reboot() -> Result<()> {
    let bench = Bench::new().await?;
    let lab = bench.start(&["a"]).await?;
    let node = &lab.nodes()[0];
    let (engine, never) = (engine(&bench, &lab, node)?, Death::never());
    engine.apply(plan(), &never).await?;

    let ssh = bench.ssh(&lab, node)?;
    let boot_id = "cat /proc/sys/kernel/random/boot_id";
    let before = bench.ask(&ssh, node, boot_id).await?;
    // The connection is not told: there is no FIN from a machine that is reset.
    let resets = node.vm.resets();
    node.vm.reset().await?;
    let found = engine.check(&plan(), &never).await?;
    assert_eq!(found.changed.len(), RESOURCES, "the guest keeps nothing over a reboot");
    assert!(*resets.borrow() > 0);
    engine.apply(plan(), &never).await?;
    assert!(engine.apply(plan(), &never).await?.changed.is_empty());
    assert_ne!(bench.ask(&bench.ssh(&lab, node)?, node, boot_id).await?, before);
    lab.stop().await
}

/// Differs always, and takes its time to say so.
#[derive(Debug)]
struct Endless;

impl Resource for Endless {
    fn id(&self) -> String {
        "endless work".into()
    }
    fn judge(&self, _: &str) -> Verdict {
        Verdict::Differs(vec!["not done".into()])
    }
    fn apply(&self, _: &str) -> Script {
        Script::new("exec sleep 100000")
    }
    fn patience(&self) -> u64 {
        100_000
    }
}

async fn killed() -> Result<()> {
    let bench = Bench::new().await?;
    let lab = bench.start(&["a"]).await?;
    let node = &lab.nodes()[0];
    let (engine, never) = (engine(&bench, &lab, node)?, Death::never());
    let plan = Arc::new(Plan { steps: vec![Step::new("endless", "a").with(Endless)] });
    let apply = async { Ok(engine.apply(plan, &never).await) };
    let (out, begun) = tokio::join!(
        bench.patience.within("the engine to give up", COMMAND, &never, apply),
        async {
            bench.event("a: endless work").await?;
            signal(node.vm.pid() as i32, rustix::process::Signal::KILL);
            Ok::<_, stackproof::error::Error>(())
        }
    );
    begun?;
    let error = out?.expect_err("its guest was killed");
    let text = error.to_string();
    assert!(text.contains("endless work on a"), "what was under way is named: {text}");
    assert!(text.contains("QEMU of a was killed by signal 9"), "so is the cause: {text}");
    let look = Plan { steps: vec![Step::new("look", "a").with(Directory::new("/srv"))] };
    let after = engine.check(&look, &never);
    let after = bench
        .patience
        .within("a second answer", Duration::from_secs(20), &never, async { Ok(after.await) });
    let error = after.await?.expect_err("it is still dead");
    assert!(error.to_string().contains("QEMU of a was killed"), "{error}");
    lab.stop().await?;
    bench.assert_nothing_left();
    Ok(())
}

/// As the program applies a plan: ended by the death of any machine of the lab, whether or not it is
/// the one that works. Nobody interrupted it.
async fn neighbour() -> Result<()> {
    let bench = Bench::new().await?;
    let lab = bench.start(&["a", "b"]).await?;
    let engine = engine(&bench, &lab, &lab.nodes()[0])?;
    let plan = Arc::new(Plan { steps: vec![Step::new("endless", "a").with(Endless)] });
    let death = lab.death();
    let apply = async { Ok(engine.apply(plan, &death).await) };
    let never = Death::never();
    let (out, begun) = tokio::join!(
        bench.patience.within("the engine to give up", COMMAND, &never, apply),
        async {
            bench.event("a: endless work").await?;
            signal(lab.nodes()[1].vm.pid() as i32, rustix::process::Signal::KILL);
            Ok::<_, stackproof::error::Error>(())
        }
    );
    begun?;
    let error = out?.expect_err("a machine of its lab was killed");
    assert_eq!(error.kind(), Kind::Lab, "{error}");
    assert_ne!(error.kind().exit_code(), Kind::Interrupted.exit_code());
    assert!(error.to_string().contains("QEMU of b was killed by signal 9"), "{error}");
    lab.stop().await?;
    bench.assert_nothing_left();
    Ok(())
}
