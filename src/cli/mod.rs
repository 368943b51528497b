//! The operator's commands. All but `run`, `check`, `init`, `completions` and `version` talk to a running pgweir's console like any other client.
//!
//! Nothing here decides or knows the configuration: what a command needs of it is passed in as [`Handlers`].

pub mod act;
pub mod args;
pub mod completions;
pub mod console;
pub mod endpoint;
pub mod exit;
pub mod report;
pub mod show;
pub mod sql;
pub mod status;
pub mod table;
pub mod timeline;
pub mod top;
pub mod verdict;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command, Drill, Global, Init, Suggest};
use console::{Console, Failure};
use endpoint::AdminEndpoint;

/// What the CLI needs of the rest of the program.
#[derive(Clone, Copy)]
pub struct Handlers {
    /// Runs the proxy with this configuration file until it ends.
    pub run: fn(&Path) -> ExitCode,
    /// Checks this configuration file; prints its findings, as JSON if told so.
    pub check: fn(&Path, bool) -> ExitCode,
    /// Writes a configuration for an Odoo to this file; tells about it, as JSON if told so.
    pub init: fn(&Init, &Path, bool) -> ExitCode,
    /// Where the console is and how to log in, by this configuration file. An error is shown as it is.
    pub admin: fn(&Path) -> Result<AdminEndpoint, String>,
    /// Tells what is suggested, by what a running pgweir said or else by the state directory of this configuration file; writes a file with it
    /// if told so; as JSON if told so.
    pub suggest: fn(&Suggest, Option<&str>, Option<&Path>, bool) -> ExitCode,
    /// Carries a drill out; as JSON if told so; with the console, if one is named.
    pub drill: fn(&Drill, bool, Option<AdminEndpoint>) -> ExitCode,
}

/// Parses the process's arguments and carries them out. Exit status: 0 done, 1 refused, 2 usage error, 3 cannot reach pgweir.
pub fn main(handlers: &Handlers) -> ExitCode {
    main_with(handlers, std::env::args_os())
}

/// The same with given arguments, the program's name first.
pub fn main_with(handlers: &Handlers, args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are errors to clap, too: it knows where each belongs and how it ends.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let done = match &cli.command {
        Command::Run => endpoint::config_file(&cli.global).map(|file| (handlers.run)(&file)),
        Command::Check => {
            endpoint::config_file(&cli.global).map(|file| (handlers.check)(&file, cli.global.json))
        }
        Command::Init(init) => {
            let output = init.output.as_deref().or(cli.global.config.as_deref());
            Ok((handlers.init)(init, output.unwrap_or(Path::new("pgweir.toml")), cli.global.json))
        }
        Command::Drill(drill) => console_of_drill(&cli.global, handlers)
            .map(|console| (handlers.drill)(drill, cli.global.json, console)),
        Command::Completions { shell } => print(&completions::script(*shell)).map(|_| ExitCode::SUCCESS),
        Command::Suggest(wanted) => suggest(&cli.global, handlers, wanted),
        Command::Version => print(&show::version(cli.global.json)).map(|_| ExitCode::SUCCESS),
        _ => endpoint::find(&cli.global, handlers.admin).and_then(|endpoint| ask(&cli, &endpoint)),
    };
    done.unwrap_or_else(|failure| {
        eprintln!("{failure}");
        failure.exit_code()
    })
}

/// A drill has a console only where one is named: a pgweir.toml that happens to lie here may be another's.
fn console_of_drill(global: &Global, handlers: &Handlers) -> Result<Option<AdminEndpoint>, Failure> {
    if global.admin.is_none() && global.config.is_none() {
        return Ok(None);
    }
    endpoint::find(global, handlers.admin).map(Some)
}

fn suggest(global: &Global, handlers: &Handlers, wanted: &Suggest) -> Result<ExitCode, Failure> {
    let file = match &global.admin {
        Some(_) => None,
        None => Some(endpoint::config_file(global)?),
    };
    if (wanted.state || wanted.write.is_some()) && file.is_none() {
        let text = "--state and --write need the configuration file: --config FILE in place of --admin";
        return Err(Failure::Usage(text.into()));
    }
    let told = match wanted.state {
        true => None,
        false => Some(runtime()?.block_on(suggestion(&endpoint::find(global, handlers.admin)?))?),
    };
    Ok((handlers.suggest)(wanted, told.as_deref(), file.as_deref(), global.json))
}

/// What the running pgweir suggests, as JSON.
async fn suggestion(endpoint: &AdminEndpoint) -> Result<String, Failure> {
    let table = Console::connect(endpoint).await?.show("SHOW SUGGESTION").await?;
    Ok(table.rows.into_iter().flatten().flatten().next().unwrap_or_default())
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    let built = tokio::runtime::Builder::new_current_thread().enable_all().build();
    built.map_err(|error| Failure::Unreachable(format!("cannot start: {error}")))
}

fn ask(cli: &Cli, endpoint: &AdminEndpoint) -> Result<ExitCode, Failure> {
    runtime()?.block_on(async {
        if cli.command == Command::Top {
            return Box::pin(top::run(endpoint)).await.map(|_| ExitCode::SUCCESS);
        }
        let console = Console::connect(endpoint).await?;
        let json = cli.global.json;
        let done = match &cli.command {
            Command::Exit(wanted) => {
                let met = exit::run(console, endpoint, wanted, json).await?;
                return Ok(ExitCode::from(u8::from(!met)));
            }
            Command::Status => status::run(&console, json).await,
            Command::Timeline(wanted) => timeline::run(&console, wanted, json).await,
            Command::Report(wanted) => report::run(&console, wanted).await,
            command => match (sql::show(command), sql::act(command)) {
                (Some(show), _) => show::run(&console, show, json).await,
                (None, Some(act)) => act::run(&console, &act, json).await,
                (None, None) => Err(Failure::Usage("this command needs no console".into())),
            },
        };
        done.map(|_| ExitCode::SUCCESS)
    })
}

/// Writes to standard output; false if nobody reads it any more (`| head`), which is no failure of ours.
fn print(text: &str) -> Result<bool, Failure> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::Usage(format!("cannot write the answer: {error}"))),
    }
}
