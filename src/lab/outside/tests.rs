use super::*;
use crate::lab::switch::Switch;
use crate::lab::wire::{Arp, BROADCAST, ETHERTYPE_IPV4, Frame, Ipv4, Operation, ethernet_header};
use std::io::ErrorKind;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::timeout;

const US: Ipv4Addr = Ipv4Addr::new(172, 24, 4, 1);
const PEER: Ipv4Addr = Ipv4Addr::new(172, 24, 4, 10);
const NOBODY: Ipv4Addr = Ipv4Addr::new(172, 24, 4, 99);
const SHORT: Duration = Duration::from_millis(300);
const LONG: Duration = Duration::from_secs(60);
const OLD: Mac = Mac([2, 0, 0, 0, 0, 0x10]);
const NEW: Mac = Mac([2, 0, 0, 0, 0, 0x20]);

fn at(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(PEER, port)
}

fn legs() -> (Network, Leg, Leg) {
    let net = Switch::new().network("external");
    let (us, peer) = (Leg::new(&net, US, 24), Leg::new(&net, PEER, 24));
    (net, us, peer)
}

/// No test waits for ever. (In tests with a paused clock: for ten hours.)
async fn soon<T>(work: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(36_000), work).await.expect("it came to nothing")
}

/// A connection from `us` to `peer`, both ends.
async fn connected(us: &Leg, peer: &Leg) -> (TcpStream, TcpStream) {
    let listener = peer.listen(22).await.unwrap();
    let (ours, (theirs, _)) =
        tokio::join!(async { us.connect(at(22), LONG).await.unwrap() }, listener.accept());
    (ours, theirs)
}

/// Bytes that repeat only after long, so that lost, doubled and swapped pieces show.
fn pattern(length: usize, seed: u32) -> Vec<u8> {
    let mut state = seed | 1;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as u8
    };
    (0..length).map(next).collect()
}

#[tokio::test]
async fn hanging_up_ends_every_connection_on_both_sides_and_leaves_the_leg_usable() {
    let (_net, us, peer) = legs();
    let (mut ours, mut theirs) = connected(&us, &peer).await;
    us.hang_up();
    let told = soon(ours.read_u8()).await.unwrap_err();
    assert!(told.to_string().contains("was closed here"), "{told}");
    let heard = soon(theirs.read_u8()).await.unwrap_err();
    assert_eq!(heard.kind(), ErrorKind::ConnectionReset, "{heard}");
    drop((ours, theirs));
    let (mut ours, mut theirs) = connected(&us, &peer).await;
    ours.write_all(b"x").await.unwrap();
    assert_eq!(soon(theirs.read_u8()).await.unwrap(), b'x');
}

async fn read_all(from: &mut (impl AsyncRead + Unpin)) -> Vec<u8> {
    let mut all = Vec::new();
    soon(from.read_to_end(&mut all)).await.unwrap();
    all
}

/// A machine made of what a test wants it to do with each frame, on a network of its own making.
struct Machine(tokio::task::AbortHandle);

impl Machine {
    /// Answers ARP for `address` with `mac`, gives other frames to `other`, sends what it returns.
    fn new(
        net: &Network,
        address: Ipv4Addr,
        mac: Mac,
        mut other: impl FnMut(&Frame<'_>) -> Option<Vec<u8>> + Send + 'static,
    ) -> Machine {
        let Station { to_switch, mut from_switch, port } = net.station("machine");
        let task = tokio::spawn(async move {
            let _port = port;
            while let Some(bytes) = from_switch.recv().await {
                let frame = Frame::parse(&bytes).unwrap();
                let answer = match frame.arp() {
                    Some(arp) => (arp.operation == Operation::Request && arp.target == address)
                        .then(|| {
                            let (sender_mac, target_mac) = (mac, arp.sender_mac);
                            let (sender, target) = (address, arp.sender);
                            let operation = Operation::Reply;
                            Arp { operation, sender_mac, sender, target_mac, target }
                                .frame(arp.sender_mac)
                        }),
                    None if frame.dst == mac => other(&frame),
                    None => None,
                };
                if let Some(answer) = answer {
                    to_switch.send(answer.into()).await.unwrap();
                }
            }
        });
        Machine(task.abort_handle())
    }

    fn deaf(net: &Network, address: Ipv4Addr, mac: Mac) -> Machine {
        Machine::new(net, address, mac, |_| None)
    }

    /// Answers pings, its replies arriving with this TTL.
    fn pinged(net: &Network, address: Ipv4Addr, mac: Mac, ttl: u8) -> Machine {
        Machine::new(net, address, mac, move |frame| {
            let packet = frame.ipv4()?;
            packet.icmp()?.echo()?;
            Some(echo_reply(frame, &packet, ttl))
        })
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn echo_reply(request: &Frame<'_>, packet: &Ipv4<'_>, ttl: u8) -> Vec<u8> {
    let (ident, seq, data) = packet.icmp().unwrap().echo().unwrap();
    let mut reply = crate::lab::wire::echo_request(packet.dst, packet.src, ident, seq, data);
    // From request to reply: the sum of the ICMP header grows by 8 << 8 with the type's fall.
    reply[20] = 0;
    let sum = u16::from_be_bytes([reply[22], reply[23]]);
    let (sum, carry) = sum.overflowing_add(8 << 8);
    reply[22..24].copy_from_slice(&(sum + u16::from(carry)).to_be_bytes());
    set_ttl(&mut reply, ttl);
    [&ethernet_header(request.src, request.dst, ETHERTYPE_IPV4)[..], &reply].concat()
}

fn set_ttl(packet: &mut [u8], ttl: u8) {
    packet[8] = ttl;
    fix_checksum(packet);
}

fn fix_checksum(packet: &mut [u8]) {
    packet[10..12].fill(0);
    let mut sum: u32 =
        packet[..20].chunks(2).map(|p| u32::from(u16::from_be_bytes([p[0], p[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    packet[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
}

// TCP.

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn megabytes_pass_unharmed_both_ways_at_once() {
    let (_net, us, peer) = legs();
    let (ours, theirs) = connected(&us, &peer).await;
    let pass = |stream: TcpStream, send: Vec<u8>| {
        tokio::spawn(async move {
            let (mut rd, mut wr) = tokio::io::split(stream);
            let sender = tokio::spawn(async move {
                wr.write_all(&send).await.unwrap();
                wr.shutdown().await.unwrap();
                wr
            });
            let got = read_all(&mut rd).await;
            soon(sender).await.unwrap();
            got
        })
    };
    let (up, down) = (pattern(8 << 20, 1), pattern(8 << 20, 2));
    let one = pass(ours, up.clone());
    let two = pass(theirs, down.clone());
    assert!(one.await.unwrap() == down, "what came down is not what was sent");
    assert!(two.await.unwrap() == up, "what came up is not what was sent");
    for leg in [us, peer] {
        assert_eq!(leg.counters().dropped, 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hundreds_of_connections_at_once_each_get_their_own_bytes() {
    const COUNT: u32 = 300;
    let (_net, us, peer) = legs();
    let listener = peer.listen(80).await.unwrap();
    let server = tokio::spawn(async move {
        let mut echoes = JoinSet::new();
        for _ in 0..COUNT {
            let (stream, _) = listener.accept().await;
            echoes.spawn(async move {
                let (mut rd, mut wr) = tokio::io::split(stream);
                tokio::io::copy(&mut rd, &mut wr).await.unwrap();
                wr.shutdown().await.unwrap();
            });
        }
        echoes.join_all().await;
    });
    let mut clients = JoinSet::new();
    for n in 0..COUNT {
        let us = us.clone();
        clients.spawn(async move {
            let mut stream = us.connect(at(80), LONG).await.unwrap();
            let sent = pattern(5_000, n + 7);
            stream.write_all(&sent).await.unwrap();
            stream.shutdown().await.unwrap();
            assert!(read_all(&mut stream).await == sent);
            stream.local_port()
        });
    }
    let ports: std::collections::HashSet<_> = soon(clients.join_all()).await.into_iter().collect();
    assert_eq!(ports.len(), COUNT as usize, "each has a port of its own");
    soon(server).await.unwrap();
}

#[tokio::test]
async fn a_port_without_listener_refuses() {
    let (_net, us, _peer) = legs();
    let failure = us.try_connect(at(23), LONG).await.unwrap_err();
    assert_eq!(failure, ConnectFailure::Refused);
    let error = us.connect(at(23), LONG).await.unwrap_err();
    assert_eq!(error.kind(), crate::error::Kind::Lab);
    assert!(error.to_string().contains("172.24.4.10:23: connection refused"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn an_address_that_nobody_owns_is_unreachable() {
    let (_net, us, _peer) = legs();
    let to = SocketAddrV4::new(NOBODY, 22);
    let failure = us.try_connect(to, LONG).await.unwrap_err();
    assert_eq!(failure, ConnectFailure::Unreachable(Unreachable::NoArpAnswer(NOBODY)));
}

#[tokio::test(start_paused = true)]
async fn a_neighbour_that_vanished_lately_is_unreachable_too() {
    let (_net, us, peer) = legs();
    us.ping(PEER, LONG).await.unwrap().expect("it is there");
    tokio::time::advance(Duration::from_secs(5)).await;
    peer.set_link(false);
    let failure = us.try_connect(at(22), LONG).await.unwrap_err();
    assert_eq!(failure, ConnectFailure::Unreachable(Unreachable::NoArpAnswer(PEER)));
}

#[tokio::test(start_paused = true)]
async fn a_neighbour_that_answers_only_arp_times_out() {
    let net = Switch::new().network("external");
    let us = Leg::new(&net, US, 24);
    let _peer = Machine::deaf(&net, PEER, OLD);
    let failure = us.try_connect(at(22), LONG).await.unwrap_err();
    assert!(matches!(failure, ConnectFailure::TimedOut(_)), "{failure:?}");
}

#[tokio::test(start_paused = true)]
async fn another_subnet_needs_a_gateway() {
    let (_net, us, _peer) = legs();
    let far = SocketAddrV4::new(Ipv4Addr::new(10, 5, 5, 7), 22);
    let failure = us.try_connect(far, LONG).await.unwrap_err();
    assert_eq!(failure, ConnectFailure::Unreachable(Unreachable::NoRoute));
    assert!(us.ping(*far.ip(), SHORT).await.is_err());
    us.set_gateway(Some(NOBODY));
    let failure = us.try_connect(far, LONG).await.unwrap_err();
    assert_eq!(failure, ConnectFailure::Unreachable(Unreachable::NoArpAnswer(NOBODY)));
}

#[tokio::test(start_paused = true)]
async fn a_router_that_says_unreachable_is_believed_at_once() {
    let net = Switch::new().network("external");
    let us = Leg::new(&net, US, 24);
    us.set_gateway(Some(PEER));
    let _router = Machine::new(&net, PEER, OLD, |frame| {
        let packet = frame.ipv4()?;
        packet.tcp()?;
        let mut error = crate::lab::wire::echo_request(PEER, US, 0, 0, &frame.payload[..28]);
        let sum = u16::from_be_bytes([error[22], error[23]]);
        // Type 8 becomes 3, code 0 becomes 1: host unreachable.
        error[20..22].copy_from_slice(&[3, 1]);
        let (sum, carry) = sum.overflowing_add(0x0800 - 0x0301);
        error[22..24].copy_from_slice(&(sum + u16::from(carry)).to_be_bytes());
        Some([&ethernet_header(frame.src, OLD, ETHERTYPE_IPV4)[..], &error].concat())
    });
    let far = SocketAddrV4::new(Ipv4Addr::new(10, 5, 5, 7), 22);
    let start = Instant::now();
    let failure = us.try_connect(far, LONG).await.unwrap_err();
    assert_eq!(failure, ConnectFailure::Unreachable(Unreachable::SaidBy(PEER)));
    assert!(start.elapsed() < LONG);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_comes_up_while_we_connect_is_reached() {
    let (_net, us, peer) = legs();
    peer.set_link(false);
    let listener = peer.listen(22).await.unwrap();
    let late = async {
        tokio::time::advance(Duration::from_secs(20)).await;
        peer.set_link(true);
    };
    let (stream, ()) = tokio::join!(us.connect(at(22), LONG), late);
    stream.unwrap();
    soon(listener.accept()).await;
}

#[tokio::test]
async fn a_connection_given_up_leaves_nothing_behind() {
    let net = Switch::new().network("external");
    let us = Leg::new(&net, US, 24);
    let _peer = Machine::deaf(&net, PEER, OLD);
    assert!(timeout(SHORT, us.connect(at(22), LONG)).await.is_err());
    assert_eq!(us.core().lock().connections(), 0);
    assert!(timeout(SHORT, us.ping(PEER, LONG)).await.is_err());
    assert_eq!(us.core().lock().pings(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_transfer_goes_on_when_a_cut_link_is_healed() {
    let (_net, us, peer) = legs();
    let (mut ours, mut theirs) = connected(&us, &peer).await;
    let sent = pattern(2 << 20, 3);
    let expected = sent.clone();
    let sender = tokio::spawn(async move {
        ours.write_all(&sent).await.unwrap();
        ours.shutdown().await.unwrap();
        ours
    });
    let mut got = vec![0; 300_000];
    soon(theirs.read_exact(&mut got)).await.unwrap();
    peer.set_link(false);
    tokio::time::sleep(Duration::from_secs(40)).await;
    assert!(peer.counters().dropped > 0);
    peer.set_link(true);
    got.extend(read_all(&mut theirs).await);
    assert!(got == expected, "what came is not what was sent");
    soon(sender).await.unwrap();
}

#[tokio::test]
async fn after_a_shutdown_the_other_direction_stays_open() {
    let (_net, us, peer) = legs();
    let (mut ours, mut theirs) = connected(&us, &peer).await;
    ours.write_all(b"question").await.unwrap();
    ours.shutdown().await.unwrap();
    assert_eq!(ours.write(b"more").await.unwrap_err().kind(), ErrorKind::BrokenPipe);
    assert_eq!(read_all(&mut theirs).await, b"question");
    let answer = pattern(1 << 20, 4);
    let (got, ()) = tokio::join!(read_all(&mut ours), async {
        theirs.write_all(&answer).await.unwrap();
        theirs.shutdown().await.unwrap();
    });
    assert!(got == answer);
    // The end stays the end.
    assert_eq!(soon(ours.read(&mut [0; 1])).await.unwrap(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_arrived_is_still_there_long_after_both_sides_closed() {
    let (_net, us, peer) = legs();
    let (mut ours, mut theirs) = connected(&us, &peer).await;
    theirs.write_all(b"last words").await.unwrap();
    theirs.shutdown().await.unwrap();
    ours.shutdown().await.unwrap();
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(read_all(&mut ours).await, b"last words");
    assert_eq!(read_all(&mut theirs).await, b"");
}

#[tokio::test]
async fn a_dropped_stream_still_sends_what_was_written() {
    let (_net, us, peer) = legs();
    let (mut ours, mut theirs) = connected(&us, &peer).await;
    let sent = pattern(200_000, 5);
    ours.write_all(&sent).await.unwrap();
    drop(ours);
    assert!(read_all(&mut theirs).await == sent);
    drop(theirs);
}

#[tokio::test]
async fn a_stream_dropped_with_something_unread_resets() {
    let (_net, us, peer) = legs();
    let (ours, mut theirs) = connected(&us, &peer).await;
    theirs.write_all(b"unread").await.unwrap();
    soon(async {
        while us.core().lock().unread(&ours) == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    drop(ours);
    let error = soon(theirs.read(&mut [0; 9])).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    let error = theirs.write(b"x").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_vanishes_is_noticed_by_reader_and_writer() {
    for write in [true, false] {
        let (_net, us, peer) = legs();
        let (mut ours, _theirs) = connected(&us, &peer).await;
        peer.set_link(false);
        if write {
            ours.write_all(b"anyone?").await.unwrap();
        }
        let start = Instant::now();
        let error = soon(ours.read(&mut [0; 9])).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        // Not while a slow machine may only be standing still.
        assert!(start.elapsed() >= Duration::from_secs(60));
        assert_eq!(ours.write(b"x").await.unwrap_err().kind(), ErrorKind::TimedOut);
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_session_lives_for_hours() {
    let (_net, us, peer) = legs();
    let (mut ours, mut theirs) = connected(&us, &peer).await;
    tokio::time::sleep(Duration::from_secs(4 * 3600)).await;
    ours.write_all(b"still").await.unwrap();
    let mut got = [0; 5];
    soon(theirs.read_exact(&mut got)).await.unwrap();
    assert_eq!(&got, b"still");
}

#[tokio::test(start_paused = true)]
async fn closed_connections_are_forgotten_in_the_end() {
    let (_net, us, peer) = legs();
    for _ in 0..20 {
        let (mut ours, mut theirs) = connected(&us, &peer).await;
        ours.shutdown().await.unwrap();
        assert_eq!(read_all(&mut theirs).await, b"");
    }
    // One whose peer never closes and one whose peer is gone.
    let (_ours, theirs) = connected(&us, &peer).await;
    drop(theirs);
    peer.set_link(false);
    let _ = timeout(SHORT, us.connect(at(22), SHORT)).await;
    drop(_ours);
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(us.core().lock().connections(), 0);
    assert_eq!(peer.core().lock().connections(), 0);
}

#[tokio::test]
async fn the_last_clone_dropped_resets_connections_and_unplugs() {
    let (_net, us, peer) = legs();
    let (mut ours, mut theirs) = connected(&us, &peer).await;
    drop(us.clone());
    ours.write_all(b"x").await.unwrap();
    soon(theirs.read_exact(&mut [0])).await.unwrap();
    drop(us);
    assert_eq!(ours.read(&mut [0]).await.unwrap_err().kind(), ErrorKind::NotConnected);
    let error = soon(theirs.read(&mut [0])).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert_eq!(peer.resolve(US, SHORT).await.unwrap(), Neighbour::Incomplete);
}

#[tokio::test]
async fn a_port_has_one_listener_at_a_time() {
    let (_net, us, peer) = legs();
    let listener = peer.listen(22).await.unwrap();
    assert!(peer.listen(22).await.is_err());
    let mut waiting = us.connect(at(22), LONG).await.unwrap();
    drop(listener);
    // Nobody accepted it, and now nobody will.
    let error = soon(waiting.read(&mut [0])).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert_eq!(us.try_connect(at(22), LONG).await.unwrap_err(), ConnectFailure::Refused);
    peer.listen(22).await.unwrap();
}

/// Carries frames between two networks and loses one in `one_in`.
fn lossy_bridge(one: &Network, two: &Network, one_in: u64) -> Arc<AtomicU64> {
    let lost = Arc::new(AtomicU64::new(0));
    let (a, b) = (one.station("bridge"), two.station("bridge"));
    let carry = |mut from: mpsc::Receiver<Bytes>, to: mpsc::Sender<Bytes>, port: Port| {
        let lost = lost.clone();
        let mut state = pattern(4, 99).iter().fold(1u64, |s, b| s * 257 + u64::from(*b));
        tokio::spawn(async move {
            let _port = port;
            while let Some(frame) = from.recv().await {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                if (state >> 33).is_multiple_of(one_in) {
                    lost.fetch_add(1, Ordering::Relaxed);
                } else if to.send(frame).await.is_err() {
                    return;
                }
            }
        });
    };
    carry(a.from_switch, b.to_switch, a.port);
    carry(b.from_switch, a.to_switch, b.port);
    lost
}

#[tokio::test(start_paused = true)]
async fn a_transfer_survives_a_network_that_loses_frames() {
    let switch = Switch::new();
    let (one, two) = (switch.network("one"), switch.network("two"));
    let lost = lossy_bridge(&one, &two, 50);
    let (us, peer) = (Leg::new(&one, US, 24), Leg::new(&two, PEER, 24));
    let (mut ours, mut theirs) = connected(&us, &peer).await;
    let sent = pattern(1 << 20, 6);
    let expected = sent.clone();
    let sender = tokio::spawn(async move {
        ours.write_all(&sent).await.unwrap();
        ours.shutdown().await.unwrap();
        ours
    });
    assert!(read_all(&mut theirs).await == expected);
    soon(sender).await.unwrap();
    assert!(lost.load(Ordering::Relaxed) > 0);
}

// Neighbours and pings.

#[tokio::test]
async fn a_leg_answers_ping_and_arp() {
    let (_net, us, peer) = legs();
    let echo = us.ping(PEER, LONG).await.unwrap().unwrap();
    assert_eq!(echo.ttl, 64);
    assert_eq!(us.resolve(PEER, LONG).await.unwrap(), Neighbour::Known(peer.mac()));
}

#[tokio::test]
async fn a_ping_tells_the_ttl_of_its_reply() {
    let net = Switch::new().network("external");
    let us = Leg::new(&net, US, 24);
    let _router = Machine::pinged(&net, PEER, OLD, 63);
    assert_eq!(us.ping(PEER, LONG).await.unwrap().unwrap().ttl, 63);
}

#[tokio::test]
async fn many_pings_at_once_are_not_confused() {
    let (_net, us, _peer) = legs();
    let mut pings = JoinSet::new();
    for n in 0..200u8 {
        let us = us.clone();
        pings.spawn(async move {
            if n % 2 == 0 {
                assert!(us.ping(PEER, LONG).await.unwrap().is_some());
            } else {
                assert!(us.ping(NOBODY, SHORT).await.unwrap().is_none());
            }
        });
    }
    soon(pings.join_all()).await;
}

#[tokio::test(start_paused = true)]
async fn silence_is_no_error() {
    let net = Switch::new().network("external");
    let us = Leg::new(&net, US, 24);
    let _deaf = Machine::deaf(&net, PEER, OLD);
    assert_eq!(us.ping(PEER, LONG).await.unwrap(), None);
    assert_eq!(us.ping(NOBODY, LONG).await.unwrap(), None);
    assert_eq!(us.resolve(PEER, LONG).await.unwrap(), Neighbour::Known(OLD));
    assert_eq!(us.resolve(NOBODY, LONG).await.unwrap(), Neighbour::Incomplete);
    assert!(us.resolve(Ipv4Addr::new(10, 0, 0, 1), LONG).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_forged_reply_is_no_reply() {
    let net = Switch::new().network("external");
    let us = Leg::new(&net, US, 24);
    let _liar = Machine::new(&net, PEER, OLD, |frame| {
        let packet = frame.ipv4()?;
        packet.icmp()?.echo()?;
        let mut reply = echo_reply(frame, &packet, 64);
        // The data is not what was sent.
        *reply.last_mut()? ^= 1;
        Some(reply)
    });
    assert_eq!(us.ping(PEER, LONG).await.unwrap(), None);
}

#[tokio::test]
async fn an_announcement_moves_pings_and_connections_to_the_new_owner() {
    let net = Switch::new().network("external");
    let us = Leg::new(&net, US, 24);
    let old = Machine::pinged(&net, PEER, OLD, 63);
    assert_eq!(us.ping(PEER, LONG).await.unwrap().unwrap().ttl, 63);
    drop(old);

    let mut new = net.station("new");
    let announcement = Arp {
        operation: Operation::Request,
        sender_mac: NEW,
        sender: PEER,
        target_mac: Mac([0; 6]),
        target: PEER,
    };
    new.to_switch.send(announcement.frame(BROADCAST).into()).await.unwrap();
    let ping = tokio::spawn({
        let us = us.clone();
        // The announcement races with the first ping, which goes to the old owner then.
        async move {
            loop {
                if let Some(echo) = us.ping(PEER, SHORT).await.unwrap() {
                    return echo;
                }
            }
        }
    });
    soon(async {
        loop {
            let bytes = new.from_switch.recv().await.unwrap();
            let frame = Frame::parse(&bytes).unwrap();
            // What still goes to the old owner is flooded, since its port is gone.
            if let Some(packet) = frame.ipv4().filter(|_| frame.dst == NEW) {
                let reply = echo_reply(&frame, &packet, 61);
                return new.to_switch.send(reply.into()).await.unwrap();
            }
        }
    })
    .await;
    assert_eq!(soon(ping).await.unwrap().ttl, 61);
}

#[tokio::test(start_paused = true)]
async fn a_replaced_machine_is_found_without_announcing_itself() {
    let net = Switch::new().network("external");
    let us = Leg::new(&net, US, 24);
    let old = Machine::pinged(&net, PEER, OLD, 63);
    us.ping(PEER, LONG).await.unwrap().unwrap();
    drop(old);
    let _new = Machine::pinged(&net, PEER, NEW, 62);
    let start = Instant::now();
    soon(async { while us.ping(PEER, Duration::from_secs(1)).await.unwrap().is_none() {} }).await;
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_forgotten_neighbour_is_asked_for_at_once() {
    let net = Switch::new().network("external");
    let us = Leg::new(&net, US, 24);
    let old = Machine::pinged(&net, PEER, OLD, 63);
    us.ping(PEER, LONG).await.unwrap().unwrap();
    drop(old);
    let _new = Machine::pinged(&net, PEER, NEW, 62);
    us.forget(PEER);
    assert_eq!(us.ping(PEER, LONG).await.unwrap().unwrap().ttl, 62);
}

#[tokio::test]
async fn resolve_always_asks_anew() {
    let net = Switch::new().network("external");
    let us = Leg::new(&net, US, 24);
    let peer = Machine::deaf(&net, PEER, OLD);
    assert_eq!(us.resolve(PEER, LONG).await.unwrap(), Neighbour::Known(OLD));
    drop(peer);
    assert_eq!(us.resolve(PEER, SHORT).await.unwrap(), Neighbour::Incomplete);
}

// Time.

#[tokio::test]
async fn time_is_served_over_udp() {
    let net = Switch::new().network("management");
    let us = Leg::new(&net, US, 24);
    us.serve_ntp();
    us.serve_ntp();
    let (tell, mut told) = mpsc::unbounded_channel();
    let _node = Machine::new(&net, PEER, OLD, move |frame| {
        let udp = frame.ipv4()?.udp()?;
        tell.send((udp.src_port, udp.dst_port, udp.payload.to_vec())).unwrap();
        None
    });
    let mut request = vec![0; 8 + ntp::LENGTH];
    request[..2].copy_from_slice(&40_123u16.to_be_bytes());
    request[2..4].copy_from_slice(&123u16.to_be_bytes());
    request[4..6].copy_from_slice(&(8 + ntp::LENGTH as u16).to_be_bytes());
    request[8] = 4 << 3 | 3;
    request[48..56].copy_from_slice(b"originTS");
    let mut packet = vec![0x45, 0];
    packet.extend((20 + request.len() as u16).to_be_bytes());
    packet.extend([0, 0, 0, 0, 64, 17, 0, 0]);
    packet.extend(PEER.octets());
    packet.extend(US.octets());
    packet.extend(&request);
    fix_checksum(&mut packet);
    let frame = [&ethernet_header(us.mac(), NEW, ETHERTYPE_IPV4)[..], &packet].concat();
    net.station("sender").to_switch.send(frame.into()).await.unwrap();

    let (from, to, reply) = soon(told.recv()).await.unwrap();
    assert_eq!((from, to), (123, 40_123));
    assert_eq!(reply.len(), ntp::LENGTH);
    assert_eq!(&reply[24..32], b"originTS");
    let seconds = u32::from_be_bytes(*reply[40..].first_chunk().unwrap());
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let expected = (now.as_secs() + 2_208_988_800) as u32;
    assert!(expected.wrapping_sub(seconds) < 60);
}

#[tokio::test(start_paused = true)]
async fn anybody_on_the_wire_is_found_whatever_his_subnet() {
    let inside = Ipv4Addr::new(10, 5, 5, 12);
    let (net, us, _peer) = legs();
    assert_eq!(soon(us.who_has(inside, SHORT)).await, Neighbour::Incomplete);
    assert!(us.resolve(inside, SHORT).await.is_err(), "it is no neighbour");
    let other = Leg::new(&net, inside, 24);
    assert_eq!(soon(us.who_has(inside, LONG)).await, Neighbour::Known(other.mac()));
}
