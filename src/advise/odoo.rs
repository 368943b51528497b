//! What an odoo.conf says of connections, and Odoo's own defaults where it says nothing (Odoo 11 to 19). Pure.

use std::fmt;

use serde::Serialize;
use zeroize::Zeroizing;

use super::ini::{self, Ini, Problem};

/// Largest count that is believed.
const COUNT_MAX: i64 = 10_000_000;

/// A figure or name, and the line it stands on; none is Odoo's default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Setting<T> {
    /// What holds.
    pub value: T,
    /// Line of the file.
    pub line: Option<usize>,
}

/// Odoo's password for PostgreSQL: used to look, shown to nobody.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(Zeroizing<String>);

impl Password {
    /// The password itself: for the wire.
    pub fn expose(&self) -> &Zeroizing<String> {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(…)")
    }
}

/// The part of an odoo.conf that decides about connections.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OdooConf {
    /// HTTP worker processes; 0 is one process with threads.
    pub workers: Setting<u32>,
    /// Cron workers, or cron threads.
    pub max_cron_threads: Setting<u32>,
    /// Connections that each process may open.
    pub db_maxconn: Setting<u32>,
    /// The same of the gevent process; none is `db_maxconn`.
    pub db_maxconn_gevent: Setting<Option<u32>>,
    /// Seconds after which a request's worker is killed; 0 is never.
    pub limit_time_real: Setting<u32>,
    /// Seconds after which a cron job's worker is killed; 0 is never, −1 as `limit_time_real`.
    pub limit_time_real_cron: Setting<i64>,
    /// Host or directory of a socket; none is the Unix socket.
    pub db_host: Setting<Option<String>>,
    /// Port; none is 5432.
    pub db_port: Setting<Option<u16>>,
    /// Role; none is the operating system's user.
    pub db_user: Setting<Option<String>>,
    /// Databases; empty is all that the role owns.
    pub db_name: Setting<Vec<String>>,
    /// Which database a host name means.
    pub dbfilter: Setting<Option<String>>,
    /// libpq's word.
    pub db_sslmode: Setting<String>,
    /// Whether HTTP is served at all.
    pub http_enable: Setting<bool>,
    /// A second server for reading (18 and later).
    pub db_replica_host: Setting<Option<String>>,
    /// The application_name, where the file sets it (19 and later).
    pub db_app_name: Setting<Option<String>>,
    /// queue_job: how many jobs at once; none where it is not loaded.
    pub queue_jobs: Setting<Option<u32>>,
    /// Never shown.
    #[serde(skip)]
    pub db_password: Option<Password>,
    /// Whether the file has the section Odoo reads.
    pub has_options: bool,
}

impl OdooConf {
    /// Reads an odoo.conf.
    ///
    /// # Errors
    /// Every line that Odoo would refuse, or read otherwise than it looks.
    pub fn parse(text: &str) -> Result<Self, Vec<Problem>> {
        if text.starts_with('\u{feff}') {
            let hint = "save the file as UTF-8 without it";
            return Err(vec![Problem::at(
                1,
                "begins with a byte order mark, which Odoo does not read",
                hint,
            )]);
        }
        let ini = ini::parse(text)?;
        let mut reader = Reader { ini: &ini, problems: Vec::new() };
        let conf = reader.conf();
        if reader.problems.is_empty() { Ok(conf) } else { Err(reader.problems) }
    }

    /// One process with threads.
    pub fn is_threaded(&self) -> bool {
        self.workers.value == 0
    }

    /// HTTP worker processes.
    pub fn http_workers(&self) -> u32 {
        if self.http_enable.value { self.workers.value } else { 0 }
    }

    /// Whether there is a gevent process for the bus.
    pub fn has_gevent(&self) -> bool {
        self.http_workers() > 0
    }

    /// Connections that the gevent process may open.
    pub fn gevent_maxconn(&self) -> u32 {
        self.db_maxconn_gevent.value.unwrap_or(self.db_maxconn.value)
    }

    /// Seconds after which a cron job is killed; none is never.
    pub fn cron_limit(&self) -> Option<u32> {
        match self.limit_time_real_cron.value {
            ..0 => Some(self.limit_time_real.value).filter(|seconds| *seconds > 0),
            0 => None,
            seconds => u32::try_from(seconds).ok(),
        }
    }
}

struct Reader<'a> {
    ini: &'a Ini,
    problems: Vec<Problem>,
}

impl Reader<'_> {
    fn conf(&mut self) -> OdooConf {
        let db_password = self.ini.get("options", "db_password").filter(|entry| !is_unset(&entry.value));
        OdooConf {
            workers: self.count("workers", 0),
            max_cron_threads: self.count("max_cron_threads", 2),
            db_maxconn: self.count("db_maxconn", 64),
            db_maxconn_gevent: self.optional("db_maxconn_gevent"),
            limit_time_real: self.count("limit_time_real", 120),
            limit_time_real_cron: self.whole("limit_time_real_cron", -1, -1),
            db_host: self.text("db_host"),
            db_port: self.port("db_port"),
            db_user: self.user(),
            db_name: self.names("db_name"),
            dbfilter: self.text("dbfilter"),
            db_sslmode: {
                let found = self.text("db_sslmode");
                Setting { value: found.value.unwrap_or_else(|| "prefer".to_owned()), line: found.line }
            },
            http_enable: self.http_enable(),
            db_replica_host: self.text("db_replica_host"),
            db_app_name: self.text("db_app_name"),
            queue_jobs: self.queue_jobs(),
            db_password: db_password.map(|entry| Password(Zeroizing::new(entry.value.clone()))),
            has_options: self.ini.has("options"),
        }
    }

    /// The value as Odoo sees it: False, None and nothing are no value.
    fn text(&mut self, key: &str) -> Setting<Option<String>> {
        let Some(entry) = self.ini.get("options", key) else { return Setting { value: None, line: None } };
        let line = Some(entry.line);
        if let Some(swallowed) = entry.swallows {
            let message = format!("is indented, so it continues {key} on line {}", entry.line);
            let problem = Problem::at(swallowed, message, "remove the blanks at its beginning");
            self.problems.push(problem);
            return Setting { value: None, line };
        }
        let value = entry.value.replace('\n', " ");
        if is_unset(&value) {
            return Setting { value: None, line };
        }
        if value.len() > 1 && value.starts_with(['"', '\'']) && value.ends_with(['"', '\'']) {
            let message = format!("{key} is in quotes, which belong to the value here");
            self.problems.push(Problem::at(entry.line, message, "write it without"));
        } else if value.contains("://") {
            // It may have a password in it.
            let message = format!("{key} is a URL, which pgweir does not take apart");
            self.problems.push(Problem::at(entry.line, message, "write db_host, db_port and db_user"));
        } else if value.chars().any(char::is_control) {
            let message = format!("{key} has control characters");
            self.problems.push(Problem::at(entry.line, message, "remove them"));
        } else {
            return Setting { value: Some(value), line };
        }
        Setting { value: None, line }
    }

    fn whole(&mut self, key: &str, default: i64, least: i64) -> Setting<i64> {
        let found = self.text(key);
        let (Some(text), Some(line)) = (&found.value, found.line) else {
            return Setting { value: default, line: None };
        };
        match text.parse::<i64>() {
            Ok(value) if (least..=COUNT_MAX).contains(&value) => Setting { value, line: Some(line) },
            Ok(_) => {
                let message = format!("{key} is not between {least} and {COUNT_MAX}");
                self.problems.push(Problem::at(line, message, format!("Odoo's default is {default}")));
                Setting { value: default, line: None }
            }
            Err(_) => {
                let message = format!("{key} is no whole number");
                let hint = if text.contains([';', '#']) {
                    "comments need a line of their own: behind a value they belong to it".to_owned()
                } else {
                    format!("write {key} = {default}, or leave it out")
                };
                self.problems.push(Problem::at(line, message, hint));
                Setting { value: default, line: None }
            }
        }
    }

    fn count(&mut self, key: &str, default: u32) -> Setting<u32> {
        let found = self.whole(key, i64::from(default), 0);
        Setting { value: u32::try_from(found.value).unwrap_or(default), line: found.line }
    }

    fn optional(&mut self, key: &str) -> Setting<Option<u32>> {
        let found = self.whole(key, -1, 0);
        Setting { value: u32::try_from(found.value).ok(), line: found.line }
    }

    fn port(&mut self, key: &str) -> Setting<Option<u16>> {
        let found = self.whole(key, 0, 0);
        let value = u16::try_from(found.value);
        if let (Err(_), Some(line)) = (value, found.line) {
            self.problems.push(Problem::at(line, format!("{key} is no port"), "ports end at 65535"));
        }
        Setting { value: value.ok().filter(|port| *port > 0), line: found.line }
    }

    fn names(&mut self, key: &str) -> Setting<Vec<String>> {
        let found = self.text(key);
        let value = found.value.unwrap_or_default();
        let names = value.split(',').map(str::trim).filter(|name| !name.is_empty());
        Setting { value: names.map(str::to_owned).collect(), line: found.line }
    }

    fn user(&mut self) -> Setting<Option<String>> {
        let found = self.text("db_user");
        if let (Some("postgres"), Some(line)) = (found.value.as_deref(), found.line) {
            let hint = "make a role of its own: createuser --createdb odoo";
            self.problems.push(Problem::at(line, "Odoo refuses to run as db_user = postgres", hint));
        }
        found
    }

    fn http_enable(&mut self) -> Setting<bool> {
        let key = if self.ini.get("options", "http_enable").is_some() { "http_enable" } else { "xmlrpc" };
        let line = self.ini.get("options", key).map(|entry| entry.line);
        let off = self.ini.get("options", key).is_some_and(|entry| is_unset(&entry.value));
        Setting { value: !off, line }
    }

    /// queue_job's runner starts where the module is loaded server-wide; how many jobs it runs stands in its channels.
    fn queue_jobs(&mut self) -> Setting<Option<u32>> {
        let modules = self.names("server_wide_modules");
        let loaded = modules.value.iter().any(|module| module == "queue_job");
        let Some(entry) = self.ini.get("queue_job", "channels") else {
            return Setting { value: loaded.then_some(1), line: modules.line.filter(|_| loaded) };
        };
        let root = entry.value.split([',', '\n']).map(str::trim).find_map(|channel| {
            let (name, capacity) = channel.split_once(':')?;
            (name.trim() == "root").then(|| capacity.split(':').next().and_then(|n| n.trim().parse().ok()))
        });
        let jobs = match root {
            Some(Some(jobs)) if (1..=COUNT_MAX).contains(&i64::from(jobs)) => jobs,
            None => 1,
            Some(_) => {
                let message = "channels has no number behind root:";
                self.problems.push(Problem::at(entry.line, message, "write channels = root:4"));
                1
            }
        };
        Setting { value: Some(jobs), line: Some(entry.line) }
    }
}

fn is_unset(value: &str) -> bool {
    let value = value.trim();
    value.is_empty() || ["false", "none"].contains(&value.to_ascii_lowercase().as_str())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may fail")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn conf(options: &str) -> OdooConf {
        OdooConf::parse(&format!("[options]\n{options}")).unwrap()
    }

    fn problems(options: &str) -> Vec<String> {
        let found = OdooConf::parse(&format!("[options]\n{options}")).err().unwrap_or_default();
        found.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_is_absent_or_false_is_odoos_default() {
        let saved = "db_host = False\ndb_port = False\ndb_user = None\ndb_name =\nworkers = False\ndb_maxconn_gevent = False\n";
        for options in ["", saved] {
            let conf = conf(options);
            assert_eq!((conf.workers.value, conf.max_cron_threads.value), (0, 2));
            assert_eq!(
                (conf.db_maxconn.value, conf.gevent_maxconn(), conf.limit_time_real.value),
                (64, 64, 120)
            );
            assert_eq!((conf.cron_limit(), conf.db_host.value, conf.db_port.value), (Some(120), None, None));
            assert_eq!((conf.db_user.value, conf.db_name.value, conf.dbfilter.value), (None, vec![], None));
            assert_eq!((conf.db_sslmode.value.as_str(), conf.queue_jobs.value), ("prefer", None));
            assert!(conf.workers.line.is_none() && conf.http_enable.value);
        }
    }

    #[test]
    fn what_is_there_is_known_with_its_line() {
        let conf = conf(
            "workers = 8\nlimit_time_real_cron = 0\ndb_name = a, b\ndb_maxconn_gevent = 16\nxmlrpc = False\n\
             server_wide_modules = base,web,queue_job\n[queue_job]\nchannels = root:4,root.mail:2\n",
        );
        assert_eq!(conf.workers, Setting { value: 8, line: Some(2) });
        assert_eq!((conf.cron_limit(), conf.gevent_maxconn()), (None, 16));
        assert_eq!(conf.db_name.value, ["a", "b"]);
        assert_eq!((conf.queue_jobs.value, conf.queue_jobs.line), (Some(4), Some(9)));
        assert_eq!((conf.http_workers(), conf.has_gevent()), (0, false));
    }

    #[test]
    fn what_odoo_would_stumble_over_is_named() {
        for (options, said) in [
            ("workers = four\n", ":2: workers is no whole number. Hint: write workers = 0"),
            ("workers = 4 ; four\n", "comments need a line of their own"),
            ("workers = -1\n", ":2: workers is not between 0"),
            ("db_port = 70000\n", ":2: db_port is no port"),
            ("db_host = \"db\"\n", ":2: db_host is in quotes"),
            ("db_name = postgresql://odoo:hunter2@db/x\n", ":2: db_name is a URL"),
            ("db_user = postgres\n", ":2: Odoo refuses to run as db_user = postgres"),
            ("db_host = db\n workers = 4\n", ":3: is indented, so it continues db_host on line 2"),
            ("[queue_job]\nchannels = root\n", ""),
            ("[queue_job]\nchannels = root:many\n", ":3: channels has no number"),
        ] {
            let found = problems(options).join("\n");
            assert!(found.contains(said) && !found.contains("hunter2"), "{options:?}: {found}");
        }
    }

    #[test]
    fn passwords_are_kept_from_everybody() {
        let conf = conf("db_password = hunter2\nadmin_passwd = hunter2\n");
        assert_eq!(conf.db_password.as_ref().map(|p| p.expose().as_str()), Some("hunter2"));
        assert!(!format!("{conf:?}{}", serde_json::to_string(&conf).unwrap()).contains("hunter2"));
        assert!(!problems("admin_passwd = hunter2\nadmin_passwd = hunter2\n").join("").contains("hunter2"));
    }

    proptest! {
        #[test]
        fn no_value_makes_it_panic(
            key in "workers|db_port|db_name|db_maxconn|limit_time_real_cron|db_user",
            value in "[-0-9a-zé:/;,\" ]{0,24}",
        ) {
            let _ = OdooConf::parse(&format!("[options]\n{key} = {value}\n"));
        }
    }
}
