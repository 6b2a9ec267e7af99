//! What a lab can be continued from: a checkpoint that a person made, or a layer that e2e made.

use crate::cli::cache::ago;
use crate::cli::session::Work;
use crate::error::{Error, Result};
use crate::lab::spec::LabSpec;
use crate::layers::store::About;
use crate::layers::{Held, Layer, Layers};
use crate::supervisor::seam;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// A checkpoint that was found, and stays while this lives.
pub struct Kept {
    pub dir: PathBuf,
    /// What it is, for people: of a layer also its lab, age and key.
    pub text: String,
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
    checkpoints(&work.env.store).join(name)
}

/// Where checkpoints that only have a name are kept.
pub fn checkpoints(store: &Path) -> PathBuf {
    store.join("checkpoints")
}

/// The checkpoint of that name or folder; else the last used layer of the stage of that name. Where
/// a lab is given, it must be of that one.
pub fn find(work: &Work, name: &str, of: Option<&LabSpec>) -> Result<Kept> {
    let dir = dir(work, name);
    if dir.is_dir() {
        let text = format!("checkpoint {}", dir.display());
        if let Some(of) = of {
            let saved = seam::spec(&dir)?;
            if !saved.same_lab(of) {
                let message = format!("this is a checkpoint of another lab ({})", saved.name);
                return Err(Error::input(message).at(dir, None).hint(format!(
                    "--lab says {}: leave it out to restore what is there",
                    of.name
                )));
            }
        }
        let lab = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        return Ok(Kept { dir, text, lab, _held: None });
    }
    let lab = of.map(|of| of.name.as_str());
    if let Some(kept) = layer(work, name, lab)? {
        return Ok(kept);
    }
    let all = Layers::open(&work.env.store)?.all()?;
    let whose = of.map_or(String::new(), |of| format!(" of lab {}", of.name));
    Err(Error::input(format!("there is no checkpoint {name}{whose}"))
        .at(dir, None)
        .hint(hint(work, &all)))
}

/// The last used layer of a stage, of one lab or of any.
pub fn layer(work: &Work, stage: &str, lab: Option<&str>) -> Result<Option<Kept>> {
    let layers = Layers::open(&work.env.store)?;
    let all = layers.all()?;
    for layer in choose(&all, stage, lab) {
        if let Some(held) = layers.find(&layer.key)? {
            let (dir, lab) = (held.checkpoint(), layer.about.lab.clone());
            return Ok(Some(Kept { dir, text: describe(layer), lab, _held: Some(held) }));
        }
    }
    Ok(None)
}

/// The layers of a stage, of one lab or of any, the last used first.
fn choose<'l>(
    all: &'l [Layer],
    stage: &'l str,
    lab: Option<&'l str>,
) -> impl Iterator<Item = &'l Layer> {
    all.iter().filter(move |layer| {
        layer.about.stage == stage && lab.is_none_or(|lab| layer.about.lab == lab)
    })
}

/// Which one it is, where several could have been meant.
fn describe(layer: &Layer) -> String {
    let About { stage, lab, created, .. } = &layer.about;
    let made = SystemTime::UNIX_EPOCH + Duration::from_secs(*created);
    format!("the layer {stage} of lab {lab}, made {} ago ({})", ago(made), layer.key)
}

fn hint(work: &Work, layers: &[Layer]) -> String {
    let all = std::fs::read_dir(checkpoints(&work.env.store)).into_iter().flatten().flatten();
    let mut known: Vec<String> =
        all.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    known.extend(layers.iter().map(|l| format!("{} of lab {}", l.about.stage, l.about.lab)));
    known.sort();
    known.dedup();
    match known.as_slice() {
        [] => {
            "make one with `stackproof lab checkpoint NAME`, or layers with `stackproof e2e`".into()
        }
        known => format!("there is: {}", known.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::{Inputs, usage::Usage};

    fn layer(stage: &str, lab: &str) -> Layer {
        let about = About {
            stage: stage.into(),
            rank: 6,
            last: true,
            lab: lab.into(),
            created: 1,
            seconds: 2.5,
        };
        let (inputs, usage) = (Inputs::default(), Usage::default());
        let key = inputs.key(&format!("{stage} {lab}"), None);
        let used = SystemTime::UNIX_EPOCH;
        Layer { key, folder: PathBuf::new(), about, inputs, used, in_use: false, usage }
    }

    #[test]
    fn a_stage_is_that_of_the_lab_that_is_named_and_else_the_last_used_of_any() {
        let all = [layer("ready", "four"), layer("nova", "two"), layer("ready", "two")];
        let labs = |lab| choose(&all, "ready", lab).map(|l| &*l.about.lab).collect::<Vec<_>>();
        assert_eq!(labs(None), ["four", "two"]);
        assert_eq!(labs(Some("two")), ["two"]);
        assert!(labs(Some("one")).is_empty());
        let text = describe(&all[2]);
        assert!(text.starts_with("the layer ready of lab two, made "), "{text}");
        assert!(text.contains(all[2].key.short()), "{text}");
    }
}
