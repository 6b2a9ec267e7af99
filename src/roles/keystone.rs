//! Identity (S2.1, S4.4 to S4.6): Fernet tokens, one region, one process.

use super::context::{Context, Driver, Follows, answers, keys, on, resources};
use super::resources::{Bootstrap, Conf, Endpoint, Heads, Identity, Schema, Service, User};
use super::{glance, neutron, nova, placement, uwsgi};
use crate::engine::plan::Step;
use crate::engine::resources::{Directory, File, Unit};

pub const PACKAGES: &[&str] = &["keystone", "curl"];
pub const PORT: u16 = 5000;

const CONF: &str = "/etc/keystone/keystone.conf";

pub fn steps(cx: Context) -> Vec<Step> {
    let host = cx.controller();
    let secrets = cx.secrets;
    let conf = Conf::new(CONF, "keystone")
        .section("DEFAULT", keys!["log_dir" => "/var/log/keystone"])
        .section(
            "database",
            keys!["connection" => cx.local_database_url(Driver::Native, "keystone", "keystone")],
        )
        .section("token", keys!["provider" => "fernet"])
        .section(
            "cache",
            keys![
                "enabled" => "true",
                "backend" => "dogpile.cache.pymemcache",
                "memcache_servers" => format!("{}:11211", host.address),
                // Each thread finds its connection closed once after a restart of memcached, and
                // fails its request without a second try.
                "enable_retry_client" => "true",
            ],
        )
        // Every password is 128 random bits: more rounds would cost seconds a login under
        // emulation and protect nothing.
        .section("identity", keys!["password_hash_rounds" => "4"])
        .section("oslo_policy", keys!["policy_dirs" => "/etc/keystone/policy.d"]);

    let mut config = resources![
        conf,
        uwsgi::conf("keystone", "/usr/bin/keystone-wsgi-public", uwsgi::Threads(4)),
    ];
    for repository in ["fernet", "credential"] {
        let dir = format!("/etc/keystone/{repository}-keys");
        config.push(Box::new(Directory::new(&dir).owner("keystone", "keystone").mode(0o700)));
        // Key 1 signs; key 0 is the next in line.
        for (number, name) in [("0", format!("{repository}.next")), ("1", repository.to_owned())] {
            config.push(Box::new(
                File::secret(format!("{dir}/{number}"), secrets.fernet_key(&name).reveal())
                    .owner("keystone", "keystone")
                    .mode(0o600),
            ));
        }
    }

    let users = [
        ("glance", secrets.user("glance")),
        ("placement", secrets.user("placement")),
        ("nova", secrets.user("nova")),
        ("neutron", secrets.user("neutron")),
    ];
    let mut people: Vec<User> = users
        .into_iter()
        .map(|(name, password)| User {
            name: name.into(),
            password: password.clone(),
            grants: vec![("service".into(), "admin".into()), ("service".into(), "service".into())],
        })
        .collect();
    people.push(User {
        name: "demo".into(),
        password: secrets.demo().clone(),
        grants: vec![("demo".into(), "member".into())],
    });
    let service = |name, kind, url| Service { name, kind, endpoint: Endpoint { url } };
    let identity = Identity {
        url: cx.keystone(),
        region: cx.topology.region.clone(),
        admin: secrets.admin().clone(),
        projects: vec!["service".into(), "demo".into()],
        users: people,
        services: vec![
            service("keystone", "identity", format!("{}/v3/", cx.keystone())),
            service("glance", "image", cx.url(glance::PORT)),
            service("placement", "placement", cx.url(placement::PORT)),
            service("nova", "compute", format!("{}/v2.1", cx.url(nova::PORT))),
            service("neutron", "network", cx.url(neutron::PORT)),
        ],
    };

    vec![
        cx.step("keystone/config", host, config).follows([on("base", host)]),
        cx.step(
            "keystone/schema",
            host,
            resources![Schema {
                database: "keystone",
                heads: Heads::Named {
                    dir: "/usr/lib/python3/dist-packages/keystone/common/sql/migrations/versions"
                },
                sync: "keystone-manage db_sync",
                user: "keystone",
            }],
        )
        .follows([on("keystone/config", host), on("database", host)]),
        cx.step(
            "keystone/service",
            host,
            resources![
                Unit::new("keystone")
                    .reads([CONF, &uwsgi::path("keystone")])
                    .ready(answers(&cx.url(PORT))),
                Bootstrap {
                    url: cx.keystone(),
                    region: cx.topology.region.clone(),
                    password: secrets.admin().clone(),
                },
                identity,
            ],
        )
        .follows([on("keystone/schema", host), on("memcached", host)]),
    ]
}
