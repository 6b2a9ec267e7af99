//! One direction of a port under a fault: decides each frame's fate and keeps those that must
//! wait.
//!
//! A lane belongs to a port's name and outlives its plug: QEMU may connect anew. While it has no
//! fault and holds nothing, its ports do not even look at it.

use super::counters::FaultCounters;
use super::fate::Fates;
use super::impairment::{Direction, Impairment};
use super::port::PortCore;
use super::shaper::Shaper;
use super::table::{Domain, View};
use super::way;
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

/// Both lanes of a port, in the order of [`Direction::BOTH`].
pub(super) type Lanes = [Arc<Lane>; 2];

/// What a lane holds at most, in bytes of frames: 20 ms of seven gigabits a second.
pub(super) const ROOM: usize = 16 * 1024 * 1024;

/// How long a reordered frame waits to be overtaken when no more frames come.
const OVERTAKING: Duration = Duration::from_millis(50);

/// Frames let out at once.
const BURST: usize = 64;

#[derive(Debug)]
pub(super) struct Lane {
    direction: Direction,
    state: Mutex<State>,
    /// Told when something must leave earlier than the lane's task knows.
    sooner: Notify,
}

#[derive(Debug)]
struct State {
    fault: Option<Impairment>,
    fates: Fates,
    /// The number of the next frame, from 0 since the fault was set.
    next: u64,
    shaper: Shaper,
    /// In the order in which they leave; their times never decrease.
    line: VecDeque<Waiting>,
    /// Reordered frames that wait to be overtaken.
    held: Vec<Held>,
    /// Of the frames in `line` and `held`.
    bytes: usize,
    /// A task lets frames out, or is about to.
    running: bool,
    /// What the task waits for.
    wakes: Option<Instant>,
    counters: FaultCounters,
}

#[derive(Debug)]
struct Waiting {
    due: Instant,
    frame: Bytes,
    port: Arc<PortCore>,
}

#[derive(Debug)]
struct Held {
    waiting: Waiting,
    /// Let go behind the frame of this number...
    behind: u64,
    /// ...or at this time.
    until: Instant,
}

/// What becomes of a frame that enters a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It goes on at once, so many times.
    Pass(u32),
    /// It is lost, dropped, or waits in the lane.
    Kept,
}

impl Lane {
    pub fn new(direction: Direction) -> Lane {
        let state = State {
            fault: None,
            fates: Fates::new(0, "", direction),
            next: 0,
            shaper: Shaper::default(),
            line: VecDeque::new(),
            held: Vec::new(),
            bytes: 0,
            running: false,
            wakes: None,
            counters: FaultCounters::default(),
        };
        Lane { direction, state: Mutex::new(state), sooner: Notify::new() }
    }

    /// From now on `fault`; frames count from 0 again. What waits already keeps its time.
    pub fn set(&self, fault: Option<Impairment>, seed: u64, port: &str) {
        let mut state = self.lock();
        state.fault = fault.filter(|f| !f.is_none());
        state.fates = Fates::new(seed, port, self.direction);
        state.next = 0;
        state.shaper = Shaper::default();
    }

    pub fn fault(&self) -> Option<Impairment> {
        self.lock().fault
    }
    pub fn counters(&self) -> FaultCounters {
        self.lock().counters
    }
    /// Frames that wait, or are being let out.
    pub fn waiting(&self) -> usize {
        let state = self.lock();
        state.line.len() + state.held.len() + usize::from(state.running)
    }

    /// Calls `look` with whether frames must come here, while that cannot change.
    pub fn look(&self, look: impl FnOnce(bool)) {
        let state = self.lock();
        look(state.is_needed());
    }

    /// One frame of `port`. The lane keeps a copy of what must wait: the frame may be a slice of
    /// something larger.
    pub fn enter(
        self: &Arc<Self>,
        domain: &Arc<Domain>,
        port: &Arc<PortCore>,
        frame: &Bytes,
    ) -> Verdict {
        let mut guard = self.lock();
        let state = &mut *guard;
        // The data plane's own clock: a frame's departure is no wait for anything to happen.
        let now = Instant::now();
        let Some(fault) = state.fault else {
            if !state.is_needed() {
                port.leave_lane(self.direction);
                return Verdict::Pass(1);
            }
            // Behind the frames of a fault that is over.
            state.append(port, frame, now);
            self.wake(guard, domain);
            return Verdict::Kept;
        };
        let number = state.next;
        state.next += 1;
        state.counters.met += 1;
        let fate = state.fates.of(number, &fault);
        if fate.lost {
            state.counters.lost += 1;
            return Verdict::Kept;
        }
        state.counters.duplicated += u64::from(fate.duplicated);
        state.counters.reordered += u64::from(fate.overtaken > 0);
        let copies = 1 + u32::from(fate.duplicated);
        if !fault.delays() && !state.holds_any() {
            return Verdict::Pass(copies);
        }
        for _ in 0..copies {
            let mut due = now;
            if let Some(rate) = fault.bandwidth {
                match state.shaper.depart(now, frame.len(), rate) {
                    Some(depart) => due = depart,
                    None => {
                        state.counters.over_rate += 1;
                        continue;
                    }
                }
            }
            due += fate.delay;
            state.counters.delayed += u64::from(due > now);
            if fate.overtaken == 0 {
                state.append(port, frame, due);
            } else {
                state.hold(port, frame, due, number + fate.overtaken);
            }
        }
        state.release_overtaken(number);
        self.wake(guard, domain);
        Verdict::Kept
    }

    /// Starts the task, or tells it that something leaves sooner than it knows.
    fn wake(self: &Arc<Self>, mut state: MutexGuard<'_, State>, domain: &Arc<Domain>) {
        if !state.holds_any() {
            return;
        }
        if !state.running {
            state.running = true;
            tokio::spawn(run(self.clone(), domain.clone()));
        } else if state.wakes.is_some_and(|at| state.first_due() < Some(at)) {
            self.sooner.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl State {
    /// Something waits, or is being let out at this moment: what comes now must not overtake it.
    fn holds_any(&self) -> bool {
        self.running || !self.line.is_empty() || !self.held.is_empty()
    }

    fn is_needed(&self) -> bool {
        self.fault.is_some() || self.holds_any()
    }

    /// A frame, unless there is no room for it: counted.
    fn keep(&mut self, port: &Arc<PortCore>, frame: &Bytes, due: Instant) -> Option<Waiting> {
        if self.bytes + frame.len() > ROOM {
            self.counters.overflowed += 1;
            return None;
        }
        self.bytes += frame.len();
        Some(Waiting { due, frame: Bytes::copy_from_slice(frame), port: port.clone() })
    }

    /// At the end of the line: order is kept, whatever the jitter says.
    fn append(&mut self, port: &Arc<PortCore>, frame: &Bytes, due: Instant) {
        if let Some(waiting) = self.keep(port, frame, due) {
            self.push(waiting);
        }
    }

    fn push(&mut self, mut waiting: Waiting) {
        if let Some(last) = self.line.back() {
            waiting.due = waiting.due.max(last.due);
        }
        self.line.push_back(waiting);
    }

    fn hold(&mut self, port: &Arc<PortCore>, frame: &Bytes, due: Instant, behind: u64) {
        if let Some(waiting) = self.keep(port, frame, due) {
            self.held.push(Held { waiting, behind, until: due + OVERTAKING });
        }
    }

    /// Lets go what was to be overtaken by frame `number`, which is in the line now.
    fn release_overtaken(&mut self, number: u64) {
        for held in self.held.extract_if(.., |h| h.behind <= number).collect::<Vec<_>>() {
            self.push(held.waiting);
        }
    }

    /// Lets go what has waited in vain, where its time is in the line.
    fn release_late(&mut self, now: Instant) {
        for held in self.held.extract_if(.., |h| h.until <= now).collect::<Vec<_>>() {
            let at = self.line.partition_point(|w| w.due <= held.until);
            self.line.insert(at, Waiting { due: held.until, ..held.waiting });
        }
    }

    fn first_due(&self) -> Option<Instant> {
        let line = self.line.front().map(|w| w.due);
        let held = self.held.iter().map(|h| h.until).min();
        [line, held].into_iter().flatten().min()
    }

    /// Moves what is due into `out`, at most [`BURST`]. When nothing is: what to wait for, or None
    /// for nothing at all.
    fn take_due(&mut self, now: Instant, out: &mut Vec<Waiting>) -> Option<Instant> {
        self.release_late(now);
        while out.len() < BURST && self.line.front().is_some_and(|w| w.due <= now) {
            let waiting = self.line.pop_front().expect("it has a front");
            self.bytes -= waiting.frame.len();
            out.push(waiting);
        }
        self.first_due()
    }
}

/// The one task of a lane that holds something: lets frames out in order, each at its time, and
/// ends when none is left.
async fn run(lane: Arc<Lane>, domain: Arc<Domain>) {
    let mut view = View::new(domain);
    let mut out = Vec::with_capacity(BURST);
    loop {
        let sleep = {
            let mut state = lane.lock();
            let next = state.take_due(Instant::now(), &mut out);
            state.wakes = next.filter(|_| out.is_empty());
            if out.is_empty() && next.is_none() {
                state.running = false;
                return;
            }
            state.wakes
        };
        if let Some(at) = sleep {
            tokio::select! {
                () = sleep_until(at) => {}
                () = lane.sooner.notified() => {}
            }
        }
        for waiting in out.drain(..) {
            match lane.direction {
                Direction::From => way::carry(&mut view, &waiting.port, &waiting.frame).await,
                Direction::To => waiting.port.put_frame(&waiting.frame).await,
            }
        }
    }
}
