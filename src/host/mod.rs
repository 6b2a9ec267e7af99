//! What the host has, and how to get what it lacks.
//!
//! [`inspect`] looks and changes nothing. [`ensure_tools`] installs what is missing where it may
//! (as root, on Debian), and else names the command that does.

mod advice;
pub mod apt_config;
pub mod debian;
mod memory;
mod mirrors;
mod namespaces;
mod report;
pub mod tool;
pub mod version;

pub use apt_config::Mirrors;
pub use memory::{Memory, meminfo};
pub use report::{Device, DeviceState, HostReport, HostScope, Need, NeedState, inspect};

use crate::error::{Error, Result};
use crate::event::{Event, Events, Unit};
use std::path::Path;

/// Installs what is missing for `scope`, or says how to. `folder` is where images will be kept: its
/// free space is part of the report. `mirrors` are those that the user gave, if any. `log` gets what
/// apt says.
pub async fn ensure_tools(
    scope: HostScope,
    folder: &Path,
    mirrors: Option<&Mirrors>,
    log: &Path,
    events: &Events,
) -> Result<HostReport> {
    let report = inspect(folder, mirrors).await;
    if report.missing(scope).is_empty() {
        return Ok(report);
    }
    let plan = report.install_plan(scope).filter(|_| report.root);
    let Some(plan) = plan else { return Err(lacking(&report, scope)) };
    events.info(format!("installing {}", plan.packages().join(", ")));
    let what = "install tools";
    let mut steps = debian::Steps::default();
    let run = plan.tool().log(log).run(|line| {
        if steps.read(line) {
            events.send(Event::Progress {
                what: what.into(),
                done: steps.done,
                total: Some(steps.total()),
                unit: Unit::Items,
            });
        }
    });
    let ran = run.await;
    events.send(Event::ProgressEnded { what: what.into(), ok: ran.is_ok() });
    ran.map_err(|e| e.while_doing("installing what the host lacks"))?;
    let report = inspect(folder, mirrors).await;
    if report.missing(scope).is_empty() {
        return Ok(report);
    }
    let error = lacking(&report, scope);
    Err(error.evidence([format!("apt installed what it could: {}", log.display())]))
}

/// The error for a host that lacks what `scope` needs, with the steps to get it.
pub fn lacking(report: &HostReport, scope: HostScope) -> Error {
    let missing: Vec<String> = report.missing(scope).iter().map(ToString::to_string).collect();
    let error = Error::host(format!("this host lacks {}", missing.join(", ")));
    match report.steps(scope).as_slice() {
        [] => error,
        steps => error.hint(steps.join("\n")),
    }
}
