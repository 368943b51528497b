//! How full PostgreSQL is: one connection that looks, and speaks for the operator to sessions that bypass pgweir.

pub mod connect;
pub mod limits;
pub mod monitor;
pub mod names;
pub mod pace;
pub mod probe;
pub mod query;
pub mod recognise;
pub mod resolve;
pub mod roster;
pub mod row;
pub mod sniff;
pub mod targets;
