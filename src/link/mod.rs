//! One client and its upstream connection.

pub mod cancel;
pub mod closing;
pub mod cycles;
mod desk;
pub mod dial;
pub mod gate;
mod heads;
pub mod hub;
pub mod login;
pub mod meter;
pub mod out;
mod relay;
mod rollback;
pub mod serve;
pub mod session;
pub mod shared;
pub mod stream;
pub mod welcome;
