//! SSH keys made by us, so that nothing is trusted on first use.
//!
//! Nodes get Ed25519 keys. Instances get ECDSA P-256: the dropbear of old images refuses Ed25519,
//! and P-256 is known to every server that we meet.

use crate::error::{Context, Error, Kind, Result};
use crate::secret::{Redactor, Secret};
use russh::keys::ssh_key::private::{Ed25519Keypair, KeypairData};
use russh::keys::ssh_key::{LineEnding, rand_core};
use russh::keys::{Algorithm, EcdsaCurve, PrivateKey, PublicKey};
use std::convert::Infallible;
use std::fmt;
use std::io::Read;

/// A key pair. Cloning it copies the private key; it prints only its public half.
#[derive(Clone)]
pub struct SshKey(PrivateKey);

impl SshKey {
    /// For nodes: their host keys and the login to them.
    pub fn ed25519(comment: &str) -> Result<SshKey> {
        Self::generate(Algorithm::Ed25519, comment)
    }

    /// No secret at all: the same pair everywhere, known to everybody. For what must not depend on
    /// keys; never for a lab.
    pub fn symbolic() -> SshKey {
        let pair = Ed25519Keypair::from_seed(b"stackproof: known to everybody!!");
        let mut key = PrivateKey::from(pair);
        key.set_comment("symbolic");
        SshKey(key)
    }

    /// For instances.
    pub fn ecdsa_p256(comment: &str) -> Result<SshKey> {
        Self::generate(Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 }, comment)
    }

    /// The same Ed25519 key for the same seed: 32 bytes in hexadecimal.
    pub fn ed25519_from_seed(seed: &Secret, comment: &str) -> Result<SshKey> {
        let byte =
            |i: usize| seed.reveal().get(i..i + 2).and_then(|h| u8::from_str_radix(h, 16).ok());
        let bytes: Option<Vec<u8>> = (0..seed.reveal().len()).step_by(2).map(byte).collect();
        let seed: [u8; 32] = bytes
            .and_then(|b| b.try_into().ok())
            .ok_or_else(|| Error::internal("the seed of a key is not 32 bytes in hexadecimal"))?;
        let pair = Ed25519Keypair::from_seed(&seed);
        let key = PrivateKey::new(KeypairData::Ed25519(pair), comment)
            .doing(Kind::Internal, || format!("cannot make the SSH key `{comment}`"))?;
        Ok(SshKey(key))
    }

    fn generate(algorithm: Algorithm, comment: &str) -> Result<SshKey> {
        let mut random = KernelRandom::open()?;
        let mut key = PrivateKey::random(&mut random, algorithm)
            .doing(Kind::Internal, || format!("cannot make the SSH key `{comment}`"))?;
        key.set_comment(comment);
        Ok(SshKey(key))
    }

    /// For the SSH client.
    pub fn private(&self) -> &PrivateKey {
        &self.0
    }

    /// What a client pins, or a server authorises.
    pub fn public(&self) -> &PublicKey {
        self.0.public_key()
    }

    /// `ssh-ed25519 AAAA… comment`, one line without its end.
    pub fn public_line(&self) -> String {
        self.public().to_openssh().expect("a generated key can be written")
    }

    /// The private key as OpenSSH keeps it in a file (PEM, ends with a newline).
    pub fn private_pem(&self) -> Secret {
        let pem = self.0.to_openssh(LineEnding::LF).expect("a generated key can be written");
        Secret::new(pem.as_str())
    }

    /// Reads back what [`SshKey::private_pem`] gave.
    pub fn from_private_pem(pem: &Secret) -> Result<SshKey> {
        PrivateKey::from_openssh(pem.reveal())
            .map(SshKey)
            .doing(Kind::Input, || "this is no private SSH key".into())
    }

    /// Makes the redactor remove the private key, as a whole and line by line: a console shows
    /// files one line at a time.
    pub fn hide_in(&self, redactor: &Redactor) {
        redactor.add_lines(&self.private_pem());
    }
}

impl fmt::Debug for SshKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SshKey").field(&self.public_line()).finish()
    }
}

/// The kernel's random source as the key generator wants it.
struct KernelRandom(std::fs::File);

impl KernelRandom {
    fn open() -> Result<KernelRandom> {
        let file = std::fs::File::open("/dev/urandom").map_err(|e| {
            Error::host("cannot read random bytes").at("/dev/urandom", None).because(e)
        })?;
        Ok(KernelRandom(file))
    }
}

impl rand_core::TryRng for KernelRandom {
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
    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Infallible> {
        // An open /dev/urandom never ends and never fails; a key from anything else must not be.
        self.0.read_exact(out).expect("/dev/urandom can be read");
        Ok(())
    }
}

impl rand_core::TryCryptoRng for KernelRandom {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_makes_the_same_key_and_another_seed_another() {
        let key = |seed: &str| SshKey::ed25519_from_seed(&Secret::new(seed), "node");
        let one = key(&"a7".repeat(32)).unwrap();
        assert_eq!(one.private_pem(), key(&"a7".repeat(32)).unwrap().private_pem());
        assert_ne!(one.public_line(), key(&"a8".repeat(32)).unwrap().public_line());
        for wrong in ["", "a7", &"zz".repeat(32), &"a7".repeat(33), &"é".repeat(32)] {
            assert!(key(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn keys_are_of_the_kind_asked_for_and_never_twice_the_same() {
        let node = SshKey::ed25519("node").unwrap();
        let instance = SshKey::ecdsa_p256("instance").unwrap();
        assert!(node.public_line().starts_with("ssh-ed25519 AAAA"), "{node:?}");
        assert!(node.public_line().ends_with(" node"), "{node:?}");
        assert!(instance.public_line().starts_with("ecdsa-sha2-nistp256 AAAA"), "{instance:?}");
        assert_ne!(node.public(), SshKey::ed25519("node").unwrap().public());
    }

    #[test]
    fn the_private_file_reads_back_as_the_same_key() {
        for key in [SshKey::ed25519("a b").unwrap(), SshKey::ecdsa_p256("c").unwrap()] {
            let back = SshKey::from_private_pem(&key.private_pem()).unwrap();
            assert_eq!(back.private(), key.private());
        }
        for bad in ["", "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n"] {
            assert!(SshKey::from_private_pem(&Secret::new(bad)).is_err());
        }
    }

    #[test]
    fn a_key_shows_its_public_half_only_and_is_redacted_line_by_line() {
        let key = SshKey::ed25519("k").unwrap();
        let pem = key.private_pem();
        let lines: Vec<_> = pem.reveal().lines().filter(|l| !l.starts_with("-----")).collect();
        assert!(lines.len() >= 4);
        let redactor = Redactor::default();
        key.hide_in(&redactor);
        for line in lines {
            assert!(!format!("{key:?}").contains(line));
            assert_eq!(redactor.clean(&format!("[ 1.0] {line}")), "[ 1.0] [secret]");
        }
    }
}
