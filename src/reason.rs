//! One typed reason per refusal: the same in the log, the metric label, the console and the client's error.

use std::fmt;

/// How an error is marked on the wire ("Error and Notice Message Fields", fields S and V).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Severity {
    /// The statement failed, the session goes on.
    Error,
    /// The session is over.
    Fatal,
}

impl Severity {
    /// The word PostgreSQL uses.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Error => "ERROR",
            Self::Fatal => "FATAL",
        }
    }
}

/// Five characters of SQLSTATE (PostgreSQL Appendix A).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SqlState(pub [u8; 5]);

impl SqlState {
    /// A SQLSTATE from its five characters: digits and upper-case letters only.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes: [u8; 5] = text.as_bytes().try_into().ok()?;
        bytes.iter().all(|b| b.is_ascii_digit() || b.is_ascii_uppercase()).then_some(Self(bytes))
    }

    /// The five characters.
    pub fn as_str(&self) -> &str {
        // Only ASCII is ever stored: see `parse` and the constants.
        std::str::from_utf8(&self.0).unwrap_or("XX000")
    }
}

impl fmt::Debug for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident, $label:literal, $sqlstate:literal, $severity:ident, $text:literal;)*) => {
        /// Why a client was refused, made to wait, or ended.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Reason { $($(#[$doc])* $variant,)* }

        impl Reason {
            /// Every reason, for metrics and documentation.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The word in logs, metric labels, timeline and console.
            pub const fn label(self) -> &'static str {
                match self { $(Self::$variant => $label,)* }
            }

            /// The SQLSTATE a client gets. A reset transaction's is its lane's; this is the default.
            pub const fn sqlstate(self) -> SqlState {
                match self { $(Self::$variant => SqlState(*$sqlstate),)* }
            }

            /// Whether the client's session ends with it.
            pub const fn severity(self) -> Severity {
                match self { $(Self::$variant => Severity::$severity,)* }
            }

            /// The message behind `pgweir: `.
            pub const fn text(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }
    };
}

reasons! {
    /// Slots of the lane have reached its quota.
    LaneFull, "lane_full", b"53300", Fatal, "the lane's connection quota is used up";
    /// Slots of the application have reached its quota, or what is left is reserved for others of its lanes.
    ApplicationFull, "application_full", b"53300", Fatal, "the application's connection quota is used up";
    /// The lane's `per_application`.
    ApplicationLimit, "application_limit", b"53300", Fatal, "the lane's limit per application is reached";
    /// The lane's `per_user`.
    UserLimit, "user_limit", b"53300", Fatal, "the lane's limit per user is reached";
    /// The lane's `per_database`.
    DatabaseLimit, "database_limit", b"53300", Fatal, "the lane's limit per database is reached";
    /// The lane's `per_address`.
    AddressLimit, "address_limit", b"53300", Fatal, "the lane's limit per client address is reached";
    /// The lane has no room for as many links of one more client process as it may need (`links_per_process`).
    ProcessLimit, "process_limit", b"53300", Fatal, "the lane's connections are kept for the processes that are in it";
    /// PostgreSQL has no connection to spare beyond reserves and headroom.
    UpstreamBudget, "upstream_budget", b"53300", Fatal, "PostgreSQL's connections are used up or reserved for other lanes";
    /// PostgreSQL itself answered "too many clients".
    UpstreamFull, "upstream_full", b"53300", Fatal, "PostgreSQL has no free connection";
    /// Too many logins in progress.
    LoginLimit, "login_limit", b"53300", Fatal, "too many logins are in progress";
    /// The lane's `connect_rate`.
    ConnectRate, "connect_rate", b"53300", Fatal, "the lane's rate of new connections is used up";
    /// `max_waiting` clients wait already.
    QueueFull, "queue_full", b"53300", Fatal, "too many clients are waiting in the lane";
    /// Usage is above the lane's `shed_above`.
    Shed, "shed", b"53300", Fatal, "the lane is shed because PostgreSQL is nearly full";
    /// Usage is unknown because the monitor is stale.
    MonitorStale, "monitor_stale", b"53300", Fatal, "the lane is shed because PostgreSQL's usage is unknown";
    /// `max_clients` of the whole process.
    MaxClients, "max_clients", b"53300", Fatal, "too many clients are connected to pgweir";
    /// The lane is paused and refuses.
    Paused, "paused", b"57P03", Fatal, "the lane is paused";
    /// Held by a pause for longer than `pause_hold_timeout`.
    PauseHoldTimeout, "pause_hold_timeout", b"57P03", Fatal, "the lane stayed paused for too long";
    /// pgweir is going down.
    ShuttingDown, "shutting_down", b"57P03", Fatal, "pgweir is shutting down";
    /// PostgreSQL cannot be reached, is starting up or is shutting down.
    UpstreamDown, "upstream_down", b"57P03", Fatal, "PostgreSQL cannot be reached";
    /// None of several servers is known to be what `target_session_attrs` wants.
    NoPrimary, "no_primary", b"57P03", Fatal, "no server is known that takes the connection";
    /// Bytes that are no PostgreSQL message.
    Malformed, "malformed", b"08P01", Fatal, "malformed message";
    /// A message beyond its bound.
    Oversized, "oversized", b"08P01", Fatal, "message too large";
    /// No complete login within `startup_timeout`, or a client that keeps others from logging in.
    StartupTimeout, "startup_timeout", b"08P01", Fatal, "the login took too long";
    /// Upstream asked for no password and the client is not local.
    TrustRefused, "trust_refused", b"28000", Fatal, "PostgreSQL asked for no password, which is accepted from local clients only";
    /// The listener takes sessions over TLS only.
    TlsRequired, "tls_required", b"28000", Fatal, "this connection needs TLS";
    /// No agreement on TLS. The client is told by an alert of TLS itself.
    TlsFailed, "tls_failed", b"08P01", Fatal, "the TLS handshake failed";
    /// The client's certificate does not name the user.
    ClientCertificate, "client_certificate", b"28000", Fatal, "the client's certificate does not name the user";
    /// The client insists on a channel binding that would bind it to another TLS connection than PostgreSQL's.
    ChannelBinding, "channel_binding", b"28000", Fatal, "SCRAM's channel binding does not reach through pgweir";
    /// The client speaks a protocol or asks for a feature that is not served.
    Unsupported, "unsupported", b"08P01", Fatal, "unsupported protocol";
    /// Wrong password for the admin port.
    AdminPassword, "admin_password", b"28P01", Fatal, "password authentication failed";
    /// Wrong password, or no such user, where pgweir authenticates.
    Password, "password", b"28P01", Fatal, "password authentication failed";
    /// Too many failed logins from the client's address.
    LoginThrottled, "login_throttled", b"28000", Fatal, "too many logins from this address failed";
    /// The auth query cannot be asked.
    AuthQuery, "auth_query", b"57P03", Fatal, "users cannot be looked up at the moment";
    /// PostgreSQL refuses what pgweir has stored of an authenticated user.
    UpstreamLogin, "upstream_login", b"28P01", Fatal, "pgweir could not log in upstream";
    /// Transaction rolled back as a leak.
    LeakReset, "leak_reset", b"40001", Error, "the transaction was rolled back because it sat idle for too long";
    /// Disconnected as a leak.
    LeakDisconnect, "leak_disconnect", b"25P03", Fatal, "the connection was closed because its transaction sat idle for too long";
    /// KILL CLIENT.
    Killed, "killed", b"57P01", Fatal, "the connection was closed by an operator";
    /// DRAIN LANE, or drain at shutdown.
    Drained, "drained", b"57P01", Fatal, "the connection was closed because its lane or pgweir is being drained";
    /// The link's server is not the one that is dialled any more.
    UpstreamSwitched, "upstream_switched", b"57P01", Fatal, "the connection was closed because another server has taken over";
    /// Idle link closed because others wait (`reclaim_idle_after`).
    Reclaimed, "reclaimed", b"57P01", Fatal, "the idle connection was given to a waiting client";
    /// A held statement was cancelled.
    HeldCancelled, "held_cancelled", b"57014", Error, "the statement was cancelled while the lane held it";
    /// Our own bug: the link's task panicked or lost its state.
    Internal, "internal", b"XX000", Fatal, "internal error";
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// A refusal as the client sees it: the reason with its figures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub reason: Reason,
    /// Figures, for the error's DETAIL.
    pub detail: Box<str>,
    /// The operator's next command, for the error's HINT.
    pub hint: Box<str>,
}

impl Refusal {
    /// A refusal with its figures and the operator's next command.
    #[cold]
    pub fn new(reason: Reason, detail: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { reason, detail: detail.into().into(), hint: hint.into().into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn labels_are_unique_and_states_are_well_formed() {
        let labels: HashSet<_> = Reason::ALL.iter().map(|r| r.label()).collect();
        assert_eq!(labels.len(), Reason::ALL.len());
        for reason in Reason::ALL {
            assert_eq!(SqlState::parse(reason.sqlstate().as_str()), Some(reason.sqlstate()));
        }
    }
}
