//! Links idle in transaction, and idle links others could use: pure rules over facts.

pub mod gaps;
pub mod judge;
pub mod reclaim;
