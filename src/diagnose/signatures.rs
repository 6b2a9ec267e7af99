//! Lines that are known to explain failures, and what each means.

use super::{Text, Unread};

/// A known line, found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// What it means, as one sentence with the place to look.
    pub meaning: &'static str,
    /// Name of the text it was found in.
    pub text: String,
    /// From 1: the last one, because logs tell the end of a story at their end.
    pub line: usize,
    pub excerpt: String,
    weight: u8,
}

struct Signature {
    /// All of these stand in one line.
    signs: &'static [&'static str],
    meaning: &'static str,
    /// 3 names a root, 2 a step on the way, 1 only wraps another cause.
    weight: u8,
}

const fn sign(weight: u8, signs: &'static [&'static str], meaning: &'static str) -> Signature {
    Signature { signs, meaning, weight }
}

const STOOD_STILL: &str = "this node answers nobody any more: it stands still, or went away; its console \
                           and `stackproof`'s log say when";
const NO_ANSWER: &str = "what was asked on this node got no answer in time: the service asked, or all \
                         of it, stands still";

const SIGNATURES: &[Signature] = &[
    // The image.
    sign(3, &["No bootable device"], "the image is no disk image: a text page was uploaded"),
    sign(3, &["not a bootable disk"], "the image is no disk image: a text page was uploaded"),
    sign(
        3,
        &["Image content does not match disk_format"],
        "the image is no qcow2: a text page was uploaded",
    ),
    // Scheduling.
    sign(
        3,
        &["Got no allocation candidates"],
        "placement has no inventory that is large enough: nova-compute has not reported yet, or \
         the flavor is too big",
    ),
    sign(
        3,
        &["is not mapped to any cell"],
        "discover_hosts was not run after nova-compute came up",
    ),
    sign(2, &["Filter ", "returned 0 hosts"], "this scheduler filter refused every host"),
    sign(1, &["No valid host was found"], "no host could take the instance: see the scheduler"),
    sign(
        1,
        &["Exceeded maximum number of retries"],
        "every host failed to build it: read `Error from last host`",
    ),
    sign(2, &["Error from last host"], "the host could not build the instance for this reason"),
    sign(3, &["Insufficient compute resources"], "no memory, disk or vCPU is left on the host"),
    sign(3, &["Cannot allocate memory"], "no memory is left on the host"),
    sign(3, &["Out of memory: Killed process"], "the node ran out of memory and killed a process"),
    sign(3, &["No space left on device"], "a disk is full"),
    // The nodes themselves.
    // The names of nodes.
    sign(3, &["Possible rename detected"], "the node was renamed: nova-compute refuses to start"),
    // Wiring.
    sign(
        2,
        &["Failed to bind port"],
        "the L2 agent of that host is dead, or registered under another hostname",
    ),
    sign(2, &["binding_failed"], "the L2 agent of that host is dead, or lacks the bridge mapping"),
    sign(
        2,
        &["failed to bind on"],
        "the L2 agent of that host is dead, or lacks the bridge mapping",
    ),
    sign(
        2,
        &["Timeout waiting for [", "network-vif-plugged"],
        "the L2 agent does not wire the port, or neutron's [nova] credentials are wrong",
    ),
    sign(
        2,
        &[" is XXX"],
        "the agent's last heartbeat is too old: it is dead, was renamed, or clocks differ",
    ),
    sign(
        3,
        &["Bridge ", "for physical network", "does not exist"],
        "bridge_mappings names a bridge that was never made",
    ),
    // Inside the instance.
    sign(
        2,
        &["failed 20/20: up"],
        "the metadata service cannot be reached: namespace proxy, metadata agent, nova-api",
    ),
    sign(
        3,
        &["X-Instance-ID-Signature"],
        "metadata_proxy_shared_secret differs between nova and the metadata agent",
    ),
    sign(
        2,
        &["no lease, failing"],
        "DHCP does not answer: dnsmasq in qdhcp, the port's tag, or VXLAN between the nodes",
    ),
    sign(
        2,
        &["No lease, failing"],
        "DHCP does not answer: dnsmasq in qdhcp, the port's tag, or VXLAN between the nodes",
    ),
    sign(3, &["does not support x86-64-v"], "the CPU model is too old for this system"),
    sign(2, &["Kernel panic"], "a kernel panicked"),
    // Foundation.
    sign(3, &["ACCESS_REFUSED"], "RabbitMQ refuses this user's name or password"),
    sign(
        3,
        &["ECONNREFUSED", "AMQP server"],
        "RabbitMQ does not run, or transport_url names another host",
    ),
    sign(3, &["(1045,"], "MariaDB refuses this user's name or password"),
    sign(3, &["(1044,"], "this database user lacks a grant"),
    sign(3, &["(1040,"], "MariaDB has no connection left: too many workers"),
    sign(3, &["(1146,"], "a table is missing: the database was never synced"),
    sign(3, &["(2003,", "MySQL"], "MariaDB does not run, or does not listen on this address"),
    sign(
        3,
        &["EndpointNotFound"],
        "region_name differs from the catalogue's region: packaged files say regionOne",
    ),
    sign(
        2,
        &["start operation timed out"],
        "systemd gave up on a slow start: raise TimeoutStartSec",
    ),
];

/// Every signature that is found in `texts`, the one that names a root first; of each signature
/// only its last line.
pub fn causes(texts: &[Text]) -> Vec<Cause> {
    let mut found: Vec<Cause> = Vec::new();
    for signature in SIGNATURES {
        if found.iter().any(|c| c.meaning == signature.meaning) {
            continue;
        }
        // A line of ours is no log: what it stands for is a type.
        let hit = texts.iter().filter(|text| text.unread.is_none()).find_map(|text| {
            let lines: Vec<&str> = text.content.lines().collect();
            let at = lines.iter().rposition(|l| signature.signs.iter().all(|s| l.contains(s)))?;
            Some((text, at, lines[at]))
        });
        if let Some((text, at, line)) = hit {
            found.push(Cause {
                meaning: signature.meaning,
                text: text.name.clone(),
                line: at + 1,
                excerpt: shortened(line.trim()),
                weight: signature.weight,
            });
        }
    }
    found.extend(unread(texts));
    found.sort_by_key(|c| std::cmp::Reverse(c.weight));
    found
}

/// What it means that texts are missing: each reason once, with the first text that lacks for it.
fn unread(texts: &[Text]) -> impl Iterator<Item = Cause> {
    let reasons = [(Unread::Unreachable, STOOD_STILL, 3), (Unread::TimedOut, NO_ANSWER, 2)];
    reasons.into_iter().filter_map(|(reason, meaning, weight)| {
        let text = texts.iter().find(|text| text.unread == Some(reason))?;
        let excerpt = shortened(text.content.trim());
        Some(Cause { meaning, text: text.name.clone(), line: 1, excerpt, weight })
    })
}

fn shortened(line: &str) -> String {
    match line.char_indices().nth(240) {
        Some((end, _)) => format!("{} …", &line[..end]),
        None => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Error, FailureCause};
    use crate::lab::outside::ConnectFailure;

    fn found(line: &str) -> Vec<Cause> {
        causes(&[Text::new("log", format!("before\n{line}\nafter\n"))])
    }

    /// Lines as the services write them.
    #[test]
    fn every_known_line_is_recognised() {
        for (line, meaning) in [
            ("No bootable device.", "no disk image"),
            ("Image 42 is unacceptable: Image content does not match disk_format", "no qcow2"),
            ("INFO nova.scheduler.manager Got no allocation candidates from the", "inventory"),
            ("INFO nova.filters Filter ComputeFilter returned 0 hosts", "filter"),
            ("WARNING Host 'openstack2' is not mapped to any cell", "discover_hosts"),
            ("Exceeded maximum number of retries. Exhausted all hosts", "Error from last host"),
            ("ERROR Failed to bind port 1 on host openstack2 for vnic_type normal", "L2 agent"),
            ("Possible rename detected, refusing to start!", "renamed"),
            ("Timeout waiting for [('network-vif-plugged', 'x')] for instance", "[nova]"),
            ("neutron-l3-agent on openstack1 is XXX", "heartbeat"),
            ("failed 20/20: up 75.23. request failed", "metadata"),
            ("udhcpc: no lease, failing", "DHCP"),
            ("Fatal glibc error: CPU does not support x86-64-v2", "CPU model"),
            ("AMQPLAIN login refused: (403) ACCESS_REFUSED - Login was", "RabbitMQ"),
            ("OperationalError: (1045, \"Access denied for user 'nova'@'h'\")", "password"),
            ("OperationalError: (1044, \"Access denied for user\")", "grant"),
            ("keystoneauth1.exceptions.catalog.EndpointNotFound: public", "region"),
        ] {
            let causes = found(line);
            assert!(causes.iter().any(|c| c.meaning.contains(meaning)), "{line}: {causes:?}");
            assert_eq!(causes[0].line, 2);
        }
    }

    #[test]
    fn unread_text_is_explained_by_its_type() {
        let refused = ConnectFailure::Refused.into_error("10.0.0.1:22".parse().unwrap());
        let late = Error::lab("any words").caused_by(FailureCause::TimedOut);
        for (error, meaning) in [
            (crate::engine::ssh::lost("any words"), Some(STOOD_STILL)),
            (refused.while_doing("connecting to a"), Some(STOOD_STILL)),
            (late.while_doing("a"), Some(NO_ANSWER)),
            // The words of a known line, and of a timeout, in an error of ours.
            (Error::lab("waited 5 s, in vain: Kernel panic: the connection is lost"), None),
        ] {
            let texts = [Text::new("a/nova.log", "fine"), Text::unread("a/ovs.txt", &error)];
            let found = causes(&texts);
            assert_eq!(found.first().map(|c| c.meaning), meaning, "{error}");
            assert!(found.iter().all(|c| c.text == "a/ovs.txt"), "{found:?}");
        }
    }

    #[test]
    fn ordinary_lines_mean_nothing() {
        for line in [
            "INFO nova.compute.manager Took 12.3 seconds to build instance.",
            "failed 3/20: up 12.02. request failed",
            "INFO Filter ComputeFilter returned 1 host(s)",
            "",
        ] {
            assert_eq!(found(line), [], "{line}");
        }
    }

    #[test]
    fn roots_stand_before_what_wraps_them_and_the_last_line_counts() {
        let texts = [
            Text::new("a", "No valid host was found"),
            Text::new("b", "is not mapped to any cell\nx\nHost 'y' is not mapped to any cell"),
        ];
        let causes = causes(&texts);
        assert_eq!(causes.len(), 2);
        assert_eq!((causes[0].text.as_str(), causes[0].line), ("b", 3));
        assert_eq!(causes[1].text, "a");
    }
}
