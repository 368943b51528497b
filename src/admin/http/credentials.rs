//! Who asks: `Authorization: Basic` with name and password, or `Bearer` with the password alone. Pure.

use axum::http::header::{AUTHORIZATION, USER_AGENT};
use axum::http::{HeaderMap, HeaderName};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use zeroize::Zeroizing;

use crate::admin::AdminUser;
use crate::auth::fingerprint::Given;

/// Bytes of the header at most.
const LEN_MAX: usize = 4096;
/// Characters of a program's name at most.
const PROGRAM_LEN_MAX: usize = 32;

/// Who did not prove to be anybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// No password came along: it is asked for.
    Silent,
    /// It was wrong, or written wrongly.
    Wrong,
}

/// The user whose password came along. Every user's is compared, so that the time tells neither who exists nor how far it fitted. A
/// bearer is the first of the file who has that password.
///
/// # Errors
/// See [`Unknown`].
pub fn user<'a>(headers: &HeaderMap, users: &'a [AdminUser]) -> Result<&'a AdminUser, Unknown> {
    let mut said = headers.get_all(AUTHORIZATION).iter();
    let header = said.next().ok_or(Unknown::Silent)?;
    if said.next().is_some() || header.len() > LEN_MAX {
        return Err(Unknown::Wrong);
    }
    let text = std::str::from_utf8(header.as_bytes()).map_err(|_| Unknown::Wrong)?;
    let (scheme, rest) = text.split_once(' ').ok_or(Unknown::Wrong)?;
    let (name, given) = if scheme.eq_ignore_ascii_case("basic") {
        let (name, given) = basic(rest.trim()).ok_or(Unknown::Wrong)?;
        (Some(name), given)
    } else if scheme.eq_ignore_ascii_case("bearer") {
        (None, Given::new(rest.trim()))
    } else {
        return Err(Unknown::Wrong);
    };
    let mut found = None;
    for user in users {
        let fits = user.fingerprint.fits(&given) & name.as_ref().is_none_or(|name| user.name == **name);
        if fits && found.is_none() {
            found = Some(user);
        }
    }
    found.ok_or(Unknown::Wrong)
}

/// RFC 7617. Nothing but UTF-8, as the challenge says.
fn basic(text: &str) -> Option<(Zeroizing<String>, Given)> {
    let bytes = Zeroizing::new(BASE64.decode(text).ok()?);
    let (name, password) = std::str::from_utf8(&bytes).ok()?.split_once(':')?;
    Some((Zeroizing::new(name.to_owned()), Given::new(password)))
}

/// The name of an operator in the timeline: "admin (curl)", as the console has "admin (psql)". What the program calls itself is only
/// ever shown, and cut.
pub fn operator_name(user: &str, headers: &HeaderMap) -> String {
    let from_page = headers.contains_key(HeaderName::from_static("sec-fetch-site"));
    let agent = headers.get(USER_AGENT).and_then(|agent| agent.to_str().ok()).unwrap_or_default();
    let is_plain = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let program: String = agent.chars().take_while(is_plain).take(PROGRAM_LEN_MAX).collect();
    match program.as_str() {
        _ if from_page => format!("{user} (browser)"),
        "Mozilla" => format!("{user} (browser)"),
        "" => format!("{user} (http)"),
        program => format!("{user} ({program})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn users() -> Vec<AdminUser> {
        let user =
            |name, password, may_change| AdminUser::new(name, password, may_change).expect("random bytes");
        vec![user("admin", "pa:ss'wörd", true), user("viewer", "look", false), user("other", "look", true)]
    }

    fn with(authorization: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let value = axum::http::HeaderValue::from_bytes(authorization.as_bytes());
        headers.insert(AUTHORIZATION, value.expect("a value"));
        headers
    }

    #[test]
    fn a_password_names_its_user() {
        let users = users();
        let who = |authorization: &str| user(&with(authorization), &users).map(|user| user.name.as_str());
        let basic = |text: &str| format!("Basic {}", BASE64.encode(text));
        assert_eq!(who(&basic("admin:pa:ss'wörd")), Ok("admin"));
        assert_eq!(who(&basic("other:look").replace("Basic", "bASIC")), Ok("other"));
        assert_eq!(who("Bearer look"), Ok("viewer"));
        for wrong in ["admin:look", "admin:", ":look", "nobody:look", "viewer", "", "Admin:pa:ss'wörd"] {
            assert_eq!(who(&basic(wrong)), Err(Unknown::Wrong), "{wrong}");
        }
        for wrong in
            ["Bearer", "Bearer ", "Bearer nothing", "Basic ???", "Digest look", "look", &"x".repeat(5000)]
        {
            assert_eq!(who(wrong), Err(Unknown::Wrong), "{wrong}");
        }
        let mut twice = with("Bearer look");
        twice.append(AUTHORIZATION, axum::http::HeaderValue::from_static("Bearer look"));
        assert_eq!(user(&twice, &users).err(), Some(Unknown::Wrong));
        assert_eq!(user(&HeaderMap::new(), &users).err(), Some(Unknown::Silent));
    }

    proptest::proptest! {
        #[test]
        fn no_header_panics_or_logs_in(bytes: Vec<u8>, scheme in "(Basic |Bearer |basic|[a-z ]*)", text in "[A-Za-z0-9+/=:]*") {
            // Deriving their verifiers takes a while: once is enough.
            static USERS: std::sync::LazyLock<Vec<AdminUser>> = std::sync::LazyLock::new(users);
            let users = &*USERS;
            for value in [bytes, format!("{scheme}{text}").into_bytes()] {
                let Ok(value) = axum::http::HeaderValue::from_bytes(&value) else { continue };
                let mut headers = HeaderMap::new();
                headers.insert(AUTHORIZATION, value.clone());
                headers.insert(USER_AGENT, value);
                let found = user(&headers, users).map(|user| user.name.clone());
                proptest::prop_assert!(found.is_err() || text == "look");
                proptest::prop_assert!(operator_name("admin", &headers).len() < 64);
            }
        }
    }

    #[test]
    fn the_timeline_says_by_what_it_was_done() {
        let name = |agent: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(USER_AGENT, axum::http::HeaderValue::from_static(agent));
            operator_name("admin", &headers)
        };
        assert_eq!(name("curl/8.5.0"), "admin (curl)");
        assert_eq!(name("Mozilla/5.0 (X11; Linux)"), "admin (browser)");
        assert_eq!(name("(x) freeze"), "admin (http)");
        assert_eq!(operator_name("admin", &HeaderMap::new()), "admin (http)");
    }
}
