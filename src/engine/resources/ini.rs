//! Settings of an INI file.

use super::Value;
use super::edit::{Edit, edit_methods};
use super::target::{Target, target_methods};
use crate::engine::ini::Document;
use crate::engine::resource::Resource;

/// Keys that an INI file must have (each exactly once) or must not have; everything else in the
/// file stays as it is. A file that is absent is made (0640 if a value is secret, else 0644).
#[derive(Clone, Debug)]
pub struct Ini {
    target: Target,
    /// `None` unsets.
    keys: Vec<(String, String, Option<Value>)>,
}

impl Ini {
    pub fn new(path: impl Into<String>) -> Ini {
        Ini { target: Target::new(path), keys: Vec::new() }
    }
    /// A later `set` of the same key replaces an earlier one.
    pub fn set(
        self,
        section: impl Into<String>,
        key: impl Into<String>,
        value: impl Into<Value>,
    ) -> Ini {
        self.put(section.into(), key.into(), Some(value.into()))
    }
    pub fn unset(self, section: impl Into<String>, key: impl Into<String>) -> Ini {
        self.put(section.into(), key.into(), None)
    }
    /// Many keys of one section.
    pub fn section<K: Into<String>, V: Into<Value>>(
        self,
        section: &str,
        keys: impl IntoIterator<Item = (K, V)>,
    ) -> Ini {
        keys.into_iter().fold(self, |ini, (k, v)| ini.set(section, k, v))
    }
    target_methods!();

    fn put(mut self, section: String, key: String, value: Option<Value>) -> Ini {
        match self.keys.iter_mut().find(|(s, k, _)| *s == section && *k == key) {
            Some(there) => there.2 = value,
            None => self.keys.push((section, key, value)),
        }
        self
    }
}

impl Edit for Ini {
    fn target(&self) -> &Target {
        &self.target
    }
    fn edited(&self, old: &str) -> String {
        let mut document = Document::parse(old);
        for (section, key, value) in &self.keys {
            let seen = document.values(section, key);
            match value {
                None => document.unset(section, key),
                Some(value) if seen.len() == 1 && seen[0] == value.reveal() => {}
                Some(value) => document.set(section, key, value.reveal()),
            }
        }
        document.to_string()
    }
    fn differences(&self, old: &str) -> Vec<String> {
        let document = Document::parse(old);
        let mut lines = Vec::new();
        for (section, key, value) in &self.keys {
            let seen = document.values(section, key);
            let name = format!("[{section}] {key}");
            match (value, seen.as_slice()) {
                (None, []) => {}
                (None, _) => lines.push(format!("{name}: to be removed")),
                (Some(value), [one]) if one == value.reveal() => {}
                (Some(value), []) => lines.push(value.difference(&name, None)),
                (Some(value), [one]) => lines.push(value.difference(&name, Some(one))),
                (Some(_), many) => lines.push(format!("{name}: set {} times", many.len())),
            }
        }
        lines
    }
    fn has_secrets(&self) -> bool {
        self.keys.iter().any(|(.., v)| v.as_ref().is_some_and(Value::is_secret))
    }
}

impl Resource for Ini {
    fn id(&self) -> String {
        format!("ini {}", self.target.path)
    }
    edit_methods!();
}
