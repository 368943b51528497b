//! Reports and imports: HTTP requests like others, but long ones, a connection each.

use super::worker::{Done, Request, Stamp, Worker, retrying};
use crate::drill::client::{Failure, Link};
use crate::drill::odoo;
use crate::drill::schedule::{Arrival, Dice, around};
use crate::drill::stage::Post;

/// What such a request does.
#[derive(Clone, Copy)]
pub enum Job {
    /// A long read.
    Report,
    /// Many writes and a COPY.
    Import,
}

/// A worker whose link serves one request, and is connected at its first try.
pub struct Batch {
    post: Post,
    job: Job,
    link: Option<Link>,
}

impl Batch {
    /// Nothing is connected yet.
    pub fn new(post: Post, job: Job) -> Self {
        Self { post, job, link: None }
    }

    async fn begin(&mut self, stamp: &mut Stamp) -> Result<&mut Link, Failure> {
        let mut link = match self.link.take() {
            Some(link) => link,
            None => self.post.connect().await?,
        };
        let begun = link.query(self.post.stage.begin()).await;
        stamp.0 = Some(self.post.stage.now());
        let link = self.link.insert(link);
        begun.map(|()| link)
    }
}

impl Request for Batch {
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
        let (job, work, statements) = (self.job, self.post.actor.work, u64::from(self.post.actor.statements));
        let link = self.begin(stamp).await?;
        match job {
            Job::Report => link.query(&odoo::long_read(around(dice, work).as_secs_f64())).await?,
            Job::Import => {
                for n in 0..statements {
                    link.query(&odoo::import_rows(arrival.index * 100_000 + n * 100)).await?;
                }
                let rows: String = (0..statements * 100).map(|n| format!("copied-{n}\t{n}.5\n")).collect();
                link.copy_in(odoo::IMPORT_COPY, rows.as_bytes()).await?;
            }
        }
        link.query("COMMIT").await
    }
}

impl Worker for Batch {
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
