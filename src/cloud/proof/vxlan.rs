//! VXLAN frames as they cross the network between the nodes.

use super::outside::Wire;
use bytes::Bytes;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::{SetOnce, mpsc};

const UDP_PORT: u16 = 4789;

/// The outside of a VXLAN frame, and whose frame is within.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vxlan {
    pub from: Ipv4Addr,
    pub to: Ipv4Addr,
    pub vni: u32,
    pub inner_to: [u8; 6],
    pub inner_from: [u8; 6],
}

/// Reads an Ethernet frame; None where it is no (first fragment of a) VXLAN frame.
pub fn parse(frame: &[u8]) -> Option<Vxlan> {
    if frame.get(12..14)? != [0x08, 0x00] {
        return None;
    }
    let ip = &frame[14..];
    let (version, header) = (ip.first()? >> 4, usize::from(ip[0] & 0x0f) * 4);
    let fragment_offset = u16::from_be_bytes([*ip.get(6)?, *ip.get(7)?]) & 0x1fff;
    if version != 4 || header < 20 || *ip.get(9)? != 17 || fragment_offset != 0 {
        return None;
    }
    let udp = ip.get(header..)?;
    if u16::from_be_bytes([*udp.get(2)?, *udp.get(3)?]) != UDP_PORT {
        return None;
    }
    let vxlan = udp.get(8..)?;
    // The flag says that the VNI is valid.
    if vxlan.first()? & 0x08 == 0 {
        return None;
    }
    let mac = |at: usize| -> Option<[u8; 6]> { vxlan.get(at..at + 6)?.try_into().ok() };
    let address = |at: usize| Some(Ipv4Addr::from(<[u8; 4]>::try_from(ip.get(at..at + 4)?).ok()?));
    Some(Vxlan {
        from: address(12)?,
        to: address(16)?,
        vni: u32::from_be_bytes([0, *vxlan.get(4)?, *vxlan.get(5)?, *vxlan.get(6)?]),
        inner_to: mac(8)?,
        inner_from: mac(14)?,
    })
}

/// `fa:16:3e:…` as bytes.
pub fn mac(text: &str) -> Option<[u8; 6]> {
    let bytes: Vec<u8> =
        text.split(':').map(|b| u8::from_str_radix(b, 16)).collect::<Result<_, _>>().ok()?;
    bytes.try_into().ok()
}

/// Frames of one VNI counted as they pass, from the making of this watch to its end.
#[derive(Debug)]
pub struct Watch {
    seen: Arc<Seen>,
    _tap: mpsc::Receiver<Bytes>,
}

#[derive(Debug)]
struct Seen {
    counts: Vec<Counts>,
    /// Set by the first frame from the instance.
    speaks: SetOnce<()>,
}

/// What crossed the tunnel to one hypervisor.
#[derive(Debug)]
struct Counts {
    compute: Ipv4Addr,
    to_instance: AtomicU64,
    from_instance: AtomicU64,
}

impl Watch {
    /// Counts the frames of `vni` to and from the hardware address `instance`, between the tunnel
    /// addresses of the `network` node and of each hypervisor: nova may yet choose another.
    pub fn start(
        wire: &dyn Wire,
        vni: u32,
        network: Ipv4Addr,
        hypervisors: impl IntoIterator<Item = Ipv4Addr>,
        instance: [u8; 6],
    ) -> Watch {
        let counts = hypervisors.into_iter().map(|compute| Counts {
            compute,
            to_instance: AtomicU64::default(),
            from_instance: AtomicU64::default(),
        });
        let seen = Arc::new(Seen { counts: counts.collect(), speaks: SetOnce::new() });
        let counting = seen.clone();
        // Counted in the filter itself: no frame is copied, so none can be lost to a slow reader.
        let tap = wire.tap(Box::new(move |frame| {
            let Some(frame) = parse(frame).filter(|frame| frame.vni == vni) else {
                return false;
            };
            for counts in &counting.counts {
                let (there, back) = ((network, counts.compute), (counts.compute, network));
                if (frame.from, frame.to) == there && frame.inner_to == instance {
                    counts.to_instance.fetch_add(1, Ordering::Relaxed);
                } else if (frame.from, frame.to) == back && frame.inner_from == instance {
                    counts.from_instance.fetch_add(1, Ordering::Relaxed);
                    // Once.
                    let _ = counting.speaks.set(());
                }
            }
            false
        }));
        Watch { seen, _tap: tap }
    }

    /// Set once a frame came from the instance, wherever it runs.
    pub fn speaks(&self) -> &SetOnce<()> {
        &self.seen.speaks
    }

    /// Frames to the instance, and from it, in the tunnel to the hypervisor `compute`.
    pub fn counts(&self, compute: Ipv4Addr) -> (u64, u64) {
        let get = |n: &AtomicU64| n.load(Ordering::Relaxed);
        let counts = self.seen.counts.iter().find(|counts| counts.compute == compute);
        counts.map_or((0, 0), |c| (get(&c.to_instance), get(&c.from_instance)))
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A VXLAN frame with an empty inner frame.
    pub fn frame(
        from: Ipv4Addr,
        to: Ipv4Addr,
        vni: u32,
        inner_to: [u8; 6],
        inner_from: [u8; 6],
    ) -> Vec<u8> {
        let mut f = vec![2; 12];
        f.extend([0x08, 0x00, 0x45, 0, 0, 64, 0, 0, 0, 0, 64, 17, 0, 0]);
        f.extend(from.octets());
        f.extend(to.octets());
        f.extend([0xc0, 0, 0x12, 0xb5, 0, 30, 0, 0]);
        f.extend([8, 0, 0, 0]);
        f.extend(&vni.to_be_bytes()[1..]);
        f.push(0);
        f.extend(inner_to);
        f.extend(inner_from);
        f.extend([0x08, 0x06]);
        f
    }

    const A: Ipv4Addr = Ipv4Addr::new(192, 168, 103, 11);
    const B: Ipv4Addr = Ipv4Addr::new(192, 168, 103, 12);
    const C: Ipv4Addr = Ipv4Addr::new(192, 168, 103, 13);
    const D: Ipv4Addr = Ipv4Addr::new(192, 168, 103, 14);

    #[test]
    fn a_vxlan_frame_is_read_to_its_inner_addresses() {
        let seen = parse(&frame(A, B, 0x12345, [1; 6], [3; 6])).unwrap();
        assert_eq!(
            seen,
            Vxlan { from: A, to: B, vni: 0x12345, inner_to: [1; 6], inner_from: [3; 6] }
        );
    }

    #[test]
    fn other_frames_and_broken_ones_are_not_vxlan() {
        let good = frame(A, B, 7, [1; 6], [3; 6]);
        for cut in 0..good.len() - 2 {
            assert_eq!(parse(&good[..cut]), None, "cut at {cut}");
        }
        for (at, byte, why) in [
            (13, 0x06, "ARP"),
            (14, 0x65, "not IPv4"),
            (14, 0x41, "a header too short"),
            (21, 1, "a later fragment"),
            (23, 6, "TCP"),
            (37, 0xb4, "another port"),
            (42, 0, "no valid VNI"),
        ] {
            let mut bad = good.clone();
            bad[at] = byte;
            assert_eq!(parse(&bad), None, "{why}");
        }
    }

    #[test]
    fn hardware_addresses_are_read_or_refused() {
        assert_eq!(mac("fa:16:3e:00:01:ff"), Some([0xfa, 0x16, 0x3e, 0, 1, 0xff]));
        assert_eq!(mac("fa:16:3e:00:01"), None);
        assert_eq!(mac("fa:16:3e:00:01:zz"), None);
    }

    #[test]
    fn only_frames_of_the_vni_the_nodes_and_the_instance_are_counted() {
        struct Played(std::sync::Mutex<Option<super::super::outside::Wanted>>);
        impl Wire for Played {
            fn tap(&self, wanted: super::super::outside::Wanted) -> mpsc::Receiver<Bytes> {
                *self.0.lock().unwrap() = Some(wanted);
                mpsc::channel(1).1
            }
        }
        let wire = Played(Default::default());
        let watch = Watch::start(&wire, 7, A, [B, C], [9; 6]);
        let wanted = wire.0.lock().unwrap().take().unwrap();
        for (frame, why) in [
            (frame(A, B, 8, [9; 6], [1; 6]), "another network"),
            (frame(A, B, 7, [8; 6], [1; 6]), "another instance"),
            (frame(B, A, 7, [9; 6], [1; 6]), "the wrong way round"),
            (frame(D, A, 7, [1; 6], [9; 6]), "no hypervisor"),
        ] {
            wanted(&frame);
            assert_eq!((watch.counts(B), watch.counts(C)), ((0, 0), (0, 0)), "{why}");
            assert!(!watch.speaks().initialized(), "{why}");
        }
        wanted(&frame(A, B, 7, [9; 6], [1; 6]));
        wanted(&frame(B, A, 7, [1; 6], [9; 6]));
        wanted(&frame(B, A, 7, [1; 6], [9; 6]));
        assert_eq!((watch.counts(B), watch.counts(C)), ((1, 2), (0, 0)));
        assert!(watch.speaks().initialized());
        // It was moved.
        wanted(&frame(C, A, 7, [1; 6], [9; 6]));
        assert_eq!((watch.counts(B), watch.counts(C)), ((1, 2), (0, 1)));
    }
}
