//! `stackproof images`: what is known, what is in the store, and how it gets there.

mod gc;
mod pins;

use super::args::Images;
use super::root::Root;
use super::session::{Session, Work};
use super::table::Table;
use super::view::human_bytes;
use super::{finish, print};
use crate::cluster::images::{build, builder, fetch, missing, node_packages};
use crate::error::{Error, Kind as ErrorKind, Result};
use crate::images::inspect::{Inspection, inspect};
use crate::images::manifest::{Kind, Manifest, Manifests, load_dir};
use crate::images::store::Store;
use crate::images::transfer::{export_image, import_image};
use crate::images::{Presence, presence, resolve};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

pub async fn run(session: Session, verb: Images) -> Result<ExitCode> {
    let redactor = session.redactor.clone();
    let (record, out) = session.conduct(|work| act(work, verb)).await;
    if let Ok(text) = &out {
        print(text, &redactor)?;
    }
    finish(&record, out)
}

/// What the verb prints on standard output.
async fn act(work: Work, verb: Images) -> Result<String> {
    let root = Root::find(&work.env)?;
    let manifests = load_dir(&root.images())?;
    let store = match verb {
        // What only looks makes no store: the home may be read-only, or missing.
        Images::List | Images::Inspect { .. } | Images::Verify { .. } => work.store_to_read(),
        // What killed builds left is listed with the rest: opening the store would remove it.
        Images::Export { .. } | Images::Gc { .. } => work.store_to_read(),
        Images::Check { .. } | Images::Update { .. } => work.store_to_read(),
        Images::Fetch { .. } | Images::Build { .. } | Images::Import { .. } => work.store()?,
    };
    match verb {
        Images::List => Ok(list(&manifests, &store)),
        Images::Fetch { names } => {
            // All names are looked at before the first byte is fetched.
            let wanted = all_of(&manifests, &names)?;
            let mut outcomes = Outcomes::new(&work, wanted.len());
            for manifest in wanted {
                let path = fetch(&work, &store, manifest).await;
                outcomes.note(&manifest.name, path.map(|path| line(&manifest.name, &path)))?;
            }
            outcomes.end()
        }
        Images::Build { names } => {
            let wanted = all_of(&manifests, &names)?;
            let mut outcomes = Outcomes::new(&work, wanted.len());
            for manifest in wanted {
                let built = build(&work, &store, manifest).await;
                outcomes.note(&manifest.name, built.map(|b| line(&manifest.name, &b.disk())))?;
            }
            outcomes.end()
        }
        Images::Export { names, to } => {
            let wanted = all_of(&manifests, &names)?;
            let (builder, to) = (builder(&work, &store), work.env.cwd.join(to));
            let mut outcomes = Outcomes::new(&work, wanted.len());
            for manifest in wanted {
                let packages = node_packages(&manifest.name);
                let folder = export_image(&builder, manifest, &packages, &to).await;
                outcomes.note(&manifest.name, folder.map(|f| line(&manifest.name, &f)))?;
            }
            outcomes.end()
        }
        Images::Import { folders } => {
            let builder = builder(&work, &store);
            let mut outcomes = Outcomes::new(&work, folders.len());
            for folder in folders {
                let from = work.env.cwd.join(&folder);
                let imported = import_image(&builder, &manifests, node_packages, &from).await;
                let said = imported.map(|i| line(&i.name, &i.disk));
                outcomes.note(&folder.display().to_string(), said)?;
            }
            outcomes.end()
        }
        Images::Check { names } => pins::check(&work, &manifests, &names).await,
        Images::Update { name } => pins::update(&work, &root, manifests.get(&name)?).await,
        Images::Gc { max, dry_run } => gc::collect(&work, &manifests, &store, max, dry_run),
        Images::Verify { names } => verify(&work, &manifests, &store, &names).await,
        Images::Inspect { image, json } => {
            let path = locate(&work, &manifests, &store, &image)?;
            let found = inspect(&path)?;
            let text = if json { inspection_json(&found)? } else { inspection_text(&found) };
            // Told even when it is refused: the problems are the answer.
            print(&text, &work.redactor)?;
            found.require(None)?;
            Ok(String::new())
        }
    }
}

fn all_of<'m>(manifests: &'m Manifests, names: &[String]) -> Result<Vec<&'m Manifest>> {
    names.iter().map(|name| manifests.get(name)).collect()
}

fn list(manifests: &Manifests, store: &Store) -> String {
    let mut table = Table::new(["NAME", "KIND", "SIZE", "STORE", "LOGIN", "DESCRIPTION"]);
    for manifest in manifests {
        let (kind, size) = match &manifest.kind {
            Kind::Pin(pin) => ("pin", pin.size.map_or("?".into(), human_bytes)),
            Kind::Recipe(_) => ("recipe", "-".into()),
        };
        let there = match presence(manifest, store) {
            Presence::Missing => "-",
            Presence::Fetched(_) => "fetched",
            Presence::Built(_) => "built",
        };
        let (user, about) = (manifest.user.as_str(), manifest.description.as_str());
        table.row([&manifest.name, kind, &size, there, user, about]);
    }
    table.to_string()
}

async fn verify(
    work: &Work,
    manifests: &Manifests,
    store: &Store,
    names: &[String],
) -> Result<String> {
    let there = |m: &&Manifest| presence(m, store) != Presence::Missing;
    let wanted: Vec<&Manifest> = if names.is_empty() {
        manifests.iter().filter(there).collect()
    } else {
        all_of(manifests, names)?
    };
    if wanted.is_empty() {
        return Ok("the store is empty: nothing was verified\n".into());
    }
    let mut outcomes = Outcomes::new(work, wanted.len());
    for manifest in wanted {
        let name = &manifest.name;
        let disk = crate::images::verify(manifests, store, name, &work.events).await;
        outcomes.note(name, disk.map(|disk| format!("{name}: ok  {}\n", disk.display())))?;
    }
    outcomes.end()
}

fn line(name: &str, path: &Path) -> String {
    format!("{name}  {}\n", path.display())
}

/// What became of several images. One that fails keeps none of the others from its turn.
struct Outcomes<'a> {
    work: &'a Work,
    of: usize,
    failed: Vec<(String, Error)>,
}

impl<'a> Outcomes<'a> {
    fn new(work: &'a Work, of: usize) -> Outcomes<'a> {
        Outcomes { work, of, failed: Vec::new() }
    }

    /// Prints the line of one that went well, at once. An interruption ends all.
    fn note(&mut self, name: &str, outcome: Result<String>) -> Result<()> {
        match outcome {
            Ok(line) => print(&line, &self.work.redactor),
            Err(e) if e.kind() == ErrorKind::Interrupted => Err(e),
            Err(e) => {
                self.failed.push((name.to_owned(), e));
                Ok(())
            }
        }
    }

    /// The error of the one that failed, or one that names all.
    fn end(mut self) -> Result<String> {
        if self.failed.len() < 2 {
            return self.failed.pop().map_or(Ok(String::new()), |(_, e)| Err(e));
        }
        let first = &self.failed[0].1;
        let error =
            Error::new(first.kind(), format!("{} of {} images failed", self.failed.len(), self.of));
        let hint = self.failed.iter().find_map(|(_, e)| e.hint_text()).unwrap_or_default();
        let lines = self.failed.iter().flat_map(|(name, e)| {
            let evidence = e.evidence_lines().iter().map(|line| format!("  {line}"));
            std::iter::once(format!("{name}: {e}")).chain(evidence)
        });
        Err(error.evidence(lines.collect::<Vec<_>>()).hint(hint))
    }
}

/// The file that `image` names: a path that exists, else an image in the store.
fn locate(work: &Work, manifests: &Manifests, store: &Store, image: &str) -> Result<PathBuf> {
    let path = work.env.cwd.join(image);
    if path.is_file() {
        return Ok(path);
    }
    if image.contains('/') || Path::new(image).extension().is_some_and(|e| e == "qcow2") {
        return Err(Error::input("no such file").at(image, None));
    }
    let (manifest, presence) = resolve(manifests, store, image)?;
    presence.disk().ok_or_else(|| missing(manifest, store))
}

fn inspection_text(found: &Inspection) -> String {
    let mut text = format!(
        "file          {}\nlooks like    {}\nbytes         {}\n",
        found.path.display(),
        found.looks,
        found.bytes
    );
    if let Some(format) = found.format {
        text += &format!("format        {format}\n");
    }
    if let Some(size) = found.virtual_size {
        text += &format!("virtual size  {}\n", human_bytes(size));
    }
    if !found.features.is_empty() {
        text += &format!("features      {}\n", found.features.join(", "));
    }
    for problem in &found.problems {
        text += &format!("problem       {problem}\n");
    }
    for warning in &found.cloud_refuses {
        text += &format!("warning       {warning}\n");
    }
    text + &format!("verdict       {}\n", if found.is_fine() { "fine" } else { "refused" })
}

fn inspection_json(found: &Inspection) -> Result<String> {
    let value = json!({
        "file": found.path.to_string_lossy(),
        "looks": found.looks.to_string(),
        "bytes": found.bytes,
        "format": found.format.map(|f| f.name()),
        "virtual_size": found.virtual_size,
        "features": found.features,
        "problems": found.problems,
        "cloud_refuses": found.cloud_refuses,
        "fine": found.is_fine(),
    });
    super::write::pretty(&value)
}
