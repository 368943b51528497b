//! The client's address behind its application_name upstream, so that PostgreSQL's own log and pg_stat_activity tell real clients apart.
//!
//! The client is told the name it gave: a report of the tagged name is replaced. What it sets later is its own and stays as it is. Pure.

use std::net::IpAddr;

use crate::wire::reply;
use crate::wire::startup::Startup;

/// PostgreSQL's NAMEDATALEN less one.
const NAME_MAX: usize = 63;
/// The parameter.
const NAME: &[u8] = b"application_name";

/// A name upstream, and what it stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tag {
    /// As PostgreSQL has it.
    shown: String,
    /// As the client has it.
    own: String,
}

impl Tag {
    /// Puts the address behind the name of a startup packet, which is changed for upstream only: what it says of the client stays. The name
    /// gives way where both do not fit. None, and nothing changed: for replication, whose name decides about synchronous commits; where
    /// `options` may set the name; and for names that are not plain ASCII, of which PostgreSQL makes something of its own.
    pub fn put(startup: &mut Startup, address: Option<IpAddr>) -> Option<Self> {
        let options = startup.parameters.iter().filter(|(name, _)| name == "options");
        let may_be_set = options.into_iter().any(|(_, value)| value.contains("application_name"));
        if startup.replication() != Some(false) || may_be_set {
            return None;
        }
        let name = startup.application_name();
        if !name.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
            return None;
        }
        let suffix =
            address.map_or_else(|| "@unix".to_owned(), |address| format!("@{}", address.to_canonical()));
        let suffix = if name.is_empty() { suffix } else { format!(" {suffix}") };
        let own = &name[..name.len().min(NAME_MAX)];
        let shown = format!("{}{suffix}", &own[..own.len().min(NAME_MAX - suffix.len())]);
        let tag = Self { own: own.to_owned(), shown };
        startup.raw = startup.renamed(&tag.shown)?;
        Some(tag)
    }

    /// The value to tell a client of a reported one.
    pub fn own_of<'a>(&'a self, name: &[u8], value: &'a [u8]) -> &'a [u8] {
        if name == NAME && value == self.shown.as_bytes() { self.own.as_bytes() } else { value }
    }

    /// The ParameterStatus to send instead, where one reports the tagged name.
    pub fn replaced(&self, name: &[u8], value: &[u8]) -> Option<Vec<u8>> {
        (name == NAME && value == self.shown.as_bytes()).then(|| {
            let mut out = Vec::new();
            reply::parameter_status(&mut out, "application_name", &self.own);
            out
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::startup::{FirstPacket, parse};

    fn startup(parameters: &str) -> Startup {
        let body = format!("user\0odoo\0{parameters}\0");
        let mut packet = u32::try_from(8 + body.len()).expect("short").to_be_bytes().to_vec();
        packet.extend_from_slice(&(3_u32 << 16).to_be_bytes());
        packet.extend_from_slice(body.as_bytes());
        match parse(&packet) {
            Ok(FirstPacket::Startup(startup)) => startup,
            other => panic!("{other:?}"),
        }
    }

    fn upstream_of(startup: &Startup) -> String {
        match parse(&startup.raw) {
            Ok(FirstPacket::Startup(startup)) => startup.application_name().to_owned(),
            other => panic!("{other:?}"),
        }
    }

    const ADDRESS: Option<IpAddr> = Some(IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 5)));

    #[test]
    fn upstream_sees_the_address_and_the_client_its_own_name() {
        let mut startup = startup("application_name\0odoo-7\0database\0prod\0");
        let tag = Tag::put(&mut startup, ADDRESS).expect("tagged");
        assert_eq!(
            (upstream_of(&startup).as_str(), startup.application_name()),
            ("odoo-7 @10.0.0.5", "odoo-7")
        );
        assert_eq!(tag.own_of(NAME, b"odoo-7 @10.0.0.5"), b"odoo-7");
        assert_eq!(tag.own_of(NAME, b"another"), b"another");
        assert!(
            tag.replaced(b"TimeZone", b"odoo-7 @10.0.0.5").is_none()
                && tag.replaced(NAME, b"odoo-7").is_none()
        );
        assert_eq!(
            tag.replaced(NAME, b"odoo-7 @10.0.0.5").expect("replaced")[5..],
            *b"application_name\0odoo-7\0"
        );
    }

    #[test]
    fn a_long_name_gives_way_to_the_address() {
        let long = "x".repeat(80);
        let mut startup = startup(&format!("application_name\0{long}\0"));
        let tag = Tag::put(&mut startup, Some("2001:db8::1".parse().expect("an address"))).expect("tagged");
        let shown = upstream_of(&startup);
        assert_eq!((shown.len(), shown.ends_with("x @2001:db8::1")), (NAME_MAX, true));
        assert_eq!(tag.own_of(NAME, shown.as_bytes()), &long.as_bytes()[..NAME_MAX]);
    }

    #[test]
    fn who_has_no_name_or_no_address_is_told_apart_all_the_same() {
        let mut nameless = startup("");
        Tag::put(&mut nameless, ADDRESS).expect("tagged");
        assert_eq!(upstream_of(&nameless), "@10.0.0.5");
        let mut local = startup("application_name\0psql\0");
        Tag::put(&mut local, None).expect("tagged");
        assert_eq!(upstream_of(&local), "psql @unix");
    }

    #[test]
    fn names_that_decide_something_or_that_postgresql_changes_are_left_alone() {
        for parameters in [
            "application_name\0standby1\0replication\0on\0",
            "options\0-c application_name=batch\0",
            "application_name\0caf\u{e9}\0",
        ] {
            let mut startup = startup(parameters);
            let before = startup.raw.clone();
            assert_eq!(Tag::put(&mut startup, ADDRESS), None, "{parameters:?}");
            assert_eq!(startup.raw, before);
        }
    }
}
