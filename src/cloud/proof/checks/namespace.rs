//! The instance and its network seen from the network node's namespaces (S3.6, S3.7, S3.9, S4.8,
//! S4.11).

use super::{pass, wrong};
use crate::cloud::proof::context::{Context, known};
use crate::cloud::proof::guest::{self, Answers};
use crate::cloud::proof::story::Finding;
use crate::error::{Result, last_lines};
use crate::wait::Poll;
use std::net::Ipv4Addr;

/// So many echoes are asked for at a time.
const PINGS: u32 = 3;

struct Namespaces {
    router: String,
    dhcp: String,
}

fn namespaces(c: &Context) -> Result<Namespaces> {
    Ok(Namespaces {
        router: format!("qrouter-{}", known(&c.router, "the router")?),
        dhcp: format!("qdhcp-{}", known(&c.network, "the network")?.id),
    })
}

/// Asks the network node. `within` is in seconds, on the reference machine.
async fn ask(c: &Context, what: &str, within: u64, script: String) -> Result<Answers> {
    let node = c.inputs.network_node.as_str();
    let ran = c.bounded(what, within, c.world.nodes.run(node, whole(&script))).await?;
    Answers::read(&ran.stdout).ok_or_else(|| {
        wrong(format!("{node} did not answer all that was asked (status {:?})", ran.status))
            .evidence(last_lines(&ran.stderr, 4))
    })
}

/// `script` with what it may use: a folder `$kept` of its own that goes with the shell, and
/// [`guest::BESIDE`].
fn whole(script: &str) -> String {
    format!(
        r#"{{ umask 077; kept=$(mktemp -d /run/stackproof.XXXXXX) && trap 'rm -rf "$kept"' EXIT || exit
{}
{script}
say end; }}"#,
        guest::BESIDE
    )
}

fn ping(namespace: &str, whom: &str, address: Ipv4Addr) -> String {
    format!("later {whom} ip netns exec {namespace} ping -n -c {PINGS} -W 5 {address}")
}

/// Whether an interface of one line of `ip -o -4 addr` has the address.
fn has_address(listed: &str, interface: &str, address: Ipv4Addr) -> bool {
    listed.lines().any(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, name, "inet", with_prefix, ..] = words[..] else { return false };
        name.starts_with(interface)
            && with_prefix.split('/').next() == Some(address.to_string().as_str())
    })
}

/// The router and the DHCP port are where they belong, with their addresses, and answer there.
pub async fn router_and_dhcp(c: &Context) -> Result<Finding> {
    let Namespaces { router, dhcp } = namespaces(c)?;
    let (gateway, outer) = (c.inputs.subnets.fixed_gateway, c.router_address()?);
    let served = *known(&c.dhcp, "the DHCP port")?;
    let script = [
        "say namespaces; ip netns list".to_owned(),
        format!("say router; ip netns exec {router} ip -o -4 addr 2>&1"),
        format!("say port; ip netns exec {dhcp} ip -o -4 addr 2>&1"),
        ping(&router, "gateway", gateway),
        ping(&dhcp, "dhcp", served),
        "wait; tell gateway; tell dhcp".to_owned(),
    ];
    let answers = ask(c, "the namespaces of the network node", 30, script.join("\n")).await?;
    let mut faults = Vec::new();
    for namespace in [&router, &dhcp] {
        let listed = answers.get("namespaces");
        if !listed.lines().any(|l| l.split_whitespace().next() == Some(namespace)) {
            faults.push(format!("no namespace {namespace}: {}", listed.replace('\n', ", ")));
        }
    }
    for (place, interface, address) in
        [("router", "qr-", gateway), ("router", "qg-", outer), ("port", "tap", served)]
    {
        if !has_address(answers.get(place), interface, address) {
            faults
                .push(format!("no interface {interface}… with {address}: {}", answers.get(place)));
        }
    }
    for (whom, address) in [("gateway", gateway), ("dhcp", served)] {
        if answers.pings_answered(whom, address) == 0 {
            faults.push(format!("{address} answers no ping there: {}", answers.get(whom)));
        }
    }
    if !faults.is_empty() {
        return Err(wrong("router and DHCP are not as they should be").evidence(faults));
    }
    pass(format!("{router} has {gateway} and {outer}, {dhcp} has {served}; both answer inside"))
}

/// Without a rule the instance answers not even there; that the router finds it on its network, and
/// that pings work there at the same time, is seen in the same answer.
pub async fn silence(c: &Context) -> Result<Finding> {
    let router = namespaces(c)?.router;
    let (fixed, served) = (c.port()?.address, *known(&c.dhcp, "the DHCP port")?);
    let script = [
        ping(&router, "instance", fixed),
        ping(&router, "dhcp", served),
        "wait; tell instance; tell dhcp".to_owned(),
        format!("say neighbour; ip netns exec {router} ip neigh show {fixed}"),
    ];
    let answers = ask(c, "silence in the router's namespace", 60, script.join("\n")).await?;
    let neighbour = answers.get("neighbour");
    if answers.pings_answered("instance", fixed) > 0 {
        return Err(wrong(format!("{fixed} answers ping though no rule lets it in"))
            .evidence(last_lines(answers.get("instance"), 4)));
    }
    if !neighbour.contains("lladdr") {
        return Err(wrong(format!(
            "the router does not find {fixed} on its network (`{neighbour}`): silence proves nothing"
        ))
        .hint("S4.10: are all agents alive, and are names and hosts the same everywhere?"));
    }
    if answers.pings_answered("dhcp", served) == 0 {
        return Err(wrong(format!(
            "{served} does not answer there either: silence proves nothing"
        ))
        .evidence(last_lines(answers.get("dhcp"), 4)));
    }
    pass(format!(
        "{PINGS} pings of {fixed} unanswered in {router}, while {served} answers and the \
                  router knows {neighbour}"
    ))
}

/// With the rules, ping and SSH reach the fixed address there.
pub async fn reach(c: &Context) -> Result<Finding> {
    let router = namespaces(c)?.router;
    let (fixed, user) = (c.port()?.address, &c.inputs.image.user);
    let private = &known(&c.key, "the key pair")?.private;
    let first = known(&c.guest, "the first login")?;
    let (host_key, boot) = (&first.host_key.0, first.answers.boot_id());
    // Old servers show RSA keys with SHA-1 only.
    let script = format!(
        "{}\n\
         cat >\"$kept/key\" <<'KEY'\n{}\nKEY\n\
         echo '{fixed} {host_key}' >\"$kept/known\"\n\
         say mode; stat -c %a \"$kept/key\"\n\
         ip netns exec {router} ssh -i \"$kept/key\" -o IdentitiesOnly=yes -o BatchMode=yes \
         -o StrictHostKeyChecking=yes -o UserKnownHostsFile=\"$kept/known\" \
         -o GlobalKnownHostsFile=/dev/null -o HostKeyAlgorithms=+ssh-rsa \
         -o PubkeyAcceptedAlgorithms=+ssh-rsa -o ConnectTimeout=120 {user}@{fixed} sh -s <<'WHO'\n\
         {}\nWHO\n\
         wait; tell instance",
        ping(&router, "instance", fixed),
        private.reveal().trim_end(),
        // What follows in the script ends the answers.
        guest::WHO.rsplit_once('\n').map_or(guest::WHO, |(questions, _end)| questions),
    );
    let script = script.as_str();
    let answers = c
        .until("ping and SSH from the router's namespace", 60, 3, || async move {
            match ask(c, "one login from the router's namespace", 60, script.to_owned()).await {
                Ok(a) if a.pings_answered("instance", fixed) > 0 && a.boot_id() == boot => {
                    Poll::Ready(a)
                }
                Ok(a) => Poll::NotYet(format!(
                    "{} of {PINGS} pings answered; SSH returned `{}`",
                    a.pings_answered("instance", fixed),
                    a.boot_id()
                )),
                Err(e) => Poll::NotYet(e.to_string()),
            }
        })
        .await?;
    if answers.get("mode") != "600" {
        return Err(wrong(format!("the key file had mode {}", answers.get("mode"))));
    }
    pass(format!(
        "in {router}: {} of {PINGS} pings of {fixed} answered, and {user}@{fixed} by the key file \
         (0600) is the same boot",
        answers.pings_answered("instance", fixed)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By the shell of this machine.
    #[test]
    fn what_runs_beside_the_rest_is_told_when_asked_for_and_its_folder_goes() {
        let kept = tempfile::tempdir().unwrap();
        let script = "later slow sh -c 'sleep 0.1; echo one; echo two >&2'\n\
                      say mode; stat -c %a $kept\nwait; tell slow";
        let script = whole(script).replace("/run/", &format!("{}/", kept.path().display()));
        let out = std::process::Command::new("sh").arg("-c").arg(script).output().unwrap();
        let answers = Answers::read(&String::from_utf8_lossy(&out.stdout)).unwrap();
        assert_eq!((answers.get("mode"), answers.get("slow")), ("700", "one\ntwo"), "{out:?}");
        assert_eq!(std::fs::read_dir(kept.path()).unwrap().count(), 0);
    }

    #[test]
    fn an_address_belongs_to_the_interface_of_its_line() {
        let listed = "1: lo    inet 127.0.0.1/8 scope host lo\n\
                      12: qr-1e2f    inet 10.5.5.1/24 brd 10.5.5.255 scope global qr-1e2f\n";
        assert!(has_address(listed, "qr-", Ipv4Addr::new(10, 5, 5, 1)));
        assert!(!has_address(listed, "qg-", Ipv4Addr::new(10, 5, 5, 1)));
        assert!(!has_address(listed, "qr-", Ipv4Addr::new(10, 5, 5, 10)));
    }
}
