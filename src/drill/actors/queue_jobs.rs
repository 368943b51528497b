//! queue_job: the runner that listens for jobs, and the jobs it has HTTP workers run.

use std::time::Duration;

use super::pool::Pool;
use super::worker::{Done, Stamp, Worker};
use crate::drill::client::{Failure, Link};
use crate::drill::odoo;
use crate::drill::schedule::{Arrival, around};
use crate::drill::stage::Post;
use crate::drill::tally::Ending;

/// The runner sleeps so long after an error.
const RUNNER_SLEEP: Duration = Duration::from_secs(5);
/// A job that hit a concurrency error, or never began, is pending again after so long.
const POSTPONE: Duration = Duration::from_secs(5);

/// The runner's life: its own link listens and never does anything else here; jobs come by the schedule.
pub async fn run(post: Post) {
    let stage = post.stage.clone();
    let running = async {
        loop {
            let failure = match watch(&post).await {
                Ok(mut link) => link.listen().await,
                Err(failure) => failure,
            };
            post.failed(&failure);
            tokio::time::sleep(RUNNER_SLEEP).await;
        }
    };
    let _: Option<()> = stage.unless_over(running).await;
}

async fn watch(post: &Post) -> Result<Link, Failure> {
    let mut link = post.connect().await?;
    link.query("SELECT 1 FROM pg_tables WHERE tablename='ir_module_module'").await?;
    link.query("SELECT pg_try_advisory_lock(2293787760715711918)").await?;
    link.query("LISTEN queue_job").await?;
    Ok(link)
}

/// Somebody who runs jobs.
pub struct Job {
    post: Post,
    pool: Pool,
}

impl Job {
    /// A worker without links.
    pub fn new(post: Post) -> Self {
        Self { post, pool: Pool::default() }
    }

    async fn start(&self, link: &mut Link, job: u64) -> Result<(), Failure> {
        link.query(self.post.stage.begin()).await?;
        for statement in odoo::start_job(job) {
            link.query(&statement).await?;
        }
        link.query("COMMIT").await
    }

    async fn perform(&self, link: &mut Link, arrival: &Arrival) -> Result<(), Failure> {
        let mut dice = self.post.dice(arrival);
        let work = around(&mut dice, self.post.actor.work);
        link.query(self.post.stage.begin()).await?;
        link.query(&odoo::hold_job(arrival.index)).await?;
        link.query(&odoo::long_read(work.as_secs_f64() / 2.0)).await?;
        tokio::time::sleep(work / 2).await;
        link.query(&odoo::set_job(arrival.index, "done")).await?;
        link.query("COMMIT").await
    }

    async fn run(&mut self, arrival: &Arrival, stamp: &mut Stamp) -> Done {
        let mut link = match self.pool.borrow(&self.post).await {
            Ok(link) => link,
            Err(failure) => {
                // The runner's HTTP request fails; the job was not touched.
                self.post.failed(&failure);
                return Done::StillDue(POSTPONE, Duration::ZERO);
            }
        };
        stamp.0 = Some(self.post.stage.now());
        let mut done = self.start(&mut link, arrival.index).await;
        if done.is_ok() {
            done = self.perform(&mut link, arrival).await;
        }
        let Err(failure) = done else {
            self.pool.give_back(link);
            return Done::Over(Ending::Ok);
        };
        self.post.failed(&failure);
        if failure.lost {
            return Done::Over(Ending::Failed);
        }
        let repeated = matches!(failure.odoo_sees(), Some("40001" | "40P01" | "55P03"));
        if link.query("ROLLBACK").await.is_ok() {
            self.pool.give_back(link);
        }
        if repeated {
            self.post.retried();
            Done::StillDue(POSTPONE, Duration::ZERO)
        } else {
            Done::Over(Ending::Failed)
        }
    }
}

impl Worker for Job {
    async fn serve(&mut self, arrival: Arrival, stamp: &mut Stamp) -> Done {
        self.run(&arrival, stamp).await
    }

    fn die(&mut self) {
        self.pool.clear();
    }
}
