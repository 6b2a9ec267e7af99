//! `stackproof host`: what this machine has for running labs.

use super::args::Host;
use super::session::{Session, Work};
use super::view::human_bytes;
use super::{e2e, finish, print, write};
use crate::error::{Error, Result};
use crate::lab::accel::{self, Judgement, Trial};
use crate::lab::admission::Room;
use crate::lab::hypervisor::Hypervisor;
use serde_json::{Value, json};
use std::process::ExitCode;

pub async fn run(session: Session, verb: Host) -> Result<ExitCode> {
    let (record, out) = session
        .conduct(|work| async move {
            match verb {
                Host::Check { json } => check(&work, json).await,
                Host::Setup => setup().await,
            }
        })
        .await;
    finish(&record, out)
}

/// Shows what was found, also where something is missing: then that is the error.
async fn check(work: &Work, json: bool) -> Result<()> {
    std::fs::create_dir_all(&work.env.store).map_err(|e| {
        Error::host("the store cannot be made").at(&work.env.store, None).because(e)
    })?;
    let room = Room::look(&work.env.store)?;
    let qemu = e2e::hypervisor().await;
    let judged = match &qemu {
        Ok(hypervisor) => Some(work.events.phase("accelerator", judge(hypervisor)).await?),
        Err(_) => None,
    };
    let text = if json {
        write::pretty(&object(qemu.as_ref().ok(), judged.as_ref(), room))?
    } else {
        text(qemu.as_ref().ok(), judged.as_ref(), room)
    };
    print(&text, &work.redactor);
    qemu.map(drop)
}

async fn judge(hypervisor: &Hypervisor) -> Result<Judgement> {
    let scratch = tempfile::tempdir()
        .map_err(|e| Error::host("a temporary folder cannot be made").because(e))?;
    accel::judge(hypervisor, scratch.path()).await
}

async fn setup() -> Result<()> {
    // Until `host` can install, a machine that has QEMU already is as good as set up.
    e2e::hypervisor().await.map(drop)
}

fn version(hypervisor: &Hypervisor) -> String {
    let (major, minor, micro) = hypervisor.version;
    format!("{major}.{minor}.{micro}")
}

fn text(qemu: Option<&Hypervisor>, judged: Option<&Judgement>, room: Room) -> String {
    let mut out = match qemu {
        Some(q) => format!("qemu         {} ({})\n", version(q), q.qemu.display()),
        None => "qemu         missing\n".into(),
    };
    if let Some(j) = judged {
        out += &format!("kvm          {}\ntcg          {}\n", j.kvm, j.tcg);
        out += &format!("accelerator  {} (deadlines times {:.1})\n", j.accel, j.speed.max(1.0));
    }
    out += &format!("memory       {} available\n", human_bytes(room.memory));
    out + &format!("disk         {} free in the store\n", human_bytes(room.disk))
}

fn object(qemu: Option<&Hypervisor>, judged: Option<&Judgement>, room: Room) -> Value {
    let seconds = |trial: &Trial| trial.work().map(|work| work.as_secs_f64());
    json!({
        "qemu": qemu.map(|q| json!({"path": q.qemu.to_string_lossy(), "version": version(q)})),
        "accelerator": judged.map(|j| j.accel.to_string().to_lowercase()),
        "speed_factor": judged.map(|j| j.speed.max(1.0)),
        "kvm": judged.map(|j| json!({"seconds": seconds(&j.kvm), "found": j.kvm.to_string()})),
        "tcg": judged.map(|j| json!({"seconds": seconds(&j.tcg), "found": j.tcg.to_string()})),
        "memory_bytes": room.memory,
        "disk_bytes": room.disk,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::accel::Accel;
    use std::time::Duration;

    #[test]
    fn a_host_without_qemu_is_shown_as_such_in_text_and_json() {
        let room = Room { memory: 1 << 30, disk: 1 << 30 };
        assert!(text(None, None, room).starts_with("qemu         missing\n"));
        assert!(object(None, None, room)["qemu"].is_null());
    }

    #[test]
    fn both_accelerators_are_shown_with_what_was_measured() {
        let judged = Judgement {
            accel: Accel::Tcg,
            speed: 7.5,
            kvm: Trial::Unusable("no such device".into()),
            tcg: Trial::Worked {
                startup: Duration::from_millis(100),
                work: Duration::from_millis(270),
            },
        };
        let room = Room { memory: 1, disk: 1 };
        let json = object(None, Some(&judged), room);
        assert_eq!(json["accelerator"], "tcg");
        assert_eq!(json["tcg"]["seconds"], 0.27);
        assert!(json["kvm"]["seconds"].is_null());
        assert!(text(None, Some(&judged), room).contains("no such device"));
    }
}
