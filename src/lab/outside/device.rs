//! The seam to smoltcp: one IPv4 packet in, many out. Ethernet stays on our side of it.

use crate::lab::wire::ETHERNET_HEADER;
use bytes::Bytes;
use smoltcp::phy::{self, DeviceCapabilities, Medium};
use smoltcp::time::Instant;

/// The longest IPv4 packet sent, in bytes.
const MTU: usize = 1500;

#[derive(Debug, Default)]
pub(super) struct Device {
    /// The frame to be received next.
    pub received: Option<Bytes>,
    /// Packets sent, each behind room for its Ethernet header.
    pub sent: Vec<Vec<u8>>,
    /// Sockets may send while `sent` is shorter than this. Answers to what was received may
    /// always be sent: there is at most one for each.
    pub room: usize,
}

pub(super) struct Receive(Bytes);
pub(super) struct Send<'a>(&'a mut Vec<Vec<u8>>);

impl phy::Device for Device {
    type RxToken<'a> = Receive;
    type TxToken<'a> = Send<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Receive, Send<'_>)> {
        Some((Receive(self.received.take()?), Send(&mut self.sent)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Send<'_>> {
        (self.sent.len() < self.room).then_some(Send(&mut self.sent))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = MTU;
        capabilities
    }
}

impl phy::RxToken for Receive {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        // Only frames with a whole header are ever put into `received`.
        f(self.0.get(ETHERNET_HEADER..).unwrap_or_default())
    }
}

impl phy::TxToken for Send<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; ETHERNET_HEADER + len];
        let result = f(&mut frame[ETHERNET_HEADER..]);
        self.0.push(frame);
        result
    }
}
