//! Those who only hold: idle hoarders, connections past the proxy, and backends whose worker was killed.

use std::time::Duration;

use rand::RngExt;

use super::worker::{Done, Stamp, Worker};
use crate::drill::client::{Failure, Link};
use crate::drill::odoo;
use crate::drill::scenario::Kind;
use crate::drill::schedule::{Arrival, around};
use crate::drill::stage::Post;
use crate::drill::tally::Ending;

/// Holders come one after the other within so long, not in one instant.
const SPREAD: f64 = 1.0;
/// Time from a refusal to the next try.
const AGAIN: std::ops::Range<f64> = 1.0..2.0;

/// Holds one link through each window: logged in, used once, idle. Who bypasses comes back when it is closed; a hoarder would not notice before its
/// next use.
pub async fn hold(post: Post, number: u32, windows: Vec<(Duration, Duration)>) {
    let stage = post.stage.clone();
    let holding = async {
        let mut dice = post.worker_dice(number);
        for (start, end) in windows {
            stage.until(start + Duration::from_secs_f64(dice.random_range(0.0..SPREAD))).await;
            while stage.now() < end {
                let arrived = stage.now();
                match take(&post).await {
                    Ok(mut link) => {
                        post.ended(arrived, Some(stage.now()), Ending::Ok);
                        let left = end.saturating_sub(stage.now());
                        let lost = tokio::time::timeout(left, link.listen()).await;
                        if lost.is_err() || post.actor.kind == Kind::Hoard {
                            stage.until(end).await;
                            link.close().await;
                        }
                    }
                    Err(failure) => {
                        post.failed(&failure);
                        post.ended(arrived, None, Ending::Failed);
                    }
                }
                let pause = Duration::from_secs_f64(dice.random_range(AGAIN));
                tokio::time::sleep(pause.min(end.saturating_sub(stage.now()))).await;
            }
        }
    };
    let _: Option<()> = stage.unless_over(holding).await;
}

async fn take(post: &Post) -> Result<Link, Failure> {
    let direct = post.actor.kind == Kind::Bypass;
    let database = post.stage.way.account.database.clone();
    let mut link = post.stage.connect(direct, &database, &post.application).await?;
    link.query("SELECT 1").await?;
    Ok(link)
}

/// A worker that is killed in the middle of a long query.
pub struct Killed {
    post: Post,
}

impl Killed {
    /// Still alive.
    pub fn new(post: Post) -> Self {
        Self { post }
    }
}

impl Worker for Killed {
    async fn serve(&mut self, arrival: Arrival, stamp: &mut Stamp) -> Done {
        let mut dice = self.post.dice(&arrival);
        let query = odoo::pause(around(&mut dice, self.post.actor.work).as_secs_f64());
        let alive = Duration::from_secs_f64(dice.random_range(0.2..1.0));
        let mut link = match self.post.connect().await {
            Ok(link) => link,
            Err(failure) => {
                self.post.failed(&failure);
                return Done::Over(Ending::Failed);
            }
        };
        stamp.0 = Some(self.post.stage.now());
        let running = async {
            link.query(self.post.stage.begin()).await?;
            link.query(&query).await
        };
        match tokio::time::timeout(alive, running).await {
            Ok(Err(failure)) => {
                self.post.failed(&failure);
                Done::Over(Ending::Failed)
            }
            // The socket closes here, the query runs on.
            Ok(Ok(())) | Err(_) => Done::Over(Ending::Ok),
        }
    }

    fn die(&mut self) {}
}
