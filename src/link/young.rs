//! The first moments of a link that may be pooled. It stays with the runtime that logged it in, which watches its sockets already, and in
//! which its backend will be reset and rest: a client that asks one question and is gone changes no thread, and no socket changes hands.
//!
//! One that stays is for a worker, where a transaction costs less and an idle link holds neither task nor timer: so is one with much to move,
//! which would hold up logins. Until then it is the same relay, told of readiness by the runtime in place of a reactor.

use std::cell::Cell;
use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

use tokio::task::unconstrained;
use tokio::time::timeout;

use super::established::Established;
use super::reactor::Run;
use super::relay::{End, Scratch};

/// Wake-ups behind which a link is young no more: some thirty requests.
pub const WAKES_MAX: u32 = 64;
/// How long a link is young.
const AGE_MAX: Duration = Duration::from_secs(1);

thread_local! {
    /// One relay uses it after the other. It is empty while one does, and for good if that one panics.
    static SCRATCH: Cell<Option<Box<Scratch>>> = const { Cell::new(None) };
}

/// What became of a young link.
pub enum Youth {
    /// It is over, and must be seen off.
    Over(Box<Established>, End),
    /// It is for a worker.
    Grown(Box<Established>),
}

/// Relays for as long as a link is young. To be run where it was logged in.
pub async fn live(link: Box<Established>) -> Youth {
    live_for(AGE_MAX, link).await
}

async fn live_for(age_max: Duration, mut link: Box<Established>) -> Youth {
    let mut wakes = 0;
    let lived = poll_fn(|cx| {
        wakes += 1;
        let mut scratch = SCRATCH.take().unwrap_or_default();
        let ran = link.poll_run(cx, &mut scratch);
        SCRATCH.set(Some(scratch));
        match ran {
            Poll::Ready(Run::Done(end)) => Poll::Ready(Some(end)),
            Poll::Pending if wakes < WAKES_MAX => Poll::Pending,
            _ => Poll::Ready(None),
        }
    });
    // Its turns are bounded by its own count: a budget that is spent would pass for sockets that are not ready.
    match timeout(age_max, unconstrained(lived)).await {
        Ok(Some(end)) => Youth::Over(link, end),
        Ok(None) | Err(_) => Youth::Grown(link),
    }
}

#[cfg(test)]
mod tests;
