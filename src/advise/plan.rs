//! From Odoo's processes and PostgreSQL's limits to quotas and reserves, each with its arithmetic. Pure.
//!
//! What a process really opens was measured of a real Odoo; docs/capacity.md has the figures and the reasoning. Quotas are made to fit
//! together, so that every lane may be full at once; only where even the least does not fit is there no plan.

use serde::Serialize;

use super::limits::{Limits, plain};
use super::odoo::OdooConf;
use super::template::Template;
use super::warning::{Warning, warnings};

/// Usable connections that pgweir leaves alone: for people and tools that bypass it.
pub const HEADROOM: u32 = 3;
/// Connections of an HTTP worker at its busiest: its request's, and a second cursor or a database it served before.
const PER_HTTP_WORKER: u32 = 2;
/// Of a cron worker: LISTEN, the row of the job, the job, and a notification. The shipped lane has it as `links_per_process`.
pub const PER_CRON_WORKER: u32 = 4;
/// Of the gevent process: LISTEN, and up to three for those who are logged in.
const PER_GEVENT: u32 = 4;
/// Of a queue job: the one it holds, and one it works with.
const PER_QUEUE_JOB: u32 = 2;
/// Requests at once that one Python process can work on.
const THREADED_REQUESTS: u32 = 8;
/// Leak policies of the shipped lanes end at this many seconds at the latest.
const LEAK_CAP_S: u32 = 600;
/// What is kept free for cron jobs where Odoo gives them no limit.
const CRON_UNLIMITED_S: u32 = 4 * 3600;
/// PostgreSQL's times end at 2,147,483,647 ms.
const TIMEOUT_MAX_MIN: u32 = 35_791;
/// How long a user waits at most, in seconds.
const WAIT_MAX_S: u32 = 30;

/// A lane of the plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LanePlan {
    /// Its name in the template.
    pub lane: String,
    /// Connections it needs at its busiest.
    pub need: u32,
    /// What it gets.
    pub quota: u32,
    /// What is kept free for it.
    pub reserve: u32,
    /// How `need` comes about.
    pub how: String,
    #[serde(skip)]
    floor: u32,
    /// Not part of the budget: protected, or another pool of PostgreSQL's.
    #[serde(skip)]
    pub apart: bool,
}

/// A line of the sum.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Figure {
    /// What.
    pub name: &'static str,
    /// How many.
    pub value: u64,
    /// How it comes about.
    pub how: String,
}

/// What is proposed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// What there is, and what could at worst be asked for.
    pub figures: Vec<Figure>,
    /// Connections for everything that comes through pgweir.
    pub budget: u32,
    /// What Odoo's processes could open together.
    pub worst: u64,
    /// What they need at their busiest.
    pub need: u32,
    /// max_connections with which every lane has what it needs.
    pub fits_with: u32,
    /// In the template's order.
    pub lanes: Vec<LanePlan>,
    /// Of all of Odoo.
    pub application_quota: u32,
    /// Connections of one database in the lane of users; 0 is no limit.
    pub per_database: u32,
    /// Seconds that users may wait.
    pub wait_timeout_s: u32,
    /// `idle_in_transaction_session_timeout` of Odoo's role, in minutes.
    pub role_timeout_min: u32,
    /// Odoo's pools that would fit; none where they do already, or where Odoo's threads depend on them.
    pub db_maxconn: Option<u32>,
    /// What is to be known.
    pub warnings: Vec<Warning>,
}

impl Plan {
    /// A lane by its name.
    pub fn lane(&self, name: &str) -> Option<&LanePlan> {
        self.lanes.iter().find(|lane| lane.lane == name)
    }
}

/// Why there is no plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "PostgreSQL has {usable} usable connections, {others} of them are taken by others and {HEADROOM} stay free: {budget} are left, and \
     Odoo's lanes need {least} to work at all. Hint: close what is not needed, or raise max_connections as far as memory bears"
)]
pub struct NoRoom {
    usable: u32,
    others: u32,
    budget: u32,
    least: u32,
}

/// Odoo's role as PostgreSQL knows it.
pub fn role(conf: &OdooConf) -> &str {
    conf.db_user.value.as_deref().unwrap_or("odoo")
}

/// Whether workers meet several databases.
pub fn has_many_databases(conf: &OdooConf, limits: &Limits) -> bool {
    match conf.db_name.value.len() {
        0 => conf.dbfilter.value.is_some() || limits.databases.is_some_and(|n| n > 1),
        named => named > 1,
    }
}

/// Proposes quotas and reserves for the lanes of `template`.
///
/// # Errors
/// Where not even the least fits.
pub fn plan(conf: &OdooConf, limits: &Limits, template: &Template) -> Result<Plan, NoRoom> {
    let (_, others) = limits.split(role(conf));
    let budget = limits.usable().saturating_sub(others).saturating_sub(HEADROOM);
    let many = has_many_databases(conf, limits);
    let mut lanes: Vec<LanePlan> = template.lanes().iter().map(|lane| wish(conf, many, lane)).collect();
    fit(&mut lanes, budget).map_err(|least| NoRoom { usable: limits.usable(), others, budget, least })?;
    let worst = worst(conf, conf.db_maxconn.value);
    let need = lanes.iter().filter(|lane| !lane.apart).map(|lane| lane.need).sum();
    let web = lanes.iter().find(|lane| lane.lane == "web").map_or(0, |lane| lane.quota);
    let mut plan = Plan {
        figures: figures(conf, limits, others, budget, worst, need),
        budget,
        worst,
        need,
        fits_with: fits_with(&lanes, limits, others),
        application_quota: lanes.iter().filter(|lane| !lane.apart).map(|lane| lane.quota).sum(),
        per_database: if many { web.div_ceil(2).max(2) } else { 0 },
        wait_timeout_s: wait_timeout(conf),
        role_timeout_min: role_timeout(conf),
        db_maxconn: smaller_pools(conf, budget, worst),
        warnings: Vec::new(),
        lanes,
    };
    plan.warnings = warnings(conf, limits, &plan);
    Ok(plan)
}

/// What a lane of the template should have, room permitting.
fn wish(conf: &OdooConf, many: bool, given: &super::template::Lane) -> LanePlan {
    let lane = |need: u32, quota: u32, floor: u32, reserve: u32, how: String| LanePlan {
        lane: given.name.clone(),
        need,
        quota: quota.max(floor),
        reserve,
        how,
        floor,
        apart: given.apart,
    };
    let (workers, crons) = (conf.http_workers(), conf.max_cron_threads.value);
    match given.name.as_str() {
        "web" => web(conf, &lane),
        "live" if conf.has_gevent() => {
            let how = format!("the gevent process: LISTEN and up to {}", PER_GEVENT - 1);
            lane(PER_GEVENT, (2 * PER_GEVENT).min(conf.gevent_maxconn()), 4, 2, how)
        }
        "live" => lane(1, 4, 2, 1, "no gevent process: one LISTEN".to_owned()),
        "cron" if conf.is_threaded() => {
            lane(2 * crons, 2 * crons, 4, 0, format!("{crons} cron threads × 2: LISTEN and the job's row"))
        }
        "cron" => {
            let need = PER_CRON_WORKER * crons;
            let how = format!(
                "{crons} cron workers × {PER_CRON_WORKER}: LISTEN, the job's row, the job, a notification"
            );
            lane(need, need, 4, 0, how)
        }
        "notify" => {
            let at_once = if conf.is_threaded() { THREADED_REQUESTS } else { workers };
            let processes = at_once + crons + u32::from(conf.has_gevent());
            let share = if many { 2 } else { 4 };
            let need = processes.div_ceil(share);
            let how = format!("milliseconds each: one in {share} of {processes} at once");
            lane(need, need.max(4), 3, 2, how)
        }
        "queue" => match conf.queue_jobs.value {
            Some(jobs) => {
                let need = PER_QUEUE_JOB * jobs + 2;
                lane(need, need, 4, 0, format!("{jobs} jobs × {PER_QUEUE_JOB}, and the runner's 2"))
            }
            None => lane(0, 4, 2, 0, "queue_job is not among server_wide_modules".to_owned()),
        },
        "reports" => {
            lane(0, workers.div_ceil(4).clamp(2, 6), 1, 0, "if they have a service of their own".to_owned())
        }
        "imports" => {
            lane(0, workers.div_ceil(8).clamp(2, 4), 1, 0, "if they have a service of their own".to_owned())
        }
        "other" => lane(2, 6, 2, 0, "psql, BI, odoo-bin shell, whoever matches nothing".to_owned()),
        _ => {
            lane(given.reserve, given.quota, given.quota.min(1), given.reserve, "as it is shipped".to_owned())
        }
    }
}

fn web(conf: &OdooConf, lane: &dyn Fn(u32, u32, u32, u32, String) -> LanePlan) -> LanePlan {
    let workers = conf.http_workers();
    if conf.is_threaded() {
        let crons = conf.max_cron_threads.value;
        let need = (PER_HTTP_WORKER * THREADED_REQUESTS + 2 * crons).min(conf.db_maxconn.value).max(2);
        let how = format!(
            "{THREADED_REQUESTS} requests at once × {PER_HTTP_WORKER}, {crons} cron jobs × 2: one process cannot work on more"
        );
        return lane(need, conf.db_maxconn.value.max(2), 2, need.div_ceil(2), how);
    }
    let need = PER_HTTP_WORKER * workers;
    let most = workers.saturating_mul(conf.db_maxconn.value);
    let how =
        format!("{workers} HTTP workers × {PER_HTTP_WORKER}: the request's, a second cursor or database");
    lane(need.max(2), most.max(2), 2, workers, how)
}

/// Makes the quotas fit the budget. Users get what the others leave. Where that is less than they need, the others give what they do not
/// need themselves; where it is less than one for each worker, they give what they can live without. Always the one with most to spare.
///
/// # Errors
/// The least that would be needed.
fn fit(lanes: &mut [LanePlan], budget: u32) -> Result<(), u32> {
    let set_apart: u32 = lanes.iter().filter(|lane| lane.apart).map(|lane| lane.reserve).sum();
    let room = budget.saturating_sub(set_apart);
    let Some(at) = lanes.iter().position(|lane| lane.lane == "web") else { return Ok(()) };
    let (wanted, need) = (lanes[at].quota, lanes[at].need);
    let kept = lanes[at].reserve.max(lanes[at].floor);
    lanes[at].quota = 0;
    lanes
        .iter_mut()
        .filter(|lane| !lane.apart)
        .for_each(|lane| lane.quota = lane.quota.min(room.max(lane.floor)));
    let sum = |lanes: &[LanePlan]| -> u32 { lanes.iter().filter(|l| !l.apart).map(|l| l.quota).sum() };
    let to_need = |lane: &LanePlan| lane.quota.saturating_sub(lane.need.max(lane.floor));
    let to_floor = |lane: &LanePlan| lane.quota.saturating_sub(lane.floor);
    while sum(lanes).saturating_add(need) > room && take_one(lanes, to_need) {}
    while sum(lanes).saturating_add(kept) > room && take_one(lanes, to_floor) {}
    let taken = sum(lanes);
    let least = taken + lanes[at].floor;
    if least > room {
        return Err(least + set_apart);
    }
    lanes[at].quota = wanted.min(room - taken);
    for lane in lanes.iter_mut() {
        lane.reserve = lane.reserve.min(lane.quota);
    }
    Ok(())
}

/// Takes one connection from the lane that has most to spare; false where none has.
fn take_one(lanes: &mut [LanePlan], spare: impl Fn(&LanePlan) -> u32) -> bool {
    let others = lanes.iter_mut().filter(|lane| !lane.apart && lane.lane != "web");
    let largest = others.reduce(|best, lane| if spare(lane) > spare(best) { lane } else { best });
    match largest {
        Some(lane) if spare(lane) > 0 => {
            lane.quota -= 1;
            true
        }
        _ => false,
    }
}

/// The max_connections with which every lane has what it needs, to the next ten.
fn fits_with(lanes: &[LanePlan], limits: &Limits, others: u32) -> u32 {
    let needs: u32 = lanes.iter().map(|l| if l.apart { l.reserve } else { l.need.max(l.floor) }).sum();
    let reserved = limits.max_connections - limits.usable();
    needs.saturating_add(reserved).saturating_add(HEADROOM).saturating_add(others).div_ceil(10) * 10
}

/// What Odoo's processes could open together with such a `db_maxconn`.
pub fn worst(conf: &OdooConf, db_maxconn: u32) -> u64 {
    let each = u64::from(db_maxconn);
    if conf.is_threaded() {
        return each;
    }
    let own = conf.db_maxconn_gevent.value.unwrap_or(db_maxconn);
    let gevent = if conf.has_gevent() { u64::from(own) } else { 0 };
    (u64::from(conf.http_workers()) + u64::from(conf.max_cron_threads.value)) * each + gevent
}

fn worst_how(conf: &OdooConf) -> String {
    let each = conf.db_maxconn.value;
    if conf.is_threaded() {
        return format!("one process, db_maxconn {each}");
    }
    let (workers, crons) = (conf.http_workers(), conf.max_cron_threads.value);
    let gevent = if conf.has_gevent() {
        format!(" + {} of the gevent process", conf.gevent_maxconn())
    } else {
        String::new()
    };
    format!("({workers} HTTP workers + {crons} cron workers) × db_maxconn {each}{gevent}")
}

fn figures(conf: &OdooConf, limits: &Limits, others: u32, budget: u32, worst: u64, need: u32) -> Vec<Figure> {
    let figure = |name, value: u64, how: String| Figure { name, value, how };
    let source = match &limits.assumed {
        None => "PostgreSQL's limit".to_owned(),
        Some(_) => "assumed: PostgreSQL's default".to_owned(),
    };
    let mut out = vec![
        figure("max_connections", limits.max_connections.into(), source),
        figure(
            "reserved",
            (limits.superuser_reserved + limits.reserved).into(),
            "superuser_reserved_connections and reserved_connections".to_owned(),
        ),
        figure("headroom", HEADROOM.into(), "left to people and tools that bypass pgweir".to_owned()),
    ];
    if others > 0 {
        out.push(figure(
            "others",
            others.into(),
            format!("connected now as other users: {}", who(conf, limits)),
        ));
    }
    out.push(figure(
        "budget",
        budget.into(),
        "what pgweir may give away: max_connections less the lines in between".to_owned(),
    ));
    out.push(figure(
        "need",
        need.into(),
        "what Odoo needs at its busiest: the sum of the lanes below".to_owned(),
    ));
    out.push(figure("worst", worst, format!("what Odoo could open: {}", worst_how(conf))));
    out
}

/// The other users with the most sessions, three at most.
fn who(conf: &OdooConf, limits: &Limits) -> String {
    let mut rows: Vec<_> =
        limits.connected.iter().filter(|row| row.user != role(conf) && !row.is_monitor()).collect();
    rows.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.user.cmp(&b.user)));
    let shown = rows.iter().take(3).map(|row| {
        let application: String = row.application.chars().take(40).collect();
        plain(format!("{} {} {application}", row.count, row.user).trim_end())
    });
    shown.collect::<Vec<_>>().join(", ")
}

/// A request that waits for longer than a quarter of its limit would be killed before its work is done.
fn wait_timeout(conf: &OdooConf) -> u32 {
    match conf.limit_time_real.value {
        0 => WAIT_MAX_S,
        limit => (limit / 4).clamp(1, WAIT_MAX_S),
    }
}

/// Half as much again as anything may honestly idle: pgweir's own policies, and a cron job, whose row is held by an idle transaction.
fn role_timeout(conf: &OdooConf) -> u32 {
    let longest =
        LEAK_CAP_S.max(conf.limit_time_real.value).max(conf.cron_limit().unwrap_or(CRON_UNLIMITED_S));
    longest.saturating_add(longest / 2).div_ceil(60).min(TIMEOUT_MAX_MIN)
}

/// A prefork worker never has eight connections in use; a threaded Odoo derives its threads from the pool, so that is left alone.
fn smaller_pools(conf: &OdooConf, budget: u32, worst: u64) -> Option<u32> {
    const ENOUGH: u32 = 8;
    (!conf.is_threaded() && worst > u64::from(budget) && conf.db_maxconn.value > ENOUGH).then_some(ENOUGH)
}
