//! Names in /etc/hosts.

use super::edit::{Edit, edit_methods, ended};
use super::target::Target;
use crate::engine::resource::Resource;
use std::net::IpAddr;

/// Names that must resolve, by /etc/hosts, to these addresses and to no other (a distribution's
/// `127.0.1.1 hostname` goes). Other entries stay.
#[derive(Clone, Debug)]
pub struct Hosts {
    target: Target,
    entries: Vec<(IpAddr, Vec<String>)>,
}

impl Hosts {
    pub fn new() -> Hosts {
        Hosts { target: Target::new("/etc/hosts"), entries: Vec::new() }
    }
    /// The first name is the canonical one.
    pub fn entry<N: Into<String>>(
        mut self,
        address: impl Into<IpAddr>,
        names: impl IntoIterator<Item = N>,
    ) -> Hosts {
        self.entries.push((address.into(), names.into_iter().map(Into::into).collect()));
        self
    }

    fn ours(&self, name: &str) -> bool {
        self.entries.iter().any(|(_, names)| names.iter().any(|n| n == name))
    }
    fn line(&self, (address, names): &(IpAddr, Vec<String>)) -> String {
        format!("{address}\t{}", names.join(" "))
    }
    fn declared(&self, line: &str) -> bool {
        let mut fields = line.split('#').next().unwrap_or("").split_whitespace();
        let Some(Ok(address)) = fields.next().map(str::parse::<IpAddr>) else { return false };
        let names: Vec<&str> = fields.collect();
        self.entries.iter().any(|(a, n)| *a == address && *n == names)
    }
    /// `line` without the names that are declared elsewhere; `None` if no name is left.
    fn stripped(&self, line: &str) -> Option<String> {
        let (body, comment) = match line.find('#') {
            Some(at) => line.split_at(at),
            None => (line, ""),
        };
        let mut fields = body.split_whitespace();
        let Some(address) = fields.next() else { return Some(line.to_owned()) };
        let names: Vec<&str> = fields.collect();
        if !names.iter().any(|n| self.ours(n)) {
            return Some(line.to_owned());
        }
        let left: Vec<&str> = names.into_iter().filter(|n| !self.ours(n)).collect();
        if left.is_empty() {
            return None;
        }
        Some(format!("{address}\t{} {comment}", left.join(" ")).trim_end().to_owned())
    }
}

impl Default for Hosts {
    fn default() -> Self {
        Self::new()
    }
}

impl Edit for Hosts {
    fn target(&self) -> &Target {
        &self.target
    }
    fn edited(&self, old: &str) -> String {
        let mut text = String::new();
        let mut there = Vec::new();
        for whole in old.split_inclusive('\n') {
            let line = whole.trim_end_matches('\n');
            if self.declared(line) {
                let fields: Vec<&str> = line.split_whitespace().collect();
                if there.contains(&fields) {
                    continue;
                }
                there.push(fields);
                text.push_str(whole);
            } else if let Some(kept) = self.stripped(line) {
                text.push_str(&whole.replacen(line, &kept, 1));
            }
        }
        for entry in &self.entries {
            if !text.lines().any(|l| self.declared(l) && self.is_entry(l, entry)) {
                text = ended(&text) + &self.line(entry) + "\n";
            }
        }
        text
    }
    fn differences(&self, old: &str) -> Vec<String> {
        let mut lines = Vec::new();
        for line in old.lines().filter(|l| !self.declared(l)) {
            if self.stripped(line).as_deref() != Some(line) {
                lines.push(format!("also names them: {line}"));
            }
        }
        for entry in &self.entries {
            if !old.lines().any(|l| self.is_entry(l, entry)) {
                lines.push(format!("missing: {}", self.line(entry)));
            }
        }
        if lines.is_empty() {
            lines.push("an entry is there twice".into());
        }
        lines
    }
}

impl Hosts {
    fn is_entry(&self, line: &str, (address, names): &(IpAddr, Vec<String>)) -> bool {
        let mut fields = line.split('#').next().unwrap_or("").split_whitespace();
        fields.next().and_then(|a| a.parse::<IpAddr>().ok()) == Some(*address)
            && fields.eq(names.iter().map(String::as_str))
    }
}

impl Resource for Hosts {
    fn id(&self) -> String {
        "hosts".into()
    }
    edit_methods!();
}
