//! How many nodes boot at once on a host without hardware virtualisation, over all processes.
//!
//! A booting node keeps a core busy all the time. With as many as there are cores each goes on at
//! nearly its own speed (two together took 76 s where one alone took 45 s); with more they only
//! slow each other down, and guests whose timers are starved while their kernels calibrate them
//! can hang. So there is one slot a core, each a file that is held by a lock.

use crate::error::{Error, Kind, Result};
use crate::lockfile::{Hold, LockFile};
use crate::wait::{Death, Patience, Poll};
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::time::Duration;

/// Between two looks of one who waits.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// For the boots before it, on the reference machine: some ten labs of two nodes.
const TURN: Duration = Duration::from_secs(600);

#[derive(Clone, Debug)]
pub struct BootSlots {
    folder: PathBuf,
    /// None is without a limit.
    slots: Option<usize>,
}

/// The right to boot one node, until this is dropped.
#[derive(Debug)]
pub struct BootSlot {
    _lock: Option<LockFile>,
}

impl BootSlots {
    /// One slot for each of the host's processors, kept in `folder` (made 0700 where missing).
    pub fn open(folder: impl Into<PathBuf>) -> Result<BootSlots> {
        let cpus = std::thread::available_parallelism().map_or(1, |n| n.get());
        BootSlots::of(folder.into(), cpus)
    }

    fn of(folder: PathBuf, slots: usize) -> Result<BootSlots> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .map_err(|e| Error::host("cannot make the folder").at(&folder, None).because(e))?;
        Ok(BootSlots { folder, slots: Some(slots.max(1)) })
    }

    /// With hardware virtualisation a boot takes a moment, and nobody waits.
    pub fn unlimited() -> BootSlots {
        BootSlots { folder: PathBuf::new(), slots: None }
    }

    /// Waits until one of the slots is free.
    pub async fn take(&self, node: &str, death: &Death, patience: &Patience) -> Result<BootSlot> {
        if let Some(slot) = self.free()? {
            return Ok(slot);
        }
        patience.events.node(node, "waiting for other nodes to boot", 0, 2);
        let what = format!("other nodes to boot before {node}");
        patience
            .until(&what, TURN, LOOK_EVERY, death, || async {
                match self.free() {
                    Ok(Some(slot)) => Poll::Ready(slot),
                    Ok(None) => Poll::NotYet("every slot is taken".into()),
                    Err(e) => Poll::Failed(e),
                }
            })
            .await
    }

    fn free(&self) -> Result<Option<BootSlot>> {
        let Some(slots) = self.slots else { return Ok(Some(BootSlot { _lock: None })) };
        for slot in 0..slots {
            let path = self.folder.join(format!(".boot-slot-{slot}"));
            let taken = LockFile::try_take(&path, Hold::Exclusive).map_err(|e| {
                Error::new(Kind::Host, "cannot lock the boot slot").at(&path, None).because(e)
            })?;
            if taken.is_some() {
                return Ok(Some(BootSlot { _lock: taken }));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Events;
    use crate::wait::Speed;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn patience() -> Patience {
        Patience::new(Speed::new(1.0), Events::silent())
    }

    #[tokio::test(start_paused = true)]
    async fn never_more_boot_at_once_than_there_are_slots_and_all_boot() {
        let dir = tempfile::tempdir().unwrap();
        let (busy, most, done) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
        let (patience, never) = (patience(), Death::never());
        let boot = |name: &'static str| {
            // Each opens the folder for itself, as other processes do.
            let slots = BootSlots::of(dir.path().into(), 2).unwrap();
            let (busy, most, done, patience, never) = (&busy, &most, &done, &patience, &never);
            async move {
                let slot = slots.take(name, never, patience).await.unwrap();
                most.fetch_max(busy.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                for _ in 0..5 {
                    tokio::task::yield_now().await;
                }
                busy.fetch_sub(1, Ordering::SeqCst);
                done.fetch_add(1, Ordering::SeqCst);
                drop(slot);
            }
        };
        tokio::join!(boot("a"), boot("b"), boot("c"), boot("d"), boot("e"));
        assert_eq!((most.into_inner(), done.into_inner()), (2, 5));
    }

    #[tokio::test]
    async fn a_node_that_dies_in_the_queue_ends_its_wait() {
        let dir = tempfile::tempdir().unwrap();
        let slots = BootSlots::of(dir.path().into(), 1).unwrap();
        let _taken = slots.take("a", &Death::never(), &patience()).await.unwrap();
        let (life, death) = crate::wait::Life::new();
        life.ends("QEMU exited");
        let e = slots.take("b", &death, &patience()).await.unwrap_err();
        assert!(e.message().contains("other nodes to boot before b, but QEMU exited"), "{e}");
    }

    #[tokio::test]
    async fn without_a_limit_nobody_waits() {
        let slots = BootSlots::unlimited();
        let mut held = Vec::new();
        for _ in 0..100 {
            held.push(slots.take("n", &Death::never(), &patience()).await.unwrap());
        }
    }
}
