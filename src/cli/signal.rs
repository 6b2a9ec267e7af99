//! Ctrl-C and SIGTERM: the first drops the work, and everything it owns cleans up after itself; the
//! second ends the process at once (machines die with it: the kernel sees to that). Work whose
//! ordinary end is a signal is told of the first, and dropped at the second.

use crate::error::{Context, Error, Kind, Result};
use crate::event::Events;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

/// The signals that mean "stop". Made before any work begins, so that no moment is uncovered.
///
/// A signal that was ignored when the process began stays ignored, as `nohup` (SIGHUP) and shells
/// without job control (SIGINT of a command with `&`) ask for.
pub struct Stop(Vec<Signal>);

impl Stop {
    /// Must be called within a tokio runtime.
    pub fn watch() -> Result<Stop> {
        let ignored = ignored_signals();
        let all = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
        let heeded = all.into_iter().filter(|kind| !is_in(ignored, *kind));
        let on = |kind| signal(kind).doing(Kind::Internal, || "signals cannot be handled".into());
        Ok(Stop(heeded.map(on).collect::<Result<_>>()?))
    }

    /// Runs `work` to its end, which begins when `told` hears of the first signal. The second drops
    /// it, and the error is [`Kind::Interrupted`].
    pub async fn tell<T>(
        mut self,
        told: oneshot::Sender<()>,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let mut work = Box::pin(work);
        tokio::select! {
            out = &mut work => return out,
            () = self.asked() => {}
        }
        let _ = told.send(());
        tokio::select! {
            out = &mut work => out,
            () = self.asked() => Err(Error::interrupted()),
        }
    }

    async fn asked(&mut self) {
        std::future::poll_fn(|cx| {
            match self.0.iter_mut().any(|signal| signal.poll_recv(cx).is_ready()) {
                true => std::task::Poll::Ready(()),
                false => std::task::Poll::Pending,
            }
        })
        .await;
    }

    /// Runs `work` to its end, or until asked to stop: then `work` is dropped, which must clean up,
    /// and the error is [`Kind::Interrupted`].
    pub async fn or<T>(
        mut self,
        events: &Events,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        // Boxed, so that dropping it is an event that we see the end of.
        let mut work = Box::pin(work);
        tokio::select! {
            out = &mut work => return out,
            () = self.asked() => {}
        }
        events.warning("stopping and cleaning up (once more to stop at once)");
        let second = tokio::spawn(async move {
            self.asked().await;
            std::process::exit(i32::from(Kind::Interrupted.exit_code()));
        });
        // Cleaning up may block; the second signal is waited for on another thread.
        drop(work);
        second.abort();
        Err(Error::interrupted())
    }
}

/// The mask of the signals that this process ignores. A handler of ours takes a signal out of it.
fn ignored_signals() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

fn is_in(mask: u64, kind: SignalKind) -> bool {
    mask & (1 << (kind.as_raw_value() - 1)) != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_names_its_signals() {
        assert!(is_in(0x1, SignalKind::hangup()) && !is_in(0x1, SignalKind::interrupt()));
        assert!(is_in(0x4002, SignalKind::terminate()) && is_in(0x4002, SignalKind::interrupt()));
        // Rust ignores SIGPIPE.
        assert!(is_in(ignored_signals(), SignalKind::pipe()));
    }
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    struct Machine(Arc<AtomicBool>);
    impl Drop for Machine {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_signal_drops_the_work_with_all_it_owns_and_says_interrupted() {
        let gone = Arc::new(AtomicBool::new(false));
        let machine = Machine(gone.clone());
        let stop = Stop::watch().unwrap();
        let work = async move {
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::TERM)
                .unwrap();
            std::future::pending::<()>().await;
            drop(machine);
            Ok(())
        };
        let e = stop.or(&Events::silent(), work).await.unwrap_err();
        assert_eq!(e.kind(), Kind::Interrupted);
        assert!(gone.load(Ordering::SeqCst));
    }

    #[tokio::test]
    async fn work_that_is_told_of_the_signal_comes_to_its_own_end() {
        let stop = Stop::watch().unwrap();
        let (tell, told) = oneshot::channel();
        let work = async move {
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::HUP)
                .unwrap();
            told.await.unwrap();
            tokio::task::yield_now().await;
            Ok("the rest")
        };
        assert_eq!(stop.tell(tell, work).await.unwrap(), "the rest");
    }

    #[tokio::test]
    async fn work_that_ends_by_itself_keeps_its_result() {
        let out = Stop::watch().unwrap().or(&Events::silent(), async { Ok(7) }).await;
        assert_eq!(out.unwrap(), 7);
    }
}
