//! Something listening.

use super::unit::LISTENS;
use crate::engine::resource::{Resource, Script, Verdict};

/// A TCP port on which something listens. Cannot be made so, only waited for: a barrier between a
/// service that is started elsewhere and those that need it.
#[derive(Clone, Debug)]
pub struct TcpPort {
    port: u16,
}

impl TcpPort {
    pub fn new(port: u16) -> TcpPort {
        TcpPort { port }
    }
}

impl Resource for TcpPort {
    fn id(&self) -> String {
        format!("tcp port {}", self.port)
    }
    fn probe(&self) -> Script {
        Script::new(format!("{LISTENS}listens {} && echo open; true", self.port))
    }
    fn judge(&self, seen: &str) -> Verdict {
        Verdict::from_lines(match seen.trim() {
            "open" => vec![],
            _ => vec!["nothing listens".into()],
        })
    }
    fn apply(&self, _seen: &str) -> Script {
        Script::new(format!(
            "{LISTENS}up() {{ read -r u _ </proc/uptime; u=${{u%%.*}}; }}\nup; end=$((u + LIMIT))\n\
             until listens {port}; do up; [ \"$u\" -lt \"$end\" ] || \
             {{ echo \"nothing listens on {port} after $LIMIT s\" >&2; exit 1; }}; sleep 0.3; done",
            port = self.port
        ))
    }
    fn patience(&self) -> u64 {
        60
    }
}
