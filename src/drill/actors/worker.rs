//! A worker process: takes the oldest due request, carries it out, and is killed when that takes too long.

use std::future::Future;
use std::time::Duration;

use crate::drill::client::{Failure, Link};
use crate::drill::retry::Retry;
use crate::drill::schedule::{Arrival, Dice};
use crate::drill::stage::Post;
use crate::drill::tally::Ending;

/// How an attempt to serve an arrival ended.
#[derive(Debug)]
pub enum Done {
    /// The request is over.
    Over(Ending),
    /// It is still due, after this time: somebody takes it up again. This worker does nothing for the second.
    StillDue(Duration, Duration),
}

/// When a link was ready for the request, the last time.
#[derive(Debug, Default)]
pub struct Stamp(pub Option<Duration>);

/// Somebody who serves arrivals one after the other.
pub trait Worker: Send + 'static {
    /// Serves one. Failed attempts are counted on the way.
    fn serve(&mut self, arrival: Arrival, stamp: &mut Stamp) -> impl Future<Output = Done> + Send;
    /// The process is gone: so are its links, without a word.
    fn die(&mut self);
}

/// A worker's life.
pub async fn work(post: Post, mut worker: impl Worker) {
    while let Some(arrival) = post.queue.next().await {
        let mut stamp = Stamp::default();
        // Where a person waits, the clock ticks from the arrival; a job's from its start.
        let since = if post.actor.kind.has_a_user() { arrival.at } else { post.stage.now() };
        let patience = (since + post.actor.timeout).saturating_sub(post.stage.now());
        if patience.is_zero() {
            post.failed_as("timeout");
            post.over(arrival.at, None, Ending::Failed);
            continue;
        }
        let serving = tokio::time::timeout(patience, worker.serve(arrival, &mut stamp));
        match post.stage.unless_over(serving).await {
            Some(Ok(Done::Over(ending))) => post.over(arrival.at, stamp.0, ending),
            Some(Ok(Done::StillDue(after, pause))) => {
                due_again(&post, arrival, after);
                let _ = post.stage.unless_over(tokio::time::sleep(pause)).await;
            }
            Some(Err(_)) => {
                worker.die();
                post.failed_as("timeout");
                post.over(arrival.at, stamp.0, Ending::Failed);
            }
            None => {
                worker.die();
                let user = post.actor.kind.has_a_user();
                post.over(arrival.at, stamp.0, Ending::Unfinished { user });
            }
        }
    }
}

fn due_again(post: &Post, arrival: Arrival, after: Duration) {
    if after.is_zero() {
        return post.queue.again(arrival);
    }
    let post = post.clone();
    tokio::spawn(async move {
        // At the end of the run it is back in the queue at once, to be found there.
        let _ = post.stage.unless_over(tokio::time::sleep(after)).await;
        post.queue.again(arrival);
    });
}

/// What Odoo's HTTP layer wraps a request in.
pub trait Request: Send {
    /// Where its figures go.
    fn post(&self) -> &Post;
    /// One try.
    fn attempt(
        &mut self,
        arrival: &Arrival,
        dice: &mut Dice,
        stamp: &mut Stamp,
    ) -> impl Future<Output = Result<(), Failure>> + Send;
    /// The link it works on, if it has one.
    fn link(&mut self) -> Option<&mut Link>;
    /// Rolls the failed try back; the link stays.
    fn roll_back(&mut self) -> impl Future<Output = Result<(), Failure>> + Send {
        async {
            match self.link() {
                Some(link) => link.query("ROLLBACK").await,
                None => Ok(()),
            }
        }
    }
}

/// Tries as often as Odoo does. Each try makes the same choices.
pub async fn retrying(request: &mut impl Request, arrival: &Arrival, stamp: &mut Stamp) -> Ending {
    let mut retry = Retry::default();
    let mut pauses = request.post().dice(arrival);
    loop {
        let mut dice = request.post().dice(arrival);
        let Err(failure) = request.attempt(arrival, &mut dice, stamp).await else { return Ending::Ok };
        request.post().failed(&failure);
        let Some(pause) = retry.after(failure.odoo_sees(), &mut pauses) else {
            let _ = request.roll_back().await;
            return Ending::Failed;
        };
        request.post().retried();
        if let Err(failure) = request.roll_back().await {
            request.post().failed(&failure);
            return Ending::Failed;
        }
        tokio::time::sleep(pause).await;
    }
}
