//! How answers are written.

use axum::Json;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::json;

/// The page loads what this port serves, and nothing else; nobody may frame it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
                      connect-src 'self'; font-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'";

/// A refusal: what is wrong, and what to do about it (may be empty).
pub(super) fn error(status: StatusCode, text: &str, hint: &str) -> Response {
    (status, Json(json!({ "error": text, "hint": hint }))).into_response()
}

/// What every answer bears. No CORS headers: no other origin may read anything.
pub(super) fn secure(headers: &mut HeaderMap) {
    let fixed = [
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
        (REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    ];
    for (name, value) in fixed {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
}

/// OpenMetrics as Prometheus' older text format: there a counter's family has the name of its samples, nothing marks the end, and `le`
/// stands last by custom.
pub(super) fn classic(openmetrics: &str) -> String {
    let mut out = String::with_capacity(openmetrics.len());
    let mut lines = openmetrics.lines().filter(|line| *line != "# EOF").peekable();
    while let Some(line) = lines.next() {
        // HELP comes first, and TYPE, which says whether it is a counter, behind it.
        let kind = if line.starts_with("# TYPE ") { Some(line) } else { lines.peek().copied() };
        let is_counter = kind.is_some_and(|kind| kind.starts_with("# TYPE ") && kind.ends_with(" counter"));
        let head = line.split_at_checked(7).filter(|(word, _)| matches!(*word, "# HELP " | "# TYPE "));
        match head.and_then(|(word, rest)| Some((word, rest.split_once(' ')?))) {
            Some((word, (name, rest))) if is_counter => {
                out.push_str(&format!("{word}{name}_total {rest}\n"));
            }
            _ => match line
                .split_once("_bucket{le=")
                .and_then(|(name, rest)| Some((name, rest.split_once(',')?)))
            {
                Some((name, (bound, rest))) => {
                    let (labels, value) = rest.rsplit_once('}').unwrap_or((rest, ""));
                    out.push_str(&format!("{name}_bucket{{{labels},le={bound}}}{value}\n"));
                }
                None => {
                    out.push_str(line);
                    out.push('\n');
                }
            },
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_named_as_their_samples_in_the_older_format() {
        let openmetrics =
            "# HELP a Some.\n# TYPE a counter\na_total 1\n# HELP b Other.\n# TYPE b gauge\nb 2\n# EOF\n";
        let classic_text =
            "# HELP a_total Some.\n# TYPE a_total counter\na_total 1\n# HELP b Other.\n# TYPE b gauge\nb 2\n";
        assert_eq!(classic(openmetrics), classic_text);
        assert_eq!(classic("h_bucket{le=\"0.5\",lane=\"a}b\"} 3\n"), "h_bucket{lane=\"a}b\",le=\"0.5\"} 3\n");
    }
}
