//! `avhdx reparent`: links an image to another parent.

use std::path::Path;

use avhdx::OpenOptions;
use avhdx::ops::{Pace, Rebase, Reparent};
use serde::Serialize;

use crate::args::{ChainFlags, ImageArg, with_children};
use crate::failure::{Failure, Reply};
use crate::input::{self, Resolved};
use crate::operation;
use crate::output::Console;
use crate::point::Point;
use crate::shell::argument;
use crate::text::size;
use crate::typed;
use crate::values;
use crate::vocabulary::{Answer, ImageRef};

/// Link an image to another parent, for instance after a move or a copy. No data is moved.
///
/// First compares all data that the image takes from its parent in both parents, and refuses the change if it differs.
/// Ranges at the same offset of the same file are not read.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    image: ImageArg,
    /// The new parent, or a point in time of its chain: BASE@SEL.
    #[arg(long, value_name = "BASE")]
    onto: std::ffi::OsString,
    /// Change the link without the comparison, for instance if the old parent is lost. The content of the disk then
    /// depends on BASE.
    #[arg(long)]
    unproven: bool,
    /// With --unproven: change the link even if IMAGE has a child. The child loses its parent: IMAGE gets a new
    /// identity, because its content may change.
    #[arg(long, requires = "unproven")]
    orphan_children: bool,
    /// Look for children of IMAGE in DIR too, in addition to its own folder. Can be repeated.
    #[arg(long, value_name = "DIR", requires = "unproven")]
    children_in: Vec<std::path::PathBuf>,
    /// Read at most SIZE bytes per second.
    #[arg(long, value_name = "SIZE", value_parser = values::rate, allow_negative_numbers = true)]
    rate: Option<u64>,
    /// Only print what would be done, and how much has to be read for the comparison.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten, next_help_heading = "Parents")]
    chain: ChainFlags,
}

/// A parent that was set.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct ReparentAnswer {
    image: String,
    parent: ImageRef,
    /// The bytes that are equal in both parents.
    proven: u64,
    /// The bytes that were not compared.
    unproven: u64,
}

impl Answer for ReparentAnswer {
    const SCHEMA: &'static str = "avhdx.reparent/1";
}

pub(crate) fn run(args: Args, console: &mut Console) -> Result<Reply, Failure> {
    let options = args.chain.options().orphan_children(args.orphan_children);
    let options = with_children(options, &args.children_in)?;
    // The image's own chain need not open.
    let image = match Point::parse(&args.image.image) {
        Point { image, selector: None } => image,
        _ => input::resolve(&args.image.image, &options, console)?.path,
    };
    let Resolved { path: base, .. } = input::resolve(&args.onto, &options, console)?;
    let pace = Pace::new();
    pace.limit(args.rate);
    let reparent = Reparent::new(&base).unproven(args.unproven).options(options.clone()).pace(pace);
    if args.dry_run {
        let forecast = reparent.forecast(&image)?;
        operation::print_forecast(&forecast, console)?;
        return Ok(Reply::Yes);
    }
    let done = operation::run(console, |on| Ok(reparent.on_progress(on).run(&image)))?;
    let done = done.map_err(|error| or_rebase(error, &image, &base, options))?;
    console.warnings(&done.warnings);
    let [image, base] = [&done.path, &done.parent].map(|path| path.display().to_string());
    console.done();
    if console.is_json() {
        console.document(&ReparentAnswer {
            image,
            parent: ImageRef { image: base, data_write_guid: done.linkage },
            proven: done.proven,
            unproven: done.unproven,
        })?;
    } else {
        console.line(format!("{image}: the parent is now {base}, {}", done.linkage))?;
        match done.unproven {
            0 => console.line(format!("  {} proven equal in both parents", size(done.proven)))?,
            unproven => console.line(format!("  {} not compared", size(unproven)))?,
        }
    }
    Ok(Reply::Yes)
}

/// The failure of a reparent, with the rebase that would do if the bytes differ.
fn or_rebase(error: avhdx::Error, image: &Path, base: &Path, options: OpenOptions) -> Failure {
    if error.code() != "reparent.differs" {
        return error.into();
    }
    let forecast = Rebase::new(base).options(options).forecast(image);
    let failure = Failure::from(error);
    let Ok(forecast) = forecast else { return failure };
    let most = size(forecast.written);
    let command = typed::with_parents("rebase", image);
    let command = format!("{command} --onto {}", argument(base));
    failure
        .hint(format!("rebase keeps the disk as it is, and writes at most {most} into the image"))
        .then(command)
}
