//! The way of a frame from the port it came from to the ports it is for.
//!
//! Mostly frames come in runs between the same two machines and nothing is special about them:
//! then a whole run goes on in one piece, uncopied, under one lock of the receiver's queue.

use super::impairment::Direction;
use super::lane::Verdict;
use super::port::PortCore;
use super::table::{Tap, View};
use crate::lab::mac::Mac;
use crate::lab::wire;
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use tokio::sync::mpsc;

/// Both addresses of a frame.
const ADDRESSES: usize = 12;

/// Whole frames with the same two addresses, in the form of the wire.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run<'a> {
    pub bytes: &'a [u8],
    pub frames: u64,
}

impl<'a> Run<'a> {
    /// The run at the front of `bytes`, and the bytes behind it. None when there is no whole
    /// frame; an error with its length when a frame is longer than `longest`, or empty.
    pub fn split(bytes: &'a [u8], longest: usize) -> Result<Option<(Run<'a>, &'a [u8])>, usize> {
        let (mut at, mut frames) = (0, 0);
        while let Some(head) = bytes[at..].first_chunk::<4>() {
            let length = u32::from_be_bytes(*head) as usize;
            if length == 0 || length > longest {
                // What came before it is good.
                if frames > 0 {
                    break;
                }
                return Err(length);
            }
            let Some(frame) = bytes[at + 4..].get(..length) else { break };
            let same = frame.len() >= wire::ETHERNET_HEADER
                && frame[..ADDRESSES] == bytes[4..4 + ADDRESSES];
            if frames > 0 && !same {
                break;
            }
            (at, frames) = (at + 4 + length, frames + 1);
            if frame.len() < wire::ETHERNET_HEADER {
                break;
            }
        }
        Ok((frames > 0).then(|| (Run { bytes: &bytes[..at], frames }, &bytes[at..])))
    }
}

/// Takes a run in from `from`.
pub(super) async fn enter_run(view: &mut View, from: &Arc<PortCore>, run: Run<'_>) {
    from.received.add(run.frames, run.bytes.len() as u64 - 4 * run.frames);
    if let Some(target) = straight(view, from, &run) {
        return target.put_run(run.bytes, run.frames).await;
    }
    let bytes = Bytes::copy_from_slice(run.bytes);
    let mut at = 0;
    while let Some(head) = bytes[at..].first_chunk::<4>() {
        let end = at + 4 + u32::from_be_bytes(*head) as usize;
        enter(view, from, &bytes.slice(at + 4..end)).await;
        at = end;
    }
}

/// The port that a whole run may go to as it is.
fn straight(view: &mut View, from: &Arc<PortCore>, run: &Run<'_>) -> Option<Arc<PortCore>> {
    let (dst, src) = addresses(&run.bytes[4..])?;
    let table = view.table();
    if !from.is_plain() || !table.taps.is_empty() || !table.split.is_whole() {
        return None;
    }
    let known = table.learned.get(&src).is_some_and(|port| Arc::ptr_eq(port, from));
    let target = table.learned.get(&dst).filter(|_| known && !dst.is_group())?;
    let fit = !Arc::ptr_eq(target, from) && target.is_plain() && target.queue().is_some();
    fit.then(|| target.clone())
}

/// Takes one frame in from `from`, counted already.
pub(super) async fn enter(view: &mut View, from: &Arc<PortCore>, frame: &Bytes) {
    // Shorter than an Ethernet header: no receiver could be found for it.
    if !from.is_up() || frame.len() < wire::ETHERNET_HEADER {
        return from.dropped(1);
    }
    if let Verdict::Pass(copies) = from.fate(Direction::From, &view.domain, frame) {
        for _ in 0..copies {
            carry(view, from, frame).await;
        }
    }
}

/// Behind the fault of its port: shows, learns and delivers one frame.
pub(super) async fn carry(view: &mut View, from: &Arc<PortCore>, frame: &Bytes) {
    let Some((dst, src)) = addresses(frame).filter(|_| from.is_up()) else {
        return from.dropped(1);
    };
    from.show(Direction::From, frame);
    let table = view.table().clone();
    for tap in &table.taps {
        copy_to(tap, view, frame);
    }
    if !src.is_group() && !table.learned.get(&src).is_some_and(|p| Arc::ptr_eq(p, from)) {
        view.domain.learn(src, from);
    }
    let others = |port: &&Arc<PortCore>| !Arc::ptr_eq(port, from);
    let joined = |port: &&Arc<PortCore>| table.split.joins(&from.name, &port.name);
    if !dst.is_group()
        && let Some(port) = table.learned.get(&dst)
    {
        // A frame for a neighbour on its own port has already arrived.
        match Some(port).filter(others) {
            Some(port) if joined(&port) => port.deliver(&view.domain, frame).await,
            Some(_) => from.separated(),
            None => {}
        }
        return;
    }
    if !table.split.is_whole() && !table.ports.iter().filter(others).all(|port| joined(&port)) {
        from.separated();
    }
    for port in table.ports.iter().filter(others).filter(joined) {
        port.deliver(&view.domain, frame).await;
    }
}

fn addresses(bytes: &[u8]) -> Option<(Mac, Mac)> {
    let header = bytes.first_chunk::<{ wire::ETHERNET_HEADER }>()?;
    Some((Mac(*header.first_chunk()?), Mac(*header[6..].first_chunk()?)))
}

fn copy_to(tap: &Tap, view: &View, frame: &[u8]) {
    if !(tap.wanted)(frame) {
        return;
    }
    match tap.to.try_reserve() {
        // A copy of its own: the frame may be a slice of something larger.
        Ok(permit) => permit.send(Bytes::copy_from_slice(frame)),
        Err(mpsc::error::TrySendError::Full(())) => {
            view.domain.lost_copies.fetch_add(1, Relaxed);
        }
        Err(mpsc::error::TrySendError::Closed(())) => view.domain.remove_dead_taps(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(frame: &[u8]) -> Vec<u8> {
        [&(frame.len() as u32).to_be_bytes()[..], frame].concat()
    }

    #[test]
    fn a_run_ends_where_the_addresses_change_or_a_frame_is_not_whole() {
        let (one, two) = ([1u8; 20], [2u8; 20]);
        let bytes = [framed(&one), framed(&one), framed(&two), framed(&two)].concat();
        let (run, rest) = Run::split(&bytes[..bytes.len() - 1], 100).unwrap().unwrap();
        assert_eq!((run.frames, run.bytes.len()), (2, 48));
        let (run, rest) = Run::split(rest, 100).unwrap().unwrap();
        assert_eq!((run.frames, run.bytes), (1, &framed(&two)[..]));
        assert!(Run::split(rest, 100).unwrap().is_none());
        for end in 0..24 {
            assert!(Run::split(&bytes[..end], 100).unwrap().is_none());
        }
    }

    #[test]
    fn a_short_frame_is_alone_and_a_bad_length_is_told_after_the_good_ones() {
        let bytes = [framed(&[1; 13]), framed(&[1; 13]), framed(&[1; 20])].concat();
        let (run, rest) = Run::split(&bytes, 100).unwrap().unwrap();
        assert_eq!((run.frames, rest.len()), (1, bytes.len() - 17));
        for bad in [0u32, 101] {
            let bytes = [framed(&[1; 20]), bad.to_be_bytes().to_vec()].concat();
            let (run, rest) = Run::split(&bytes, 100).unwrap().unwrap();
            assert_eq!(run.frames, 1);
            assert_eq!(Run::split(rest, 100).unwrap_err(), bad as usize);
        }
    }
}
