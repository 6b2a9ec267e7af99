//! Silence, proven: nothing answers for a while in which it is known that the path would have
//! carried an answer.

use super::outside::{Knock, Outside, knock};
use crate::error::{Error, Kind, Result};
use crate::wait::together;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

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
    /// Pings of the target that could not even be sent, and why.
    pub unsent: u32,
    pub why_unsent: Option<String>,
}

/// Pings `target` and knocks at its port 22, and pings `control`, all at once, `rounds` times,
/// one round [`EVERY`] so often. What is silent is listened to for `timeout` after each.
pub async fn listen(
    outside: &dyn Outside,
    target: Ipv4Addr,
    control: Ipv4Addr,
    rounds: u32,
    timeout: Duration,
) -> Heard {
    let mut heard = Heard { rounds, ..Heard::default() };
    let round = |n| async move {
        tokio::time::sleep(EVERY * n).await;
        tokio::join!(
            outside.ping(target, timeout),
            knock(outside, SocketAddrV4::new(target, 22), timeout),
            outside.ping(control, timeout),
        )
    };
    for (ping, knocked, controlled) in together((0..rounds).map(round)).await {
        heard.pings += u32::from(matches!(ping, Ok(Some(_))));
        if let Err(e) = ping {
            heard.unsent += 1;
            heard.why_unsent = Some(e.to_string());
        }
        heard.knocks += u32::from(knocked != Knock::Silent);
        heard.control += u32::from(matches!(controlled, Ok(Some(_))));
    }
    heard
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
                "{unsent} of {rounds} pings of {target} could not be sent ({}): this silence \
                 proves nothing",
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

    const T: Ipv4Addr = Ipv4Addr::new(172, 24, 4, 105);
    const C: Ipv4Addr = Ipv4Addr::new(172, 24, 4, 101);

    fn judged(rounds: u32, pings: u32, knocks: u32, control: u32) -> Result<String> {
        judge(T, C, &Heard { rounds, pings, knocks, control, ..Heard::default() })
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

    #[test]
    fn without_the_control_it_proves_nothing() {
        for control in [0, 7] {
            let e = judged(10, 0, 0, control).unwrap_err();
            assert!(e.to_string().contains("proves nothing"), "{e}");
        }
        assert!(judged(0, 0, 0, 0).is_err());
    }
}
