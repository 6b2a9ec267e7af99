//! The instance reached from outside, and not reached where it must not be.

use super::{end, pass, wrong};
use crate::cloud::compute::Compute;
use crate::cloud::network::Net;
use crate::cloud::proof::console;
use crate::cloud::proof::context::{Context, Floating, Guest, fill, known, unless_refused};
use crate::cloud::proof::guest::{self, Answers};
use crate::cloud::proof::hidden;
use crate::cloud::proof::ledger::Batch;
use crate::cloud::proof::login::{HostKey, KeyPair, Refusal};
use crate::cloud::proof::outside::{Knock, knock};
use crate::cloud::proof::silence::{self, ROUNDS};
use crate::cloud::proof::story::Finding;
use crate::cloud::session::Service;
use crate::error::{Error, FailureCause, Result, last_lines};
use crate::lab::outside::Neighbour;
use crate::wait::Poll;
use std::net::{Ipv4Addr, SocketAddrV4};
use tokio::sync::SetOnce;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

/// A guest's echo starts at 64, and the router takes one.
const TTL: u8 = 63;
const SSH: u16 = 22;
const ONLY_PING_WORKS: &str = "ping works and SSH does not: look at the guest's console and at the \
    MTU (VXLAN takes 50 bytes of it)";

pub async fn floating_ip_allocated(c: &Context) -> Result<Finding> {
    let member = c.member()?;
    let made = Net(member).create_floating_ip(&known(&c.public, "the network public")?.id).await?;
    let path = format!("/floatingips/{}", made.id);
    c.ledger.add_to(Batch::FloatingIp, member, "floating IP", Service::Network, path);
    let seen = format!("{} of `public`", made.floating_ip_address);
    fill(&c.floating, Floating { id: made.id, address: made.floating_ip_address })?;
    pass(seen)
}

pub async fn floating_ip(c: &Context) -> Result<Finding> {
    let owner = c.member()?;
    let (port, Floating { id, address }) = (c.port()?, c.floating()?);
    let (id, address) = (id.as_str(), *address);
    Net(owner).associate(id, Some(&port.id)).await?;

    // That the router owns the address is seen before any packet may pass it: so the silence that
    // follows is the security group's, and not that of an address that nobody has.
    let router = c.router_address()?;
    let (outside, timeout) = (c.world.outside.as_ref(), c.echo_timeout());
    let neighbour = c.until("the floating IP's neighbour", 40, 1, || async move {
        let (own, routers) =
            tokio::join!(outside.resolve(address, timeout), outside.resolve(router, timeout));
        match (own, routers) {
            (Ok(Neighbour::Known(a)), Ok(Neighbour::Known(b))) if a == b => Poll::Ready(a),
            (Ok(own), Ok(routers)) => {
                Poll::NotYet(format!("{address} is {own:?}, {router} is {routers:?}"))
            }
            (Err(e), _) | (_, Err(e)) => Poll::NotYet(e.to_string()),
        }
    });
    let owned = SetOnce::new();
    let neighbour = c.tells(&owned, async {
        let hint = "is the external NIC in br-ex, and is `provider` mapped to br-ex?";
        neighbour.await.map_err(|e| e.hint(hint))
    });
    // What neutron gave up is not waited for outside.
    let active = c.until_after(&owned, "the floating IP to be active", 40, 3, || async move {
        match Net(owner).floating_ip(id).await {
            Ok(Some(f)) if f.status == "ERROR" => Poll::Failed(wrong("it went to ERROR")),
            Ok(Some(f)) if f.status == "ACTIVE" && f.fixed_ip_address == Some(port.address) => {
                Poll::Ready(())
            }
            Ok(Some(f)) => Poll::NotYet(format!("{} for {:?}", f.status, f.fixed_ip_address)),
            Ok(None) => Poll::Failed(wrong("it is gone")),
            Err(e) => unless_refused(e),
        }
    });
    let (mac, ()) = tokio::try_join!(neighbour, active)?;
    pass(format!("{address} for {}; the router ({mac}) owns it", port.address))
}

pub async fn silence_without_rules(c: &Context) -> Result<Finding> {
    let (target, control) = (c.floating()?.address, c.router_address()?);
    let style = &c.inputs.image.console;
    let is_up = |text: &str| console::fatal(text).is_none() && console::is_up(style, text);
    if !is_up(&c.read_console().await?) {
        return Err(wrong("the console does not say that the guest is up: silence proves nothing"));
    }
    let heard = listen(c, target, control).await?;
    if !is_up(&c.read_console().await?) {
        return Err(wrong("the guest went down while it was silent: silence proves nothing"));
    }
    pass(silence::judge(target, control, &heard)?)
}

async fn listen(c: &Context, target: Ipv4Addr, control: Ipv4Addr) -> Result<silence::Heard> {
    let (outside, timeout) = (c.world.outside.as_ref(), c.echo_timeout());
    // Each round is bounded by its timeout; this bound only catches a defect.
    c.bounded("the window of silence", 10 * u64::from(ROUNDS), async {
        Ok(silence::listen(outside, target, control, ROUNDS, timeout).await)
    })
    .await
}

pub async fn ping(c: &Context) -> Result<Finding> {
    let address = c.floating()?.address;
    let group = known(&c.group, "the security group")?;
    Net(c.member()?).allow(group, "icmp", None).await?;
    let (outside, timeout) = (c.world.outside.as_ref(), c.echo_timeout());
    c.until("the floating IP to answer ping", 20, 1, || async move {
        match outside.ping(address, timeout).await {
            Ok(Some(_)) => Poll::Ready(()),
            Ok(None) => Poll::NotYet(format!("{address} answers no ping")),
            Err(e) => Poll::NotYet(e.to_string()),
        }
    })
    .await?;
    let mut echoes = Vec::new();
    for _ in 0..5 {
        echoes.extend(outside.ping(address, timeout).await?);
    }
    if echoes.len() < 4 {
        return Err(wrong(format!("only {} of 5 pings were answered", echoes.len())));
    }
    if let Some(odd) = echoes.iter().find(|e| e.ttl != TTL) {
        return Err(wrong(format!(
            "an answer has TTL {} instead of {TTL}: it did not come through one router",
            odd.ttl
        )));
    }
    // ICMP alone was let in.
    let slowest = echoes.iter().map(|e| e.rtt).max().unwrap_or(timeout);
    let heard_for = silence::hearing(slowest, timeout);
    let knocked = knock(outside, SocketAddrV4::new(address, SSH), heard_for).await;
    match knocked {
        Knock::Silent => {}
        Knock::Unsent(e) => {
            return Err(wrong(format!("TCP {SSH} could not be tried: {e}")));
        }
        Knock::Open | Knock::Refused => {
            return Err(wrong(format!("TCP {SSH} is {knocked:?} though only ICMP was let in")));
        }
    }
    let fastest = echoes.iter().map(|e| e.rtt).min().unwrap_or_default();
    pass(format!(
        "{} of 5 pings to {address} answered with TTL {TTL}, the fastest in {:.1} ms; TCP {SSH} \
         still silent",
        echoes.len(),
        fastest.as_secs_f64() * 1000.0
    ))
}

pub async fn ssh(c: &Context) -> Result<Finding> {
    let address = c.floating()?.address;
    let group = known(&c.group, "the security group")?;
    Net(c.member()?).allow(group, "tcp", Some(SSH)).await?;
    let (host_key, answers) = ask_everything(c).await.map_err(|e| match e.cause() {
        Some(FailureCause::TimedOut) => e.hint(ONLY_PING_WORKS),
        _ => e,
    })?;
    // The key is what lets in, not an open door.
    let other = KeyPair::generate()?;
    c.inputs.redactor.add_lines(&other.private);
    // Heard and refused: a connection that breaks off says nothing of the key.
    c.until("another key to be refused", 20, 1, || async {
        match ask(c, address, &other, Some(&host_key), "true", 20).await {
            Ok(_) => Poll::Failed(wrong("a key that the instance never got is let in too")),
            Err(Refusal::Key(_)) => Poll::Ready(()),
            Err(Refusal::NotYet(e)) => Poll::NotYet(e.to_string()),
            Err(changed) => Poll::Failed(changed.into_error()),
        }
    })
    .await?;
    let sources = answers.sources_of(&c.nonce);
    if sources.is_empty() {
        return Err(wrong(format!("the guest does not return the nonce {}", c.nonce)).evidence([
            format!("user-data: {}", answers.get("user-data")),
            format!("metadata: {}", answers.get("meta-data")),
        ]));
    }
    if !answers.has_bulk() {
        return Err(wrong(format!(
            "of {} bytes only {} arrived intact",
            guest::BULK,
            answers.get("bulk").len()
        ))
        .hint("large packets are lost: look at the MTU"));
    }
    let user = &c.inputs.image.user;
    let seen = format!(
        "{user}@{address} by key; nonce {} returned from {}; another key refused; {} KiB in one go",
        c.nonce,
        sources.join(" and "),
        guest::BULK >> 10
    );
    fill(&c.guest, Guest { host_key, answers })?;
    pass(seen)
}

/// Logs in once and asks `script`. The whole is bounded by `nominal` seconds.
async fn ask(
    c: &Context,
    address: Ipv4Addr,
    key: &KeyPair,
    pin: Option<&HostKey>,
    script: &str,
    nominal: u64,
) -> Result<(HostKey, Answers), Refusal> {
    let to = SocketAddrV4::new(address, SSH);
    // A result within a result, because a refusal is more than an error.
    let asked = c
        .bounded("one SSH login", nominal, async {
            let stream = c.world.outside.connect(to, c.echo_timeout()).await;
            let stream = stream.map_err(|failure| failure.into_error(to))?;
            let mut shell =
                match c.world.login.connect(stream, &c.inputs.image.user, key, pin).await {
                    Ok(shell) => shell,
                    Err(refusal) => return Ok(Err(refusal)),
                };
            let ran = shell.run(script).await?;
            Ok(match Answers::read(&ran.stdout) {
                Some(answers) => Ok((shell.host_key(), answers)),
                None if script == "true" && ran.status == Some(0) => {
                    Ok((shell.host_key(), Answers::default()))
                }
                None => Err(Refusal::NotYet(
                    wrong(format!("the answers broke off (status {:?})", ran.status))
                        .evidence(last_lines(&ran.stderr, 4)),
                )),
            })
        })
        .await;
    asked.unwrap_or_else(|e| Err(Refusal::NotYet(e)))
}

/// Waits for a login that answers all the questions, and gives the host key that it showed.
async fn ask_everything(c: &Context) -> Result<(HostKey, Answers)> {
    let dhcp = *known(&c.dhcp, "the DHCP port")?;
    let questions = guest::questions(c.inputs.subnets.fixed_gateway, dhcp);
    until_asked(c, "SSH to the floating IP", 60, None, &questions, Poll::Ready).await
}

/// Waits until another boot than `old` tells what came back; `pinned` to the host key of the first
/// login.
pub async fn ask_after_reboot(
    c: &Context,
    old: &str,
    pinned: bool,
    nominal: u64,
) -> Result<Answers> {
    let host_key = &known(&c.guest, "the first login")?.host_key;
    let pin = pinned.then_some(host_key);
    let questions = guest::questions_after_reboot();
    until_asked(c, "SSH after the hard reboot", nominal, pin, &questions, |(_, answers)| {
        match answers.boot_id() == old {
            true => Poll::NotYet("the old boot still answers".into()),
            false => Poll::Ready(answers),
        }
    })
    .await
}

/// Logs in until `judge` takes the answers. Another host key ends it, and so does an instance that
/// is beyond hope; anything else may pass.
async fn until_asked<T>(
    c: &Context,
    what: &str,
    nominal: u64,
    pin: Option<&HostKey>,
    script: &str,
    judge: impl Fn((HostKey, Answers)) -> Poll<T>,
) -> Result<T> {
    let address = c.floating()?.address;
    let key = known(&c.key, "the key pair")?;
    let judge = &judge;
    let answered = c.until(what, nominal, 1, || async move {
        match ask(c, address, key, pin, script, 60).await {
            Ok(found) => judge(found),
            Err(Refusal::Key(e) | Refusal::NotYet(e)) => Poll::NotYet(e.to_string()),
            Err(changed) => Poll::Failed(changed.into_error()),
        }
    });
    // Beside the guest, which may answer before nova does; seldom, since nova and neutron have better
    // to do meanwhile.
    let hopeless = async {
        let every = 3 * c.seldom();
        let mut looks = interval_at(Instant::now() + every, every);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            if let Some(e) = c.hopeless().await {
                return e;
            }
        }
    };
    tokio::select! {
        answered = answered => answered,
        e = hopeless => Err(e),
    }
}

fn guest_answers(c: &Context) -> Result<&Answers> {
    known(&c.guest, "the first login").map(|g| &g.answers)
}

pub async fn guest_view(c: &Context) -> Result<Finding> {
    let (answers, fixed, mtu) = (guest_answers(c)?, c.port()?.address, c.inputs.subnets.fixed_mtu);
    match answers.mtu_of(fixed) {
        Some(seen) if seen == mtu => pass(format!("{fixed} with MTU {mtu}")),
        seen => {
            let what = match seen {
                Some(seen) => format!("{fixed} has MTU {seen} inside, expected {mtu}"),
                None => format!("no interface inside has {fixed}"),
            };
            Err(wrong(what).evidence(last_lines(answers.get("address"), 12)))
        }
    }
}

pub async fn inside(c: &Context) -> Result<Finding> {
    let answers = guest_answers(c)?;
    let (gateway, fixed) = (c.inputs.subnets.fixed_gateway, c.port()?.address);
    let dhcp = *known(&c.dhcp, "the DHCP port")?;
    let mut faults: Vec<Error> = Vec::new();
    if !answers.has_default_route(gateway) {
        faults.push(wrong(format!("no default route by {gateway}: {}", answers.get("route"))));
    }
    let [by_gateway, by_dhcp] =
        [("gateway", gateway), ("DHCP port", dhcp)].map(|(who, address)| {
            let answered = answers.pings_answered("pings", address);
            if answered == 0 {
                let said = answers.get("pings");
                faults.push(wrong(format!("no ping of the {who} {address} answered: {said}")));
            }
            answered
        });
    if answers.get("local-ipv4") != fixed.to_string() {
        faults.push(wrong(format!(
            "metadata says local-ipv4 `{}`, expected {fixed}",
            answers.get("local-ipv4")
        )));
    }
    if !answers.get("instance-id").starts_with("i-") {
        faults.push(wrong(format!("metadata says instance-id `{}`", answers.get("instance-id"))));
    }
    if faults.is_empty() {
        return pass(format!(
            "default route by {gateway}, {by_gateway} of 3 pings of it and {by_dhcp} of 3 of the \
             DHCP port answered, metadata knows {} as {fixed}",
            answers.get("instance-id")
        ));
    }
    let faults = faults.iter().map(Error::to_string);
    Err(wrong("not everything answers inside").evidence(faults))
}

pub async fn vxlan(c: &Context) -> Result<Finding> {
    let (network, compute) = c.tunnel()?;
    if network == compute {
        return Ok(Finding::Skip("network node and compute node are one: no tunnel".into()));
    }
    let vni = known(&c.network, "the network")?.segment.unwrap_or_default();
    let (to, from) = known(&c.vxlan, "the tap")?.counts(compute);
    if to == 0 || from == 0 {
        return Err(wrong(format!(
            "expected VXLAN frames of VNI {vni} between {network} and {compute} both ways, saw \
             {to} to the instance and {from} from it"
        )));
    }
    pass(format!(
        "VNI {vni}: {to} frames {network} to {compute} and {from} back, with the instance's \
         hardware address within"
    ))
}

pub async fn fixed_silent(c: &Context) -> Result<Finding> {
    let (fixed, floating) = (c.port()?.address, c.floating()?.address);
    let (outside, wire, timeout) =
        (c.world.outside.as_ref(), c.world.external.as_ref(), c.echo_timeout());
    // The control is the same instance by its floating IP: it is alive and willing.
    let seen = c
        .bounded("the look for the fixed address", 10 * u64::from(ROUNDS), async {
            Ok(hidden::look(outside, wire, fixed, floating, ROUNDS, timeout).await)
        })
        .await?;
    pass(hidden::judge(fixed, floating, &seen)?)
}

pub async fn silence_without_floating_ip(c: &Context) -> Result<Finding> {
    let (floating, control) = (c.floating()?, c.router_address()?);
    let (outside, timeout) = (c.world.outside.as_ref(), c.echo_timeout());
    let address = floating.address;
    if outside.ping(address, timeout * 2).await?.is_none() {
        return Err(wrong(format!(
            "{address} is silent before it is taken away: its silence afterwards proves nothing"
        )));
    }
    Net(c.member()?).associate(&floating.id, None).await?;
    c.until("the floating IP to fall silent", 30, 1, || async move {
        let (echo, neighbour) =
            tokio::join!(outside.ping(address, timeout), outside.resolve(address, timeout));
        match (echo, neighbour) {
            (Ok(Some(_)), _) => Poll::NotYet(format!("{address} still answers ping")),
            (_, Ok(Neighbour::Known(_))) => {
                Poll::NotYet(format!("the router still answers ARP for {address}"))
            }
            (_, Ok(Neighbour::Incomplete)) => Poll::Ready(()),
            (_, Err(e)) => Poll::NotYet(e.to_string()),
        }
    })
    .await?;
    // It has no way back now, and the services nothing to do.
    let (heard, gone) = tokio::join!(listen(c, address, control), end::floating_ip(c));
    let seen = silence::judge(address, control, &heard?)?;
    gone?;
    let server = Compute(c.member()?).server(c.server()?).await?;
    let status = server.map_or("gone".into(), |s| s.status);
    if status != "ACTIVE" {
        return Err(wrong(format!("the server is {status}: its silence proves nothing")));
    }
    pass(format!(
        "{seen}; ARP for {address} unanswered, server still ACTIVE; the floating IP deleted and \
         seen gone meanwhile"
    ))
}
