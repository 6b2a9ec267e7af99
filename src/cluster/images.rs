//! The images that a cluster boots: found in the store, fetched or built.

use super::context::RunContext;
use super::host::install_tools;
use crate::error::{Error, Result};
use crate::host::HostScope;
use crate::images::build::{Builder, Built};
use crate::images::fetch::Options;
use crate::images::manifest::{Manifest, Manifests};
use crate::images::presence;
use crate::images::store::Store;
use crate::lab::BootImage;
use crate::lab::spec::LabSpec;
use crate::roles;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The image that nodes boot; roles are baked into no other.
pub const NODE_IMAGE: &str = "debian-13-node";

/// The packages that are baked into a recipe's image beside its own: those that roles declare.
pub fn node_packages(recipe: &str) -> Vec<String> {
    match recipe {
        NODE_IMAGE => roles::packages().into_iter().map(str::to_owned).collect(),
        _ => Vec::new(),
    }
}

pub async fn fetch(run: &RunContext, store: &Store, manifest: &Manifest) -> Result<PathBuf> {
    crate::images::fetch::fetch(store, manifest, &fetch_options(run)?, &run.patience()).await
}

/// The proxies and certificate authorities of the environment.
pub fn fetch_options(run: &RunContext) -> Result<Options> {
    let (proxies, roots) = (run.outbound.proxies()?, run.outbound.roots().clone());
    Ok(Options { proxies, roots, ..Default::default() })
}

/// Builds a recipe, if it is not in the store as it stands. The tools for it are installed where they
/// may be.
pub async fn build(run: &RunContext, store: &Store, manifest: &Manifest) -> Result<Built> {
    if built(run, store, manifest)?.is_none() {
        install_tools(run, HostScope::BuildImages).await?;
    }
    builder(run, store).build(manifest, &node_packages(&manifest.name)).await
}

/// The build of a recipe as it stands, if it is in the store.
pub fn built(run: &RunContext, store: &Store, manifest: &Manifest) -> Result<Option<Built>> {
    builder(run, store).built(manifest, &node_packages(&manifest.name))
}

pub fn builder(run: &RunContext, store: &Store) -> Builder {
    Builder {
        store: store.clone(),
        given_mirrors: run.mirrors.clone(),
        logs: run.logs_dir(),
        patience: run.patience(),
    }
}

/// The error for an image that should be in the store, with how to get it there.
pub fn missing(manifest: &Manifest, store: &Store) -> Error {
    let verb = if manifest.is_recipe() { "build" } else { "fetch" };
    Error::image(format!("{} is not in the store", manifest.name))
        .at(store.root(), None)
        .hint(format!("stackproof images {verb} {}", manifest.name))
}

/// The disk of a known image, fetched or built if it is not in the store.
pub async fn ensure_image(run: &RunContext, store: &Store, manifest: &Manifest) -> Result<PathBuf> {
    if manifest.is_recipe() {
        // The builder alone knows whether what is there is of the recipe as it stands.
        return Ok(build(run, store, manifest).await?.disk());
    }
    match presence(manifest, store).disk() {
        Some(disk) => Ok(disk),
        None => fetch(run, store, manifest).await.map_err(|e| match e.hint_text() {
            Some(_) => e,
            None => e.hint(missing(manifest, store).hint_text().unwrap_or_default()),
        }),
    }
}

/// What a node boots from a known image: the kernel directly where the image was built here.
pub async fn boot_image(run: &RunContext, store: &Store, manifest: &Manifest) -> Result<BootImage> {
    if !manifest.is_recipe() {
        let disk = ensure_image(run, store, manifest).await?;
        return Ok(of_disk(disk));
    }
    of_build(&build(run, store, manifest).await?)
}

/// What a node boots from an image that was built here: the kernel directly.
pub fn of_build(built: &Built) -> Result<BootImage> {
    let (kernel, initrd) = (Some(built.kernel()), Some(built.initrd()));
    Ok(BootImage { disk: built.disk(), kernel, initrd, append: built.cmdline()? })
}

/// What a node boots from any other.
pub fn of_disk(disk: PathBuf) -> BootImage {
    BootImage { disk, kernel: None, initrd: None, append: String::new() }
}

/// The manifests of the images that the nodes boot.
pub fn needed_images<'m>(spec: &LabSpec, manifests: &'m Manifests) -> Result<Vec<&'m Manifest>> {
    spec.nodes.iter().map(|node| manifests.get(&node.image)).collect()
}

/// What the nodes boot, by the name of the image.
pub async fn node_images(
    run: &RunContext,
    spec: &LabSpec,
    manifests: &Manifests,
    store: &Store,
) -> Result<BTreeMap<String, BootImage>> {
    let mut images = BTreeMap::new();
    for node in &spec.nodes {
        if !images.contains_key(&node.image) {
            let manifest = manifests.get(&node.image)?;
            images.insert(node.image.clone(), boot_image(run, store, manifest).await?);
        }
    }
    Ok(images)
}
