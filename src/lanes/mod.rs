//! Who may have a slot: pure decisions over plain values, with time passed in.

pub mod ids;
pub mod sample;
pub mod settings;
