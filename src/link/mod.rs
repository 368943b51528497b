//! One client and its upstream connection.

pub mod binding;
pub mod cancel;
pub mod closing;
pub mod cycles;
mod desk;
pub mod dial;
pub mod established;
pub mod gate;
mod heads;
pub mod hub;
pub mod intern;
pub mod keys;
pub mod login;
pub mod meter;
pub mod out;
pub mod reactor;
mod relay;
mod rollback;
pub mod serve;
pub mod session;
pub mod shared;
mod side;
pub mod sparing;
pub mod stream;
pub mod welcome;
