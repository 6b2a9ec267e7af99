//! The checks, by what they look at.

pub mod cloud;
pub mod end;
pub mod instance;
pub mod namespace;
pub mod network;
pub mod people;
pub mod reach;

use super::story::Finding;
use crate::error::{Error, Kind, Result};

fn pass(seen: impl Into<String>) -> Result<Finding> {
    Ok(Finding::Pass(seen.into()))
}

/// A check that saw something else than it expected.
fn wrong(what: impl Into<String>) -> Error {
    Error::new(Kind::Proof, what)
}
