//! Variables of a file of assignments (`/etc/default/etcd`).

use super::Value;
use super::edit::{Edit, edit_methods, ended};
use super::target::{Target, target_methods};
use crate::engine::resource::Resource;

/// `KEY="value"` lines, as both a shell and systemd's `EnvironmentFile=` read them. Other lines
/// stay as they are.
#[derive(Clone, Debug)]
pub struct EnvFile {
    target: Target,
    keys: Vec<(String, Value)>,
}

impl EnvFile {
    pub fn new(path: impl Into<String>) -> EnvFile {
        EnvFile { target: Target::new(path), keys: Vec::new() }
    }
    pub fn set(mut self, key: impl Into<String>, value: impl Into<Value>) -> EnvFile {
        self.keys.push((key.into(), value.into()));
        self
    }
    target_methods!();
}

/// The value of `line` if it assigns `key`.
fn assigned(line: &str, key: &str) -> Option<String> {
    let line = line.trim();
    let line = line.strip_prefix("export ").unwrap_or(line);
    line.strip_prefix(key)?.strip_prefix('=').map(unquote)
}

fn unquote(text: &str) -> String {
    let mut out = String::new();
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, quote) {
            ('\\', None) => out.extend(chars.next()),
            ('\\', Some('"')) => match chars.next() {
                Some(e @ ('"' | '\\' | '$' | '`')) => out.push(e),
                Some(e) => out.extend(['\\', e]),
                None => out.push('\\'),
            },
            ('"' | '\'', None) => quote = Some(c),
            (c, Some(q)) if c == q => quote = None,
            (c, _) => out.push(c),
        }
    }
    out
}

fn quoted(key: &str, value: &str) -> String {
    let mut out = format!("{key}=\"");
    for c in value.chars() {
        if matches!(c, '"' | '\\' | '$' | '`') {
            out.push('\\');
        }
        out.push(c);
    }
    out + "\"\n"
}

fn values(text: &str, key: &str) -> Vec<String> {
    text.lines().filter_map(|line| assigned(line, key)).collect()
}

impl Edit for EnvFile {
    fn target(&self) -> &Target {
        &self.target
    }
    fn edited(&self, old: &str) -> String {
        let mut text = old.to_owned();
        for (key, value) in &self.keys {
            if values(&text, key) == [value.reveal()] {
                continue;
            }
            let new = quoted(key, value.reveal());
            let mut out = String::new();
            let mut placed = false;
            for line in text.split_inclusive('\n') {
                match assigned(line, key) {
                    None => out.push_str(line),
                    Some(_) if placed => {}
                    Some(_) => {
                        out.push_str(&new);
                        placed = true;
                    }
                }
            }
            text = if placed { out } else { ended(&out) + &new };
        }
        text
    }
    fn differences(&self, old: &str) -> Vec<String> {
        let mut lines = Vec::new();
        for (key, value) in &self.keys {
            match values(old, key).as_slice() {
                [one] if one == value.reveal() => {}
                [] => lines.push(value.difference(key, None)),
                [one] => lines.push(value.difference(key, Some(one))),
                many => lines.push(format!("{key}: set {} times", many.len())),
            }
        }
        lines
    }
    fn has_secrets(&self) -> bool {
        self.keys.iter().any(|(_, v)| v.is_secret())
    }
}

impl Resource for EnvFile {
    fn id(&self) -> String {
        format!("env {}", self.target.path)
    }
    edit_methods!();
}
