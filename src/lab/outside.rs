//! "Outside": a userspace IP stack on the lab's networks. No packet with a lab address ever
//! reaches the host's kernel.

use super::switch::Network;
use crate::error::Result;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};

/// One leg: an address of our own on one network. Cheap to clone; the last clone dropped unplugs it.
#[derive(Clone, Debug)]
pub struct Leg {}

/// A TCP connection from a leg.
pub struct TcpStream {}

/// One echo reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Echo {
    pub rtt: Duration,
    pub ttl: u8,
}

/// What the leg knows of a neighbour's hardware address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Neighbour {
    Known([u8; 6]),
    /// Asked and nobody answered: the kernel would say INCOMPLETE.
    Incomplete,
}

impl Leg {
    pub fn new(_network: &Network, _address: Ipv4Addr, _prefix: u8) -> Leg {
        todo!()
    }
    pub fn address(&self) -> Ipv4Addr {
        todo!()
    }
    /// Opens a TCP connection. Errors tell refused, unreachable (no ARP answer) and timed out apart.
    pub async fn connect(&self, _to: SocketAddrV4, _timeout: Duration) -> Result<TcpStream> {
        todo!()
    }
    /// One ICMP echo. `Ok(None)` when nothing came back within `timeout`.
    pub async fn ping(&self, _to: Ipv4Addr, _timeout: Duration) -> Result<Option<Echo>> {
        todo!()
    }
    /// Asks for the hardware address of a neighbour.
    pub async fn resolve(&self, _who: Ipv4Addr, _timeout: Duration) -> Result<Neighbour> {
        todo!()
    }
    /// Serves NTP (UDP 123) from the host's clock until the leg is gone.
    pub fn serve_ntp(&self) {
        todo!()
    }
}

impl AsyncRead for TcpStream {
    fn poll_read(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
        _: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        todo!()
    }
}

impl AsyncWrite for TcpStream {
    fn poll_write(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
        _: &[u8],
    ) -> std::task::Poll<std::io::Result<usize>> {
        todo!()
    }
    fn poll_flush(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        todo!()
    }
    fn poll_shutdown(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        todo!()
    }
}
