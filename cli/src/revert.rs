//! `avhdx revert`: back to an earlier point in time.

use std::path::PathBuf;

use avhdx::LayerId;
use avhdx::ops::Revert;
use serde_json::json;

use crate::args;
use crate::exit::{Failure, Outcome};
use crate::operation::{self, Subject, paths};
use crate::output::Console;

/// Go back to an earlier point in time: make a new tip on it, a child, that is written to from now on.
///
/// What came after the point stays as a branch of its own, unless --delete-newer removes it. The machine must
/// not run meanwhile; whoever starts it must name the new file.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// The tip, with the point to go back to: IMAGE@-1, IMAGE@LABEL, IMAGE@NAME, IMAGE@GUIDPREFIX.
    #[arg(value_name = "IMAGE@SEL")]
    image: std::ffi::OsString,
    /// Remove the files of all that came after the point, once the new tip is there.
    #[arg(long)]
    delete_newer: bool,
    /// With --delete-newer: remove an image although another child of it is found, which is cut off by that.
    #[arg(long, requires = "delete_newer")]
    orphan_children: bool,
    /// What the point in time is called from now on [default: as it was].
    #[arg(long, value_name = "TEXT", value_parser = args::label)]
    label: Option<String>,
    /// The new file [default: beside the point's, DISK_GUID.avhdx].
    #[arg(long, value_name = "FILE")]
    path: Option<PathBuf>,
    /// Only say what would be done, and whether there is the space for it.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    opening: args::Chain,
}

pub(crate) fn run(args: Args, console: &mut Console) -> Result<Outcome, Failure> {
    let options = args.opening.options()?;
    let looked_at = Subject::look(&args.image, &options)?;
    let Some(point) = looked_at.point_meant()? else {
        let image = looked_at.image.display();
        let message = format!("{image}: which point to go back to is not said: {image}@SEL");
        return Err(Failure::usage("point.none", message).hint(looked_at.listing()));
    };
    if args.dry_run {
        looked_at.introduce(&options, console)?;
        let forecast = revert_to(point.id, &args).forecast(&looked_at.chain)?;
        operation::foretell("avhdx.revert/1", &forecast, console)?;
        return Ok(Outcome::Yes);
    }
    // What cannot be done is no reason to change anything.
    if looked_at.is_log_pending() {
        operation::possible(revert_to(point.id, &args).forecast(&looked_at.chain))?;
    }
    drop(looked_at);
    let subject = Subject::open(&args.image, &options, console)?;
    let point = subject.layer(console)?.clone();
    let revert = revert_to(point.id, &args);
    let made = operation::run(console, |on| revert.run(&subject.chain, on))?;
    console.warnings(&made.warnings);
    let tip = subject.chain.layers().swap_remove(0);
    subject.end()?;
    console.done();
    let path = made.path.display().to_string();
    if console.is_json() {
        console.document(&json!({
            "schema": "avhdx.revert/1",
            "dry_run": false,
            "path": path,
            "data_write_guid": tip.data_write_guid.to_string(),
            "point": {
                "file": point.name,
                "data_write_guid": point.data_write_guid.to_string(),
            },
            "removed": paths(&made.removed),
        }))?;
    } else {
        console.line(format!("{path}: the new tip, the disk as it was in {}", point.name))?;
        for removed in &made.removed {
            console.line(format!("  removed   {}", removed.display()))?;
        }
    }
    operation::lost_name(&made.warnings, Some(&made.path), None)?;
    operation::left_file(&made.warnings, None)?;
    Ok(Outcome::Yes)
}

fn revert_to(point: LayerId, args: &Args) -> Revert {
    let mut revert =
        Revert::to(point).delete_newer(args.delete_newer).orphan_children(args.orphan_children);
    for folder in &args.opening.children_in {
        revert = revert.children_in(folder);
    }
    if let Some(label) = &args.label {
        revert = revert.label(label);
    }
    if let Some(path) = &args.path {
        revert = revert.path(path);
    }
    revert
}
