//! An SSH client over any stream: public-key login, a host key that is known beforehand, many
//! commands at once.

use super::transport::{Output, Watch};
use crate::error::{Context, Error, FailureCause, Kind, Result};
use crate::secret::Secret;
use bytes::Bytes;
use russh::client::{self, DisconnectReason, Handle, Msg};
use russh::keys::{Algorithm, EcdsaCurve, HashAlg, PrivateKey, PrivateKeyWithHashAlg, PublicKey};
use russh::{AlgorithmKind, Channel, ChannelMsg, ChannelWriteHalf, Disconnect, Preferred};
use std::borrow::Cow;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};

/// A user's key pair.
#[derive(Clone)]
pub struct Key(Arc<PrivateKey>);

/// The types of keys that can be made here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyType {
    Ed25519,
    /// Known to dropbear of any age.
    EcdsaP256,
}

impl Key {
    pub fn generate(kind: KeyType) -> Result<Key> {
        let algorithm = match kind {
            KeyType::Ed25519 => Algorithm::Ed25519,
            KeyType::EcdsaP256 => Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 },
        };
        let key = PrivateKey::random(&mut urandom::Urandom, algorithm)
            .doing(Kind::Internal, || "making an SSH key".into())?;
        Ok(Key(Arc::new(key)))
    }
    /// From OpenSSH's own format, without a passphrase.
    pub fn from_openssh(text: &Secret) -> Result<Key> {
        let key = PrivateKey::from_openssh(text.reveal())
            .doing(Kind::Input, || "reading an SSH private key".into())?;
        Ok(Key(Arc::new(key)))
    }
    /// OpenSSH's format: what goes into a key file (0600).
    pub fn to_openssh(&self) -> Result<Secret> {
        let text = self
            .0
            .to_openssh(russh::keys::ssh_key::LineEnding::LF)
            .doing(Kind::Internal, || "writing an SSH private key".into())?;
        Ok(Secret::new(text.as_str()))
    }
    /// One line of `authorized_keys`.
    pub fn public_line(&self) -> String {
        // Only a key of an unknown type could fail, and those are not made or read above.
        self.0.public_key().to_openssh().unwrap_or_default()
    }
    pub fn public(&self) -> PublicKey {
        self.0.public_key().clone()
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.0.public_key().fingerprint(HashAlg::Sha256))
    }
}

/// What is known of the server's host key.
#[derive(Clone, Debug)]
pub enum HostKey {
    /// The server must have exactly this key.
    Pinned(PublicKey),
    /// Any key is taken and told by [`Client::host_key`]: for guests that made their own, where
    /// something else (a nonce) proves who they are.
    Learn,
}

impl HostKey {
    /// From a line `ssh-ed25519 AAAA... [comment]`.
    pub fn pinned(line: &str) -> Result<HostKey> {
        let key = PublicKey::from_openssh(line.trim())
            .doing(Kind::Input, || "reading an SSH host key".into())?;
        Ok(HostKey::Pinned(key))
    }
}

/// The connection was lost or could not be made: the only kind of failure worth a second try.
pub fn lost(what: impl Into<String>) -> Error {
    Error::lab(what).because("the connection is lost").caused_by(FailureCause::ConnectionLost)
}

/// Was it made by [`lost`], whatever was said of it since?
pub fn is_lost(e: &Error) -> bool {
    e.cause() == Some(FailureCause::ConnectionLost)
}

/// Did the server hear the key and say no?
pub fn is_key_refused(e: &Error) -> bool {
    e.cause() == Some(FailureCause::KeyRefused)
}

/// One connection. Cheap to clone; closed when the last clone is dropped.
#[derive(Clone)]
pub struct Client {
    handle: Arc<Handle<Handler>>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    host_key: Mutex<Option<PublicKey>>,
    /// Why the connection ended, once it has.
    ended: Mutex<Option<String>>,
}

impl Shared {
    fn ended(&self) -> String {
        let ended = self.ended.lock().expect("ended lock").clone();
        ended.unwrap_or_else(|| "closed by the other side".into())
    }
}

struct Handler {
    shared: Arc<Shared>,
    host_key: HostKey,
}

impl client::Handler for Handler {
    type Error = russh::Error;

    async fn check_server_key(
        &mut self,
        key: &russh::keys::PublicKeyOrCertificate,
    ) -> Result<bool, russh::Error> {
        let key = key.public_key();
        let known = match &self.host_key {
            // The comment is no part of a key.
            HostKey::Pinned(pinned) => pinned.key_data() == key.key_data(),
            HostKey::Learn => true,
        };
        *self.shared.host_key.lock().expect("host key lock") = Some(key);
        Ok(known)
    }

    async fn disconnected(
        &mut self,
        reason: DisconnectReason<russh::Error>,
    ) -> Result<(), russh::Error> {
        let text = match &reason {
            DisconnectReason::ReceivedDisconnect(info) => {
                format!("closed by the server: {}", info.message)
            }
            DisconnectReason::Error(russh::Error::KeepaliveTimeout) => {
                "the server stopped answering".into()
            }
            DisconnectReason::Error(russh::Error::Disconnect) => "closed by the other side".into(),
            DisconnectReason::Error(e) => e.to_string(),
        };
        self.shared.ended.lock().expect("ended lock").get_or_insert(text);
        match reason {
            DisconnectReason::ReceivedDisconnect(_) => Ok(()),
            DisconnectReason::Error(e) => Err(e),
        }
    }
}

/// Keepalives are asked for after this long without a sign: a link that is cut silently is noticed
/// when as many as fit into the longest silence had no answer. A death that closes the stream is
/// noticed at once.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// The longest silence of a server that lives, where none was set.
pub const LONGEST_SILENCE: Duration = Duration::from_secs(60);

fn config(host_key: &HostKey, silence: Duration) -> client::Config {
    let mut preferred = Preferred::DEFAULT;
    let mut kex = preferred.kex.to_vec();
    // ML-KEM first costs an emulated server dearly; the last is what old dropbears have.
    kex.retain(|k| *k != russh::kex::MLKEM768X25519_SHA256);
    let extensions = kex.iter().position(|k| *k == russh::kex::EXTENSION_SUPPORT_AS_CLIENT);
    kex.insert(extensions.unwrap_or(kex.len()), russh::kex::ECDH_SHA2_NISTP256);
    preferred.kex = Cow::Owned(kex);
    let mut mac = preferred.mac.to_vec();
    mac.push(russh::mac::HMAC_SHA1);
    preferred.mac = Cow::Owned(mac);
    if let HostKey::Pinned(key) = host_key {
        // Else a server with several keys would show another than the one that we know.
        preferred.key = Cow::Owned(match key.algorithm() {
            Algorithm::Rsa { .. } => [Some(HashAlg::Sha512), Some(HashAlg::Sha256), None]
                .map(|hash| Algorithm::Rsa { hash })
                .to_vec(),
            other => vec![other],
        });
    }
    client::Config {
        preferred,
        window_size: 8 * 1024 * 1024,
        maximum_packet_size: 32 * 1024,
        inactivity_timeout: None,
        keepalive_interval: Some(KEEPALIVE),
        keepalive_max: keepalives(silence),
        ..client::Config::default()
    }
}

/// How many questions may stay unanswered: the connection is lost with the next one.
fn keepalives(silence: Duration) -> usize {
    (silence.as_secs() / KEEPALIVE.as_secs()).saturating_sub(1).max(1) as usize
}

impl Client {
    /// Connects and logs in. Has no deadline of its own: the caller waits with patience.
    pub async fn connect<S>(stream: S, user: &str, key: &Key, host_key: HostKey) -> Result<Client>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        Client::connect_patiently(stream, user, key, host_key, LONGEST_SILENCE).await
    }

    /// The same with a server that may be silent for so long once it is connected.
    pub async fn connect_patiently<S>(
        stream: S,
        user: &str,
        key: &Key,
        host_key: HostKey,
        silence: Duration,
    ) -> Result<Client>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let shared = Arc::new(Shared::default());
        let handler = Handler { shared: shared.clone(), host_key: host_key.clone() };
        let config = Arc::new(config(&host_key, silence));
        let mut handle = match client::connect_stream(config, stream, handler).await {
            Ok(handle) => handle,
            Err(russh::Error::UnknownKey) => {
                return Err(wrong_host_key(
                    &host_key,
                    shared.host_key.lock().expect("lock").as_ref(),
                ));
            }
            Err(russh::Error::NoCommonAlgo { kind, ours, theirs }) => {
                return Err(no_common(&host_key, &kind, &ours, &theirs));
            }
            Err(e) => return Err(lost(format!("SSH handshake: {e}"))),
        };
        let hash = match key.0.algorithm() {
            Algorithm::Rsa { .. } => handle
                .best_supported_rsa_hash()
                .await
                .map_err(|e| lost(format!("SSH login: {e}")))?
                .flatten(),
            _ => None,
        };
        let with = PrivateKeyWithHashAlg::new(key.0.clone(), hash);
        let result = handle
            .authenticate_publickey(user, with)
            .await
            .map_err(|e| lost(format!("SSH login as {user}: {e}, {}", shared.ended())))?;
        if !result.success() {
            return Err(Error::lab(format!(
                "the SSH server refused the key {} for user {user}",
                key.0.public_key().fingerprint(HashAlg::Sha256)
            ))
            .because("it was heard and refused")
            .caused_by(FailureCause::KeyRefused)
            .hint("is the key in that user's authorized_keys, and are its modes 0700 and 0600?"));
        }
        Ok(Client { handle: Arc::new(handle), shared })
    }

    /// The key that the server proved to have.
    pub fn host_key(&self) -> Option<PublicKey> {
        self.shared.host_key.lock().expect("host key lock").clone()
    }

    pub fn is_closed(&self) -> bool {
        self.handle.is_closed()
    }

    pub(crate) fn is_same(&self, other: &Client) -> bool {
        Arc::ptr_eq(&self.handle, &other.handle)
    }

    /// Runs `command` in the user's login shell with `stdin`, and waits for its end. The command
    /// line can be seen on the server: secrets go into `stdin`.
    pub async fn run(&self, command: &str, stdin: impl Into<Bytes>) -> Result<Output> {
        let channel = self.open().await?;
        self.run_on(channel, command, stdin.into(), None).await
    }

    pub(crate) async fn open(&self) -> Result<Channel<Msg>> {
        self.handle.channel_open_session().await.map_err(|e| match e {
            russh::Error::ChannelOpenFailure(why) => {
                Error::lab(format!("the SSH server opens no further session: {why:?}"))
            }
            _ => lost(format!("opening an SSH session: {}", self.shared.ended())),
        })
    }

    pub(crate) async fn run_on(
        &self,
        channel: Channel<Msg>,
        command: &str,
        stdin: Bytes,
        mut watch: Option<Watch<'_>>,
    ) -> Result<Output> {
        let gone = || lost(format!("running a command over SSH: {}", self.shared.ended()));
        channel.exec(true, command).await.map_err(|_| gone())?;
        let (mut from, to) = channel.split();
        let mut to = Hangup(Some(to));
        let writer = to.0.as_ref();
        let feed = async {
            // Whether the command takes all of its input is its own affair.
            if let Some(to) = writer {
                if !stdin.is_empty() {
                    let _ = to.data_bytes(stdin).await;
                }
                let _ = to.eof().await;
            }
            std::future::pending::<()>().await
        };
        let mut out = Output::default();
        let read = async {
            let mut status = None;
            while let Some(message) = from.wait().await {
                match message {
                    ChannelMsg::Data { data } => {
                        if let Some(watch) = &mut watch {
                            watch(&data);
                        }
                        out.stdout.extend_from_slice(&data);
                    }
                    ChannelMsg::ExtendedData { data, .. } => out.stderr.extend_from_slice(&data),
                    ChannelMsg::ExitStatus { exit_status } => status = Some(exit_status as i32),
                    ChannelMsg::ExitSignal { signal_name, .. } => {
                        status = Some(signal_code(&signal_name));
                    }
                    ChannelMsg::Failure => {
                        return Err(Error::lab("the SSH server refused to run a command"));
                    }
                    // Data may still follow an exit status; only the close is the end.
                    ChannelMsg::Close => break,
                    _ => {}
                }
            }
            status.ok_or_else(gone)
        };
        // Feeding never ends by itself: the end of the command ends it, read or not.
        let status = tokio::select! {
            status = read => status?,
            () = feed => unreachable!("feeding never resolves"),
        };
        // Ended by the server: there is nothing to hang up.
        to.0 = None;
        out.status = status;
        Ok(out)
    }

    /// Says goodbye to the server.
    pub async fn close(&self) {
        let _ = self.handle.disconnect(Disconnect::ByApplication, "", "en").await;
    }
}

/// Closes a channel whose command is no longer waited for, so that its next output ends it.
struct Hangup(Option<ChannelWriteHalf<Msg>>);

impl Drop for Hangup {
    fn drop(&mut self) {
        if let Some(to) = self.0.take()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(async move {
                let _ = to.close().await;
            });
        }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("closed", &self.is_closed()).finish()
    }
}

/// The exit code of a command that a signal ended, as shells give it: 128 and the signal's number on
/// Linux; 255 for one without a name.
pub fn signal_code(signal: &russh::Sig) -> i32 {
    use russh::Sig;
    128 + match signal {
        Sig::HUP => 1,
        Sig::INT => 2,
        Sig::QUIT => 3,
        Sig::ILL => 4,
        Sig::ABRT => 6,
        Sig::FPE => 8,
        Sig::KILL => 9,
        Sig::USR1 => 10,
        Sig::SEGV => 11,
        Sig::PIPE => 13,
        Sig::ALRM => 14,
        Sig::TERM => 15,
        // RFC 4254 names those above; servers send others in the same way.
        Sig::Custom(name) => match name.split('@').next().unwrap_or_default() {
            "TRAP" => 5,
            "BUS" => 7,
            "USR2" => 12,
            "STKFLT" => 16,
            "XCPU" => 24,
            "XFSZ" => 25,
            "VTALRM" => 26,
            "PROF" => 27,
            "POLL" | "IO" => 29,
            "PWR" => 30,
            "SYS" => 31,
            _ => 127,
        },
    }
}

const IMPOSTOR: &str = "something else answers at that address, or the node was made anew with \
    another key: nothing was sent to it";

fn wrong_host_key(known: &HostKey, seen: Option<&PublicKey>) -> Error {
    let print = |k: &PublicKey| k.fingerprint(HashAlg::Sha256).to_string();
    let pinned = match known {
        HostKey::Pinned(key) => print(key),
        HostKey::Learn => "none".into(),
    };
    let seen = seen.map(print).unwrap_or_else(|| "none".into());
    Error::lab(format!("the SSH host key is {seen}, but {pinned} is pinned")).hint(IMPOSTOR)
}

fn no_common(known: &HostKey, what: &AlgorithmKind, ours: &[String], theirs: &[String]) -> Error {
    let e = Error::lab(format!(
        "no SSH algorithm in common ({what:?}): we offer {}, the server {}",
        ours.join(","),
        theirs.join(",")
    ));
    match known {
        HostKey::Pinned(key) if matches!(what, AlgorithmKind::Key) => {
            e.hint(format!("the server has no {} host key, but one is pinned", key.algorithm()))
        }
        _ => e,
    }
}

/// The kernel's random numbers in the shape that the key generator wants.
mod urandom {
    use russh::keys::ssh_key::rand_core::{TryCryptoRng, TryRng};
    use std::convert::Infallible;

    pub struct Urandom;

    impl TryRng for Urandom {
        type Error = Infallible;
        fn try_next_u32(&mut self) -> Result<u32, Infallible> {
            let mut raw = [0; 4];
            self.try_fill_bytes(&mut raw)?;
            Ok(u32::from_ne_bytes(raw))
        }
        fn try_next_u64(&mut self) -> Result<u64, Infallible> {
            let mut raw = [0; 8];
            self.try_fill_bytes(&mut raw)?;
            Ok(u64::from_ne_bytes(raw))
        }
        fn try_fill_bytes(&mut self, to: &mut [u8]) -> Result<(), Infallible> {
            use std::io::Read;
            let got = std::fs::File::open("/dev/urandom").and_then(|mut f| f.read_exact(to));
            // No key may ever be made of anything else.
            got.expect("/dev/urandom can be read");
            Ok(())
        }
    }
    impl TryCryptoRng for Urandom {}
}

#[cfg(test)]
mod tests;
