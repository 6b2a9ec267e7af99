//! What is checked on the nodes themselves, before the proof from outside: the facts of the field
//! notes, a change by hand that is mended, a reboot that is survived, and secrets in no log.

use super::provision::{Cluster, Declared};
use crate::engine::apply::Report;
use crate::engine::inventory::Node;
use crate::engine::ssh::is_lost;
use crate::error::{Error, Kind, Result};
use crate::event::{Check, Event, Events, Status};
use crate::roles::facts::{ByHand, Fact};
use crate::wait::{Patience, Poll, Speed};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

const AGAIN: Duration = Duration::from_secs(2);
/// From `reboot` to SSH on the reference machine.
const REBOOTS: Duration = Duration::from_secs(90);
/// From SSH until every service is as declared, on the reference machine.
const WHOLE: Duration = Duration::from_secs(120);
/// One short script on the reference machine.
const SHORT: Duration = Duration::from_secs(10);
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

impl Cluster {
    /// Applies the whole plan again: nothing may be left to change.
    pub async fn second_run(&self, declared: &Declared) -> Result<()> {
        let start = Instant::now();
        let report = self.apply(&declared.plan).await?;
        let check = verdict(&report, start.elapsed().as_secs_f64());
        let error = (check.status != Status::Pass).then(|| {
            Error::provision("the second run changed something")
                .evidence(check.evidence.lines())
                .hint("compare what these resources observe with what they apply")
        });
        self.run.events.send(Event::Check(check));
        error.map_or(Ok(()), Err)
    }

    /// Looks at every fact, all at once; each is a check.
    pub async fn facts(&self, declared: &Declared) -> Result<()> {
        let mut looks = JoinSet::new();
        for (i, fact) in declared.facts.iter().cloned().enumerate() {
            let (node, patience) = (self.of(&fact.node)?, self.run.patience());
            looks.spawn(async move {
                let start = Instant::now();
                let what = fact.name.clone();
                let seen = patience
                    .until(&what, fact.nominal, AGAIN, &node.death, || look(&node, &fact))
                    .await
                    .map_err(|e| e.evidence_lines().first().cloned().unwrap_or(e.to_string()));
                (i, check(what, start, seen))
            });
        }
        let mut checks = looks.join_all().await;
        checks.sort_by_key(|(i, _)| *i);
        self.tell(checks.into_iter().map(|(_, check)| check))
    }

    /// Changes a line on nodes by hand; the next run must mend exactly that.
    pub async fn mends(&self, declared: &Declared) -> Result<()> {
        let start = Instant::now();
        for change in &declared.by_hand {
            let node = self.of(&change.node)?;
            told(&self.run.speed, &node, "to have a file changed by hand", &change.shell).await?;
        }
        let report = self.apply(&declared.plan).await?;
        let seen = mended(&declared.by_hand, &report);
        let name = "lines changed by hand are mended, and nothing else".to_owned();
        self.tell([check(name, start, seen)])
    }

    /// Reboots one node after the other; each must come back as declared without our help.
    pub async fn reboots(&self, declared: &Declared) -> Result<()> {
        for node in &self.nodes {
            let start = Instant::now();
            let seen = self.reboot(declared, node).await.map_err(|e| {
                let lines = e.evidence_lines().iter().take(5).cloned();
                std::iter::once(e.to_string()).chain(lines).collect::<Vec<_>>().join("; ")
            });
            let name = format!("{} rebooted comes back whole", node.name);
            self.tell([check(name, start, seen)])?;
        }
        Ok(())
    }

    async fn reboot(&self, declared: &Declared, node: &Node) -> Result<String> {
        let (patience, speed) = (self.run.patience(), &self.run.speed);
        let before = boot_id(speed, node).await?;
        order_reboot(speed, node).await?;
        let start = Instant::now();
        let what = format!("{} to be up again", node.name);
        let death = &self.lab.death();
        patience
            .until(&what, REBOOTS, AGAIN, death, || async {
                node.shell.reset().await;
                match boot_id(speed, node).await {
                    Ok(now) if now != before => Poll::Ready(()),
                    Ok(_) => Poll::NotYet("it has not gone down yet".into()),
                    Err(e) => Poll::NotYet(e.to_string()),
                }
            })
            .await?;
        let up = start.elapsed();
        let what = format!("{} to be whole", node.name);
        patience
            .until(&what, WHOLE, AGAIN, death, || async {
                match self.engine.check(&declared.plan, death).await {
                    Ok(report) if report.changed.is_empty() && report.unchanged > 0 => {
                        Poll::Ready(())
                    }
                    Ok(report) => Poll::NotYet(not_yet(&report)),
                    Err(e) => Poll::NotYet(e.to_string()),
                }
            })
            .await?;
        let whole = start.elapsed().as_secs();
        Ok(format!("SSH after {} s, as declared after {whole} s", up.as_secs()))
    }

    fn of(&self, name: &str) -> Result<Node> {
        let found = self.nodes.iter().find(|n| n.name == name).cloned();
        found.ok_or_else(|| Error::internal(format!("no node is named {name}")))
    }

    /// Sends the checks; the first that failed is the error.
    pub(super) fn tell(&self, checks: impl IntoIterator<Item = Check>) -> Result<()> {
        let mut failed = None;
        for mut check in checks {
            check.evidence = self.run.redactor.clean(&check.evidence);
            if check.status == Status::Fail && failed.is_none() {
                failed = Some(
                    Error::new(Kind::Proof, format!("`{}` failed", check.name))
                        .evidence(check.evidence.lines()),
                );
            }
            self.run.events.send(Event::Check(check));
        }
        failed.map_or(Ok(()), Err)
    }
}

pub(super) fn check(name: String, start: Instant, seen: Result<String, String>) -> Check {
    let (status, evidence) = match seen {
        Ok(evidence) => (Status::Pass, evidence),
        Err(evidence) => (Status::Fail, evidence),
    };
    Check { name, status, seconds: start.elapsed().as_secs_f64(), evidence }
}

async fn look(node: &Node, fact: &Fact) -> Poll<String> {
    match node.shell.script(format!("{{ {}; }}", fact.shell)).await {
        Ok(out) => match fact.judge.judge(&String::from_utf8_lossy(&out.stdout)) {
            Ok(seen) => Poll::Ready(seen),
            Err(e) if out.stderr.is_empty() => Poll::NotYet(e),
            Err(e) => Poll::NotYet(format!("{e}; {}", out.stderr_tail(2).join("; "))),
        },
        Err(e) => Poll::NotYet(e.to_string()),
    }
}

async fn boot_id(speed: &Speed, node: &Node) -> Result<String> {
    told(speed, node, "to say which boot it is", &format!("cat {BOOT_ID}")).await
}

/// The connection may go before the answer comes.
async fn order_reboot(speed: &Speed, node: &Node) -> Result<()> {
    match told(speed, node, "to take the order to reboot", "systemctl --no-block reboot").await {
        Err(e) if !is_lost(&e) => Err(e),
        _ => Ok(()),
    }
}

/// Runs a short script on a node and returns what it printed.
async fn told(speed: &Speed, node: &Node, what: &str, script: &str) -> Result<String> {
    let (what, script) = (format!("{} {what}", node.name), format!("{{ {script}; }}"));
    let run = async { node.shell.script(script).await };
    // Too many to be shown as waits; the waits that they serve are shown.
    let quiet = Patience::new(speed.clone(), Events::silent());
    let out = quiet.within(&what, SHORT, &node.death, run).await?;
    if out.status != 0 {
        return Err(Error::provision(format!("waited for {what}, and it failed"))
            .evidence(out.stderr_tail(5)));
    }
    Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
}

/// What is not as declared, in one line.
fn not_yet(report: &Report) -> String {
    let mut lines = report
        .changed
        .iter()
        .map(|c| format!("{} on {}: {}", c.resource, c.node, c.differences.join(", ")));
    let first = lines.next().unwrap_or_else(|| "nothing was observed".into());
    match lines.count() {
        0 => first,
        more => format!("{first}, and {more} more"),
    }
}

/// Whether a run mended all of the changes, and only them.
fn mended(by_hand: &[ByHand], report: &Report) -> Result<String, String> {
    let of = |node: &str, resource: &str| format!("{resource} on {node}");
    let mut wanted: Vec<String> =
        by_hand.iter().flat_map(|c| c.mended_by.iter().map(|r| of(&c.node, r))).collect();
    let mut seen: Vec<String> = report.changed.iter().map(|c| of(&c.node, &c.resource)).collect();
    let mut restarts: Vec<String> =
        by_hand.iter().filter_map(|c| Some(of(&c.node, c.restarts.as_ref()?))).collect();
    let mut restarted = report.restarts.clone();
    for list in [&mut wanted, &mut seen, &mut restarts, &mut restarted] {
        list.sort();
    }
    if wanted != seen {
        return Err(format!("changed {}; expected {}", seen.join(", "), wanted.join(", ")));
    }
    if restarts != restarted {
        let expected = restarts.join(", ");
        return Err(format!("restarted {}; expected {expected}", restarted.join(", ")));
    }
    Ok(format!("{}; {} others as declared", seen.join(", "), report.unchanged))
}

/// The check that nothing was left to change, and that something was looked at.
fn verdict(report: &Report, seconds: f64) -> Check {
    let changed = report.changed.iter();
    let mut lines: Vec<String> = changed
        .map(|c| {
            format!("{} of {} on {}: {}", c.resource, c.step, c.node, c.differences.join(", "))
        })
        .collect();
    lines.extend(report.restarts.iter().map(|unit| format!("restarted {unit}")));
    if report.unchanged == 0 {
        lines.push("no resource was observed".into());
    }
    let (status, evidence) = if lines.is_empty() {
        (Status::Pass, format!("{} resources observed as declared", report.unchanged))
    } else {
        (Status::Fail, lines.join("\n"))
    };
    Check { name: "second run changes nothing".into(), status, seconds, evidence }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::apply::Change;
    use crate::engine::inventory::Family;
    use crate::engine::ssh::lost;
    use crate::engine::transport::{Canned, Output};
    use std::sync::Arc;

    #[tokio::test]
    async fn a_connection_that_goes_with_the_system_is_no_refusal_to_reboot() {
        let order = async |ends: fn() -> Result<Output>| {
            let node = Node::new("a", Family::Debian, Arc::new(Canned::new(ends)));
            order_reboot(&Speed::new(1.0), &node).await
        };
        fn ended(status: i32) -> Output {
            Output { status, stdout: Vec::new(), stderr: b"no bus".to_vec() }
        }
        order(|| Err(lost("early eof").while_doing("a"))).await.unwrap();
        order(|| Ok(ended(0))).await.unwrap();
        let e = order(|| Ok(ended(1))).await.unwrap_err();
        assert_eq!(e.evidence_lines(), ["no bus"]);
        order(|| Err(Error::lab("the SSH server opens no further session"))).await.unwrap_err();
    }

    fn by_hand() -> Vec<ByHand> {
        vec![ByHand {
            node: "a".into(),
            shell: "true".into(),
            mended_by: vec!["file /etc/x".into(), "unit x.service".into()],
            restarts: Some("unit x.service".into()),
        }]
    }

    fn change(resource: &str) -> Change {
        Change {
            node: "a".into(),
            step: "s".into(),
            resource: resource.into(),
            differences: vec![],
        }
    }

    #[test]
    fn a_change_is_mended_only_when_exactly_its_resources_changed_and_its_unit_restarted() {
        let restarts = vec!["unit x.service on a".to_owned()];
        let changed = vec![change("unit x.service"), change("file /etc/x")];
        let good = Report { changed, restarts, unchanged: 7, ..Report::default() };
        assert!(mended(&by_hand(), &good).is_ok());
        assert!(mended(&by_hand(), &Report::default()).is_err(), "nothing was found");
        let quiet = Report { restarts: vec![], ..good.clone() };
        assert!(mended(&by_hand(), &quiet).unwrap_err().contains("restarted"));
        let mut more = good;
        more.changed.push(change("file /etc/y"));
        assert!(mended(&by_hand(), &more).unwrap_err().contains("/etc/y"));
    }

    #[test]
    fn a_second_run_that_changed_or_restarted_something_fails_and_names_it() {
        let change = Change {
            node: "openstack1".into(),
            step: "base".into(),
            resource: "file /etc/hosts".into(),
            differences: vec!["one line".into()],
        };
        let changed = Report { changed: vec![change], unchanged: 9, ..Report::default() };
        let check = verdict(&changed, 1.0);
        assert_eq!(check.status, Status::Fail);
        assert!(check.evidence.contains("/etc/hosts"), "{}", check.evidence);
        let restarts = vec!["unit nova on openstack1".into()];
        let restarted = Report { restarts, unchanged: 9, ..Report::default() };
        assert_eq!(verdict(&restarted, 1.0).status, Status::Fail);
    }

    #[test]
    fn a_second_run_passes_only_when_it_looked_at_something() {
        let looked = Report { unchanged: 3, ..Report::default() };
        assert_eq!(verdict(&looked, 1.0).status, Status::Pass);
        assert_eq!(verdict(&Report::default(), 1.0).status, Status::Fail);
    }
}
