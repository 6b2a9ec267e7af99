//! What goes into a key.

use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt;

/// The name of a layer: the digest of all that made it, 64 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Key(String);

impl Key {
    /// `None` for what cannot be a key.
    pub fn parse(text: &str) -> Option<Key> {
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        (text.len() == 64 && text.bytes().all(hex)).then(|| Key(text.to_owned()))
    }
    pub fn as_str(&self) -> &str {
        &self.0
    }
    /// For people: long enough to tell keys apart.
    pub fn short(&self) -> &str {
        &self.0[..12]
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.short())
    }
}

/// Everything that made a layer: names for people, each with a short value or a digest. Holds no
/// secret.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Inputs(BTreeMap<String, String>);

impl Inputs {
    pub fn set(&mut self, name: impl Into<String>, value: impl Into<String>) {
        self.0.insert(name.into(), value.into());
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn extend(&mut self, others: impl IntoIterator<Item = (String, String)>) {
        self.0.extend(others);
    }

    /// The key of what these inputs made on top of the layer `before`. `stage` tells stages apart
    /// that have no inputs of their own.
    pub fn key(&self, stage: &str, before: Option<&Key>) -> Key {
        // Names are sorted, and the text of strings in JSON is unambiguous.
        let canonical = json!([stage, before.map(Key::as_str), self.0]).to_string();
        let digest = Sha256::digest(canonical.as_bytes());
        Key(digest.iter().map(|b| format!("{b:02x}")).collect())
    }

    /// What is other now than it was `then`, one line each, sorted by name: `QEMU: 10.0.2 ->
    /// 10.0.3`; of values that are digests only that they changed.
    pub fn changes_since(&self, then: &Inputs) -> Vec<String> {
        let mut names: Vec<&String> = self.0.keys().chain(then.0.keys()).collect();
        names.sort_unstable();
        names.dedup();
        let change = |name: &String| match (then.0.get(name), self.0.get(name)) {
            (old, new) if old == new => None,
            (Some(old), Some(new)) if Key::parse(old).or(Key::parse(new)).is_none() => {
                Some(format!("{name}: {old} -> {new}"))
            }
            (Some(_), Some(_)) => Some(format!("{name}: changed")),
            (None, _) => Some(format!("{name}: new")),
            (_, None) => Some(format!("{name}: gone")),
        };
        names.into_iter().filter_map(change).collect()
    }
}

impl IntoIterator for Inputs {
    type Item = (String, String);
    type IntoIter = std::collections::btree_map::IntoIter<String, String>;
    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inputs(pairs: &[(&str, &str)]) -> Inputs {
        let mut inputs = Inputs::default();
        pairs.iter().for_each(|(n, v)| inputs.set(*n, *v));
        inputs
    }

    #[test]
    fn a_key_is_of_the_values_the_stage_and_what_lies_below_and_not_of_the_order() {
        let key = inputs(&[("a", "1"), ("b", "2")]).key("s", None);
        assert_eq!(Key::parse(key.as_str()), Some(key.clone()));
        assert_eq!(inputs(&[("b", "2"), ("a", "1")]).key("s", None), key);
        for other in [
            inputs(&[("a", "1"), ("b", "3")]).key("s", None),
            inputs(&[("a", "1\",\"b"), ("2", "")]).key("s", None),
            inputs(&[("a", "1")]).key("s", None),
            inputs(&[("a", "1"), ("b", "2")]).key("t", None),
            inputs(&[("a", "1"), ("b", "2")]).key("s", Some(&key)),
        ] {
            assert_ne!(other, key);
        }
    }

    #[test]
    fn changes_name_the_input_with_its_values_where_they_can_be_read() {
        let (a, b) = ("a".repeat(64), "b".repeat(64));
        let then = inputs(&[("QEMU", "10.0.2"), ("nova: x", &a), ("old", "1"), ("same", "1")]);
        let now = inputs(&[("QEMU", "10.0.3"), ("nova: x", &b), ("new", "1"), ("same", "1")]);
        assert_eq!(
            now.changes_since(&then),
            ["QEMU: 10.0.2 -> 10.0.3", "new: new", "nova: x: changed", "old: gone"]
        );
        assert!(now.changes_since(&now).is_empty());
    }

    #[test]
    fn what_is_no_key_names_no_folder() {
        for bad in ["", "..", "abc", &"g".repeat(64), &"A".repeat(64), &"a".repeat(65)] {
            assert!(Key::parse(bad).is_none(), "{bad}");
        }
    }
}
