//! Which units each kind of node owns, of all that the packages bring.
//!
//! Debian's units carry `Wants=keystone rabbitmq-server mysql…`: starting an agent on a compute node
//! would start a whole controller there. So what a node does not own is masked. The image boots
//! with all of them disabled; the roles enable what they declare.

use super::topology::Role;

struct Shipped {
    unit: &'static str,
    /// Nobody's where empty.
    owners: &'static [Role],
}

const CONTROLLER: &[Role] = &[Role::Controller];
const NETWORK: &[Role] = &[Role::Network];
const COMPUTE: &[Role] = &[Role::Compute];
const SWITCH: &[Role] = &[Role::Network, Role::Compute];
const NOBODY: &[Role] = &[];

const fn unit(unit: &'static str, owners: &'static [Role]) -> Shipped {
    Shipped { unit, owners }
}

const SHIPPED: &[Shipped] = &[
    unit("mariadb.service", CONTROLLER),
    // Aliases of mariadb.service, by which the other units ask for it.
    unit("mysql.service", CONTROLLER),
    unit("mysqld.service", CONTROLLER),
    unit("mariadb.socket", NOBODY),
    unit("mariadb-extra.socket", NOBODY),
    unit("rabbitmq-server.service", CONTROLLER),
    unit("epmd.service", CONTROLLER),
    unit("epmd.socket", CONTROLLER),
    unit("memcached.service", CONTROLLER),
    unit("etcd.service", CONTROLLER),
    unit("keystone.service", CONTROLLER),
    unit("glance-api.service", CONTROLLER),
    unit("placement-api.service", CONTROLLER),
    unit("nova-api.service", CONTROLLER),
    unit("nova-api-metadata.service", CONTROLLER),
    unit("nova-conductor.service", CONTROLLER),
    unit("nova-scheduler.service", CONTROLLER),
    unit("neutron-api.service", CONTROLLER),
    unit("neutron-rpc-server.service", CONTROLLER),
    // A SysV script without a unit of its own, started by rc2.d whatever a preset says. Nothing
    // here needs it: its tasks are rescheduling and cleaning up after dead agents.
    unit("neutron-periodic-workers.service", NOBODY),
    unit("neutron-l3-agent.service", NETWORK),
    unit("neutron-dhcp-agent.service", NETWORK),
    unit("neutron-metadata-agent.service", NETWORK),
    unit("openvswitch-switch.service", SWITCH),
    unit("ovsdb-server.service", SWITCH),
    unit("ovs-vswitchd.service", SWITCH),
    unit("neutron-openvswitch-agent.service", SWITCH),
    unit("nova-compute.service", COMPUTE),
    unit("libvirtd.service", COMPUTE),
    unit("libvirtd.socket", COMPUTE),
    unit("libvirtd-ro.socket", COMPUTE),
    unit("libvirtd-admin.socket", COMPUTE),
    unit("virtlogd.service", COMPUTE),
    unit("virtlogd.socket", COMPUTE),
    unit("virtlogd-admin.socket", COMPUTE),
    unit("libvirtd-tcp.socket", NOBODY),
    unit("libvirtd-tls.socket", NOBODY),
    // Suspends guests at shutdown; nova restarts them itself.
    unit("libvirt-guests.service", NOBODY),
    // The agents start these programs themselves, inside namespaces.
    unit("haproxy.service", NOBODY),
    unit("keepalived.service", NOBODY),
    unit("radvd.service", NOBODY),
    unit("open-iscsi.service", NOBODY),
    unit("iscsid.service", NOBODY),
    unit("iscsid.socket", NOBODY),
    unit("uuidd.service", NOBODY),
    unit("uuidd.socket", NOBODY),
];

/// The units to mask on a node with these roles.
pub fn not_owned_by(roles: &[Role]) -> Vec<&'static str> {
    SHIPPED.iter().filter(|s| !s.owners.iter().any(|r| roles.contains(r))).map(|s| s.unit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compute_node_masks_the_controller_and_keeps_its_own() {
        let masked = not_owned_by(&[Role::Compute]);
        for unit in
            ["keystone.service", "mysql.service", "rabbitmq-server.service", "haproxy.service"]
        {
            assert!(masked.contains(&unit), "{unit}");
        }
        for unit in ["nova-compute.service", "libvirtd.socket", "neutron-openvswitch-agent.service"]
        {
            assert!(!masked.contains(&unit), "{unit}");
        }
    }

    #[test]
    fn a_node_with_every_role_masks_only_what_nobody_owns() {
        let masked = not_owned_by(&Role::ALL);
        assert!(masked.contains(&"keepalived.service"));
        assert!(!masked.contains(&"nova-api.service"));
    }

    #[test]
    fn no_unit_is_listed_twice() {
        let mut names: Vec<_> = SHIPPED.iter().map(|s| s.unit).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), SHIPPED.len());
    }
}
