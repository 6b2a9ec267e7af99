use super::Job;
use crate::error::Result;
use serde::Deserialize;
use std::path::Path;

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {}

pub(super) async fn build(_: &Recipe, _: &[String], _: &Path, _: &Job<'_>, _: &Path) -> Result<()> {
    todo!()
}
