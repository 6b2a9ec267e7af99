//! Labs and their states, for people and for scripts.

use crate::cli::session::Work;
use crate::cli::table::Table;
use crate::cli::view::{human_bytes, human_time};
use crate::cli::{print, write};
use crate::cluster::runs;
use crate::error::Result;
use crate::supervisor::place::Found;
use crate::supervisor::protocol::Phase;
use crate::supervisor::status::{Heartbeats, Status};
use crate::supervisor::{Client, Place};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::time::Duration;

pub async fn ls(work: &Work, as_json: bool) -> Result<()> {
    let mut table = Table::new(["NAME", "STATE", "OWNER", "FROM"]);
    let mut all = Vec::new();
    for place in Place::all(&runs(&work.env.store)) {
        let (state, pid, from) = match place.look()? {
            Found::Nothing => continue,
            Found::Owned { pid, state } => {
                let phase = state.as_ref().map_or(Phase::Starting, |s| s.phase);
                (word(phase).to_owned(), pid, state.map(|s| s.from))
            }
            Found::Ended(state) => {
                (format!("ended: {}", state.ended.unwrap_or_default()), None, Some(state.from))
            }
        };
        all.push(json!({"name": place.name(), "state": state, "pid": pid, "from": from}));
        let pid = pid.map_or("-".into(), |pid| pid.to_string());
        table.row([place.name(), &state, &pid, from.as_deref().unwrap_or("-")]);
    }
    let text = if as_json { write::pretty(&Value::Array(all))? } else { table.to_string() };
    print(&text, &work.redactor)?;
    Ok(())
}

pub async fn status(work: &Work, client: &Client, as_json: bool) -> Result<()> {
    let status = client.status().await?;
    print(
        &if as_json { json_text(&status)? } else { text(&status, client.place()) },
        &work.redactor,
    )?;
    Ok(())
}

pub fn json_text(status: &Status) -> Result<String> {
    write::pretty(&serde_json::to_value(status).unwrap_or_default())
}

fn word(phase: Phase) -> &'static str {
    match phase {
        Phase::Starting => "starting",
        Phase::Up => "up",
        Phase::Ended => "ended",
    }
}

pub fn text(status: &Status, place: &Place) -> String {
    let mut out = format!("lab {}: {}", status.name, word(status.phase));
    if status.phase != Phase::Ended {
        let up = human_time(Duration::from_secs_f64(status.uptime_seconds.max(0.0)));
        let _ = write!(out, " for {up}, owned by process {}", status.pid);
    }
    if let Some(note) = &status.note {
        let _ = write!(out, " ({note})");
    }
    let _ = writeln!(out, "\nfrom: {}", status.from);
    if !status.nodes.is_empty() {
        let mut table = Table::new(["NODE", "STATE", "MEMORY", "CPUS", "ADDRESSES", "ROLES"]);
        for node in &status.nodes {
            let addresses: Vec<String> = node
                .addresses
                .iter()
                .map(|(network, address)| {
                    let cut = if node.cut.contains(network) { " (cut)" } else { "" };
                    match address {
                        Some(address) => format!("{network} {address}{cut}"),
                        None => format!("{network} -{cut}"),
                    }
                })
                .collect();
            table.row([
                &node.name,
                &node.state,
                &human_bytes(node.memory),
                &node.cpus.to_string(),
                &addresses.join(", "),
                &node.roles.join(", "),
            ]);
        }
        let _ = write!(out, "{table}");
    }
    if !status.networks.is_empty() {
        let mut table = Table::new(["NETWORK", "SUBNET", "OUTSIDE"]);
        for network in &status.networks {
            let leg = network.outside.map_or("-".into(), |a| a.to_string());
            table.row([&network.name, &network.subnet, &leg]);
        }
        let _ = write!(out, "{table}");
    }
    for forward in &status.forwards {
        let _ = writeln!(
            out,
            "forward: {} to {} ({} connections{})",
            forward.listen,
            forward.to,
            forward.connections,
            if forward.keep { ", in the background" } else { "" }
        );
    }
    if status.phase == Phase::Up {
        let _ = writeln!(out, "ssh: ssh -F {} NODE", place.ssh_config().display());
        if status.cloud {
            let _ = writeln!(out, "cloud: `stackproof lab rc --name {}`", status.name);
            if let Some(heartbeats) = &status.heartbeats {
                let _ = writeln!(out, "heartbeats: {}", heard(heartbeats));
            }
        }
    }
    if let Some(logs) = &status.logs {
        let _ = writeln!(out, "logs: {}", logs.display());
    }
    out
}

fn heard(heartbeats: &Heartbeats) -> String {
    let meanwhile = "each comes within half a minute of the restore; until then no server may find a \
                     host";
    match heartbeats {
        Heartbeats::Awaited(names) if names.is_empty() => format!("awaited; {meanwhile}"),
        Heartbeats::Awaited(names) => format!("awaited of {}; {meanwhile}", names.join(", ")),
        Heartbeats::Heard(all) => format!("of all {all} agents and services"),
        Heartbeats::Missed(why) => format!("missed: {why}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::status::{ForwardStatus, NetworkStatus, NodeStatus};

    #[test]
    fn the_status_tells_states_addresses_cuts_forwards_and_the_way_in() {
        let node = NodeStatus {
            name: "openstack1".into(),
            state: "frozen".into(),
            addresses: [
                ("management".to_owned(), Some([192, 168, 103, 11].into())),
                ("external".to_owned(), None),
            ]
            .into(),
            cut: vec!["external".into()],
            memory: 6 << 30,
            cpus: 2,
            image: "debian-13-node".into(),
            roles: vec!["controller".into()],
            pid: 7,
            reboots: 0,
            console: "/c".into(),
        };
        let status = Status {
            name: "warm".into(),
            phase: Phase::Up,
            note: None,
            pid: 4711,
            started: 0,
            uptime_seconds: 65.0,
            from: "two-node.toml".into(),
            logs: Some("/logs".into()),
            user: Some("stack".into()),
            nodes: vec![node],
            networks: vec![NetworkStatus {
                name: "management".into(),
                subnet: "192.168.103.0/24".into(),
                outside: Some([192, 168, 103, 1].into()),
                mtu: None,
            }],
            forwards: vec![ForwardStatus {
                listen: "127.0.0.1:8080".parse().unwrap(),
                to: "openstack1:80".into(),
                keep: true,
                connections: 3,
            }],
            cloud: true,
            heartbeats: Some(Heartbeats::Awaited(vec!["nova-compute on openstack2".into()])),
        };
        let runs = std::path::Path::new("/r");
        let text = text(&status, &Place::new(runs, "warm").unwrap());
        for wanted in [
            "lab warm: up for 1 min 05 s, owned by process 4711\n",
            "openstack1  frozen  6.0 GiB  2     external - (cut), management 192.168.103.11",
            "management  192.168.103.0/24  192.168.103.1\n",
            "forward: 127.0.0.1:8080 to openstack1:80 (3 connections, in the background)\n",
            "ssh: ssh -F /r/labs/warm/ssh_config NODE\n",
            "stackproof lab rc --name warm",
            "heartbeats: awaited of nova-compute on openstack2; each comes within half a minute",
        ] {
            assert!(text.contains(wanted), "no `{wanted}` in:\n{text}");
        }
    }
}
