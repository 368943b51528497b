//! Odoo's pool of one process: links to the Odoo database that are kept for ever and used again after DISCARD ALL.

use crate::drill::client::{Failure, Link};
use crate::drill::stage::Post;

/// The idle links of one process.
#[derive(Default)]
pub struct Pool {
    idle: Vec<Link>,
}

impl Pool {
    /// A link ready for a transaction: one that was used before, or a new one. Those that were closed meanwhile are replaced unseen.
    ///
    /// # Errors
    /// That a new connection was refused.
    pub async fn borrow(&mut self, post: &Post) -> Result<Link, Failure> {
        while let Some(mut link) = self.idle.pop() {
            if link.query("DISCARD ALL").await.is_ok() {
                return Ok(link);
            }
        }
        post.connect().await
    }

    /// Takes a link back that is outside any transaction.
    pub fn give_back(&mut self, link: Link) {
        self.idle.push(link);
    }

    /// Forgets all links without a word.
    pub fn clear(&mut self) {
        self.idle.clear();
    }
}
