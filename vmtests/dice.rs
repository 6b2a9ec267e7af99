//! The moments at which tests strike. Shared with `tests/cli.rs`.

use rustix::process::Signal;
use stackproof::lab::switch::splitmix64;
use std::time::Duration;

/// Draws that a printed seed repeats (`STACKPROOF_SEED=N`): splitmix64.
pub struct Dice {
    seed: u64,
    drawn: u64,
}

impl Dice {
    pub fn new() -> Dice {
        let given = std::env::var("STACKPROOF_SEED").ok().and_then(|s| s.parse().ok());
        let seed = given.unwrap_or_else(|| {
            use std::hash::{BuildHasher, RandomState};
            RandomState::new().hash_one(0)
        });
        eprintln!("STACKPROOF_SEED={seed}");
        Dice { seed, drawn: 0 }
    }

    /// Anywhere between nothing and `most`.
    pub fn moment(&mut self, most: Duration) -> Duration {
        let draw = splitmix64(self.seed, self.drawn);
        self.drawn += 1;
        most.mul_f64((draw >> 11) as f64 / (1u64 << 53) as f64)
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
