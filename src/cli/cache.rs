//! `stackproof cache`: the layers that there are, which of them serve, and why not.

use super::args::Cache;
use super::root::Root;
use super::session::{Session, Work};
use super::table::Table;
use super::view::human_bytes;
use super::{finish, print};
use crate::cluster::host::hypervisor;
use crate::cluster::images::{built, of_build, of_disk};
use crate::cluster::stage_keys::rungs_of;
use crate::error::Result;
use crate::images::manifest::{Manifests, load_dir};
use crate::images::presence;
use crate::lab::BootImage;
use crate::lab::accel::Accel;
use crate::lab::hypervisor::Hypervisor;
use crate::lab::spec::LabSpec;
use crate::layers::budget::{self, Space};
use crate::layers::usage::Usage;
use crate::layers::why::{Standing, standing};
use crate::layers::{Key, Layer, Layers, Rung};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

/// So many changed inputs of a stage are told one by one.
const CHANGES: usize = 20;

pub async fn run(session: Session, verb: Cache) -> Result<ExitCode> {
    let redactor = session.redactor.clone();
    let (record, out) = session.conduct(|work| act(work, verb)).await;
    if let Ok(text) = &out {
        print(text, &redactor)?;
    }
    finish(&record, out)
}

/// What the verb prints on standard output.
async fn act(work: Work, verb: Cache) -> Result<String> {
    if let Cache::Ls { json } = verb
        && !Layers::are_in(&work.env.store)
    {
        // Only looked at: no folder is made for it.
        let none: fn(&Layer) -> Option<bool> = |_| None;
        return if json { list_json(&[], 0, none) } else { Ok(list(&[], 0, none)) };
    }
    let layers = Layers::open(&work.env.store)?;
    match verb {
        Cache::Ls { json } => {
            let all = layers.all()?;
            let present = Present::look(&work, &all).await?;
            let valid = |layer: &Layer| present.as_ref().and_then(|p| p.serves(layer));
            let broken = layers.broken_bytes();
            if json { list_json(&all, broken, valid) } else { Ok(list(&all, broken, valid)) }
        }
        Cache::Gc { max, all } => {
            collect(&layers, (!all).then(|| Space { max, ..Space::default() }))
        }
        Cache::Why { lab } => why(&work, &layers, &lab).await,
    }
}

/// The inputs as they stand, without anything being built or measured for it.
struct Here {
    hypervisor: Hypervisor,
    images: BTreeMap<String, BootImage>,
}

impl Here {
    async fn look(work: &Work, manifests: &Manifests) -> Result<Here> {
        let store = work.store_to_read();
        let mut images = BTreeMap::new();
        for manifest in manifests {
            let image = if manifest.is_recipe() {
                match built(work, &store, manifest)? {
                    Some(built) => of_build(&built)?,
                    None => continue,
                }
            } else {
                match presence(manifest, &store).disk() {
                    Some(disk) => of_disk(disk),
                    None => continue,
                }
            };
            images.insert(manifest.name.clone(), image);
        }
        Ok(Here { hypervisor: hypervisor().await?, images })
    }

    /// The rungs of a lab; of one whose images are not there, keys that no layer has.
    fn rungs(&self, spec: &LabSpec, accel: Accel) -> Result<Vec<Rung>> {
        rungs_of(spec, &self.hypervisor, accel, None, &self.images)
    }
}

/// The keys of all labs that are known, by the labs' names.
struct Present(BTreeMap<String, BTreeSet<Key>>);

impl Present {
    /// `None` where there is nothing to compare, or nothing to compare it with.
    async fn look(work: &Work, layers: &[Layer]) -> Result<Option<Present>> {
        if layers.is_empty() {
            return Ok(None);
        }
        let root = Root::find(&work.env)?;
        let here = match Here::look(work, &load_dir(&root.images())?).await {
            Ok(here) => here,
            Err(e) => {
                work.events.warning(format!("which layers would serve is not known: {e}"));
                return Ok(None);
            }
        };
        let mut keys: BTreeMap<String, BTreeSet<Key>> = BTreeMap::new();
        for file in root.labs() {
            let spec = match LabSpec::load(&file) {
                Ok(spec) => spec,
                Err(e) => {
                    work.events.warning(e.to_string());
                    continue;
                }
            };
            for accel in [Accel::Tcg, Accel::Kvm] {
                // A lab that is no cloud has no layers of ours.
                let rungs = here.rungs(&spec, accel).unwrap_or_default();
                keys.entry(spec.name.clone()).or_default().extend(rungs.into_iter().map(|r| r.key));
            }
        }
        Ok(Some(Present(keys)))
    }

    /// `None` for a layer of a lab file that is not known here.
    fn serves(&self, layer: &Layer) -> Option<bool> {
        Some(self.0.get(&layer.about.lab)?.contains(&layer.key))
    }
}

fn list(all: &[Layer], broken: u64, valid: impl Fn(&Layer) -> Option<bool>) -> String {
    if all.is_empty() && broken == 0 {
        return "there are no layers: `stackproof e2e` makes them\n".into();
    }
    let mut table = Table::new(["STAGE", "LAB", "SIZE", "AGE", "USED", "KEY", "SERVES"]);
    for layer in all {
        let serves = match (valid(layer), layer.in_use) {
            (Some(true), true) => "yes, in use",
            (Some(true), false) => "yes",
            (Some(false), true) => "no, in use",
            (Some(false), false) => "no (cache why)",
            (None, _) => "?",
        };
        let created = SystemTime::UNIX_EPOCH + Duration::from_secs(layer.about.created);
        table.row([
            &layer.about.stage,
            &layer.about.lab,
            &human_bytes(layer.usage.bytes()),
            &ago(created),
            &ago(layer.used),
            layer.key.short(),
            serves,
        ]);
    }
    let together = Usage::together(all.iter().map(|l| &l.usage)).bytes();
    let mut text = format!("{table}{} together\n", human_bytes(together));
    if broken > 0 {
        let _ = writeln!(text, "{} in a layer that did not restore", human_bytes(broken));
    }
    text
}

fn list_json(all: &[Layer], broken: u64, valid: impl Fn(&Layer) -> Option<bool>) -> Result<String> {
    let used = |l: &Layer| l.used.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let layers: Vec<Value> = all
        .iter()
        .map(|l| {
            json!({
                "key": l.key, "stage": l.about.stage, "lab": l.about.lab,
                "bytes": l.usage.bytes(), "created": l.about.created,
                "used": used(l).as_secs(), "seconds": l.about.seconds,
                "in_use": l.in_use, "serves": valid(l),
            })
        })
        .collect();
    let together = Usage::together(all.iter().map(|l| &l.usage)).bytes();
    super::write::pretty(&json!({"layers": layers, "bytes": together, "broken_bytes": broken}))
}

/// `3 min`, `5 h`, `2 d` since then.
pub fn ago(then: SystemTime) -> String {
    let seconds = SystemTime::now().duration_since(then).unwrap_or_default().as_secs();
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// Removes layers until the rest fits into `space`; all of them without it.
fn collect(layers: &Layers, space: Option<Space>) -> Result<String> {
    let there = layers.all()?;
    let bytes = |l: &[Layer]| Usage::together(l.iter().map(|l| &l.usage)).bytes();
    let limit = match space {
        None => 0,
        Some(space) => space.limit(bytes(&there), layers.free()?),
    };
    // Where all that may go is not enough, all that may go goes.
    let order = |limit| budget::evict(&there, None, &[], true, 0, limit);
    let held: Vec<Layer> = there.iter().filter(|l| l.in_use).cloned().collect();
    let gone = order(limit).or_else(|| order(bytes(&held).max(limit))).unwrap_or_default();
    let mut said = String::new();
    for key in gone {
        let Some(layer) = there.iter().find(|l| l.key == key) else { continue };
        let what = format!("{} of {} ({key})", layer.about.stage, layer.about.lab);
        match layers.remove(&key)? {
            true => said += &format!("removed {what}\n"),
            false => said += &format!("left {what}: somebody began to use it\n"),
        }
    }
    layers.remove_broken()?;
    let left = layers.all()?;
    for layer in left.iter().filter(|l| l.in_use) {
        said += &format!("in use: {} of {}\n", layer.about.stage, layer.about.lab);
    }
    let (now, before) = (bytes(&left), bytes(&there));
    let freed = human_bytes(before.saturating_sub(now));
    Ok(said + &format!("{freed} freed, {} left in {} layers\n", human_bytes(now), left.len()))
}

async fn why(work: &Work, layers: &Layers, lab: &str) -> Result<String> {
    let root = Root::find(&work.env)?;
    let spec = LabSpec::load(&root.lab(lab, &work.env.cwd)?)?;
    let here = Here::look(work, &load_dir(&root.images())?).await?;
    let all = layers.all()?;
    // A run measures which accelerator it takes; here the last one's is taken for granted.
    let last = all.iter().filter(|l| l.about.lab == spec.name).max_by_key(|l| l.about.created);
    let kvm = last.is_some_and(|l| l.inputs.get("accelerator") == Some("KVM"));
    let accel = if kvm { Accel::Kvm } else { Accel::Tcg };
    let rungs = here.rungs(&spec, accel)?;
    Ok(why_text(&rungs, &spec.name, &all, accel))
}

fn why_text(rungs: &[Rung], lab: &str, all: &[Layer], accel: Accel) -> String {
    let mut text = format!("lab {lab}, if it runs with {accel}:\n");
    for rung in rungs {
        let _ = write!(text, "{} ({}): ", rung.stage, rung.key);
        match standing(rung, lab, all) {
            Standing::Serves => text += "its layer serves\n",
            Standing::Absent => text += "there is no layer of it\n",
            Standing::Changed(changes) => {
                let _ = writeln!(text, "no layer serves; since the last one of it was made:");
                for change in changes.iter().take(CHANGES) {
                    let _ = writeln!(text, "  {change}");
                }
                if changes.len() > CHANGES {
                    let _ = writeln!(text, "  and {} more", changes.len() - CHANGES);
                }
            }
        }
    }
    let deepest = rungs.iter().rev().find(|r| standing(r, lab, all) == Standing::Serves);
    text + &match deepest {
        Some(rung) => format!("a run would begin from {}\n", rung.stage),
        None => "a run would boot\n".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::plan::Stage;
    use crate::layers::Inputs;
    use crate::layers::store::About;

    fn inputs(nova: &str) -> Inputs {
        let mut inputs = Inputs::default();
        inputs.set("QEMU", "10.0.2");
        inputs.set("nova: file /etc/nova/nova.conf on openstack1", nova);
        inputs
    }

    fn rung(name: &'static str, rank: usize, nova: &str) -> Rung {
        let inputs = inputs(nova);
        let key = inputs.key(name, None);
        Rung { stage: Stage { rank, name }, key, inputs }
    }

    fn layer(rung: &Rung, in_use: bool) -> Layer {
        let about = About {
            stage: rung.stage.name.into(),
            rank: rung.stage.rank,
            last: false,
            lab: "two-node".into(),
            created: 1,
            seconds: 2.5,
        };
        let (key, inputs, used) = (rung.key.clone(), rung.inputs.clone(), SystemTime::now());
        let usage = Usage::default();
        Layer { key, folder: Default::default(), about, inputs, used, in_use, usage }
    }

    #[test]
    fn a_layer_is_listed_with_its_stage_lab_key_and_whether_it_serves() {
        let all = [layer(&rung("nova", 4, "1"), true), layer(&rung("booted", 0, "1"), false)];
        let text = list(&all, 0, |l| Some(l.about.stage == "nova"));
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[1].starts_with("nova") && lines[1].ends_with("yes, in use"), "{text}");
        assert!(lines[2].contains("two-node") && lines[2].ends_with("no (cache why)"), "{text}");
        assert!(lines[2].contains(all[1].key.short()), "{text}");
        assert!(list(&[], 0, |_| None).contains("there are no layers"));
        assert!(list(&[], 5 << 20, |_| None).contains("5.0 MiB in a layer that did not restore"));
    }

    #[test]
    fn the_json_has_the_documented_keys() {
        let all = [layer(&rung("nova", 4, "1"), false)];
        let text = list_json(&all, 7, |_| None).unwrap();
        let value: Value = serde_json::from_str(&text).unwrap();
        let keys: Vec<&String> = value["layers"][0].as_object().unwrap().keys().collect();
        let wanted = "key stage lab bytes created used seconds in_use serves";
        assert_eq!(keys, wanted.split(' ').collect::<Vec<_>>());
        assert_eq!((value["broken_bytes"].as_u64(), value["bytes"].as_u64()), (Some(7), Some(0)));
    }

    #[test]
    fn why_names_the_changed_input_and_where_a_run_would_begin() {
        let old = rung("nova", 4, "1");
        let layers = [layer(&rung("booted", 0, "2"), false), layer(&old, false)];
        let now = [rung("booted", 0, "2"), rung("nova", 4, "2")];
        let text = why_text(&now, "two-node", &layers, Accel::Tcg);
        assert!(text.starts_with("lab two-node, if it runs with TCG:\n"), "{text}");
        for line in [
            "its layer serves",
            "  nova: file /etc/nova/nova.conf on openstack1: 1 -> 2",
            "a run would begin from booted",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
        assert!(why_text(&now, "other", &[], Accel::Tcg).ends_with("a run would boot\n"));
    }

    #[tokio::test]
    async fn gc_removes_the_oldest_first_down_to_the_size_and_says_what_is_in_use() {
        let dir = tempfile::tempdir().unwrap();
        let layers = Layers::open(dir.path()).unwrap();
        let rungs = [rung("booted", 0, "1"), rung("nova", 4, "1"), rung("cloud-ready", 6, "1")];
        for rung in &rungs {
            let fill = async |into: std::path::PathBuf| {
                std::fs::create_dir(&into).unwrap();
                std::fs::write(into.join("memory"), vec![1; 1 << 20]).unwrap();
                Ok(())
            };
            layers.make(rung, "two-node", rung.stage.rank == 6, fill).await.unwrap();
        }
        let said = collect(&layers, Some(Space { max: Some(3 << 19), keep_free: 0 })).unwrap();
        assert!(said.contains("removed booted of two-node"), "{said}");
        assert!(
            said.contains("removed nova of two-node") && !said.contains("cloud-ready"),
            "{said}"
        );
        let _held = layers.find(&rungs[2].key).unwrap().unwrap();
        let said = collect(&layers, None).unwrap();
        assert!(said.contains("in use: cloud-ready of two-node"), "{said}");
        assert!(said.ends_with("left in 1 layers\n"), "{said}");
    }

    #[test]
    fn an_age_is_told_in_its_largest_unit() {
        let ago = |seconds| super::ago(SystemTime::now() - Duration::from_secs(seconds));
        assert_eq!([ago(5), ago(150), ago(7300), ago(400_000)], ["5 s", "2 min", "2 h", "4 d"]);
    }
}
