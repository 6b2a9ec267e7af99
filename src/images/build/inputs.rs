//! The inputs of a built image, each with its digest: together they are its key.

use crate::images::digest::{Algorithm, Digest, Hasher};
use crate::images::store;
use serde::{Deserialize, Serialize};

/// One thing that makes an image what it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ImageInput {
    /// As in `manifest debian-13-node.toml`, `file after.sh`, `builder apt.rs`, `package nova-api`.
    pub name: String,
    /// SHA-256 of its bytes, in hexadecimal digits. A package's name is all of it.
    pub sha256: String,
}

impl ImageInput {
    pub(super) fn new(name: String, bytes: &[u8]) -> ImageInput {
        ImageInput { name, sha256: Digest::of(Algorithm::Sha256, bytes).hex() }
    }
}

/// The key under which the store keeps an image that these inputs make.
pub fn key_of_inputs(image: &str, inputs: &[ImageInput]) -> String {
    let mut hash = Hasher::new(Algorithm::Sha256);
    for text in inputs.iter().flat_map(|input| [&input.name, &input.sha256]) {
        // Each with its length before it, so that none can pass for a part of another.
        hash.update(&(text.len() as u64).to_le_bytes());
        hash.update(text.as_bytes());
    }
    store::derived_key(image, &hash.finish())
}

/// Where two lists of inputs differ, one line an input; `theirs` is of another machine.
pub fn differences(ours: &[ImageInput], theirs: &[ImageInput]) -> Vec<String> {
    let find = |list: &[ImageInput], name: &str| list.iter().find(|i| i.name == name).cloned();
    let mut lines = Vec::new();
    for input in ours {
        match find(theirs, &input.name) {
            None => lines.push(format!("{}: only here", input.name)),
            Some(other) if other != *input => lines.push(format!("{}: differs", input.name)),
            Some(_) => {}
        }
    }
    let only_there = theirs.iter().filter(|input| find(ours, &input.name).is_none());
    lines.extend(only_there.map(|input| format!("{}: only there", input.name)));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differing_inputs_are_named() {
        let input = |name: &str, text: &str| ImageInput::new(name.into(), text.as_bytes());
        let ours = [input("file a", "1"), input("file b", "1"), input("package vim", "")];
        let theirs = [input("file a", "1"), input("file b", "2"), input("package nano", "")];
        let wanted = ["file b: differs", "package vim: only here", "package nano: only there"];
        assert_eq!(differences(&ours, &theirs), wanted);
        assert_eq!(differences(&ours, &ours), Vec::<String>::new());
        assert_ne!(key_of_inputs("x", &ours), key_of_inputs("x", &theirs));
    }
}
