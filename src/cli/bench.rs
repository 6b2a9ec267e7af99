//! `stackproof bench`: numbers beside their peers, as a table and as JSON.

mod boot;
mod guests;
mod peers;
mod race;
mod restore;
mod switch;
mod traffic;
mod vde;

use super::args::{Bench, BenchPart};
use super::record::NotRun;
use super::session::{Session, Work};
use super::table::Table;
use super::{finish, print, print_error, write};
use crate::cloud::awake::FIRST_TOKEN;
use crate::cluster::host;
use crate::error::{Context, Kind, Result};
use crate::host::meminfo;
use crate::images::digest::{self, Algorithm};
use crate::lab::accel::{Accel, Trust};
use crate::lab::hypervisor::Hypervisor;
use serde::Serialize;
use serde_json::Value;
use std::io::Write;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Instant;

/// Each measurement is the best of so many: the others met a busy machine.
const TRIES: usize = 3;
/// What the issue promises for a machine of two cores without KVM.
const E2E_SECONDS: f64 = 2400.0;
const SSH_SECONDS: f64 = 60.0;
/// Of a run that began from a cloud that is ready: to the first answer, and the proof.
const WARM_ANSWER_SECONDS: f64 = 6.0;
const WARM_PROOF_SECONDS: f64 = 240.0;
const PEAK_MIB: f64 = 100e6 / (1024.0 * 1024.0);

#[derive(Debug, Serialize)]
struct Number {
    name: String,
    value: f64,
    unit: &'static str,
    /// What it is compared with; null where there is nothing to compare with.
    peer: Option<String>,
    peer_value: Option<f64>,
    /// `value / peer_value`.
    ratio: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Results {
    machine: Machine,
    results: Vec<Number>,
    /// Peers that are not on this machine, with what to do about it.
    not_run: Vec<NotRun>,
}

#[derive(Debug, Serialize)]
struct Machine {
    cpu: String,
    cores: usize,
    memory_mib: u64,
    kernel: String,
    qemu: Option<String>,
    openssl: Option<String>,
    accelerator: Option<String>,
    /// A debug build is not worth comparing.
    build: &'static str,
}

/// What machines are booted with.
struct Host {
    hypervisor: Hypervisor,
    accel: Accel,
}

impl Number {
    fn new(name: impl Into<String>, value: f64, unit: &'static str) -> Number {
        let value = rounded(value);
        Number { name: name.into(), value, unit, peer: None, peer_value: None, ratio: None }
    }
    fn beside(mut self, peer: impl Into<String>, value: f64) -> Number {
        self.peer = Some(peer.into());
        self.peer_value = Some(rounded(value));
        self.ratio = (value > 0.0).then(|| rounded(self.value / value));
        self
    }
}

fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

pub async fn run(session: Session, args: Bench) -> Result<ExitCode> {
    let redactor = session.redactor.clone();
    let json = session.env.cwd.join(&args.json);
    let target = write::can(&json)?;
    let (record, out) = session.conduct(|work| measure(work, args)).await;
    if let Ok(results) = &out {
        let to_stdout = target.is_stdout();
        write::json(target, results, &redactor)?;
        match to_stdout {
            true => print_error(&table(results), &redactor)?,
            false => print(&table(results), &redactor)?,
        }
    }
    finish(&record, out)
}

async fn measure(work: Work, args: Bench) -> Result<Results> {
    let wanted = |part| args.only.is_empty() || args.only.contains(&part);
    let e2e = match args.only.is_empty() {
        true => last_e2e(&work.env.cwd.join(&args.e2e), &work),
        false => None,
    };
    let accelerator = e2e.as_ref().and_then(|e| Some(e["accelerator"].as_str()?.to_owned()));
    let (mut results, mut not_run) = (Vec::new(), Vec::new());
    if wanted(BenchPart::Hashing) {
        let mib = args.hash_mib;
        let hashed = async {
            let out = tokio::task::spawn_blocking(move || hashing(mib)).await;
            out.doing(Kind::Internal, || "the measurement ended".into())?
        };
        results.extend(work.events.phase("hashing", hashed).await?);
    }
    if wanted(BenchPart::Switch) {
        let (frames, missing) = work.events.phase("switch", switch::measure(&work)).await?;
        results.extend(frames);
        not_run.extend(missing);
    }
    let mut judged = None;
    let boots = [BenchPart::Traffic, BenchPart::Boot, BenchPart::Restore];
    if !args.no_boot && boots.into_iter().any(wanted) {
        let host = work.events.phase("accelerator", host(&work)).await?;
        work.learn(|facts| judged = facts.accelerator.clone());
        if wanted(BenchPart::Traffic) {
            let traffic = traffic::measure(&work, &host);
            let (frames, missing) = work.events.phase("traffic", traffic).await?;
            results.extend(frames);
            not_run.extend(missing);
        }
        if wanted(BenchPart::Boot) {
            let (boots, missing) = work.events.phase("boot", boot::measure(&work, &host)).await?;
            results.extend(boots);
            not_run.extend(missing);
        }
        if wanted(BenchPart::Restore) {
            let restore = restore::measure(&work, &host);
            let (restored, absent) = work.events.phase("restore", restore).await?;
            results.extend(restored);
            not_run.extend(absent);
        }
    }
    if let Some(e2e) = &e2e {
        results.extend(of_e2e(e2e));
    }
    Ok(Results { machine: machine(judged.or(accelerator)), results, not_run })
}

async fn host(work: &Work) -> Result<Host> {
    let hypervisor = host::hypervisor().await?;
    let accel = work.choose_accelerator(&hypervisor, Trust::Choice).await?;
    Ok(Host { hypervisor, accel })
}

/// The last run's JSON, if there is one.
fn last_e2e(path: &Path, work: &Work) -> Option<Value> {
    let read = std::fs::read(path).ok();
    let parsed = read.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    if parsed.is_none() {
        work.events.warning(format!(
            "{} is not there: the phases of e2e are not shown (make e2e writes it)",
            path.display()
        ));
    }
    parsed
}

/// The store's hash beside openssl's, on a file that is in the page cache.
fn hashing(mib: u32) -> Result<Vec<Number>> {
    let cannot = || "the file to hash cannot be written".to_owned();
    let mut file = tempfile::NamedTempFile::new().doing(Kind::Host, cannot)?;
    let block: Vec<u8> =
        (0..1u32 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for _ in 0..mib {
        file.write_all(&block).doing(Kind::Host, cannot)?;
    }
    let speed = |seconds: f64| f64::from(mib) / seconds;
    let ours = best(|| digest::file(file.path(), Algorithm::Sha256).map(|d| d.hex()));
    let (hex, seconds) = ours.doing(Kind::Host, || "the file cannot be hashed".into())?;
    let number = Number::new("image hashing (sha256)", speed(seconds), "MiB/s");
    let peer = best(|| {
        let out =
            Command::new("openssl").args(["dgst", "-sha256", "-r"]).arg(file.path()).output()?;
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    });
    Ok(vec![match peer {
        // A peer that computes something else is none.
        Ok((text, seconds)) if text.starts_with(&hex) => {
            number.beside("openssl dgst -sha256", speed(seconds))
        }
        _ => number,
    }])
}

/// The result and the seconds of the fastest of some tries.
fn best<T>(mut work: impl FnMut() -> std::io::Result<T>) -> std::io::Result<(T, f64)> {
    let mut fastest: Option<(T, f64)> = None;
    for _ in 0..TRIES {
        let start = Instant::now();
        let out = work()?;
        let seconds = start.elapsed().as_secs_f64();
        if fastest.as_ref().is_none_or(|(_, best)| seconds < *best) {
            fastest = Some((out, seconds));
        }
    }
    Ok(fastest.expect("TRIES is not 0"))
}

/// The phase that restores ends with the first token, for which it waits once there was an answer.
fn to_first_answer(e2e: &Value) -> Option<f64> {
    let seconds_of = |list: &str, key: &str, name: &str| {
        let all = e2e[list].as_array()?;
        all.iter().find(|one| one[key] == name)?["seconds"].as_f64()
    };
    Some(seconds_of("phases", "name", "restore")? - seconds_of("waits", "what", FIRST_TOKEN)?)
}

/// The numbers of the last run, beside what is promised.
fn of_e2e(e2e: &Value) -> Vec<Number> {
    let mut numbers = Vec::new();
    let phases = || e2e["phases"].as_array().into_iter().flatten();
    let named =
        |start: &str| phases().any(|p| p["name"].as_str().is_some_and(|n| n.starts_with(start)));
    let warm = named("restore") && !named("provision");
    if let Some(seconds) = e2e["seconds"].as_f64() {
        let result = e2e["result"].as_str().unwrap_or("?");
        let way = match (warm, named("restore")) {
            (true, _) => "warm",
            (_, true) => "from a layer",
            _ => "cold",
        };
        let number = Number::new(format!("e2e ({result}, {way})"), seconds, "s");
        numbers.push(match way {
            "cold" => number.beside("promised on 2 cores, TCG", E2E_SECONDS),
            _ => number,
        });
    }
    for phase in phases() {
        if let (Some(name), Some(seconds)) = (phase["name"].as_str(), phase["seconds"].as_f64()) {
            let number = Number::new(format!("e2e {name}"), seconds, "s");
            numbers.push(match name {
                "boot" => number.beside("promised: SSH to both nodes", SSH_SECONDS),
                "proof" if warm => number.beside("promised when warm", WARM_PROOF_SECONDS),
                _ => number,
            });
        }
    }
    if warm && let Some(seconds) = to_first_answer(e2e) {
        numbers.push(
            Number::new("e2e from the restore's begin to the cloud's first answer", seconds, "s")
                .beside("promised when warm", WARM_ANSWER_SECONDS),
        );
    }
    for wait in e2e["waits"].as_array().into_iter().flatten() {
        if let (Some(what), Some(seconds)) = (wait["what"].as_str(), wait["seconds"].as_f64())
            && what.contains("SSH")
        {
            let number = Number::new(format!("wait: {what}"), seconds, "s");
            numbers.push(match wait["deadline"].as_f64() {
                Some(deadline) => number.beside("deadline", deadline),
                None => number,
            });
        }
    }
    if let Some(mib) = e2e["peak_memory_mib"].as_f64() {
        numbers.push(
            Number::new("e2e peak memory, without QEMU", mib, "MiB")
                .beside("promised: 100 MB", PEAK_MIB),
        );
    }
    numbers
}

fn machine(accelerator: Option<String>) -> Machine {
    let line = |file: &str, key: &str| {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let found = text.lines().find_map(|l| l.strip_prefix(key)).unwrap_or_default().to_owned();
        found.trim_start_matches([' ', '\t', ':']).to_owned()
    };
    let first_line = |program: &str, argument: &str| {
        let out = Command::new(program).arg(argument).output().ok()?;
        Some(String::from_utf8_lossy(&out.stdout).lines().next()?.to_owned())
    };
    let memory = meminfo(Path::new("/"), "MemTotal").unwrap_or(0);
    Machine {
        cpu: line("/proc/cpuinfo", "model name"),
        cores: std::thread::available_parallelism().map_or(1, |n| n.get()),
        memory_mib: memory >> 20,
        kernel: line("/proc/sys/kernel/osrelease", ""),
        qemu: first_line("qemu-system-x86_64", "--version"),
        openssl: first_line("openssl", "version"),
        accelerator,
        build: if cfg!(debug_assertions) { "debug" } else { "release" },
    }
}

fn table(results: &Results) -> String {
    let m = &results.machine;
    let mut table = Table::new(["NAME", "VALUE", "UNIT", "RATIO", "PEER"]);
    for n in &results.results {
        let ratio = n.ratio.map_or("-".into(), |r| format!("{r:.2}"));
        let peer = match (&n.peer, n.peer_value) {
            (Some(peer), Some(value)) => format!("{value:.1} {} ({peer})", n.unit),
            _ => "-".into(),
        };
        table.row([&n.name, &format!("{:.1}", n.value), n.unit, &ratio, &peer]);
    }
    let not_run = results.not_run.iter().map(|n| format!("not run: {}: {}\n", n.name, n.reason));
    format!(
        "{table}{}\n{}, {} cores, {} MiB, Linux {}, {} build\n",
        not_run.collect::<String>(),
        m.cpu,
        m.cores,
        m.memory_mib,
        m.kernel,
        m.build
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn hashing_is_beside_openssl_with_the_ratio_of_the_two() {
        let numbers = hashing(2).unwrap();
        assert_eq!(numbers[0].unit, "MiB/s");
        assert!(numbers[0].value > 0.0);
        if let (Some(ratio), Some(peer)) = (numbers[0].ratio, numbers[0].peer_value) {
            assert!((ratio - numbers[0].value / peer).abs() < 0.01, "{numbers:?}");
        }
    }

    #[test]
    fn the_phases_ssh_waits_and_memory_of_the_last_run_are_rows() {
        let numbers = of_e2e(&json!({
            "result": "pass", "seconds": 1200.0, "peak_memory_mib": 50.0,
            "phases": [{"name": "boot", "seconds": 30.0}, {"name": "proof", "seconds": 600.0}],
            "waits": [{"what": "SSH to openstack1", "seconds": 20.0, "deadline": 400.0},
                      {"what": "a lease", "seconds": 1.0, "deadline": 2.0}],
        }));
        let names: Vec<_> = numbers.iter().map(|n| n.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "e2e (pass, cold)",
                "e2e boot",
                "e2e proof",
                "wait: SSH to openstack1",
                "e2e peak memory, without QEMU"
            ]
        );
        assert_eq!(numbers[0].ratio, Some(0.5));
        assert_eq!(numbers[1].ratio, Some(0.5));
        assert_eq!(numbers[2].ratio, None);
    }

    #[test]
    fn a_warm_run_is_called_so_and_is_beside_what_is_promised_for_one() {
        let phases =
            json!([{"name": "restore", "seconds": 3.0}, {"name": "proof", "seconds": 480.0}]);
        let waits = json!([{"what": FIRST_TOKEN, "seconds": 1.5, "deadline": 20.0}]);
        let warm = json!({"result": "pass", "seconds": 500.0, "phases": phases, "waits": waits});
        let warm = of_e2e(&warm);
        assert_eq!(warm[0].name, "e2e (pass, warm)");
        let ratios: Vec<_> = warm.iter().map(|n| n.ratio).collect();
        assert_eq!(ratios, [None, None, Some(2.0), Some(0.25)]);
        assert!(warm[3].name.contains("first answer"), "{}", warm[3].name);
        let mut phases = phases;
        phases.as_array_mut().unwrap().push(json!({"name": "provision nova", "seconds": 9.0}));
        let part = of_e2e(&json!({"result": "pass", "seconds": 500.0, "phases": phases}));
        assert_eq!(part[0].name, "e2e (pass, from a layer)");
        assert!(part.iter().all(|n| n.ratio.is_none()));
    }

    #[test]
    fn an_empty_or_foreign_json_gives_no_rows_and_no_panic() {
        for value in [json!({}), json!([]), json!(null), json!({"phases": 3, "waits": [1]})] {
            assert!(of_e2e(&value).is_empty(), "{value}");
        }
    }

    #[test]
    fn every_row_of_the_json_has_the_documented_keys() {
        let value = serde_json::to_value(Number::new("a", 1.0, "s").beside("b", 0.0)).unwrap();
        let keys: Vec<_> = value.as_object().unwrap().keys().cloned().collect();
        assert_eq!(keys, ["name", "value", "unit", "peer", "peer_value", "ratio"]);
        assert!(value["ratio"].is_null(), "nothing is divided by zero");
    }
}
