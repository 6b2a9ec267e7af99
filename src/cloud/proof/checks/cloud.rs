//! The cloud as such: token, catalogue, agents, services.

use super::{pass, wrong};
use crate::cloud::compute::Compute;
use crate::cloud::network::Net;
use crate::cloud::proof::context::{Context, fill, unless_refused};
use crate::cloud::proof::inputs::Daemon;
use crate::cloud::proof::story::Finding;
use crate::cloud::url::Url;
use crate::error::Result;
use crate::wait::Poll;
use std::collections::BTreeSet;
use std::fmt::Write;

pub async fn token(c: &Context) -> Result<Finding> {
    let session = c.login(c.inputs.admin.clone()).await?;
    let roles = session.roles();
    if !roles.iter().any(|r| r == "admin") {
        return Err(wrong(format!("`{}` has no role admin, but: {roles:?}", session.user())));
    }
    let seen = format!("`{}` got a token with roles {}", session.user(), roles.join(", "));
    fill(&c.admin, session)?;
    pass(seen)
}

pub async fn catalog(c: &Context) -> Result<Finding> {
    let admin = c.admin()?;
    let catalog = admin.catalog();
    let (mut faults, mut seen) = (Vec::new(), Vec::new());
    let mut asked = BTreeSet::new();
    for kind in &c.inputs.services {
        let Some(entry) = catalog.iter().find(|e| e.kind == *kind) else {
            faults.push(format!("service `{kind}` is not in the catalogue"));
            continue;
        };
        for interface in ["public", "internal", "admin"] {
            let here = |e: &&crate::cloud::session::Endpoint| {
                e.interface == interface && e.region.as_deref() == Some(admin.region())
            };
            let Some(endpoint) = entry.endpoints.iter().find(here) else {
                let region = admin.region();
                faults.push(format!("`{kind}` has no {interface} endpoint in region `{region}`"));
                continue;
            };
            // Where one URL serves several interfaces, it is asked once.
            if asked.insert(endpoint.url.as_str()) {
                match answers(c, &endpoint.url).await {
                    Ok(status) => seen.push(format!("{kind} {} ({status})", endpoint.url)),
                    Err(e) => faults.push(format!("{kind} {}: {e}", endpoint.url)),
                }
            }
        }
    }
    if faults.is_empty() {
        return pass(format!("public, internal and admin of: {}", seen.join(", ")));
    }
    Err(wrong("the catalogue is not whole").evidence(faults))
}

/// Whether an API (and not just any web server) answers at a URL of the catalogue.
async fn answers(c: &Context, url: &str) -> Result<u16> {
    let reply = c.admin()?.visit(&Url::parse(url)?).await?;
    let is_redirect = (300..400).contains(&reply.status) && reply.header("location").is_some();
    if !is_redirect && serde_json::from_slice::<serde_json::Value>(&reply.body).is_err() {
        return Err(wrong(format!("answers {} with something that is no JSON", reply.status)));
    }
    Ok(reply.status)
}

pub async fn agents(c: &Context) -> Result<Finding> {
    let admin = c.admin()?;
    let expected = &c.inputs.agents;
    // Heartbeats come every 30 s: agents that are starting get two of them.
    c.until("all network agents to be alive", 20, 5, || async move {
        let agents = match Net(admin).agents().await {
            Ok(agents) => agents,
            Err(e) => return unless_refused(e),
        };
        let listed = agents.iter().map(|a| {
            let state = match (a.alive, a.admin_state_up) {
                (true, true) => ":-)",
                (true, false) => "disabled",
                (false, _) => "XXX",
            };
            (Daemon::new(&a.binary, &a.host), state == ":-)", state.to_owned())
        });
        roll_call(expected, listed.collect())
    })
    .await
    .map(Finding::Pass)
}

pub async fn compute_services(c: &Context) -> Result<Finding> {
    let admin = c.admin()?;
    let expected = &c.inputs.compute_services;
    let services = c
        .until("all compute services to be up", 20, 5, || async move {
            let services = match Compute(admin).services().await {
                Ok(services) => services,
                Err(e) => return unless_refused(e),
            };
            let listed = services.iter().map(|s| {
                let state = match &s.disabled_reason {
                    Some(reason) => format!("{} {} ({reason})", s.state, s.status),
                    None => format!("{} {}", s.state, s.status),
                };
                let good = s.state == "up" && s.status == "enabled";
                (Daemon::new(&s.binary, &s.host), good, state)
            });
            roll_call(expected, listed.collect())
        })
        .await?;
    let hypervisors = Compute(admin).hypervisors().await?;
    let short = |name: &str| name.split('.').next().unwrap_or_default().to_owned();
    let mut seen = services;
    for host in c.inputs.hypervisors.keys() {
        let Some(found) = hypervisors.iter().find(|h| short(&h.host) == short(host)) else {
            let names: Vec<_> = hypervisors.iter().map(|h| h.host.as_str()).collect();
            return Err(wrong(format!("no hypervisor on `{host}`; there are: {names:?}"))
                .hint("run `nova-manage cell_v2 discover_hosts` on the controller"));
        };
        if found.state != "up" {
            return Err(wrong(format!("the hypervisor on `{host}` is {}", found.state)));
        }
        let _ = write!(
            seen,
            "; hypervisor {} ({}, {} vCPUs, {} MiB) up",
            found.host, found.hypervisor_type, found.vcpus, found.memory_mb
        );
    }
    pass(seen)
}

/// Everybody who must be there is, and nobody who is there is dead: a second, dead registration is
/// how a renamed host shows.
fn roll_call(expected: &[Daemon], listed: Vec<(Daemon, bool, String)>) -> Poll<String> {
    let name = |d: &Daemon| format!("{} on {}", d.binary, d.host);
    let absent = expected.iter().filter(|e| !listed.iter().any(|(d, ..)| d == *e));
    let dead = listed.iter().filter(|(_, good, _)| !good);
    let faults: Vec<String> = absent
        .map(|d| format!("{} is not registered", name(d)))
        .chain(dead.map(|(d, _, state)| format!("{} is {state}", name(d))))
        .collect();
    if !faults.is_empty() {
        return Poll::NotYet(faults.join(", "));
    }
    let good: Vec<_> = listed.iter().map(|(d, _, state)| format!("{} {state}", name(d))).collect();
    Poll::Ready(good.join(", "))
}
