//! VXLAN frames as they cross the network between the nodes.

use super::outside::Wire;
use crate::lab::mac::Mac;
use crate::lab::wire::{self, Frame};
use bytes::Bytes;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::{SetOnce, mpsc};

/// A frame within a VXLAN tunnel: the tunnel's ends, and whose frame it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tunnelled {
    from: Ipv4Addr,
    to: Ipv4Addr,
    vni: u32,
    inner_to: Mac,
    inner_from: Mac,
}

/// Reads an Ethernet frame; None where it is not a (first fragment of a) VXLAN frame.
fn read_tunnelled(frame: &[u8]) -> Option<Tunnelled> {
    let (outer, vxlan) = wire::vxlan(frame)?;
    let inner = Frame::parse(vxlan.inner)?;
    Some(Tunnelled {
        from: outer.src,
        to: outer.dst,
        vni: vxlan.vni,
        inner_to: inner.dst,
        inner_from: inner.src,
    })
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
        instance: Mac,
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
            let Some(frame) = read_tunnelled(frame).filter(|frame| frame.vni == vni) else {
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
        inner_to: Mac,
        inner_from: Mac,
    ) -> Vec<u8> {
        let mut f = vec![2; 12];
        f.extend([0x08, 0x00, 0x45, 0, 0, 50, 0, 0, 0, 0, 64, 17, 0, 0]);
        f.extend(from.octets());
        f.extend(to.octets());
        f.extend([0xc0, 0, 0x12, 0xb5, 0, 30, 0, 0]);
        f.extend([8, 0, 0, 0]);
        f.extend(&vni.to_be_bytes()[1..]);
        f.push(0);
        f.extend(inner_to.0);
        f.extend(inner_from.0);
        f.extend([0x08, 0x06]);
        f
    }

    const A: Ipv4Addr = Ipv4Addr::new(192, 168, 103, 11);
    const B: Ipv4Addr = Ipv4Addr::new(192, 168, 103, 12);
    const C: Ipv4Addr = Ipv4Addr::new(192, 168, 103, 13);
    const D: Ipv4Addr = Ipv4Addr::new(192, 168, 103, 14);

    #[test]
    fn a_vxlan_frame_is_read_to_its_inner_addresses() {
        let seen = read_tunnelled(&frame(A, B, 0x12345, Mac([1; 6]), Mac([3; 6]))).unwrap();
        assert_eq!(
            seen,
            Tunnelled {
                from: A,
                to: B,
                vni: 0x12345,
                inner_to: Mac([1; 6]),
                inner_from: Mac([3; 6])
            }
        );
    }

    #[test]
    fn other_frames_and_broken_ones_are_not_vxlan() {
        let good = frame(A, B, 7, Mac([1; 6]), Mac([3; 6]));
        for cut in 0..good.len() {
            assert_eq!(read_tunnelled(&good[..cut]), None, "cut at {cut}");
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
            assert_eq!(read_tunnelled(&bad), None, "{why}");
        }
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
        let watch = Watch::start(&wire, 7, A, [B, C], Mac([9; 6]));
        let wanted = wire.0.lock().unwrap().take().unwrap();
        for (frame, why) in [
            (frame(A, B, 8, Mac([9; 6]), Mac([1; 6])), "another network"),
            (frame(A, B, 7, Mac([8; 6]), Mac([1; 6])), "another instance"),
            (frame(B, A, 7, Mac([9; 6]), Mac([1; 6])), "the wrong way round"),
            (frame(D, A, 7, Mac([1; 6]), Mac([9; 6])), "no hypervisor"),
        ] {
            wanted(&frame);
            assert_eq!((watch.counts(B), watch.counts(C)), ((0, 0), (0, 0)), "{why}");
            assert!(!watch.speaks().initialized(), "{why}");
        }
        wanted(&frame(A, B, 7, Mac([9; 6]), Mac([1; 6])));
        wanted(&frame(B, A, 7, Mac([1; 6]), Mac([9; 6])));
        wanted(&frame(B, A, 7, Mac([1; 6]), Mac([9; 6])));
        assert_eq!((watch.counts(B), watch.counts(C)), ((1, 2), (0, 0)));
        assert!(watch.speaks().initialized());
        // It was moved.
        wanted(&frame(C, A, 7, Mac([1; 6]), Mac([9; 6])));
        assert_eq!((watch.counts(B), watch.counts(C)), ((1, 2), (0, 1)));
    }
}
