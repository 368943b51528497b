//! What clients did, by database: SHOW STATS.
//!
//! A link's figures are written by its own worker alone, with plain stores: no locked instruction, no lock, and no cache line that
//! two cores write. They are summed up when somebody asks; when a link ends, they go into the sums of its database. Both happen under one
//! lock, so that a sum never goes back.

use std::collections::BTreeMap;
use std::ops::{AddAssign, Sub};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;

use crate::clock::Moment;

/// Databases counted apart at most. Only names that PostgreSQL has let somebody in to are counted, so that it is as many as there are.
const DATABASES_MAX: usize = 1_000;
/// What those beyond are counted under.
pub const OTHERS: &str = "(others)";
/// How long a period of averages is: PgBouncer's `stats_period`.
pub const PERIOD: Duration = Duration::from_secs(60);

/// Sums since start. Times are in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Transactions that ended, those of a single statement included.
    pub transactions: u64,
    /// Time in them.
    pub transaction_us: u64,
    /// Requests answered; those of one pipeline are one.
    pub queries: u64,
    /// From the request to the delivery of its answer.
    pub query_us: u64,
    /// Bytes of clients, after their logins.
    pub received: u64,
    /// Bytes of PostgreSQL for them.
    pub sent: u64,
    /// Time clients waited for a connection or were held.
    pub wait_us: u64,
}

impl AddAssign for Totals {
    fn add_assign(&mut self, other: Self) {
        self.transactions += other.transactions;
        self.transaction_us += other.transaction_us;
        self.queries += other.queries;
        self.query_us += other.query_us;
        self.received += other.received;
        self.sent += other.sent;
        self.wait_us += other.wait_us;
    }
}

impl Sub for Totals {
    type Output = Self;
    fn sub(self, before: Self) -> Self {
        Self {
            transactions: self.transactions.saturating_sub(before.transactions),
            transaction_us: self.transaction_us.saturating_sub(before.transaction_us),
            queries: self.queries.saturating_sub(before.queries),
            query_us: self.query_us.saturating_sub(before.query_us),
            received: self.received.saturating_sub(before.received),
            sent: self.sent.saturating_sub(before.sent),
            wait_us: self.wait_us.saturating_sub(before.wait_us),
        }
    }
}

/// What one link's worker counts. Everybody may read.
#[derive(Debug, Default)]
pub struct Figures {
    transactions: AtomicU64,
    transaction_us: AtomicU64,
    queries: AtomicU64,
    query_us: AtomicU64,
    received: AtomicU64,
    sent: AtomicU64,
    requested_at: AtomicU64,
}

/// Only the link's worker writes: no locked instruction is needed.
#[inline]
fn add(to: &AtomicU64, more: u64) {
    to.store(to.load(Relaxed).wrapping_add(more), Relaxed);
}

impl Figures {
    /// A transaction ended.
    #[inline]
    pub fn transaction(&self, took: Duration) {
        add(&self.transactions, 1);
        add(&self.transaction_us, us(took));
    }

    /// A request began.
    #[inline]
    pub fn requested(&self, now: Moment) {
        self.requested_at.store(now.as_micros(), Relaxed);
    }

    /// A request was answered.
    #[inline]
    pub fn query(&self, took: Duration) {
        add(&self.queries, 1);
        add(&self.query_us, us(took));
    }

    /// Bytes came from the client.
    #[inline]
    pub fn received(&self, bytes: usize) {
        add(&self.received, bytes as u64);
    }

    /// Bytes came from PostgreSQL.
    #[inline]
    pub fn sent(&self, bytes: usize) {
        add(&self.sent, bytes as u64);
    }

    /// When its last request began, if there was one.
    pub fn requested_at(&self) -> Option<Moment> {
        Some(self.requested_at.load(Relaxed)).filter(|at| *at != 0).map(Moment::from_micros)
    }

    /// As far as it has come; without the time waited, which the link counts itself.
    pub fn read(&self) -> Totals {
        Totals {
            transactions: self.transactions.load(Relaxed),
            transaction_us: self.transaction_us.load(Relaxed),
            queries: self.queries.load(Relaxed),
            query_us: self.query_us.load(Relaxed),
            received: self.received.load(Relaxed),
            sent: self.sent.load(Relaxed),
            wait_us: 0,
        }
    }
}

fn us(took: Duration) -> u64 {
    u64::try_from(took.as_micros()).unwrap_or(u64::MAX)
}

/// Totals by database.
pub type ByDatabase = BTreeMap<Arc<str>, Totals>;

/// Adds to the totals of a database, or to those of [`OTHERS`] once there are too many.
fn put(into: &mut ByDatabase, database: &Arc<str>, totals: Totals) {
    if let Some(known) = into.get_mut(database) {
        *known += totals;
    } else if into.len() < DATABASES_MAX {
        into.insert(database.clone(), totals);
    } else {
        *into.entry(OTHERS.into()).or_default() += totals;
    }
}

/// The sums of links that are gone.
#[derive(Debug, Default)]
pub struct Gone(Mutex<ByDatabase>);

impl Gone {
    /// A link ends: `leave` takes it out of the registry.
    pub fn retire(&self, database: &Arc<str>, totals: Option<Totals>, leave: impl FnOnce()) {
        let Some(totals) = totals else { return leave() };
        let mut gone = self.0.lock();
        put(&mut gone, database, totals);
        leave();
    }

    /// All sums, with those of the links that `living` gives: read from the registry while it is called, so that no link is missed or
    /// counted twice.
    pub fn with<I: IntoIterator<Item = (Arc<str>, Totals)>>(&self, living: impl FnOnce() -> I) -> ByDatabase {
        let gone = self.0.lock();
        let mut sums = gone.clone();
        for (database, totals) in living() {
            put(&mut sums, &database, totals);
        }
        sums
    }
}

/// The totals at the ends of a period, for averages over it: nothing before the first period is over.
#[derive(Debug)]
pub struct Averages {
    before: (Moment, ByDatabase),
    last: (Moment, ByDatabase),
}

impl Averages {
    /// From now on.
    pub fn new(now: Moment) -> Self {
        Self { before: (now, ByDatabase::new()), last: (now, ByDatabase::new()) }
    }

    /// Whether the running period is over, so that [`Averages::close`] is to be called.
    pub fn is_due(&self, now: Moment) -> bool {
        now.since(self.last.0) >= PERIOD
    }

    /// A period is over.
    pub fn close(&mut self, now: Moment, totals: ByDatabase) {
        self.before = std::mem::replace(&mut self.last, (now, totals));
    }

    /// What a database did in the last whole period, and how long that was; zero before the first.
    pub fn of(&self, database: &str) -> (Totals, Duration) {
        let at = |side: &(Moment, ByDatabase)| side.1.get(database).copied().unwrap_or_default();
        (at(&self.last) - at(&self.before), self.last.0.since(self.before.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn worked(figures: &Figures) {
        figures.transaction(3 * MS);
        figures.query(2 * MS);
        figures.received(10);
        figures.sent(100);
    }

    #[test]
    fn a_sum_holds_the_living_and_the_gone_and_never_goes_back() {
        let (gone, figures, name) = (Gone::default(), Figures::default(), Arc::<str>::from("odoo"));
        worked(&figures);
        worked(&figures);
        let living = gone.with(|| vec![(name.clone(), figures.read())]);
        assert_eq!(
            living["odoo"],
            Totals {
                transactions: 2,
                transaction_us: 6_000,
                queries: 2,
                query_us: 4_000,
                received: 20,
                sent: 200,
                wait_us: 0
            }
        );
        let mut left = false;
        gone.retire(&name, Some(figures.read()), || left = true);
        assert!(left);
        assert_eq!(gone.with(Vec::new), living);
    }

    #[test]
    fn who_was_never_let_in_is_not_counted_and_leaves_all_the_same() {
        let (gone, mut left) = (Gone::default(), false);
        gone.retire(&"nonsense".into(), None, || left = true);
        assert!(left && gone.with(Vec::new).is_empty());
    }

    #[test]
    fn databases_are_bounded_and_nothing_is_lost() {
        let gone = Gone::default();
        let one = Totals { queries: 1, ..Totals::default() };
        for n in 0..2 * DATABASES_MAX {
            gone.retire(&format!("db{n}").into(), Some(one), || ());
        }
        let sums = gone.with(Vec::new);
        assert_eq!(sums.len(), DATABASES_MAX + 1);
        assert_eq!(sums.values().map(|totals| totals.queries).sum::<u64>(), 2 * DATABASES_MAX as u64);
    }

    #[test]
    fn averages_are_those_of_the_last_whole_period() {
        let at = |s| Moment::default() + Duration::from_secs(s);
        let of = |queries| ByDatabase::from([("odoo".into(), Totals { queries, ..Totals::default() })]);
        let mut averages = Averages::new(at(0));
        assert_eq!(averages.of("odoo"), (Totals::default(), Duration::ZERO));
        assert!(!averages.is_due(at(59)) && averages.is_due(at(60)));
        averages.close(at(60), of(600));
        assert_eq!((averages.of("odoo").0.queries, averages.of("odoo").1), (600, PERIOD));
        averages.close(at(121), of(610));
        assert_eq!((averages.of("odoo").0.queries, averages.of("odoo").1.as_secs()), (10, 61));
        assert_eq!(averages.of("another").0, Totals::default());
    }
}
