//! What a cluster needs of the host: tools, an accelerator, memory and processors.

use super::context::RunContext;
use super::images::{builder, built};
use crate::error::{Error, Result};
use crate::host::{self, HostReport, HostScope};
use crate::images::manifest::Manifest;
use crate::images::store::Store;
use crate::lab::accel::{self, Accel, Judgement, Notes, Trust};
use crate::lab::admission::{self, Ledger, Reservation, Room, Turn, Want};
use crate::lab::hypervisor::Hypervisor;
use crate::lab::spec::LabSpec;
use crate::wait::{Patience, Speed};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::Duration;

/// For the labs that asked before, on any machine.
const TURN_TIMEOUT: Duration = Duration::from_secs(1800);

/// Installs what is missing for `scope`, or fails with the commands that do.
pub async fn install_tools(run: &RunContext, scope: HostScope) -> Result<HostReport> {
    make_store(run)?;
    let logs = run.logs_dir();
    std::fs::create_dir_all(&logs)
        .map_err(|e| Error::host("the folder of logs cannot be made").at(&logs, None).because(e))?;
    let (store, log) = (&run.store_dir, logs.join("setup.log"));
    host::ensure_tools(scope, store, run.mirrors.as_ref(), &log, &run.events).await
}

/// Private whatever the umask, as the store itself makes it.
fn make_store(run: &RunContext) -> Result<()> {
    let mut folder = std::fs::DirBuilder::new();
    let made = folder.recursive(true).mode(0o700).create(&run.store_dir);
    made.map_err(|e| Error::host("the store cannot be made").at(&run.store_dir, None).because(e))
}

/// The host's QEMU, found good.
pub async fn hypervisor() -> Result<Hypervisor> {
    Hypervisor::find(Path::new("qemu-system-x86_64"), Path::new("qemu-img")).await
}

/// Tools (installed where they may be), memory and disk, before anything is fetched or built.
/// `images` are those that the run needs: what only building needs is asked for only where one of
/// them must be built.
pub async fn check_host(
    run: &RunContext,
    spec: &LabSpec,
    store: &Store,
    images: &[&Manifest],
) -> Result<Hypervisor> {
    let unbuilt = unbuilt(run, store, images)?;
    let scope = if unbuilt.is_empty() { HostScope::RunLabs } else { HostScope::BuildImages };
    install_tools(run, scope).await?;
    for manifest in unbuilt {
        builder(run, store).mirrors(manifest).await?;
    }
    let hypervisor = hypervisor().await?;
    let mut room = Room::look(store.root())?;
    // What other labs hold will be free when their turn is over.
    room.memory += ledger(run)?.in_use()?;
    admission::check(spec, room, store.root())?;
    Ok(hypervisor)
}

/// The recipes whose images are not in the store as they stand.
fn unbuilt<'m>(
    run: &RunContext,
    store: &Store,
    images: &[&'m Manifest],
) -> Result<Vec<&'m Manifest>> {
    let mut unbuilt = Vec::new();
    for manifest in images.iter().filter(|m| m.is_recipe()) {
        if built(run, store, manifest)?.is_none() {
            unbuilt.push(*manifest);
        }
    }
    Ok(unbuilt)
}

fn ledger(run: &RunContext) -> Result<Ledger> {
    Ledger::open(run.store_dir.join("reservations"))
}

/// The memory and processors of the lab, after all labs of this user that asked before.
pub async fn reserve(run: &RunContext, spec: &LabSpec, no_wait: bool) -> Result<Reservation> {
    let turn = if no_wait { Turn::Now } else { Turn::Within(TURN_TIMEOUT) };
    // How long another lab lives has nothing to do with how fast guests are here.
    let patience = Patience::new(Speed::new(1.0), run.events.clone());
    ledger(run)?.reserve(&Want::of(spec), turn, &patience).await
}

/// Measures what earlier runs have not, as far as they are trusted.
pub async fn judge(run: &RunContext, hypervisor: &Hypervisor, trust: Trust) -> Result<Judgement> {
    let scratch = tempfile::tempdir()
        .map_err(|e| Error::host("a temporary folder cannot be made").because(e))?;
    if let Some(chosen) = run.accel {
        return accel::judge_chosen(hypervisor, scratch.path(), chosen).await;
    }
    let notes = Notes::of_store(&run.store_dir);
    accel::judge(hypervisor, scratch.path(), &notes, trust).await
}

/// Has the accelerators judged, and sets the speed that scales every deadline.
pub async fn choose_accelerator(
    run: &RunContext,
    hypervisor: &Hypervisor,
    trust: Trust,
) -> Result<Accel> {
    let judged = judge(run, hypervisor, trust).await?;
    run.speed.set(judged.speed);
    if let Some(beyond) = judged.beyond {
        run.events.warning(format!(
            "guests seem to run {beyond:.0} times slower than on the reference machine: deadlines \
             are multiplied by {:.0} all the same. Is this host busy with something else?",
            judged.speed
        ));
    }
    run.events.info(format!(
        "{}: deadlines times {:.1} (KVM: {}; TCG: {})",
        judged.accel,
        run.speed.factor(),
        judged.kvm,
        judged.tcg
    ));
    Ok(judged.accel)
}
