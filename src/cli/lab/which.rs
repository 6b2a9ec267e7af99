//! Which lab is meant when none is named.

use crate::cli::session::Work;
use crate::cluster::runs;
use crate::error::{Error, Result};
use crate::supervisor::place::Found;
use crate::supervisor::{Client, Place};

/// The lab of that name, or the only one that runs.
pub fn running(work: &Work, name: Option<String>) -> Result<Client> {
    pick(work, name, |found| matches!(found, Found::Owned { .. }))
}

/// The lab of that name, or the only one that is there, running or not.
pub fn any(work: &Work, name: Option<String>) -> Result<Client> {
    match running(work, name.clone()) {
        Err(_) if name.is_none() => pick(work, name, |found| *found != Found::Nothing),
        out => out,
    }
}

fn pick(work: &Work, name: Option<String>, wanted: impl Fn(&Found) -> bool) -> Result<Client> {
    let runs = runs(&work.env.store);
    let client = |place| Client::new(place, work.patience());
    let all = Place::all(&runs);
    let names = |places: &[Place]| {
        places.iter().map(|p| p.name().to_owned()).collect::<Vec<_>>().join(", ")
    };
    if let Some(name) = name {
        let place = Place::new(&runs, &name)?;
        if place.look()? == Found::Nothing {
            let hint = match names(&all) {
                none if none.is_empty() => "`stackproof lab up` starts one".into(),
                known => format!("there is: {known}"),
            };
            return Err(Error::input(format!("there is no lab {name}")).hint(hint));
        }
        return Ok(client(place));
    }
    let mut fit = Vec::new();
    for place in all {
        if wanted(&place.look()?) {
            fit.push(place);
        }
    }
    match <[Place; 1]>::try_from(fit) {
        Ok([place]) => Ok(client(place)),
        Err(none) if none.is_empty() => Err(Error::input("no lab is running")
            .hint("start one with `stackproof lab up`; `stackproof lab ls` shows all")),
        Err(many) => Err(Error::input(format!("several labs are there: {}", names(&many)))
            .hint("say which one with --name NAME")),
    }
}
