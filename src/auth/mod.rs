//! Authentication of pgweir's own. Pure: time, nonces and salts come from outside.
//!
//! ```text
//! users file ─┐                      ┌─ Exchange (server) ── proof ──► ClientKey ─┐
//!             ├─► Stored (a secret) ─┤                                            ├─► Credentials ─► Answerer (client of PostgreSQL)
//! auth query ─┘   Memory (bounded)   └─ Throttle (failures of an address)  ───────┘
//! ```
//!
//! Invariants: nothing here shows a secret in `Debug`; what held one is overwritten when dropped; every table has a bound. Deliberately
//! absent: primitives. HMAC, SHA-256, MD5, PBKDF2, SASLprep and comparison in constant time are libraries'.

pub mod exchange;
pub mod fingerprint;
pub mod keys;
pub mod md5;
pub mod memory;
pub mod scram;
pub mod stored;
pub mod throttle;
pub mod upstream;
pub mod users;
