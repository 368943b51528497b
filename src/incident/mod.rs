//! What happened, and what must survive a restart: the timeline, pauses, peaks, what is known of servers and the admin password on disk, incidents, what grew most, and
//! when it is over.

pub mod archive;
pub mod aside;
pub mod book;
pub mod exit;
pub mod growth;
pub mod history;
pub mod peaks;
pub mod record;
pub mod servers;
pub mod state;
pub mod timeline;
