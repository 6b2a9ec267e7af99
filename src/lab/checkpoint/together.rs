//! Several things at once that borrow from the lab.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;

/// Runs all to their ends, failed or not, and gives their outcomes in their order. Every one has
/// begun before any is waited for. For a handful: each wake looks at all of them.
pub(super) async fn together<F: Future>(all: impl IntoIterator<Item = F>) -> Vec<F::Output> {
    let mut running: Vec<(Pin<Box<F>>, Option<F::Output>)> =
        all.into_iter().map(|f| (Box::pin(f), None)).collect();
    poll_fn(|cx| {
        for (future, out) in running.iter_mut().filter(|(_, out)| out.is_none()) {
            if let Poll::Ready(done) = future.as_mut().poll(cx) {
                *out = Some(done);
            }
        }
        match running.iter().all(|(_, out)| out.is_some()) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    })
    .await;
    running.into_iter().filter_map(|(_, out)| out).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::Barrier;

    #[tokio::test]
    async fn all_run_at_once_to_their_ends_and_keep_their_order() {
        // Nobody gets through unless all have come.
        let barrier = Barrier::new(3);
        let one = async |n: u8| {
            barrier.wait().await;
            if n == 1 { Err(n) } else { Ok(n) }
        };
        assert_eq!(together([one(0), one(1), one(2)]).await, [Ok(0), Err(1), Ok(2)]);
        assert!(together([one(0); 0]).await.is_empty());
    }
}
