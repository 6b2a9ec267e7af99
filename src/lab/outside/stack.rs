//! The state of one leg, under one lock: smoltcp's interface and sockets, the neighbours, the
//! connections, listeners and pings. No call waits; the leg's task moves the frames.

use super::device::Device;
use super::neighbour::Neighbours;
use super::ntp;
use super::ports::Ports;
use crate::lab::mac::Mac;
use crate::lab::wire::{self, Frame, Ipv4};
use bytes::Bytes;
use smoltcp::iface::{Config, Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::socket::tcp::{self, State};
use smoltcp::socket::udp;
use smoltcp::time::Instant as StackInstant;
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr, IpListenEndpoint};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::{Duration, SystemTime};
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

/// Bytes buffered by each connection, each way.
const BUFFER: usize = 256 * 1024;

/// Silence of a peer that has something to answer for this long ends a connection. A guest under
/// emulation may stand still for tens of seconds; a killed one must not be waited for for ever.
pub(super) const DEAD_PEER: Duration = Duration::from_secs(120);

/// An idle connection asks its peer this often whether it is still there, so that [`DEAD_PEER`]
/// holds for it too and a living idle session is never cut.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// A closed connection may finish sending for this long before it is reset.
const LINGER: Duration = Duration::from_secs(30);

/// Frames that wait to be taken by the switch. Sockets send no more beyond it.
const OUTBOX: usize = 256;

/// Beyond this even answers are dropped: the switch has taken nothing for long.
const OUTBOX_LIMIT: usize = 4 * OUTBOX;

/// Connections that wait to be accepted, for each listener; further ones are not answered, and
/// come again.
const BACKLOG: usize = 512;

pub(super) struct Stack {
    interface: Interface,
    sockets: SocketSet<'static>,
    device: Device,
    start: Instant,
    mac: Mac,
    address: Ipv4Addr,
    prefix: u8,
    pub gateway: Option<Ipv4Addr>,
    pub neighbours: Neighbours,
    connections: HashMap<SocketHandle, Connection>,
    by_tuple: HashMap<Tuple, SocketHandle>,
    ports: Ports,
    listeners: HashMap<u16, Backlog>,
    pings: HashMap<u16, PendingPing>,
    next_ident: u16,
    ntp: Option<SocketHandle>,
    /// Frames for the switch.
    pub outbox: VecDeque<Bytes>,
    pub unplugged: bool,
}

/// What tells one connection from all others: our port, and the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Tuple {
    pub port: u16,
    pub peer: SocketAddrV4,
}

struct Connection {
    tuple: Tuple,
    /// We opened it, so its port goes back to [`Ports`].
    ours: bool,
    held_by: Holder,
    /// The peer reset it.
    reset: bool,
    /// We did, whoever was using it.
    hung_up: bool,
    /// A router said that the peer cannot be reached.
    unreachable: Option<Ipv4Addr>,
    /// We sent our FIN, or will once all is sent.
    shut: bool,
    /// The peer's FIN was read, or `rest` holds all before it.
    finished: bool,
    /// What was received but not read when smoltcp would have thrown it away.
    rest: VecDeque<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Holder {
    /// A [`super::TcpStream`].
    Stream,
    /// The listener of its port: nobody accepted it yet. True once it is in the ready queue.
    Listener { ready: bool },
    /// Nobody: it may finish until then.
    Nobody { until: Instant },
}

struct Backlog {
    ready: VecDeque<SocketHandle>,
    waiting: usize,
    news: Arc<Notify>,
}

struct PendingPing {
    to: Ipv4Addr,
    token: [u8; 8],
    sent: Instant,
    reply: oneshot::Sender<super::Echo>,
}

/// How far an opening connection got.
pub(super) enum Opening {
    Pending,
    Open,
    Refused,
    /// A router said so.
    Unreachable(Ipv4Addr),
    /// The stack gave up.
    Dead,
}

impl Stack {
    pub fn new(address: Ipv4Addr, prefix: u8, seed: u64) -> Stack {
        let [a, b, c, d] = address.octets();
        // Locally administered, and the same in every run: captures stay readable.
        let mac = Mac([0x02, 0x73, a, b, c, d]);
        let mut device = Device::default();
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut device, StackInstant::ZERO);
        interface.update_ip_addrs(|addresses| {
            // There is room for two and it is the first.
            let _ = addresses.push(IpCidr::new(address.into(), prefix));
        });
        Stack {
            interface,
            sockets: SocketSet::new(Vec::new()),
            device,
            start: Instant::now(),
            mac,
            address,
            prefix,
            gateway: None,
            neighbours: Neighbours::new(mac, address),
            connections: HashMap::new(),
            by_tuple: HashMap::new(),
            ports: Ports::new(seed),
            listeners: HashMap::new(),
            pings: HashMap::new(),
            next_ident: (seed >> 16) as u16,
            ntp: None,
            outbox: VecDeque::new(),
            unplugged: false,
        }
    }

    pub fn mac(&self) -> Mac {
        self.mac
    }
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// True for addresses of the leg's own subnet.
    pub fn is_connected(&self, who: Ipv4Addr) -> bool {
        let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0);
        u32::from(who) & mask == u32::from(self.address) & mask
    }

    /// The neighbour that packets for `to` are given to.
    pub fn next_hop(&self, to: Ipv4Addr) -> Option<Ipv4Addr> {
        if self.is_connected(to) { Some(to) } else { self.gateway }
    }

    fn stack_time(&self, at: Instant) -> StackInstant {
        StackInstant::from_micros(at.duration_since(self.start).as_micros() as i64)
    }

    /// Takes in the frames that came, lets every socket send, and says when to call again at the
    /// latest. True as second value when ARP was heard.
    pub fn turn(&mut self, now: Instant, inbox: &mut Vec<Bytes>) -> (Option<Instant>, bool) {
        let mut heard = false;
        for frame in inbox.drain(..) {
            heard |= self.receive(now, frame);
        }
        self.answer_ntp();
        self.neighbours.tick(now, &mut self.outbox);
        self.send(now);
        self.sweep(now);
        (self.due(now), heard)
    }

    fn receive(&mut self, now: Instant, bytes: Bytes) -> bool {
        let Some(frame) = Frame::parse(&bytes) else { return false };
        // A tagged frame belongs to another network than ours.
        if frame.vlan.is_some() || (frame.dst != self.mac && frame.dst != wire::BROADCAST) {
            return false;
        }
        if let Some(arp) = frame.arp() {
            self.neighbours.hear(now, &arp, &mut self.outbox);
            return true;
        }
        let Some(packet) = frame.ipv4() else { return false };
        if packet.dst == self.address {
            self.look_at(now, &packet);
        }
        let opened = self.make_room_for_syn(&packet);
        self.device.received = Some(bytes);
        let at = self.stack_time(now);
        self.interface.poll_ingress_single(at, &mut self.device, &mut self.sockets);
        self.route_sent(now);
        if let Some(handle) = opened
            && self.sockets.get::<tcp::Socket>(handle).state() == State::Listen
        {
            // Not taken: its checksum was wrong.
            self.remove(now, handle);
        }
        false
    }

    /// What smoltcp does not tell: who reset, what is unreachable, with which TTL an echo came.
    fn look_at(&mut self, now: Instant, packet: &Ipv4<'_>) {
        if let Some(tcp) = packet.tcp()
            && tcp.resets()
        {
            let peer = SocketAddrV4::new(packet.src, tcp.src_port);
            if let Some(handle) = self.by_tuple.get(&Tuple { port: tcp.dst_port, peer })
                && let Some(connection) = self.connections.get_mut(handle)
            {
                connection.reset = true;
            }
            return;
        }
        let Some(icmp) = packet.icmp().filter(|icmp| icmp.intact()) else { return };
        if let Some(about) = icmp.about() {
            self.hear_unreachable(packet.src, &about);
        } else if icmp.kind == wire::ECHO_REPLY
            && let Some((ident, _, data)) = icmp.echo()
            && let Some(ping) = self.pings.get(&ident)
            && ping.to == packet.src
            && data.starts_with(&ping.token)
            && let Some(ping) = self.pings.remove(&ident)
        {
            let rtt = now.duration_since(ping.sent);
            // Whoever asked may have given up just now.
            let _ = ping.reply.send(super::Echo { rtt, ttl: packet.ttl });
        }
    }

    /// As in Linux, such an error ends a connection that is still being opened, and no other.
    fn hear_unreachable(&mut self, from: Ipv4Addr, about: &Ipv4<'_>) {
        let Some((port, peer_port)) = about.ports() else { return };
        let tuple = Tuple { port, peer: SocketAddrV4::new(about.dst, peer_port) };
        let ours = about.src == self.address && about.protocol == wire::PROTOCOL_TCP;
        let Some(handle) = self.by_tuple.get(&tuple).filter(|_| ours) else { return };
        let socket = self.sockets.get_mut::<tcp::Socket>(*handle);
        if socket.state() == State::SynSent
            && let Some(connection) = self.connections.get_mut(handle)
        {
            connection.unreachable = Some(from);
            socket.abort();
        }
    }

    /// smoltcp has no backlog: a listening socket becomes the connection. So one is made for each
    /// SYN when it comes.
    fn make_room_for_syn(&mut self, packet: &Ipv4<'_>) -> Option<SocketHandle> {
        let tcp = packet.tcp().filter(|tcp| tcp.opens() && packet.dst == self.address)?;
        let peer = SocketAddrV4::new(packet.src, tcp.src_port);
        let tuple = Tuple { port: tcp.dst_port, peer };
        let backlog = self.listeners.get_mut(&tuple.port)?;
        if backlog.waiting >= BACKLOG || self.by_tuple.contains_key(&tuple) {
            return None;
        }
        let mut socket = new_socket();
        let local = IpListenEndpoint { addr: Some(self.address.into()), port: tuple.port };
        socket.listen(local).ok()?;
        backlog.waiting += 1;
        Some(self.add(socket, tuple, false, Holder::Listener { ready: false }))
    }

    fn send(&mut self, now: Instant) {
        let at = self.stack_time(now);
        self.interface.poll_maintenance(at);
        loop {
            self.device.room = OUTBOX.saturating_sub(self.outbox.len());
            let result = self.interface.poll_egress(at, &mut self.device, &mut self.sockets);
            self.route_sent(now);
            if result == PollResult::None {
                break;
            }
        }
    }

    /// Gives what smoltcp sent to the right neighbours.
    fn route_sent(&mut self, now: Instant) {
        for mut frame in std::mem::take(&mut self.device.sent) {
            let Some(packet) = Ipv4::parse(&frame[wire::ETHERNET_HEADER..]) else { continue };
            if self.outbox.len() >= OUTBOX_LIMIT {
                continue;
            }
            if packet.dst.is_broadcast() {
                let header = wire::ethernet_header(wire::BROADCAST, self.mac, wire::ETHERTYPE_IPV4);
                frame[..wire::ETHERNET_HEADER].copy_from_slice(&header);
                self.outbox.push_back(frame.into());
            } else if let Some(hop) = self.next_hop(packet.dst) {
                self.neighbours.send(now, hop, frame, &mut self.outbox);
            }
        }
    }

    /// Sees what became of the connections that nobody looks after.
    fn sweep(&mut self, now: Instant) {
        let mut gone = Vec::new();
        for (&handle, connection) in &mut self.connections {
            let socket = self.sockets.get_mut::<tcp::Socket>(handle);
            // Closed for good: nothing is left to be sent, not even a reset.
            let over = socket.state() == State::Closed && socket.remote_endpoint().is_none();
            match connection.held_by {
                Holder::Stream => connection.rescue(socket),
                Holder::Listener { .. } if over => gone.push(handle),
                Holder::Listener { ready: false } if is_established(socket.state()) => {
                    connection.held_by = Holder::Listener { ready: true };
                    if let Some(backlog) = self.listeners.get_mut(&connection.tuple.port) {
                        backlog.ready.push_back(handle);
                        backlog.news.notify_one();
                    }
                }
                Holder::Listener { .. } => {}
                Holder::Nobody { .. } if over => gone.push(handle),
                Holder::Nobody { until } => {
                    if now >= until && socket.state() != State::TimeWait {
                        socket.abort();
                    }
                }
            }
        }
        for handle in gone {
            self.remove(now, handle);
        }
    }

    fn due(&mut self, now: Instant) -> Option<Instant> {
        let lingering = self.connections.values().filter_map(|c| match c.held_by {
            Holder::Nobody { until } if until > now => Some(until),
            _ => None,
        });
        let first = lingering.chain(self.neighbours.due()).min();
        // A full outbox wakes us by getting room, not by the clock.
        if self.outbox.len() >= OUTBOX {
            return first;
        }
        let at = self.stack_time(now);
        let sockets = self.interface.poll_at(at, &self.sockets).map(|then| {
            // All that could be sent was: whoever says "now" is asked again a moment later, so
            // that no socket can make the leg spin.
            let wait = (then - at).max(smoltcp::time::Duration::from_millis(1));
            now + Duration::from_micros(wait.total_micros())
        });
        first.into_iter().chain(sockets).min()
    }

    // Connections.

    fn add(
        &mut self,
        socket: tcp::Socket<'static>,
        tuple: Tuple,
        ours: bool,
        held_by: Holder,
    ) -> SocketHandle {
        let handle = self.sockets.add(socket);
        self.by_tuple.insert(tuple, handle);
        let connection = Connection {
            tuple,
            ours,
            held_by,
            reset: false,
            hung_up: false,
            unreachable: None,
            shut: false,
            finished: false,
            rest: VecDeque::new(),
        };
        self.connections.insert(handle, connection);
        handle
    }

    fn remove(&mut self, now: Instant, handle: SocketHandle) {
        let Some(connection) = self.connections.remove(&handle) else { return };
        self.sockets.remove(handle);
        self.by_tuple.remove(&connection.tuple);
        if connection.ours {
            self.ports.release(now, connection.tuple.port);
        }
        if let Holder::Listener { .. } = connection.held_by
            && let Some(backlog) = self.listeners.get_mut(&connection.tuple.port)
        {
            backlog.waiting -= 1;
            backlog.ready.retain(|h| *h != handle);
        }
    }

    pub fn open(&mut self, now: Instant, peer: SocketAddrV4) -> io::Result<(SocketHandle, Tuple)> {
        let none_left = || io::Error::new(io::ErrorKind::AddrNotAvailable, "no free local port");
        let port = self.ports.take(now).ok_or_else(none_left)?;
        let mut socket = new_socket();
        let local = IpListenEndpoint { addr: Some(self.address.into()), port };
        let to = (IpAddress::from(*peer.ip()), peer.port());
        if let Err(e) = socket.connect(self.interface.context(), to, local) {
            self.ports.release(now, port);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, e.to_string()));
        }
        let tuple = Tuple { port, peer };
        Ok((self.add(socket, tuple, true, Holder::Stream), tuple))
    }

    pub fn opening(&mut self, handle: SocketHandle, waker: &Waker) -> Opening {
        let socket = self.sockets.get_mut::<tcp::Socket>(handle);
        let connection = self.connections.get(&handle);
        match socket.state() {
            State::SynSent | State::SynReceived | State::Listen => {
                socket.register_send_waker(waker);
                Opening::Pending
            }
            State::Closed => match connection {
                Some(Connection { unreachable: Some(by), .. }) => Opening::Unreachable(*by),
                Some(Connection { reset: true, .. }) => Opening::Refused,
                _ => Opening::Dead,
            },
            _ => Opening::Open,
        }
    }

    pub fn read(
        &mut self,
        handle: SocketHandle,
        waker: &Waker,
        buf: &mut tokio::io::ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let unplugged = self.unplugged;
        let socket = self.sockets.get_mut::<tcp::Socket>(handle);
        let Some(connection) = self.connections.get_mut(&handle) else {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        };
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        // The ring buffer gives what it holds in two pieces when it wraps around.
        while buf.remaining() > 0 && socket.can_recv() {
            let copied = socket.recv(|piece| {
                let n = piece.len().min(buf.remaining());
                buf.put_slice(&piece[..n]);
                (n, n)
            });
            if copied.is_err() {
                break;
            }
        }
        connection.read_rest(buf);
        if buf.filled().len() > before || connection.finished {
            return Poll::Ready(Ok(()));
        }
        match socket.recv(|_| (0, ())) {
            Ok(()) => {
                socket.register_recv_waker(waker);
                Poll::Pending
            }
            Err(tcp::RecvError::Finished) => {
                connection.finished = true;
                Poll::Ready(Ok(()))
            }
            Err(tcp::RecvError::InvalidState) => Poll::Ready(Err(connection.ended(unplugged))),
        }
    }

    pub fn write(
        &mut self,
        handle: SocketHandle,
        waker: &Waker,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let unplugged = self.unplugged;
        let socket = self.sockets.get_mut::<tcp::Socket>(handle);
        let Some(connection) = self.connections.get(&handle) else {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        };
        if connection.shut {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        // The ring buffer takes it in two pieces when it wraps around: `send_slice` does that.
        match socket.send_slice(data) {
            Ok(0) if !data.is_empty() => {
                socket.register_send_waker(waker);
                Poll::Pending
            }
            Ok(n) => Poll::Ready(Ok(n)),
            Err(tcp::SendError::InvalidState) => Poll::Ready(Err(connection.ended(unplugged))),
        }
    }

    pub fn shut(&mut self, handle: SocketHandle) {
        if let Some(connection) = self.connections.get_mut(&handle) {
            connection.shut = true;
            self.sockets.get_mut::<tcp::Socket>(handle).close();
        }
    }

    /// Its stream was dropped: it ends in order if all was read, else by a reset, as in Linux.
    pub fn let_go(&mut self, now: Instant, handle: SocketHandle) {
        let Some(connection) = self.connections.get_mut(&handle) else { return };
        let socket = self.sockets.get_mut::<tcp::Socket>(handle);
        connection.held_by = Holder::Nobody { until: now + LINGER };
        if socket.state() == State::SynSent {
            // The peer knows nothing of it yet; what it may still answer gets a reset.
            return self.remove(now, handle);
        }
        if socket.recv_queue() > 0 {
            socket.abort();
        } else {
            socket.close();
        }
    }

    // Listeners.

    /// False when the port is taken.
    pub fn listen(&mut self, port: u16, news: Arc<Notify>) -> bool {
        if port == 0 || self.listeners.contains_key(&port) {
            return false;
        }
        self.listeners.insert(port, Backlog { ready: VecDeque::new(), waiting: 0, news });
        true
    }

    pub fn accept(&mut self, port: u16) -> Option<(SocketHandle, Tuple)> {
        let backlog = self.listeners.get_mut(&port)?;
        let handle = backlog.ready.pop_front()?;
        backlog.waiting -= 1;
        let connection = self.connections.get_mut(&handle)?;
        connection.held_by = Holder::Stream;
        Some((handle, connection.tuple))
    }

    pub fn stop_listening(&mut self, now: Instant, port: u16) {
        self.listeners.remove(&port);
        for (&handle, connection) in &mut self.connections {
            if connection.tuple.port == port
                && let Holder::Listener { .. } = connection.held_by
            {
                connection.held_by = Holder::Nobody { until: now + LINGER };
                self.sockets.get_mut::<tcp::Socket>(handle).abort();
            }
        }
    }

    // Pings.

    /// Sends an echo request to an address whose next hop is known.
    pub fn ping(
        &mut self,
        now: Instant,
        to: Ipv4Addr,
        hop: Ipv4Addr,
        token: u64,
        reply: oneshot::Sender<super::Echo>,
    ) -> Option<u16> {
        let free = (0..=u16::MAX).map(|n| self.next_ident.wrapping_add(n));
        let ident = free.into_iter().find(|ident| !self.pings.contains_key(ident))?;
        self.next_ident = ident.wrapping_add(1);
        let token = token.to_be_bytes();
        // 56 bytes of data, as ping sends.
        let data: Vec<u8> = token.into_iter().chain(8..56).collect();
        let mut frame = vec![0; wire::ETHERNET_HEADER];
        frame.extend(wire::echo_request(self.address, to, ident, 1, &data));
        self.pings.insert(ident, PendingPing { to, token, sent: now, reply });
        self.neighbours.send(now, hop, frame, &mut self.outbox);
        Some(ident)
    }

    pub fn forget_ping(&mut self, ident: u16) {
        self.pings.remove(&ident);
    }

    // Time.

    pub fn serve_ntp(&mut self) {
        if self.ntp.is_some() {
            return;
        }
        let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 64], vec![0; 8192]);
        let mut socket = udp::Socket::new(buffer(), buffer());
        // Only fails for port 0 or a bound socket.
        if socket.bind(ntp::PORT).is_ok() {
            self.ntp = Some(self.sockets.add(socket));
        }
    }

    fn answer_ntp(&mut self) {
        let Some(handle) = self.ntp else { return };
        let socket = self.sockets.get_mut::<udp::Socket>(handle);
        let received = SystemTime::now();
        while socket.can_send()
            && let Ok((request, from)) = socket.recv()
        {
            if let Some(answer) = ntp::answer(request, received, SystemTime::now()) {
                // A full buffer loses it, as a full network would.
                let _ = socket.send_slice(&answer, from);
            }
        }
    }

    /// Resets every connection. New ones may be made.
    pub fn hang_up(&mut self, now: Instant) {
        for (handle, connection) in &mut self.connections {
            connection.hung_up = true;
            self.sockets.get_mut::<tcp::Socket>(*handle).abort();
        }
        self.send(now);
    }

    /// Ends everything: every connection is reset, every waiter woken.
    pub fn unplug(&mut self, now: Instant) {
        self.unplugged = true;
        for handle in self.connections.keys() {
            self.sockets.get_mut::<tcp::Socket>(*handle).abort();
        }
        self.pings.clear();
        for backlog in self.listeners.values() {
            backlog.news.notify_one();
        }
        self.send(now);
    }
}

impl Connection {
    /// smoltcp empties a socket's buffers when TIME-WAIT ends, read or not.
    fn rescue(&mut self, socket: &mut tcp::Socket<'_>) {
        if socket.state() != State::TimeWait || self.finished {
            return;
        }
        while socket.can_recv() {
            let moved = socket.recv(|piece| {
                self.rest.extend(&*piece);
                (piece.len(), ())
            });
            if moved.is_err() {
                break;
            }
        }
        self.finished = true;
    }

    fn read_rest(&mut self, buf: &mut tokio::io::ReadBuf<'_>) {
        while buf.remaining() > 0 && !self.rest.is_empty() {
            let (piece, _) = self.rest.as_slices();
            let n = piece.len().min(buf.remaining());
            buf.put_slice(&piece[..n]);
            self.rest.drain(..n);
        }
    }

    /// Why nothing can be read or written any more.
    fn ended(&self, unplugged: bool) -> io::Error {
        let peer = self.tuple.peer;
        let (kind, text) = if unplugged {
            (io::ErrorKind::NotConnected, "the outside endpoint was unplugged".to_owned())
        } else if self.hung_up {
            (io::ErrorKind::ConnectionAborted, format!("the connection to {peer} was closed here"))
        } else if self.reset {
            (io::ErrorKind::ConnectionReset, format!("{peer} reset the connection"))
        } else {
            let seconds = DEAD_PEER.as_secs();
            (io::ErrorKind::TimedOut, format!("{peer} answered nothing for {seconds} s"))
        };
        io::Error::new(kind, text)
    }
}

fn is_established(state: State) -> bool {
    !matches!(state, State::Closed | State::Listen | State::SynSent | State::SynReceived)
}

fn new_socket() -> tcp::Socket<'static> {
    let buffer = || tcp::SocketBuffer::new(vec![0; BUFFER]);
    let mut socket = tcp::Socket::new(buffer(), buffer());
    // Interactive sessions: no waiting for more to send.
    socket.set_nagle_enabled(false);
    // Where frames are lost (a full queue in a guest, a network made bad on purpose) it is four
    // times as fast as sending whole windows again and again; where none are, as fast.
    socket.set_congestion_control(tcp::CongestionControl::Reno);
    socket.set_timeout(Some(DEAD_PEER.into()));
    socket.set_keep_alive(Some(KEEP_ALIVE.into()));
    socket
}

#[cfg(test)]
impl Stack {
    pub fn connections(&self) -> usize {
        assert_eq!(self.connections.len(), self.by_tuple.len());
        self.connections.len()
    }
    pub fn pings(&self) -> usize {
        self.pings.len()
    }
    pub fn unread(&self, stream: &super::TcpStream) -> usize {
        self.sockets.get::<tcp::Socket>(stream.handle()).recv_queue()
    }
}
