//! A deadline that is cheap to move: most timeouts are set for every request
//! and almost never fire, so the timer wheel is touched only when the deadline
//! comes nearer or the armed one passes.
//!
//! **Invariant:** the armed sleep never ends later than the target.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::time::{Instant, Sleep, sleep_until};

#[derive(Debug, Default)]
pub struct Timer {
    target: Option<Instant>,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Timer {
    /// Moves the deadline; `None` disarms.
    pub fn set(&mut self, target: Option<Instant>) {
        self.target = target;
    }

    /// Ready once the deadline has passed; stays ready until moved.
    pub fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(target) = self.target else {
            return Poll::Pending;
        };
        loop {
            let sleep = self
                .sleep
                .get_or_insert_with(|| Box::pin(sleep_until(target)));
            if sleep.deadline() > target || (sleep.is_elapsed() && sleep.deadline() < target) {
                sleep.as_mut().reset(target);
            }
            ready!(sleep.as_mut().poll(cx));
            if sleep.deadline() >= target {
                return Poll::Ready(());
            }
        }
    }

    /// Waits for `future`, or for the deadline.
    pub async fn limit<F: Future>(&mut self, future: F) -> Option<F::Output> {
        let mut future = std::pin::pin!(future);
        std::future::poll_fn(|cx| {
            if let Poll::Ready(output) = future.as_mut().poll(cx) {
                return Poll::Ready(Some(output));
            }
            self.poll_expired(cx).map(|()| None)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn fires_at_the_target_that_counts() {
        let start = Instant::now();
        for (moves, want) in [(vec![10], 10), (vec![10, 30], 30), (vec![30, 10], 10)] {
            let mut timer = Timer::default();
            let begin = Instant::now();
            for after in moves {
                timer.set(Some(begin + Duration::from_secs(after)));
                assert!(
                    std::future::poll_fn(|cx| Poll::Ready(timer.poll_expired(cx).is_pending()))
                        .await
                );
            }
            assert!(timer.limit(std::future::pending::<()>()).await.is_none());
            assert_eq!(begin.elapsed().as_secs(), want);
        }
        assert!(start.elapsed() >= Duration::from_secs(50));
    }

    #[tokio::test(start_paused = true)]
    async fn disarmed_never_fires() {
        let mut timer = Timer::default();
        timer.set(Some(Instant::now() + Duration::from_secs(1)));
        timer.set(None);
        let waited = timer
            .limit(tokio::time::sleep(Duration::from_secs(100)))
            .await;
        assert!(waited.is_some());
    }
}
