//! Helpers of the integration tests.

#![allow(dead_code, reason = "no suite uses all of it")]
#![allow(clippy::panic, reason = "a test that cannot be set up has failed")]

pub mod config;
pub mod pg;
