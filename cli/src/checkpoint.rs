//! `avhdx checkpoint`: keeps a point in time, with a new tip on it.

use std::path::PathBuf;

use avhdx::ops::Checkpoint;
use serde::Serialize;
use uuid::Uuid;

use crate::args::{self, ImageArg, LossFlags, NamingFlags, OperationFlags};
use crate::endings;
use crate::failure::{Failure, Reply};
use crate::loss;
use crate::operation::{self, Subject};
use crate::output::Console;
use crate::point::Point;
use crate::values;
use crate::vocabulary::{Answer, ImageRef};
use crate::writing;

/// Keep the current state of the disk, and make a new tip, a child, that takes all writes from now on.
///
/// IMAGE must be the tip of its chain. Its file does not change. The virtual machine must be started from the new
/// file. The point in time is NEW@-1 or NEW@LABEL.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    image: ImageArg,
    /// A label for the point in time, up to 4096 bytes.
    #[arg(long, value_name = "TEXT", value_parser = values::label)]
    label: Option<String>,
    /// The new file [default: DISK_GUID.avhdx in the folder of IMAGE].
    #[arg(long, value_name = "FILE")]
    path: Option<PathBuf>,
    #[command(flatten)]
    naming: NamingFlags,
    /// The block size of the new image, 1M to 256M [default: 2M].
    #[arg(long, value_name = "N", value_parser = values::bytes, allow_negative_numbers = true, alias = "block-size")]
    block: Option<u64>,
    /// Only print what would be done, and whether there is enough space.
    #[arg(long, conflicts_with = "accept_loss")]
    dry_run: bool,
    #[command(flatten)]
    opening: OperationFlags,
    #[command(flatten)]
    loss: LossFlags,
}

/// A checkpoint that was taken.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct CheckpointAnswer {
    /// The new tip, which takes all writes from now on.
    tip: String,
    /// The identity of the tip.
    data_write_guid: Uuid,
    /// Null without a label.
    label: Option<String>,
    /// The point in time that was kept.
    point: ImageRef,
}

impl Answer for CheckpointAnswer {
    const SCHEMA: &'static str = "avhdx.checkpoint/1";
}

pub(crate) fn run(args: Args, console: &mut Console) -> Result<Reply, Failure> {
    let mut checkpoint = Checkpoint::new();
    if let Some(label) = &args.label {
        checkpoint = checkpoint.label(label);
    }
    if let Some(path) = &args.path {
        endings::check_image(path, true, args.naming, console)?;
        checkpoint = checkpoint.path(path);
    }
    if let Some(bytes) = args.block {
        checkpoint = checkpoint.block_size(args::u32_size("--block", bytes)?);
    }
    let options = args.opening.options()?;
    let inspected = Subject::inspect(&args.image.image, &options)?;
    if inspected.point()?.is_some_and(|point| point.id != inspected.tip().id) {
        return Err(writing::below_the_tip(&args.image));
    }
    if args.dry_run {
        inspected.warn(&options, console)?;
        let forecast = checkpoint.forecast(&inspected.chain)?;
        operation::print_forecast(&forecast, console)?;
        return Ok(Reply::Yes);
    }
    // An operation that will be refused must neither replay a log nor accept a loss.
    if args.loss.accept_loss || inspected.is_log_pending() {
        operation::refuse_impossible(checkpoint.forecast(&inspected.chain))?;
    }
    drop(inspected);
    loss::accept(&Point::parse(&args.image.image).image, &args.loss, &options, console)?;
    let subject = Subject::open(&args.image.image, &options, console)?;
    let frozen = subject.layer(console)?.clone();
    let made = operation::run(console, |on| checkpoint.on_progress(on).run(&subject.chain))?;
    console.warnings(&made.warnings);
    let tip = subject.chain.layers().swap_remove(0);
    subject.close()?;
    console.done();
    let path = made.path.display().to_string();
    if console.is_json() {
        console.document(&CheckpointAnswer {
            tip: path,
            data_write_guid: tip.data_write_guid,
            label: args.label,
            point: ImageRef::from(&frozen),
        })?;
    } else {
        console.line(format!("{path}: the new tip, which takes all writes from now on"))?;
        let called = args.label.map_or_else(String::new, |label| format!(", label {label}"));
        console.line(format!("  point in time  {}{called}", frozen.name))?;
    }
    operation::refuse_lost_name(&made.warnings, Some(&made.path), None)?;
    Ok(Reply::Yes)
}
