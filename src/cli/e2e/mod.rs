//! `stackproof e2e`: a cluster booted, a cloud provisioned on it, and the proof that it works.

mod instance;
mod logs;
mod rooms;
mod summary;
mod topology;
mod warm;

use super::args::E2e;
use super::record::NotRun;
use super::root::Root;
use super::session::{Session, Work};
use super::{finish, print, print_error, write};
use crate::cluster::images::{needed_images, node_images};
use crate::cluster::{fits, host};
use crate::engine::apply::Report;
use crate::error::{Error, Result};
use crate::event::{Check, Event, Status};
use crate::images::manifest::load_dir;
use crate::lab::accel::Trust;
use crate::lab::spec::LabSpec;
use instance::Wanted;
use logs::Logs;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

pub use rooms::{Boot, boot};
pub use warm::rungs_of;

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
    warm::symbolic_plan(&spec, crate::lab::accel::Accel::Tcg, None)?;
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
    let boot =
        rooms::Boot { images: &images, hypervisor, accel, logs: &logs.folder, keep: args.keep };
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
async fn evidence(work: &Work, cluster: &rooms::Cluster, logs: &Path, error: Error) -> Error {
    let saved = work.events.phase("evidence", cluster.save_evidence(work, logs)).await;
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
async fn second_run(work: &Work, cluster: &rooms::Cluster) -> Result<()> {
    let declared = cluster.declare(work)?;
    let look = async {
        let start = Instant::now();
        let report = cluster.apply(&declared.plan).await?;
        let check = verdict(&report, start.elapsed().as_secs_f64());
        let error = (check.status != Status::Pass).then(|| {
            Error::provision("the second run changed something")
                .evidence(check.evidence.lines())
                .hint("compare what these resources observe with what they apply")
        });
        work.events.send(Event::Check(check));
        error.map_or(Ok(()), Err)
    };
    work.events.phase("second-run", look).await
}

/// From a cloud that is ready to the verdict.
#[derive(Clone, Copy)]
struct Proof<'a> {
    instance: &'a instance::Instance,
    args: &'a E2e,
}

impl Proof<'_> {
    async fn of(self, work: &Work, cluster: &rooms::Cluster, logs: &Path) -> Result<()> {
        let Proof { instance, args } = self;
        let events = &work.events;
        let declared = cluster.declare(work)?;
        events
            .phase("nodes", async {
                cluster.mends(work, &declared).await?;
                cluster.facts(work, &declared).await
            })
            .await?;
        if args.reboot {
            events.phase("reboot", cluster.reboots(work, &declared)).await?;
        }
        events.phase("proof", cluster.prove(work, &declared, instance, args.keep)).await?;
        events.phase("leaks", cluster.leaks(work, &declared, logs)).await
    }
}

/// The check that nothing was left to change, and that something was looked at.
fn verdict(report: &Report, seconds: f64) -> Check {
    let changed = report.changed.iter();
    let mut lines: Vec<String> = changed
        .map(|c| {
            format!("{} of {} on {}: {}", c.resource, c.step, c.node, c.differences.join(", "))
        })
        .collect();
    lines.extend(report.restarts.iter().map(|unit| format!("restarted {unit}")));
    if report.unchanged == 0 {
        lines.push("no resource was observed".into());
    }
    let (status, evidence) = if lines.is_empty() {
        (Status::Pass, format!("{} resources observed as declared", report.unchanged))
    } else {
        (Status::Fail, lines.join("\n"))
    };
    Check { name: "second run changes nothing".into(), status, seconds, evidence }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::{Cli, Verb};
    use crate::engine::apply::Change;
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

    #[test]
    fn a_second_run_that_changed_or_restarted_something_fails_and_names_it() {
        let change = Change {
            node: "openstack1".into(),
            step: "base".into(),
            resource: "file /etc/hosts".into(),
            differences: vec!["one line".into()],
        };
        let changed = Report { changed: vec![change], unchanged: 9, ..Report::default() };
        let check = verdict(&changed, 1.0);
        assert_eq!(check.status, Status::Fail);
        assert!(check.evidence.contains("/etc/hosts"), "{}", check.evidence);
        let restarts = vec!["unit nova on openstack1".into()];
        let restarted = Report { restarts, unchanged: 9, ..Report::default() };
        assert_eq!(verdict(&restarted, 1.0).status, Status::Fail);
    }

    #[test]
    fn a_second_run_passes_only_when_it_looked_at_something() {
        let looked = Report { unchanged: 3, ..Report::default() };
        assert_eq!(verdict(&looked, 1.0).status, Status::Pass);
        assert_eq!(verdict(&Report::default(), 1.0).status, Status::Fail);
    }
}
