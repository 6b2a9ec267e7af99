//! A resource: one thing on a node with a declared state that can be observed and changed.
//!
//! Implementations are pure: they build shell fragments and judge their output. The engine alone
//! talks to nodes.

use crate::secret::Secret;
use std::fmt::Debug;

/// A fragment of POSIX shell, run as root on the node within one larger script sent over standard
/// input (never as an argument, so that no secret can be seen in a process list).
#[derive(Clone, Debug, Default)]
pub struct Script {
    /// May refer to the inputs as files: `"$IN/NAME"`.
    pub shell: String,
    /// Small files made (0600, in a directory on tmpfs that is removed afterwards) before the
    /// fragment runs: contents and secrets travel here, not in `shell`.
    pub inputs: Vec<(String, Input)>,
}

#[derive(Clone, Debug)]
pub enum Input {
    Plain(Vec<u8>),
    Secret(Secret),
    /// A file that has secrets in it (a configuration file): never shown, never diffed in clear.
    SecretBytes(Vec<u8>),
}

/// What observing a resource said about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As declared.
    Same,
    /// Not as declared; each line says one difference, without secrets:
    /// `[DEFAULT] my_ip: 192.0.2.2 -> 192.168.103.12`, `password: differs`.
    Differs(Vec<String>),
}

pub trait Resource: Send + Sync + Debug {
    /// Unique on its node and stable between runs: `file /etc/hosts`, `unit keystone`.
    fn id(&self) -> String;

    /// Prints the present state. Must change nothing, must not fail where the thing is absent, and
    /// be cheap: under emulation a fork costs 5 to 10 ms.
    fn probe(&self) -> Script;

    /// Compares what the probe printed with what is declared.
    fn judge(&self, seen: &str) -> Verdict;

    /// Makes it so. Runs only after `judge` said that it differs; a non-zero exit is a failure and
    /// its stderr the evidence.
    fn apply(&self, seen: &str) -> Script;

    /// How long `apply` may take on the reference machine, in seconds.
    fn patience(&self) -> u64 {
        20
    }

    /// Paths this resource writes: a unit that reads one of them is restarted after a change.
    fn writes(&self) -> Vec<String> {
        Vec::new()
    }
}
