//! A client's login, message by message: what it is asked, and what its answers prove.
//!
//! ```text
//! begin ─► ask 10 ─ client-first ─► ask 11 ─ client-final ─► Proven │ Failed
//!       └► ask 5 ─ digest ─► Proven │ Failed          (users whose secret is MD5)
//! ```

use std::sync::Arc;

use zeroize::Zeroizing;

use super::keys::Key;
use super::md5;
use super::scram::{Challenged, Failed, Mock, Server};
use super::stored::{Secret, Stored};

/// Longest answer of a client, in bytes: SCRAM's messages have at most 2048.
pub const ANSWER_MAX: u32 = 2200;

/// What PostgreSQL's authentication messages are made of: the code, and what follows it.
#[derive(Debug, PartialEq, Eq)]
pub struct Ask {
    /// 5: MD5; 10: SASL; 11: SASLContinue.
    pub code: u32,
    /// Behind the code.
    pub data: Vec<u8>,
}

/// Random bytes an exchange needs, fresh each time.
#[derive(Clone)]
pub struct Random {
    /// Printable ASCII without commas.
    pub nonce: String,
    /// Of an MD5 challenge.
    pub salt: [u8; 4],
}

/// What an answer came to.
#[derive(Debug)]
pub enum Step {
    /// Go on with this.
    Ask(Exchange, Ask),
    /// The client has the password.
    Proven(Proof),
}

/// What a successful login leaves.
pub struct Proof {
    /// The server's own proof, for AuthenticationSASLFinal; none with MD5.
    pub server_final: Option<String>,
    /// Opens any server that has the same verifier; none with MD5.
    pub client_key: Option<Zeroizing<Key>>,
}

impl std::fmt::Debug for Proof {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Proof(…)")
    }
}

/// A login under way.
#[derive(Debug)]
pub struct Exchange {
    state: State,
    random: Random,
}

#[derive(Debug)]
enum State {
    Md5(Arc<Stored>),
    Begun(Server),
    Challenged(Challenged),
}

impl std::fmt::Debug for Random {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Random(…)")
    }
}

impl Exchange {
    /// Begins with a user's secret; without one, an exchange like any other that must fail. `binding` is the hash of the certificate
    /// that TLS to this client used, where it ends here.
    pub fn begin(
        user: &str,
        stored: Option<&Arc<Stored>>,
        mock: &Mock,
        random: Random,
        binding: Option<Vec<u8>>,
    ) -> (Self, Ask) {
        match stored {
            Some(stored) if matches!(stored.secret(), Secret::Md5(_)) => {
                let ask = Ask { code: 5, data: random.salt.to_vec() };
                (Self { state: State::Md5(stored.clone()), random }, ask)
            }
            _ => {
                let verifier = stored.and_then(|stored| stored.verifier(user, mock));
                let server = Server::new(verifier, user, mock).bound_to(binding);
                let ask = Ask { code: 10, data: server.offer() };
                (Self { state: State::Begun(server), random }, ask)
            }
        }
    }

    /// Whether the answer now expected decides.
    pub fn is_last(&self) -> bool {
        !matches!(self.state, State::Begun(_))
    }

    /// Takes the body of a client's answer.
    ///
    /// # Errors
    /// It is wrong, or none.
    pub fn answer(self, body: &[u8]) -> Result<Step, Failed> {
        match self.state {
            State::Md5(stored) => match (stored.secret(), body.strip_suffix(b"\0")) {
                (Secret::Md5(shadow), Some(given)) if md5::fits(shadow, self.random.salt, given) => {
                    Ok(Step::Proven(Proof { server_final: None, client_key: None }))
                }
                (_, Some(_)) => Err(Failed::Wrong),
                (_, None) => Err(Failed::Malformed),
            },
            State::Begun(server) => {
                let (mechanism, message) = initial(body).ok_or(Failed::Malformed)?;
                let (challenged, said) = server.begin(mechanism, message, &self.random.nonce)?;
                let ask = Ask { code: 11, data: said.into_bytes() };
                Ok(Step::Ask(Self { state: State::Challenged(challenged), random: self.random }, ask))
            }
            State::Challenged(challenged) => {
                let proven = challenged.last(body)?;
                let (server_final, client_key) = (Some(proven.server_final), Some(proven.client_key));
                Ok(Step::Proven(Proof { server_final, client_key }))
            }
        }
    }
}

/// Mechanism and client-first of a SASLInitialResponse: a string, a length, data.
fn initial(body: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = body.iter().position(|b| *b == 0)?;
    let (len, data) = body[end + 1..].split_first_chunk::<4>()?;
    (u32::from_be_bytes(*len) as usize == data.len()).then_some((&body[..end], data))
}

#[cfg(test)]
mod tests {
    use super::*;
    use postgres_protocol::authentication::{md5_hash, sasl};

    fn mock() -> Mock {
        Mock::new([7; 32], 2)
    }

    fn random() -> Random {
        Random { nonce: "nonce".to_owned(), salt: [1, 2, 3, 4] }
    }

    fn stored(text: &str) -> Arc<Stored> {
        Stored::parse(text).expect("well-formed").expect("a secret")
    }

    fn first(message: &[u8]) -> Vec<u8> {
        let len = u32::try_from(message.len()).expect("short").to_be_bytes();
        [b"SCRAM-SHA-256\0".as_slice(), &len, message].concat()
    }

    /// A login as a driver's library plays it.
    fn log_in(secret: Option<&str>, password: &str) -> Result<Proof, Failed> {
        let secret = secret.map(stored);
        let (exchange, ask) = Exchange::begin("odoo", secret.as_ref(), &mock(), random(), None);
        assert_eq!((ask.code, ask.data.as_slice()), (10, b"SCRAM-SHA-256\0\0".as_slice()));
        let mut client = sasl::ScramSha256::new(password.as_bytes(), sasl::ChannelBinding::unsupported());
        let Step::Ask(exchange, ask) = exchange.answer(&first(client.message()))? else { panic!("not yet") };
        assert!(exchange.is_last() && ask.code == 11);
        client.update(&ask.data).expect("a good challenge");
        let Step::Proven(proof) = exchange.answer(client.message())? else { panic!("nothing more to ask") };
        let server_final = proof.server_final.as_deref().expect("SCRAM proves the server too");
        client.finish(server_final.as_bytes()).expect("the server knows the password");
        Ok(proof)
    }

    #[test]
    fn a_driver_logs_in_with_plain_and_scram_secrets() {
        assert!(log_in(Some("secret"), "secret").is_ok());
        let verifier = postgres_protocol::password::scram_sha_256(b"secret");
        let proof = log_in(Some(&verifier), "secret").expect("the right password");
        let Secret::Scram(verifier) = stored(&verifier).secret().clone_verifier() else {
            panic!("a verifier")
        };
        assert!(verifier.fits(&proof.client_key.expect("SCRAM")));
    }

    #[test]
    fn wrong_passwords_and_unknown_users_fail_alike() {
        for secret in [Some("secret"), None] {
            assert_eq!(log_in(secret, "wrong").err(), Some(Failed::Wrong), "{secret:?}");
        }
        // Even with the password that a mock's keys would come from, were there one.
        assert_eq!(log_in(None, "").err(), Some(Failed::Wrong));
    }

    #[test]
    fn md5_is_asked_of_md5_users_only() {
        let shadow = md5::shadow("secret", "old");
        let secret = stored(&format!("md5{}", std::str::from_utf8(shadow.as_ref()).expect("hex")));
        let begin = || Exchange::begin("old", Some(&secret), &mock(), random(), None);
        let answer = |password: &str| {
            let (exchange, ask) = begin();
            assert_eq!(ask, Ask { code: 5, data: vec![1, 2, 3, 4] });
            exchange.answer(format!("{}\0", md5_hash(b"old", password.as_bytes(), [1, 2, 3, 4])).as_bytes())
        };
        assert!(matches!(answer("secret"), Ok(Step::Proven(_))));
        assert_eq!(answer("wrong").err(), Some(Failed::Wrong));
        assert_eq!(begin().0.answer(b"no end").err(), Some(Failed::Malformed));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic_or_log_in(one: Vec<u8>, two: Vec<u8>) {
            for secret in ["secret", "md50123456789abcdef0123456789abcdef"] {
                let (exchange, _) = Exchange::begin("odoo", Some(&stored(secret)), &mock(), random(), None);
                if let Ok(Step::Ask(exchange, _)) = exchange.answer(&one) {
                    let _ = exchange.answer(&two);
                }
            }
            let (exchange, _) = Exchange::begin("odoo", Some(&stored("secret")), &mock(), random(), None);
            let Ok(Step::Ask(exchange, _)) = exchange.answer(&first(b"n,,n=,r=abc")) else { panic!("well-formed") };
            proptest::prop_assert!(exchange.answer(&two).is_err());
        }
    }

    impl Secret {
        fn clone_verifier(&self) -> Self {
            match self {
                Self::Scram(verifier) => Self::Scram(verifier.clone()),
                _ => panic!("no verifier"),
            }
        }
    }
}
