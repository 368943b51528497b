//! Who may log in: the users file, the auth query with its memory, and the failures of addresses.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use super::random;
use crate::auth::exchange::Random;
use crate::auth::memory::Memory;
use crate::auth::scram::{ITERATIONS, Mock};
use crate::auth::stored::{BadVerifier, Secret, Stored};
use crate::auth::throttle::Throttle;
use crate::auth::upstream::{Credentials, ITERATIONS_DERIVED_MAX};
use crate::auth::users::Users;
use crate::clock;

/// Auth queries under way at most; others wait for their turn.
const QUERIES_MAX: usize = 16;
/// Derivations under way at most, each on a thread of its own; others wait for their turn.
const DERIVING_MAX: usize = 2;
/// Longest name of a role, in bytes (NAMEDATALEN less one).
const NAME_LEN_MAX: usize = 63;
/// Pause before a query is put again to a monitor that is not connected.
const ASK_AGAIN: Duration = Duration::from_millis(250);

/// `[auth] mode = "scram"`, for links.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnAuth {
    /// Asked for users the file does not have.
    pub query: Option<Arc<str>>,
}

/// Why the auth query gave no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AskError {
    /// The monitor has no connection at the moment.
    NotConnected,
    /// PostgreSQL refused the query, or its answer is none.
    Failed(String),
}

/// An answer to come: the user's secret, none for a user that does not exist or has none.
pub type Answer = Pin<Box<dyn Future<Output = Result<Option<Zeroizing<String>>, AskError>> + Send>>;
/// Puts a query (its text, and the user it is about) to PostgreSQL, within a bound of its own.
pub type Ask = Box<dyn Fn(Arc<str>, Arc<str>) -> Answer + Send + Sync>;

/// Shared by all logins.
pub struct Authority {
    users: ArcSwap<Users>,
    memory: Mutex<Memory>,
    /// Failures by address.
    pub throttle: Mutex<Throttle>,
    mock: OnceLock<Mock>,
    ask: OnceLock<Ask>,
    asking: Semaphore,
    deriving: Arc<Semaphore>,
    /// Iterations of the last verifier the query answered with; 0 before.
    iterations: AtomicU32,
}

impl Default for Authority {
    fn default() -> Self {
        Self {
            users: ArcSwap::default(),
            memory: Mutex::default(),
            throttle: Mutex::default(),
            mock: OnceLock::new(),
            ask: OnceLock::new(),
            asking: Semaphore::new(QUERIES_MAX),
            deriving: Arc::new(Semaphore::new(DERIVING_MAX)),
            iterations: AtomicU32::new(0),
        }
    }
}

impl Authority {
    /// Puts the users of a file into force, and forgets what the auth query said.
    pub fn set_users(&self, mut users: Users) {
        users.inherit(&self.users.load());
        self.users.store(Arc::new(users));
        self.memory.lock().clear();
    }

    /// Says how the auth query is put; once.
    pub fn set_ask(&self, ask: Ask) {
        let _ = self.ask.set(ask);
    }

    /// Derives what plain passwords of the file are checked against, lest the first login of a user takes longer than that of one who
    /// does not exist. Some milliseconds a user: not for a thread that serves.
    pub fn derive_all(&self) {
        let Some(mock) = self.mock() else { return };
        for (name, stored) in self.users.load().iter() {
            stored.verifier(name, &mock);
        }
    }

    /// Does work that takes milliseconds beside the thread that serves. Who gives up waiting leaves it to its end, and its turn taken
    /// until then.
    pub async fn derive(&self, work: impl FnOnce() + Send + 'static) {
        let Ok(turn) = self.deriving.clone().acquire_owned().await else { return };
        let done = tokio::task::spawn_blocking(move || {
            work();
            drop(turn);
        });
        // Whoever needs the result does the work again where a panic ended it.
        let _ = done.await;
    }

    /// What stands in for users that do not exist. None when the system has no random bytes.
    pub fn mock(&self) -> Option<Mock> {
        if self.mock.get().is_none() {
            let mut secret = [0; 32];
            getrandom::fill(&mut secret).ok()?;
            let _ = self.mock.set(Mock::new(secret, ITERATIONS));
        }
        let seen = Some(self.iterations.load(Ordering::Relaxed)).filter(|count| *count > 0);
        let iterations = self.users.load().iterations().or(seen).unwrap_or(ITERATIONS);
        self.mock.get().map(|mock| mock.with_iterations(iterations))
    }

    /// A user's secret: from the file, else from the query. An error is for the operator.
    ///
    /// # Errors
    /// The query failed. While the monitor is not connected, what was known before is good, or this waits; the caller has the bound.
    pub async fn find(&self, query: Option<&Arc<str>>, user: &str) -> Result<Option<Arc<Stored>>, String> {
        match (self.known(query.is_some(), user), query) {
            (Some(found), _) => Ok(found),
            // In a room of its own, which most logins do not need.
            (None, Some(query)) => Box::pin(self.query(query, user)).await,
            (None, None) => Ok(None),
        }
    }

    /// What is known of a user without asking; `asks` says whether it could be asked.
    fn known(&self, asks: bool, user: &str) -> Option<Option<Arc<Stored>>> {
        if !is_possible(user) {
            return Some(None);
        }
        if let Some(found) = self.users.load().find(user) {
            return Some(found);
        }
        if asks { self.memory.lock().get(user, clock::now()) } else { Some(None) }
    }

    async fn query(&self, query: &Arc<str>, user: &str) -> Result<Option<Arc<Stored>>, String> {
        let ask = self.ask.get().ok_or("there is no monitor to put the auth query to")?;
        let _turn = self.asking.acquire().await.map_err(|error| error.to_string())?;
        // Somebody may have asked for the same user meanwhile.
        if let Some(found) = self.memory.lock().get(user, clock::now()) {
            return Ok(found);
        }
        let text = loop {
            match ask(query.clone(), user.into()).await {
                Ok(text) => break text,
                Err(AskError::Failed(why)) => return Err(why),
                Err(AskError::NotConnected) => {
                    if let Some(stale) = self.memory.lock().get_stale(user, clock::now()) {
                        return Ok(Some(stale));
                    }
                    tokio::time::sleep(ASK_AGAIN).await;
                }
            }
        };
        let stored = text.as_deref().map(|text| Stored::parse(text)).transpose();
        let stored =
            stored.map_err(|error: BadVerifier| format!("the secret of {user:?} {error}"))?.flatten();
        if let Some(Secret::Scram(verifier)) = stored.as_deref().map(Stored::secret) {
            // A role sets its own: nobody's clear password is derived with more for that.
            let iterations = verifier.derivation().1.min(ITERATIONS_DERIVED_MAX);
            self.iterations.store(iterations, Ordering::Relaxed);
        }
        Ok(self.memory.lock().put(user, stored, clock::now()))
    }

    /// A login came to nothing: the next one asks anew.
    pub fn forget(&self, user: &str) {
        self.memory.lock().forget(user);
    }

    /// Forgets answers that are fresh no more, and keys nobody has proved to have for long.
    pub fn clean(&self) {
        let now = clock::now();
        self.memory.lock().clean(now);
        self.throttle.lock().clean(now);
        self.users.load().iter().for_each(|(_, stored)| stored.clean(now));
    }

    /// What pgweir itself may log in to PostgreSQL with in a user's name, without a client of that user: its stored password, or the key
    /// its last client proved to have. None where neither is known. For connections made ahead of clients.
    pub fn credentials(&self, user: &str) -> Option<Credentials> {
        let stored = match self.users.load().find(user) {
            Some(stored) => stored?,
            None => self.memory.lock().get(user, clock::now())??,
        };
        let client_key = stored.proven();
        Some(Credentials { user: user.into(), stored, client_key })
    }
}

/// Whether PostgreSQL could have such a role under that very name: it cuts longer ones off, and what is not UTF-8 reaches it as other
/// bytes than were looked up here.
fn is_possible(user: &str) -> bool {
    user.len() <= NAME_LEN_MAX && (user.is_ascii() || !user.contains(char::REPLACEMENT_CHARACTER))
}

/// Random bytes for a login; none when the system has no more.
pub fn random() -> Option<Random> {
    use base64::Engine;
    let mut both = [0; 18 + 4];
    random::fill(&mut both)?;
    let (bytes, salt) = both.split_first_chunk::<18>()?;
    let mut nonce = vec![0; 24];
    base64::engine::general_purpose::STANDARD.encode_slice(bytes, &mut nonce).ok()?;
    Some(Random { nonce: String::from_utf8(nonce).ok()?, salt: *salt.first_chunk()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn authority(answer: fn(u32) -> Result<Option<&'static str>, AskError>) -> (Authority, Arc<AtomicU32>) {
        let (authority, asked) = (Authority::default(), Arc::new(AtomicU32::new(0)));
        let counter = asked.clone();
        authority.set_ask(Box::new(move |_, _| {
            let answer = answer(counter.fetch_add(1, Ordering::Relaxed));
            Box::pin(async move { answer.map(|text| text.map(|text| Zeroizing::new(text.to_owned()))) })
        }));
        (authority, asked)
    }

    #[tokio::test]
    async fn the_file_comes_first_and_answers_are_kept_until_a_failure() {
        let (authority, asked) = authority(|n| Ok(if n == 0 { Some("old") } else { Some("new") }));
        authority.set_users(Users::parse("\"filed\" \"x\"\n\"locked\" \"\"").expect("well-formed").0);
        let query: Arc<str> = "select".into();
        assert!(authority.find(Some(&query), "filed").await.expect("found").is_some());
        assert!(authority.find(Some(&query), "locked").await.expect("known").is_none());
        assert!(authority.find(None, "other").await.expect("no query").is_none());
        assert_eq!(asked.load(Ordering::Relaxed), 0);
        let first = authority.find(Some(&query), "other").await.expect("found").expect("a secret");
        authority.find(Some(&query), "other").await.expect("kept");
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        authority.forget("other");
        let second = authority.find(Some(&query), "other").await.expect("found").expect("a secret");
        assert!(!second.is_same(&first));
        assert!(authority.credentials("other").is_some() && authority.credentials("locked").is_none());
    }

    #[tokio::test]
    async fn only_so_many_derive_at_once_and_who_gives_up_holds_its_turn() {
        let authority = Arc::new(Authority::default());
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let wait = Arc::new(Mutex::new(wait));
        for left in (0..DERIVING_MAX).rev() {
            let (deriving, wait) = (authority.clone(), wait.clone());
            let work = move || wait.lock().recv().unwrap_or(());
            let gone = tokio::spawn(async move { deriving.derive(work).await });
            while authority.deriving.available_permits() > left {
                tokio::task::yield_now().await;
            }
            gone.abort();
            assert!(gone.await.is_err());
        }
        assert_eq!(authority.deriving.available_permits(), 0);
        drop(go);
        authority.derive(|| {}).await;
        authority.derive(|| {}).await;
    }

    #[tokio::test]
    async fn names_that_postgresql_would_take_for_others_are_nobodys() {
        let (authority, asked) = authority(|_| Ok(Some("secret")));
        let (long, query) = ("x".repeat(64), Arc::<str>::from("select"));
        authority.set_users(
            Users::parse(&format!("\"{long}\" \"x\"\n\"caf\u{fffd}\" \"x\"")).expect("well-formed").0,
        );
        for name in [long.as_str(), "caf\u{fffd}"] {
            assert!(authority.find(Some(&query), name).await.expect("no query").is_none(), "{name}");
        }
        assert_eq!(asked.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn a_refusal_is_told_and_a_secret_that_is_none_is_not() {
        let (authority, _) = authority(|n| match n {
            0 => Ok(None),
            1 => Ok(Some("SCRAM-SHA-256$oops")),
            _ => Err(AskError::Failed("permission denied".to_owned())),
        });
        let query: Arc<str> = "select".into();
        assert!(authority.find(Some(&query), "a").await.expect("nobody").is_none());
        let bad = authority.find(Some(&query), "b").await.expect_err("no verifier");
        assert!(bad.contains("no verifier") && !bad.contains("oops"), "{bad}");
        assert_eq!(authority.find(Some(&query), "c").await.expect_err("refused"), "permission denied");
    }
}
