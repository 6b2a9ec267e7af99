//! Networks (S3.1, S4.8): ML2 with Open vSwitch, VXLAN self-service networks and one flat provider
//! network on br-ex.

use super::context::{Context, Driver, Follows, answers, keys, on, resources};
use super::resources::{Conf, Heads, Schema};
use super::topology::{Host, Role};
use super::{nova, uwsgi};
use crate::engine::plan::Step;
use crate::engine::resources::{OvsBridge, OvsOption, Ready, Unit};
use crate::secret::Secret;

pub const PACKAGES: &[&str] = &[
    "neutron-server",
    "neutron-plugin-ml2",
    "neutron-openvswitch-agent",
    "neutron-l3-agent",
    "neutron-dhcp-agent",
    "neutron-metadata-agent",
    "openvswitch-switch",
];
pub const PORT: u16 = 9696;

/// The physical network that br-ex stands for.
pub const PROVIDER: &str = "provider";
pub const EXTERNAL_BRIDGE: &str = "br-ex";

const CONF: &str = "/etc/neutron/neutron.conf";
const ML2_CONF: &str = "/etc/neutron/plugins/ml2/ml2_conf.ini";
const OVS_CONF: &str = "/etc/neutron/plugins/ml2/openvswitch_agent.ini";
const L3_CONF: &str = "/etc/neutron/l3_agent.ini";
const DHCP_CONF: &str = "/etc/neutron/dhcp_agent.ini";
const METADATA_CONF: &str = "/etc/neutron/metadata_agent.ini";

pub fn steps(cx: Context) -> Vec<Step> {
    let mut steps = server(cx);
    for host in &cx.topology.hosts {
        if host.has(Role::Network) || host.has(Role::Compute) {
            steps.extend(switching(cx, host));
        }
        if host.has(Role::Network) {
            steps.extend(routing(cx, host));
        }
    }
    steps
}

fn conf(cx: Context, host: &Host) -> Conf {
    let conf = Conf::new(CONF, "neutron")
        .section(
            "DEFAULT",
            keys![
                "host" => host.name.clone(),
                "core_plugin" => "ml2",
                "service_plugins" => "router",
                "auth_strategy" => "keystone",
                "transport_url" => cx.transport_url(),
                "log_dir" => "/var/log/neutron",
            ],
        )
        .section(
            "agent",
            keys![
                // No root_helper_daemon: almost everything goes through privsep, and an agent asks
                // a hundred times a second whether its daemon still lives (eventlet's waitpid): a
                // tenth of an emulated processor for each agent, for three commands a network.
                "root_helper" => "sudo neutron-rootwrap /etc/neutron/rootwrap.conf",
            ],
        )
        .section("oslo_concurrency", keys!["lock_path" => "/var/lock/neutron"])
        .section("oslo_policy", keys!["policy_dirs" => "/etc/neutron/policy.d"]);
    if !host.has(Role::Controller) {
        return conf;
    }
    conf.section(
        "DEFAULT",
        keys![
            "notify_nova_on_port_status_changes" => "true",
            "notify_nova_on_port_data_changes" => "true",
            "rpc_workers" => "1",
            "rpc_state_report_workers" => "0",
            // A heartbeat may come late where everything is emulated.
            "agent_down_time" => "150",
        ],
    )
    .section(
        "database",
        keys!["connection" => cx.local_database_url(Driver::Green, "neutron", "neutron")],
    )
    .section("keystone_authtoken", cx.authtoken("neutron"))
    .section("nova", cx.credentials("nova"))
}

fn server(cx: Context) -> Vec<Step> {
    let host = cx.controller();
    let ml2 = Conf { group: "root", mode: 0o644, ..Conf::new(ML2_CONF, "neutron") }
        .section(
            "ml2",
            keys![
                "type_drivers" => "flat,vlan,vxlan",
                "tenant_network_types" => "vxlan",
                "mechanism_drivers" => "openvswitch,l2population",
                "extension_drivers" => "port_security",
            ],
        )
        .section("ml2_type_flat", keys!["flat_networks" => PROVIDER])
        .section("ml2_type_vxlan", keys!["vni_ranges" => "1:1000"])
        .section("securitygroup", keys!["enable_security_group" => "true"]);
    let start = |what, unit| {
        cx.step(what, host, resources![unit]).follows([
            on("neutron/schema", host),
            on("rabbitmq", host),
            on("keystone/service", host),
        ])
    };
    vec![
        cx.step(
            "neutron/config",
            host,
            resources![conf(cx, host), ml2, api(cx)],
        )
        .follows([on("base", host)]),
        cx.step(
            "neutron/schema",
            host,
            resources![Schema {
                database: "neutron",
                heads: Heads::Named {
                    dir: "/usr/lib/python3/dist-packages/neutron/db/migration/alembic_migrations/versions"
                },
                sync: "neutron-db-manage --config-file /etc/neutron/neutron.conf \
                       --config-file /etc/neutron/plugins/ml2/ml2_conf.ini upgrade head",
                user: "neutron",
            }],
        )
        .follows([on("neutron/config", host), on("database", host)]),
        // Agents that start before its worker serves lose their first calls, and sit out the
        // time-out of each.
        start(
            "neutron/rpc",
            Unit::new("neutron-rpc-server")
                .reads([CONF, ML2_CONF])
                .ready(Ready::Command("pgrep -u neutron -f 'rpc worker'".into()))
                .patience(120),
        ),
        start(
            "neutron/api",
            Unit::new("neutron-api")
                .reads([CONF, ML2_CONF, &uwsgi::path("neutron-api")])
                .ready(answers(&cx.url(PORT))),
        ),
    ]
}

/// The API's server. It reads the file of the RPC server, whose green threads need another driver:
/// so its own is given by the environment, which wins.
fn api(cx: Context) -> Conf {
    let url = cx.local_database_url(Driver::Native, "neutron", "neutron");
    let env = Secret::new(format!("OS_DATABASE__CONNECTION={}", url.reveal()));
    let conf = uwsgi::conf("neutron-api", "/usr/bin/neutron-api", uwsgi::Threads(1));
    Conf { group: "neutron", mode: 0o640, ..conf }.section("uwsgi", keys!["env" => env])
}

/// The switch of a node and the agent that programs it.
fn switching(cx: Context, host: &Host) -> Vec<Step> {
    let external = host.has(Role::Network).then(|| host.external_nic.clone()).flatten();
    let agent = Conf { owner: "neutron", ..Conf::new(OVS_CONF, "neutron") }
        .section("ovs", {
            let mut keys = keys![
                "integration_bridge" => "br-int",
                "tunnel_bridge" => "br-tun",
                "local_ip" => host.address.to_string(),
            ];
            if external.is_some() {
                keys.extend(keys!["bridge_mappings" => format!("{PROVIDER}:{EXTERNAL_BRIDGE}")]);
            }
            keys
        })
        .section("agent", keys!["tunnel_types" => "vxlan", "l2_population" => "true"])
        .section(
            "securitygroup",
            keys!["firewall_driver" => "openvswitch", "enable_security_group" => "true"],
        );
    let mut config = resources![agent];
    if !host.has(Role::Controller) {
        config.push(Box::new(conf(cx, host)));
    }
    let mut switch = resources![
        Unit::new("openvswitch-switch"),
        // Every flow is looked at twice a second otherwise, busy or not. What comes later for it are
        // counters, and the end of flows that nothing has used for 10 s; a change of rules is
        // followed at once either way.
        OvsOption::new("max-revalidator", "10000"),
    ];
    if let Some(nic) = external {
        // The NIC has no address of its own, but must be up to carry the bridge's frames.
        switch.push(Box::new(OvsBridge::new(EXTERNAL_BRIDGE).port(nic)));
    }
    vec![
        cx.step("neutron/config-agents", host, config).follows([on("base", host)]),
        cx.step("openvswitch", host, switch).follows([on("base", host)]),
        cx.step("neutron/openvswitch-agent", host, {
            let reads: &[&str] = if host.has(Role::Controller) {
                &[CONF, ML2_CONF, OVS_CONF]
            } else {
                &[CONF, OVS_CONF]
            };
            resources![Unit::new("neutron-openvswitch-agent").reads(reads.iter().copied())]
        })
        .follows([
            on("neutron/config-agents", host),
            on("openvswitch", host),
            on("neutron/rpc", cx.controller()),
        ]),
    ]
}

/// Routers, DHCP and metadata.
fn routing(cx: Context, host: &Host) -> Vec<Step> {
    let config = resources![
        Conf::new(L3_CONF, "neutron")
            .section("DEFAULT", keys!["interface_driver" => "openvswitch"]),
        Conf::new(DHCP_CONF, "neutron").section(
            "DEFAULT",
            keys!["interface_driver" => "openvswitch", "enable_isolated_metadata" => "true"],
        ),
        Conf { owner: "neutron", ..Conf::new(METADATA_CONF, "neutron") }.section(
            "DEFAULT",
            keys![
                "nova_metadata_host" => cx.controller().address.to_string(),
                "nova_metadata_port" => nova::METADATA_PORT.to_string(),
                "metadata_proxy_shared_secret" => cx.secrets.metadata(),
                "metadata_workers" => "0",
            ],
        ),
    ];
    vec![
        cx.step("neutron/config-routing", host, config).follows([on("base", host)]),
        cx.step(
            "neutron/routing",
            host,
            resources![
                Unit::new("neutron-l3-agent").reads([CONF, L3_CONF]),
                Unit::new("neutron-dhcp-agent").reads([CONF, DHCP_CONF]),
                Unit::new("neutron-metadata-agent").reads([CONF, METADATA_CONF]),
            ],
        )
        .follows([
            on("neutron/config-routing", host),
            on("neutron/config-agents", host),
            on("openvswitch", host),
            on("neutron/rpc", cx.controller()),
        ]),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::resource::{Resource, Verdict};
    use crate::roles::{secrets::Secrets, topology};

    #[test]
    fn the_servers_environment_with_its_password_is_read_by_neutron_alone() {
        let (topology, secrets) =
            (topology::tests::two_nodes(), Secrets::generate().expect("random numbers"));
        let conf = api(Context { topology: &topology, secrets: &secrets });
        assert_eq!((conf.owner, conf.group, conf.mode), ("root", "neutron", 0o640));
        assert!(!format!("{conf:?}").contains(secrets.database("neutron").reveal()));
        let seen = "640 root neutron\n[uwsgi]\nenv = OS_DATABASE__CONNECTION=an-old-secret\n";
        let Verdict::Differs(told) = conf.judge(seen) else { panic!("it has one key of many") };
        assert!(told.contains(&"[uwsgi] name: absent -> neutron-api".to_owned()), "{told:?}");
        assert!(told.contains(&"[uwsgi] env: differs".to_owned()), "{told:?}");
        assert!(!told.concat().contains("secret"), "{told:?}");
    }
}
