//! A directory.

use super::target::{ABSENT, Kind, PATHS, Seen, Target, refuse, target_methods};
use crate::engine::quote;
use crate::engine::resource::{Resource, Script, SharedProbe, Verdict};

/// A directory with its owner and mode. Missing parents are made 0755.
#[derive(Clone, Debug)]
pub struct Directory {
    target: Target,
}

impl Directory {
    pub fn new(path: impl Into<String>) -> Directory {
        Directory { target: Target::new(path) }
    }
    target_methods!();
}

impl Resource for Directory {
    fn id(&self) -> String {
        format!("directory {}", self.target.path)
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
        match seen {
            Seen::There { kind: Kind::Directory, .. } => {}
            Seen::There { .. } => lines.push("is not a directory".into()),
            Seen::Absent => lines.push("absent".into()),
            Seen::Unreadable => lines.push("changed while it was being read".into()),
        }
        Verdict::from_lines(lines)
    }
    fn apply(&self, seen: &str) -> Script {
        let path = quote::path(&self.target.path);
        match Seen::parse(seen) {
            Seen::There { kind: Kind::Directory, .. } => Script::new(self.target.mend()),
            Seen::There { .. } => refuse(&self.target.path, "is not a directory"),
            Seen::Absent | Seen::Unreadable => {
                // umask 022 for the parents; its own mode is set before anything is put inside.
                let mode = self.target.mode.unwrap_or(0o755);
                Script::new(format!(
                    "(umask 022; mkdir -p -m {mode:o} {path}) || exit 1\n{}",
                    self.target.mend()
                ))
            }
        }
    }
    fn writes(&self) -> Vec<String> {
        vec![self.target.path.clone()]
    }
    fn quick(&self) -> bool {
        true
    }
}
