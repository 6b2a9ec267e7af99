//! What the field notes say must be seen on the nodes once the roles are applied, beyond what the
//! resources observe themselves: that a clock is in step, that a login works, that a store stores.

use super::base::PROFILE_LOCALE;
use super::foundation::{ETCD_CLIENT, MEMCACHED_CONF};
use super::topology::{Host, Role, Topology};
use super::units;
use crate::engine::resources::rabbit_user;
use std::time::Duration;

/// One thing that must be seen on a node.
#[derive(Clone, Debug)]
pub struct Fact {
    /// `S2.5 clock on openstack1`
    pub name: String,
    pub node: String,
    /// POSIX shell, run as root; changes nothing that stays.
    pub shell: String,
    pub judge: Judge,
    /// Until it is seen, on the reference machine.
    pub nominal: Duration,
}

/// A clock may need a few polls of its server.
const SEEN: Duration = Duration::from_secs(30);
/// Until the agent of a switch has made its bridges, for each node: they all start at once, and where
/// nodes are emulated they share the host's processors. Seen: an eighth of it for two nodes, a third
/// for four.
const AGENT_STARTS: Duration = Duration::from_secs(20);

#[derive(Clone, Debug)]
pub enum Judge {
    /// Every one of these lines is printed.
    Lines(Vec<String>),
    /// A line begins with this.
    Begins(&'static str),
    /// None of these lines is printed, and something is.
    NoneOf(Vec<String>),
    /// This line and no other.
    Only(&'static str),
}

impl Judge {
    /// What was seen, in short; the error says what is missing or too much.
    pub fn judge(&self, printed: &str) -> Result<String, String> {
        let lines: Vec<&str> = printed.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
        match self {
            Judge::Lines(wanted) => match wanted.iter().find(|w| !lines.contains(&w.as_str())) {
                None => Ok(wanted.join("; ")),
                Some(w) => Err(format!("expected `{w}`, seen `{}`", lines.join("; "))),
            },
            Judge::Begins(start) => match lines.iter().find(|l| l.starts_with(start)) {
                Some(line) => Ok((*line).to_owned()),
                None => Err(format!("no line begins with `{start}`: `{}`", lines.join("; "))),
            },
            Judge::Only(line) if lines == [*line] => Ok((*line).to_owned()),
            Judge::Only(line) => {
                Err(format!("expected `{line}` alone, seen `{}`", lines.join("; ")))
            }
            Judge::NoneOf(unwanted) => {
                let found: Vec<&str> =
                    lines.iter().copied().filter(|l| unwanted.iter().any(|u| u == l)).collect();
                match (found.is_empty(), lines.len()) {
                    (true, 0) => Err("nothing was printed".into()),
                    (true, seen) => Ok(format!("none of {} among {seen}", unwanted.len())),
                    (false, _) => Err(format!("found {}", found.join(", "))),
                }
            }
        }
    }
}

/// A change by hand that the next run must find and mend, and nothing else.
#[derive(Clone, Debug)]
pub struct ByHand {
    pub node: String,
    pub shell: String,
    /// The resources that mend it.
    pub mended_by: Vec<String>,
    /// The unit that is restarted for it.
    pub restarts: Option<String>,
}

/// One line of one service's file, and one of what every node has.
pub fn changes_by_hand(topology: &Topology) -> Vec<ByHand> {
    let controller = topology.controller();
    let last = topology.hosts.last().expect("checked: there are hosts");
    vec![
        ByHand {
            node: controller.name.clone(),
            shell: format!("sed -i 's/^-m 64$/-m 48/' {MEMCACHED_CONF}"),
            mended_by: vec![format!("file {MEMCACHED_CONF}"), "unit memcached.service".into()],
            restarts: Some("unit memcached.service".into()),
        },
        ByHand {
            node: last.name.clone(),
            shell: format!("sed -i '/[[:space:]]{}$/d' /etc/hosts", controller.name),
            mended_by: vec!["hosts".into()],
            restarts: None,
        },
    ]
}

pub fn facts(topology: &Topology) -> Vec<Fact> {
    let mut all: Vec<Fact> = topology.hosts.iter().flat_map(|h| of_node(topology, h)).collect();
    all.extend(of_controller(topology.controller()));
    all
}

/// `openstack`, and `openstack .* .* .*` for what it may configure, write and read.
const RABBIT_USERS: &str = r#"U = [proplists:get_value(user, X) || X <- rabbit_auth_backend_internal:list_users()],
P = [lists:join(<<" ">>, [proplists:get_value(K, X) || K <- [user, configure, write, read]])
     || X <- rabbit_auth_backend_internal:list_vhost_permissions(<<"/">>)],
{stackproof, binary_to_list(iolist_to_binary(lists:join(<<";">>, U ++ P)))}"#;

fn fact(name: &str, host: &Host, shell: impl Into<String>, judge: Judge) -> Fact {
    let name = format!("{name} on {}", host.name);
    Fact { name, node: host.name.clone(), shell: shell.into(), judge, nominal: SEEN }
}

fn of_node(topology: &Topology, host: &Host) -> Vec<Fact> {
    let user = &topology.login.user;
    let names = topology.hosts.iter().map(|h| format!("{} {}", h.address, h.name));
    let all_names: Vec<&str> = topology.hosts.iter().map(|h| h.name.as_str()).collect();
    let others: Vec<&str> = all_names.iter().copied().filter(|n| *n != host.name).collect();
    let mut facts = vec![
        fact(
            "S1.1 names",
            host,
            format!("hostname; getent hosts {} | tr -s ' '", all_names.join(" ")),
            Judge::Lines(names.chain([host.name.clone()]).collect()),
        ),
        fact(
            "S1.6 locale",
            host,
            format!("runuser -l {user} -c 'echo $LANG $LC_ALL; locale charmap' 2>&1"),
            Judge::Lines(vec![format!("{PROFILE_LOCALE} {PROFILE_LOCALE}"), "UTF-8".into()]),
        ),
        fact(
            "S1.8 sshd",
            host,
            "sshd -T",
            Judge::Lines(
                [
                    "permitrootlogin no",
                    "authorizedkeysfile .ssh/authorized_keys",
                    "permitemptypasswords no",
                    "passwordauthentication yes",
                    "gssapiauthentication no",
                    "gssapicleanupcredentials no",
                    "usedns no",
                ]
                .map(str::to_owned)
                .into(),
            ),
        ),
        fact("S2.5 clock", host, "chronyc -n sources", Judge::Begins("^*")),
        fact(
            "only its own services",
            host,
            "systemctl list-units --state=active,activating --no-legend --plain | cut -d' ' -f1",
            Judge::NoneOf(units::not_owned_by(&host.roles).into_iter().map(Into::into).collect()),
        ),
        fact(
            "no failed unit",
            host,
            "systemctl list-units --state=failed --no-legend --plain | cut -d' ' -f1; \
             systemctl is-system-running --wait",
            Judge::Only("running"),
        ),
    ];
    if let Some(nic) = &host.external_nic {
        facts.push(fact(
            "S1.1 no address outside",
            host,
            format!("echo \"$(ip -o -4 addr show dev {nic} | wc -l) on $(cat /sys/class/net/{nic}/ifindex >/dev/null && echo {nic})\""),
            Judge::Lines(vec![format!("0 on {nic}")]),
        ));
    }
    if host.has(Role::Network) || host.has(Role::Compute) {
        facts.push(bridges(host, topology.hosts.len()));
    }
    if !host.has(Role::Controller) {
        facts.push(fact(
            "S2.6 MariaDB's client and PyMySQL",
            host,
            "command -v mariadb; python3 -c 'import pymysql; print(pymysql.__name__)'",
            Judge::Lines(vec!["/usr/bin/mariadb".into(), "pymysql".into()]),
        ));
    }
    if !others.is_empty() {
        facts.push(fact(
            "S1.9 key login to the other nodes",
            host,
            format!(
                "runuser -l {user} -c 'for n in {}; do ssh -o BatchMode=yes \
                 -o StrictHostKeyChecking=yes -o ConnectTimeout=60 $n hostname </dev/null; done' \
                 2>&1",
                others.join(" ")
            ),
            Judge::Lines(others.iter().map(|n| (*n).to_owned()).collect()),
        ));
    }
    facts
}

/// The switch's bridges with the patches between them.
fn bridges(host: &Host, nodes: usize) -> Fact {
    let mut wanted = vec!["br-int", "br-tun", "br-int patch-tun", "br-tun patch-int"];
    if host.has(Role::Network) {
        wanted.extend(["br-ex", "br-ex phy-br-ex", "br-int int-br-ex"]);
    }
    let fact = fact(
        "S4.8 bridges",
        host,
        "for b in $(ovs-vsctl list-br); do echo $b; ovs-vsctl list-ports $b | sed \"s/^/$b /\"; done",
        Judge::Lines(wanted.into_iter().map(str::to_owned).collect()),
    );
    // One node alone has all the other agents beside it too.
    Fact { nominal: AGENT_STARTS * nodes.max(2) as u32, ..fact }
}

fn of_controller(host: &Host) -> Vec<Fact> {
    let address = host.address;
    let mariadb = "mariadb -N -B -e \"SELECT 'bind_address', @@bind_address UNION ALL \
        SELECT 'default_storage_engine', @@default_storage_engine UNION ALL \
        SELECT 'innodb_file_per_table', @@innodb_file_per_table UNION ALL \
        SELECT 'max_connections', @@max_connections UNION ALL \
        SELECT 'character_set_server', @@character_set_server UNION ALL \
        SELECT 'collation_server', @@collation_server\" | tr '\\t' ' '";
    let store = format!(
        "bash -c 'exec 3<>/dev/tcp/{address}/11211; \
         printf \"set stackproof 0 60 6\\r\\nstored\\r\\nget stackproof\\r\\ndelete stackproof\\r\\nquit\\r\\n\" >&3; \
         cat <&3' | tr -d '\\r'"
    );
    vec![
        fact(
            "S2.2 etcd",
            host,
            format!(
                "curl -sS -m 60 http://{address}:{ETCD_CLIENT}/health | grep -o '\"health\":\"[a-z]*\"'"
            ),
            Judge::Lines(vec!["\"health\":\"true\"".into()]),
        ),
        fact(
            "S2.2 etcd member",
            host,
            // Its own client is in another package.
            format!(
                "curl -sS -m 60 -d '{{}}' http://{address}:{ETCD_CLIENT}/v3/cluster/member/list \
                 | grep -o '\"\\(name\\|peerURLs\\|clientURLs\\)\":[^]}},]*'"
            ),
            Judge::Lines(vec![
                "\"name\":\"controller\"".into(),
                format!("\"peerURLs\":[\"http://{address}:2380\""),
                format!("\"clientURLs\":[\"http://{address}:{ETCD_CLIENT}\""),
            ]),
        ),
        fact(
            "S2.4 RabbitMQ",
            host,
            rabbit_user::asked(RABBIT_USERS),
            Judge::Lines(vec!["openstack".into(), "openstack .* .* .*".into()]),
        ),
        fact(
            "S2.3 memcached",
            host,
            store,
            Judge::Lines(
                ["STORED", "VALUE stackproof 0 6", "stored", "DELETED"].map(Into::into).into(),
            ),
        ),
        fact(
            "S2.6 MariaDB",
            host,
            mariadb,
            Judge::Lines(vec![
                format!("bind_address {address}"),
                "default_storage_engine InnoDB".into(),
                "innodb_file_per_table 1".into(),
                "max_connections 4096".into(),
                "character_set_server utf8mb3".into(),
                "collation_server utf8mb3_general_ci".into(),
            ]),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::roles::topology::tests::two_nodes;

    #[test]
    fn a_fact_is_only_seen_where_it_is_printed() {
        let lines = Judge::Lines(vec!["a b".into(), "c".into()]);
        assert!(lines.judge(" a b \nx\nc\n").is_ok());
        assert!(lines.judge("a b\n").unwrap_err().contains("`c`"));
        let begins = Judge::Begins("^*");
        assert!(begins.judge("^? 192.0.2.1 0\n").is_err());
        assert_eq!(begins.judge("MS Name\n^* 192.0.2.1 2\n").unwrap(), "^* 192.0.2.1 2");
        let none = Judge::NoneOf(vec!["keystone.service".into()]);
        assert!(none.judge("ssh.service\n").is_ok());
        assert!(none.judge("ssh.service\nkeystone.service\n").is_err());
        assert!(none.judge("").is_err(), "silence proves nothing");
        assert!(Judge::Only("running").judge("running\n").is_ok());
        assert!(Judge::Only("running").judge("x.service\nrunning\n").is_err());
        assert!(Judge::Only("running").judge("").is_err());
    }

    #[test]
    fn every_node_is_asked_for_its_clock_and_the_controller_for_its_stores() {
        let facts = facts(&two_nodes());
        let has = |name: &str| facts.iter().any(|f| f.name == name);
        for name in
            ["S2.5 clock on openstack1", "S2.5 clock on openstack2", "S2.6 MariaDB on openstack1"]
        {
            assert!(has(name), "{name}");
        }
        assert!(!has("S2.6 MariaDB on openstack2"));
        let login = facts.iter().find(|f| f.name.ends_with("nodes on openstack1")).unwrap();
        assert!(login.shell.contains("for n in openstack2;"), "{}", login.shell);
    }

    #[test]
    fn bridges_are_waited_for_by_the_number_of_nodes_and_other_facts_are_not() {
        let bridges = |nodes| bridges(&two_nodes().hosts[0], nodes).nominal;
        assert_eq!(bridges(1), bridges(2));
        assert_eq!(bridges(4), bridges(2) * 2);
        assert!(bridges(1) > SEEN);
        let facts = facts(&two_nodes());
        let other = |f: &&Fact| !f.name.starts_with("S4.8 bridges");
        assert!(facts.iter().filter(other).all(|f| f.nominal == SEEN));
    }

    #[test]
    fn a_controller_that_runs_on_a_compute_node_is_found() {
        let topology = two_nodes();
        let compute = topology.hosts.iter().find(|h| !h.has(Role::Controller)).unwrap();
        let own = facts(&topology);
        let own =
            own.iter().find(|f| f.name == format!("only its own services on {}", compute.name));
        let judge = &own.unwrap().judge;
        assert!(judge.judge("ssh.service\nnova-compute.service\n").is_ok());
        assert!(judge.judge("ssh.service\nmariadb.service\n").is_err());
    }
}
