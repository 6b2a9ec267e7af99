//! A user of the node.

use crate::engine::quote;
use crate::engine::resource::{Resource, Script, Verdict};

/// A user that exists, with what is declared of it. Passwords are none of its business: new users
/// have none and cannot log in by one.
#[derive(Clone, Debug)]
pub struct UserAccount {
    name: String,
    system: bool,
    home: Option<String>,
    shell: Option<String>,
    groups: Vec<String>,
}

impl UserAccount {
    pub fn new(name: impl Into<String>) -> UserAccount {
        UserAccount { name: name.into(), system: false, home: None, shell: None, groups: vec![] }
    }
    /// Made, if it must be made, as a system user without a home.
    pub fn system(mut self) -> Self {
        self.system = true;
        self
    }
    pub fn home(mut self, path: impl Into<String>) -> Self {
        self.home = Some(path.into());
        self
    }
    pub fn shell(mut self, path: impl Into<String>) -> Self {
        self.shell = Some(path.into());
        self
    }
    /// A further group it is a member of; other memberships stay.
    pub fn group(mut self, group: impl Into<String>) -> Self {
        self.groups.push(group.into());
        self
    }

    fn missing_groups<'a>(&'a self, seen: &'a str) -> Vec<&'a str> {
        let has: Vec<&str> =
            seen.lines().nth(1).unwrap_or_default().split_ascii_whitespace().collect();
        self.groups.iter().map(String::as_str).filter(|g| !has.contains(g)).collect()
    }
    fn options(&self) -> String {
        let mut options = String::new();
        if let Some(home) = &self.home {
            options.push_str(&format!(" -d {}", quote::word(home)));
        }
        if let Some(shell) = &self.shell {
            options.push_str(&format!(" -s {}", quote::word(shell)));
        }
        options
    }
}

impl Resource for UserAccount {
    fn id(&self) -> String {
        format!("user {}", self.name)
    }
    fn probe(&self) -> Script {
        let name = quote::word(&self.name);
        Script::new(format!("getent passwd {name} && id -nG {name}; true"))
    }
    fn judge(&self, seen: &str) -> Verdict {
        let Some(entry) = seen.lines().next() else {
            return Verdict::Differs(vec!["absent".into()]);
        };
        let fields: Vec<&str> = entry.split(':').collect();
        let mut lines = Vec::new();
        for (what, at, want) in [("home", 5, &self.home), ("shell", 6, &self.shell)] {
            let is = fields.get(at).copied().unwrap_or_default();
            if let Some(want) = want
                && want != is
            {
                lines.push(format!("{what}: {is} -> {want}"));
            }
        }
        lines.extend(self.missing_groups(seen).iter().map(|g| format!("not in group {g}")));
        Verdict::from_lines(lines)
    }
    fn apply(&self, seen: &str) -> Script {
        let name = quote::word(&self.name);
        let groups = self.missing_groups(seen).join(",");
        let options = self.options();
        let groups = match groups.is_empty() {
            true => String::new(),
            false => format!(" -G {}", quote::word(&groups)),
        };
        Script::new(if seen.trim().is_empty() {
            let kind = if self.system { "-r -M" } else { "-m" };
            format!("useradd {kind}{options}{groups} {name}")
        } else {
            let append = if groups.is_empty() { "" } else { " -a" };
            format!("usermod{append}{groups}{options} {name}")
        })
    }
}
