//! `avhdx tree`: the forest of checkpoints below folders, and what is wrong with it.

mod advice;
mod draw;
mod json;
mod names;
mod tips;

use std::path::PathBuf;

use avhdx::ops::forest::Forest;

use crate::args;
use crate::exit::{Failure, Outcome};
use crate::output::Console;
use names::Names;

/// Draw the forest of checkpoints below folders and name what is wrong with it.
///
/// Finds all VHDX images, whatever they are called, and links them by their recorded identities, wherever they
/// lie. Answers "no" when a parent is missing, a link or a path is wrong, or a file is damaged or unreadable.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Folders to look through with all folders in them, or images.
    #[arg(value_name = "DIR", required = true)]
    places: Vec<PathBuf>,
    /// One row per tip instead: complete or broken, depth, pending logs, and the commands to go on with.
    #[arg(long)]
    tips: bool,
    /// Draw with ASCII characters.
    #[arg(long)]
    ascii: bool,
    #[command(flatten)]
    parents: args::Parents,
}

pub(crate) fn run(args: Args, console: &mut Console) -> Result<Outcome, Failure> {
    let forest = Forest::scan(&args.places, &args.parents.source())?;
    let names = Names::new(&forest, &args.places);
    if console.is_json() {
        console.document(&json::document(&names))?;
    } else if args.tips {
        tips::print(&names, console)?;
    } else {
        draw::print(&names, args.ascii, console)?;
        advice::print(&names, console)?;
    }
    let is_sound = forest.findings().iter().all(|finding| !finding.is_fault());
    Ok(if is_sound { Outcome::Yes } else { Outcome::No })
}
