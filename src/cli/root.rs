//! Where manifests, labs and guest files come from: a folder that was given, the current folder
//! where it is a source tree, else the copies inside this program.

use super::environment::Environment;
use crate::error::{Context, Error, Kind, Result};
use crate::images::manifest;
use std::path::{Path, PathBuf};

mod embedded {
    include!(concat!(env!("OUT_DIR"), "/embedded.rs"));
}

/// A folder with `images/` and `vmtests/labs/` in it. Copies taken from the program live in a
/// temporary folder that goes away with this value.
#[derive(Debug)]
pub struct Root {
    folder: PathBuf,
    _unpacked: Option<tempfile::TempDir>,
}

impl Root {
    pub fn find(env: &Environment) -> Result<Root> {
        if let Some(given) = &env.root {
            if !is_root(given) {
                return Err(Error::input("--root has no images/ and vmtests/labs/ in it")
                    .at(given, None)
                    .hint("Give the folder of a stackproof source tree, or leave --root away."));
            }
            return Ok(Root { folder: given.clone(), _unpacked: None });
        }
        if is_root(&env.cwd) {
            return Ok(Root { folder: env.cwd.clone(), _unpacked: None });
        }
        let folder = temporary()?;
        unpack(embedded::FILES, folder.path())?;
        Ok(Root { folder: folder.path().to_owned(), _unpacked: Some(folder) })
    }

    /// Whether the files are copies of those inside the program.
    pub fn is_embedded(&self) -> bool {
        self._unpacked.is_some()
    }

    pub fn images(&self) -> PathBuf {
        self.folder.join("images")
    }

    /// Every lab file in `vmtests/labs/`.
    pub fn labs(&self) -> Vec<PathBuf> {
        let labs = self.folder.join("vmtests/labs");
        names(&labs).into_iter().map(|name| labs.join(format!("{name}.toml"))).collect()
    }

    /// The lab file that `lab` names: a path (absolute, or from `cwd`), or the name of a lab in
    /// `vmtests/labs/`.
    pub fn lab(&self, lab: &str, cwd: &Path) -> Result<PathBuf> {
        let path = cwd.join(lab);
        if path.is_file() {
            return Ok(path);
        }
        let labs = self.folder.join("vmtests/labs");
        let named = labs.join(format!("{lab}.toml"));
        if !lab.contains('/') && named.is_file() {
            return Ok(named);
        }
        let known: Vec<_> = names(&labs);
        Err(Error::input("no such lab file")
            .at(lab, None)
            .hint(format!("Give the path of a lab file, or one of: {}.", known.join(", "))))
    }
}

/// Where TMPDIR says, or where else a temporary folder can be made.
fn temporary() -> Result<tempfile::TempDir> {
    let named = std::env::temp_dir();
    let make = |at: &Path| tempfile::Builder::new().prefix("stackproof-files-").tempdir_in(at);
    let made = make(&named).or_else(|e| {
        let mut others = ["/tmp", "/var/tmp", "/dev/shm"].iter();
        others.find_map(|at| make(Path::new(at)).ok()).ok_or(e)
    });
    made.map_err(|e| {
        Error::host("a temporary folder cannot be made")
            .at(&named, None)
            .because(e)
            .hint("set TMPDIR to a folder that can be written")
    })
}

fn is_root(folder: &Path) -> bool {
    folder.join("images").is_dir() && folder.join("vmtests/labs").is_dir()
}

fn names(labs: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(labs)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|e| manifest::is_toml_file(&e.path()))
        .filter_map(|e| Some(e.file_name().to_str()?.strip_suffix(".toml")?.to_owned()))
        .collect();
    names.sort();
    names
}

fn unpack(files: &[(&str, &[u8])], to: &Path) -> Result<()> {
    for (name, contents) in files {
        let path = to.join(name);
        let write = || {
            std::fs::create_dir_all(path.parent().unwrap_or(to))?;
            std::fs::write(&path, contents)
        };
        write().doing(Kind::Host, || format!("{} cannot be written", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> Root {
        let dir = tempfile::tempdir().unwrap();
        unpack(
            &[
                ("images/a.toml", b"a"),
                ("vmtests/labs/one.toml", b""),
                ("vmtests/labs/two.toml", b""),
            ],
            dir.path(),
        )
        .unwrap();
        Root { folder: dir.path().to_owned(), _unpacked: Some(dir) }
    }

    #[test]
    fn a_lab_is_found_by_path_then_by_name_and_an_unknown_one_lists_what_there_is() {
        let root = tree();
        let elsewhere = tempfile::tempdir().unwrap();
        std::fs::write(elsewhere.path().join("mine.toml"), "").unwrap();
        let cwd = elsewhere.path();
        assert_eq!(root.lab("mine.toml", cwd).unwrap(), cwd.join("mine.toml"));
        assert!(root.lab("two", cwd).unwrap().ends_with("vmtests/labs/two.toml"));
        let e = root.lab("three", cwd).unwrap_err();
        assert_eq!(e.kind(), Kind::Input);
        assert!(e.hint_text().unwrap().contains("one, two"), "{e:?}");
    }

    #[test]
    fn a_name_cannot_climb_out_of_the_labs() {
        let root = tree();
        assert!(root.lab("../../images/a", Path::new("/nonexistent")).is_err());
    }

    #[test]
    fn the_embedded_copies_are_the_files_of_the_source_tree() {
        let source = Path::new(env!("CARGO_MANIFEST_DIR"));
        for (name, contents) in embedded::FILES {
            assert_eq!(std::fs::read(source.join(name)).unwrap(), *contents, "{name}");
        }
        let manifests = std::fs::read_dir(source.join("images")).into_iter().flatten().count();
        let embedded = embedded::FILES.iter().filter(|(n, _)| n.starts_with("images/")).count();
        assert!(embedded >= manifests.min(1), "images/ is embedded");
    }
}
