//! What a browser loads: files embedded in the binary, behind the password as the API is, so that the browser asks for it once and sends
//! it along with everything the page does.

use std::sync::Arc;

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;

use super::Site;

/// A file: its path, its type, its bytes.
struct File {
    path: &'static str,
    kind: &'static str,
    bytes: &'static [u8],
}

/// The dashboard's files, by `include_bytes!`. A script or style must be a file of its own: the policy allows none inside the page.
const FILES: &[File] = &[File {
    path: "/",
    kind: "text/html; charset=utf-8",
    bytes: b"<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>pgweir</title>\
             <p>pgweir: <a href=\"/api/v1/lanes\">lanes</a>, <a href=\"/api/v1/usage\">usage</a>.</html>\n",
}];

/// A route for each file.
pub(super) fn routes() -> Router<Arc<Site>> {
    FILES.iter().fold(Router::new(), |router, file| {
        router.route(file.path, get(async || ([(CONTENT_TYPE, file.kind)], file.bytes).into_response()))
    })
}
