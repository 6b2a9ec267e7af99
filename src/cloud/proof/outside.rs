//! What the proof sees from outside the cloud, and on the wire between its nodes.

use crate::cloud::{Later, Stream};
use crate::error::Result;
use crate::lab::outside::{ConnectFailure, Echo, Leg, Neighbour, Unreachable};
use crate::lab::switch::Network;
use bytes::Bytes;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;
use tokio::sync::mpsc;

/// What came of an attempt at opening a TCP connection, with the reason as a type.
pub type Connected = Result<Box<dyn Stream>, ConnectFailure>;

/// A station on the network `external`.
pub trait Outside: Send + Sync {
    /// One ICMP echo; None when nothing came back.
    fn ping(&self, to: Ipv4Addr, timeout: Duration) -> Later<'_, Result<Option<Echo>>>;
    fn connect(&self, to: SocketAddrV4, timeout: Duration) -> Later<'_, Connected>;
    fn resolve(&self, who: Ipv4Addr, timeout: Duration) -> Later<'_, Result<Neighbour>>;
    /// As [`Outside::resolve`], of any address: whether somebody on this wire answers for it.
    fn who_has(&self, who: Ipv4Addr, timeout: Duration) -> Later<'_, Result<Neighbour>>;
}

/// The answer to an attempt at opening a TCP connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Knock {
    Open,
    /// A reset: something is there and says no.
    Refused,
    /// Nothing of the target came back.
    Silent,
    /// No attempt left us, for a reason of our own side: it says nothing of the target.
    Unsent(ConnectFailure),
}

/// Tries a TCP port.
pub async fn knock(outside: &dyn Outside, to: SocketAddrV4, timeout: Duration) -> Knock {
    match outside.connect(to, timeout).await {
        Ok(_) => Knock::Open,
        Err(ConnectFailure::Refused) => Knock::Refused,
        Err(ConnectFailure::TimedOut(_)) => Knock::Silent,
        Err(ConnectFailure::Unreachable(Unreachable::NoArpAnswer(_) | Unreachable::SaidBy(_))) => {
            Knock::Silent
        }
        Err(
            own @ (ConnectFailure::Unreachable(Unreachable::NoRoute) | ConnectFailure::Local(_)),
        ) => Knock::Unsent(own),
    }
}

impl Outside for Leg {
    fn ping(&self, to: Ipv4Addr, timeout: Duration) -> Later<'_, Result<Option<Echo>>> {
        Box::pin(Leg::ping(self, to, timeout))
    }
    fn connect(&self, to: SocketAddrV4, timeout: Duration) -> Later<'_, Connected> {
        Box::pin(async move {
            let stream = Leg::try_connect(self, to, timeout).await?;
            Ok(Box::new(stream) as Box<dyn Stream>)
        })
    }
    fn resolve(&self, who: Ipv4Addr, timeout: Duration) -> Later<'_, Result<Neighbour>> {
        Box::pin(Leg::resolve(self, who, timeout))
    }
    fn who_has(&self, who: Ipv4Addr, timeout: Duration) -> Later<'_, Result<Neighbour>> {
        Box::pin(async move { Ok(Leg::who_has(self, who, timeout).await) })
    }
}

/// Says whether a frame is of interest; called for every frame of the network.
pub type Wanted = Box<dyn Fn(&[u8]) -> bool + Send + Sync>;

/// A network whose frames can be seen.
pub trait Wire: Send + Sync {
    /// Shows every frame to `wanted` until the receiver is dropped.
    fn tap(&self, wanted: Wanted) -> mpsc::Receiver<Bytes>;
}

impl Wire for Network {
    fn tap(&self, wanted: Wanted) -> mpsc::Receiver<Bytes> {
        Network::tap(self, wanted)
    }
}
