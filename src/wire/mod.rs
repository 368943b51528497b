//! The PostgreSQL wire protocol, as far as a proxy must know it (PostgreSQL docs, "Frontend/Backend Protocol"). Pure: bytes in,
//! facts out. Deliberately absent: types, result sets, SQL beyond the first words of a statement.

pub mod backend;
pub mod frame;
pub mod reply;
pub mod startup;
pub mod statement;
