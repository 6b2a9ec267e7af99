//! `stackproof host`: what this machine has for running labs.

use super::args::Host;
use super::session::{Session, Work};
use super::table::Table;
use super::view::human_bytes;
use super::{finish, print, write};
use crate::cluster::host::{hypervisor, install_tools, judge};
use crate::error::Result;
use crate::host::{self, DeviceState, HostReport, HostScope, Need, NeedState};
use crate::lab::accel::{Judgement, Trial, Trust};
use serde_json::{Value, json};
use std::process::ExitCode;

pub async fn run(session: Session, verb: Host) -> Result<ExitCode> {
    let (record, out) = session
        .conduct(|work| async move {
            match verb {
                Host::Check { json } => check(&work, json).await,
                Host::Setup { run_only: true } => {
                    install_tools(&work, HostScope::RunLabs).await.map(drop)
                }
                Host::Setup { run_only: false } => {
                    install_tools(&work, HostScope::BuildImages).await.map(drop)
                }
            }
        })
        .await;
    finish(&record, out)
}

/// Shows what was found, also where something is missing: then that is the error.
async fn check(work: &Work, json: bool) -> Result<()> {
    let report = host::inspect(&work.env.store, work.env.mirrors().as_ref()).await;
    let judged = match hypervisor().await {
        // Whoever asks is told what is, and not what was.
        Ok(hypervisor) => {
            let judged = judge(work, &hypervisor, Trust::Nothing);
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
    for step in report.device_steps() {
        work.events.warning(step);
    }
    if !report.missing(HostScope::RunLabs).is_empty() {
        return Err(host::lacking(&report, HostScope::BuildImages));
    }
    if !report.missing(HostScope::BuildImages).is_empty() {
        work.events.warning("labs run here, and images cannot be built");
        for step in report.steps(HostScope::BuildImages) {
            work.events.warning(step);
        }
    }
    Ok(())
}

fn state(need: &Need) -> String {
    match &need.state {
        NeedState::Found { version, .. } => version.clone().unwrap_or_else(|| "found".into()),
        NeedState::TooOld { version, .. } => {
            format!("{version}: too old, {} or newer is needed", need.at_least.unwrap_or_default())
        }
        NeedState::Missing if need.scope == HostScope::RunLabs => "MISSING".into(),
        NeedState::Missing => "missing (only to build images)".into(),
        NeedState::Works => "works".into(),
        NeedState::Refused { reason, .. } => format!("does not work: {reason}"),
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
            DeviceState::Denied { group } => match group {
                Some(group) => format!("denied: only the group {group} may open it"),
                None => "denied".into(),
            },
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
    async fn what_is_missing_is_shown() {
        let mut report = host::inspect(std::path::Path::new("/"), None).await;
        report.needs[0].state = NeedState::Missing;
        assert!(text(&report, None).contains("qemu-system-x86_64  MISSING"));
        report.needs[0].scope = HostScope::BuildImages;
        assert!(text(&report, None).contains("missing (only to build images)"));
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
