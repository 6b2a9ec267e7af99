mod captures;
mod faults;

use super::*;
use crate::lab::mac::Mac;
use crate::lab::wire::{self, BROADCAST};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

const A: Mac = Mac([2, 0, 0, 0, 0, 0xa]);
const B: Mac = Mac([2, 0, 0, 0, 0, 0xb]);
const C: Mac = Mac([2, 0, 0, 0, 0, 0xc]);

/// QEMU's side of a port.
struct Nic(UnixStream);

fn plug(network: &Network, name: &str) -> (Nic, Port) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (Nic(theirs), network.plug(name, ours))
}

fn frame(dst: Mac, src: Mac, body: &[u8]) -> Vec<u8> {
    [&wire::ethernet_header(dst, src, 0x88b5)[..], body].concat()
}

fn framed(frame: &[u8]) -> Vec<u8> {
    [&(frame.len() as u32).to_be_bytes()[..], frame].concat()
}

impl Nic {
    async fn send(&mut self, frame: &[u8]) {
        self.0.write_all(&framed(frame)).await.unwrap();
    }
    async fn receive(&mut self) -> Vec<u8> {
        receive_from(&mut self.0).await
    }
    /// The next frame is `marker`, so nothing else came before it.
    async fn sees_only(&mut self, from: &mut Nic, marker: &[u8]) {
        from.send(marker).await;
        assert_eq!(self.receive().await, marker);
    }
}

async fn receive_from(socket: &mut (impl AsyncReadExt + Unpin)) -> Vec<u8> {
    soon(async {
        let length = socket.read_u32().await.unwrap();
        let mut frame = vec![0; length as usize];
        socket.read_exact(&mut frame).await.unwrap();
        frame
    })
    .await
}

/// No test waits for ever.
async fn soon<T>(work: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(60), work).await.expect("it came to nothing")
}

async fn until(what: impl Fn() -> bool) {
    soon(async {
        while !what() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn an_unknown_address_is_flooded_and_a_learned_one_is_not() {
    let net = Switch::new().network("n");
    let ((mut a, _pa), (mut b, _pb), (mut c, pc)) =
        (plug(&net, "a"), plug(&net, "b"), plug(&net, "c"));
    a.send(&frame(B, A, b"anybody")).await;
    assert_eq!(b.receive().await, frame(B, A, b"anybody"));
    assert_eq!(c.receive().await, frame(B, A, b"anybody"));

    b.send(&frame(A, B, b"me")).await;
    assert_eq!(a.receive().await, frame(A, B, b"me"));
    a.send(&frame(B, A, b"for you")).await;
    assert_eq!(b.receive().await, frame(B, A, b"for you"));
    c.sees_only(&mut a, &frame(BROADCAST, A, b"all")).await;
    until(|| pc.counters().tx_frames == 2).await;
}

#[tokio::test]
async fn networks_of_one_switch_are_apart_and_a_name_is_one_network() {
    let switch = Switch::new();
    let (mut a, _pa) = plug(&switch.network("one"), "a");
    let (mut b, _pb) = plug(&switch.network("two"), "b");
    let (mut c, _pc) = plug(&switch.network("one"), "c");
    let (mut d, _pd) = plug(&switch.network("two"), "d");
    a.send(&frame(BROADCAST, A, b"one")).await;
    assert_eq!(c.receive().await, frame(BROADCAST, A, b"one"));
    b.sees_only(&mut d, &frame(BROADCAST, B, b"two")).await;
}

#[tokio::test]
async fn an_address_that_moves_is_followed() {
    let net = Switch::new().network("n");
    let ((mut a, _pa), (mut b, _pb), (mut c, _pc)) =
        (plug(&net, "a"), plug(&net, "b"), plug(&net, "c"));
    b.send(&frame(BROADCAST, B, b"here")).await;
    a.receive().await;
    c.receive().await;
    c.send(&frame(BROADCAST, B, b"moved")).await;
    a.receive().await;
    b.receive().await;
    a.send(&frame(B, A, b"found")).await;
    assert_eq!(c.receive().await, frame(B, A, b"found"));
    b.sees_only(&mut a, &frame(BROADCAST, A, b"all")).await;
}

#[tokio::test]
async fn frames_cut_anywhere_by_the_socket_arrive_whole() {
    let net = Switch::new().network("n");
    let ((mut a, _pa), (mut b, _pb)) = (plug(&net, "a"), plug(&net, "b"));
    let long = frame(B, A, &vec![7; LONGEST_FRAME - wire::ETHERNET_HEADER]);
    let bytes = [framed(&frame(B, A, b"1")), framed(&long), framed(&frame(B, A, b"3"))].concat();
    let sender = tokio::spawn(async move {
        let (start, rest) = bytes.split_at(40);
        for byte in start {
            a.0.write_all(&[*byte]).await.unwrap();
            tokio::task::yield_now().await;
        }
        for piece in rest.chunks(999) {
            a.0.write_all(piece).await.unwrap();
        }
        a
    });
    assert_eq!(b.receive().await, frame(B, A, b"1"));
    assert_eq!(b.receive().await, long);
    assert_eq!(b.receive().await, frame(B, A, b"3"));
    sender.await.unwrap();
}

/// Sends `count` numbered frames and reads as many, at once.
async fn storm(nic: Nic, to: Mac, from: Mac, count: u32, reads: u32) {
    let (mut rd, mut wr) = nic.0.into_split();
    let sender = tokio::spawn(async move {
        for n in 0..count {
            let mut body = vec![0; 1500];
            body[..4].copy_from_slice(&n.to_be_bytes());
            wr.write_all(&framed(&frame(to, from, &body))).await.unwrap();
        }
        wr
    });
    for n in 0..reads {
        let frame = receive_from(&mut rd).await;
        assert_eq!(u32::from_be_bytes(*frame[14..].first_chunk().unwrap()), n);
    }
    soon(sender).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_ports_that_saturate_each_other_lose_nothing_and_never_lock_up() {
    const COUNT: u32 = 10_000;
    let net = Switch::new().network("n");
    let ((a, pa), (b, pb)) = (plug(&net, "a"), plug(&net, "b"));
    let one = tokio::spawn(storm(a, B, A, COUNT, COUNT));
    let two = tokio::spawn(storm(b, A, B, COUNT, COUNT));
    soon(async { (one.await.unwrap(), two.await.unwrap()) }).await;
    for port in [pa, pb] {
        // A frame is counted once its write has returned: the machine may have it before that.
        until(|| port.counters().tx_frames >= COUNT.into()).await;
        let c = port.counters();
        assert_eq!((c.rx_frames, c.tx_frames, c.dropped), (COUNT.into(), COUNT.into(), 0));
        assert_eq!(c.rx_bytes, u64::from(COUNT) * 1514);
        assert_eq!(c.tx_bytes, c.rx_bytes);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_ports_in_a_circle_lose_nothing_and_never_lock_up() {
    const COUNT: u32 = 5_000;
    let net = Switch::new().network("n");
    let ((mut a, _pa), (mut b, _pb), (mut c, _pc)) =
        (plug(&net, "a"), plug(&net, "b"), plug(&net, "c"));
    // Everybody becomes known first, else the first frames are flooded.
    a.send(&frame(BROADCAST, A, b"")).await;
    b.receive().await;
    c.receive().await;
    b.send(&frame(BROADCAST, B, b"")).await;
    a.receive().await;
    c.receive().await;
    c.send(&frame(BROADCAST, C, b"")).await;
    a.receive().await;
    b.receive().await;
    let storms = [
        tokio::spawn(storm(a, B, A, COUNT, COUNT)),
        tokio::spawn(storm(b, C, B, COUNT, COUNT)),
        tokio::spawn(storm(c, A, C, COUNT, COUNT)),
    ];
    for storm in storms {
        soon(storm).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_that_reads_nothing_stops_nobody_and_its_losses_are_counted() {
    const COUNT: u32 = 2_000;
    let net = Switch::new().network("n");
    let ((a, _pa), (b, pb), (mut paused, pp)) =
        (plug(&net, "a"), plug(&net, "b"), plug(&net, "paused"));
    let (one, two) = tokio::join!(
        tokio::spawn(storm(a, BROADCAST, A, COUNT, 0)),
        tokio::spawn(storm(b, A, B, 0, COUNT)),
    );
    one.unwrap();
    two.unwrap();
    until(|| pb.counters().tx_frames == u64::from(COUNT)).await;
    assert_eq!(pb.counters().dropped, 0);
    let lost = pp.counters().dropped;
    assert!(lost > 0);

    // It wakes up: what was not dropped comes, in order, and then new frames again.
    for n in 0..COUNT - lost as u32 {
        let frame = paused.receive().await;
        assert_eq!(u32::from_be_bytes(*frame[14..].first_chunk().unwrap()), n);
    }
    let (mut d, _pd) = plug(&net, "d");
    paused.sees_only(&mut d, &frame(BROADCAST, C, b"awake")).await;
    assert_eq!(pp.counters().dropped, lost);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_port_holds_its_sender_back_and_loses_nothing() {
    const COUNT: u32 = 1_000;
    let net = Switch::new().network("n");
    let ((a, pa), (mut b, pb)) = (plug(&net, "a"), plug(&net, "b"));
    let sender = tokio::spawn(storm(a, B, A, COUNT, 0));
    // More than the sockets and the queue can hold was sent, less than all: it is held back.
    until(|| pa.counters().rx_frames >= queue::DEPTH as u64 / 1518).await;
    for n in 0..COUNT {
        let frame = b.receive().await;
        assert_eq!(u32::from_be_bytes(*frame[14..].first_chunk().unwrap()), n);
    }
    soon(sender).await.unwrap();
    assert_eq!(pb.counters().dropped, 0);
}

/// The kernel calls a socket writable only when three quarters of its buffer are free: this reader
/// needs two seconds for that, and takes something all the time.
#[tokio::test(start_paused = true)]
async fn a_reader_that_is_slower_than_the_kernel_tells_is_not_taken_for_a_paused_one() {
    const COUNT: u32 = 600;
    let net = Switch::new().network("n");
    let ((a, pa), (b, pb)) = (plug(&net, "a"), plug(&net, "b"));
    let sender = tokio::spawn(storm(a, B, A, COUNT, 0));
    let mut left = COUNT as usize * 1518;
    while left > 0 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let read = b.0.try_read(&mut [0; 8192]).unwrap();
        assert!(read > 0);
        left -= read;
    }
    sender.await.unwrap();
    until(|| pb.counters().tx_frames >= COUNT.into()).await;
    let (a, b) = (pa.counters(), pb.counters());
    assert_eq!((a.rx_frames, b.tx_frames, b.dropped), (COUNT.into(), COUNT.into(), 0));
}

#[tokio::test]
async fn a_bad_length_closes_that_port_alone_and_says_why() {
    let net = Switch::new().network("n");
    let ((mut a, _pa), (mut b, _pb)) = (plug(&net, "a"), plug(&net, "b"));
    for bad in [0, LONGEST_FRAME as u32 + 1, u32::MAX] {
        let (mut broken, port) = plug(&net, "openstack1/management");
        broken.0.write_u32(bad).await.unwrap();
        let cause = soon(port.death().wait()).await;
        assert!(cause.contains("openstack1/management"), "{cause}");
        assert!(cause.contains(&format!("{bad} bytes")), "{cause}");
        assert_eq!(soon(broken.0.read(&mut [0; 9])).await.unwrap_or(0), 0, "closed");
        b.sees_only(&mut a, &frame(BROADCAST, A, b"still here")).await;
    }
}

#[tokio::test]
async fn a_frame_without_a_header_is_dropped_and_the_port_lives_on() {
    let net = Switch::new().network("n");
    let ((mut a, pa), (mut b, _pb)) = (plug(&net, "a"), plug(&net, "b"));
    a.send(&[1; 13]).await;
    b.sees_only(&mut a, &frame(BROADCAST, A, b"good")).await;
    assert_eq!(pa.counters().dropped, 1);
}

#[tokio::test]
async fn a_closed_peer_is_unplugged_and_its_addresses_are_forgotten() {
    let net = Switch::new().network("n");
    let ((mut a, _pa), (mut b, pb), (mut c, _pc)) =
        (plug(&net, "a"), plug(&net, "b"), plug(&net, "c"));
    b.send(&frame(BROADCAST, B, b"here")).await;
    a.receive().await;
    c.receive().await;
    drop(b);
    let cause = soon(pb.death().wait()).await;
    assert!(cause.contains("closed the connection"), "{cause}");
    // Forgotten, so flooded: the machine may come back on another port.
    c.sees_only(&mut a, &frame(B, A, b"where are you")).await;
}

#[tokio::test]
async fn a_dropped_port_closes_its_socket() {
    let net = Switch::new().network("n");
    let (mut a, pa) = plug(&net, "a");
    let death = pa.death();
    drop(pa);
    assert_eq!(soon(a.0.read(&mut [0; 9])).await.unwrap(), 0);
    assert!(death.cause().is_some());
}

#[tokio::test]
async fn a_cut_link_drops_both_directions_and_a_healed_one_carries_again() {
    let net = Switch::new().network("n");
    let ((mut a, pa), (mut b, pb), (mut c, _pc)) =
        (plug(&net, "a"), plug(&net, "b"), plug(&net, "c"));
    b.send(&frame(BROADCAST, B, b"here")).await;
    a.receive().await;
    c.receive().await;
    pb.set_link(false);
    a.send(&frame(B, A, b"lost")).await;
    b.send(&frame(A, B, b"lost too")).await;
    until(|| pb.counters().dropped == 2).await;
    pb.set_link(true);
    b.sees_only(&mut a, &frame(B, A, b"found")).await;
    a.sees_only(&mut b, &frame(A, B, b"found too")).await;
    assert_eq!((pa.counters().dropped, pb.counters().dropped), (0, 2));
}

#[tokio::test]
async fn a_tap_sees_copies_of_what_it_wants_and_disturbs_nobody() {
    let net = Switch::new().network("n");
    let ((mut a, _pa), (mut b, _pb)) = (plug(&net, "a"), plug(&net, "b"));
    let mut tap = net.tap(|frame| frame.ends_with(b"!"));
    for body in [&b"one"[..], b"two!", b"three", b"four!"] {
        b.sees_only(&mut a, &frame(BROADCAST, A, body)).await;
    }
    assert_eq!(soon(tap.recv()).await.unwrap(), frame(BROADCAST, A, b"two!"));
    assert_eq!(soon(tap.recv()).await.unwrap(), frame(BROADCAST, A, b"four!"));
    assert!(tap.try_recv().is_err());
    drop(tap);
    b.sees_only(&mut a, &frame(BROADCAST, A, b"after!")).await;
    assert_eq!(net.lost_copies(), 0);
}

#[tokio::test]
async fn a_tap_that_nobody_reads_loses_copies_and_slows_nothing() {
    let net = Switch::new().network("n");
    let _tap = net.tap(|_| true);
    let (a, mut b) = (net.station("a"), net.station("b"));
    let small = Bytes::from(frame(BROADCAST, A, b"x"));
    for _ in 0..TAP_DEPTH + 5 {
        a.to_switch.send(small.clone()).await.unwrap();
        assert_eq!(soon(b.from_switch.recv()).await.unwrap(), small);
    }
    assert_eq!(net.lost_copies(), 5);
}

#[tokio::test]
async fn a_station_speaks_with_a_nic() {
    let net = Switch::new().network("n");
    let (mut a, _pa) = plug(&net, "a");
    let mut s = net.station("s");
    a.send(&frame(BROADCAST, A, b"hello")).await;
    assert_eq!(soon(s.from_switch.recv()).await.unwrap(), frame(BROADCAST, A, b"hello"));
    s.to_switch.send(frame(A, B, b"hi").into()).await.unwrap();
    assert_eq!(a.receive().await, frame(A, B, b"hi"));
    let c = s.port.counters();
    assert_eq!((c.rx_frames, c.tx_frames, c.dropped), (1, 1, 0));
}

#[tokio::test]
async fn what_a_station_sent_before_it_went_is_still_delivered() {
    let net = Switch::new().network("n");
    let (mut a, _pa) = plug(&net, "a");
    let s = net.station("s");
    for n in 0..100u8 {
        s.to_switch.try_send(frame(BROADCAST, B, &[n]).into()).unwrap();
    }
    drop(s);
    for n in 0..100u8 {
        assert_eq!(a.receive().await, frame(BROADCAST, B, &[n]));
    }
}

#[tokio::test]
async fn a_network_that_shows_too_many_addresses_still_carries() {
    let net = Switch::new().network("n");
    let (mut a, mut b) = (net.station("a"), net.station("b"));
    b.to_switch.send(frame(A, B, b"").into()).await.unwrap();
    soon(a.from_switch.recv()).await.unwrap();
    for n in 0..5_000u32 {
        let mut mac = A;
        mac.0[1..5].copy_from_slice(&n.to_be_bytes());
        a.to_switch.send(frame(B, mac, b"").into()).await.unwrap();
        soon(b.from_switch.recv()).await.unwrap();
    }
}
