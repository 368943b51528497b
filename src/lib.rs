//! pgweir: a guard proxy on the PostgreSQL wire. ARCHITECTURE.md has the map and the import rules.

pub mod admin;
pub mod advise;
pub mod app;
pub mod auth;
pub mod cli;
pub mod clock;
pub mod config;
pub mod drill;
pub mod headroom;
pub mod incident;
pub mod lanes;
pub mod leaks;
pub mod link;
pub mod listen;
pub mod page;
pub mod prober;
pub mod reason;
pub mod snapshot;
pub mod tls;
pub mod upstream;
pub mod wire;
