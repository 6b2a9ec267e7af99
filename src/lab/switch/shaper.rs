//! Bandwidth: a token bucket in virtual time, with a bounded backlog.

use std::time::Duration;
use tokio::time::Instant;

/// What the bucket holds when full, in bytes: so much passes at once after a pause.
pub(super) const BUCKET: u64 = 16 * 1024;

/// What may wait for its turn, in bytes; a frame that finds more is dropped.
pub(super) const BACKLOG: u64 = 256 * 1024;

#[derive(Debug, Default)]
pub(super) struct Shaper {
    /// When the bucket will be full again.
    full: Option<Instant>,
}

impl Shaper {
    /// When a frame of `bytes` that comes `now` may go on, at `rate` bits a second. None drops it.
    pub fn depart(&mut self, now: Instant, bytes: usize, rate: u64) -> Option<Instant> {
        let full = self.full.map_or(now, |at| at.max(now)) + time(bytes as u64, rate);
        // The bucket holds enough for it once it lacks no more than its size.
        let depart = full.checked_sub(time(BUCKET, rate)).map_or(now, |at| at.max(now));
        if depart - now > time(BACKLOG, rate) {
            return None;
        }
        self.full = Some(full);
        Some(depart)
    }
}

/// How long `bytes` take.
fn time(bytes: u64, rate: u64) -> Duration {
    let nanos = u128::from(bytes) * 8 * 1_000_000_000 / u128::from(rate.max(1));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: u64 = 8_000_000; // a byte each microsecond

    #[test]
    fn a_full_bucket_passes_at_once_and_then_a_byte_takes_its_time() {
        let (mut shaper, now) = (Shaper::default(), Instant::now());
        let mut departures = (0..20).map(|_| shaper.depart(now, 1024, RATE).unwrap() - now);
        assert!(departures.by_ref().take(16).all(|d| d.is_zero()));
        let after: Vec<_> = departures.map(|d| d.as_micros()).collect();
        assert_eq!(after, [1024, 2048, 3072, 4096]);
        // After a second of rest it is full again, and no fuller.
        let later = now + Duration::from_secs(1);
        let again = (0..17).map(|_| shaper.depart(later, 1024, RATE).unwrap() - later);
        assert_eq!(again.last().unwrap().as_micros(), 1024);
    }

    #[test]
    fn the_backlog_is_bounded_and_drains_at_the_rate() {
        let (mut shaper, now) = (Shaper::default(), Instant::now());
        let taken = (0..1000).filter(|_| shaper.depart(now, 1024, RATE).is_some()).count() as u64;
        assert_eq!(taken * 1024, BUCKET + BACKLOG);
        let later = now + Duration::from_micros(10 * 1024);
        let taken = (0..1000).filter(|_| shaper.depart(later, 1024, RATE).is_some()).count();
        assert_eq!(taken, 10);
    }

    #[test]
    fn the_slowest_rate_and_the_longest_frame_do_not_overflow() {
        let mut shaper = Shaper::default();
        let now = Instant::now();
        while shaper.depart(now, 65_550, 1000).is_some() {}
    }
}
