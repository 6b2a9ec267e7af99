//! With a real QEMU whose guest stands still or runs a firmware of a few bytes.

use super::*;
use crate::error::FailureCause;
use crate::event::Events;
use crate::lab::accel::Accel;
use crate::lab::qemu::Boot;
use crate::lab::spec::MIB;
use crate::wait::Speed;
use std::sync::atomic::AtomicUsize;

pub(crate) async fn hypervisor() -> Hypervisor {
    let found = Hypervisor::find("qemu-system-x86_64".as_ref(), "qemu-img".as_ref()).await;
    found.expect("these tests need QEMU")
}

fn patience() -> Patience {
    // Loaded machines are slow; no test waits this long.
    Patience::new(Speed::new(10.0), Events::silent())
}

struct Bench {
    dir: tempfile::TempDir,
    hypervisor: Hypervisor,
}

impl Bench {
    async fn new() -> Bench {
        Bench { dir: tempfile::tempdir().unwrap(), hypervisor: hypervisor().await }
    }
    /// A machine whose firmware is `code`, entered in 16-bit mode at f000:0.
    fn config(&self, code: &[u8]) -> VmConfig {
        let mut rom = vec![0xf4; 0x10000];
        rom[..code.len()].copy_from_slice(code);
        rom[0xfff0..0xfff5].copy_from_slice(&[0xea, 0x00, 0x00, 0x00, 0xf0]);
        let firmware = self.dir.path().join("rom");
        std::fs::write(&firmware, rom).unwrap();
        let dir = self.dir.path().join("vm");
        std::fs::create_dir(&dir).unwrap();
        VmConfig {
            machine: Machine {
                name: "tiny".into(),
                accel: Accel::Tcg,
                cpus: 1,
                memory: 32 * MIB,
                boot: Boot::Firmware(firmware),
                disks: Vec::new(),
                nics: Vec::new(),
                incoming: None,
                sandbox: self.hypervisor.sandbox,
            },
            dir,
            logs: self.dir.path().to_owned(),
            networks: Vec::new(),
            start: Instant::now(),
            redactor: Redactor::default(),
            answers: None,
        }
    }
    async fn start(&self, code: &[u8]) -> Vm {
        Vm::start(&self.hypervisor, self.config(code), &patience()).await.unwrap()
    }
}

/// Writes `text` to the first serial port, then halts.
fn says(text: &str) -> Vec<u8> {
    let mut code = vec![0xfa, 0xba, 0xf8, 0x03]; // cli; mov dx,0x3f8
    for byte in text.bytes() {
        code.extend([0xb0, byte, 0xee]); // mov al,byte; out dx,al
    }
    code.push(0xf4); // hlt
    code
}

const HALT: &[u8] = &[0xfa, 0xf4];

fn alive(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

#[tokio::test]
async fn a_machine_starts_paused_runs_and_quits() {
    let bench = Bench::new().await;
    let vm = bench.start(&says("hello from the guest\r\n")).await;
    let status = vm.qmp().call(&qapi_qmp::query_status {}).await.unwrap();
    assert!(!status.running);
    assert_eq!(vm.console().position(), 0);
    vm.run().await.unwrap();
    let wait = vm.wait_for("hello", 0, CONNECTS);
    assert_eq!(wait.await.unwrap().text, "hello from the guest");
    assert_eq!(vm.death().cause(), None);
    assert!(vm.quit().await.unwrap().success());
    assert_eq!(vm.death().wait().await, "tiny was stopped");
}

#[tokio::test]
async fn the_whole_command_line_of_a_node_is_understood() {
    let bench = Bench::new().await;
    let disk = bench.dir.path().join("base, with a comma.qcow2");
    let overlay = bench.dir.path().join("over,lay.qcow2");
    let created = tokio::process::Command::new(&bench.hypervisor.img)
        .args(["create", "-q", "-f", "qcow2"])
        .args([disk.as_os_str(), "64M".as_ref()])
        .status();
    assert!(created.await.unwrap().success());
    bench.hypervisor.overlay(&disk, &overlay, Some(1 << 30)).await.unwrap();
    let seed = bench.dir.path().join("seed.img");
    std::fs::write(&seed, vec![0; 1 << 20]).unwrap();
    let mut config = bench.config(HALT);
    config.machine.cpus = 2;
    config.machine.disks = vec![
        qemu::Disk { file: overlay, format: qemu::DiskFormat::Qcow2, read_only: false },
        qemu::Disk { file: seed, format: qemu::DiskFormat::Raw, read_only: true },
    ];
    let mac = |last| format!("52:54:00:00:00:0{last}").parse().unwrap();
    config.machine.nics = vec![
        qemu::NicArgs { mac: mac(1), mtu: Some(1400) },
        qemu::NicArgs { mac: mac(2), mtu: None },
    ];
    let vm = Vm::start(&bench.hypervisor, config, &patience()).await.unwrap();
    vm.run().await.unwrap();
    let blocks = vm.qmp().call_raw("query-named-block-nodes", serde_json::json!({}), CONNECTS);
    let blocks = blocks.await.unwrap();
    let node = |name: &str| {
        let all = blocks.as_array().unwrap();
        all.iter().find(|b| b["node-name"] == name).unwrap_or_else(|| panic!("{blocks}"))
    };
    assert_eq!(node("disk0")["drv"], "qcow2");
    assert_eq!(node("disk0")["cache"]["no-flush"], true);
    assert_eq!(node("disk1")["ro"], true);
    let image = &node("disk0")["image"];
    assert_eq!(image["virtual-size"], 1u64 << 30);
    assert_eq!(image["backing-image"]["format"], "qcow2");
}

#[tokio::test]
async fn a_dropped_machine_leaves_no_process_and_its_waiters_know() {
    let bench = Bench::new().await;
    let vm = bench.start(HALT).await;
    vm.run().await.unwrap();
    let (pid, mut death) = (vm.pid(), vm.death());
    assert!(alive(pid));
    drop(vm);
    assert!(!alive(pid));
    assert_eq!(death.wait().await, "tiny was stopped");
}

#[tokio::test]
async fn a_killed_qemu_is_told_with_its_signal_and_ends_pending_calls() {
    let bench = Bench::new().await;
    let vm = bench.start(HALT).await;
    vm.run().await.unwrap();
    let pid = rustix::process::Pid::from_raw(vm.pid() as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let cause = vm.death().wait().await;
    assert!(cause.starts_with("QEMU of tiny was killed by signal 9"), "{cause}");
    let error = vm.run().await.unwrap_err();
    assert_eq!(error.kind(), Kind::Lab);
    assert!(error.message().contains("was killed by signal 9"), "{error}");
}

#[tokio::test]
async fn a_qemu_that_refuses_its_arguments_is_quoted() {
    let bench = Bench::new().await;
    let mut config = bench.config(HALT);
    config.machine.boot = Boot::Firmware("/nonexistent/rom".into());
    let error = Vm::start(&bench.hypervisor, config, &patience()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Lab);
    assert!(error.message().contains("exited with status 1"), "{error}");
    assert!(error.message().contains("/nonexistent/rom"), "{error}");
}

/// What [`fills`] writes to, from 2 MiB on.
const FILLED: u64 = 128 * MIB;

/// Writes to much memory, not with zeros, says so, and halts.
fn fills() -> Vec<u8> {
    /// Where in the firmware, whose first byte is at 0xf0000.
    const TABLE: u16 = 0x100;
    let [low, high] = TABLE.to_le_bytes();
    let [a, b, c, d] = u32::try_from(FILLED / 4).unwrap().to_le_bytes();
    let mut code = vec![
        0xfa, // cli
        0x2e, 0x0f, 0x01, 0x16, low, high, // lgdt cs:[TABLE]
        0x0f, 0x20, 0xc0, 0x0c, 0x01, 0x0f, 0x22, 0xc0, // into protected mode,
        0xbb, 0x08, 0x00, 0x8e, 0xc3, // where es becomes a segment without limit,
        0x24, 0xfe, 0x0f, 0x22, 0xc0, // and out of it again
        0x66, 0xbf, 0x00, 0x00, 0x20, 0x00, // mov edi,0x200000
        0x66, 0xb9, a, b, c, d, // mov ecx,FILLED/4
        0x66, 0xb8, 0x01, 0x01, 0x01, 0x01, // mov eax,0x01010101
        0x67, 0xf3, 0x66, 0xab, // rep stosd
    ];
    code.extend(&says("full\n")[1..]);
    code.resize(TABLE.into(), 0xf4);
    code.extend([0x0f, 0x00, low + 6, high, 0x0f, 0x00]); // its limit, and where it begins
    code.extend([0; 8]);
    code.extend([0xff, 0xff, 0x00, 0x00, 0x00, 0x92, 0xcf, 0x00]); // all memory, to be written
    code
}

#[tokio::test]
async fn a_save_that_is_late_is_cancelled_and_the_guest_goes_on_for_good() {
    let bench = Bench::new().await;
    let (events, mut told) = Events::channel();
    let patience = Patience::new(Speed::new(10.0), events);
    let mut config = bench.config(&fills());
    config.machine.memory = FILLED + 32 * MIB;
    let vm = Vm::start(&bench.hypervisor, config, &patience).await.unwrap();
    vm.run().await.unwrap();
    vm.wait_for("full", 0, CONNECTS).await.unwrap();
    vm.pause().await.unwrap();
    // QEMU sends something every tenth of a second: a packet of many at this bandwidth, so that the
    // end is far away, however long the cancelling takes. (Less than ten bytes a second are no limit
    // to it.)
    let (file, soon) = (bench.dir.path().join("memory"), Duration::from_millis(20));
    let error = vm.save_within(&file, soon, 1000).await.unwrap_err();
    assert_eq!(error.cause(), Some(FailureCause::TimedOut), "{error}");
    let mut paused = false;
    while let Ok(stamped) = told.try_recv() {
        if let crate::event::Event::Waited { what, ok: true, .. } = stamped.event {
            paused |= what.ends_with("a pause in its memory's transfer");
        }
    }
    assert!(paused, "cancelled at work");
    let migration = vm.qmp().call(&qapi_qmp::query_migrate {}).await.unwrap();
    assert_eq!(migration.status, Some(qapi_qmp::MigrationStatus::cancelled));
    vm.run().await.unwrap();
    let status = vm.qmp().call(&qapi_qmp::query_status {}).await.unwrap();
    assert!(status.running, "{status:?}");
    // And it can be saved after all.
    vm.pause().await.unwrap();
    vm.save_memory(&bench.dir.path().join("again")).await.unwrap();
}

#[tokio::test]
async fn a_panic_on_the_console_is_a_death() {
    let bench = Bench::new().await;
    let vm = bench.start(&says("Kernel panic - not syncing: test\n")).await;
    // The answer may come after the guest's last words.
    let _ = vm.run().await;
    let cause = vm.death().wait().await;
    let wanted = "tiny is lost: its kernel panicked: Kernel panic - not syncing: test";
    assert_eq!(cause, wanted);
    assert!(vm.evidence()[0].ends_with("not syncing: test"), "{:?}", vm.evidence());
}

#[tokio::test]
async fn a_line_on_the_console_of_a_guest_that_answers_is_no_death() {
    let bench = Bench::new().await;
    let says = says("Kernel panic - not syncing: just a word\n");
    let (lives, asked) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicUsize::new(0)));
    let probe = {
        let (lives, asked) = (lives.clone(), asked.clone());
        AnswerProbe::new(move || {
            asked.fetch_add(1, Ordering::Relaxed);
            std::future::ready(lives.load(Ordering::Relaxed))
        })
    };
    let config = VmConfig { answers: Some(probe), ..bench.config(&says) };
    let patience = Patience::new(Speed::new(1.0), Events::silent());
    let vm = Vm::start(&bench.hypervisor, config, &patience).await.unwrap();
    vm.note_up();
    vm.run().await.unwrap();
    vm.wait_for("just a word", 0, Duration::from_secs(20)).await.unwrap();
    while asked.load(Ordering::Relaxed) < 2 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(vm.death().cause(), None);
    // The same line of a guest that answers no more.
    lives.store(false, Ordering::Relaxed);
    vm.reset().await.unwrap();
    assert!(vm.death().wait().await.contains("its kernel panicked"));
}

#[test]
fn a_write_that_the_hosts_disk_did_not_take_ends_the_machine_with_the_reason_and_the_next_step() {
    let noted = |action: &str, nospace: bool| {
        let (life, death) = Life::new();
        let watch = Watch {
            name: "a".into(),
            life: Arc::new(life),
            log: PathBuf::new(),
            redactor: Redactor::default(),
            stopping: Arc::default(),
            resets: watch::channel(0).0,
        };
        // As QEMU 10.0 sends it.
        let event = serde_json::json!({
            "timestamp": { "seconds": 1, "microseconds": 2 },
            "event": "BLOCK_IO_ERROR",
            "data": {
                "qom-path": "/machine/peripheral/disk0-dev/virtio-backend", "device": "",
                "node-name": "disk0", "operation": "write", "action": action,
                "nospace": nospace, "reason": "No space left on device",
            },
        });
        watch.note(&Event::of(&event).unwrap(), &mut false);
        death
    };
    let mut death = noted("stop", true);
    let cause = death.cause().expect("it is as good as dead");
    assert!(cause.contains("the host's disk is full"), "{cause}");
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let cause = runtime.block_on(death.wait_cause());
    assert_eq!(cause.kind, Kind::Host);
    assert!(cause.hint.unwrap().contains("free some space"));
    assert_eq!(noted("report", false).cause(), None, "the guest was told, and lives on");
}

#[tokio::test]
async fn resets_are_counted() {
    let bench = Bench::new().await;
    let vm = bench.start(&says("up\n")).await;
    vm.run().await.unwrap();
    let first = vm.wait_for("up", 0, CONNECTS).await.unwrap();
    vm.reset().await.unwrap();
    vm.wait_for("up", first.number + 1, CONNECTS).await.unwrap();
    let mut resets = vm.resets();
    let counted = tokio::time::timeout(Duration::from_secs(60), resets.wait_for(|n| *n == 1));
    counted.await.expect("no RESET event").unwrap();
}

#[tokio::test]
async fn a_guest_that_powers_itself_off_is_told_from_a_crash() {
    // q35's ACPI: write SLP_EN | S5 to PM1a_CNT, after the chipset's PM base is set by our code.
    let code = [
        0xfa, // cli
        0x66, 0xb8, 0x40, 0xf8, 0x00, 0x80, // mov eax,0x8000f840 (ICH9 LPC, PMBASE)
        0xba, 0xf8, 0x0c, // mov dx,0xcf8
        0x66, 0xef, // out dx,eax
        0xba, 0xfc, 0x0c, // mov dx,0xcfc
        0x66, 0xb8, 0x01, 0x06, 0x00, 0x00, // mov eax,0x601
        0x66, 0xef, // out dx,eax
        0xba, 0xf8, 0x0c, // mov dx,0xcf8
        0x66, 0xb8, 0x44, 0xf8, 0x00, 0x80, // mov eax,0x8000f844 (ACPI_CNTL)
        0x66, 0xef, // out dx,eax
        0xba, 0xfc, 0x0c, // mov dx,0xcfc
        0xb0, 0x80, // mov al,0x80 (enable)
        0xee, // out dx,al
        0xba, 0x04, 0x06, // mov dx,0x604
        0xb8, 0x00, 0x20, // mov ax,0x2000
        0xef, // out dx,ax
        0xf4, // hlt
    ];
    let bench = Bench::new().await;
    let vm = bench.start(&code).await;
    vm.run().await.unwrap();
    assert_eq!(vm.death().wait().await, "tiny powered itself off");
}

#[tokio::test]
async fn a_guest_that_ignores_the_power_button_is_told_at_the_deadline() {
    let bench = Bench::new().await;
    let vm = bench.start(HALT).await;
    vm.run().await.unwrap();
    let error = vm.power_down(Duration::from_millis(30)).await.unwrap_err();
    assert!(error.message().contains("for tiny to power off, in vain"), "{error}");
    assert!(alive(vm.pid()));
    vm.kill().await;
    assert!(!alive(vm.pid()));
}

#[tokio::test]
async fn a_start_dropped_at_any_moment_leaves_no_process_and_no_task() {
    for polls in [1, 2, 3, 5, 8, 13, 21, 34, 80] {
        let bench = Bench::new().await;
        let config = bench.config(HALT);
        let dir = config.dir.clone();
        let patience = patience();
        {
            let start = Vm::start(&bench.hypervisor, config, &patience);
            tokio::pin!(start);
            for _ in 0..polls {
                let poll = std::future::poll_fn(|cx| {
                    std::task::Poll::Ready(start.as_mut().poll(cx).is_ready())
                });
                if poll.await {
                    break;
                }
                // Time for QEMU to get on, without a sleep of a guessed length.
                tokio::task::spawn_blocking(std::thread::yield_now).await.unwrap();
            }
        }
        // A QEMU of ours would have this as its working directory.
        let until = Instant::now() + Duration::from_secs(60);
        while has_process_in(&dir) {
            assert!(Instant::now() < until, "a QEMU is left after {polls} polls");
            tokio::task::yield_now().await;
        }
    }
}

fn has_process_in(dir: &Path) -> bool {
    std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .any(|p| std::fs::read_link(p.path().join("cwd")).is_ok_and(|cwd| cwd == dir))
}

#[tokio::test]
async fn a_long_directory_does_not_matter() {
    let mut bench = Bench::new().await;
    let config = bench.config(HALT);
    let long = bench.dir.path().join("d".repeat(120));
    std::fs::create_dir(&long).unwrap();
    let config = VmConfig { dir: long, ..config };
    bench.hypervisor.sandbox = false;
    let vm = Vm::start(&bench.hypervisor, config, &patience()).await.unwrap();
    vm.run().await.unwrap();
}

/// SIGKILL for us: QEMU goes with us.
#[tokio::test]
async fn the_machine_dies_with_us_when_we_are_killed() {
    const FILE: &str = "STACKPROOF_TEST_VM_PID";
    if let Some(file) = std::env::var_os(FILE) {
        let bench = Bench::new().await;
        let vm = bench.start(HALT).await;
        std::fs::write(file, vm.pid().to_string()).unwrap();
        vm.death().wait().await;
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pid");
    let mut parent = Command::new(std::env::current_exe().unwrap());
    // Its leftovers belong into our directory.
    parent
        .env(FILE, &file)
        .env("TMPDIR", dir.path())
        .args(["--exact", "lab::vm::tests::the_machine_dies_with_us_when_we_are_killed"]);
    parent.stdout(Stdio::null());
    let parent = Process::spawn(parent).await.unwrap();
    let until = Instant::now() + Duration::from_secs(60);
    let qemu = loop {
        if let Ok(pid) = std::fs::read_to_string(&file).unwrap_or_default().parse::<u32>() {
            break pid;
        }
        assert!(Instant::now() < until && !parent.has_ended(), "the parent started no QEMU");
        tokio::task::yield_now().await;
    };
    assert!(alive(qemu));
    drop(parent);
    let running =
        || std::fs::read_to_string(format!("/proc/{qemu}/stat")).is_ok_and(|s| !s.contains(") Z "));
    while running() {
        assert!(Instant::now() < until, "QEMU outlived us");
        tokio::task::yield_now().await;
    }
}
