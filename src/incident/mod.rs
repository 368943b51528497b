//! What happened, and what must survive a restart: the timeline, pauses and the admin password on disk, and what grew most.

pub mod growth;
pub mod state;
pub mod timeline;
