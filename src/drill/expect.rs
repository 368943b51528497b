//! What must hold: rules such as `web.failures == 0` or `web.p99 <= 1.5 * steady`, parsed and evaluated. Pure.

use super::scenario::parse_time;

/// What a rule is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A lane's figure.
    Lane(String),
    /// A figure of the whole run: `upstream`, `locks`, `lost`.
    Run(String),
}

/// A figure. Times are in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "docs/drill.md, Scenario files, says what each is")]
pub enum Figure {
    Attempts,
    Ok,
    Failures,
    Errors,
    Retries,
    Unfinished,
    P50,
    P90,
    P99,
    Max,
    WaitP99,
    ServiceP99,
    Peak,
    PeakPercent,
    Held,
    Blocked,
    Late,
    Commits,
}

const FIGURES: [(&str, Figure); 12] = [
    ("attempts", Figure::Attempts),
    ("ok", Figure::Ok),
    ("failures", Figure::Failures),
    ("errors", Figure::Errors),
    ("retries", Figure::Retries),
    ("unfinished", Figure::Unfinished),
    ("p50", Figure::P50),
    ("p90", Figure::P90),
    ("p99", Figure::P99),
    ("max", Figure::Max),
    ("wait_p99", Figure::WaitP99),
    ("service_p99", Figure::ServiceP99),
];
const RUN_FIGURES: [(&str, &str, Figure); 6] = [
    ("upstream", "peak", Figure::Peak),
    ("upstream", "peak_percent", Figure::PeakPercent),
    ("locks", "held", Figure::Held),
    ("locks", "blocked", Figure::Blocked),
    ("locks", "late", Figure::Late),
    ("lost", "commits", Figure::Commits),
];

impl Figure {
    /// Whether it is a time.
    pub fn is_time(self) -> bool {
        use Figure::{Blocked, Held, Late, Max, P50, P90, P99, ServiceP99, WaitP99};
        matches!(self, P50 | P90 | P99 | Max | WaitP99 | ServiceP99 | Held | Blocked | Late)
    }

    /// Whether it is read from a histogram, and therefore has a phase and a steady counterpart.
    pub fn is_latency(self) -> bool {
        self.is_time() && !matches!(self, Self::Held | Self::Blocked | Self::Late)
    }
}

/// How the measured figure is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the operators say it")]
pub enum Operator {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    More,
    MoreOrEqual,
}

/// Longer ones first: `<=` begins with `<`.
const OPERATORS: [(&str, Operator); 6] = [
    ("==", Operator::Equal),
    ("!=", Operator::NotEqual),
    ("<=", Operator::LessOrEqual),
    (">=", Operator::MoreOrEqual),
    ("<", Operator::Less),
    (">", Operator::More),
];

impl Operator {
    fn holds(self, measured: f64, limit: f64) -> bool {
        match self {
            Self::Equal => (measured - limit).abs() < f64::EPSILON,
            Self::NotEqual => (measured - limit).abs() >= f64::EPSILON,
            Self::Less => measured < limit,
            Self::LessOrEqual => measured <= limit,
            Self::More => measured > limit,
            Self::MoreOrEqual => measured >= limit,
        }
    }
}

/// What it is compared with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Limit {
    /// A number, or milliseconds.
    Value(f64),
    /// So many times the same figure of the steady phases.
    TimesSteady(f64),
}

/// One rule.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// As its author wrote it.
    pub source: String,
    /// What it is about.
    pub subject: Subject,
    /// The figure.
    pub figure: Figure,
    /// The phase it is read in; none is the whole run, or all but the steady phases where those are the yardstick.
    pub phase: Option<String>,
    /// How it is compared.
    pub operator: Operator,
    /// With what.
    pub limit: Limit,
}

/// Where a figure is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope<'a> {
    /// In the whole run.
    Whole,
    /// In the steady phases.
    Steady,
    /// In all others.
    NotSteady,
    /// In this phase.
    Phase(&'a str),
}

/// A way's steady figure so many times, and so many milliseconds, above the best way's was disturbed, or the way is slow as such. Either way it is no
/// yardstick: the slower the way, the more it would allow itself.
const DISTURBED: (f64, f64) = (3.0, 20.0);

/// Who has measured.
pub trait Measured {
    /// The figure; `None` where there was nothing to measure. Times in milliseconds.
    fn figure(&self, subject: &Subject, figure: Figure, scope: Scope<'_>) -> Option<f64>;
}

/// What became of a rule.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// The rule, as its author wrote it.
    pub rule: String,
    /// Whether it held.
    pub held: bool,
    /// What was measured: a number, milliseconds, or seconds of recovery; none if nothing was.
    pub measured: Option<f64>,
    /// What it was compared with, in the same unit; none if the yardstick was not measured.
    pub limit: Option<f64>,
    /// `"ms"`, `"s"` or nothing.
    pub unit: &'static str,
    /// Why it did not hold, where the figures alone do not say.
    pub note: Option<String>,
}

impl Rule {
    /// Reads a rule.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn parse(source: &str) -> Result<Self, String> {
        let (at, text, operator) = OPERATORS
            .iter()
            .filter_map(|(text, operator)| source.find(text).map(|at| (at, *text, *operator)))
            .min_by_key(|(at, text, _)| (*at, std::cmp::Reverse(text.len())))
            .ok_or("there is no comparison in it")?;
        let (left, right) = (source[..at].trim(), source[at + text.len()..].trim());
        let (name, phase) = match left.split_once(" in ") {
            Some((name, phase)) => (name.trim(), Some(phase.trim().to_owned())),
            None => (left, None),
        };
        let (subject, figure) = name.split_once('.').ok_or("a figure is written LANE.FIGURE")?;
        let run = RUN_FIGURES.iter().find(|(s, f, _)| *s == subject && *f == figure);
        let lane = FIGURES.iter().find(|(f, _)| *f == figure);
        let (subject, figure) = match (run, lane) {
            (Some((subject, _, figure)), _) => (Subject::Run((*subject).to_owned()), *figure),
            (None, Some((_, figure))) if !subject.is_empty() => (Subject::Lane(subject.to_owned()), *figure),
            _ => return Err(format!("{name:?} is no figure")),
        };
        let limit = limit(right, figure)?;
        if phase.is_some() && !figure.is_latency() && !matches!(figure, Figure::Failures | Figure::Ok) {
            return Err(format!("{name} is not counted by phase"));
        }
        Ok(Self { source: source.trim().to_owned(), subject, figure, phase, operator, limit })
    }

    /// Whether the steady phases are its yardstick.
    pub fn of_steady(&self) -> bool {
        matches!(self.limit, Limit::TimesSteady(_))
    }

    /// The steady figure it is compared with, if it is.
    pub fn yardstick(&self, by: &impl Measured) -> Option<f64> {
        self.of_steady().then(|| by.figure(&self.subject, self.figure, Scope::Steady)).flatten()
    }

    /// Whether it held; `best` is the lowest yardstick of all ways that were played.
    pub fn judge(&self, by: &impl Measured, best: Option<f64>) -> Verdict {
        let scope = match (&self.phase, self.of_steady()) {
            (Some(phase), _) => Scope::Phase(phase),
            (None, true) => Scope::NotSteady,
            (None, false) => Scope::Whole,
        };
        let measured = by.figure(&self.subject, self.figure, scope);
        let (limit, note) = match self.limit {
            Limit::Value(value) => (Some(value), None),
            Limit::TimesSteady(factor) => {
                let own = self.yardstick(by);
                let note = own.zip(best).and_then(|(own, best)| disturbed(own, best));
                (own.map(|steady| steady * factor), note)
            }
        };
        let within =
            measured.zip(limit).is_some_and(|(measured, limit)| self.operator.holds(measured, limit));
        let unit = if self.figure.is_time() { "ms" } else { "" };
        Verdict { rule: self.source.clone(), held: within && note.is_none(), measured, limit, unit, note }
    }
}

fn disturbed(own: f64, best: f64) -> Option<String> {
    let is = own > best * DISTURBED.0 && own > best + DISTURBED.1;
    is.then(|| format!("its steady phase is no yardstick: {own:.0} ms against {best:.0} ms of the best way; run it again undisturbed"))
}

fn limit(text: &str, figure: Figure) -> Result<Limit, String> {
    if let Some(factor) = text.strip_suffix("steady").map(str::trim) {
        let factor = factor.strip_suffix('*').map_or(factor, str::trim);
        let factor = if factor.is_empty() { Ok(1.0) } else { factor.parse::<f64>() };
        let factor = factor.ok().filter(|factor| factor.is_finite() && *factor >= 0.0);
        return match factor {
            Some(factor) if figure.is_latency() => Ok(Limit::TimesSteady(factor)),
            Some(_) => Err("only latencies are compared with steady".into()),
            None => Err(format!("{text:?} is no multiple of steady: write 1.5 * steady")),
        };
    }
    if figure.is_time() {
        return parse_time(text).map(|time| Limit::Value(time.as_secs_f64() * 1e3));
    }
    text.parse::<f64>()
        .ok()
        .filter(|value| value.is_finite())
        .map(Limit::Value)
        .ok_or(format!("{text:?} is no number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Run;
    impl Measured for Run {
        fn figure(&self, subject: &Subject, figure: Figure, scope: Scope<'_>) -> Option<f64> {
            match (subject, figure, scope) {
                (Subject::Lane(lane), _, _) if lane == "silent" => None,
                (_, Figure::Failures, Scope::Phase("calm")) => Some(0.0),
                (_, Figure::Failures, _) => Some(3.0),
                (_, Figure::P99, Scope::Steady) => Some(10.0),
                (_, Figure::P99, Scope::NotSteady) => Some(15.0),
                (_, Figure::P99, Scope::Whole) => Some(12.0),
                (Subject::Run(_), Figure::Peak, _) => Some(40.0),
                _ => None,
            }
        }
    }

    fn judge(source: &str) -> (bool, Option<f64>) {
        let verdict = Rule::parse(source).unwrap().judge(&Run, None);
        (verdict.held, verdict.measured)
    }

    #[test]
    fn rules_are_judged() {
        for (source, held, measured) in [
            ("web.failures == 0", false, 3.0),
            ("web.failures != 0", true, 3.0),
            ("web.failures in calm == 0", true, 0.0),
            ("web.failures<=3", true, 3.0),
            ("web.failures < 3", false, 3.0),
            ("web.failures > 2", true, 3.0),
            ("web.p99 <= 1.5 * steady", true, 15.0),
            ("web.p99 < 1.5 * steady", false, 15.0),
            ("web.p99 <= steady", false, 15.0),
            ("web.p99 <= 12ms", true, 12.0),
            ("web.p99 >= 0.1s", false, 12.0),
            ("upstream.peak <= 40", true, 40.0),
        ] {
            assert_eq!(judge(source), (held, Some(measured)), "{source}");
        }
    }

    #[test]
    fn a_disturbed_yardstick_holds_nothing() {
        let rule = Rule::parse("web.p99 <= 1.5 * steady").unwrap();
        assert_eq!(rule.yardstick(&Run), Some(10.0));
        assert!(rule.judge(&Run, Some(10.0)).held);
        assert!(rule.judge(&Run, Some(1.0)).held, "nine milliseconds more are no disturbance");
        assert!(
            disturbed(293.0, 6.3).is_some()
                && disturbed(25.0, 6.0).is_none()
                && disturbed(110.0, 60.0).is_none()
        );
    }

    #[test]
    fn what_was_not_measured_does_not_hold() {
        assert_eq!(judge("silent.failures == 0"), (false, None));
        assert_eq!(judge("locks.held <= 3s"), (false, None));
    }

    #[test]
    fn nonsense_is_refused() {
        for source in [
            "",
            "web.failures",
            "web.failures = 0",
            "failures == 0",
            "web.sadness == 0",
            "web.p99 <= 5",
            "web.p99 <= fast",
            "web.failures <= 1.5 * steady",
            "web.failures == many",
            "web.p99 <= x * steady",
            "web.retries in calm == 0",
            "upstream.size == 1",
            ".p99 <= 1s",
        ] {
            assert!(Rule::parse(source).is_err(), "{source}");
        }
    }
}
