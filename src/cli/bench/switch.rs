//! Frames between two endpoints through our switch, beside vde_switch.

use super::race::{self, Outcome, Stream};
use super::vde::{self, Vde};
use super::{Number, TRIES};
use crate::cli::record::NotRun;
use crate::cli::session::Work;
use crate::error::{Context, Error, Kind, Result};
use crate::lab::switch::Switch;
use tokio::net::UnixStream;

/// The bytes of a frame behind its header: the common MTU, and jumbo frames.
const PAYLOADS: [usize; 2] = [1500, 9000];

/// What each race carries, in bytes.
const CARRIED: usize = 256 << 20;

const FRAMES: &str = "frames/s";
const MEGABYTES: &str = "MB/s";

/// Rows, and what could not be compared.
pub async fn measure(work: &Work) -> Result<(Vec<Number>, Vec<NotRun>)> {
    let (mut numbers, mut not_run) = (Vec::new(), Vec::new());
    for payload in PAYLOADS {
        let count = (CARRIED / payload) as u64;
        let ours = best(|| ours(payload, count)).await?;
        if ours.received != ours.sent {
            let lost = ours.sent - ours.received;
            return Err(Error::internal(format!("the switch lost {lost} of {} frames", ours.sent)));
        }
        let peer = match Vde::start(&work.patience()).await {
            Ok(Some(vde)) => best(|| peer(&vde, payload, count)).await.map_err(|e| e.to_string()),
            Ok(None) => Err(vde::INSTALL.into()),
            Err(e) => Err(e.to_string()),
        };
        let name = format!("switch, {payload}-byte frames");
        let peer = peer.map(|out| Carried::of(out, payload));
        numbers.extend(rows(
            &name,
            Carried::of(ours, payload),
            peer.as_ref().ok().map(|&p| (vde::PROGRAM, p)),
        ));
        if let Err(reason) = peer {
            not_run.push(NotRun { name: format!("{}, {payload} bytes", vde::PROGRAM), reason });
        }
    }
    Ok((numbers, not_run))
}

/// What a switch carried.
#[derive(Clone, Copy, Debug)]
pub struct Carried {
    /// A second.
    pub frames: f64,
    /// A second, with the headers of the frames.
    pub megabytes: f64,
    pub sent: u64,
    pub received: u64,
}

impl Carried {
    fn of(race: Outcome, payload: usize) -> Carried {
        let frames = race.received as f64 / race.seconds;
        let megabytes = frames * (payload + race::HEADER) as f64 / 1e6;
        Carried { frames, megabytes, sent: race.sent, received: race.received }
    }
}

/// Ours beside a peer, by its name, with what that one lost.
pub fn rows(name: &str, ours: Carried, peer: Option<(&str, Carried)>) -> [Number; 2] {
    let row = |value, unit| Number::new(name, value, unit);
    let [frames, megabytes] = [row(ours.frames, FRAMES), row(ours.megabytes, MEGABYTES)];
    let Some((who, peer)) = peer else {
        return [frames, megabytes];
    };
    let lost = peer.sent.saturating_sub(peer.received);
    let lost = 100.0 * lost as f64 / peer.sent.max(1) as f64;
    let who = format!("{who}, {lost:.1}% lost");
    [frames.beside(who.clone(), peer.frames), megabytes.beside(who, peer.megabytes)]
}

/// The fastest of some tries.
async fn best<F>(mut race: impl FnMut() -> F) -> Result<Outcome>
where
    F: Future<Output = Result<Outcome>>,
{
    let mut fastest: Option<Outcome> = None;
    for _ in 0..TRIES {
        let out = race().await?;
        let rate = |o: &Outcome| o.received as f64 / o.seconds;
        if fastest.as_ref().is_none_or(|best| rate(&out) > rate(best)) {
            fastest = Some(out);
        }
    }
    Ok(fastest.expect("TRIES is not 0"))
}

async fn ours(payload: usize, count: u64) -> Result<Outcome> {
    let cannot = || "an endpoint of the switch".to_owned();
    let network = Switch::new().network("bench");
    let plug = |name| {
        let (switch, machine) = UnixStream::pair()?;
        let machine = machine.into_std()?;
        machine.set_nonblocking(false)?;
        Ok::<_, std::io::Error>((network.plug(name, switch), Stream::new(machine)?))
    };
    let (_a, tx) = plug("a").doing(Kind::Host, cannot)?;
    let (_b, rx) = plug("b").doing(Kind::Host, cannot)?;
    let race = tokio::task::spawn_blocking(move || race::run(payload, count, tx, rx));
    let out = race.await.doing(Kind::Internal, || "the race ended".into())?;
    out.doing(Kind::Internal, || "frames through the switch".into())
}

async fn peer(vde: &Vde, payload: usize, count: u64) -> Result<Outcome> {
    let (tx, rx) = (vde.plug("tx")?, vde.plug("rx")?);
    let race = tokio::task::spawn_blocking(move || race::run(payload, count, tx, rx));
    let out = race.await.doing(Kind::Internal, || "the race ended".into())?;
    out.doing(Kind::Host, || format!("frames through {}", vde::PROGRAM))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn our_switch_loses_nothing_at_saturation() {
        for payload in PAYLOADS {
            let out = ours(payload, 5000).await.unwrap();
            assert_eq!((out.sent, out.received), (5000, 5000));
        }
    }

    #[test]
    fn a_row_tells_frames_and_bytes_and_what_the_peer_lost() {
        let ours = Outcome { sent: 100, received: 100, seconds: 0.5 };
        let peer = Outcome { sent: 100, received: 50, seconds: 1.0 };
        let [ours, peer] = [ours, peer].map(|outcome| Carried::of(outcome, 986));
        let [frames, megabytes] = rows("switch", ours, Some((vde::PROGRAM, peer)));
        assert_eq!((frames.value, frames.peer_value, frames.ratio), (200.0, Some(50.0), Some(4.0)));
        assert_eq!((megabytes.value, megabytes.unit), (0.2, "MB/s"));
        assert_eq!(frames.peer.as_deref(), Some("vde_switch, 50.0% lost"));
        assert_eq!(rows("switch", ours, None)[0].ratio, None);
    }
}
