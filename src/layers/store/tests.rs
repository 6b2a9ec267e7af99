use super::*;
use crate::engine::plan::Stage;
use std::time::Duration;

fn rung(name: &'static str) -> Rung {
    let mut inputs = Inputs::default();
    inputs.set("QEMU", "10.0.2");
    let key = inputs.key(name, None);
    Rung { stage: Stage { rank: 1, name }, key, inputs }
}

async fn made(layers: &Layers, rung: &Rung) -> Made {
    let fill = async |into: PathBuf| {
        fs::create_dir_all(into.join("node")).unwrap();
        fs::write(into.join("memory"), vec![7; 10_000]).unwrap();
        fs::write(into.join("node/disk"), "frozen").unwrap();
        Ok(())
    };
    layers.make(rung, "two-node", false, fill).await.unwrap()
}

fn is_private(path: &Path) {
    let meta = fs::metadata(path).unwrap();
    assert_eq!(meta.permissions().mode() & 0o077, 0, "{}", path.display());
    if meta.is_dir() {
        fs::read_dir(path).unwrap().for_each(|e| is_private(&e.unwrap().path()));
    }
}

fn names(folder: &Path) -> Vec<String> {
    let all = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        all.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_layer_is_made_once_found_by_its_key_and_private() {
    let dir = tempfile::tempdir().unwrap();
    let layers = Layers::open(dir.path()).unwrap();
    let rung = rung("nova");
    assert!(layers.find(&rung.key).unwrap().is_none());
    assert_eq!(made(&layers, &rung).await, Made::New);
    assert_eq!(made(&layers, &rung).await, Made::There);
    is_private(layers.root());

    let held = layers.find(&rung.key).unwrap().unwrap();
    assert_eq!(fs::read_to_string(held.checkpoint().join("node/disk")).unwrap(), "frozen");
    let [layer] = &layers.all().unwrap()[..] else { panic!("there is one") };
    assert_eq!((layer.about.stage.as_str(), layer.about.lab.as_str()), ("nova", "two-node"));
    assert_eq!(layer.inputs, rung.inputs);
    assert!(layer.in_use && layer.usage.bytes() >= 10_000, "{layer:?}");
    assert!(names(&layers.tmp()).is_empty());
    drop(held);
    assert!(!layers.all().unwrap()[0].in_use);
}

#[tokio::test]
async fn a_checkpoint_that_is_a_layer_s_is_held_by_its_path_and_any_other_is_nobody_s() {
    let dir = tempfile::tempdir().unwrap();
    let layers = Layers::open(dir.path()).unwrap();
    let rung = rung("nova");
    made(&layers, &rung).await;
    let checkpoint = layers.find(&rung.key).unwrap().unwrap().checkpoint();
    let held = hold(&checkpoint).unwrap().expect("it is a layer's");
    assert!(!layers.remove(&rung.key).unwrap(), "in use");
    drop(held);
    assert!(layers.remove(&rung.key).unwrap());
    let e = hold(&checkpoint).unwrap_err();
    assert!(e.message().contains("just been removed") && e.hint_text().is_some(), "{e}");
    let own = dir.path().join("checkpoints/ready");
    assert!(hold(&own).unwrap().is_none());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "looking makes nothing");
}

#[tokio::test]
async fn a_layer_in_use_is_not_removed_and_a_free_one_is_with_its_lock() {
    let dir = tempfile::tempdir().unwrap();
    let layers = Layers::open(dir.path()).unwrap();
    let rung = rung("nova");
    made(&layers, &rung).await;
    let held = layers.find(&rung.key).unwrap().unwrap();
    // Another process opens the store for itself.
    let other = Layers::open(dir.path()).unwrap();
    let also = other.find(&rung.key).unwrap().unwrap();
    drop(held);
    assert!(!other.remove(&rung.key).unwrap());
    assert!(also.checkpoint().join("memory").exists());
    drop(also);
    assert!(other.remove(&rung.key).unwrap());
    assert!(other.all().unwrap().is_empty());
    assert!(names(&layers.locks()).is_empty() && names(&layers.tmp()).is_empty());
}

#[tokio::test]
async fn a_failed_or_dropped_making_leaves_nothing_and_the_next_one_works() {
    let dir = tempfile::tempdir().unwrap();
    let layers = Layers::open(dir.path()).unwrap();
    let rung = rung("nova");
    let fail = async |into: PathBuf| {
        fs::create_dir(&into).unwrap();
        fs::write(into.join("memory"), "half").unwrap();
        Err(Error::lab("QEMU died"))
    };
    let e = layers.make(&rung, "l", false, fail).await.unwrap_err();
    assert_eq!(e.message(), "QEMU died");
    {
        let never = layers.make(&rung, "l", false, async |_| std::future::pending().await);
        tokio::pin!(never);
        assert!(tokio::time::timeout(Duration::ZERO, &mut never).await.is_err());
        assert_eq!(names(&layers.tmp()).len(), 1);
        // Who comes second does not wait, and nobody finds half a layer.
        assert_eq!(made(&layers, &rung).await, Made::Elsewhere);
        assert!(layers.find(&rung.key).unwrap().is_none());
        // The sweep of another process leaves a living one alone.
        Layers::open(dir.path()).unwrap();
        assert_eq!(names(&layers.tmp()).len(), 1);
    }
    assert!(names(&layers.tmp()).is_empty());
    assert_eq!(made(&layers, &rung).await, Made::New);
}

#[tokio::test]
async fn what_a_killed_maker_left_is_swept_and_foreign_files_stay() {
    let dir = tempfile::tempdir().unwrap();
    let layers = Layers::open(dir.path()).unwrap();
    let half = layers.tmp().join(format!("{}~abc", rung("nova").key.as_str()));
    fs::create_dir(&half).unwrap();
    fs::write(half.join("memory"), "half").unwrap();
    fs::write(layers.tmp().join("foreign"), "").unwrap();
    fs::create_dir(layers.root().join("photos")).unwrap();
    Layers::open(dir.path()).unwrap();
    assert_eq!(names(&layers.tmp()), ["foreign"]);
    assert!(layers.root().join("photos").exists() && layers.all().unwrap().is_empty());
}

#[tokio::test]
async fn a_broken_layer_is_put_aside_with_the_reason_and_only_the_last_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let layers = Layers::open(dir.path()).unwrap();
    for name in ["nova", "neutron"] {
        let rung = rung(name);
        made(&layers, &rung).await;
        let held = layers.find(&rung.key).unwrap().unwrap();
        let aside = layers.put_aside(held, "memory is truncated").unwrap().unwrap();
        assert_eq!(fs::read_to_string(aside.join("why")).unwrap(), "memory is truncated");
        assert_eq!(names(&layers.broken()), [rung.key.as_str()]);
        assert!(layers.find(&rung.key).unwrap().is_none());
    }
    is_private(layers.root());
    assert!(layers.broken_bytes() > 0);
    layers.remove_broken().unwrap();
    assert!(names(&layers.broken()).is_empty());
}

#[tokio::test]
async fn a_layer_that_cannot_say_what_it_is_serves_nobody_and_is_listed_as_the_oldest() {
    let dir = tempfile::tempdir().unwrap();
    let layers = Layers::open(dir.path()).unwrap();
    let (whole, torn) = (rung("nova"), rung("neutron"));
    made(&layers, &whole).await;
    made(&layers, &torn).await;
    fs::remove_file(layers.place(&torn.key).join(ABOUT)).unwrap();
    assert!(layers.find(&torn.key).unwrap().is_none());
    let all = layers.all().unwrap();
    assert_eq!((all[0].key.clone(), all[1].key.clone()), (whole.key, torn.key.clone()));
    assert_eq!(all[1].about.stage, "?");
    assert!(layers.remove(&torn.key).unwrap());
}

#[tokio::test]
async fn a_use_is_told_by_time() {
    let dir = tempfile::tempdir().unwrap();
    let layers = Layers::open(dir.path()).unwrap();
    let (a, b) = (rung("nova"), rung("neutron"));
    made(&layers, &a).await;
    made(&layers, &b).await;
    for (rung, age) in [(&a, 500), (&b, 400)] {
        let used = File::options().write(true).open(layers.place(&rung.key).join(USED)).unwrap();
        used.set_modified(SystemTime::now() - Duration::from_secs(age)).unwrap();
    }
    let first = || layers.all().unwrap()[0].key.clone();
    assert_eq!(first(), b.key);
    layers.find(&a.key).unwrap().unwrap();
    assert_eq!(first(), a.key);
}

#[test]
fn a_link_in_a_checkpoint_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("/etc/passwd", dir.path().join("disk")).unwrap();
    assert!(make_private(dir.path()).unwrap_err().to_string().contains("neither a file"));
}
