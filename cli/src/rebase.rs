//! `avhdx rebase`: puts an image on another base.

use std::path::Path;

use avhdx::ops::{Pace, Rebase};
use serde::Serialize;

use crate::args::{ChainFlags, ImageArg};
use crate::failure::{Failure, Reply};
use crate::input::{self, Resolved};
use crate::operation;
use crate::output::Console;
use crate::parents;
use crate::seals;
use crate::shell::argument;
use crate::text::size;
use crate::typed;
use crate::values;
use crate::vocabulary::{Answer, ImageRef};

/// Put an image on another base. Its disk stays as it is.
///
/// Where the image takes data from its parent and BASE differs, the parent's data is written into the image; only what
/// may differ is read. Then the link is changed. Killed at any moment, the image reads as before; run the command again.
/// Its children stay valid. The image must not be in use.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    image: ImageArg,
    /// The new base, or a point in time of a chain: BASE@SEL. One in the chain of IMAGE takes the layers between into
    /// IMAGE.
    #[arg(long, value_name = "BASE")]
    onto: std::ffi::OsString,
    /// The unsafe mode of qemu-img; here that is reparent --unproven.
    #[arg(short = 'u', hide = true)]
    unsafely: bool,
    /// Read at most SIZE bytes per second.
    #[arg(long, value_name = "SIZE", value_parser = values::rate, allow_negative_numbers = true)]
    rate: Option<u64>,
    /// Only print what would be done, and how much has to be read and written at most.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten, next_help_heading = "Parents")]
    chain: ChainFlags,
}

/// An image on its new base.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct RebaseAnswer {
    image: String,
    parent: ImageRef,
    /// Whether the base was the parent already.
    was_parent: bool,
    /// The bytes of data read from both parents.
    read: u64,
    /// The bytes of the disk written into the image.
    written: u64,
    /// The bytes of the disk that the image now has as blocks of zeros.
    zeroed: u64,
}

impl Answer for RebaseAnswer {
    const SCHEMA: &'static str = "avhdx.rebase/1";
}

pub(crate) fn run(args: Args, console: &mut Console) -> Result<Reply, Failure> {
    let options = args.chain.options();
    if args.unsafely {
        let message = "rebase keeps the disk as it is; -u changes the link alone, which here is reparent --unproven";
        let image = Path::new(&args.image.image);
        let command = typed::with_parents("reparent", image);
        let command = format!("{command} --onto {} --unproven", argument(Path::new(&args.onto)));
        return Err(Failure::usage("rebase.unsafe", message)
            .then(format!("{command}  # if you know that BASE is right")));
    }
    let Resolved { path: image, .. } = input::resolve(&args.image.image, &options, console)?;
    let Resolved { path: base, .. } = input::resolve(&args.onto, &options, console)?;
    let pace = Pace::new();
    pace.limit(args.rate);
    let rebase = Rebase::new(&base).options(options.clone()).pace(pace);
    if args.dry_run {
        let forecast = rebase.forecast(&image);
        let forecast = forecast.map_err(|error| parents::failure(error, &image, &options))?;
        operation::print_forecast(&forecast, console)?;
        return Ok(Reply::Yes);
    }
    seals::before_rebase(&rebase, &image, console)?;
    let done = operation::run(console, |on| Ok(rebase.on_progress(on).run(&image)))?;
    let done = done.map_err(|error| parents::failure(error, &image, &options))?;
    console.warnings(&done.warnings);
    let [image, base] = [&done.path, &done.parent].map(|path| path.display().to_string());
    console.done();
    if console.is_json() {
        return console
            .document(&RebaseAnswer {
                image,
                parent: ImageRef { image: base, data_write_guid: done.linkage },
                was_parent: done.was_parent,
                read: done.read,
                written: done.written,
                zeroed: done.zeroed,
            })
            .map(|()| Reply::Yes);
    }
    if done.was_parent {
        console.line(format!("{image}: {base} is the parent already, nothing to do"))?;
        return Ok(Reply::Yes);
    }
    console.line(format!("{image}: the parent is now {base}, {}", done.linkage))?;
    console.line(format!(
        "  {} read, {} written into the image",
        size(done.read),
        size(done.written)
    ))?;
    if done.zeroed > 0 {
        console.line(format!("  {} made zeros, which take no space", size(done.zeroed)))?;
    }
    Ok(Reply::Yes)
}
