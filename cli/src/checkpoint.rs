//! `avhdx checkpoint`: a point in time kept, and a new tip on it.

use std::path::PathBuf;

use avhdx::ops::Checkpoint;
use serde_json::json;

use crate::args;
use crate::exit::{Failure, Outcome};
use crate::loss;
use crate::operation::{self, Subject};
use crate::output::Console;
use crate::point::Point;

/// Keep the disk as it is now, and make a new tip on it, a child, that is written to from now on.
///
/// IMAGE must be the tip of its chain. Its file is left as it is; whoever starts the machine must name the new
/// file. The point in time is then NEW@-1, or NEW@LABEL.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    image: args::Image,
    /// What the point in time is called, up to 4096 bytes.
    #[arg(long, value_name = "TEXT", value_parser = args::label)]
    label: Option<String>,
    /// The new file [default: beside IMAGE, DISK_GUID.avhdx].
    #[arg(long, value_name = "FILE")]
    path: Option<PathBuf>,
    /// The block size of the new image, 1M to 256M [default: 2M].
    #[arg(long, value_name = "N", value_parser = args::bytes, alias = "block-size")]
    block: Option<u64>,
    /// Only say what would be done, and whether there is the space for it.
    #[arg(long, conflicts_with = "accept_loss")]
    dry_run: bool,
    #[command(flatten)]
    opening: args::Chain,
    #[command(flatten)]
    loss: args::Loss,
}

pub(crate) fn run(args: Args, console: &mut Console) -> Result<Outcome, Failure> {
    let mut checkpoint = Checkpoint::new();
    if let Some(label) = &args.label {
        checkpoint = checkpoint.label(label);
    }
    if let Some(path) = &args.path {
        checkpoint = checkpoint.path(path);
    }
    if let Some(bytes) = args.block {
        checkpoint = checkpoint.block_size(args::number("--block", bytes)?);
    }
    let options = args.opening.options()?;
    let looked_at = Subject::look(&args.image.image, &options)?;
    if looked_at.point_meant()?.is_some_and(|point| point.id != looked_at.tip().id) {
        return Err(crate::writing::below_the_tip(&args.image.image));
    }
    if args.dry_run {
        looked_at.introduce(&options, console)?;
        let forecast = checkpoint.forecast(&looked_at.chain)?;
        operation::foretell("avhdx.checkpoint/1", &forecast, console)?;
        return Ok(Outcome::Yes);
    }
    // What cannot be done is no reason to change anything, nor to give anything up.
    if args.loss.accept_loss || looked_at.is_log_pending() {
        operation::possible(checkpoint.forecast(&looked_at.chain))?;
    }
    drop(looked_at);
    loss::accept(&Point::parse(&args.image.image).image, &args.loss, &options, console)?;
    let subject = Subject::open(&args.image.image, &options, console)?;
    let frozen = subject.layer(console)?.clone();
    let made = operation::run(console, |on| checkpoint.run(&subject.chain, on))?;
    console.warnings(&made.warnings);
    let tip = subject.chain.layers().swap_remove(0);
    subject.end()?;
    console.done();
    let path = made.path.display().to_string();
    if console.is_json() {
        console.document(&json!({
            "schema": "avhdx.checkpoint/1",
            "dry_run": false,
            "path": path,
            "data_write_guid": tip.data_write_guid.to_string(),
            "label": args.label,
            "frozen": {
                "file": frozen.name,
                "data_write_guid": frozen.data_write_guid.to_string(),
            },
        }))?;
    } else {
        console.line(format!("{path}: the new tip, to be written to from now on"))?;
        let called = args.label.map_or_else(String::new, |label| format!(", called {label}"));
        console.line(format!("  the point in time is {}{called}", frozen.name))?;
    }
    operation::lost_name(&made.warnings, Some(&made.path), None)?;
    Ok(Outcome::Yes)
}
