//! The owner and its clients without machines: a lab is a switch with a leg of ours and one that
//! plays the guest.

use super::client::Client;
use super::forward::{Forwards, Way};
use super::handles::Reach;
use super::owner::Owner;
use super::place::{Found, Place, SOCKET, sweep};
use super::protocol::{self, Answer, Ask, Phase, Reply, Request, Said, VERSION};
use super::proxy::Proxy;
use super::socket;
use super::starter::{News, Starter, Starting};
use crate::error::{Error, Kind};
use crate::event::{Event, Events, Level};
use crate::lab::outside::Leg;
use crate::lab::switch::Switch;
use crate::secret::Redactor;
use crate::wait::{Patience, Speed};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};

fn patience() -> Patience {
    Patience::new(Speed::new(1.0), Events::silent())
}

struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Home {
        Home(tempfile::tempdir().unwrap())
    }
    fn runs(&self) -> &Path {
        self.0.path()
    }
    fn place(&self) -> Place {
        Place::new(self.runs(), "warm").unwrap()
    }
    fn client(&self) -> Client {
        Client::new(self.place(), patience())
    }
    async fn owner(&self) -> Owner {
        let claim = self.place().claim("two-node", &patience()).await.unwrap();
        Owner::start(claim, &patience(), &Redactor::default()).unwrap()
    }
    /// What an owner that was killed leaves: no drop ran, the kernel gave the lock back.
    async fn killed(&self) {
        let claim = self.place().claim("two-node", &patience()).await.unwrap();
        let owner = Owner::start(claim, &patience(), &Redactor::default()).unwrap();
        let saved = self.runs().join("saved");
        let copy = |from: &Path, to: &Path| {
            for entry in std::fs::read_dir(from).unwrap().flatten() {
                std::fs::rename(entry.path(), to.join(entry.file_name())).unwrap();
            }
        };
        std::fs::create_dir(&saved).unwrap();
        copy(&self.place().dir(), &saved);
        drop(owner);
        std::fs::remove_file(self.place().dir().join("state.json")).unwrap();
        copy(&saved, &self.place().dir());
        std::fs::remove_dir(&saved).unwrap();
    }
}

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o777
}

#[test]
fn a_name_that_could_leave_the_folder_is_refused() {
    for name in ["", "..", "a/b", "A", "-a", "a-", "a b", &"a".repeat(41)] {
        assert_eq!(Place::new(Path::new("/r"), name).unwrap_err().kind(), Kind::Input, "{name}");
    }
    assert_eq!(Place::new(Path::new("/r"), "a-1").unwrap().dir(), Path::new("/r/labs/a-1"));
}

#[tokio::test]
async fn everything_of_a_lab_is_private() {
    let home = Home::new();
    let _owner = home.owner().await;
    assert_eq!(mode(&home.place().dir()), 0o700);
    assert_eq!(mode(&home.place().dir().join(SOCKET)), 0o600);
    assert_eq!(mode(&home.place().dir().join("state.json")), 0o600);
}

#[tokio::test]
async fn a_lab_that_starts_answers_how_far_it_is_and_refuses_what_needs_machines() {
    let home = Home::new();
    let owner = home.owner().await;
    owner.doing("booting");
    let status = home.client().status().await.unwrap();
    assert_eq!((status.phase, status.note.as_deref()), (Phase::Starting, Some("booting")));
    assert_eq!(status.pid, std::process::id());
    let e = home.client().dial("a", 22).await.unwrap_err();
    assert!(e.message().contains("booting"), "{e}");
    let heal = super::fault::FaultRequest::Thaw { node: "a".into() };
    assert!(home.client().ask(&Request::Fault(heal)).await.is_err());
}

#[tokio::test]
async fn a_second_owner_is_refused_with_the_pid_of_the_first_and_the_next_step() {
    let home = Home::new();
    let _first = home.owner().await;
    let e = home.place().claim("two-node", &patience()).await.unwrap_err();
    assert!(e.message().contains(&format!("process {}", std::process::id())), "{e}");
    assert!(e.hint_text().unwrap().contains("lab down"), "{e}");
    assert_eq!(home.client().status().await.unwrap().phase, Phase::Starting, "the first goes on");
    let other = Place::new(home.runs(), "other").unwrap();
    other.claim("two-node", &patience()).await.expect("another name is free");
}

#[tokio::test]
async fn a_look_at_the_lock_does_not_keep_an_owner_from_starting() {
    let home = Home::new();
    drop(home.owner().await);
    // Holds the lock for the moment of the claim's first tries.
    let lock = std::fs::File::open(home.runs().join("labs/warm.lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let (place, patience) = (home.place(), patience());
    let (claim, ()) = tokio::join!(place.claim("two-node", &patience), async {
        tokio::task::yield_now().await;
        drop(lock);
    });
    claim.unwrap();
}

#[tokio::test]
async fn two_who_look_at_once_see_no_owner_and_one_who_forgets_waits_for_them() {
    let home = Home::new();
    drop(home.owner().await);
    // Another process, in the middle of its look.
    let lock = std::fs::File::open(home.runs().join("labs/warm.lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockShared).unwrap();
    assert!(matches!(home.place().look().unwrap(), Found::Ended(_)));
    assert!(sweep(home.runs()).unwrap().is_empty());
    let (place, patience) = (home.place(), patience());
    let (removed, ()) = tokio::join!(place.remove(&patience), async {
        tokio::task::yield_now().await;
        drop(lock);
    });
    removed.unwrap();
    assert!(!home.place().dir().exists());
    let _owner = home.owner().await;
    assert!(matches!(home.place().look().unwrap(), Found::Owned { .. }), "the control");
}

#[tokio::test]
async fn a_lab_that_is_not_there_one_that_ended_and_a_stale_socket_are_told_apart() {
    let home = Home::new();
    let e = home.client().ask(&Request::Status).await.unwrap_err();
    assert_eq!(e.kind(), Kind::Input);
    assert!(e.message().contains("there is no lab warm"), "{e}");

    home.killed().await;
    assert!(home.place().dir().join(SOCKET).exists(), "the socket is stale");
    let e = home.client().dial("a", 22).await.unwrap_err();
    assert!(e.message().contains("was killed"), "{e}");
    assert!(e.hint_text().unwrap().contains("lab up"), "{e}");
    let status = home.client().status().await.unwrap();
    assert_eq!(status.phase, Phase::Ended);

    let owner = home.owner().await;
    owner.failed(&Error::lab("no node booted"));
    let status = home.client().status().await.unwrap();
    assert_eq!(status.note.as_deref(), Some("it never came up: no node booted"));
}

#[tokio::test]
async fn the_sweep_clears_what_a_killed_owner_left_and_touches_no_living_one() {
    let home = Home::new();
    home.killed().await;
    let alive = Place::new(home.runs(), "alive").unwrap();
    let claim = alive.claim("x", &patience()).await.unwrap();
    let _owner = Owner::start(claim, &patience(), &Redactor::default()).unwrap();
    std::fs::write(home.place().dir().join("identity"), "a key").unwrap();
    assert_eq!(sweep(home.runs()).unwrap(), ["warm"]);
    assert!(!home.place().dir().join(SOCKET).exists());
    assert!(!home.place().dir().join("identity").exists());
    assert!(alive.dir().join(SOCKET).exists());
    let Found::Ended(state) = home.place().look().unwrap() else { panic!("it ended") };
    assert!(state.ended.unwrap().contains("was killed"));
    assert!(sweep(home.runs()).unwrap().is_empty(), "once is enough");
    // And the name is free again.
    drop(home.owner().await);
}

#[tokio::test]
async fn an_owner_that_was_killed_before_its_first_word_leaves_a_name_that_works() {
    let home = Home::new();
    home.place().make().unwrap();
    std::fs::write(home.runs().join("labs/warm.lock"), "").unwrap();
    std::fs::write(home.place().dir().join(SOCKET), "").unwrap();
    sweep(home.runs()).unwrap();
    assert_eq!(home.place().look().unwrap(), Found::Nothing);
    home.owner().await;
}

#[tokio::test]
async fn down_reaches_the_owner_and_returns_when_it_is_gone() {
    let home = Home::new();
    let owner = home.owner().await;
    let client = home.client();
    let (down, ()) = tokio::join!(client.down(), async {
        owner.asked_down().await;
        owner.failed(&Error::interrupted());
    });
    assert!(down.unwrap(), "it ran");
    assert_eq!(home.place().look().unwrap(), Found::Nothing);
    assert!(!home.place().dir().exists());
}

#[tokio::test]
async fn an_owner_stopped_by_a_signal_says_so() {
    let home = Home::new();
    drop(home.owner().await);
    let status = home.client().status().await.unwrap();
    assert_eq!(status.note.as_deref(), Some("its owner was stopped by a signal"));
    assert!(!home.client().down().await.unwrap(), "only forgotten");
    assert!(!home.place().dir().exists());
}

async fn raw(home: &Home, line: &str) -> Option<Reply> {
    let mut stream = socket::connect(&home.place().dir(), SOCKET).await.unwrap();
    stream.write_all(line.as_bytes()).await.unwrap();
    protocol::read(&mut stream).await.unwrap()
}

#[tokio::test]
async fn another_version_is_told_so_by_the_owner_whatever_it_asks() {
    let home = Home::new();
    let _owner = home.owner().await;
    let reply = raw(&home, "{\"version\": 99, \"request\": {\"do\": \"fly\"}}\n").await.unwrap();
    assert_eq!(reply.version, VERSION);
    let Said::Refused(refusal) = reply.said else { panic!("refused") };
    let e = Error::from(refusal);
    assert!(e.message().contains("protocol 99"), "{e}");
    assert!(e.hint_text().unwrap().contains(&format!("kill {}", std::process::id())), "{e}");
}

#[tokio::test]
async fn an_owner_of_another_version_is_told_by_the_client() {
    let home = Home::new();
    let claim = home.place().claim("two-node", &patience()).await.unwrap();
    let listener = socket::listen(&home.place().dir(), SOCKET).unwrap();
    let client = home.client();
    let (asked, ()) = tokio::join!(client.ask(&Request::Status), async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let _: Ask = protocol::read(&mut stream).await.unwrap().unwrap();
        let reply = Reply { version: VERSION + 1, said: Said::Answer(Answer::Done) };
        protocol::write(&mut stream, &reply).await.unwrap();
    });
    let e = asked.unwrap_err();
    assert!(e.message().contains("another version"), "{e}");
    assert!(e.hint_text().unwrap().contains("kill"), "{e}");
    drop(claim);
}

#[tokio::test]
async fn an_owner_of_an_older_version_is_ended() {
    let home = Home::new();
    let mut claim = home.place().claim("two-node", &patience()).await.unwrap();
    let listener = socket::listen(&home.place().dir(), SOCKET).unwrap();
    let older = VERSION - 1;
    let owner = async {
        let said = |said| Reply { version: older, said };
        let (mut stream, _) = listener.accept().await.unwrap();
        let ask: Ask = protocol::read(&mut stream).await.unwrap().unwrap();
        assert_eq!(ask.version, VERSION);
        let differ = protocol::versions_differ(VERSION, None);
        let refusal = protocol::Refusal::of(&differ, &Redactor::default());
        protocol::write(&mut stream, &said(Said::Refused(refusal))).await.unwrap();
        let (mut stream, _) = listener.accept().await.unwrap();
        let ask: Ask = protocol::read(&mut stream).await.unwrap().unwrap();
        assert_eq!((ask.version, ask.request["do"].as_str()), (older, Some("down")));
        protocol::write(&mut stream, &said(Said::Answer(Answer::Done))).await.unwrap();
        claim.remove();
        drop(claim);
    };
    let client = home.client();
    let (ran, ()) = tokio::join!(client.down(), owner);
    assert!(ran.unwrap());
}

#[tokio::test]
async fn nonsense_ends_its_own_connection_and_nothing_else() {
    let home = Home::new();
    let _owner = home.owner().await;
    let unknown = format!("{{\"version\": {VERSION}, \"request\": {{\"do\": \"fly\"}}}}\n");
    for line in ["nonsense\n", "{}\n", &unknown] {
        let Said::Refused(_) = raw(&home, line).await.unwrap().said else { panic!("{line}") };
    }
    // A client that dies in the middle of its line.
    let mut half = socket::connect(&home.place().dir(), SOCKET).await.unwrap();
    half.write_all(b"{\"version\"").await.unwrap();
    drop(half);
    assert_eq!(home.client().status().await.unwrap().name, "warm");
}

#[tokio::test]
async fn a_line_without_an_end_is_refused_before_it_fills_the_memory() {
    let (mut to, mut from) = UnixStream::pair().unwrap();
    let flood = tokio::spawn(async move { while to.write_all(&[b'x'; 65536]).await.is_ok() {} });
    let read = protocol::read::<Ask>(&mut from).await;
    assert!(read.unwrap_err().to_string().contains("without an end"));
    drop(from);
    flood.await.unwrap();
}

#[tokio::test]
async fn an_error_keeps_its_kind_hint_and_evidence_on_its_way_and_loses_its_secrets() {
    let redactor = Redactor::default();
    redactor.add(&crate::secret::Secret::new("0123456789abcdef"));
    let e = Error::provision("with 0123456789abcdef").hint("try").evidence(["line"]);
    let said = Said::Refused(protocol::Refusal::of(&e, &redactor));
    let (mut a, mut b) = UnixStream::pair().unwrap();
    protocol::write(&mut a, &Reply { version: VERSION, said }).await.unwrap();
    let reply: Reply = protocol::read(&mut b).await.unwrap().unwrap();
    let Said::Refused(refusal) = reply.said else { panic!("refused") };
    let back = Error::from(refusal);
    assert_eq!((back.kind(), back.message()), (Kind::Provision, "with [secret]"));
    assert_eq!((back.hint_text(), back.evidence_lines().len()), (Some("try"), 1));
}

/// The far side of the tests of ways into the lab: an echo on port 7 and a small HTTP server on
/// port 80 at 10.0.0.2, reached from a leg at 10.0.0.1.
fn fake_lab() -> (Way, Vec<tokio::task::AbortHandle>) {
    let network = Switch::new().network("management");
    let (near, far) = (
        Leg::new(&network, [10, 0, 0, 1].into(), 24),
        Leg::new(&network, [10, 0, 0, 2].into(), 24),
    );
    let subnet = "10.0.0.0/24".parse().unwrap();
    let reach = Reach {
        nodes: [("a".to_owned(), ("management".to_owned(), [10, 0, 0, 2].into()))].into(),
        legs: vec![("management".into(), subnet, near)],
        speed: Speed::new(1.0),
    };
    let echo = far.clone();
    let echo = tokio::spawn(async move {
        let listener = echo.listen(7).await.unwrap();
        loop {
            let (stream, _) = listener.accept().await;
            tokio::spawn(async move {
                let (mut from, mut to) = tokio::io::split(stream);
                let _ = tokio::io::copy(&mut from, &mut to).await;
                let _ = to.shutdown().await;
            });
        }
    });
    let http = tokio::spawn(async move {
        let listener = far.listen(80).await.unwrap();
        loop {
            let (mut stream, _) = listener.accept().await;
            tokio::spawn(async move {
                // Says back the head of what it was asked, so that a test sees what arrived.
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await?);
                }
                let length = head.len();
                let start = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n");
                stream.write_all(start.as_bytes()).await?;
                stream.write_all(&head).await?;
                stream.shutdown().await
            });
        }
    });
    let way: Way = Arc::new(move || Ok(reach.clone()));
    (way, vec![echo.abort_handle(), http.abort_handle()])
}

async fn echoes(at: SocketAddr) {
    let mut stream = TcpStream::connect(at).await.unwrap();
    let sent: Vec<u8> = (0..100_000u32).map(|n| n as u8).collect();
    let (mut from, mut to) = stream.split();
    let mut got = Vec::new();
    let (wrote, read) = tokio::join!(
        async {
            to.write_all(&sent).await?;
            to.shutdown().await
        },
        from.read_to_end(&mut got)
    );
    wrote.unwrap();
    read.unwrap();
    assert_eq!(got, sent, "every byte, and the end of the stream too");
}

fn loopback() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

#[tokio::test]
async fn a_forward_serves_many_at_once_counts_them_and_ends_when_dropped() {
    let (way, _tasks) = fake_lab();
    let forwards = Arc::new(Forwards::default());
    let held = forwards.open(way.clone(), "a", 7, loopback(), false).await.unwrap();
    assert!(held.listen.ip().is_loopback());
    tokio::join!(echoes(held.listen), echoes(held.listen), echoes(held.listen));
    let status = forwards.status();
    assert_eq!((status[0].connections, status[0].to.as_str()), (3, "a:7"));
    let at = held.listen;
    drop(held);
    assert!(forwards.status().is_empty());
    tokio::task::yield_now().await;
    // By address too, on the port that was given back.
    let again = forwards.open(way, "10.0.0.2", 7, at, true).await.unwrap();
    let kept = again.listen;
    again.keep();
    echoes(kept).await;
    assert_eq!(forwards.status().len(), 1);
}

#[tokio::test]
async fn a_taken_port_another_address_and_an_unknown_node_are_told_apart() {
    let (way, _tasks) = fake_lab();
    let forwards = Arc::new(Forwards::default());
    let taken = TcpListener::bind(loopback()).await.unwrap();
    let at = taken.local_addr().unwrap();
    let e = forwards.open(way.clone(), "a", 7, at, false).await.unwrap_err();
    assert!(e.message().contains(&format!("{at} is taken by another process")), "{e}");
    assert!(e.hint_text().unwrap().contains("--listen 127.0.0.1:0"), "{e}");
    let held = forwards.open(way.clone(), "a", 7, loopback(), false).await.unwrap();
    let e = forwards.open(way.clone(), "a", 80, held.listen, false).await.unwrap_err();
    assert!(e.message().contains("by this lab's forward to a:7"), "{e}");
    let any = "0.0.0.0:0".parse().unwrap();
    let e = forwards.open(way.clone(), "a", 7, any, false).await.unwrap_err();
    assert_eq!(e.kind(), Kind::Input, "{e}");
    let e = forwards.open(way.clone(), "b", 7, loopback(), false).await.unwrap_err();
    assert!(e.hint_text().unwrap().contains("its nodes are: a"), "{e}");
    let e = forwards.open(way, "192.0.2.1", 7, loopback(), false).await.unwrap_err();
    assert!(e.hint_text().unwrap().contains("management 10.0.0.0/24"), "{e}");
}

/// Sends `head` to the proxy and gives all that comes back.
async fn through(proxy: &Proxy, head: &str, body: &[u8]) -> String {
    let at = proxy.url.reveal().rsplit('@').next().unwrap().to_owned();
    let mut stream = TcpStream::connect(at).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body).await.unwrap();
    let mut reply = Vec::new();
    let mut piece = [0; 4096];
    // The proxy keeps its connection: the echo of what was sent is the end.
    loop {
        let n = stream.read(&mut piece).await.unwrap();
        reply.extend_from_slice(&piece[..n]);
        let text = String::from_utf8_lossy(&reply);
        let whole = text.split_once("\r\n\r\n").is_some_and(|(head, rest)| {
            let length = head.lines().find_map(|l| {
                l.to_ascii_lowercase().strip_prefix("content-length: ")?.parse::<usize>().ok()
            });
            length.is_some_and(|n| rest.len() >= n) || (!body.is_empty() && rest.ends_with("end"))
        });
        if whole || n == 0 {
            return text.into_owned();
        }
    }
}

fn password(proxy: &Proxy) -> String {
    let url = proxy.url.reveal();
    let given = url.strip_prefix("http://").unwrap().split('@').next().unwrap();
    format!("Proxy-Authorization: Basic {}\r\n", BASE64_STANDARD.encode(given))
}

#[tokio::test]
async fn the_proxy_leads_a_plain_request_into_the_lab_without_its_password() {
    let (way, _tasks) = fake_lab();
    let proxy = Proxy::start(way).await.unwrap();
    let pass = password(&proxy);
    for host in ["a", "10.0.0.2", "a:80"] {
        let head = format!(
            "GET http://{host}/v3/x?y=1 HTTP/1.1\r\nHost: other\r\n{pass}\
             Proxy-Connection: keep-alive\r\nX-Auth-Token: t\r\n\r\n"
        );
        let reply = through(&proxy, &head, b"").await;
        assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
        let (_, asked) = reply.split_once("\r\n\r\n").unwrap();
        assert!(asked.starts_with("GET /v3/x?y=1 HTTP/1.1\r\n"), "{asked}");
        let asked = asked.to_ascii_lowercase();
        assert!(asked.contains(&format!("host: {host}\r\n")), "{asked}");
        assert!(asked.contains("x-auth-token: t\r\n"), "{asked}");
        assert!(!asked.contains("proxy-"), "the password is the proxy's alone: {asked}");
    }
}

#[tokio::test]
async fn a_tunnel_through_the_proxy_carries_bytes_both_ways() {
    let (way, _tasks) = fake_lab();
    let proxy = Proxy::start(way).await.unwrap();
    let head = format!("CONNECT a:7 HTTP/1.1\r\nHost: a:7\r\n{}\r\n", password(&proxy));
    let reply = through(&proxy, &head, b"raw bytes, to the end").await;
    assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
    assert!(reply.ends_with("raw bytes, to the end"), "{reply}");
}

#[tokio::test]
async fn the_proxy_wants_its_password_and_leads_nowhere_but_into_the_lab() {
    let (way, _tasks) = fake_lab();
    let proxy = Proxy::start(way).await.unwrap();
    let get =
        |host: &str, pass: &str| format!("GET http://{host}/ HTTP/1.1\r\nHost: x\r\n{pass}\r\n");
    for wrong in ["", "Proxy-Authorization: Basic eDp5\r\n"] {
        let reply = through(&proxy, &get("a", wrong), b"").await;
        assert!(reply.starts_with("HTTP/1.1 407"), "{reply}");
        assert!(reply.to_ascii_lowercase().contains("proxy-authenticate: basic"), "{reply}");
    }
    // A server of the host itself, which the proxy could reach if it dialled for itself.
    let host = TcpListener::bind(loopback()).await.unwrap();
    let pass = password(&proxy);
    let reply = through(&proxy, &get(&host.local_addr().unwrap().to_string(), &pass), b"").await;
    assert!(reply.starts_with("HTTP/1.1 403"), "{reply}");
    let reply = through(&proxy, &get("nowhere", &pass), b"").await;
    assert!(reply.starts_with("HTTP/1.1 403") && reply.contains("its nodes are: a"), "{reply}");
    let reply = through(&proxy, &get("a:81", &pass), b"").await;
    assert!(reply.starts_with("HTTP/1.1 502") && reply.contains("refused"), "{reply}");
    let reply = through(&proxy, &format!("GET / HTTP/1.1\r\nHost: x\r\n{pass}\r\n"), b"").await;
    assert!(reply.starts_with("HTTP/1.1 403"), "{reply}");
}

#[tokio::test]
async fn the_starter_hears_events_and_the_end_of_the_start() {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let starter = Starter::new(theirs.into()).unwrap();
    let event = Event::Note { level: Level::Info, text: "hello".into() };
    starter.tell(News::Event(event));
    let failed = protocol::Refusal::of(&Error::lab("no luck"), &Redactor::default());
    // An end although somebody still could tell events.
    let _teller = starter.teller();
    starter.failed(failed).await;
    ours.set_nonblocking(true).unwrap();
    let mut ours = UnixStream::from_std(ours).unwrap();
    let first: News = protocol::read(&mut ours).await.unwrap().unwrap();
    assert!(matches!(first, News::Event(Event::Note { text, .. }) if text == "hello"));
    let second: News = protocol::read(&mut ours).await.unwrap().unwrap();
    assert!(matches!(second, News::Failed(_)));
}

#[tokio::test]
async fn a_lab_is_up_only_when_its_starter_has_heard_so() {
    let status = async {
        let home = Home::new();
        let _owner = home.owner().await;
        home.client().status().await.unwrap()
    }
    .await;
    // He was interrupted just then: the news arrive nowhere.
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let starter = Starter::new(theirs.into()).unwrap();
    let (heard, ()) = tokio::join!(starter.up(status.clone()), async { drop(ours) });
    assert!(!heard, "nobody knows of the lab");

    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let starter = Starter::new(theirs.into()).unwrap();
    ours.set_nonblocking(true).unwrap();
    let mut ours = UnixStream::from_std(ours).unwrap();
    let (heard, ()) = tokio::join!(starter.up(status), async {
        let news: News = protocol::read(&mut ours).await.unwrap().unwrap();
        assert!(matches!(news, News::Up(_)));
        ours.write_all(b"!").await.unwrap();
        drop(ours);
    });
    assert!(heard);
}

#[tokio::test]
async fn a_starter_that_dies_is_noticed() {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let starter = Starter::new(theirs.into()).unwrap();
    let mut gone = starter.gone();
    assert!(gone.cause().is_none());
    drop(ours);
    assert!(gone.wait().await.contains("gone"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_that_is_given_up_ends_the_owner_before_it_returns() {
    let home = Home::new();
    // Plays an owner: it ends when its standard input does.
    let mut cat = Command::new("cat");
    cat.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    let starting = Starting::spawn(cat, &home.place()).unwrap();
    let pid = starting.pid();
    drop(starting);
    assert!(!Path::new(&format!("/proc/{pid}")).exists(), "reaped");
}

#[tokio::test]
async fn an_owner_that_dies_without_a_word_is_explained_by_its_log() {
    let home = Home::new();
    let mut owner = Command::new("sh");
    owner.args(["-c", "echo 'thread panicked at x' >&2; exit 1"]);
    let starting = Starting::spawn(owner, &home.place()).unwrap();
    let e = starting.follow(&Events::silent()).await.unwrap_err();
    assert!(e.message().contains("without a word"), "{e}");
    assert_eq!(e.evidence_lines(), ["thread panicked at x"]);
    assert_eq!(mode(&home.place().log()), 0o600);
}
