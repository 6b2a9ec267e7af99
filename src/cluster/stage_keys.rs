//! The keys of the stages of a cloud on a lab, and the plan that they are made from.

use super::images::of_disk;
use super::topology::{self, Networks};
use crate::engine::plan::Plan;
use crate::error::{Context, Kind, Result};
use crate::lab::accel::{self, Accel};
use crate::lab::checkpoint::Platform;
use crate::lab::hypervisor::Hypervisor;
use crate::lab::spec::LabSpec;
use crate::lab::{BOOTS, BootImage, LabOptions};
use crate::layers::lab::Image;
use crate::layers::{Rung, lab, rungs};
use crate::roles;
use crate::roles::topology::{Login, NodeKey};
use crate::secret::Secret;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

/// The list of what was built, beside a built disk.
const SUMS: &str = "SHA256SUMS";

/// The keys of every stage of a cloud on the lab `spec`. An image that is not among `images` is not
/// in the store, and no layer has a key that is made from that.
pub fn rungs_of(
    spec: &LabSpec,
    hypervisor: &Hypervisor,
    accel: Accel,
    nested: Option<bool>,
    images: &BTreeMap<String, BootImage>,
) -> Result<Vec<Rung>> {
    let plan = symbolic_plan(spec, accel, nested)?;
    let images: BTreeMap<&str, Image> = images
        .iter()
        .map(|(name, boot)| Ok((name.as_str(), image(boot)?)))
        .collect::<Result<_>>()?;
    let absent = || Image { content: "not in the store".into(), boot: of_disk(PathBuf::new()) };
    let of = |name: &str| Some(images.get(name).cloned().unwrap_or_else(absent));
    let platform = Platform::here(hypervisor, accel)?;
    let (run_root, slots, hypervisor) = (PathBuf::new(), PathBuf::new(), hypervisor.clone());
    let options =
        LabOptions { run_root, slots, hypervisor, accel, boots: BOOTS, keep: false, logs: None };
    let made = lab::inputs(spec, &platform, &options, of)?;
    Ok(rungs(made, &roles::Stage::ORDER.map(Into::into), &plan))
}

/// The plan of a cloud on the lab `spec`, which refuses a lab that can carry none. `nested` is the
/// user's choice, if any.
pub fn symbolic_plan(spec: &LabSpec, accel: Accel, nested: Option<bool>) -> Result<Plan> {
    // Keys are no part of a plan that is symbolic.
    let none = NodeKey { private: Secret::new(""), public: String::new() };
    let user = crate::lab::seed::LOGIN.into();
    let login = Login { user, authorized_keys: Vec::new(), node_key: none };
    let nested = accel::nested(accel, nested)?;
    let networks = Networks::of(spec)?;
    topology::subnets(spec, &networks)?;
    let topology = topology::of(spec, &networks, login, nested, |_| String::new())?;
    roles::symbolic_plan(&topology)
}

/// An image by its content: a fetched file is called by its digest, what was built by the digest of
/// its inputs, which says nothing of the packages that were new on that day.
fn image(boot: &BootImage) -> Result<Image> {
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let folder = boot.disk.parent().unwrap_or(Path::new(""));
    let sums = folder.join(SUMS);
    let content = match std::fs::read(&sums) {
        Ok(list) => {
            let digest = crate::engine::canonical::digest(list);
            format!("{} with {}", name(folder), &digest[..12])
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => name(&boot.disk),
        Err(e) => return Err(e).doing(Kind::Host, || format!("cannot read {}", sums.display())),
    };
    Ok(Image { content, boot: boot.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rungs(images: &BTreeMap<String, BootImage>) -> Vec<Rung> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let spec = LabSpec::load(&root.join("vmtests/labs/two-node.toml")).unwrap();
        let (qemu, img) = ("qemu".into(), "qemu-img".into());
        let (version, release) = ((10, 0, 2), "10.0.2".into());
        let hypervisor = Hypervisor { qemu, img, version, release, sandbox: true };
        rungs_of(&spec, &hypervisor, Accel::Tcg, None, images).unwrap()
    }

    fn built(folder: &Path, sums: &str) -> BTreeMap<String, BootImage> {
        std::fs::write(folder.join(SUMS), sums).unwrap();
        let kernel = Some(folder.join("kernel"));
        let boot = BootImage { kernel, ..of_disk(folder.join("disk.qcow2")) };
        [("debian-13-node".to_owned(), boot)].into()
    }

    #[test]
    fn an_image_built_anew_from_the_same_recipe_is_another_image() {
        let dir = tempfile::tempdir().unwrap();
        let before = rungs(&built(dir.path(), "one"));
        assert_eq!(before, rungs(&built(dir.path(), "one")));
        let after = rungs(&built(dir.path(), "two"));
        assert!(before.iter().zip(&after).all(|(a, b)| a.key != b.key));
        let changes = after[0].inputs.changes_since(&before[0].inputs);
        assert!(changes[0].starts_with("image debian-13-node: "), "{changes:?}");
        assert_eq!(changes.len(), 1);
    }

    #[test]
    fn without_the_image_there_are_keys_that_no_layer_has() {
        let dir = tempfile::tempdir().unwrap();
        let (there, absent) = (rungs(&built(dir.path(), "one")), rungs(&BTreeMap::new()));
        assert!(there.iter().zip(&absent).all(|(a, b)| a.key != b.key));
    }

    #[test]
    fn a_fetched_image_is_called_by_its_digest() {
        let image = image(&of_disk("/store/sha256/ab/abcd".into())).unwrap();
        assert_eq!(image.content, "abcd");
    }
}
