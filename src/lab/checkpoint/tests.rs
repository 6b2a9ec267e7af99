//! With real QEMUs whose disks are empty: machines with memory and disks, whose guests do nothing.

use super::*;
use crate::error::Kind;
use crate::lab::Lab;
use crate::lab::cluster::tests::{Bench, patience};
use crate::lab::disk::read_header;
use crate::lab::process::Process;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

async fn run(lab: &Lab) {
    for node in lab.nodes() {
        node.vm.run().await.unwrap();
    }
}

async fn status(lab: &Lab, node: &str) -> String {
    let status = lab.node(node).unwrap().vm.qmp().call_raw("query-status", json!({}), SOON).await;
    status.unwrap()["status"].as_str().unwrap().to_owned()
}

const SOON: Duration = Duration::from_secs(20);
/// For what takes a moment on an idle machine: only a hang is longer.
const LONG: Duration = Duration::from_secs(200);

/// A saved lab and where it lies.
struct Saved {
    bench: Bench,
    folder: PathBuf,
}

impl Saved {
    async fn new() -> Saved {
        let bench = Bench::new().await;
        let folder = bench.root.path().join("checkpoints/ready");
        let mut lab = bench.prepare().await;
        run(&lab).await;
        let notes = Notes(json!({ "password": "hunter2hunter2" }));
        lab.checkpoint(&folder, notes, After::StandStill, &patience(10.0)).await.unwrap();
        drop(lab);
        assert_eq!(bench.processes(), 0);
        Saved { bench, folder }
    }
    async fn restore(&self) -> crate::error::Result<Restored> {
        let Bench { options, redactor, .. } = &self.bench;
        Lab::restore(&self.folder, options, &patience(10.0), redactor).await
    }
    /// The refusal, which must come before anything is started or made.
    async fn refusal(&self) -> crate::error::Error {
        let error = self.restore().await.expect_err("it must be refused");
        assert_eq!((self.bench.run_dirs(), self.bench.processes()), (0, 0), "{error}");
        error
    }
    fn change(&self, change: impl FnOnce(&mut Value)) {
        let file = self.folder.join("manifest.json");
        let mut value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        change(&mut value);
        std::fs::write(file, value.to_string()).unwrap();
    }
}

fn private(folder: &Path) {
    use std::os::unix::fs::PermissionsExt;
    for entry in folder.read_dir().unwrap().flatten() {
        let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
        let is_dir = entry.file_type().unwrap().is_dir();
        let wanted = if is_dir { 0o700 } else { 0o600 };
        assert_eq!(mode, wanted, "{}: {mode:o}", entry.path().display());
        if is_dir {
            private(&entry.path());
        }
    }
}

#[tokio::test]
async fn a_lab_goes_on_after_its_checkpoint_and_comes_back_from_it_twice_at_once() {
    let bench = Bench::new().await;
    let folder = bench.root.path().join("ready");
    let mut lab = bench.prepare().await;
    run(&lab).await;
    let host_key = lab.node("a").unwrap().host_key.clone();
    let login = lab.login_key().public_line();
    let notes = Notes(json!({ "password": "hunter2hunter2" }));
    let made = lab.checkpoint(&folder, notes.clone(), After::GoOn, &patience(10.0)).await.unwrap();
    assert_eq!(made.nodes.iter().map(|n| n.layers.len()).collect::<Vec<_>>(), [1, 1]);
    private(&folder);
    assert_eq!([status(&lab, "a").await, status(&lab, "b").await], ["running", "running"]);
    // What it writes now goes to a layer of its own.
    let top = lab.dir().join("a/disk.1.qcow2");
    assert_eq!(read_header(&top).unwrap().below, Some("disk.0.qcow2".into()));

    let saved = Saved { bench, folder };
    let (one, two) = tokio::join!(saved.restore(), saved.restore());
    let (one, two) = (one.unwrap(), two.unwrap());
    assert_eq!(saved.bench.processes(), 6, "three labs at once");
    assert_eq!((&one.notes, &two.notes), (&notes, &notes));
    let unstepped = one.lab.step_clocks(&patience(10.0)).await.unwrap();
    assert_eq!(unstepped, ["a", "b"], "nobody set their clocks: they have no agent");
    assert_eq!(one.lab.node("a").unwrap().host_key.key_data(), host_key.key_data());
    assert_eq!(one.lab.login_key().public_line(), login);
    let mac = |lab: &Lab| lab.leg("management").unwrap().mac();
    assert_eq!(mac(&one.lab), mac(&lab), "the guests know our leg by this address");
    assert_eq!(status(&two.lab, "b").await, "running");

    // The labs that run need the checkpoint no more.
    std::fs::remove_dir_all(&saved.folder).unwrap();
    lab.stop().await.unwrap();
    for layer in ["disk.0.qcow2", "disk.1.qcow2", "seed.img"] {
        assert!(two.lab.dir().join("a").join(layer).exists(), "{layer}");
    }
    assert_eq!(status(&one.lab, "a").await, "running");
    one.lab.stop().await.unwrap();
    two.lab.stop().await.unwrap();
    assert_eq!((saved.bench.run_dirs(), saved.bench.processes()), (0, 0));
}

#[tokio::test]
async fn a_lab_with_a_frozen_node_is_refused_and_the_node_stays_frozen() {
    let bench = Bench::new().await;
    let folder = bench.root.path().join("ready");
    let mut lab = bench.prepare().await;
    run(&lab).await;
    lab.node("b").unwrap().vm.freeze().await.unwrap();
    let made = lab.checkpoint(&folder, Notes::default(), After::GoOn, &patience(10.0)).await;
    let error = made.unwrap_err();
    assert!(error.message().contains("b is frozen"), "{error}");
    assert!(error.hint_text().unwrap().contains("thaw b"), "{error}");
    assert_eq!([status(&lab, "a").await, status(&lab, "b").await], ["running", "paused"]);
    assert!(!folder.exists());
    lab.settles(&patience(1.0)).await.unwrap();
}

#[tokio::test]
async fn a_restored_lab_is_saved_and_restored_again_on_more_layers() {
    let mut saved = Saved::new().await;
    let mut lab = saved.restore().await.unwrap().lab;
    for generation in 2..4 {
        saved.folder = saved.bench.root.path().join(format!("generation-{generation}"));
        let after = if generation == 2 { After::GoOn } else { After::StandStill };
        let notes = Notes::default();
        let made = lab.checkpoint(&saved.folder, notes, after, &patience(10.0)).await.unwrap();
        assert_eq!(made.nodes[0].layers.len(), generation);
    }
    drop(lab);
    let lab = saved.restore().await.unwrap().lab;
    assert_eq!(status(&lab, "a").await, "running");
    assert!(lab.dir().join("a/disk.3.qcow2").exists());
    let death = lab.death();
    let a = Pid::from_raw(lab.node("a").unwrap().vm.pid() as i32).unwrap();
    kill_process(a, Signal::KILL).unwrap();
    assert!(death.clone().wait().await.starts_with("QEMU of a was killed"), "deaths are watched");
}

#[tokio::test]
async fn files_that_are_missing_cut_off_or_foreign_are_refused_before_anything_starts() {
    let saved = Saved::new().await;
    assert!(saved.restore().await.is_ok(), "the control: untouched it comes back");
    let files = ["a/memory", "a/disk.0.qcow2", "b/seed.img", "b/host.key", "login.key"];
    for name in files {
        let file = saved.folder.join(name);
        let bytes = std::fs::read(&file).unwrap();
        std::fs::remove_file(&file).unwrap();
        let error = saved.refusal().await;
        assert!(error.file().unwrap().0.ends_with(name), "missing {name}: {error}");
        // Cut in the middle, as a full disk or a copy that was stopped does.
        std::fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
        let error = saved.refusal().await;
        assert!(error.file().unwrap().0.ends_with(name), "cut {name}: {error}");
        std::fs::write(&file, &bytes).unwrap();
    }
    let memory = saved.folder.join("a/memory");
    let (a, b) = (std::fs::read(&memory).unwrap(), std::fs::read(saved.folder.join("b/memory")));
    std::fs::write(&memory, b.unwrap()).unwrap();
    assert!(saved.refusal().await.hint_text().is_some(), "the memory of another machine");
    std::fs::write(&memory, a).unwrap();
    saved.restore().await.unwrap();

    std::fs::remove_file(saved.folder.join("manifest.json")).unwrap();
    let error = saved.refusal().await;
    assert!(error.message().contains("no manifest"), "{error}");
    assert_eq!(error.kind(), Kind::Input);
}

#[tokio::test]
async fn what_does_not_fit_this_host_is_refused_with_reason_and_next_step() {
    let saved = Saved::new().await;
    let manifest = std::fs::read(saved.folder.join("manifest.json")).unwrap();
    let refuse = async |wanted: &str, change: &dyn Fn(&mut Value)| {
        saved.change(change);
        let error = saved.refusal().await;
        let text = error.to_string();
        assert!(text.contains(wanted), "{wanted}: {text}");
        assert!(error.hint_text().is_some(), "{text}");
        std::fs::write(saved.folder.join("manifest.json"), &manifest).unwrap();
    };
    refuse("with QEMU 9.2.0, and this is", &|m| m["platform"]["qemu"] = json!("9.2.0")).await;
    refuse("accelerator KVM", &|m| m["platform"]["accelerator"] = json!("KVM")).await;
    refuse("reads 1", &|m| m["version"] = json!(99)).await;
    refuse("built in another way", &|m| m["nodes"][1]["hardware"] = json!("00")).await;
    refuse("the image that b was booted from", &|m| {
        m["nodes"][1]["image"]["disk"]["path"] = json!("/nonexistent/disk.qcow2");
    })
    .await;
    refuse("of memory", &|m| {
        let text = m["lab"]["text"].as_str().unwrap().replace("32MiB", "3TiB");
        m["lab"]["text"] = json!(text);
        // Found by its hardware first; so that is made to fit.
        let spec = crate::lab::spec::LabSpec::parse("x".as_ref(), &text).unwrap();
        for (i, node) in spec.nodes.iter().enumerate() {
            let chain = crate::lab::disk::Chain::new(Path::new("/r"), 1);
            let machine = spec.machine(node, &saved.bench.image, &chain, &saved.bench.options);
            m["nodes"][i]["hardware"] = json!(hardware(&machine));
        }
    })
    .await;
    saved.restore().await.unwrap();

    let image = std::fs::read(&saved.bench.image.disk).unwrap();
    std::fs::write(&saved.bench.image.disk, [&image[..], b"rebuilt"].concat()).unwrap();
    let error = saved.refusal().await;
    assert_eq!(error.kind(), Kind::Image, "{error}");
}

#[tokio::test]
async fn a_layer_on_another_file_than_its_own_is_refused_unopened() {
    let saved = Saved::new().await;
    let layer = saved.folder.join("a/disk.0.qcow2");
    let size = read_header(&layer).unwrap().virtual_size.to_string();
    let forged = std::process::Command::new(&saved.bench.options.hypervisor.img)
        .args(["create", "-q", "-u", "-f", "qcow2", "-b", "/etc/passwd", "-F", "raw"])
        .args([layer.as_os_str(), size.as_ref()])
        .status();
    assert!(forged.unwrap().success());
    let print = Fingerprint::of(&layer).unwrap();
    saved.change(|m| m["nodes"][0]["layers"][0] = serde_json::to_value(print).unwrap());
    let error = saved.refusal().await;
    assert!(error.message().contains("lies on /etc/passwd"), "{error}");
}

#[tokio::test]
async fn a_checkpoint_that_fails_lets_the_guests_go_on_and_leaves_nothing() {
    let bench = Bench::new().await;
    let root = bench.root.path();
    let mut lab = bench.prepare().await;
    run(&lab).await;
    let taken = root.join("taken");
    std::fs::create_dir(&taken).unwrap();
    let patience = patience(10.0);
    let made = lab.checkpoint(&taken, Notes::default(), After::StandStill, &patience).await;
    assert!(made.unwrap_err().message().contains("already"));
    assert_eq!(status(&lab, "a").await, "running");
    assert!(taken.read_dir().unwrap().next().is_none());
    // Its second machine dies before it is saved: the first goes on.
    let b = Pid::from_raw(lab.node("b").unwrap().vm.pid() as i32).unwrap();
    kill_process(b, Signal::KILL).unwrap();
    lab.death().wait().await;
    let to = root.join("ready");
    let made = lab.checkpoint(&to, Notes::default(), After::StandStill, &patience).await;
    let error = made.unwrap_err();
    assert!(error.to_string().contains('b'), "{error}");
    assert_eq!(status(&lab, "a").await, "running", "{error}");
    assert!(!to.exists() && !root.join("ready.partial").exists());
}

/// We are killed while a checkpoint is made: whatever has a checkpoint's name can be restored.
#[tokio::test]
async fn killed_at_any_moment_of_a_save_no_half_checkpoint_has_its_name() {
    const ROOT: &str = "STACKPROOF_TEST_CHECKPOINT_ROOT";
    if let Some(root) = std::env::var_os(ROOT) {
        let bench = Bench::new().await;
        let mut lab = bench.prepare().await;
        run(&lab).await;
        std::fs::copy(&bench.image.disk, Path::new(&root).join("image")).unwrap();
        for n in 0.. {
            let to = Path::new(&root).join(format!("checkpoints/{n}"));
            let after = After::GoOn;
            lab.checkpoint(&to, Notes::default(), after, &patience(10.0)).await.unwrap();
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let made = dir.path().join("checkpoints");
    let mut whole = 0;
    // What a save takes here and now: a busy machine needs many times as long as an idle one.
    let mut first = None;
    for draw in 0..6u32 {
        let mut parent = std::process::Command::new(std::env::current_exe().unwrap());
        let name = "lab::checkpoint::tests::\
                    killed_at_any_moment_of_a_save_no_half_checkpoint_has_its_name";
        parent.env(ROOT, dir.path()).env("TMPDIR", dir.path()).args(["--exact", name]);
        parent.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        let parent = Process::spawn(parent).await.unwrap();
        let there = async |name: &str| {
            let until = Instant::now() + LONG;
            while !made.join(name).exists() {
                assert!(Instant::now() < until && !parent.has_ended(), "{name} never was there");
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        there("0.partial").await;
        match first {
            None => {
                let begun = Instant::now();
                there("0").await;
                first = Some(begun.elapsed());
            }
            // Not a wait for anything: early ones cut the first save, late ones later saves.
            Some(first) => tokio::time::sleep(first * draw / 3).await,
        }
        drop(parent);
        for folder in made.read_dir().unwrap().flatten().map(|e| e.path()) {
            if folder.extension().is_some_and(|e| e == "partial") {
                continue;
            }
            whole += 1;
            let saved = Checkpoint::open(&folder).unwrap();
            for record in &saved.manifest().nodes {
                for (name, what, print) in record.files() {
                    print.check(what, &folder.join(&record.name).join(name)).unwrap();
                }
            }
            std::fs::remove_dir_all(folder).unwrap();
        }
        // A child of the killed one that was just forked dies with it, and holds the lock until then.
        let until = Instant::now() + LONG;
        loop {
            sweep(&made).unwrap();
            // Killed between its making and its locking a folder is empty, and could be anybody's: the
            // next checkpoint of that name takes it.
            let left: Vec<_> = made.read_dir().unwrap().flatten().map(|e| e.path()).collect();
            left.iter().for_each(|path| drop(std::fs::remove_dir(path)));
            if made.read_dir().unwrap().next().is_none() {
                break;
            }
            assert!(Instant::now() < until, "draw {draw}: something is left: {left:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    assert!(whole > 0, "no whole one was looked at: the test shows nothing");
}
