//! A kernel parameter.

use crate::engine::quote;
use crate::engine::resource::{Resource, Script, Verdict};

/// A kernel parameter, now and after a reboot (`/etc/sysctl.d/60-stackproof-KEY.conf`).
#[derive(Clone, Debug)]
pub struct Sysctl {
    key: String,
    value: String,
}

impl Sysctl {
    /// `Sysctl::new("net.ipv4.ip_forward", "1")`.
    pub fn new(key: impl Into<String>, value: impl Into<String>) -> Sysctl {
        Sysctl { key: key.into(), value: value.into() }
    }
    fn live(&self) -> String {
        quote::path(&format!("/proc/sys/{}", self.key.replace('.', "/")))
    }
    fn file(&self) -> String {
        format!("/etc/sysctl.d/60-stackproof-{}.conf", self.key)
    }
    fn line(&self) -> String {
        format!("{} = {}", self.key, self.value)
    }
}

fn blanks(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

impl Resource for Sysctl {
    fn id(&self) -> String {
        format!("sysctl {}", self.key)
    }
    fn probe(&self) -> Script {
        Script::new(format!(
            "v= l=\n[ -r {live} ] && read -r v <{live}\n[ -r {file} ] && read -r l <{file}\n\
             echo \"$v\"; echo \"$l\"",
            live = self.live(),
            file = quote::path(&self.file())
        ))
    }
    fn judge(&self, seen: &str) -> Verdict {
        let mut seen = seen.lines();
        let (live, file) = (seen.next().unwrap_or_default(), seen.next().unwrap_or_default());
        let mut lines = Vec::new();
        if blanks(live) != blanks(&self.value) {
            lines.push(format!("now: {live} -> {}", self.value));
        }
        if blanks(file) != blanks(&self.line()) {
            lines.push(format!("at boot: not set to {}", self.value));
        }
        Verdict::from_lines(lines)
    }
    fn apply(&self, _seen: &str) -> Script {
        Script::new(format!(
            "f={}\n[ -d \"${{f%/*}}\" ] || mkdir -p -m 755 \"${{f%/*}}\"\n\
             echo {} >\"$f\" && chmod 644 \"$f\" && echo {} >{}",
            quote::path(&self.file()),
            quote::word(&self.line()),
            quote::word(&self.value),
            self.live()
        ))
    }
    fn writes(&self) -> Vec<String> {
        vec![self.file()]
    }
    fn quick(&self) -> bool {
        true
    }
}
