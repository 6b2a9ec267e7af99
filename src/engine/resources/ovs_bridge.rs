//! Open vSwitch bridges.

use crate::engine::quote;
use crate::engine::resource::{Resource, Script, SharedProbe, Verdict};
use std::collections::BTreeSet;

/// A bridge of Open vSwitch that has (at least) these ports, with the ports' links up.
#[derive(Clone, Debug)]
pub struct OvsBridge {
    name: String,
    ports: Vec<String>,
}

impl OvsBridge {
    pub fn new(name: impl Into<String>) -> OvsBridge {
        OvsBridge { name: name.into(), ports: Vec::new() }
    }
    pub fn port(mut self, port: impl Into<String>) -> OvsBridge {
        self.ports.push(port.into());
        self
    }
}

static BRIDGES: SharedProbe = SharedProbe { name: "ovs", script, split };

/// `ovs-vsctl show` once for all bridges, and the flags of every declared port.
fn script(subjects: &[&str]) -> Script {
    let ports: BTreeSet<&str> = subjects.iter().flat_map(|s| s.split(' ').skip(1)).collect();
    Script::new(format!(
        "command -v ovs-vsctl >/dev/null && ovs-vsctl --timeout=10 show\necho @links\n\
         for p in {}; do f=; [ -r \"$ROOT/sys/class/net/$p/flags\" ] && \
         read -r f <\"$ROOT/sys/class/net/$p/flags\"; echo \"$p $f\"; done",
        quote::words(ports)
    ))
}

/// For each subject: `bridge` if it exists, `port NAME`, `up NAME`.
fn split(printed: &[u8], subjects: &[&str]) -> Vec<String> {
    let printed = String::from_utf8_lossy(printed);
    let (shown, links) = printed.split_once("@links\n").unwrap_or((&printed, ""));
    let name = |line: &str, what: &str| {
        let name = line.trim().strip_prefix(what)?.trim().trim_matches('"').to_owned();
        Some(name)
    };
    let mut there: Vec<(String, Vec<String>)> = Vec::new();
    for line in shown.lines() {
        if let Some(bridge) = name(line, "Bridge ") {
            there.push((bridge, Vec::new()));
        } else if let (Some(port), Some(last)) = (name(line, "Port "), there.last_mut()) {
            last.1.push(port);
        }
    }
    let up: Vec<&str> = links
        .lines()
        .filter_map(|l| l.split_once(' '))
        .filter(|(_, flags)| {
            let flags = u32::from_str_radix(flags.trim_start_matches("0x"), 16).unwrap_or(0);
            flags & 1 == 1 // IFF_UP
        })
        .map(|(port, _)| port)
        .collect();
    let one = |subject: &&str| {
        let mut fields = subject.split(' ');
        let bridge = fields.next().unwrap_or_default();
        let mut text = String::new();
        if let Some((_, ports)) = there.iter().find(|(name, _)| name == bridge) {
            text.push_str("bridge\n");
            ports.iter().for_each(|p| text.push_str(&format!("port {p}\n")));
        }
        fields.filter(|p| up.contains(p)).for_each(|p| text.push_str(&format!("up {p}\n")));
        text
    };
    subjects.iter().map(one).collect()
}

impl Resource for OvsBridge {
    fn id(&self) -> String {
        format!("ovs bridge {}", self.name)
    }
    fn shared(&self) -> Option<(&'static SharedProbe, String)> {
        let mut subject = self.name.clone();
        self.ports.iter().for_each(|p| {
            subject.push(' ');
            subject.push_str(p);
        });
        Some((&BRIDGES, subject))
    }
    fn judge(&self, seen: &str) -> Verdict {
        let has = |line: &str| seen.lines().any(|l| l == line);
        let mut lines = Vec::new();
        if !has("bridge") {
            lines.push("absent".into());
        }
        for port in &self.ports {
            if !has(&format!("port {port}")) {
                lines.push(format!("port {port}: absent"));
            }
            if !has(&format!("up {port}")) {
                lines.push(format!("port {port}: link is down"));
            }
        }
        Verdict::from_lines(lines)
    }
    fn apply(&self, _seen: &str) -> Script {
        let bridge = quote::word(&self.name);
        let mut shell = format!("ovs-vsctl --timeout=\"$LIMIT\" -- --may-exist add-br {bridge}");
        for port in &self.ports {
            shell.push_str(&format!(" -- --may-exist add-port {bridge} {}", quote::word(port)));
        }
        shell.push_str(" || exit 1\n");
        for port in &self.ports {
            shell.push_str(&format!("ip link set dev {} up || exit 1\n", quote::word(port)));
        }
        Script::new(shell)
    }
}
