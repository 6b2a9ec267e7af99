//! Tells a machine that drains nothing from one that is slow, and both from a process that got no
//! processor itself.

use std::time::Duration;

/// How often a port that holds its senders back is looked at.
pub(super) const TICK: Duration = Duration::from_millis(100);

/// So many looks without any progress make a stall: a second.
const TICKS: u32 = 10;

/// The wait of one sender before one full port.
#[derive(Debug)]
pub(super) struct Stall {
    seen: u64,
    idle: u32,
}

impl Stall {
    pub fn new(progress: u64) -> Stall {
        Stall { seen: progress, idle: 0 }
    }

    /// One look, `took` after the one before. True when the port is stalled.
    ///
    /// A look that came late says nothing: we were not run, so the receiver may not have been
    /// either. (A stopped and continued process dropped frames of healthy ports for that reason.)
    pub fn look(&mut self, took: Duration, progress: u64) -> bool {
        if progress != self.seen {
            *self = Stall::new(progress);
        } else if took < TICK * 2 {
            self.idle += 1;
        }
        self.idle >= TICKS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_without_progress_is_a_stall() {
        let mut stall = Stall::new(5);
        assert!((1..TICKS).all(|_| !stall.look(TICK, 5)));
        assert!(stall.look(TICK, 5));
    }

    #[test]
    fn the_least_progress_begins_the_second_anew() {
        let mut stall = Stall::new(5);
        assert!((0..100u64).all(|n| !stall.look(TICK, 5 + n / 9)));
    }

    #[test]
    fn looks_that_come_late_prove_nothing() {
        let mut stall = Stall::new(5);
        assert!((0..100).all(|_| !stall.look(TICK * 30, 5)));
        assert!((1..TICKS).all(|_| !stall.look(TICK, 5)));
        assert!(stall.look(TICK, 5));
    }
}
