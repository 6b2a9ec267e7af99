//! `lab up`: starts the process that owns the lab and shows what it does until the lab is up.

use super::args::Up;
use super::kept::{self, Kept};
use super::show;
use crate::cli::print;
use crate::cli::root::Root;
use crate::cli::session::Work;
use crate::cluster::runs;
use crate::error::{Error, Result};
use crate::lab::spec::LabSpec;
use crate::supervisor::Place;
use crate::supervisor::place::Found;
use crate::supervisor::starter::Starting;
use std::process::Command;

/// What a lab is made from.
pub enum Source {
    File(LabSpec),
    Checkpoint(Kept),
}

impl Source {
    /// Found to be there; what is wrong with a lab file is said now. `root` holds the files.
    pub fn of(work: &Work, up: &Up, root: &Root) -> Result<Source> {
        match &up.restore {
            Some(name) => {
                let load = |lab: &String| LabSpec::load(&root.lab(lab, &work.env.cwd)?);
                let of = up.lab.as_ref().map(load).transpose()?;
                Ok(Source::Checkpoint(kept::find(work, name, of.as_ref())?))
            }
            None => Ok(Source::File(LabSpec::load(&root.lab(up.lab(), &work.env.cwd)?)?)),
        }
    }

    /// The name of the lab where none is given.
    fn name(&self) -> String {
        match self {
            Source::File(spec) => spec.name.clone(),
            Source::Checkpoint(kept) => kept.lab.clone(),
        }
    }

    pub fn place(&self, work: &Work, name: Option<String>) -> Result<Place> {
        Place::new(&runs(&work.env.store), &name.unwrap_or_else(|| self.name()))
    }

    /// As `status` shows it.
    pub fn text(&self, up: &Up) -> String {
        match self {
            Source::File(_) => up.lab().to_owned(),
            Source::Checkpoint(kept) => kept.text.clone(),
        }
    }
}

pub async fn run(work: &Work, name: Option<String>, up: Up) -> Result<()> {
    let root = Root::find(&work.env)?;
    let source = Source::of(work, &up, &root)?;
    let place = source.place(work, name)?;
    if let Found::Owned { pid, .. } = place.look()? {
        return Err(place.taken(pid));
    }
    let starting = Starting::spawn(command(work, &place, &up)?, &place)?;
    let status = starting.follow(&work.events).await?;
    let text = match up.json {
        true => show::json_text(&status)?,
        false => show::text(&status, &place),
    };
    print(&text, &work.redactor)?;
    Ok(())
}

/// Ourselves, as the owner, with the same options.
fn command(work: &Work, place: &Place, up: &Up) -> Result<Command> {
    let exe = std::env::current_exe()
        .map_err(|e| Error::host("our own program cannot be found").because(e))?;
    let mut command = Command::new(exe);
    command.arg("--store").arg(&work.env.store);
    if let Some(root) = &work.env.root {
        command.arg("--root").arg(root);
    }
    if let Some(mirror) = &work.env.debian_mirror {
        command.args(["--debian-mirror", mirror]);
    }
    if work.env.verbose {
        command.arg("--verbose");
    }
    command.args(["lab", "own", "--name", place.name()]);
    match &up.restore {
        Some(checkpoint) => {
            command.args(["--restore", checkpoint]);
            if let Some(lab) = &up.lab {
                command.args(["--lab", lab]);
            }
        }
        None => {
            command.args(["--lab", up.lab()]);
        }
    }
    command.args(up.virtualization().words());
    if up.no_wait {
        command.arg("--no-wait");
    }
    if up.provision {
        command.arg("--provision");
    }
    Ok(command)
}
