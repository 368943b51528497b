//! The edge to the operating system: sockets, the process behind a client, the service manager, file descriptors.

pub mod activation;
pub mod files;
pub mod notify;
pub mod process;
pub mod socket;
pub mod threads;
