//! tokio-postgres against a pgweir that authenticates by itself.

#![allow(clippy::panic, reason = "tests say what they found")]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command};
use std::time::Duration;

use common::pg::{Pg, free_port};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config, Error, NoTls};

/// Tries to find free ports, and to be let in by a pgweir that has just been started.
const TRIES: usize = 2400;
const PAUSE: Duration = Duration::from_millis(50);

struct Weir {
    child: Child,
    port: u16,
    home: tempfile::TempDir,
}

impl Weir {
    fn start(pg: &Pg, users: &str) -> Self {
        let home = tempfile::tempdir().expect("a directory");
        let (port, admin) = (free_port(), free_port());
        let configuration = format!(
            "[[listen]]\naddress = \"127.0.0.1:{port}\"\n[admin]\naddress = \"127.0.0.1:{admin}\"\n\
             [upstream]\naddress = \"127.0.0.1:{}\"\ntls = \"disable\"\n\
             [auth]\nmode = \"scram\"\nusers_file = \"users.txt\"\n[state]\ndirectory = \"state\"\n\
             [[lane]]\nname = \"other\"\ndefault = true\nquota = 10\n",
            pg.port
        );
        let (file, list) = (home.path().join("pgweir.toml"), home.path().join("users.txt"));
        fs::write(&file, configuration).expect("written");
        fs::write(&list, users).expect("written");
        fs::set_permissions(&list, fs::Permissions::from_mode(0o600)).expect("its owner's alone");
        let log = fs::File::create(home.path().join("log")).expect("a log");
        let child = Command::new(env!("CARGO_BIN_EXE_pgweir"))
            .args(["run", "--config"])
            .arg(&file)
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn()
            .expect("pgweir runs");
        Self { child, port, home }
    }

    async fn connect(&self, user: &str, password: &str) -> Result<Client, Error> {
        let mut config = Config::new();
        config.host("127.0.0.1").port(self.port).user(user).password(password).dbname("postgres");
        let (client, connection) = config.connect(NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    /// The same, as soon as pgweir listens.
    async fn connect_at_last(&self, user: &str, password: &str) -> Client {
        for _ in 0..TRIES {
            match self.connect(user, password).await {
                Ok(client) => return client,
                Err(error) if error.as_db_error().is_none() => tokio::time::sleep(PAUSE).await,
                Err(error) => panic!("{user}: {error:?}"),
            }
        }
        panic!("not listening:\n{}", fs::read_to_string(self.home.path().join("log")).unwrap_or_default());
    }
}

impl Drop for Weir {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn a_driver_logs_in_by_each_kind_of_secret_and_its_statements_work() {
    let pg = Pg::start("");
    pg.run_psql("create role plain login password 'pl4in'; create role keyed login password 'k3yed'");
    pg.run_psql("set password_encryption = 'md5'; create role old login password '0ld'");
    pg.set_hba(
        "local all all trust\nhost all old 127.0.0.1/32 md5\nhost all all 127.0.0.1/32 scram-sha-256\n",
    );
    let secret =
        |user: &str| pg.run_psql(&format!("select rolpassword from pg_authid where rolname = '{user}'"));
    let users = format!(
        "\"plain\" \"pl4in\"\n\"keyed\" \"{}\"\n\"old\" \"{}\"\n",
        secret("keyed").trim(),
        secret("old").trim()
    );
    let weir = Weir::start(&pg, &users);
    for (user, password) in [("plain", "pl4in"), ("keyed", "k3yed"), ("old", "0ld")] {
        let client = weir.connect_at_last(user, password).await;
        let row = client.query_one("select current_user::text, $1::int4 + 1", &[&41]).await.expect("a row");
        assert_eq!((row.get::<_, &str>(0), row.get::<_, i32>(1)), (user, 42));
        let wrong = weir.connect(user, "wrong").await.expect_err("refused");
        assert_eq!(wrong.code(), Some(&SqlState::INVALID_PASSWORD), "{user}");
    }
    let nobody = weir.connect("nobody", "pl4in").await.expect_err("refused");
    assert_eq!(nobody.code(), Some(&SqlState::INVALID_PASSWORD));
}
