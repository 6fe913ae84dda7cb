//! `avhdx revert`: goes back to an earlier point in time.

use std::path::PathBuf;

use avhdx::LayerId;
use avhdx::ops::Revert;
use serde::Serialize;
use uuid::Uuid;

use crate::args::{NamingFlags, OperationFlags};
use crate::endings;
use crate::failure::{Failure, Reply};
use crate::operation::{self, Subject, paths};
use crate::output::Console;
use crate::seals;
use crate::values;
use crate::vocabulary::{Answer, ImageRef};

/// Go back to an earlier point in time: make a new tip on it, a child, that takes all writes from now on.
///
/// Later layers stay as a branch of their own, unless --delete-newer removes them. The virtual machine must be off,
/// and must be started from the new file.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// The tip, with the point in time to go back to: IMAGE@-1, IMAGE@LABEL, IMAGE@NAME, IMAGE@GUIDPREFIX.
    #[arg(value_name = "IMAGE@SEL")]
    image: std::ffi::OsString,
    /// Remove the files of all later layers once the new tip exists.
    #[arg(long)]
    delete_newer: bool,
    /// With --delete-newer: remove an image even if it has another child, which loses its parent.
    #[arg(long, requires = "delete_newer")]
    orphan_children: bool,
    /// A new label for the point in time [default: its present label].
    #[arg(long, value_name = "TEXT", value_parser = values::label)]
    label: Option<String>,
    /// The new file [default: DISK_GUID.avhdx in the folder of the point in time].
    #[arg(long, value_name = "FILE")]
    path: Option<PathBuf>,
    #[command(flatten)]
    naming: NamingFlags,
    /// Only print what would be done, and whether there is enough space.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    opening: OperationFlags,
}

/// A way back that was taken.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct RevertAnswer {
    /// The new tip, which takes all writes from now on.
    tip: String,
    /// The identity of the tip.
    data_write_guid: Uuid,
    /// The point in time gone back to.
    point: ImageRef,
    /// The images removed.
    removed: Vec<String>,
}

impl Answer for RevertAnswer {
    const SCHEMA: &'static str = "avhdx.revert/1";
}

pub(crate) fn run(args: Args, console: &mut Console) -> Result<Reply, Failure> {
    if let Some(path) = &args.path {
        endings::check_image(path, true, args.naming, console)?;
    }
    let options = args.opening.options()?;
    let inspected = Subject::inspect(&args.image, &options)?;
    let point = inspected.required_point()?;
    if args.dry_run {
        inspected.warn(&options, console)?;
        let forecast = revert_to(point.id, &args).forecast(&inspected.chain)?;
        operation::print_forecast(&forecast, console)?;
        return Ok(Reply::Yes);
    }
    // An operation that will be refused must not replay a log.
    if inspected.is_log_pending() {
        operation::refuse_impossible(revert_to(point.id, &args).forecast(&inspected.chain))?;
    }
    drop(inspected);
    let subject = Subject::open(&args.image, &options, console)?;
    let point = subject.layer(console)?.clone();
    let revert = revert_to(point.id, &args);
    let made = operation::run(console, |on| revert.on_progress(on).run(&subject.chain))?;
    console.warnings(&made.warnings);
    let tip = subject.chain.layers().swap_remove(0);
    subject.close()?;
    console.done();
    seals::sweep(&made.removed, console);
    let path = made.path.display().to_string();
    if console.is_json() {
        console.document(&RevertAnswer {
            tip: path,
            data_write_guid: tip.data_write_guid,
            point: ImageRef::from(&point),
            removed: paths(&made.removed),
        })?;
    } else {
        console.line(format!("{path}: the new tip, with the disk as in {}", point.name))?;
        for removed in &made.removed {
            console.line(format!("  removed   {}", removed.display()))?;
        }
    }
    operation::refuse_lost_name(&made.warnings, Some(&made.path), None)?;
    operation::refuse_leftover(&made.warnings, None)?;
    Ok(Reply::Yes)
}

fn revert_to(point: LayerId, args: &Args) -> Revert<'static> {
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
