//! The program `avhdx`, as a library so that its examples and tests can call it.
//!
//! One file per verb. Around them: `args` (flags that verbs share), `point` (`IMAGE@SEL`), `input` (from
//! an argument to a disk), `output` (text and JSON), `parents` (chains that lack theirs), `exit` (from an error to an exit code), `next` (from
//! an error to the command to go on with), `shell` (commands as they are typed), `replace` (files that appear whole or not at all), `writing` (images that a verb changes), `interrupt`
//! (Ctrl-C), `progress`.

mod args;
mod bench;
mod check;
mod checkpoint;
mod compare;
mod convert;
mod create;
mod discard;
mod exit;
mod explain;
mod facts;
mod info;
mod input;
mod interrupt;
mod loss;
mod map;
mod measure;
mod merge;
mod next;
mod operation;
mod output;
mod pages;
mod parents;
mod point;
mod progress;
mod read;
mod relink;
mod reparent;
mod replace;
mod revert;
mod shell;
mod tree;
mod write;
mod writing;
mod zero;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};

use exit::{Failure, Outcome};
use output::Console;

/// Looks into Hyper-V virtual disks and checkpoint chains (.vhdx, .avhdx), reads, converts, makes and writes
/// them.
///
/// Only write, zero, discard, checkpoint, revert, merge, reparent, relink and bench
/// --write change an image that is there. IMAGE is a file, or a point in time of a chain, written IMAGE@SEL:
/// @-N is N checkpoints below the tip, @base the base, @NAME the layer of that file name or label, @HEX
/// the layer whose DataWriteGuid starts so (four digits or more). Sizes and offsets are bytes (0x too), or carry K, M, G
/// or T.
#[derive(Debug, Parser)]
#[command(name = "avhdx", version, max_term_width = 100, after_help = EXIT_CODES)]
struct Cli {
    /// Print JSON (JSON Lines where there is much), errors and warnings on standard error included.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    verb: Verb,
}

const EXIT_CODES: &str = "\
Exit codes:
  0 yes   1 answered \"no\" (differs, findings)   2 usage   3 I/O or space   4 damaged
  5 parent missing, mismatched or denied   6 in use   7 refused for safety
  8 done, with losses   130 interrupted";

#[derive(Debug, Subcommand)]
enum Verb {
    Info(info::Args),
    Tree(tree::Args),
    Map(map::Args),
    Explain(explain::Args),
    Read(read::Args),
    Convert(convert::Args),
    Create(create::Args),
    Write(write::Args),
    Zero(zero::Args),
    Discard(discard::Args),
    Checkpoint(checkpoint::Args),
    #[command(visible_alias = "apply")]
    Revert(revert::Args),
    #[command(visible_alias = "commit")]
    Merge(merge::Args),
    #[command(visible_alias = "rebase")]
    Reparent(reparent::Args),
    Relink(relink::Args),
    Compare(compare::Args),
    Check(check::Args),
    Measure(measure::Args),
    Bench(bench::Args),
    Completions(pages::CompletionsArgs),
    Man(pages::ManArgs),
}

impl Verb {
    fn run(self, console: &mut Console) -> Result<Outcome, Failure> {
        match self {
            Self::Info(args) => info::run(args, console),
            Self::Tree(args) => tree::run(args, console),
            Self::Map(args) => map::run(args, console),
            Self::Explain(args) => explain::run(args, console),
            Self::Read(args) => read::run(args, console),
            Self::Convert(args) => convert::run(args, console),
            Self::Create(args) => create::run(args, console),
            Self::Write(args) => write::run(args, console),
            Self::Zero(args) => zero::run(args, console),
            Self::Discard(args) => discard::run(args, console),
            Self::Checkpoint(args) => checkpoint::run(args, console),
            Self::Revert(args) => revert::run(args, console),
            Self::Merge(args) => merge::run(args, console),
            Self::Reparent(args) => reparent::run(args, console),
            Self::Relink(args) => relink::run(args, console),
            Self::Compare(args) => compare::run(args, console),
            Self::Check(args) => check::run(args, console),
            Self::Measure(args) => measure::run(args, console),
            Self::Bench(args) => bench::run(args, console),
            Self::Completions(args) => pages::completions(args, Cli::command(), console),
            Self::Man(args) => pages::man(args, Cli::command(), console),
        }
    }
}

/// Runs the program with these arguments, the program's name the first of them.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    let json = args.iter().any(|arg| arg == "--json");
    let parsed = matches(args.clone()).and_then(|matches| {
        next::remember(&args, &matches);
        Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut Cli::command()))
    });
    let (mut console, done) = match parsed {
        Ok(cli) => {
            let mut console = Console::new(cli.json);
            interrupt::arm(cli.json);
            let done = cli.verb.run(&mut console).and_then(|outcome| {
                console.flush()?;
                let is_lossy = outcome == Outcome::Yes && console.has_losses();
                Ok(if is_lossy { Outcome::Losses } else { outcome })
            });
            let done = done.map_err(|failure| match console.is_mended() {
                true => failure.also("the image was mended before, as was agreed to"),
                false => failure,
            });
            (console, done)
        }
        // Help and versions are answers: clap prints them to standard output.
        Err(error) if !error.use_stderr() || !json => {
            let printed = error.print();
            return if error.use_stderr() || printed.is_err() {
                exit::usage_code(error.use_stderr())
            } else {
                ExitCode::SUCCESS
            };
        }
        Err(error) => (Console::new(true), Err(Failure::usage("usage", error.to_string().trim()))),
    };
    match done {
        Ok(outcome) => outcome.code(),
        Err(failure) => {
            console.failure(&failure);
            failure.exit.code()
        }
    }
}

/// The names of the rows of the table of what to do after a failure: for the test that walks them.
#[doc(hidden)]
pub fn rows() -> Vec<&'static str> {
    next::ROWS.iter().map(|(name, ..)| *name).collect()
}

/// The name of the row that speaks for a failure, as its JSON has it: for the same test.
#[doc(hidden)]
pub fn row_of(verb: &str, error: &serde_json::Value) -> Option<&'static str> {
    let text = |key: &str| error[key].as_str();
    let exit = error["exit"].as_u64().and_then(|exit| u8::try_from(exit).ok())?;
    let row = next::row_of(verb, text("code")?, text("kind"), exit, text("child").is_some());
    row.map(|(name, ..)| *name)
}

/// What these arguments mean, the program's name the first of them.
fn matches(args: impl IntoIterator<Item = OsString>) -> Result<ArgMatches, clap::Error> {
    Cli::command().try_get_matches_from(args)
}

/// Whether these arguments mean anything, the program's name the first of them.
fn is_understood(args: impl IntoIterator<Item = OsString>) -> bool {
    matches(args).is_ok()
}
