//! What happened, and what must survive a restart: the timeline, pauses, peaks and the admin password on disk, incidents, what grew most, and
//! when it is over.

pub mod archive;
pub mod book;
pub mod exit;
pub mod growth;
pub mod history;
pub mod peaks;
pub mod record;
pub mod state;
pub mod timeline;
