//! Networks, router, security group.

use super::{pass, wrong};
use crate::cloud::network::{Net, Network, Port, Router};
use crate::cloud::proof::context::{Context, fill, known, unless_refused};
use crate::cloud::proof::story::Finding;
use crate::cloud::session::Service;
use crate::error::{Error, Result};
use crate::wait::Poll;
use serde_json::json;
use std::net::Ipv4Addr;
use tokio::sync::SetOnce;

pub async fn public(c: &Context) -> Result<Finding> {
    let admin = c.admin()?;
    let net = Net(admin);
    let s = &c.inputs.subnets;
    let (network, found) = match net.network_named("public").await?.into_iter().next() {
        Some(network) => (network, "found"),
        None => {
            let network = net
                .create_network(json!({
                    "name": "public",
                    "router:external": true,
                    "provider:network_type": "flat",
                    "provider:physical_network": s.physical_network,
                }))
                .await?;
            if !c.inputs.keep_public {
                let path = format!("/networks/{}", network.id);
                c.ledger.add(admin, "network public", Service::Network, path);
            }
            let subnet = net
                .create_subnet(json!({
                    "name": "public-subnet",
                    "network_id": network.id,
                    "ip_version": 4,
                    "cidr": s.public_cidr,
                    "gateway_ip": s.public_gateway,
                    "enable_dhcp": false,
                    "allocation_pools": [{"start": s.public_pool.0, "end": s.public_pool.1}],
                }))
                .await?;
            if !c.inputs.keep_public {
                let path = format!("/subnets/{}", subnet.id);
                c.ledger.add(admin, "subnet of public", Service::Network, path);
            }
            (network, "created")
        }
    };
    let subnets = net.subnets_of(&network.id).await?;
    let subnet = subnets.first().ok_or_else(|| wrong("`public` has no subnet"))?;
    let as_wanted = network.external
        && network.kind.as_deref() == Some("flat")
        && network.physical.as_deref() == Some(&s.physical_network)
        && subnet.cidr == s.public_cidr
        && subnet.gateway_ip == Some(s.public_gateway)
        && !subnet.enable_dhcp;
    if !as_wanted {
        return Err(wrong(format!(
            "`public` should be external, flat on `{}`, {} with gateway {} and without DHCP",
            s.physical_network, s.public_cidr, s.public_gateway
        ))
        .evidence([format!("{network:?}"), format!("{subnet:?}")]));
    }
    fill(&c.public, network)?;
    pass(format!(
        "{found}: external, flat on `{}`, {} by {}, no DHCP",
        s.physical_network, s.public_cidr, s.public_gateway
    ))
}

pub async fn internal(c: &Context) -> Result<Finding> {
    let member = c.member()?;
    let s = &c.inputs.subnets;
    let made = Net(member).create_network(json!({"name": "intnet"})).await?;
    c.ledger.add(member, "network intnet", Service::Network, format!("/networks/{}", made.id));
    let subnet = Net(member)
        .create_subnet(json!({
            "name": "intnet-subnet",
            "network_id": made.id,
            "ip_version": 4,
            "cidr": s.fixed_cidr,
            "gateway_ip": s.fixed_gateway,
            "enable_dhcp": true,
            "dns_nameservers": [s.dns],
        }))
        .await?;
    c.ledger.add(member, "subnet of intnet", Service::Network, format!("/subnets/{}", subnet.id));
    // Only the administrator sees how the network is made.
    let seen = Net(c.admin()?).network(&made.id).await?;
    let network: Network = seen.ok_or_else(|| wrong("`intnet` is gone"))?;
    if network.kind.as_deref() != Some("vxlan") || network.mtu != Some(s.fixed_mtu) {
        return Err(wrong(format!(
            "`intnet` should be VXLAN with MTU {}, it is {:?} with {:?}",
            s.fixed_mtu, network.kind, network.mtu
        )));
    }
    let as_wanted = subnet.cidr == s.fixed_cidr
        && subnet.gateway_ip == Some(s.fixed_gateway)
        && subnet.enable_dhcp
        && subnet.dns_nameservers == [s.dns.to_string()];
    if !as_wanted {
        return Err(wrong(format!("its subnet is not as asked for: {subnet:?}")));
    }
    let vni = network.segment.ok_or_else(|| wrong("`intnet` has no segmentation id"))?;
    fill(&c.network, network)?;
    fill(&c.subnet, subnet.id)?;
    pass(format!("VXLAN {vni}, MTU {}, {} with DHCP, DNS {}", s.fixed_mtu, s.fixed_cidr, s.dns))
}

/// The router's address on its external network.
fn external(router: &Router) -> Option<Ipv4Addr> {
    let gateway = router.external_gateway_info.as_ref()?;
    gateway.external_fixed_ips.first().map(|f| f.ip_address)
}

/// Asks for it. What comes of it is looked at when the server was asked for too: they take their
/// time beside each other.
pub async fn router_made(c: &Context) -> Result<Finding> {
    let member = c.member()?;
    let net = Net(member);
    let subnet = known(&c.subnet, "the subnet")?;
    let made = net.create_router("R2").await?;
    let id = made.id.as_str();
    c.ledger.add(member, "router", Service::Network, format!("/routers/{id}"));
    net.add_interface(id, subnet).await?;
    c.ledger.add_interface(member, id, subnet);
    fill(&c.router, made.id)?;
    pass("`R2` with an interface on the subnet accepted")
}

pub async fn gateway(c: &Context) -> Result<Finding> {
    let router = known(&c.router, "the router")?;
    let public = &known(&c.public, "the network public")?.id;
    let router = Net(c.member()?).set_gateway(router, public).await?;
    let address = external(&router).ok_or_else(|| wrong("`R2` got no external address"))?;
    fill(&c.router_address, address)?;
    pass(format!("gateway of `R2` to `public` accepted, with {address}"))
}

/// Its host cannot be where traffic for it goes.
pub(super) fn binding_failed(port: &Port) -> Error {
    let Port { id, device_owner: owner, .. } = port;
    let host = port.host.as_deref().unwrap_or("?");
    wrong(format!("port {id} ({owner}) failed to bind on host `{host}`"))
        .hint("the L2 agent of that host is dead, or registered under another hostname")
}

pub async fn router(c: &Context) -> Result<Finding> {
    let admin = c.admin()?;
    let (id, s) = (known(&c.router, "the router")?.as_str(), &c.inputs.subnets);
    let gateway = c.router_address()?;
    let answers = SetOnce::new();
    let ports = c.until_after(&answers, "the router's ports to be active", 80, 3, || async move {
        let net = Net(admin);
        let ports = match net.ports("device_id", id).await {
            Ok(ports) => ports,
            Err(e) => return unless_refused(e),
        };
        let is = |owner: &str| ports.iter().find(|p| p.device_owner == owner);
        let (Some(outer), Some(inner)) =
            (is("network:router_gateway"), is("network:router_interface"))
        else {
            return Poll::NotYet(format!("it has {} of its two ports", ports.len()));
        };
        if let Some(failed) = [outer, inner].into_iter().find(|p| p.failed_to_bind()) {
            return Poll::Failed(binding_failed(failed));
        }
        if outer.status != "ACTIVE" || inner.status != "ACTIVE" {
            return Poll::NotYet(format!("outer {}, inner {}", outer.status, inner.status));
        }
        if inner.fixed_ips.first().map(|f| f.ip_address) != Some(s.fixed_gateway) {
            return Poll::Failed(wrong(format!("its inner port is not the gateway: {inner:?}")));
        }
        let info = match net.router(id).await {
            Ok(Some(router)) => external(&router),
            Ok(None) => return Poll::Failed(wrong("the router is gone")),
            Err(e) => return unless_refused(e),
        };
        if info != Some(gateway) {
            let seen = format!("its external address is {info:?} and no longer {gateway}");
            return Poll::Failed(wrong(seen));
        }
        Poll::Ready(())
    });
    let (outside, timeout) = (c.world.outside.as_ref(), c.echo_timeout());
    let echo = c.tells(&answers, async {
        let echo = c.until("the router to answer outside", 80, 1, || async move {
            match outside.ping(gateway, timeout).await {
                Ok(Some(echo)) => Poll::Ready(echo),
                Ok(None) => Poll::NotYet(format!("{gateway} answers no ping")),
                Err(e) => Poll::NotYet(e.to_string()),
            }
        });
        let hint = "is the external NIC in br-ex, and is `provider` mapped to br-ex?";
        echo.await.map_err(|e| e.hint(hint))
    });
    let (echo, ()) = tokio::try_join!(echo, ports)?;
    pass(format!(
        "interface {} and external gateway {gateway} active; {gateway} answers ping from outside \
         in {:.0} ms",
        c.inputs.subnets.fixed_gateway,
        echo.rtt.as_secs_f64() * 1000.0
    ))
}

pub async fn group(c: &Context) -> Result<Finding> {
    let member = c.member()?;
    let about = "ICMP and SSH, once the proof has heard its silence";
    let made = Net(member).create_group("allow-icmp-ssh", about).await?;
    let path = format!("/security-groups/{}", made.id);
    c.ledger.add(member, "security group", Service::Network, path);
    let ingress = made.security_group_rules.iter().filter(|r| r.direction == "ingress").count();
    if ingress > 0 {
        return Err(wrong(format!("a new security group has {ingress} ingress rules")));
    }
    fill(&c.group, made.id)?;
    pass(format!("{} rules, none of them ingress", made.security_group_rules.len()))
}

pub async fn availability(c: &Context) -> Result<Finding> {
    let net = Net(c.admin()?);
    let mut seen = Vec::new();
    for network in [known(&c.public, "public")?, known(&c.network, "intnet")?] {
        let ports = net.ports("network_id", &network.id).await?;
        let held: usize = ports.iter().map(|p| p.fixed_ips.len()).sum();
        let counted = net.availability(&network.id).await?;
        if counted.used_ips != held as u64 {
            return Err(wrong(format!(
                "`{}`: its ports hold {held} addresses, the count says {}",
                network.name, counted.used_ips
            )));
        }
        seen.push(format!("{} {held} of {}", network.name, counted.total_ips));
    }
    pass(format!("used addresses as many as the ports hold: {}", seen.join(", ")))
}
