//! Where the server's name leads, and when the monitor goes elsewhere.
//!
//! Links stay where they are as long as that server answers the monitor and suits, whatever the resolver says meanwhile: there are names that lead
//! elsewhere each time they are looked up. So the monitor stays there, too; but for one promoted later, see [`super::peek`].

use std::net::IpAddr;
use std::sync::atomic::Ordering;

use super::{Failed, MonitorEvent, Sign, Task};
use crate::upstream::targets::{Memory, Role, differ, is_behind};

impl Task {
    pub(super) async fn tell_name(&mut self) {
        let Some(name) = &self.name else { return };
        if name.names.answer() != self.leads_to {
            self.leads_to = name.names.answer().to_vec();
            self.tell(MonitorEvent::Name(self.leads_to.clone())).await;
        }
    }

    /// Lets another server have its turn, where the name leads to several.
    pub(super) fn skip(&mut self) -> bool {
        self.name.as_mut().is_some_and(|name| name.names.skip())
    }

    /// The same after an attempt in vain. Links are on one that only does not let the monitor in, or is only suspect: it is not left for others
    /// of its name, unless there can be only one and the name leads to this one no more.
    /// True if another one has its turn now.
    pub(super) fn skip_unless_meant(&mut self, sign: Sign) -> bool {
        let (Some(at), Some(name)) = (self.at, &self.name) else { return false };
        let stays = match sign {
            Sign::Suspect => true,
            Sign::Answers => self.wants.is_some_and(|wants| !wants.is_unique()) || name.names.leads_to(at),
            Sign::Hung | Sign::Silent => false,
        };
        !(stays && *self.shared.dialled.lock() == Some(at)) && self.skip()
    }

    /// Where to look; none where that is left to the dial.
    pub(super) async fn resolve(&mut self) -> Result<Option<IpAddr>, Failed> {
        let dialled = *self.shared.dialled.lock();
        let Some(name) = &mut self.name else { return Ok(None) };
        name.names.keep(dialled);
        name.look((self.clock)()).await;
        if name.names.candidate().is_none() {
            let bound = self.settings.connect_timeout;
            match tokio::time::timeout(bound, name.answer()).await {
                Ok(answered) => answered.map_err(Failed::silent)?,
                Err(_) => {
                    let text = format!("{}: no address within {} ms", name.host, bound.as_millis());
                    return Err(Failed::silent(text));
                }
            }
        }
        match name.names.candidate() {
            Some(ip) => Ok(Some(ip)),
            None => Err(Failed::silent(format!("{} has no address", name.host))),
        }
    }

    /// Whether another address of the server's name is to be looked at: this one is not dialled and the name does not lead to it any more, or
    /// leads to others too, of which one may be what is looked for, or is the one that links are dialled to.
    pub(super) async fn is_elsewhere(
        &mut self,
        (role, system): (Role, Option<u64>),
        at: Option<IpAddr>,
    ) -> bool {
        let dialled = *self.shared.dialled.lock();
        let (Some(name), Some(at), Some(wants)) = (&mut self.name, at, self.wants) else { return false };
        name.names.keep(dialled);
        name.look((self.clock)()).await;
        let leads_here = name.names.leads_to(at);
        self.tell_name().await;
        let highest = self.shared.highest.load(Ordering::Relaxed);
        let ours = self.shared.ours();
        let is_behind = wants.is_unique() && is_behind(role.timeline(), highest);
        let will_do = wants.suits(role) && !is_behind && !differ(ours, system);
        if will_do && dialled == Some(at) {
            // It may not tell its cluster, which is known all the same.
            let here = Memory { system: system.or(ours), timeline: role.timeline() };
            return !leads_here && wants.is_unique() && self.leads_to_a_later_one(here).await;
        }
        let is_meant = dialled.is_none_or(|dialled| dialled == at);
        !leads_here || !(will_do && is_meant) && self.skip()
    }

    /// The same where the server here answers, and does not say what it is: it is with it as with one that does not let the monitor in.
    pub(super) async fn is_elsewhere_in_trouble(&mut self, at: Option<IpAddr>) -> bool {
        let dialled = *self.shared.dialled.lock();
        let (Some(name), Some(ip)) = (&mut self.name, at) else { return false };
        name.names.keep(dialled);
        name.look((self.clock)()).await;
        let leads_here = name.names.leads_to(ip);
        self.tell_name().await;
        self.skip_unless_meant(Sign::Answers) || !leads_here && dialled != at
    }

    /// Whether the name leads to a server that was promoted after this one; it is looked at next, then.
    async fn leads_to_a_later_one(&mut self, here: Memory) -> bool {
        let (Some(name), Some(wants)) = (&mut self.name, self.wants) else { return false };
        let how = (&self.settings, self.shared.limit);
        let peeked = self.peeking.look((self.clock)(), name.names.every(), how, name.names.answer()).await;
        peeked.is_some_and(|peeked| peeked.was_promoted_later(wants, here) && name.names.turn_to(peeked.at))
    }
}
