//! `pgweir exit`: whether it is over, criterion by criterion; `--wait` stays until it is.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use super::args::Exit;
use super::console::{Console, Failure};
use super::endpoint::AdminEndpoint;
use super::print;
use super::table::{self, Table, printable};

/// Time between two looks when waiting.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Looks that may fail in a row: a restart of pgweir ends no wait.
const FAILURES_MAX: u32 = 60;
/// Once all is met, pgweir closes the incident at its next look, a second later at most: so it is waited for, and no longer than that.
const CLOSING_EVERY: Duration = Duration::from_millis(200);
const CLOSING_LOOKS: u32 = 15;
/// What people see of the checklist.
const COLUMNS: [&str; 5] = ["criterion", "state", "measured", "wanted", "reason"];

/// Asks and prints; true when every criterion is met.
pub async fn run(
    console: Console,
    endpoint: &AdminEndpoint,
    wanted: &Exit,
    json: bool,
) -> Result<bool, Failure> {
    let first = settled(&console).await?;
    if !wanted.wait || first.is_met() {
        print(&first.shown(json))?;
        return Ok(first.is_met());
    }
    if !json {
        print(&first.shown(false))?;
    }
    let waiting = wait(console, endpoint, &first, json);
    let waited = match wanted.timeout {
        None => Some(waiting.await?),
        Some(limit) => timeout(limit, waiting).await.ok().transpose()?,
    };
    let (last, words) = match waited {
        Some(last) => {
            let words = last.verdict();
            (last, words)
        }
        None => {
            let last = settled(&Console::connect(endpoint).await?).await?;
            let words =
                if last.is_met() { last.verdict() } else { "not over within the time given".to_owned() };
            (last, words)
        }
    };
    print(&if json { last.shown(true) } else { format!("{words}\n") })?;
    Ok(last.is_met())
}

/// Looks until every criterion is met; tells people what changes.
async fn wait(
    console: Console,
    endpoint: &AdminEndpoint,
    first: &Answer,
    json: bool,
) -> Result<Answer, Failure> {
    let (mut console, mut before, mut failures) = (Some(console), first.states(), 0);
    loop {
        sleep(LOOK_EVERY).await;
        let answer = match &console {
            Some(console) => settled(console).await,
            None => match Console::connect(endpoint).await {
                Ok(fresh) => {
                    let answer = settled(&fresh).await;
                    console = Some(fresh);
                    answer
                }
                Err(failure) => Err(failure),
            },
        };
        let answer = match answer {
            Ok(answer) => answer,
            Err(failure) => {
                failures += 1;
                console = None;
                if failures > FAILURES_MAX {
                    return Err(failure);
                }
                continue;
            }
        };
        failures = 0;
        let states = answer.states();
        if !json {
            print(&answer.changes(&before))?;
        }
        before = states;
        if answer.is_met() {
            return Ok(answer);
        }
    }
}

/// What the checklist and the list of incidents say, when they agree.
async fn settled(console: &Console) -> Result<Answer, Failure> {
    let mut answer = Answer::ask(console).await?;
    for _ in 0..CLOSING_LOOKS {
        if !answer.is_closing() {
            break;
        }
        sleep(CLOSING_EVERY).await;
        answer = Answer::ask(console).await?;
    }
    Ok(answer)
}

struct Answer {
    criteria: Table,
    incidents: Table,
}

impl Answer {
    async fn ask(console: &Console) -> Result<Self, Failure> {
        let criteria = console.show("SHOW EXIT").await?;
        let incidents = console.show("SHOW INCIDENTS").await?;
        Ok(Self { criteria, incidents })
    }

    fn field(&self, row: usize, name: &str) -> &str {
        self.criteria.get(row, name).unwrap_or("")
    }

    fn rows(&self) -> std::ops::Range<usize> {
        0..self.criteria.rows.len()
    }

    fn is_met(&self) -> bool {
        self.rows().all(|row| self.field(row, "state") == "met")
    }

    /// Everything is met, and the incident is still in the list of those that are open.
    fn is_closing(&self) -> bool {
        self.is_met() && self.open().is_some()
    }

    /// The row of the incident that is open.
    fn open(&self) -> Option<usize> {
        (0..self.incidents.rows.len()).find(|row| self.incidents.get(*row, "state") == Some("open"))
    }

    fn verdict(&self) -> String {
        let met = self.rows().filter(|row| self.field(*row, "state") == "met").count();
        let all = self.criteria.rows.len();
        let incident = match self.open() {
            None => "no incident is open".to_owned(),
            Some(row) => {
                let field = |name| printable(self.incidents.get(row, name).unwrap_or(""));
                let closing = if met == all { "; pgweir is about to close it" } else { "" };
                format!("incident {}, since {}: {}{closing}", field("id"), field("opened_at"), field("cause"))
            }
        };
        let word = if met == all { "OVER" } else { "NOT OVER" };
        format!("{word}: {met} of {all} criteria met; {incident}")
    }

    fn shown(&self, json: bool) -> String {
        if json {
            let incident = self.open().and_then(|row| self.incidents.objects().into_iter().nth(row));
            return table::pretty(&json!({
                "met": self.is_met(),
                "criteria": Value::Array(self.criteria.objects()),
                "incident": incident,
            }));
        }
        format!("{}\n\n{}", self.verdict(), self.criteria.select(&COLUMNS).aligned())
    }

    fn states(&self) -> HashMap<String, String> {
        self.rows()
            .map(|row| (self.field(row, "criterion").into(), self.field(row, "state").into()))
            .collect()
    }

    fn changes(&self, before: &HashMap<String, String>) -> String {
        let changed = self.rows().filter(|row| {
            before.get(self.field(*row, "criterion")).map(String::as_str) != Some(self.field(*row, "state"))
        });
        let line = |row: usize| {
            let field = |name| printable(self.field(row, name));
            format!("{}  {}: {} ({})\n", field("since"), field("criterion"), field("state"), field("reason"))
        };
        changed.map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(names: &[&str], rows: &[&[&str]]) -> Table {
        let row = |cells: &&[&str]| cells.iter().map(|cell| Some((*cell).to_owned())).collect();
        Table {
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            kinds: Vec::new(),
            rows: rows.iter().map(row).collect(),
        }
    }

    fn answer(usage: &str) -> Answer {
        let names = ["criterion", "state", "since", "measured", "wanted", "reason"];
        let quiet =
            ["refusals", "met", "2026-01-02T03:04:05.678Z", "none", "none for 15 min", "quiet for 20 min"];
        let usage = [
            "usage",
            usage,
            "2026-01-02T03:10:00.000Z",
            "80.0 %",
            "below 75 % for 15 min",
            "usage is 80.0 %",
        ];
        Answer {
            criteria: table(&names, &[&usage, &quiet]),
            incidents: table(
                &["id", "state", "opened_at", "cause"],
                &[&["3", "open", "2026-01-02T03:00:00.000Z", "usage 91.0 %"]],
            ),
        }
    }

    #[test]
    fn the_verdict_comes_first_and_what_is_unknown_is_not_over() {
        assert!(!answer("unknown").is_met() && answer("met").is_met());
        let text = answer("not met").shown(false);
        let first = "NOT OVER: 1 of 2 criteria met; incident 3, since 2026-01-02T03:00:00.000Z: usage 91.0 %";
        assert_eq!(text.lines().next(), Some(first));
        let json: Value = serde_json::from_str(&answer("met").shown(true)).expect("JSON");
        assert_eq!((&json["met"], &json["incident"]["id"]), (&true.into(), &"3".into()));
    }

    #[test]
    fn what_is_over_and_still_open_is_looked_at_again() {
        assert!(answer("met").is_closing() && !answer("not met").is_closing());
        let closed = Answer { incidents: table(&["id", "state"], &[&["3", "closed"]]), ..answer("met") };
        assert!(closed.is_met() && !closed.is_closing());
        assert_eq!(closed.verdict(), "OVER: 2 of 2 criteria met; no incident is open");
        assert!(answer("met").verdict().ends_with("usage 91.0 %; pgweir is about to close it"));
    }

    #[test]
    fn waiting_tells_what_changed_and_nothing_else() {
        let before = answer("not met").states();
        assert_eq!(answer("not met").changes(&before), "");
        assert_eq!(
            answer("met").changes(&before),
            "2026-01-02T03:10:00.000Z  usage: met (usage is 80.0 %)\n"
        );
    }
}
