//! One error type for the whole house: what went wrong, where, and what to do next.
//!
//! Rooms build an [`Error`] with a [`Kind`]; the kind alone decides the exit code, so that the
//! documented codes cannot drift from the code that fails.

use std::fmt;
use std::path::{Path, PathBuf};

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What sort of thing went wrong. Each kind is one documented exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The cloud came up and a check of the proof failed.
    Proof,
    /// The command line, a lab file or a manifest is wrong.
    Input,
    /// The host lacks a tool, memory, disk or permission.
    Host,
    /// An image is missing, was refused, or could not be fetched or built.
    Image,
    /// A virtual machine died, never booted, or the lab's network failed.
    Lab,
    /// A resource could not be brought to its declared state.
    Provision,
    /// A defect of stackproof itself.
    Internal,
    /// Stopped by the user (Ctrl-C or SIGTERM).
    Interrupted,
}

impl Kind {
    pub const ALL: [Kind; 8] = [
        Kind::Proof,
        Kind::Input,
        Kind::Host,
        Kind::Image,
        Kind::Lab,
        Kind::Provision,
        Kind::Internal,
        Kind::Interrupted,
    ];

    /// The process exit code. 0 is success.
    pub fn exit_code(self) -> u8 {
        match self {
            Kind::Proof => 1,
            Kind::Input => 2,
            Kind::Host => 3,
            Kind::Image => 4,
            Kind::Lab => 5,
            Kind::Provision => 6,
            Kind::Internal => 70,
            Kind::Interrupted => 130,
        }
    }

    /// One line for the help text.
    pub fn meaning(self) -> &'static str {
        match self {
            Kind::Proof => "a check of the proof failed",
            Kind::Input => "wrong command line, lab file or manifest",
            Kind::Host => "the host lacks a tool, memory, disk or permission",
            Kind::Image => "an image is missing, refused, or could not be fetched or built",
            Kind::Lab => "a virtual machine died or never booted",
            Kind::Provision => "a resource could not be brought to its declared state",
            Kind::Internal => "a defect of stackproof itself",
            Kind::Interrupted => "interrupted by the user",
        }
    }
}

/// An error with everything its reader needs. Built with [`Error::new`] and the `with_*` methods.
#[derive(Debug)]
pub struct Error(Box<Inner>);

#[derive(Debug)]
struct Inner {
    kind: Kind,
    message: String,
    file: Option<(PathBuf, Option<usize>)>,
    hint: Option<String>,
    /// The last lines that explain it (a console, a journal, a tool's stderr).
    evidence: Vec<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
    blameless: bool,
}

impl Error {
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Error(Box::new(Inner {
            kind,
            message: message.into(),
            file: None,
            hint: None,
            evidence: Vec::new(),
            source: None,
            blameless: false,
        }))
    }

    pub fn input(message: impl Into<String>) -> Self {
        Self::new(Kind::Input, message)
    }
    pub fn host(message: impl Into<String>) -> Self {
        Self::new(Kind::Host, message)
    }
    pub fn image(message: impl Into<String>) -> Self {
        Self::new(Kind::Image, message)
    }
    pub fn lab(message: impl Into<String>) -> Self {
        Self::new(Kind::Lab, message)
    }
    pub fn provision(message: impl Into<String>) -> Self {
        Self::new(Kind::Provision, message)
    }
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Kind::Internal, message)
    }
    pub fn interrupted() -> Self {
        Self::new(Kind::Interrupted, "interrupted")
    }

    /// The file at fault, and its line (from 1) where one is known.
    pub fn at(mut self, file: impl AsRef<Path>, line: Option<usize>) -> Self {
        self.0.file = Some((file.as_ref().to_owned(), line));
        self
    }
    /// What to do next, as a full sentence or a command.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }
    pub fn evidence(mut self, lines: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.0.evidence.extend(lines.into_iter().map(Into::into));
        self
    }
    pub fn because(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }
    /// It says nothing against what was used when it happened: a deadline that a busy machine
    /// missed, a file that another version wrote.
    pub fn blameless(mut self) -> Self {
        self.0.blameless = true;
        self
    }
    /// Says what was being done when `self` happened, keeping kind, place, hint and evidence.
    pub fn while_doing(mut self, what: impl fmt::Display) -> Self {
        self.0.message = format!("{what}: {}", self.0.message);
        self
    }

    /// The same failure, told as another's.
    pub fn of_kind(mut self, kind: Kind) -> Self {
        self.0.kind = kind;
        self
    }
    pub fn kind(&self) -> Kind {
        self.0.kind
    }
    pub fn is_blameless(&self) -> bool {
        self.0.blameless
    }
    pub fn message(&self) -> &str {
        &self.0.message
    }
    pub fn file(&self) -> Option<(&Path, Option<usize>)> {
        self.0.file.as_ref().map(|(f, l)| (f.as_path(), *l))
    }
    pub fn hint_text(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }
    pub fn evidence_lines(&self) -> &[String] {
        &self.0.evidence
    }
}

/// `file:line: message: cause`, without hint and evidence: those are the printer's to lay out.
impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((file, line)) = &self.0.file {
            match line {
                Some(line) => write!(f, "{}:{line}: ", file.display())?,
                None => write!(f, "{}: ", file.display())?,
            }
        }
        f.write_str(&self.0.message)?;
        if let Some(source) = &self.0.source {
            write!(f, ": {source}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

/// Turns any error into ours, saying what was being done.
pub trait Context<T> {
    fn doing(self, kind: Kind, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E> Context<T> for std::result::Result<T, E>
where
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    fn doing(self, kind: Kind, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|e| Error::new(kind, what()).because(e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_distinct_and_never_zero() {
        let mut codes: Vec<_> = Kind::ALL.iter().map(|k| k.exit_code()).collect();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), Kind::ALL.len());
        assert!(!codes.contains(&0));
    }

    #[test]
    fn display_names_file_line_message_and_cause() {
        let e = Error::input("unknown key `memroy`")
            .at("labs/x.toml", Some(7))
            .because("did you mean `memory`?");
        assert_eq!(e.to_string(), "labs/x.toml:7: unknown key `memroy`: did you mean `memory`?");
    }
}
