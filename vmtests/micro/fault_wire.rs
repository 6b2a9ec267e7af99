//! Faults on the wire and on a machine, as the guests feel them.

use super::test;
use crate::bench::{Bench, COMMAND, leg, run};
use crate::registry::Test;
use stackproof::engine::transport::Ssh;
use stackproof::error::{Error, Result};
use stackproof::lab::switch::{Direction, Impairment, Network};
use stackproof::lab::wire::{ECHO_REPLY, ECHO_REQUEST, Frame};
use stackproof::lab::{Lab, Node};
use stackproof::wait::Poll;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

pub const TESTS: &[Test] = &[
    test("fault_wire::a_lost_direction_a_partition_and_a_cut_are_silent_until_healed", 2, || {
        run(silence())
    }),
    test("fault_wire::latency_is_the_floor_of_the_round_trip", 2, || run(latency())),
    test("fault_wire::a_ping_is_captured_both_ways_and_a_frozen_guest_is_silent", 2, || {
        run(captured())
    }),
];

/// Where the faults are; the other network is the control.
const EXTERNAL: &str = "external";

/// Two guests with addresses on both networks.
struct Pair {
    bench: Bench,
    lab: Lab,
    ssh: [Ssh; 2],
    external: Network,
}

/// Of the first and the second guest on [`EXTERNAL`].
const ADDRESSES: [Ipv4Addr; 2] = [Ipv4Addr::new(172, 24, 4, 11), Ipv4Addr::new(172, 24, 4, 12)];

impl Pair {
    async fn boot() -> Result<Pair> {
        let bench = Bench::new().await?;
        let lab = bench.start(&["a", "b"]).await?;
        let ssh = [bench.ssh(&lab, &lab.nodes()[0])?, bench.ssh(&lab, &lab.nodes()[1])?];
        let external = lab.switch().find(EXTERNAL)?;
        let pair = Pair { bench, lab, ssh, external };
        for (i, address) in ADDRESSES.iter().enumerate() {
            let script = format!(
                "ip addr add {address}/24 dev {EXTERNAL} && ip link set {EXTERNAL} up && \
                 cat /sys/class/net/{EXTERNAL}/operstate"
            );
            pair.ask(i, &script).await?;
        }
        Ok(pair)
    }

    fn node(&self, i: usize) -> &Node {
        &self.lab.nodes()[i]
    }

    /// Over [`MANAGEMENT`](crate::bench::MANAGEMENT), where nothing is wrong: an answer is a live
    /// control by itself.
    async fn ask(&self, i: usize, script: &str) -> Result<String> {
        self.bench.ask(&self.ssh[i], self.node(i), script).await
    }

    /// How many of three echo requests from guest `i` are answered, and the fastest round trip.
    async fn ping(&self, i: usize, to: Ipv4Addr) -> Result<(u32, Option<Duration>)> {
        // It ends with 1 when nothing came back.
        let said = self.ask(i, &format!("ping -c 3 -i 0.2 -W 2 {to} 2>&1 || true")).await?;
        answers(&said).ok_or_else(|| Error::lab(format!("ping said: {said}")))
    }

    async fn until_heard(&self, what: &str) -> Result<()> {
        let (every, death) = (Duration::from_millis(50), self.node(0).vm.death());
        let heard = || async {
            match self.ping(0, ADDRESSES[1]).await {
                Ok((0, _)) => Poll::NotYet("no answer".into()),
                Ok(_) => Poll::Ready(()),
                Err(e) => Poll::Failed(e),
            }
        };
        self.bench.patience.until(what, COMMAND, every, &death, heard).await
    }

    /// Nobody answers on [`EXTERNAL`], while the other network lives.
    async fn assert_silent(&self, why: &str) -> Result<()> {
        let (answers, _) = self.ping(0, ADDRESSES[1]).await?;
        assert_eq!(answers, 0, "{why}");
        let (answers, _) = self.ping(0, self.node(1).login.1).await?;
        assert!(answers > 0, "the control: {why}");
        Ok(())
    }
}

/// The answers and the least round trip that busybox' ping tells.
fn answers(said: &str) -> Option<(u32, Option<Duration>)> {
    let line = said.lines().find(|l| l.contains("packets received"))?;
    let received = line.split(", ").nth(1)?.split(' ').next()?.parse().ok()?;
    let times = said.lines().find_map(|l| l.split_once("min/avg/max = "));
    let least = times.and_then(|(_, t)| t.split('/').next()?.parse::<f64>().ok());
    Some((received, least.map(|ms| Duration::from_secs_f64(ms / 1000.0))))
}

fn fault(text: &str) -> Option<Impairment> {
    Some(text.parse().expect("a fault"))
}

async fn silence() -> Result<()> {
    let pair = Pair::boot().await?;
    let net = &pair.external;
    pair.until_heard("a ping between the guests").await?;

    let before = pair.node(0).vm.counters(EXTERNAL)?;
    net.set_fault("a", Direction::From, fault("loss=100%"))?;
    pair.assert_silent("all frames from `a` are lost").await?;
    // The other direction lives: what `b` sends comes.
    pair.ask(1, &format!("ping -c 1 -W 1 {} >/dev/null 2>&1 || true", ADDRESSES[0])).await?;
    let after = pair.node(0).vm.counters(EXTERNAL)?;
    assert!(after.from.lost > 0 && after.from.lost == after.from.met, "{after:?}");
    assert!(after.tx_frames > before.tx_frames, "{after:?}");
    assert_eq!((after.to.met, after.dropped), (0, before.dropped));
    net.set_fault("a", Direction::From, None)?;
    pair.until_heard("a ping after the loss").await?;

    net.partition(&[["a"], ["b"]])?;
    pair.assert_silent("the guests are in different groups").await?;
    assert!(pair.node(0).vm.counters(EXTERNAL)?.separated > 0);
    net.partition(&[["a", "b"]])?;
    pair.until_heard("a ping within one group").await?;

    net.cut();
    pair.assert_silent("the network is cut").await?;
    net.heal();
    pair.until_heard("a ping after the cut").await?;
    pair.lab.stop().await
}

async fn latency() -> Result<()> {
    let pair = Pair::boot().await?;
    pair.until_heard("a ping between the guests").await?;
    const LATENCY: Duration = Duration::from_millis(60);
    for way in Direction::BOTH {
        pair.external.set_fault("a", way, fault("latency=60ms jitter=5ms"))?;
    }
    pair.until_heard("a slow ping").await?;
    let (answers, least) = pair.ping(0, ADDRESSES[1]).await?;
    assert!(answers > 0);
    let least = least.expect("a round trip");
    // The guest measures with its own clock, which is a little off.
    assert!(least >= LATENCY * 2 * 98 / 100, "{least:?}");
    // The network without the fault is the control: the least of three, against a bound that the
    // fault could not reach.
    let (_, control) = pair.ping(0, pair.node(1).login.1).await?;
    assert!(control.expect("a round trip") < least, "{control:?} and {least:?}");
    let counters = pair.node(0).vm.counters(EXTERNAL)?;
    assert!(counters.from.delayed > 0 && counters.to.delayed > 0, "{counters:?}");
    pair.lab.stop().await
}

async fn captured() -> Result<()> {
    let pair = Pair::boot().await?;
    pair.until_heard("a ping between the guests").await?;
    let file = pair.bench.root().join("external.pcapng");
    let capture = pair.external.capture(None, &file, Some(1 << 20))?;
    pair.until_heard("a ping under capture").await?;
    let captured = capture.finish().await?;
    assert_eq!(captured.dropped, 0);
    let [a, b] = ADDRESSES;
    let seen = echoes(&file);
    for (kind, from, to) in [(ECHO_REQUEST, a, b), (ECHO_REPLY, b, a)] {
        // Once as it left the one guest, once as it came to the other.
        let mut ways: Vec<u32> =
            seen.iter().filter(|e| e.1 == (kind, from, to)).map(|e| e.0).collect();
        ways.sort_unstable();
        ways.dedup();
        assert_eq!(ways, [INBOUND, OUTBOUND], "ICMP type {kind} in {seen:?}");
    }

    let (leg, at, control) = (leg(&pair.lab), pair.node(0).login.1, pair.node(1).login.1);
    pair.node(0).vm.freeze().await?;
    assert_eq!(leg.ping(at, Duration::from_secs(2)).await?, None, "a frozen guest");
    assert!(leg.ping(control, COMMAND).await?.is_some(), "the other one");
    assert_eq!(pair.node(0).vm.death().cause(), None);
    pair.node(0).vm.thaw().await?;
    // The connection from before goes on.
    assert_eq!(pair.ask(0, "echo thawed").await?, "thawed");
    pair.lab.stop().await
}

const INBOUND: u32 = 1;
const OUTBOUND: u32 = 2;

/// The direction of each echo in a pcapng file, with its type, source and destination.
fn echoes(file: &Path) -> Vec<(u32, (u8, Ipv4Addr, Ipv4Addr))> {
    let bytes = std::fs::read(file).expect("the capture");
    let word = |at: usize| u32::from_le_bytes(*bytes[at..].first_chunk().expect("four bytes"));
    let (mut at, mut all) = (0, Vec::new());
    while at < bytes.len() {
        let (kind, length) = (word(at), word(at + 4) as usize);
        assert_eq!(word(at + length - 4) as usize, length, "both lengths of the block at {at}");
        if kind == 6 {
            let (start, size) = (at + 28, word(at + 20) as usize);
            let flags = word(start + size.next_multiple_of(4) + 4);
            let echo = Frame::parse(&bytes[start..start + size]).and_then(|frame| {
                let ip = frame.ipv4()?;
                ip.icmp().map(|icmp| (flags & 3, (icmp.kind, ip.src, ip.dst)))
            });
            all.extend(echo);
        }
        at += length;
    }
    all
}
