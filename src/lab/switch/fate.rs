//! The fate of a frame: a pure function of the seed, the port's name, the direction and the
//! frame's number. Neither time nor other traffic has a say in it.
//!
//! The generator is splitmix64 (Steele, Lea, Flood 2014), whose state after `i` steps is
//! `key + i * GAMMA`: so the draw at any place is had without the draws before it. Frame `n` uses
//! the places `8n` to `8n + 4`. The key is made of the seed, FNV-1a of the name, and the direction.
//! All of it is integers: the same on every machine, for ever.

use super::impairment::{Direction, Impairment};
use std::time::Duration;

const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// The fates of all frames of one port in one direction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fates {
    key: u64,
}

/// What happens to one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fate {
    pub lost: bool,
    pub duplicated: bool,
    /// Latency and this frame's share of the jitter.
    pub delay: Duration,
    /// So many later frames overtake it; 0 keeps the order.
    pub overtaken: u64,
}

/// The places of a frame's draws.
#[derive(Clone, Copy)]
enum Draw {
    Loss,
    Duplicate,
    Jitter,
    Reorder,
    Overtaken,
}

/// Places reserved for a frame: more than are used, so that a new draw changes no old one.
const PLACES: u64 = 8;

/// The most frames that overtake a reordered one.
const OVERTAKERS: u64 = 3;

impl Fates {
    pub fn new(seed: u64, port: &str, direction: Direction) -> Fates {
        let way = match direction {
            Direction::From => 0,
            Direction::To => 1,
        };
        Fates { key: mix(seed ^ mix(fnv1a(port.as_bytes()).wrapping_mul(2).wrapping_add(way))) }
    }

    /// The fate of frame `n`, counted from 0 since the fault was set.
    pub fn of(&self, n: u64, fault: &Impairment) -> Fate {
        let draw = |which| self.draw(n, which);
        let jitter = (fault.jitter.as_nanos() * u128::from(draw(Draw::Jitter))) >> 64;
        let reordered = fault.reorder.hits(draw(Draw::Reorder));
        Fate {
            lost: fault.loss.hits(draw(Draw::Loss)),
            duplicated: fault.duplicate.hits(draw(Draw::Duplicate)),
            delay: fault.latency + Duration::from_nanos(jitter as u64),
            overtaken: if reordered { 1 + draw(Draw::Overtaken) % OVERTAKERS } else { 0 },
        }
    }

    fn draw(&self, n: u64, which: Draw) -> u64 {
        splitmix64(self.key, n.wrapping_mul(PLACES).wrapping_add(which as u64))
    }
}

/// Number `i` (from 0) of the sequence of splitmix64 seeded with `key`.
pub fn splitmix64(key: u64, i: u64) -> u64 {
    mix(key.wrapping_add(GAMMA.wrapping_mul(i.wrapping_add(1))))
}

/// The finalizer of splitmix64: a bijection in which every bit of the input moves half the output.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::switch::Probability;

    #[test]
    fn the_generator_is_splitmix64_and_the_hash_fnv1a() {
        // Published values: splitmix64 of the seed 1234567, FNV-1a 64 of "" and "foobar".
        let published = [
            6_457_827_717_110_365_317,
            3_203_168_211_198_807_973,
            9_817_491_932_198_370_423,
            4_593_380_528_125_082_431,
            16_408_922_859_458_223_821,
        ];
        for (i, value) in (0..).zip(published) {
            assert_eq!(splitmix64(1_234_567, i), value);
        }
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
    }

    fn every() -> Impairment {
        "loss=20% latency=1ms jitter=10ms duplicate=30% reorder=10%".parse().unwrap()
    }

    /// These must never change: a seed told in a bug report would no longer repeat the bug.
    #[test]
    fn the_first_fates_of_a_known_port_are_these_for_ever() {
        let fates = Fates::new(7, "openstack1/management", Direction::From);
        let lost: Vec<u64> = (0..64).filter(|n| fates.of(*n, &every()).lost).collect();
        let twice: Vec<u64> = (0..32).filter(|n| fates.of(*n, &every()).duplicated).collect();
        assert_eq!((lost.as_slice(), twice.as_slice()), (LOST, TWICE));
        assert_eq!(fates.of(0, &every()).delay.as_nanos(), FIRST_DELAY);
    }
    const LOST: &[u64] = &[18, 24, 38, 39, 47, 50, 53];
    const TWICE: &[u64] = &[1, 4, 5, 6, 10, 18, 20, 21, 23, 30, 31];
    const FIRST_DELAY: u128 = 5_566_210;

    #[test]
    fn seed_name_and_direction_each_change_the_fates() {
        let of = |seed, port, way| {
            let fates = Fates::new(seed, port, way);
            (0..256).map(|n| fates.of(n, &every())).collect::<Vec<_>>()
        };
        let base = of(1, "a/n", Direction::From);
        assert_eq!(base, of(1, "a/n", Direction::From));
        assert_ne!(base, of(2, "a/n", Direction::From));
        assert_ne!(base, of(1, "b/n", Direction::From));
        assert_ne!(base, of(1, "a/n", Direction::To));
    }

    /// Six standard deviations of a binomial: a right generator fails once in 500 million draws of
    /// a key, and the keys here are fixed.
    fn near(count: u64, of: u64, p: f64) -> bool {
        let bound = 6.0 * (of as f64 * p * (1.0 - p)).sqrt();
        (count as f64 - of as f64 * p).abs() <= bound
    }

    #[test]
    fn over_many_frames_the_shares_are_the_declared_ones_and_independent() {
        const FRAMES: u64 = 100_000;
        for (seed, billionths) in [(0, 1_000_000), (1, 50_000_000), (2, 300_000_000)] {
            let p = Probability::from_billionths(billionths);
            let fault = Impairment {
                loss: p,
                duplicate: p,
                reorder: p,
                jitter: Duration::from_millis(8),
                ..Impairment::default()
            };
            let fates = Fates::new(seed, "node/net", Direction::To);
            let all: Vec<Fate> = (0..FRAMES).map(|n| fates.of(n, &fault)).collect();
            let count =
                |what: &dyn Fn(&Fate) -> bool| all.iter().filter(|f| what(f)).count() as u64;
            let p = p.as_f64();
            assert!(near(count(&|f| f.lost), FRAMES, p));
            assert!(near(count(&|f| f.duplicated), FRAMES, p));
            assert!(near(count(&|f| f.overtaken > 0), FRAMES, p));
            // Of two things at once, and of two neighbours: the product of the two.
            assert!(near(count(&|f| f.lost && f.duplicated), FRAMES, p * p));
            let pairs = all.windows(2).filter(|w| w[0].lost && w[1].lost).count() as u64;
            assert!(near(pairs, FRAMES - 1, p * p));
            assert!(near(count(&|f| f.delay < Duration::from_millis(2)), FRAMES, 0.25));
            assert!(all.iter().all(|f| f.delay < fault.jitter && f.overtaken <= OVERTAKERS));
        }
    }
}
