//! Packages of the distribution.

use crate::engine::quote;
use crate::engine::resource::{Resource, Script, SharedProbe, Verdict};
use std::collections::HashMap;

/// Packages that must be installed, by their real names (a virtual package never converges). Works
/// with dpkg and rpm; versions are the repository's business.
#[derive(Clone, Debug)]
pub struct Package {
    names: Vec<String>,
}

impl Package {
    pub fn new<N: Into<String>>(names: impl IntoIterator<Item = N>) -> Package {
        Package { names: names.into_iter().map(Into::into).collect() }
    }
    fn missing<'a>(&'a self, seen: &'a str) -> impl Iterator<Item = &'a str> {
        self.names.iter().map(String::as_str).filter(|n| !seen.lines().any(|l| l == *n))
    }
}

static PACKAGES: SharedProbe = SharedProbe { name: "packages", script, split };

fn script(subjects: &[&str]) -> Script {
    let names = quote::words(subjects.iter().flat_map(|s| s.split(' ')));
    Script::new(format!(
        "if command -v dpkg-query >/dev/null; then\n\
         dpkg-query -W -f '${{db:Status-Abbrev}} ${{Package}}\\n' {names} 2>/dev/null\n\
         elif command -v rpm >/dev/null; then\n\
         rpm -q --qf 'ii  %{{NAME}}\\n' {names} 2>/dev/null\nfi; true"
    ))
}

/// For each subject the names of it that are installed, one a line.
fn split(printed: &[u8], subjects: &[&str]) -> Vec<String> {
    let printed = String::from_utf8_lossy(printed);
    let installed: HashMap<&str, ()> = printed
        .lines()
        .filter_map(|l| {
            let (status, name) = l.rsplit_once(' ')?;
            // Second letter of dpkg's abbreviation: the present status. `hi` is held, installed.
            (status.as_bytes().get(1) == Some(&b'i')).then_some((name, ()))
        })
        .collect();
    let there = |s: &&str| {
        s.split(' ').filter(|n| installed.contains_key(n)).map(|n| format!("{n}\n")).collect()
    };
    subjects.iter().map(there).collect()
}

impl Resource for Package {
    fn id(&self) -> String {
        format!("package {}", self.names.join(" "))
    }
    fn shared(&self) -> Option<(&'static SharedProbe, String)> {
        Some((&PACKAGES, self.names.join(" ")))
    }
    fn judge(&self, seen: &str) -> Verdict {
        Verdict::from_lines(self.missing(seen).map(|n| format!("{n}: not installed")).collect())
    }
    fn apply(&self, seen: &str) -> Script {
        let names = quote::words(self.missing(seen));
        Script::new(format!(
            r#"if command -v apt-get >/dev/null; then
  export DEBIAN_FRONTEND=noninteractive
  get() {{ apt-get -qq -y --no-install-recommends -o DPkg::Lock::Timeout="$LIMIT" \
    -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold install {names}; }}
  # Lists may be absent or old: fetched only when they are needed.
  get || {{ apt-get -qq update && get; }}
else
  dnf -q -y --setopt=install_weak_deps=False install {names}
fi"#
        ))
    }
    fn patience(&self) -> u64 {
        300
    }
}
