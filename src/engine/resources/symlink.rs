//! A symbolic link.

use crate::engine::quote;
use crate::engine::resource::{Resource, Script, Verdict};

/// A symbolic link at `path` whose text is `to`. Replaces an older link, never a file.
#[derive(Clone, Debug)]
pub struct SymLink {
    path: String,
    to: String,
}

impl SymLink {
    pub fn new(path: impl Into<String>, to: impl Into<String>) -> SymLink {
        SymLink { path: path.into(), to: to.into() }
    }
}

impl Resource for SymLink {
    fn id(&self) -> String {
        format!("symlink {}", self.path)
    }
    fn probe(&self) -> Script {
        Script::new(format!(
            "p={}\nif [ -L \"$p\" ]; then printf 'link '; readlink \"$p\"\n\
             elif [ -e \"$p\" ]; then echo other; else echo absent; fi",
            quote::path(&self.path)
        ))
    }
    fn judge(&self, seen: &str) -> Verdict {
        let seen = seen.trim_end_matches('\n');
        Verdict::from_lines(match seen.strip_prefix("link ") {
            Some(to) if to == self.to => vec![],
            Some(to) => vec![format!("points to: {to} -> {}", self.to)],
            None if seen == "absent" => vec![format!("absent -> {}", self.to)],
            None => vec!["is not a symbolic link".into()],
        })
    }
    fn apply(&self, seen: &str) -> Script {
        let path = quote::path(&self.path);
        if seen.starts_with("other") {
            return super::target::refuse(&self.path, "is there and is not a symbolic link");
        }
        Script::new(format!(
            "p={path}\n[ -d \"${{p%/*}}\" ] || mkdir -p -m 755 \"${{p%/*}}\" || exit 1\n\
             ln -sfn -- {} \"$p\"",
            quote::word(&self.to)
        ))
    }
    fn writes(&self) -> Vec<String> {
        vec![self.path.clone()]
    }
    fn quick(&self) -> bool {
        true
    }
}
