//! `manifest.json`: what is in a checkpoint. Written last, so that a folder with one is whole.

use super::fingerprint::Fingerprint;
use super::platform::Platform;
use crate::error::{Error, FailureCause, Result};
use crate::lab::BootImage;
use crate::lab::disk::layer_name;
use crate::lab::spec::LabSpec;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fmt;
use std::path::{Path, PathBuf};

pub const FILE: &str = "manifest.json";

/// The first words of every manifest, whatever its version.
const FORMAT: &str = "stackproof checkpoint";

/// Raised when what an older stackproof wrote is not understood any more.
pub const VERSION: u64 = 1;

/// Files of a checkpoint: these in its folder, and in that of each node beside its layers.
pub const LOGIN_KEY: &str = "login.key";
pub const HOST_KEY: &str = "host.key";
pub const MEMORY: &str = "memory";

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    format: String,
    version: u64,
    /// Seconds since 1970.
    pub created: u64,
    pub platform: Platform,
    pub lab: LabText,
    pub nodes: Vec<NodeRecord>,
    pub notes: Notes,
}

/// The lab file as it was.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LabText {
    pub file: PathBuf,
    pub text: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeRecord {
    pub name: String,
    /// See [`super::platform::hardware`].
    pub hardware: String,
    pub image: ImageRecord,
    pub memory: Fingerprint,
    pub seed: Fingerprint,
    /// From the bottom, each one on the one before it.
    pub layers: Vec<Fingerprint>,
}

/// The files of the store that the node boots from; they are not in the checkpoint.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageRecord {
    pub disk: Original,
    pub kernel: Option<Original>,
    pub initrd: Option<Original>,
    pub append: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Original {
    pub path: PathBuf,
    pub print: Fingerprint,
}

/// What the caller wants back with the lab: passwords, say. Never shown.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Notes(pub Value);

impl fmt::Debug for Notes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[notes]")
    }
}

impl Manifest {
    pub(super) fn new(
        platform: Platform,
        spec: &LabSpec,
        nodes: Vec<NodeRecord>,
        notes: Notes,
        created: u64,
    ) -> Manifest {
        let lab = LabText { file: spec.file.clone(), text: spec.text.clone() };
        Manifest { format: FORMAT.into(), version: VERSION, created, platform, lab, nodes, notes }
    }

    /// Reads the manifest of the checkpoint in `folder`. Says what is wrong with one that is
    /// missing, foreign, of another version or damaged.
    pub fn read(folder: &Path) -> Result<Manifest> {
        let file = folder.join(FILE);
        let bad = |message: &str| Error::input(message).at(&file, None);
        let is_damaged = |error: Error| error.caused_by(FailureCause::FilesDamaged);
        let text = std::fs::read(&file).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound if folder.is_dir() => {
                is_damaged(bad("this folder is no checkpoint: it has no manifest"))
            }
            std::io::ErrorKind::NotFound => {
                is_damaged(Error::input("there is no such checkpoint").at(folder, None))
            }
            _ => bad("cannot read the checkpoint's manifest").because(e),
        })?;
        let damaged = |e: serde_json::Error| {
            let line = Some(e.line()).filter(|l| *l > 0);
            let error = Error::input("the checkpoint's manifest is damaged").at(&file, line);
            is_damaged(error.because(e).hint("make a new checkpoint"))
        };
        let value: Value = serde_json::from_slice(&text).map_err(damaged)?;
        if value.get("format").and_then(Value::as_str) != Some(FORMAT) {
            let foreign = bad("this is no manifest of a checkpoint: it is something else's");
            return Err(is_damaged(foreign));
        }
        match value.get("version").and_then(Value::as_u64) {
            Some(VERSION) => {}
            other => {
                let other = other.map_or("an unknown version".into(), |v| format!("version {v}"));
                let message =
                    format!("the checkpoint has {other}, and this stackproof reads {VERSION}");
                return Err(bad(&message).blameless().hint(
                    "make a new checkpoint, or restore it with the stackproof that made it",
                ));
            }
        }
        serde_json::from_slice(&text).map_err(damaged)
    }

    /// The bytes of it.
    pub(super) fn text(&self) -> Result<Vec<u8>> {
        let mut text = serde_json::to_vec_pretty(self)
            .map_err(|e| Error::internal("cannot write a manifest").because(e))?;
        text.push(b'\n');
        Ok(text)
    }

    /// The lab, read again.
    pub fn spec(&self) -> Result<LabSpec> {
        LabSpec::parse(&self.lab.file, &self.lab.text)
    }

    /// The bytes of all its files together, holes counted.
    pub fn bytes(&self) -> u64 {
        let of_node = |n: &NodeRecord| {
            n.memory.bytes + n.seed.bytes + n.layers.iter().map(|l| l.bytes).sum::<u64>()
        };
        self.nodes.iter().map(of_node).sum()
    }
}

impl NodeRecord {
    /// Its files in the node's folder, with what each is.
    pub(super) fn files(&self) -> impl Iterator<Item = (String, &'static str, &Fingerprint)> {
        let layers = self.layers.iter().enumerate();
        let layers = layers.map(|(i, print)| (layer_name(i), "a disk layer", print));
        let seed = (crate::lab::cluster::SEED.to_owned(), "the seed", &self.seed);
        [(MEMORY.to_owned(), "the memory", &self.memory), seed].into_iter().chain(layers)
    }
}

impl ImageRecord {
    pub(super) fn of(image: &BootImage) -> Result<ImageRecord> {
        let original = |path: &PathBuf| -> Result<Original> {
            let path = std::path::absolute(path).map_err(|e| {
                Error::host("cannot name a file of the image").at(path, None).because(e)
            })?;
            let print = Fingerprint::of(&path)?;
            Ok(Original { path, print })
        };
        Ok(ImageRecord {
            disk: original(&image.disk)?,
            kernel: image.kernel.as_ref().map(original).transpose()?,
            initrd: image.initrd.as_ref().map(original).transpose()?,
            append: image.append.clone(),
        })
    }

    pub(super) fn boot(&self) -> BootImage {
        BootImage {
            disk: self.disk.path.clone(),
            kernel: self.kernel.as_ref().map(|k| k.path.clone()),
            initrd: self.initrd.as_ref().map(|i| i.path.clone()),
            append: self.append.clone(),
        }
    }

    /// Refuses an image that is gone or was changed: the layers mean nothing on another one.
    pub(super) fn check(&self, node: &str) -> Result<()> {
        let files = [Some((&self.disk, "image")), self.kernel.as_ref().map(|k| (k, "kernel"))];
        let initrd = self.initrd.as_ref().map(|i| (i, "initrd"));
        for (original, what) in files.into_iter().flatten().chain(initrd) {
            let what = format!("the {what} that {node} was booted from");
            original.print.check(&what, &original.path).map_err(|e| {
                Error::image(e.message()).at(&original.path, None).hint(
                    "the checkpoint needs the very image that it was made with: \
                     make a new checkpoint from the one that is there now",
                )
            })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn refused(text: &str) -> Error {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), text).unwrap();
        Manifest::read(dir.path()).unwrap_err()
    }

    #[test]
    fn foreign_old_and_damaged_manifests_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let none = Manifest::read(&dir.path().join("nothing")).unwrap_err();
        assert!(none.message().contains("no such checkpoint"), "{none}");
        let empty = Manifest::read(dir.path()).unwrap_err();
        assert!(empty.message().contains("no manifest"), "{empty}");
        for foreign in ["{}", "[]", r#"{"format": "qemu"}"#, "3"] {
            let error = refused(foreign);
            assert!(error.message().contains("something else's"), "{foreign}");
            assert_eq!(error.cause(), Some(FailureCause::FilesDamaged));
        }
        let newer = refused(r#"{"format": "stackproof checkpoint", "version": 2, "x": 1}"#);
        assert!(newer.message().contains("version 2, and this stackproof reads 1"), "{newer}");
        assert!(newer.hint_text().is_some() && newer.is_blameless());
        assert_eq!(newer.cause(), None, "its bytes are as they were made");
        let whole = r#"{"format": "stackproof checkpoint", "version": 1, "created": 7}"#;
        let lacking = refused(whole);
        assert!(lacking.message().contains("damaged"), "{lacking}");
        let cut = refused(&whole[..40]);
        assert!(cut.message().contains("damaged") && cut.file().unwrap().1 == Some(1), "{cut}");
        for error in [none, empty, lacking, cut] {
            assert_eq!(error.cause(), Some(FailureCause::FilesDamaged), "{error}");
        }
    }

    #[test]
    fn notes_come_back_and_are_never_shown() {
        let notes = Notes(json!({ "password": "hunter2hunter2" }));
        assert_eq!(format!("{notes:?}"), "[notes]");
        let text = serde_json::to_string(&notes).unwrap();
        assert_eq!(serde_json::from_str::<Notes>(&text).unwrap(), notes);
    }
}
