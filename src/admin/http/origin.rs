//! Which pages may talk to this port: none but its own. Pure.
//!
//! A browser sends the password it knows with whatever any page asks of this address, and a name that somebody else's DNS lets point here
//! makes a foreign page look like ours. So the name in `Host` must be one of ours, and `Origin` must be the same.

use std::net::IpAddr;

use axum::http::header::{HOST, ORIGIN};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, Method, Uri};

const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");

/// Why a request is refused: it came under a foreign name, or from a foreign page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Foreign {
    /// `Host` is missing, doubled, no name, or not ours.
    Host,
    /// `Origin`, or what the browser says of the page that asks.
    Origin,
}

/// Whether `Host` is an address, localhost, or one of `hosts` (the port does not matter: it may be a tunnel's).
///
/// # Errors
/// [`Foreign::Host`].
pub fn check_host(uri: &Uri, headers: &HeaderMap, hosts: &[String]) -> Result<(), Foreign> {
    let host = host(headers).ok_or(Foreign::Host)?;
    // A request to a proxy names the host twice.
    let named =
        uri.authority().is_none_or(|authority| authority.as_str().eq_ignore_ascii_case(host.as_str()));
    if named && is_ours(host.host(), hosts) { Ok(()) } else { Err(Foreign::Host) }
}

/// Whether the request comes from our own page, or from no page at all.
///
/// # Errors
/// [`Foreign::Origin`].
pub fn check_origin(method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<(), Foreign> {
    let mut origins = headers.get_all(ORIGIN).iter();
    if let Some(origin) = origins.next() {
        let text = origin.to_str().map_err(|_| Foreign::Origin)?;
        let of_page = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
        let same =
            of_page.zip(host(headers)).is_some_and(|(page, host)| page.eq_ignore_ascii_case(host.as_str()));
        if !same || origins.next().is_some() {
            return Err(Foreign::Origin);
        }
    }
    let says = |name: HeaderName, value: &str| headers.get(name).is_some_and(|said| said == value);
    // A link to the page from anywhere is welcome: it shows, and does nothing.
    let follows_link = *method == Method::GET && uri.path() == "/" && says(FETCH_MODE, "navigate");
    if (says(FETCH_SITE, "cross-site") || says(FETCH_SITE, "same-site")) && !follows_link {
        return Err(Foreign::Origin);
    }
    Ok(())
}

fn host(headers: &HeaderMap) -> Option<Authority> {
    let mut hosts = headers.get_all(HOST).iter();
    let host = hosts.next()?.to_str().ok()?;
    if hosts.next().is_some() || host.contains('@') {
        return None;
    }
    host.parse().ok()
}

fn is_ours(host: &str, hosts: &[String]) -> bool {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let name = host.strip_suffix('.').unwrap_or(host);
    bare.parse::<IpAddr>().is_ok()
        || name.eq_ignore_ascii_case("localhost")
        || hosts.iter().any(|known| known.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(HeaderName, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(name, value.parse().expect("a value"));
        }
        headers
    }

    #[test]
    fn a_host_is_an_address_localhost_or_configured() {
        let check = |host: &str| {
            check_host(&Uri::from_static("/"), &headers(&[(HOST, host)]), &["weir.example".to_owned()])
                .is_ok()
        };
        for ours in [
            "127.0.0.1",
            "127.0.0.1:6433",
            "[::1]:6433",
            "10.0.0.7",
            "localhost:9",
            "LOCALHOST",
            "localhost.",
        ] {
            assert!(check(ours), "{ours}");
        }
        assert!(check("weir.example") && check("Weir.Example.:6433"));
        for foreign in [
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "weir.example.evil",
            "127.0.0.1@evil.example",
            "evil.example@127.0.0.1",
            "",
            "a b",
            "127.1",
            "2130706433",
        ] {
            assert!(!check(foreign), "{foreign}");
        }
        let twice = headers(&[(HOST, "localhost"), (HOST, "evil.example")]);
        assert_eq!(check_host(&Uri::from_static("/"), &twice, &[]), Err(Foreign::Host));
        assert_eq!(check_host(&Uri::from_static("/"), &HeaderMap::new(), &[]), Err(Foreign::Host));
        let absolute = Uri::from_static("http://evil.example/");
        assert_eq!(check_host(&absolute, &headers(&[(HOST, "localhost")]), &[]), Err(Foreign::Host));
    }

    #[test]
    fn an_origin_is_the_host() {
        let check = |method: Method, path: &'static str, pairs: &[(HeaderName, &str)]| {
            let pairs = [&[(HOST, "localhost:6433")], pairs].concat();
            check_origin(&method, &Uri::from_static(path), &headers(&pairs)).is_ok()
        };
        let post = |pairs: &[(HeaderName, &str)]| check(Method::POST, "/api/v1/freeze", pairs);
        assert!(
            post(&[])
                && post(&[(ORIGIN, "http://localhost:6433")])
                && post(&[(ORIGIN, "https://LocalHost:6433")])
        );
        for foreign in
            ["http://evil.example", "null", "http://localhost", "http://localhost:80", "localhost:6433", ""]
        {
            assert!(!post(&[(ORIGIN, foreign)]), "{foreign}");
        }
        assert!(!post(&[(ORIGIN, "http://localhost:6433"), (ORIGIN, "http://evil.example")]));
        assert!(post(&[(FETCH_SITE, "same-origin")]) && post(&[(FETCH_SITE, "none")]));
        assert!(!post(&[(FETCH_SITE, "cross-site")]) && !post(&[(FETCH_SITE, "same-site")]));
        let link = [(FETCH_SITE, "cross-site"), (FETCH_MODE, "navigate")];
        assert!(check(Method::GET, "/", &link));
        assert!(!check(Method::GET, "/api/v1/lanes", &link) && !check(Method::POST, "/", &link));
        assert!(!check(Method::GET, "/", &[(FETCH_SITE, "cross-site"), (FETCH_MODE, "no-cors")]));
    }
}
