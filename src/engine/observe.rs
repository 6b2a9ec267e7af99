//! Looking at many resources of one node in one round trip.

use super::batch::{self, OnFailure, Piece};
use super::resource::{Resource, Script, SharedProbe, Verdict};
use super::transport::Shell;
use crate::error::Result;

/// One resource as it was found.
#[derive(Clone, Debug)]
pub struct Sight {
    /// What its probe printed, for `judge` and `apply`. May hold secrets: never shown.
    pub seen: String,
    pub verdict: Verdict,
}

/// Where in the batch a resource's text comes from.
enum From {
    Own(usize),
    Shared { group: usize, subject: String },
}

struct Group {
    probe: &'static SharedProbe,
    subjects: Vec<String>,
}

/// More fragments than this are looked at in two scripts side by side: a node has two processors or
/// more, and what a fragment costs it is starting programs.
const ONE_LANE: usize = 8;

/// What the fragments print, in their order.
async fn look(shell: &dyn Shell, scripts: Vec<Script>, limit: u64) -> Result<Vec<Piece>> {
    let run = |scripts: Vec<Script>| async move {
        batch::run(shell, &scripts, limit, OnFailure::GoOn).await
    };
    if scripts.len() <= ONE_LANE {
        return run(scripts).await;
    }
    // Dealt out like cards: like stands beside like, and costs the same.
    let (mut even, mut odd) = (Vec::new(), Vec::new());
    for (i, script) in scripts.into_iter().enumerate() {
        if i % 2 == 0 { even.push(script) } else { odd.push(script) }
    }
    let (even, odd) = tokio::try_join!(run(even), run(odd))?;
    let mut odd = odd.into_iter();
    Ok(even.into_iter().flat_map(|piece| std::iter::once(piece).chain(odd.next())).collect())
}

/// Observes all of `resources` in one round trip, in their order. `limit` bounds, in seconds, the
/// fragments that wait (none should).
pub async fn observe(
    shell: &dyn Shell,
    resources: &[&dyn Resource],
    limit: u64,
) -> Result<Vec<Sight>> {
    let mut own: Vec<Script> = Vec::new();
    let mut groups: Vec<Group> = Vec::new();
    let mut from = Vec::new();
    for resource in resources {
        from.push(match resource.shared() {
            None => {
                own.push(resource.probe());
                From::Own(own.len() - 1)
            }
            Some((probe, subject)) => {
                let group = groups.iter().position(|g| g.probe.name == probe.name);
                let group = group.unwrap_or_else(|| {
                    groups.push(Group { probe, subjects: Vec::new() });
                    groups.len() - 1
                });
                groups[group].subjects.push(subject.clone());
                From::Shared { group, subject }
            }
        });
    }
    let own_count = own.len();
    let mut scripts = own;
    for group in &mut groups {
        group.subjects.sort_unstable();
        group.subjects.dedup();
        let subjects: Vec<&str> = group.subjects.iter().map(String::as_str).collect();
        scripts.push((group.probe.script)(&subjects));
    }
    let pieces = look(shell, scripts, limit).await?;
    let shared: Vec<Vec<String>> = groups
        .iter()
        .zip(&pieces[own_count..])
        .map(|(group, piece)| {
            let subjects: Vec<&str> = group.subjects.iter().map(String::as_str).collect();
            (group.probe.split)(&piece.stdout, &subjects)
        })
        .collect();
    let sights = resources.iter().zip(from).map(|(resource, from)| {
        let seen = match from {
            From::Own(i) => pieces[i].text(),
            From::Shared { group, subject } => {
                let at = groups[group].subjects.binary_search(&subject).unwrap_or(usize::MAX);
                shared[group].get(at).cloned().unwrap_or_default()
            }
        };
        Sight { verdict: resource.judge(&seen), seen }
    });
    Ok(sights.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::resources::testing::roots;

    #[tokio::test]
    async fn what_is_looked_at_in_two_lanes_comes_in_order() {
        for root in roots() {
            for count in [1, ONE_LANE, ONE_LANE + 1, ONE_LANE + 2] {
                let scripts = (0..count).map(|i| Script::new(format!("echo {i}"))).collect();
                let pieces = look(&root.shell, scripts, 5).await.unwrap();
                let seen: Vec<String> = pieces.iter().map(|p| p.text().trim().into()).collect();
                let told: Vec<String> = (0..count).map(|i| i.to_string()).collect();
                assert_eq!(seen, told);
            }
        }
    }
}
