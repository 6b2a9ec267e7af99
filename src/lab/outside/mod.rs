//! "Outside": a userspace IP stack on the lab's networks. No packet with a lab address ever
//! reaches the host's kernel.

mod device;
mod neighbour;
mod ntp;
mod ports;
mod stack;
mod tcp;
#[cfg(test)]
mod tests;

pub use tcp::{ConnectFailure, Listener, TcpStream, Unreachable};

use super::mac::Mac;
use super::switch::{Counters, Network, Port, Station};
use crate::error::{Error, Result};
use bytes::Bytes;
use neighbour::ASK_AGAIN;
use stack::{Opening, Stack};
use std::fmt;
use std::future::poll_fn;
use std::hash::{BuildHasher, RandomState};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::Poll;
use std::time::Duration;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout_at};

/// Frames taken in between two looks at the sockets.
const BURST: usize = 256;

/// How long an unplugged leg may take to give its last frames to the switch.
const FAREWELL: Duration = Duration::from_secs(2);

/// One leg: an address of our own on one network. Cheap to clone; the last clone dropped unplugs
/// it, and resets its connections. It answers ARP and ping by itself.
#[derive(Clone)]
pub struct Leg(Arc<Plugged>);

struct Plugged {
    core: Arc<Core>,
    port: Arc<Port>,
}

/// What the leg, its streams and its task share.
pub(crate) struct Core {
    stack: Mutex<Stack>,
    /// Wakes the task: a stream has something to send, or room again.
    kick: Notify,
    /// Wakes those who wait for an ARP answer.
    heard: Notify,
}

/// One echo reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Echo {
    /// From the echo request's departure; the search for the neighbour's address is not in it.
    pub rtt: Duration,
    /// Time to live of the reply as it arrived: 64 from a Linux neighbour, less one a router.
    pub ttl: u8,
}

/// What the leg knows of a neighbour's hardware address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Neighbour {
    Known(Mac),
    /// Asked and nobody answered: the kernel would say INCOMPLETE.
    Incomplete,
}

impl Leg {
    /// Plugs a leg in. `prefix` is the length of the subnet's prefix, 0 to 32.
    ///
    /// # Panics
    /// Outside a tokio runtime, or when `prefix` is above 32 or `address` no unicast address.
    pub fn new(network: &Network, address: Ipv4Addr, prefix: u8) -> Leg {
        let mut stack = Stack::new(address, prefix, random());
        stack.neighbours.announce(&mut stack.outbox);
        let core =
            Arc::new(Core { stack: Mutex::new(stack), kick: Notify::new(), heard: Notify::new() });
        let Station { to_switch, from_switch, port } =
            network.station(&format!("outside/{}", network.name()));
        let port = Arc::new(port);
        tokio::spawn(run(core.clone(), to_switch, from_switch, port.clone()));
        Leg(Arc::new(Plugged { core, port }))
    }

    pub fn address(&self) -> Ipv4Addr {
        self.core().lock().address()
    }
    pub fn mac(&self) -> Mac {
        self.core().lock().mac()
    }
    pub fn counters(&self) -> Counters {
        self.0.port.counters()
    }
    /// Cuts or heals the leg's own link to its network.
    pub fn set_link(&self, up: bool) {
        self.0.port.set_link(up);
    }
    /// Where packets for other subnets go. At first nowhere.
    pub fn set_gateway(&self, gateway: Option<Ipv4Addr>) {
        self.core().lock().gateway = gateway;
    }
    /// Forgets a neighbour's hardware address, so that it is asked for anew. Seldom needed: an
    /// announcement is believed at once, and an address in use is checked every 15 s.
    pub fn forget(&self, who: Ipv4Addr) {
        self.core().lock().neighbours.forget(who);
    }

    /// Opens a TCP connection. Errors tell refused, unreachable (no ARP answer) and timed out
    /// apart; [`Leg::try_connect`] does so as a type.
    pub async fn connect(&self, to: SocketAddrV4, timeout: Duration) -> Result<TcpStream> {
        self.try_connect(to, timeout).await.map_err(|failure| failure.into_error(to))
    }

    /// Opens a TCP connection. Keeps trying until `timeout` has passed, unless refused: the peer
    /// may come up meanwhile. Dropped while it waits, it leaves nothing behind.
    pub async fn try_connect(
        &self,
        to: SocketAddrV4,
        timeout: Duration,
    ) -> Result<TcpStream, ConnectFailure> {
        let start = Instant::now();
        let deadline = start + timeout;
        let no_answer = |hop| ConnectFailure::Unreachable(Unreachable::NoArpAnswer(hop));
        let hop = self.core().lock().next_hop(*to.ip());
        let hop = hop.ok_or(ConnectFailure::Unreachable(Unreachable::NoRoute))?;
        // Nobody answers ARP for our own address, and a loop through ourselves is of no use.
        if *to.ip() == self.address() || self.neighbour(hop, None, deadline).await.is_none() {
            return Err(no_answer(hop));
        }
        let stream = {
            let mut stack = self.core().lock();
            // Known from before: ask again, to tell a silent peer from one that is gone.
            let Stack { neighbours, outbox, .. } = &mut *stack;
            neighbours.ask(start, hop, outbox);
            let opened = stack.open(Instant::now(), to);
            let (handle, tuple) = opened.map_err(|e| ConnectFailure::Local(e.to_string()))?;
            TcpStream::new(self.core().clone(), handle, tuple)
        };
        self.core().kick.notify_one();
        let opening = poll_fn(|cx| match self.core().lock().opening(stream.handle(), cx.waker()) {
            Opening::Pending => Poll::Pending,
            done => Poll::Ready(done),
        });
        match timeout_at(deadline, opening).await {
            Ok(Opening::Open) => Ok(stream),
            Ok(Opening::Refused) => Err(ConnectFailure::Refused),
            Ok(Opening::Unreachable(by)) => {
                Err(ConnectFailure::Unreachable(Unreachable::SaidBy(by)))
            }
            Ok(Opening::Pending | Opening::Dead) | Err(_) => {
                // Fresh enough to have been asked for again and have answered.
                let lately = start.checked_sub(ASK_AGAIN).unwrap_or(start);
                match self.core().lock().neighbours.heard_since(hop, lately) {
                    Some(_) => Err(ConnectFailure::TimedOut(start.elapsed())),
                    None => Err(no_answer(hop)),
                }
            }
        }
    }

    /// Accepts TCP connections on `port`. The listener keeps the leg plugged.
    pub async fn listen(&self, port: u16) -> Result<Listener> {
        Listener::new(self.clone(), port)
    }

    /// One ICMP echo. `Ok(None)` when nothing came back within `timeout`. Any number may be under
    /// way at once.
    pub async fn ping(&self, to: Ipv4Addr, timeout: Duration) -> Result<Option<Echo>> {
        let deadline = Instant::now() + timeout;
        if to == self.address() {
            return Ok(Some(Echo { rtt: Duration::ZERO, ttl: 64 }));
        }
        let hop = self.core().lock().next_hop(to);
        let hop = hop.ok_or_else(|| {
            Error::lab(format!("cannot ping {to}: {} has no route to it", self.address()))
                .hint("The leg reaches its own subnet only, unless it is given a gateway.")
        })?;
        if self.neighbour(hop, None, deadline).await.is_none() {
            return Ok(None);
        }
        let (reply, answer) = oneshot::channel();
        let ident = self.core().lock().ping(Instant::now(), to, hop, random(), reply);
        let Some(ident) = ident else {
            return Err(Error::lab(format!("cannot ping {to}: 65536 pings are under way")));
        };
        let _forget = ForgetPing { core: self.core(), ident };
        self.core().kick.notify_one();
        Ok(timeout_at(deadline, answer).await.ok().and_then(Result::ok))
    }

    /// Asks for the hardware address of a neighbour, always anew, for at most `timeout`.
    pub async fn resolve(&self, who: Ipv4Addr, timeout: Duration) -> Result<Neighbour> {
        if who != self.address() && !self.core().lock().is_connected(who) {
            let text = format!("{who} is no neighbour of {}: not in its subnet", self.address());
            return Err(Error::lab(text).hint("Ask for the gateway's address instead."));
        }
        Ok(self.who_has(who, timeout).await)
    }

    /// As [`Leg::resolve`], of any address, in the subnet or not: whether anybody on this wire
    /// answers ARP for it.
    pub async fn who_has(&self, who: Ipv4Addr, timeout: Duration) -> Neighbour {
        let start = Instant::now();
        if who == self.address() {
            return Neighbour::Known(self.mac());
        }
        let mac = self.neighbour(who, Some(start), start + timeout).await;
        mac.map_or(Neighbour::Incomplete, Neighbour::Known)
    }

    /// Serves NTP (UDP 123) from the host's clock until the leg is gone.
    pub fn serve_ntp(&self) {
        self.core().lock().serve_ntp();
    }

    /// The address of a neighbour: one that is known, or heard at `since` or later if given.
    /// Asks every second.
    async fn neighbour(
        &self,
        who: Ipv4Addr,
        since: Option<Instant>,
        deadline: Instant,
    ) -> Option<Mac> {
        let core = self.core();
        loop {
            let mut heard = std::pin::pin!(core.heard.notified());
            heard.as_mut().enable();
            let now = Instant::now();
            {
                let Stack { neighbours, outbox, .. } = &mut *core.lock();
                let known = match since {
                    Some(since) => neighbours.heard_since(who, since),
                    None => neighbours.known(who),
                };
                if known.is_some() || now >= deadline {
                    return known;
                }
                neighbours.ask(now, who, outbox);
            }
            core.kick.notify_one();
            // Late or told: the table says which.
            let _ = timeout_at(deadline.min(now + ASK_AGAIN), heard).await;
        }
    }

    /// Resets every TCP connection of this leg, whoever uses it: the peers are told.
    pub fn hang_up(&self) {
        self.0.core.lock().hang_up(Instant::now());
        self.0.core.kick.notify_one();
    }

    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.0.core
    }
}

impl fmt::Debug for Leg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Leg({} on {})", self.address(), self.0.port.name())
    }
}

impl Core {
    fn lock(&self) -> MutexGuard<'_, Stack> {
        self.stack.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Drop for Plugged {
    fn drop(&mut self) {
        self.core.lock().unplug(Instant::now());
        self.core.kick.notify_one();
    }
}

struct ForgetPing<'a> {
    core: &'a Core,
    ident: u16,
}

impl Drop for ForgetPing<'_> {
    fn drop(&mut self) {
        self.core.lock().forget_ping(self.ident);
    }
}

/// Moves frames between the switch and the stack until the leg is unplugged. Never stops taking
/// frames in while it waits to send: two legs that saturate each other would lock up.
async fn run(
    core: Arc<Core>,
    to_switch: mpsc::Sender<Bytes>,
    mut from_switch: mpsc::Receiver<Bytes>,
    _port: Arc<Port>,
) {
    let mut inbox = Vec::new();
    let mut last_call = None;
    loop {
        let (due, full) = {
            let mut stack = core.lock();
            let (due, heard) = stack.turn(Instant::now(), &mut inbox);
            if heard {
                core.heard.notify_waiters();
            }
            while let Some(frame) = stack.outbox.pop_front() {
                match to_switch.try_send(frame) {
                    Ok(()) => {}
                    Err(mpsc::error::TrySendError::Full(frame)) => {
                        stack.outbox.push_front(frame);
                        break;
                    }
                    Err(mpsc::error::TrySendError::Closed(_)) => return,
                }
            }
            let full = !stack.outbox.is_empty();
            if stack.unplugged && last_call.is_none() {
                last_call = Some(Instant::now() + FAREWELL);
            }
            if stack.unplugged && !full {
                return;
            }
            (due, full)
        };
        if last_call.is_some_and(|end| Instant::now() >= end) {
            return;
        }
        let due = due.into_iter().chain(last_call).min();
        tokio::select! {
            n = from_switch.recv_many(&mut inbox, BURST) => {
                if n == 0 {
                    return;
                }
            }
            () = core.kick.notified() => {}
            _ = to_switch.reserve(), if full => {}
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
        }
    }
}

fn random() -> u64 {
    RandomState::new().hash_one(0)
}
