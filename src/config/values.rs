//! One value each: from TOML to a checked type, or what is wrong with it.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use toml::de::DeValue;

use super::raw::{Fault, kind, suggest};
use super::settings::Endpoint;
use super::units::parse_duration;
use crate::lanes::settings::{Cidr, Glob};
use crate::reason::SqlState;

/// Characters of a glob at most.
const GLOB_CHARS_MAX: usize = 1000;
/// Characters of a name or an address at most: a host name has 253.
const NAME_CHARS_MAX: usize = 300;
/// Bytes of a Unix socket's path at most (`sun_path` less its NUL).
const SOCKET_PATH_MAX: usize = 107;
/// PostgreSQL's own bound of max_connections (MAX_BACKENDS).
pub(super) const CONNECTIONS_MAX: u32 = 262_143;

type Checked<T> = Result<T, Fault>;

/// Any string.
pub(super) fn string(value: &DeValue<'_>) -> Checked<Arc<str>> {
    match value {
        DeValue::String(text) => Ok(text.as_ref().into()),
        other => Err(Fault::new(format!("is {}, must be a string", kind(other)), "put it in double quotes")),
    }
}

/// A string with something in it, and nothing that cannot be shown or sent.
pub(super) fn text(value: &DeValue<'_>) -> Checked<Arc<str>> {
    let text = string(value)?;
    if text.trim().is_empty() {
        return Err(Fault::new("is empty", "write something, or leave the key out"));
    }
    if text.contains('\0') {
        return Err(Fault::new("contains a NUL", "remove it"));
    }
    Ok(text)
}

/// A name: shown in logs and consoles, so one short line without control characters.
pub(super) fn name(value: &DeValue<'_>) -> Checked<Arc<str>> {
    let name = text(value)?;
    if name.chars().any(char::is_control) || name.chars().count() > NAME_CHARS_MAX {
        let hint = format!("at most {NAME_CHARS_MAX} characters, no tabs or line breaks");
        return Err(Fault::new(format!("{:?} is no name", clip(&name)), hint));
    }
    Ok(name)
}

/// The name of a host, without port.
pub(super) fn host(value: &DeValue<'_>) -> Checked<Arc<str>> {
    let host = text(value)?;
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    if host.len() > NAME_CHARS_MAX || !host.bytes().all(is_plain) {
        let text = format!("{:?} is no name of a host", clip(&host));
        return Err(Fault::new(text, "write \"pgweir.example.com\", without http:// and without a port"));
    }
    Ok(host)
}

/// `true` or `false`.
pub(super) fn boolean(value: &DeValue<'_>) -> Checked<bool> {
    match value {
        DeValue::Boolean(yes) => Ok(*yes),
        other => Err(Fault::new(
            format!("is {}, must be true or false", kind(other)),
            "write true or false, without quotes",
        )),
    }
}

/// A whole number between `min` and `max`.
pub(super) fn count(min: u32, max: u32) -> impl Fn(&DeValue<'_>) -> Checked<u32> {
    move |value| {
        let DeValue::Integer(integer) = value else {
            return Err(Fault::new(
                format!("is {}, must be a whole number", kind(value)),
                "write a whole number, without quotes",
            ));
        };
        i128::from_str_radix(integer.as_str(), integer.radix())
            .ok()
            .and_then(|n| u32::try_from(n).ok())
            .filter(|n| (min..=max).contains(n))
            .ok_or_else(|| {
                Fault::new(
                    format!("{} is out of range", clip(integer.as_str())),
                    format!("a whole number from {min} to {max}"),
                )
            })
    }
}

/// A finite number, whole or not.
fn number(value: &DeValue<'_>) -> Checked<f64> {
    let parsed = match value {
        DeValue::Integer(n) => i128::from_str_radix(n.as_str(), n.radix())
            .ok()
            .and_then(|n| i32::try_from(n).ok())
            .map(f64::from),
        DeValue::Float(n) => n.as_str().parse().ok().filter(|n: &f64| n.is_finite()),
        other => {
            return Err(Fault::new(
                format!("is {}, must be a number", kind(other)),
                "write a number, without quotes",
            ));
        }
    };
    parsed.ok_or_else(|| Fault::new("is no usable number", "write a plain number such as 75 or 2.5"))
}

/// More than 0, at most 100.
pub(super) fn percent(value: &DeValue<'_>) -> Checked<f64> {
    let percent = number(value)?;
    if percent > 0.0 && percent <= 100.0 {
        return Ok(percent);
    }
    Err(Fault::new(
        format!("{percent} is no percentage"),
        "a number above 0 and up to 100, in percent of usable connections",
    ))
}

/// Events per second; 0 is no limit.
pub(super) fn rate(value: &DeValue<'_>) -> Checked<Option<f64>> {
    let rate = number(value)?;
    if rate == 0.0 {
        return Ok(None);
    }
    if (0.01..=100_000.0).contains(&rate) {
        return Ok(Some(rate));
    }
    Err(Fault::new(
        format!("{rate} is out of range"),
        "connections per second, from 0.01 to 100000; 0 is no limit",
    ))
}

/// A duration.
pub(super) fn duration(value: &DeValue<'_>) -> Checked<Duration> {
    const HINT: &str =
        "write digits and a unit in quotes: \"250ms\", \"5s\", \"10m\", \"1h\", \"2d\", or \"0\"";
    match value {
        DeValue::String(text) => parse_duration(text).map_err(|message| Fault::new(message, HINT)),
        other => Err(Fault::new(format!("is {}, must be a duration", kind(other)), HINT)),
    }
}

/// A duration that must pass: zero is refused.
pub(super) fn positive_duration(value: &DeValue<'_>) -> Checked<Duration> {
    duration(value).and_then(|d| {
        if d.is_zero() { Err(Fault::new("must not be 0", "write a duration such as \"5s\"")) } else { Ok(d) }
    })
}

/// A duration where 0 means never.
pub(super) fn optional_duration(value: &DeValue<'_>) -> Checked<Option<Duration>> {
    duration(value).map(|d| (!d.is_zero()).then_some(d))
}

/// One of some words.
pub(super) fn word<T: Copy>(words: &[(&'static str, T)]) -> impl Fn(&DeValue<'_>) -> Checked<T> {
    move |value| {
        let text = string(value)?;
        let names: Vec<&str> = words.iter().map(|(name, _)| *name).collect();
        words.iter().find(|(name, _)| *name == &*text).map(|(_, v)| *v).ok_or_else(|| {
            Fault::new(
                format!("{:?} is not one of the words known here", clip(&text)),
                suggest(&text, &names),
            )
        })
    }
}

/// A glob; `case_insensitive` for statements.
pub(super) fn glob(case_insensitive: bool) -> impl Fn(&DeValue<'_>) -> Checked<Glob> {
    move |value| {
        const HINT: &str = "`*` stands for anything, `?` for one character, the rest for itself";
        let text = string(value)?;
        if text.is_empty() {
            return Err(Fault::new(
                "is an empty glob",
                format!("{HINT}; leave the key out to match everything"),
            ));
        }
        if text.chars().count() > GLOB_CHARS_MAX {
            return Err(Fault::new(format!("is a glob of more than {GLOB_CHARS_MAX} characters"), HINT));
        }
        if let Some(bad) = text.chars().find(|c| c.is_control()) {
            return Err(Fault::new(format!("has the control character {bad:?} in a glob"), HINT));
        }
        Ok(Glob { text, case_insensitive })
    }
}

/// A glob on application_name, which may be empty: clients that send none.
pub(super) fn application_glob(value: &DeValue<'_>) -> Checked<Glob> {
    match value {
        DeValue::String(text) if text.is_empty() => Ok(Glob { text: "".into(), case_insensitive: false }),
        _ => glob(false)(value),
    }
}

/// A list, item by item; the first bad item is the fault.
pub(super) fn list<T>(one: impl Fn(&DeValue<'_>) -> Checked<T>) -> impl Fn(&DeValue<'_>) -> Checked<Vec<T>> {
    move |value| {
        let DeValue::Array(items) = value else {
            return Err(Fault::new(format!("is {}, must be a list", kind(value)), "write [\"…\", \"…\"]"));
        };
        items
            .iter()
            .enumerate()
            .map(|(at, item)| {
                one(item.get_ref()).map_err(|f| Fault::new(format!("item {} {}", at + 1, f.message), f.hint))
            })
            .collect()
    }
}

/// An address range, or one address.
pub(super) fn cidr(value: &DeValue<'_>) -> Checked<Cidr> {
    let text = string(value)?;
    let fault =
        |why: String| Fault::new(why, "write an address range such as \"10.0.0.0/8\" or \"fd00::/8\"");
    let (address, prefix) = match text.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix)),
        None => (&*text, None),
    };
    let network: IpAddr =
        address.parse().map_err(|_| fault(format!("{:?} is no IP address", clip(address))))?;
    let bits = if network.is_ipv4() { 32 } else { 128 };
    let prefix = match prefix {
        None => bits,
        Some(prefix) => prefix
            .parse::<u8>()
            .ok()
            .filter(|p| *p <= bits && prefix.bytes().all(|b| b.is_ascii_digit()))
            .ok_or_else(|| fault(format!("/{} is no prefix length from 0 to {bits}", clip(prefix))))?,
    };
    let cidr = Cidr { network: masked(network, prefix), prefix };
    if cidr.network != network {
        return Err(Fault::new(
            format!("{text:?} has bits set to the right of its prefix"),
            format!("did you mean \"{}/{prefix}\" or \"{network}\"?", cidr.network),
        ));
    }
    Ok(cidr)
}

/// `address` with only its leading `prefix` bits.
pub(super) fn masked(address: IpAddr, prefix: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
            IpAddr::V4((u32::from(v4) & mask).into())
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
            IpAddr::V6((u128::from(v6) & mask).into())
        }
    }
}

/// A SQLSTATE that means an error.
pub(super) fn sqlstate(value: &DeValue<'_>) -> Checked<SqlState> {
    let text = match value {
        DeValue::String(text) => text,
        other => {
            return Err(Fault::new(
                format!("is {}, must be a string of five characters", kind(other)),
                "put it in quotes: \"40001\"",
            ));
        }
    };
    let state = SqlState::parse(text).ok_or_else(|| {
        Fault::new(
            format!("{:?} is no SQLSTATE", clip(text)),
            "five digits or upper-case letters, such as \"40001\" (Odoo retries) or \"25P03\" (it does not)",
        )
    })?;
    if ["00", "01", "02"].contains(&&state.as_str()[..2]) {
        return Err(Fault::new(
            format!("{state} does not mean an error"),
            "a rolled-back transaction must not look like a success; use \"40001\"",
        ));
    }
    Ok(state)
}

/// A path; a relative one starts at the configuration file's directory.
pub(super) fn path(config: &Path) -> impl Fn(&DeValue<'_>) -> Checked<PathBuf> {
    let base = config.parent().map(Path::to_owned).unwrap_or_default();
    move |value| text(value).map(|text| base.join(&*text))
}

/// `host:port`, or `unix:/directory` with an optional `:port`.
pub(super) fn endpoint(unix_port: u16) -> impl Fn(&DeValue<'_>) -> Checked<(Endpoint, Arc<str>)> {
    move |value| {
        let text = name(value)?;
        let endpoint = match text.strip_prefix("unix:") {
            Some(rest) => unix_endpoint(rest, unix_port),
            None => tcp_endpoint(&text),
        }?;
        Ok((endpoint, text))
    }
}

/// One [`endpoint`], or a list of up to `max`, each of them once.
pub(super) fn endpoints(unix_port: u16, max: usize) -> impl Fn(&DeValue<'_>) -> Checked<Vec<Endpoint>> {
    move |value| {
        let one = endpoint(unix_port);
        if !value.is_array() {
            return one(value).map(|(endpoint, _)| vec![endpoint]);
        }
        let all: Vec<Endpoint> = list(one)(value)?.into_iter().map(|(endpoint, _)| endpoint).collect();
        if all.is_empty() || all.len() > max {
            let text = format!("has {} addresses", all.len());
            return Err(Fault::new(text, format!("write one to {max} of them")));
        }
        let twice = all.iter().enumerate().find(|(at, one)| all[..*at].contains(one));
        match twice {
            Some((_, one)) => Err(Fault::new(format!("has {one} twice"), "write each server once")),
            None => Ok(all),
        }
    }
}

fn port(text: &str) -> Option<u16> {
    text.parse().ok().filter(|p| *p != 0 && text.bytes().all(|b| b.is_ascii_digit()))
}

fn unix_endpoint(rest: &str, default_port: u16) -> Checked<Endpoint> {
    let (directory, number) = match rest.rsplit_once(':') {
        Some((directory, number)) => match port(number) {
            Some(number) => (directory, number),
            None => {
                return Err(Fault::new(
                    format!("{:?} is no port", clip(number)),
                    "write unix:/directory or unix:/directory:5432",
                ));
            }
        },
        None => (rest, default_port),
    };
    if !directory.starts_with('/') {
        return Err(Fault::new(
            format!("{:?} is no absolute path", clip(directory)),
            "write unix:/run/pgweir: the directory, not the socket",
        ));
    }
    let endpoint = Endpoint::Unix { directory: directory.into(), port: number };
    match endpoint.socket_path() {
        Some(path) if path.as_os_str().len() > SOCKET_PATH_MAX => Err(Fault::new(
            format!("makes a socket path of more than {SOCKET_PATH_MAX} bytes"),
            "use a shorter directory",
        )),
        _ => Ok(endpoint),
    }
}

fn tcp_endpoint(text: &str) -> Checked<Endpoint> {
    const HINT: &str = "write host:port such as \"127.0.0.1:6432\", \"[::1]:6432\" or \"0.0.0.0:6432\" (all of IPv4), or unix:/directory";
    let Some((host, number)) = text.rsplit_once(':') else {
        return Err(Fault::new(format!("{:?} has no port", clip(text)), HINT));
    };
    let Some(port) = port(number) else {
        return Err(Fault::new(format!("{:?} is no port from 1 to 65535", clip(number)), HINT));
    };
    let bracketed = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    let valid = match bracketed {
        Some(inner) => inner.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            !host.is_empty()
                && host.len() <= 253
                && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
        }
    };
    if !valid {
        return Err(Fault::new(format!("{:?} is no host", clip(host)), HINT));
    }
    Ok(Endpoint::Tcp { host: bracketed.unwrap_or(host).into(), port })
}

/// The name of a lane: it stands in commands, URLs and metric labels.
pub(super) fn lane_name(value: &DeValue<'_>) -> Checked<Arc<str>> {
    let name = name(value)?;
    let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if !plain || name.len() > 63 || !name.starts_with(|c: char| c.is_ascii_alphabetic()) {
        return Err(Fault::new(
            format!("{:?} is no name for a lane", clip(&name)),
            "a letter, then up to 62 letters, digits, `_` or `-`",
        ));
    }
    if ["bypass", "all"].iter().any(|reserved| name.eq_ignore_ascii_case(reserved)) {
        return Err(Fault::new(format!("{name:?} is a word of pgweir's own"), "choose another name"));
    }
    Ok(name)
}

/// At most 80 characters of what somebody wrote, for a message.
pub(super) fn clip(text: &str) -> String {
    if text.chars().count() <= 80 { text.to_owned() } else { text.chars().take(79).chain(['…']).collect() }
}
