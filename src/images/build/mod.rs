//! Images that are built here, from recipes: `images/NAME.toml` with a table `[recipe]`, and the
//! files in `images/NAME/`.
//!
//! What is built is keyed by all that makes it: the recipe, its files, the packages asked for, and
//! the sources that build it (this one dispatches, and shapes nothing). The mirror is not part of it:
//! every mirror has the same packages.

pub mod apt;
pub mod cpio;
mod debian_node;
mod elf;
mod inputs;
mod linux;
mod probe_guest;
mod qcow2;

pub use inputs::{ImageInput, differences, key_of_inputs};

use super::manifest::Manifest;
use super::store::Store;
use crate::error::{Context, Error, Kind, Result};
use crate::event::{Event, Unit};
use crate::host::Mirrors;
use crate::wait::Patience;
use serde::Deserialize;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

macro_rules! sources {
    ($($file:literal),+) => { &[$(($file, include_str!($file))),+] };
}

/// Builds images into a store.
#[derive(Clone, Debug)]
pub struct Builder {
    pub store: Store,
    /// The mirrors that the user gave, before those that the host names.
    pub given_mirrors: Option<Mirrors>,
    /// A folder for the logs of builds, one file an image; it is made when needed.
    pub logs: PathBuf,
    pub patience: Patience,
}

/// A built image: a folder of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Built {
    pub key: String,
    pub dir: PathBuf,
}

impl Built {
    pub fn disk(&self) -> PathBuf {
        self.dir.join("disk.qcow2")
    }
    /// The kernel of the image, to be booted directly.
    pub fn kernel(&self) -> PathBuf {
        self.dir.join("vmlinuz")
    }
    pub fn initrd(&self) -> PathBuf {
        self.dir.join("initrd")
    }
    /// The command line with which that kernel boots from this image fastest.
    pub fn cmdline(&self) -> Result<String> {
        let path = self.dir.join("cmdline");
        fs::read_to_string(&path)
            .map(|text| text.trim().to_owned())
            .doing(Kind::Image, || "the image's kernel command line cannot be read".into())
            .map_err(|e| e.at(&path, None))
    }
}

/// `[recipe]`, told apart by its key `builder`.
#[derive(Debug, Deserialize)]
#[serde(tag = "builder", rename_all = "kebab-case")]
enum Recipe {
    ProbeGuest(probe_guest::Recipe),
    DebianNode(debian_node::Recipe),
}

impl Recipe {
    fn suite(&self) -> &str {
        match self {
            Recipe::ProbeGuest(recipe) => &recipe.suite,
            Recipe::DebianNode(recipe) => &recipe.suite,
        }
    }

    /// The source that builds it: a changed builder is another image.
    fn sources(&self) -> &'static [Source] {
        match self {
            Recipe::ProbeGuest(_) => sources!(
                "probe_guest.rs",
                "apt.rs",
                "debian-archive-keyring.asc",
                "cpio.rs",
                "elf.rs",
                "linux.rs",
                "mbr.S",
                "qcow2.rs"
            ),
            Recipe::DebianNode(_) => {
                sources!("debian_node.rs", "apt.rs", "debian-archive-keyring.asc", "qcow2.rs")
            }
        }
    }
}

/// A file of this folder, and what is written in it.
type Source = (&'static str, &'static str);

/// A source without its tests, which build nothing.
fn built_by(source: &str) -> &str {
    source.split("\n#[cfg(test)]\nmod tests").next().unwrap_or(source)
}

/// One build that is under way.
struct Job<'a> {
    name: String,
    builder: &'a Builder,
    mirrors: Mirrors,
    log: PathBuf,
}

impl Builder {
    /// The key under which the image of this recipe is kept, with `packages` beside its own.
    pub fn key(&self, manifest: &Manifest, packages: &[String]) -> Result<String> {
        Ok(key_of_inputs(&manifest.name, &self.inputs(manifest, packages)?))
    }

    /// All that makes the image of this recipe what it is, with `packages` beside its own.
    pub fn inputs(&self, manifest: &Manifest, packages: &[String]) -> Result<Vec<ImageInput>> {
        let recipe: Recipe = manifest.recipe()?;
        if let Recipe::ProbeGuest(_) = recipe
            && !packages.is_empty()
        {
            return Err(Error::input(format!("`{}` takes no further packages", manifest.name))
                .at(&manifest.path, None));
        }
        let mut inputs = vec![ImageInput::new(
            format!("manifest {}.toml", manifest.name),
            manifest.text.as_bytes(),
        )];
        for (name, source) in recipe.sources() {
            inputs.push(ImageInput::new(format!("builder {name}"), built_by(source).as_bytes()));
        }
        for (name, content) in files_of(&folder(manifest))? {
            inputs.push(ImageInput::new(format!("file {name}"), &content));
        }
        let packages = packages.iter().collect::<BTreeSet<_>>();
        inputs.extend(packages.into_iter().map(|p| ImageInput::new(format!("package {p}"), b"")));
        Ok(inputs)
    }

    /// The mirrors from which this recipe would be built now.
    pub async fn mirrors(&self, manifest: &Manifest) -> Result<Mirrors> {
        let recipe: Recipe = manifest.recipe()?;
        let found = self.mirrors_of(recipe.suite()).await;
        found.map_err(|e| e.while_doing(format!("cannot build {}", manifest.name)))
    }

    /// The mirrors from which a release of Debian comes now.
    pub async fn mirrors_of(&self, suite: &str) -> Result<Mirrors> {
        Mirrors::find(self.given_mirrors.as_ref(), suite).await.ok_or_else(|| {
            Error::host("no Debian mirror is known")
                .hint("name one with --debian-mirror URL or STACKPROOF_DEBIAN_MIRROR")
        })
    }

    /// The image, if it was built already.
    pub fn built(&self, manifest: &Manifest, packages: &[String]) -> Result<Option<Built>> {
        let key = self.key(manifest, packages)?;
        Ok(self.store.derived(&key).map(|dir| Built { key, dir }))
    }

    /// The image of this recipe, built unless it was built before. `packages` are installed beside
    /// those of the recipe. A dropped build leaves nothing behind but its log.
    pub async fn build(&self, manifest: &Manifest, packages: &[String]) -> Result<Built> {
        let key = self.key(manifest, packages)?;
        let recipe: Recipe = manifest.recipe()?;
        let make = async |out: PathBuf| {
            let job = self.begin(manifest, &key).await?;
            let files = folder(manifest);
            let built = match &recipe {
                Recipe::ProbeGuest(recipe) => probe_guest::build(recipe, &files, &job, &out).await,
                Recipe::DebianNode(recipe) => {
                    debian_node::build(recipe, packages, &files, &job, &out).await
                }
            };
            self.patience.events.send(Event::ProgressEnded { what: job.what(), ok: built.is_ok() });
            built.map_err(|e| {
                let e = e.while_doing(format!("building {}", manifest.name));
                if e.hint_text().is_some() {
                    return e;
                }
                e.hint(format!("the whole log is {}", job.log.display()))
            })
        };
        let dir = self.store.make_derived(&key, &self.patience, make).await?;
        Ok(Built { key, dir })
    }

    async fn begin(&self, manifest: &Manifest, key: &str) -> Result<Job<'_>> {
        let mirrors = self.mirrors(manifest).await?;
        let log = self.logs.join(format!("build-{key}.log"));
        fs::create_dir_all(&self.logs)
            .and_then(|()| fs::write(&log, ""))
            .doing(Kind::Host, || "the log of a build cannot be written".into())
            .map_err(|e| e.at(&log, None))?;
        Ok(Job { name: manifest.name.clone(), builder: self, mirrors, log })
    }
}

impl Job<'_> {
    fn what(&self) -> String {
        format!("build {}", self.name)
    }

    /// The build is `done` of `total` steps on.
    fn step(&self, done: u64, total: u64) {
        self.builder.patience.events.send(Event::Progress {
            what: self.what(),
            done,
            total: Some(total),
            unit: Unit::Items,
        });
    }
}

/// The folder beside a manifest that has its name.
fn folder(manifest: &Manifest) -> PathBuf {
    manifest.path.with_extension("")
}

/// Every file below `dir` with its path, in a fixed order. A recipe without a folder has none.
fn files_of(dir: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    let mut read = || -> std::io::Result<()> {
        while let Some(at) = dirs.pop() {
            if !at.exists() {
                continue;
            }
            for entry in fs::read_dir(&at)? {
                let path = entry?.path();
                if path.is_dir() {
                    dirs.push(path);
                } else {
                    let name = path.strip_prefix(dir).unwrap_or(&path).display().to_string();
                    found.push((name, fs::read(&path)?));
                }
            }
        }
        Ok(())
    };
    read()
        .doing(Kind::Input, || "the recipe's files cannot be read".into())
        .map_err(|e| e.at(dir, None))?;
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Events;
    use crate::wait::Speed;

    const RECIPE: &str = "name = \"probe-guest\"\ndescription = \"d\"\nuser = \"cirros\"\n\
        format = \"qcow2\"\n[recipe]\nbuilder = \"probe-guest\"\nsuite = \"trixie\"\n\
        architecture = \"amd64\"\nkernel = \"k\"\npackages = []\nmodules = []\ncmdline = \"quiet\"\n";
    const NODE: &str = "name = \"node\"\ndescription = \"d\"\nuser = \"stack\"\n\
        format = \"qcow2\"\n[recipe]\nbuilder = \"debian-node\"\nsuite = \"trixie\"\n\
        architecture = \"amd64\"\ndisk_gib = 1\npackages = [\"a\"]\nmodules = []\ncmdline = \"quiet\"\n";

    fn builder(dir: &Path) -> Builder {
        Builder {
            store: Store::open(dir.join("store")).unwrap(),
            given_mirrors: None,
            logs: dir.join("logs"),
            patience: Patience::new(Speed::new(1.0), Events::silent()),
        }
    }

    fn manifest(dir: &Path, name: &str, text: &str) -> Manifest {
        let path = dir.join(format!("{name}.toml"));
        fs::create_dir_all(dir.join(name)).unwrap();
        fs::write(&path, text).unwrap();
        Manifest::load(&path).unwrap()
    }

    fn packages(names: &[&str]) -> Vec<String> {
        names.iter().map(|n| n.to_string()).collect()
    }

    #[test]
    fn the_key_changes_with_the_recipe_its_files_and_the_packages_and_with_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let builder = builder(dir.path());
        let node = manifest(dir.path(), "node", NODE);
        let key = |p: &[&str]| builder.key(&node, &packages(p)).unwrap();
        let first = key(&["b", "c"]);
        assert_eq!(first, key(&["c", "b", "c"]), "order and repetition do not matter");
        assert_ne!(first, key(&["bc"]));
        assert_ne!(first, key(&["b"]));

        fs::write(dir.path().join("node/after.sh"), "one").unwrap();
        let second = key(&["b", "c"]);
        assert_ne!(first, second, "a new file");
        fs::write(dir.path().join("node/after.sh"), "two").unwrap();
        assert_ne!(second, key(&["b", "c"]), "a changed file");

        let other = manifest(dir.path(), "node", &NODE.replace("disk_gib = 1", "disk_gib = 2"));
        assert_ne!(key(&["b", "c"]), builder.key(&other, &packages(&["b", "c"])).unwrap());
    }

    #[test]
    fn a_key_is_made_of_every_source_that_its_builder_uses() {
        let siblings = ["apt", "cpio", "debian_node", "elf", "linux", "probe_guest", "qcow2"];
        for (name, text) in [("probe-guest", RECIPE), ("node", NODE)] {
            let dir = tempfile::tempdir().unwrap();
            let recipe: Recipe = manifest(dir.path(), name, text).recipe().unwrap();
            let listed: Vec<&str> = recipe.sources().iter().map(|(file, _)| *file).collect();
            for (file, source) in recipe.sources() {
                let code = built_by(source);
                assert!(!code.contains("#[test]"), "{file}: tests build nothing");
                // As `apt::sources`, `cpio::Archive`, `use super::{Job, elf}` or `to_qcow2`.
                let words: BTreeSet<&str> =
                    code.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
                let used = |name: &str| {
                    code.contains(&format!("{name}::")) && words.contains(name)
                        || (name == "qcow2" && words.contains("to_qcow2"))
                };
                for name in siblings.iter().filter(|name| used(name)) {
                    let needed = format!("{name}.rs");
                    assert!(listed.contains(&needed.as_str()), "{file} uses {needed}: {listed:?}");
                }
            }
        }
        assert_eq!(built_by("code\n\n#[cfg(test)]\nmod tests {\n}\n"), "code\n");
    }

    #[test]
    fn a_recipe_that_takes_no_packages_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let guest = manifest(dir.path(), "probe-guest", RECIPE);
        let e = builder(dir.path()).key(&guest, &packages(&["vim"])).unwrap_err();
        assert_eq!(e.kind(), Kind::Input);
        assert!(e.message().contains("no further packages"), "{e}");
    }

    #[test]
    fn a_mistyped_key_of_a_recipe_is_named_with_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let guest = manifest(dir.path(), "probe-guest", &RECIPE.replace("suite =", "suiet ="));
        let e = builder(dir.path()).key(&guest, &[]).unwrap_err();
        assert_eq!(e.kind(), Kind::Input, "{e}");
        assert!(e.file().is_some(), "{e}");
    }

    #[tokio::test]
    async fn a_given_mirror_is_built_from() {
        let dir = tempfile::tempdir().unwrap();
        let mut builder = builder(dir.path());
        builder.given_mirrors = Some(Mirrors::given("http://given.example.org/debian/"));
        let guest = manifest(dir.path(), "probe-guest", RECIPE);
        let found = builder.mirrors(&guest).await.unwrap();
        assert_eq!(found.archive, "http://given.example.org/debian");
    }

    #[tokio::test]
    async fn what_was_built_is_found_and_not_built_again() {
        let dir = tempfile::tempdir().unwrap();
        let builder = builder(dir.path());
        let guest = manifest(dir.path(), "probe-guest", RECIPE);
        let key = builder.key(&guest, &[]).unwrap();
        let put = async |out: PathBuf| {
            fs::write(out.join("cmdline"), "quiet probe.boot=disk\n").unwrap();
            Ok(())
        };
        builder.store.make_derived(&key, &builder.patience, put).await.unwrap();
        // The recipe names no kernel, so it could not be built: it was found.
        let built = builder.build(&guest, &[]).await.unwrap();
        assert_eq!(Some(&built), builder.built(&guest, &[]).unwrap().as_ref());
        assert_eq!(built.cmdline().unwrap(), "quiet probe.boot=disk");
    }
}
