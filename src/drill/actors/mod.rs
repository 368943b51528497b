//! Who plays: one file a family. Each does what the measured Odoo does, retries included, and nothing cleverer.

mod batch;
mod cron;
mod holders;
mod leak;
mod live;
mod pool;
mod queue_jobs;
mod storm;
mod web;
mod worker;

use tokio::task::JoinSet;

use super::scenario::Kind;
use super::stage::Post;

/// Puts the actor on the stage: all its workers, in `tasks`. They leave when the run is over or their queue is closed.
/// `windows` are the times at which those play that have no schedule.
pub fn enter(post: &Post, windows: &[(std::time::Duration, std::time::Duration)], tasks: &mut JoinSet<()>) {
    for number in 0..post.actor.workers {
        let post = post.of_worker(number);
        match post.actor.kind {
            Kind::Web => drop(tasks.spawn(worker::work(post.clone(), web::Web::new(post)))),
            Kind::Cron => drop(tasks.spawn(worker::work(post.clone(), cron::Cron::new(post)))),
            Kind::Report => {
                drop(tasks.spawn(worker::work(post.clone(), batch::Batch::new(post, batch::Job::Report))));
            }
            Kind::Import => {
                drop(tasks.spawn(worker::work(post.clone(), batch::Batch::new(post, batch::Job::Import))));
            }
            Kind::Leak => drop(tasks.spawn(worker::work(post.clone(), leak::Leak::new(post)))),
            Kind::Killed => drop(tasks.spawn(worker::work(post.clone(), holders::Killed::new(post)))),
            Kind::Live => {
                drop(tasks.spawn(live::listen(post.clone(), number == 0)));
                drop(tasks.spawn(worker::work(post.clone(), live::Poll::new(post))));
            }
            Kind::Queue => {
                if number == 0 {
                    drop(tasks.spawn(queue_jobs::run(post.clone())));
                }
                drop(tasks.spawn(worker::work(post.clone(), queue_jobs::Job::new(post))));
            }
            Kind::Storm => drop(tasks.spawn(storm::come_again(post, number, windows.to_vec()))),
            Kind::Hoard | Kind::Bypass => {}
        }
    }
    if matches!(post.actor.kind, Kind::Hoard | Kind::Bypass) {
        for number in 0..post.actor.count {
            drop(tasks.spawn(holders::hold(post.of_worker(number), number, windows.to_vec())));
        }
    }
}
