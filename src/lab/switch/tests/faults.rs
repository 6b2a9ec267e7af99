//! Faults on ports. Where time matters it is tokio's paused clock, which moves only when all wait.

use super::*;
use crate::lab::switch::fate::Fates;
use std::collections::HashSet;

fn fault(text: &str) -> Option<Impairment> {
    Some(text.parse().unwrap())
}

fn numbered(dst: Mac, src: Mac, n: u32, length: usize) -> Bytes {
    let mut body = vec![0; length];
    body[..4].copy_from_slice(&n.to_be_bytes());
    frame(dst, src, &body).into()
}

fn number(frame: &[u8]) -> u32 {
    u32::from_be_bytes(*frame[14..].first_chunk().unwrap())
}

/// Frames `0..count` from `from` to all.
async fn send(from: &Station, src: Mac, count: u32) {
    for n in 0..count {
        from.to_switch.send(numbered(BROADCAST, src, n, 100)).await.unwrap();
    }
}

/// The numbers of the frames of `from` that come until all is quiet.
async fn drained(at: &mut Station, from: Mac) -> Vec<u32> {
    let mut numbers = Vec::new();
    let mut quiet = 0;
    while quiet < 2 {
        // On the paused clock nothing moves during this minute but what is due in it.
        match timeout(Duration::from_secs(60), at.from_switch.recv()).await {
            Ok(frame) => {
                let frame = frame.expect("the station is plugged");
                if frame[6..12] == from.0 {
                    numbers.push(number(&frame));
                }
            }
            Err(_) => quiet += 1,
        }
    }
    numbers
}

/// What comes of `count` frames from `a` to `b` under a fault on one of them, with or without
/// other traffic and pauses.
async fn received(seed: u64, way: Direction, text: &str, count: u32, noise: bool) -> Vec<u32> {
    let net = Switch::seeded(seed).network("n");
    let (a, mut b, c) = (net.station("a"), net.station("b"), net.station("c"));
    let victim = if way == Direction::From { "a" } else { "b" };
    net.set_fault(victim, way, fault(text)).unwrap();
    for n in 0..count {
        if noise {
            // To `a`, so that it is not in the way that the fault is on.
            c.to_switch.send(numbered(A, C, n, 60)).await.unwrap();
            if n % 7 == 0 {
                tokio::time::advance(Duration::from_millis(3)).await;
            }
        }
        a.to_switch.send(numbered(BROADCAST, A, n, 100)).await.unwrap();
        tokio::task::yield_now().await;
    }
    drained(&mut b, A).await
}

#[tokio::test(start_paused = true)]
async fn which_frames_are_lost_or_doubled_follows_from_the_seed_alone() {
    let (text, way) = ("loss=20% duplicate=10%", Direction::From);
    let first = received(5, way, text, 300, false).await;
    assert_eq!(received(5, way, text, 300, true).await, first);
    assert_ne!(received(6, way, text, 300, false).await, first);
    assert_ne!(received(5, Direction::To, text, 300, false).await, first);
    // And it is the pure function that it is said to be.
    let fates = Fates::new(5, "a", way);
    let of = |n: u32| fates.of(n.into(), &text.parse().unwrap());
    let expected = (0..300).filter(|n| !of(*n).lost);
    let expected = expected.flat_map(|n| vec![n; if of(n).duplicated { 2 } else { 1 }]);
    assert_eq!(first, expected.collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn the_order_after_reordering_follows_from_the_seed_too() {
    let text = "reorder=20% latency=5ms jitter=9ms";
    let first = received(5, Direction::From, text, 300, false).await;
    assert_eq!(received(5, Direction::From, text, 300, true).await, first);
    // Nothing is lost; a frame that is late is so by three at most, and those it waits for by as
    // many as wait at once.
    let all: HashSet<u32> = first.iter().copied().collect();
    assert_eq!((first.len(), all.len()), (300, 300));
    assert!(!first.is_sorted());
    for (place, n) in (0..).zip(&first) {
        assert!(u32::abs_diff(place, *n) <= 6, "{n} came as number {place}");
    }
}

#[tokio::test]
async fn a_direction_that_loses_all_is_silent_beside_one_that_lives() {
    let net = Switch::new().network("n");
    let ((mut a, pa), (mut b, pb)) = (plug(&net, "a"), plug(&net, "b"));
    net.set_fault("a", Direction::From, fault("loss=100%")).unwrap();
    for _ in 0..5 {
        a.send(&frame(BROADCAST, A, b"lost")).await;
        b.send(&frame(BROADCAST, B, b"control")).await;
        assert_eq!(a.receive().await, frame(BROADCAST, B, b"control"));
    }
    until(|| pa.counters().from.lost == 5).await;
    assert_eq!(pb.counters().tx_frames, 0);
    assert_eq!((pa.counters().from.met, pa.counters().dropped), (5, 0));
    net.set_fault("a", Direction::From, None).unwrap();
    b.sees_only(&mut a, &frame(BROADCAST, A, b"back")).await;
    assert!(net.faults().is_empty());
}

#[tokio::test]
async fn a_fault_on_the_way_to_a_machine_spares_the_others() {
    let net = Switch::new().network("n");
    let ((mut a, _pa), (mut b, pb), (mut c, _pc)) =
        (plug(&net, "a"), plug(&net, "b"), plug(&net, "c"));
    net.set_fault("b", Direction::To, fault("loss=100%")).unwrap();
    for _ in 0..5 {
        c.sees_only(&mut a, &frame(BROADCAST, A, b"all")).await;
    }
    until(|| pb.counters().to.lost == 5).await;
    net.set_fault("b", Direction::To, fault("duplicate=100%")).unwrap();
    for _ in 0..5 {
        a.send(&frame(BROADCAST, A, b"twice")).await;
        for _ in 0..2 {
            assert_eq!(b.receive().await, frame(BROADCAST, A, b"twice"));
        }
        assert_eq!(c.receive().await, frame(BROADCAST, A, b"twice"));
    }
    assert_eq!(pb.counters().to.duplicated, 5);
}

#[tokio::test(start_paused = true)]
async fn latency_is_a_floor_jitter_comes_on_top_and_order_is_kept() {
    let net = Switch::new().network("n");
    let (a, mut b) = (net.station("a"), net.station("b"));
    net.set_fault("a", Direction::From, fault("latency=20ms jitter=50ms")).unwrap();
    let start = tokio::time::Instant::now();
    send(&a, A, 100).await;
    let mut delays = Vec::new();
    for n in 0..100 {
        assert_eq!(number(&soon(b.from_switch.recv()).await.unwrap()), n);
        delays.push(start.elapsed());
    }
    // The clock of the timers has milliseconds.
    let (least, most) = (Duration::from_millis(20), Duration::from_millis(72));
    assert!(delays.iter().all(|d| (least..most).contains(d)), "{delays:?}");
    assert!(delays.is_sorted() && delays[0] < delays[99]);
    let c = a.port.counters().from;
    assert_eq!((c.met, c.delayed, c.lost, c.overflowed), (100, 100, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn bandwidth_lets_pass_what_it_says_and_counts_what_it_drops() {
    let net = Switch::new().network("n");
    let (a, mut b) = (net.station("a"), net.station("b"));
    net.set_fault("a", Direction::From, fault("rate=8mbit")).unwrap();
    let start = tokio::time::Instant::now();
    for n in 0..400 {
        a.to_switch.send(numbered(BROADCAST, A, n, 1024 - 14)).await.unwrap();
    }
    let fits = (shaper::BUCKET + shaper::BACKLOG) as u32 / 1024;
    for n in 0..fits {
        assert_eq!(number(&soon(b.from_switch.recv()).await.unwrap()), n);
    }
    // A byte a microsecond, without what the bucket let pass at once.
    let took = start.elapsed().as_micros() as u64;
    assert!((shaper::BACKLOG..shaper::BACKLOG + 2000).contains(&took), "{took}");
    assert_eq!(a.port.counters().from.over_rate, u64::from(400 - fits));
    assert_eq!(drained(&mut b, A).await, [] as [u32; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_reordered_frame_that_nobody_overtakes_comes_all_the_same() {
    let net = Switch::new().network("n");
    let (a, mut b) = (net.station("a"), net.station("b"));
    net.set_fault("b", Direction::To, fault("reorder=100%")).unwrap();
    send(&a, A, 1).await;
    assert_eq!(drained(&mut b, A).await, [0]);
    assert_eq!(b.port.counters().to.reordered, 1);
}

#[tokio::test(start_paused = true)]
async fn frames_that_wait_are_not_overtaken_when_the_fault_ends() {
    let net = Switch::new().network("n");
    let (a, mut b) = (net.station("a"), net.station("b"));
    for (name, way) in [("a", Direction::From), ("b", Direction::To)] {
        net.set_fault(name, way, fault("latency=1s")).unwrap();
        send(&a, A, 10).await;
        until(|| net.waiting() >= 10).await;
        net.set_fault(name, way, None).unwrap();
        for n in 10..20 {
            a.to_switch.send(numbered(BROADCAST, A, n, 100)).await.unwrap();
        }
        assert_eq!(drained(&mut b, A).await, (0..20).collect::<Vec<_>>());
        // The next frame finds the lane empty, and from then on nobody looks at it.
        send(&a, A, 1).await;
        assert_eq!(drained(&mut b, A).await, [0]);
        assert!(net.0.plugged().iter().all(|port| port.is_plain()));
        assert_eq!(net.waiting(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_lane_holds_is_bounded_and_what_has_no_room_counted() {
    let net = Switch::new().network("n");
    let (a, mut b) = (net.station("a"), net.station("b"));
    net.set_fault("a", Direction::From, fault("latency=10s")).unwrap();
    let big = |n| numbered(BROADCAST, A, n, 65_522);
    let fits = lane::ROOM as u32 / 65_536;
    for n in 0..fits + 5 {
        a.to_switch.send(big(n)).await.unwrap();
    }
    assert_eq!(drained(&mut b, A).await, (0..fits).collect::<Vec<_>>());
    assert_eq!(a.port.counters().from.overflowed, 5);
    // There is room again.
    a.to_switch.send(big(7)).await.unwrap();
    assert_eq!(drained(&mut b, A).await, [7]);
}

#[tokio::test]
async fn a_fault_stays_with_the_name_of_a_port_that_is_plugged_anew() {
    let net = Switch::new().network("n");
    let (mut a, _pa) = plug(&net, "a/n");
    let (b, pb) = plug(&net, "b/n");
    net.set_fault("b", Direction::To, fault("loss=100%")).unwrap();
    drop((b, pb));
    let ((mut b, pb), (mut c, _pc)) = (plug(&net, "b/n"), plug(&net, "c/n"));
    c.sees_only(&mut a, &frame(BROADCAST, A, b"x")).await;
    until(|| pb.counters().to.lost == 1).await;
    assert_eq!(net.faults()[0].0, "b/n");
    net.set_fault("b/n", Direction::To, None).unwrap();
    b.sees_only(&mut a, &frame(BROADCAST, A, b"y")).await;
}

#[tokio::test]
async fn a_fault_of_the_whole_network_is_there_for_those_who_come_later() {
    let net = Switch::new().network("n");
    let (mut a, _pa) = plug(&net, "a");
    net.set_fault_everywhere(Direction::To, fault("loss=100%"));
    let (mut b, pb) = plug(&net, "b");
    a.send(&frame(BROADCAST, A, b"lost")).await;
    until(|| pb.counters().to.lost == 1).await;
    net.set_fault_everywhere(Direction::To, None);
    b.sees_only(&mut a, &frame(BROADCAST, A, b"found")).await;
}

#[tokio::test]
async fn a_port_that_is_not_there_is_told_with_those_that_are() {
    let switch = Switch::new();
    let net = switch.network("n");
    let _ports = (plug(&net, "one/n"), plug(&net, "two/n"));
    let error = net.set_fault("three", Direction::To, None).unwrap_err();
    assert!(error.message().contains("no port `three`"), "{error}");
    assert_eq!(error.hint_text(), Some("there is `one/n`, `two/n`"));
    for error in [
        net.partition(&[["three"]]).unwrap_err(),
        net.capture(Some("three"), "never".as_ref(), None).unwrap_err(),
        switch.network_of("three").unwrap_err(),
    ] {
        assert!(error.hint_text().unwrap().contains("`two/n`"), "{error}");
    }
    assert!(!std::path::Path::new("never").exists());
    assert_eq!(switch.network_of("two/n").unwrap().name(), "n");
    assert_eq!(switch.find("m").unwrap_err().hint_text(), Some("there is `n`"));
}

#[tokio::test]
async fn a_partition_separates_its_groups_and_a_heal_joins_them() {
    let net = Switch::new().network("n");
    let ((mut a, pa), (mut b, pb), (mut c, _pc), (mut d, _pd)) =
        (plug(&net, "a"), plug(&net, "b"), plug(&net, "c"), plug(&net, "d"));
    // All are known before, so that learned ways are cut too.
    for (nic, mac) in [(&mut a, A), (&mut b, B), (&mut c, C)] {
        nic.send(&frame(mac, mac, b"here")).await;
    }
    until(|| net.0.plugged().iter().map(|p| p.counters().tx_frames).sum::<u64>() == 9).await;
    for nic in [&mut a, &mut b, &mut c] {
        nic.receive().await;
        nic.receive().await;
    }
    for _ in 0..3 {
        d.receive().await;
    }

    net.partition(&[["a", "c"]]).unwrap();
    a.send(&frame(B, A, b"across")).await;
    c.sees_only(&mut a, &frame(BROADCAST, A, b"within")).await;
    b.send(&frame(A, B, b"across")).await;
    d.sees_only(&mut b, &frame(BROADCAST, B, b"the others are one group")).await;
    until(|| pa.counters().separated == 2 && pb.counters().separated == 2).await;

    net.cut();
    a.send(&frame(C, A, b"cut")).await;
    until(|| pa.counters().separated == 3).await;

    net.heal();
    b.sees_only(&mut a, &frame(B, A, b"joined")).await;
    a.sees_only(&mut b, &frame(A, B, b"joined")).await;
    c.sees_only(&mut b, &frame(BROADCAST, B, b"joined")).await;
    let error = net.partition(&[&["a", "b"][..], &["c", "a"]]).unwrap_err();
    assert!(error.message().contains("a is in two groups"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn every_frame_comes_or_is_in_a_counter_whatever_the_faults() {
    const FRAMES: u64 = 500;
    /// What goes on of `frames` that met a fault.
    fn left(frames: u64, c: FaultCounters) -> u64 {
        assert_eq!(c.met, frames);
        frames - c.lost + c.duplicated - c.over_rate - c.overflowed
    }
    let texts = [
        "loss=10% duplicate=20%",
        "latency=3ms jitter=2ms reorder=30% loss=5%",
        "rate=1mbit duplicate=50% reorder=10%",
        "rate=64kbit latency=1s jitter=1s",
    ];
    for (seed, (one, other)) in (0..).zip(texts.iter().flat_map(|a| texts.map(|b| (a, b)))) {
        let net = Switch::seeded(seed).network("n");
        let (a, mut b) = (net.station("a"), net.station("b"));
        net.set_fault("a", Direction::From, fault(one)).unwrap();
        net.set_fault("b", Direction::To, fault(other)).unwrap();
        for n in 0..FRAMES as u32 {
            a.to_switch.send(numbered(BROADCAST, A, n, 1000)).await.unwrap();
            if n % 50 == 0 {
                tokio::time::advance(Duration::from_millis(1)).await;
            }
        }
        let came = drained(&mut b, A).await.len() as u64;
        let (from, to) = (a.port.counters(), b.port.counters());
        assert_eq!(
            left(left(FRAMES, from.from), to.to),
            came,
            "{one} and {other}: {from:?} {to:?}"
        );
        assert_eq!((from.dropped, to.dropped, to.tx_frames), (0, 0, came));
    }
}

#[tokio::test(start_paused = true)]
async fn a_cut_link_loses_what_a_lane_lets_out() {
    let net = Switch::new().network("n");
    let (a, mut b) = (net.station("a"), net.station("b"));
    net.set_fault("a", Direction::From, fault("latency=1s")).unwrap();
    send(&a, A, 3).await;
    until(|| net.waiting() >= 3).await;
    a.port.set_link(false);
    assert_eq!(drained(&mut b, A).await, [] as [u32; 0]);
    assert_eq!(a.port.counters().dropped, 3);
}
