//! `avhdx diff`: lists the ranges in which two disks differ, or the files.

pub(crate) mod files;

use std::ffi::OsString;

use avhdx::ops::Diff;
use serde::Serialize;

use crate::args::{Format, ReadFlags};
use crate::failure::{Failure, Reply};
use crate::input::Input;
use crate::output::Console;
use crate::point::Point;
use crate::progress::ProgressMeter;
use crate::text::{count, size};
use crate::vocabulary::Answer;
use files::{UNRELATED, Wanted};

/// List the ranges that were written between two points in time, or in which two disks differ, or the files.
///
/// The tables tell what was written to the layers that the two do not have in common, to the sector or the block, and no
/// data is read; --content reads what may differ, and lists only sectors that do. What one disk has past the end of the
/// other differs. The exit code is 0 whether or not there are differences; compare tells by its exit code.
///
/// --files lists files instead, of a FAT, NTFS or ext volume: those that were added, removed or renamed within their folder,
/// that have other content or are another kind of thing, and those of which only the facts differ: times, rights,
/// attributes, the number of names. A file whose bytes were written, or moved elsewhere, counts as one with other content;
/// with --content, only if its bytes are others. B is read only where something that A shows may have changed. What cannot
/// be read is reported, and the rest is listed all the same (exit code 8).
///
/// With --json, one object per range or file, and one with the totals at the end.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// The first image, or point in time (IMAGE@SEL).
    #[arg(value_name = "A")]
    a: OsString,
    /// The second image, or point in time (IMAGE@SEL) [default: the tip of A, if A is a point in time].
    #[arg(value_name = "B")]
    b: Option<OsString>,
    /// Read what may differ, and list only sectors that do, or files whose bytes do.
    #[arg(long)]
    content: bool,
    /// List the files that differ.
    #[arg(long)]
    files: bool,
    /// The volume: its number in the partition table, its label, its name or its partition id [default: the only one
    /// that can be read].
    #[arg(short = 'p', long, value_name = "VOLUME", requires = "files")]
    volume: Option<String>,
    /// Compare the files in which NTFS keeps itself too, such as $MFT.
    #[arg(long, requires = "files")]
    system: bool,
    /// The format of A [default: by the ending of its name, else VHDX].
    #[arg(short = 'f', long, value_name = "FORMAT", value_enum)]
    format: Option<Format>,
    /// The format of B [default: by the ending of its name, else VHDX].
    #[arg(short = 'F', long, value_name = "FORMAT", value_enum)]
    other_format: Option<Format>,
    #[command(flatten)]
    opening: ReadFlags,
}

pub(crate) fn run(args: Args, console: &mut Console) -> Result<Reply, Failure> {
    let b_argument = match &args.b {
        Some(b) => b.clone(),
        None => tip_of(&args)?,
    };
    let a = Input::open(&args.a, args.format, &args.opening, console)?;
    let b = Input::open(&b_argument, args.other_format, &args.opening, console)?;
    if args.files {
        let wanted = Wanted {
            arguments: [&args.a, &b_argument],
            volume: args.volume.as_deref(),
            system: args.system,
            content: args.content,
        };
        return files::run(&wanted, [a, b], console);
    }
    let mut meter = ProgressMeter::beside_output(console);
    let diff = Diff::new().content(args.content).on_progress(|now| meter.report(now));
    let differences = diff.run(a.disk(), b.disk())?;
    if !args.content && !differences.has_common_layers() {
        console.note("diff.unrelated", UNRELATED);
    }
    let sizes = [&a, &b].map(|input| input.disk().geometry().size);
    let width = sizes[0].max(sizes[1]).to_string().len().max("LENGTH".len());
    if !console.is_json() {
        let (offset, length) = ("OFFSET", "LENGTH");
        console.line(format!("{offset:>width$}  {length:>width$}"))?;
    }
    let (mut ranges, mut bytes) = (0, 0);
    for range in differences {
        let range = range?;
        let length = range.end - range.start;
        ranges += 1;
        bytes += length;
        match console.is_json() {
            true => console.object(&DiffAnswer { offset: range.start, length })?,
            false => console.line(format!("{:>width$}  {length:>width$}", range.start))?,
        }
    }
    if console.is_json() {
        let disk = |argument: &OsString, virtual_size| DiffDisk {
            image: argument.to_string_lossy().into_owned(),
            virtual_size,
        };
        let (a, b) = (disk(&args.a, sizes[0]), disk(&b_argument, sizes[1]));
        console.object(&DiffTotalAnswer { content: args.content, ranges, bytes, a, b })?;
    } else {
        console.line(format!("{}: {}", count(ranges, "range"), size(bytes)))?;
        if sizes[0] != sizes[1] {
            let sizes = sizes.map(size);
            console.line(format!("Their sizes differ: {} and {}.", sizes[0], sizes[1]))?;
        }
    }
    Ok(Reply::Yes)
}

/// The image of which A is a point in time.
fn tip_of(args: &Args) -> Result<OsString, Failure> {
    let point = Point::parse(&args.a);
    if Format::of(&args.a, args.format) == Format::Vhdx && point.selector.is_some() {
        return Ok(point.image.into());
    }
    let message = "without B, A is a point in time (IMAGE@SEL), which is compared with its tip";
    Err(Failure::usage("diff.one-image", message))
}

/// A range that differs.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct DiffAnswer {
    offset: u64,
    length: u64,
}

impl Answer for DiffAnswer {
    const SCHEMA: &'static str = "avhdx.diff/1";
}

/// The sum of all ranges, after the last of them.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct DiffTotalAnswer {
    /// Whether bytes were compared, or only tables.
    content: bool,
    ranges: usize,
    bytes: u64,
    a: DiffDisk,
    b: DiffDisk,
}

impl Answer for DiffTotalAnswer {
    const SCHEMA: &'static str = "avhdx.diff-total/1";
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct DiffDisk {
    image: String,
    virtual_size: u64,
}
