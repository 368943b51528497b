//! What a request is answered with: between the console's protocol and [`Control`].

use std::sync::Arc;

use super::chatter::{self, Chatter, PARAMETERS, Probe};
use super::command::{Command, Show};
use super::control::{CommandError, Control, Operator};
use super::parse::{Failure, Request};
use super::view::{self, Column, Kind, Rows, Value};
use super::{help, tongue};

/// Longest application_name kept, in characters (PostgreSQL's NAMEDATALEN less one).
const APPLICATION_LEN_MAX: usize = 63;

/// Who logged in, as the startup packet says.
#[derive(Clone, Debug)]
pub struct Login {
    /// Name of the admin user.
    pub user: String,
    /// Whether commands are allowed.
    pub may_change: bool,
    /// Database asked for.
    pub database: String,
    /// Parameters of the startup packet.
    pub parameters: Vec<(String, String)>,
    /// Pid told to the client: a number of its own.
    pub pid: i32,
    /// Cancel key told to the client.
    pub key: Vec<u8>,
}

/// What goes to the client for a request that was carried out, besides its tag.
#[derive(Default)]
pub struct Answer {
    /// Rows, where it has columns.
    pub rows: Option<Rows>,
    /// One notice each.
    pub notices: Vec<String>,
    /// A parameter whose change is reported.
    pub changed: Option<&'static str>,
}

/// The state of a session that answers depend on.
pub struct Answerer {
    control: Arc<dyn Control>,
    login: Login,
    values: Vec<String>,
    in_transaction: bool,
}

impl Answerer {
    /// For a login. Parameters of its startup packet that would be refused in a SET are left as they are.
    pub fn new(login: Login, control: Arc<dyn Control>) -> Self {
        let values = PARAMETERS.iter().map(|(_, value, _)| (*value).to_owned()).collect();
        let mut new = Self { control, login, values, in_transaction: false };
        new.store("session_authorization", new.login.user.clone());
        for (name, value) in new.login.parameters.clone() {
            if let Ok(Chatter::Set(name, value)) = chatter::set_parameter(&name, value) {
                new.store(name, value);
            }
        }
        new
    }

    /// Pid and cancel key for BackendKeyData.
    pub fn key_data(&self) -> (i32, &[u8]) {
        (self.login.pid, &self.login.key)
    }

    /// The status of ReadyForQuery. A failed statement does not fail the transaction: there is nothing to roll back.
    pub fn status(&self) -> u8 {
        if self.in_transaction { b'T' } else { b'I' }
    }

    /// Every reported parameter with its value.
    pub fn reported(&self) -> impl Iterator<Item = (&'static str, &str)> {
        PARAMETERS
            .iter()
            .zip(&self.values)
            .filter(|((.., reported), _)| *reported)
            .map(|((name, ..), value)| (*name, &**value))
    }

    /// A parameter's value.
    pub fn value(&self, name: &str) -> &str {
        let at = PARAMETERS.iter().position(|(known, ..)| *known == name);
        at.and_then(|at| self.values.get(at)).map_or("", String::as_str)
    }

    fn store(&mut self, name: &str, value: String) {
        let printable = |c: char| if c.is_ascii() && !c.is_control() { c } else { '?' };
        let value = match name {
            "application_name" => value.chars().take(APPLICATION_LEN_MAX).map(printable).collect(),
            _ => value,
        };
        if let Some(at) = PARAMETERS.iter().position(|(known, ..)| *known == name) {
            self.values[at] = value;
        }
    }

    /// Carries a request out.
    ///
    /// # Errors
    /// 42501 for a viewer's command, 42704 for an unknown lane or client, 55000 for what was refused.
    pub async fn answer(&mut self, request: &Request) -> Result<Answer, Failure> {
        match request {
            Request::Show(show) => Ok(Answer { rows: Some(self.rows(*show).await), ..Answer::default() }),
            Request::Command(command) => self.execute(command.clone()).await,
            Request::Chatter(chatter) => Ok(self.chat(chatter)),
        }
    }

    /// To whoever connects to the database `pgbouncer`, states of clients are in PgBouncer's words too.
    async fn rows(&self, show: Show) -> Rows {
        let rows = view::rows(show, &*self.control).await;
        if show != Show::Clients || self.login.database != tongue::DATABASE {
            return rows;
        }
        Box::new(rows.map(|mut row| {
            if let Some(Value::Text(state)) = row.get_mut(tongue::CLIENT_STATE) {
                *state = tongue::client_state(state).into();
            }
            row
        }))
    }

    async fn execute(&mut self, mut command: Command) -> Result<Answer, Failure> {
        if !self.login.may_change {
            let text = format!("user {:?} may look, not change", self.login.user);
            return Err(Failure::new(b"42501", text, "log in as an operator"));
        }
        self.find_lane(&mut command);
        let application = self.value("application_name");
        let name = match application {
            "" => self.login.user.clone(),
            application => format!("{} ({application})", self.login.user),
        };
        let operator = Operator { name, may_change: true };
        let mut notices = match self.control.execute(&operator, command).await {
            Ok(outcome) => outcome.lines,
            Err(error) => return Err(self.failure(error)),
        };
        if self.in_transaction {
            notices.push("this took effect at once; ROLLBACK does not undo it".to_owned());
        }
        Ok(Answer { notices, ..Answer::default() })
    }

    /// A lane typed in another case is meant, where only one is.
    fn find_lane(&self, command: &mut Command) {
        let (Command::Pause { lane, .. }
        | Command::Resume { lane, .. }
        | Command::Drain { lane }
        | Command::SetQuota { lane, .. }) = command
        else {
            return;
        };
        let lanes = self.control.lane_names();
        if lanes.iter().any(|name| **name == **lane) {
            return;
        }
        let mut alike = lanes.iter().filter(|name| name.to_lowercase() == lane.to_lowercase());
        if let (Some(found), None) = (alike.next(), alike.next()) {
            *lane = found.to_string();
        }
    }

    fn failure(&self, error: CommandError) -> Failure {
        match error {
            CommandError::UnknownLane(name) => {
                let lanes = self.control.lane_names();
                let hint = help::where_listed("SHOW LANES", &name, lanes.iter().map(|lane| &**lane));
                Failure::new(b"42704", format!("there is no lane {name:?}"), hint)
            }
            CommandError::UnknownClient(id) => {
                Failure::new(b"42704", format!("there is no client {id}"), "SHOW CLIENTS lists them")
            }
            CommandError::Refused(why) => Failure::new(b"55000", why, ""),
        }
    }

    fn chat(&mut self, chatter: &Chatter) -> Answer {
        let mut answer = Answer::default();
        match chatter {
            Chatter::Begin(_) => self.in_transaction = true,
            Chatter::Commit | Chatter::Rollback => self.in_transaction = false,
            Chatter::Nothing(_) | Chatter::Deallocate(_) | Chatter::DiscardAll => {}
            Chatter::Set(name, value) => {
                self.store(name, value.clone());
                answer.changed =
                    PARAMETERS.iter().any(|(known, _, reported)| known == name && *reported).then_some(*name);
            }
            Chatter::Show(name) => answer.rows = Some(one(view::text(self.value(name).to_owned()))),
            Chatter::Select(probe) => answer.rows = Some(one(self.probe(*probe))),
        }
        answer
    }

    fn probe(&self, probe: Probe) -> Value {
        match probe {
            Probe::One => Value::Int(1),
            Probe::Version => view::text(format!("PostgreSQL {}", self.value("server_version"))),
            Probe::Schema => view::text("public"),
            Probe::Database => view::text(self.login.database.clone()),
            Probe::User => view::text(self.login.user.clone()),
            Probe::Pid => Value::Int(self.login.pid.into()),
            Probe::InRecovery => Value::Bool(false),
            Probe::AdvisoryUnlockAll => view::text(""),
        }
    }
}

fn one(value: Value) -> Rows {
    Box::new(std::iter::once(vec![value]))
}

/// The columns of a request's rows; `None` where it has none.
pub fn columns(request: &Request) -> Option<Vec<Column>> {
    let column = |name, kind| Some(vec![Column { name, kind }]);
    match request {
        Request::Show(show) => Some(view::columns(*show).to_vec()),
        Request::Chatter(Chatter::Show(name)) => column(name, Kind::Text),
        Request::Chatter(Chatter::Select(probe)) => match probe {
            Probe::One => column("?column?", Kind::Int4),
            Probe::Version => column("version", Kind::Text),
            Probe::Schema => column("current_schema", Kind::Text),
            Probe::Database => column("current_database", Kind::Text),
            Probe::User => column("current_user", Kind::Text),
            Probe::Pid => column("pg_backend_pid", Kind::Int4),
            Probe::InRecovery => column("pg_is_in_recovery", Kind::Bool),
            Probe::AdvisoryUnlockAll => column("pg_advisory_unlock_all", Kind::Text),
        },
        Request::Chatter(_) | Request::Command(_) => None,
    }
}
