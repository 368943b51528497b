//! The drill: an incident rehearsed against staging, directly and through proxies, by the same schedule. `docs/drill.md` has its words.
//!
//! Pure: [`scenario`], [`schedule`], [`retry`], [`tally`], [`recovery`], [`expect`], [`odoo`]. The rest are sockets and tasks around them, and
//! [`report`], which only reads what [`run`] has measured.
//!
//! Invariants: what arrives when, and with which choices, depends on scenario and seed alone; latency counts from the scheduled arrival; every
//! connection of an actor holds one of `--max-connections` permits; nothing is written outside the schema `pgweir_drill`.
//! Deliberately absent: any knowledge of pgweir's inside. What it is told, it is told by the console, like an operator.

pub mod actors;
pub mod client;
pub mod command;
pub mod console;
pub mod dispatch;
pub mod expect;
pub mod generator;
pub mod observe;
pub mod odoo;
pub mod operator;
pub mod progress;
pub mod queue;
pub mod recovery;
pub mod report;
pub mod retry;
pub mod run;
pub mod scenario;
pub mod schedule;
pub mod stage;
pub mod tally;
pub mod target;
pub mod way;
