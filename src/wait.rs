//! How everything that takes time is waited for.
//!
//! A wait names what it waits for, has a deadline scaled by the measured speed of the machine,
//! ends at once when the thing waited for has died, and reports its length beside its deadline.
//! There is no other sleep in the house but that of frames that are due later (the switch's lanes
//! and the outside endpoint): they wait for a time, and not for anything to happen.

mod together;

pub use together::together;

use crate::error::{Error, FailureCause, Kind};
use crate::event::{Event, Events};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// How many times slower than the reference machine (hardware virtualisation on a current server
/// core) guests run here. Measured before the lab starts, and made larger where its nodes then took
/// longer to boot than it says; every deadline is scaled by the value of the moment the wait begins.
#[derive(Clone, Debug)]
pub struct Speed(Arc<AtomicU64>);

impl Speed {
    /// The most that deadlines are multiplied by. Idle machines without hardware virtualisation were
    /// measured at 10 to 22; what is far above that is a host that is busy with something else, and
    /// a deadline scaled by it would hide a hang.
    pub const MOST: f64 = 40.0;

    pub fn new(factor: f64) -> Speed {
        let speed = Speed(Arc::new(AtomicU64::new(0)));
        speed.set(factor);
        speed
    }
    /// Never below 1 (a faster machine than the reference shortens no deadline), never above
    /// [`Speed::MOST`].
    pub fn set(&self, factor: f64) {
        let factor = if factor.is_finite() { factor.clamp(1.0, Speed::MOST) } else { 1.0 };
        self.0.store(factor.to_bits(), Ordering::Relaxed);
    }
    /// Makes deadlines longer when a measurement during the run found guests slower than thought.
    pub fn at_least(&self, factor: f64) {
        if factor > self.factor() {
            self.set(factor);
        }
    }
    pub fn factor(&self) -> f64 {
        f64::from_bits(self.0.load(Ordering::Relaxed))
    }
    pub fn scale(&self, nominal: Duration) -> Duration {
        nominal.mul_f64(self.factor())
    }
}

/// Deadlines are counted in pieces of this length, so that time asleep is seen.
const AWAKE_INTERVAL: Duration = Duration::from_secs(1);
/// Standing still for longer is worth a word.
const ASLEEP_AFTER: Duration = Duration::from_secs(20);

/// The news of a death. The watched thing holds the [`Life`]; those who wait hold [`Death`]s.
#[derive(Debug)]
pub struct Life(watch::Sender<Option<Cause>>);

#[derive(Clone, Debug)]
pub struct Death(watch::Receiver<Option<Cause>>);

/// Why something died, and what the error of whoever waited for it says.
#[derive(Clone, Debug)]
pub struct Cause {
    pub text: String,
    pub kind: Kind,
    pub hint: Option<String>,
}

impl From<String> for Cause {
    fn from(text: String) -> Cause {
        Cause { text, kind: Kind::Lab, hint: None }
    }
}

impl From<&str> for Cause {
    fn from(text: &str) -> Cause {
        text.to_owned().into()
    }
}

impl Life {
    pub fn new() -> (Life, Death) {
        let (tx, rx) = watch::channel(None);
        (Life(tx), Death(rx))
    }
    pub fn death(&self) -> Death {
        Death(self.0.subscribe())
    }
    /// Says once why it died. Later causes are ignored: the first is the one that explains.
    pub fn ends(&self, cause: impl Into<Cause>) {
        self.0.send_if_modified(|c| {
            if c.is_some() {
                return false;
            }
            *c = Some(cause.into());
            true
        });
    }
    pub fn cause(&self) -> Option<String> {
        self.0.borrow().as_ref().map(|c| c.text.clone())
    }
}

impl Death {
    /// For things that cannot die.
    pub fn never() -> Death {
        let (tx, rx) = watch::channel(None);
        // Kept for ever on purpose: a dropped sender would read as a death.
        std::mem::forget(tx);
        Death(rx)
    }
    pub fn cause(&self) -> Option<String> {
        self.0.borrow().as_ref().map(|c| c.text.clone())
    }
    /// Resolves with the cause once it has died. A dropped [`Life`] is a death too.
    pub async fn wait(&mut self) -> String {
        self.wait_cause().await.text
    }
    /// The same with what an error says beside the cause.
    pub async fn wait_cause(&mut self) -> Cause {
        let ended = || Cause::from("its supervisor ended");
        match self.0.wait_for(Option::is_some).await {
            Ok(cause) => cause.clone().unwrap_or_else(ended),
            Err(_) => ended(),
        }
    }
}

/// Waits with the machine's speed and the run's events at hand. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Patience {
    pub speed: Speed,
    pub events: Events,
}

/// What one try of a polled wait found.
pub enum Poll<T> {
    Ready(T),
    /// Not yet; the text says what was seen, and is shown if the deadline passes.
    NotYet(String),
    /// It can never become ready: ends the wait at once.
    Failed(Error),
}

impl Patience {
    pub fn new(speed: Speed, events: Events) -> Patience {
        Patience { speed, events }
    }

    /// Waits for `work`, at most `nominal` (on the reference machine), while `death` has not come.
    pub async fn within<T>(
        &self,
        what: &str,
        nominal: Duration,
        death: &Death,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let deadline = self.speed.scale(nominal);
        let start = Instant::now();
        let mut death = death.clone();
        let out = tokio::select! {
            biased;
            out = work => out,
            cause = death.wait_cause() => Err(died(what, cause)),
            () = self.awake_for(deadline) => Err(late(what, deadline, None)),
        };
        self.report(what, start, deadline, out.is_ok());
        out
    }

    /// Tries again and again, `every` apart, until ready, failed, dead or late. A try that itself
    /// hangs is cut off by the deadline.
    pub async fn until<T, F>(
        &self,
        what: &str,
        nominal: Duration,
        every: Duration,
        death: &Death,
        mut attempt: impl FnMut() -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Poll<T>>,
    {
        let deadline = self.speed.scale(nominal);
        let start = Instant::now();
        let mut death = death.clone();
        let mut last = None;
        let tries = async {
            loop {
                match attempt().await {
                    Poll::Ready(t) => return Ok(t),
                    Poll::Failed(e) => return Err(e),
                    Poll::NotYet(seen) => last = Some(seen),
                }
                tokio::time::sleep(every).await;
            }
        };
        let out = tokio::select! {
            biased;
            out = tries => Some(out),
            cause = death.wait_cause() => Some(Err(died(what, cause))),
            () = self.awake_for(deadline) => None,
        };
        let out = out.unwrap_or_else(|| Err(late(what, deadline, last.as_deref())));
        self.report(what, start, deadline, out.is_ok());
        out
    }

    /// Resolves when this process has been awake for so long. A host that slept, or a process that was
    /// stopped, has given nothing the time to become ready.
    async fn awake_for(&self, time: Duration) {
        let mut left = time;
        while !left.is_zero() {
            let (nap, before) = (left.min(AWAKE_INTERVAL), tokio::time::Instant::now());
            tokio::time::sleep(nap).await;
            let took = before.elapsed();
            if took > nap + ASLEEP_AFTER {
                self.events.warning(format!(
                    "this process stood still for {:.0} s: deadlines wait as long",
                    took.as_secs_f64()
                ));
            }
            left = left.saturating_sub(took.min(nap * 2));
        }
    }

    fn report(&self, what: &str, start: Instant, deadline: Duration, ok: bool) {
        self.events.send(Event::Waited { what: what.into(), took: start.elapsed(), deadline, ok });
    }
}

/// For a `Drop`, which cannot wait otherwise: blocks the thread until `done`, at most `limit`. Says
/// whether it was done.
pub fn block_until(limit: Duration, mut done: impl FnMut() -> bool) -> bool {
    const EVERY: Duration = Duration::from_millis(10);
    let start = Instant::now();
    loop {
        if done() {
            return true;
        }
        if start.elapsed() >= limit {
            return false;
        }
        std::thread::sleep(EVERY);
    }
}

fn died(what: &str, cause: Cause) -> Error {
    let error = Error::new(cause.kind, format!("waited for {what}, but {}", cause.text));
    match cause.hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

fn late(what: &str, deadline: Duration, last: Option<&str>) -> Error {
    let e = Error::new(
        Kind::Lab,
        format!("waited {:.0} s for {what}, in vain", deadline.as_secs_f64()),
    );
    let e = e.caused_by(FailureCause::TimedOut);
    match last {
        Some(seen) => e.evidence([format!("last seen: {seen}")]),
        None => e,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patience(factor: f64) -> Patience {
        Patience::new(Speed::new(factor), Events::silent())
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_ends_at_once_when_the_thing_dies() {
        let (life, death) = Life::new();
        let p = patience(1.0);
        let wait = p.within("the moon", Duration::from_secs(60), &death, async {
            std::future::pending::<Result<(), Error>>().await
        });
        let (out, ()) = tokio::join!(wait, async { life.ends("QEMU exited with status 1") });
        assert_eq!(
            out.unwrap_err().message(),
            "waited for the moon, but QEMU exited with status 1"
        );
    }

    #[test]
    fn deadlines_grow_with_a_later_measurement_and_never_beyond_reason() {
        let speed = Speed::new(10.0);
        speed.at_least(4.0);
        assert_eq!(speed.factor(), 10.0);
        speed.at_least(25.0);
        assert_eq!(speed.factor(), 25.0);
        for absurd in [352.0, f64::MAX] {
            speed.set(absurd);
            assert_eq!(speed.factor(), Speed::MOST);
        }
        speed.set(f64::NAN);
        assert_eq!(speed.factor(), 1.0);
    }

    #[test]
    fn a_thread_is_blocked_until_it_is_done_or_late() {
        let mut left = 3;
        let mut done = || {
            left -= 1;
            left == 0
        };
        assert!(block_until(Duration::from_secs(3600), &mut done));
        assert!(!block_until(Duration::ZERO, || false));
    }

    #[tokio::test(start_paused = true)]
    async fn the_deadline_is_scaled_and_the_last_sight_is_kept() {
        let start = tokio::time::Instant::now();
        let out: Result<(), _> = patience(3.0)
            .until(
                "a lease",
                Duration::from_secs(10),
                Duration::from_secs(1),
                &Death::never(),
                || async { Poll::NotYet("no lease, failing".into()) },
            )
            .await;
        assert_eq!(start.elapsed().as_secs(), 30);
        let e = out.unwrap_err();
        assert!(e.message().contains("30 s"), "{e}");
        assert_eq!(e.cause(), Some(FailureCause::TimedOut));
        assert_eq!(e.evidence_lines(), ["last seen: no lease, failing"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_cause_that_knows_more_gives_its_kind_and_next_step_to_the_error() {
        let (life, death) = Life::new();
        let (text, hint) = ("the host's disk is full".to_owned(), Some("free some space".into()));
        life.ends(Cause { text, kind: Kind::Host, hint });
        let p = patience(1.0);
        let wait = p.until("SSH", Duration::from_secs(1), LOOK, &death, || async {
            Poll::<()>::NotYet("no answer".into())
        });
        let e = wait.await.unwrap_err();
        assert_eq!((e.kind(), e.hint_text()), (Kind::Host, Some("free some space")));
        assert!(e.message().ends_with("but the host's disk is full") && e.cause().is_none(), "{e}");
    }

    const LOOK: Duration = Duration::from_millis(100);

    #[tokio::test(start_paused = true)]
    async fn the_first_cause_of_death_is_kept() {
        let (life, death) = Life::new();
        life.ends("kernel panic");
        life.ends("QEMU exited");
        assert_eq!(death.cause().as_deref(), Some("kernel panic"));
    }

    #[tokio::test(start_paused = true)]
    async fn time_asleep_is_no_time_to_become_ready() {
        let (events, mut seen) = Events::channel();
        let patience = Patience::new(Speed::new(1.0), events);
        let (start, death) = (tokio::time::Instant::now(), Death::never());
        let wait = patience.within("x", Duration::from_secs(60), &death, async {
            tokio::time::sleep(Duration::from_secs(10)).await;
            // As if the host slept: nothing ran meanwhile.
            tokio::time::advance(Duration::from_secs(300)).await;
            tokio::time::sleep(Duration::from_secs(40)).await;
            Ok(())
        });
        wait.await.unwrap();
        assert_eq!(start.elapsed().as_secs(), 350);
        let mut warned = false;
        while let Ok(e) = seen.try_recv() {
            warned |= matches!(e.event, Event::Note { text, .. } if text.contains("stood still"));
        }
        assert!(warned);
    }
}
