//! SCRAM-SHA-256, the server's side (RFC 5802, RFC 7677), as PostgreSQL does it: the user is the startup packet's. Pure: the nonce
//! comes from outside.
//!
//! ```text
//! Server ── client-first ──► Challenged ── client-final ──► Proven (server-final, ClientKey) │ Wrong
//! ```
//!
//! An unknown user goes through the same exchange with a salt derived from its name, so that nobody learns who exists. Where the
//! client's TLS ends here, SCRAM-SHA-256-PLUS is offered too, bound to the server's certificate (`tls-server-end-point`, RFC 5929).

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::keys::{Key, Keys, mac, stored_key, xor};

/// The mechanism's name.
pub const MECHANISM: &str = "SCRAM-SHA-256";
/// The mechanism with channel binding.
pub const MECHANISM_PLUS: &str = "SCRAM-SHA-256-PLUS";
/// The channel binding's type: a hash of the server's certificate.
const BINDING_TYPE: &str = "tls-server-end-point";
/// Iterations where nothing says otherwise: those of PostgreSQL.
pub const ITERATIONS: u32 = 4096;
/// Iterations a stored verifier may ask of clients.
pub const ITERATIONS_MAX: u32 = 1_000_000;
/// Room for salt and iterations in server-first, in bytes: a salt of PostgreSQL's is 24 in base64.
const SALT_AND_COUNT: usize = 48;
/// `v=` and a key in base64, in bytes.
const SERVER_FINAL_LEN: usize = 46;
/// Room for a key in base64, in bytes.
const BASE64_ROOM: usize = 48;
/// Room in which a proof is decoded, in bytes: the library asks for some more than comes of it.
const PROOF_ROOM: usize = 48;
/// Longest message of the exchange, in bytes.
const MESSAGE_LEN_MAX: usize = 2048;

/// What is kept of a password: salt and keys, from which neither the password nor a proof can be made.
#[derive(Clone, PartialEq, Eq)]
pub struct Verifier {
    iterations: u32,
    salt: Vec<u8>,
    stored_key: Zeroizing<Key>,
    server_key: Zeroizing<Key>,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Verifier(…)")
    }
}

impl Verifier {
    /// Derives the keys with a fresh salt: 4096 iterations, some milliseconds, so once at start.
    pub fn from_password(password: &str) -> Self {
        let text = Zeroizing::new(postgres_protocol::password::scram_sha_256(password.as_bytes()));
        Self::parse(&text).expect("the library writes PostgreSQL's form")
    }

    /// Of keys derived already.
    pub fn from_keys(keys: &Keys, salt: Vec<u8>, iterations: u32) -> Self {
        let stored_key = Zeroizing::new(stored_key(&keys.client_key));
        Self { iterations, salt, stored_key, server_key: keys.server_key.clone() }
    }

    /// Reads PostgreSQL's form, `SCRAM-SHA-256$4096:salt$stored key:server key`; `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let rest = text.trim().strip_prefix(MECHANISM)?.strip_prefix('$')?;
        let (head, keys) = rest.split_once('$')?;
        let (iterations, salt) = head.split_once(':')?;
        let (stored_key, server_key) = keys.split_once(':')?;
        let iterations = iterations.parse().ok().filter(|count| (1..=ITERATIONS_MAX).contains(count))?;
        let key = |text| Key::try_from(BASE64.decode(text).ok()?).ok().map(Zeroizing::new);
        let (stored_key, server_key) = (key(stored_key)?, key(server_key)?);
        Some(Self { iterations, salt: BASE64.decode(salt).ok()?, stored_key, server_key })
    }

    /// Salt and iterations: what a client needs to derive its keys.
    pub fn derivation(&self) -> (&[u8], u32) {
        (&self.salt, self.iterations)
    }

    /// Proves the server to clients.
    pub fn server_key(&self) -> &Key {
        &self.server_key
    }

    /// Whether a ClientKey belongs to it.
    pub fn fits(&self, client_key: &Key) -> bool {
        bool::from(stored_key(client_key).ct_eq(&self.stored_key[..]))
    }
}

/// Makes verifiers of users that do not exist: each time the same, another for another name. Their keys are of no matter, since no proof of
/// theirs is taken; what a client sees is the salt.
#[derive(Clone)]
pub struct Mock {
    secret: Zeroizing<Key>,
    iterations: u32,
}

impl Mock {
    /// From random bytes of the process's own. `iterations` are those most users have, lest the number tells who exists.
    pub fn new(secret: Key, iterations: u32) -> Self {
        Self { secret: Zeroizing::new(secret), iterations }
    }

    /// Iterations of a mock.
    pub fn iterations(&self) -> u32 {
        self.iterations
    }

    /// The same with other iterations.
    pub fn with_iterations(&self, iterations: u32) -> Self {
        Self { secret: self.secret.clone(), iterations }
    }

    /// The salt of a name: 16 bytes, as PostgreSQL's.
    pub fn salt(&self, user: &str) -> Vec<u8> {
        mac(self.secret.as_ref(), &[b"salt", user.as_bytes()])[..16].to_vec()
    }

    fn verifier(&self, user: &str) -> Verifier {
        Verifier {
            iterations: self.iterations,
            salt: self.salt(user),
            stored_key: self.secret.clone(),
            server_key: self.secret.clone(),
        }
    }
}

impl fmt::Debug for Mock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Mock(…)")
    }
}

/// Why an exchange failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failed {
    /// A message that is none, or asks for what was not offered.
    Malformed,
    /// The client believes that channel binding was not offered, and it was: somebody in between took it out.
    Downgraded,
    /// Wrong password or unknown user.
    Wrong,
}

/// A proof that fits.
pub struct Proven {
    /// What the client is told: the server's own proof.
    pub server_final: String,
    /// What the client has proved to have: good for a login at any server with the same verifier.
    pub client_key: Zeroizing<Key>,
}

impl fmt::Debug for Proven {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Proven(…)")
    }
}

/// Before the client's first message.
#[derive(Debug)]
pub struct Server {
    verifier: Verifier,
    known: bool,
    /// Hash of the certificate the client saw, where TLS ends here.
    binding: Option<Vec<u8>>,
}

impl Server {
    /// For a user; without a verifier (nobody of that name) the exchange is played with a mock one.
    pub fn new(verifier: Option<&Verifier>, user: &str, mock: &Mock) -> Self {
        // The mock is made in either case: it costs the same time.
        let mock = mock.verifier(user);
        Self { known: verifier.is_some(), verifier: verifier.cloned().unwrap_or(mock), binding: None }
    }

    /// Offers channel binding as well: `binding` is the hash of the server's certificate.
    pub fn bound_to(self, binding: Option<Vec<u8>>) -> Self {
        Self { binding, ..self }
    }

    /// The mechanisms offered, best first: the body of AuthenticationSASL behind its code.
    pub fn offer(&self) -> Vec<u8> {
        let plus = self.binding.as_ref().map(|_| MECHANISM_PLUS);
        let names = plus.into_iter().chain([MECHANISM]);
        names.flat_map(|name| name.bytes().chain([0])).chain([0]).collect()
    }

    /// Takes the client's choice of a mechanism and client-first, gives server-first. `nonce` is printable ASCII without commas, fresh
    /// each time.
    ///
    /// # Errors
    /// `Malformed`, `Downgraded`.
    pub fn begin(
        self,
        mechanism: &[u8],
        message: &[u8],
        nonce: &str,
    ) -> Result<(Challenged, String), Failed> {
        let plus = match mechanism {
            name if name == MECHANISM.as_bytes() => false,
            name if name == MECHANISM_PLUS.as_bytes() && self.binding.is_some() => true,
            _ => return Err(Failed::Malformed),
        };
        self.take_first(plus, message, nonce)
    }

    /// The same for a client that can only have chosen [`MECHANISM`].
    ///
    /// # Errors
    /// As [`Self::begin`].
    pub fn first(self, message: &[u8], nonce: &str) -> Result<(Challenged, String), Failed> {
        self.take_first(false, message, nonce)
    }

    fn take_first(self, plus: bool, message: &[u8], nonce: &str) -> Result<(Challenged, String), Failed> {
        let text = text(message)?;
        // gs2-header: the flag, an authorisation name (of no use here), then the bare message.
        let mut parts = text.splitn(3, ',');
        let (flag, authzid, bare) = (parts.next(), parts.next(), parts.next().ok_or(Failed::Malformed)?);
        self.check_flag(plus, flag.unwrap_or(""))?;
        if authzid != Some("") {
            return Err(Failed::Malformed);
        }
        let gs2 = &text[..text.len() - bare.len()];
        let mut attributes = bare.split(',');
        let user = attributes.next().and_then(|part| part.strip_prefix("n="));
        let client_nonce = attributes.next().and_then(|part| part.strip_prefix("r="));
        let (Some(_), Some(client_nonce)) = (user, client_nonce.filter(|nonce| is_nonce(nonce))) else {
            return Err(Failed::Malformed);
        };
        let nonce = [client_nonce, nonce].concat();
        let mut server_first = String::with_capacity(nonce.len() + SALT_AND_COUNT);
        ["r=", &nonce, ",s="].into_iter().for_each(|part| server_first.push_str(part));
        push_base64(&mut server_first, &self.verifier.salt);
        server_first.push_str(",i=");
        server_first.push_str(itoa::Buffer::new().format(self.verifier.iterations));
        let binding = self.binding.filter(|_| plus).unwrap_or_default();
        let mut channel = String::new();
        push_base64(&mut channel, &[gs2.as_bytes(), &binding].concat());
        let challenged = Challenged {
            channel,
            said: [bare, ",", &server_first].concat(),
            nonce,
            verifier: self.verifier,
            known: self.known,
        };
        Ok((challenged, server_first))
    }

    /// RFC 5802, section 6: `n` binds nothing, `y` would have but saw no offer, `p=…` binds.
    fn check_flag(&self, plus: bool, flag: &str) -> Result<(), Failed> {
        match (flag, plus) {
            ("n", false) => Ok(()),
            ("y", false) if self.binding.is_none() => Ok(()),
            ("y", _) => Err(Failed::Downgraded),
            (flag, true) if flag.strip_prefix("p=") == Some(BINDING_TYPE) => Ok(()),
            _ => Err(Failed::Malformed),
        }
    }
}

/// Between server-first and the client's final message.
#[derive(Debug)]
pub struct Challenged {
    verifier: Verifier,
    known: bool,
    nonce: String,
    /// The gs2-header, and the channel's binding, in base64, which the client must repeat.
    channel: String,
    /// client-first-bare and server-first.
    said: String,
}

impl Challenged {
    /// Takes client-final, gives server-final.
    ///
    /// # Errors
    /// `Malformed`, or `Wrong` when the proof does not fit.
    pub fn last(self, message: &[u8]) -> Result<Proven, Failed> {
        let text = text(message)?;
        // The proof comes last, and base64 has no comma.
        let (unproven, proof) = text.rsplit_once(',').ok_or(Failed::Malformed)?;
        let proof = proof.strip_prefix("p=").ok_or(Failed::Malformed)?;
        let mut attributes = unproven.split(',');
        let channel = attributes.next().and_then(|part| part.strip_prefix("c="));
        let nonce = attributes.next().and_then(|part| part.strip_prefix("r="));
        if channel != Some(&self.channel) || nonce != Some(&self.nonce) {
            return Err(Failed::Malformed);
        }
        let mut room = Zeroizing::new([0; PROOF_ROOM]);
        let len = BASE64.decode_slice(proof, room.as_mut_slice()).map_err(|_| Failed::Malformed)?;
        let proof =
            room.get(..len).and_then(|proof| <&Key>::try_from(proof).ok()).ok_or(Failed::Malformed)?;
        let message = [self.said.as_bytes(), b",", unproven.as_bytes()];
        let client_key = xor(proof, &mac(self.verifier.stored_key.as_ref(), &message));
        let fits = stored_key(&client_key).ct_eq(&self.verifier.stored_key[..]);
        let mut server_final = String::with_capacity(SERVER_FINAL_LEN);
        server_final.push_str("v=");
        push_base64(&mut server_final, &mac(self.verifier.server_key.as_ref(), &message));
        if bool::from(fits & subtle::Choice::from(u8::from(self.known))) {
            Ok(Proven { server_final, client_key })
        } else {
            Err(Failed::Wrong)
        }
    }
}

/// Appends bytes in base64. What is short, and that is all of a login, goes through room of its own: the library clears a kilobyte for any.
fn push_base64(out: &mut String, bytes: &[u8]) {
    let mut room = [0; BASE64_ROOM];
    match BASE64.encode_slice(bytes, &mut room).ok().and_then(|len| std::str::from_utf8(&room[..len]).ok()) {
        Some(text) => out.push_str(text),
        None => BASE64.encode_string(bytes, out),
    }
}

fn text(message: &[u8]) -> Result<&str, Failed> {
    if message.len() > MESSAGE_LEN_MAX {
        return Err(Failed::Malformed);
    }
    std::str::from_utf8(message).map_err(|_| Failed::Malformed)
}

/// Whether a nonce is what RFC 5802 allows; commas end it.
pub(super) fn is_nonce(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mock() -> Mock {
        Mock::new([7; 32], ITERATIONS)
    }

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
        Verifier::from_keys(&Keys::derive("pencil", &salt, 4096), salt, 4096)
    }

    #[test]
    fn the_rfcs_example_is_proven() {
        let server = Server::new(Some(&example()), "user", &mock());
        let (challenged, said) = server.first(CLIENT_FIRST, NONCE).expect("well-formed");
        assert_eq!(said, SERVER_FIRST);
        let proven = challenged.last(CLIENT_FINAL.as_bytes()).expect("the right proof");
        assert_eq!(proven.server_final, SERVER_FINAL);
        assert!(example().fits(&proven.client_key), "the key a client proved to have");
    }

    #[test]
    fn a_wrong_proof_and_an_unknown_user_fail_alike() {
        let wrong = CLIENT_FINAL.replace("p=dH", "p=aH");
        let server = Server::new(Some(&example()), "user", &mock());
        let (challenged, _) = server.first(CLIENT_FIRST, NONCE).expect("well-formed");
        assert_eq!(challenged.last(wrong.as_bytes()).err(), Some(Failed::Wrong));
        let (challenged, said) =
            Server::new(None, "user", &mock()).first(CLIENT_FIRST, NONCE).expect("well-formed");
        assert_eq!(challenged.last(CLIENT_FINAL.as_bytes()).err(), Some(Failed::Wrong));
        // The same salt at each try, another for another name, of the length a real one has.
        let salt_of =
            |user| Server::new(None, user, &mock()).first(CLIENT_FIRST, NONCE).expect("well-formed").1;
        assert_eq!((said.clone(), said.len()), (salt_of("user"), SERVER_FIRST.len()));
        assert_ne!(salt_of("user"), salt_of("other"));
    }

    #[test]
    fn what_was_not_offered_is_malformed() {
        for first in
            ["p=tls-server-end-point,,n=,r=abc", "n,a=x,n=,r=abc", "n,,m=1,n=,r=abc", "n,,n=,r=", "n,,", ""]
        {
            let server = Server::new(Some(&example()), "user", &mock());
            assert_eq!(server.first(first.as_bytes(), NONCE).err(), Some(Failed::Malformed), "{first}");
        }
        for last in [
            "",
            "c=eSws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=AAAA",
            "c=biws,r=another,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
            "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=AAAA",
        ] {
            let server = Server::new(Some(&example()), "user", &mock());
            let (challenged, _) = server.first(CLIENT_FIRST, NONCE).expect("well-formed");
            assert_eq!(challenged.last(last.as_bytes()).err(), Some(Failed::Malformed), "{last}");
        }
    }

    const BARE: &str = "n=,r=abc";

    /// The whole exchange as a client that binds to `seen` plays it.
    fn bound(header: &str, mechanism: &str, seen: &[u8], offered: Option<&[u8]>) -> Result<(), Failed> {
        let keys = Keys::derive("pencil", b"salt", 2);
        let verifier = Verifier::from_keys(&keys, b"salt".to_vec(), 2);
        let server = Server::new(Some(&verifier), "user", &mock()).bound_to(offered.map(<[u8]>::to_vec));
        let (challenged, server_first) =
            server.begin(mechanism.as_bytes(), format!("{header}{BARE}").as_bytes(), NONCE)?;
        let channel = BASE64.encode([header.as_bytes(), seen].concat());
        let unproven = format!("c={channel},r=abc{NONCE}");
        let said = format!("{BARE},{server_first},{unproven}");
        let signature = mac(&stored_key(&keys.client_key), &[said.as_bytes()]);
        let proof = BASE64.encode(xor(&keys.client_key, &signature).as_ref());
        challenged.last(format!("{unproven},p={proof}").as_bytes()).map(drop)
    }

    #[test]
    fn channel_binding_is_offered_where_tls_ends_here_and_cannot_be_taken_away() {
        let (ours, plus) = (Some(b"our certificate".as_slice()), "p=tls-server-end-point,,");
        assert_eq!(bound(plus, MECHANISM_PLUS, b"our certificate", ours), Ok(()));
        assert_eq!(bound(plus, MECHANISM_PLUS, b"another's", ours), Err(Failed::Malformed));
        assert_eq!(bound("n,,", MECHANISM, b"", ours), Ok(()));
        assert_eq!(bound("y,,", MECHANISM, b"", ours), Err(Failed::Downgraded));
        assert_eq!(bound("y,,", MECHANISM, b"", None), Ok(()));
        assert_eq!(bound(plus, MECHANISM, b"our certificate", ours), Err(Failed::Malformed));
        assert_eq!(bound("n,,", MECHANISM_PLUS, b"", ours), Err(Failed::Malformed));
        assert_eq!(bound(plus, MECHANISM_PLUS, b"", None), Err(Failed::Malformed));
        assert_eq!(bound("p=tls-unique,,", MECHANISM_PLUS, b"our certificate", ours), Err(Failed::Malformed));
        let offer = |binding| Server::new(None, "user", &mock()).bound_to(binding).offer();
        assert_eq!(offer(None), b"SCRAM-SHA-256\0\0");
        assert_eq!(offer(Some(vec![1])), b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0");
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic_or_log_in(first: Vec<u8>, last: Vec<u8>, bare in "(n=|r=|,|c=|p=|[a-z=])*") {
            let server = || Server::new(Some(&example_without_work()), "user", &mock());
            let _ = server().first(&first, NONCE);
            let _ = server().first(format!("n,,{bare}").as_bytes(), NONCE);
            let (challenged, _) = server().first(CLIENT_FIRST, NONCE).expect("well-formed");
            proptest::prop_assert!(challenged.last(&last).is_err());
            let (challenged, _) = server().first(CLIENT_FIRST, NONCE).expect("well-formed");
            proptest::prop_assert!(challenged.last(bare.as_bytes()).is_err());
        }
    }

    fn example_without_work() -> Verifier {
        Verifier {
            iterations: 4096,
            salt: vec![1; 16],
            stored_key: [2; 32].into(),
            server_key: [3; 32].into(),
        }
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
