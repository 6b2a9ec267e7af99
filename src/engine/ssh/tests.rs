use super::*;
use crate::engine::transport::{Connector, Shell, Ssh, Stream};
use russh::keys::PublicKey;
use russh::server::{self, Auth};
use russh::{ChannelId, MethodSet};
use std::collections::HashMap;
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncWriteExt, DuplexStream};

/// An SSH server in this process that runs commands with `sh -c`.
#[derive(Clone)]
struct Server {
    host: Key,
    user: PublicKey,
    connections: Arc<AtomicUsize>,
    /// The present connection's pipe: aborting it cuts the line.
    line: Arc<Mutex<Option<tokio::task::AbortHandle>>>,
}

struct Session {
    user: PublicKey,
    channels: HashMap<ChannelId, Channel<server::Msg>>,
}

impl server::Handler for Session {
    type Error = russh::Error;

    async fn auth_publickey(
        &mut self,
        _: &str,
        key: server::VerifiedPublicKey<'_>,
    ) -> Result<Auth, russh::Error> {
        let known = key.public_key.key_data() == self.user.key_data();
        Ok(if known { Auth::Accept } else { Auth::reject() })
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<server::Msg>,
        reply: server::ChannelOpenHandle,
        _: &mut server::Session,
    ) -> Result<(), russh::Error> {
        self.channels.insert(channel.id(), channel);
        reply.accept().await;
        Ok(())
    }

    async fn exec_request(
        &mut self,
        id: ChannelId,
        command: &[u8],
        session: &mut server::Session,
    ) -> Result<(), russh::Error> {
        session.channel_success(id)?;
        let command = String::from_utf8_lossy(command).into_owned();
        if let Some(channel) = self.channels.remove(&id) {
            tokio::spawn(serve(command, channel));
        }
        Ok(())
    }
}

/// What a command started ends with the server: its children hold the test's pipes.
struct ProcessGroup(Option<rustix::process::Pid>);

impl ProcessGroup {
    fn of(child: &tokio::process::Child) -> ProcessGroup {
        let id = child.id().and_then(|id| rustix::process::Pid::from_raw(id.cast_signed()));
        ProcessGroup(id)
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // The group may have ended already.
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
    }
}

async fn serve(command: String, channel: Channel<server::Msg>) {
    let mut child = tokio::process::Command::new("sh")
        .args(["-c", &command])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .unwrap();
    let _group = ProcessGroup::of(&child);
    let (mut stdin, mut stdout, mut stderr) =
        (child.stdin.take().unwrap(), child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let (mut from, to) = channel.split();
    let feed = tokio::spawn(async move {
        while let Some(message) = from.wait().await {
            match message {
                ChannelMsg::Data { data } => {
                    let Ok(()) = stdin.write_all(&data).await else { break };
                }
                ChannelMsg::Eof | ChannelMsg::Close => break,
                _ => {}
            }
        }
    });
    let (mut out, mut errors) = (to.make_writer(), to.make_writer_ext(Some(1)));
    let _ = tokio::join!(
        tokio::io::copy(&mut stdout, &mut out),
        tokio::io::copy(&mut stderr, &mut errors)
    );
    let status = child.wait().await.unwrap();
    let _ = to.exit_status(status.code().unwrap_or(255) as u32).await;
    let _ = to.close().await;
    feed.abort();
}

impl Server {
    fn new(user: &Key) -> Server {
        Server {
            host: Key::generate(KeyType::Ed25519).unwrap(),
            user: user.public(),
            connections: Arc::default(),
            line: Arc::default(),
        }
    }

    fn connect(&self) -> DuplexStream {
        self.connections.fetch_add(1, Ordering::SeqCst);
        let (ours, mut near) = tokio::io::duplex(64 * 1024);
        let (mut far, theirs) = tokio::io::duplex(64 * 1024);
        let config = Arc::new(server::Config {
            keys: vec![(*self.host.0).clone()],
            methods: MethodSet::server_supported(),
            auth_rejection_time: Duration::ZERO,
            ..server::Config::default()
        });
        let session = Session { user: self.user.clone(), channels: HashMap::new() };
        tokio::spawn(async move {
            if let Ok(running) = server::run_stream(config, theirs, session).await {
                let _ = running.await;
            }
        });
        let line = tokio::spawn(async move {
            let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
        });
        *self.line.lock().unwrap() = Some(line.abort_handle());
        ours
    }

    fn cut(&self) {
        self.line.lock().unwrap().take().unwrap().abort();
    }

    fn pinned(&self) -> HostKey {
        HostKey::Pinned(self.host.public())
    }

    fn shell(&self, key: &Key) -> Ssh {
        let server = self.clone();
        let connector: Connector = Arc::new(move || {
            let stream: Box<dyn Stream> = Box::new(server.connect());
            Box::pin(async { Ok(stream) })
        });
        Ssh::new("n", "root", key.clone(), self.pinned(), connector)
    }
}

fn user() -> Key {
    Key::generate(KeyType::Ed25519).unwrap()
}

#[tokio::test]
async fn a_command_gets_its_input_and_gives_output_errors_and_status() {
    for kind in [KeyType::Ed25519, KeyType::EcdsaP256] {
        let key = Key::generate(kind).unwrap();
        let server = Server::new(&key);
        let client = Client::connect(server.connect(), "u", &key, server.pinned()).await.unwrap();
        let out = client.run("cat; echo err >&2; exit 3", "in\0put").await.unwrap();
        let expected = Output { status: 3, stdout: b"in\0put".into(), stderr: b"err\n".into() };
        assert_eq!(out, expected);
    }
}

#[tokio::test]
async fn another_host_key_than_the_pinned_one_is_refused_before_login() {
    let key = user();
    let server = Server::new(&key);
    let other = Key::generate(KeyType::Ed25519).unwrap();
    let pinned = HostKey::pinned(&format!("{} comment", other.public_line())).unwrap();
    let e = Client::connect(server.connect(), "u", &key, pinned).await.unwrap_err();
    let print = |k: &Key| k.public().fingerprint(HashAlg::Sha256).to_string();
    let expected =
        format!("the SSH host key is {}, but {} is pinned", print(&server.host), print(&other));
    assert_eq!(e.message(), expected);
    assert!(!is_lost(&e), "not worth a second try");
    let of_other_type = HostKey::Pinned(Key::generate(KeyType::EcdsaP256).unwrap().public());
    let e = Client::connect(server.connect(), "u", &key, of_other_type).await.unwrap_err();
    assert!(e.message().starts_with("no SSH algorithm in common (Key)"), "{e}");
}

#[tokio::test]
async fn a_learnt_host_key_is_told() {
    let key = user();
    let server = Server::new(&key);
    let client = Client::connect(server.connect(), "u", &key, HostKey::Learn).await.unwrap();
    assert_eq!(client.host_key().unwrap().key_data(), server.host.public().key_data());
}

#[tokio::test]
async fn a_key_that_is_not_authorized_is_refused_with_a_hint() {
    let server = Server::new(&user());
    let e =
        Client::connect(server.connect(), "cirros", &user(), server.pinned()).await.unwrap_err();
    assert!(e.message().ends_with("for user cirros"), "{e}");
    assert!(e.hint_text().unwrap().contains("authorized_keys"));
    assert!(!is_lost(&e));
}

/// One way after the other: russh's server, unlike OpenSSH, stops reading while it cannot write.
#[tokio::test]
async fn fifty_megabytes_go_through_each_way() {
    let key = user();
    let server = Server::new(&key);
    let client = Client::connect(server.connect(), "u", &key, server.pinned()).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data").display().to_string();
    let data: Vec<u8> =
        (0..50_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    client.run(&format!("cat >{path}"), data.clone()).await.unwrap();
    assert!(std::fs::read(&path).unwrap() == data);
    let out = client.run(&format!("cat {path}"), "").await.unwrap();
    assert!(out.stdout == data, "{} bytes came back", out.stdout.len());
}

#[tokio::test]
async fn input_that_nobody_reads_does_not_block() {
    let key = user();
    let server = Server::new(&key);
    let client = Client::connect(server.connect(), "u", &key, server.pinned()).await.unwrap();
    let out = client.run("exit 4", vec![0u8; 20_000_000]).await.unwrap();
    assert_eq!(out.status, 4);
}

#[tokio::test]
async fn scripts_run_at_once_on_one_connection() {
    let key = user();
    let server = Server::new(&key);
    let shell = server.shell(&key);
    let dir = tempfile::tempdir().unwrap();
    let at = |n: &str| dir.path().join(n).display().to_string();
    // Each waits for the other: only two at once can end.
    let meet = |a, b| format!("{{ : >{}; until [ -e {} ]; do sleep 0.02; done; }}", at(a), at(b));
    let (one, two) = tokio::join!(shell.script(meet("a", "b")), shell.script(meet("b", "a")));
    assert_eq!((one.unwrap().status, two.unwrap().status), (0, 0));
    assert_eq!(server.connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_cut_line_ends_what_runs_at_once_and_the_next_call_connects_anew() {
    let key = user();
    let server = Server::new(&key);
    let shell = server.shell(&key);
    assert_eq!(shell.script("echo 1".into()).await.unwrap().stdout, b"1\n");
    let cut = async {
        let mut said = |piece: &[u8]| {
            if piece == b"go\n" {
                server.cut();
            }
        };
        let script = Bytes::from("{ echo go; sleep 1000; }");
        shell.exec(&["sh", "-s"], script, Some(&mut said)).await
    };
    let e = cut.await.unwrap_err();
    assert!(is_lost(&e), "{e}");
    assert_eq!(shell.script("echo 2".into()).await.unwrap().stdout, b"2\n");
    assert_eq!(server.connections.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_connection_that_died_between_two_calls_is_made_anew_unseen() {
    let key = user();
    let server = Server::new(&key);
    let shell = server.shell(&key);
    shell.script("true".into()).await.unwrap();
    server.cut();
    assert_eq!(shell.script("echo 2".into()).await.unwrap().stdout, b"2\n");
    shell.reset().await;
    assert_eq!(shell.script("echo 3".into()).await.unwrap().stdout, b"3\n");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_says_nothing_is_given_up() {
    let key = user();
    let (ours, _theirs) = tokio::io::duplex(1024);
    let slot = Mutex::new(Some(ours));
    let connector: Connector = Arc::new(move || {
        let stream: Box<dyn Stream> = Box::new(slot.lock().unwrap().take().unwrap());
        Box::pin(async { Ok(stream) })
    });
    let shell = Ssh::new("n", "root", key, HostKey::Learn, connector);
    let e = shell.script("true".into()).await.unwrap_err();
    assert!(is_lost(&e), "{e}");
    assert_eq!(e.message(), "connecting to n: no SSH session after 60 s");
}

#[tokio::test]
async fn a_file_is_uploaded_whole_with_its_mode() {
    use std::os::unix::fs::PermissionsExt;
    let key = user();
    let server = Server::new(&key);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("it's here");
    let content: Vec<u8> = (0..300_000u32).map(|i| i as u8).collect();
    let name = path.display().to_string();
    server.shell(&key).upload(&name, 0o640, content.clone().into()).await.unwrap();
    assert!(std::fs::read(&path).unwrap() == content);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
    let bad = format!("{}/none/x", dir.path().display());
    let e = server.shell(&key).upload(&bad, 0o600, Bytes::new()).await.unwrap_err();
    assert!(e.message().contains("could not write"), "{e}");
}

#[test]
fn keys_are_written_and_read_back_and_never_printed() {
    for kind in [KeyType::Ed25519, KeyType::EcdsaP256] {
        let key = Key::generate(kind).unwrap();
        let again = Key::from_openssh(&key.to_openssh().unwrap()).unwrap();
        assert_eq!(key.public_line(), again.public_line());
        assert!(format!("{key:?}").starts_with("Key(SHA256:"));
    }
    assert!(Key::from_openssh(&Secret::new("nonsense")).is_err());
}

#[test]
fn a_signals_exit_code_is_that_of_a_shell() {
    use russh::Sig;
    let custom = |name: &str| Sig::Custom(name.into());
    for (signal, code) in [
        (Sig::ABRT, 134),
        (Sig::FPE, 136),
        (Sig::ILL, 132),
        (Sig::ALRM, 142),
        (Sig::USR1, 138),
        (custom("USR2"), 140),
        (Sig::SEGV, 139),
        (Sig::KILL, 137),
        (custom("BUS"), 135),
        (custom("SIG@openssh.com"), 255),
    ] {
        assert_eq!(signal_code(&signal), code, "{signal:?}");
    }
}
