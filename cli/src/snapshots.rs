//! `avhdx points`: lists the points in time of a chain.

use std::ffi::OsString;
use std::path::Path;
use std::time::SystemTime;

use avhdx::ops::Delete;
use avhdx::storage::{Access, Host, LocalHost};
use avhdx::{ErrorKind, Layer, VhdxFile};
use serde::Serialize;
use uuid::Uuid;

use crate::args::OperationFlags;
use crate::failure::{Failure, Reply};
use crate::forks;
use crate::operation::{self, Subject};
use crate::output::Console;
use crate::paint::Look;
use crate::progress::Activity;
use crate::table::{Cell, TextTable};
use crate::text::{minute, printable, units, utc, wrapped};
use crate::vocabulary::Answer;

/// List the points in time of a disk, newest first: label, time, what each holds, and whether it can be deleted.
///
/// The first is the tip, the present. Select another one as IMAGE@-N or IMAGE@LABEL in every verb. A checkpoint of
/// another program has no label; its time is then that of the last write to the point's file, marked with a *.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// The tip of the chain.
    #[arg(value_name = "IMAGE")]
    image: OsString,
    #[command(flatten)]
    opening: OperationFlags,
}

/// The points in time of a disk, newest first. All sizes are in bytes.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct PointsAnswer {
    /// The tip.
    image: String,
    points: Vec<PointFacts>,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct PointFacts {
    /// What selects it behind the name of the tip, such as `@-1`.
    selector: String,
    /// Null without a label.
    label: Option<String>,
    /// When the checkpoint was taken; null if that is not recorded.
    time: Option<String>,
    /// When the image was last written to; null if unknown.
    written: Option<String>,
    /// The image on top at this point.
    image: String,
    data_write_guid: Uuid,
    /// The size of the blocks that the image itself holds.
    allocated: u64,
    deletable: bool,
    /// What stands in the way of its deletion.
    blocked_by: Vec<String>,
}

impl Answer for PointsAnswer {
    const SCHEMA: &'static str = "avhdx.points/1";
}

/// A point in time as it is shown.
struct Row {
    layer: Layer,
    label: Option<String>,
    time: Option<SystemTime>,
    written: Option<SystemTime>,
    /// Bytes of the file's payload blocks.
    holds: u64,
    blocked: Vec<String>,
}

pub(crate) fn run(args: Args, console: &mut Console) -> Result<Reply, Failure> {
    let options = args.opening.options()?.unfinished(true);
    let subject = Subject::inspect(&args.image, &options)?;
    console.warnings(&subject.chain.warnings());
    let activity = Activity::of(console, "reading the images");
    let forest = forks::forest(&subject, &args.opening)?;
    let is_unfinished = operation::being_merged(&subject.chain).is_some();
    let mut delete = Delete::point(subject.tip().id);
    for folder in &args.opening.children_in {
        delete = delete.children_in(folder);
    }
    let checked = delete.check_points(&subject.chain)?;
    // Of an image that others lie on nothing can be deleted.
    let tip = subject.tip().path.as_ref().and_then(|path| LocalHost.open(path, Access::Read).ok());
    let closed = tip.and_then(|tip| options.check_childless(tip.as_ref()).err());
    let mut rows = Vec::new();
    for (n, point) in subject.chain.points().into_iter().enumerate() {
        let layer = subject.layers()[n].clone();
        let image = subject.chain.image(layer.id);
        let holds = image.map_or(Ok(0), |image| holds(&image))?;
        let others = forks::others_in(&forest, &subject, &layer);
        let mut blocked = Vec::new();
        if n == 0 {
            blocked.push("the present".to_owned());
        } else {
            blocked.extend(others.iter().map(|other| {
                let name = other.path.file_name().unwrap_or_default().to_string_lossy();
                let what = if other.is_left_over { "an unfinished merge" } else { "a branch" };
                format!("{what}: {name}")
            }));
            if is_unfinished {
                blocked.push("an unfinished merge".into());
            }
            // A branch and an unfinished merge are refused too, in other words.
            let refused = closed.as_ref().or_else(|| checked.get(n)?.as_ref().err());
            blocked.extend(refused.filter(|_| blocked.is_empty()).map(reason));
        }
        let written = layer.path.as_ref().and_then(|path| LocalHost.stat(path).ok()?.modified);
        let (label, time) = (point.label, point.time);
        rows.push(Row { layer, label, time, written, holds, blocked });
    }
    drop(activity);
    print(&subject, &rows, console)?;
    Ok(Reply::Yes)
}

/// Why a point cannot be deleted, in short.
fn reason(error: &avhdx::Error) -> String {
    let file = error.file().map(Path::new).and_then(Path::file_name).unwrap_or_default();
    let file = file.to_string_lossy();
    match (error.code(), error.found()) {
        ("file.open", _) => format!("read-only: {file}"),
        (_, Some(found)) if error.kind() == ErrorKind::HasChildren => {
            format!("{file}: {}: {found}", error.message())
        }
        _ => format!("{file}: {}", error.message()),
    }
}

/// Bytes of the payload blocks that a file has.
fn holds(image: &VhdxFile) -> Result<u64, Failure> {
    let counts = image.count_blocks()?;
    Ok((counts.fully_present + counts.partially_present) * u64::from(image.block_size()))
}

fn print(subject: &Subject, rows: &[Row], console: &mut Console) -> Result<(), Failure> {
    let image = subject.image.display().to_string();
    if console.is_json() {
        let point = |(n, row): (usize, &Row)| PointFacts {
            selector: format!("@-{n}"),
            label: row.label.clone(),
            time: row.time.map(utc),
            written: row.written.map(utc),
            image: row.layer.name.clone(),
            data_write_guid: row.layer.data_write_guid,
            allocated: row.holds,
            deletable: row.blocked.is_empty(),
            blocked_by: row.blocked.clone(),
        };
        let points = rows.iter().enumerate().map(point).collect();
        return console.document(&PointsAnswer { image, points });
    }
    let columns = ["point", "~label", "taken (UTC)", ">holds", "delete", "~file"];
    let mut table = TextTable::new(&format!("Points in time of {image}"), &columns);
    for (n, row) in rows.iter().enumerate() {
        let taken = match (n, row.time, row.written) {
            (0, ..) => "now".into(),
            (_, Some(time), _) => minute(time),
            (_, None, Some(written)) => format!("{}*", minute(written)),
            _ => "-".into(),
        };
        // A terminal has no room for the reason in its row.
        let delete = match (row.blocked.first(), console.width()) {
            (None, _) => "yes".to_owned(),
            (Some(why), None) => format!("no: {}", printable(why)),
            (Some(_), Some(_)) => "no".to_owned(),
        };
        let file = row.layer.path.as_ref().and_then(|path| path.file_name());
        let file = file.map_or(row.layer.name.clone(), |name| name.to_string_lossy().into_owned());
        let look = if n == 0 { Look::Tip } else { Look::Plain };
        table.row([
            Cell::new(look, format!("@-{n}")),
            row.label.clone().unwrap_or_else(|| "-".into()).into(),
            taken.into(),
            units(row.holds).into(),
            delete.into(),
            Cell::new(look, file),
        ]);
    }
    if let Some(width) = console.width() {
        for (n, row) in rows.iter().enumerate().skip(1).filter(|(_, row)| !row.blocked.is_empty()) {
            let why = format!("in the way of deleting @-{n}: {}", row.blocked.join(", "));
            for line in wrapped(&printable(&why), width.saturating_sub(2)) {
                table.remark(line);
            }
        }
    }
    if rows.iter().skip(1).any(|row| row.time.is_none() && row.written.is_some()) {
        table.remark("* no time of a checkpoint is recorded: when the file was last written to");
    }
    console.table(table)
}
