//! Where the console is, and as whom to log in.

use std::fmt;
use std::path::{Path, PathBuf};

use super::args::Global;
use super::console::Failure;
use crate::tls::client::ClientTls;

/// Where a configuration is looked for when none is given.
const CONFIG_FILES: [&str; 2] = ["./pgweir.toml", "/etc/pgweir/pgweir.toml"];
/// The environment variable with the console's password. It wins over the configuration.
const PASSWORD_VARIABLE: &str = "PGWEIR_PASSWORD";
/// Characters of an operator's name.
const NAME_MAX: usize = 32;

/// The console, and as whom to log in.
#[derive(Clone, PartialEq, Eq)]
pub struct AdminEndpoint {
    /// Host name or address, or the directory of a Unix socket.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Console user.
    pub user: String,
    /// Its password, or why it is not known (a file this user may not read): asked for only where no other is given.
    pub password: Result<String, String>,
    /// TLS by the configuration: with the certificate it names. None: TLS where the port has it, with whatever certificate, as libpq's
    /// "prefer".
    pub tls: Option<ClientTls>,
}

impl fmt::Debug for AdminEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AdminEndpoint({}@{}:{})", self.user, self.host, self.port)
    }
}

/// The configuration file: the one given, or the first that exists.
pub fn config_file(global: &Global) -> Result<PathBuf, Failure> {
    pick_config(global, |path| path.exists())
}

fn pick_config(global: &Global, exists: impl Fn(&Path) -> bool) -> Result<PathBuf, Failure> {
    if let Some(file) = &global.config {
        return Ok(file.clone());
    }
    let file = CONFIG_FILES.iter().map(PathBuf::from).find(|file| exists(file));
    file.ok_or_else(|| {
        let [here, etc] = CONFIG_FILES;
        Failure::Usage(format!("neither {here} nor {etc} exists: give --config FILE, or --admin HOST:PORT"))
    })
}

/// The console to talk to, by options, environment and configuration (`from_config`).
pub fn find(
    global: &Global,
    from_config: fn(&Path) -> Result<AdminEndpoint, String>,
) -> Result<AdminEndpoint, Failure> {
    let password = std::env::var(PASSWORD_VARIABLE).ok().filter(|password| !password.is_empty());
    if let Some(admin) = &global.admin {
        return by_option(admin, global.user.as_deref(), password);
    }
    let file = config_file(global)?;
    let endpoint = from_config(&file).map_err(Failure::Usage)?;
    override_with(endpoint, global.user.as_deref(), password)
}

fn by_option(admin: &str, user: Option<&str>, password: Option<String>) -> Result<AdminEndpoint, Failure> {
    let (host, port) = admin
        .rsplit_once(':')
        .and_then(|(host, port)| Some((host, port.parse::<u16>().ok().filter(|port| *port > 0)?)))
        .filter(|(host, _)| !host.is_empty())
        .ok_or_else(|| Failure::Usage(format!("--admin wants HOST:PORT, not {admin:?}")))?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let password = password.ok_or_else(|| no_password("--admin"))?;
    Ok(AdminEndpoint {
        host: host.into(),
        port,
        user: user.unwrap_or("admin").into(),
        password: Ok(password),
        tls: None,
    })
}

fn override_with(
    mut endpoint: AdminEndpoint,
    user: Option<&str>,
    password: Option<String>,
) -> Result<AdminEndpoint, Failure> {
    let other_user = user.filter(|user| *user != endpoint.user);
    match password {
        Some(password) => endpoint.password = Ok(password),
        // The configuration knows the first user's password only.
        None if other_user.is_some() => return Err(no_password("--user")),
        None => {}
    }
    if let Some(user) = other_user {
        endpoint.user = user.into();
    }
    Ok(endpoint)
}

fn no_password(option: &str) -> Failure {
    Failure::Usage(format!("{option} needs the console's password in {PASSWORD_VARIABLE}"))
}

/// What the console is told of us: the timeline shows which person used a shared user.
pub fn application_name() -> String {
    let uid = rustix::process::getuid().as_raw();
    let sudo = std::env::var("SUDO_USER").ok().filter(|_| uid == 0);
    let passwd = || std::fs::read_to_string("/etc/passwd").ok().and_then(|passwd| name_of(&passwd, uid));
    let name = sudo.or_else(passwd).unwrap_or_else(|| format!("uid {uid}"));
    let name: String = name.chars().filter(|c| !c.is_control()).take(NAME_MAX).collect();
    format!("pgweir cli ({name})")
}

/// An account for people: `alice (uid 1000)`, or `uid 1000` where it has no name here.
pub fn user_of(uid: u32) -> String {
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    name_of(&passwd, uid).map_or_else(|| format!("uid {uid}"), |name| format!("{name} (uid {uid})"))
}

fn name_of(passwd: &str, uid: u32) -> Option<String> {
    let mut fields = passwd.lines().map(|line| line.split(':'));
    fields.find_map(|mut line| {
        let name = line.next()?;
        (line.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may fail")]
mod tests {
    use super::*;

    fn endpoint() -> AdminEndpoint {
        let password = Err("cannot read admin.password".into());
        AdminEndpoint { host: "127.0.0.1".into(), port: 6433, user: "admin".into(), password, tls: None }
    }

    #[test]
    fn an_address_has_a_host_and_a_port() {
        let by = |admin| by_option(admin, None, Some("x".into())).map(|found| (found.host, found.port));
        assert_eq!(by("db1:6433").unwrap(), ("db1".into(), 6433));
        assert_eq!(by("[::1]:6433").unwrap(), ("::1".into(), 6433));
        for wrong in ["db1", ":6433", "db1:", "db1:0", "db1:66000"] {
            assert!(by(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_password_is_needed_where_the_configuration_has_none_for_that_user() {
        assert!(by_option("h:1", None, None).is_err());
        assert!(override_with(endpoint(), Some("bob"), None).is_err());
        assert_eq!(override_with(endpoint(), Some("admin"), None).unwrap(), endpoint());
        let bob = override_with(endpoint(), Some("bob"), Some("x".into())).unwrap();
        assert_eq!((bob.user.as_str(), bob.password), ("bob", Ok("x".into())));
    }

    #[test]
    fn the_first_existing_configuration_is_taken_unless_one_is_given() {
        let none = Global::default();
        assert_eq!(pick_config(&none, |_| true).unwrap(), Path::new("./pgweir.toml"));
        let etc = Path::new("/etc/pgweir/pgweir.toml");
        assert_eq!(pick_config(&none, |path| path == etc).unwrap(), etc);
        assert!(pick_config(&none, |_| false).is_err());
        let given = Global { config: Some("x.toml".into()), ..none };
        assert_eq!(pick_config(&given, |_| false).unwrap(), Path::new("x.toml"));
    }

    #[test]
    fn a_uid_is_named_by_passwd() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbroken\nalice:x:1000:1000::/home/alice:/bin/sh\n";
        assert_eq!(name_of(passwd, 1000).as_deref(), Some("alice"));
        assert_eq!(name_of(passwd, 7), None);
    }

    #[test]
    fn the_password_is_not_shown() {
        let secret = AdminEndpoint { password: Ok("hunter2".into()), ..endpoint() };
        assert!(!format!("{secret:?}").contains("hunter2"));
    }
}
