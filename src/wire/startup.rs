//! The first packet of a connection ("Start-up", "StartupMessage", "CancelRequest", "SSLRequest", "GSSENCRequest").

use super::frame::split_cstr;
use crate::reason::Reason;

/// Code of a CancelRequest.
pub const CANCEL_CODE: u32 = 80_877_102;
/// Code of an SSLRequest.
pub const SSL_CODE: u32 = 80_877_103;
/// Code of a GSSENCRequest.
pub const GSSENC_CODE: u32 = 80_877_104;
/// PostgreSQL's MAX_STARTUP_PACKET_LENGTH, in bytes.
pub const STARTUP_LEN_MAX: u32 = 10_000;
/// How names of protocol options begin.
const OPTION_PREFIX: &str = "_pq_.";
/// How a client names itself.
const APPLICATION_NAME: &str = "application_name";
/// Longest cancel key, in bytes (protocol 3.2).
pub const CANCEL_KEY_LEN_MAX: usize = 256;

/// A client's first packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FirstPacket {
    /// Asks for TLS.
    Ssl,
    /// Asks for GSSAPI encryption.
    GssEnc,
    /// Cancels a query elsewhere.
    Cancel {
        /// Backend pid.
        pid: i32,
        /// Its secret: 4 bytes, or up to 256 with protocol 3.2.
        key: Vec<u8>,
    },
    /// Begins a session.
    Startup(Startup),
}

/// A StartupMessage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Startup {
    /// Minor protocol version asked for; the major is 3.
    pub minor: u16,
    /// The whole packet with its length, as it came: it goes upstream unchanged.
    pub raw: Vec<u8>,
    /// Name and value pairs, in order.
    pub parameters: Vec<(String, String)>,
}

impl Startup {
    /// The last value of a parameter, as PostgreSQL takes it.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.parameters.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The role that logs in.
    pub fn user(&self) -> &str {
        self.get("user").unwrap_or("")
    }

    /// The database: by default the user's name.
    pub fn database(&self) -> &str {
        match self.get("database") {
            Some(name) if !name.is_empty() => name,
            _ => self.user(),
        }
    }

    /// The raw application_name, empty when none was sent. `options=-c application_name=…` counts as well: libpq's PGOPTIONS.
    pub fn application_name(&self) -> &str {
        self.get(APPLICATION_NAME).unwrap_or("")
    }

    /// Names of protocol options asked for (`_pq_.…`).
    pub fn protocol_options(&self) -> Vec<String> {
        let names = self.parameters.iter().map(|(name, _)| name);
        names.filter(|name| name.starts_with(OPTION_PREFIX)).cloned().collect()
    }

    /// Makes this a packet of protocol 3.0 without protocol options, for an answer that cannot wait for PostgreSQL's. Gives the options
    /// taken out, where anything had to be changed.
    pub fn settle_for_3_0(&mut self) -> Option<Vec<String>> {
        let unknown = self.protocol_options();
        if self.minor == 0 && unknown.is_empty() {
            return None;
        }
        let mut raw = vec![0; 8];
        let mut rest = self.raw.get(8..).unwrap_or_default();
        while let Some((name, behind)) = split_cstr(rest)
            && !name.is_empty()
            && let Some((value, behind)) = split_cstr(behind)
        {
            if !name.starts_with(OPTION_PREFIX.as_bytes()) {
                raw.extend(name.iter().chain(&[0]).chain(value).chain(&[0]));
            }
            rest = behind;
        }
        raw.push(0);
        // Not longer than the packet that came.
        let len = u32::try_from(raw.len()).unwrap_or(0);
        raw[..4].copy_from_slice(&len.to_be_bytes());
        raw[4..8].copy_from_slice(&(3_u32 << 16).to_be_bytes());
        self.parameters.retain(|(name, _)| !name.starts_with(OPTION_PREFIX));
        self.minor = 0;
        self.raw = raw;
        Some(unknown)
    }

    /// The packet with this application_name in place of the client's, behind everything else; none where the packet would be too long.
    pub fn renamed(&self, application: &str) -> Option<Vec<u8>> {
        let mut raw = self.raw.get(..8)?.to_vec();
        let mut rest = self.raw.get(8..)?;
        while let Some((name, behind)) = split_cstr(rest)
            && !name.is_empty()
            && let Some((value, behind)) = split_cstr(behind)
        {
            if name != APPLICATION_NAME.as_bytes() {
                raw.extend(name.iter().chain(&[0]).chain(value).chain(&[0]));
            }
            rest = behind;
        }
        let value = application.as_bytes().split(|byte| *byte == 0).next().unwrap_or_default();
        raw.extend(APPLICATION_NAME.as_bytes().iter().chain(&[0]).chain(value).chain(&[0, 0]));
        let len = u32::try_from(raw.len()).ok().filter(|len| *len <= STARTUP_LEN_MAX)?;
        raw[..4].copy_from_slice(&len.to_be_bytes());
        Some(raw)
    }

    /// Whether the session is for replication: `replication` with a boolean that is true, or `database`, the last one counting. None
    /// where any of its values is neither: PostgreSQL refuses that (ProcessStartupPacket, SQLSTATE 22023), and whoever took it for true
    /// would let an ordinary session into the lane of replication.
    pub fn replication(&self) -> Option<bool> {
        let mut values = self.parameters.iter().filter(|(name, _)| name == "replication");
        values.try_fold(false, |_, (_, value)| if value == "database" { Some(true) } else { boolean(value) })
    }
}

/// PostgreSQL's parse_bool: beginnings of true, false, yes, no, on and off that no other word has, in any case, and 1 and 0.
fn boolean(text: &str) -> Option<bool> {
    const WORDS: [(&str, usize, bool); 8] = [
        ("true", 1, true),
        ("false", 1, false),
        ("yes", 1, true),
        ("no", 1, false),
        ("on", 2, true),
        ("off", 2, false),
        ("1", 1, true),
        ("0", 1, false),
    ];
    let begins = |word: &str| word.get(..text.len()).is_some_and(|head| head.eq_ignore_ascii_case(text));
    let found = WORDS.iter().find(|(word, least, _)| text.len() >= *least && begins(word));
    found.map(|(_, _, value)| *value)
}

/// Checks a first packet's length field, so that its body may be read.
///
/// # Errors
/// `Malformed` below 8 bytes, `Oversized` above [`STARTUP_LEN_MAX`].
pub fn check_len(len: u32) -> Result<usize, Reason> {
    match len {
        0..8 => Err(Reason::Malformed),
        8..=STARTUP_LEN_MAX => Ok(len as usize),
        _ => Err(Reason::Oversized),
    }
}

/// Parses a whole first packet, length included.
///
/// # Errors
/// `Malformed` for bytes that are none, `Unsupported` for a protocol other than 3.x.
pub fn parse(packet: &[u8]) -> Result<FirstPacket, Reason> {
    let (head, body) = packet.split_first_chunk::<8>().ok_or(Reason::Malformed)?;
    let code = u32::from_be_bytes([head[4], head[5], head[6], head[7]]);
    match code {
        SSL_CODE if body.is_empty() => Ok(FirstPacket::Ssl),
        GSSENC_CODE if body.is_empty() => Ok(FirstPacket::GssEnc),
        SSL_CODE | GSSENC_CODE => Err(Reason::Malformed),
        CANCEL_CODE => {
            let (pid, key) = body.split_first_chunk::<4>().ok_or(Reason::Malformed)?;
            if key.is_empty() || key.len() > CANCEL_KEY_LEN_MAX {
                return Err(Reason::Malformed);
            }
            Ok(FirstPacket::Cancel { pid: i32::from_be_bytes(*pid), key: key.to_vec() })
        }
        _ if code >> 16 == 3 => {
            let minor = (code & 0xffff) as u16;
            Ok(FirstPacket::Startup(Startup { minor, raw: packet.to_vec(), parameters: parameters(body)? }))
        }
        _ => Err(Reason::Unsupported),
    }
}

fn parameters(mut body: &[u8]) -> Result<Vec<(String, String)>, Reason> {
    let mut found = Vec::new();
    loop {
        let (name, rest) = split_cstr(body).ok_or(Reason::Malformed)?;
        if name.is_empty() {
            // PostgreSQL: the terminator must be the packet's last byte.
            return if rest.is_empty() { Ok(found) } else { Err(Reason::Malformed) };
        }
        let (value, rest) = split_cstr(rest).ok_or(Reason::Malformed)?;
        found.push((text(name), text(value)));
        body = rest;
    }
}

/// Names may be in any encoding; what is not UTF-8 is shown with replacement characters and never sent upstream.
fn text(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => String::from_utf8_lossy(bytes).into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn packet(code: u32, body: &[u8]) -> Vec<u8> {
        let mut out = u32::try_from(8 + body.len()).expect("small").to_be_bytes().to_vec();
        out.extend_from_slice(&code.to_be_bytes());
        out.extend_from_slice(body);
        out
    }

    #[test]
    fn a_startup_packet_gives_its_parameters() {
        let raw = packet(3 << 16 | 2, b"user\0odoo\0application_name\0odoo-7\0replication\0off\0\0");
        let FirstPacket::Startup(startup) = parse(&raw).expect("well-formed") else { panic!("no startup") };
        assert_eq!(
            (startup.minor, startup.user(), startup.database(), startup.application_name()),
            (2, "odoo", "odoo", "odoo-7")
        );
        assert_eq!(startup.replication(), Some(false));
        assert_eq!(startup.raw, raw);
    }

    #[test]
    fn replication_is_what_postgresql_takes_it_for() {
        let of = |values: &[&str]| {
            let body: String = values.iter().map(|value| format!("replication\0{value}\0")).collect();
            let parsed = parse(&packet(3 << 16, format!("{body}\0").as_bytes()));
            let Ok(FirstPacket::Startup(startup)) = parsed else { panic!("no startup") };
            startup.replication()
        };
        for yes in ["true", "TRUE", "t", "tr", "yes", "Y", "on", "oN", "1", "database"] {
            assert_eq!(of(&[yes]), Some(true), "{yes}");
        }
        for no in ["false", "fals", "fa", "F", "no", "n", "off", "of", "OFF", "0"] {
            assert_eq!(of(&[no]), Some(false), "{no}");
        }
        for neither in
            ["", "o", "nope", "truer", "falsey", "10", "2", " on", "on ", "Database", "data", "o\u{f6}"]
        {
            assert_eq!(of(&[neither]), None, "{neither}");
        }
        assert_eq!(of(&[]), Some(false));
        assert_eq!(of(&["on", "off"]), Some(false), "the last one counts");
        assert_eq!(of(&["nope", "off"]), None, "PostgreSQL looks at each");
    }

    #[test]
    fn a_newer_protocol_is_brought_down_to_3_0() {
        let raw = packet(3 << 16 | 2, b"user\0caf\xe9\0_pq_.fast\0on\0database\0\0\0");
        let FirstPacket::Startup(mut startup) = parse(&raw).expect("well-formed") else {
            panic!("no startup")
        };
        assert_eq!(startup.settle_for_3_0(), Some(vec!["_pq_.fast".to_owned()]));
        assert_eq!(startup.raw, packet(3 << 16, b"user\0caf\xe9\0database\0\0\0"));
        assert_eq!(parse(&startup.raw), Ok(FirstPacket::Startup(startup.clone())));
        assert_eq!(startup.settle_for_3_0(), None);
    }

    #[test]
    fn a_packet_is_given_another_application_name() {
        let of = |body: &[u8]| match parse(&packet(3 << 16, body)) {
            Ok(FirstPacket::Startup(startup)) => startup,
            other => panic!("{other:?}"),
        };
        let one = of(b"application_name\0odoo-7\0user\0caf\xe9\0application_name\0odoo-8\0database\0d\0\0");
        let renamed = one.renamed("odoo").expect("it has a name");
        assert_eq!(renamed, packet(3 << 16, b"user\0caf\xe9\0database\0d\0application_name\0odoo\0\0"));
        assert_eq!(of(&renamed[8..]).application_name(), "odoo");
        let given = of(b"user\0u\0\0").renamed("odoo").expect("there is room");
        assert_eq!(given, packet(3 << 16, b"user\0u\0application_name\0odoo\0\0"));
        let long = format!("user\0u\0options\0{}\0application_name\0o\0\0", "x".repeat(9_950));
        assert_eq!(of(long.as_bytes()).renamed("a-longer-name-than-there-is-room-for"), None);
    }

    #[test]
    fn bytes_stuffed_behind_requests_and_terminators_are_refused() {
        assert_eq!(parse(&packet(SSL_CODE, b"x")), Err(Reason::Malformed));
        assert_eq!(parse(&packet(3 << 16, b"user\0u\0\0x")), Err(Reason::Malformed));
        assert_eq!(parse(&packet(3 << 16, b"user\0u")), Err(Reason::Malformed));
        assert_eq!(parse(&packet(2 << 16, b"")), Err(Reason::Unsupported));
    }

    #[test]
    fn cancel_keys_have_any_length_of_protocol_3_2() {
        let key = [7; 32];
        let body = [&5_i32.to_be_bytes()[..], &key].concat();
        assert_eq!(parse(&packet(CANCEL_CODE, &body)), Ok(FirstPacket::Cancel { pid: 5, key: key.to_vec() }));
        assert_eq!(parse(&packet(CANCEL_CODE, &[0; 4])), Err(Reason::Malformed));
    }
}
