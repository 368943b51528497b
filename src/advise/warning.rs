//! What somebody who reads the plan has to know. Pure.

use std::fmt;

use serde::Serialize;

use super::limits::Limits;
use super::odoo::OdooConf;
use super::place::is_here;
use super::plan::{PER_CRON_WORKER, Plan, has_many_databases, role, worst};

/// One thing to know, with what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Warning {
    /// PostgreSQL's limits are not known.
    LimitsAssumed {
        /// Why.
        why: String,
    },
    /// The file has no `[options]`.
    NoOptions,
    /// Odoo's processes could open more than there is.
    WorstExceeds {
        /// What they could open.
        worst: u64,
        /// What there is.
        budget: u32,
        /// A pool that is large enough, and what they could open with it.
        smaller: Option<(u32, u64)>,
    },
    /// Users have fewer connections than there are workers.
    MoreWorkersThanConnections {
        /// HTTP workers.
        workers: u32,
        /// Connections for them.
        quota: u32,
        /// max_connections with which all would fit.
        max_connections: u32,
    },
    /// Users have fewer connections than their workers need at their busiest.
    WebBelowNeed {
        /// What they have.
        quota: u32,
        /// What they would need.
        need: u32,
        /// max_connections with which all would fit.
        max_connections: u32,
    },
    /// Not all cron workers can be busy at once.
    CronBelowNeed {
        /// What they have.
        quota: u32,
        /// What they would need.
        need: u32,
        /// How many fit.
        at_once: u32,
    },
    /// A cron worker's pool is smaller than what a job needs.
    CronPoolTooSmall {
        /// db_maxconn.
        db_maxconn: u32,
    },
    /// The gevent process's pool is smaller than what it needs.
    GeventPoolTooSmall {
        /// Its pool.
        maxconn: u32,
    },
    /// One process for everything.
    Threaded {
        /// Requests it answers at once by itself.
        threads: u32,
    },
    /// Workers keep connections to every database they served.
    ManyDatabases {
        /// How many, where that is known.
        databases: Option<u32>,
        /// Connections of one of them in the lane of users.
        per_database: u32,
    },
    /// Odoo logs in without a password.
    NoPassword,
    /// The role is not named.
    UserNotNamed,
    /// A cron job may run for ever.
    CronUnlimited,
    /// A second server is read from.
    Replica,
    /// PostgreSQL is on another host.
    Elsewhere,
    /// Odoo verifies PostgreSQL's certificate.
    Verify {
        /// How.
        mode: String,
    },
    /// Several hosts are named.
    SeveralHosts,
    /// A pgweir watches this PostgreSQL already.
    RunsAlready {
        /// Its monitor's sessions.
        sessions: u32,
    },
    /// Others hold a good part of the connections.
    Others {
        /// How many.
        count: u32,
        /// Of how many.
        usable: u32,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LimitsAssumed { why } => write!(
                f,
                "PostgreSQL was not asked ({why}): its default limits are assumed. Name it with --upstream, or correct the figures by \
                 hand; pgweir check compares them"
            ),
            Self::NoOptions => f.write_str(
                "the file has no [options], so Odoo ignores it and runs by its defaults. Is it the right file?",
            ),
            Self::WorstExceeds { worst, budget, smaller } => {
                write!(
                    f,
                    "Odoo could open {worst} connections where {budget} fit. With pgweir the surplus waits in its lane rather than fail"
                )?;
                match smaller {
                    Some((size, worst)) => {
                        write!(f, "; db_maxconn = {size}, enough for any worker, bounds it to {worst}")
                    }
                    None => Ok(()),
                }
            }
            Self::MoreWorkersThanConnections { workers, quota, max_connections } => write!(
                f,
                "{workers} HTTP workers share {quota} connections: when all are busy, {} wait. Lower workers to {quota}, or set \
                 max_connections = {max_connections}, if memory bears it (pgweir headroom)",
                workers.saturating_sub(*quota)
            ),
            Self::WebBelowNeed { quota, need, max_connections } => write!(
                f,
                "users have {quota} connections, and their workers could use {need} at their busiest: the rest waits. All would fit with \
                 max_connections = {max_connections}, if memory bears it (pgweir headroom)"
            ),
            Self::CronBelowNeed { quota, need, at_once } => write!(
                f,
                "cron has {quota} connections of the {need} that all its workers need: {at_once} of them work at once. Lower \
                 max_cron_threads to {at_once}"
            ),
            Self::CronPoolTooSmall { db_maxconn } => write!(
                f,
                "db_maxconn = {db_maxconn} is less than the {PER_CRON_WORKER} connections a cron job needs: Odoo's pool will be full. \
                 Raise it to 8"
            ),
            Self::GeventPoolTooSmall { maxconn } => write!(
                f,
                "the gevent process may open {maxconn} connections and needs 4. Raise db_maxconn_gevent (before Odoo 17: db_maxconn) to 8"
            ),
            Self::Threaded { threads } => write!(
                f,
                "workers = 0: one process does everything, up to {threads} requests at once. Its cron jobs cannot be told from users \
                 before their first statement, and FREEZE reaches them only there. For more than a few users set workers"
            ),
            Self::ManyDatabases { databases, per_database } => {
                match databases {
                    Some(n) => write!(f, "{n} databases: ")?,
                    None => f.write_str("several databases: ")?,
                }
                write!(
                    f,
                    "each worker keeps an idle connection to every one it served, up to db_maxconn. pgweir takes those back when others \
                     wait (reclaim_idle_after), and no database gets more than {per_database} of the users' connections"
                )
            }
            Self::NoPassword => f.write_str(
                "db_password is not set: PostgreSQL knows Odoo by the operating system's user (peer), and behind pgweir it would see \
                 pgweir's. Give the role a password (\\password in psql) and write it into odoo.conf",
            ),
            Self::UserNotNamed => f.write_str(
                "db_user is not set: Odoo logs in as the operating system's user. Write db_user into odoo.conf; odoo is assumed here",
            ),
            Self::CronUnlimited => f.write_str(
                "limit_time_real_cron = 0: a cron job may run for ever, holding its row by a transaction that idles. \
                 idle_in_transaction_session_timeout is set for jobs of 4 hours: raise it where they take longer",
            ),
            Self::Replica => f.write_str(
                "db_replica_host is another server with limits of its own: it needs a pgweir of its own. This one is for db_host",
            ),
            Self::Elsewhere => f.write_str(
                "PostgreSQL is on another host: run pgweir on Odoo's, where it can tell Odoo's processes apart. Where several hosts share the \
                 server, one pgweir in front of it must have all of them: --listen ADDRESS:6432, and ODOO_PGAPPNAME for each service",
            ),
            Self::Verify { mode } => write!(
                f,
                "db_sslmode = {mode}: pgweir verifies as well once it knows the authority. Write tls = \"{mode}\" and ca_file into [upstream]; \
                 until then it is \"require\""
            ),
            Self::SeveralHosts => f.write_str("db_host names several servers: the first is taken"),
            Self::RunsAlready { sessions } => write!(
                f,
                "a pgweir runs already in front of this PostgreSQL: its monitor is connected ({sessions}, not counted among the others). To \
                 change that pgweir, write over its own file (--output FILE --force) and pgweir reload. A second one shares \
                 the role pgweir: copy the first one's monitor.password beside FILE before, or the SQL below locks the first one's monitor out"
            ),
            Self::Others { count, usable } => write!(
                f,
                "{count} of {usable} usable connections are held by others who do not come through pgweir. Lead them through it too, or \
                 give them less"
            ),
        }
    }
}

/// All that applies.
pub(super) fn warnings(conf: &OdooConf, limits: &Limits, plan: &Plan) -> Vec<Warning> {
    let mut out = Vec::new();
    if !conf.has_options {
        out.push(Warning::NoOptions);
    }
    if let Some(why) = &limits.assumed {
        out.push(Warning::LimitsAssumed { why: why.clone() });
    }
    capacity(&mut out, conf, limits, plan);
    habits(&mut out, conf, limits, plan);
    out
}

fn capacity(out: &mut Vec<Warning>, conf: &OdooConf, limits: &Limits, plan: &Plan) {
    if plan.worst > u64::from(plan.budget) {
        let smaller = plan.db_maxconn.map(|size| (size, worst(conf, size)));
        out.push(Warning::WorstExceeds { worst: plan.worst, budget: plan.budget, smaller });
    }
    if let Some(web) = plan.lane("web") {
        let (workers, quota, need) = (conf.http_workers(), web.quota, web.need);
        if quota < workers {
            out.push(Warning::MoreWorkersThanConnections { workers, quota, max_connections: plan.fits_with });
        } else if quota < need {
            out.push(Warning::WebBelowNeed { quota, need, max_connections: plan.fits_with });
        }
    }
    let crons = conf.max_cron_threads.value;
    if let Some(cron) = plan.lane("cron")
        && cron.quota < cron.need
    {
        let (quota, need) = (cron.quota, cron.need);
        out.push(Warning::CronBelowNeed { quota, need, at_once: quota / (need / crons).max(1) });
    }
    if crons > 0 && conf.db_maxconn.value < PER_CRON_WORKER {
        out.push(Warning::CronPoolTooSmall { db_maxconn: conf.db_maxconn.value });
    }
    if conf.has_gevent() && conf.gevent_maxconn() < 4 {
        out.push(Warning::GeventPoolTooSmall { maxconn: conf.gevent_maxconn() });
    }
    if limits.monitors() > 0 {
        out.push(Warning::RunsAlready { sessions: limits.monitors() });
    }
    let (_, count) = limits.split(role(conf));
    let usable = limits.usable();
    if count > usable / 4 {
        out.push(Warning::Others { count, usable });
    }
}

fn habits(out: &mut Vec<Warning>, conf: &OdooConf, limits: &Limits, plan: &Plan) {
    if conf.is_threaded() {
        // As Odoo reckons it, where ODOO_MAX_HTTP_THREADS says nothing.
        let threads = conf.db_maxconn.value.saturating_sub(conf.max_cron_threads.value) / 2;
        out.push(Warning::Threaded { threads: threads.max(1) });
    }
    if has_many_databases(conf, limits) {
        let databases = limits.databases.or(match conf.db_name.value.len() {
            0 => None,
            named => u32::try_from(named).ok(),
        });
        out.push(Warning::ManyDatabases { databases, per_database: plan.per_database });
    }
    if conf.db_user.value.is_none() {
        out.push(Warning::UserNotNamed);
    }
    // Over TCP the password may come from Odoo's environment, and pgweir passes it on.
    let by_socket = conf.db_host.value.as_ref().is_none_or(|host| host.starts_with('/'));
    if by_socket && conf.db_password.is_none() {
        out.push(Warning::NoPassword);
    }
    if conf.cron_limit().is_none() && conf.max_cron_threads.value > 0 {
        out.push(Warning::CronUnlimited);
    }
    if conf.db_replica_host.value.is_some() {
        out.push(Warning::Replica);
    }
    if !is_here(conf.db_host.value.as_deref().unwrap_or_default()) {
        out.push(Warning::Elsewhere);
    }
    if conf.db_sslmode.value.starts_with("verify-") {
        out.push(Warning::Verify { mode: conf.db_sslmode.value.clone() });
    }
    if conf.db_host.value.as_ref().is_some_and(|host| host.contains(',')) {
        out.push(Warning::SeveralHosts);
    }
}
