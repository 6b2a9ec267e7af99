//! A whole file.

use super::target::{ABSENT, Kind, PATHS, Seen, Target, refuse, sha256, target_methods};
use crate::engine::resource::{Input, Resource, Script, SharedProbe, Verdict};
use std::fmt;

/// A file with exactly this content. Parent directories are made (0755) where missing.
#[derive(Clone)]
pub struct File {
    target: Target,
    content: Vec<u8>,
    secret: bool,
}

impl File {
    /// New files get mode 0644 unless declared.
    pub fn new(path: impl Into<String>, content: impl Into<Vec<u8>>) -> File {
        File { target: Target::new(path), content: content.into(), secret: false }
    }
    /// Content never shown; new files get mode 0600 unless declared.
    pub fn secret(path: impl Into<String>, content: impl Into<Vec<u8>>) -> File {
        File { secret: true, ..File::new(path, content) }
    }
    target_methods!();

    fn content_difference(&self, kind: &Kind) -> Option<String> {
        let same = match kind {
            Kind::Text(text) => text.as_bytes() == self.content,
            Kind::Binary(sum) => *sum == sha256(&self.content),
            Kind::Directory | Kind::Other => return Some("is not a regular file".into()),
        };
        if same {
            return None;
        }
        match (kind, std::str::from_utf8(&self.content)) {
            (Kind::Text(old), Ok(new)) if !self.secret => Some(first_difference(old, new)),
            _ => Some("content: differs".into()),
        }
    }
}

/// The first line that differs, cut to a readable length.
fn first_difference(old: &str, new: &str) -> String {
    let cut = |line: Option<&str>| match line {
        Some(line) => format!("`{}`", line.chars().take(120).collect::<String>()),
        None => "(end)".into(),
    };
    let (mut a, mut b) = (old.split_inclusive('\n'), new.split_inclusive('\n'));
    for number in 1.. {
        let (x, y) = (a.next(), b.next());
        if x != y || x.is_none() {
            let (shown_x, shown_y) = (cut(x.map(str::trim_end)), cut(y.map(str::trim_end)));
            return format!("content: line {number}: {shown_x} -> {shown_y}");
        }
    }
    unreachable!("the texts differ")
}

impl Resource for File {
    fn id(&self) -> String {
        format!("file {}", self.target.path)
    }
    fn shared(&self) -> Option<(&'static SharedProbe, String)> {
        Some((&PATHS, self.target.path.clone()))
    }
    fn nothing(&self) -> &'static str {
        ABSENT
    }
    fn judge(&self, seen: &str) -> Verdict {
        let seen = Seen::parse(seen);
        let mut lines = self.target.judge(&seen);
        match &seen {
            Seen::Absent => lines.push("absent".into()),
            Seen::Unreadable => lines.push("changed while it was being read".into()),
            Seen::There { kind, .. } => lines.extend(self.content_difference(kind)),
        }
        Verdict::from_lines(lines)
    }
    fn apply(&self, seen: &str) -> Script {
        let seen = Seen::parse(seen);
        if let Seen::There { kind, .. } = &seen {
            match kind {
                Kind::Directory | Kind::Other => {
                    return refuse(&self.target.path, "is not a regular file");
                }
                _ if self.content_difference(kind).is_none() => {
                    return Script::new(self.target.mend());
                }
                _ => {}
            }
        }
        let (content, mode) = match self.secret {
            true => (Input::SecretBytes(self.content.clone()), 0o600),
            false => (Input::Plain(self.content.clone()), 0o644),
        };
        self.target.write(&seen, content, mode)
    }
    fn writes(&self) -> Vec<String> {
        vec![self.target.path.clone()]
    }
    fn quick(&self) -> bool {
        true
    }
}

impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.content.len();
        f.debug_struct("File").field("target", &self.target).field("bytes", &bytes).finish()
    }
}
