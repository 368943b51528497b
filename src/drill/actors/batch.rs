//! Reports and imports: HTTP requests like others, but long ones, a connection each.

use super::worker::{Done, Request, Stamp, Worker, retrying};
use crate::drill::client::{Failure, Link};
use crate::drill::odoo;
use crate::drill::schedule::{Arrival, Dice, around};
use crate::drill::stage::Post;

/// A link of one request, connected at its first try.
struct Single {
    post: Post,
    link: Option<Link>,
}

impl Single {
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

    async fn roll_back(&mut self) -> Result<(), Failure> {
        match &mut self.link {
            Some(link) => link.query("ROLLBACK").await,
            None => Ok(()),
        }
    }

    async fn close(&mut self) {
        if let Some(link) = self.link.take() {
            link.close().await;
        }
    }
}

/// A long read.
pub struct Report(Single);

impl Report {
    /// Nothing is read yet.
    pub fn new(post: Post) -> Self {
        Self(Single { post, link: None })
    }
}

impl Request for Report {
    fn post(&self) -> &Post {
        &self.0.post
    }

    async fn attempt(&mut self, _: &Arrival, dice: &mut Dice, stamp: &mut Stamp) -> Result<(), Failure> {
        let work = around(dice, self.0.post.actor.work);
        let link = self.0.begin(stamp).await?;
        link.query(&odoo::long_read(work.as_secs_f64())).await?;
        link.query("COMMIT").await
    }

    async fn roll_back(&mut self) -> Result<(), Failure> {
        self.0.roll_back().await
    }
}

impl Worker for Report {
    async fn serve(&mut self, arrival: Arrival, stamp: &mut Stamp) -> Done {
        let ending = retrying(self, &arrival, stamp).await;
        self.0.close().await;
        Done::Over(ending)
    }

    fn die(&mut self) {
        self.0.link = None;
    }
}

/// Many writes and a COPY.
pub struct Import(Single);

impl Import {
    /// Nothing is written yet.
    pub fn new(post: Post) -> Self {
        Self(Single { post, link: None })
    }
}

impl Request for Import {
    fn post(&self) -> &Post {
        &self.0.post
    }

    async fn attempt(&mut self, arrival: &Arrival, _: &mut Dice, stamp: &mut Stamp) -> Result<(), Failure> {
        let statements = u64::from(self.0.post.actor.statements);
        let link = self.0.begin(stamp).await?;
        for n in 0..statements {
            link.query(&odoo::import_rows(arrival.index * 100_000 + n * 100)).await?;
        }
        let rows: String = (0..statements * 100).map(|n| format!("copied-{n}\t{n}.5\n")).collect();
        link.copy_in(odoo::IMPORT_COPY, rows.as_bytes()).await?;
        link.query("COMMIT").await
    }

    async fn roll_back(&mut self) -> Result<(), Failure> {
        self.0.roll_back().await
    }
}

impl Worker for Import {
    async fn serve(&mut self, arrival: Arrival, stamp: &mut Stamp) -> Done {
        let ending = retrying(self, &arrival, stamp).await;
        self.0.close().await;
        Done::Over(ending)
    }

    fn die(&mut self) {
        self.0.link = None;
    }
}
