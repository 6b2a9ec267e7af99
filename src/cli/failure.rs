//! How an error is told: on the terminal and as JSON. Everything passes through the redactor.

use crate::error::{Error, Kind};
use crate::secret::Redactor;
use serde::{Serialize, Serializer};
use std::fmt::Write as _;
use std::path::PathBuf;

/// An error made ready to be shown.
#[derive(Clone, Debug, Serialize)]
pub struct Failure {
    #[serde(serialize_with = "kind_name")]
    pub kind: Kind,
    pub exit_code: u8,
    /// With file, line and cause.
    pub message: String,
    pub hint: Option<String>,
    /// The last lines that explain it.
    pub evidence: Vec<String>,
    /// Where consoles, journals and service logs were saved.
    pub logs: Option<PathBuf>,
}

impl Failure {
    pub fn of(error: &Error, redactor: &Redactor) -> Failure {
        Failure {
            kind: error.kind(),
            exit_code: error.kind().exit_code(),
            message: redactor.clean(&error.to_string()),
            hint: error.hint_text().map(|hint| redactor.clean(hint)),
            evidence: error.evidence_lines().iter().map(|l| redactor.clean(l)).collect(),
            logs: None,
        }
    }

    /// The block that ends a failed run.
    pub fn text(&self) -> String {
        let mut out = format!("error: {}\n", self.message.trim_end());
        for line in self.evidence.iter().flat_map(|e| e.lines()) {
            let _ = writeln!(out, "  | {line}");
        }
        if let Some(hint) = &self.hint {
            let _ = writeln!(out, "next: {}", hint.replace('\n', "\n      "));
        }
        if let Some(logs) = &self.logs {
            let _ = writeln!(out, "logs: {}", logs.display());
        }
        let _ = writeln!(out, "exit code {}: {}", self.exit_code, self.kind.meaning());
        out
    }
}

fn kind_name<S: Serializer>(kind: &Kind, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&format!("{kind:?}").to_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;

    #[test]
    fn the_block_tells_place_evidence_next_step_logs_and_exit_code() {
        let e = Error::input("unknown key `memroy`").at("labs/x.toml", Some(7));
        let e = e.evidence(["expected: memory", "seen: memroy"]).hint("Write `memory`.");
        let mut failure = Failure::of(&e, &Redactor::default());
        failure.logs = Some("/tmp/logs".into());
        assert_eq!(
            failure.text(),
            "error: labs/x.toml:7: unknown key `memroy`\n  | expected: memory\n  | seen: memroy\n\
             next: Write `memory`.\nlogs: /tmp/logs\n\
             exit code 2: wrong command line, lab file or manifest\n"
        );
    }

    #[test]
    fn no_part_of_it_shows_a_secret() {
        let redactor = Redactor::default();
        redactor.add(&Secret::new("s3cr3t-s3cr3t"));
        let e = Error::provision("m s3cr3t-s3cr3t").at("f-s3cr3t-s3cr3t", None);
        let e = e.hint("h s3cr3t-s3cr3t").evidence(["e s3cr3t-s3cr3t"]).because("b s3cr3t-s3cr3t");
        let failure = Failure::of(&e, &redactor);
        let all = format!("{}{}", failure.text(), serde_json::to_string(&failure).unwrap());
        assert!(!all.contains("s3cr3t"), "{all}");
        assert_eq!(all.matches("[secret]").count(), 10, "{all}");
    }
}
