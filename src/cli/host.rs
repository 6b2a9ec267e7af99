//! `stackproof host`: what this machine has for running labs.

use super::args::Host;
use super::session::{Session, Work};
use super::table::Table;
use super::view::human_bytes;
use super::{e2e, finish, print, write};
use crate::error::{Error, Result};
use crate::host::{self, DeviceState, HostReport, Need, NeedState};
use crate::lab::accel::{Judgement, Trial, Trust};
use serde_json::{Value, json};
use std::os::unix::fs::DirBuilderExt;
use std::process::ExitCode;

pub async fn run(session: Session, verb: Host) -> Result<ExitCode> {
    let (record, out) = session
        .conduct(|work| async move {
            match verb {
                Host::Check { json } => check(&work, json).await,
                Host::Setup => setup(&work).await.map(drop),
            }
        })
        .await;
    finish(&record, out)
}

/// Installs what is missing, or fails with the command that does.
pub async fn setup(work: &Work) -> Result<HostReport> {
    make_store(work)?;
    let logs = work.env.store.join("logs");
    std::fs::create_dir_all(&logs)
        .map_err(|e| Error::host("the folder of logs cannot be made").at(&logs, None).because(e))?;
    let (store, log) = (&work.env.store, logs.join("setup.log"));
    host::ensure_tools(store, work.env.mirrors().as_ref(), &log, &work.events).await
}

/// Private whatever the umask, as the store itself makes it.
fn make_store(work: &Work) -> Result<()> {
    let mut folder = std::fs::DirBuilder::new();
    let made = folder.recursive(true).mode(0o700).create(&work.env.store);
    made.map_err(|e| Error::host("the store cannot be made").at(&work.env.store, None).because(e))
}

/// Shows what was found, also where something is missing: then that is the error.
async fn check(work: &Work, json: bool) -> Result<()> {
    let report = host::inspect(&work.env.store, work.env.mirrors().as_ref()).await;
    let judged = match e2e::hypervisor().await {
        // Whoever asks is told what is, and not what was.
        Ok(hypervisor) => {
            let judged = e2e::judge(work, &hypervisor, Trust::Nothing);
            Some(work.events.phase("accelerator", judged).await?)
        }
        Err(_) => None,
    };
    let text = if json {
        write::pretty(&object(&report, judged.as_ref()))?
    } else {
        text(&report, judged.as_ref())
    };
    print(&text, &work.redactor)?;
    let missing = report.missing();
    if missing.is_empty() {
        return Ok(());
    }
    let list: Vec<String> = missing.iter().map(ToString::to_string).collect();
    let lacking = Error::host(format!("this host lacks {}", list.join(", ")));
    Err(match report.remedy() {
        Some(plan) if report.root => lacking
            .hint("run `stackproof host setup`: it installs them")
            .evidence([format!("it would run: {}", plan.command())]),
        Some(plan) => lacking.hint(format!("run this: {}", plan.command())),
        None => lacking.hint("install them as your system does (QEMU must be 9.2 or newer)"),
    })
}

fn state(need: &Need) -> String {
    match &need.state {
        NeedState::Found { version, .. } => version.clone().unwrap_or_else(|| "found".into()),
        NeedState::TooOld { version, .. } => {
            format!("{version}: too old, {} or newer is needed", need.at_least.unwrap_or_default())
        }
        NeedState::Missing => format!("MISSING (package {})", need.package),
    }
}

fn text(report: &HostReport, judged: Option<&Judgement>) -> String {
    let mut table = Table::new(["WHAT", "FOUND", "FOR"]);
    if let Some(system) = &report.system {
        table.row(["system", system, ""]);
    }
    for need in &report.needs {
        table.row([need.name, &state(need), need.purpose]);
    }
    for device in &report.devices {
        let state = match &device.state {
            DeviceState::Opens => "opens (its speed is measured below)".to_owned(),
            DeviceState::Absent => "absent".into(),
            DeviceState::Refused(why) => format!("cannot be opened: {why}"),
        };
        table.row([device.path, &state, "hardware virtualisation"]);
    }
    if let Some(j) = judged {
        table.row(["KVM", &j.kvm.to_string(), ""]);
        table.row(["TCG", &j.tcg.to_string(), ""]);
        let chosen = format!("{} (deadlines times {:.1})", j.accel, j.speed.max(1.0));
        table.row(["accelerator", &chosen, "chosen by these measurements"]);
    }
    let memory = report.memory;
    let found =
        format!("{} of {} available", human_bytes(memory.available), human_bytes(memory.total));
    table.row(["memory", &found, &format!("{} CPUs", report.cpus)]);
    let free = report.free_bytes.map_or("unknown".into(), human_bytes);
    table.row(["disk", &format!("{free} free"), &report.folder.display().to_string()]);
    table.to_string()
}

fn object(report: &HostReport, judged: Option<&Judgement>) -> Value {
    let seconds = |trial: &Trial| trial.work().map(|work| work.as_secs_f64());
    json!({
        "host": report,
        "accelerator": judged.map(|j| j.accel.to_string().to_lowercase()),
        "speed_factor": judged.map(|j| j.speed.max(1.0)),
        "kvm": judged.map(|j| json!({"seconds": seconds(&j.kvm), "found": j.kvm.to_string()})),
        "tcg": judged.map(|j| json!({"seconds": seconds(&j.tcg), "found": j.tcg.to_string()})),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::accel::Accel;
    use std::time::Duration;

    #[tokio::test]
    async fn what_is_missing_is_shown_with_its_package() {
        let mut report = host::inspect(std::path::Path::new("/"), None).await;
        report.needs[0].state = NeedState::Missing;
        let wanted = format!("MISSING (package {})", report.needs[0].package);
        assert!(text(&report, None).contains(&wanted));
        assert_eq!(object(&report, None)["host"]["needs"][0]["state"]["state"], "missing");
    }

    #[tokio::test]
    async fn both_accelerators_are_shown_with_what_was_measured() {
        let judged = Judgement {
            accel: Accel::Tcg,
            speed: 7.5,
            beyond: None,
            kvm: Trial::Unusable("no such device".into()),
            tcg: Trial::Worked {
                startup: Duration::from_millis(100),
                work: Duration::from_millis(270),
            },
        };
        let report = host::inspect(std::path::Path::new("/"), None).await;
        let json = object(&report, Some(&judged));
        assert_eq!(json["accelerator"], "tcg");
        assert_eq!(json["tcg"]["seconds"], 0.27);
        assert!(json["kvm"]["seconds"].is_null());
        assert!(text(&report, Some(&judged)).contains("no such device"));
    }
}
