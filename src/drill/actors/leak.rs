//! A request that waits for somebody outside within its transaction, with a much wanted row locked.

use super::worker::{Done, Request, Stamp, Worker, retrying};
use crate::drill::client::{Failure, Link};
use crate::drill::odoo;
use crate::drill::schedule::{Arrival, Dice};
use crate::drill::stage::Post;

/// The request. Each try waits outside again, as a repeated Odoo request would.
pub struct Leak {
    post: Post,
    link: Option<Link>,
}

impl Leak {
    /// Not leaking yet.
    pub fn new(post: Post) -> Self {
        Self { post, link: None }
    }
}

impl Request for Leak {
    fn post(&self) -> &Post {
        &self.post
    }

    fn link(&mut self) -> Option<&mut Link> {
        self.link.as_mut()
    }

    async fn attempt(&mut self, arrival: &Arrival, _: &mut Dice, stamp: &mut Stamp) -> Result<(), Failure> {
        if self.link.is_none() {
            self.link = Some(self.post.connect().await?);
        }
        let (begin, hold) = (self.post.stage.begin(), self.post.actor.hold);
        let Some(link) = &mut self.link else { return Ok(()) };
        link.query(begin).await?;
        let row = u32::try_from(arrival.index % u64::from(odoo::HOT_ROWS)).unwrap_or_default() + 1;
        link.query(&odoo::take_stock_and_leak(row)).await?;
        stamp.0 = Some(self.post.stage.now());
        // Silence: whatever happens to the link meanwhile, psycopg2 notices at its next statement.
        tokio::time::sleep(hold).await;
        link.query(&odoo::page_read(1)).await?;
        link.query("COMMIT").await
    }
}

impl Worker for Leak {
    async fn serve(&mut self, arrival: Arrival, stamp: &mut Stamp) -> Done {
        let ending = retrying(self, &arrival, stamp).await;
        if let Some(link) = self.link.take() {
            link.close().await;
        }
        Done::Over(ending)
    }

    fn die(&mut self) {
        self.link = None;
    }
}
