//! Which rules and lanes anything can reach, given that lanes and rules are tried in file order and the first match wins.

use super::glob::{covers, overlap};
use super::values::masked;
use crate::lanes::settings::{ApplicationSettings, Cidr, Glob, LaneSettings, Rule};

/// Whether every link, at every statement, that `inner` matches is matched by `outer`.
pub(super) fn rule_covers(outer: &Rule, inner: &Rule) -> bool {
    named(outer.application.as_ref(), inner.application.as_ref())
        && named(outer.user.as_ref(), inner.user.as_ref())
        && named(outer.database.as_ref(), inner.database.as_ref())
        && looked_up(outer.process.as_ref(), inner.process.as_ref())
        && looked_up(outer.statement.as_ref(), inner.statement.as_ref())
        && outer.address.is_none_or(|o| inner.address.is_some_and(|i| contains(o, i)))
        && (outer.listener.is_none() || outer.listener == inner.listener)
        && (outer.replication.is_none() || outer.replication == inner.replication)
}

/// Every link has these, be they empty: `*` asks for nothing.
fn named(outer: Option<&Glob>, inner: Option<&Glob>) -> bool {
    outer.is_none_or(|o| o.text.chars().all(|c| c == '*') && !o.text.is_empty()) || looked_up(outer, inner)
}

/// Not every link has a known process or a statement: `*` asks for one.
fn looked_up(outer: Option<&Glob>, inner: Option<&Glob>) -> bool {
    outer.is_none_or(|o| inner.is_some_and(|i| covers(o, i)))
}

fn contains(outer: Cidr, inner: Cidr) -> bool {
    outer.network.is_ipv4() == inner.network.is_ipv4()
        && outer.prefix <= inner.prefix
        && masked(inner.network, outer.prefix) == outer.network
}

/// Indices of the lanes that links of `application` can come into. `bound` says of a lane whether a listener leads there.
pub(super) fn lanes_of(
    application: &ApplicationSettings,
    lanes: &[LaneSettings],
    bound: impl Fn(&LaneSettings) -> bool,
) -> Vec<usize> {
    let everyone = Rule { application: Some(application.pattern.clone()), ..Rule::default() };
    // From the first rule that takes all of them on, later rules and the default lane see none.
    let last = lanes.iter().position(|lane| lane.rules.iter().any(|r| rule_covers(r, &everyone)));
    lanes
        .iter()
        .enumerate()
        .filter(|(at, lane)| {
            let open = last.is_none_or(|last| *at <= last);
            bound(lane)
                || (open && lane.rules.iter().any(|r| may_match(r, application)))
                || (lane.default && last.is_none())
        })
        .map(|(at, _)| at)
        .collect()
}

/// Replication links are another pool: they count against their lane only.
fn may_match(rule: &Rule, application: &ApplicationSettings) -> bool {
    rule.replication != Some(true)
        && rule.application.as_ref().is_none_or(|glob| overlap(glob, &application.pattern))
}

/// Whether a lane is for replication links only, which PostgreSQL counts in another pool.
pub(super) fn replication_only(lane: &LaneSettings) -> bool {
    !lane.default && !lane.rules.is_empty() && lane.rules.iter().all(|r| r.replication == Some(true))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn glob(text: &str) -> Option<Glob> {
        Some(Glob { text: text.into(), case_insensitive: false })
    }

    fn cidr(text: &str, prefix: u8) -> Option<Cidr> {
        Some(Cidr { network: text.parse().expect("an address"), prefix })
    }

    #[test]
    fn a_rule_with_fewer_demands_covers_one_with_more() {
        let all = Rule::default();
        let star = Rule { application: glob("*"), ..Rule::default() };
        let odoo = Rule { application: glob("odoo-*"), ..Rule::default() };
        let odoo_user = Rule { user: glob("odoo"), ..odoo.clone() };
        let net = Rule { address: cidr("10.0.0.0", 8), ..Rule::default() };
        let host = Rule { address: cidr("10.1.2.3", 32), ..Rule::default() };
        let any_process = Rule { process: glob("*"), ..Rule::default() };
        let listen = Rule { statement: glob("listen *"), ..Rule::default() };
        for (outer, inner, expected) in [
            (&all, &odoo, true),
            (&star, &all, true),
            (&star, &listen, true),
            (&odoo, &odoo_user, true),
            (&odoo_user, &odoo, false),
            (&net, &host, true),
            (&host, &net, false),
            (&any_process, &all, false),
            (&listen, &all, false),
            (&odoo, &odoo, true),
        ] {
            assert_eq!(rule_covers(outer, inner), expected, "{outer:?} over {inner:?}");
        }
    }
}
