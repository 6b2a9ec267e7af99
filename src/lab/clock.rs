//! Setting a guest's clock from outside: what is sent arrives late, by as much as the guest is slow.
//!
//! A setting is aimed by what the one before it showed, and repeated until the clock is right. One
//! look decides nothing: a first answer that takes three seconds leaves a clock three seconds off,
//! and the next one takes milliseconds.

use std::fmt;
use std::time::{Duration, SystemTime};

/// A clock this near to ours is right: the rest is for the guest's own time service.
const TOLERANCE: Duration = Duration::from_secs(2);

/// No message is late by more: a clock that shows so much was not set at all.
const LONGEST_DELAY: f64 = 60.0;

/// The host's wall clock.
pub fn since_epoch() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// How far a clock is off, in seconds: at least so much, behind where negative.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ClockOffset(f64);

impl ClockOffset {
    pub fn seconds(self) -> f64 {
        self.0
    }

    /// How far a clock is off that was asked at `asked` and showed something of `shown`, the answer
    /// being here at `answered`. None where it is right.
    fn of(asked: Duration, shown: (Duration, Duration), answered: Duration) -> Option<ClockOffset> {
        let (earliest, latest) = shown;
        if latest + TOLERANCE < asked {
            Some(ClockOffset(latest.as_secs_f64() - asked.as_secs_f64()))
        } else if earliest > answered + TOLERANCE {
            Some(ClockOffset(earliest.as_secs_f64() - answered.as_secs_f64()))
        } else {
            None
        }
    }
}

impl fmt::Display for ClockOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:+.1} s off", self.0)
    }
}

/// Aims the settings of one clock.
#[derive(Debug, Default)]
pub struct ClockAim {
    /// How late the next setting is thought to arrive, in seconds.
    delay: f64,
}

impl ClockAim {
    /// What to set the clock to, sent now.
    pub fn target(&self) -> Duration {
        since_epoch() + Duration::from_secs_f64(self.delay)
    }

    /// Judges an answer: see [`ClockOffset::of`]. A clock that is still behind is set ahead by half
    /// of that the next time: the delay may have been there once, or always.
    pub fn judge(
        &mut self,
        asked: Duration,
        shown: (Duration, Duration),
        answered: Duration,
    ) -> Option<ClockOffset> {
        let offset = ClockOffset::of(asked, shown, answered)?;
        let change = if offset.0 < 0.0 { -offset.0 / 2.0 } else { -offset.0 };
        if change.abs() <= LONGEST_DELAY {
            self.delay = (self.delay + change).clamp(0.0, LONGEST_DELAY);
        }
        Some(offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seconds that each setting takes on its way; how many settings a clock needs to be right.
    fn settings(delays: impl IntoIterator<Item = f64>) -> usize {
        let mut aim = ClockAim::default();
        for (n, delay) in delays.into_iter().enumerate() {
            let sent = since_epoch() + Duration::from_secs(100);
            let set = sent + Duration::from_secs_f64(aim.delay);
            let now = sent + Duration::from_secs_f64(delay);
            if aim.judge(now, (set, set), now).is_none() {
                return n + 1;
            }
        }
        panic!("never right: {aim:?}");
    }

    #[test]
    fn slow_settings_converge() {
        assert_eq!(settings([0.1]), 1);
        assert_eq!(settings([2.7, 0.1]), 2, "once late, as it was seen");
        assert!(settings(std::iter::repeat_n(2.7, 5)) <= 2);
        assert!(settings(std::iter::repeat_n(20.0, 10)) <= 5, "always late");
        assert!(settings([9.0, 0.0, 0.0]) <= 3, "once very late");
        assert!(settings([5.0, 0.5].into_iter().cycle().take(20)) <= 4, "now and then");
    }

    #[test]
    fn unset_clock_is_never_right_and_never_aimed_at() {
        let mut aim = ClockAim::default();
        let (now, shown) = (Duration::from_secs(100_000), Duration::from_secs(13_600));
        for _ in 0..3 {
            let offset = aim.judge(now, (shown, shown), now).unwrap();
            assert_eq!(offset.to_string(), "-86400.0 s off");
        }
        assert_eq!(aim.delay, 0.0);
    }

    #[test]
    fn slow_answer_blames_no_clock() {
        let s = Duration::from_secs;
        // Whatever it showed while the question was under way may be right.
        assert_eq!(ClockOffset::of(s(100), (s(110), s(110)), s(120)), None);
        assert_eq!(ClockOffset::of(s(100), (s(99), s(99)), s(100)), None);
        assert_eq!(ClockOffset::of(s(100), (s(97), s(98)), s(100)), None, "some time in it");
        assert_eq!(ClockOffset::of(s(100), (s(97), s(97)), s(100)), Some(ClockOffset(-3.0)));
        assert_eq!(ClockOffset::of(s(100), (s(124), s(125)), s(120)), Some(ClockOffset(4.0)));
    }
}
