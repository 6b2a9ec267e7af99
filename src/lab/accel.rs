//! Which accelerator: decided by running guest code, because opening /dev/kvm proves nothing.

mod notes;
mod probe;

pub use notes::{Notes, Trust};

use super::hypervisor::Hypervisor;
use super::process::Process;
use super::qemu;
use crate::error::{Context, Error, Kind, Result};
use crate::wait::Speed;
use notes::Noted;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Accel {
    /// The processor runs the guest.
    Kvm,
    /// QEMU translates the guest's code.
    Tcg,
}

impl fmt::Display for Accel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Accel::Kvm => "KVM",
            Accel::Tcg => "TCG",
        })
    }
}

/// What the probe is taken to need on the reference machine. Not measured on one: set so that the
/// idle 2-core machine whose TCG needs 0.36 s, and whose shell loops run 7 times slower in a guest,
/// gets a factor of 10.
const REFERENCE: Duration = Duration::from_millis(36);

/// TCG always works, if slowly; this is for a host that hangs. Two cores under a load of 8 needed
/// more than six seconds for what takes 0.36 s when they are idle.
const TCG_LIMIT: Duration = Duration::from_secs(60);

/// KVM has as long as TCG took, and at least this long.
const KVM_LIMIT_LEAST: Duration = Duration::from_secs(1);

/// So many runs at most, of which the best counts, and none is begun later than this.
const RUNS: usize = 5;
const REPEATING: Duration = Duration::from_secs(1);

/// What running the probe under one accelerator gave.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Trial {
    Worked {
        /// From QEMU's start to the guest's first instruction.
        startup: Duration,
        /// The fixed amount of work.
        work: Duration,
    },
    /// It ran, but did not get there in time.
    TooSlow { limit: Duration, stages_done: usize },
    /// It cannot be had; the text says why.
    Unusable(String),
}

impl Trial {
    pub fn work(&self) -> Option<Duration> {
        match self {
            Trial::Worked { work, .. } => Some(*work),
            _ => None,
        }
    }
}

impl fmt::Display for Trial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trial::Worked { startup, work } => {
                let (startup, work) = (startup.as_secs_f64(), work.as_secs_f64());
                write!(f, "{work:.3} s of work after {startup:.3} s of start")
            }
            Trial::TooSlow { limit, stages_done } => {
                let (limit, all) = (limit.as_secs_f64(), probe::STAGES.len());
                write!(f, "too slow: {stages_done} of {all} stages in {limit:.1} s")
            }
            Trial::Unusable(why) => write!(f, "unusable: {why}"),
        }
    }
}

/// The accelerator to use, with the measurements that say so.
#[derive(Clone, Debug)]
pub struct Judgement {
    pub accel: Accel,
    /// For [`crate::wait::Speed`]: how many times slower than the reference guests run here, at
    /// most [`Speed::MOST`].
    pub speed: f64,
    /// What was measured, where it is more than that: this host is busy, or hopelessly slow.
    pub beyond: Option<f64>,
    pub kvm: Trial,
    pub tcg: Trial,
}

/// Measures the accelerators that `notes` tell nothing of, or nothing that is trusted, and notes what
/// was found. `scratch` is a directory for the probe's firmware.
pub async fn judge(
    hypervisor: &Hypervisor,
    scratch: &Path,
    notes: &Notes,
    trust: Trust,
) -> Result<Judgement> {
    let kvm_opens = kvm_device().is_ok();
    let noted = match trust {
        Trust::Nothing => None,
        Trust::Choice | Trust::Speed => notes.read(hypervisor, kvm_opens),
    };
    if trust == Trust::Speed
        && let Some(noted) = noted.as_ref().filter(|n| n.is_fresh(SystemTime::now()))
        && let Some(judged) = of_trials(noted.accel, &noted.kvm, &noted.tcg)
    {
        return Ok(judged);
    }
    let remeasured = match noted {
        Some(noted) => again(hypervisor, scratch, noted).await?,
        None => None,
    };
    let judged = match remeasured {
        Some(judged) => judged,
        None => measure(hypervisor, scratch).await?,
    };
    notes.write(hypervisor, kvm_opens, &judged);
    Ok(judged)
}

/// Measures the one that was chosen. None where it does not do what it did.
async fn again(hypervisor: &Hypervisor, scratch: &Path, noted: Noted) -> Result<Option<Judgement>> {
    let Noted { accel, kvm, tcg, .. } = noted;
    let now = best(hypervisor, accel, TCG_LIMIT, scratch).await?;
    let (kvm, tcg) = match accel {
        Accel::Kvm => (now, tcg),
        Accel::Tcg => (kvm, now),
    };
    Ok(of_trials(accel, &kvm, &tcg))
}

/// The choice stands, also where what was measured at two times would say another one: they say
/// nothing of each other. None where the chosen one did not work.
fn of_trials(accel: Accel, kvm: &Trial, tcg: &Trial) -> Option<Judgement> {
    let chosen = match accel {
        Accel::Kvm => kvm,
        Accel::Tcg => tcg,
    };
    Some(judgement(accel, chosen.work()?, kvm.clone(), tcg.clone()))
}

/// Measures both accelerators, one after the other, each several times: seconds, unless the host is
/// loaded.
async fn measure(hypervisor: &Hypervisor, scratch: &Path) -> Result<Judgement> {
    let tcg = best(hypervisor, Accel::Tcg, TCG_LIMIT, scratch).await?;
    // What is slower than TCG need not be awaited.
    let limit = tcg.work().unwrap_or(TCG_LIMIT / 2).max(KVM_LIMIT_LEAST);
    let kvm = match kvm_device() {
        Ok(()) => best(hypervisor, Accel::Kvm, limit, scratch).await?,
        Err(e) => Trial::Unusable(format!("/dev/kvm: {e}")),
    };
    conclude(kvm, tcg)
}

/// Measures one accelerator, which the user chose. An error where it runs no guest code.
pub async fn judge_chosen(
    hypervisor: &Hypervisor,
    scratch: &Path,
    chosen: Accel,
) -> Result<Judgement> {
    let trial = match (chosen, kvm_device()) {
        (Accel::Kvm, Err(e)) => Trial::Unusable(format!("/dev/kvm: {e}")),
        _ => best(hypervisor, chosen, TCG_LIMIT, scratch).await?,
    };
    let not_measured = || Trial::Unusable("not measured: another accelerator was chosen".into());
    let (kvm, tcg) = match chosen {
        Accel::Kvm => (trial.clone(), not_measured()),
        Accel::Tcg => (not_measured(), trial.clone()),
    };
    of_trials(chosen, &kvm, &tcg).ok_or_else(|| {
        Error::host(format!("{chosen} runs no guest code here: {trial}"))
            .hint("leave --accel away, and see `stackproof host check`")
    })
}

fn kvm_device() -> std::io::Result<()> {
    std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").map(drop)
}

/// What brings KVM to a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nested {
    /// A module of Linux.
    pub module: &'static str,
    /// Whether the processor that it drives is QEMU's own.
    pub emulated: bool,
}

/// What brings KVM to a guest under `accel`: by default whatever does, nothing where `wanted` is
/// false. An error where it is wanted and nothing brings it.
pub fn nested(accel: Accel, wanted: Option<bool>) -> Result<Option<Nested>> {
    if wanted == Some(false) {
        return Ok(None);
    }
    match available_nested(accel) {
        None if wanted == Some(true) => Err(Error::host(
            "this host's KVM gives guests no KVM of their own",
        )
        .hint(
            "load its module with nesting: sudo modprobe -r kvm_intel && sudo modprobe kvm_intel \
             nested=1 (kvm_amd on AMD); or leave --nested on away",
        )),
        found => Ok(found),
    }
}

/// QEMU emulates AMD's SVM with its nested paging, and not Intel's VMX; KVM shows guests what this
/// host's module allows.
fn available_nested(accel: Accel) -> Option<Nested> {
    match accel {
        Accel::Tcg => Some(Nested { module: "kvm_amd", emulated: true }),
        Accel::Kvm => {
            let module = nested_kvm(Path::new("/sys/module"))?;
            Some(Nested { module, emulated: false })
        }
    }
}

fn nested_kvm(modules: &Path) -> Option<&'static str> {
    ["kvm_amd", "kvm_intel"].into_iter().find(|module| {
        let allowed = std::fs::read_to_string(modules.join(module).join("parameters/nested"));
        allowed.is_ok_and(|text| matches!(text.trim(), "1" | "Y"))
    })
}

/// KVM where it is the faster, TCG where it works at all.
fn conclude(kvm: Trial, tcg: Trial) -> Result<Judgement> {
    let (accel, work) = match (kvm.work(), tcg.work()) {
        (Some(k), Some(t)) if k > t => (Accel::Tcg, t),
        (Some(k), _) => (Accel::Kvm, k),
        (None, Some(t)) => (Accel::Tcg, t),
        (None, None) => {
            return Err(Error::host("QEMU runs no guest code here")
                .evidence([format!("KVM: {kvm}"), format!("TCG: {tcg}")])
                .hint("see `stackproof host check`; a very loaded host looks like this too"));
        }
    };
    Ok(judgement(accel, work, kvm, tcg))
}

/// `work` is that of `accel`.
fn judgement(accel: Accel, work: Duration, kvm: Trial, tcg: Trial) -> Judgement {
    let measured = work.as_secs_f64() / REFERENCE.as_secs_f64();
    let beyond = (measured > Speed::MOST).then_some(measured);
    Judgement { accel, speed: measured.min(Speed::MOST), beyond, kvm, tcg }
}

/// The best of several runs of the probe: what else the host does makes one slower, and nothing makes
/// one faster. No run is begun after [`REPEATING`].
async fn best(
    hypervisor: &Hypervisor,
    accel: Accel,
    limit: Duration,
    scratch: &Path,
) -> Result<Trial> {
    let start = Instant::now();
    let mut best = try_one(hypervisor, accel, limit, scratch).await?;
    for _ in 1..RUNS {
        // What did not work once is not asked again.
        let Trial::Worked { startup, work } = best else { break };
        if start.elapsed() >= REPEATING {
            break;
        }
        // A run that is no better need not be awaited to its end.
        let again = try_one(hypervisor, accel, (startup + work) * 2, scratch).await?;
        best = better(best, again);
    }
    Ok(best)
}

/// The one that did the work sooner.
fn better(one: Trial, other: Trial) -> Trial {
    match (one.work(), other.work()) {
        (Some(a), Some(b)) if b < a => other,
        (None, Some(_)) => other,
        _ => one,
    }
}

/// Runs the probe once, for at most `limit`.
pub async fn try_one(
    hypervisor: &Hypervisor,
    accel: Accel,
    limit: Duration,
    scratch: &Path,
) -> Result<Trial> {
    let at = |what: &str| format!("cannot {what} in {}", scratch.display());
    let dir = tempfile::Builder::new()
        .prefix("accel-")
        .tempdir_in(scratch)
        .doing(Kind::Host, || at("make a directory"))?;
    let firmware = dir.path().join("probe.rom");
    std::fs::write(&firmware, probe::firmware()).doing(Kind::Host, || at("write the probe"))?;
    let log_file = dir.path().join("stderr");
    let log = std::fs::File::create(&log_file).doing(Kind::Host, || at("write a log"))?;
    let (said, says) = std::io::pipe().doing(Kind::Host, || "cannot make a pipe".into())?;
    let mut said = pipe::Receiver::from_owned_fd(said.into())
        .doing(Kind::Internal, || "cannot read a pipe".into())?;

    let mut command = Command::new(&hypervisor.qemu);
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-m", "32M"]);
    command.args(["-object", "memory-backend-ram,id=ram,size=32M"]);
    for (option, value) in qemu::base(accel) {
        command.args([option, value]);
    }
    if hypervisor.sandbox {
        command.args(["-sandbox", qemu::SANDBOX]);
    }
    command.arg("-bios").arg(&firmware);
    command.args(["-chardev", "stdio,id=debug,signal=off"]);
    command.args(["-device", "isa-debugcon,iobase=0xe9,chardev=debug"]);
    command.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=0x01"]);
    command.stdin(Stdio::null()).stdout(says).stderr(log);

    let start = Instant::now();
    let process = Process::spawn(command).await?;
    let mut stages: Vec<(u8, Duration)> = Vec::new();
    let mut buffer = [0u8; 16];
    let watch = async {
        // The end of the pipe is the end of QEMU.
        while let Ok(n @ 1..) = said.read(&mut buffer).await {
            stages.extend(buffer[..n].iter().map(|b| (*b, start.elapsed())));
            if stages.iter().any(|(stage, _)| *stage == probe::END) {
                break;
            }
        }
    };
    let in_time = tokio::time::timeout(limit, watch).await.is_ok();
    if let Some(trial) = read_stages(&stages) {
        return Ok(trial);
    }
    if !in_time {
        return Ok(Trial::TooSlow { limit, stages_done: stages.len() });
    }
    let status = process.exit().await;
    let log = std::fs::read_to_string(&log_file).unwrap_or_default();
    let why = log.lines().find(|l| !l.trim().is_empty()).unwrap_or("it said nothing");
    Ok(Trial::Unusable(format!("QEMU {}: {}", super::process::describe(status), why.trim())))
}

/// Both times, if all stages were said in their order.
fn read_stages(stages: &[(u8, Duration)]) -> Option<Trial> {
    if !stages.iter().map(|(stage, _)| *stage).eq(probe::STAGES) {
        return None;
    }
    let (startup, end) = (stages.first()?.1, stages.last()?.1);
    // Two stages in one read have one time; nothing real takes none.
    let work = (end - startup).max(Duration::from_micros(1));
    Some(Trial::Worked { startup, work })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worked(millis: u64) -> Trial {
        Trial::Worked { startup: Duration::from_millis(50), work: Duration::from_millis(millis) }
    }
    fn too_slow() -> Trial {
        Trial::TooSlow { limit: Duration::from_secs(1), stages_done: 1 }
    }

    #[test]
    fn kvm_in_a_guest_is_told_by_the_module_that_allows_it() {
        let emulated = Some(Nested { module: "kvm_amd", emulated: true });
        assert_eq!(nested(Accel::Tcg, None).unwrap(), emulated);
        assert_eq!(nested(Accel::Tcg, Some(true)).unwrap(), emulated);
        assert_eq!(nested(Accel::Tcg, Some(false)).unwrap(), None);
        let sys = tempfile::tempdir().unwrap();
        assert_eq!(nested_kvm(sys.path()), None);
        let intel = sys.path().join("kvm_intel/parameters");
        std::fs::create_dir_all(&intel).unwrap();
        for (text, allowed) in [("N\n", None), ("Y\n", Some("kvm_intel")), ("0\n", None)] {
            std::fs::write(intel.join("nested"), text).unwrap();
            assert_eq!(nested_kvm(sys.path()), allowed, "{text}");
        }
        let amd = sys.path().join("kvm_amd/parameters");
        std::fs::create_dir_all(&amd).unwrap();
        std::fs::write(amd.join("nested"), "1\n").unwrap();
        assert_eq!(nested_kvm(sys.path()), Some("kvm_amd"));
    }

    #[test]
    fn the_faster_one_wins_and_sets_the_speed() {
        let kvm = conclude(worked(36), worked(360)).unwrap();
        assert_eq!((kvm.accel, kvm.speed), (Accel::Kvm, 1.0));
        let tcg = conclude(worked(720), worked(360)).unwrap();
        assert_eq!((tcg.accel, tcg.speed), (Accel::Tcg, 10.0));
        let crawls = conclude(too_slow(), worked(180)).unwrap();
        assert_eq!((crawls.accel, crawls.speed), (Accel::Tcg, 5.0));
        let only = conclude(worked(18), Trial::Unusable("x".into())).unwrap();
        assert_eq!(only.accel, Accel::Kvm);
    }

    #[test]
    fn a_busy_hosts_measurement_is_cut_to_reason_and_told() {
        let busy = conclude(Trial::Unusable("x".into()), worked(12_672)).unwrap();
        assert_eq!(busy.speed, Speed::MOST);
        assert!(busy.beyond.is_some_and(|b| (351.0..353.0).contains(&b)), "{busy:?}");
        assert_eq!(conclude(worked(36), worked(360)).unwrap().beyond, None);
    }

    #[test]
    fn the_best_of_several_runs_counts() {
        assert_eq!(better(worked(400), worked(360)).work(), worked(360).work());
        assert_eq!(better(worked(360), worked(400)).work(), worked(360).work());
        assert_eq!(better(worked(360), too_slow()).work(), worked(360).work());
        assert_eq!(better(too_slow(), worked(9)).work(), worked(9).work());
    }

    #[test]
    fn a_host_where_nothing_runs_is_told_with_both_reasons() {
        let error = conclude(Trial::Unusable("no device".into()), too_slow()).unwrap_err();
        assert_eq!(error.kind(), Kind::Host);
        assert_eq!(error.evidence_lines()[0], "KVM: unusable: no device");
        assert_eq!(error.evidence_lines()[1], "TCG: too slow: 1 of 5 stages in 1.0 s");
    }

    #[test]
    fn only_all_stages_in_order_count() {
        let at = |text: &[u8]| -> Vec<(u8, Duration)> {
            text.iter().zip(1..).map(|(b, i)| (*b, Duration::from_millis(i))).collect()
        };
        let all = read_stages(&at(b"B123E")).unwrap();
        assert_eq!(all.work(), Some(Duration::from_millis(4)));
        for bad in [&b""[..], b"B", b"B123", b"E", b"B12E", b"B132E", b"B123EE"] {
            assert_eq!(read_stages(&at(bad)), None);
        }
    }

    #[tokio::test]
    async fn guest_code_runs_under_tcg_here() {
        let dir = tempfile::tempdir().unwrap();
        let found = Hypervisor::find("qemu-system-x86_64".as_ref(), "qemu-img".as_ref()).await;
        let hypervisor = found.expect("these tests need QEMU");
        let limit = Duration::from_secs(60);
        let trial = try_one(&hypervisor, Accel::Tcg, limit, dir.path()).await.unwrap();
        assert!(trial.work().is_some(), "{trial}");
        assert_eq!(dir.path().read_dir().unwrap().count(), 0, "nothing is left behind");
    }

    #[tokio::test]
    async fn a_chosen_accelerator_alone_is_measured() {
        let dir = tempfile::tempdir().unwrap();
        let found = Hypervisor::find("qemu-system-x86_64".as_ref(), "qemu-img".as_ref()).await;
        let hypervisor = found.expect("these tests need QEMU");
        let judged = judge_chosen(&hypervisor, dir.path(), Accel::Tcg).await.unwrap();
        assert!(judged.accel == Accel::Tcg && judged.tcg.work().is_some(), "{judged:?}");
        assert!(judged.kvm.work().is_none(), "{judged:?}");
        let refusing = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/qemu/refusing");
        let broken = Hypervisor { qemu: refusing, ..hypervisor };
        let e = judge_chosen(&broken, dir.path(), Accel::Tcg).await.unwrap_err();
        assert_eq!(e.kind(), Kind::Host, "{e}");
    }

    #[test]
    fn a_choice_that_was_made_stands_though_the_host_is_busier_now() {
        let busier = of_trials(Accel::Tcg, &worked(900), &worked(1440)).unwrap();
        assert_eq!((busier.accel, busier.speed), (Accel::Tcg, 40.0));
        assert!(of_trials(Accel::Kvm, &too_slow(), &worked(360)).is_none());
    }

    #[tokio::test]
    async fn what_was_noted_is_not_measured_again_as_far_as_it_is_trusted() {
        let dir = tempfile::tempdir().unwrap();
        let found = Hypervisor::find("qemu-system-x86_64".as_ref(), "qemu-img".as_ref()).await;
        let (hypervisor, opens) = (found.expect("these tests need QEMU"), kvm_device().is_ok());
        let notes = Notes::of_store(dir.path());
        // As no host is.
        let (kvm, tcg) = (Trial::Unusable("it was noted".into()), worked(1_000_000));
        notes.write(&hypervisor, opens, &conclude(kvm.clone(), tcg.clone()).unwrap());
        let judge = |trust| judge(&hypervisor, dir.path(), &notes, trust);

        let recalled = judge(Trust::Speed).await.unwrap();
        assert_eq!((recalled.accel, &recalled.kvm, &recalled.tcg), (Accel::Tcg, &kvm, &tcg));
        let chosen = judge(Trust::Choice).await.unwrap();
        assert_eq!((chosen.accel, &chosen.kvm), (Accel::Tcg, &kvm), "the other is not measured");
        assert!(chosen.tcg.work() < tcg.work(), "{chosen:?}");
        assert_eq!(judge(Trust::Speed).await.unwrap().tcg, chosen.tcg, "it is noted in its place");
        let measured = judge(Trust::Nothing).await.unwrap();
        assert_ne!(measured.kvm, kvm);
        assert_eq!(judge(Trust::Speed).await.unwrap().kvm, measured.kvm);
    }

    #[tokio::test]
    async fn a_qemu_that_fails_is_quoted_and_one_that_hangs_is_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let pretend = async |name: &str, limit: Duration| {
            let qemu = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/qemu").join(name);
            let (img, version) = (qemu.clone(), (10, 0, 0));
            let release = "10.0.0".into();
            let hypervisor = Hypervisor { qemu, img, version, release, sandbox: true };
            try_one(&hypervisor, Accel::Kvm, limit, dir.path()).await.unwrap()
        };
        assert_eq!(
            pretend("refusing", Duration::from_secs(60)).await.to_string(),
            "unusable: QEMU exited with status 1: failed to set MSR 0x10a"
        );
        let hanging = pretend("hanging", Duration::from_millis(300)).await;
        assert!(matches!(hanging, Trial::TooSlow { .. }), "{hanging}");
    }
}
