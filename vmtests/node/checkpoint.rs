//! A node with a guest agent and a balloon, saved small and back with the right time.

use crate::bench::{Bench, COMMAND, leg, run};
use crate::registry::{self, Needs, Test};
use crate::restores::restore_in_a_row;
use stackproof::cluster::node_tasks;
use stackproof::error::{Error, Result};
use stackproof::lab::checkpoint::{After, Notes, SLIM};
use stackproof::lab::spec::LabSpec;
use stackproof::lab::{BootImage, Lab};
use stackproof::wait::{Death, Poll};
use std::net::SocketAddrV4;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant, SystemTime};

/// MiB.
const MEMORY: u64 = 2048;

pub const TESTS: &[Test] = &[Test {
    path: "checkpoint::of_a_node_is_small_wakes_at_the_right_time_and_its_disk_can_be_filled",
    needs: Needs { guests: 1, memory: MEMORY, probe_guest: true, node_image: true },
    run: || run(wakes()),
}];

/// A nightly run asks for twenty (`STACKPROOF_RESTORES`).
const COLD_RESTORES: u32 = 3;

/// So much is read from its disk: only its cache holds it.
const CACHED: u64 = 512 << 20;

fn image() -> Result<BootImage> {
    let built = registry::node_image()
        .ok_or_else(|| Error::image("run `stackproof images build debian-13-node`"))?;
    let (kernel, initrd) = (Some(built.kernel()), Some(built.initrd()));
    Ok(BootImage { disk: built.disk(), kernel, initrd, append: built.cmdline()? })
}

fn now() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

async fn ask(bench: &Bench, lab: &Lab, script: &str) -> Result<String> {
    let node = &lab.nodes()[0];
    bench.ask(&bench.ssh(lab, node)?, node, script).await
}

async fn wakes() -> Result<()> {
    let bench = Bench::new().await?;
    let text = format!(
        "name = \"one\"\n[networks.management]\nsubnet = \"192.168.103.0/24\"\n\
         outside = \"192.168.103.1\"\n[nodes.a]\nimage = \"debian-13-node\"\n\
         memory = \"{MEMORY}MiB\"\ncpus = 2\n[[nodes.a.nics]]\nnetwork = \"management\"\n\
         address = \"192.168.103.11\"\n"
    );
    let spec = LabSpec::parse("one.toml".as_ref(), &text)?;
    let image = image()?;
    let (options, patience) = (&bench.options, &bench.patience);
    let images = |_: &str| Ok(image.clone());
    let mut lab = Lab::start(&spec, images, options, patience, &bench.redactor).await?;

    // Its agent comes up after its SSH server.
    let vm = &lab.nodes()[0].vm;
    let agent = || async {
        match vm.has_agent().await {
            Ok(true) => Poll::Ready(()),
            Ok(false) => Poll::NotYet("its port is closed".into()),
            Err(e) => Poll::Failed(e),
        }
    };
    let (every, death) = (Duration::from_millis(200), lab.death());
    patience.until("the guest agent", COMMAND, every, &death, agent).await?;

    let read = format!("head -c {CACHED} /dev/vda >/dev/null; cat /proc/sys/kernel/random/boot_id");
    let boot = ask(&bench, &lab, &read).await?;
    let full = vm.resident()?;
    ask(&bench, &lab, SLIM).await?;
    lab.settles(patience).await?;
    let slim = vm.resident()?;
    assert!(slim + CACHED / 2 < full, "{slim} of {full} bytes are held");
    // Wrong by far more than a restore takes.
    ask(&bench, &lab, "date -s '2020-01-01 00:00:00' >/dev/null").await?;
    let shown = ask(&bench, &lab, "date +%Y").await?;
    assert_eq!(shown, "2020", "nothing else sets its clock");

    let into = bench.root().join("ready");
    let start = Instant::now();
    lab.checkpoint(&into, Notes::default(), After::StandStill, patience).await?;
    let saved = start.elapsed();
    drop(lab);
    // With its agent, which is asked while the node's pages are still on the disk.
    restore_in_a_row(&bench, &into, COLD_RESTORES).await?;
    let memory = into.join("a/memory").metadata().expect("it is there").blocks() * 512;
    assert!(memory <= slim, "{memory} bytes of {slim} resident");

    let start = Instant::now();
    let restored = Lab::restore(&into, options, patience, &bench.redactor).await?;
    let back = start.elapsed();
    let lab = restored.lab;
    let at = SocketAddrV4::new(lab.nodes()[0].login.1, 22);
    leg(&lab).connect(at, patience.speed.scale(COMMAND)).await?;
    let answered = start.elapsed();
    eprintln!(
        "resident {full} -> {slim}, on disk {memory}; saved in {saved:?}, restored in {back:?}, \
         SSH answered after {answered:?}"
    );
    let unstepped = lab.step_clocks(patience).await?;
    assert_eq!(unstepped, [] as [String; 0], "its agent set its clock");
    let before = now();
    let shown: u64 = ask(&bench, &lab, "date +%s").await?.parse().expect("seconds");
    let range = before.as_secs() - 2..=now().as_secs() + 2;
    assert!(range.contains(&shown), "{shown} is not in {range:?}");
    let same = ask(&bench, &lab, "cat /proc/sys/kernel/random/boot_id").await?;
    assert_eq!(same, boot, "restored and not booted");
    assert_eq!(Death::cause(&lab.death()), None);
    full_disk(&bench, &lab).await?;
    lab.stop().await?;
    bench.assert_nothing_left();
    Ok(())
}

/// A full disk takes nothing more, not even root's, until it is freed.
async fn full_disk(bench: &Bench, lab: &Lab) -> Result<()> {
    let nodes = node_tasks::reach(lab, &bench.patience.speed)?;
    // A megabyte more; the shell keeps what it says in memory.
    let write = "said=$(head -c 1000000 /dev/zero 2>&1 >/root/more); echo \"$? $said\"; \
                 rm -f /root/more";
    assert_eq!(ask(bench, lab, write).await?, "0", "it takes a megabyte before");
    node_tasks::fill(&nodes, "a", true, &bench.patience).await?;
    let said = ask(bench, lab, write).await?;
    assert!(said.starts_with("1 ") && said.contains("No space left on device"), "{said}");
    node_tasks::fill(&nodes, "a", false, &bench.patience).await?;
    assert_eq!(ask(bench, lab, write).await?, "0", "it takes a megabyte again");
    Ok(())
}
