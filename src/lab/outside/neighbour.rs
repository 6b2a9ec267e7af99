//! Who has which hardware address: ARP, for one leg.
//!
//! Ours and not smoltcp's, whose cache keeps an address for a minute without asking again, can
//! forget none, and asks for one neighbour a second whatever it is asked for. Here an address that
//! was not confirmed for [`FRESH`] is asked for again while it is used, whoever answers last is
//! believed (a floating IP moves, a machine is replaced), and nothing is believed for ever.

use crate::lab::mac::Mac;
use crate::lab::wire::{self, Arp, BROADCAST, ETHERTYPE_IPV4, Operation};
use bytes::Bytes;
use std::collections::{HashMap, VecDeque};
use std::net::Ipv4Addr;
use std::time::Duration;
use tokio::time::Instant;

/// An address heard this long ago is used without asking again.
const FRESH: Duration = Duration::from_secs(15);

/// Time between two requests for the same address.
pub(super) const ASK_AGAIN: Duration = Duration::from_secs(1);

/// The same while it is not known: a booting machine is spoken to soon after its NIC is up.
const ASK_SOON: Duration = Duration::from_millis(250);

/// After so many unanswered requests the address counts as unknown.
const PATIENCE: u32 = 3;

/// After so many the packets that wait for it are given up. Long, since a machine under emulation
/// may be silent for tens of seconds.
const GIVE_UP: u32 = 240;

/// Packets that wait for one address; the oldest goes first, as in Linux.
const WAITING: usize = 64;

#[derive(Debug)]
pub(super) struct Neighbours {
    mac: Mac,
    address: Ipv4Addr,
    entries: HashMap<Ipv4Addr, Entry>,
}

#[derive(Debug, Default)]
struct Entry {
    mac: Option<Mac>,
    heard: Option<Instant>,
    asked: Option<Instant>,
    /// Requests since it was last heard.
    unanswered: u32,
    /// Frames whose Ethernet header is still to be filled in.
    waiting: VecDeque<Vec<u8>>,
}

impl Neighbours {
    pub fn new(mac: Mac, address: Ipv4Addr) -> Neighbours {
        Neighbours { mac, address, entries: HashMap::new() }
    }

    pub fn known(&self, who: Ipv4Addr) -> Option<Mac> {
        self.entries.get(&who)?.mac
    }

    /// The address, if its owner was heard at `since` or later.
    pub fn heard_since(&self, who: Ipv4Addr, since: Instant) -> Option<Mac> {
        let entry = self.entries.get(&who)?;
        entry.mac.filter(|_| entry.heard.is_some_and(|at| at >= since))
    }

    pub fn forget(&mut self, who: Ipv4Addr) {
        if let Some(entry) = self.entries.get_mut(&who) {
            let waiting = std::mem::take(&mut entry.waiting);
            *entry = Entry { waiting, ..Entry::default() };
        }
    }

    /// Sends an IPv4 packet to a neighbour, at once or when its address becomes known. `frame` is
    /// the packet behind room for an Ethernet header.
    pub fn send(
        &mut self,
        now: Instant,
        to: Ipv4Addr,
        mut frame: Vec<u8>,
        out: &mut VecDeque<Bytes>,
    ) {
        let entry = self.entries.entry(to).or_default();
        if entry.heard.is_none_or(|at| now.duration_since(at) >= FRESH) {
            entry.ask(now, self.mac, self.address, to, out);
        }
        match entry.mac {
            Some(mac) => {
                address_frame(&mut frame, mac, self.mac);
                out.push_back(frame.into());
            }
            None => {
                if entry.waiting.len() == WAITING {
                    entry.waiting.pop_front();
                }
                entry.waiting.push_back(frame);
            }
        }
    }

    /// Asks for an address, at most every [`ASK_AGAIN`], or [`ASK_SOON`] where it is not known.
    pub fn ask(&mut self, now: Instant, who: Ipv4Addr, out: &mut VecDeque<Bytes>) {
        self.entries.entry(who).or_default().ask(now, self.mac, self.address, who, out);
    }

    /// Takes in an ARP packet: learns, answers, and sends what waited for it.
    pub fn hear(&mut self, now: Instant, arp: &Arp, out: &mut VecDeque<Bytes>) {
        let for_us = arp.target == self.address;
        let sane = !arp.sender.is_unspecified()
            && !arp.sender.is_broadcast()
            && arp.sender != self.address
            && !arp.sender_mac.is_group();
        // As in Linux: whoever speaks to us becomes known, others only refresh what is known.
        // That takes in the announcements (gratuitous ARP) of an address that moved.
        if sane && (for_us || self.entries.contains_key(&arp.sender)) {
            let entry = self.entries.entry(arp.sender).or_default();
            entry.mac = Some(arp.sender_mac);
            entry.heard = Some(now);
            entry.unanswered = 0;
            for mut frame in entry.waiting.drain(..) {
                address_frame(&mut frame, arp.sender_mac, self.mac);
                out.push_back(frame.into());
            }
        }
        if for_us && arp.operation == Operation::Request && !arp.sender_mac.is_group() {
            let reply = Arp {
                operation: Operation::Reply,
                sender_mac: self.mac,
                sender: self.address,
                target_mac: arp.sender_mac,
                target: arp.sender,
            };
            out.push_back(reply.frame(arp.sender_mac).into());
        }
    }

    /// Tells everyone our address, for those who still remember an earlier owner.
    pub fn announce(&self, out: &mut VecDeque<Bytes>) {
        out.push_back(request(self.mac, self.address, self.address));
    }

    /// When [`Neighbours::tick`] has something to do.
    pub fn due(&self) -> Option<Instant> {
        let waiting = self.entries.values().filter(|e| !e.waiting.is_empty());
        waiting.filter_map(|e| Some(e.asked? + e.again())).min()
    }

    /// Asks again for the addresses that packets wait for.
    pub fn tick(&mut self, now: Instant, out: &mut VecDeque<Bytes>) {
        for (who, entry) in self.entries.iter_mut().filter(|(_, e)| !e.waiting.is_empty()) {
            if entry.unanswered >= GIVE_UP {
                entry.waiting.clear();
            } else {
                entry.ask(now, self.mac, self.address, *who, out);
            }
        }
    }
}

impl Entry {
    fn again(&self) -> Duration {
        if self.mac.is_some() { ASK_AGAIN } else { ASK_SOON }
    }

    fn ask(
        &mut self,
        now: Instant,
        our_mac: Mac,
        our_address: Ipv4Addr,
        who: Ipv4Addr,
        out: &mut VecDeque<Bytes>,
    ) {
        if self.asked.is_some_and(|at| now.duration_since(at) < self.again()) {
            return;
        }
        if self.unanswered >= PATIENCE {
            self.mac = None;
        }
        self.asked = Some(now);
        self.unanswered = self.unanswered.saturating_add(1);
        out.push_back(request(our_mac, our_address, who));
    }
}

fn request(mac: Mac, sender: Ipv4Addr, target: Ipv4Addr) -> Bytes {
    let arp = Arp {
        operation: Operation::Request,
        sender_mac: mac,
        sender,
        target_mac: Mac([0; 6]),
        target,
    };
    arp.frame(BROADCAST).into()
}

fn address_frame(frame: &mut [u8], dst: Mac, src: Mac) {
    frame[..wire::ETHERNET_HEADER].copy_from_slice(&wire::ethernet_header(
        dst,
        src,
        ETHERTYPE_IPV4,
    ));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::wire::Frame;

    const US: Ipv4Addr = Ipv4Addr::new(172, 24, 4, 1);
    const PEER: Ipv4Addr = Ipv4Addr::new(172, 24, 4, 10);
    const OUR_MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const OLD: Mac = Mac([2, 0, 0, 0, 0, 0x10]);
    const NEW: Mac = Mac([2, 0, 0, 0, 0, 0x20]);

    fn says(operation: Operation, mac: Mac, sender: Ipv4Addr, target: Ipv4Addr) -> Arp {
        Arp { operation, sender_mac: mac, sender, target_mac: Mac([0; 6]), target }
    }

    fn reply(mac: Mac) -> Arp {
        says(Operation::Reply, mac, PEER, US)
    }

    struct Bench {
        table: Neighbours,
        out: VecDeque<Bytes>,
        now: Instant,
    }

    impl Bench {
        fn new() -> Bench {
            let table = Neighbours::new(OUR_MAC, US);
            Bench { table, out: VecDeque::new(), now: Instant::now() }
        }
        fn pass(&mut self, seconds: u64) {
            self.now += Duration::from_secs(seconds);
        }
        fn send(&mut self) {
            self.table.send(self.now, PEER, vec![0; 34], &mut self.out);
        }
        fn hear(&mut self, arp: Arp) {
            self.table.hear(self.now, &arp, &mut self.out);
        }
        /// What went out since the last look: requests for the peer, and packets by their address.
        fn went_out(&mut self) -> (usize, Vec<Mac>) {
            let (mut requests, mut packets) = (0, Vec::new());
            for bytes in self.out.drain(..) {
                let frame = Frame::parse(&bytes).unwrap();
                match frame.arp() {
                    Some(arp) => {
                        assert_eq!((arp.operation, arp.target), (Operation::Request, PEER));
                        requests += 1;
                    }
                    None => packets.push(frame.dst),
                }
            }
            (requests, packets)
        }
    }

    #[test]
    fn a_packet_waits_for_the_address_and_then_goes() {
        let mut b = Bench::new();
        b.send();
        b.send();
        assert_eq!(b.went_out(), (1, vec![]));
        b.hear(reply(OLD));
        assert_eq!(b.went_out(), (0, vec![OLD, OLD]));
    }

    #[test]
    fn a_packet_that_waits_makes_it_ask_soon_again_but_not_for_ever() {
        let mut b = Bench::new();
        b.send();
        let mut requests = b.went_out().0;
        while let Some(due) = b.table.due() {
            assert_eq!(due - b.now, ASK_SOON);
            b.now = due;
            b.table.tick(b.now, &mut b.out);
            requests += b.went_out().0;
        }
        assert_eq!(requests, GIVE_UP as usize);
        b.hear(reply(OLD));
        assert_eq!(b.went_out(), (0, vec![]), "given up packets are gone");
    }

    #[test]
    fn an_announcement_moves_a_known_address_but_makes_no_new_one() {
        let mut b = Bench::new();
        b.hear(says(Operation::Request, NEW, PEER, PEER));
        assert_eq!(b.table.known(PEER), None);
        b.hear(reply(OLD));
        for operation in [Operation::Request, Operation::Reply] {
            b.hear(says(operation, NEW, PEER, PEER));
            b.send();
            assert_eq!(b.went_out(), (0, vec![NEW]));
            b.hear(reply(OLD));
        }
    }

    #[test]
    fn an_old_address_is_used_while_it_is_asked_for_again() {
        let mut b = Bench::new();
        b.hear(reply(OLD));
        b.pass(FRESH.as_secs());
        b.send();
        assert_eq!(b.went_out(), (1, vec![OLD]));
        b.hear(reply(NEW));
        b.send();
        assert_eq!(b.went_out(), (0, vec![NEW]));
    }

    #[test]
    fn an_address_that_answers_no_more_is_believed_no_more() {
        let mut b = Bench::new();
        b.hear(reply(OLD));
        b.pass(FRESH.as_secs());
        for _ in 0..PATIENCE {
            b.send();
            assert_eq!(b.went_out(), (1, vec![OLD]));
            b.pass(1);
        }
        b.send();
        assert_eq!(b.went_out(), (1, vec![]));
        b.hear(reply(NEW));
        assert_eq!(b.went_out(), (0, vec![NEW]));
    }

    #[test]
    fn a_forgotten_address_is_asked_for_at_once() {
        let mut b = Bench::new();
        b.hear(reply(OLD));
        b.table.forget(PEER);
        b.send();
        assert_eq!(b.went_out(), (1, vec![]));
    }

    #[test]
    fn requests_for_us_are_answered_even_from_one_without_an_address() {
        let mut b = Bench::new();
        for sender in [PEER, Ipv4Addr::UNSPECIFIED] {
            b.hear(says(Operation::Request, OLD, sender, US));
            let bytes = b.out.pop_front().unwrap();
            let frame = Frame::parse(&bytes).unwrap();
            let arp = frame.arp().unwrap();
            assert_eq!((frame.dst, arp.sender_mac, arp.sender), (OLD, OUR_MAC, US));
            assert_eq!((arp.operation, arp.target), (Operation::Reply, sender));
        }
        assert_eq!(b.table.known(Ipv4Addr::UNSPECIFIED), None);
        b.hear(says(Operation::Request, OLD, PEER, Ipv4Addr::new(172, 24, 4, 99)));
        assert!(b.out.is_empty());
    }
}
