//! `avhdx completions` and `avhdx man`, generated from the definition of the command line.

use clap::Command;
use clap_complete::Shell;

use crate::failure::{Failure, Reply};
use crate::output::Console;

/// Print a completion script for a shell.
#[derive(clap::Args, Debug)]
pub(crate) struct CompletionsArgs {
    #[arg(value_enum)]
    shell: Shell,
}

/// Print the manual page of the program or of a verb, in roff.
#[derive(clap::Args, Debug)]
pub(crate) struct ManArgs {
    /// The verb [default: the program].
    verb: Option<String>,
}

pub(crate) fn completions(
    args: CompletionsArgs,
    mut command: Command,
    console: &mut Console,
) -> Result<Reply, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "avhdx", &mut script);
    console.bytes(&script)?;
    Ok(Reply::Yes)
}

pub(crate) fn man(
    args: ManArgs,
    mut command: Command,
    console: &mut Console,
) -> Result<Reply, Failure> {
    command.build();
    if let Some(verb) = args.verb {
        let found = command.get_subcommands().find(|sub| sub.get_name() == verb);
        let page =
            found.ok_or_else(|| Failure::usage("man.verb", format!("there is no verb {verb}")))?;
        command = page.clone();
    }
    let mut page = Vec::new();
    clap_mangen::Man::new(command)
        .render(&mut page)
        .map_err(|error| Failure::io("man.render", "cannot write the page", &error))?;
    console.bytes(&page)?;
    Ok(Reply::Yes)
}
