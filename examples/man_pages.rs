//! Writes pgweir's man pages, one for each command, into a directory: `cargo run --example man_pages -- DIRECTORY`. Made from the
//! command line's grammar, so that they cannot differ from it; an example, so that the program does not carry what makes them.

use std::path::Path;
use std::{env, fs, io};

use clap::CommandFactory;
use pgweir::cli::args::Cli;

/// What the grammar does not know.
const MORE: &str = r"
.SH FILES
.TP
.I /etc/pgweir/pgweir.toml
The configuration. A
.I pgweir.toml
in the working directory wins over it. All keys:
.I /usr/share/doc/pgweir/docs/configuration.md
and
.IR /usr/share/doc/pgweir/config/pgweir.toml .
.TP
.I /var/lib/pgweir
Pauses, timeline, incidents,
.I peaks.json
(for
.BR pgweir\ suggest ),
.I upstream.json
(which cluster was served), and the console's password, in
.IR admin.password .
.TP
.I /run/pgweir/.s.PGSQL.6432
The socket for clients of this host, where the configuration has
.BR unix:/run/pgweir .
.SH ENVIRONMENT
.TP
.B PGWEIR_PASSWORD
The console's password, for
.BR \-\-admin .
.TP
.B RUST_LOG
What
.B pgweir run
logs, to standard error: a level, or a level for each module.
.TP
.B PGWEIR_ALLOW_DUMPS
Set to 1, core dumps and debuggers are let in, for as long as something is looked for.
.SH SIGNALS
.TP
.B SIGHUP
Read the configuration again; one that is wrong changes nothing.
.TP
.BR SIGTERM ,\  SIGINT
End: transactions may finish, within
.BR drain_timeout .
A second one ends at once.
.SH SEE ALSO
.BR psql (1),
.BR systemctl (1),
.I /usr/share/doc/pgweir
";

fn main() -> io::Result<()> {
    let Some(directory) = env::args_os().nth(1) else {
        return Err(io::Error::other("which directory?"));
    };
    let directory = Path::new(&directory);
    fs::create_dir_all(directory)?;
    clap_mangen::generate_to(Cli::command(), directory)?;
    for page in fs::read_dir(directory)? {
        let page = page?.path();
        // What the grammar has after its options is what statuses mean.
        let mut text = fs::read_to_string(&page)?.replace(".SH EXTRA\n", ".SH \"EXIT STATUS\"\n");
        if page.ends_with("pgweir.1") {
            text.truncate(text.trim_end().len());
            text.push_str(MORE);
        }
        fs::write(page, text)?;
    }
    Ok(())
}
