//! A locale, generated and the system's default.

use crate::engine::quote;
use crate::engine::resource::{Resource, Script, Verdict};

/// `LANG` of the system, and its definition compiled (Debian needs the package `locales`, EL the
/// language pack).
#[derive(Clone, Debug)]
pub struct Locale {
    name: String,
}

impl Locale {
    /// `en_US.UTF-8`.
    pub fn new(name: impl Into<String>) -> Locale {
        Locale { name: name.into() }
    }
    /// As `locale -a` writes it: `en_US.utf8`.
    fn listed(&self) -> String {
        match self.name.split_once('.') {
            Some((language, charset)) => {
                format!("{language}.{}", charset.to_lowercase().replace('-', ""))
            }
            None => self.name.clone(),
        }
    }
    fn generated(&self, seen: &str) -> bool {
        seen.lines().any(|l| l == self.listed())
    }
    fn default_is(seen: &str) -> Option<&str> {
        seen.lines().find_map(|l| l.strip_prefix("LANG=")).map(|v| v.trim_matches('"'))
    }
}

/// Sets `$f` to the file of the family.
const FILE: &str =
    "f=$ROOT/etc/locale.conf\n[ -e \"$ROOT\"/etc/debian_version ] && f=$ROOT/etc/default/locale\n";

impl Resource for Locale {
    fn id(&self) -> String {
        format!("locale {}", self.name)
    }
    fn probe(&self) -> Script {
        Script::new(format!(
            "{FILE}[ -r \"$f\" ] && while read -r l; do echo \"$l\"; done <\"$f\"\nlocale -a"
        ))
    }
    fn judge(&self, seen: &str) -> Verdict {
        let mut lines = Vec::new();
        if !self.generated(seen) {
            lines.push("not generated".into());
        }
        match Self::default_is(seen) {
            Some(is) if is == self.name => {}
            is => lines.push(format!("LANG: {} -> {}", is.unwrap_or("absent"), self.name)),
        }
        Verdict::from_lines(lines)
    }
    fn apply(&self, seen: &str) -> Script {
        let mut shell = String::from(FILE);
        if !self.generated(seen) {
            let (language, charset) = self.name.split_once('.').unwrap_or((&self.name, "UTF-8"));
            shell.push_str(&format!(
                "localedef -i {} -f {} {} || exit 1\n\
                 g=$ROOT/etc/locale.gen\n\
                 [ ! -e \"$g\" ] || grep -qx {l} \"$g\" || printf '%s\\n' {l} >>\"$g\"\n",
                quote::word(language),
                quote::word(charset),
                quote::word(&self.name),
                l = quote::word(&format!("{} {charset}", self.name)),
            ));
        }
        shell.push_str(&format!(
            "echo LANG={} >\"$f\" && chmod 644 \"$f\"\n",
            quote::word(&self.name)
        ));
        Script::new(shell)
    }
    fn patience(&self) -> u64 {
        60
    }
}
