//! SCRAM's channel binding, where pgweir stands between: what pass-through authentication can and cannot do with it.
//!
//! SCRAM-SHA-256-PLUS binds the login to the certificate of the TLS connection it runs in (tls-server-end-point, RFC 5929), so that
//! nobody can stand between, and pgweir does:
//!
//! | client | PostgreSQL | |
//! | --- | --- | --- |
//! | plain | plain | PostgreSQL does not offer it |
//! | plain | TLS | taken out of the offer: a client without TLS must refuse an offer that has it |
//! | TLS | plain | PostgreSQL does not offer it |
//! | TLS | TLS, same certificate | passes untouched: both ends see one certificate |
//! | TLS | TLS, another one | a client that chooses it is refused with the reason; one that does not support it goes on. Taking it out would help nobody: a client that supports it says so, and PostgreSQL takes that for an attack |

use std::borrow::Cow;

use super::stream::Stream;
use crate::reason::{Reason, Refusal};
use crate::tls::client::is_same;
use crate::wire::frame::{HEADER_LEN, split_cstr};
use crate::wire::reply;

/// AuthenticationSASL.
pub const SASL: u32 = 10;
const PLUS: &[u8] = b"SCRAM-SHA-256-PLUS";

/// What a channel binding would be bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binding {
    /// Nothing of pgweir's: what PostgreSQL offers is right as it is.
    Untouched,
    /// PostgreSQL sees TLS and the client does not.
    ClientPlain,
    /// Both see TLS, with two certificates.
    TwoCertificates,
}

impl Binding {
    /// That between a client and its connection to PostgreSQL.
    pub fn between(client: &Stream, upstream: &Stream) -> Self {
        match (client.tls(), upstream.tls()) {
            (_, None) => Self::Untouched,
            (None, Some(_)) => Self::ClientPlain,
            (Some(ours), Some(theirs)) => {
                let presented = ours.presented().map(|leaf| &**leaf);
                if is_same(presented, theirs.peer_certificate()) {
                    Self::Untouched
                } else {
                    Self::TwoCertificates
                }
            }
        }
    }

    /// The AuthenticationSASL message to pass on for PostgreSQL's.
    ///
    /// # Errors
    /// Nothing is left of the offer.
    pub fn offer(self, message: &[u8]) -> Result<Cow<'_, [u8]>, Refusal> {
        if self != Self::ClientPlain {
            return Ok(Cow::Borrowed(message));
        }
        let mut rest = message.get(HEADER_LEN + 4..).unwrap_or_default();
        let mut kept = Vec::new();
        let mut dropped = false;
        while let Some((mechanism, more)) = split_cstr(rest) {
            rest = more;
            if mechanism == PLUS {
                dropped = true;
            } else if !mechanism.is_empty() {
                kept.extend_from_slice(mechanism);
                kept.push(0);
            }
        }
        if !dropped {
            return Ok(Cow::Borrowed(message));
        }
        if kept.is_empty() {
            return Err(Refusal::new(
                Reason::ChannelBinding,
                "PostgreSQL offers SCRAM-SHA-256-PLUS only, which needs TLS from end to end",
                "connect with TLS, and give the listener PostgreSQL's own certificate",
            ));
        }
        let mut out = Vec::with_capacity(message.len());
        reply::message(&mut out, b'R', |out| {
            out.extend_from_slice(&SASL.to_be_bytes());
            out.extend_from_slice(&kept);
            out.push(0);
        });
        Ok(Cow::Owned(out))
    }

    /// Looks at the client's SASLInitialResponse.
    ///
    /// # Errors
    /// It has chosen what cannot succeed.
    pub fn judge(self, answer: &[u8]) -> Result<(), Refusal> {
        let chosen = answer.get(HEADER_LEN..).and_then(split_cstr).map(|(mechanism, _)| mechanism);
        if self != Self::TwoCertificates || chosen != Some(PLUS) {
            return Ok(());
        }
        Err(Refusal::new(
            Reason::ChannelBinding,
            "the client would bind its login to pgweir's certificate, and PostgreSQL expects its own",
            "give the listener PostgreSQL's own certificate and key, or write [auth] mode = \"scram\", or [upstream] tls = \"disable\"; \
             a client can leave channel binding out: channel_binding=disable",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(mechanisms: &[&str]) -> Vec<u8> {
        let mut out = Vec::new();
        reply::message(&mut out, b'R', |out| {
            out.extend_from_slice(&SASL.to_be_bytes());
            mechanisms.iter().for_each(|mechanism| reply::cstr(out, mechanism));
            out.push(0);
        });
        out
    }

    fn answer(mechanism: &str) -> Vec<u8> {
        let mut out = Vec::new();
        reply::message(&mut out, b'p', |out| {
            reply::cstr(out, mechanism);
            out.extend_from_slice(&3_u32.to_be_bytes());
            out.extend_from_slice(b"n,,");
        });
        out
    }

    #[test]
    fn a_plain_client_is_not_offered_what_it_must_refuse() {
        let both = offer(&["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256"]);
        let without = offer(&["SCRAM-SHA-256"]);
        assert_eq!(Binding::ClientPlain.offer(&both), Ok(without.clone().into()));
        assert_eq!(Binding::ClientPlain.offer(&without), Ok(without.clone().into()));
        assert_eq!(Binding::Untouched.offer(&both), Ok(both.clone().into()));
        assert_eq!(Binding::TwoCertificates.offer(&both), Ok(both.clone().into()));
        let refused =
            Binding::ClientPlain.offer(&offer(&["SCRAM-SHA-256-PLUS"])).expect_err("nothing left").reason;
        assert_eq!(refused, Reason::ChannelBinding);
        for cut in 0..both.len() {
            let _ = Binding::ClientPlain.offer(&both[..cut]);
        }
    }

    #[test]
    fn only_a_binding_that_cannot_hold_is_refused() {
        let plus = answer("SCRAM-SHA-256-PLUS");
        assert!(Binding::TwoCertificates.judge(&plus).is_err());
        assert!(Binding::TwoCertificates.judge(&answer("SCRAM-SHA-256")).is_ok());
        assert!(Binding::Untouched.judge(&plus).is_ok());
        assert!(Binding::TwoCertificates.judge(b"p").is_ok());
    }
}
