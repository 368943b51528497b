//! One bound on several steps, with one timer: it is armed at the first step that has to wait.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use tokio::task::unconstrained;
use tokio::time::{Sleep, sleep};

/// To be pinned where the steps are; none: no bound any more, and no timer.
pub type Deadline = Option<Sleep>;

/// So much time from now on.
pub fn after(time: Duration) -> Deadline {
    Some(sleep(time))
}

/// Does a step; none where its time was over first.
pub async fn bound<T>(mut deadline: Pin<&mut Deadline>, step: impl Future<Output = T>) -> Option<T> {
    let mut step = pin!(step);
    poll_fn(|cx| {
        if let Poll::Ready(done) = step.as_mut().poll(cx) {
            return Poll::Ready(Some(done));
        }
        match deadline.as_mut().as_pin_mut() {
            // Past the task's budget: a step that finds more to do at each poll has used it up.
            Some(sleep) => pin!(unconstrained(sleep)).poll(cx).map(|()| None),
            None => Poll::Pending,
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::task::{consume_budget, yield_now};
    use tokio::time::timeout;

    use super::*;

    const SHORT: Duration = Duration::from_millis(5);

    #[tokio::test]
    async fn steps_share_their_time() {
        let mut deadline = pin!(after(Duration::from_secs(3600)));
        for _ in 0..2 {
            assert_eq!(bound(deadline.as_mut(), yield_now()).await, Some(()), "it has its time");
        }
        deadline.set(after(SHORT));
        for _ in 0..2 {
            assert_eq!(bound(deadline.as_mut(), pending::<()>()).await, None);
            assert_eq!(bound(deadline.as_mut(), async { 1 }).await, Some(1), "what need not wait is done");
        }
        let busy = async {
            loop {
                consume_budget().await;
            }
        };
        deadline.set(after(SHORT));
        assert_eq!(bound(deadline.as_mut(), busy).await, None::<()>, "it never has to wait");
        deadline.set(None);
        assert!(timeout(SHORT, bound(deadline, pending::<()>())).await.is_err(), "no bound");
    }
}
