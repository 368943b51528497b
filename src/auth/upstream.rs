//! Logging in to PostgreSQL for a client that has logged in here: answers to whatever PostgreSQL asks.
//!
//! | PostgreSQL asks | plain password | md5 secret | verifier |
//! | --- | --- | --- | --- |
//! | nothing (trust, peer, cert) | yes | yes | yes |
//! | the password in the clear | where nobody can listen | – | – |
//! | md5 | yes | yes | – |
//! | SCRAM-SHA-256 | yes | – | with the key the client proved to have, where PostgreSQL's verifier is the same |

use std::fmt;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::keys::{Key, Keys, mac, stored_key, xor};
use super::md5;
use super::scram::{ITERATIONS_MAX, MECHANISM, is_nonce};
use super::stored::{Secret, Stored};

/// Iterations derived for a login upstream, whose number is whatever the role's verifier says: a role may set its own (PostgreSQL's
/// default is 4096). Some 50 ms.
pub const ITERATIONS_DERIVED_MAX: u32 = 100_000;

/// What pgweir may answer with in a user's name.
#[derive(Clone)]
pub struct Credentials {
    /// The user.
    pub user: Arc<str>,
    /// Its secret.
    pub stored: Arc<Stored>,
    /// The key its client proved to have, where that was by SCRAM.
    pub client_key: Option<Zeroizing<Key>>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credentials({:?}, …)", self.user)
    }
}

/// Why PostgreSQL cannot be answered. The texts are for the operator, and hold nothing secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Cannot {
    /// Clear text over a network.
    #[error(
        "PostgreSQL asks for the password in the clear, over a connection that is neither local nor encrypted"
    )]
    Exposed,
    /// A password is asked for and only something derived from it is known.
    #[error("PostgreSQL asks for the password itself, and only an md5 secret or a verifier is known")]
    NoPassword,
    /// MD5 is asked for and only a verifier is known.
    #[error("PostgreSQL asks for md5, and only a SCRAM verifier is known")]
    NoMd5,
    /// SCRAM is asked for and only an MD5 secret is known.
    #[error("PostgreSQL asks for SCRAM-SHA-256, and only an md5 secret is known")]
    NoKey,
    /// The verifier kept here is not PostgreSQL's.
    #[error("the verifier kept here is not the one PostgreSQL has: salt or iterations differ")]
    OtherVerifier,
    /// Kerberos, SSPI, LDAP over SASL …
    #[error(
        "PostgreSQL asks for a method that is not spoken: use scram-sha-256, md5, password, cert or trust"
    )]
    Method,
    /// More work than is done for one login.
    #[error(
        "PostgreSQL asks for more than {ITERATIONS_DERIVED_MAX} iterations of SCRAM-SHA-256: lower its scram_iterations and set the password anew"
    )]
    Iterations,
    /// PostgreSQL broke the protocol of SCRAM.
    #[error("PostgreSQL's SCRAM-SHA-256 messages make no sense")]
    Malformed,
    /// Whoever answers does not know the password.
    #[error("whoever answers at PostgreSQL's address does not know the user's verifier")]
    Impostor,
}

/// One login.
#[derive(Debug)]
pub struct Answerer {
    credentials: Credentials,
    /// Whether nobody can listen on the way.
    private: bool,
    scram: Scram,
}

enum Scram {
    Not,
    /// Our nonce.
    Begun(String),
    /// The signature PostgreSQL must show.
    Proved(Zeroizing<Key>),
    Done,
}

impl fmt::Debug for Scram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scram(…)")
    }
}

impl Answerer {
    /// For one connection; `private` says that it is local or encrypted.
    pub fn new(credentials: Credentials, private: bool) -> Self {
        Self { credentials, private, scram: Scram::Not }
    }

    /// Takes an authentication request (its code, and what follows), gives the body of the PasswordMessage, if one is due. `nonce` is
    /// printable ASCII without commas, fresh for each login.
    ///
    /// # Errors
    /// See [`Cannot`].
    pub fn answer(
        &mut self,
        code: u32,
        data: &[u8],
        nonce: &str,
    ) -> Result<Option<Zeroizing<Vec<u8>>>, Cannot> {
        match code {
            // An end before PostgreSQL's own proof is none.
            0 if matches!(self.scram, Scram::Begun(_) | Scram::Proved(_)) => Err(Cannot::Impostor),
            0 => Ok(None),
            3 => self.clear_text().map(Some),
            5 => {
                let salt = data.first_chunk::<4>().ok_or(Cannot::Malformed)?;
                self.digest(*salt).map(Some)
            }
            10 => self.begin(data, nonce).map(Some),
            11 => self.prove(data).map(Some),
            12 => self.end(data).map(|()| None),
            _ => Err(Cannot::Method),
        }
    }

    /// What has to be derived before this request can be answered, if anything. [`Self::answer`] would do it too, but it takes long: not
    /// for a thread that serves others.
    pub fn work(&self, code: u32, data: &[u8]) -> Option<Work> {
        let text = std::str::from_utf8(data).ok().filter(|_| code == 11)?;
        let (_, salt, iterations) = server_first_of(text)?;
        let stored = &self.credentials.stored;
        let due = iterations <= ITERATIONS_DERIVED_MAX && stored.must_derive_for(&salt, iterations);
        due.then(|| Work { stored: stored.clone(), salt, iterations })
    }

    fn clear_text(&self) -> Result<Zeroizing<Vec<u8>>, Cannot> {
        let Secret::Plain(password) = self.credentials.stored.secret() else {
            return Err(Cannot::NoPassword);
        };
        if !self.private {
            return Err(Cannot::Exposed);
        }
        Ok(terminated(password.as_bytes()))
    }

    fn digest(&self, salt: [u8; 4]) -> Result<Zeroizing<Vec<u8>>, Cannot> {
        let answer = match self.credentials.stored.secret() {
            Secret::Plain(password) => md5::answer(&md5::shadow(password, &self.credentials.user), salt),
            Secret::Md5(shadow) => md5::answer(shadow, salt),
            Secret::Scram(_) => return Err(Cannot::NoMd5),
        };
        Ok(terminated(&answer))
    }

    fn begin(&mut self, mechanisms: &[u8], nonce: &str) -> Result<Zeroizing<Vec<u8>>, Cannot> {
        if !mechanisms.split(|b| *b == 0).any(|name| name == MECHANISM.as_bytes()) {
            return Err(Cannot::Method);
        }
        if matches!(self.credentials.stored.secret(), Secret::Md5(_)) {
            return Err(Cannot::NoKey);
        }
        if !matches!(self.scram, Scram::Not) {
            return Err(Cannot::Malformed);
        }
        let first = format!("n,,{}", bare(nonce));
        let len = u32::try_from(first.len()).map_err(|_| Cannot::Malformed)?;
        self.scram = Scram::Begun(nonce.to_owned());
        let mut out = terminated(MECHANISM.as_bytes());
        out.extend_from_slice(&len.to_be_bytes());
        out.extend_from_slice(first.as_bytes());
        Ok(out)
    }

    fn prove(&mut self, data: &[u8]) -> Result<Zeroizing<Vec<u8>>, Cannot> {
        let Scram::Begun(ours) = &self.scram else { return Err(Cannot::Malformed) };
        let server_first = std::str::from_utf8(data).map_err(|_| Cannot::Malformed)?;
        let (nonce, salt, iterations) = server_first_of(server_first).ok_or(Cannot::Malformed)?;
        if !nonce.starts_with(ours.as_str()) || nonce.len() == ours.len() {
            return Err(Cannot::Malformed);
        }
        let keys = self.keys(&salt, iterations)?;
        let unproven = format!("c=biws,r={nonce}");
        let (own, comma) = (bare(ours), b",".as_slice());
        let said = [own.as_bytes(), comma, server_first.as_bytes(), comma, unproven.as_bytes()];
        let signature = mac(&stored_key(&keys.client_key), &said);
        let proof = xor(&keys.client_key, &signature);
        let expected = Zeroizing::new(mac(keys.server_key.as_ref(), &said));
        self.scram = Scram::Proved(expected);
        let proof = Zeroizing::new(BASE64.encode(proof.as_ref()));
        let mut out = Zeroizing::new(Vec::with_capacity(unproven.len() + 3 + proof.len()));
        out.extend_from_slice(unproven.as_bytes());
        out.extend_from_slice(b",p=");
        out.extend_from_slice(proof.as_bytes());
        Ok(out)
    }

    fn keys(&self, salt: &[u8], iterations: u32) -> Result<Keys, Cannot> {
        let stored = &self.credentials.stored;
        if matches!(stored.secret(), Secret::Plain(_)) && iterations > ITERATIONS_DERIVED_MAX {
            return Err(Cannot::Iterations);
        }
        if let Some(keys) = stored.keys_for(salt, iterations) {
            return Ok(keys);
        }
        let Secret::Scram(verifier) = stored.secret() else { return Err(Cannot::NoKey) };
        if verifier.derivation() != (salt, iterations) {
            return Err(Cannot::OtherVerifier);
        }
        let client_key = self.credentials.client_key.clone().ok_or(Cannot::NoKey)?;
        Ok(Keys { client_key, server_key: Zeroizing::new(*verifier.server_key()) })
    }

    fn end(&mut self, data: &[u8]) -> Result<(), Cannot> {
        let Scram::Proved(expected) = &self.scram else { return Err(Cannot::Malformed) };
        let text = std::str::from_utf8(data).map_err(|_| Cannot::Malformed)?;
        let shown =
            text.strip_prefix("v=").and_then(|text| BASE64.decode(text).ok()).ok_or(Cannot::Malformed)?;
        if !bool::from(expected.as_slice().ct_eq(&shown)) {
            return Err(Cannot::Impostor);
        }
        self.scram = Scram::Done;
        Ok(())
    }
}

/// A derivation that is due.
#[derive(Debug)]
pub struct Work {
    stored: Arc<Stored>,
    salt: Vec<u8>,
    iterations: u32,
}

impl Work {
    /// Does it: up to some 50 ms. The result is kept with the secret.
    pub fn carry_out(self) {
        self.stored.keys_for(&self.salt, self.iterations);
    }
}

fn bare(nonce: &str) -> String {
    format!("n=,r={nonce}")
}

fn terminated(bytes: &[u8]) -> Zeroizing<Vec<u8>> {
    // Room for what may follow: growing would leave a copy behind.
    let mut out = Zeroizing::new(Vec::with_capacity(bytes.len() + 256));
    out.extend_from_slice(bytes);
    out.push(0);
    out
}

/// Nonce, salt and iterations.
fn server_first_of(text: &str) -> Option<(&str, Vec<u8>, u32)> {
    let mut attributes = text.split(',');
    let nonce = attributes.next()?.strip_prefix("r=").filter(|nonce| is_nonce(nonce))?;
    let salt = BASE64.decode(attributes.next()?.strip_prefix("s=")?).ok()?;
    let iterations = attributes.next()?.strip_prefix("i=")?.parse().ok()?;
    (1..=ITERATIONS_MAX).contains(&iterations).then_some((nonce, salt, iterations))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::scram::{Mock, Server, Verifier};

    fn credentials(secret: &str, client_key: Option<Zeroizing<Key>>) -> Credentials {
        let stored = Stored::parse(secret).expect("well-formed").expect("a secret");
        Credentials { user: "odoo".into(), stored, client_key }
    }

    const OFFER: &[u8] = b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0";

    /// Plays a login against a server with this verifier.
    fn log_in(credentials: Credentials, verifier: &Verifier) -> Result<(), Cannot> {
        let mut answerer = Answerer::new(credentials, false);
        let begun = answerer.answer(10, OFFER, "ours")?.expect("an answer");
        let first = &begun[MECHANISM.len() + 5..];
        let server = Server::new(Some(verifier), "odoo", &Mock::new([7; 32], 2));
        let (challenged, said) = server.first(first, "theirs").expect("well-formed");
        let last = answerer.answer(11, said.as_bytes(), "")?.expect("an answer");
        assert_eq!(answerer.answer(0, b"", ""), Err(Cannot::Impostor), "before the server's proof");
        let proven = challenged.last(&last).expect("the right proof");
        assert_eq!(answerer.answer(12, proven.server_final.as_bytes(), ""), Ok(None));
        answerer.answer(0, b"", "").map(drop)
    }

    #[test]
    fn the_rfcs_example_is_spoken() {
        let mut answerer = Answerer::new(credentials("pencil", None), false);
        let begun = answerer.answer(10, OFFER, "rOprNGfwEbeRWgbNEkqO").expect("SCRAM").expect("an answer");
        assert!(begun.ends_with(b"n,,n=,r=rOprNGfwEbeRWgbNEkqO"));
        let server_first =
            b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
        let last = answerer.answer(11, server_first, "").expect("SCRAM").expect("an answer");
        assert!(last.starts_with(b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p="));
        assert_eq!(
            answerer.answer(12, b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=", ""),
            Err(Cannot::Impostor)
        );
    }

    #[test]
    fn passwords_and_keys_log_in_at_a_server_with_the_same_verifier() {
        let text = postgres_protocol::password::scram_sha_256(b"secret");
        let verifier = Verifier::parse(&text).expect("well-formed");
        let (salt, iterations) = verifier.derivation();
        let key = Keys::derive("secret", salt, iterations).client_key;
        assert_eq!(log_in(credentials("secret", None), &verifier), Ok(()));
        assert_eq!(log_in(credentials(&text, Some(key.clone())), &verifier), Ok(()));
        assert_eq!(log_in(credentials(&text, None), &verifier), Err(Cannot::NoKey));
        let other = postgres_protocol::password::scram_sha_256(b"secret");
        assert_eq!(log_in(credentials(&other, Some(key)), &verifier), Err(Cannot::OtherVerifier));
        assert_eq!(
            log_in(credentials("md50123456789abcdef0123456789abcdef", None), &verifier),
            Err(Cannot::NoKey)
        );
    }

    #[test]
    fn work_is_told_beforehand_and_has_a_bound() {
        let asked = |iterations: u32| format!("r=oursx,s=AAAA,i={iterations}");
        let begun = |secret: &str| {
            let mut answerer = Answerer::new(credentials(secret, None), false);
            answerer.answer(10, OFFER, "ours").expect("SCRAM");
            answerer
        };
        let mut answerer = begun("secret");
        assert!(answerer.work(10, OFFER).is_none());
        answerer.work(11, asked(2).as_bytes()).expect("to be derived").carry_out();
        assert!(answerer.work(11, asked(2).as_bytes()).is_none(), "it is kept");
        assert!(answerer.answer(11, asked(2).as_bytes(), "").is_ok());
        let many = asked(ITERATIONS_DERIVED_MAX + 1);
        assert!(begun("secret").work(11, many.as_bytes()).is_none());
        assert_eq!(begun("secret").answer(11, many.as_bytes(), ""), Err(Cannot::Iterations));
        let verifier = postgres_protocol::password::scram_sha_256(b"secret");
        assert!(begun(&verifier).work(11, asked(2).as_bytes()).is_none(), "nothing to derive from");
    }

    #[test]
    fn each_method_is_answered_with_what_there_is() {
        let md5 = format!("md5{}", std::str::from_utf8(md5::shadow("secret", "odoo").as_ref()).expect("hex"));
        let scram = postgres_protocol::password::scram_sha_256(b"secret");
        let ask = |secret: &str, private, code, data: &[u8]| {
            let answer = Answerer::new(credentials(secret, None), private).answer(code, data, "nonce");
            answer.map(|bytes| bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
        };
        let theirs = postgres_protocol::authentication::md5_hash(b"odoo", b"secret", [1, 2, 3, 4]) + "\0";
        assert_eq!(ask("secret", false, 5, &[1, 2, 3, 4]), Ok(Some(theirs.clone())));
        assert_eq!(ask(&md5, false, 5, &[1, 2, 3, 4]), Ok(Some(theirs)));
        assert_eq!(ask(&scram, false, 5, &[1, 2, 3, 4]), Err(Cannot::NoMd5));
        assert_eq!(ask("secret", true, 3, b""), Ok(Some("secret\0".to_owned())));
        assert_eq!(ask("secret", false, 3, b""), Err(Cannot::Exposed));
        assert_eq!(ask(&md5, true, 3, b""), Err(Cannot::NoPassword));
        assert_eq!(ask(&scram, false, 0, b""), Ok(None));
        assert_eq!(ask(&scram, false, 7, b""), Err(Cannot::Method));
        assert_eq!(ask("secret", false, 10, b"OTHER\0\0"), Err(Cannot::Method));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(messages: Vec<(u8, Vec<u8>)>, said in "r=oursx,s=[A-Za-z=]{0,8},i=[0-9]{1,3}") {
            let mut answerer = Answerer::new(credentials("secret", None), false);
            for (code, data) in messages {
                let _ = answerer.answer(u32::from(code % 14), &data, "ours");
            }
            let mut answerer = Answerer::new(credentials("secret", None), false);
            let _ = answerer.answer(10, OFFER, "ours");
            let _ = answerer.answer(11, said.as_bytes(), "");
        }
    }
}
