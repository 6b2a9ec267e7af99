//! `stackproof e2e`: a cluster booted, a cloud provisioned on it, and the proof that it works.

mod instance;
mod rooms;
mod summary;

use super::args::E2e;
use super::root::Root;
use super::session::{Session, Work};
use super::{finish, print, write};
use crate::error::{Error, Result};
use crate::event::{Check, Event, Status};
use crate::images::manifest::{Manifests, load_dir};
use crate::images::store::Store;
use crate::lab::spec::LabSpec;
use instance::Wanted;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Instant, SystemTime};

pub async fn run(session: Session, args: E2e) -> Result<ExitCode> {
    let json = args.json.as_ref().map(|path| session.env.cwd.join(path));
    if let Some(path) = &json {
        // Not after half an hour.
        write::can(path)?;
    }
    let redactor = session.redactor.clone();
    let (record, out) = session.conduct(|work| act(work, args)).await;
    let written = json.as_ref().map_or(Ok(()), |path| write::json(path, &record, &redactor));
    print(&summary::text(&record, json.as_deref()), &redactor);
    let code = finish(&record, out)?;
    written?;
    Ok(code)
}

async fn act(work: Work, args: E2e) -> Result<()> {
    // What is wrong with the input is said before anything is installed, fetched or booted.
    let root = Root::find(&work.env)?;
    let spec = LabSpec::load(&root.lab(&args.lab, &work.env.cwd)?)?;
    let manifests = load_dir(&root.images())?;
    let wanted = Wanted::of(&args, &manifests, &work.env.cwd)?;
    for node in &spec.nodes {
        let known = manifests.get(&node.image);
        known.map_err(|e| e.at(&spec.file, Some(node.image_line)))?;
    }
    let store = Store::open(&work.env.store)?;
    let logs = logs_folder(&work, &args);
    work.learn(|facts| facts.not_run = instance::not_run(&wanted, &manifests, &store));

    let events = work.events.clone();
    events.phase("host", rooms::host(&work, &spec, &store)).await?;
    let (instance, disks) = events
        .phase("images", async {
            let disks = node_disks(&work, &spec, &manifests, &store).await?;
            Ok::<_, Error>((wanted.obtain(&work, &store).await?, disks))
        })
        .await?;
    let accelerator = events.phase("accelerator", rooms::accelerator(&work, &store)).await?;
    let boot = rooms::boot(&work, &spec, &disks, &accelerator, &logs, args.keep);
    let cluster = events.phase("boot", boot).await?;

    let outcome = prove(&work, &spec, &cluster, &instance, &args).await;
    if outcome.is_err() {
        let saved = events.phase("evidence", cluster.save_evidence(&work, &logs)).await;
        match saved {
            Ok(()) => work.learn(|facts| facts.logs = Some(logs)),
            // The first error is the one that explains.
            Err(e) => events.warning(format!("the evidence could not be saved: {e}")),
        }
    }
    let down = events.phase("teardown", cluster.down()).await;
    outcome.and(down)
}

/// From a booted cluster to the verdict.
async fn prove(
    work: &Work,
    spec: &LabSpec,
    cluster: &rooms::Cluster,
    instance: &instance::Instance,
    args: &E2e,
) -> Result<()> {
    let events = &work.events;
    let plan = rooms::plan(work, spec)?;
    events.phase("provision", cluster.apply(work, &plan)).await?;
    events
        .phase("second-run", async {
            let start = Instant::now();
            let changed = cluster.apply(work, &plan).await?;
            let check = second_run(&changed, start.elapsed().as_secs_f64());
            let passed = check.status == Status::Pass;
            events.send(Event::Check(check));
            if passed {
                return Ok(());
            }
            Err(Error::provision("the second run changed something").evidence(changed).hint(
                "a resource does not see that it is as declared: compare its probe with its apply",
            ))
        })
        .await?;
    events.phase("proof", cluster.prove(work, spec, &plan, instance, args.keep)).await
}

/// The check that nothing was left to change; `changed` names every resource that was.
fn second_run(changed: &[String], seconds: f64) -> Check {
    let (status, evidence) = if changed.is_empty() {
        (Status::Pass, "every resource was observed as declared".into())
    } else {
        (Status::Fail, format!("{} changed: {}", changed.len(), changed.join(", ")))
    };
    Check { name: "second run changes nothing".into(), status, seconds, evidence }
}

/// The disk of every image that a node boots, by the image's name.
async fn node_disks(
    work: &Work,
    spec: &LabSpec,
    manifests: &Manifests,
    store: &Store,
) -> Result<BTreeMap<String, PathBuf>> {
    let mut disks = BTreeMap::new();
    for node in &spec.nodes {
        if !disks.contains_key(&node.image) {
            let manifest = manifests.get(&node.image)?;
            let disk = instance::bring(work, store, manifest).await?;
            disks.insert(node.image.clone(), disk);
        }
    }
    Ok(disks)
}

/// `--log-dir`, else a folder of this run in the store.
fn logs_folder(work: &Work, args: &E2e) -> PathBuf {
    if let Some(given) = &args.log_dir {
        return work.env.cwd.join(given);
    }
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let name = format!("e2e-{}-{}", since.as_secs(), std::process::id());
    work.env.store.join("logs").join(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_run_that_changed_something_fails_and_names_it() {
        let check = second_run(&["file /etc/hosts@openstack1".into()], 1.0);
        assert_eq!(check.status, Status::Fail);
        assert!(check.evidence.contains("/etc/hosts"), "{}", check.evidence);
        assert_eq!(second_run(&[], 1.0).status, Status::Pass);
    }
}
