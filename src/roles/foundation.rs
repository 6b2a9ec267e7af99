//! The services under the services (S2.2 to S2.6): MariaDB, RabbitMQ, memcached, etcd.

use super::context::{Context, Follows, on, resources};
use super::topology::Host;
use crate::engine::plan::Step;
use crate::engine::resources::{Account, Database, EnvFile, File, RabbitUser, Ready, Unit};

pub const PACKAGES: &[&str] = &[
    "mariadb-server",
    "python3-pymysql",
    "python3-mysqldb",
    // Only recommended by SQLAlchemy, which is slower by a fifth without.
    "python3-sqlalchemy-ext",
    "rabbitmq-server",
    "memcached",
    "python3-memcache",
    "python3-pymemcache",
    "etcd-server",
];

pub const MEMCACHED_CONF: &str = "/etc/memcached.conf";
/// Where etcd's clients connect.
pub const ETCD_CLIENT: u16 = 2379;

pub fn steps(cx: Context) -> Vec<Step> {
    let host = cx.controller();
    vec![database(cx, host), rabbitmq(cx, host), memcached(cx, host), etcd(cx, host)]
}

fn drop_in(unit: &str) -> String {
    format!("/etc/systemd/system/{unit}.service.d/stackproof.conf")
}

/// Services that bind the management address must not start before the node has it.
fn after_network(unit: &str) -> File {
    File::new(drop_in(unit), "[Unit]\nWants=network-online.target\nAfter=network-online.target\n")
        .mode(0o644)
        .owner("root", "root")
}

/// The databases of each service that has an account.
const DATABASES: &[(&str, &[&str])] = &[
    ("keystone", &["keystone"]),
    ("glance", &["glance"]),
    ("placement", &["placement"]),
    ("nova", &["nova_api", "nova", "nova_cell0"]),
    ("neutron", &["neutron"]),
];

/// S2.6. Debian's 50-server.cnf binds 127.0.0.1; a later file wins.
fn database(cx: Context, host: &Host) -> Step {
    const CONF: &str = "/etc/mysql/mariadb.conf.d/99-openstack.cnf";
    let conf = format!(
        "[mysqld]\nbind-address = {}\ndefault-storage-engine = innodb\ninnodb_file_per_table = on\n\
         max_connections = 4096\ncollation-server = utf8_general_ci\ncharacter-set-server = utf8\n\
         # No DNS here: a lookup per connection would only wait for its time-out.\n\
         skip-name-resolve\n\
         # Since MariaDB 11.6 a row that changed since it was read is an error (1020) that no service\n\
         # of OpenStack expects: a server's deletion ended there. `loose`: older ones lack it.\n\
         loose_innodb_snapshot_isolation = OFF\n",
        host.address
    );
    let mut resources = resources![
        File::new(CONF, conf).mode(0o644).owner("root", "root"),
        after_network("mariadb"),
        Unit::new("mariadb").reads([CONF, &drop_in("mariadb")]).ready(Ready::Port(3306)),
    ];
    for (service, databases) in DATABASES {
        for name in *databases {
            resources.push(Box::new(Database::new(*name)));
        }
        for from in ["localhost", "%"] {
            let mut account = Account::new(*service, from, cx.secrets.database(service).clone());
            for name in *databases {
                account = account.grant(*name);
            }
            resources.push(Box::new(account));
        }
    }
    cx.step("database", host, resources).follows([on("base", host)])
}

/// S2.4.
fn rabbitmq(cx: Context, host: &Host) -> Step {
    const CONF: &str = "/etc/rabbitmq/rabbitmq.conf";
    const ENV: &str = "/etc/rabbitmq/rabbitmq-env.conf";
    // The node's name holds the host's name and must not move with it.
    // Erlang's schedulers spin when idle, which steals the emulated CPUs from everything else.
    const ENV_TEXT: &str = "NODENAME=rabbit@localhost\n\
        SERVER_ADDITIONAL_ERL_ARGS=\"+sbwt none +sbwtdcpu none +sbwtdio none \
        -kernel inet_dist_use_interface {127,0,0,1}\"\n";
    let conf = format!("listeners.tcp.1 = {}:5672\n", host.address);
    cx.step(
        "rabbitmq",
        host,
        resources![
            File::new(CONF, conf).mode(0o644).owner("root", "root"),
            File::new(ENV, ENV_TEXT).mode(0o644).owner("root", "root"),
            after_network("rabbitmq-server"),
            Unit::new("rabbitmq-server")
                .reads([CONF, ENV, &drop_in("rabbitmq-server")])
                .ready(Ready::Port(5672)),
            RabbitUser::new("openstack", cx.secrets.rabbit().clone()),
        ],
    )
    .follows([on("base", host)])
}

/// S2.3: loopback and the controller's address.
fn memcached(cx: Context, host: &Host) -> Step {
    const CONF: &str = MEMCACHED_CONF;
    let conf = format!(
        "-d\nlogfile /var/log/memcached.log\n-m 64\n-p 11211\n-u memcache\n-l 127.0.0.1\n-l ::1\n\
         -l {}\n-P /var/run/memcached/memcached.pid\n\
         # A handful of tokens: one thread serves them, and none has to look after the rest.\n\
         -t 1\n-o no_lru_maintainer,no_lru_crawler,no_hashexpand\n",
        host.address
    );
    cx.step(
        "memcached",
        host,
        resources![
            File::new(CONF, conf).mode(0o644).owner("root", "root"),
            after_network("memcached"),
            Unit::new("memcached").reads([CONF, &drop_in("memcached")]).ready(Ready::Port(11211)),
        ],
    )
    .follows([on("base", host)])
}

/// S2.2.
fn etcd(cx: Context, host: &Host) -> Step {
    const CONF: &str = "/etc/default/etcd";
    let peer = format!("http://{}:2380", host.address);
    let client = format!("http://{}:{ETCD_CLIENT}", host.address);
    let conf = EnvFile::new(CONF)
        .set("ETCD_DATA_DIR", "/var/lib/etcd/default.etcd")
        .set("ETCD_LISTEN_PEER_URLS", &peer)
        .set("ETCD_LISTEN_CLIENT_URLS", &client)
        .set("ETCD_NAME", "controller")
        .set("ETCD_INITIAL_ADVERTISE_PEER_URLS", &peer)
        .set("ETCD_ADVERTISE_CLIENT_URLS", &client)
        .set("ETCD_INITIAL_CLUSTER", format!("controller={peer}"))
        .set("ETCD_INITIAL_CLUSTER_TOKEN", "etcd-cluster-01")
        .set("ETCD_INITIAL_CLUSTER_STATE", "new")
        // Its one member's heart beats ten times a second otherwise, which takes a twelfth of an
        // emulated processor.
        .set("ETCD_HEARTBEAT_INTERVAL", "500")
        .set("ETCD_ELECTION_TIMEOUT", "5000")
        // It looks ten times a second whether its database has something to write back; its log is
        // written at once all the same.
        .set("ETCD_BACKEND_BATCH_INTERVAL", "5s")
        // Go's threads wake each other for less than that costs here.
        .set("GOMAXPROCS", "1");
    cx.step(
        "etcd",
        host,
        resources![
            conf,
            after_network("etcd"),
            Unit::new("etcd").reads([CONF, &drop_in("etcd")]).ready(Ready::Port(ETCD_CLIENT)),
        ],
    )
    .follows([on("base", host)])
}
