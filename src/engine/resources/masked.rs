//! Units that must never start on a node.

use super::unit::with_suffix;
use crate::engine::quote;
use crate::engine::resource::{Resource, Script, Verdict};

/// Units masked and not running, whether they exist or not. Also hides SysV scripts of that name.
#[derive(Clone, Debug)]
pub struct Masked {
    units: Vec<String>,
}

impl Masked {
    /// Without a suffix, `.service` is meant.
    pub fn new<U: AsRef<str>>(units: impl IntoIterator<Item = U>) -> Masked {
        Masked { units: units.into_iter().map(|u| with_suffix(u.as_ref())).collect() }
    }

    /// Units not masked, and units running.
    fn wrong<'a>(&'a self, seen: &'a str) -> (Vec<&'a str>, Vec<&'a str>) {
        let (masked, active) = seen.split_once("@active\n").unwrap_or((seen, ""));
        let masked: Vec<&str> = masked.lines().collect();
        let all = || self.units.iter().map(String::as_str);
        let open = all().filter(|u| !masked.contains(u)).collect();
        let runs = |u: &&str| active.lines().any(|l| l.split_whitespace().next() == Some(u));
        (open, all().filter(runs).collect())
    }
}

impl Resource for Masked {
    fn id(&self) -> String {
        // One word is enough to tell several apart, and keeps the id readable.
        match self.units.split_first() {
            Some((one, [])) => format!("masked {one}"),
            Some((first, rest)) => format!("masked {first} and {} more", rest.len()),
            None => "masked".into(),
        }
    }
    fn probe(&self) -> Script {
        let units = quote::words(&self.units);
        Script::new(format!(
            "for u in {units}; do [ \"$ROOT/etc/systemd/system/$u\" -ef /dev/null ] && echo \"$u\"; done\n\
             echo @active\n\
             systemctl list-units --plain --no-legend --no-pager --state=active,activating,reloading {units}\n\
             true"
        ))
    }
    fn judge(&self, seen: &str) -> Verdict {
        let (open, running) = self.wrong(seen);
        let open = open.into_iter().map(|u| format!("{u}: not masked"));
        let running = running.into_iter().map(|u| format!("{u}: running"));
        Verdict::from_lines(open.chain(running).collect())
    }
    fn apply(&self, seen: &str) -> Script {
        let (open, running) = self.wrong(seen);
        let mut shell = String::new();
        if !running.is_empty() {
            // Before the mask: a masked unit's own stop commands are gone.
            shell.push_str(&format!("systemctl stop {} || exit 1\n", quote::words(running)));
        }
        if !open.is_empty() {
            shell.push_str(&format!("systemctl -q mask {} || exit 1\n", quote::words(open)));
        }
        Script::new(shell)
    }
    fn patience(&self) -> u64 {
        60
    }
}
