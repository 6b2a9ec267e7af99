//! What the compute nodes have and what is taken of it.

use super::context::{Context, Driver, Follows, answers, keys, on, resources};
use super::resources::{Conf, Heads, Schema};
use super::uwsgi;
use crate::engine::plan::Step;
use crate::engine::resources::Unit;

pub const PACKAGES: &[&str] = &["placement-api"];
pub const PORT: u16 = 8778;

const CONF: &str = "/etc/placement/placement.conf";

pub fn steps(cx: Context) -> Vec<Step> {
    let host = cx.controller();
    let conf = Conf::new(CONF, "placement")
        .section(
            "placement_database",
            keys!["connection" => cx.local_database_url(Driver::Native, "placement", "placement")],
        )
        .section("api", keys!["auth_strategy" => "keystone"])
        .section("keystone_authtoken", cx.authtoken("placement"))
        .section("oslo_policy", keys!["policy_dirs" => "/etc/placement/policy.d"]);
    let server = uwsgi::conf("placement-api", "/usr/bin/placement-api", uwsgi::Threads(4));
    vec![
        cx.step("placement/config", host, resources![conf, server]).follows([on("base", host)]),
        cx.step(
            "placement/schema",
            host,
            resources![Schema {
                database: "placement",
                heads: Heads::Derived {
                    dir: "/usr/lib/python3/dist-packages/placement/db/sqlalchemy/alembic/versions"
                },
                sync: "placement-manage db sync",
                user: "placement",
            }],
        )
        .follows([on("placement/config", host), on("database", host)]),
        cx.step(
            "placement/service",
            host,
            resources![
                Unit::new("placement-api")
                    .reads([CONF, &uwsgi::path("placement-api")])
                    .ready(answers(&cx.url(PORT)))
            ],
        )
        .follows([on("placement/schema", host), on("keystone/service", host)]),
    ]
}
