//! The admin port: one port for psql, Prometheus and curl.

pub mod command;
pub mod control;
