//! Guests that are saved and come back: what was in memory and on disks, and between them.

use super::test;
use crate::bench::{Bench, run};
use crate::registry::Test;
use crate::restores::restore_in_a_row;
use stackproof::error::{Error, Result};
use stackproof::lab::checkpoint::{After, Notes, Restored, SLIM};
use stackproof::lab::{Lab, Node};
use stackproof::wait::Poll;
use std::path::Path;
use std::time::{Duration, SystemTime};

pub const TESTS: &[Test] = &[
    test("checkpoint::two_guests_their_connection_and_their_memory_go_on_in_a_new_lab", 2, || {
        run(go_on())
    }),
    test("checkpoint::is_restored_twice_at_once_and_outlived_by_its_labs", 2, || run(twice())),
    test("checkpoint::twenty_cold_restores_under_load", 1, || run(cold())),
];

/// On one guest: lines with numbers, for as long as the connection lives.
fn count_to(address: impl std::fmt::Display) -> String {
    format!(
        "cat /proc/sys/kernel/random/uuid >/nonce; \
         (i=0; while :; do i=$((i+1)); echo $i; sleep 0.1; done) </dev/null 2>/dev/null \
         | setsid nc {address} 7000 >/dev/null 2>&1 & echo started"
    )
}

/// On the other. Its input never ends: busybox's nc would end the connection with it.
const LISTEN: &str = "cat /proc/sys/kernel/random/uuid >/nonce; \
                      sleep 100000 </dev/null 2>/dev/null \
                      | setsid nc -l -p 7000 >/received 2>/dev/null & echo started";

/// What a guest is: only memory holds it.
const SELF: &str = "cat /proc/sys/kernel/random/boot_id /nonce; pidof nc";

/// A sector of the first disk, past what the guest's own boot loader needs, not from its cache.
const READ: &str = "echo 3 >/proc/sys/vm/drop_caches; \
                    dd if=/dev/vda bs=512 skip=20000 count=1 2>/dev/null | head -n 1";

fn write(text: &str) -> String {
    format!("echo {text} | dd of=/dev/vda bs=512 seek=20000 conv=notrunc,fsync 2>/dev/null")
}

async fn ask(bench: &Bench, lab: &Lab, node: &Node, script: &str) -> Result<String> {
    bench.ask(&bench.ssh(lab, node)?, node, script).await
}

/// The last number that came, after looking whether every one before it came too.
async fn counted(bench: &Bench, lab: &Lab) -> Result<u64> {
    let b = lab.node("b").expect("the listener");
    let script = "awk '$1 != NR { print \"gap at\", NR; exit } END { print NR }' /received";
    let last = ask(bench, lab, b, script).await?;
    last.parse().map_err(|_| Error::lab(format!("the numbers have a gap: {last}")))
}

async fn counts_beyond(bench: &Bench, lab: &Lab, number: u64) -> Result<u64> {
    let look = || async {
        match counted(bench, lab).await {
            Ok(now) if now > number => Poll::Ready(now),
            Ok(now) => Poll::NotYet(format!("{now}")),
            Err(e) => Poll::Failed(e),
        }
    };
    let (every, death) = (Duration::from_millis(100), lab.death());
    bench.patience.until("the count to go on", Duration::from_secs(6), every, &death, look).await
}

async fn restore(bench: &Bench, from: &Path, logs: &str) -> Result<Restored> {
    let mut options = bench.options.clone();
    options.logs = Some(bench.root().join(logs));
    Lab::restore(from, &options, &bench.patience, &bench.redactor).await
}

async fn go_on() -> Result<()> {
    let bench = Bench::new().await?;
    let into = bench.root().join("checkpoints/ready");
    let mut lab = bench.start(&["a", "b"]).await?;
    let [a, b] = lab.nodes() else { panic!("two guests") };
    ask(&bench, &lab, b, LISTEN).await?;
    ask(&bench, &lab, a, &count_to(b.login.1)).await?;
    let before = counts_beyond(&bench, &lab, 3).await?;
    ask(&bench, &lab, a, &write("before")).await?;
    assert_eq!(ask(&bench, &lab, a, READ).await?, "before");
    for node in lab.nodes() {
        ask(&bench, &lab, node, SLIM).await?;
    }
    let mut selves = Vec::new();
    for node in lab.nodes() {
        selves.push(ask(&bench, &lab, node, SELF).await?);
    }
    assert_ne!(selves[0], selves[1]);

    let notes = Notes(serde_json::json!({ "for": "us" }));
    let start = std::time::Instant::now();
    let made = lab.checkpoint(&into, notes.clone(), After::GoOn, &bench.patience).await?;
    eprintln!("saved {} bytes in {:?}", made.bytes(), start.elapsed());

    // The lab goes on, and what it does now is not in the checkpoint.
    let at_save = counts_beyond(&bench, &lab, before).await?;
    let far = counts_beyond(&bench, &lab, at_save + 20).await?;
    let a = lab.node("a").expect("a");
    ask(&bench, &lab, a, &write("after")).await?;
    assert_eq!(ask(&bench, &lab, a, READ).await?, "after");
    for (node, was) in lab.nodes().iter().zip(&selves) {
        assert_eq!(&ask(&bench, &lab, node, SELF).await?, was);
        for network in ["management", "external"] {
            assert_eq!(node.vm.counters(network)?.dropped, 0, "on {network}");
        }
    }
    lab.stop().await?;
    bench.assert_nothing_left();

    let start = std::time::Instant::now();
    let restored = restore(&bench, &into, "restored").await?;
    eprintln!("restored in {:?}", start.elapsed());
    assert_eq!(restored.notes, notes);
    let lab = restored.lab;
    assert_eq!(lab.step_clocks(&bench.patience).await?, ["a", "b"], "they have no agent");
    for (node, was) in lab.nodes().iter().zip(&selves) {
        assert_eq!(&ask(&bench, &lab, node, SELF).await?, was, "restored and not booted");
    }
    let back = counted(&bench, &lab).await?;
    assert!(back >= before && back < far, "{before} <= {back} < {far}: from the checkpoint");
    counts_beyond(&bench, &lab, back + 5).await?;
    let a = lab.node("a").expect("a");
    assert_eq!(ask(&bench, &lab, a, READ).await?, "before");

    // Their clocks stood still. The caller sets them where no agent does.
    let now =
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    ask(&bench, &lab, a, &format!("date -s @{now} >/dev/null")).await?;
    let shown: u64 = ask(&bench, &lab, a, "date +%s").await?.parse().expect("seconds");
    assert!(shown >= now, "{shown} is before {now}");
    lab.stop().await?;
    bench.assert_nothing_left();
    Ok(())
}

/// No agent sets the clock of this guest: it is set over SSH.
async fn cold() -> Result<()> {
    let bench = Bench::new().await?;
    let into = bench.root().join("ready");
    let mut lab = bench.start(&["a"]).await?;
    let a = &lab.nodes()[0];
    ask(&bench, &lab, a, "date -s '2020-01-01 00:00:00' >/dev/null").await?;
    ask(&bench, &lab, a, SLIM).await?;
    lab.checkpoint(&into, Notes::default(), After::StandStill, &bench.patience).await?;
    drop(lab);
    restore_in_a_row(&bench, &into, 20).await?;
    bench.assert_nothing_left();
    Ok(())
}

async fn twice() -> Result<()> {
    let bench = Bench::new().await?;
    let into = bench.root().join("ready");
    let mut lab = bench.start(&["a"]).await?;
    let a = &lab.nodes()[0];
    ask(&bench, &lab, a, &write("first")).await?;
    ask(&bench, &lab, a, "cat /proc/sys/kernel/random/uuid >/nonce").await?;
    lab.checkpoint(&into, Notes::default(), After::StandStill, &bench.patience).await?;
    drop(lab);

    let (one, two) = tokio::join!(restore(&bench, &into, "one"), restore(&bench, &into, "two"));
    let (mut one, two) = (one?.lab, two?.lab);
    // Gone while they run, with what they were restored from.
    std::fs::remove_dir_all(&into).expect("it is ours");
    let nonce = "cat /nonce";
    let of_one = ask(&bench, &one, &one.nodes()[0], nonce).await?;
    assert_eq!(of_one, ask(&bench, &two, &two.nodes()[0], nonce).await?);
    // A generator that was not told would draw the same in both.
    let draw = "head -c 16 /dev/urandom | md5sum";
    let drawn = ask(&bench, &one, &one.nodes()[0], draw).await?;
    assert_ne!(drawn, ask(&bench, &two, &two.nodes()[0], draw).await?);
    assert_eq!(ask(&bench, &two, &two.nodes()[0], READ).await?, "first");
    ask(&bench, &one, &one.nodes()[0], &write("second")).await?;
    assert_eq!(ask(&bench, &two, &two.nodes()[0], READ).await?, "first", "independent disks");

    // A second generation, on two layers.
    let again = bench.root().join("again");
    let made = one.checkpoint(&again, Notes::default(), After::StandStill, &bench.patience).await?;
    assert_eq!(made.nodes[0].layers.len(), 2);
    drop(one);
    let lab = restore(&bench, &again, "three").await?.lab;
    assert_eq!(ask(&bench, &lab, &lab.nodes()[0], READ).await?, "second");
    assert_eq!(ask(&bench, &lab, &lab.nodes()[0], nonce).await?, of_one);
    lab.stop().await?;
    two.stop().await?;
    bench.assert_nothing_left();
    Ok(())
}
