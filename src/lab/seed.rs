//! The seed: a small disk from which cloud-init (NoCloud) configures a node at its first boot.
//!
//! Everything is local and fixed: addresses by hardware address, the host key and the login are
//! ours, so neither DHCP nor trust on first use is needed. The documents are JSON, which is YAML
//! too, so that no value can be misread for lack of quotes.
//!
//! Beside them stands the same in words that a guest without cloud-init can read line by line
//! (`probe.env`, `images/probe-guest/SEED.md`); cloud-init passes such files over.

use super::keys::SshKey;
use super::mac::Mac;
use super::spec::{LabSpec, NodeSpec};
use crate::error::{Error, Result};
use serde_json::{Value, json};
use std::io::{Cursor, Write};
use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// The user that we log in as. May become root without a password.
pub const LOGIN: &str = "stack";

/// What a node is told at its first boot.
#[derive(Debug)]
pub struct Seed<'a> {
    pub hostname: &'a str,
    /// Differs between labs: cloud-init runs again when it changes.
    pub instance_id: String,
    pub host_key: &'a SshKey,
    pub login_key: &'a SshKey,
    pub nics: Vec<SeedNic<'a>>,
}

#[derive(Clone, Debug)]
pub struct SeedNic<'a> {
    /// What the NIC is called in the node.
    pub name: &'a str,
    pub mac: Mac,
    /// Address and prefix. None brings the NIC up bare.
    pub address: Option<(Ipv4Addr, u8)>,
    pub mtu: Option<u16>,
}

impl<'a> Seed<'a> {
    /// What `node` of `lab` is told.
    pub fn of(
        lab: &'a LabSpec,
        node: &'a NodeSpec,
        host_key: &'a SshKey,
        login_key: &'a SshKey,
    ) -> Seed<'a> {
        let nics = node.nics.iter().map(|nic| {
            let network = lab.network(&nic.network).expect("the spec was checked");
            let address = nic.address.map(|a| (a, network.subnet.prefix));
            SeedNic { name: &nic.network, mac: nic.mac, address, mtu: network.mtu }
        });
        let instance_id = format!("i-{}-{}", lab.name, node.name);
        Seed { hostname: &node.name, instance_id, host_key, login_key, nics: nics.collect() }
    }

    fn meta_data(&self) -> Value {
        json!({ "instance-id": self.instance_id, "local-hostname": self.hostname })
    }

    fn user_data(&self) -> String {
        let config = json!({
            "hostname": self.hostname,
            "preserve_hostname": false,
            "disable_root": true,
            "ssh_pwauth": false,
            "users": [{
                "name": LOGIN,
                "gecos": "stackproof",
                "shell": "/bin/bash",
                "sudo": "ALL=(ALL) NOPASSWD:ALL",
                "lock_passwd": true,
                "ssh_authorized_keys": [self.login_key.public_line()],
            }],
            // Ours alone: the client pins it. Where keys are given, cloud-init makes none.
            "ssh_deletekeys": true,
            "ssh_keys": {
                "ed25519_private": self.host_key.private_pem().reveal(),
                "ed25519_public": self.host_key.public_line(),
            },
            // Else the host key's fingerprint table and the authorised keys go to the console.
            "ssh": { "emit_keys_to_console": false },
            "no_ssh_fingerprints": true,
        });
        format!("#cloud-config\n{config:#}\n")
    }

    fn network_config(&self) -> Value {
        let ethernets = self.nics.iter().map(|nic| {
            let mut config = json!({
                "match": { "macaddress": nic.mac.to_string() },
                "set-name": nic.name,
                "dhcp4": false,
                "dhcp6": false,
                "accept-ra": false,
                // No boot waits for a NIC: whether it works is for us to find out.
                "optional": true,
            });
            match nic.address {
                Some((address, prefix)) => {
                    config["addresses"] = json!([format!("{address}/{prefix}")]);
                }
                None => config["link-local"] = json!([]),
            }
            if let Some(mtu) = nic.mtu {
                config["mtu"] = json!(mtu);
            }
            (nic.name.to_owned(), config)
        });
        json!({ "version": 2, "ethernets": ethernets.collect::<serde_json::Map<_, _>>() })
    }

    /// The same for guests that read lines: a word and its arguments, one blank between them.
    fn probe_env(&self) -> String {
        let mut lines = vec![
            format!("hostname {}", self.hostname),
            format!("instance-id {}", self.instance_id),
            format!("user {LOGIN}"),
            format!("authorized-key {}", self.login_key.public_line()),
            "metadata no".to_owned(),
        ];
        for nic in &self.nics {
            lines.push(format!("name {} {}", nic.mac, nic.name));
            if let Some(mtu) = nic.mtu {
                lines.push(format!("mtu {} {mtu}", nic.mac));
            }
            if let Some((address, prefix)) = nic.address {
                lines.push(format!("address {} {address}/{prefix}", nic.mac));
            }
        }
        lines.join("\n") + "\n"
    }

    /// A vfat volume labelled `cidata`, as bytes.
    pub fn volume(&self) -> Result<Vec<u8>> {
        let files = [
            ("meta-data", format!("{:#}\n", self.meta_data())),
            ("user-data", self.user_data()),
            ("network-config", format!("{:#}\n", self.network_config())),
            ("probe.env", self.probe_env()),
            ("hostkey", self.host_key.private_pem().reveal().to_owned()),
        ];
        write_volume(&files).map_err(|e| Error::internal("cannot write the seed volume").because(e))
    }

    /// Writes the volume into a new file that only we can read: it holds the host's private key.
    pub fn write(&self, file: &Path) -> Result<()> {
        let volume = self.volume()?;
        let create = || -> std::io::Result<()> {
            let mut options = std::fs::OpenOptions::new();
            options.write(true).create_new(true).mode(0o600).open(file)?.write_all(&volume)
        };
        create().map_err(|e| Error::host("cannot write the seed").at(file, None).because(e))
    }
}

/// 1 MiB holds a hundred NICs, and is the least that every tool takes for a disk.
const VOLUME_SIZE: usize = 1 << 20;

fn write_volume(files: &[(&str, String)]) -> std::io::Result<Vec<u8>> {
    let mut volume = vec![0u8; VOLUME_SIZE];
    // Lower case: old CirrOS knows only that, cloud-init knows both. The fixed id keeps equal
    // seeds equal.
    let options = fatfs::FormatVolumeOptions::new().volume_label(*b"cidata     ").volume_id(0x5eed);
    fatfs::format_volume(Cursor::new(&mut volume), options)?;
    let fs = fatfs::FileSystem::new(Cursor::new(&mut volume), fatfs::FsOptions::new())?;
    for (name, text) in files {
        let mut file = fs.root_dir().create_file(name)?;
        file.write_all(text.as_bytes())?;
        file.flush()?;
    }
    fs.unmount()?;
    Ok(volume)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::fs::PermissionsExt;

    fn with_seed<T>(look: impl FnOnce(&Seed) -> T) -> T {
        let (host, login) = (SshKey::ed25519("host").unwrap(), SshKey::ed25519("us").unwrap());
        let nics = vec![
            SeedNic {
                name: "management",
                mac: "52:54:00:AB:00:01".parse().unwrap(),
                address: Some((Ipv4Addr::new(192, 168, 103, 11), 24)),
                mtu: Some(1400),
            },
            SeedNic {
                name: "external",
                mac: "52:54:00:ab:00:02".parse().unwrap(),
                address: None,
                mtu: None,
            },
        ];
        look(&Seed {
            hostname: "openstack1",
            instance_id: "lab-1".into(),
            host_key: &host,
            login_key: &login,
            nics,
        })
    }

    fn read(volume: &[u8], name: &str) -> String {
        let mut volume = volume.to_vec();
        let fs = fatfs::FileSystem::new(Cursor::new(&mut volume), fatfs::FsOptions::new()).unwrap();
        let mut text = String::new();
        fs.root_dir().open_file(name).unwrap().read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn the_volume_has_the_label_and_the_files_that_cloud_init_looks_for() {
        let volume = with_seed(|s| s.volume().unwrap());
        let mut copy = volume.clone();
        let fs = fatfs::FileSystem::new(Cursor::new(&mut copy), fatfs::FsOptions::new()).unwrap();
        assert_eq!(fs.volume_label_as_bytes().trim_ascii_end(), b"cidata");
        let label = fs.read_volume_label_from_root_dir_as_bytes().unwrap();
        assert_eq!(label.as_ref(), Some(b"cidata     "), "blkid reads this one");
        let meta: Value = serde_json::from_str(&read(&volume, "meta-data")).unwrap();
        assert_eq!(meta, json!({"instance-id": "lab-1", "local-hostname": "openstack1"}));
    }

    #[test]
    fn the_node_gets_our_host_key_and_lets_our_key_log_in() {
        with_seed(|seed| {
            let text = read(&seed.volume().unwrap(), "user-data");
            let json = text.strip_prefix("#cloud-config\n").expect("the marker cloud-init wants");
            let config: Value = serde_json::from_str(json).unwrap();
            let pem = config["ssh_keys"]["ed25519_private"].as_str().unwrap();
            let key = russh::keys::PrivateKey::from_openssh(pem).unwrap();
            assert_eq!(&key, seed.host_key.private());
            let user = &config["users"][0];
            assert_eq!(user["name"], "stack");
            assert_eq!(user["sudo"], "ALL=(ALL) NOPASSWD:ALL");
            assert_eq!(user["ssh_authorized_keys"][0], seed.login_key.public_line());
            let login_pem = seed.login_key.private_pem();
            assert!(!text.contains(login_pem.reveal()), "our own private key stays with us");
            assert_eq!(config["hostname"], "openstack1");
        });
    }

    #[test]
    fn nics_are_matched_by_lower_case_hardware_address_and_never_ask_for_one() {
        with_seed(|seed| {
            let text = read(&seed.volume().unwrap(), "network-config");
            let config: Value = serde_json::from_str(&text).unwrap();
            let (management, external) =
                (&config["ethernets"]["management"], &config["ethernets"]["external"]);
            assert_eq!(config["version"], 2);
            assert_eq!(management["match"]["macaddress"], "52:54:00:ab:00:01");
            assert_eq!(management["set-name"], "management");
            assert_eq!(management["addresses"], json!(["192.168.103.11/24"]));
            assert_eq!(management["mtu"], 1400);
            assert_eq!(external.get("addresses"), None);
            for nic in [management, external] {
                assert_eq!(nic["dhcp4"], false);
                assert_eq!(nic["dhcp6"], false);
                assert_eq!(nic["accept-ra"], false);
                assert_eq!(nic["optional"], true);
            }
        });
    }

    #[test]
    fn a_guest_that_reads_lines_is_told_the_same() {
        with_seed(|seed| {
            let volume = seed.volume().unwrap();
            let key = seed.login_key.public_line();
            assert_eq!(
                read(&volume, "probe.env"),
                format!(
                    "hostname openstack1\ninstance-id lab-1\nuser stack\nauthorized-key {key}\n\
                     metadata no\nname 52:54:00:ab:00:01 management\nmtu 52:54:00:ab:00:01 1400\n\
                     address 52:54:00:ab:00:01 192.168.103.11/24\nname 52:54:00:ab:00:02 external\n"
                )
            );
            assert_eq!(read(&volume, "hostkey"), seed.host_key.private_pem().reveal());
        });
    }

    #[test]
    fn the_file_is_ours_alone_and_never_overwrites_another() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("seed.img");
        with_seed(|seed| {
            seed.write(&file).unwrap();
            assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
            let again = seed.write(&file).unwrap_err();
            assert_eq!(again.file().unwrap().0, file);
        });
    }

    #[test]
    fn equal_seeds_are_equal_bytes() {
        with_seed(|seed| assert_eq!(seed.volume().unwrap(), seed.volume().unwrap()));
    }
}
