//! What was made, so that it can be deleted and seen gone.

use crate::cloud::compute::Compute;
use crate::cloud::http::ApiError;
use crate::cloud::network::Net;
use crate::cloud::session::{Service, Session};
use crate::wait::{Death, Patience, Poll, together};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

/// Things in the order of their making; those of a service are deleted in the opposite order, each
/// by whom it was made.
#[derive(Default)]
pub struct Ledger(Mutex<Vec<Made>>);

#[derive(Clone)]
struct Made {
    /// For people alone.
    what: String,
    batch: Batch,
    by: Session,
    thing: Thing,
}

#[derive(Clone)]
enum Thing {
    /// Found and deleted at this path of its service.
    At(Service, String),
    /// A server, by id and name.
    Server { id: String, name: String },
    /// A router's interface on a subnet: has no path of its own.
    Interface { router: String, subnet: String },
    /// A project, which must be empty before it goes.
    Project(String),
    /// A compute service that was disabled.
    Disabled(String),
}

/// What is deleted together, before the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Batch {
    /// The user who must see nothing, and its project.
    Stranger,
    /// What the instance was made of.
    Ingredients,
    FloatingIp,
    /// Everything else stays until the end.
    End,
}

/// What clearing the ledger found.
#[derive(Debug, Default)]
pub struct Cleared {
    pub gone: Vec<String>,
    /// Could not be deleted, or was never asked for.
    pub leftovers: Vec<String>,
}

impl Ledger {
    pub fn add(&self, by: &Session, what: impl Into<String>, service: Service, path: String) {
        self.add_to(Batch::End, by, what, service, path);
    }
    pub fn add_to(
        &self,
        batch: Batch,
        by: &Session,
        what: impl Into<String>,
        service: Service,
        path: String,
    ) {
        self.note(batch, by, what, Thing::At(service, path));
    }
    pub fn add_server(&self, by: &Session, id: &str, name: &str) {
        self.note(Batch::End, by, "server", Thing::Server { id: id.into(), name: name.into() });
    }
    pub fn add_interface(&self, by: &Session, router: &str, subnet: &str) {
        let thing = Thing::Interface { router: router.into(), subnet: subnet.into() };
        self.note(Batch::End, by, "router interface", thing);
    }
    pub fn add_project(&self, batch: Batch, by: &Session, name: &str, id: &str) {
        self.note(batch, by, format!("project {name}"), Thing::Project(id.into()));
    }
    pub fn add_disabled(&self, by: &Session, what: impl Into<String>, id: &str) {
        self.note(Batch::End, by, what, Thing::Disabled(id.into()));
    }
    fn note(&self, batch: Batch, by: &Session, what: impl Into<String>, thing: Thing) {
        self.lock().push(Made { what: what.into(), batch, by: by.clone(), thing });
    }

    /// Deletes everything, services beside each other: what is in use by another's is waited for
    /// where it is refused. What fails is told and does not keep the rest from being tried.
    pub async fn clear(&self, patience: &Patience, death: &Death) -> Cleared {
        let all = std::mem::take(&mut *self.lock());
        clear_all(all, patience, death).await
    }

    /// The same for one batch. Where anything is left over, all of it stays for
    /// [`clear`](Self::clear) to be tried again.
    pub async fn clear_batch(&self, batch: Batch, patience: &Patience, death: &Death) -> Cleared {
        let some: Vec<Made> = self.lock().extract_if(.., |made| made.batch == batch).collect();
        let cleared = clear_all(some.clone(), patience, death).await;
        if !cleared.leftovers.is_empty() {
            self.lock().extend(some);
        }
        cleared
    }

    /// A poisoned lock is passed over: things come and go whole.
    fn lock(&self) -> MutexGuard<'_, Vec<Made>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

async fn clear_all(all: Vec<Made>, patience: &Patience, death: &Death) -> Cleared {
    let mut lanes: BTreeMap<Service, Vec<Made>> = BTreeMap::new();
    for made in all.into_iter().rev() {
        lanes.entry(made.thing.service()).or_default().push(made);
    }
    // The others were made by its users, who are asked to delete them.
    let users = lanes.remove(&Service::Identity).unwrap_or_default();
    let mut cleared = Cleared::default();
    for lane in together(lanes.into_values().map(|l| clear(l, patience, death))).await {
        cleared.extend(lane);
    }
    cleared.extend(clear(users, patience, death).await);
    cleared
}

impl Thing {
    fn service(&self) -> Service {
        match self {
            Thing::At(service, _) => *service,
            Thing::Server { .. } | Thing::Disabled(_) => Service::Compute,
            Thing::Interface { .. } => Service::Network,
            Thing::Project(_) => Service::Identity,
        }
    }
}

impl Cleared {
    fn extend(&mut self, other: Cleared) {
        self.gone.extend(other.gone);
        self.leftovers.extend(other.leftovers);
    }
}

async fn clear(lane: Vec<Made>, patience: &Patience, death: &Death) -> Cleared {
    let mut cleared = Cleared::default();
    for Made { what, by, thing, .. } in lane {
        let result = match thing {
            Thing::Interface { router, subnet } => {
                remove_interface(&by, &router, &subnet, patience, death).await
            }
            Thing::At(service, path) => {
                remove(&by, &what, service, &path, None, patience, death).await
            }
            Thing::Server { id, name } => {
                let path = format!("/servers/{id}");
                remove(&by, &what, Service::Compute, &path, Some(&name), patience, death).await
            }
            Thing::Disabled(id) => enable(&by, &what, &id, patience, death).await,
            Thing::Project(id) => {
                for left in sweep(&by, &id, patience, death).await {
                    cleared.leftovers.push(format!("{left} in {what}"));
                }
                let path = format!("/projects/{id}");
                remove(&by, &what, Service::Identity, &path, None, patience, death).await
            }
        };
        match result {
            Ok(()) => cleared.gone.push(what),
            Err(e) => {
                let why = e.evidence_lines().join("; ");
                cleared.leftovers.push(format!("{what}: {e} {why}").trim_end().to_owned());
            }
        }
    }
    cleared
}

const NOMINAL: Duration = Duration::from_secs(60);

/// A question, or an order that is refused once more, takes time from what it waits for.
fn every(patience: &Patience) -> Duration {
    let scaled = patience.speed.scale(Duration::from_millis(500));
    scaled.clamp(Duration::from_secs(1), Duration::from_secs(5))
}

/// Deletes the thing at `path` and waits until it is seen gone. A server is not looked at while it is
/// still listed under its name.
async fn remove(
    by: &Session,
    what: &str,
    service: Service,
    path: &str,
    server: Option<&str>,
    patience: &Patience,
    death: &Death,
) -> crate::error::Result<()> {
    // Asked for once; repeated only where it was refused because something is still in use.
    let asked = AtomicBool::new(false);
    let asked = &asked;
    let wait = format!("{what} to be gone");
    patience
        .until(&wait, NOMINAL, every(patience), death, || async move {
            if !asked.load(Ordering::Relaxed) {
                match by.delete(service, path).await {
                    Ok(()) => asked.store(true, Ordering::Relaxed),
                    Err(e) if is_final(&e) => return Poll::Failed(e.into()),
                    Err(e) => return Poll::NotYet(e.to_string()),
                }
            }
            let is_there = async || -> Result<bool, ApiError> {
                if let Some(name) = server
                    && Compute(by).is_listed(name, None).await?
                {
                    return Ok(true);
                }
                Ok(by.find::<Value>(service, path, "").await?.is_some())
            };
            match is_there().await {
                Ok(false) => Poll::Ready(()),
                Ok(true) => Poll::NotYet("still there".into()),
                Err(e) if is_final(&e) => Poll::Failed(e.into()),
                Err(e) => Poll::NotYet(e.to_string()),
            }
        })
        .await
}

async fn remove_interface(
    by: &Session,
    router: &str,
    subnet: &str,
    patience: &Patience,
    death: &Death,
) -> crate::error::Result<()> {
    patience
        .until("the router interface to be gone", NOMINAL, every(patience), death, || async move {
            match Net(by).remove_interface(router, subnet).await {
                Ok(()) => Poll::Ready(()),
                Err(e) if is_final(&e) => Poll::Failed(e.into()),
                Err(e) => Poll::NotYet(e.to_string()),
            }
        })
        .await
}

/// Enables a compute service and waits until it is seen so.
async fn enable(
    by: &Session,
    what: &str,
    id: &str,
    patience: &Patience,
    death: &Death,
) -> crate::error::Result<()> {
    let wait = format!("{what} to be over");
    let is_enabled = async || -> Result<bool, ApiError> {
        let services = Compute(by).services().await?;
        if services.iter().any(|s| s.id == id && s.status == "enabled") {
            return Ok(true);
        }
        Compute(by).enable_service(id).await.map(|()| false)
    };
    patience
        .until(&wait, NOMINAL, every(patience), death, || async {
            match is_enabled().await {
                Ok(true) => Poll::Ready(()),
                Ok(false) => Poll::NotYet("it is still disabled".into()),
                Err(e) if is_final(&e) => Poll::Failed(e.into()),
                Err(e) => Poll::NotYet(e.to_string()),
            }
        })
        .await
}

/// What a project still has though everything known was deleted. The security group `default`,
/// which neutron makes by itself, is deleted without a word; anything else is a leftover, told
/// and deleted.
async fn sweep(admin: &Session, project: &str, patience: &Patience, death: &Death) -> Vec<String> {
    let places = [
        (
            Service::Compute,
            "/servers",
            format!("/servers?all_tenants=1&project_id={project}"),
            "servers",
        ),
        (
            Service::Image,
            "/images",
            format!("/images?owner={project}&visibility=private"),
            "images",
        ),
        (
            Service::Network,
            "/floatingips",
            format!("/floatingips?project_id={project}"),
            "floatingips",
        ),
        (Service::Network, "/ports", format!("/ports?project_id={project}"), "ports"),
        (Service::Network, "/routers", format!("/routers?project_id={project}"), "routers"),
        (Service::Network, "/networks", format!("/networks?project_id={project}"), "networks"),
        (
            Service::Network,
            "/security-groups",
            format!("/security-groups?project_id={project}"),
            "security_groups",
        ),
    ];
    let mut leftovers = Vec::new();
    for (service, base, query, key) in places {
        let found: Vec<Value> = match admin.get(service, &query, key).await {
            Ok(found) => found,
            Err(e) => {
                leftovers.push(format!("unknown {key} ({e})"));
                continue;
            }
        };
        for thing in found {
            let text = |k: &str| thing[k].as_str().unwrap_or_default().to_owned();
            let expected = key == "security_groups" && text("name") == "default";
            let name = format!("{key} {} {}", text("id"), text("name"));
            let path = format!("{base}/{}", text("id"));
            let removed = remove(admin, &name, service, &path, None, patience, death).await;
            match removed {
                Ok(()) if expected => {}
                Ok(()) => leftovers.push(format!("{} (deleted now)", name.trim())),
                Err(e) => leftovers.push(format!("{} ({e})", name.trim())),
            }
        }
    }
    leftovers
}

/// Whether asking again is in vain.
fn is_final(e: &ApiError) -> bool {
    matches!(e.status, Some(400..=499)) && !e.is(409)
}
