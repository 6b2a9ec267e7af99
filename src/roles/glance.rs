//! Images (S4.7): one store, the controller's own disk.

use super::context::{Context, Follows, answers, keys, on, resources};
use super::resources::{Conf, Heads, Schema};
use crate::engine::plan::Step;
use crate::engine::resources::Unit;

pub const PACKAGES: &[&str] = &["glance"];
pub const PORT: u16 = 9292;

const CONF: &str = "/etc/glance/glance-api.conf";

pub fn steps(cx: Context) -> Vec<Step> {
    let host = cx.controller();
    let conf = Conf::new(CONF, "glance")
        // On Debian glance serves itself, not under uwsgi; no workers means no child processes.
        .section(
            "DEFAULT",
            keys!["bind_host" => host.address.to_string(), "workers" => "0", "log_dir" => "/var/log/glance"],
        )
        .section("database", keys!["connection" => cx.database_url("glance", "glance")])
        .section("keystone_authtoken", cx.authtoken("glance"))
        .section("paste_deploy", keys!["flavor" => "keystone"])
        .section(
            "glance_store",
            keys![
                "stores" => "file,http",
                "default_store" => "file",
                "filesystem_store_datadir" => "/var/lib/glance/images/",
            ],
        )
        .section("oslo_concurrency", keys!["lock_path" => "/var/lock/glance"])
        .section("oslo_policy", keys!["policy_dirs" => "/etc/glance/policy.d"]);
    vec![
        cx.step("glance/config", host, resources![conf]).follows([on("base", host)]),
        cx.step(
            "glance/schema",
            host,
            resources![Schema {
                database: "glance",
                heads: Heads::Derived {
                    dir: "/usr/lib/python3/dist-packages/glance/db/sqlalchemy/alembic_migrations/versions"
                },
                sync: "glance-manage db_sync",
                user: "glance",
            }],
        )
        .follows([on("glance/config", host), on("database", host)]),
        cx.step(
            "glance/service",
            host,
            resources![Unit::new("glance-api").reads([CONF]).ready(answers(&cx.url(PORT)))],
        )
        .follows([on("glance/schema", host), on("keystone/service", host)]),
    ]
}
