//! The `pgweir` command.

use std::process::ExitCode;

use pgweir::{app, cli};

fn main() -> ExitCode {
    cli::main(&cli::Handlers {
        run: app::run,
        check: app::check,
        init: app::init,
        admin: app::admin_endpoint,
        suggest: app::suggest,
        drill: app::drill,
    })
}
