//! The instance: made, wired, up, rebooted.

use super::network::binding_failed;
use super::{pass, people, reach, wrong};
use crate::cloud::compute::{Compute, NewServer, Server};
use crate::cloud::network::{Net, Port};
use crate::cloud::proof::console;
use crate::cloud::proof::context::{Context, InstancePort, fill, known, unless_refused};
use crate::cloud::proof::story::Finding;
use crate::cloud::proof::vxlan::Watch;
use crate::cloud::session::Session;
use crate::error::{Result, last_lines};
use crate::lab::mac::Mac;
use crate::wait::Poll;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::json;
use tokio::sync::SetOnce;
use tokio::time::Instant;

/// Asks for it.
pub async fn accepted(c: &Context) -> Result<Finding> {
    let (member, admin) = (c.member()?, c.admin()?);
    keep_off_network_node(c, admin).await?;
    // A script, because that is the only user-data CirrOS takes; it does nothing.
    let script = format!("#!/bin/sh\n# nonce {}\nexit 0\n", c.nonce);
    let user_data = BASE64_STANDARD.encode(script);
    let id = Compute(member)
        .create_server(&NewServer {
            name: &name(c),
            image: known(&c.image, "the image")?,
            flavor: known(&c.flavor, "the flavor")?,
            key: &people::key_name(c)?,
            network: &known(&c.network, "the network")?.id,
            security_group: known(&c.group, "the security group")?,
            user_data: &user_data,
            metadata: json!({"nonce": c.nonce}),
        })
        .await?;
    c.ledger.add_server(member, &id, &name(c));
    fill(&c.server, id.clone())?;
    pass(format!("server {id}"))
}

/// Its port is active when its host begins to boot it, which takes longer than its floating IP.
pub async fn port_active(c: &Context) -> Result<Finding> {
    let (member, admin, id, name) = (c.member()?, c.admin()?, c.server()?, name(c));
    // The image is copied to the host first.
    let nominal = 60 + c.inputs.image.virtual_size / (100 << 20);
    let (name, mut round) = (name.as_str(), 0);
    let port = c
        .until("the instance's port to be active", nominal, 5, || {
            round += 1;
            // Not every time: nova has the server to build meanwhile.
            let looks_at_server = round % 2 == 0;
            async move {
                let mut seen = "no host has it".to_owned();
                match Net(admin).ports("device_id", id).await {
                    Ok(ports) => match ports.into_iter().find(|p| p.is_bound()) {
                        Some(port) if port.failed_to_bind() => {
                            return Poll::Failed(binding_failed(&port));
                        }
                        Some(port) if port.status == "ACTIVE" && !port.fixed_ips.is_empty() => {
                            return Poll::Ready(port);
                        }
                        Some(port) => seen = format!("{} on {:?}", port.status, port.host),
                        None => {}
                    },
                    Err(e) => return unless_refused(e),
                }
                if looks_at_server
                    && let Ok(true) = Compute(member).is_listed(name, Some("ERROR")).await
                    && let Ok(Some(server)) = Compute(admin).server(id).await
                    && let Some(e) = server.failure()
                {
                    return Poll::Failed(e);
                }
                Poll::NotYet(seen)
            }
        })
        .await?;
    let address = port.fixed_ips[0].ip_address;
    let host = port.host.as_deref().unwrap_or_default();
    let mac: Mac = port.mac_address.parse().map_err(|expected| {
        wrong(format!("`{}` is not a hardware address: {expected}", port.mac_address))
    })?;
    let network = known(&c.network, "the network")?;
    let vni = network.segment.ok_or_else(|| wrong("`intnet` has no segmentation id"))?;
    // From here on, so that DHCP and metadata are counted too. Which host has it in the end is judged
    // when the server runs.
    let here = c.inputs.network_tunnel;
    let there = c.inputs.hypervisors.values().copied().filter(|tunnel| *tunnel != here);
    fill(&c.vxlan, Watch::start(c.world.wire.as_ref(), vni, here, there, mac))?;
    let seen = format!("{address} ({}) active on {host}", port.mac_address);
    fill(&c.port, InstancePort { id: port.id, address })?;
    pass(seen)
}

pub async fn active(c: &Context) -> Result<Finding> {
    // Where its frames cross no tunnel, nothing tells.
    let speaks = known(&c.vxlan, "the tap")?.speaks();
    let server = until_active(c, "BUILD", "the server to be active", 40, speaks).await?;
    let (host, hosts) = (server.host.unwrap_or_default(), hosts(c));
    if !hosts.contains(&host.as_str()) {
        let hosts = hosts.join("` or `");
        return Err(wrong(format!("it runs on `{host}` instead of `{hosts}`")));
    }
    let seen = format!("ACTIVE on {host}");
    fill(&c.host, host)?;
    pass(seen)
}

/// Where the server may run: where there is a hypervisor that is not the network node, only there,
/// since its traffic crosses a tunnel then.
fn hosts(c: &Context) -> Vec<&str> {
    let beyond = c.inputs.beyond_tunnels();
    if beyond.is_empty() {
        return c.inputs.hypervisors.keys().map(String::as_str).collect();
    }
    beyond
}

/// The scheduler is kept from a network node that is one of several hypervisors, until the cleanup.
/// The server is an ordinary member's, who may not choose a host.
async fn keep_off_network_node(c: &Context, admin: &Session) -> Result<()> {
    let here = &c.inputs.network_node;
    if c.inputs.beyond_tunnels().is_empty() || !c.inputs.hypervisors.contains_key(here) {
        return Ok(());
    }
    let services = Compute(admin).services().await?;
    let found = services.iter().find(|s| s.binary == "nova-compute" && s.host == *here);
    let service = found.ok_or_else(|| wrong(format!("no nova-compute on `{here}`")))?;
    let what = format!("nova-compute on {here} disabled");
    let reason = "stackproof: the instance belongs beyond a tunnel";
    // Noted first: an order whose answer is lost may have been taken.
    c.ledger.add_disabled(admin, what, &service.id);
    Compute(admin).disable_service(&service.id, reason).await?;
    Ok(())
}

/// Waits for ACTIVE with no task in progress, which comes after `busy` and about when the guest
/// `speaks`; ends at once at ERROR.
async fn until_active(
    c: &Context,
    busy: &str,
    what: &str,
    nominal: u64,
    speaks: &SetOnce<()>,
) -> Result<Server> {
    let (member, admin, id, name) = (c.member()?, c.admin()?, c.server()?, name(c));
    let name = name.as_str();
    c.until_after(speaks, what, nominal, 3, || async move {
        // The cheap question first: the whole server is told once it is no longer busy.
        match Compute(member).is_listed(name, Some(busy)).await {
            Ok(true) => return Poll::NotYet(busy.into()),
            Ok(false) => {}
            Err(e) => return unless_refused(e),
        }
        let server = match Compute(admin).server(id).await {
            Ok(Some(server)) => server,
            Ok(None) => return Poll::Failed(wrong("the server is gone")),
            Err(e) => return unless_refused(e),
        };
        if let Some(e) = server.failure() {
            return Poll::Failed(e);
        }
        match (&server.task, server.status.as_str()) {
            (None, "ACTIVE") => Poll::Ready(server),
            (task, status) => {
                Poll::NotYet(format!("{status}, {}", task.as_deref().unwrap_or("no task")))
            }
        }
    })
    .await
}

/// Of the server.
fn name(c: &Context) -> String {
    format!("proof-{}", c.run)
}

pub async fn ports(c: &Context) -> Result<Finding> {
    let admin = c.admin()?;
    let server = c.server()?;
    let network = known(&c.network, "the network")?;
    let host = c.host()?;
    let (port, dhcp) = c
        .until("the instance's port and the DHCP port to be active", 30, 3, || async move {
            let mut all = match Net(admin).ports("network_id", &network.id).await {
                Ok(all) => all,
                Err(e) => return unless_refused(e),
            };
            let Some(own) = all.iter().position(|p| p.device_id == server) else {
                return Poll::NotYet("the instance has no port".into());
            };
            let port = all.swap_remove(own);
            if port.failed_to_bind() {
                return Poll::Failed(binding_failed(&port));
            }
            let Some(dhcp) = all.into_iter().find(|p| p.device_owner == "network:dhcp") else {
                return Poll::NotYet("the network has no DHCP port".into());
            };
            if port.status != "ACTIVE" || dhcp.status != "ACTIVE" {
                return Poll::NotYet(format!("instance {}, DHCP {}", port.status, dhcp.status));
            }
            if port.host.as_deref() != Some(host) {
                return Poll::Failed(wrong(format!("the port is bound on {:?}", port.host)));
            }
            Poll::Ready((port, dhcp))
        })
        .await?;
    let address = |p: &Port| p.fixed_ips.first().map(|f| f.ip_address);
    let fixed = c.port()?.address;
    if address(&port) != Some(fixed) {
        return Err(wrong(format!(
            "the instance's port had {fixed}, and now {:?}",
            port.fixed_ips
        )));
    }
    let served = address(&dhcp).ok_or_else(|| wrong("the DHCP port has no address"))?;
    let seen = format!(
        "{fixed} ({}) active on {host} as {}, DHCP port {served} active",
        port.mac_address,
        port.vif.as_deref().unwrap_or("?")
    );
    fill(&c.dhcp, served)?;
    pass(seen)
}

pub async fn console(c: &Context) -> Result<Finding> {
    let (fixed, gateway) = (c.port()?.address, c.inputs.subnets.fixed_gateway);
    let style = &c.inputs.image.console;
    let nominal = if c.inputs.image.is_large() { 180 } else { 60 };
    let latest = std::sync::Mutex::new(String::new());
    let (admin, id, kept) = (c.admin()?, c.server()?, &latest);
    let mut round = 0;
    let up = c
        .until("the instance's console to say that it is up", nominal, 5, || {
            round += 1;
            // Not every time: it costs more than the console does.
            let looks_at_server = round % 3 == 0;
            async move {
                if looks_at_server
                    && let Ok(Some(server)) = Compute(admin).server(id).await
                    && let Some(e) = server.failure()
                {
                    return Poll::Failed(e);
                }
                let text = match c.console_text().await {
                    Ok(text) => text,
                    Err(e) => return Poll::NotYet(e.to_string()),
                };
                *kept.lock().expect("console lock") = text.clone();
                if let Some(e) = console::fatal(&text) {
                    return Poll::Failed(e);
                }
                let missing = console::missing(style, &text, fixed, gateway);
                if missing.is_empty() {
                    return Poll::Ready(());
                }
                Poll::NotYet(format!("it does not yet show {}", missing.join(", ")))
            }
        })
        .await;
    let text = latest.into_inner().expect("console lock");
    c.keep_console(&text);
    up.map_err(|e| match e.evidence_lines().len() {
        0 | 1 => e.evidence(last_lines(&text, 12)),
        _ => e,
    })?;
    if style.tells_network {
        pass(format!(
            "shows {fixed}, the routes by {gateway} and for metadata, and its login banner"
        ))
    } else {
        pass("shows that it is up (this image does not print its network)")
    }
}

pub async fn reboot(c: &Context) -> Result<Finding> {
    let (member, admin) = (c.member()?, c.admin()?);
    let id = c.server()?;
    let before = &known(&c.guest, "the first login")?.answers;
    let asked = Instant::now();
    Compute(member).hard_reboot(id).await?;
    let (is_back, pinned) = (SetOnce::new(), c.inputs.image.keeps_host_key);
    let nominal = if c.inputs.image.is_large() { 220 } else { 130 };
    let active = until_active(
        c,
        "HARD_REBOOT",
        "the server to be active after the reboot",
        nominal,
        &is_back,
    );
    // The guest is asked at once: the new one answers before nova could be asked often.
    let after = c.tells(&is_back, async {
        match reach::ask_after_reboot(c, before.boot_id(), pinned, nominal).await {
            Ok(after) => Ok(after),
            Err(e) => {
                let console = c.read_console().await.unwrap_or_default();
                Err(e.evidence(last_lines(&console, 12)))
            }
        }
    });
    let (server, after) = tokio::try_join!(active, after)?;

    let elapsed = asked.elapsed().as_secs_f64();
    let (Some(was), Some(is)) = (before.uptime(), after.uptime()) else {
        return Err(wrong("the guest does not tell its uptime"));
    };
    // What rebooted by itself since the first login has been up for longer. A second of slack: the
    // guest's clock ticks on its own.
    if is > elapsed + 1.0 {
        return Err(wrong(format!("its uptime is {is:.0} s, {elapsed:.0} s after the reboot")));
    }
    if after.sources_of(&c.nonce).is_empty() {
        return Err(wrong("what came back does not return the nonce: another instance answers"));
    }
    if after.mtu_of(c.port()?.address).is_none() {
        return Err(wrong("what came back has not its fixed address")
            .evidence(last_lines(after.get("address"), 12)));
    }
    let ports = Net(admin).ports("device_id", id).await?;
    let fixed = ports.first().and_then(|p| p.fixed_ips.first()).map(|f| f.ip_address);
    let attached = Net(member).floating_ip(&c.floating()?.id).await?;
    if fixed != Some(c.port()?.address) || attached.and_then(|f| f.fixed_ip_address) != fixed {
        return Err(wrong(format!("its addresses changed: it has {fixed:?} now")));
    }
    if server.host.as_deref() != Some(c.host()?) {
        return Err(wrong(format!("it moved to {:?}", server.host)));
    }
    pass(format!(
        "back after {elapsed:.0} s with its addresses, its nonce and {}; boot id {} became {}, \
         uptime {was:.0} s at the first login became {is:.0} s",
        if pinned { "its host key" } else { "a new host key, made at each boot" },
        short(before.boot_id()),
        short(after.boot_id())
    ))
}

fn short(id: &str) -> &str {
    id.get(..8).unwrap_or(id)
}
