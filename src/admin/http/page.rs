//! What a browser loads: files embedded in the binary, behind the password as the API is, so that the browser asks for it once and sends
//! it along with everything the page does.

use std::sync::Arc;

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;

use super::Site;
use crate::page;

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const JS: &str = "text/javascript; charset=utf-8";

/// The dashboard: path, type, bytes. A script or style must be a file of its own: the policy allows none inside the page.
const FILES: &[(&str, &str, &str)] = &[
    ("/", HTML, include_str!("dashboard/index.html")),
    ("/page/dashboard.css", CSS, include_str!("dashboard/dashboard.css")),
    ("/page/main.js", JS, include_str!("dashboard/main.js")),
    ("/page/ask.js", JS, include_str!("dashboard/ask.js")),
    ("/page/dom.js", JS, include_str!("dashboard/dom.js")),
    ("/page/lanes.js", JS, include_str!("dashboard/lanes.js")),
    ("/page/leaks.js", JS, include_str!("dashboard/leaks.js")),
    ("/page/live.js", JS, include_str!("dashboard/live.js")),
    ("/page/log.js", JS, include_str!("dashboard/log.js")),
    ("/page/usage.js", JS, include_str!("dashboard/usage.js")),
];

/// A route for each file: the dashboard's, and those it shares with the reports.
pub(super) fn routes() -> Router<Arc<Site>> {
    let own = FILES.iter().map(|(path, kind, text)| ((*path).to_owned(), *kind, *text));
    let shared = page::FILES.iter().map(|(name, kind, text)| (format!("/page/{name}"), *kind, *text));
    own.chain(shared).fold(Router::new(), |router, (path, kind, text)| {
        router.route(&path, get(async move || ([(CONTENT_TYPE, kind)], text).into_response()))
    })
}
