//! Lines that a file must contain.

use super::edit::{Edit, edit_methods, ended};
use super::target::{Target, target_methods};
use crate::engine::resource::Resource;

/// Lines present somewhere in a file; missing ones are appended, nothing is overwritten
/// (`authorized_keys`).
#[derive(Clone, Debug)]
pub struct Lines {
    target: Target,
    lines: Vec<String>,
    exclusive: Vec<String>,
}

impl Lines {
    pub fn new(path: impl Into<String>) -> Lines {
        Lines { target: Target::new(path), lines: Vec::new(), exclusive: Vec::new() }
    }
    pub fn line(mut self, line: impl Into<String>) -> Lines {
        self.lines.push(line.into());
        self
    }
    /// Lines that begin with `prefix` and are not declared are removed (memcached's `-l `).
    pub fn exclusive(mut self, prefix: impl Into<String>) -> Lines {
        self.exclusive.push(prefix.into());
        self
    }
    target_methods!();

    fn unwanted(&self, line: &str) -> bool {
        self.exclusive.iter().any(|p| line.starts_with(p)) && !self.lines.iter().any(|l| l == line)
    }
    fn missing<'a>(&'a self, text: &'a str) -> impl Iterator<Item = &'a String> {
        self.lines.iter().filter(move |wanted| !text.lines().any(|l| l == *wanted))
    }
}

impl Edit for Lines {
    fn target(&self) -> &Target {
        &self.target
    }
    fn edited(&self, old: &str) -> String {
        let mut text: String = old
            .split_inclusive('\n')
            .filter(|l| !self.unwanted(l.trim_end_matches('\n')))
            .collect();
        for line in self.missing(old) {
            text = ended(&text) + line + "\n";
        }
        text
    }
    fn differences(&self, old: &str) -> Vec<String> {
        let missing = self.missing(old).map(|l| format!("missing line: {l}"));
        let unwanted = old.lines().filter(|l| self.unwanted(l));
        missing.chain(unwanted.map(|l| format!("unwanted line: {l}"))).collect()
    }
}

impl Resource for Lines {
    fn id(&self) -> String {
        format!("lines {}", self.target.path)
    }
    edit_methods!();
}
