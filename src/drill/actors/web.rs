//! An HTTP worker: short transactions on pooled links, repeated as Odoo repeats them, and bus notifications beside them.

use rand::RngExt;

use super::pool::Pool;
use super::worker::{Done, Request, Stamp, Worker, retrying};
use crate::drill::client::{Failure, Link};
use crate::drill::odoo;
use crate::drill::schedule::{Arrival, Dice};
use crate::drill::stage::Post;
use crate::drill::tally::{Ending, Times};

/// One worker process.
pub struct Web {
    post: Post,
    pool: Pool,
    /// The link of the present request.
    link: Option<Link>,
}

impl Web {
    /// A worker without links.
    pub fn new(post: Post) -> Self {
        Self { post, pool: Pool::default(), link: None }
    }

    /// What every request begins with: are registry and caches still good?
    async fn check_signaling(&mut self) -> Result<(), Failure> {
        let mut link = self.pool.borrow(&self.post).await?;
        link.query(self.post.stage.begin()).await?;
        link.query(odoo::SIGNALING).await?;
        link.query("ROLLBACK").await?;
        self.pool.give_back(link);
        Ok(())
    }

    /// The link of the request, in a transaction. A second try has it still.
    async fn begin(&mut self, stamp: &mut Stamp) -> Result<(), Failure> {
        if self.link.is_none() {
            self.check_signaling().await?;
            self.link = Some(self.pool.borrow(&self.post).await?);
        }
        self.say(self.post.stage.begin()).await?;
        stamp.0 = Some(self.post.stage.now());
        Ok(())
    }

    async fn say(&mut self, sql: &str) -> Result<(), Failure> {
        match &mut self.link {
            Some(link) => link.query(sql).await,
            None => Err(Failure {
                label: "08003".into(),
                message: "no link".into(),
                lost: true,
                established: true,
            }),
        }
    }

    /// After the commit, while the request's link is still held.
    async fn notify(&self) -> Result<(), Failure> {
        let arrived = self.post.stage.now();
        let sent = notify(&self.post).await;
        let ended = self.post.stage.now();
        let mut tally = self.post.stage.tally.lock();
        let (lane, times) = (self.post.notify_lane, Times { arrived, ready: None, ended });
        if let Err(failure) = &sent {
            tally.failed(lane, &failure.label, ended);
            tally.ended(lane, &times, Ending::Failed);
        } else {
            tally.ended(lane, &times, Ending::Ok);
        }
        sent
    }
}

/// A bus notification: a connection of its own, one transaction.
async fn notify(post: &Post) -> Result<(), Failure> {
    let mut link = post.connect_common().await?;
    link.query(odoo::BEGIN).await?;
    link.query(odoo::NOTIFY).await?;
    link.query("COMMIT").await?;
    post.stage.bus_sent.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    link.close().await;
    Ok(())
}

impl Request for Web {
    fn post(&self) -> &Post {
        &self.post
    }

    fn link(&mut self) -> Option<&mut Link> {
        self.link.as_mut()
    }

    async fn attempt(
        &mut self,
        arrival: &Arrival,
        dice: &mut Dice,
        stamp: &mut Stamp,
    ) -> Result<(), Failure> {
        let actor = self.post.actor.clone();
        self.begin(stamp).await?;
        for _ in 0..actor.statements {
            let partner = dice.random_range(1..odoo::PARTNERS);
            self.say(&odoo::page_read(partner)).await?;
        }
        let reference = ((self.post.ordinal as u64) << 40) | arrival.index;
        self.say(&odoo::save_order(reference, dice.random_range(1..odoo::PARTNERS))).await?;
        if dice.random_bool(actor.hot) {
            self.say(&odoo::take_stock(dice.random_range(1..=odoo::HOT_ROWS))).await?;
        }
        self.say("COMMIT").await?;
        if dice.random_bool(actor.notify) {
            self.notify().await.map_err(|failure| Failure { established: false, ..failure })?;
        }
        self.post.stage.told(reference);
        Ok(())
    }
}

impl Worker for Web {
    async fn serve(&mut self, arrival: Arrival, stamp: &mut Stamp) -> Done {
        let ending = retrying(self, &arrival, stamp).await;
        // A lost link is dropped at its next use, as Odoo's pool does: DISCARD ALL tells.
        if let Some(link) = self.link.take() {
            self.pool.give_back(link);
        }
        Done::Over(ending)
    }

    fn die(&mut self) {
        self.link = None;
        self.pool.clear();
    }
}
