//! A small OpenStack in memory, with one instance that can be pinged and logged into, and faults
//! to be switched on: enough for every path of the proof, and nothing more.

mod api;
mod guest;
mod serve;

use super::http::Http;
use super::proof::console::ConsoleStyle;
use super::proof::outside::Wanted;
use super::proof::{Daemon, Image, ProofInputs, Subnets, World};
use super::session::{Credentials, Session};
use super::url::Url;
use crate::event::Events;
use crate::secret::{Redactor, Secret};
use crate::wait::{Death, Patience, Speed};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use tokio::time::Instant;

pub const ADMIN_PASSWORD: &str = "admin-password-0123456789";
pub const HOST: Ipv4Addr = Ipv4Addr::new(192, 168, 103, 11);
pub const COMPUTE: Ipv4Addr = Ipv4Addr::new(192, 168, 103, 12);
pub const ROUTER: Ipv4Addr = Ipv4Addr::new(172, 24, 4, 101);
pub const FLOATING: Ipv4Addr = Ipv4Addr::new(172, 24, 4, 105);
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 5, 5, 1);
pub const DHCP: Ipv4Addr = Ipv4Addr::new(10, 5, 5, 2);
pub const FIXED: Ipv4Addr = Ipv4Addr::new(10, 5, 5, 12);
pub const INSTANCE_MAC: &str = "fa:16:3e:00:00:0c";
pub const VNI: u32 = 7;

/// What goes wrong.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    pub no_placement: bool,
    pub dead_agent: bool,
    pub no_valid_host: bool,
    pub wrong_host: bool,
    /// The scheduler places servers on disabled hosts too.
    pub disabled_hosts_used: bool,
    /// A disabled service cannot be enabled.
    pub stays_disabled: bool,
    pub binding_failed: bool,
    pub image_killed: bool,
    pub image_public: bool,
    pub image_corrupted: bool,
    /// Once there is a stranger, nobody sees the image.
    pub image_lost: bool,
    pub anyone_makes_flavors: bool,
    pub no_bootable_device: bool,
    pub never_up: bool,
    /// Pings are answered though no rule lets them in.
    pub leaky: bool,
    /// The floating IP goes to ERROR, and no router has its address.
    pub floating_error: bool,
    /// The router stops answering once the floating IP is the instance's.
    pub router_dies: bool,
    /// The guest panics during the window of silence.
    pub panics_while_silent: bool,
    pub ttl: Option<u8>,
    pub ssh_open_with_icmp: bool,
    pub other_nonce: bool,
    pub any_key: bool,
    /// Who comes with another key is never told anything.
    pub hangs_up_on_other_keys: bool,
    pub small_packets_only: bool,
    pub guest_mtu: Option<u32>,
    pub no_metadata_address: bool,
    pub no_vxlan: bool,
    /// The DHCP agent made no namespace.
    pub no_dhcp_namespace: bool,
    /// The instance answers in the router's namespace though no rule lets it in.
    pub leaky_inside: bool,
    /// The router does not find the instance on its network.
    pub neighbour_incomplete: bool,
    /// SSH from the router's namespace reaches another machine.
    pub another_inside: bool,
    /// The router answers ARP for the fixed address outside.
    pub fixed_known_outside: bool,
    /// The instance's packets leave the router as they are.
    pub fixed_leaks: bool,
    /// Nothing is seen on the external network.
    pub blind_outside: bool,
    pub reboot_does_nothing: bool,
    pub new_host_key_after_reboot: bool,
    pub never_back: bool,
    /// What answers after the reboot is another instance.
    pub another_after_reboot: bool,
    pub panics_after_reboot: bool,
    pub floating_sticks: bool,
    pub miscounted: bool,
    /// The network cannot be deleted.
    pub network_stays: bool,
    /// The first user to be deleted is not.
    pub user_stays_once: bool,
    /// A port that nobody asked for appears in the member's project.
    pub stray_port: bool,
}

#[derive(Default)]
pub struct State {
    pub region: String,
    pub faults: Faults,
    pub logins: u32,
    /// So many next requests are answered 503.
    pub unavailable: u32,
    epoch: u32,
    next_id: u32,
    /// By the plural of their API.
    things: BTreeMap<String, Vec<Value>>,
    /// Token to (user, project, is admin).
    tokens: BTreeMap<String, (String, String, bool)>,
    /// (project, user, role).
    grants: Vec<(String, String, String)>,
    passwords: BTreeMap<String, String>,
    polls: u32,
    booted: Option<Instant>,
    boots: u32,
    control_pings: u32,
    taps: Vec<Wanted>,
    external_taps: Vec<Wanted>,
}

impl State {
    pub fn of(&self, kind: &str) -> &[Value] {
        self.things.get(kind).map_or(&[], Vec::as_slice)
    }
    /// One more, which the scheduler likes best.
    pub fn add_hypervisor(&mut self, host: &str) {
        let id = self.fresh_id();
        self.all("os-services").insert(
            0,
            json!({
                "id": id, "binary": "nova-compute", "host": host, "state": "up",
                "status": "enabled", "disabled_reason": null,
            }),
        );
    }
    pub fn expire_tokens(&mut self) {
        self.epoch += 1;
        self.tokens.clear();
    }
    fn all(&mut self, kind: &str) -> &mut Vec<Value> {
        self.things.entry(kind.into()).or_default()
    }
    fn fresh_id(&mut self) -> String {
        self.next_id += 1;
        format!("id-{}", self.next_id)
    }
}

#[derive(Clone)]
pub struct Mock(Arc<Mutex<State>>);

impl Mock {
    pub fn new() -> Mock {
        Mock::with_faults(Faults::default())
    }

    pub fn with_faults(faults: Faults) -> Mock {
        let mut state = State { region: "RegionOne".into(), faults, ..State::default() };
        state.populate();
        Mock(Arc::new(Mutex::new(state)))
    }

    pub fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.0.lock().unwrap())
    }

    pub fn auth_url(&self) -> &'static str {
        "http://openstack1:5000/v3"
    }

    pub fn http(&self) -> Http {
        let names = BTreeMap::from([("openstack1".to_owned(), HOST)]);
        let speed = Speed::new(1.0);
        Http::new(Arc::new(self.clone()), names, speed, Death::never(), Redactor::default())
    }

    pub fn credentials() -> Credentials {
        Credentials {
            user: "admin".into(),
            password: Secret::new(ADMIN_PASSWORD),
            project: "admin".into(),
            domain: "Default".into(),
        }
    }

    pub async fn admin(&self) -> Session {
        let url = Url::parse(self.auth_url()).unwrap();
        Session::login(self.http(), &url, "RegionOne", Mock::credentials()).await.unwrap()
    }

    pub fn world(&self) -> World {
        let mock = Arc::new(self.clone());
        World {
            api: mock.clone(),
            outside: mock.clone(),
            login: mock.clone(),
            wire: mock.clone(),
            nodes: mock.clone(),
            external: Arc::new(guest::External(mock)),
        }
    }

    pub fn inputs(&self, image: &std::path::Path, events: Events, death: Death) -> ProofInputs {
        ProofInputs {
            auth_url: Url::parse(self.auth_url()).unwrap(),
            admin: Mock::credentials(),
            region: "RegionOne".into(),
            names: BTreeMap::from([("openstack1".to_owned(), HOST)]),
            services: ["identity", "image", "compute", "network", "placement"]
                .map(str::to_owned)
                .into(),
            agents: vec![
                Daemon::new("neutron-l3-agent", "openstack1"),
                Daemon::new("neutron-openvswitch-agent", "openstack2"),
            ],
            compute_services: vec![Daemon::new("nova-compute", "openstack2")],
            hypervisors: [("openstack2".to_owned(), COMPUTE)].into(),
            network_node: "openstack1".into(),
            network_tunnel: HOST,
            image: Image {
                path: image.into(),
                name: "probe-guest".into(),
                user: "cirros".into(),
                virtual_size: 64 << 20,
                console: ConsoleStyle::cirros(),
                keeps_host_key: true,
            },
            subnets: Subnets::default(),
            keep_public: false,
            patience: Patience::new(Speed::new(1.0), events),
            death,
            redactor: Redactor::default(),
        }
    }
}
