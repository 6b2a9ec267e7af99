//! Servers: the API, the scheduler and the conductor on the controller, libvirt on the compute
//! nodes.

use super::context::{Context, Follows, Keys, answers, keys, on, resources};
use super::resources::{Cells, Conf, Heads, HostsMapped, Schema};
use super::topology::{Host, Role, Virtualization};
use super::{glance, uwsgi};
use crate::engine::plan::Step;
use crate::engine::resources::{KernelModule, Unit};

pub const PACKAGES: &[&str] = &[
    "nova-api",
    "nova-conductor",
    "nova-scheduler",
    "nova-compute",
    "libvirt-daemon-system",
    "libvirt-clients",
    "qemu-system-x86",
    "qemu-utils",
];
pub const PORT: u16 = 8774;
pub const METADATA_PORT: u16 = 8775;

const CONF: &str = "/etc/nova/nova.conf";
const COMPUTE_CONF: &str = "/etc/nova/nova-compute.conf";

pub fn steps(cx: Context) -> Vec<Step> {
    let mut steps = controller(cx);
    for host in cx.topology.with(Role::Compute) {
        steps.extend(compute(cx, host));
    }
    steps.push(mapping(cx));
    steps
}

/// The part of nova.conf that every node shares.
fn common(cx: Context, host: &Host) -> Conf {
    let mut service_user = cx.credentials("nova");
    service_user.extend(keys!["send_service_user_token" => "true"]);
    let mut neutron: Keys = cx.credentials("neutron");
    neutron.extend(keys!["default_floating_pool" => "public"]);
    Conf::new(CONF, "nova")
        .section(
            "DEFAULT",
            keys![
                "my_ip" => host.address.to_string(),
                "host" => host.name.clone(),
                "transport_url" => cx.transport_url(),
                "state_path" => "/var/lib/nova",
                "log_dir" => "/var/log/nova",
                // An RPC that waits for a busy emulated machine is late, not lost.
                "rpc_response_timeout" => "180",
                // As neutron's agents do, and as late: three services' heartbeats every 10 s are
                // a third of what an idle conductor does.
                "report_interval" => "30",
                "service_down_time" => "150",
            ],
        )
        .section("keystone_authtoken", cx.authtoken("nova"))
        .section("service_user", service_user)
        .section("placement", cx.credentials("placement"))
        .section("neutron", neutron)
        .section("glance", keys!["api_servers" => cx.url(glance::PORT)])
        .section("cinder", keys!["os_region_name" => cx.topology.region.clone()])
        // Consoles are read from the serial log: a VGA console costs much under emulation.
        .section("vnc", keys!["enabled" => "false"])
        .section("spice", keys!["enabled" => "false"])
        .section("oslo_concurrency", keys!["lock_path" => "/var/lock/nova"])
        .section("oslo_policy", keys!["policy_dirs" => "/etc/nova/policy.d"])
}

fn controller(cx: Context) -> Vec<Step> {
    let host = cx.controller();
    let mut conf = common(cx, host)
        .section("api_database", keys!["connection" => cx.database_url("nova", "nova_api")])
        .section("database", keys!["connection" => cx.database_url("nova", "nova")])
        .section(
            "neutron",
            keys![
                "service_metadata_proxy" => "true",
                "metadata_proxy_shared_secret" => cx.secrets.metadata(),
            ],
        )
        .section("conductor", keys!["workers" => "1"])
        .section("scheduler", keys!["workers" => "1"]);
    if host.has(Role::Compute) {
        conf = on_compute(conf);
    }
    let schema = |database, dir, sync| Schema {
        database,
        heads: Heads::Derived { dir },
        sync,
        user: "nova",
    };
    let cells = Cells {
        cell0_database: cx.database_url("nova", "nova_cell0"),
        cell1_database: cx.database_url("nova", "nova"),
        transport_url: cx.transport_url(),
    };
    let api_dir: &str = "/usr/lib/python3/dist-packages/nova/db/api/migrations/versions";
    let main_dir: &str = "/usr/lib/python3/dist-packages/nova/db/main/migrations/versions";
    // Each service is a step of its own: they take long to start, and wait for one another only
    // where it is said.
    let start =
        |what, unit| cx.step(what, host, resources![unit]).follows([on("nova/schema", host)]);
    vec![
        cx.step(
            "nova/config-controller",
            host,
            resources![
                conf,
                uwsgi::conf("nova-api", "/usr/bin/nova-api-wsgi", uwsgi::Threads(1)),
                uwsgi::conf("nova-api-metadata", "/usr/bin/nova-metadata-wsgi", uwsgi::Threads(1)),
            ],
        )
        .follows([on("base", host)]),
        cx.step(
            "nova/schema",
            host,
            resources![
                schema("nova_api", api_dir, "nova-manage api_db sync"),
                cells,
                schema("nova_cell0", main_dir, "nova-manage db sync"),
                schema("nova", main_dir, "nova-manage db sync"),
            ],
        )
        .follows([on("nova/config-controller", host), on("database", host)]),
        start("nova/conductor", Unit::new("nova-conductor").reads([CONF]))
            .follows([on("rabbitmq", host)]),
        start("nova/scheduler", Unit::new("nova-scheduler").reads([CONF]))
            .follows([on("rabbitmq", host), on("placement/service", host)]),
        start(
            "nova/api",
            Unit::new("nova-api")
                .reads([CONF, &uwsgi::path("nova-api")])
                .ready(answers(&cx.url(PORT))),
        )
        .follows([on("rabbitmq", host), on("keystone/service", host)]),
        start(
            "nova/metadata",
            Unit::new("nova-api-metadata")
                .reads([CONF, &uwsgi::path("nova-api-metadata")])
                .ready(answers(&cx.url(METADATA_PORT))),
        )
        .follows([on("rabbitmq", host), on("keystone/service", host)]),
    ]
}

/// What only the compute service reads of nova.conf.
fn on_compute(conf: Conf) -> Conf {
    conf.section(
        "DEFAULT",
        keys![
            // Wiring a port takes long when everything is emulated.
            "vif_plugging_timeout" => "600",
            // What happens to a port is told by neutron, and what happens to a server claims its
            // resources: looking at all of it again each minute only keeps a small cloud busy.
            "heal_instance_info_cache_interval" => "600",
            "update_resources_interval" => "300",
            // A rebooted node brings back what ran on it.
            "resume_guests_state_on_host_boot" => "true",
        ],
    )
}

fn instances(virtualization: &Virtualization) -> Keys {
    match virtualization {
        // The nodes of a lab have the same processor, so that nothing is lost by showing it whole;
        // libvirt knows no model that is like QEMU's emulated one.
        Virtualization::Kvm { .. } => {
            keys!["virt_type" => "kvm", "cpu_mode" => "host-passthrough"]
        }
        Virtualization::Qemu => keys![
            "virt_type" => "qemu",
            "cpu_mode" => "custom",
            "cpu_models" => "Nehalem",
        ],
    }
}

/// The node's processors that instances may run on; None where all. An emulated node uses SVM on one
/// only: with two, QEMU's emulation of it now and then loses the interrupts of one for good, or the whole
/// node (decision 12).
fn processors(virtualization: &Virtualization) -> Option<&'static str> {
    matches!(virtualization, Virtualization::Kvm { emulated: true, .. }).then_some("0")
}

fn compute(cx: Context, host: &Host) -> Vec<Step> {
    // Read after nova.conf, so the packaged `virt_type = kvm` would win there.
    let conf = Conf { group: "root", mode: 0o644, ..Conf::new(COMPUTE_CONF, "nova") }
        .section("DEFAULT", keys!["compute_driver" => "libvirt.LibvirtDriver"])
        .section("libvirt", instances(&cx.topology.virtualization));
    let mut config = resources![match processors(&cx.topology.virtualization) {
        Some(these) => conf.section("compute", keys!["cpu_shared_set" => these]),
        None => conf,
    }];
    if !host.has(Role::Controller) {
        config.insert(0, Box::new(on_compute(common(cx, host))));
    }
    let mut libvirt = resources![
        Unit::new("virtlogd.socket"),
        Unit::new("libvirtd.socket"),
        Unit::new("libvirtd"),
    ];
    if let Virtualization::Kvm { module, .. } = &cx.topology.virtualization {
        // Before libvirt asks QEMU what it can.
        libvirt.insert(0, Box::new(KernelModule::new(module)));
    }
    let controller = cx.controller();
    vec![
        cx.step("nova/config-compute", host, config).follows([on("base", host)]),
        cx.step("libvirt", host, libvirt).follows([on("base", host)]),
        cx.step(
            "nova/compute",
            host,
            resources![Unit::new("nova-compute").reads([CONF, COMPUTE_CONF])],
        )
        .follows([
            on("nova/config-compute", host),
            on("libvirt", host),
            // It asks both before it registers.
            on("nova/conductor", controller),
            on("placement/service", controller),
        ]),
    ]
}

fn mapping(cx: Context) -> Step {
    let hosts: Vec<&Host> = cx.topology.with(Role::Compute).collect();
    cx.step(
        "nova/mapping",
        cx.controller(),
        resources![HostsMapped { hosts: hosts.iter().map(|h| h.name.clone()).collect() }],
    )
    .follows(hosts.iter().map(|h| on("nova/compute", h)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::roles;

    #[test]
    fn instances_share_one_processor_of_an_emulated_node_and_have_all_of_any_other() {
        for emulated in [true, false] {
            let mut two = roles::topology::tests::two_nodes();
            two.virtualization = Virtualization::Kvm { module: "kvm_amd".into(), emulated };
            let plan = roles::plan(&two, &roles::Secrets::symbolic()).unwrap();
            let inputs = roles::tests::inputs(&plan, "openstack2");
            assert!(inputs.contains("host-passthrough"));
            assert_eq!(inputs.contains("cpu_shared_set"), emulated);
        }
    }
}
