use super::*;
use crate::event::Events;
use crate::images::manifest::Manifest;
use crate::images::store::Store;
use crate::wait::{Patience, Speed};

const RECIPE: &str = "name = \"node\"\ndescription = \"d\"\nuser = \"stack\"\n\
    format = \"qcow2\"\n[recipe]\nbuilder = \"debian-node\"\nsuite = \"trixie\"\n\
    architecture = \"amd64\"\ndisk_gib = 1\npackages = [\"a\"]\nmodules = []\ncmdline = \"quiet\"\n";

fn fixture(name: &str) -> Vec<u8> {
    let path = format!("{}/fixtures/images/qcow2/{name}.qcow2", env!("CARGO_MANIFEST_DIR"));
    fs::read(&path).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// A machine with a store of its own and a recipe and a pin beside it.
struct Machine {
    dir: tempfile::TempDir,
    builder: Builder,
    manifests: Manifests,
}

impl Machine {
    fn new() -> Machine {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("store")).unwrap();
        let patience = Patience::new(Speed::new(1.0), Events::silent());
        let builder =
            Builder { store, given_mirrors: None, logs: dir.path().join("logs"), patience };
        let digest = Digest::of(Algorithm::Sha256, &fixture("plain")).hex();
        let pin = format!(
            "name = \"a-pin\"\ndescription = \"\"\nuser = \"u\"\nformat = \"qcow2\"\n[pin]\n\
             url = \"http://h/x\"\nsha256 = \"{digest}\"\n"
        );
        fs::create_dir(dir.path().join("node")).unwrap();
        fs::write(dir.path().join("node/after.sh"), "one").unwrap();
        let parse =
            |name: &str, text: String| Manifest::parse(&dir.path().join(name), text).unwrap();
        let manifests =
            Manifests::new(vec![parse("node.toml", RECIPE.into()), parse("a-pin.toml", pin)]);
        Machine { dir, builder, manifests }
    }

    fn recipe(&self) -> &Manifest {
        self.manifests.get("node").unwrap()
    }

    /// As if the recipe had been built, with this disk.
    async fn build(&self, disk: &str) {
        let key = self.builder.key(self.recipe(), &packages("node")).unwrap();
        let make = async |out: PathBuf| {
            fs::write(out.join(BUILT_DISK), fixture(disk)).unwrap();
            for name in ["vmlinuz", "initrd", "cmdline"] {
                fs::write(out.join(name), name).unwrap();
            }
            Ok(())
        };
        self.builder.store.make_derived(&key, &self.builder.patience, make).await.unwrap();
    }

    async fn export(&self, name: &str) -> Result<PathBuf> {
        let manifest = self.manifests.get(name).unwrap();
        let to = self.dir.path().join("travel");
        export_image(&self.builder, manifest, &packages(name), &to).await
    }

    async fn import(&self, from: &Path) -> Result<ImportedImage> {
        import_image(&self.builder, &self.manifests, packages, from).await
    }
}

fn packages(_: &str) -> Vec<String> {
    vec!["vim".into()]
}

#[tokio::test]
async fn a_built_image_travels_with_its_kernel() {
    let (one, other) = (Machine::new(), Machine::new());
    one.build("plain").await;
    let folder = one.export("node").await.unwrap();
    let imported = other.import(&folder).await.unwrap();
    assert!(!imported.was_there);
    let built = other.builder.built(other.recipe(), &packages("node")).unwrap().unwrap();
    assert_eq!(built.disk(), imported.disk);
    assert_eq!(fs::read(built.disk()).unwrap(), fixture("plain"));
    assert_eq!(built.cmdline().unwrap(), "cmdline");
    other.builder.store.verify_derived(&built.key, &Events::silent()).await.unwrap();
    assert!(other.import(&folder).await.unwrap().was_there);
    let again = one.export("node").await.unwrap_err();
    assert_eq!(again.kind(), Kind::Input, "{again}");
}

#[tokio::test]
async fn other_inputs_are_refused_and_named() {
    let (one, other) = (Machine::new(), Machine::new());
    one.build("plain").await;
    let folder = one.export("node").await.unwrap();
    fs::write(other.dir.path().join("node/after.sh"), "two").unwrap();
    let e = other.import(&folder).await.unwrap_err();
    assert_eq!(e.kind(), Kind::Image);
    assert_eq!(e.evidence_lines()[0], "file after.sh: differs");
    assert_eq!(other.builder.store.derived_of("node"), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn a_changed_byte_is_refused_and_nothing_kept() {
    let (one, other) = (Machine::new(), Machine::new());
    one.build("plain").await;
    let folder = one.export("node").await.unwrap();
    fs::write(folder.join("vmlinuz"), "other bytes").unwrap();
    let e = other.import(&folder).await.unwrap_err();
    assert!(e.to_string().contains("vmlinuz: has changed"), "{e}");
    assert_eq!(other.builder.store.derived_of("node"), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn a_disk_with_a_backing_file_is_refused() {
    let (one, other) = (Machine::new(), Machine::new());
    one.build("backing-file").await;
    let folder = one.export("node").await.unwrap();
    let e = other.import(&folder).await.unwrap_err();
    assert_eq!(e.kind(), Kind::Image, "{e}");
    assert_eq!(other.builder.store.derived_of("node"), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn a_link_in_the_folder_is_refused() {
    let (one, other) = (Machine::new(), Machine::new());
    one.build("plain").await;
    let folder = one.export("node").await.unwrap();
    fs::remove_file(folder.join("initrd")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", folder.join("initrd")).unwrap();
    let e = other.import(&folder).await.unwrap_err();
    assert!(e.to_string().contains("not a plain file"), "{e}");
}

#[tokio::test]
async fn a_pinned_image_is_accepted_by_its_digest() {
    let (one, other) = (Machine::new(), Machine::new());
    let missing = one.export("a-pin").await.unwrap_err();
    assert_eq!(missing.hint_text(), Some("stackproof images fetch a-pin"));
    let digest = one.manifests.get("a-pin").unwrap().pin().unwrap().digest;
    let begun = one.builder.store.begin_blob(&digest, &one.builder.patience).await.unwrap();
    let Begin::Write(mut writer) = begun else { panic!("it is not there yet") };
    writer.write(&fixture("plain")).unwrap();
    writer.finish().unwrap();

    let folder = one.export("a-pin").await.unwrap();
    let imported = other.import(&folder).await.unwrap();
    assert_eq!(fs::read(&imported.disk).unwrap(), fixture("plain"));
    let third = Machine::new();
    fs::write(folder.join(BUILT_DISK), fixture("v2")).unwrap();
    let e = third.import(&folder).await.unwrap_err();
    assert!(e.to_string().contains("wrong digest"), "{e}");
}

#[tokio::test]
async fn a_folder_without_a_record_is_refused_with_the_next_step() {
    let (machine, empty) = (Machine::new(), tempfile::tempdir().unwrap());
    let e = machine.import(empty.path()).await.unwrap_err();
    assert!(e.hint_text().unwrap().contains("images export"), "{e}");
}
