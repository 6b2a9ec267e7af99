use super::*;
use crate::event::{Event, Events};
use crate::lab::spec::GIB;
use crate::wait::Speed;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};

/// A host with so much memory available, and nothing else in it.
struct Host {
    dir: tempfile::TempDir,
    cpus: usize,
}

impl Host {
    fn new(gib: u64, cpus: usize) -> Host {
        let host = Host { dir: tempfile::tempdir().unwrap(), cpus };
        fs::create_dir_all(host.root().join("proc")).unwrap();
        let kib = (gib * GIB + FOR_THE_HOST) / 1024;
        let text = format!("MemTotal: {kib} kB\nMemAvailable: {kib} kB\n");
        fs::write(host.root().join("proc/meminfo"), text).unwrap();
        host
    }
    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }
    fn folder(&self) -> PathBuf {
        self.dir.path().join("reservations")
    }
    fn ledger(&self) -> Ledger {
        Ledger::of(self.folder(), &self.root(), self.cpus).unwrap()
    }
    fn process(&self, pid: u32, parent: u32, gib: u64) {
        let folder = self.root().join("proc").join(pid.to_string());
        fs::create_dir_all(&folder).unwrap();
        let kib = gib * GIB / 1024;
        let text = format!("PPid:\t{parent}\nRssAnon:\t{kib} kB\nRssFile:\t9 kB\nRssShmem: 0 kB\n");
        fs::write(folder.join("status"), text).unwrap();
    }
    fn tickets(&self) -> usize {
        let all = fs::read_dir(self.folder()).unwrap();
        all.filter(|e| !e.as_ref().unwrap().file_name().to_string_lossy().starts_with('.')).count()
    }
}

fn want(lab: &str, gib: u64) -> Want {
    Want { lab: lab.into(), memory: gib * GIB, cpus: 1 }
}

fn patience() -> Patience {
    Patience::new(Speed::new(1.0), Events::silent())
}

const SOON: Turn = Turn::Within(Duration::from_secs(60));

async fn now(ledger: &Ledger, want: &Want) -> Result<Reservation> {
    ledger.reserve(want, Turn::Now, &patience()).await
}

#[tokio::test]
async fn two_that_fit_run_together_and_a_third_goes_when_one_ends() {
    let host = Host::new(10, 8);
    let ledger = host.ledger();
    let one = now(&ledger, &want("one", 4)).await.unwrap();
    let _two = now(&ledger, &want("two", 6)).await.unwrap();
    let (events, mut told) = Events::channel();
    let waits = Patience::new(Speed::new(1.0), events);
    let three = want("three", 3);
    let (third, ()) = tokio::join!(ledger.reserve(&three, SOON, &waits), async {
        let Event::Note { text, .. } = told.recv().await.unwrap().event else { panic!() };
        // It says for whom it waits.
        for part in ["lab three waits its turn", "lab one", "lab two", "3.5 GiB", "512 MiB"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(text.contains(&format!("process {}", std::process::id())), "{text}");
        drop(one);
    });
    third.unwrap();
}

#[tokio::test]
async fn who_does_not_wait_is_refused_with_the_holder_and_leaves_no_ticket() {
    let host = Host::new(4, 8);
    let ledger = host.ledger();
    let _one = now(&ledger, &want("one", 4)).await.unwrap();
    let e = now(&ledger, &want("two", 1)).await.unwrap_err();
    assert_eq!(e.kind(), Kind::Host);
    assert!(e.message().contains("beside lab one (process"), "{e}");
    assert_eq!(host.tickets(), 1);
}

#[tokio::test]
async fn who_could_never_fit_is_refused_at_once_though_he_would_wait() {
    let host = Host::new(4, 8);
    let ledger = host.ledger();
    let _one = now(&ledger, &want("one", 4)).await.unwrap();
    let e = ledger.reserve(&want("two", 5), SOON, &patience()).await.unwrap_err();
    assert!(e.message().contains("this host has 4.5 GiB for labs"), "{e}");
}

#[tokio::test(start_paused = true)]
async fn a_deadline_ends_the_wait_and_tells_what_was_in_the_way() {
    let host = Host::new(4, 8);
    let ledger = host.ledger();
    let _one = now(&ledger, &want("one", 4)).await.unwrap();
    let e = ledger.reserve(&want("two", 1), SOON, &patience()).await.unwrap_err();
    assert_eq!(e.kind(), Kind::Host);
    assert!(e.evidence_lines()[0].contains("lab one"), "{e:?}");
    assert_eq!(host.tickets(), 1);
}

#[tokio::test]
async fn what_a_lab_has_touched_is_not_counted_twice() {
    // 6 GiB are available beside the 4 that the lab of 8 holds already.
    let host = Host::new(6, 8);
    let ledger = host.ledger();
    host.process(77, std::process::id(), 3);
    host.process(78, 77, 1);
    host.process(79, 1, 9);
    let _one = now(&ledger, &want("one", 8)).await;
    let _one = _one.unwrap_err(); // Without a reservation its machines are somebody else's.
    let one = now(&ledger, &want("one", 6)).await.unwrap();
    assert_eq!(ledger.in_use().unwrap(), 4 * GIB);
    // 2 of the 6 reserved are still to come: 4 are left.
    let e = now(&ledger, &want("two", 5)).await.unwrap_err();
    assert!(e.message().contains("4.5 GiB are free"), "{e}");
    now(&ledger, &want("two", 4)).await.unwrap();
    drop(one);
    assert_eq!(ledger.in_use().unwrap(), 0);
}

#[tokio::test]
async fn processors_are_shared_out_and_a_lab_alone_may_have_any_number() {
    let host = Host::new(100, 2);
    let ledger = host.ledger();
    let many = Want { cpus: 16, ..want("many", 1) };
    let first = now(&ledger, &many).await.unwrap();
    let e = now(&ledger, &want("small", 1)).await.unwrap_err();
    assert!(e.message().contains("16 of 4 are taken by lab many"), "{e}");
    drop(first);
    let _three = now(&ledger, &Want { cpus: 3, ..want("three", 1) }).await.unwrap();
    let _four = now(&ledger, &want("four", 1)).await.unwrap();
    assert!(now(&ledger, &want("five", 1)).await.is_err());
}

#[tokio::test]
async fn who_asked_first_is_served_first_though_the_second_would_fit() {
    let host = Host::new(10, 8);
    let ledger = host.ledger();
    let one = now(&ledger, &want("one", 8)).await.unwrap();
    let order = std::sync::Mutex::new(Vec::new());
    let patience = patience();
    let big = async {
        let got = ledger.reserve(&want("big", 9), SOON, &patience).await.unwrap();
        order.lock().unwrap().push("big");
        drop(got);
    };
    let small = async {
        // Its ticket is younger.
        let e = now(&ledger, &want("small", 1)).await.unwrap_err();
        assert!(e.message().contains("lab big"), "{e}");
        let wanted = want("small", 1);
        let waits = ledger.reserve(&wanted, SOON, &patience);
        let (got, ()) = tokio::join!(waits, async { drop(one) });
        order.lock().unwrap().push("small");
        drop(got.unwrap());
    };
    tokio::join!(big, small);
    assert_eq!(*order.lock().unwrap(), ["big", "small"]);
}

#[tokio::test]
async fn a_wait_that_is_given_up_leaves_the_queue() {
    let host = Host::new(4, 8);
    let ledger = host.ledger();
    let one = now(&ledger, &want("one", 4)).await.unwrap();
    let patience = patience();
    let wanted = want("two", 1);
    {
        let waits = ledger.reserve(&wanted, SOON, &patience);
        tokio::pin!(waits);
        let polled = tokio::time::timeout(Duration::ZERO, &mut waits).await;
        assert!(polled.is_err());
        assert_eq!(host.tickets(), 2);
    }
    assert_eq!(host.tickets(), 1);
    drop(one);
    assert_eq!(host.tickets(), 0);
}

/// Not a test of its own: the child of the next one.
#[test]
#[ignore = "run by another test"]
fn holds_a_reservation_until_it_is_killed() {
    let Some(base) = std::env::var_os("STACKPROOF_TEST_RESERVES") else { return };
    let base = PathBuf::from(base);
    let ledger = Ledger::of(base.join("reservations"), &base.join("root"), 8).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let held = runtime.block_on(now(&ledger, &want("child", 4))).unwrap();
    println!("\nholds it");
    // The parent never writes: it kills.
    let _ = std::io::stdin().read(&mut [0]);
    drop(held);
}

fn child(host: &Host) -> Child {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--nocapture"])
        .arg("lab::admission::reservation::tests::holds_a_reservation_until_it_is_killed")
        .env("STACKPROOF_TEST_RESERVES", host.dir.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let said = BufReader::new(child.stdout.take().unwrap());
    assert!(said.lines().any(|l| l.unwrap().contains("holds it")));
    child
}

#[tokio::test]
async fn a_reservation_dies_with_its_killed_owner() {
    let host = Host::new(4, 8);
    let ledger = host.ledger();
    let mut child = child(&host);
    let e = now(&ledger, &want("two", 1)).await.unwrap_err();
    assert!(e.message().contains(&format!("lab child (process {}", child.id())), "{e}");
    child.kill().unwrap();
    child.wait().unwrap();
    let _two = now(&ledger, &want("two", 1)).await.unwrap();
    assert_eq!(host.tickets(), 1, "the dead one's ticket is gone");
}

#[test]
fn this_process_and_its_children_are_seen_in_the_real_proc() {
    let mut child = Command::new("sleep").arg("60").spawn().unwrap();
    let used = used(Path::new("/"), &[std::process::id()].into());
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(used[&std::process::id()] > 0, "{used:?}");
}
