//! pgweir's console, as an operator uses it.

use std::time::Duration;

use tokio_postgres::config::SslMode;
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};

use super::target::explain;

/// Time for connecting, and for an answer.
const ANSWER_MAX: Duration = Duration::from_secs(15);

/// Where the console is, and as whom to log in.
#[derive(Clone)]
pub struct ConsoleAddress {
    /// Host name or address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Console user.
    pub user: String,
    /// Its password.
    pub password: String,
}

/// A logged-in conversation.
pub struct Console {
    client: Client,
}

/// A row, by column.
pub type Row = Vec<(String, String)>;

/// The value of a column; empty where there is none.
pub fn value<'a>(row: &'a Row, column: &str) -> &'a str {
    row.iter().find(|(name, _)| name == column).map_or("", |(_, value)| value.as_str())
}

impl Console {
    /// Logs in.
    ///
    /// # Errors
    /// What the console or the system said.
    pub async fn open(address: &ConsoleAddress) -> Result<Self, String> {
        let mut config = Config::new();
        config.host(&address.host).port(address.port).user(&address.user).password(&address.password);
        config.dbname("pgweir").application_name("pgweir drill").ssl_mode(SslMode::Disable);
        let connecting = tokio::time::timeout(ANSWER_MAX, config.connect(NoTls)).await;
        let (client, connection) = connecting
            .map_err(|_| "the console does not answer".to_owned())?
            .map_err(|error| format!("the console cannot be reached: {}", explain(&error)))?;
        tokio::spawn(connection);
        Ok(Self { client })
    }

    /// Says one command; the rows of its answer.
    ///
    /// # Errors
    /// What the console said.
    pub async fn say(&self, command: &str) -> Result<Vec<Row>, String> {
        let asked = tokio::time::timeout(ANSWER_MAX, self.client.simple_query(command)).await;
        let messages =
            asked.map_err(|_| "the console does not answer".to_owned())?.map_err(|error| explain(&error))?;
        let rows = messages.iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => {
                let cell = |n: usize| row.get(n).unwrap_or_default().to_owned();
                Some(row.columns().iter().enumerate().map(|(n, c)| (c.name().to_owned(), cell(n))).collect())
            }
            _ => None,
        });
        Ok(rows.collect())
    }
}
