//! What all resources that are one path have in common: observing it with all other paths of the
//! node in one go, its owner and mode, and replacing its content atomically.

use crate::engine::quote;
use crate::engine::resource::{Input, Script, SharedProbe};
use sha2::{Digest, Sha256};
use std::fmt::Write;

/// One path and what is declared about it beside its content.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub path: String,
    pub mode: Option<u32>,
    pub owner: Option<(String, String)>,
}

/// What was seen at a path.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Seen<'a> {
    Absent,
    /// It changed while it was being read: looked at again before anything is written.
    Unreadable,
    There {
        mode: u32,
        user: &'a str,
        group: &'a str,
        kind: Kind<'a>,
    },
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kind<'a> {
    Text(&'a str),
    /// Not UTF-8: only its sha256 is kept.
    Binary(&'a str),
    Directory,
    Other,
}

/// All paths in three forks at most: existence by the shell itself, one `stat`, one `cat`.
pub(super) static PATHS: SharedProbe = SharedProbe { name: "paths", script, split };

/// What is seen of a path that is not there.
pub(super) const ABSENT: &str = "absent\n";

fn script(paths: &[&str]) -> Script {
    let mut shell = String::from("set --");
    for path in paths {
        let _ = write!(shell, " {}", quote::path(path));
    }
    shell.push_str(
        r#"
i=0 k=
for p do
  shift
  [ -e "$p" ] && { set -- "$@" "$p"; k="$k $i"; }
  i=$((i+1))
done
echo "$k"
[ $# -gt 0 ] || exit 0
stat -L -c '%a %U %G %s %F' -- "$@"
for p do
  shift
  [ -f "$p" ] && set -- "$@" "$p"
done
[ $# -gt 0 ] && cat -- "$@"
true
"#,
    );
    Script::new(shell)
}

fn split(printed: &[u8], paths: &[&str]) -> Vec<String> {
    try_split(printed, paths).unwrap_or_else(|| vec!["unreadable\n".into(); paths.len()])
}

/// `None` if sizes and contents do not add up: something changed between `stat` and `cat`.
fn try_split(printed: &[u8], paths: &[&str]) -> Option<Vec<String>> {
    let mut rest = printed;
    let mut line = || -> Option<&str> {
        let end = rest.iter().position(|&b| b == b'\n')?;
        let line = std::str::from_utf8(&rest[..end]).ok()?;
        rest = &rest[end + 1..];
        Some(line)
    };
    let there: Vec<usize> =
        line()?.split_ascii_whitespace().map(str::parse).collect::<Result<_, _>>().ok()?;
    let stats = there.iter().map(|_| line()).collect::<Option<Vec<_>>>()?;
    let mut out = vec![ABSENT.to_owned(); paths.len()];
    for (&i, stat) in there.iter().zip(stats) {
        let mut fields = stat.splitn(5, ' ');
        let (mode, user, group) = (fields.next()?, fields.next()?, fields.next()?);
        let size: usize = fields.next()?.parse().ok()?;
        let entry = out.get_mut(i)?;
        *entry = format!("{mode} {user} {group} ");
        match fields.next()? {
            "regular file" | "regular empty file" => {
                let content = rest.get(..size)?;
                rest = &rest[size..];
                match std::str::from_utf8(content) {
                    Ok(text) => {
                        entry.push_str("text\n");
                        entry.push_str(text);
                    }
                    Err(_) => {
                        entry.push_str("binary\n");
                        entry.push_str(&sha256(content));
                    }
                }
            }
            "directory" => entry.push_str("directory\n"),
            _ => entry.push_str("other\n"),
        }
    }
    rest.is_empty().then_some(out)
}

pub(super) fn sha256(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|b| format!("{b:02x}")).collect()
}

impl<'a> Seen<'a> {
    pub fn parse(seen: &'a str) -> Seen<'a> {
        let Some((head, content)) = seen.split_once('\n') else { return Seen::Unreadable };
        if head == "absent" {
            return Seen::Absent;
        }
        let mut fields = head.split(' ');
        let (Some(mode), Some(user), Some(group), Some(kind)) =
            (fields.next(), fields.next(), fields.next(), fields.next())
        else {
            return Seen::Unreadable;
        };
        let Ok(mode) = u32::from_str_radix(mode, 8) else { return Seen::Unreadable };
        let kind = match kind {
            "text" => Kind::Text(content),
            "binary" => Kind::Binary(content),
            "directory" => Kind::Directory,
            _ => Kind::Other,
        };
        Seen::There { mode, user, group, kind }
    }

    /// The text to edit: empty where nothing is there yet.
    pub fn text(&self) -> Result<&'a str, String> {
        match self {
            Seen::Absent => Ok(""),
            Seen::Unreadable => Err("changed while it was being read".into()),
            Seen::There { kind: Kind::Text(text), .. } => Ok(text),
            Seen::There { kind: Kind::Binary(_), .. } => Err("is not UTF-8 text".into()),
            Seen::There { kind: Kind::Directory, .. } => Err("is a directory".into()),
            Seen::There { kind: Kind::Other, .. } => {
                Err("is neither a file nor a directory".into())
            }
        }
    }
}

impl Target {
    pub fn new(path: impl Into<String>) -> Target {
        Target { path: path.into(), mode: None, owner: None }
    }

    /// Differences of owner and mode.
    pub fn judge(&self, seen: &Seen) -> Vec<String> {
        let mut lines = Vec::new();
        if let Seen::There { mode, user, group, .. } = seen {
            if let Some(want) = self.mode
                && want != *mode
            {
                lines.push(format!("mode: {mode:04o} -> {want:04o}"));
            }
            if let Some((want_user, want_group)) = &self.owner
                && (want_user != user || want_group != group)
            {
                lines.push(format!("owner: {user}:{group} -> {want_user}:{want_group}"));
            }
        }
        lines
    }

    /// Owner and mode alone, content untouched.
    pub fn mend(&self) -> String {
        let path = quote::path(&self.path);
        let mut shell = String::from("set -e\n");
        if let Some((user, group)) = &self.owner {
            let _ = writeln!(shell, "chown {} {path}", quote::word(&format!("{user}:{group}")));
        }
        if let Some(mode) = self.mode {
            // Five digits: with fewer, GNU chmod leaves a directory's set-group-ID bit alone.
            let _ = writeln!(shell, "chmod {mode:05o} {path}");
        }
        shell
    }

    /// Replaces the content: written beside it and renamed, so that no reader sees half a file.
    /// What is not declared of owner and mode stays as it was; a new file gets `new_mode`.
    pub fn write(&self, seen: &Seen, content: Input, new_mode: u32) -> Script {
        let (mut mode, mut owner) = (new_mode, None);
        if let Seen::There { mode: m, user, group, .. } = seen {
            mode = *m;
            owner = Some(((*user).to_owned(), (*group).to_owned()));
        }
        let mode = self.mode.unwrap_or(mode);
        let owner = match self.owner.clone().or(owner) {
            Some((user, group)) => {
                format!(" -o {} -g {}", quote::word(&user), quote::word(&group))
            }
            None => String::new(),
        };
        Script::new(format!(
            r#"p={}
[ -L "$p" ] && p=$(readlink -f "$p")
d=${{p%/*}}/
[ -d "$d" ] || mkdir -p -m 755 "$d" || exit 1
t=$p.stackproof-new
install -m {mode:o}{owner} "$IN/content" "$t" && mv -f "$t" "$p" || {{ rm -f "$t"; exit 1; }}
if [ -x /sbin/restorecon ]; then /sbin/restorecon "$p"; fi
"#,
            quote::path(&self.path)
        ))
        .input("content", content)
    }
}

/// A script that changes nothing and fails with the reason.
pub(super) fn refuse(path: &str, why: &str) -> Script {
    Script::new(format!("echo {} >&2; exit 65", quote::word(&format!("{path} {why}"))))
}

/// The builder methods of everything that has a [`Target`].
macro_rules! target_methods {
    () => {
        /// Declares the permission bits; without, they stay as they are.
        pub fn mode(mut self, mode: u32) -> Self {
            self.target.mode = Some(mode);
            self
        }
        /// Declares owner and group; without, they stay as they are.
        pub fn owner(mut self, user: impl Into<String>, group: impl Into<String>) -> Self {
            self.target.owner = Some((user.into(), group.into()));
            self
        }
    };
}
pub(super) use target_methods;
