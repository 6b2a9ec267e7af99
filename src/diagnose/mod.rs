//! Why something failed: evidence gathered from the nodes, and what its lines mean.
//!
//! Pure: what is read on the nodes is listed by [`plan`], and reading it is the caller's.

pub mod plan;
pub mod signatures;

pub use plan::{Role, collect_plan};
pub use signatures::{Cause, causes};

use crate::error::{Error, FailureCause};
use crate::event::{Check, Status};
use crate::lab::outside::ConnectFailure;
use std::fmt;

/// A text that was gathered: a console, a journal, a service's log.
#[derive(Clone, Debug)]
pub struct Text {
    /// Where it is kept: `openstack1/neutron-l3-agent.log`.
    pub name: String,
    pub content: String,
    /// Why the node did not give it; the content is then a line of ours, for a person.
    pub unread: Option<Unread>,
}

/// Why a node did not give a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unread {
    /// It cannot be connected to, or the connection was lost.
    Unreachable,
    /// No answer came in time.
    TimedOut,
    Other,
}

impl Text {
    pub fn new(name: impl Into<String>, content: impl Into<String>) -> Text {
        Text { name: name.into(), content: content.into(), unread: None }
    }
    /// Stands for a text that could not be read.
    pub fn unread(name: impl Into<String>, error: &Error) -> Text {
        let unread = match error.cause() {
            Some(FailureCause::ConnectionLost) => Unread::Unreachable,
            _ if error.find::<ConnectFailure>().is_some() => Unread::Unreachable,
            Some(FailureCause::TimedOut) => Unread::TimedOut,
            _ => Unread::Other,
        };
        let content = format!("(not read: {error})\n");
        Text { name: name.into(), content, unread: Some(unread) }
    }
}

/// Why a check failed, as far as it is known. Prints as the lines that a person reads.
#[derive(Clone, Debug)]
pub struct Diagnosis {
    /// What had to hold: the name of the check.
    pub expected: String,
    /// What was seen instead.
    pub seen: Vec<String>,
    /// The likeliest first.
    pub causes: Vec<Cause>,
}

/// How many causes are worth a person's time.
const MOST_CAUSES: usize = 5;

/// Explains a failed check by its own evidence and by the texts gathered after it.
pub fn explain(check: &Check, texts: &[Text]) -> Diagnosis {
    let own = Text::new("the check's evidence", check.evidence.clone());
    let mut all = vec![own];
    all.extend_from_slice(texts);
    let mut causes = causes(&all);
    causes.truncate(MOST_CAUSES);
    Diagnosis {
        expected: check.name.clone(),
        seen: check.evidence.lines().map(str::to_owned).collect(),
        causes,
    }
}

/// Explains the first check that failed; None where none did.
pub fn explain_first(checks: &[Check], texts: &[Text]) -> Option<Diagnosis> {
    checks.iter().find(|c| c.status == Status::Fail).map(|c| explain(c, texts))
}

impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "expected: {}", self.expected)?;
        for (n, line) in self.seen.iter().enumerate() {
            writeln!(f, "{} {line}", if n == 0 { "seen:    " } else { "         " })?;
        }
        for cause in &self.causes {
            writeln!(f, "because:  {}", cause.meaning)?;
            writeln!(f, "          {}:{}: {}", cause.text, cause.line, cause.excerpt)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(evidence: &str) -> Check {
        Check {
            name: "S3.3 server active on its host".into(),
            status: Status::Fail,
            seconds: 1.0,
            evidence: evidence.into(),
        }
    }

    #[test]
    fn a_failure_is_explained_by_the_line_that_says_why() {
        let texts = [Text::new(
            "openstack1/nova-scheduler.log",
            "INFO started\nINFO Got no allocation candidates from the Placement API.\n",
        )];
        let checks = [
            Check { status: Status::Pass, ..failed("") },
            failed("the server went to ERROR\n  No valid host was found."),
        ];
        let diagnosis = explain_first(&checks, &texts).unwrap();
        let text = diagnosis.to_string();
        assert!(text.starts_with("expected: S3.3 server active on its host\nseen:     the server"));
        assert!(text.contains("openstack1/nova-scheduler.log:2: INFO Got no allocation"), "{text}");
        assert!(diagnosis.causes[0].meaning.contains("inventory"), "{text}");
    }

    #[test]
    fn nothing_is_made_up_where_nothing_is_known() {
        let diagnosis = explain(&failed("a reason of its own kind"), &[]);
        assert!(diagnosis.causes.is_empty());
        assert!(explain_first(&[Check { status: Status::Skip, ..failed("") }], &[]).is_none());
    }
}
