//! Configurations for the simulation, as varied as the contract allows.

use std::time::Duration;

use pgweir::lanes::settings::{
    ApplicationSettings, Disposition, Glob, LaneSettings, LeakAction, LeakSettings, Pooling, ResetWhen,
    Settings,
};
use pgweir::reason::SqlState;

use crate::dice::Dice;

pub const APPLICATIONS: [&str; 3] = ["odoo", "bi", "psql"];
pub const USERS: [&str; 3] = ["u1", "u2", "u3"];

/// Startup packets of a user and application, and none.
pub fn keys(user: &str, application: &str) -> [Option<&'static str>; 3] {
    const ALL: [[&str; 3]; 3] = [
        ["keyu1odoo", "keyu1bi", "keyu1psql"],
        ["keyu2odoo", "keyu2bi", "keyu2psql"],
        ["keyu3odoo", "keyu3bi", "keyu3psql"],
    ];
    let at = |names: &[&str], name: &str| names.iter().position(|one| *one == name).unwrap_or(0);
    let key = ALL[at(&USERS, user)][at(&APPLICATIONS, application)];
    [Some(key), Some(key), None]
}

pub fn random(dice: &mut Dice) -> Settings {
    let mut lanes = vec![admin(dice), live(dice), cron(dice), web(dice), reports(dice), other(dice)];
    if dice.one_in(3) {
        lanes.remove(4);
    }
    let mut settings = Settings::new(lanes);
    let odoo_quota = Some(dice.range(6, 14) as u32).filter(|_| !dice.one_in(3));
    settings.applications =
        vec![application("odoo", odoo_quota, &["live", "web"]), application("bi", Some(3), &[])];
    let limits = &mut settings.limits;
    limits.monitored = !dice.one_in(5);
    limits.observe = dice.one_in(10);
    limits.headroom = dice.range(0, 3) as u32;
    limits.max_logins = dice.range(2, 20) as u32;
    limits.stale_after = Duration::from_secs(5);
    limits.max_resets_per_minute = dice.range(0, 4) as u32;
    settings
}

fn application(name: &str, quota: Option<u32>, lanes: &[&str]) -> ApplicationSettings {
    ApplicationSettings {
        pattern: Glob { text: format!("{name}*").into(), case_insensitive: false },
        name: name.into(),
        quota,
        lanes: lanes.iter().map(|lane| (*lane).into()).collect(),
    }
}

fn admin(dice: &mut Dice) -> LaneSettings {
    let mut lane = LaneSettings::new("admin", dice.range(1, 4) as u32);
    lane.protected = true;
    lane.freeze = true;
    lane.shed_above = Some(10.0);
    lane.shed_below = 5.0;
    lane
}

fn live(dice: &mut Dice) -> LaneSettings {
    let mut lane = LaneSettings::new("live", dice.range(2, 6) as u32);
    lane.priority = 0;
    lane.reserve = dice.range(1, 2) as u32;
    lane.pooling = pooling(dice);
    lane
}

fn cron(dice: &mut Dice) -> LaneSettings {
    let mut lane = LaneSettings::new("cron", dice.range(1, 8) as u32);
    lane.priority = 5;
    lane.shed_above = Some(75.0);
    lane.shed_dwell = Duration::from_millis(dice.range(0, 3000));
    lane.links_per_process = lane.quota % 4;
    lane.freeze = true;
    lane.pooling = pooling(dice);
    lane.pause_hold_timeout = dice.one_in(2).then_some(Duration::from_secs(8));
    lane.wait_timeout = Duration::from_secs(6);
    lane.idle_in_transaction = Some(leaks(LeakAction::Disconnect, ResetWhen::Always));
    lane
}

fn web(dice: &mut Dice) -> LaneSettings {
    let mut lane = LaneSettings::new("web", dice.range(4, 12) as u32);
    lane.priority = 0;
    lane.reserve = dice.range(0, 4) as u32;
    lane.max_waiting = dice.range(2, 12) as u32;
    lane.reclaim_idle_after = Some(Duration::from_secs(2));
    lane.idle_in_transaction = Some(leaks(LeakAction::Rollback, ResetWhen::Harm));
    lane.pooling = pooling(dice);
    lane
}

fn pooling(dice: &mut Dice) -> Option<Pooling> {
    let seconds = |dice: &mut Dice, from, to| Duration::from_secs(dice.range(from, to));
    (!dice.one_in(3)).then(|| Pooling {
        lifetime: seconds(dice, 5, 200),
        idle_timeout: seconds(dice, 1, 60),
        check_after: Duration::ZERO,
        min_size: dice.range(0, 2) as u32,
        keeps_reserve: dice.one_in(2),
        normalises: false,
    })
}

fn reports(dice: &mut Dice) -> LaneSettings {
    let mut lane = LaneSettings::new("reports", dice.range(1, 6) as u32);
    lane.priority = 7;
    lane.shed_above = Some(60.0);
    lane.shed_below = 50.0;
    lane.on_shed = Disposition::Reject;
    lane.on_pause = Disposition::Reject;
    lane.freeze = true;
    lane.per_user = dice.range(0, 2) as u32;
    lane.pooling = pooling(dice);
    lane
}

fn other(dice: &mut Dice) -> LaneSettings {
    let mut lane = LaneSettings::new("other", dice.range(1, 6) as u32);
    lane.priority = 9;
    lane.default = true;
    lane.connect_rate = dice.one_in(2).then_some(2.0);
    lane.pooling = pooling(dice);
    lane.per_application = dice.range(0, 3) as u32;
    lane.per_address = dice.range(0, 3) as u32;
    lane.reclaim_idle_after = Some(Duration::from_secs(1));
    lane
}

fn leaks(action: LeakAction, when: ResetWhen) -> LeakSettings {
    LeakSettings {
        warn: Some(Duration::from_secs(1)),
        reset: Some(Duration::from_secs(3)),
        when,
        cap: Some(Duration::from_secs(12)),
        action,
        sqlstate: SqlState(*b"40001"),
        exempt: Vec::new(),
        disconnect_after: Some(Duration::from_secs(4)),
    }
}
