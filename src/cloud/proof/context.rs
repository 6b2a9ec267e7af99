//! What the story knows so far.

use super::console;
use super::guest::Answers;
use super::inputs::{ProofInputs, World};
use super::ledger::Ledger;
use super::login::{HostKey, KeyPair};
use super::vxlan::Watch;
use crate::cloud::compute::Compute;
use crate::cloud::http::{ApiError, Http};
use crate::cloud::network::Network;
use crate::cloud::session::{Credentials, Session};
use crate::error::{Context as _, Error, Kind, Result};
use crate::event::Events;
use crate::secret::Secret;
use crate::wait::{Patience, Poll};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::Duration;
use tokio::sync::SetOnce;

/// How many lines of an instance's console are read at a time.
const CONSOLE_LINES: u32 = 600;

/// Filled by the checks, each place once; a check that finds empty what it needs is a defect of the
/// story.
pub struct Context {
    pub inputs: ProofInputs,
    pub world: World,
    pub(super) http: Http,
    /// Tells this run's things from those of other runs.
    pub(super) run: String,
    /// What only an instance of this run can know.
    pub(super) nonce: String,
    pub(super) ledger: Ledger,
    logs: Mutex<BTreeMap<String, String>>,

    pub(super) admin: OnceLock<Session>,
    /// The ordinary user whose project everything is made in.
    pub(super) member: OnceLock<Session>,
    /// Somebody of another project.
    pub(super) stranger: OnceLock<Session>,
    pub(super) public: OnceLock<Network>,
    pub(super) flavor: OnceLock<String>,
    pub(super) image: OnceLock<String>,
    pub(super) key: OnceLock<KeyPair>,
    pub(super) network: OnceLock<Network>,
    pub(super) subnet: OnceLock<String>,
    pub(super) router: OnceLock<String>,
    pub(super) router_address: OnceLock<Ipv4Addr>,
    pub(super) group: OnceLock<String>,
    pub(super) server: OnceLock<String>,
    pub(super) host: OnceLock<String>,
    pub(super) port: OnceLock<InstancePort>,
    pub(super) dhcp: OnceLock<Ipv4Addr>,
    pub(super) vxlan: OnceLock<Watch>,
    pub(super) floating: OnceLock<Floating>,
    pub(super) guest: OnceLock<Guest>,
}

#[derive(Clone, Debug)]
pub struct InstancePort {
    pub id: String,
    pub address: Ipv4Addr,
}

#[derive(Clone, Debug)]
pub struct Floating {
    pub id: String,
    pub address: Ipv4Addr,
}

/// The first login.
#[derive(Debug)]
pub struct Guest {
    pub host_key: HostKey,
    pub answers: Answers,
}

impl Context {
    pub fn new(inputs: ProofInputs, world: World) -> Result<Context> {
        let http = Http::new(
            world.api.clone(),
            inputs.names.clone(),
            inputs.patience.speed.clone(),
            inputs.death.clone(),
            inputs.redactor.clone(),
        );
        Ok(Context {
            http,
            run: fresh(4)?,
            nonce: fresh(16)?,
            ledger: Ledger::default(),
            logs: Mutex::default(),
            admin: OnceLock::new(),
            member: OnceLock::new(),
            stranger: OnceLock::new(),
            public: OnceLock::new(),
            flavor: OnceLock::new(),
            image: OnceLock::new(),
            key: OnceLock::new(),
            network: OnceLock::new(),
            subnet: OnceLock::new(),
            router: OnceLock::new(),
            router_address: OnceLock::new(),
            group: OnceLock::new(),
            server: OnceLock::new(),
            host: OnceLock::new(),
            port: OnceLock::new(),
            dhcp: OnceLock::new(),
            vxlan: OnceLock::new(),
            floating: OnceLock::new(),
            guest: OnceLock::new(),
            inputs,
            world,
        })
    }

    pub(super) fn admin(&self) -> Result<&Session> {
        known(&self.admin, "the administrator's session")
    }
    pub(super) fn member(&self) -> Result<&Session> {
        known(&self.member, "the member's session")
    }
    pub(super) fn stranger(&self) -> Result<&Session> {
        known(&self.stranger, "the stranger's session")
    }
    pub(super) fn server(&self) -> Result<&str> {
        known(&self.server, "the server").map(String::as_str)
    }
    /// The hypervisor that the instance runs on.
    pub(super) fn host(&self) -> Result<&str> {
        known(&self.host, "the server's host").map(String::as_str)
    }
    /// Tunnel addresses of the network node and of the instance's hypervisor.
    pub(super) fn tunnel(&self) -> Result<(Ipv4Addr, Ipv4Addr)> {
        let there = self.inputs.hypervisors.get(self.host()?);
        let there = there.ok_or_else(|| Error::internal("a host that was not declared"))?;
        Ok((self.inputs.network_tunnel, *there))
    }
    pub(super) fn port(&self) -> Result<&InstancePort> {
        known(&self.port, "the server's port")
    }
    pub(super) fn router_address(&self) -> Result<Ipv4Addr> {
        known(&self.router_address, "the router's external address").copied()
    }
    pub(super) fn floating(&self) -> Result<&Floating> {
        known(&self.floating, "the floating IP")
    }

    pub(super) async fn login(&self, who: Credentials) -> Result<Session, ApiError> {
        Session::login(self.http.clone(), &self.inputs.auth_url, &self.inputs.region, who).await
    }

    /// A wait of the story: `nominal` and `every` in seconds, the first on the reference machine.
    pub(super) async fn until<T, F>(
        &self,
        what: &str,
        nominal: u64,
        every: u64,
        attempt: impl FnMut() -> F,
    ) -> Result<T>
    where
        F: Future<Output = Poll<T>>,
    {
        let seconds = Duration::from_secs;
        let ProofInputs { patience, death, .. } = &self.inputs;
        patience.until(what, seconds(nominal), seconds(every), death, attempt).await
    }

    /// A bound for one attempt within a wait: not worth being reported.
    pub(super) async fn bounded<T>(
        &self,
        what: &str,
        nominal: u64,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let quiet = Patience::new(self.inputs.patience.speed.clone(), Events::silent());
        quiet.within(what, Duration::from_secs(nominal), &self.inputs.death, work).await
    }

    /// Like [`until`](Self::until) for what the services are asked, where something that costs them
    /// nothing will tell that it is time: before `sign` they are asked [`seldom`](Self::seldom).
    pub(super) async fn until_after<T, F>(
        &self,
        sign: &SetOnce<()>,
        what: &str,
        nominal: u64,
        every: u64,
        mut attempt: impl FnMut() -> F,
    ) -> Result<T>
    where
        F: Future<Output = Poll<T>>,
    {
        let seldom = self.seldom();
        self.until(what, nominal, every, || {
            let attempt = attempt();
            async move {
                // Which of both came makes no difference.
                let _ = tokio::time::timeout(seldom, sign.wait()).await;
                attempt.await
            }
        })
        .await
    }

    /// What `work` found; when it did, `sign` is set for [`until_after`](Self::until_after).
    pub(super) async fn tells<T>(
        &self,
        sign: &SetOnce<()>,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let found = work.await?;
        // Each sign has one that tells.
        let _ = sign.set(());
        Ok(found)
    }

    /// How long services are left in peace between questions that most likely have the same answer: a
    /// busy controller takes the time for them from what is waited for.
    pub(super) fn seldom(&self) -> Duration {
        let scaled = self.inputs.patience.speed.scale(Duration::from_secs(1));
        scaled.clamp(Duration::from_secs(1), Duration::from_secs(10))
    }

    /// How long one echo or one TCP attempt may take: emulated guests answer in tenths of seconds.
    pub(super) fn echo_timeout(&self) -> Duration {
        let scaled = self.inputs.patience.speed.scale(Duration::from_millis(300));
        scaled.clamp(Duration::from_secs(1), Duration::from_secs(5))
    }

    /// The instance's console now; kept among the logs.
    pub(super) async fn read_console(&self) -> Result<String> {
        let text = self.console_text().await?;
        self.keep_console(&text);
        Ok(text)
    }

    pub(super) async fn console_text(&self) -> Result<String> {
        Ok(Compute(self.member()?).console(self.server()?, CONSOLE_LINES).await?)
    }

    pub(super) fn keep_console(&self, text: &str) {
        if !text.is_empty() {
            self.logs().insert("instance-console.log".into(), self.inputs.redactor.clean(text));
        }
    }

    /// A poisoned lock is passed over: whole texts are put in.
    fn logs(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        self.logs.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The reason why waiting for the instance is in vain, if there is one: nova gave it up, or
    /// its console says that nothing can follow.
    pub(super) async fn hopeless(&self) -> Option<Error> {
        let (admin, id) = (self.admin().ok()?, self.server().ok()?);
        if let Ok(Some(server)) = Compute(admin).server(id).await
            && let Some(e) = server.failure()
        {
            return Some(e);
        }
        console::fatal(&self.console_text().await.ok()?)
    }

    pub(super) fn take_logs(&self) -> Vec<(String, String)> {
        std::mem::take(&mut *self.logs()).into_iter().collect()
    }
}

/// Random text that is no secret.
fn fresh(bytes: usize) -> Result<String> {
    let random = Secret::generate(bytes).doing(Kind::Host, || "no random numbers".into())?;
    Ok(random.reveal().to_owned())
}

pub(super) fn known<'a, T>(place: &'a OnceLock<T>, what: &str) -> Result<&'a T> {
    place.get().ok_or_else(|| {
        Error::internal(format!("{what} is not known: a check lacks a `needs` in the story"))
    })
}

pub(super) fn fill<T>(place: &OnceLock<T>, value: T) -> Result<()> {
    let twice = |_| Error::internal("two checks of the story find out the same");
    place.set(value).map_err(twice)
}

/// What an API error means to a poll: servers that are busy or starting may yet answer, a refusal
/// is final.
pub(super) fn unless_refused<T>(e: ApiError) -> Poll<T> {
    match e.status {
        Some(status) if status < 500 && status != 409 => Poll::Failed(e.into()),
        _ => Poll::NotYet(e.to_string()),
    }
}
