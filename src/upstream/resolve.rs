//! A server's name, asked of the system's resolver.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use tokio::task::JoinHandle;

use super::connect::{MonitorAddress, MonitorSettings};
use super::names::Names;
use crate::clock::Moment;

/// A server's name, looked up beside the looking.
pub struct Name {
    /// As configured.
    pub host: String,
    port: u16,
    /// Where it leads.
    pub names: Names,
    /// One at a time, however long it takes.
    asked: Option<JoinHandle<io::Result<Vec<IpAddr>>>>,
}

impl Name {
    /// None where there is nothing to look up.
    pub fn of(settings: &MonitorSettings, every: Duration) -> Option<Self> {
        let MonitorAddress::Tcp { host, port } = &settings.address else { return None };
        let mut names = Names::new(every);
        if let Ok(ip) = host.parse::<IpAddr>() {
            names = Names::new(Duration::MAX);
            names.answered([ip]);
            names.asked(Moment::default());
        }
        Some(Self { host: host.clone(), port: *port, names, asked: None })
    }

    /// Asks where it is time, and takes the answer where it is there.
    pub async fn look(&mut self, now: Moment) {
        if self.asked.is_none() && self.names.is_due(now) {
            self.names.asked(now);
            let (host, port) = (self.host.clone(), self.port);
            self.asked = Some(tokio::spawn(async move {
                let found = tokio::net::lookup_host((host, port)).await?;
                Ok(found.map(|address| address.ip()).collect())
            }));
        }
        if self.asked.as_ref().is_some_and(JoinHandle::is_finished) {
            let _ = self.answer().await;
        }
    }

    /// Waits for the answer.
    pub async fn answer(&mut self) -> Result<(), String> {
        let Some(asked) = &mut self.asked else { return Ok(()) };
        let answer = asked.await;
        self.asked = None;
        match answer {
            Ok(Ok(found)) => self.names.answered(found),
            Ok(Err(error)) => return Err(format!("{}: {error}", self.host)),
            Err(error) => return Err(error.to_string()),
        }
        Ok(())
    }
}
