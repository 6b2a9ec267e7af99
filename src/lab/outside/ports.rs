//! Local ports of outgoing connections. A released port rests before it is given out again: the
//! peer may still remember the old connection (TIME-WAIT, 60 s on Linux) and refuse a new one
//! from the same port.

use std::collections::VecDeque;
use std::time::Duration;
use tokio::time::Instant;

const FIRST: u16 = 32_768;
const COUNT: u16 = 28_232;

pub(super) const REST: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct Ports {
    /// Where counting began: random, so that two runs against the same machines differ.
    origin: u16,
    /// How many were given out for the first time.
    fresh: u16,
    /// Released ports, the oldest first.
    resting: VecDeque<(Instant, u16)>,
}

impl Ports {
    pub fn new(seed: u64) -> Ports {
        let origin = (seed % u64::from(COUNT)) as u16;
        Ports { origin, fresh: 0, resting: VecDeque::new() }
    }

    /// `None` when all ports are in use or resting.
    pub fn take(&mut self, now: Instant) -> Option<u16> {
        if self.fresh < COUNT {
            let offset = (u32::from(self.origin) + u32::from(self.fresh)) % u32::from(COUNT);
            self.fresh += 1;
            return Some(FIRST + offset as u16);
        }
        let (released, port) = *self.resting.front()?;
        if now.duration_since(released) < REST {
            return None;
        }
        self.resting.pop_front();
        Some(port)
    }

    pub fn release(&mut self, now: Instant, port: u16) {
        self.resting.push_back((now, port));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_port_is_given_once_before_any_is_given_again() {
        let now = Instant::now();
        let mut ports = Ports::new(27_000);
        let mut seen = HashSet::new();
        while let Some(port) = ports.take(now) {
            assert!(seen.insert(port) && port >= FIRST && port - FIRST < COUNT);
            ports.release(now, port);
        }
        assert_eq!(seen.len(), usize::from(COUNT));
        assert_eq!(ports.take(now + REST / 2), None);
        assert!(ports.take(now + REST).is_some());
    }
}
