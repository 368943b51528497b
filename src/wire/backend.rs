//! Messages of PostgreSQL that pgweir must understand.

use super::frame::split_cstr;
use crate::reason::SqlState;

/// What pgweir needs of an ErrorResponse.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamError {
    /// Field V, or S where there is none.
    pub severity: String,
    /// Field C.
    pub state: SqlState,
    /// Field M; in the server's language, for logs only.
    pub message: String,
    /// Field R: the C function that raised it; never localised.
    pub routine: String,
}

/// Whose CONNECTION LIMIT is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// The role's.
    Role,
    /// The database's.
    Database,
}

impl UpstreamError {
    /// Reads an ErrorResponse's body; what is missing stays empty.
    pub fn parse(mut body: &[u8]) -> Self {
        let mut found = Self {
            severity: String::new(),
            state: SqlState(*b"XX000"),
            message: String::new(),
            routine: String::new(),
        };
        while let Some((&field, rest)) = body.split_first() {
            if field == 0 {
                break;
            }
            let Some((value, rest)) = split_cstr(rest) else { break };
            let text = String::from_utf8_lossy(value);
            match field {
                b'V' => found.severity = text.into_owned(),
                b'S' if found.severity.is_empty() => found.severity = text.into_owned(),
                b'C' => found.state = SqlState::parse(&text).unwrap_or(found.state),
                b'M' => found.message = text.into_owned(),
                b'R' => found.routine = text.into_owned(),
                _ => {}
            }
            body = rest;
        }
        found
    }

    /// PostgreSQL as a whole has no connection left: 53300 raised where the postmaster or backend counts them all. A role's or
    /// database's CONNECTION LIMIT (InitializeSessionUserId, CheckMyDatabase) is the client's own affair.
    pub fn is_saturation(&self, replication: bool) -> bool {
        self.state.0 == *b"53300"
            && !replication
            && matches!(
                self.routine.as_str(),
                "ProcessStartupPacket" | "InitProcess" | "InitPostgres" | "BackendInitialize"
            )
    }

    /// The CONNECTION LIMIT that this error says is reached.
    pub fn limit(&self) -> Option<Limit> {
        match self.routine.as_str() {
            "InitializeSessionUserId" if self.state.0 == *b"53300" => Some(Limit::Role),
            "CheckMyDatabase" if self.state.0 == *b"53300" => Some(Limit::Database),
            _ => None,
        }
    }

    /// PostgreSQL is starting up, shutting down or in recovery: worth a redial.
    pub fn is_not_ready(&self) -> bool {
        matches!(&self.state.0, b"57P03" | b"57P01" | b"57P02")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_of_53300_are_told_apart_by_routine() {
        let body = |routine: &str| {
            format!("SFATAL\0VFATAL\0C53300\0Mdesol\u{e9}, trop de clients\0R{routine}\0\0").into_bytes()
        };
        assert!(UpstreamError::parse(&body("InitProcess")).is_saturation(false));
        assert!(!UpstreamError::parse(&body("InitProcess")).is_saturation(true));
        assert!(!UpstreamError::parse(&body("InitializeSessionUserId")).is_saturation(false));
        assert!(!UpstreamError::parse(&body("CheckMyDatabase")).is_saturation(false));
        let limit = |routine| UpstreamError::parse(&body(routine)).limit();
        assert_eq!(
            [limit("InitializeSessionUserId"), limit("CheckMyDatabase"), limit("InitProcess")],
            [Some(Limit::Role), Some(Limit::Database), None]
        );
        assert_eq!(UpstreamError::parse(b"C42").state.as_str(), "XX000");
    }
}
