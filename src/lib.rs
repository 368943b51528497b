//! pgweir: a guard proxy on the PostgreSQL wire. ARCHITECTURE.md has the map and the import rules.

pub mod admin;
pub mod clock;
pub mod lanes;
pub mod reason;
pub mod snapshot;
pub mod wire;
