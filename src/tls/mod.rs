//! TLS on every wire: clients, PostgreSQL, admin port, CLI. rustls does the cryptography.
//!
//! `session` is one connection's TLS without input or output: an established link is carried by plain system calls, so that rustls is
//! driven by hand. `stream` puts a session under tokio, for logins and the admin port. `server` and `client` are the two ends' settings as
//! read from files, `verify` what a client demands of a server's certificate, `names` what a certificate says of its holder, `asked`
//! which requests for a password are answered on a connection.
//!
//! Deliberately absent: session tickets and resumption (PostgreSQL and libpq use none, and a ticket key would be one more secret), early
//! data, renegotiation (rustls has none), revocation lists.

pub mod asked;
pub mod client;
pub mod names;
pub mod server;
pub mod session;
pub mod stream;

mod files;
#[cfg(test)]
pub(crate) mod testing;
mod verify;

pub use files::{FileProblem, Which};

/// The application protocol of PostgreSQL's wire (IANA's registry of ALPN protocol identifiers).
pub const ALPN_POSTGRESQL: &[u8] = b"postgresql";
/// HTTP/1.1's, for the admin port.
pub const ALPN_HTTP: &[u8] = b"http/1.1";
/// First byte of a TLS connection: a record of type handshake (RFC 8446, section 5.1).
pub const FIRST_BYTE: u8 = 0x16;
/// The alert `handshake_failure`, fatal, before any keys (RFC 8446, section 6): for those who ask for a TLS that is not there.
pub const NO_TLS_HERE: [u8; 7] = [0x15, 3, 3, 0, 2, 2, 40];
