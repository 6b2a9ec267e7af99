//! Images: what they are ([`manifest`]), where they are kept ([`store`]), how they come in
//! ([`fetch`]) and what they are made of ([`inspect`], [`qcow2`]).
//!
//! Nothing enters without its digest, and nothing that entered is opened by QEMU before its header
//! has been read here and found harmless.

pub mod build;
pub mod digest;
pub mod fetch;
pub mod inspect;
pub mod manifest;
pub mod publication;
pub mod qcow2;
pub mod store;
pub mod sums;
pub mod transfer;
mod tree;

use crate::error::{Error, Result};
use crate::event::Events;
use manifest::{Kind, Manifest, Manifests};
use std::path::{Path, PathBuf};
use store::Store;

/// The disk inside the folder of a built image.
pub const BUILT_DISK: &str = "disk.qcow2";

/// Whether an image is in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Presence {
    Missing,
    /// The file of a pin.
    Fetched(PathBuf),
    /// The folder of a recipe's last used build. Whether it is the build of the recipe as it
    /// stands now is known to the builder alone, who knows all inputs.
    Built(PathBuf),
}

impl Presence {
    /// The disk image itself.
    pub fn disk(&self) -> Option<PathBuf> {
        match self {
            Presence::Missing => None,
            Presence::Fetched(file) => Some(file.clone()),
            Presence::Built(folder) => Some(folder.join(BUILT_DISK)),
        }
    }
}

/// Whether `manifest`'s image is in the store. Only looks: nothing counts as used by it.
pub fn presence(manifest: &Manifest, store: &Store) -> Presence {
    match &manifest.kind {
        Kind::Pin(pin) => store.peek(&pin.digest).map_or(Presence::Missing, Presence::Fetched),
        Kind::Recipe(_) => store
            .derived_of(&manifest.name)
            .into_iter()
            .next()
            .map_or(Presence::Missing, Presence::Built),
    }
}

/// The manifest called `name`, and whether its image is in the store.
pub fn resolve<'a>(
    manifests: &'a Manifests,
    store: &Store,
    name: &str,
) -> Result<(&'a Manifest, Presence)> {
    let manifest = manifests.get(name)?;
    Ok((manifest, presence(manifest, store)))
}

/// Rehashes the image called `name` and reads its header again. Returns the disk image.
///
/// A fetched file that has changed is removed from the store; a built one is left for a look.
pub async fn verify(
    manifests: &Manifests,
    store: &Store,
    name: &str,
    events: &Events,
) -> Result<PathBuf> {
    let (manifest, presence) = resolve(manifests, store, name)?;
    let disk = match (&manifest.kind, presence) {
        (Kind::Pin(pin), Presence::Fetched(_)) => store.verify_blob(&pin.digest, events).await?,
        (_, Presence::Built(folder)) => {
            store.verify_derived(key_of(&folder), events).await?.join(BUILT_DISK)
        }
        (kind, _) => {
            let verb = if matches!(kind, Kind::Pin(_)) { "fetch" } else { "build" };
            return Err(Error::image(format!("{name} is not in the store"))
                .at(store.root(), None)
                .hint(format!("stackproof images {verb} {name}")));
        }
    };
    inspect::inspect(&disk)?.require(Some(manifest.format))?;
    Ok(disk)
}

fn key_of(folder: &Path) -> &str {
    folder.file_name().and_then(|n| n.to_str()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::digest::{Algorithm, Digest};
    use super::store::Begin;
    use super::*;
    use crate::wait::{Patience, Speed};

    fn fixture(name: &str) -> Vec<u8> {
        let path = format!("{}/fixtures/images/qcow2/{name}.qcow2", env!("CARGO_MANIFEST_DIR"));
        std::fs::read(&path).unwrap_or_else(|e| panic!("{path}: {e}"))
    }

    fn patience() -> Patience {
        Patience::new(Speed::new(1.0), Events::silent())
    }

    fn manifests() -> Manifests {
        let common = "description = \"\"\nuser = \"u\"\nformat = \"qcow2\"\n";
        let digest = Digest::of(Algorithm::Sha256, &fixture("plain")).hex();
        let pin = format!(
            "name = \"a-pin\"\n{common}[pin]\nurl = \"http://h/x\"\nsha256 = \"{digest}\"\n"
        );
        let recipe = format!("name = \"a-recipe\"\n{common}[recipe]\nsuite = \"trixie\"\n");
        Manifests::new(vec![
            Manifest::parse(Path::new("images/a-pin.toml"), pin).unwrap(),
            Manifest::parse(Path::new("images/a-recipe.toml"), recipe).unwrap(),
        ])
    }

    #[tokio::test]
    async fn a_pin_is_missing_then_fetched_then_verified_then_found_rotten() {
        let dir = tempfile::tempdir().unwrap();
        let (store, all) = (Store::open(dir.path()).unwrap(), manifests());
        let events = Events::silent();
        assert_eq!(resolve(&all, &store, "a-pin").unwrap().1, Presence::Missing);
        let e = verify(&all, &store, "a-pin", &events).await.unwrap_err();
        assert_eq!(e.hint_text(), Some("stackproof images fetch a-pin"));

        let digest = all.get("a-pin").unwrap().pin().unwrap().digest;
        let Begin::Write(mut w) = store.begin_blob(&digest, &patience()).await.unwrap() else {
            panic!("it is not there yet");
        };
        w.write(&fixture("plain")).unwrap();
        let path = w.finish().unwrap();
        let (_, presence) = resolve(&all, &store, "a-pin").unwrap();
        assert_eq!(presence.disk(), Some(path.clone()));
        assert_eq!(verify(&all, &store, "a-pin", &events).await.unwrap(), path);

        std::fs::write(&path, fixture("v2")).unwrap();
        let e = verify(&all, &store, "a-pin", &events).await.unwrap_err();
        assert!(e.message().contains("has changed"), "{e}");
        assert_eq!(resolve(&all, &store, "a-pin").unwrap().1, Presence::Missing);
    }

    #[tokio::test]
    async fn a_recipe_is_missing_then_built_and_its_header_is_judged_too() {
        let dir = tempfile::tempdir().unwrap();
        let (store, all) = (Store::open(dir.path()).unwrap(), manifests());
        let events = Events::silent();
        let e = verify(&all, &store, "a-recipe", &events).await.unwrap_err();
        assert_eq!(e.hint_text(), Some("stackproof images build a-recipe"));
        for (inputs, image, fine) in [("one", "plain", true), ("two", "backing-file", false)] {
            let key =
                store::derived_key("a-recipe", &Digest::of(Algorithm::Sha256, inputs.as_bytes()));
            let folder = store
                .make_derived(&key, &patience(), async |dir: PathBuf| {
                    std::fs::write(dir.join(BUILT_DISK), fixture(image)).unwrap();
                    Ok(())
                })
                .await
                .unwrap();
            let (_, presence) = resolve(&all, &store, "a-recipe").unwrap();
            assert_eq!(presence, Presence::Built(folder));
            assert_eq!(verify(&all, &store, "a-recipe", &events).await.is_ok(), fine, "{image}");
        }
    }

    #[test]
    fn an_unknown_name_is_an_input_error() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let e = resolve(&manifests(), &store, "a-pim").unwrap_err();
        assert_eq!(e.hint_text(), Some("did you mean `a-pin`?"));
    }
}
