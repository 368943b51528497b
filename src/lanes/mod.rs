//! Who may have a slot: pure decisions over plain values, with time passed in.
//!
//! Start at [`guard`]: it is the one facade the shell calls. Deliberately absent: sockets, clocks, logs, threads. What happened is
//! returned as [`guard::Action`]s; the only thing others read without asking is the lane's [`gate`].

pub mod backends;
pub mod breaker;
pub mod classify;
pub mod gate;
pub mod glob;
pub mod guard;
pub mod hold;
pub mod ids;
pub mod known;
pub mod ledger;
pub mod life;
pub mod near;
pub mod needs;
pub mod pages;
pub mod pass;
pub mod pause;
pub mod pool;
pub mod queue;
pub mod ramp;
pub mod rate;
pub mod refuse;
pub mod reload;
pub mod report;
pub mod reserves;
mod rest;
pub mod sample;
pub mod settings;
pub mod shed;
pub mod timers;
pub mod usage;
