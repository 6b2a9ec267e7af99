use super::*;
use crate::wait::Speed;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::sync::oneshot;

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("store")).unwrap();
    (dir, store)
}

fn patience() -> Patience {
    Patience::new(Speed::new(1.0), Events::silent())
}

async fn put(store: &Store, content: &[u8]) -> (Digest, PathBuf) {
    let digest = Digest::of(Algorithm::Sha256, content);
    let mut writer = writer(store, &digest).await;
    writer.write(content).unwrap();
    (digest, writer.finish().unwrap())
}

async fn writer(store: &Store, digest: &Digest) -> Box<BlobWriter> {
    match store.begin_blob(digest, &patience()).await.unwrap() {
        Begin::Write(writer) => writer,
        Begin::Present(path) => panic!("{} is there already", path.display()),
    }
}

async fn build(store: &Store, key: &str) -> PathBuf {
    store
        .make_derived(key, &patience(), async |dir: PathBuf| {
            std::fs::write(dir.join("disk.qcow2"), b"disk").unwrap();
            std::fs::create_dir(dir.join("boot")).unwrap();
            std::fs::write(dir.join("boot/vmlinuz"), b"kernel").unwrap();
            Ok(())
        })
        .await
        .unwrap()
}

/// Sets the stamp of a thing to `hours` ago.
fn age(path: &Path, hours: u64) {
    let then = SystemTime::now() - Duration::from_secs(hours * 3600);
    File::open(path).unwrap().set_modified(then).unwrap();
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn empty(folder: &Path) -> bool {
    std::fs::read_dir(folder).unwrap().next().is_none()
}

fn at_most(max_bytes: u64) -> GcPolicy {
    GcPolicy { max_bytes, ..Default::default() }
}

#[tokio::test]
async fn a_file_is_found_under_its_digest_and_is_private() {
    let (_dir, store) = store();
    let (digest, path) = put(&store, b"content").await;
    assert_eq!(store.blob(&digest), Some(path.clone()));
    assert!(path.ends_with(format!("sha256/{}/{}", &digest.hex()[..2], digest.hex())));
    assert_eq!(std::fs::read(&path).unwrap(), b"content");
    assert_eq!(
        (mode(&path), mode(path.parent().unwrap()), mode(store.root())),
        (0o600, 0o700, 0o700)
    );
    assert!(empty(&store.root.join("partial")));
    assert!(matches!(store.begin_blob(&digest, &patience()).await.unwrap(), Begin::Present(_)));
}

#[tokio::test]
async fn a_file_with_another_content_than_its_name_never_lands() {
    let (_dir, store) = store();
    let digest = Digest::of(Algorithm::Sha512, b"right");
    let mut w = writer(&store, &digest).await;
    w.write(b"wrong").unwrap();
    let e = w.finish().unwrap_err();
    let got = Digest::of(Algorithm::Sha512, b"wrong").to_string();
    assert!(e.message().contains(&digest.to_string()) && e.message().contains(&got), "{e}");
    assert_eq!(store.blob(&digest), None);
    assert!(empty(&store.root.join("partial")));
}

#[tokio::test]
async fn what_was_written_is_taken_up_by_rehashing_it() {
    let (_dir, store) = store();
    let digest = Digest::of(Algorithm::Sha256, b"first second");
    let mut w = writer(&store, &digest).await;
    w.note_origin("from here").unwrap();
    w.write(b"first ").unwrap();
    drop(w);
    let mut w = writer(&store, &digest).await;
    assert_eq!(w.origin().as_deref(), Some("from here"));
    assert_eq!(w.take_up(|_| Ok(())).unwrap(), 6);
    w.write(b"second").unwrap();
    assert_eq!(std::fs::read(w.finish().unwrap()).unwrap(), b"first second");
    assert!(empty(&store.root.join("partial")));
}

#[tokio::test]
async fn a_restart_forgets_the_old_bytes_and_their_origin() {
    let (_dir, store) = store();
    let digest = Digest::of(Algorithm::Sha256, b"new");
    let mut w = writer(&store, &digest).await;
    w.note_origin("old").unwrap();
    w.write(b"much longer than the new content").unwrap();
    w.restart().unwrap();
    assert_eq!((w.written(), w.origin()), (0, None));
    w.write(b"new").unwrap();
    assert_eq!(std::fs::read(w.finish().unwrap()).unwrap(), b"new");
}

#[tokio::test(start_paused = true)]
async fn the_second_writer_waits_says_so_and_then_finds_the_file() {
    let (_dir, store) = store();
    let digest = Digest::of(Algorithm::Sha256, b"x");
    let mut first = writer(&store, &digest).await;
    let (events, mut seen) = Events::channel();
    let second = {
        let store = store.clone();
        tokio::spawn(async move {
            let patience = Patience::new(Speed::new(1.0), events);
            matches!(store.begin_blob(&digest, &patience).await.unwrap(), Begin::Present(_))
        })
    };
    // Its note comes once it has seen that the lock is held.
    let note = seen.recv().await.unwrap().event;
    assert!(
        matches!(&note, Event::Note { text, .. } if text.contains("another process")),
        "{note:?}"
    );
    first.write(b"x").unwrap();
    first.finish().unwrap();
    assert!(second.await.unwrap());
}

#[tokio::test]
async fn a_built_thing_is_found_under_its_key_listed_and_private() {
    let (_dir, store) = store();
    let key = derived_key("probe-guest", &Digest::of(Algorithm::Sha256, b"inputs"));
    assert_eq!(store.derived(&key), None);
    let path = build(&store, &key).await;
    assert_eq!(store.derived(&key), Some(path.clone()));
    assert_eq!(store.derived_of("probe-guest"), vec![path.clone()]);
    assert!(store.derived_of("probe").is_empty());
    for (name, wanted) in [
        ("", 0o700),
        ("disk.qcow2", 0o600),
        ("boot", 0o700),
        ("boot/vmlinuz", 0o600),
        (SUMS, 0o600),
    ] {
        assert_eq!(mode(&path.join(name)), wanted, "{name}");
    }
    let sums = super::super::sums::parse(&std::fs::read_to_string(path.join(SUMS)).unwrap());
    let names: Vec<_> = sums.iter().map(|e| e.name.as_str()).collect();
    assert_eq!(names, ["boot/vmlinuz", "disk.qcow2"]);
    assert!(empty(&store.root.join("tmp")));
    store.verify_derived(&key, &Events::silent()).await.unwrap();
}

#[tokio::test]
async fn a_built_thing_that_was_changed_fails_its_verification() {
    let (_dir, store) = store();
    let path = build(&store, "k-1").await;
    std::fs::write(path.join("boot/vmlinuz"), b"other").unwrap();
    let e = store.verify_derived("k-1", &Events::silent()).await.unwrap_err();
    assert!(e.to_string().contains("boot/vmlinuz") && e.message().contains("changed"), "{e}");
}

#[tokio::test]
async fn a_stored_file_that_was_changed_is_removed_by_its_verification() {
    let (_dir, store) = store();
    let (digest, path) = put(&store, b"content").await;
    store.verify_blob(&digest, &Events::silent()).await.unwrap();
    std::fs::write(&path, b"rotten").unwrap();
    let e = store.verify_blob(&digest, &Events::silent()).await.unwrap_err();
    assert!(e.message().contains(&digest.to_string()), "{e}");
    assert_eq!(store.blob(&digest), None);
}

#[tokio::test]
async fn what_fails_or_is_dropped_while_being_built_leaves_nothing() {
    let (_dir, store) = store();
    let failed = store
        .make_derived("k-1", &patience(), async |dir: PathBuf| {
            std::fs::write(dir.join("half"), b"x").unwrap();
            Err(Error::image("no room"))
        })
        .await;
    assert_eq!(failed.unwrap_err().message(), "no room");
    let (started, is_started) = oneshot::channel();
    let dropped = tokio::spawn({
        let store = store.clone();
        async move {
            store
                .make_derived("k-1", &patience(), async |dir: PathBuf| {
                    std::fs::write(dir.join("half"), b"x").unwrap();
                    started.send(()).unwrap();
                    std::future::pending().await
                })
                .await
        }
    });
    is_started.await.unwrap();
    dropped.abort();
    assert!(dropped.await.unwrap_err().is_cancelled());
    assert!(empty(&store.root.join("tmp")) && empty(&store.root.join("derived")));
    // And the lock is free again.
    build(&store, "k-1").await;
}

#[tokio::test]
async fn a_symbolic_link_is_not_taken_into_the_store() {
    let (_dir, store) = store();
    let made = store
        .make_derived("k-1", &patience(), async |dir: PathBuf| {
            std::os::unix::fs::symlink("/etc/hostname", dir.join("disk.qcow2")).unwrap();
            Ok(())
        })
        .await;
    assert!(made.unwrap_err().to_string().contains("neither a file nor a folder"));
    assert_eq!(store.derived("k-1"), None);
}

#[tokio::test(start_paused = true)]
async fn many_makers_of_one_key_make_it_once() {
    let (_dir, store) = store();
    let made = Arc::new(AtomicU32::new(0));
    let makers: Vec<_> = (0..8)
        .map(|_| {
            let (store, made) = (store.clone(), made.clone());
            tokio::spawn(async move {
                store
                    .make_derived("k-1", &patience(), async |dir: PathBuf| {
                        made.fetch_add(1, Ordering::Relaxed);
                        tokio::task::yield_now().await;
                        std::fs::write(dir.join("f"), b"x").unwrap();
                        Ok(())
                    })
                    .await
                    .unwrap()
            })
        })
        .collect();
    for maker in makers {
        assert!(maker.await.unwrap().join("f").exists());
    }
    assert_eq!(made.load(Ordering::Relaxed), 1);
}

#[test]
fn keys_that_would_leave_the_store_are_refused() {
    for key in ["", "..", "a/b", ".hidden", "-rf", "UPPER", "a~b", "a_b", "a\0b"] {
        assert!(checked_key(key).is_err(), "{key:?}");
    }
    assert!(checked_key("debian-13-node-00ff").is_ok());
}

#[tokio::test]
async fn opening_sweeps_what_the_dead_left_and_spares_the_living() {
    let (_dir, store) = store();
    // What a killed maker leaves: a folder, and no lock.
    std::fs::create_dir(store.root.join("tmp/dead-1~abc")).unwrap();
    std::fs::write(store.root.join("tmp/dead-1~abc/half"), b"x").unwrap();
    let old = Digest::of(Algorithm::Sha256, b"old");
    drop(writer(&store, &old).await);
    age(&store.root.join("partial").join(blob_lock(&old)), 24 * 8);
    let young = Digest::of(Algorithm::Sha256, b"young");
    drop(writer(&store, &young).await);
    // A maker that lives.
    let _lock = store.lock("live-1", "live", &patience()).await.unwrap();
    std::fs::create_dir(store.root.join("tmp/live-1~abc")).unwrap();
    let stalled = Digest::of(Algorithm::Sha256, b"stalled");
    let _stalled = writer(&store, &stalled).await;
    age(&store.root.join("partial").join(blob_lock(&stalled)), 24 * 8);

    Store::open(store.root()).unwrap();
    assert!(!store.root.join("tmp/dead-1~abc").exists());
    assert!(store.root.join("tmp/live-1~abc").exists());
    let left = |d: &Digest| store.root.join("partial").join(blob_lock(d)).exists();
    assert_eq!((left(&old), left(&young), left(&stalled)), (false, true, true));
}

#[test]
fn a_leftover_that_cannot_be_removed_is_told_and_keeps_nobody_from_the_store() {
    let (_dir, store) = store();
    assert_eq!(store.unswept(), [] as [String; 0]);
    // No folder: so it is not removed as one.
    std::fs::write(store.root.join("tmp/dead-1~abc"), b"x").unwrap();
    std::fs::create_dir(store.root.join("tmp/dead-2~abc")).unwrap();
    let store = Store::open(store.root()).unwrap();
    let [problem] = store.unswept() else { panic!("{:?}", store.unswept()) };
    assert!(problem.contains("dead-1~abc could not be removed"), "{problem}");
    assert!(!store.root.join("tmp/dead-2~abc").exists(), "the others are");
}

#[tokio::test]
async fn collecting_takes_the_longest_unused_first_and_stops_at_the_bound() {
    let (_dir, store) = store();
    let mut all = Vec::new();
    for (content, hours) in [(1u8, 3), (2, 2), (3, 1)] {
        let (digest, path) = put(&store, &vec![content; 64 << 10]).await;
        age(&path, hours);
        all.push((digest, path));
    }
    let one = disk_usage(&all[0].1).unwrap();
    assert!(one >= 64 << 10);
    // The oldest is used now, so the second is the oldest.
    store.blob(&all[0].0).unwrap();
    let done = store.gc(&at_most(one * 2)).unwrap();
    assert_eq!(done.removed, [GcItem { path: all[1].1.clone(), bytes: one }]);
    assert_eq!((done.kept, done.freed), (one * 2, one));
    assert!(all[0].1.exists() && !all[1].1.exists() && all[2].1.exists());
    assert_eq!(store.gc(&at_most(u64::MAX)).unwrap().removed, []);
}

#[tokio::test]
async fn what_is_leased_is_not_collected_until_the_lease_ends() {
    let (_dir, store) = store();
    let built = build(&store, "k-1").await;
    let (_, blob) = put(&store, b"content").await;
    // A lease on a file inside holds the whole thing; two users can hold it.
    let leases = [
        store.lease(&built.join("disk.qcow2")).unwrap(),
        store.lease(&built).unwrap(),
        store.lease(&blob).unwrap(),
    ];
    let done = store.gc(&at_most(0)).unwrap();
    assert!(done.removed.is_empty() && done.in_use.len() == 2, "{done:?}");
    drop(leases);
    let done = store.gc(&at_most(0)).unwrap();
    assert_eq!((done.removed.len(), done.kept), (2, 0));
    assert!(!built.exists() && !blob.exists());
    assert!(empty(&store.root.join("tmp")) && empty(&store.root.join("locks")));
    let e = store.lease(&blob).unwrap_err();
    assert!(e.message().contains("no longer"), "{e}");
    // It can be made again after its lock file went with it.
    build(&store, "k-1").await;
}

#[tokio::test]
async fn named_items_stay_at_any_bound() {
    let (dir, store) = store();
    let (named, other) = (build(&store, "k-1").await, build(&store, "k-2").await);
    let (_, blob) = put(&store, b"content").await;
    // The store is named over a link, and by files inside.
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(store.root(), &link).unwrap();
    let inside = link.join("derived/k-1/boot/vmlinuz");
    let outside = dir.path().join("elsewhere.qcow2");
    let policy = GcPolicy { named: [inside, outside, blob.clone()].into(), ..Default::default() };
    let dry = store.gc(&GcPolicy { dry_run: true, ..policy.clone() }).unwrap();
    assert!(named.exists() && other.exists() && blob.exists());
    let done = store.gc(&policy).unwrap();
    assert_eq!(dry, done, "a dry run says what the real one does");
    assert_eq!(done.removed.iter().map(|i| &i.path).collect::<Vec<_>>(), [&other]);
    assert!(named.exists() && !other.exists() && blob.exists());
}

#[tokio::test]
async fn old_partial_downloads_go_with_their_notes() {
    let (_dir, store) = store();
    let young = writer(&store, &Digest::of(Algorithm::Sha256, b"young")).await;
    let mut old = writer(&store, &Digest::of(Algorithm::Sha256, b"old")).await;
    old.note_origin("{}").unwrap();
    old.write(b"ol").unwrap();
    let (young, path) = (young.path().to_owned(), old.path().to_owned());
    for path in [&path, &origin_of(&path)] {
        age(path, 24 * 8);
    }
    let held = store.gc(&at_most(0)).unwrap();
    assert_eq!(held.in_use, std::slice::from_ref(&path), "it is being written");
    drop(old);
    let done = store.gc(&at_most(u64::MAX)).unwrap();
    assert_eq!(done.removed.len(), 1, "{done:?}");
    assert!(done.freed >= 2 * 512 && !path.exists() && !origin_of(&path).exists());
    assert!(young.exists());
}

#[tokio::test]
async fn a_dry_run_sees_leases() {
    let (_dir, store) = store();
    let built = build(&store, "k-1").await;
    let disk = built.join("disk.qcow2");
    let lease = lease_of(&disk).unwrap().expect("it is in a store");
    let dry = GcPolicy { dry_run: true, ..Default::default() };
    assert_eq!(store.gc(&dry).unwrap().in_use, std::slice::from_ref(&built));
    drop(lease);
    assert_eq!(store.gc(&dry).unwrap().removed.len(), 1);
    assert!(lease_of(&built.join("gone.qcow2")).is_err());
    assert!(lease_of(Path::new("/etc/hostname")).unwrap().is_none());
}

#[test]
fn a_lease_of_something_outside_is_refused() {
    let (_dir, store) = store();
    assert!(store.lease(Path::new("/etc/hostname")).is_err());
    assert!(store.lease(&store.root.join("derived")).is_err());
}

#[test]
fn a_store_that_cannot_be_made_is_a_host_error_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, b"").unwrap();
    let e = Store::open(file.join("store")).unwrap_err();
    assert_eq!(e.kind(), Kind::Host);
    assert!(e.to_string().contains("file/store"), "{e}");
}
