//! Why a layer serves or does not.

use super::rungs::Rung;
use super::store::Layer;

/// How a stage stands with the layers that there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Its layer is there.
    Serves,
    /// No layer of this stage of this lab was ever kept, or it is gone.
    Absent,
    /// The last one made of this stage of this lab was made by other inputs: these, one line each.
    Changed(Vec<String>),
}

/// How `rung` of the lab called `lab` stands.
pub fn standing(rung: &Rung, lab: &str, layers: &[Layer]) -> Standing {
    if layers.iter().any(|l| l.key == rung.key) {
        return Standing::Serves;
    }
    let same = layers.iter().filter(|l| l.about.lab == lab && l.about.stage == rung.stage.name);
    match same.max_by_key(|l| l.about.created) {
        None => Standing::Absent,
        Some(nearest) => Standing::Changed(rung.inputs.changes_since(&nearest.inputs)),
    }
}

impl Standing {
    /// In one line, with the first change and the number of the others.
    pub fn text(&self) -> String {
        match self {
            Standing::Serves => "serves".into(),
            Standing::Absent => "there is no layer of it".into(),
            Standing::Changed(changes) => match &changes[..] {
                // The names are all that is kept of what a key is made from.
                [] => "made in another order of stages".into(),
                [one] => one.clone(),
                [first, rest @ ..] => format!("{first}, and {} more", rest.len()),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::plan::Stage;
    use crate::layers::inputs::Inputs;
    use crate::layers::store::About;
    use crate::layers::usage::Usage;
    use std::time::SystemTime;

    fn inputs(conf: &str) -> Inputs {
        let mut inputs = Inputs::default();
        inputs.set("QEMU", "10.0.2");
        inputs.set("nova: file /etc/nova/nova.conf on openstack1", conf);
        inputs
    }

    fn rung(conf: &str) -> Rung {
        let inputs = inputs(conf);
        let key = inputs.key("nova", None);
        Rung { stage: Stage { rank: 4, name: "nova" }, key, inputs }
    }

    fn layer(lab: &str, conf: &str, created: u64) -> Layer {
        let Rung { key, inputs, .. } = rung(conf);
        let (stage, lab) = ("nova".into(), lab.into());
        let about = About { stage, rank: 4, last: false, lab, created, seconds: 1.0 };
        let (folder, used) = (Default::default(), SystemTime::UNIX_EPOCH);
        Layer { key, folder, about, inputs, used, in_use: false, usage: Usage::default() }
    }

    #[test]
    fn a_layer_with_the_key_serves_whoever_made_it() {
        assert_eq!(standing(&rung("1"), "a", &[layer("b", "1", 1)]), Standing::Serves);
    }

    #[test]
    fn the_latest_of_the_same_lab_and_stage_tells_what_changed() {
        let layers = [layer("a", "old", 1), layer("a", "1", 2), layer("b", "3", 9)];
        let now = standing(&rung("2"), "a", &layers);
        let change = "nova: file /etc/nova/nova.conf on openstack1: 1 -> 2";
        assert_eq!(now, Standing::Changed(vec![change.into()]));
        assert_eq!(now.text(), change);
        assert_eq!(standing(&rung("2"), "c", &layers), Standing::Absent);
    }
}
