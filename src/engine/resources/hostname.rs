//! The node's name.

use crate::engine::quote;
use crate::engine::resource::{Resource, Script, Verdict};

/// The hostname, now and after a reboot.
#[derive(Clone, Debug)]
pub struct Hostname {
    name: String,
}

impl Hostname {
    pub fn new(name: impl Into<String>) -> Hostname {
        Hostname { name: name.into() }
    }
}

impl Resource for Hostname {
    fn id(&self) -> String {
        "hostname".into()
    }
    fn probe(&self) -> Script {
        Script::new(
            "n= f=\nread -r n <\"$ROOT\"/proc/sys/kernel/hostname\n\
             [ -r \"$ROOT\"/etc/hostname ] && read -r f <\"$ROOT\"/etc/hostname\n\
             echo \"$n\"; echo \"$f\"",
        )
    }
    fn judge(&self, seen: &str) -> Verdict {
        let mut seen = seen.lines();
        let mut lines = Vec::new();
        for what in ["now", "at boot"] {
            let is = seen.next().unwrap_or_default();
            if is != self.name {
                lines.push(format!("{what}: {is} -> {}", self.name));
            }
        }
        Verdict::from_lines(lines)
    }
    fn apply(&self, _seen: &str) -> Script {
        let name = quote::word(&self.name);
        Script::new(format!(
            "echo {name} >\"$ROOT\"/etc/hostname && chmod 644 \"$ROOT\"/etc/hostname && \
             echo {name} >\"$ROOT\"/proc/sys/kernel/hostname"
        ))
    }
    fn writes(&self) -> Vec<String> {
        vec!["/etc/hostname".into()]
    }
}
