//! An address that outside has no way to: not silent because nobody sent anything, but unknown on
//! the wire, where one that is known is found in the same window.

use super::outside::{Outside, Wire};
use super::silence::EVERY;
use crate::error::{Error, Kind, Result};
use crate::lab::outside::Neighbour;
use crate::lab::wire::{Frame, Operation};
use crate::wait::together;
use bytes::Bytes;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;

/// What was seen in a window.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    pub rounds: u32,
    /// Pings of the control that were answered, and ARP requests for it.
    pub control_pings: u32,
    pub control_arp: u32,
    /// ARP requests for the target that were answered.
    pub arp: u32,
    /// Why pings of the target cannot be sent; None where there is a way to it.
    pub no_way: Option<String>,
    pub wire: OnWire,
}

/// Counts of frames on the wire itself, whoever sent them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OnWire {
    /// ARP requests for the target: that they left.
    pub asked: u64,
    /// ARP packets of somebody who says that he is the target.
    pub claims: u64,
    /// IPv4 packets from or to the target.
    pub packets: u64,
    /// IPv4 packets from the control: that the wire is seen.
    pub control: u64,
}

#[derive(Debug, Default)]
struct Counts {
    asked: AtomicU64,
    claims: AtomicU64,
    packets: AtomicU64,
    control: AtomicU64,
}

impl Counts {
    fn look(&self, frame: &[u8], target: Ipv4Addr, control: Ipv4Addr) {
        let Some(frame) = Frame::parse(frame) else { return };
        let add = |n: &AtomicU64| n.fetch_add(1, Ordering::Relaxed);
        if let Some(arp) = frame.arp() {
            if arp.sender == target {
                add(&self.claims);
            } else if arp.target == target && arp.operation == Operation::Request {
                add(&self.asked);
            }
        } else if let Some(ip) = frame.ipv4() {
            if ip.src == target || ip.dst == target {
                add(&self.packets);
            } else if ip.src == control {
                add(&self.control);
            }
        }
    }

    fn now(&self) -> OnWire {
        let get = |n: &AtomicU64| n.load(Ordering::Relaxed);
        OnWire {
            asked: get(&self.asked),
            claims: get(&self.claims),
            packets: get(&self.packets),
            control: get(&self.control),
        }
    }
}

/// Looks from now on.
struct Watch {
    counts: Arc<Counts>,
    _tap: mpsc::Receiver<Bytes>,
}

impl Watch {
    fn start(wire: &dyn Wire, target: Ipv4Addr, control: Ipv4Addr) -> Watch {
        let counts = Arc::new(Counts::default());
        let counting = counts.clone();
        // Counted in the filter itself: no frame is copied, so none can be lost to a slow reader.
        let tap = wire.tap(Box::new(move |frame| {
            counting.look(frame, target, control);
            false
        }));
        Watch { counts, _tap: tap }
    }
}

/// Asks who has `target` and who has `control`, and pings both, all at once, `rounds` times, one
/// round [`EVERY`] so often. An answer may take `timeout`.
///
/// Nothing is sent to the target through the router: a router forwards what is sent to it, and that
/// would prove the opposite of nothing.
pub async fn look(
    outside: &dyn Outside,
    wire: &dyn Wire,
    target: Ipv4Addr,
    control: Ipv4Addr,
    rounds: u32,
    timeout: Duration,
) -> Seen {
    let watch = Watch::start(wire, target, control);
    let mut seen = Seen { rounds, ..Seen::default() };
    let known = |n: Result<Neighbour>| u32::from(matches!(n, Ok(Neighbour::Known(_))));
    let mut no_way = None;
    let round = |n| async move {
        tokio::time::sleep(EVERY * n).await;
        tokio::join!(
            outside.who_has(target, timeout),
            outside.ping(target, timeout),
            outside.who_has(control, timeout),
            outside.ping(control, timeout),
        )
    };
    for (arp, ping, control_arp, control_ping) in together((0..rounds).map(round)).await {
        seen.arp += known(arp);
        seen.control_arp += known(control_arp);
        seen.control_pings += u32::from(matches!(control_ping, Ok(Some(_))));
        no_way = ping.err().map(|e| e.to_string());
        if no_way.is_none() {
            break;
        }
    }
    Seen { no_way, wire: watch.counts.now(), ..seen }
}

/// The address is hidden if nobody on the wire answers for it and no packet bears it, while all that
/// is looked at works for the control.
pub fn judge(target: Ipv4Addr, control: Ipv4Addr, seen: &Seen) -> Result<String> {
    let wrong = |text: String| Err(Error::new(Kind::Proof, text));
    let Seen { rounds, control_pings, control_arp, arp, no_way, wire } = seen;
    if no_way.is_none() {
        return wrong(format!("outside should have no way to {target}, but it has a route to it"));
    }
    if *arp > 0 || wire.claims > 0 {
        return wrong(format!(
            "expected nobody outside to have {target}, but ARP for it was answered ({arp} of \
             {rounds} requests; {} claims on the wire)",
            wire.claims
        ));
    }
    if wire.packets > 0 {
        return wrong(format!(
            "expected no packet from or to {target} outside, saw {}: the router let them through \
             as they were",
            wire.packets
        ));
    }
    let enough = |n: u64| *rounds > 0 && n * 5 >= u64::from(*rounds) * 4;
    if !enough(wire.asked) {
        return wrong(format!(
            "only {} of {rounds} ARP requests for {target} were seen on the wire: this silence \
             proves nothing",
            wire.asked
        ));
    }
    let (pings, answers) = (u64::from(*control_pings), u64::from(*control_arp));
    if !enough(pings) || !enough(answers) || !enough(wire.control) {
        return wrong(format!(
            "{target} was silent, but so was the control {control} ({pings} of {rounds} pings and \
             {answers} of {rounds} ARP requests answered, {} packets of it on the wire): this \
             silence proves nothing",
            wire.control
        ));
    }
    Ok(format!(
        "{} ARP requests for {target} unanswered and no packet from or to it on the wire, while \
         {control} answered {pings} of {rounds} pings and {answers} of {rounds} ARP requests ({})",
        wire.asked,
        no_way.as_deref().unwrap_or_default()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::mac::Mac;
    use crate::lab::wire::{Arp, BROADCAST, ETHERTYPE_IPV4, echo_request, ethernet_header};

    const T: Ipv4Addr = Ipv4Addr::new(10, 5, 5, 12);
    const C: Ipv4Addr = Ipv4Addr::new(172, 24, 4, 105);
    const US: Ipv4Addr = Ipv4Addr::new(172, 24, 4, 1);

    fn good() -> Seen {
        Seen {
            rounds: 10,
            control_pings: 10,
            control_arp: 10,
            arp: 0,
            no_way: Some("no route".into()),
            wire: OnWire { asked: 10, claims: 0, packets: 0, control: 10 },
        }
    }

    #[test]
    fn an_address_nobody_answers_for_beside_one_that_is_known_is_hidden() {
        let told = judge(T, C, &good()).unwrap();
        assert!(told.contains("10 ARP requests for 10.5.5.12 unanswered"), "{told}");
    }

    #[test]
    fn every_sign_of_the_address_and_every_dead_control_is_a_failure() {
        let fails = |why: &str, change: fn(&mut Seen)| {
            let mut seen = good();
            change(&mut seen);
            let e = judge(T, C, &seen).unwrap_err().to_string();
            assert!(e.contains(why), "`{why}` is not in: {e}");
        };
        fails("has a route", |s| s.no_way = None);
        fails("ARP for it was answered", |s| s.arp = 1);
        fails("ARP for it was answered", |s| s.wire.claims = 1);
        fails("no packet from or to", |s| s.wire.packets = 1);
        // Nothing but `no route` is no proof: the requests must have been on the wire.
        fails("proves nothing", |s| s.wire.asked = 0);
        fails("proves nothing", |s| s.control_pings = 7);
        fails("proves nothing", |s| s.control_arp = 0);
        fails("proves nothing", |s| s.wire.control = 0);
        fails("proves nothing", |s| s.rounds = 0);
    }

    #[test]
    fn frames_are_counted_by_what_they_say_of_the_address() {
        let counts = Counts::default();
        let arp = |operation, sender, target| {
            let (sender_mac, target_mac) = (Mac([2, 0, 0, 0, 0, 1]), Mac([0; 6]));
            Arp { operation, sender_mac, sender, target_mac, target }.frame(BROADCAST)
        };
        let packet = |src, dst| {
            let header = ethernet_header(BROADCAST, Mac([2; 6]), ETHERTYPE_IPV4);
            [&header[..], &echo_request(src, dst, 1, 1, b"x")].concat()
        };
        for frame in [
            arp(Operation::Request, US, T),
            arp(Operation::Request, US, C),
            arp(Operation::Reply, C, US),
            packet(US, C),
            packet(C, US),
            packet(C, US),
            vec![1, 2, 3],
        ] {
            counts.look(&frame, T, C);
        }
        assert_eq!(counts.now(), OnWire { asked: 1, claims: 0, packets: 0, control: 2 });
        for frame in [arp(Operation::Reply, T, US), packet(T, US), packet(US, T)] {
            counts.look(&frame, T, C);
        }
        assert_eq!(counts.now(), OnWire { asked: 1, claims: 1, packets: 2, control: 2 });
    }
}
