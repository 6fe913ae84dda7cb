//! `avhdx relink`: paths to parents, set right.

use std::error::Error as _;
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
    if !args.dry_run {
        console.done();
    }
    if console.is_json() {
        let images = relinked.images.iter().map(|image| {
            json!({
                "path": image.path.to_string_lossy(),
                "parent": image.parent.to_string_lossy(),
                "was": image.was,
            })
        });
        let told = |error: &avhdx::Error| json!({ "path": error.file(), "code": error.code(), "message": error.to_string() });
        let refused = relinked.refused.iter().map(told);
        console.document(&json!({
            "schema": "avhdx.relink/1",
            "dry_run": args.dry_run,
            "images": images.collect::<Vec<_>>(),
            "refused": refused.collect::<Vec<_>>(),
            "looked_at": relinked.looked_at,
            "unread": relinked.unread.iter().map(told).collect::<Vec<_>>(),
        }))?;
    } else {
        let what = if args.dry_run { "would be linked" } else { "linked" };
        for image in &relinked.images {
            let (path, parent) = (image.path.display(), image.parent.display());
            console.line(format!("{path}: {what} to {parent}"))?;
            console.line(format!("  recorded was: {}", image.was.join(", ")))?;
        }
        if relinked.images.is_empty() && relinked.refused.is_empty() {
            let place = args.places.display();
            console.line(match (relinked.looked_at, relinked.unread.len()) {
                (0, 0) => format!("{place}: no images are there"),
                (0, unread) => format!("{place}: no image could be read, of {unread} to be looked at"),
                (looked_at, 0) => format!(
                    "nothing to set right: all recorded paths of {looked_at} images lead to their parents"
                ),
                (looked_at, unread) => format!(
                    "nothing to set right in {looked_at} images; {unread} more could not be read"
                ),
            })?;
        }
    }
    for error in relinked.unread.iter().chain(&relinked.refused) {
        let cause = error.source().map(|cause| format!(": {cause}"));
        console.warn(error.code(), &format!("{error}{}", cause.unwrap_or_default()));
    }
    match (relinked.refused.len(), relinked.unread.is_empty()) {
        (0, true) => Ok(Outcome::Yes),
        (0, false) => Ok(Outcome::No),
        (1, _) => Err(left("1 image was left as it is, for it may lack its parent".into())),
        (refused, _) => Err(left(format!(
            "{refused} images were left as they are, for they may lack their parents"
        ))),
    }
}

fn left(message: String) -> Failure {
    Failure::new(Exit::Refused, "relink.refused", message)
}
