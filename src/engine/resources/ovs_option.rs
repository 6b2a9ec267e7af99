//! Settings of Open vSwitch itself.

use crate::engine::quote;
use crate::engine::resource::{Resource, Script, Verdict};

/// A key of `other_config` in Open vSwitch's database (`man ovs-vswitchd.conf.db`). It takes effect
/// at once and outlives restarts.
#[derive(Clone, Debug)]
pub struct OvsOption {
    key: String,
    value: String,
}

impl OvsOption {
    pub fn new(key: impl Into<String>, value: impl Into<String>) -> OvsOption {
        OvsOption { key: key.into(), value: value.into() }
    }
    fn column(&self) -> String {
        quote::word(&format!("other_config:{}", self.key))
    }
}

impl Resource for OvsOption {
    fn id(&self) -> String {
        format!("ovs option {}", self.key)
    }
    fn probe(&self) -> Script {
        Script::new(format!(
            "command -v ovs-vsctl >/dev/null && \
             ovs-vsctl --timeout=10 --if-exists get Open_vSwitch . {}",
            self.column()
        ))
    }
    fn judge(&self, seen: &str) -> Verdict {
        let seen = seen.trim().trim_matches('"');
        Verdict::from_lines(match seen {
            _ if seen == self.value => Vec::new(),
            "" => vec![format!("absent -> {}", self.value)],
            _ => vec![format!("{seen} -> {}", self.value)],
        })
    }
    fn apply(&self, _seen: &str) -> Script {
        let value = quote::word(&self.value);
        Script::new(format!(
            "ovs-vsctl --timeout=\"$LIMIT\" set Open_vSwitch . {}={value}",
            self.column()
        ))
    }
}
