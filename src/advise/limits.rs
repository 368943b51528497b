//! What PostgreSQL has, and who is there already. Pure.

use serde::Serialize;

/// PostgreSQL's own default, which is assumed where nobody can be asked.
const MAX_CONNECTIONS: u32 = 100;
/// The same of `superuser_reserved_connections`.
const RESERVED: u32 = 3;

/// `application_name` of the session by which a pgweir looks at PostgreSQL.
pub const MONITOR_APPLICATION: &str = "pgweir monitor";

/// Text of others on one line: it goes into comments and to a terminal.
pub(super) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Sessions of one user and application.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Connected {
    /// Role.
    pub user: String,
    /// application_name as it is.
    pub application: String,
    /// How many.
    pub count: u32,
}

impl Connected {
    /// Whether they are a pgweir's own look at PostgreSQL.
    pub fn is_monitor(&self) -> bool {
        self.application == MONITOR_APPLICATION
    }
}

/// PostgreSQL's limits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Limits {
    /// Why they are assumed rather than asked for; none where PostgreSQL said so.
    pub assumed: Option<String>,
    /// max_connections.
    pub max_connections: u32,
    /// superuser_reserved_connections.
    pub superuser_reserved: u32,
    /// reserved_connections (PostgreSQL 16 and later).
    pub reserved: u32,
    /// Client sessions now, the one that looked left out.
    pub connected: Vec<Connected>,
    /// Databases of Odoo's role; none where that is not known.
    pub databases: Option<u32>,
    /// Whether the monitor's role exists; none where that is not known.
    pub has_monitor: Option<bool>,
}

impl Limits {
    /// PostgreSQL's defaults, for want of a look.
    pub fn assumed(why: impl Into<String>) -> Self {
        Self {
            assumed: Some(plain(&why.into())),
            max_connections: MAX_CONNECTIONS,
            superuser_reserved: RESERVED,
            reserved: 0,
            connected: Vec::new(),
            databases: None,
            has_monitor: None,
        }
    }

    /// Connections that are nobody's privilege.
    pub fn usable(&self) -> u32 {
        self.max_connections.saturating_sub(self.superuser_reserved).saturating_sub(self.reserved)
    }

    /// Sessions of the monitors of pgweirs that run already: nobody else's, and no reason to give Odoo less.
    pub fn monitors(&self) -> u32 {
        let these = self.connected.iter().filter(|row| row.is_monitor());
        these.fold(0_u32, |sum, row| sum.saturating_add(row.count))
    }

    /// Sessions of Odoo's role, and of all others.
    pub fn split(&self, odoo: &str) -> (u32, u32) {
        let sum = |own: bool| {
            let these = self.connected.iter().filter(|row| !row.is_monitor() && (row.user == odoo) == own);
            these.fold(0_u32, |sum, row| sum.saturating_add(row.count))
        };
        (sum(true), sum(false))
    }
}
