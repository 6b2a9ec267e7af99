//! Images that travel between stores as a folder:
//!
//! ```text
//! NAME/image.json    what it is: an ImageRecord
//! NAME/SHA256SUMS    of all other files, for `sha256sum --check`
//! NAME/disk.qcow2    and, of a built image, vmlinuz, initrd and cmdline
//! ```
//!
//! A fetched image is accepted by the digest in its manifest. A built one is accepted when its inputs
//! are those of the recipe as it stands here; its bytes are those that the other machine built, so an
//! image should come from a machine that is trusted.

use super::build::{Builder, ImageInput, differences, key_of_inputs};
use super::digest::{self, Algorithm, Digest};
use super::inspect::inspect;
use super::manifest::{Format, Kind as ManifestKind, Manifest, Manifests, Pin};
use super::store::Begin;
use super::{BUILT_DISK, presence, sums};
use crate::error::{Context, Error, Kind, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

const RECORD: &str = "image.json";
const SUMS: &str = "SHA256SUMS";
/// The files of a built image.
const BUILT_FILES: [&str; 4] = [BUILT_DISK, "vmlinuz", "initrd", "cmdline"];
/// No record or list that we wrote comes near it.
const TEXT_MAX: u64 = 4 << 20;

/// `image.json`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ImageRecord {
    /// 1; another number is of another version of stackproof.
    format: u32,
    name: String,
    content: ImageContent,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum ImageContent {
    /// The inputs that it was built from.
    Built(Vec<ImageInput>),
    /// The digest that its manifest pins, as in `sha256:abcd…`.
    Fetched(String),
}

/// What [`import_image`] did.
#[derive(Debug, PartialEq, Eq)]
pub struct ImportedImage {
    pub name: String,
    pub disk: PathBuf,
    /// The store had it before.
    pub was_there: bool,
}

/// Writes the image of `manifest` as the folder `to`/NAME, which must not exist yet.
pub async fn export_image(
    builder: &Builder,
    manifest: &Manifest,
    packages: &[String],
    to: &Path,
) -> Result<PathBuf> {
    let (files, content) = match &manifest.kind {
        ManifestKind::Recipe(_) => {
            let built = builder.built(manifest, packages)?.ok_or_else(|| missing(manifest))?;
            let listed = read_list(&built.dir)?;
            let of = |name| Ok((name, built.dir.join(name), digest_of(&listed, name, &built.dir)?));
            let files: Vec<_> = BUILT_FILES.into_iter().map(of).collect::<Result<_>>()?;
            (files, ImageContent::Built(builder.inputs(manifest, packages)?))
        }
        ManifestKind::Pin(pin) => {
            let disk = presence(manifest, &builder.store).disk();
            let disk = disk.ok_or_else(|| missing(manifest))?;
            (vec![(BUILT_DISK, disk, pin.digest)], ImageContent::Fetched(pin.digest.to_string()))
        }
    };
    let cannot = || "the image cannot be written".to_owned();
    fs::create_dir_all(to).doing(Kind::Host, cannot).map_err(|e| e.at(to, None))?;
    let place = to.join(&manifest.name);
    if place.exists() {
        return Err(Error::input("is there already")
            .at(&place, None)
            .hint("remove it, or name another folder with --to DIR"));
    }
    let partial = tempfile::Builder::new().prefix(".export-").tempdir_in(to);
    let partial = partial.doing(Kind::Host, cannot).map_err(|e| e.at(to, None))?;
    let mut list = String::new();
    for (name, from, expected) in files {
        let to = partial.path().join(name);
        copy(&from, &to, &expected, builder).await?;
        let sha256 = match expected.algorithm() {
            Algorithm::Sha256 => expected,
            Algorithm::Sha512 => digest::file(&to, Algorithm::Sha256).doing(Kind::Host, cannot)?,
        };
        list += &format!("{}  {name}\n", sha256.hex());
    }
    let record = ImageRecord { format: 1, name: manifest.name.clone(), content };
    let record = serde_json::to_string_pretty(&record).doing(Kind::Internal, cannot)? + "\n";
    list += &format!("{}  {RECORD}\n", Digest::of(Algorithm::Sha256, record.as_bytes()).hex());
    fs::write(partial.path().join(RECORD), record)
        .and_then(|()| fs::write(partial.path().join(SUMS), list))
        .and_then(|()| fs::rename(partial.path(), &place))
        .doing(Kind::Host, cannot)
        .map_err(|e| e.at(&place, None))?;
    // The folder has another name now.
    let _ = partial.keep();
    Ok(place)
}

/// Brings in the image that [`export_image`] wrote as the folder `from`. `packages` names those that
/// are baked into a recipe's image beside its own.
pub async fn import_image(
    builder: &Builder,
    manifests: &Manifests,
    packages: impl Fn(&str) -> Vec<String>,
    from: &Path,
) -> Result<ImportedImage> {
    let record = read_record(from)?;
    let manifest = manifests.get(&record.name).map_err(|e| e.at(from.join(RECORD), None))?;
    let listed = read_list(from)?;
    match (&record.content, &manifest.kind) {
        (ImageContent::Built(inputs), ManifestKind::Recipe(_)) => {
            let wanted = builder.inputs(manifest, &packages(&manifest.name))?;
            accept_inputs(&wanted, inputs, manifest, from)?;
            import_built(builder, &wanted, manifest, &listed, from).await
        }
        (ImageContent::Fetched(_), ManifestKind::Pin(pin)) => {
            import_fetched(builder, pin, manifest, from).await
        }
        _ => Err(Error::image(format!(
            "{} is built from a recipe on one machine and pinned on the other",
            manifest.name
        ))
        .at(from.join(RECORD), None)
        .hint("use the same version of stackproof on both")),
    }
}

fn missing(manifest: &Manifest) -> Error {
    let verb = if manifest.is_recipe() { "build" } else { "fetch" };
    Error::image(format!("{} is not in the store", manifest.name))
        .hint(format!("stackproof images {verb} {}", manifest.name))
}

/// Refuses an image that the recipe as it stands here would not build, and names what differs.
fn accept_inputs(
    wanted: &[ImageInput],
    inputs: &[ImageInput],
    manifest: &Manifest,
    from: &Path,
) -> Result<()> {
    let different = differences(wanted, inputs);
    if different.is_empty() && wanted == inputs {
        return Ok(());
    }
    let key = |inputs: &[ImageInput]| key_of_inputs(&manifest.name, inputs);
    let (ours, theirs) = (key(wanted), key(inputs));
    Err(Error::image(format!("this {} was built from other inputs", manifest.name))
        .at(from, None)
        .evidence(different)
        .evidence([format!("its key is {theirs}, and {ours} is wanted")])
        .hint(format!(
            "export it from the same version of stackproof, or build it here: stackproof images \
             build {}",
            manifest.name
        )))
}

async fn import_built(
    builder: &Builder,
    inputs: &[ImageInput],
    manifest: &Manifest,
    listed: &BTreeMap<String, Digest>,
    from: &Path,
) -> Result<ImportedImage> {
    let key = key_of_inputs(&manifest.name, inputs);
    let was_there = builder.store.derived(&key).is_some();
    let make = async |out: PathBuf| {
        for name in BUILT_FILES {
            let expected = digest_of(listed, name, from)?;
            copy(&from.join(name), &out.join(name), &expected, builder).await?;
        }
        inspect(&out.join(BUILT_DISK))?.require(Some(Format::Qcow2)).map(drop)
    };
    let dir = builder.store.make_derived(&key, &builder.patience, make).await?;
    Ok(ImportedImage { name: manifest.name.clone(), disk: dir.join(BUILT_DISK), was_there })
}

async fn import_fetched(
    builder: &Builder,
    pin: &Pin,
    manifest: &Manifest,
    from: &Path,
) -> Result<ImportedImage> {
    let name = manifest.name.clone();
    let file = from.join(BUILT_DISK);
    let mut writer = match builder.store.begin_blob(&pin.digest, &builder.patience).await? {
        Begin::Present(disk) => return Ok(ImportedImage { name, disk, was_there: true }),
        Begin::Write(writer) => writer,
    };
    let read = || "the image cannot be read".to_owned();
    let mut source = open_plain(&file)?;
    let copied = tokio::task::spawn_blocking(move || {
        writer.restart()?;
        let mut block = vec![0; 1 << 20];
        loop {
            match source.read(&mut block)? {
                0 => return Ok::<_, std::io::Error>(writer),
                n => writer.write(&block[..n])?,
            }
        }
    });
    let writer = copied.await.doing(Kind::Internal, read)?.doing(Kind::Host, read)?;
    let checked = inspect(writer.path()).and_then(|found| found.require(Some(manifest.format)));
    if let Err(e) = checked {
        writer.discard();
        return Err(e);
    }
    let disk = writer.finish().map_err(|e| e.at(&file, None))?;
    Ok(ImportedImage { name, disk, was_there: false })
}

fn read_record(from: &Path) -> Result<ImageRecord> {
    let path = from.join(RECORD);
    let refused = || "is not the record of an exported image".to_owned();
    let record: ImageRecord = serde_json::from_str(&read_text(&path)?)
        .doing(Kind::Image, refused)
        .map_err(|e| e.at(&path, None))?;
    if record.format != 1 {
        return Err(Error::image(format!("format {} is not known", record.format))
            .at(&path, None)
            .hint("import it with the version of stackproof that exported it"));
    }
    Ok(record)
}

fn read_list(from: &Path) -> Result<BTreeMap<String, Digest>> {
    let text = read_text(&from.join(SUMS))?;
    Ok(sums::parse(&text).into_iter().map(|entry| (entry.name, entry.digest)).collect())
}

fn digest_of(listed: &BTreeMap<String, Digest>, name: &str, folder: &Path) -> Result<Digest> {
    let found = listed.get(name).copied();
    found.ok_or_else(|| Error::image(format!("{SUMS} does not list {name}")).at(folder, None))
}

fn read_text(path: &Path) -> Result<String> {
    let mut text = String::new();
    let read = open_plain(path)?.take(TEXT_MAX).read_to_string(&mut text);
    read.doing(Kind::Image, || "cannot be read".into()).map_err(|e| e.at(path, None))?;
    Ok(text)
}

/// A folder from elsewhere may hold links or devices: only a plain file is opened.
fn open_plain(path: &Path) -> Result<File> {
    let open = || -> std::io::Result<File> {
        if !fs::symlink_metadata(path)?.is_file() {
            return Err(std::io::Error::other("it is not a plain file"));
        }
        File::open(path)
    };
    open()
        .doing(Kind::Image, || "the exported image lacks a file".into())
        .map_err(|e| e.at(path, None).hint("give a folder that `stackproof images export` wrote"))
}

/// Copies a file, whose copy must have the digest that is `expected`.
async fn copy(from: &Path, to: &Path, expected: &Digest, builder: &Builder) -> Result<()> {
    let mut source = open_plain(from)?;
    let target = to.to_owned();
    let copied = tokio::task::spawn_blocking(move || {
        std::io::copy(&mut source, &mut File::create_new(target)?)
    });
    let cannot = || "the image cannot be copied".to_owned();
    copied
        .await
        .doing(Kind::Internal, cannot)?
        .doing(Kind::Host, cannot)
        .map_err(|e| e.at(to, None))?;
    let name = to.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let events = &builder.patience.events;
    let what = format!("verify {name}");
    let found = digest::file_with_progress(to, expected, &what, events).await?;
    if found == *expected {
        return Ok(());
    }
    Err(Error::image(format!("has changed: expected {expected}, found {found}"))
        .at(from, None)
        .hint("copy the folder again, or export it again"))
}

#[cfg(test)]
#[path = "transfer_tests.rs"]
mod tests;
