//! Several things at once that borrow from where they are waited for.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;

/// Runs all to their ends, failed or not, and gives their outcomes in their order. Every one has
/// begun before any is waited for. For a handful: each wake looks at all of them.
pub async fn together<F: Future>(all: impl IntoIterator<Item = F>) -> Vec<F::Output> {
    let mut running: Vec<One<F>> = all.into_iter().map(|f| One::Running(Box::pin(f))).collect();
    poll_fn(|cx| {
        let mut pending = false;
        for one in &mut running {
            if let One::Running(future) = one {
                match future.as_mut().poll(cx) {
                    Poll::Ready(out) => *one = One::Done(out),
                    Poll::Pending => pending = true,
                }
            }
        }
        if pending { Poll::Pending } else { Poll::Ready(()) }
    })
    .await;
    let done = running.into_iter().filter_map(|one| match one {
        One::Done(out) => Some(out),
        One::Running(_) => None,
    });
    done.collect()
}

enum One<F: Future> {
    Running(Pin<Box<F>>),
    Done(F::Output),
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
        assert!(together(Vec::<std::future::Ready<u8>>::new()).await.is_empty());
    }
}
