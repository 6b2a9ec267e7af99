//! Files for the system's `ssh`, and for what stands on it (scp, rsync, Ansible): a key, pinned
//! host keys and a configuration, all in the lab's private folder.

use super::place::{IDENTITY, KNOWN_HOSTS, Place};
use crate::error::{Context, Kind, Result};
use crate::fsutil;
use crate::lab::Lab;
use std::fmt::Write as _;
use std::path::Path;

/// The name that a node's host key is filed under: the same address may be another lab's node.
pub fn alias(lab: &str, node: &str) -> String {
    format!("{node}.{lab}.stackproof")
}

/// Writes the files (0600). `proxy` is the command that connects standard input and output to a
/// node's port; ssh puts host and port for `%h` and `%p`.
pub fn write(place: &Place, lab: &Lab, proxy: &str) -> Result<()> {
    let dir = place.dir();
    private(&dir.join(IDENTITY), lab.login_key().private_pem().reveal())?;
    let keys = lab.nodes().iter().filter_map(|n| Some((n.name(), n.host_key.to_openssh().ok()?)));
    let known: String =
        keys.map(|(node, key)| format!("{} {key}\n", alias(place.name(), node))).collect();
    private(&dir.join(KNOWN_HOSTS), &known)?;
    let nodes: Vec<&str> = lab.nodes().iter().map(|n| n.name()).collect();
    private(&place.ssh_config(), &config(place, &nodes, lab.login_user(), proxy))
}

fn config(place: &Place, nodes: &[&str], user: &str, proxy: &str) -> String {
    let quoted = |path: &Path| {
        // ssh expands % in these.
        format!("\"{}\"", path.to_string_lossy().replace('%', "%%").replace('"', "\\\""))
    };
    let (key, known) =
        (quoted(&place.dir().join(IDENTITY)), quoted(&place.dir().join(KNOWN_HOSTS)));
    let mut text = format!(
        "# Lab {}: written by stackproof, gone with the lab.\n\
         # ssh -F {} {}\n",
        place.name(),
        place.ssh_config().display(),
        nodes.first().unwrap_or(&"NODE"),
    );
    for node in nodes {
        let _ = write!(
            text,
            "\nHost {node}\n  HostKeyAlias {}\n  User {user}\n",
            alias(place.name(), node)
        );
    }
    let _ = write!(
        text,
        "\nHost {}\n  ProxyCommand {proxy}\n  IdentityFile {key}\n  IdentitiesOnly yes\n  \
         IdentityAgent none\n  UserKnownHostsFile {known}\n  GlobalKnownHostsFile none\n  \
         StrictHostKeyChecking yes\n  PasswordAuthentication no\n  \
         KbdInteractiveAuthentication no\n  ForwardAgent no\n  ServerAliveInterval 15\n  \
         LogLevel ERROR\n",
        nodes.join(" ")
    );
    text
}

/// Replaced whole, never written over what may be open.
fn private(path: &Path, text: &str) -> Result<()> {
    fsutil::write_private(path, text.as_bytes())
        .doing(Kind::Host, || format!("{} cannot be written", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The real `ssh` reads it, where there is one; the text is looked at anyway.
    #[test]
    fn the_configuration_is_one_that_ssh_takes_and_pins_the_key_of_this_lab() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::new(&dir.path().join("odd %h \u{e9} path"), "warm").unwrap();
        place.make().unwrap();
        let text =
            config(&place, &["openstack1", "openstack2"], "stack", "'/a b/sp' lab proxy %h %p");
        private(&place.ssh_config(), &text).unwrap();
        assert!(text.contains("Host openstack1 openstack2\n"), "{text}");
        let ssh = std::process::Command::new("ssh")
            .arg("-F")
            .arg(place.ssh_config())
            .args(["-G", "openstack2"])
            .output();
        let Ok(out) = ssh else {
            eprintln!("no ssh here: only the text was looked at");
            return;
        };
        let told = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        for line in [
            "hostkeyalias openstack2.warm.stackproof",
            "user stack",
            "proxycommand '/a b/sp' lab proxy %h %p",
            "stricthostkeychecking true",
            "identitiesonly yes",
        ] {
            assert!(told.contains(line), "no `{line}` in:\n{told}");
        }
        assert!(told.contains("identity"), "{told}");
    }
}
