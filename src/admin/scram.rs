//! SCRAM-SHA-256, the server's side (RFC 5802, RFC 7677), as PostgreSQL does it: the user is the startup packet's, and channel
//! binding is not offered. Pure: the nonce comes from outside.
//!
//! ```text
//! Server ── client-first ──► Challenged ── client-final ──► proven (server-final) │ Wrong
//! ```
//!
//! An unknown user goes through the same exchange with a salt derived from its name, so that nobody learns who exists.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// The mechanism's name.
pub const MECHANISM: &str = "SCRAM-SHA-256";
/// Iterations of a mock verifier: those of PostgreSQL and of [`Verifier::from_password`].
const MOCK_ITERATIONS: u32 = 4096;
/// Iterations a stored verifier may ask of clients.
const ITERATIONS_MAX: u32 = 1_000_000;
/// Longest message of the exchange, in bytes.
const MESSAGE_LEN_MAX: usize = 2048;

type Key = [u8; 32];

/// What is kept of a password: salt and keys, from which neither the password nor a proof can be made.
#[derive(Clone, PartialEq, Eq)]
pub struct Verifier {
    iterations: u32,
    salt: Vec<u8>,
    stored_key: Key,
    server_key: Key,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Verifier(…)")
    }
}

impl Verifier {
    /// Derives the keys with a fresh salt: 4096 iterations, some milliseconds, so once at start.
    pub fn from_password(password: &str) -> Self {
        let text = postgres_protocol::password::scram_sha_256(password.as_bytes());
        Self::parse(&text).expect("the library writes PostgreSQL's form")
    }

    /// Reads PostgreSQL's form, `SCRAM-SHA-256$4096:salt$stored key:server key`; `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let rest = text.trim().strip_prefix(MECHANISM)?.strip_prefix('$')?;
        let (head, keys) = rest.split_once('$')?;
        let (iterations, salt) = head.split_once(':')?;
        let (stored_key, server_key) = keys.split_once(':')?;
        let iterations = iterations.parse().ok().filter(|count| (1..=ITERATIONS_MAX).contains(count))?;
        let key = |text| Key::try_from(BASE64.decode(text).ok()?).ok();
        let (stored_key, server_key) = (key(stored_key)?, key(server_key)?);
        Some(Self { iterations, salt: BASE64.decode(salt).ok()?, stored_key, server_key })
    }

    /// A verifier for a user that does not exist: the same salt each time, and keys that no password gives.
    fn mock(secret: &Key, user: &str) -> Self {
        let salt = mac(secret, &[b"salt", user.as_bytes()])[..16].to_vec();
        let stored_key = mac(secret, &[b"stored", user.as_bytes()]);
        let server_key = mac(secret, &[b"server", user.as_bytes()]);
        Self { iterations: MOCK_ITERATIONS, salt, stored_key, server_key }
    }
}

/// Why an exchange failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failed {
    /// A message that is none, or asks for what was not offered.
    Malformed,
    /// Wrong password or unknown user.
    Wrong,
}

/// Before the client's first message.
#[derive(Debug)]
pub struct Server {
    verifier: Verifier,
    known: bool,
}

impl Server {
    /// For a user; without a verifier (nobody of that name) the exchange is played with a mock one. `secret` is the process's own.
    pub fn new(verifier: Option<&Verifier>, user: &str, secret: &Key) -> Self {
        // The mock is made in either case: it costs the same time.
        let mock = Verifier::mock(secret, user);
        Self { known: verifier.is_some(), verifier: verifier.cloned().unwrap_or(mock) }
    }

    /// Takes client-first, gives server-first. `nonce` is printable ASCII without commas, fresh each time.
    ///
    /// # Errors
    /// `Malformed`.
    pub fn first(self, message: &[u8], nonce: &str) -> Result<(Challenged, String), Failed> {
        let text = text(message)?;
        // gs2-header: the flag, an authorisation name (of no use here), then the bare message.
        let mut parts = text.splitn(3, ',');
        let (flag, authzid, bare) = (parts.next(), parts.next(), parts.next().ok_or(Failed::Malformed)?);
        if !matches!(flag, Some("n" | "y")) || authzid != Some("") {
            return Err(Failed::Malformed);
        }
        let gs2 = &text[..text.len() - bare.len()];
        let mut attributes = bare.split(',');
        let user = attributes.next().and_then(|part| part.strip_prefix("n="));
        let client_nonce = attributes.next().and_then(|part| part.strip_prefix("r="));
        let (Some(_), Some(client_nonce)) = (user, client_nonce.filter(|nonce| is_nonce(nonce))) else {
            return Err(Failed::Malformed);
        };
        let nonce = format!("{client_nonce}{nonce}");
        let salt = BASE64.encode(&self.verifier.salt);
        let server_first = format!("r={nonce},s={salt},i={}", self.verifier.iterations);
        let challenged = Challenged {
            channel: BASE64.encode(gs2),
            said: format!("{bare},{server_first}"),
            nonce,
            verifier: self.verifier,
            known: self.known,
        };
        Ok((challenged, server_first))
    }
}

/// Between server-first and the client's final message.
#[derive(Debug)]
pub struct Challenged {
    verifier: Verifier,
    known: bool,
    nonce: String,
    /// The gs2-header in base64, which the client must repeat.
    channel: String,
    /// client-first-bare and server-first.
    said: String,
}

impl Challenged {
    /// Takes client-final, gives server-final.
    ///
    /// # Errors
    /// `Malformed`, or `Wrong` when the proof does not fit.
    pub fn last(self, message: &[u8]) -> Result<String, Failed> {
        let text = text(message)?;
        let (unproven, proof) = text.rsplit_once(",p=").ok_or(Failed::Malformed)?;
        let mut attributes = unproven.split(',');
        let channel = attributes.next().and_then(|part| part.strip_prefix("c="));
        let nonce = attributes.next().and_then(|part| part.strip_prefix("r="));
        if channel != Some(&self.channel) || nonce != Some(&self.nonce) {
            return Err(Failed::Malformed);
        }
        let proof = BASE64.decode(proof).ok().and_then(|proof| Key::try_from(proof).ok());
        let proof = proof.ok_or(Failed::Malformed)?;
        let message = [self.said.as_bytes(), b",", unproven.as_bytes()];
        let signature = mac(&self.verifier.stored_key, &message);
        let mut client_key = proof;
        client_key.iter_mut().zip(signature).for_each(|(byte, mask)| *byte ^= mask);
        let fits = Sha256::digest(client_key).ct_eq(&self.verifier.stored_key[..]);
        let server_final = format!("v={}", BASE64.encode(mac(&self.verifier.server_key, &message)));
        if bool::from(fits & subtle::Choice::from(u8::from(self.known))) {
            Ok(server_final)
        } else {
            Err(Failed::Wrong)
        }
    }
}

fn text(message: &[u8]) -> Result<&str, Failed> {
    if message.len() > MESSAGE_LEN_MAX {
        return Err(Failed::Malformed);
    }
    std::str::from_utf8(message).map_err(|_| Failed::Malformed)
}

fn is_nonce(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic())
}

fn mac(key: &[u8], parts: &[&[u8]]) -> Key {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: Key = [7; 32];

    /// The example of RFC 7677, section 3.
    const CLIENT_FIRST: &[u8] = b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO";
    const NONCE: &str = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
    const SERVER_FIRST: &str =
        "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
    const CLIENT_FINAL: &str = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                                p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
    const SERVER_FINAL: &str = "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=";

    fn example() -> Verifier {
        let salt = BASE64.decode("W22ZaJ0SNY7soEsUEjb6gQ==").expect("base64");
        let mut salted = Key::default();
        pbkdf2::pbkdf2::<Hmac<Sha256>>(b"pencil", &salt, 4096, &mut salted).expect("any length");
        let stored_key = Sha256::digest(mac(&salted, &[b"Client Key"])).into();
        Verifier { iterations: 4096, salt, stored_key, server_key: mac(&salted, &[b"Server Key"]) }
    }

    #[test]
    fn the_rfcs_example_is_proven() {
        let server = Server::new(Some(&example()), "user", &SECRET);
        let (challenged, said) = server.first(CLIENT_FIRST, NONCE).expect("well-formed");
        assert_eq!(said, SERVER_FIRST);
        assert_eq!(challenged.last(CLIENT_FINAL.as_bytes()), Ok(SERVER_FINAL.to_owned()));
    }

    #[test]
    fn a_wrong_proof_and_an_unknown_user_fail_alike() {
        let wrong = CLIENT_FINAL.replace("p=dH", "p=aH");
        let server = Server::new(Some(&example()), "user", &SECRET);
        let (challenged, _) = server.first(CLIENT_FIRST, NONCE).expect("well-formed");
        assert_eq!(challenged.last(wrong.as_bytes()), Err(Failed::Wrong));
        let (challenged, said) =
            Server::new(None, "user", &SECRET).first(CLIENT_FIRST, NONCE).expect("well-formed");
        assert_eq!(challenged.last(CLIENT_FINAL.as_bytes()), Err(Failed::Wrong));
        // The same salt at each try, another for another name, of the length a real one has.
        let salt_of =
            |user| Server::new(None, user, &SECRET).first(CLIENT_FIRST, NONCE).expect("well-formed").1;
        assert_eq!((said.clone(), said.len()), (salt_of("user"), SERVER_FIRST.len()));
        assert_ne!(salt_of("user"), salt_of("other"));
    }

    #[test]
    fn what_was_not_offered_is_malformed() {
        for first in
            ["p=tls-server-end-point,,n=,r=abc", "n,a=x,n=,r=abc", "n,,m=1,n=,r=abc", "n,,n=,r=", "n,,", ""]
        {
            let server = Server::new(Some(&example()), "user", &SECRET);
            assert_eq!(server.first(first.as_bytes(), NONCE).err(), Some(Failed::Malformed), "{first}");
        }
        for last in [
            "",
            "c=eSws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=AAAA",
            "c=biws,r=another,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
            "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=AAAA",
        ] {
            let server = Server::new(Some(&example()), "user", &SECRET);
            let (challenged, _) = server.first(CLIENT_FIRST, NONCE).expect("well-formed");
            assert_eq!(challenged.last(last.as_bytes()), Err(Failed::Malformed), "{last}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic_or_log_in(first: Vec<u8>, last: Vec<u8>, bare in "(n=|r=|,|c=|p=|[a-z=])*") {
            let server = || Server::new(Some(&example_without_work()), "user", &SECRET);
            let _ = server().first(&first, NONCE);
            let _ = server().first(format!("n,,{bare}").as_bytes(), NONCE);
            let (challenged, _) = server().first(CLIENT_FIRST, NONCE).expect("well-formed");
            proptest::prop_assert!(challenged.last(&last).is_err());
            let (challenged, _) = server().first(CLIENT_FIRST, NONCE).expect("well-formed");
            proptest::prop_assert!(challenged.last(bare.as_bytes()).is_err());
        }
    }

    fn example_without_work() -> Verifier {
        Verifier { iterations: 4096, salt: vec![1; 16], stored_key: [2; 32], server_key: [3; 32] }
    }

    #[test]
    fn postgresqls_form_is_read_and_never_shown() {
        let one = Verifier::from_password("secret");
        assert_ne!(one, Verifier::from_password("secret"), "each has a salt of its own");
        assert_eq!(format!("{one:?}"), "Verifier(…)");
        assert_eq!(Verifier::parse("SCRAM-SHA-256$4096:AAAA$AAAA:AAAA"), None);
        assert_eq!(Verifier::parse("md5abc"), None);
    }
}
