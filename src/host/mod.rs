//! What the host has, and how to get what it lacks.
//!
//! [`inspect`] looks and changes nothing. [`ensure_tools`] installs what is missing where it may
//! (as root, on Debian), and says with which command to do it otherwise.

pub mod apt_config;
pub mod debian;
mod memory;
mod report;
pub mod tool;
pub mod version;

pub use apt_config::Mirrors;
pub use memory::Memory;
pub use report::{Device, DeviceState, HostReport, Need, NeedState, inspect};

use crate::error::{Error, Result};
use crate::event::{Event, Events, Unit};
use std::path::Path;

/// Installs what is missing, or says how to. `folder` is where images will be kept: its free space
/// is part of the report. `mirrors` are those that the user gave, if any. `log` gets what apt says.
pub async fn ensure_tools(
    folder: &Path,
    mirrors: Option<&Mirrors>,
    log: &Path,
    events: &Events,
) -> Result<HostReport> {
    let report = inspect(folder, mirrors).await;
    let Some(plan) = report.remedy() else {
        return match report.missing() {
            missing if missing.is_empty() => Ok(report),
            missing => Err(lacking(&missing).hint(
                "on Debian 12 or newer they are packages; elsewhere, install them as your system \
                 does (QEMU must be 9.2 or newer)",
            )),
        };
    };
    if !report.root {
        return Err(lacking(&report.missing()).hint(format!("run this: {}", plan.command())));
    }
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
    match report.missing() {
        missing if missing.is_empty() => Ok(report),
        missing => Err(lacking(&missing)
            .hint(format!("they were installed, and are still not right: see {}", log.display()))),
    }
}

fn lacking(missing: &[&Need]) -> Error {
    let list: Vec<String> = missing.iter().map(ToString::to_string).collect();
    Error::host(format!("this host lacks {}", list.join(", ")))
}
