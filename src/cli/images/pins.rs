//! `stackproof images check` and `update`: pins beside what their publishers offer now.

use super::{Outcomes, all_of};
use crate::cli::root::Root;
use crate::cli::session::Work;
use crate::cluster::images::fetch_options;
use crate::error::{Context, Error, Kind, Result};
use crate::fsutil::NamedOutput;
use crate::images::fetch::Publisher;
use crate::images::manifest::{Manifest, Manifests};
use crate::images::publication::{self, PinState, Renewal};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

fn publisher(work: &Work) -> Result<Publisher> {
    Ok(Publisher { options: fetch_options(work)?, events: work.events.clone() })
}

pub async fn check(work: &Work, manifests: &Manifests, names: &[String]) -> Result<String> {
    let wanted = all_of(manifests, names)?;
    let publisher = publisher(work)?;
    let mut outcomes = Outcomes::new(work, wanted.len());
    let mut old = 0;
    for manifest in &wanted {
        let state = publication::check(manifest, &publisher).await;
        old += usize::from(state.as_ref().is_ok_and(|state| *state != PinState::Current));
        let line = state.map(|state| format!("{}: {}\n", manifest.name, shown(manifest, &state)));
        outcomes.note(&manifest.name, line)?;
    }
    outcomes.end()?;
    match old {
        0 => Ok(String::new()),
        old => Err(Error::image(format!("{old} of {} pins are not current", wanted.len()))
            .hint("`stackproof images update NAME` writes the newest build into the manifest")),
    }
}

fn shown(manifest: &Manifest, state: &PinState) -> String {
    match (state, manifest.pin()) {
        (PinState::Changed { published }, Some(pin)) => {
            format!("changed  {} is published, the manifest has {}", published, pin.digest)
        }
        (PinState::Gone, Some(pin)) => format!("gone  {}", pin.url),
        _ => "current".into(),
    }
}

pub async fn update(work: &Work, root: &Root, manifest: &Manifest) -> Result<String> {
    if root.is_embedded() {
        return Err(Error::input("the manifests inside this program cannot be updated")
            .hint("run it in a stackproof source tree, or name one with --root DIR"));
    }
    let name = &manifest.name;
    match publication::renew(manifest, &publisher(work)?).await? {
        Renewal::Newest(build) => Ok(format!("{name}: {build} is the newest build\n")),
        Renewal::Newer { build, text } => {
            replace(&manifest.path, &text)?;
            Ok(format!("{name}: {build} is in {}\n", manifest.path.display()))
        }
    }
}

/// Replaces a manifest whole or not at all; its mode stays.
fn replace(path: &Path, text: &str) -> Result<()> {
    let replace = || -> std::io::Result<()> {
        let mode = path.metadata()?.permissions().mode() & 0o777;
        let mut file = NamedOutput::check(path)?.open(mode)?;
        file.write_all(text.as_bytes())?;
        file.finish()
    };
    replace()
        .doing(Kind::Host, || "the manifest could not be written".into())
        .map_err(|e| e.at(path, None))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_is_replaced_and_keeps_its_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tiny.toml");
        std::fs::write(&path, "old").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        replace(&path, "new").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o644);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(replace(&dir.path().join("none.toml"), "new").is_err());
    }
}
