//! What a lab can be continued from: a checkpoint that a person made, or a layer that e2e made.

use crate::cli::session::Work;
use crate::error::{Error, Result};
use crate::layers::{Held, Layer, Layers};
use std::path::PathBuf;

/// A checkpoint that was found, and stays while this lives.
pub struct Kept {
    pub dir: PathBuf,
    /// The name of a lab made from it, where none is given.
    pub lab: String,
    /// Of a layer, which the cache would remove otherwise.
    _held: Option<Held>,
}

/// The folder that a checkpoint's name stands for.
pub fn dir(work: &Work, name: &str) -> PathBuf {
    if name.contains('/') || name == "." || name == ".." {
        return work.env.cwd.join(name);
    }
    checkpoints(work).join(name)
}

fn checkpoints(work: &Work) -> PathBuf {
    work.env.store.join("checkpoints")
}

/// The checkpoint of that name or folder; else the last used layer of the stage of that name.
pub fn find(work: &Work, name: &str) -> Result<Kept> {
    let dir = dir(work, name);
    if dir.is_dir() {
        let lab = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        return Ok(Kept { dir, lab, _held: None });
    }
    let layers = Layers::open(&work.env.store)?;
    let all = layers.all()?;
    for layer in all.iter().filter(|layer| layer.about.stage == name) {
        if let Some(held) = layers.find(&layer.key)? {
            let (dir, lab) = (held.checkpoint(), layer.about.lab.clone());
            return Ok(Kept { dir, lab, _held: Some(held) });
        }
    }
    Err(Error::input(format!("there is no checkpoint {name}")).at(dir, None).hint(hint(work, &all)))
}

fn hint(work: &Work, layers: &[Layer]) -> String {
    let all = std::fs::read_dir(checkpoints(work)).into_iter().flatten().flatten();
    let mut known: Vec<String> =
        all.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    known.extend(layers.iter().map(|layer| layer.about.stage.clone()));
    known.sort();
    known.dedup();
    match known.as_slice() {
        [] => {
            "make one with `stackproof lab checkpoint NAME`, or layers with `stackproof e2e`".into()
        }
        known => format!("there is: {}", known.join(", ")),
    }
}
