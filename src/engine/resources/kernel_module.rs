//! A kernel module.

use crate::engine::quote;
use crate::engine::resource::{Resource, Script, Verdict};

/// A module loaded (or built in), now and after a reboot.
#[derive(Clone, Debug)]
pub struct KernelModule {
    name: String,
}

impl KernelModule {
    pub fn new(name: impl Into<String>) -> KernelModule {
        KernelModule { name: name.into() }
    }
    fn file(&self) -> String {
        format!("/etc/modules-load.d/stackproof-{}.conf", self.name)
    }
}

impl Resource for KernelModule {
    fn id(&self) -> String {
        format!("module {}", self.name)
    }
    fn probe(&self) -> Script {
        Script::new(format!(
            "[ -d {} ] && echo loaded\nl=\n[ -r {file} ] && read -r l <{file}\necho \"boot $l\"",
            quote::path(&format!("/sys/module/{}", self.name.replace('-', "_"))),
            file = quote::path(&self.file())
        ))
    }
    fn judge(&self, seen: &str) -> Verdict {
        let mut lines = Vec::new();
        if !seen.lines().any(|l| l == "loaded") {
            lines.push("not loaded".into());
        }
        if !seen.lines().any(|l| l.strip_prefix("boot ") == Some(&self.name)) {
            lines.push("not loaded at boot".into());
        }
        Verdict::from_lines(lines)
    }
    fn apply(&self, _seen: &str) -> Script {
        let name = quote::word(&self.name);
        Script::new(format!(
            "f={}\n[ -d \"${{f%/*}}\" ] || mkdir -p -m 755 \"${{f%/*}}\"\n\
             echo {name} >\"$f\" && chmod 644 \"$f\" && modprobe {name}",
            quote::path(&self.file())
        ))
    }
    fn writes(&self) -> Vec<String> {
        vec![self.file()]
    }
}
