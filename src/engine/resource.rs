//! A resource: one thing on a node with a declared state that can be observed and changed.
//!
//! Implementations are pure: they build shell fragments and judge their output. The engine alone
//! talks to nodes.
//!
//! What a fragment may count on: POSIX sh (dash, busybox ash) as root, standard input empty,
//! `LC_ALL=C`, `$ROOT` before every absolute path ([`quote::path`](super::quote::path)), `"$IN"`
//! holding its inputs, and in `apply` `$LIMIT`, the whole seconds it has.

use crate::secret::Secret;
use std::fmt::{self, Debug};

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

impl Script {
    pub fn new(shell: impl Into<String>) -> Script {
        Script { shell: shell.into(), inputs: Vec::new() }
    }
    pub fn input(mut self, name: impl Into<String>, input: Input) -> Script {
        self.inputs.push((name.into(), input));
        self
    }
}

#[derive(Clone)]
pub enum Input {
    Plain(Vec<u8>),
    Secret(Secret),
    /// A file that has secrets in it (a configuration file): never shown, never diffed in clear.
    SecretBytes(Vec<u8>),
}

impl Input {
    pub fn bytes(&self) -> &[u8] {
        match self {
            Input::Plain(b) | Input::SecretBytes(b) => b,
            Input::Secret(s) => s.reveal().as_bytes(),
        }
    }
}

impl Debug for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Input::Plain(b) => write!(f, "Plain({} bytes)", b.len()),
            Input::Secret(_) | Input::SecretBytes(_) => f.write_str("[secret]"),
        }
    }
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

impl Verdict {
    /// `Same` if there is no difference to tell.
    pub fn from_lines(lines: Vec<String>) -> Verdict {
        if lines.is_empty() { Verdict::Same } else { Verdict::Differs(lines) }
    }
    pub fn is_same(&self) -> bool {
        *self == Verdict::Same
    }
}

/// One observation that serves many resources of a node: one `stat` for all files, one
/// `systemctl show` for all units.
pub struct SharedProbe {
    /// Unique among shared probes.
    pub name: &'static str,
    /// Observes all subjects at once. Subjects are sorted and distinct.
    pub script: fn(subjects: &[&str]) -> Script,
    /// What `script` printed, cut into one text for each subject, in the same order.
    pub split: fn(printed: &[u8], subjects: &[&str]) -> Vec<String>,
}

impl Debug for SharedProbe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SharedProbe({})", self.name)
    }
}

pub trait Resource: Send + Sync + Debug {
    /// Unique on its node and stable between runs: `file /etc/hosts`, `unit keystone`.
    fn id(&self) -> String;

    /// Prints the present state. Must change nothing, must not fail where the thing is absent, and
    /// be cheap: under emulation a fork costs 5 to 10 ms. Not used where [`shared`](Self::shared)
    /// says otherwise.
    fn probe(&self) -> Script {
        Script::default()
    }

    /// The observation shared with others of the kind, and what of it this resource asks for.
    /// `judge` and `apply` then see the text cut out for that subject.
    fn shared(&self) -> Option<(&'static SharedProbe, String)> {
        None
    }

    /// What the probe prints where nothing of the resource is there yet: [`canonical`] asks what
    /// [`apply`](Self::apply) would do then.
    ///
    /// [`canonical`]: super::canonical
    fn nothing(&self) -> &'static str {
        ""
    }

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

    /// Paths whose change asks for this resource to be applied again (what a unit reads). The plan
    /// is refused if one of them is written by a step that is not ordered before.
    fn reads(&self) -> Vec<String> {
        Vec::new()
    }

    /// Whether neighbours of the same kind may be applied in one round trip: true for what only
    /// writes the paths that [`writes`](Self::writes) names, and is quick.
    fn quick(&self) -> bool {
        false
    }

    /// Does `apply` restart a running service, given what was seen? For the report only.
    fn restarts(&self, _seen: &str) -> bool {
        false
    }

    /// Prints what explains a failed `apply` (a journal's tail).
    fn evidence(&self) -> Option<Script> {
        None
    }
}
