//! `stackproof e2e`: a cluster booted, a cloud provisioned on it, and the proof that it works.

mod instance;
mod logs;
mod summary;
mod warm;

use super::args::E2e;
use super::record::NotRun;
use super::root::Root;
use super::session::{Session, Work};
use super::{finish, print, print_error, write};
use crate::cluster::images::{needed_images, node_images};
use crate::cluster::instance::InstanceImage;
use crate::cluster::secret_scan::RunTranscript;
use crate::cluster::stage_keys::symbolic_plan;
use crate::cluster::{Boot, Cluster, fits, host};
use crate::error::{Error, Result};
use crate::images::manifest::load_dir;
use crate::lab::accel::Trust;
use crate::lab::spec::LabSpec;
use instance::Wanted;
use logs::Logs;
use std::path::Path;
use std::process::ExitCode;

pub async fn run(session: Session, args: E2e) -> Result<ExitCode> {
    let json = args.json.as_ref().map(|path| session.env.cwd.join(path));
    // Not after half an hour.
    let target = json.as_ref().map(|path| write::can(path)).transpose()?;
    let redactor = session.redactor.clone();
    let (record, out) = session.conduct(|work| act(work, args)).await;
    let summary = summary::text(&record, json.as_deref());
    // One JSON object is what `--json /dev/stdout | jq` reads.
    let to_stdout = target.as_ref().is_some_and(write::JsonOutput::is_stdout);
    let written = target.map_or(Ok(()), |target| write::json(target, &record, &redactor));
    let shown = match to_stdout {
        true => print_error(&summary, &redactor),
        false => print(&summary, &redactor),
    };
    let code = finish(&record, out)?;
    written?;
    shown?;
    Ok(code)
}

async fn act(mut work: Work, args: E2e) -> Result<()> {
    work.choose(args.virtualization);
    // What is wrong with the input is said before anything is installed, fetched or booted.
    let root = Root::find(&work.env)?;
    let spec = LabSpec::load(&root.lab(&args.lab, &work.env.cwd)?)?;
    // Which accelerator it will be makes no difference to that.
    symbolic_plan(&spec, crate::lab::accel::Accel::Tcg, None)?;
    let manifests = load_dir(&root.images())?;
    let wanted = Wanted::of(&args, &manifests, &work.env.cwd)?;
    fits::check_memory(&spec, &manifests)?;
    let store = work.store()?;
    work.learn(|facts| {
        facts.not_run = instance::not_run(&wanted, &manifests, &store);
        facts.not_run.extend(not_asked_for(&args));
    });

    let events = work.events.clone();
    let needed = needed_images(&spec, &manifests)?.into_iter().chain(wanted.manifest());
    let needed: Vec<_> = needed.collect();
    let hypervisor = events.phase("host", host::check_host(&work, &spec, &store, &needed)).await?;
    let (instance, images) = events
        .phase("images", async {
            let images = node_images(&work, &spec, &manifests, &store).await?;
            Ok::<_, Error>((wanted.obtain(&work, &store).await?, images))
        })
        .await?;
    fits::check_disks(&spec, &images)?;
    instance.check_disk(&spec)?;
    let chosen = work.choose_accelerator(&hypervisor, Trust::Choice);
    let accel = events.phase("accelerator", chosen).await?;
    fits::check_cpus(&spec, &manifests, accel)?;
    let logs = Logs::open(&work, &args)?;
    let boot = Boot { images: &images, hypervisor, accel, logs: &logs.folder, keep: args.keep };
    // Held until the machines are gone.
    let _room = host::reserve(&work, &spec, args.no_wait).await?;
    let proof = Proof { instance: &instance, args: &args };
    let (way, proven) = warm::cloud(&work, &spec, boot, proof).await?;
    let outcome = if proven {
        Ok(())
    } else {
        match proof.of(&work, &way.lab, &logs.folder).await {
            Err(e) => Err(way.explain(evidence(&work, &way.lab, &logs.folder, e).await)),
            ok => ok,
        }
    };
    let down = events.phase("teardown", way.lab.down()).await;
    outcome.and(down)?;
    logs.discard(&work, args.keep);
    Ok(())
}

/// The phases that run only when they are asked for.
fn not_asked_for(args: &E2e) -> Option<NotRun> {
    let reason = "not asked for: `--reboot` restarts every node and looks whether it is whole";
    (!args.reboot).then(|| NotRun { name: "reboot".into(), reason: reason.into() })
}

/// The error with what the nodes say of it, saved in `logs`.
async fn evidence(work: &Work, cluster: &Cluster, logs: &Path, error: Error) -> Error {
    let saved = work.events.phase("evidence", cluster.save_evidence(logs)).await;
    match saved {
        Ok(causes) => error.evidence(causes),
        // The first error is the one that explains.
        Err(e) => {
            work.events.warning(format!("the evidence could not be saved: {e}"));
            error
        }
    }
}

/// The whole plan again: nothing may be left to change.
async fn second_run(work: &Work, cluster: &Cluster) -> Result<()> {
    let declared = cluster.declare()?;
    work.events.phase("second-run", cluster.second_run(&declared)).await
}

/// From a cloud that is ready to the verdict.
#[derive(Clone, Copy)]
struct Proof<'a> {
    instance: &'a InstanceImage,
    args: &'a E2e,
}

impl Proof<'_> {
    async fn of(self, work: &Work, cluster: &Cluster, logs: &Path) -> Result<()> {
        let Proof { instance, args } = self;
        let events = &work.events;
        let declared = cluster.declare()?;
        events
            .phase("nodes", async {
                cluster.mends(&declared).await?;
                cluster.facts(&declared).await
            })
            .await?;
        if args.reboot {
            events.phase("reboot", cluster.reboots(&declared)).await?;
        }
        let prove = async {
            let proven = cluster.prove(&declared, instance, args.keep).await?;
            let left_out = proven.not_applicable.into_iter();
            let left_out = left_out.map(|(name, reason)| NotRun { name, reason });
            work.learn(|facts| facts.not_run.extend(left_out));
            proven.verdict
        };
        events.phase("proof", prove).await?;
        let transcript = || {
            let (record, shown) = work.shown.text();
            RunTranscript { record, shown }
        };
        events.phase("leaks", cluster.leaks(&declared, logs, transcript)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::{Cli, Verb};
    use clap::Parser;

    #[test]
    fn a_reboot_that_nobody_asked_for_is_not_run() {
        let args = |line: &str| {
            let line = format!("stackproof e2e {line}");
            match Cli::try_parse_from(line.split_whitespace()).unwrap().verb {
                Verb::E2e(args) => args,
                _ => unreachable!(),
            }
        };
        assert_eq!(not_asked_for(&args("")).unwrap().name, "reboot");
        assert!(not_asked_for(&args("--reboot")).is_none());
    }
}
