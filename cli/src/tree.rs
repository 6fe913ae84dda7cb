//! `avhdx tree`: the forest of checkpoints in folders, and its faults.

mod advice;
mod draw;
pub(crate) mod json;
mod names;
mod tips;

use std::path::PathBuf;

use avhdx::ops::forest::Forest;

use crate::args::ParentFlags;
use crate::failure::{Failure, Reply};
use crate::output::Console;
use crate::progress::Activity;
use json::TreeAnswer;
use names::Names;

/// Draw the forest of checkpoints in folders, and list its faults.
///
/// Finds VHDX images by content and links them by their recorded identities, independent of names and paths. The exit
/// code is 1 if a parent is missing, a link or a path is wrong, or a file is damaged or unreadable.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Folders to search with their subfolders, or images.
    #[arg(value_name = "DIR", default_value = ".")]
    places: Vec<PathBuf>,
    /// Print one row per tip instead: complete or broken, depth, pending logs, and commands for it.
    #[arg(long)]
    tips: bool,
    /// Draw with ASCII characters.
    #[arg(long)]
    ascii: bool,
    #[command(flatten, next_help_heading = "Parents")]
    parents: ParentFlags,
}

pub(crate) fn run(args: Args, console: &mut Console) -> Result<Reply, Failure> {
    let activity = Activity::of(console, "reading the images");
    let forest = Forest::scan(&args.places, &args.parents.source())?;
    drop(activity);
    let names = Names::new(&forest, &args.places);
    if console.is_json() {
        console.document(&TreeAnswer::of(&names))?;
    } else if args.tips {
        tips::print(&names, console)?;
    } else {
        draw::print(&names, args.ascii, console)?;
        advice::print(&names, console)?;
    }
    let is_sound = forest.findings().iter().all(|finding| !finding.is_fault());
    Ok(if is_sound { Reply::Yes } else { Reply::No })
}
