//! `avhdx completions` and `avhdx man`, generated from the definition of the command line.

use clap::Command;
use clap_complete::Shell;
use serde::Serialize;

use crate::failure::{Failure, Reply};
use crate::output::Console;
use crate::vocabulary::Answer;

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

/// A completion script.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct CompletionsAnswer {
    shell: String,
    script: String,
}

impl Answer for CompletionsAnswer {
    const SCHEMA: &'static str = "avhdx.completions/1";
}

/// A manual page.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct ManAnswer {
    /// Null for the page of the program.
    verb: Option<String>,
    /// The page, in roff.
    page: String,
}

impl Answer for ManAnswer {
    const SCHEMA: &'static str = "avhdx.man/1";
}

pub(crate) fn completions(
    args: CompletionsArgs,
    mut command: Command,
    console: &mut Console,
) -> Result<Reply, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "avhdx", &mut script);
    if console.is_json() {
        let script = String::from_utf8_lossy(&script).into_owned();
        console.document(&CompletionsAnswer { shell: args.shell.to_string(), script })?;
    } else {
        console.bytes(&script)?;
    }
    Ok(Reply::Yes)
}

pub(crate) fn man(
    args: ManArgs,
    mut command: Command,
    console: &mut Console,
) -> Result<Reply, Failure> {
    command.build();
    if let Some(verb) = &args.verb {
        let found = command.get_subcommands().find(|sub| sub.get_name() == verb.as_str());
        let page =
            found.ok_or_else(|| Failure::usage("man.verb", format!("there is no verb {verb}")))?;
        command = page.clone();
    }
    let mut page = Vec::new();
    clap_mangen::Man::new(command)
        .render(&mut page)
        .map_err(|error| Failure::io("man.render", "cannot write the page", &error))?;
    if console.is_json() {
        let page = String::from_utf8_lossy(&page).into_owned();
        console.document(&ManAnswer { verb: args.verb, page })?;
    } else {
        console.bytes(&page)?;
    }
    Ok(Reply::Yes)
}
