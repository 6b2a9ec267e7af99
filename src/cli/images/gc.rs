//! `stackproof images gc`: removes images that nothing names any more.
//!
//! What names an image: a manifest (the file of a pin; of a recipe the build as the recipe stands),
//! and the disks of runs, of checkpoints in the store and of cached stages. A running lab holds a
//! lease on its images too.

use crate::cli::lab::checkpoints;
use crate::cli::session::Work;
use crate::cli::view::human_bytes;
use crate::cluster::images::built;
use crate::cluster::runs;
use crate::error::Result;
use crate::event::Events;
use crate::images::manifest::Manifests;
use crate::images::store::{GcOutcome, GcPolicy, Store};
use crate::images::{Presence, presence};
use crate::lab::disk::images_below;
use crate::layers::Layers;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

pub fn collect(
    work: &Work,
    manifests: &Manifests,
    store: &Store,
    max: Option<u64>,
    dry_run: bool,
) -> Result<String> {
    let mut named = named_by_manifests(work, manifests, store)?;
    named.extend(named_by_disks(&work.events, &disk_folders(&work.env.store)?));
    let policy = GcPolicy { named, max_bytes: max.unwrap_or(0), dry_run };
    Ok(report(&store.gc(&policy)?, store.root(), dry_run))
}

fn named_by_manifests(
    work: &Work,
    manifests: &Manifests,
    store: &Store,
) -> Result<BTreeSet<PathBuf>> {
    let mut named = BTreeSet::new();
    for manifest in manifests {
        if manifest.is_recipe() {
            named.extend(built(work, store, manifest)?.map(|built| built.dir));
        } else if let Presence::Fetched(file) = presence(manifest, store) {
            named.insert(file);
        }
    }
    Ok(named)
}

/// The folders of the store that hold disks of nodes.
fn disk_folders(store: &Path) -> Result<Vec<PathBuf>> {
    let mut folders = Vec::new();
    for parent in [runs(store), checkpoints(store)] {
        let entries = std::fs::read_dir(parent).into_iter().flatten().flatten();
        folders.extend(entries.map(|entry| entry.path()));
    }
    if Layers::are_in(store) {
        let stages = Layers::open(store)?.all()?;
        folders.extend(stages.into_iter().map(|stage| stage.folder.join("checkpoint")));
    }
    Ok(folders)
}

/// A disk whose header cannot be read cannot be opened by QEMU either: it keeps no image.
fn named_by_disks(events: &Events, folders: &[PathBuf]) -> BTreeSet<PathBuf> {
    let mut named = BTreeSet::new();
    for image in folders.iter().flat_map(|folder| images_below(folder)) {
        match image {
            Ok(image) => drop(named.insert(image)),
            Err(e) => events.warning(format!("{e}: this disk keeps no image")),
        }
    }
    named
}

fn report(outcome: &GcOutcome, root: &Path, dry_run: bool) -> String {
    let (removed, freed) =
        if dry_run { ("would remove", "would be freed") } else { ("removed", "freed") };
    let shown = |path: &Path| path.strip_prefix(root).unwrap_or(path).display().to_string();
    let mut text = String::new();
    for item in &outcome.removed {
        let _ = writeln!(text, "{removed} {} ({})", shown(&item.path), human_bytes(item.bytes));
    }
    for path in &outcome.in_use {
        let _ = writeln!(text, "in use: {}", shown(path));
    }
    let (bytes, kept) = (human_bytes(outcome.freed), human_bytes(outcome.kept));
    text + &format!("{bytes} {freed}, {kept} kept\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::store::GcItem;
    use crate::layers::Inputs;

    #[test]
    fn the_report_lists_items_and_totals() {
        let item = GcItem { path: "/s/derived/old-1".into(), bytes: 3 << 20 };
        let outcome = GcOutcome {
            kept: 5 << 20,
            freed: 3 << 20,
            removed: vec![item],
            in_use: vec!["/s/sha256/ab/abcd".into()],
        };
        assert_eq!(
            report(&outcome, Path::new("/s"), false),
            "removed derived/old-1 (3.0 MiB)\nin use: sha256/ab/abcd\n3.0 MiB freed, 5.0 MiB kept\n"
        );
        let dry = report(&outcome, Path::new("/s"), true);
        assert!(dry.starts_with("would remove derived/old-1"), "{dry}");
        assert!(dry.ends_with("3.0 MiB would be freed, 5.0 MiB kept\n"), "{dry}");
    }

    /// A disk layer on `image`, as far as its header goes.
    fn layer_on(image: &Path) -> Vec<u8> {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/images/qcow2");
        let mut bytes = std::fs::read(fixtures.join("plain.qcow2")).unwrap();
        let name = image.to_str().unwrap().as_bytes();
        let at = bytes.len() as u64;
        bytes[8..16].copy_from_slice(&at.to_be_bytes());
        bytes[16..20].copy_from_slice(&(name.len() as u32).to_be_bytes());
        bytes.extend_from_slice(name);
        bytes
    }

    #[test]
    fn runs_checkpoints_and_stages_name_images() {
        let dir = tempfile::tempdir().unwrap();
        let store = dir.path();
        let key = Inputs::default().key("booted", None);
        let stage = store.join("layers").join(key.as_str());
        let folders = [
            runs(store).join("run-lab-x"),
            checkpoints(store).join("mine"),
            stage.join("checkpoint"),
        ];
        let image = |at: usize| store.join(format!("derived/image-{at}/disk.qcow2"));
        for (at, folder) in folders.iter().enumerate() {
            std::fs::create_dir_all(folder.join("node1")).unwrap();
            std::fs::write(folder.join("node1/disk.0.qcow2"), layer_on(&image(at))).unwrap();
        }
        let (events, mut told) = Events::channel();
        let named = named_by_disks(&events, &disk_folders(store).unwrap());
        assert_eq!(named, BTreeSet::from([image(0), image(1), image(2)]));
        std::fs::write(folders[0].join("node1/disk.0.qcow2"), "torn").unwrap();
        let named = named_by_disks(&events, &disk_folders(store).unwrap());
        assert_eq!(named, BTreeSet::from([image(1), image(2)]));
        assert!(told.try_recv().is_ok(), "the torn disk is a warning");
    }

    #[test]
    fn a_look_makes_no_folder() {
        let dir = tempfile::tempdir().unwrap();
        assert!(disk_folders(dir.path()).unwrap().is_empty());
        assert!(!Layers::are_in(dir.path()));
    }
}
