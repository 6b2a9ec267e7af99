//! The process that owns a lab, from its first moment to the lab's end.

use super::args::Up;
use super::show;
use super::up::Source;
use crate::cli::root::Root;
use crate::cli::session::{Session, Work};
use crate::cli::{finish, print, write};
use crate::cluster::images::{needed_images, node_images};
use crate::cluster::node_tasks::Resync;
use crate::cluster::{self, Boot, fits, host, runs};
use crate::engine::quote;
use crate::error::{Error, Result};
use crate::event::{Event, Events};
use crate::images::manifest::load_dir;
use crate::lab::accel::Trust;
use crate::lab::admission::Reservation;
use crate::lab::spec::LabSpec;
use crate::lab::{BOOTS, LabOptions};
use crate::secret::Redactor;
use crate::supervisor::owner::Running;
use crate::supervisor::protocol::Refusal;
use crate::supervisor::starter::News;
use crate::supervisor::{Ended, Owner, Place, Starter, seam};
use crate::wait::Death;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;
use tokio::sync::mpsc::UnboundedSender;

/// How the owner was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// By `lab up`, which waits at the other end of our standard input.
    Detached,
    /// By a person, who ends it with Ctrl-C.
    Foreground,
}

pub async fn run(session: Session, name: Option<String>, up: Up, way: Way) -> Result<ExitCode> {
    let (record, out) = session.conduct(|work| own(work, name, up, way)).await;
    match (&record.error, out) {
        (None, Ok(())) => Ok(ExitCode::SUCCESS),
        (_, out) => finish(&record, out),
    }
}

async fn own(work: Work, name: Option<String>, up: Up, way: Way) -> Result<()> {
    let starter = match way {
        Way::Foreground => None,
        Way::Detached => {
            // From now on the terminal's Ctrl-C is for whoever started us.
            let _ = rustix::process::setsid();
            let fd = std::io::stdin().as_fd().try_clone_to_owned();
            let fd = fd.map_err(|e| Error::internal("no standard input").because(e))?;
            Some(Starter::new(fd)?)
        }
    };
    let mut told = work.clone();
    told.choose(up.virtualization());
    told.events = tee(&work, starter.as_ref().map(Starter::teller));
    let gone = starter.as_ref().map_or_else(Death::never, Starter::gone);
    let (owner, running) = match start(&told, name, &up, gone).await {
        Ok(started) => started,
        Err(e) => {
            if let Some(starter) = starter {
                starter.failed(Refusal::of(&e, &work.redactor)).await;
            }
            return Err(e);
        }
    };
    let place = owner.place().clone();
    let ended = owner.run(running, async |status| {
        if way == Way::Foreground {
            let text = show::text(&status, &place);
            // The lab runs all the same.
            if let Err(e) = print(&text, &work.redactor) {
                work.events.warning(e.to_string());
            }
        }
        match starter {
            Some(starter) => starter.up(status).await,
            None => true,
        }
    });
    match ended.await? {
        Ended::Asked => Ok(()),
        Ended::GivenUp => Err(Error::interrupted().because("whoever started the lab is gone")),
        Ended::Died(causes) => Err(Error::lab(format!("every machine is gone: {causes}"))
            .hint("the consoles in the lab's folder tell more")),
    }
}

/// Passes events on to our own reader, and without secrets to whoever waits for the lab.
fn tee(work: &Work, teller: Option<UnboundedSender<News>>) -> Events {
    let (events, mut from) = Events::channel();
    let (on, redactor) = (work.events.clone(), work.redactor.clone());
    tokio::spawn(async move {
        while let Some(stamped) = from.recv().await {
            if let Some(teller) = &teller {
                let _ = teller.send(News::Event(clean(&stamped.event, &redactor)));
            }
            on.send(stamped.event);
        }
    });
    events
}

fn clean(event: &Event, redactor: &Redactor) -> Event {
    let value = serde_json::to_value(event).map(|mut value| {
        write::clean(&mut value, redactor);
        value
    });
    // A secret that is the name of a variant would be a strange one.
    value.and_then(serde_json::from_value).unwrap_or_else(|_| Event::Note {
        level: crate::event::Level::Detail,
        text: "(an event that cannot be shown)".into(),
    })
}

/// Claims the name and brings the lab up, unless somebody asks for its end meanwhile or whoever
/// waits for it is gone.
async fn start(
    work: &Work,
    name: Option<String>,
    up: &Up,
    mut gone: Death,
) -> Result<(Owner, Running)> {
    let root = Root::find(&work.env)?;
    let source = Source::of(work, up, &root)?;
    let place = source.place(work, name)?;
    let claim = place.claim(&source.text(up), &work.patience()).await?;
    let owner = Owner::start(claim, &work.patience(), &work.redactor)?;
    let booted = tokio::select! {
        out = boot(work, &owner, source, up, &root) => out,
        () = owner.asked_down() => Err(Error::interrupted().while_doing("`lab down`")),
        cause = gone.wait() => Err(Error::interrupted().because(cause)),
    };
    match booted {
        Ok(running) => Ok((owner, running)),
        Err(e) => {
            owner.failed(&e);
            Err(e)
        }
    }
}

async fn boot(work: &Work, owner: &Owner, source: Source, up: &Up, root: &Root) -> Result<Running> {
    let place = owner.place();
    let store = work.store()?;
    let logs = place.dir().join("logs");
    let proxy_command = proxy_command(&work.env.store, place)?;
    let spec = match source {
        Source::File(spec) => spec,
        Source::Checkpoint(kept) => {
            let from = &kept.dir;
            work.events.info(format!("restoring {}", kept.text));
            owner.doing("checking the host");
            let hypervisor = work.events.phase("host", host::hypervisor()).await?;
            let options = options(work, hypervisor, &logs).await?;
            seam::inspect(from, &options)?;
            let room = reserve(work, owner, &seam::spec(from)?, up).await?;
            owner.doing("restoring a checkpoint");
            let patience = work.patience();
            let restored = seam::restore(from, &options, &patience, &work.redactor);
            let back = work.events.phase("restore", restored).await?;
            let seam::Back { lab, cloud, heartbeats, resync } = back;
            return Ok(Running { lab, options, cloud, heartbeats, resync, proxy_command, room });
        }
    };
    let manifests = load_dir(&root.images())?;
    fits::check_memory(&spec, &manifests)?;
    let needed = needed_images(&spec, &manifests)?;
    owner.doing("checking the host");
    let hypervisor =
        work.events.phase("host", host::check_host(work, &spec, &store, &needed)).await?;
    owner.doing("bringing images in");
    let images = node_images(work, &spec, &manifests, &store);
    let images = work.events.phase("images", images).await?;
    fits::check_disks(&spec, &images)?;
    owner.doing("measuring the accelerator");
    let options = options(work, hypervisor, &logs).await?;
    fits::check_cpus(&spec, &manifests, options.accel)?;
    let room = reserve(work, owner, &spec, up).await?;
    owner.doing("booting");
    let boot = Boot {
        images: &images,
        hypervisor: options.hypervisor.clone(),
        accel: options.accel,
        logs: &logs,
        keep: false,
    };
    let spec = LabSpec { name: place.name().to_owned(), ..spec };
    let cluster = work.events.phase("boot", cluster::boot(work, &spec, &boot)).await?;
    let mut cloud = None;
    if up.provision {
        owner.doing("provisioning");
        let declared = cluster.declare()?;
        let report = work.events.phase("provision", cluster.apply(&declared.plan)).await?;
        let (changed, unchanged) = (report.changed.len(), report.unchanged);
        work.events.info(format!("{changed} resources changed, {unchanged} as declared"));
        cloud = Some(declared.cloud());
    }
    let (lab, resync) = (cluster.into_lab(), Resync::default());
    Ok(Running { lab, options, cloud, heartbeats: None, resync, proxy_command, room })
}

/// Room for the lab beside all others, held until its end.
async fn reserve(work: &Work, owner: &Owner, spec: &LabSpec, up: &Up) -> Result<Reservation> {
    owner.doing("waiting for room");
    host::reserve(work, spec, up.no_wait).await
}

async fn options(
    work: &Work,
    hypervisor: crate::lab::hypervisor::Hypervisor,
    logs: &Path,
) -> Result<LabOptions> {
    let chosen = work.choose_accelerator(&hypervisor, Trust::Speed);
    let accel = work.events.phase("accelerator", chosen).await?;
    Ok(LabOptions {
        run_root: runs(&work.env.store),
        slots: runs(&work.env.store),
        hypervisor,
        accel,
        boots: BOOTS,
        keep: false,
        logs: Some(logs.to_owned()),
    })
}

/// For ssh, which runs it through a shell after it has replaced `%h`, `%p` and `%%`.
fn proxy_command(store: &Path, place: &Place) -> Result<String> {
    let exe = std::env::current_exe()
        .map_err(|e| Error::host("our own program cannot be found").because(e))?;
    let words = [
        exe.to_string_lossy().into_owned(),
        "--store".into(),
        store.to_string_lossy().into_owned(),
        "lab".into(),
        "--name".into(),
        place.name().into(),
        "proxy".into(),
    ];
    Ok(format!("{} %h %p", quote::words(words).replace('%', "%%")))
}
