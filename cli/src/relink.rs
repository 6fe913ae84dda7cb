//! `avhdx relink`: paths to parents, set right.

use std::path::PathBuf;

use avhdx::ops::Relink;
use serde_json::json;

use crate::args;
use crate::exit::{Exit, Failure, Outcome};
use crate::output::Console;

/// Set the recorded paths of images right that no longer lead to their parents, after files were moved or renamed.
///
/// Parents are known by their identity. Nothing but the paths changes. What is ambiguous, or not found, is named and
/// left as it is.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// The folder of the images, with all folders in it.
    #[arg(value_name = "DIR")]
    places: PathBuf,
    /// Leave the folders in DIR alone.
    #[arg(long)]
    not_below: bool,
    /// Only say what would be done.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    parents: args::Parents,
}

pub(crate) fn run(args: Args, console: &mut Console) -> Result<Outcome, Failure> {
    let relink =
        Relink::folder(&args.places).recursive(!args.not_below).parents(args.parents.source());
    let relinked = if args.dry_run { relink.plan()? } else { relink.run()? };
    if console.is_json() {
        let images = relinked.images.iter().map(|image| {
            json!({
                "path": image.path.to_string_lossy(),
                "parent": image.parent.to_string_lossy(),
                "was": image.was,
            })
        });
        let refused = relinked.refused.iter().map(|error| {
            json!({ "path": error.file(), "code": error.code(), "message": error.to_string() })
        });
        console.document(&json!({
            "schema": "avhdx.relink/1",
            "dry_run": args.dry_run,
            "images": images.collect::<Vec<_>>(),
            "refused": refused.collect::<Vec<_>>(),
        }))?;
    } else {
        let what = if args.dry_run { "would be linked" } else { "linked" };
        for image in &relinked.images {
            let (path, parent) = (image.path.display(), image.parent.display());
            console.line(format!("{path}: {what} to {parent}"))?;
            console.line(format!("  recorded was: {}", image.was.join(", ")))?;
        }
        if relinked.images.is_empty() && relinked.refused.is_empty() {
            console.line(
                "nothing to set right: each image that can be read records a path to its parent",
            )?;
        }
    }
    for error in &relinked.refused {
        console.warn(error.code(), &error.to_string());
    }
    match relinked.refused.len() {
        0 => Ok(Outcome::Yes),
        refused => {
            let message = format!("{refused} of the images with stale paths were left as they are");
            Err(Failure::new(Exit::Refused, "relink.refused", message))
        }
    }
}
