//! Which layers are kept when space is short. Pure: asked before anything is made or removed.
//!
//! A layer of the last stage is worth most, for it makes a run that changed nothing short; then
//! the deepest, for it leaves the least to be done again. One that a younger of its lab and stage
//! took the place of is worth least. Between layers of one worth the one that was used longest ago
//! goes first. One in use never goes.

use super::inputs::Key;
use super::rungs::Rung;
use super::store::{About, Layer};
use super::usage::Usage;
use crate::lab::spec::GIB;

/// How much of the disk is for layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// All of them together, in bytes. None: half of what they take now and what is free.
    pub max: Option<u64>,
    /// Left free in any case, in bytes: the runs' own disks grow by some GiB a node.
    pub keep_free: u64,
}

impl Default for Space {
    fn default() -> Space {
        Space { max: None, keep_free: 12 * GIB }
    }
}

impl Space {
    /// What layers may take together, in bytes, where they take `taken` now and `free` are free.
    pub fn limit(self, taken: u64, free: u64) -> u64 {
        let all = taken.saturating_add(free);
        self.max.unwrap_or(all / 2).min(all.saturating_sub(self.keep_free))
    }
}

/// Of their memory, in percent, what machines put into a checkpoint at most after they gave back
/// what they do not need: what is promised of the cloud of two nodes (6 GB of 10 GiB).
const OF_MEMORY: u64 = 60;

/// What a layer of `stage` of `lab` will take: as much as the last one did. Where there was none it
/// is a part of the machines' `memory`, in bytes.
pub fn estimate(layers: &[Layer], lab: &str, stage: &str, memory: u64) -> u64 {
    let same = layers.iter().filter(|l| l.about.lab == lab && l.about.stage == stage);
    let last = same.max_by_key(|l| l.about.created);
    last.map_or(memory / 100 * OF_MEMORY, |l| l.usage.bytes())
}

/// The run that layers are kept for.
#[derive(Clone, Copy, Debug)]
pub struct Run<'r> {
    pub lab: &'r str,
    pub rungs: &'r [Rung],
}

/// Whether the inputs of a layer's stage are others by now, as far as can be told without asking
/// every lab: the present `run` has another key for it, or, of a stage that is none of its own, a
/// younger one was made.
fn is_outlived(layer: &Layer, layers: &[Layer], run: Option<Run>) -> bool {
    let About { lab, stage, created, .. } = &layer.about;
    let rungs = run.filter(|run| run.lab == lab).map_or(&[][..], |run| run.rungs);
    if let Some(rung) = rungs.iter().find(|rung| rung.stage.name == stage) {
        return rung.key != layer.key;
    }
    layers
        .iter()
        .map(|other| &other.about)
        .any(|other| (&other.lab, &other.stage) == (lab, stage) && other.created > *created)
}

/// A layer that a run could make, and what it is expected to take.
#[derive(Clone, Debug)]
pub struct Wanted<'r> {
    pub rung: &'r Rung,
    pub bytes: u64,
}

/// Of the layers that a run could make those that there will be room for: the last stage's first,
/// then the deepest. To be asked before the run, so that it stops only where something is kept.
pub fn choose<'r>(
    layers: &[Layer],
    run: Run,
    wanted: Vec<Wanted<'r>>,
    limit: u64,
) -> Vec<&'r Rung> {
    let own: Vec<&Key> = wanted.iter().map(|w| &w.rung.key).collect();
    // What is there already takes its room, and needs no making.
    let is_worth = |l: &Layer| l.about.last && !is_outlived(l, layers, Some(run));
    let stays = |l: &&Layer| l.in_use || is_worth(l) || own.contains(&&l.key);
    let mut room = limit.saturating_sub(together(layers.iter().filter(stays)));
    // The last stage may take the place of another lab's last stage, though of none in use.
    let room_of_last = limit.saturating_sub(together(layers.iter().filter(|l| l.in_use)));
    let mut chosen = Vec::new();
    for (i, Wanted { rung, bytes }) in wanted.into_iter().rev().enumerate() {
        let there = layers.iter().any(|l| l.key == rung.key);
        if !there && (bytes <= room || i == 0 && bytes <= room_of_last) {
            room = room.saturating_sub(bytes);
            chosen.push(rung);
        }
    }
    chosen.reverse();
    chosen
}

/// Which layers must go before one that takes `bytes` is made, least worth first; `None` where even
/// that would not do. `own` are those that the present `run` makes, and stay; `last` says whether it
/// is of the last stage: only then a last stage's may go for it, but for one that is outlived.
pub fn evict(
    layers: &[Layer],
    run: Option<Run>,
    own: &[Key],
    last: bool,
    bytes: u64,
    limit: u64,
) -> Option<Vec<Key>> {
    let outlived = |l: &Layer| is_outlived(l, layers, run);
    let may_go = |l: &&Layer| {
        let is_worth_less = last || !l.about.last || outlived(l);
        !l.in_use && !own.contains(&l.key) && is_worth_less
    };
    let mut candidates: Vec<&Layer> = layers.iter().filter(may_go).collect();
    candidates.sort_by_key(|l| (!outlived(l), l.about.last, l.used, l.about.rank));
    let mut left: Vec<&Layer> = layers.iter().collect();
    let mut gone = Vec::new();
    let mut candidates = candidates.into_iter();
    while together(left.iter().copied()).saturating_add(bytes) > limit {
        let next = candidates.next()?;
        left.retain(|l| l.key != next.key);
        gone.push(next.key.clone());
    }
    Some(gone)
}

fn together<'l>(layers: impl IntoIterator<Item = &'l Layer>) -> u64 {
    Usage::together(layers.into_iter().map(|l| &l.usage)).bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::plan::Stage;
    use crate::layers::inputs::Inputs;
    use std::path::PathBuf;
    use std::time::{Duration, SystemTime};

    fn key(name: &str) -> Key {
        Inputs::default().key(name, None)
    }

    const LAST: usize = 9;

    /// A layer of `gib`, used `age` seconds ago.
    fn layer(lab: &str, rank: usize, gib: u64, age: u64) -> Layer {
        let name = format!("{lab} {rank}");
        let number = name.bytes().fold(0, |n, b| n * 31 + u64::from(b));
        Layer {
            key: key(&name),
            folder: PathBuf::new(),
            about: About {
                stage: rank.to_string(),
                rank,
                last: rank == LAST,
                lab: lab.into(),
                created: 1000 - age,
                seconds: 1.0,
            },
            inputs: Inputs::default(),
            used: SystemTime::UNIX_EPOCH + Duration::from_secs(1000 - age),
            in_use: false,
            usage: Usage::made_up(&[(number, gib * GIB)]),
        }
    }

    fn rung(lab: &str, rank: usize) -> Rung {
        let names = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];
        let stage = Stage { rank, name: names[rank] };
        let key = key(&format!("{lab} {rank}"));
        Rung { stage, key, inputs: Inputs::default() }
    }

    fn evicted(layers: &[Layer], last: bool, gib: u64, limit: u64) -> Option<Vec<usize>> {
        let gone = evict(layers, None, &[], last, gib * GIB, limit * GIB)?;
        let rank = |k: &Key| layers.iter().find(|l| l.key == *k).unwrap().about.rank;
        Some(gone.iter().map(rank).collect())
    }

    #[test]
    fn half_of_what_there_is_and_never_the_runs_own_room() {
        let limit = |taken, free, max| {
            let space = Space { max, keep_free: 12 * GIB };
            space.limit(taken * GIB, free * GIB) / GIB
        };
        assert_eq!(limit(10, 90, None), 50);
        assert_eq!(limit(10, 90, Some(70 * GIB)), 70);
        assert_eq!(limit(10, 90, Some(95 * GIB)), 88);
        assert_eq!(limit(4, 10, None), 2);
        assert_eq!(limit(0, 1, Some(u64::MAX)), 0);
    }

    #[test]
    fn the_least_recently_used_goes_first_and_no_more_than_needed() {
        let layers = [layer("a", 1, 2, 10), layer("a", 2, 2, 30), layer("a", 3, 2, 20)];
        assert_eq!(evicted(&layers, false, 2, 8), Some(vec![]));
        assert_eq!(evicted(&layers, false, 3, 8), Some(vec![2]));
        assert_eq!(evicted(&layers, false, 5, 8), Some(vec![2, 3]));
        assert_eq!(evicted(&layers, false, 8, 8), Some(vec![2, 3, 1]));
        assert_eq!(evicted(&layers, false, 9, 8), None);
    }

    #[test]
    fn of_two_used_at_once_the_shallower_goes_and_a_last_one_only_for_a_last_one() {
        let layers = [layer("a", 3, 2, 5), layer("a", 2, 2, 5), layer("b", LAST, 2, 500)];
        assert_eq!(evicted(&layers, false, 4, 8), Some(vec![2]));
        assert_eq!(evicted(&layers, false, 7, 8), None);
        assert_eq!(evicted(&layers, true, 7, 8), Some(vec![2, 3, LAST]));
    }

    #[test]
    fn neither_one_in_use_nor_one_of_this_run_goes() {
        let mut layers = [layer("a", 1, 2, 9), layer("a", 2, 2, 8), layer("a", 3, 2, 7)];
        layers[0].in_use = true;
        let own = [layers[1].key.clone()];
        let gone = evict(&layers, None, &own, true, 2 * GIB, 6 * GIB).unwrap();
        assert_eq!(gone, [layers[2].key.clone()]);
        assert_eq!(evict(&layers, None, &own, true, 3 * GIB, 6 * GIB), None);
    }

    #[test]
    fn a_file_that_two_layers_share_is_freed_only_with_both() {
        let mut layers = [layer("a", 1, 0, 30), layer("a", 2, 0, 20), layer("a", 3, 4, 10)];
        layers[0].usage = Usage::made_up(&[(1, 3 * GIB), (2, GIB)]);
        layers[1].usage = Usage::made_up(&[(1, 3 * GIB), (3, GIB)]);
        // 9 are taken; the first alone would free 1.
        assert_eq!(evicted(&layers, false, 2, 10), Some(vec![1]));
        assert_eq!(evicted(&layers, false, 3, 10), Some(vec![1, 2]));
    }

    #[test]
    fn what_a_younger_one_took_the_place_of_goes_first_were_it_of_the_last_stage() {
        let mut layers = [layer("a", LAST, 2, 50), layer("a", 1, 2, 90), layer("a", LAST, 2, 10)];
        layers[0].key = key("before");
        layers[0].usage = Usage::made_up(&[(1, 2 * GIB)]);
        let gone = |run, last| evict(&layers, run, &[], last, 4 * GIB, 6 * GIB);
        let old = &layers[0].key;
        assert_eq!(gone(None, false).unwrap(), [old.clone(), layers[1].key.clone()]);
        // To a run that would make other layers of these stages all three are old.
        let rungs = [rung("changed", 1), rung("changed", LAST)];
        let run = Some(Run { lab: "a", rungs: &rungs });
        let all = |run| evict(&layers, run, &[], false, 6 * GIB, 6 * GIB).map(|gone| gone.len());
        assert_eq!((all(run), all(None)), (Some(3), None));
        assert_eq!(all(Some(Run { lab: "b", rungs: &rungs })), None);
        // One that serves the run again is worth more than the younger.
        let mut again = rung("a", LAST);
        again.key = old.clone();
        let rungs = [again];
        let run = Some(Run { lab: "a", rungs: &rungs });
        let first = evict(&layers, run, &[], false, 2 * GIB, 6 * GIB).unwrap();
        assert_eq!(first, [layers[2].key.clone()]);
    }

    fn chosen(layers: &[Layer], sizes: &[(usize, u64)], limit: u64) -> Vec<usize> {
        let rungs: Vec<(Rung, u64)> = sizes.iter().map(|&(r, b)| (rung("new", r), b)).collect();
        let wanted = rungs.iter().map(|(rung, gib)| Wanted { rung, bytes: gib * GIB }).collect();
        let run = Run { lab: "new", rungs: &[] };
        choose(layers, run, wanted, limit * GIB).iter().map(|r| r.stage.rank).collect()
    }

    #[test]
    fn the_last_stage_is_chosen_first_then_the_deepest() {
        let sizes = [(0, 1), (1, 2), (2, 3), (LAST, 4)];
        assert_eq!(chosen(&[], &sizes, 10), [0, 1, 2, LAST]);
        assert_eq!(chosen(&[], &sizes, 9), [1, 2, LAST]);
        assert_eq!(chosen(&[], &sizes, 7), [2, LAST]);
        assert_eq!(chosen(&[], &sizes, 4), [LAST]);
        assert_eq!(chosen(&[], &sizes, 0), Vec::<usize>::new());
    }

    #[test]
    fn another_labs_last_stage_gives_way_to_ours_and_not_to_our_other_stages() {
        let other = [layer("b", LAST, 4, 10), layer("b", 1, 3, 10)];
        assert_eq!(chosen(&other, &[(2, 3), (LAST, 4)], 11), [2, LAST]);
        assert_eq!(chosen(&other, &[(2, 3), (LAST, 4)], 9), [LAST]);
        assert_eq!(chosen(&other, &[(2, 3), (LAST, 4)], 5), [LAST]);
        let mut busy = other.clone();
        busy[0].in_use = true;
        assert_eq!(chosen(&busy, &[(2, 3), (LAST, 4)], 5), Vec::<usize>::new());
    }

    #[test]
    fn what_is_there_is_not_made_again_and_takes_its_room() {
        let mut there = layer("new", 2, 3, 1);
        there.about.last = false;
        assert_eq!(chosen(&[there], &[(1, 3), (2, 3), (LAST, 4)], 8), [LAST]);
    }

    #[test]
    fn the_last_one_of_a_stage_tells_how_large_the_next_will_be() {
        let layers = [layer("a", 1, 2, 10), layer("a", 2, 3, 10)];
        assert_eq!(estimate(&layers, "a", "2", 9 * GIB), 3 * GIB);
        assert_eq!(estimate(&layers, "a", "5", 900), 540);
        assert_eq!(estimate(&layers, "b", "2", 900), 540);
    }
}
