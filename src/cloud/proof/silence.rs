//! Silence, proven: nothing answers for a while in which it is known that the path would have
//! carried an answer.

use super::outside::{Knock, Outside, knock};
use crate::error::{Error, Kind, Result};
use crate::wait::together;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Mutex;
use std::time::Duration;
use tokio::time::Instant;

/// How often everything is tried in one window.
pub const ROUNDS: u32 = 10;
/// Between the beginnings of two rounds: an answer may take longer, the next try need not wait for it.
pub(super) const EVERY: Duration = Duration::from_millis(500);

/// What answered in a window.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    pub rounds: u32,
    pub pings: u32,
    /// TCP 22 accepted or refused: either is an answer.
    pub knocks: u32,
    /// Of the control, which must answer.
    pub control: u32,
    /// Pings of the target and attempts at its port that could not even be sent, and why.
    pub unsent: u32,
    pub why_unsent: Option<String>,
}

/// How long to listen for what a living answer took `rtt` for; `most` at most.
pub fn hearing(rtt: Duration, most: Duration) -> Duration {
    (20 * rtt).max(EVERY).min(most)
}

/// Pings `target` and knocks at its port 22, and pings `control`, all at once, `rounds` times,
/// one round [`EVERY`] so often. The control may take `timeout` for each answer; the target is
/// listened to from its first round on until the last one had [`hearing`] for the slowest of them.
pub async fn listen(
    outside: &dyn Outside,
    target: Ipv4Addr,
    control: Ipv4Addr,
    rounds: u32,
    timeout: Duration,
) -> Heard {
    let heard = Mutex::new(Heard { rounds, ..Heard::default() });
    let note = |change: &dyn Fn(&mut Heard)| change(&mut heard.lock().expect("nobody panics here"));
    let unsent = |why: &dyn std::error::Error| {
        note(&|heard| {
            heard.unsent += 1;
            heard.why_unsent = Some(why.to_string());
        });
    };
    let last = EVERY * rounds.saturating_sub(1);
    let closes = Instant::now() + last;
    let at_target = |n| async move {
        tokio::time::sleep(EVERY * n).await;
        let left = last - EVERY * n + timeout;
        let ping = async {
            match outside.ping(target, left).await {
                Ok(None) => {}
                Ok(Some(_)) => note(&|heard| heard.pings += 1),
                Err(e) => unsent(&e),
            }
        };
        let knock = async {
            match knock(outside, SocketAddrV4::new(target, 22), left).await {
                Knock::Silent => {}
                Knock::Open | Knock::Refused => note(&|heard| heard.knocks += 1),
                Knock::Unsent(e) => unsent(&e),
            }
        };
        tokio::join!(ping, knock);
    };
    let at_control = |n| async move {
        tokio::time::sleep(EVERY * n).await;
        let echo = outside.ping(control, timeout).await.ok().flatten()?;
        note(&|heard| heard.control += 1);
        Some(echo.rtt)
    };
    let window = async {
        let rtts = together((0..rounds).map(at_control)).await;
        // Where one got no answer, the longest there is.
        let slowest = rtts.into_iter().map(|rtt| rtt.unwrap_or(timeout)).max().unwrap_or_default();
        tokio::time::sleep_until(closes + hearing(slowest, timeout)).await;
    };
    let asked = async {
        together((0..rounds).map(at_target)).await;
        std::future::pending::<()>().await
    };
    tokio::select! {
        () = window => {}
        () = asked => {}
    }
    heard.into_inner().expect("nobody panics here")
}

/// Silence counts only if nothing of the target and nearly everything of the control was heard.
pub fn judge(target: Ipv4Addr, control: Ipv4Addr, heard: &Heard) -> Result<String> {
    let Heard { rounds, pings, knocks, control: answers, unsent, why_unsent } = heard;
    if *pings > 0 || *knocks > 0 {
        return Err(Error::new(
            Kind::Proof,
            format!(
                "expected silence of {target}, but it answered {pings} of {rounds} pings and \
                 {knocks} of {rounds} attempts at TCP 22"
            ),
        ));
    }
    if *unsent > 0 {
        return Err(Error::new(
            Kind::Proof,
            format!(
                "{unsent} attempts at {target}, of {rounds} pings and {rounds} of TCP 22, could \
                 not be sent ({}): this silence proves nothing",
                why_unsent.as_deref().unwrap_or("no reason known")
            ),
        ));
    }
    if *rounds == 0 || answers * 5 < rounds * 4 {
        return Err(Error::new(
            Kind::Proof,
            format!(
                "{target} was silent, but so was the control {control} ({answers} of {rounds} \
                 pings answered): this silence proves nothing"
            ),
        ));
    }
    Ok(format!(
        "{rounds} pings and {rounds} attempts at TCP 22 of {target} unanswered, while {control} \
         answered {answers} of {rounds} pings"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cloud::Later;
    use crate::cloud::proof::outside::Connected;
    use crate::lab::outside::{ConnectFailure, Echo, Neighbour, Unreachable};

    const T: Ipv4Addr = Ipv4Addr::new(172, 24, 4, 105);
    const C: Ipv4Addr = Ipv4Addr::new(172, 24, 4, 101);

    fn judged(rounds: u32, pings: u32, knocks: u32, control: u32) -> Result<String> {
        judge(T, C, &Heard { rounds, pings, knocks, control, ..Heard::default() })
    }

    /// Of the control, and what the target answers: pings and TCP 22 after so long, where it does.
    struct Played {
        rtt: Duration,
        ping: Option<Duration>,
        tcp: Option<Duration>,
    }

    impl Outside for Played {
        fn ping(&self, to: Ipv4Addr, timeout: Duration) -> Later<'_, Result<Option<Echo>>> {
            Box::pin(async move {
                let rtt = if to == C { Some(self.rtt) } else { self.ping };
                tokio::time::sleep(rtt.unwrap_or(timeout).min(timeout)).await;
                Ok(rtt.filter(|rtt| *rtt < timeout).map(|rtt| Echo { rtt, ttl: 63 }))
            })
        }
        fn connect(&self, _: SocketAddrV4, timeout: Duration) -> Later<'_, Connected> {
            Box::pin(async move {
                tokio::time::sleep(self.tcp.unwrap_or(timeout).min(timeout)).await;
                match self.tcp {
                    Some(_) => Err(ConnectFailure::Refused),
                    None => Err(ConnectFailure::TimedOut(timeout)),
                }
            })
        }
        fn resolve(&self, _: Ipv4Addr, _: Duration) -> Later<'_, Result<Neighbour>> {
            unreachable!()
        }
        fn who_has(&self, _: Ipv4Addr, _: Duration) -> Later<'_, Result<Neighbour>> {
            unreachable!()
        }
    }

    const MS: Duration = Duration::from_millis(1);

    async fn heard(played: Played) -> (Heard, Duration) {
        let start = Instant::now();
        let heard = listen(&played, T, C, ROUNDS, 5000 * MS).await;
        (heard, start.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn the_window_closes_by_what_the_controls_answers_take() {
        for (rtt, tail) in [(5, 500), (100, 2000), (400, 5000), (6000, 5000)] {
            let (heard, took) = heard(Played { rtt: rtt * MS, ping: None, tcp: None }).await;
            assert_eq!((heard.pings, heard.knocks), (0, 0));
            assert_eq!(heard.control, if rtt < 5000 { ROUNDS } else { 0 });
            let least = (4500 + tail) * MS;
            assert!(took >= least && took < least + 100 * MS, "{rtt} ms: {took:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_heard_until_the_window_closes_however_late() {
        // Later than the tail: all but the last rounds are heard all the same.
        for (late, rounds) in [(10, 10), (450, 10), (1200, 8), (4800, 1)] {
            let (heard, _) =
                heard(Played { rtt: 5 * MS, ping: Some(late * MS), tcp: Some(late * MS) }).await;
            assert_eq!((heard.pings, heard.knocks), (rounds, rounds), "{late} ms");
        }
    }

    #[test]
    fn silence_beside_a_live_control_is_proof() {
        assert!(judged(10, 0, 0, 10).is_ok());
        assert!(judged(10, 0, 0, 8).is_ok());
    }

    #[test]
    fn one_answer_breaks_it() {
        assert!(judged(10, 1, 0, 10).unwrap_err().to_string().contains("1 of 10 pings"));
        assert!(judged(10, 0, 1, 10).is_err());
    }

    #[test]
    fn what_was_never_sent_is_not_silence() {
        let why_unsent = Some("no route".into());
        let heard = Heard { rounds: 10, control: 10, unsent: 10, why_unsent, ..Heard::default() };
        let e = judge(T, C, &heard).unwrap_err().to_string();
        assert!(e.contains("no route") && e.contains("proves nothing"), "{e}");
    }

    /// Never gets an attempt out; what it says of that looks like an answer.
    struct Unplugged(ConnectFailure);

    impl Outside for Unplugged {
        fn ping(&self, to: Ipv4Addr, _: Duration) -> Later<'_, Result<Option<Echo>>> {
            let echo = Echo { rtt: MS, ttl: 63 };
            Box::pin(async move { Ok((to == C).then_some(echo)) })
        }
        fn connect(&self, _: SocketAddrV4, _: Duration) -> Later<'_, Connected> {
            Box::pin(async move { Err(self.0.clone()) })
        }
        fn resolve(&self, _: Ipv4Addr, _: Duration) -> Later<'_, Result<Neighbour>> {
            unreachable!()
        }
        fn who_has(&self, _: Ipv4Addr, _: Duration) -> Later<'_, Result<Neighbour>> {
            unreachable!()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn unsent_attempt_is_no_silence_whatever_its_words() {
        let at = SocketAddrV4::new(T, 22);
        let no_route = ConnectFailure::Unreachable(Unreachable::NoRoute);
        for own in [ConnectFailure::Local("refused: reset".into()), no_route] {
            let outside = Unplugged(own.clone());
            assert_eq!(knock(&outside, at, MS).await, Knock::Unsent(own));
            let heard = listen(&outside, T, C, ROUNDS, 5000 * MS).await;
            assert_eq!((heard.knocks, heard.unsent, heard.control), (0, ROUNDS, ROUNDS));
            judge(T, C, &heard).unwrap_err();
        }
        for silent in [ConnectFailure::TimedOut(MS), no_arp_answer()] {
            assert_eq!(knock(&Unplugged(silent), at, MS).await, Knock::Silent);
        }
        let refused = Unplugged(ConnectFailure::Refused);
        assert_eq!(knock(&refused, at, MS).await, Knock::Refused);
    }

    fn no_arp_answer() -> ConnectFailure {
        ConnectFailure::Unreachable(Unreachable::NoArpAnswer(T))
    }

    #[test]
    fn without_the_control_it_proves_nothing() {
        for control in [0, 7] {
            let e = judged(10, 0, 0, control).unwrap_err();
            assert!(e.to_string().contains("proves nothing"), "{e}");
        }
        assert!(judged(0, 0, 0, 0).is_err());
    }
}
