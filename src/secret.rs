//! Values that must never be shown: passwords, keys, tokens.
//!
//! A [`Secret`] prints as `[secret]` everywhere; its text comes out only through
//! [`Secret::reveal`], which makes every place that handles the plain text easy to find.
//! A [`Redactor`] knows every secret of a run and removes them from text that comes from outside
//! (consoles, journals, tools' output) before it is kept or shown.

use std::fmt;
use std::sync::{Arc, RwLock};

#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Secret(Arc<str>);

impl Secret {
    pub fn new(text: impl Into<Arc<str>>) -> Self {
        Secret(text.into())
    }

    /// `bytes` random bytes from the kernel, in hexadecimal: safe in URLs, SQL and INI files.
    pub fn generate(bytes: usize) -> std::io::Result<Self> {
        use std::io::Read;
        let mut raw = vec![0u8; bytes];
        std::fs::File::open("/dev/urandom")?.read_exact(&mut raw)?;
        Ok(Secret(raw.iter().map(|b| format!("{b:02x}")).collect::<String>().into()))
    }

    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Its lines, each a secret, without those that frame a PEM.
    pub fn lines(&self) -> impl Iterator<Item = Secret> {
        self.0.lines().filter(|l| !l.starts_with("-----")).map(Secret::new)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// Replaces every registered secret in a text. Cheap to clone; all clones share the list.
#[derive(Clone, Default, Debug)]
pub struct Redactor(Arc<RwLock<Vec<Secret>>>);

impl Redactor {
    /// Secrets shorter than this would shred ordinary text and are refused at registration.
    const SHORTEST: usize = 8;

    pub fn add(&self, secret: &Secret) {
        if secret.reveal().len() >= Self::SHORTEST {
            let mut all = self.0.write().expect("redactor lock");
            if !all.contains(secret) {
                all.push(secret.clone());
            }
        }
    }

    /// A secret of several lines, as a whole and line by line: a console shows files one line at a
    /// time. The lines that frame a PEM are everybody's.
    pub fn add_lines(&self, secret: &Secret) {
        self.add(secret);
        for line in secret.lines() {
            self.add(&line);
        }
    }

    pub fn clean(&self, text: &str) -> String {
        let mut out = text.to_owned();
        for secret in self.0.read().expect("redactor lock").iter() {
            if out.contains(secret.reveal()) {
                out = out.replace(secret.reveal(), "[secret]");
            }
        }
        out
    }

    /// Every secret that is known, to look for each where it must not be.
    pub fn all(&self) -> Vec<Secret> {
        self.0.read().expect("redactor lock").clone()
    }

    /// How many secrets are known: tests use it to be sure that a search searched for something.
    pub fn len(&self) -> usize {
        self.0.read().expect("redactor lock").len()
    }
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_never_prints_itself() {
        let s = Secret::new("hunter2hunter2");
        assert_eq!(format!("{s} {s:?}"), "[secret] [secret]");
    }

    #[test]
    fn generated_secrets_are_long_hex_and_differ() {
        let (a, b) = (Secret::generate(16).unwrap(), Secret::generate(16).unwrap());
        assert_eq!(a.reveal().len(), 32);
        assert!(a.reveal().bytes().all(|c| c.is_ascii_hexdigit()));
        assert_ne!(a, b);
    }

    #[test]
    fn a_key_of_several_lines_is_removed_from_each_line_and_its_frame_is_not() {
        let (r, frame) = (Redactor::default(), "-----BEGIN OPENSSH PRIVATE KEY-----");
        r.add_lines(&Secret::new(format!("{frame}\nAAAAfirstline\nsecondline==\n")));
        assert_eq!(r.clean("[1.0] AAAAfirstline"), "[1.0] [secret]");
        assert_eq!(r.clean("x secondline== y"), "x [secret] y");
        assert_eq!(r.clean(frame), frame);
    }

    #[test]
    fn the_redactor_removes_every_occurrence() {
        let r = Redactor::default();
        r.add(&Secret::new("0123456789abcdef"));
        assert_eq!(r.clean("x=0123456789abcdef;y=0123456789abcdef"), "x=[secret];y=[secret]");
        assert_eq!(r.len(), 1);
    }
}
