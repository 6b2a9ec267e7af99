//! The uwsgi servers in which Debian runs the APIs.
//!
//! As packaged they start 8 or 16 processes of up to 32 threads each; a whole controller then needs
//! over 7 GB. One process serves a lab.

use super::context::keys;
use super::resources::Conf;

pub struct Threads(pub u32);

pub fn path(unit: &str) -> String {
    let project = match unit {
        "placement-api" => "placement",
        "glance-api" => "glance",
        _ => unit.split('-').next().unwrap_or(unit),
    };
    format!("/etc/{project}/{unit}-uwsgi.ini")
}

/// The file of `unit`, whose project (`nova` of `nova-api`) is also its user and group.
pub fn conf(unit: &str, wsgi: &'static str, threads: Threads) -> Conf {
    let path = path(unit);
    let project = path.split('/').nth(2).unwrap_or(unit).to_owned();
    let mut keys = keys![
        "name" => unit,
        "uid" => project.clone(),
        "gid" => project.clone(),
        "chdir" => format!("/var/lib/{project}"),
        "wsgi-file" => wsgi,
        "plugins" => "python3",
        "processes" => "1",
        "threads" => threads.0.to_string(),
        "enable-threads" => "true",
        "master" => "true",
        "lazy-apps" => "true",
        "thunder-lock" => "true",
        "paste-logger" => "true",
        "no-orphans" => "true",
        "die-on-term" => "true",
        "exit-on-reload" => "true",
        "listen" => "100",
        "buffer-size" => "65535",
        "rem-header" => "Content-Length",
        "logto" => format!("/var/log/{project}/{unit}.log"),
        "env" => format!("OS_OSLO_MESSAGING_RABBIT__PROCESSNAME={unit}"),
    ];
    // As packaged, for the services that take or give bodies of unknown length.
    if matches!(unit, "glance-api" | "placement-api") {
        keys.extend(keys![
            "socket-timeout" => "60",
            "http-auto-chunked" => "true",
            "http-chunked-input" => "true",
            "http-raw-body" => "true",
            "wsgi-manage-chunked-input" => "true",
        ]);
    }
    if matches!(unit, "neutron-api") {
        keys.extend(keys![
            "paste" => "config:/etc/neutron/api-paste.ini",
            "start-time" => "%t",
        ]);
    }
    if matches!(unit, "neutron-api" | "placement-api" | "glance-api") {
        keys.extend(keys!["add-header" => "Connection: close"]);
    }
    Conf { owner: "root", group: "root", mode: 0o644, ..Conf::new(&path, "root") }
        .section("uwsgi", keys)
}
