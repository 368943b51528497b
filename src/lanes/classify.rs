//! Which lane a link belongs to, by what is known of its client.

use std::net::IpAddr;
use std::sync::Arc;

use super::glob::Pattern;
use super::settings::{Cidr, Rule, Settings};

/// Longest application name kept where no `[[application]]` matches: PostgreSQL's own limit is 63 bytes.
const APPLICATION_CHARS_MAX: usize = 64;

/// What is known of a client.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Facts {
    /// Raw application_name.
    pub application: Arc<str>,
    /// User.
    pub user: Arc<str>,
    /// Database.
    pub database: Arc<str>,
    /// Address; none for a Unix socket.
    pub address: Option<IpAddr>,
    /// The listener's address as written in the configuration.
    pub listener: Arc<str>,
    /// The listener's own lane: everything from it belongs there.
    pub listener_lane: Option<Arc<str>>,
    /// Whether the startup packet asks for replication.
    pub replication: bool,
    /// The client process's command line, where it was looked up.
    pub process: Option<Arc<str>>,
}

/// The lane of a link and the rule that put it there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Class {
    /// Name of the lane.
    pub lane: Arc<str>,
    /// The rule as written; "listener" or "default" where none matched.
    pub rule: Arc<str>,
}

/// For how long a statement moves a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sticky {
    /// For as long as it listens.
    Listen,
    /// For this transaction.
    Transaction,
}

/// What a statement tells of its transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traits {
    /// Lane, rule as written, and for how long.
    pub lane: Option<(Arc<str>, Arc<str>, Sticky)>,
    /// Lanes one of whose `exempt` globs matches.
    pub exempt_lanes: Vec<Arc<str>>,
}

/// The rules of all lanes and the applications, compiled. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Rules(Arc<Compiled>);

#[derive(Debug)]
struct Compiled {
    lanes: Vec<LaneRules>,
    applications: Vec<(Pattern, Arc<str>)>,
    default: Arc<str>,
    needs_process: bool,
    needs_statements: bool,
    by_listener: Arc<str>,
    by_default: Arc<str>,
}

#[derive(Debug)]
struct LaneRules {
    name: Arc<str>,
    protected: bool,
    rules: Vec<CompiledRule>,
    exempt: Vec<Pattern>,
}

#[derive(Debug)]
struct CompiledRule {
    application: Option<Pattern>,
    user: Option<Pattern>,
    database: Option<Pattern>,
    address: Option<Cidr>,
    listener: Option<Arc<str>>,
    replication: Option<bool>,
    process: Option<Pattern>,
    statement: Option<Pattern>,
    text: Arc<str>,
}

impl Rules {
    /// Compiles the rules of `settings`.
    pub fn new(settings: &Settings) -> Self {
        let lanes: Vec<LaneRules> = settings
            .lanes
            .iter()
            .map(|lane| LaneRules {
                name: lane.name.clone(),
                protected: lane.protected,
                rules: lane.rules.iter().map(CompiledRule::new).collect(),
                exempt: lane
                    .idle_in_transaction
                    .iter()
                    .flat_map(|leak| &leak.exempt)
                    .map(Pattern::new)
                    .collect(),
            })
            .collect();
        let rules = || lanes.iter().flat_map(|lane| &lane.rules);
        let default = settings.lanes.iter().find(|lane| lane.default).or(settings.lanes.first());
        let default = default.map_or_else(|| "other".into(), |lane| lane.name.clone());
        Self(Arc::new(Compiled {
            needs_process: rules().any(|rule| rule.process.is_some()),
            needs_statements: rules().any(|rule| rule.statement.is_some())
                || lanes.iter().any(|lane| !lane.exempt.is_empty()),
            applications: settings
                .applications
                .iter()
                .map(|app| (Pattern::new(&app.pattern), app.name.clone()))
                .collect(),
            default,
            by_listener: "listener".into(),
            by_default: "default".into(),
            lanes,
        }))
    }

    /// Whether any rule asks for the client's process.
    pub fn needs_process(&self) -> bool {
        self.0.needs_process
    }

    /// Whether any rule or `exempt` glob looks at statements.
    pub fn needs_statements(&self) -> bool {
        self.0.needs_statements
    }

    /// The lane of a new link: its listener's, else the first in file order with a matching rule, else the default. A rule with a
    /// statement key never matches here.
    pub fn classify(&self, facts: &Facts) -> Class {
        self.find(facts, |_| true)
    }

    /// The lane after the client changed its application_name: nothing it says later moves it into a protected lane it is not in.
    pub fn reclassify(&self, facts: &Facts, current: &str) -> Class {
        self.find(facts, |lane| !lane.protected || &*lane.name == current)
    }

    fn find(&self, facts: &Facts, eligible: impl Fn(&LaneRules) -> bool) -> Class {
        if let Some(lane) = self.listener_lane(facts) {
            return Class { lane: lane.name.clone(), rule: self.0.by_listener.clone() };
        }
        for lane in self.0.lanes.iter().filter(|lane| eligible(lane)) {
            if let Some(rule) = lane.rules.iter().find(|rule| rule.statement.is_none() && rule.fits(facts)) {
                return Class { lane: lane.name.clone(), rule: rule.text.clone() };
            }
        }
        Class { lane: self.0.default.clone(), rule: self.0.by_default.clone() }
    }

    /// What `statement` (white space folded, lower case, no trailing semicolon) tells. Of a truncated one only the beginning is known:
    /// globs whose first literal run is in it count as matching. Never a protected lane, and no move away from a listener's lane.
    pub fn on_statement(&self, facts: &Facts, statement: &str, truncated: bool) -> Traits {
        let fits =
            |glob: &Pattern| if truncated { glob.may_match(statement) } else { glob.matches(statement) };
        let mut traits = Traits::default();
        if !self.0.needs_statements {
            return traits;
        }
        for lane in &self.0.lanes {
            if lane.exempt.iter().any(fits) {
                traits.exempt_lanes.push(lane.name.clone());
            }
        }
        if self.listener_lane(facts).is_some() {
            return traits;
        }
        let rules = self.0.lanes.iter().filter(|lane| !lane.protected);
        let mut rules = rules.flat_map(|lane| lane.rules.iter().map(move |rule| (lane, rule)));
        let found = rules.find(|(_, rule)| rule.statement.as_ref().is_some_and(fits) && rule.fits(facts));
        if let Some((lane, rule)) = found {
            let listens = statement.starts_with("listen ");
            let sticky = if listens { Sticky::Listen } else { Sticky::Transaction };
            traits.lane = Some((lane.name.clone(), rule.text.clone(), sticky));
        }
        traits
    }

    /// The normalised application; `raw` itself, at most 64 characters of it, where none matches.
    pub fn application(&self, raw: &Arc<str>) -> Arc<str> {
        if let Some((_, name)) = self.0.applications.iter().find(|(pattern, _)| pattern.matches(raw)) {
            return name.clone();
        }
        match raw.char_indices().nth(APPLICATION_CHARS_MAX) {
            Some((end, _)) => raw[..end].into(),
            None => raw.clone(),
        }
    }

    fn listener_lane(&self, facts: &Facts) -> Option<&LaneRules> {
        let name = facts.listener_lane.as_deref()?;
        self.0.lanes.iter().find(|lane| &*lane.name == name)
    }
}

impl CompiledRule {
    fn new(rule: &Rule) -> Self {
        let compile = |glob: &Option<_>| glob.as_ref().map(Pattern::new);
        Self {
            application: compile(&rule.application),
            user: compile(&rule.user),
            database: compile(&rule.database),
            address: rule.address,
            listener: rule.listener.clone(),
            replication: rule.replication,
            process: compile(&rule.process),
            statement: compile(&rule.statement),
            text: rule.text.clone(),
        }
    }

    /// Whether every key but `statement` matches.
    fn fits(&self, facts: &Facts) -> bool {
        let glob = |pattern: &Option<Pattern>, text: &str| pattern.as_ref().is_none_or(|p| p.matches(text));
        glob(&self.application, &facts.application)
            && glob(&self.user, &facts.user)
            && glob(&self.database, &facts.database)
            && self.address.is_none_or(|cidr| facts.address.is_some_and(|address| contains(cidr, address)))
            && self.listener.as_ref().is_none_or(|listener| *listener == facts.listener)
            && self.replication.is_none_or(|replication| replication == facts.replication)
            && self
                .process
                .as_ref()
                .is_none_or(|pattern| facts.process.as_ref().is_some_and(|line| pattern.matches(line)))
    }
}

/// Whether `address` lies in `cidr`; an IPv4 address seen through an IPv6 socket counts as IPv4.
fn contains(cidr: Cidr, address: IpAddr) -> bool {
    let differ = match (cidr.network.to_canonical(), address.to_canonical()) {
        (IpAddr::V4(network), IpAddr::V4(address)) => u128::from(network.to_bits() ^ address.to_bits()) << 96,
        (IpAddr::V6(network), IpAddr::V6(address)) => network.to_bits() ^ address.to_bits(),
        _ => return false,
    };
    differ.leading_zeros() >= u32::from(cidr.prefix)
}

#[cfg(test)]
mod tests {
    use super::super::settings::{Glob, LaneSettings};
    use super::*;

    fn glob(text: &str) -> Option<Glob> {
        Some(Glob { text: text.into(), case_insensitive: true })
    }

    fn rules() -> Rules {
        let mut admin = LaneSettings::new("admin", 5);
        admin.protected = true;
        admin.rules = vec![
            Rule { user: glob("postgres"), text: "user".into(), ..Rule::default() },
            Rule { application: glob("root"), ..Rule::default() },
        ];
        let mut cron = LaneSettings::new("cron", 5);
        cron.rules = vec![
            Rule { process: glob("odoo: WorkerCron*"), text: "process".into(), ..Rule::default() },
            Rule { statement: glob("listen cron_trigger"), text: "listen".into(), ..Rule::default() },
            Rule { statement: glob("*from ir_cron*"), user: glob("odoo"), ..Rule::default() },
        ];
        let mut near = LaneSettings::new("near", 5);
        let address = Cidr { network: [10, 1, 0, 0].into(), prefix: 16 };
        near.rules = vec![Rule { address: Some(address), database: glob("x*"), ..Rule::default() }];
        let mut other = LaneSettings::new("other", 5);
        other.default = true;
        Rules::new(&Settings::new(vec![admin, cron, near, other]))
    }

    fn facts() -> Facts {
        Facts {
            application: "odoo-1".into(),
            user: "odoo".into(),
            database: "x1".into(),
            address: Some([10, 2, 0, 1].into()),
            listener: "l".into(),
            listener_lane: None,
            replication: false,
            process: None,
        }
    }

    #[test]
    fn the_first_lane_with_a_rule_all_of_whose_keys_match_wins() {
        let rules = rules();
        assert_eq!(&*rules.classify(&facts()).lane, "other");
        let postgres = rules.classify(&Facts { user: "postgres".into(), ..facts() });
        assert_eq!((&*postgres.lane, &*postgres.rule), ("admin", "user"));
        let process = Some("odoo: WorkerCron 7".into());
        assert_eq!(&*rules.classify(&Facts { process, ..facts() }).lane, "cron");
        let mapped: IpAddr = "::ffff:10.1.2.3".parse().expect("an address");
        assert_eq!(&*rules.classify(&Facts { address: Some(mapped), ..facts() }).lane, "near");
        assert_eq!(&*rules.classify(&Facts { address: None, ..facts() }).lane, "other");
        let listener_lane = Some("cron".into());
        assert_eq!(&*rules.classify(&Facts { listener_lane, ..facts() }).rule, "listener");
        assert!(rules.needs_process() && rules.needs_statements());
    }

    #[test]
    fn a_name_given_later_never_leads_into_a_protected_lane() {
        let root = Facts { application: "root".into(), ..facts() };
        assert_eq!(&*rules().classify(&root).lane, "admin");
        assert_eq!(&*rules().reclassify(&root, "other").lane, "other");
        assert_eq!(&*rules().reclassify(&root, "admin").lane, "admin");
    }

    #[test]
    fn listen_moves_for_long_other_statements_for_a_transaction() {
        let listen = rules().on_statement(&facts(), "listen cron_trigger", false).lane.expect("a lane");
        assert_eq!((&*listen.0, &*listen.1, listen.2), ("cron", "listen", Sticky::Listen));
        let select = rules().on_statement(&facts(), "select 1 from ir_cron", false).lane.expect("a lane");
        assert_eq!(select.2, Sticky::Transaction);
        let user = Facts { user: "bi".into(), ..facts() };
        assert_eq!(rules().on_statement(&user, "select 1 from ir_cron", false).lane, None);
        let listener_lane = Some("near".into());
        let bound = Facts { listener_lane, ..facts() };
        assert_eq!(rules().on_statement(&bound, "listen cron_trigger", false).lane, None);
    }

    #[test]
    fn unmatched_applications_are_themselves_but_bounded() {
        assert_eq!(&*rules().application(&"psql".into()), "psql");
        assert_eq!(rules().application(&"é".repeat(100).into()).chars().count(), 64);
    }
}
