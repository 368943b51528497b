//! A cron worker: listens, holds its job's row on one link while the job runs on another, and is forked again when it is refused.

use std::time::Duration;

use super::pool::Pool;
use super::worker::{Done, Stamp, Worker};
use crate::drill::client::{Failure, Link};
use crate::drill::odoo;
use crate::drill::schedule::{Arrival, around};
use crate::drill::stage::Post;
use crate::drill::tally::Ending;

/// The master forks a worker that died again after so long.
const REFORK: Duration = Duration::from_millis(500);

/// One worker process.
pub struct Cron {
    post: Post,
    listening: Option<Link>,
    pool: Pool,
}

/// What became of a due job.
enum Job {
    Done,
    /// Its link raised an ERROR: ir_cron advances `nextcall`, the run is skipped.
    Skipped,
    /// A link was refused or lost: the worker exits, the job stays due.
    Died,
}

impl Cron {
    /// A worker that has just been forked.
    pub fn new(post: Post) -> Self {
        Self { post, listening: None, pool: Pool::default() }
    }

    async fn listen(&mut self) -> Result<(), Failure> {
        if self.listening.is_none() {
            let mut link = self.post.connect_common().await?;
            link.query(odoo::BEGIN).await?;
            link.query(odoo::IN_RECOVERY).await?;
            link.query("LISTEN cron_trigger").await?;
            link.query("COMMIT").await?;
            self.listening = Some(link);
        }
        Ok(())
    }

    async fn due(&mut self, arrival: &Arrival, stamp: &mut Stamp) -> Result<Job, Failure> {
        self.listen().await?;
        let mut cursor = self.pool.borrow(&self.post).await?;
        cursor.query(self.post.stage.begin()).await?;
        cursor.query(&odoo::lock_cron(arrival)).await?;
        stamp.0 = Some(self.post.stage.now());
        // The cursor is idle in transaction from here to the job's end: legitimately so.
        let mut link = self.pool.borrow(&self.post).await?;
        let outcome = match self.job(&mut link, arrival).await {
            Ok(()) => Job::Done,
            Err(failure) if failure.lost => return Err(failure),
            Err(failure) => {
                self.post.failed(&failure);
                link.query("ROLLBACK").await?;
                Job::Skipped
            }
        };
        self.pool.give_back(link);
        cursor.query(&odoo::reschedule_cron(arrival)).await?;
        cursor.query("COMMIT").await?;
        self.pool.give_back(cursor);
        Ok(outcome)
    }

    async fn job(&self, link: &mut Link, arrival: &Arrival) -> Result<(), Failure> {
        let mut dice = self.post.dice(arrival);
        let work = around(&mut dice, self.post.actor.work);
        link.query(self.post.stage.begin()).await?;
        link.query(&odoo::cron_job(arrival)).await?;
        // Half of a job is PostgreSQL's work, half is Python's.
        link.query(&odoo::long_read(work.as_secs_f64() / 2.0)).await?;
        tokio::time::sleep(work / 2).await;
        link.query("COMMIT").await
    }
}

impl Worker for Cron {
    async fn serve(&mut self, arrival: Arrival, stamp: &mut Stamp) -> Done {
        let outcome = self.due(&arrival, stamp).await.unwrap_or_else(|failure| {
            self.post.failed(&failure);
            Job::Died
        });
        match outcome {
            Job::Done => Done::Over(Ending::Ok),
            Job::Skipped => Done::Over(Ending::Failed),
            Job::Died => {
                self.die();
                // Another worker takes the job; this one is back when it is forked again.
                Done::StillDue(Duration::ZERO, REFORK)
            }
        }
    }

    fn die(&mut self) {
        self.listening = None;
        self.pool.clear();
    }
}
