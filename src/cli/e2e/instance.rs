//! Which image the instance boots, and who logs in to it.

use crate::cli::args::E2e;
use crate::cli::record::NotRun;
use crate::cli::session::Work;
use crate::cluster::images::ensure_image;
use crate::cluster::instance::InstanceImage;
use crate::error::{Error, Result};
use crate::images::manifest::{Format, Manifest, Manifests};
use crate::images::store::Store;
use crate::images::{Presence, presence};
use std::path::{Path, PathBuf};

/// What was asked for, known to exist, not fetched or built yet.
#[derive(Debug)]
pub enum Wanted<'m> {
    Known { manifest: &'m Manifest, user: String },
    File { path: PathBuf, user: String },
}

impl<'m> Wanted<'m> {
    /// Reads `--instance-image` and `--instance-user`. A name of a manifest comes before a file of
    /// the same name without a slash.
    pub fn of(args: &E2e, manifests: &'m Manifests, cwd: &Path) -> Result<Wanted<'m>> {
        let image = args.instance_image.as_str();
        let looks_like_file = image.contains('/') || image.ends_with(".qcow2");
        if !looks_like_file {
            let manifest = manifests.get(image)?;
            if manifest.format != Format::Qcow2 {
                return Err(Error::input(format!("{image} is not a qcow2 image"))
                    .at(&manifest.path, None)
                    .hint("choose another from `stackproof images list`"));
            }
            let user = args.instance_user.clone().unwrap_or_else(|| manifest.user.clone());
            return Ok(Wanted::Known { manifest, user });
        }
        let path = cwd.join(image);
        if !path.is_file() {
            return Err(Error::input("the instance image is not there")
                .at(image, None)
                .hint("give the path of a qcow2 file, or a name from `stackproof images list`"));
        }
        let user = args.instance_user.clone().ok_or_else(|| {
            Error::input("nobody is named who logs in to the instance")
                .at(image, None)
                .hint("add --instance-user USER: the account that takes a key at first boot")
        })?;
        Ok(Wanted::File { path, user })
    }

    pub fn manifest(&self) -> Option<&'m Manifest> {
        match self {
            Wanted::Known { manifest, .. } => Some(manifest),
            Wanted::File { .. } => None,
        }
    }

    fn name(&self) -> &str {
        self.manifest().map_or("", |manifest| &manifest.name)
    }

    /// Brings the image in and reads its header.
    pub async fn obtain(self, work: &Work, store: &Store) -> Result<InstanceImage> {
        let (name, disk, user) = match self {
            Wanted::Known { manifest, user } => {
                let disk = ensure_image(work, store, manifest).await?;
                (manifest.name.clone(), disk, user)
            }
            Wanted::File { path, user } => {
                let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
                (name, path, user)
            }
        };
        InstanceImage::open(name, disk, user)
    }
}

/// The images that people use and this run did not, with the reason: a run with one image proves
/// nothing of the others.
pub fn not_run(wanted: &Wanted, manifests: &Manifests, store: &Store) -> Vec<NotRun> {
    let others = manifests.iter().filter(|m| m.pin().is_some() && m.name != wanted.name());
    others
        .map(|m| NotRun {
            name: m.name.clone(),
            reason: match presence(m, store) {
                Presence::Missing => "not in the store".into(),
                _ => format!("not asked for (--instance-image {})", m.name),
            },
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::{Cli, Verb};
    use crate::error::Kind;
    use clap::Parser;

    fn args(line: &str) -> E2e {
        let line = format!("stackproof e2e {line}");
        match Cli::try_parse_from(line.split_whitespace()).unwrap().verb {
            Verb::E2e(args) => args,
            _ => unreachable!(),
        }
    }

    fn manifests() -> Manifests {
        let pin = |name: &str| {
            let text = format!(
                "name = \"{name}\"\ndescription = \"\"\nuser = \"cirros\"\nformat = \"qcow2\"\n\
                 [pin]\nurl = \"http://example.org/x\"\nsha256 = \"{}\"\n",
                "0".repeat(64)
            );
            Manifest::parse(Path::new(&format!("images/{name}.toml")), text).unwrap()
        };
        Manifests::new(vec![pin("cirros-0.6.3"), pin("cirros-0.6.2")])
    }

    #[test]
    fn a_known_image_brings_its_user_unless_one_is_given() {
        let all = manifests();
        for (line, wanted) in [("", "cirros"), ("--instance-user joe", "joe")] {
            let args = args(&format!("--instance-image cirros-0.6.3 {line}"));
            let Wanted::Known { user, .. } = Wanted::of(&args, &all, Path::new("/")).unwrap()
            else {
                panic!("it is known")
            };
            assert_eq!(user, wanted);
        }
    }

    #[test]
    fn a_file_needs_a_user_and_must_be_there() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a.qcow2"), "").unwrap();
        let all = manifests();
        let of = |line: &str| Wanted::of(&args(line), &all, dir.path()).map(drop).unwrap_err();
        let e = of("--instance-image a.qcow2");
        assert!(e.hint_text().unwrap().contains("--instance-user"), "{e}");
        let e = of("--instance-image b.qcow2 --instance-user joe");
        assert!(e.to_string().contains("b.qcow2"), "{e}");
        assert_eq!(e.kind(), Kind::Input);
    }

    #[test]
    fn a_typing_error_is_answered_with_the_near_name() {
        let all = manifests();
        let args = args("--instance-image cirros-0.6.4");
        let e = Wanted::of(&args, &all, Path::new("/")).unwrap_err();
        assert!(e.hint_text().unwrap().contains("cirros-0.6."), "{e:?}");
    }

    #[test]
    fn every_other_pinned_image_is_reported_as_not_run() {
        let dir = tempfile::tempdir().unwrap();
        let (store, all) = (Store::open(dir.path()).unwrap(), manifests());
        let args = args("--instance-image cirros-0.6.3");
        let wanted = Wanted::of(&args, &all, Path::new("/")).unwrap();
        let not_run = not_run(&wanted, &all, &store);
        assert_eq!(not_run.len(), 1);
        assert_eq!(not_run[0].name, "cirros-0.6.2");
        assert_eq!(not_run[0].reason, "not in the store");
    }
}
