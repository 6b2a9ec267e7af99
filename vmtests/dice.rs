//! The moments at which tests strike. Shared with `tests/cli.rs`.

use rustix::process::Signal;
use std::time::Duration;

/// Draws that a printed seed repeats (`STACKPROOF_SEED=N`): splitmix64.
pub struct Dice(u64);

impl Dice {
    pub fn new() -> Dice {
        let given = std::env::var("STACKPROOF_SEED").ok().and_then(|s| s.parse().ok());
        let seed = given.unwrap_or_else(|| {
            use std::hash::{BuildHasher, RandomState};
            RandomState::new().hash_one(0)
        });
        eprintln!("STACKPROOF_SEED={seed}");
        Dice(seed)
    }

    /// Anywhere between nothing and `most`.
    pub fn moment(&mut self, most: Duration) -> Duration {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        most.mul_f64(((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64)
    }
}

/// Whether a process catches the signals that mean "stop": before, they end it without a word.
pub fn watches_signals(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|text| {
        let caught = text.lines().find_map(|line| line.strip_prefix("SigCgt:"));
        let mask = caught.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
        // Signals count from 1, bits from 0.
        let is_in = |mask: u64, signal: Signal| mask >> (signal.as_raw() - 1) & 1 == 1;
        let stops = [Signal::INT, Signal::TERM, Signal::HUP];
        mask.is_some_and(|mask| stops.into_iter().all(|signal| is_in(mask, signal)))
    })
}
