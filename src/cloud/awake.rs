//! Whether a cloud that stood still, with its machines, goes on.

use super::compute::Compute;
use super::http::{ApiError, Connector, Http, Request};
use super::network::Net;
use super::session::{Credentials, Session};
use super::url::Url;
use crate::error::Result;
use crate::secret::Redactor;
use crate::wait::{Death, Patience, Poll};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

/// The waits after a restore, as reports name them.
const FIRST_ANSWER: &str = "the first answer of the cloud";
pub const FIRST_TOKEN: &str = "the first token of the cloud";
/// What Keystone says of itself, on the reference machine.
const ANSWER: Duration = Duration::from_secs(20);
/// A token, on the reference machine: Keystone asks its database, which finds its connections gone.
const TOKEN: Duration = Duration::from_secs(20);
/// Between two requests: the first that is answered tells how long the cloud slept.
const ASK: Duration = Duration::from_millis(50);
/// A heartbeat of every agent, on the reference machine. They are half a minute apart.
const HEARD: Duration = Duration::from_secs(60);
const LISTEN: Duration = Duration::from_secs(5);

/// A cloud and the way to it.
#[derive(Clone)]
pub struct Sleeper {
    pub api: Arc<dyn Connector>,
    /// Addresses of the names that its catalogue uses.
    pub names: BTreeMap<String, Ipv4Addr>,
    /// `http://openstack1:5000/v3`.
    pub auth_url: String,
    pub region: String,
    pub who: Credentials,
    pub death: Death,
}

impl Sleeper {
    /// Waits for the cloud's first answer, then for a token.
    pub async fn token(&self, patience: &Patience, redactor: &Redactor) -> Result<Session> {
        let url = Url::parse(&self.auth_url)?;
        let (api, names) = (self.api.clone(), self.names.clone());
        let (speed, death) = (patience.speed.clone(), self.death.clone());
        let http = &Http::new(api, names, speed, death, redactor.clone());
        let version = &Request::get(url.clone(), None);
        let answer =
            || async { http.send(version).await.map_or_else(not_yet, |_| Poll::Ready(())) };
        patience.until(FIRST_ANSWER, ANSWER, ASK, &self.death, answer).await?;
        let token = || async {
            let session = Session::login(http.clone(), &url, &self.region, self.who.clone());
            session.await.map_or_else(not_yet, Poll::Ready)
        };
        patience.until(FIRST_TOKEN, TOKEN, ASK, &self.death, token).await
    }

    /// Waits until every agent and every service that the cloud knows was heard again, and says how
    /// many those are; `tell` hears which were not, each time it was looked. Until then the
    /// schedulers take them for dead where they slept for long.
    pub async fn heartbeats(
        &self,
        session: &Session,
        patience: &Patience,
        tell: impl Fn(&[String]),
    ) -> Result<usize> {
        let listen = || async {
            let agents = match Net(session).agents().await {
                Ok(agents) => agents,
                Err(e) => return not_yet(e),
            };
            let services = match Compute(session).services().await {
                Ok(services) => services,
                Err(e) => return not_yet(e),
            };
            let name = |binary: &str, host: &str| format!("{binary} on {host}");
            let silent: Vec<String> = agents
                .iter()
                .filter(|a| !a.alive)
                .map(|a| name(&a.binary, &a.host))
                .chain(
                    services.iter().filter(|s| s.state != "up").map(|s| name(&s.binary, &s.host)),
                )
                .collect();
            match (agents.len() + services.len(), silent.as_slice()) {
                (0, _) => Poll::NotYet("the cloud knows no agent".into()),
                (all, []) => Poll::Ready(all),
                (_, silent) => {
                    tell(silent);
                    Poll::NotYet(format!("not heard: {}", silent.join(", ")))
                }
            }
        };
        patience.until("the heartbeats of all agents", HEARD, LISTEN, &self.death, listen).await
    }
}

/// What is refused stays refused; a service that wakes up fails in other ways.
fn not_yet<T>(e: ApiError) -> Poll<T> {
    match e.status {
        Some(status) if status < 500 => Poll::Failed(e.into()),
        _ => Poll::NotYet(e.to_string()),
    }
}
