//! The rooms of the house joined into one run: what each phase calls. Everything that knows two
//! rooms at once is here and nowhere else.

mod evidence;
mod keep;
mod leaks;
mod login;
mod nodes;

pub use keep::restore;

use super::instance::Instance;
use super::topology::{self, Networks};
use crate::cli::record::NotRun;
use crate::cli::session::Work;
use crate::cloud::http::Connector;
use crate::cloud::proof::console::ConsoleStyle;
use crate::cloud::proof::{self, Daemon, ProofInputs, World};
use crate::cloud::session::Credentials;
use crate::cloud::url::Url;
use crate::cluster::images::NODE_IMAGE;
use crate::cluster::runs;
use crate::diagnose::{Text, causes};
use crate::engine::apply::{Engine, Report};
use crate::engine::inventory::Node;
use crate::engine::journal::Journal;
use crate::engine::plan::{Plan, Stage};
use crate::error::{Error, Result};
use crate::lab::accel::{self, Accel};
use crate::lab::hypervisor::Hypervisor;
use crate::lab::keys::SshKey;
use crate::lab::outside::Leg;
use crate::lab::spec::{LabSpec, NodeSpec};
use crate::lab::{BOOTS, BootImage, Lab, LabOptions};
use crate::roles;
use crate::roles::facts::{self, ByHand, Fact};
use crate::roles::secrets::Secrets;
use crate::roles::topology::{Login, NodeKey, Topology};
use crate::secret::Secret;
use crate::supervisor::cloud::{Cloud, User};
use crate::supervisor::nodes as upkeep;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const PROBE_GUEST: &str = "probe-guest";
/// Every node runs so many steps at once: more only thrash two emulated cores.
const STEPS_PER_NODE: usize = 3;
/// From QEMU's start to SSH for each node, on the reference machine. Not measured on one: two nodes
/// take 55 s on an idle 2-core machine whose factor is 10.
const BOOTING: Duration = Duration::from_millis(2750);
/// So many likely causes are told with an error.
const CAUSES: usize = 3;

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
    lab: Lab,
    nodes: Vec<Node>,
    engine: Engine,
    journal: Journal,
    /// The cloud's own, known to the redactor.
    secrets: Secrets,
    /// What the proof kept, for the evidence.
    kept: Mutex<Vec<Text>>,
    resync: upkeep::Resync,
}

pub struct Boot<'a> {
    pub images: &'a BTreeMap<String, BootImage>,
    pub hypervisor: Hypervisor,
    pub accel: Accel,
    pub logs: &'a Path,
    pub keep: bool,
}

impl Boot<'_> {
    fn options(&self, work: &Work) -> LabOptions {
        LabOptions {
            run_root: runs(&work.env.store),
            slots: runs(&work.env.store),
            hypervisor: self.hypervisor.clone(),
            accel: self.accel,
            boots: BOOTS,
            keep: self.keep,
            logs: Some(self.logs.to_owned()),
        }
    }
}

/// A new lab with new secrets.
pub async fn boot(work: &Work, spec: &LabSpec, boot: &Boot<'_>) -> Result<Cluster> {
    let image = |name: &str| {
        let found = boot.images.get(name).cloned();
        found.ok_or_else(|| Error::internal(format!("the image {name} was not brought in")))
    };
    let (options, patience) = (boot.options(work), work.patience());
    let start = Instant::now();
    let lab = Lab::start(spec, image, &options, &patience, &work.redactor).await?;
    // The second measurement of the run: a real system, and all of the lab at once.
    work.speed.at_least(booted_in(start.elapsed(), spec));
    Cluster::new(lab, Secrets::generate()?, boot.logs, work)
}

/// How much slower than the reference machine the lab booted; 0 where its images are not known.
fn booted_in(took: Duration, spec: &LabSpec) -> f64 {
    let nodes = u32::try_from(spec.nodes.len()).unwrap_or(u32::MAX);
    let known = nodes > 0 && spec.nodes.iter().all(|n| n.image == NODE_IMAGE);
    if known { took.as_secs_f64() / (BOOTING * nodes).as_secs_f64() } else { 0.0 }
}

fn leg(lab: &Lab, network: &str) -> Result<Leg> {
    lab.leg(network).cloned().ok_or_else(|| {
        Error::input(format!("the network `{network}` has no `outside` address"))
            .at(&lab.spec().file, None)
            .hint("the proof needs a leg of ours on the nodes' network and on the external one")
    })
}

impl Cluster {
    /// Makes the secrets known to the redactor before they are used.
    fn new(lab: Lab, secrets: Secrets, logs: &Path, work: &Work) -> Result<Cluster> {
        secrets.hide_in(&work.redactor);
        let journal = Journal::open(logs.join("engine.log"), work.redactor.clone())?;
        let engine = Engine::new(Vec::new(), work.patience(), journal.clone());
        let (nodes, kept, resync) = (Vec::new(), Mutex::default(), upkeep::Resync::default());
        let mut cluster = Cluster { lab, nodes, engine, journal, secrets, kept, resync };
        cluster.connect(work)?;
        Ok(cluster)
    }

    /// Closes all connections to the nodes.
    fn disconnect(&mut self, work: &Work) {
        self.engine = Engine::new(Vec::new(), work.patience(), self.journal.clone());
        self.nodes.clear();
    }

    /// New connections to all nodes, made when they are used.
    fn connect(&mut self, work: &Work) -> Result<()> {
        self.nodes = upkeep::reach(&self.lab, &work.speed)?;
        let engine = Engine::new(self.nodes.clone(), work.patience(), self.journal.clone());
        self.engine = engine.per_node(STEPS_PER_NODE);
        Ok(())
    }

    /// The lab as the cloud that the roles describe.
    fn topology(&self, work: &Work) -> Result<Topology> {
        let user = self.lab.login_user();
        let node_key = SshKey::ed25519_from_seed(self.secrets.node_key(), &format!("{user}@node"))?;
        node_key.hide_in(&work.redactor);
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
        let nested = accel::nested(self.lab.accel(), work.nested)?;
        topology::of(spec, &self.networks()?, login, nested, host_key)
    }

    /// The lab's networks by what they carry, whatever they are called.
    fn networks(&self) -> Result<Networks> {
        Networks::of(self.lab.spec())
    }

    /// What is left of the roles' plan between two stages.
    pub fn part(&self, work: &Work, done: Stage, until: Stage) -> Result<Arc<Plan>> {
        let plan = roles::plan(&self.topology(work)?, &self.secrets)?;
        Ok(Arc::new(plan.between(Some(done), until)))
    }

    /// The roles of the lab's nodes as a plan for the engine.
    pub fn declare(&self, work: &Work) -> Result<Declared> {
        let (topology, secrets) = (self.topology(work)?, &self.secrets);
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

    /// The whole story of the proof. Its checks are sent as events; what failed is the error.
    pub async fn prove(
        &self,
        work: &Work,
        declared: &Declared,
        instance: &Instance,
        keep: bool,
    ) -> Result<()> {
        let inputs = self.inputs(work, declared, instance, keep)?;
        let networks = self.networks()?;
        let management = leg(&self.lab, &networks.management)?;
        let world = World {
            api: Arc::new(management) as Arc<dyn Connector>,
            outside: Arc::new(leg(&self.lab, &networks.external)?),
            login: Arc::new(login::SshLogin),
            wire: Arc::new(self.lab.switch().network(&networks.management)),
            external: Arc::new(self.lab.switch().network(&networks.external)),
            nodes: Arc::new(login::OnNodes(self.nodes.clone())),
        };
        let outcome = proof::prove(inputs, world).await?;
        let error = outcome.error(&self.lab.death());
        work.learn(|facts| {
            let left_out = outcome.left_out.iter().cloned();
            facts.not_run.extend(left_out.map(|(name, reason)| NotRun { name, reason }));
        });
        let logs = outcome.logs.into_iter().map(|(name, content)| Text::new(name, content));
        self.kept.lock().unwrap_or_else(|p| p.into_inner()).extend(logs);
        error.map_or(Ok(()), Err)
    }

    fn inputs(
        &self,
        work: &Work,
        declared: &Declared,
        instance: &Instance,
        keep: bool,
    ) -> Result<ProofInputs> {
        let spec = self.lab.spec();
        with_role(spec, "controller")?;
        let network = with_role(spec, "network")?;
        with_role(spec, "compute")?;
        let management = self.networks()?.management;
        let address = |node: &NodeSpec| {
            node.address_on(&management).ok_or_else(|| {
                Error::input(format!("{} has no address on `{management}`", node.name))
                    .at(&spec.file, Some(node.line))
            })
        };
        let names = spec
            .nodes
            .iter()
            .map(|node| Ok((node.name.clone(), address(node)?)))
            .collect::<Result<_>>()?;
        Ok(ProofInputs {
            auth_url: Url::parse(&declared.auth_url)?,
            admin: declared.admin.clone(),
            region: declared.region.clone(),
            names,
            services: ["identity", "image", "placement", "compute", "network"]
                .map(str::to_owned)
                .into(),
            agents: agents(spec),
            compute_services: compute_services(spec),
            hypervisors: having(spec, "compute")
                .map(|node| Ok((node.name.clone(), address(node)?)))
                .collect::<Result<_>>()?,
            network_node: network.name.clone(),
            network_tunnel: address(network)?,
            image: proof::Image {
                path: instance.disk.clone(),
                name: instance.name.clone(),
                user: instance.user.clone(),
                virtual_size: instance.virtual_size,
                console: console_style(&instance.name),
                // It lives in memory; all others keep the key that they made on their disk.
                keeps_host_key: instance.name != PROBE_GUEST,
            },
            subnets: topology::subnets(spec, &self.networks()?)?,
            keep_public: keep,
            patience: work.patience(),
            death: self.lab.death(),
            redactor: work.redactor.clone(),
        })
    }

    /// Journals and service logs, without secrets, into `logs`, where the consoles are already.
    /// Returns what likely caused the failure.
    pub async fn save_evidence(&self, work: &Work, logs: &Path) -> Result<Vec<String>> {
        let spec = self.lab.spec();
        let mut texts = evidence::gather(&self.nodes, spec, &work.patience(), &work.redactor).await;
        texts.append(&mut self.kept.lock().unwrap_or_else(|p| p.into_inner()));
        evidence::save(&texts, logs, &work.redactor)?;
        let causes = causes(&texts).into_iter().take(CAUSES);
        Ok(causes
            .map(|c| format!("{} ({}:{}: {})", c.meaning, c.text, c.line, c.excerpt))
            .collect())
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

fn with_role<'s>(spec: &'s LabSpec, role: &str) -> Result<&'s NodeSpec> {
    spec.nodes.iter().find(|n| n.roles.iter().any(|r| r == role)).ok_or_else(|| {
        Error::input(format!("no node has the role `{role}`"))
            .at(&spec.file, None)
            .hint(format!("add \"{role}\" to the roles of a node"))
    })
}

fn having<'s>(spec: &'s LabSpec, role: &'s str) -> impl Iterator<Item = &'s NodeSpec> {
    spec.nodes.iter().filter(move |n| n.roles.iter().any(|r| r == role))
}

/// The Neutron agents that these roles bring, each once.
fn agents(spec: &LabSpec) -> Vec<Daemon> {
    let of_network = ["neutron-l3-agent", "neutron-dhcp-agent", "neutron-metadata-agent"];
    let mut all: Vec<Daemon> = having(spec, "network")
        .flat_map(|n| of_network.map(|binary| Daemon::new(binary, &n.name)))
        .collect();
    for node in having(spec, "network").chain(having(spec, "compute")) {
        all.push(Daemon::new("neutron-openvswitch-agent", &node.name));
    }
    all.sort();
    all.dedup();
    all
}

fn compute_services(spec: &LabSpec) -> Vec<Daemon> {
    let of_controller = ["nova-conductor", "nova-scheduler"];
    having(spec, "controller")
        .flat_map(|n| of_controller.map(|binary| Daemon::new(binary, &n.name)))
        .chain(having(spec, "compute").map(|n| Daemon::new("nova-compute", &n.name)))
        .collect()
}

/// probe-guest keeps CirrOS's contract.
fn console_style(image: &str) -> ConsoleStyle {
    if image == PROBE_GUEST || image.starts_with("cirros") {
        ConsoleStyle::cirros()
    } else {
        ConsoleStyle::generic()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    fn spec(lab: &str) -> LabSpec {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        LabSpec::load(&root.join("vmtests/labs").join(lab)).unwrap()
    }

    #[test]
    fn one_node_that_is_network_and_compute_has_one_switch_agent() {
        let agents = agents(&spec("one-node.toml"));
        let switches = agents.iter().filter(|d| d.binary.contains("openvswitch")).count();
        assert_eq!((switches, agents.len()), (1, 4));
    }

    #[test]
    fn a_lab_that_boots_slowly_makes_deadlines_longer() {
        let two = spec("two-node.toml");
        assert_eq!(booted_in(Duration::from_secs(55), &two), 10.0);
        let mut other = two;
        other.nodes[0].image = "another".into();
        assert_eq!(booted_in(Duration::from_secs(55), &other), 0.0);
    }

    #[test]
    fn two_nodes_have_the_agents_and_services_of_their_roles() {
        let spec = spec("two-node.toml");
        assert_eq!(agents(&spec).len(), 5);
        let hosts: Vec<_> =
            compute_services(&spec).into_iter().map(|d| (d.binary, d.host)).collect();
        assert!(hosts.contains(&("nova-compute".into(), "openstack2".into())), "{hosts:?}");
        assert!(hosts.contains(&("nova-scheduler".into(), "openstack1".into())), "{hosts:?}");
    }

    #[test]
    fn a_lab_without_a_compute_node_is_an_input_error_that_names_the_role() {
        let mut spec = spec("two-node.toml");
        spec.nodes.retain(|n| n.name == "openstack1");
        let e = with_role(&spec, "compute").unwrap_err();
        assert_eq!(e.kind(), Kind::Input);
        assert!(e.to_string().contains("compute"), "{e}");
    }
}
