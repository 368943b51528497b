//! What the guard knows of a link. An idle link costs one [`Link`] and a share of its [`Who`]; all else is boxed, and rare.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroI32;
use std::sync::Arc;

use super::ids::{LaneId, LinkId};
use super::near::Near;
use super::pool::PoolKey;
use super::queue::Place;
use crate::clock::Moment;

/// Where a link is on its way.
///
/// ```text
/// Waiting ⇄ Dialling ─► Login ─► Established ─► Closing ─► (forgotten)
///    ▲          └─────────┴─────────┬─┴────────────┴────► Zombie ─► (forgotten)
///    └─────► Taken ─► Established   └─► Pooled ─► Closing, or another link's Taken (see `lanes/rest`)
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// In a queue, without a slot.
    Waiting,
    /// Granted; no TCP connection yet that we know of.
    Dialling,
    /// Connected, no first ReadyForQuery yet.
    Login,
    /// Relaying.
    Established,
    /// Without a client, reset and ready for the next one.
    Pooled,
    /// A pooled connection is on its way to it.
    Taken,
    /// We close; upstream's EOF is still to come.
    Closing,
    /// Nobody watches the socket any more; a sample must tell when the backend is gone. Since when: [`Extra::zombie_since`].
    Zombie,
}

impl Phase {
    /// Whether it holds a slot.
    pub fn has_slot(self) -> bool {
        self != Self::Waiting
    }

    /// Whether it is a login in progress.
    pub fn is_login(self) -> bool {
        matches!(self, Self::Dialling | Self::Login)
    }

    /// The phase whose weight it has in all counts: of those that weigh the same, always the same one.
    pub(super) fn weight(self) -> Self {
        match self {
            Self::Dialling | Self::Login => Self::Login,
            Self::Established | Self::Pooled | Self::Taken => Self::Established,
            Self::Waiting | Self::Closing | Self::Zombie => self,
        }
    }

    /// Whether its slot will be free soon.
    pub fn is_ending(self) -> bool {
        matches!(self, Self::Closing | Self::Zombie)
    }
}

/// What a link has in common with all others of its service: one for all of them. What is cheap to compare comes first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Who {
    /// Client address; none for a Unix socket.
    pub address: Option<IpAddr>,
    /// Whether it is a replication link: another pool in PostgreSQL.
    pub replication: bool,
    /// Normalised application.
    pub application: Arc<str>,
    /// User.
    pub user: Arc<str>,
    /// Database.
    pub database: Arc<str>,
}

/// What only links have that are on their way in, held, counted in a ramp or dying.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extra {
    /// Its place in the queue, kept over redials until it is established.
    pub place: Place,
    /// Not granted before: the back-off of those who are not stopped by the breaker.
    pub not_before: Moment,
    /// Dials that failed.
    pub failures: u32,
    /// Local address of its upstream connection, while the pid is unknown; over a Unix socket none.
    pub local: Option<SocketAddr>,
    /// Its transaction counts in a ramp: which lane's, which one.
    pub counted: Option<(LaneId, u64)>,
    /// Held at the start of a transaction: its place among the held.
    pub held: Option<Place>,
    /// Since when nobody watches its socket.
    pub zombie_since: Moment,
    /// Which pooled connections it could use.
    pub key: Option<PoolKey>,
    /// The name its connection had in the pool.
    pub taken: Option<LinkId>,
    /// The role its backend runs as is not called any more what its client called it: nobody gets it next.
    pub renamed: bool,
}

impl Extra {
    /// That of most links.
    pub const NONE: Self = Self {
        place: Place::NOWHERE,
        not_before: Moment::from_micros(0),
        failures: 0,
        local: None,
        counted: None,
        held: None,
        zombie_since: Moment::from_micros(0),
        key: None,
        taken: None,
        renamed: false,
    };
}

/// No lane has this number: see `reload`.
const NOWHERE: LaneId = LaneId(u16::MAX);

/// A link. Its [`Who`] is shared: [`super::ledger::Ledger`] makes them.
#[derive(Debug)]
pub struct Link {
    /// Whose it is.
    pub who: Arc<Who>,
    /// When its present dial began.
    pub dialled_at: Moment,
    extra: Option<Box<Extra>>,
    /// It was the first link of its client process when it came.
    pub alone: bool,
    /// Backend pid, once known.
    pub pid: Option<NonZeroI32>,
    /// Where it belongs.
    pub home: LaneId,
    /// [`Self::visiting`], or [`NOWHERE`].
    visited: LaneId,
    /// Our end of its upstream connection.
    pub near: Near,
    /// Where it is on its way.
    pub phase: Phase,
    /// Whether it was granted once.
    pub admitted: bool,
    /// Whether it was counted as shed.
    pub shed: bool,
}

impl Link {
    /// A link that has just come.
    pub(super) fn new(who: Arc<Who>, home: LaneId, place: Place, now: Moment) -> Self {
        Self {
            who,
            dialled_at: now,
            extra: Some(Box::new(Extra { place, ..Extra::NONE })),
            alone: false,
            pid: None,
            home,
            visited: NOWHERE,
            near: Near::default(),
            phase: Phase::Waiting,
            admitted: false,
            shed: false,
        }
    }

    /// The lane it counts in now.
    pub fn lane(&self) -> LaneId {
        self.visiting().unwrap_or(self.home)
    }

    /// Where its transaction counts, while that is elsewhere.
    pub fn visiting(&self) -> Option<LaneId> {
        Some(self.visited).filter(|lane| *lane != NOWHERE)
    }

    /// Its transaction counts elsewhere from now on, or at home.
    pub fn visit(&mut self, lane: Option<LaneId>) {
        self.visited = lane.unwrap_or(NOWHERE);
    }

    /// What few links have.
    pub fn extra(&self) -> &Extra {
        static NONE: Extra = Extra::NONE;
        self.extra.as_deref().unwrap_or(&NONE)
    }

    /// The same, to be changed.
    pub fn extra_mut(&mut self) -> &mut Extra {
        self.extra.get_or_insert_with(|| Box::new(Extra::NONE))
    }

    /// Its upstream connection comes from `local`, which is none over a Unix socket and while there is no connection.
    pub fn set_local(&mut self, local: Option<SocketAddr>, near: Near) {
        self.near = near;
        self.extra_mut().local = local;
    }

    /// Its login is over. With a pid nobody asks for addresses any more.
    pub fn establish(&mut self, pid: Option<NonZeroI32>) {
        self.phase = Phase::Established;
        self.pid = pid;
        let local = self.extra().local.filter(|_| pid.is_none());
        *self.extra_mut() = Extra { local, ..Extra::NONE };
    }

    /// Gives back what it does not need.
    pub(super) fn tidy(&mut self) {
        if self.extra.as_deref() == Some(&Extra::NONE) {
            self.extra = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lanes::near::Ends;

    #[test]
    fn an_idle_link_is_small() {
        assert!(size_of::<Link>() <= 40, "{}", size_of::<Link>());
        let who = Who {
            application: "odoo".into(),
            user: "odoo".into(),
            database: "odoo".into(),
            address: None,
            replication: false,
        };
        let place = Place::new(false, Moment::from_micros(1), 1);
        let mut link = Link::new(Arc::new(who), LaneId(0), place, Moment::from_micros(1));
        let local = Some(([127, 0, 0, 1], 4000).into());
        let near = Ends::default().note(local);
        link.set_local(local, near);
        link.establish(NonZeroI32::new(7));
        link.tidy();
        assert!(link.extra.is_none());
        assert_eq!((link.near, link.near.port), (near, 4000));
        assert_eq!((link.visiting(), link.lane()), (None, LaneId(0)));
        link.visit(Some(LaneId(3)));
        assert_eq!((link.visiting(), link.lane()), (Some(LaneId(3)), LaneId(3)));
    }
}
