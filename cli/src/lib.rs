//! The program `avhdx`, as a library for its examples and tests.
//!
//! Each verb is a module. The modules form floors; imports point down only, from the top:
//!
//! 1. this file: the command line;
//! 2. the verbs: `bench`, `cat`, `check`, `checkpoint`, `compact`, `compare`, `convert`, `cp`, `create`, `delete`, `df`,
//!    `diff`, `discard`, `explain`, `flatten`, `info`, `label`, `ls`, `map`, `measure`, `merge`, `metadata`, `pages`,
//!    `read`, `rebase`, `relink`, `repair`, `reparent`, `resize`, `revert`, `seal`, `snapshots`, `tree`, `verify`, `versions`,
//!    `write`, `zero`, and
//!    `complete`, which answers shells;
//! 3. `merging`, `copying`: the merges of `merge` and `delete`, the copies of `convert` and `flatten`;
//! 4. `forks`: other branches on a point; `seals`: seals of chains that change;
//! 5. `operation`, `writing`, `new_file`, `printing`: chains, images and files that a verb changes, and bytes that it
//!    prints;
//! 6. `endings`, `input`, `loss`, `partitions`: names of new files, disks that a verb reads, consent to lost data, and
//!    tables of partitions; above them `volume`: the file system of a disk that a verb reads;
//! 7. `facts`, `parents`: what is shown of an image, and suggestions for a wrong parent;
//! 8. `gpt`: GUID partition tables;
//! 9. `args`, `points`: flags that verbs share, and points in time of a chain;
//! 10. `interrupt`, `progress`;
//! 11. `output`: standard output and standard error;
//! 12. `render`: failures as text and JSON;
//! 13. `next`: the table of suggested commands;
//! 14. `typed`: the command line as typed;
//! 15. `failure`: errors and exit codes;
//! 16. `examples`, `point`, `shell`, `table`, `values`, `vocabulary`;
//! 17. `paint`, `screen`, `text`.

mod args;
mod bench;
mod cat;
mod check;
mod checkpoint;
#[cfg(test)]
mod codes;
mod compact;
mod compare;
mod complete;
mod convert;
mod copying;
mod cp;
mod create;
mod delete;
mod df;
mod diff;
mod digest;
mod discard;
mod endings;
mod examples;
mod explain;
mod facts;
mod failure;
mod flatten;
mod foreign;
mod forks;
mod gpt;
mod info;
mod input;
mod interrupt;
mod keeping;
mod label;
mod loss;
mod ls;
mod map;
mod measure;
mod merge;
mod merging;
mod metadata;
mod new_file;
mod next;
mod operation;
mod output;
mod pages;
mod paint;
mod parents;
mod partitions;
mod point;
mod points;
mod printing;
mod progress;
mod qcow2;
mod read;
mod rebase;
mod relink;
mod render;
mod repair;
mod reparent;
mod rescue;
mod resize;
mod revert;
#[cfg(test)]
mod schemas;
mod screen;
mod seal;
mod seals;
mod shell;
mod snapshots;
mod table;
mod text;
mod tree;
mod typed;
mod unused;
mod values;
mod verify;
mod versions;
mod vhd;
mod vocabulary;
mod volume;
mod write;
mod writing;
mod zero;

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Command, CommandFactory, FromArgMatches, Parser, Subcommand};

use failure::{Exit, Failure, Reply};
use output::Console;
use text::printable;

/// Inspects, reads, converts, makes and writes Hyper-V virtual disks and checkpoint chains (.vhdx, .avhdx).
///
/// Only write, zero, discard, checkpoint, delete, label, metadata, revert, merge, compact, rebase, reparent, relink,
/// repair, resize and bench --write change an existing image.
/// IMAGE is a file, or a point in time of a chain, written IMAGE@SEL: @-N is N checkpoints below the tip, @base the
/// base, @NAME the layer with that file name or label, @HEX the layer whose DataWriteGuid starts with these digits (four
/// or more). Sizes and offsets are in bytes, decimal or hexadecimal (0x), or have a suffix K, M, G or T.
#[derive(Debug, Parser)]
#[command(name = "avhdx", version, max_term_width = 100, after_help = EXIT_CODES)]
struct Cli {
    /// Print JSON or JSON Lines, including errors and warnings on standard error.
    #[arg(long, global = true)]
    json: bool,
    /// Print neither progress nor notes, only answers, warnings and errors.
    #[arg(short, long, global = true)]
    quiet: bool,
    #[command(subcommand)]
    verb: Verb,
}

const EXIT_CODES: &str = "\
Exit codes:
  0 yes   1 no (differs, findings)   2 usage   3 I/O or space   4 damaged
  5 parent missing, mismatched or denied   6 in use   7 refused for safety
  8 done, with losses   130 interrupted";

#[derive(Debug, Subcommand)]
enum Verb {
    Info(info::Args),
    Tree(tree::Args),
    Map(map::Args),
    Explain(explain::Args),
    Read(read::Args),
    Ls(ls::Args),
    Cat(cat::Args),
    #[command(visible_alias = "extract")]
    Cp(cp::Args),
    Versions(versions::Args),
    Df(df::Args),
    Convert(convert::Args),
    Flatten(flatten::Args),
    Create(create::Args),
    Write(write::Args),
    Zero(zero::Args),
    Discard(discard::Args),
    Checkpoint(checkpoint::Args),
    #[command(visible_alias = "snapshots")]
    Points(snapshots::Args),
    Delete(delete::Args),
    Label(label::Args),
    Metadata(metadata::Args),
    #[command(visible_alias = "apply")]
    Revert(revert::Args),
    #[command(visible_alias = "commit")]
    Merge(merge::Args),
    Rebase(rebase::Args),
    Compact(compact::Args),
    Reparent(reparent::Args),
    Relink(relink::Args),
    Repair(repair::Args),
    Diff(diff::Args),
    Resize(resize::Args),
    Compare(compare::Args),
    Check(check::Args),
    Rescue(rescue::Args),
    Seal(seal::Args),
    Verify(verify::Args),
    Measure(measure::Args),
    Bench(bench::Args),
    Completions(pages::CompletionsArgs),
    Man(pages::ManArgs),
}

impl Verb {
    fn run(self, console: &mut Console) -> Result<Reply, Failure> {
        match self {
            Self::Info(args) => info::run(args, console),
            Self::Tree(args) => tree::run(args, console),
            Self::Map(args) => map::run(args, console),
            Self::Explain(args) => explain::run(args, console),
            Self::Read(args) => read::run(args, console),
            Self::Ls(args) => ls::run(args, console),
            Self::Cat(args) => cat::run(args, console),
            Self::Cp(args) => cp::run(args, console),
            Self::Versions(args) => versions::run(args, console),
            Self::Df(args) => df::run(args, console),
            Self::Convert(args) => convert::run(args, console),
            Self::Flatten(args) => flatten::run(args, console),
            Self::Create(args) => create::run(args, console),
            Self::Write(args) => write::run(args, console),
            Self::Zero(args) => zero::run(args, console),
            Self::Discard(args) => discard::run(args, console),
            Self::Checkpoint(args) => checkpoint::run(args, console),
            Self::Points(args) => snapshots::run(args, console),
            Self::Delete(args) => delete::run(args, console),
            Self::Label(args) => label::run(args, console),
            Self::Metadata(args) => metadata::run(args, console),
            Self::Revert(args) => revert::run(args, console),
            Self::Merge(args) => merge::run(args, console),
            Self::Rebase(args) => rebase::run(args, console),
            Self::Compact(args) => compact::run(args, console),
            Self::Reparent(args) => reparent::run(args, console),
            Self::Relink(args) => relink::run(args, console),
            Self::Repair(args) => repair::run(args, console),
            Self::Diff(args) => diff::run(args, console),
            Self::Resize(args) => resize::run(args, console),
            Self::Compare(args) => compare::run(args, console),
            Self::Check(args) => check::run(args, console),
            Self::Rescue(args) => rescue::run(args, console),
            Self::Seal(args) => seal::run(args, console),
            Self::Verify(args) => verify::run(args, console),
            Self::Measure(args) => measure::run(args, console),
            Self::Bench(args) => bench::run(args, console),
            Self::Completions(args) => {
                pages::completions(args, complete::by_names(program()), console)
            }
            Self::Man(args) => pages::man(args, program(), console),
        }
    }
}

/// The definition of the command line.
fn program() -> Command {
    examples::shown_by(Cli::command())
}

/// Runs the program. The first argument is its name.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    match complete::answer(program, &args) {
        Ok(true) => return Exit::Yes.code(),
        Ok(false) => {}
        Err(error) => return print_usage(&error, &args),
    }
    let parsed = program().try_get_matches_from(&args).and_then(|matches| {
        typed::remember(&args, &matches, program());
        Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut program()))
    });
    let (mut console, done) = match parsed {
        Ok(cli) => {
            let mut console = Console::new(cli.json, cli.quiet);
            interrupt::arm(cli.json);
            let done = cli.verb.run(&mut console).and_then(|answer| {
                console.flush()?;
                let is_lossy = answer == Reply::Yes && console.has_losses();
                Ok(if is_lossy { Reply::Losses } else { answer })
            });
            let done = done.map_err(|failure| match console.is_repaired() {
                true => failure.also("the image was repaired before, with your consent"),
                false => failure,
            });
            (console, done)
        }
        Err(error) if error.use_stderr() && args.iter().any(|arg| arg == "--json") => {
            let failure = Failure::usage("usage", error.to_string().trim()).then(help(&args));
            (Console::new(true, false), Err(failure))
        }
        Err(error) => return print_usage(&error, &args),
    };
    match done {
        Ok(answer) => answer.code(),
        Err(failure) => {
            console.failure(&failure);
            failure.exit.code()
        }
    }
}

/// Prints what the parser of arguments has to say: help and the version, or an error.
fn print_usage(error: &clap::Error, args: &[OsString]) -> ExitCode {
    // What was typed comes back in an error, and may be a name that somebody else chose.
    let is_plain = |arg: &OsString| printable(&arg.to_string_lossy()) == arg.to_string_lossy();
    let printed = match error.use_stderr() && !args.iter().all(is_plain) {
        true => {
            let text = error.to_string();
            text.lines().try_for_each(|line| writeln!(io::stderr(), "{}", printable(line)))
        }
        false => error.print(),
    };
    if !error.use_stderr() {
        return match printed.and_then(|()| io::stdout().flush()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Exit::Io.code(),
            // A closed pipe is not an error.
            _ => Exit::Yes.code(),
        };
    }
    // Without a verb, the error is the help itself.
    if error.kind() != ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        // Nobody is left to be told of a failure.
        drop(writeln!(io::stderr(), "{}", render::next_line(&help(args))));
    }
    Exit::Usage.code()
}

/// The command that prints the help of the verb typed.
fn help(args: &[OsString]) -> String {
    let program = program();
    let verb = args.iter().skip(1).find_map(|arg| program.find_subcommand(arg));
    verb.map_or("avhdx --help".into(), |verb| format!("avhdx {} --help", verb.get_name()))
}

/// The names of the rows of the table of suggestions, for the test that covers them all.
#[doc(hidden)]
pub fn rows() -> Vec<&'static str> {
    next::all_rows().map(|(name, ..)| *name).collect()
}

/// The name of the row for a failure, given as its JSON, for the same test.
#[doc(hidden)]
pub fn row_of(verb: &str, error: &serde_json::Value) -> Option<&'static str> {
    let text = |key: &str| error[key].as_str();
    let exit = error["exit"].as_u64().and_then(|exit| u8::try_from(exit).ok())?;
    let row = next::row_of(verb, text("code")?, text("kind"), exit, text("child").is_some());
    row.map(|(name, ..)| *name)
}
