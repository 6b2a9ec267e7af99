//! One error type for the whole house: what went wrong, where, and what to do next.
//!
//! Rooms build an [`Error`] with a [`Kind`]; the kind alone decides the exit code, so that the
//! documented codes cannot drift from the code that fails.

use serde::{Deserialize, Serialize};
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

/// What happened beneath a failure, where code decides by it. A message may be reworded at any time;
/// this is the only part of an error, beside its [`Kind`] and its typed sources, that code matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureCause {
    /// A deadline passed. Something was slow or silent; nothing is known to be wrong.
    TimedOut,
    /// An SSH connection was lost or could not be made: worth a second try.
    ConnectionLost,
    /// The SSH server received the key and refused it.
    KeyRefused,
    /// Files of the thing that was read are missing, cut off or changed: its own bytes are bad.
    FilesDamaged,
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
    cause: Option<FailureCause>,
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
            cause: None,
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
    /// Marks what happened beneath, for code that decides by it: see [`Error::cause`].
    pub fn caused_by(mut self, cause: FailureCause) -> Self {
        self.0.cause = Some(cause);
        self
    }
    /// It says nothing against what was used when it happened: a file that another version wrote.
    /// A deadline that a busy machine missed says so without this.
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
        self.0.blameless || self.cause() == Some(FailureCause::TimedOut)
    }
    /// What happened beneath: of this error, or of the nearest one of ours among its sources.
    pub fn cause(&self) -> Option<FailureCause> {
        self.0.cause.or_else(|| self.find::<Error>()?.cause())
    }
    /// The nearest source of the type `T`.
    pub fn find<T: std::error::Error + 'static>(&self) -> Option<&T> {
        let mut next = std::error::Error::source(self);
        while let Some(source) = next {
            if let Some(found) = source.downcast_ref::<T>() {
                return Some(found);
            }
            next = source.source();
        }
        None
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

/// [`Error`]'s own text ends with its source already: a printer of chains stops at the first.
impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

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

/// The last `count` lines of a text that are not blank, for an error's evidence.
pub fn last_lines(text: &str, count: usize) -> Vec<String> {
    let lines: Vec<&str> = text.lines().map(str::trim_end).filter(|l| !l.is_empty()).collect();
    lines[lines.len().saturating_sub(count)..].iter().map(|l| (*l).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_not_blank() {
        assert_eq!(last_lines("a\n\nb  \n \nc\n\n", 2), ["b", "c"]);
        assert_eq!(last_lines("a", 2), ["a"]);
        assert!(last_lines(" \n", 2).is_empty());
    }

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

    #[test]
    fn cause_survives_rewording_and_wrapping() {
        let lost = || Error::lab("cut").caused_by(FailureCause::ConnectionLost);
        let wrapped = Error::provision("step x").because(lost());
        let twice = Error::lab("node a").because(std::io::Error::other(wrapped));
        let reworded = lost().while_doing("a").of_kind(Kind::Proof).hint("look").evidence(["x"]);
        for e in [lost(), reworded, twice] {
            assert_eq!(e.cause(), Some(FailureCause::ConnectionLost), "{e}");
        }
        let nearer = Error::lab("late").caused_by(FailureCause::TimedOut).because(lost());
        assert_eq!(nearer.cause(), Some(FailureCause::TimedOut));
        // The same words without the type.
        let words = Error::lab("the connection is lost").because("the connection is lost");
        assert_eq!(words.cause(), None);
    }

    #[test]
    fn find_returns_a_wrapped_std_error() {
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let e = Error::lab("no session").because(Error::lab("no stream").because(refused));
        let found = e.find::<std::io::Error>().map(std::io::Error::kind);
        assert_eq!(found, Some(std::io::ErrorKind::ConnectionRefused));
        assert!(e.find::<fmt::Error>().is_none());
    }

    #[test]
    fn only_a_deadline_or_a_mark_is_blameless() {
        assert!(Error::lab("x").caused_by(FailureCause::TimedOut).is_blameless());
        assert!(Error::lab("x").blameless().is_blameless());
        assert!(!Error::input("x").caused_by(FailureCause::FilesDamaged).is_blameless());
        assert!(!Error::lab("waited 5 s, in vain").is_blameless());
    }
}
