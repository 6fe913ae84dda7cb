//! `avhdx relink`: corrects recorded paths to parents.

use std::error::Error as _;
use std::path::PathBuf;

use avhdx::ops::{Relink, Relinked};
use serde::Serialize;

use crate::args::ParentFlags;
use crate::failure::{ErrorFacts, Exit, Failure, Reply};
use crate::operation::run_steps;
use crate::output::Console;
use crate::text::count;
use crate::vocabulary::{Answer, shown};

/// Correct recorded paths that no longer lead to the parent, after files were moved or renamed.
///
/// Parents are found by their identity. Only the paths change. An image whose parent is ambiguous or missing is
/// reported and left unchanged.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// The folder of the images, with its subfolders.
    #[arg(value_name = "DIR")]
    places: PathBuf,
    /// Skip the subfolders of DIR.
    #[arg(long)]
    not_below: bool,
    /// Only print what would be done.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten, next_help_heading = "Parents")]
    parents: ParentFlags,
}

/// The recorded paths that were corrected, or would be.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct RelinkAnswer {
    dry_run: bool,
    images: Vec<RelinkedImage>,
    /// The images that stay as they are: the parent is missing or ambiguous.
    refused: Vec<ErrorFacts>,
    /// The number of images that were read.
    image_count: usize,
    /// The images that could not be read.
    unread: Vec<ErrorFacts>,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct RelinkedImage {
    image: String,
    /// The parent that the recorded paths lead to now.
    parent: String,
    /// The paths recorded before.
    recorded_before: Vec<String>,
}

impl Answer for RelinkAnswer {
    const SCHEMA: &'static str = "avhdx.relink/1";
}

impl RelinkAnswer {
    fn of(relinked: &Relinked, dry_run: bool) -> Self {
        let images = relinked.images.iter().map(|image| RelinkedImage {
            image: shown(&image.path),
            parent: shown(&image.parent),
            recorded_before: image.was.clone(),
        });
        Self {
            dry_run,
            images: images.collect(),
            refused: relinked.refused.iter().map(ErrorFacts::from).collect(),
            image_count: relinked.looked_at,
            unread: relinked.unread.iter().map(ErrorFacts::from).collect(),
        }
    }
}

pub(crate) fn run(args: Args, console: &mut Console) -> Result<Reply, Failure> {
    let relink =
        Relink::folder(&args.places).recursive(!args.not_below).parents(args.parents.source());
    let relinked = run_steps(console, "reading the images", |on| {
        let relink = relink.on_progress(on);
        if args.dry_run { relink.plan() } else { relink.run() }
    })?;
    if !args.dry_run {
        console.done();
    }
    if console.is_json() {
        console.document(&RelinkAnswer::of(&relinked, args.dry_run))?;
    } else {
        let what = if args.dry_run { "would be linked" } else { "linked" };
        for image in &relinked.images {
            let (path, parent) = (image.path.display(), image.parent.display());
            console.line(format!("{path}: {what} to {parent}"))?;
            console.line(format!("  recorded before: {}", image.was.join(", ")))?;
        }
        if relinked.images.is_empty() && relinked.refused.is_empty() {
            let place = args.places.display();
            console.line(match (relinked.looked_at, relinked.unread.len()) {
                (0, 0) => format!("{place}: no images found"),
                (0, unread) => format!("{place}: none of {unread} images could be read"),
                (read, 0) => {
                    format!("nothing to correct: the recorded paths of {read} images lead to their parents")
                }
                (read, unread) => {
                    format!("nothing to correct in {read} images; {unread} more could not be read")
                }
            })?;
        }
    }
    for error in relinked.unread.iter().chain(&relinked.refused) {
        let cause = error.source().map(|cause| format!(": {cause}"));
        console.warn(error.code(), &format!("{error}{}", cause.unwrap_or_default()));
    }
    match (relinked.refused.len(), relinked.unread.is_empty()) {
        (0, true) => Ok(Reply::Yes),
        (0, false) => Ok(Reply::No),
        (refused, _) => {
            let images = count(refused, "image");
            let message = format!("{images} not changed: the parent is missing or ambiguous");
            Err(Failure::new(Exit::Refused, "relink.refused", message))
        }
    }
}
