//! With real QEMUs whose disks are empty: the machines run, and never boot.

use super::*;
use crate::event::Events;
use crate::wait::Speed;

const LAB: &str = r#"name = "tiny"
[networks.management]
subnet = "192.168.103.0/24"
outside = "192.168.103.1"
ntp = true
[networks.external]
subnet = "172.24.4.0/24"
outside = "172.24.4.1"
[nodes.a]
image = "empty"
memory = "32MiB"
cpus = 1
disk = "512MiB"
[[nodes.a.nics]]
network = "management"
address = "192.168.103.11"
[[nodes.a.nics]]
network = "external"
[nodes.b]
image = "empty"
memory = "32MiB"
cpus = 1
disk = "512MiB"
[[nodes.b.nics]]
network = "management"
address = "192.168.103.12"
"#;

pub(in crate::lab) struct Bench {
    pub root: tempfile::TempDir,
    pub options: LabOptions,
    pub image: BootImage,
    pub redactor: Redactor,
}

impl Bench {
    pub async fn new() -> Bench {
        let root = tempfile::tempdir().unwrap();
        let found = Hypervisor::find("qemu-system-x86_64".as_ref(), "qemu-img".as_ref()).await;
        let hypervisor = found.expect("these tests need QEMU");
        let disk = root.path().join("empty.qcow2");
        let create = tokio::process::Command::new(&hypervisor.img)
            .args(["create", "-q", "-f", "qcow2"])
            .args([disk.as_os_str(), "16M".as_ref()])
            .status();
        assert!(create.await.unwrap().success());
        let options = LabOptions {
            run_root: root.path().join("runs"),
            slots: root.path().join("slots"),
            hypervisor,
            accel: Accel::Tcg,
            boots: BOOTS,
            keep: false,
            logs: Some(root.path().join("logs")),
        };
        let image = BootImage { disk, kernel: None, initrd: None, append: String::new() };
        Bench { root, options, image, redactor: Redactor::default() }
    }

    fn spec(&self) -> LabSpec {
        LabSpec::parse(Path::new("tiny.toml"), LAB).unwrap()
    }

    fn start(&self, patience: &Patience) -> impl Future<Output = Result<Lab>> {
        let image = self.image.clone();
        let (spec, patience) = (self.spec(), patience.clone());
        let (options, redactor) = (self.options.clone(), self.redactor.clone());
        async move { Lab::start(&spec, |_| Ok(image.clone()), &options, &patience, &redactor).await }
    }

    pub async fn prepare(&self) -> Lab {
        let (spec, image) = (self.spec(), self.image.clone());
        let images = |_: &str| Ok(image.clone());
        Lab::prepare(&spec, images, &self.options, &patience(10.0), &self.redactor).await.unwrap()
    }

    pub fn run_dirs(&self) -> usize {
        let Ok(entries) = self.options.run_root.read_dir() else { return 0 };
        entries.flatten().filter(|e| e.file_type().unwrap().is_dir()).count()
    }

    /// How many processes work in our directories.
    pub fn processes(&self) -> usize {
        let ours = |p: std::fs::DirEntry| {
            let cwd = std::fs::read_link(p.path().join("cwd")).ok()?;
            cwd.starts_with(self.root.path()).then_some(())
        };
        std::fs::read_dir("/proc").unwrap().flatten().filter_map(ours).count()
    }
}

pub(in crate::lab) fn patience(speed: f64) -> Patience {
    Patience::new(Speed::new(speed), Events::silent())
}

#[tokio::test]
async fn everything_is_in_place_before_a_guest_runs_and_gone_when_stopped() {
    let bench = Bench::new().await;
    let lab = bench.prepare().await;
    assert_eq!((bench.run_dirs(), bench.processes()), (1, 2));
    let a = lab.node("a").unwrap();
    assert_eq!(a.login, ("management".into(), Ipv4Addr::new(192, 168, 103, 11)));
    assert_eq!(lab.leg("external").unwrap().address(), Ipv4Addr::new(172, 24, 4, 1));
    assert!(lab.leg("nowhere").is_none());
    assert_ne!(a.host_key, lab.node("b").unwrap().host_key);
    assert!(bench.redactor.len() >= 3 * 5, "one login and two host keys are hidden");
    assert_eq!(lab.death().cause(), None);
    lab.stop().await.unwrap();
    assert_eq!((bench.run_dirs(), bench.processes()), (0, 0));
    assert!(bench.root.path().join("logs/a.console.log").exists(), "logs outlive the run");
}

#[tokio::test]
async fn a_lab_keeps_its_image_in_the_store() {
    let mut bench = Bench::new().await;
    let store = store::Store::open(bench.root.path().join("store")).unwrap();
    let disk = bench.image.disk.clone();
    let make = async |dir: PathBuf| {
        std::fs::copy(&disk, dir.join("disk.qcow2")).unwrap();
        Ok(())
    };
    let built = store.make_derived("empty-1", &patience(1.0), make).await.unwrap();
    bench.image.disk = built.join("disk.qcow2");
    let lab = bench.prepare().await;
    let all = store::GcPolicy::default();
    assert_eq!(store.gc(&all).unwrap().in_use, std::slice::from_ref(&built));
    lab.stop().await.unwrap();
    assert_eq!(store.gc(&all).unwrap().removed.len(), 1);
    assert!(!built.exists());
}

#[tokio::test]
async fn no_secret_is_an_argument_of_qemu() {
    let bench = Bench::new().await;
    let lab = bench.prepare().await;
    for node in lab.nodes() {
        let args = std::fs::read(format!("/proc/{}/cmdline", node.vm.pid())).unwrap();
        let args = String::from_utf8_lossy(&args);
        assert!(args.contains("virtio-net-pci"), "{args}");
        assert_eq!(bench.redactor.clean(&args), args);
    }
}

#[tokio::test]
async fn the_death_of_one_node_is_the_death_of_the_lab() {
    let bench = Bench::new().await;
    let lab = bench.prepare().await;
    let b = rustix::process::Pid::from_raw(lab.node("b").unwrap().vm.pid() as i32).unwrap();
    rustix::process::kill_process(b, rustix::process::Signal::KILL).unwrap();
    let cause = lab.death().wait().await;
    assert!(cause.starts_with("QEMU of b was killed"), "{cause}");
    assert_eq!(lab.node("a").unwrap().vm.death().cause(), None);
}

#[tokio::test]
async fn a_node_that_never_boots_is_told_and_nothing_is_left() {
    let bench = Bench::new().await;
    // Deadlines are scaled from the moment a wait begins: short for the boot alone.
    let (spec, image) = (bench.spec(), bench.image.clone());
    let slow = patience(10.0);
    let images = |_: &str| Ok(image.clone());
    let lab = Lab::prepare(&spec, images, &bench.options, &slow, &bench.redactor).await.unwrap();
    let node = lab.node("a").unwrap();
    let (leg, death) = (lab.leg("management").unwrap(), node.vm.death());
    let at = SocketAddrV4::new(node.login.1, SSH);
    node.vm.run().await.unwrap();
    let waited = patience(1.0)
        .until("SSH", Duration::from_millis(1500), TRY_EVERY, &death, || {
            try_banner(leg, at, ONE_TRY)
        })
        .await
        .unwrap_err();
    let error = lab.explain_boot("a", waited);
    assert_eq!(error.kind(), Kind::Lab);
    assert!(error.message().starts_with("a did not boot: waited"), "{error}");
    assert_eq!(error.file().unwrap().0, node.vm.console().path());
    drop(lab);
    assert_eq!((bench.run_dirs(), bench.processes()), (0, 0));
}

#[tokio::test]
async fn a_boot_ends_at_once_when_a_node_dies() {
    let bench = Bench::new().await;
    let lab = bench.prepare().await;
    let b = rustix::process::Pid::from_raw(lab.node("b").unwrap().vm.pid() as i32).unwrap();
    let (patience, slots) = (patience(10.0), BootSlots::unlimited());
    let (out, ()) = tokio::join!(lab.boot(&slots, BOOTS, &patience), async {
        let wait = lab.node("b").unwrap().vm.qmp().subscribe();
        let mut wait = wait;
        // Killed once it runs.
        while wait.recv().await.is_some_and(|e| e.name != "RESUME") {}
        rustix::process::kill_process(b, rustix::process::Signal::KILL).unwrap();
    });
    let error = out.unwrap_err();
    assert!(error.message().contains("QEMU of b was killed by signal 9"), "{error}");
}

#[tokio::test]
async fn a_start_dropped_at_any_moment_leaves_nothing() {
    let bench = Bench::new().await;
    let patience = patience(10.0);
    let cut = async |after: &str, when: &mut (dyn Future<Output = ()> + Unpin)| {
        tokio::select! {
            biased;
            () = when => {}
            out = bench.start(&patience) => panic!("an empty disk never boots: {out:?}"),
        }
        // A process that was being spawned when we gave up is killed by its own thread.
        let until = Instant::now() + Duration::from_secs(60);
        while bench.processes() > 0 {
            assert!(Instant::now() < until, "processes left, cut off {after}");
            tokio::task::yield_now().await;
        }
        assert_eq!(bench.run_dirs(), 0, "cut off {after}");
    };
    for millis in [0, 1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256] {
        let mut when = Box::pin(tokio::time::sleep(Duration::from_millis(millis)));
        cut(&format!("after {millis} ms"), &mut when).await;
    }
    for count in [1, 2] {
        let mut when = Box::pin(async {
            while bench.processes() < count {
                tokio::task::yield_now().await;
            }
        });
        cut(&format!("with {count} machines"), &mut when).await;
    }
}

#[tokio::test]
async fn a_kept_run_stays_and_its_disks_are_closed_in_order() {
    let mut bench = Bench::new().await;
    bench.options.keep = true;
    let lab = bench.prepare().await;
    let disk = lab.dir().join("a/disk.0.qcow2");
    lab.stop().await.unwrap();
    assert_eq!((bench.run_dirs(), bench.processes()), (1, 0));
    assert!(disk.exists());
    assert!(super::super::rundir::sweep(&bench.options.run_root).unwrap().is_empty());
}

#[tokio::test]
async fn a_missing_image_is_told_with_the_line_of_the_lab_file() {
    let bench = Bench::new().await;
    let (spec, patience) = (bench.spec(), patience(1.0));
    let images = |name: &str| Err(Error::image(format!("there is no image `{name}`")));
    let out = Lab::start(&spec, images, &bench.options, &patience, &bench.redactor).await;
    let error = out.unwrap_err();
    assert_eq!(error.kind(), Kind::Image);
    assert_eq!(error.to_string(), "tiny.toml:10: there is no image `empty`");
    assert_eq!(bench.run_dirs(), 0);
}

#[tokio::test]
async fn a_lab_that_does_not_fit_is_refused_before_anything_starts() {
    let bench = Bench::new().await;
    let text = LAB.replacen("32MiB", "3TiB", 1);
    let spec = LabSpec::parse(Path::new("tiny.toml"), &text).unwrap();
    let (image, patience) = (bench.image.clone(), patience(1.0));
    let images = |_: &str| Ok(image.clone());
    let out = Lab::start(&spec, images, &bench.options, &patience, &bench.redactor).await;
    assert_eq!(out.unwrap_err().kind(), Kind::Host);
    assert_eq!((bench.run_dirs(), bench.processes()), (0, 0));
}
