//! Read-only views of Ethernet frames: what a tap's filter, the outside endpoint and the proof
//! need to know of a frame, and nothing more. Pure: bytes in, fields out; a frame that is too
//! short or inconsistent is `None`, never a panic.

use super::mac::Mac;
use std::net::Ipv4Addr;

pub const BROADCAST: Mac = Mac([0xff; 6]);

/// Length of an Ethernet header without a VLAN tag.
pub const ETHERNET_HEADER: usize = 14;

pub const ETHERTYPE_IPV4: u16 = 0x0800;
pub const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_VLAN: u16 = 0x8100;

pub const PROTOCOL_ICMP: u8 = 1;
pub const PROTOCOL_TCP: u8 = 6;
pub const PROTOCOL_UDP: u8 = 17;

/// The UDP port of VXLAN that the IANA assigned and Open vSwitch uses.
pub const VXLAN_PORT: u16 = 4789;

/// An Ethernet II frame, one 802.1Q tag looked through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    pub dst: Mac,
    pub src: Mac,
    /// VLAN identifier of the 802.1Q tag, if there is one.
    pub vlan: Option<u16>,
    /// Type of `payload` (that of the inner frame when tagged).
    pub ethertype: u16,
    /// May end with padding: the protocols inside know their own length.
    pub payload: &'a [u8],
}

impl<'a> Frame<'a> {
    pub fn parse(bytes: &'a [u8]) -> Option<Frame<'a>> {
        let dst = Mac(*bytes.first_chunk()?);
        let src = Mac(*bytes.get(6..)?.first_chunk()?);
        let ethertype = be16(bytes, 12)?;
        if ethertype != ETHERTYPE_VLAN {
            return Some(Frame { dst, src, vlan: None, ethertype, payload: &bytes[14..] });
        }
        let vlan = Some(be16(bytes, 14)? & 0x0fff);
        Some(Frame { dst, src, vlan, ethertype: be16(bytes, 16)?, payload: &bytes[18..] })
    }

    pub fn arp(&self) -> Option<Arp> {
        (self.ethertype == ETHERTYPE_ARP).then(|| Arp::parse(self.payload))?
    }

    pub fn ipv4(&self) -> Option<Ipv4<'a>> {
        (self.ethertype == ETHERTYPE_IPV4).then(|| Ipv4::parse(self.payload))?
    }
}

/// An ARP packet for IPv4 over Ethernet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arp {
    pub operation: Operation,
    pub sender_mac: Mac,
    pub sender: Ipv4Addr,
    pub target_mac: Mac,
    pub target: Ipv4Addr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Request,
    Reply,
}

impl Arp {
    pub fn parse(bytes: &[u8]) -> Option<Arp> {
        // Hardware type Ethernet, protocol type IPv4, address lengths 6 and 4.
        if bytes.get(..6)? != [0, 1, 8, 0, 6, 4] {
            return None;
        }
        let operation = match be16(bytes, 6)? {
            1 => Operation::Request,
            2 => Operation::Reply,
            _ => return None,
        };
        Some(Arp {
            operation,
            sender_mac: Mac(*bytes.get(8..)?.first_chunk()?),
            sender: ipv4_at(bytes, 14)?,
            target_mac: Mac(*bytes.get(18..)?.first_chunk()?),
            target: ipv4_at(bytes, 24)?,
        })
    }

    /// The whole Ethernet frame, padded to the least length of Ethernet.
    pub fn frame(&self, dst: Mac) -> Vec<u8> {
        let mut out = Vec::with_capacity(60);
        out.extend_from_slice(&ethernet_header(dst, self.sender_mac, ETHERTYPE_ARP));
        out.extend_from_slice(&[0, 1, 8, 0, 6, 4, 0]);
        out.push(match self.operation {
            Operation::Request => 1,
            Operation::Reply => 2,
        });
        out.extend_from_slice(&self.sender_mac.0);
        out.extend_from_slice(&self.sender.octets());
        out.extend_from_slice(&self.target_mac.0);
        out.extend_from_slice(&self.target.octets());
        out.resize(60, 0);
        out
    }
}

/// An IPv4 packet. Checksums are not verified here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv4<'a> {
    pub src: Ipv4Addr,
    pub dst: Ipv4Addr,
    pub ttl: u8,
    pub protocol: u8,
    /// Offset of this fragment in bytes; 0 in a whole packet and in the first fragment.
    pub offset: u16,
    pub more_fragments: bool,
    pub payload: &'a [u8],
}

impl<'a> Ipv4<'a> {
    pub fn parse(bytes: &'a [u8]) -> Option<Ipv4<'a>> {
        let packet = Self::parse_head(bytes)?;
        let (header, total) = (header_len(bytes)?, usize::from(be16(bytes, 2)?));
        Some(Ipv4 { payload: bytes.get(header..total)?, ..packet })
    }

    /// Like [`Ipv4::parse`] for a packet cut short, as an ICMP error quotes it.
    pub fn parse_head(bytes: &'a [u8]) -> Option<Ipv4<'a>> {
        let header = header_len(bytes)?;
        let fragment = be16(bytes, 6)?;
        Some(Ipv4 {
            src: ipv4_at(bytes, 12)?,
            dst: ipv4_at(bytes, 16)?,
            ttl: *bytes.get(8)?,
            protocol: *bytes.get(9)?,
            offset: (fragment & 0x1fff) * 8,
            more_fragments: fragment & 0x2000 != 0,
            payload: bytes.get(header..)?,
        })
    }

    fn body(&self, protocol: u8) -> Option<&'a [u8]> {
        (self.protocol == protocol && self.offset == 0).then_some(self.payload)
    }

    pub fn udp(&self) -> Option<Udp<'a>> {
        let body = self.body(PROTOCOL_UDP)?;
        let payload = match usize::from(be16(body, 4)?) {
            // The first fragment of a longer datagram carries only its beginning.
            length if self.more_fragments && length >= 8 => body.get(8..)?,
            length => body.get(8..length)?,
        };
        Some(Udp { src_port: be16(body, 0)?, dst_port: be16(body, 2)?, payload })
    }

    pub fn tcp(&self) -> Option<Tcp> {
        let body = self.body(PROTOCOL_TCP)?;
        Some(Tcp { src_port: be16(body, 0)?, dst_port: be16(body, 2)?, flags: *body.get(13)? })
    }

    /// The ports of UDP or TCP alone: all that the eight bytes quoted by an ICMP error give.
    pub fn ports(&self) -> Option<(u16, u16)> {
        let carries = matches!(self.protocol, PROTOCOL_TCP | PROTOCOL_UDP) && self.offset == 0;
        carries.then(|| Some((be16(self.payload, 0)?, be16(self.payload, 2)?)))?
    }

    pub fn icmp(&self) -> Option<Icmp<'a>> {
        let body = self.body(PROTOCOL_ICMP)?;
        Some(Icmp { kind: *body.first()?, code: *body.get(1)?, body })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Udp<'a> {
    pub src_port: u16,
    pub dst_port: u16,
    pub payload: &'a [u8],
}

impl<'a> Udp<'a> {
    /// The VXLAN packet inside, if this goes to [`VXLAN_PORT`].
    pub fn vxlan(&self) -> Option<Vxlan<'a>> {
        // The flag I says that the identifier is valid; without it there is none.
        if self.dst_port != VXLAN_PORT || self.payload.first()? & 0x08 == 0 {
            return None;
        }
        let vni = u32::from_be_bytes(*self.payload.get(4..)?.first_chunk()?) >> 8;
        Some(Vxlan { vni, inner: self.payload.get(8..)? })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vxlan<'a> {
    /// The network's identifier, 24 bits.
    pub vni: u32,
    /// The Ethernet frame carried.
    pub inner: &'a [u8],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tcp {
    pub src_port: u16,
    pub dst_port: u16,
    pub flags: u8,
}

impl Tcp {
    /// The first segment of a connection: SYN without ACK.
    pub fn opens(&self) -> bool {
        self.flags & 0x12 == 0x02
    }
    pub fn resets(&self) -> bool {
        self.flags & 0x04 != 0
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Icmp<'a> {
    pub kind: u8,
    pub code: u8,
    body: &'a [u8],
}

pub const ECHO_REPLY: u8 = 0;
pub const UNREACHABLE: u8 = 3;
pub const ECHO_REQUEST: u8 = 8;

impl<'a> Icmp<'a> {
    /// Identifier, sequence number and data of an echo request or reply.
    pub fn echo(&self) -> Option<(u16, u16, &'a [u8])> {
        matches!(self.kind, ECHO_REPLY | ECHO_REQUEST)
            .then(|| Some((be16(self.body, 4)?, be16(self.body, 6)?, self.body.get(8..)?)))?
    }

    /// The packet that an error is about, cut short by its quoter.
    pub fn about(&self) -> Option<Ipv4<'a>> {
        (self.kind == UNREACHABLE).then(|| Ipv4::parse_head(self.body.get(8..)?))?
    }

    /// True when the ICMP checksum is right.
    pub fn intact(&self) -> bool {
        checksum(self.body) == 0
    }
}

/// The VXLAN packet that a frame carries, in the packet between the ends of its tunnel.
pub fn vxlan(frame: &[u8]) -> Option<(Ipv4<'_>, Vxlan<'_>)> {
    let outer = Frame::parse(frame)?.ipv4()?;
    Some((outer, outer.udp()?.vxlan()?))
}

pub fn ethernet_header(dst: Mac, src: Mac, ethertype: u16) -> [u8; ETHERNET_HEADER] {
    let mut header = [0; ETHERNET_HEADER];
    header[..6].copy_from_slice(&dst.0);
    header[6..12].copy_from_slice(&src.0);
    header[12..].copy_from_slice(&ethertype.to_be_bytes());
    header
}

/// An ICMP echo request as an IPv4 packet, both checksums filled in.
pub fn echo_request(src: Ipv4Addr, dst: Ipv4Addr, ident: u16, seq: u16, data: &[u8]) -> Vec<u8> {
    let total = 20 + 8 + data.len();
    let mut out = vec![0; total];
    out[0] = 0x45;
    out[2..4].copy_from_slice(&u16::try_from(total).unwrap_or(u16::MAX).to_be_bytes());
    out[6] = 0x40; // don't fragment
    out[8] = 64;
    out[9] = PROTOCOL_ICMP;
    out[12..16].copy_from_slice(&src.octets());
    out[16..20].copy_from_slice(&dst.octets());
    let sum = checksum(&out[..20]);
    out[10..12].copy_from_slice(&sum.to_be_bytes());
    out[20] = ECHO_REQUEST;
    out[24..26].copy_from_slice(&ident.to_be_bytes());
    out[26..28].copy_from_slice(&seq.to_be_bytes());
    out[28..].copy_from_slice(data);
    let sum = checksum(&out[20..]);
    out[22..24].copy_from_slice(&sum.to_be_bytes());
    out
}

/// The Internet checksum (RFC 1071). Over data that holds its own right checksum it is 0.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn ipv4_at(bytes: &[u8], at: usize) -> Option<Ipv4Addr> {
    Some(Ipv4Addr::from(*bytes.get(at..)?.first_chunk::<4>()?))
}

fn header_len(bytes: &[u8]) -> Option<usize> {
    let first = *bytes.first()?;
    let length = usize::from(first & 0x0f) * 4;
    (first >> 4 == 4 && length >= 20 && bytes.len() >= length).then_some(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Ipv4Addr = Ipv4Addr::new(10, 5, 5, 7);
    const B: Ipv4Addr = Ipv4Addr::new(10, 5, 5, 1);
    const MAC_A: Mac = Mac([0xfa, 0x16, 0x3e, 1, 2, 3]);

    fn in_ethernet(ethertype: u16, payload: &[u8]) -> Vec<u8> {
        [&ethernet_header(BROADCAST, MAC_A, ethertype)[..], payload].concat()
    }

    fn udp_packet(dst_port: u16, payload: &[u8]) -> Vec<u8> {
        let length = 8 + payload.len() as u16;
        let mut out = vec![0x45, 0];
        out.extend_from_slice(&(20 + length).to_be_bytes());
        out.extend_from_slice(&[0, 0, 0, 0, 64, PROTOCOL_UDP, 0, 0]);
        out.extend_from_slice(&A.octets());
        out.extend_from_slice(&B.octets());
        out.extend_from_slice(&40000u16.to_be_bytes());
        out.extend_from_slice(&dst_port.to_be_bytes());
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(&[0, 0]);
        out.extend_from_slice(payload);
        out
    }

    #[test]
    fn arp_survives_a_round_trip_and_is_padded() {
        let arp = Arp {
            operation: Operation::Reply,
            sender_mac: MAC_A,
            sender: A,
            target_mac: Mac([2, 0, 0, 0, 0, 9]),
            target: B,
        };
        let bytes = arp.frame(Mac([2, 0, 0, 0, 0, 9]));
        assert_eq!(bytes.len(), 60);
        let frame = Frame::parse(&bytes).unwrap();
        assert_eq!((frame.src, frame.dst), (MAC_A, Mac([2, 0, 0, 0, 0, 9])));
        assert_eq!(frame.arp(), Some(arp));
        assert_eq!(frame.ipv4(), None);
    }

    #[test]
    fn a_vxlan_frame_tells_its_network_and_what_it_carries() {
        let inner = in_ethernet(ETHERTYPE_ARP, &[1, 2, 3]);
        let vxlan_header = [0x08, 0, 0, 0, 0x01, 0x02, 0x03, 0];
        let outer = udp_packet(VXLAN_PORT, &[&vxlan_header[..], &inner].concat());
        let bytes = in_ethernet(ETHERTYPE_IPV4, &outer);
        let (tunnel, seen) = vxlan(&bytes).unwrap();
        assert_eq!((tunnel.src, tunnel.dst), (A, B));
        assert_eq!((seen.vni, seen.inner), (0x010203, &inner[..]));

        let elsewhere = in_ethernet(ETHERTYPE_IPV4, &udp_packet(4790, &vxlan_header));
        assert_eq!(vxlan(&elsewhere), None);
        let no_vni = in_ethernet(ETHERTYPE_IPV4, &udp_packet(VXLAN_PORT, &[0; 16]));
        assert_eq!(vxlan(&no_vni), None);
    }

    #[test]
    fn a_vlan_tag_is_looked_through() {
        let mut bytes = in_ethernet(ETHERTYPE_VLAN, &[0x60, 0x65, 0x08, 0x00]);
        bytes.extend(udp_packet(53, b"x"));
        let frame = Frame::parse(&bytes).unwrap();
        assert_eq!(frame.vlan, Some(0x065));
        assert_eq!(frame.ipv4().unwrap().udp().unwrap().dst_port, 53);
    }

    #[test]
    fn padding_behind_a_packet_is_not_part_of_it() {
        let mut bytes = in_ethernet(ETHERTYPE_IPV4, &udp_packet(53, b"abc"));
        bytes.resize(60, 0xee);
        let udp = Frame::parse(&bytes).unwrap().ipv4().unwrap().udp().unwrap();
        assert_eq!(udp.payload, b"abc");
    }

    #[test]
    fn an_echo_request_has_the_right_checksums() {
        for data in [&b"12345678"[..], b"odd", b""] {
            let packet = echo_request(A, B, 77, 5, data);
            let ip = Ipv4::parse(&packet).unwrap();
            assert_eq!((ip.src, ip.dst, ip.ttl), (A, B, 64));
            assert_eq!(checksum(&packet[..20]), 0);
            let icmp = ip.icmp().unwrap();
            assert!(icmp.intact());
            assert_eq!(icmp.echo(), Some((77, 5, data)));
        }
    }

    #[test]
    fn a_corrupted_echo_is_noticed() {
        let mut packet = echo_request(A, B, 77, 5, b"12345678");
        packet[30] ^= 1;
        assert!(!Ipv4::parse(&packet).unwrap().icmp().unwrap().intact());
    }

    #[test]
    fn an_icmp_error_tells_the_packet_it_is_about() {
        let about = udp_packet(4000, b"gone");
        let mut packet = echo_request(B, A, 0, 0, &about[..28]);
        packet[20] = UNREACHABLE;
        let icmp = Ipv4::parse(&packet).unwrap().icmp().unwrap();
        let quoted = icmp.about().unwrap();
        assert_eq!((quoted.src, quoted.dst, quoted.ports()), (A, B, Some((40000, 4000))));
    }

    #[test]
    fn later_fragments_have_no_ports() {
        let mut packet = udp_packet(VXLAN_PORT, &[8; 32]);
        packet[7] = 2;
        let ip = Ipv4::parse(&packet).unwrap();
        assert_eq!((ip.offset, ip.udp(), ip.ports()), (16, None, None));
    }

    #[test]
    fn no_prefix_of_a_frame_and_no_flipped_bit_panics() {
        let header = [0x08, 0, 0, 0, 0, 0, 7, 0];
        let whole = in_ethernet(ETHERTYPE_IPV4, &udp_packet(VXLAN_PORT, &header));
        let error = in_ethernet(ETHERTYPE_IPV4, &echo_request(A, B, 1, 2, &whole));
        let arp = in_ethernet(ETHERTYPE_ARP, &[0, 1, 8, 0, 6, 4, 0, 1, 9]);
        let read_all = |bytes: &[u8]| {
            let Some(frame) = Frame::parse(bytes) else { return };
            frame.arp();
            let Some(ip) = frame.ipv4() else { return };
            std::hint::black_box((ip.udp().and_then(|u| u.vxlan()), ip.tcp(), ip.ports()));
            if let Some(icmp) = ip.icmp() {
                let about = icmp.about().and_then(|q| q.ports());
                std::hint::black_box((icmp.echo(), about, icmp.intact()));
            }
        };
        for frame in [whole, error, arp] {
            for end in 0..=frame.len() {
                read_all(&frame[..end]);
            }
            for bit in 0..frame.len() * 8 {
                let mut flipped = frame.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                read_all(&flipped);
            }
        }
    }
}
