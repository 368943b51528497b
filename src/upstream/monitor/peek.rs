//! Where a name leads while links are elsewhere, looked at beside the monitor's session.
//!
//! A name that leads elsewhere is no reason to leave a server that answers. But where somebody promoted another one and moved the name there,
//! while the old one lives on, only the new one's timeline tells: so it is asked, by a session of a moment, one at a time.

use std::net::IpAddr;
use std::time::Duration;

use tokio::task::JoinHandle;

use crate::clock::Moment;
use crate::upstream::connect::{self, MonitorSettings};
use crate::upstream::query::{self, Asks};
use crate::upstream::targets::{Memory, Role, Wants, differ, is_behind};

/// What was seen there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Peeked {
    pub(super) at: IpAddr,
    role: Role,
    system: Option<u64>,
}

impl Peeked {
    /// Whether it suits, and was promoted after a server of this cluster that is on this timeline.
    pub(super) fn was_promoted_later(&self, wants: Wants, than: Memory) -> bool {
        wants.suits(self.role)
            && !differ(self.system, than.system)
            && is_behind(than.timeline, self.role.timeline())
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Peeking {
    under_way: Option<JoinHandle<Option<Peeked>>>,
    /// When it was begun, and what the resolver had said.
    last: Option<(Moment, Vec<IpAddr>)>,
    /// Whose turn it is.
    turn: usize,
}

impl Peeking {
    /// What was seen since it was asked for, once; asks again `every` so often, and when the name leads elsewhere again.
    pub(super) async fn look(
        &mut self,
        now: Moment,
        every: Duration,
        (settings, limit): (&MonitorSettings, Duration),
        places: &[IpAddr],
    ) -> Option<Peeked> {
        if let Some(task) = self.under_way.take_if(|task| task.is_finished()) {
            return task.await.ok().flatten();
        }
        let is_due =
            self.last.as_ref().is_none_or(|(then, before)| now.since(*then) >= every || before != places);
        if self.under_way.is_none() && is_due {
            self.last = Some((now, places.to_vec()));
            self.turn = self.turn.wrapping_add(1);
            let at = places.get(self.turn % places.len().max(1)).copied()?;
            self.under_way = Some(tokio::spawn(peek(settings.clone(), limit, at)));
        }
        None
    }
}

/// None where it does not say, whatever the reason.
async fn peek(settings: MonitorSettings, limit: Duration, at: IpAddr) -> Option<Peeked> {
    let opened = connect::open_at(&settings, Some(at)).await.ok()?;
    let connection = tokio::spawn(opened.connection);
    let role = query::role(Asks::Timeline);
    let look = async {
        // Before the session has a search_path of ours.
        opened.client.batch_execute("set search_path = pg_catalog").await.ok()?;
        let role = query::role_of(&opened.client.query_typed_one(&role, &[]).await.ok()?).ok()?;
        let system = opened.client.query_typed_one(query::SYSTEM, &[]).await;
        Some(Peeked { at, role, system: system.ok().and_then(|row| query::system_of(&row).ok().flatten()) })
    };
    let seen = tokio::time::timeout(limit, look).await.ok().flatten();
    connection.abort();
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_later_promotion_of_the_same_cluster_counts() {
        let peeked = |role, system| Peeked { at: IpAddr::from([10, 0, 0, 2]), role, system };
        let primary = |timeline| Role::Primary { timeline };
        let here = |timeline| Memory { system: Some(7), timeline };
        for (seen, than, expected) in [
            (peeked(primary(2), Some(7)), here(1), true),
            (peeked(primary(2), None), here(1), true),
            (peeked(primary(2), Some(8)), here(1), false),
            (peeked(primary(1), Some(7)), here(1), false),
            (peeked(primary(0), Some(7)), here(1), false),
            (peeked(primary(2), Some(7)), here(0), false),
            (peeked(Role::ReadOnly { timeline: 2 }, Some(7)), here(1), false),
            (peeked(Role::Standby, Some(7)), here(1), false),
        ] {
            assert_eq!(seen.was_promoted_later(Wants::ReadWrite, than), expected, "{seen:?} {than:?}");
        }
    }
}
