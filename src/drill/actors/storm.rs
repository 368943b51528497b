//! A reconnect storm: connections that come again at once when they are refused. A closed loop by nature.

use std::time::Duration;

use rand::RngExt;

use crate::drill::client::Failure;
use crate::drill::odoo;
use crate::drill::schedule::{Dice, around};
use crate::drill::stage::Post;
use crate::drill::tally::Ending;

/// Statements of each visit.
const STATEMENTS: u32 = 3;
/// Pause after a refusal, in seconds.
const AGAIN: std::ops::Range<f64> = 0.1..0.4;

/// One client of the storm, in each window.
pub async fn come_again(post: Post, number: u32, windows: Vec<(Duration, Duration)>) {
    let stage = post.stage.clone();
    let coming = async {
        let mut dice = post.worker_dice(number);
        for (start, end) in windows {
            stage.until(start + Duration::from_secs_f64(dice.random_range(0.0..0.5))).await;
            while stage.now() < end {
                let arrived = stage.now();
                let mut ready = None;
                match visit(&post, &mut dice, &mut ready).await {
                    Ok(()) => post.ended(arrived, ready, Ending::Ok),
                    Err(failure) => {
                        post.failed(&failure);
                        post.ended(arrived, ready, Ending::Failed);
                        tokio::time::sleep(Duration::from_secs_f64(dice.random_range(AGAIN))).await;
                    }
                }
            }
        }
    };
    let _: Option<()> = stage.unless_over(coming).await;
}

async fn visit(post: &Post, dice: &mut Dice, ready: &mut Option<Duration>) -> Result<(), Failure> {
    let mut link = post.connect().await?;
    link.query(post.stage.begin()).await?;
    *ready = Some(post.stage.now());
    for _ in 0..STATEMENTS {
        let work = around(dice, post.actor.work / STATEMENTS);
        link.query(&odoo::pause(work.as_secs_f64())).await?;
    }
    link.query("COMMIT").await?;
    link.close().await;
    Ok(())
}
