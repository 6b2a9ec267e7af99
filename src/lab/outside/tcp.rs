//! TCP connections and listeners of a leg, for tokio.

use super::stack::Tuple;
use super::{Core, Leg};
use crate::error::{Error, Result};
use smoltcp::iface::SocketHandle;
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::Instant;

/// A TCP connection from a leg.
///
/// `shutdown` sends a FIN and leaves the other direction open. Dropped, it ends in order (what was
/// written is still sent, for at most half a minute), or by a reset if something received was left
/// unread. Errors: `ConnectionReset` when the peer reset it, `TimedOut` when the peer answered
/// nothing for two minutes (idle connections ask it every 15 s), `NotConnected` when the leg is
/// gone.
pub struct TcpStream {
    core: Arc<Core>,
    handle: SocketHandle,
    tuple: Tuple,
}

/// Why a connection could not be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConnectFailure {
    /// The peer answered with a reset: it is there, and nothing listens on the port.
    Refused,
    Unreachable(Unreachable),
    /// The next hop is there, but nothing came back from the peer.
    TimedOut(Duration),
    /// The leg is gone, or has no free port.
    Local(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreachable {
    /// Outside the leg's subnet, and the leg has no gateway.
    NoRoute,
    /// Nobody answered ARP for this neighbour.
    NoArpAnswer(Ipv4Addr),
    /// This router said so.
    SaidBy(Ipv4Addr),
}

impl fmt::Display for ConnectFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused => f.write_str("connection refused: nothing listens there"),
            Self::Unreachable(Unreachable::NoRoute) => f.write_str("unreachable: no route to it"),
            Self::Unreachable(Unreachable::NoArpAnswer(who)) => {
                write!(f, "unreachable: no ARP answer from {who}")
            }
            Self::Unreachable(Unreachable::SaidBy(who)) => {
                write!(f, "unreachable, says {who}")
            }
            Self::TimedOut(after) => {
                write!(f, "timed out: no answer within {:.1} s", after.as_secs_f64())
            }
            Self::Local(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for ConnectFailure {}

impl ConnectFailure {
    pub fn into_error(self, to: SocketAddrV4) -> Error {
        let hint = match &self {
            Self::Refused => "The machine answers; see whether the service runs and listens there.",
            Self::Unreachable(Unreachable::NoRoute) => {
                "The leg reaches its own subnet only, unless it is given a gateway."
            }
            Self::Unreachable(_) => "See whether the machine is up and owns the address.",
            Self::TimedOut(_) => {
                "The neighbour answers ARP: see security groups, routing and the machine's load."
            }
            Self::Local(_) => "Open fewer connections at once, and keep the leg while they live.",
        };
        Error::lab(format!("cannot connect to {to}")).because(self).hint(hint)
    }
}

impl TcpStream {
    pub(super) fn new(core: Arc<Core>, handle: SocketHandle, tuple: Tuple) -> TcpStream {
        TcpStream { core, handle, tuple }
    }
    pub(super) fn handle(&self) -> SocketHandle {
        self.handle
    }

    pub fn peer(&self) -> SocketAddrV4 {
        self.tuple.peer
    }
    pub fn local_port(&self) -> u16 {
        self.tuple.port
    }
}

impl fmt::Debug for TcpStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TcpStream({} -> {})", self.tuple.port, self.tuple.peer)
    }
}

impl Drop for TcpStream {
    fn drop(&mut self) {
        self.core.lock().let_go(Instant::now(), self.handle);
        self.core.kick.notify_one();
    }
}

impl AsyncRead for TcpStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = self.core.lock().read(self.handle, cx.waker(), buf);
        if buf.filled().len() > before {
            // The peer may be waiting for the window to open again.
            self.core.kick.notify_one();
        }
        read
    }
}

impl AsyncWrite for TcpStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = self.core.lock().write(self.handle, cx.waker(), data);
        if let Poll::Ready(Ok(1..)) = written {
            self.core.kick.notify_one();
        }
        written
    }

    /// Like the kernel's: what was written is on its way without being asked for.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.core.lock().shut(self.handle);
        self.core.kick.notify_one();
        Poll::Ready(Ok(()))
    }
}

/// Accepts connections on one port of a leg, until dropped.
pub struct Listener {
    /// Keeps the leg plugged.
    leg: Leg,
    port: u16,
    news: Arc<Notify>,
}

impl Listener {
    pub(super) fn new(leg: Leg, port: u16) -> Result<Listener> {
        let news = Arc::new(Notify::new());
        if !leg.core().lock().listen(port, news.clone()) {
            let text = format!("cannot listen on {}:{port}: the port is taken", leg.address());
            return Err(Error::lab(text).hint("Drop its listener first, or take another port."));
        }
        Ok(Listener { leg, port, news })
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The next connection and its peer. May be dropped while it waits; loses none.
    pub async fn accept(&self) -> (TcpStream, SocketAddrV4) {
        loop {
            let news = self.news.notified();
            if let Some((handle, tuple)) = self.leg.core().lock().accept(self.port) {
                // Others may be waiting to accept while more than one came at once.
                self.news.notify_one();
                return (TcpStream::new(self.leg.core().clone(), handle, tuple), tuple.peer);
            }
            news.await;
        }
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Listener({}:{})", self.leg.address(), self.port)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.leg.core().lock().stop_listening(Instant::now(), self.port);
        self.leg.core().kick.notify_one();
    }
}
