//! Completion scripts, made from the command line's grammar.

use clap::CommandFactory;
use clap_complete::generate;
use clap_complete::shells::{Bash, Fish, Zsh};

use super::args::{Cli, Shell};

/// The script for a shell.
pub fn script(shell: Shell) -> String {
    let (mut command, mut out) = (Cli::command(), Vec::new());
    match shell {
        Shell::Bash => generate(Bash, &mut command, "pgweir", &mut out),
        Shell::Fish => generate(Fish, &mut command, "pgweir", &mut out),
        Shell::Zsh => generate(Zsh, &mut command, "pgweir", &mut out),
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_is_completed_in_every_shell() {
        let command = Cli::command();
        let names: Vec<_> = command.get_subcommands().map(clap::Command::get_name).collect();
        assert!(names.contains(&"freeze") && names.len() > 20);
        for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
            let script = script(shell);
            for name in &names {
                assert!(script.contains(name), "{shell:?} lacks {name}");
            }
        }
    }
}
