//! Logging in to the instance. The SSH client itself is the engine's; whoever glues the rooms
//! together implements [`Login`] with it.

use crate::cloud::{Later, Stream};
use crate::error::{Error, Kind, Result};
use crate::secret::Secret;
use russh::keys::key::safe_rng;
use russh::keys::ssh_key::LineEnding;
use russh::keys::{Algorithm, EcdsaCurve, PrivateKey};

/// A key made for one run.
#[derive(Clone, Debug)]
pub struct KeyPair {
    /// One line of OpenSSH's format.
    pub public: String,
    /// OpenSSH's PEM, without a passphrase.
    pub private: Secret,
}

impl KeyPair {
    /// ECDSA P-256: the one type besides RSA that old dropbears know.
    pub fn generate() -> Result<KeyPair> {
        let wrong = |e: russh::keys::ssh_key::Error| {
            Error::internal("no key pair could be made").because(e)
        };
        let algorithm = Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 };
        let key = PrivateKey::random(&mut safe_rng(), algorithm).map_err(wrong)?;
        let private = key.to_openssh(LineEnding::LF).map_err(wrong)?;
        Ok(KeyPair {
            public: key.public_key().to_openssh().map_err(wrong)?,
            private: Secret::new(private.as_str()),
        })
    }
}

/// A server's host key, one line of OpenSSH's format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostKey(pub String);

/// What a command left.
#[derive(Clone, Debug)]
pub struct Ran {
    /// None where the server ended the channel without one.
    pub status: Option<u32>,
    pub stdout: String,
    pub stderr: String,
}

/// Why a login was refused.
#[derive(Debug)]
pub enum Refusal {
    /// The server showed another host key than the pinned one: trying again cannot help.
    HostKeyChanged { seen: HostKey },
    /// The server heard the key and said no.
    Key(Error),
    /// Anything else that a system that is still booting may do.
    NotYet(Error),
}

impl Refusal {
    pub fn into_error(self) -> Error {
        match self {
            Refusal::HostKeyChanged { seen } => Error::new(
                Kind::Proof,
                format!("another machine answers: its host key is now `{}`", seen.0),
            ),
            Refusal::Key(e) | Refusal::NotYet(e) => e,
        }
    }
}

pub trait Login: Send + Sync {
    /// Logs in as `user` with `key` over `stream`. With a `pin` no other host key is accepted;
    /// without one the key shown is learned.
    fn connect<'a>(
        &'a self,
        stream: Box<dyn Stream>,
        user: &'a str,
        key: &'a KeyPair,
        pin: Option<&'a HostKey>,
    ) -> Later<'a, Result<Box<dyn Shell>, Refusal>>;
}

/// A logged-in user. Logged out when dropped.
pub trait Shell: Send {
    fn host_key(&self) -> HostKey;
    fn run<'a>(&'a mut self, command: &'a str) -> Later<'a, Result<Ran>>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_pair_is_p256_fits_together_and_is_new_each_time() {
        let (a, b) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        assert!(a.public.starts_with("ecdsa-sha2-nistp256 "), "{}", a.public);
        let private = russh::keys::decode_secret_key(a.private.reveal(), None).unwrap();
        assert_eq!(private.public_key().to_openssh().unwrap(), a.public);
        assert_ne!(a.public, b.public);
    }
}
