//! The cloud's own secrets: one for each user of each service, made once per lab.

use crate::error::{Context, Kind, Result};
use crate::secret::{Redactor, Secret};
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

#[derive(Clone, Debug)]
pub struct Secrets(BTreeMap<String, Secret>);

impl Secrets {
    /// 128 random bits each, except the encryption keys, which have the 256 bits they need.
    pub fn generate() -> Result<Secrets> {
        let make = |name: &&str| {
            let is_key = ["fernet", "credential", "node-key"].iter().any(|k| name.starts_with(k));
            let bytes = if is_key { 32 } else { 16 };
            let secret = Secret::generate(bytes)
                .doing(Kind::Host, || "could not read random bytes".into())?;
            Ok((name.to_string(), secret))
        };
        Ok(Secrets(NAMES.iter().map(make).collect::<Result<_>>()?))
    }

    /// Reads the lab's secrets, or makes them where there are none yet. The file is 0600.
    pub fn load_or_generate(path: &Path) -> Result<Secrets> {
        match std::fs::read_to_string(path) {
            Ok(text) => {
                let map: BTreeMap<String, String> = serde_json::from_str(&text)
                    .doing(Kind::Input, || format!("{}: not a secrets file", path.display()))?;
                let secrets = Secrets(map.into_iter().map(|(k, v)| (k, Secret::new(v))).collect());
                for name in NAMES {
                    if !secrets.0.contains_key(name) {
                        return Err(crate::error::Error::input(format!("no secret `{name}`"))
                            .at(path, None)
                            .hint("remove the file: the lab is then provisioned anew"));
                    }
                }
                Ok(secrets)
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
        let plain: BTreeMap<&str, &str> =
            self.0.iter().map(|(k, v)| (k.as_str(), v.reveal())).collect();
        let text = serde_json::to_string_pretty(&plain).expect("a map of strings");
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
        for secret in self.0.values() {
            redactor.add(secret);
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
    /// Raw key material, in hexadecimal.
    pub fn key(&self, name: &str) -> &Secret {
        self.get(name)
    }
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
    fn a_damaged_file_is_an_error_not_new_secrets() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secrets.json");
        std::fs::write(&path, "{\"admin\": \"x\"}").unwrap();
        let e = Secrets::load_or_generate(&path).unwrap_err();
        assert!(e.to_string().contains("no secret `"), "{e}");
    }
}
