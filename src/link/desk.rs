//! The relay's side of policy: answers the session's questions and keeps what others see of the link true.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::gate::{Gate, Statement, Word};
use super::hub::{Event, Hub, Lane};
use super::meter::TransactionEnd;
use super::pool::Ticket;
use super::shared::{LinkShared, LinkState, Process, flag};
use crate::clock::{self, Moment};
use crate::lanes::classify::{Facts, Sticky};
use crate::lanes::guard::Begun;
use crate::reason::Refusal;
use crate::wire::statement::{self, IdleTimeout};

/// Bytes of a statement kept for people.
const KEPT: usize = 400;
/// Room for a statement that is not given back, in bytes.
const KEPT_ROOM: usize = 64;

/// A statement on which there is a bug.
#[cfg(test)]
pub(super) const BUG: &[u8] = b"select 'a bug'";

/// Policy of one established link.
pub struct Desk {
    pub(super) hub: Arc<Hub>,
    pub(super) shared: Arc<LinkShared>,
    /// Where it belongs.
    home: Arc<Lane>,
    /// Where its transaction is counted, when that is elsewhere.
    visiting: Option<Box<Visit>>,
    facts: Arc<Facts>,
    process: Option<Arc<Process>>,
    epoch: u32,
    /// Counted in `process`.
    entered: bool,
    /// Counted by a ramp.
    counted: bool,
    /// Held at the begin of a transaction since then.
    pub(super) held_since: Option<Moment>,
    /// Waits for a cancel to end.
    pub(super) awaits_cancel: bool,
    failed: bool,
    rolled_back: bool,
    reset: bool,
    reclassify: bool,
    request_since: Option<Moment>,
    /// Drain asked for: the link ends at the next boundary.
    pub(super) draining: Option<Box<Refusal>>,
    /// The link must end, with that.
    pub(super) end: Option<Box<Refusal>>,
    /// The statement about to be told of has been looked at already.
    followed: bool,
    /// ReadyForQuery is on its way to the client.
    pub(super) ready: bool,
    /// The reset went wrong.
    pub(super) reset_failed: bool,
    /// Why the transaction is being rolled back.
    resetting: Option<Box<(Refusal, u32)>>,
    /// The session switched its idle timeout off, and for how long; as of the last transaction that was not rolled back.
    timeout: SessionTimeout,
    /// A SET of it has been forwarded and is not confirmed yet.
    timeout_asked: Option<IdleTimeout>,
    /// The clock as of this run, once it was asked for.
    instant: Option<Moment>,
    /// For the pool, when the client has ended.
    pub(super) ticket: Option<Box<Ticket>>,
    pub(super) alias: Option<Box<Alias>>,
}

/// The application_name a backend was started with, where that is not the client's own.
pub(super) struct Alias {
    pub(super) at_server: Arc<str>,
    pub(super) of_client: Arc<str>,
}

/// Whether a session asked never to be reset. A SET counts once PostgreSQL has confirmed it, and falls with its transaction.
#[derive(Clone, Copy, Debug, Default)]
struct SessionTimeout {
    off: bool,
    off_at_begin: bool,
    off_locally: bool,
}

struct Visit {
    lane: Arc<Lane>,
    rule: Arc<str>,
    /// For as long as it listens.
    sticky: bool,
}

impl Desk {
    pub(super) fn new(
        hub: Arc<Hub>,
        shared: Arc<LinkShared>,
        home: Arc<Lane>,
        facts: Arc<Facts>,
        process: Option<Arc<Process>>,
        epoch: u32,
    ) -> Self {
        Self {
            hub,
            shared,
            home,
            visiting: None,
            facts,
            process,
            epoch,
            entered: false,
            counted: false,
            held_since: None,
            awaits_cancel: false,
            failed: false,
            rolled_back: false,
            reset: false,
            reclassify: false,
            request_since: None,
            draining: None,
            end: None,
            followed: false,
            ready: false,
            reset_failed: false,
            resetting: None,
            timeout: SessionTimeout::default(),
            timeout_asked: None,
            instant: None,
            ticket: None,
            alias: None,
        }
    }

    /// Another turn: the clock is to be read again.
    #[inline]
    pub(super) fn turn_begins(&mut self) {
        self.instant = None;
    }

    /// The time. What happens in one turn happens at one moment, and the clock is not free.
    #[inline]
    fn now(&mut self) -> Moment {
        *self.instant.get_or_insert_with(clock::now)
    }

    /// The lane the link is counted in.
    pub(super) fn lane(&self) -> &Arc<Lane> {
        self.visiting.as_ref().map_or(&self.home, |visit| &visit.lane)
    }

    /// Another link of the same client process is in a transaction, whose end may depend on this link.
    fn is_nested(&self) -> bool {
        self.process.as_ref().is_some_and(|p| p.in_transaction.load(Ordering::Relaxed) > 0)
    }

    fn begin(&mut self, statement: Statement<'_>) -> Word {
        if self.hub.epoch.load(Ordering::Relaxed) != self.epoch || self.reclassify {
            self.classify_again();
        }
        if let Some(refusal) = self.draining.take() {
            self.end = Some(refusal);
            return Word::Wait;
        }
        self.follow(statement);
        self.followed = true;
        let mut exempt = false;
        if !self.lane().gate.is_open() && !is_never_held(statement) {
            exempt = self.is_nested();
            let begun = self.hub.guard(|guard, now| guard.begin(now, self.shared.id, exempt));
            match begun {
                Begun::Go { counted } => self.counted = counted,
                Begun::Hold(_) => {
                    self.hold();
                    return Word::Wait;
                }
                Begun::Reject(refusal) => {
                    self.end = Some(Box::new(refusal));
                    return Word::Wait;
                }
            }
        }
        let now = self.now();
        if let Some(since) = self.held_since.take() {
            self.shared.waited(now.since(since));
            self.lane().meter.wait.record(now.since(since));
        }
        if let Some(process) = &self.process
            && !exempt
        {
            process.in_transaction.fetch_add(1, Ordering::Relaxed);
            self.entered = true;
        }
        self.failed = false;
        self.rolled_back = false;
        self.reset = false;
        self.shared.set_flag(flag::IN_TRANSACTION, true);
        self.shared.set_transaction(Some(now));
        Word::Go
    }

    fn hold(&mut self) {
        let now = self.now();
        if self.held_since.is_none() {
            self.held_since = Some(now);
            self.shared.start_phase(true);
        }
        let (state, _) = self.shared.state();
        if state != LinkState::Held {
            self.shared.enter(LinkState::Held, now);
        }
    }

    /// A client waits no longer for its held statement: cancelled, or gone.
    pub(super) fn unhold(&mut self) {
        if self.held_since.take().is_some() {
            self.hub.guard(|guard, now| guard.unhold(now, self.shared.id));
            self.shared.end_phase();
            self.leave_visit();
            let now = self.now();
            self.shared.enter(LinkState::Idle, now);
        }
    }

    /// Moves the link where a statement says it belongs, and notes what that statement is exempt from.
    fn follow(&mut self, statement: Statement<'_>) {
        let Statement::Text { text, complete, .. } = statement else { return };
        if let Some(timeout) = statement::idle_timeout(text) {
            self.timeout_asked = Some(timeout);
        }
        let rules = self.hub.rules.load();
        if !rules.needs_statements() {
            return;
        }
        let mut folded = String::with_capacity(text.len());
        statement::fold(text, &mut folded);
        let traits = rules.on_statement(&self.facts, &folded, !complete);
        if let Some((lane, rule, sticky)) = traits.lane
            && self.visiting.is_none()
            && *lane != *self.home.name
        {
            self.visit(&lane, rule, sticky == Sticky::Listen);
        }
        let exempt = traits.exempt_lanes.iter().any(|name| **name == *self.lane().name);
        self.shared.set_flag(flag::EXEMPT, exempt);
    }

    fn visit(&mut self, lane: &str, rule: Arc<str>, sticky: bool) {
        let lanes = self.hub.lanes.load();
        let Some(lane) = lanes.iter().find(|l| *l.name == *lane).cloned() else { return };
        self.hub.guard(|guard, now| guard.visit(now, self.shared.id, lane.id));
        self.visiting = Some(Box::new(Visit { lane, rule, sticky }));
        self.label();
    }

    /// Back home at the end of a transaction, or for good to the lane of its LISTEN.
    fn leave_visit(&mut self) {
        let Some(visit) = self.visiting.take() else { return };
        let Visit { lane, rule, sticky } = *visit;
        let listening = self.shared.flags() & flag::LISTENING != 0;
        self.hub.guard(|guard, now| {
            guard.leave(now, self.shared.id);
            if sticky && listening {
                guard.move_link(now, self.shared.id, lane.id, None);
            }
        });
        if sticky && listening {
            self.home = lane;
            self.shared.with_labels(|labels| labels.rule = rule);
        }
        self.label();
    }

    fn label(&self) {
        let (id, name) = (self.lane().id, self.lane().name.clone());
        let rule = self.visiting.as_ref().map(|v| v.rule.clone());
        self.shared.with_labels(|labels| {
            labels.lane = id;
            labels.lane_name = name;
            if let Some(rule) = rule {
                labels.rule = rule;
            }
        });
    }

    /// Rules or application_name changed: where does the link belong now? Never into a protected lane by what a client said.
    fn classify_again(&mut self) {
        self.epoch = self.hub.epoch.load(Ordering::Acquire);
        self.reclassify = false;
        if self.shared.flags() & flag::LISTENING != 0 {
            return;
        }
        let rules = self.hub.rules.load();
        let class = rules.reclassify(&self.facts, &self.home.name);
        let application = rules.application(&self.facts.application);
        let lanes = self.hub.lanes.load();
        let Some(lane) = lanes.iter().find(|l| *l.name == *class.lane).cloned() else { return };
        self.hub.guard(|guard, now| {
            guard.move_link(now, self.shared.id, lane.id, Some(application.clone()));
        });
        self.home = lane;
        self.shared.with_labels(|labels| {
            labels.rule = class.rule.clone();
            labels.facts = self.facts.clone();
            labels.application_name = application;
        });
        self.label();
    }

    /// The transaction is over: `I` came, with nothing behind it.
    fn end_transaction(&mut self) {
        let now = self.now();
        if let Some(since) = self.shared.transaction_since() {
            self.shared.figures.transaction(now.since(since));
            self.lane().meter.transaction.record(now.since(since));
            let end = if self.reset {
                TransactionEnd::Reset
            } else if self.failed || self.rolled_back {
                TransactionEnd::RolledBack
            } else {
                TransactionEnd::Committed
            };
            self.lane().meter.ended(end);
            if self.failed && !self.reset {
                self.lane().meter.failed.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.settle();
        if self.reclassify || self.hub.epoch.load(Ordering::Relaxed) != self.epoch {
            self.classify_again();
        }
    }

    /// PostgreSQL has carried out a SET of the session's idle timeout.
    fn confirm_timeout(&mut self) {
        match self.timeout_asked.take() {
            Some(IdleTimeout { off, local: true }) => self.timeout.off_locally = off,
            Some(IdleTimeout { off, local: false }) => self.timeout.off = off,
            None => return,
        }
        self.shared.set_flag(flag::WATCH_ONLY, self.timeout.off || self.timeout.off_locally);
    }

    /// A rolled back transaction takes its SETs with it, and every one ends SET LOCAL.
    fn settle_timeout(&mut self) {
        let rolled_back = self.rolled_back || self.failed || self.reset;
        let off = if rolled_back { self.timeout.off_at_begin } else { self.timeout.off };
        self.timeout = SessionTimeout { off, off_at_begin: off, off_locally: false };
        self.timeout_asked = None;
        self.shared.set_flag(flag::WATCH_ONLY, off);
    }

    /// Gives back all that is counted for a transaction.
    fn settle(&mut self) {
        self.settle_timeout();
        self.shared.set_transaction(None);
        self.shared.set_flag(flag::IN_TRANSACTION, false);
        self.shared.set_flag(flag::EXEMPT, false);
        self.shared.set_flag(flag::RESET, false);
        if std::mem::take(&mut self.entered)
            && let Some(process) = &self.process
        {
            process.in_transaction.fetch_sub(1, Ordering::Relaxed);
        }
        // A ramp counts transactions that began before it as well.
        if std::mem::take(&mut self.counted) || !self.lane().gate.is_open() {
            self.hub.guard(|guard, now| guard.end(now, self.shared.id));
        }
        if self.visiting.is_some() {
            self.leave_visit();
        }
    }

    /// ReadyForQuery is with the client: idle counts from now.
    pub(super) fn delivered(&mut self, in_transaction: bool) {
        self.ready = false;
        let now = self.now();
        if let Some(since) = self.request_since.take() {
            self.shared.figures.query(now.since(since));
            self.lane().meter.query.record(now.since(since));
        }
        let state = if in_transaction { LinkState::IdleInTransaction } else { LinkState::Idle };
        self.shared.enter(state, now);
    }

    /// The client has begun to say something and not finished: it is not silent, and its idle time counts from now. Once, not for ever:
    /// a piece that nothing follows must not keep a leak alive.
    pub(super) fn heard_a_piece(&mut self) {
        if self.shared.state().0 == LinkState::IdleInTransaction {
            let now = self.now();
            self.shared.enter(LinkState::IdleInTransaction, now);
        }
    }

    /// A rollback is on its way upstream.
    pub(super) fn resetting(&mut self, why: Refusal, period: u32) {
        self.resetting = Some(Box::new((why, period)));
    }

    /// The client spoke before the judge's word arrived.
    pub(super) fn reset_is_off(&self, generation: Option<u32>) {
        if let Some(generation) = generation {
            self.hub.tell(Event::ResetOff { link: self.shared.id, generation });
        }
    }

    /// A reset was carried out by our own statement.
    fn was_reset(&mut self) {
        self.reset = true;
        if let Some((why, period)) = self.resetting.take().map(|resetting| *resetting) {
            // The client may have spoken since: the period may be over.
            self.shared.reset_period.store(period, Ordering::Relaxed);
            let who = self.shared.describe(self.hub.settings.load().log_literals);
            let text = format!("rolled back: {}; {who}", why.detail);
            self.hub.note("reset", Some(self.lane().name.clone()), Some(self.shared.id), text);
        }
        let now = self.now();
        self.shared.set_flag(flag::RESET, true);
        self.shared.reset_at.store(now.as_micros(), Ordering::Relaxed);
        let lane = self.lane();
        lane.meter.rollbacks.fetch_add(1, Ordering::Relaxed);
        self.hub.guard(|guard, _| guard.count_reset(lane.id));
    }

    /// Whether the link is one that is pooled, and nothing of its policy stands against it.
    pub(super) fn may_rest(&self) -> bool {
        self.ticket.is_some()
            && self.draining.is_none()
            && self.end.is_none()
            && !self.awaits_cancel
            && !self.reset_failed
            && self.resetting.is_none()
            && self.held_since.is_none()
    }

    /// Asked from outside to classify anew.
    pub(super) fn ask_reclassify(&mut self) {
        self.reclassify = true;
        if self.shared.flags() & flag::IN_TRANSACTION == 0 {
            self.classify_again();
        }
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        if self.held_since.take().is_some() {
            self.hub.guard(|guard, now| guard.unhold(now, self.shared.id));
        }
        if self.shared.transaction_since().is_some() {
            self.lane().meter.ended(TransactionEnd::Lost);
        }
        self.settle();
    }
}

impl Gate for Desk {
    fn request(&mut self, begins: bool, statement: Statement<'_>) -> Word {
        if begins && self.begin(statement) == Word::Wait {
            return Word::Wait;
        }
        if !self.shared.start_phase(false) {
            self.awaits_cancel = true;
            if begins {
                // Nothing was forwarded yet; the question is put again when the cancel is over.
                self.settle();
            }
            return Word::Wait;
        }
        let now = self.now();
        self.request_since = Some(now);
        self.shared.figures.requested(now);
        self.ready = false;
        self.shared.enter(LinkState::Active, now);
        Word::Go
    }

    fn statement(&mut self, statement: Statement<'_>) {
        if let Statement::Text { text, .. } = statement
            && self.hub.pool.is_enabled()
        {
            self.hub.make_room_for(text);
        }
        // The first statement of a transaction has been followed before the gate was asked.
        if !std::mem::take(&mut self.followed) {
            self.follow(statement);
        }
        self.shared.with_labels(|labels| {
            #[cfg(test)]
            assert!(!matches!(statement, Statement::Text { text: BUG, .. }), "a bug");
            let kept = &mut labels.statement;
            kept.clear();
            match statement {
                Statement::Text { text, .. } => {
                    let text = &text[..text.len().min(KEPT)];
                    if kept.capacity() > KEPT_ROOM.max(2 * text.len()) {
                        // A link is idle behind a short COMMIT, not behind what made room for more.
                        *kept = Vec::new();
                    }
                    kept.extend_from_slice(text);
                }
                Statement::Prepared(b"") => {}
                Statement::Prepared(name) => {
                    kept.extend_from_slice(b"execute ");
                    kept.extend_from_slice(&name[..name.len().min(64)]);
                }
                Statement::Function => kept.extend_from_slice(b"(function call)"),
            }
        });
    }

    fn command(&mut self, tag: &[u8]) {
        match tag {
            b"ROLLBACK" => self.rolled_back = true,
            b"SET" | b"RESET" => self.confirm_timeout(),
            b"LISTEN" => self.shared.set_flag(flag::LISTENING, true),
            b"DISCARD ALL" => {
                self.timeout = SessionTimeout::default();
                self.shared.set_flag(flag::WATCH_ONLY, false);
                if self.shared.flags() & flag::LISTENING != 0 {
                    self.shared.set_flag(flag::LISTENING, false);
                    self.reclassify = true;
                }
            }
            _ => {}
        }
    }

    fn error(&mut self, _body: &[u8]) {
        self.failed = true;
    }

    fn parameter(&mut self, name: &[u8], value: &[u8]) {
        if let Some(ticket) = &mut self.ticket {
            ticket.note(name, value);
        }
        if name == b"application_name" {
            let value = String::from_utf8_lossy(value);
            // A DISCARD ALL brings back the name of the backend's start: to rules the client is again whom it said it was.
            let alias = self.alias.as_ref().filter(|alias| *alias.at_server == *value);
            let value = alias.map_or(value, |alias| alias.of_client.to_string().into());
            if *value != *self.facts.application {
                self.facts =
                    self.hub.facts.share(Facts { application: value.into(), ..(*self.facts).clone() });
                self.reclassify = true;
            }
        }
    }

    fn notification(&mut self) {
        self.shared.set_flag(flag::LISTENING, true);
    }

    fn ready(&mut self, status: u8, quiet: bool) {
        if status == b'I' && quiet && self.shared.flags() & flag::IN_TRANSACTION != 0 {
            self.end_transaction();
        }
        if quiet {
            self.shared.end_phase();
            self.ready = true;
        }
    }

    fn rolled_back(&mut self, as_expected: bool) {
        if as_expected {
            self.was_reset();
        } else {
            self.reset_failed = true;
        }
    }
}

fn is_never_held(statement: Statement<'_>) -> bool {
    matches!(statement, Statement::Text { text, complete, simple: true, .. } if statement::never_held(text, complete))
}
