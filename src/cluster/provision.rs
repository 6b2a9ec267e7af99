//! A cluster booted and brought to what the roles declare.

use super::context::RunContext;
use super::credentials::{Cloud, User};
use super::images::NODE_IMAGE;
use super::node_tasks::{self, Resync};
use super::runs;
use super::topology::{self, Networks};
use crate::cloud::session::Credentials;
use crate::diagnose::Text;
use crate::engine::apply::{Engine, Report};
use crate::engine::inventory::Node;
use crate::engine::journal::Journal;
use crate::engine::plan::{Plan, Stage};
use crate::error::{Error, Result};
use crate::lab::accel::{self, Accel};
use crate::lab::hypervisor::Hypervisor;
use crate::lab::keys::SshKey;
use crate::lab::spec::LabSpec;
use crate::lab::{BOOTS, BootImage, Lab, LabOptions};
use crate::roles;
use crate::roles::facts::{self, ByHand, Fact};
use crate::roles::secrets::Secrets;
use crate::roles::topology::{Login, NodeKey, Topology};
use crate::secret::Secret;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Every node runs so many steps at once: more only thrash two emulated cores.
const STEPS_PER_NODE: usize = 3;
/// From QEMU's start to SSH for each node, on the reference machine. Not measured on one: two nodes
/// take 55 s on an idle 2-core machine whose factor is 10.
const BOOTING: Duration = Duration::from_millis(2750);

/// What the roles declare for a lab.
pub struct Declared {
    pub plan: Arc<Plan>,
    pub facts: Vec<Fact>,
    pub by_hand: Vec<ByHand>,
    /// The cloud's own in every shape, by name.
    pub secrets: Vec<(String, Secret)>,
    /// Keystone's, as nodes reach it.
    pub auth_url: String,
    pub admin: Credentials,
    pub region: String,
}

impl Declared {
    /// What those who use the cloud need to know.
    pub fn cloud(&self) -> Cloud {
        Cloud {
            auth_url: self.auth_url.clone(),
            region: self.region.clone(),
            users: vec![User::of(&self.admin)],
        }
    }
}

/// A booted lab that answers to SSH. Dropping it ends every machine and removes the run's files.
pub struct Cluster {
    pub(super) run: RunContext,
    pub(super) lab: Lab,
    pub(super) nodes: Vec<Node>,
    pub(super) engine: Engine,
    journal: Journal,
    /// The cloud's own, known to the redactor.
    pub(super) secrets: Secrets,
    /// What the proof kept, for the evidence.
    pub(super) kept: Mutex<Vec<Text>>,
    pub(super) resync: Resync,
}

pub struct Boot<'a> {
    pub images: &'a BTreeMap<String, BootImage>,
    pub hypervisor: Hypervisor,
    pub accel: Accel,
    pub logs: &'a Path,
    pub keep: bool,
}

impl Boot<'_> {
    pub(super) fn options(&self, run: &RunContext) -> LabOptions {
        LabOptions {
            run_root: runs(&run.store_dir),
            slots: runs(&run.store_dir),
            hypervisor: self.hypervisor.clone(),
            accel: self.accel,
            boots: BOOTS,
            keep: self.keep,
            logs: Some(self.logs.to_owned()),
        }
    }
}

/// A new lab with new secrets.
pub async fn boot(run: &RunContext, spec: &LabSpec, boot: &Boot<'_>) -> Result<Cluster> {
    let image = |name: &str| {
        let found = boot.images.get(name).cloned();
        found.ok_or_else(|| Error::internal(format!("the image {name} was not brought in")))
    };
    let (options, patience) = (boot.options(run), run.patience());
    let start = Instant::now();
    let lab = Lab::start(spec, image, &options, &patience, &run.redactor).await?;
    // The second measurement of the run: a real system, and all of the lab at once.
    run.speed.at_least(booted_in(start.elapsed(), spec));
    Cluster::new(lab, Secrets::generate()?, boot.logs, run)
}

/// How much slower than the reference machine the lab booted; 0 where its images are not known.
fn booted_in(took: Duration, spec: &LabSpec) -> f64 {
    let nodes = u32::try_from(spec.nodes.len()).unwrap_or(u32::MAX);
    let known = nodes > 0 && spec.nodes.iter().all(|n| n.image == NODE_IMAGE);
    if known { took.as_secs_f64() / (BOOTING * nodes).as_secs_f64() } else { 0.0 }
}

impl Cluster {
    /// Makes the secrets known to the redactor before they are used.
    pub(super) fn new(
        lab: Lab,
        secrets: Secrets,
        logs: &Path,
        run: &RunContext,
    ) -> Result<Cluster> {
        secrets.hide_in(&run.redactor);
        let journal = Journal::open(logs.join("engine.log"), run.redactor.clone())?;
        let engine = Engine::new(Vec::new(), run.patience(), journal.clone());
        let (run, nodes) = (run.clone(), Vec::new());
        let (kept, resync) = (Mutex::default(), Resync::default());
        let mut cluster = Cluster { run, lab, nodes, engine, journal, secrets, kept, resync };
        cluster.connect()?;
        Ok(cluster)
    }

    /// Closes all connections to the nodes.
    pub(super) fn disconnect(&mut self) {
        self.engine = Engine::new(Vec::new(), self.run.patience(), self.journal.clone());
        self.nodes.clear();
    }

    /// New connections to all nodes, made when they are used.
    pub(super) fn connect(&mut self) -> Result<()> {
        self.nodes = node_tasks::reach(&self.lab, &self.run.speed)?;
        let engine = Engine::new(self.nodes.clone(), self.run.patience(), self.journal.clone());
        self.engine = engine.per_node(STEPS_PER_NODE);
        Ok(())
    }

    /// The lab as the cloud that the roles describe.
    fn topology(&self) -> Result<Topology> {
        let user = self.lab.login_user();
        let node_key = SshKey::ed25519_from_seed(self.secrets.node_key(), &format!("{user}@node"))?;
        node_key.hide_in(&self.run.redactor);
        let login = Login {
            user: user.into(),
            authorized_keys: vec![self.lab.login_key().public_line()],
            node_key: NodeKey { private: node_key.private_pem(), public: node_key.public_line() },
        };
        let spec = self.lab.spec();
        let host_key = |name: &str| {
            let key = &self.lab.node(name).expect("a node of this spec").host_key;
            key.to_openssh().expect("a host key can be written")
        };
        let nested = accel::nested(self.lab.accel(), self.run.nested)?;
        topology::of(spec, &self.networks()?, login, nested, host_key)
    }

    /// The lab's networks by what they carry, whatever they are called.
    pub(super) fn networks(&self) -> Result<Networks> {
        Networks::of(self.lab.spec())
    }

    /// What is left of the roles' plan between two stages.
    pub fn part(&self, done: Stage, until: Stage) -> Result<Arc<Plan>> {
        let plan = roles::plan(&self.topology()?, &self.secrets)?;
        Ok(Arc::new(plan.between(Some(done), until)))
    }

    /// The roles of the lab's nodes as a plan for the engine.
    pub fn declare(&self) -> Result<Declared> {
        let (topology, secrets) = (self.topology()?, &self.secrets);
        let admin = Credentials {
            user: "admin".into(),
            password: secrets.admin().clone(),
            project: "admin".into(),
            domain: "Default".into(),
        };
        Ok(Declared {
            plan: Arc::new(roles::plan(&topology, secrets)?),
            facts: facts::facts(&topology),
            by_hand: facts::changes_by_hand(&topology),
            secrets: secrets.forms().map(|(n, s)| (n.to_owned(), s)).collect(),
            auth_url: format!("http://{}:{}/v3", topology.controller().name, roles::KEYSTONE_PORT),
            admin,
            region: topology.region,
        })
    }

    /// Brings the nodes to the plan.
    pub async fn apply(&self, plan: &Arc<Plan>) -> Result<Report> {
        self.engine.apply(plan.clone(), &self.lab.death()).await
    }

    /// The machines, without the engine: for those who live in the lab.
    pub fn into_lab(self) -> Lab {
        self.lab
    }

    /// Ends the machines.
    pub async fn down(mut self) -> Result<()> {
        // What waits for the nodes is over, and not in vain.
        self.resync.stop().await;
        self.lab.stop().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(lab: &str) -> LabSpec {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        LabSpec::load(&root.join("vmtests/labs").join(lab)).unwrap()
    }

    #[test]
    fn a_lab_that_boots_slowly_makes_deadlines_longer() {
        let two = spec("two-node.toml");
        assert_eq!(booted_in(Duration::from_secs(55), &two), 10.0);
        let mut other = two;
        other.nodes[0].image = "another".into();
        assert_eq!(booted_in(Duration::from_secs(55), &other), 0.0);
    }
}
