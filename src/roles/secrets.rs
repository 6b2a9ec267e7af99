//! The cloud's own secrets: one for each user of each service, made once per lab.

use crate::error::{Context, Error, Kind, Result};
use crate::secret::{Redactor, Secret};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// What each secret is for. The names are the keys of the file.
const NAMES: [&str; 18] = [
    "admin",
    "demo",
    "rabbit",
    "metadata",
    "db.keystone",
    "db.glance",
    "db.placement",
    "db.nova",
    "db.neutron",
    "user.glance",
    "user.placement",
    "user.nova",
    "user.neutron",
    "fernet",
    "fernet.next",
    "credential",
    "credential.next",
    "node-key",
];

/// How many a secret has.
fn bytes(name: &str) -> usize {
    let is_key = ["fernet", "credential", "node-key"].iter().any(|k| name.starts_with(k));
    if is_key { 32 } else { 16 }
}

#[derive(Clone, Debug)]
pub struct Secrets(BTreeMap<String, Secret>);

impl Secrets {
    /// 128 random bits each, except the encryption keys, which have the 256 bits they need.
    pub fn generate() -> Result<Secrets> {
        let make = |name: &&str| {
            let secret = Secret::generate(bytes(name))
                .doing(Kind::Host, || "could not read random bytes".into())?;
            Ok((name.to_string(), secret))
        };
        Ok(Secrets(NAMES.iter().map(make).collect::<Result<_>>()?))
    }

    /// No secrets at all: values known to everybody, of the right shape, each its name's own and
    /// the same everywhere. For what must not depend on secrets; never for a lab.
    pub fn symbolic() -> Secrets {
        let make = |name: &&str| {
            let digest = Sha256::digest(format!("stackproof symbolic secret {name}"));
            let hex: String = digest.iter().take(bytes(name)).map(|b| format!("{b:02x}")).collect();
            (name.to_string(), Secret::new(hex))
        };
        Secrets(NAMES.iter().map(make).collect())
    }

    /// In clear, to be kept in a file that only we can read. Neither to be shown nor to be logged:
    /// the value knows nothing of what it holds.
    pub fn reveal(&self) -> serde_json::Value {
        self.0.iter().map(|(k, v)| (k.clone(), serde_json::Value::from(v.reveal()))).collect()
    }

    /// What [`Secrets::reveal`] gave; every secret must be there.
    pub fn parse(value: &serde_json::Value) -> Result<Secrets> {
        let get = |name: &&str| {
            let text = value.get(name).and_then(serde_json::Value::as_str);
            let text = text.ok_or_else(|| Error::input(format!("no secret `{name}`")))?;
            Ok((name.to_string(), Secret::new(text)))
        };
        Ok(Secrets(NAMES.iter().map(get).collect::<Result<_>>()?))
    }

    /// What [`Secrets::reveal`] gave when there may have been fewer of them, or others. Those that
    /// have come since are made now: no step that was applied then can have used one, for it would
    /// be another step today. Those that nobody uses any more are left out.
    pub fn of_then(value: &serde_json::Value) -> Result<Secrets> {
        let then = value.as_object().filter(|then| then.values().all(|v| v.is_string()));
        let then = then.ok_or_else(|| Error::input("these are no secrets of a lab"))?;
        let mut secrets = Secrets::generate()?;
        for (name, secret) in &mut secrets.0 {
            if let Some(text) = then.get(name).and_then(serde_json::Value::as_str) {
                *secret = Secret::new(text);
            }
        }
        Ok(secrets)
    }

    /// Reads the lab's secrets, or makes them where there are none yet. The file is 0600.
    pub fn load_or_generate(path: &Path) -> Result<Secrets> {
        match std::fs::read_to_string(path) {
            Ok(text) => {
                let value = serde_json::from_str(&text)
                    .doing(Kind::Input, || format!("{}: not a secrets file", path.display()))?;
                Secrets::parse(&value).map_err(|e| {
                    e.at(path, None).hint("remove the file: the lab is then provisioned anew")
                })
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let secrets = Secrets::generate()?;
                secrets.save(path)?;
                Ok(secrets)
            }
            Err(e) => Err(e).doing(Kind::Host, || format!("could not read {}", path.display())),
        }
    }

    fn save(&self, path: &Path) -> Result<()> {
        let text = format!("{:#}\n", self.reveal());
        std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .and_then(|mut f| f.write_all(text.as_bytes()))
            .doing(Kind::Host, || format!("could not write {}", path.display()))
    }

    /// From now on nothing that passes the redactor shows any of them.
    pub fn hide_in(&self, redactor: &Redactor) {
        for (_, form) in self.forms() {
            redactor.add(&form);
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &Secret)> {
        self.0.iter().map(|(k, v)| (k.as_str(), v))
    }

    fn get(&self, name: &str) -> &Secret {
        self.0.get(name).unwrap_or_else(|| panic!("no secret is named {name}"))
    }

    pub fn admin(&self) -> &Secret {
        self.get("admin")
    }
    /// What the key pair of the nodes' own user is made from (S1.9): 32 bytes in hexadecimal.
    pub fn node_key(&self) -> &Secret {
        self.get("node-key")
    }
    pub fn demo(&self) -> &Secret {
        self.get("demo")
    }
    pub fn rabbit(&self) -> &Secret {
        self.get("rabbit")
    }
    /// Shared by nova's metadata API and neutron's metadata agent.
    pub fn metadata(&self) -> &Secret {
        self.get("metadata")
    }
    /// The database account of a service.
    pub fn database(&self, service: &str) -> &Secret {
        self.get(&format!("db.{service}"))
    }
    /// The keystone user of a service.
    pub fn user(&self, service: &str) -> &Secret {
        self.get(&format!("user.{service}"))
    }
    /// `fernet`, `credential` or the next of either, as keystone holds it.
    pub fn fernet_key(&self, name: &str) -> Secret {
        fernet_key(self.get(name))
    }

    /// Every shape in which a secret is held somewhere, by the secret's name: the one kept here,
    /// and what keystone makes of the keys.
    pub fn forms(&self) -> impl Iterator<Item = (&str, Secret)> {
        self.iter().flat_map(|(name, secret)| {
            let is_fernet = name.starts_with("fernet") || name.starts_with("credential");
            let other = is_fernet.then(|| (name, fernet_key(secret)));
            [(name, secret.clone())].into_iter().chain(other)
        })
    }
}

/// Fernet wants 32 bytes in URL-safe base64; the secret holds them in hexadecimal.
fn fernet_key(hex: &Secret) -> Secret {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let digits: Vec<u32> = hex.reveal().chars().filter_map(|c| c.to_digit(16)).collect();
    let bytes: Vec<u32> = digits.chunks(2).map(|d| d[0] << 4 | d[1]).collect();
    let mut out = String::new();
    for chunk in bytes.chunks(3) {
        let n = chunk.iter().chain([0, 0].iter()).take(3).fold(0, |n, b| n << 8 | b);
        for i in 0..4 {
            if i <= chunk.len() {
                out.push(ALPHABET[(n >> (18 - 6 * i) & 63) as usize] as char);
            } else {
                out.push('=');
            }
        }
    }
    Secret::new(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn every_secret_is_its_own_and_survives_a_reload_from_a_0600_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secrets.json");
        let made = Secrets::load_or_generate(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let values: std::collections::BTreeSet<_> = made.iter().map(|(_, s)| s.reveal()).collect();
        assert_eq!(values.len(), NAMES.len());
        let again = Secrets::load_or_generate(&path).unwrap();
        assert_eq!(again.admin(), made.admin());
    }

    #[test]
    fn what_was_revealed_is_taken_up_again_and_anything_less_is_refused() {
        let made = Secrets::generate().unwrap();
        let mut kept = made.reveal();
        let again = Secrets::parse(&kept).unwrap();
        assert!(made.iter().eq(again.iter()));
        kept.as_object_mut().unwrap().remove("rabbit");
        let e = Secrets::parse(&kept).unwrap_err();
        assert_eq!(e.message(), "no secret `rabbit`");
    }

    #[test]
    fn secrets_of_then_keep_their_values_beside_those_that_have_come_since() {
        let made = Secrets::generate().unwrap();
        let mut kept = made.reveal();
        let then = kept.as_object_mut().unwrap();
        then.remove("rabbit");
        then.insert("user.heat".into(), "of a role that is gone".into());
        let now = Secrets::of_then(&kept).unwrap();
        assert_eq!((now.admin(), now.iter().count()), (made.admin(), NAMES.len()));
        assert_eq!(now.rabbit().reveal().len(), made.rabbit().reveal().len());
        assert_ne!(now.rabbit(), made.rabbit());
        for damaged in ["null", "[]", "{\"admin\": 7}"] {
            let e = Secrets::of_then(&serde_json::from_str(damaged).unwrap()).unwrap_err();
            assert_eq!(e.kind(), Kind::Input, "{damaged}: {e}");
        }
    }

    #[test]
    fn symbolic_secrets_are_the_same_each_time_and_of_the_real_ones_shape() {
        let (real, symbolic) = (Secrets::generate().unwrap(), Secrets::symbolic());
        assert!(symbolic.iter().eq(Secrets::symbolic().iter()));
        let lengths = |s: &Secrets| s.iter().map(|(_, v)| v.reveal().len()).collect::<Vec<_>>();
        assert_eq!(lengths(&symbolic), lengths(&real));
        let values: std::collections::BTreeSet<_> =
            symbolic.iter().map(|(_, s)| s.reveal()).collect();
        assert_eq!(values.len(), NAMES.len());
    }

    #[test]
    fn fernet_keys_are_url_safe_base64_of_the_raw_bytes() {
        let key = fernet_key(&Secret::new("00".repeat(31) + "ff"));
        assert_eq!(key.reveal(), "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAP8=");
        let key = fernet_key(&Secret::new("fb".repeat(32)));
        assert!(key.reveal().starts_with("-_v7-_v7") && key.reveal().len() == 44);
    }

    #[test]
    fn nothing_that_a_node_is_given_passes_the_redactor() {
        let (secrets, redactor) = (Secrets::generate().unwrap(), Redactor::default());
        secrets.hide_in(&redactor);
        assert_eq!(redactor.len(), NAMES.len() + 4, "four keys have two shapes");
        for name in ["fernet", "fernet.next", "credential", "credential.next"] {
            let key = secrets.fernet_key(name);
            assert_eq!(redactor.clean(&format!("key {}", key.reveal())), "key [secret]", "{name}");
        }
        for (name, form) in secrets.forms() {
            assert_eq!(redactor.clean(form.reveal()), "[secret]", "{name}");
        }
    }

    #[test]
    fn a_damaged_file_is_an_error_not_new_secrets() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secrets.json");
        std::fs::write(&path, "{\"admin\": \"x\"}").unwrap();
        let e = Secrets::load_or_generate(&path).unwrap_err();
        assert!(e.to_string().contains("no secret `"), "{e}");
    }
}
