//! What is read on a node after a failure: commands that only look, each with the file that its
//! output goes to.

/// What a node does in the cloud.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Controller,
    Network,
    Compute,
}

/// Longer logs are cut to their end: the failure is told there.
const TAIL: &str = "tail -n 2000";

/// `(file name, shell)` of everything worth keeping from a node with these roles. Each command is
/// run as root, is bounded in time and size, changes nothing, and may fail without harm.
pub fn collect_plan(roles: &[Role]) -> Vec<(String, String)> {
    let mut plan = Plan(Vec::new());
    plan.add("journal.log", "journalctl -b --no-pager -o short-iso -n 5000");
    plan.add("failed-units.txt", "systemctl --failed --no-pager --plain");
    plan.add("units.txt", "systemctl list-units --type=service --all --no-pager --plain");
    plan.add(
        "resources.txt",
        "free -m; df -h; uptime; ps axo pid,rss,pcpu,etimes,comm --sort=-rss",
    );
    plan.add("addresses.txt", "ip addr; ip route; ip neigh");
    plan.add("clock.txt", "chronyc -n sources; chronyc -n tracking; date -u");
    plan.add("kernel.log", "dmesg | tail -n 500");
    let has = |role| roles.contains(&role);
    if has(Role::Controller) {
        plan.add("rabbitmq.txt", "rabbitmqctl list_queues name messages consumers");
        plan.add("mariadb.txt", "mysqladmin status");
        plan.add("cells.txt", "nova-manage cell_v2 list_hosts");
        plan.logs(&["keystone", "glance", "placement", "nova", "neutron", "rabbitmq", "mysql"]);
    }
    if has(Role::Network) || has(Role::Compute) {
        plan.add("ovs.txt", "ovs-vsctl show; ovs-vsctl list interface");
        for bridge in ["br-int", "br-tun", "br-ex"] {
            plan.add(
                &format!("flows-{bridge}.txt"),
                &format!("ovs-vsctl br-exists {bridge} && ovs-ofctl dump-flows {bridge}"),
            );
        }
        plan.logs(&["neutron", "openvswitch"]);
    }
    if has(Role::Network) {
        plan.add(
            "namespaces.txt",
            "for n in $(ip netns list | cut -d' ' -f1); do echo \"== $n\"; \
             ip netns exec \"$n\" ip addr; ip netns exec \"$n\" ip route; \
             ip netns exec \"$n\" ip neigh; ip netns exec \"$n\" ss -lntu; done",
        );
        plan.add(
            "nat.txt",
            "for n in $(ip netns list | grep -o '^qrouter-[^ ]*'); do echo \"== $n\"; \
             ip netns exec \"$n\" iptables-save -t nat; done",
        );
        plan.add(
            "dhcp.txt",
            "tail -n +1 /var/lib/neutron/dhcp/*/host /var/lib/neutron/dhcp/*/leases",
        );
    }
    if has(Role::Compute) {
        plan.add("instances.txt", "virsh list --all");
        plan.add(
            "instance-consoles.txt",
            &format!("for f in /var/lib/nova/instances/*/console.log; do echo \"== $f\"; {TAIL} \"$f\"; done"),
        );
        plan.add(
            "instance-qemu.txt",
            &format!(
                "for f in /var/log/libvirt/qemu/*.log; do echo \"== $f\"; {TAIL} \"$f\"; done"
            ),
        );
        plan.logs(&["nova", "libvirt"]);
    }
    plan.0
}

struct Plan(Vec<(String, String)>);

impl Plan {
    fn add(&mut self, file: &str, shell: &str) {
        if self.0.iter().all(|(f, _)| f != file) {
            // Quoted whole: the command may be a loop, and `timeout` takes a program.
            let quoted = shell.replace('\'', r"'\''");
            self.0.push((file.into(), format!("timeout -k 5 60 sh -c '{quoted}' 2>&1 </dev/null")));
        }
    }

    /// The logs of each service's directory, one file a service.
    fn logs(&mut self, services: &[&str]) {
        for service in services {
            self.add(
                &format!("{service}.log"),
                &format!(
                    "for f in /var/log/{service}/*.log; do echo \"== $f\"; {TAIL} \"$f\"; done"
                ),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(roles: &[Role]) -> Vec<String> {
        collect_plan(roles).into_iter().map(|(file, _)| file).collect()
    }

    #[test]
    fn each_role_adds_its_own_and_nothing_is_read_twice() {
        let all = files(&[Role::Controller, Role::Network, Role::Compute]);
        for file in ["journal.log", "keystone.log", "namespaces.txt", "instance-consoles.txt"] {
            assert!(all.iter().any(|f| f == file), "{file}");
        }
        let mut unique = all.clone();
        unique.sort();
        unique.dedup();
        assert_eq!(unique.len(), all.len());
        let compute = files(&[Role::Compute]);
        assert!(compute.contains(&"nova.log".to_owned()));
        assert!(!compute.contains(&"keystone.log".to_owned()));
        assert!(!compute.contains(&"namespaces.txt".to_owned()));
    }

    #[test]
    fn every_command_is_shell_that_parses_and_is_bounded() {
        for (file, shell) in collect_plan(&[Role::Controller, Role::Network, Role::Compute]) {
            assert!(!file.contains('/'), "{file}");
            assert!(shell.starts_with("timeout -k 5 60 "), "{shell}");
            let ok = std::process::Command::new("sh").args(["-n", "-c", &shell]).status().unwrap();
            assert!(ok.success(), "{shell}");
        }
    }

    #[test]
    fn a_loop_runs_as_it_was_written() {
        let mut plan = Plan(Vec::new());
        plan.add("x", "for n in a b; do echo \"it's $n\" | grep -o '[ab]$'; done");
        let out = std::process::Command::new("sh").args(["-c", &plan.0[0].1]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&out.stdout), "a\nb\n");
    }
}
