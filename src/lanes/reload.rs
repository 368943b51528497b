//! Other settings, without losing a link.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::guard::{Guard, Lane, SELF, is_replication_only};
use super::ids::{LaneId, LinkId};
use super::rate::Rate;
use super::settings::Settings;
use crate::clock::Moment;

/// What is left to do after a reload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReloadPlan {
    /// Links to classify anew, with [`Guard::move_link`] where the lane or application changed: all of them.
    pub reclassify: Vec<LinkId>,
}

impl Guard {
    /// Takes other settings, or refuses them whole and says why. Lanes keep their id by name; one that is missing is retired: it admits
    /// nobody and is counted until its slots are gone. SET LANE ends.
    pub fn reload(&mut self, now: Moment, settings: Settings) -> Result<ReloadPlan, Vec<String>> {
        self.objections(&settings)?;
        self.install(now, settings);
        self.watch_reserves();
        let links = self.ledger.iter().filter(|(_, link)| !link.phase.is_ending());
        let plan = ReloadPlan { reclassify: links.map(|(id, _)| id).collect() };
        self.settle(now);
        Ok(plan)
    }

    fn objections(&self, settings: &Settings) -> Result<(), Vec<String>> {
        let mut errors = Vec::new();
        let names: BTreeSet<&str> = settings.lanes.iter().map(|lane| &*lane.name).collect();
        if names.len() != settings.lanes.len() {
            errors.push("two lanes have the same name".to_owned());
        }
        match settings.lanes.iter().filter(|lane| lane.default).count() {
            1 => {}
            0 => errors.push("no lane is marked default = true".to_owned()),
            _ => errors.push("more than one lane is marked default = true".to_owned()),
        }
        for lane in self.lanes.iter().filter(|lane| lane.pause.is_some()) {
            let name = &lane.settings.name;
            if !names.contains(&**name) {
                errors.push(format!("lane {name} is paused and would be dropped: RESUME LANE {name} first"));
            }
        }
        errors.extend(self.reserves_exceed(settings.lanes.iter(), &settings.limits));
        if self.lanes.len() + settings.lanes.len() > usize::from(u16::MAX) {
            errors.push("too many lanes were named since start".to_owned());
        }
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }

    /// Makes `settings` the present ones; at start as well.
    pub(super) fn install(&mut self, now: Moment, settings: Settings) {
        let was_observing = std::mem::replace(&mut self.limits, settings.limits).observe;
        self.applications = settings.applications;
        self.end_overrides();
        for lane in &mut self.lanes {
            lane.retired = true;
        }
        self.file_order.clear();
        for lane in settings.lanes {
            let id = match self.by_name.get(&lane.name) {
                Some(id) => {
                    let known = &mut self.lanes[usize::from(id.0)];
                    if known.settings.connect_rate != lane.connect_rate {
                        known.rate = Rate::new(lane.connect_rate);
                    }
                    known.retired = false;
                    known.replication_only = is_replication_only(&lane);
                    known.settings = lane;
                    *id
                }
                None => self.add_lane(lane),
            };
            self.file_order.push(id);
        }
        let mut order = self.file_order.clone();
        order.sort_by_key(|id| self.lane_ref(*id).settings.priority);
        self.order = order;
        let default = self.file_order.iter().find(|id| self.lane_ref(**id).settings.default);
        self.default = default.or(self.file_order.first()).copied().unwrap_or_default();
        self.ledger.set_lanes(self.lanes.iter().map(|lane| lane.settings.protected).collect());
        self.apply(now, was_observing);
    }

    fn add_lane(&mut self, settings: super::settings::LaneSettings) -> LaneId {
        let id = LaneId(u16::try_from(self.lanes.len()).unwrap_or(u16::MAX));
        self.by_name.insert(settings.name.clone(), id);
        self.lanes.push(Lane::new(settings));
        id
    }

    fn end_overrides(&mut self) {
        for index in 0..self.lanes.len() {
            let lane = &mut self.lanes[index];
            if let Some(quota) = lane.quota_set.take() {
                let (name, configured) = (lane.settings.name.clone(), lane.settings.quota);
                let text = format!(
                    "SET LANE {name} quota = {quota} ended with the reload (it had been {configured})"
                );
                self.timeline("set", Some(name), None, text, SELF);
            }
        }
    }

    /// Brings gates and those held into line.
    fn apply(&mut self, now: Moment, was_observing: bool) {
        for index in 0..self.lanes.len() {
            let id = LaneId(u16::try_from(index).unwrap_or(u16::MAX));
            if self.lanes[index].retired && !self.lanes[index].is_open() {
                // Only a ramp: a paused lane is not dropped.
                self.open_lane(now, id);
            }
            self.set_gate(id);
            self.release_held(id);
        }
        if was_observing && !self.limits.observe {
            let paused = self.file_order.iter().filter(|lane| self.lane_ref(**lane).pause.is_some());
            let paused: Vec<_> = paused.map(|lane| self.lane_name(*lane)).collect();
            let mut text = "decisions are carried out from now on".to_owned();
            if !paused.is_empty() {
                text += &format!("; paused, as somebody asked while nothing was held: {}", paused.join(", "));
            }
            self.timeline("enforce", None::<Arc<str>>, None, text, SELF);
        }
    }
}
