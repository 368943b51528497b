//! How things are, in one sentence, and what to try next. Pure.

use std::collections::BTreeMap;

use super::table::Table;

/// Usage from which a human should look: the runbook's exit criterion.
const PRESSURE_PERCENT: f64 = 75.0;
/// Usage from which new connections fail or wait.
const SATURATED_PERCENT: f64 = 95.0;

/// What kind of situation; worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Word {
    /// pgweir is going down.
    Draining,
    /// PostgreSQL does not answer.
    Down,
    /// No connection is left, or lanes below their quota wait for one.
    Saturated,
    /// Usage is not known.
    Blind,
    /// Somebody (or a ramp) paused lanes.
    Paused,
    /// Usage is high, lanes shed, are full or over their quota, or the reserves exceed the budget.
    Pressure,
    /// Lanes are growing back.
    Ramping,
    /// An incident is not over yet.
    Incident,
    /// Nothing to do.
    Ok,
}

impl Word {
    /// As it is shown.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Draining => "DRAINING",
            Self::Down => "UPSTREAM DOWN",
            Self::Saturated => "SATURATED",
            Self::Blind => "BLIND",
            Self::Paused => "PAUSED",
            Self::Pressure => "PRESSURE",
            Self::Ramping => "RAMPING",
            Self::Incident => "INCIDENT",
            Self::Ok => "OK",
        }
    }
}

/// The figures of SHOW USAGE that matter here.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Usage {
    /// None until known.
    pub percent: Option<f64>,
    /// Used of the usable ones.
    pub connections: u64,
    /// Usable ones.
    pub usable: u64,
    /// Of `connections`, those that are not pgweir's.
    pub bypass: u64,
    /// Idle in transaction.
    pub idle_in_transaction: u64,
}

/// The figures of a row of SHOW LANES that matter here.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Lane {
    /// Name.
    pub name: String,
    /// State, in the words of the contract.
    pub state: String,
    /// Slots at most.
    pub quota: u64,
    /// Slots now.
    pub slots: u64,
    /// Clients waiting.
    pub waiting: u64,
    /// The longest wait, in ms.
    pub max_wait_ms: u64,
    /// Who paused it.
    pub paused_by: String,
    /// Why it is in its state.
    pub reason: String,
}

/// The figures of SHOW STATUS that matter here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Process {
    /// enforce or observe.
    pub mode: String,
    /// running or draining.
    pub state: String,
    /// "up", "full: …" or "down: …".
    pub upstream: String,
    /// "ok", or what is wrong.
    pub monitor: String,
    /// Why the reserves cannot all be kept, as a sentence; empty where they can.
    pub reserves: String,
}

/// The open incident, as SHOW STATUS tells of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Incident {
    /// Its number.
    pub id: u64,
    /// When it began: UTC, RFC 3339.
    pub since: String,
    /// Why.
    pub cause: String,
    /// Criteria that are not met yet, by commas.
    pub not_met: String,
}

/// Everything the verdict is made of.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    /// PostgreSQL's connections.
    pub usage: Usage,
    /// All lanes.
    pub lanes: Vec<Lane>,
    /// pgweir itself.
    pub process: Process,
    /// None where none is open.
    pub incident: Option<Incident>,
    /// What grew most; empty if nothing did.
    pub growth: String,
}

impl Facts {
    /// From the console's answers to SHOW USAGE, LANES and STATUS. What is missing there reads as zero or empty.
    pub fn read(usage: &Table, lanes: &Table, status: &BTreeMap<String, String>) -> Self {
        let figure = |table: &Table, row, name| {
            table.get(row, name).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0)
        };
        let text = |row, name| lanes.get(row, name).unwrap_or("").to_owned();
        let word = |name: &str| status.get(name).cloned().unwrap_or_default();
        let lane = |row| Lane {
            name: text(row, "lane"),
            state: text(row, "state"),
            quota: figure(lanes, row, "quota"),
            slots: figure(lanes, row, "slots"),
            waiting: figure(lanes, row, "waiting"),
            max_wait_ms: figure(lanes, row, "max_wait_ms"),
            paused_by: text(row, "paused_by"),
            reason: text(row, "reason"),
        };
        Self {
            usage: Usage {
                percent: usage.get(0, "percent").and_then(|text| text.parse().ok()),
                connections: figure(usage, 0, "connections"),
                usable: figure(usage, 0, "usable"),
                bypass: figure(usage, 0, "bypass"),
                idle_in_transaction: figure(usage, 0, "idle_in_transaction"),
            },
            lanes: (0..lanes.rows.len()).map(lane).collect(),
            process: Process {
                mode: word("mode"),
                state: word("state"),
                upstream: word("upstream"),
                monitor: word("monitor"),
                reserves: word("reserves"),
            },
            incident: word("incident").parse().ok().map(|id| Incident {
                id,
                since: word("incident_since"),
                cause: word("incident_cause"),
                not_met: word("incident_not_met"),
            }),
            growth: word("growth"),
        }
    }

    fn in_state(&self, state: &str) -> Vec<&Lane> {
        self.lanes.iter().filter(|lane| lane.state == state).collect()
    }

    fn observes(&self) -> bool {
        self.process.mode == "observe"
    }

    /// What a pause is worth in mode observe.
    fn spared(&self) -> &'static str {
        if self.observes() { "; mode observe: it would hold or refuse them, and lets them in" } else { "" }
    }

    fn blind(&self) -> bool {
        !matches!(self.process.monitor.as_str(), "ok" | "")
    }

    /// Lanes whose clients wait although the lane itself has room: it is PostgreSQL that has none.
    fn starved(&self) -> Vec<&Lane> {
        let starved = |lane: &&Lane| lane.state == "open" && lane.waiting > 0 && lane.slots < lane.quota;
        self.lanes.iter().filter(starved).collect()
    }
}

/// One thing there is to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What kind.
    pub word: Word,
    /// The rest of the sentence.
    pub text: String,
    /// The command to try next; empty where there is nothing to do.
    pub next: String,
}

impl Finding {
    /// `PRESSURE: usage 82 % (33 of 40)`.
    pub fn sentence(&self) -> String {
        format!("{}: {}", self.word.text(), self.text)
    }
}

/// What there is to say, worst first; never empty.
pub fn judge(facts: &Facts) -> Vec<Finding> {
    let judges = [draining, down, saturated, blind, paused, pressure, reserves, ramping, incident];
    let mut findings: Vec<Finding> = judges.iter().filter_map(|judge| judge(facts)).collect();
    findings.sort_by_key(|finding| finding.word);
    if findings.is_empty() {
        let text = format!("{}, all lanes open", usage(facts));
        findings.push(Finding { word: Word::Ok, text, next: String::new() });
    }
    findings
}

fn draining(facts: &Facts) -> Option<Finding> {
    let state = facts.process.state.as_str();
    let text = format!("pgweir is {state}: it takes no new clients");
    (!matches!(state, "running" | "")).then(|| finding(Word::Draining, text, "pgweir clients"))
}

fn down(facts: &Facts) -> Option<Finding> {
    let upstream = facts.process.upstream.as_str();
    let cause = upstream.trim_start_matches("down").trim_start_matches([':', ' ']);
    let cause = if cause.is_empty() { "down" } else { cause };
    // It may answer, and be refused.
    let is_choice = cause.starts_with("no server ");
    let text = if is_choice { cause.to_owned() } else { format!("PostgreSQL does not answer ({cause})") };
    let text = format!("{text}; clients wait");
    upstream.starts_with("down").then(|| finding(Word::Down, text, "pgweir timeline --last 20"))
}

fn saturated(facts: &Facts) -> Option<Finding> {
    let starved = facts.starved();
    let high = |limit| facts.usage.percent.is_some_and(|percent| percent >= limit);
    let full = facts.process.upstream.starts_with("full");
    if !full && !high(SATURATED_PERCENT) && (starved.is_empty() || !high(PRESSURE_PERCENT)) {
        return None;
    }
    let mut text = usage(facts);
    if full {
        text.push_str(", PostgreSQL said \"too many clients\"");
    }
    for lane in starved {
        text.push_str(&format!(", {}", waits(lane)));
    }
    let next = if mostly_bypass(facts) {
        "pgweir sessions"
    } else if facts.in_state("paused").is_empty() && !facts.observes() {
        "pgweir freeze --for 30m --reason 'saturated'"
    } else {
        leaks_or(facts, "pgweir sessions")
    };
    Some(finding(Word::Saturated, text, next))
}

fn blind(facts: &Facts) -> Option<Finding> {
    let text = match facts.process.monitor.as_str() {
        "off" => "no [monitor] is configured: usage is unknown and nothing sheds".to_owned(),
        stale if stale.starts_with("stale") => {
            let are = if facts.observes() { "would be" } else { "are" };
            format!("monitor {stale}: usage is unknown, lanes with a shed_above {are} shed")
        }
        other => format!("monitor {other}; usage is unknown"),
    };
    facts.blind().then(|| finding(Word::Blind, text, "pgweir check"))
}

fn paused(facts: &Facts) -> Option<Finding> {
    let paused = facts.in_state("paused");
    let first = paused.first()?;
    let mut by: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
    for lane in &paused {
        by.entry((&lane.paused_by, &lane.reason)).or_default().push(&lane.name);
    }
    let groups = by.iter().map(|((who, why), lanes)| {
        let who = if who.is_empty() { String::new() } else { format!(" paused by {who}") };
        let why = if why.is_empty() { String::new() } else { format!(" ({why})") };
        format!("{}{who}{why}", lanes.join(", "))
    });
    let mut text = groups.collect::<Vec<_>>().join("; ");
    let waiting: u64 = paused.iter().map(|lane| lane.waiting).sum();
    if waiting > 0 {
        text.push_str(&format!("; {waiting} waiting"));
    }
    text.push_str(facts.spared());
    let calm = !facts.blind() && facts.usage.percent.is_some_and(|percent| percent < PRESSURE_PERCENT);
    let next = match (calm, paused.len()) {
        (false, _) => leaks_or(facts, "pgweir usage").to_owned(),
        (true, 1) => format!("pgweir resume {} --over 5m", first.name),
        (true, _) => "pgweir resume all --over 5m".to_owned(),
    };
    Some(finding(Word::Paused, text, &next))
}

fn pressure(facts: &Facts) -> Option<Finding> {
    let percent = facts.usage.percent.unwrap_or(0.0);
    let mut parts = Vec::new();
    if (PRESSURE_PERCENT..SATURATED_PERCENT).contains(&percent) && facts.starved().is_empty() {
        parts.push(usage(facts));
    }
    let names =
        |lanes: Vec<&Lane>| lanes.iter().map(|lane| lane.name.as_str()).collect::<Vec<_>>().join(", ");
    let shed = if facts.observes() { "would be shed" } else { "shed" };
    for (state, what) in [("shedding", shed), ("over", "over quota")] {
        let lanes = facts.in_state(state);
        if !lanes.is_empty() {
            parts.push(format!("{what}: {}", names(lanes)));
        }
    }
    let full = |lane: &&Lane| lane.waiting > 0 && lane.slots >= lane.quota && lane.state != "paused";
    for lane in facts.lanes.iter().filter(full) {
        parts.push(format!("{} is full ({} of {}), {}", lane.name, lane.slots, lane.quota, waits(lane)));
    }
    if percent < PRESSURE_PERCENT {
        parts.extend(facts.starved().into_iter().map(waits));
    }
    if parts.is_empty() {
        return None;
    }
    let next = if mostly_bypass(facts) { "pgweir sessions" } else { leaks_or(facts, "pgweir clients") };
    Some(finding(Word::Pressure, parts.join("; "), next))
}

fn reserves(facts: &Facts) -> Option<Finding> {
    let why = facts.process.reserves.as_str();
    (!why.is_empty()).then(|| finding(Word::Pressure, why.to_owned(), "pgweir check"))
}

fn ramping(facts: &Facts) -> Option<Finding> {
    let lanes = facts.in_state("ramping");
    let parts =
        lanes.iter().map(|lane| format!("{} grows back, now {} of {}", lane.name, lane.slots, lane.quota));
    let text = parts.collect::<Vec<_>>().join("; ") + facts.spared();
    (!lanes.is_empty()).then(|| finding(Word::Ramping, text, "pgweir timeline --follow"))
}

fn incident(facts: &Facts) -> Option<Finding> {
    let Incident { id, since, cause, not_met } = facts.incident.as_ref()?;
    let left = match not_met.as_str() {
        "" => "every criterion is met".to_owned(),
        names => format!("not met yet: {names}"),
    };
    Some(finding(Word::Incident, format!("{id}, since {since}: {cause}; {left}"), "pgweir exit"))
}

fn finding(word: Word, text: String, next: &str) -> Finding {
    Finding { word, text, next: next.to_owned() }
}

/// `usage 82 % (33 of 40)`.
fn usage(facts: &Facts) -> String {
    let Usage { percent, connections, usable, .. } = facts.usage;
    percent.map_or_else(
        || "usage unknown".to_owned(),
        |percent| match usable {
            0 => format!("usage {percent:.0} %"),
            _ => format!("usage {percent:.0} % ({connections} of {usable})"),
        },
    )
}

/// `3 wait in web, longest 1.2 s`.
fn waits(lane: &Lane) -> String {
    let verb = if lane.waiting == 1 { "waits" } else { "wait" };
    let seconds = lane.max_wait_ms as f64 / 1000.0;
    format!("{} {verb} in {}, longest {seconds:.1} s", lane.waiting, lane.name)
}

fn mostly_bypass(facts: &Facts) -> bool {
    facts.usage.connections > 0 && facts.usage.bypass * 2 > facts.usage.connections
}

/// Idle transactions are what can be taken back at once: look there first where they are a fifth of all.
fn leaks_or<'a>(facts: &Facts, other: &'a str) -> &'a str {
    let many = facts.usage.idle_in_transaction * 5 >= facts.usage.connections.max(1);
    if many { "pgweir leaks" } else { other }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(percent: f64) -> Facts {
        let lane = |name: &str, quota, slots| Lane {
            name: name.into(),
            state: "open".into(),
            quota,
            slots,
            ..Lane::default()
        };
        let connections = (percent * 0.4).round() as u64;
        Facts {
            usage: Usage { percent: Some(percent), connections, usable: 40, ..Usage::default() },
            lanes: vec![lane("web", 24, 10), lane("cron", 8, 4), lane("queue", 8, 2)],
            process: Process {
                mode: "enforce".into(),
                state: "running".into(),
                upstream: "up".into(),
                monitor: "ok".into(),
                reserves: String::new(),
            },
            incident: None,
            growth: String::new(),
        }
    }

    fn sentences(facts: &Facts) -> Vec<String> {
        judge(facts).iter().map(Finding::sentence).collect()
    }

    fn next(facts: &Facts) -> String {
        judge(facts)[0].next.clone()
    }

    fn pause(lane: &mut Lane, by: &str, reason: &str) {
        lane.state = "paused".into();
        lane.paused_by = by.into();
        lane.reason = reason.into();
    }

    #[test]
    fn mode_observe_is_told_as_what_would_be_done() {
        let mut facts = facts(97.0);
        facts.process.mode = "observe".into();
        facts.lanes[1].state = "shedding".into();
        let found = judge(&facts);
        assert!(
            found.iter().all(|finding| !finding.next.contains("freeze")),
            "it would hold nobody: {found:?}"
        );
        assert_eq!(found[1].text, "would be shed: cron");
        facts.lanes[1].state = "paused".into();
        facts.lanes[1].paused_by = "me".into();
        facts.process.monitor = "stale for 9 s".into();
        let texts: Vec<String> = judge(&facts).into_iter().map(|finding| finding.text).collect();
        assert!(
            texts.iter().any(|text| text.ends_with("lanes with a shed_above would be shed")),
            "{texts:?}"
        );
        let spared = "cron paused by me; mode observe: it would hold or refuse them, and lets them in";
        assert!(texts.iter().any(|text| text == spared), "{texts:?}");
    }

    #[test]
    fn a_calm_day_is_ok_and_asks_for_nothing() {
        assert_eq!(sentences(&facts(40.0)), ["OK: usage 40 % (16 of 40), all lanes open"]);
        assert_eq!(next(&facts(40.0)), "");
    }

    #[test]
    fn pressure_begins_at_the_exit_criterion_and_saturation_near_the_end() {
        assert_eq!(judge(&facts(74.9))[0].word, Word::Ok);
        assert_eq!(sentences(&facts(82.5)), ["PRESSURE: usage 82 % (33 of 40)"]);
        assert_eq!(judge(&facts(95.0))[0].word, Word::Saturated);
        assert_eq!(next(&facts(95.0)), "pgweir freeze --for 30m --reason 'saturated'");
    }

    #[test]
    fn clients_of_a_lane_with_room_that_wait_are_saturation_if_usage_is_high() {
        let mut facts = facts(90.0);
        (facts.lanes[0].waiting, facts.lanes[0].max_wait_ms) = (3, 1200);
        assert_eq!(sentences(&facts), ["SATURATED: usage 90 % (36 of 40), 3 wait in web, longest 1.2 s"]);
        facts.usage.percent = Some(50.0);
        assert_eq!(sentences(&facts), ["PRESSURE: 3 wait in web, longest 1.2 s"]);
    }

    #[test]
    fn shedding_over_and_full_lanes_are_pressure_whatever_usage_says() {
        let mut facts = facts(50.0);
        facts.lanes[1].state = "shedding".into();
        facts.lanes[2].state = "over".into();
        facts.lanes[0] = Lane { slots: 24, waiting: 1, max_wait_ms: 400, ..facts.lanes[0].clone() };
        let expected =
            "PRESSURE: shed: cron; over quota: queue; web is full (24 of 24), 1 waits in web, longest 0.4 s";
        assert_eq!(sentences(&facts), [expected]);
        assert_eq!(next(&facts), "pgweir clients");
        facts.process.mode = "observe".into();
        assert!(sentences(&facts)[0].starts_with("PRESSURE: would be shed: cron; "), "nobody is");
    }

    #[test]
    fn a_pause_names_lanes_people_and_reason_and_offers_the_way_back_when_calm() {
        let mut facts = facts(40.0);
        pause(&mut facts.lanes[1], "admin (alice)", "imports");
        assert_eq!(next(&facts), "pgweir resume cron --over 5m");
        pause(&mut facts.lanes[2], "admin (alice)", "imports");
        facts.lanes[2].waiting = 7;
        assert_eq!(sentences(&facts), ["PAUSED: cron, queue paused by admin (alice) (imports); 7 waiting"]);
        assert_eq!(next(&facts), "pgweir resume all --over 5m");
        facts.usage.percent = Some(80.0);
        assert_eq!(judge(&facts)[0].next, "pgweir usage");
        assert_eq!(judge(&facts)[1].word, Word::Pressure);
    }

    #[test]
    fn the_worst_comes_first() {
        let mut facts = facts(97.0);
        pause(&mut facts.lanes[1], "ramp", "usage 80 %");
        facts.lanes[2].state = "ramping".into();
        facts.process = Process {
            mode: "enforce".into(),
            state: "draining".into(),
            upstream: "down: PostgreSQL cannot be reached".into(),
            monitor: "stale (down: connection refused)".into(),
            reserves: String::new(),
        };
        let words: Vec<Word> = judge(&facts).iter().map(|finding| finding.word).collect();
        assert_eq!(
            words,
            [Word::Draining, Word::Down, Word::Saturated, Word::Blind, Word::Paused, Word::Ramping]
        );
    }

    #[test]
    fn blindness_is_told_by_its_cause_and_never_offers_a_resume() {
        let mut facts = facts(40.0);
        for (monitor, part) in
            [("off", "no [monitor]"), ("stale", "monitor stale"), ("pooler", "monitor pooler")]
        {
            facts.process.monitor = monitor.into();
            assert!(sentences(&facts)[0].contains(part), "{monitor}");
        }
        pause(&mut facts.lanes[1], "admin", "");
        assert!(judge(&facts).iter().all(|finding| !finding.next.contains("resume")));
    }

    #[test]
    fn a_monitor_that_says_nothing_does_not_make_postgresql_down() {
        let mut facts = facts(40.0);
        facts.usage = Usage::default();
        for monitor in ["stale (ok)", "blind: `grant pg_monitor to pgweir`", "down: password", "connecting"] {
            facts.process.monitor = monitor.into();
            for upstream in ["up", "unknown: monitor stale", ""] {
                facts.process.upstream = upstream.into();
                let findings = judge(&facts);
                assert_eq!((findings.len(), findings[0].word), (1, Word::Blind), "{monitor}, {upstream}");
                assert!(!findings[0].text.contains("does not answer"), "{findings:?}");
            }
        }
        facts.process.upstream = "down: connection refused".into();
        let said = "UPSTREAM DOWN: PostgreSQL does not answer (connection refused); clients wait";
        assert_eq!(sentences(&facts)[0], said);
        facts.process.upstream =
            "down: no server will do (a: primary on timeline 1, left behind by 2)".into();
        let said =
            "UPSTREAM DOWN: no server will do (a: primary on timeline 1, left behind by 2); clients wait";
        assert_eq!(sentences(&facts)[0], said);
    }

    #[test]
    fn a_full_postgresql_is_saturated_and_not_down() {
        let mut facts = facts(60.0);
        facts.process.upstream = "full: PostgreSQL has no connection left".into();
        let said = "SATURATED: usage 60 % (24 of 40), PostgreSQL said \"too many clients\"";
        assert_eq!(sentences(&facts), [said]);
        // Said before the first sample.
        facts.usage = Usage { percent: Some(100.0), ..Usage::default() };
        assert_eq!(sentences(&facts), ["SATURATED: usage 100 %, PostgreSQL said \"too many clients\""]);
    }

    #[test]
    fn an_open_incident_is_told_until_it_is_over_whatever_else_there_is() {
        let mut facts = facts(40.0);
        let open = |not_met: &str| Incident {
            id: 3,
            since: "2026-01-02T02:14:07.250Z".into(),
            cause: "usage 81.5 %, from 75 % on".into(),
            not_met: not_met.into(),
        };
        facts.incident = Some(open("usage, lane web"));
        let began = "INCIDENT: 3, since 2026-01-02T02:14:07.250Z: usage 81.5 %, from 75 % on";
        assert_eq!(
            sentences(&facts),
            [format!("{began}; not met yet: usage, lane web")],
            "calm, but not over"
        );
        assert_eq!(next(&facts), "pgweir exit");
        facts.incident = Some(open(""));
        assert_eq!(sentences(&facts), [format!("{began}; every criterion is met")]);
        facts.usage.percent = Some(82.5);
        let words: Vec<Word> = judge(&facts).iter().map(|finding| finding.word).collect();
        assert_eq!(words, [Word::Pressure, Word::Incident], "what presses comes first");
    }

    #[test]
    fn reserves_beyond_the_budget_are_told() {
        let mut facts = facts(40.0);
        facts.process.reserves = "the reserves sum to 40 (web 20, cron 20), more than the budget 34".into();
        let said = "PRESSURE: the reserves sum to 40 (web 20, cron 20), more than the budget 34";
        assert_eq!((sentences(&facts), next(&facts)), (vec![said.to_owned()], "pgweir check".to_owned()));
    }

    #[test]
    fn the_next_command_goes_where_the_connections_are() {
        let mut facts = facts(97.0);
        facts.usage.bypass = 30;
        assert_eq!(next(&facts), "pgweir sessions");
        facts.usage.bypass = 0;
        facts.usage.idle_in_transaction = 12;
        pause(&mut facts.lanes[1], "admin", "");
        assert_eq!(next(&facts), "pgweir leaks");
    }

    #[test]
    fn facts_are_read_by_column_name_and_what_is_missing_is_no_alarm() {
        let cells = |cells: &[&str]| cells.iter().map(|cell| Some((*cell).to_owned())).collect::<Vec<_>>();
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let usage = Table {
            names: names(&["usable", "connections", "percent"]),
            rows: vec![cells(&["40", "16", "40.0"])],
            ..Table::default()
        };
        let lanes = Table {
            names: names(&["lane", "state", "slots", "quota"]),
            rows: vec![cells(&["web", "open", "10", "24"])],
            ..Table::default()
        };
        let status = BTreeMap::from([("monitor".to_owned(), "ok".to_owned())]);
        let facts = Facts::read(&usage, &lanes, &status);
        assert_eq!((facts.usage.percent, facts.lanes[0].quota, facts.lanes[0].waiting), (Some(40.0), 24, 0));
        assert_eq!(judge(&facts)[0].word, Word::Ok);
    }
}
