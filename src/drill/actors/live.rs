//! The gevent process: a LISTEN link for the bus, and polls of `bus_bus` on a pooled one.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::pool::Pool;
use super::worker::{Done, Request, Stamp, Worker, retrying};
use crate::drill::client::{Failure, Link};
use crate::drill::odoo;
use crate::drill::schedule::{Arrival, Dice};
use crate::drill::stage::Post;
use crate::drill::tally::Ending;

/// Odoo's bus loop sleeps so long after an error; messages of that time are lost to its users.
const BUS_SLEEP: Duration = Duration::from_secs(50);

/// Listens to the bus for the whole run. Each connection is an attempt.
pub async fn listen(post: Post, counts: bool) {
    let stage = post.stage.clone();
    let listening = async {
        loop {
            let arrived = stage.now();
            let failure = match subscribe(&post, "listen imbus").await {
                Ok(mut link) => {
                    post.ended(arrived, None, Ending::Ok);
                    hear(&post, &mut link, counts).await
                }
                Err(failure) => failure,
            };
            post.failed(&failure);
            post.ended(arrived, None, Ending::Failed);
            tokio::time::sleep(BUS_SLEEP).await;
        }
    };
    let _: Option<()> = stage.unless_over(listening).await;
}

/// A link that listens, subscribed within a transaction as Odoo does.
pub async fn subscribe(post: &Post, listen: &str) -> Result<Link, Failure> {
    let mut link = post.connect_common().await?;
    link.query(odoo::BEGIN).await?;
    link.query(listen).await?;
    link.query("COMMIT").await?;
    Ok(link)
}

async fn hear(post: &Post, link: &mut Link, counts: bool) -> Failure {
    loop {
        let before = link.notifications;
        // Looks up now and then, so that what was heard is known when the run is over.
        let heard = tokio::time::timeout(Duration::from_millis(250), link.listen()).await;
        if counts {
            post.stage.bus_received.fetch_add(link.notifications - before, Ordering::Relaxed);
        }
        if let Ok(failure) = heard {
            return failure;
        }
    }
}

/// Polls the bus for its users.
pub struct Poll {
    post: Post,
    pool: Pool,
    link: Option<Link>,
}

impl Poll {
    /// A poller without links.
    pub fn new(post: Post) -> Self {
        Self { post, pool: Pool::default(), link: None }
    }
}

impl Request for Poll {
    fn post(&self) -> &Post {
        &self.post
    }

    fn link(&mut self) -> Option<&mut Link> {
        self.link.as_mut()
    }

    async fn attempt(&mut self, _: &Arrival, _: &mut Dice, stamp: &mut Stamp) -> Result<(), Failure> {
        let mut link = match self.link.take() {
            Some(link) => link,
            None => self.pool.borrow(&self.post).await?,
        };
        let begun = link.query(self.post.stage.begin()).await;
        stamp.0 = Some(self.post.stage.now());
        let done = match begun {
            Ok(()) => link.query(odoo::BUS_POLL).await,
            failed => failed,
        };
        let done = match done {
            Ok(()) => link.query("COMMIT").await,
            failed => failed,
        };
        self.link = Some(link);
        done
    }
}

impl Worker for Poll {
    async fn serve(&mut self, arrival: Arrival, stamp: &mut Stamp) -> Done {
        let ending = retrying(self, &arrival, stamp).await;
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
