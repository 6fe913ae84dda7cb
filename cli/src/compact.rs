//! `avhdx compact`: makes the file of an image shorter.

use std::ffi::OsString;

use avhdx::ops::{Compact, CompactForecast, Compacted, Pace};
use avhdx::storage::{Access, Host, LocalHost};
use avhdx::{Error, ErrorKind};
use serde::Serialize;

use crate::args::OperationFlags;
use crate::failure::{Exit, Failure, Reply};
use crate::operation::{self, Subject};
use crate::output::Console;
use crate::progress::Activity;
use crate::text::size;
use crate::unused::{Unused, VolumeUnused};
use crate::values;
use crate::vocabulary::Answer;

/// Make the file of an image shorter: blocks move down into unused space, and the file is cut behind them.
///
/// The disk reads as before, at every moment: after Ctrl-C, kill or a crash the same command does the rest. Without
/// --content only the tables are read: unused space goes, and space that zeroed and discarded ranges still have. What
/// --content would read and --punch would give back is printed too.
/// With --content all data is read, and blocks go that hold nothing but zeros or, in a child, what its parent shows too:
/// how much that is cannot be known before.
/// What a file system inside deleted goes with --free, or once it is discarded (fstrim, Optimize-Volume) or overwritten
/// with zeros.
///
/// With --free, whole blocks go of which the file systems inside (ext, FAT, NTFS) use nothing; they read as zeros
/// afterwards, and nothing else differs. Every file is looked up first (of ext, in all inodes but those that a group calls
/// never used): the image stays as it is if one of them lies in space that is called free, if what groups of ext count as
/// free is not what their bitmaps and the superblock have, and if a file system was not closed cleanly, is hibernated, or
/// has shadow copies. Volumes that are not read are left alone, and so is all that lies between volumes.
///
/// With --punch nothing moves: the host takes unused space back where it is, within seconds, and the file keeps its length.
/// The file is sparse then: Hyper-V refuses sparse files on Windows, and may refuse a copy there that keeps the holes.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// The image.
    #[arg(value_name = "IMAGE")]
    image: OsString,
    /// Read all data, and drop blocks of zeros and blocks that equal what the parent shows.
    #[arg(long)]
    content: bool,
    /// Drop blocks that no file system inside uses: they read as zeros. Refused for an image that has children.
    #[arg(long, conflicts_with = "with_children")]
    free: bool,
    /// With --free, only look at this volume: its number in the partition table, its label, its name or its partition id
    /// [default: all that can be read].
    #[arg(short = 'p', long, value_name = "VOLUME", requires = "free")]
    volume: Option<String>,
    /// Give unused space back to the host where it is, instead of moving blocks: the only way for a fixed disk. Hyper-V
    /// refuses sparse files on Windows, and may refuse a copy that keeps the holes.
    #[arg(long)]
    punch: bool,
    /// Change the file even if the image has children: they still read the same, and accept it.
    #[arg(long)]
    with_children: bool,
    /// Read and move at most SIZE bytes per second.
    #[arg(long, value_name = "SIZE", value_parser = values::rate, allow_negative_numbers = true)]
    rate: Option<u64>,
    /// Only print what would be done, and whether there is enough space. With --content this reads all data too.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    opening: OperationFlags,
}

/// A compaction that was done, or with `--dry-run` is foreseen. All sizes are in bytes.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct CompactAnswer {
    image: String,
    /// Whether this only says what would be done.
    dry_run: bool,
    /// Parts of the file that nothing needs, by its tables alone.
    tables: u64,
    /// Parts of the file with data that need not be there; null if the data was not read.
    content: Option<u64>,
    /// Parts of the file with data that no file system uses; null without `--free`.
    free: Option<u64>,
    /// The volumes that `--free` looks at; null without it.
    volumes: Option<Vec<VolumeUnused>>,
    /// Data of the disk that the image holds, which `--content` reads.
    data: u64,
    /// Data and sector bitmaps that move.
    moved: u64,
    /// The block allocation table, if it is written to another place; otherwise 0.
    table: u64,
    /// What the host takes back inside of the file; null without `--punch`.
    punched: Option<u64>,
    /// What `--punch` would give back to the host; null with `--content`, `--free` or `--punch`, or if the host takes back no part
    /// of a file.
    punchable: Option<u64>,
    file_len_before: u64,
    file_len: u64,
    /// The space needed in addition; null if it was done.
    peak: Option<u64>,
    /// The free space; null if unknown or if it was done.
    available: Option<u64>,
}

impl Answer for CompactAnswer {
    const SCHEMA: &'static str = "avhdx.compact/1";
}

pub(crate) fn run(args: Args, console: &mut Console) -> Result<Reply, Failure> {
    let options = args.opening.options()?.orphan_children(args.with_children);
    let inspected = Subject::inspect(&args.image, &options)?;
    if inspected.point()?.is_some_and(|point| point.id != inspected.tip().id) {
        return Err(refuse_point(&inspected));
    }
    let pace = Pace::new();
    pace.limit(args.rate);
    let compact = Compact::new().content(args.content).punch(args.punch);
    let compact = compact.with_children(args.with_children).pace(pace);
    let folders = args.opening.children_in.iter();
    let compact = folders.fold(compact, |compact, folder| compact.children_in(folder));
    // What will be refused must not replay a log, nor read all data; and its own words say what is in the way.
    // A fixed disk can be punched, and none of its blocks goes.
    let by_tables = compact.clone().content(false).punch(args.punch && !args.free);
    let by_tables = by_tables.forecast(&inspected.chain);
    let by_tables = by_tables.map_err(|error| match error.kind() {
        ErrorKind::HasChildren if args.free => refuse_children(&error),
        _ => error.into(),
    })?;
    if args.dry_run {
        inspected.warn(&options, console)?;
        let (compact, volumes) = with_unused(&args, compact, &inspected, console)?;
        let forecast = match args.content {
            true => {
                let _activity = Activity::of(console, "measuring the image");
                compact.forecast(&inspected.chain)?
            }
            false if args.free => compact.forecast(&inspected.chain)?,
            false => by_tables,
        };
        let punchable = punchable(&args, &compact, &inspected)?;
        print(&args, &forecast.outcome, punchable, volumes, Some(&forecast), console)?;
        forecast.check()?;
        return Ok(Reply::Yes);
    }
    if !args.content && !args.free {
        by_tables.check()?;
    }
    if inspected.is_log_pending() {
        with_unused(&args, compact.clone(), &inspected, console)?;
    }
    drop(inspected);
    let subject = Subject::open(&args.image, &options, console)?;
    subject.resolve_point(console)?;
    // Only now nobody else writes to the disk.
    let (compact, volumes) = with_unused(&args, compact, &subject, console)?;
    let run = compact.clone();
    let done = operation::run(console, |on| run.on_progress(on).run(&subject.chain));
    let left = if done.is_ok() { punchable(&args, &compact, &subject) } else { Ok(None) };
    let closed = subject.close();
    let done = done.map_err(|failure| match failure.exit {
        Exit::Io | Exit::Interrupted => {
            failure.also("the disk reads as before; the same command goes on")
        }
        // Refused before anything was changed.
        _ => failure,
    })?;
    closed?;
    console.done();
    print(&args, &done, left?, volumes, None, console)?;
    Ok(Reply::Yes)
}

/// The compaction, told what no file system uses if `--free` asks for that, and the volumes that this was found in.
fn with_unused<'a>(
    args: &Args,
    compact: Compact<'a>,
    subject: &Subject,
    console: &Console,
) -> Result<(Compact<'a>, Option<Vec<VolumeUnused>>), Failure> {
    if !args.free {
        return Ok((compact, None));
    }
    let _activity = Activity::of(console, "looking up where files lie");
    let unused = Unused::of(&subject.chain, args.volume.as_deref())?;
    Ok((compact.free(unused.ranges), Some(unused.volumes)))
}

/// What `--punch` would give back to the host after a plain compaction; `None` after another one, or if the host takes
/// back no part of a file.
fn punchable(
    args: &Args,
    compact: &Compact<'_>,
    subject: &Subject,
) -> Result<Option<u64>, Failure> {
    let Some(path) =
        subject.tip().path.as_deref().filter(|_| !args.content && !args.free && !args.punch)
    else {
        return Ok(None);
    };
    let file = LocalHost.open(path, Access::Read);
    if !file.is_ok_and(|file| file.punch(0..0).unwrap_or(false)) {
        return Ok(None);
    }
    Ok(compact.clone().punch(true).forecast(&subject.chain)?.outcome.punched)
}

/// The refusal to compact a layer below the tip, which has a file of its own.
fn refuse_point(subject: &Subject) -> Failure {
    let message = format!(
        "{}: a layer below the tip is compacted by the name of its file",
        subject.image.display()
    );
    Failure::new(Exit::Refused, "compact.below-tip", message)
}

/// The refusal to free what children still read.
fn refuse_children(error: &Error) -> Failure {
    let file = error.file().unwrap_or("the image");
    let found = error.found().map(|found| format!(": {found}")).unwrap_or_default();
    let message =
        format!("{file}: a child reads what is free in the image, and would not accept it{found}");
    Failure::new(Exit::Refused, "compact.free-children", message)
}

fn print(
    args: &Args,
    done: &Compacted,
    punchable: Option<u64>,
    volumes: Option<Vec<VolumeUnused>>,
    forecast: Option<&CompactForecast>,
    console: &mut Console,
) -> Result<(), Failure> {
    let image = args.image.to_string_lossy();
    if console.is_json() {
        return console.document(&CompactAnswer {
            image: image.into_owned(),
            dry_run: args.dry_run,
            tables: done.tables,
            content: done.content,
            free: args.free.then_some(done.free),
            volumes,
            data: done.data,
            moved: done.moved,
            table: done.table,
            punched: done.punched,
            punchable,
            file_len_before: done.file_len_before,
            file_len: done.file_len,
            peak: forecast.map(|forecast| forecast.peak),
            available: forecast.and_then(|forecast| forecast.available),
        });
    }
    let shorter = done.file_len_before.saturating_sub(done.file_len);
    let would = if args.dry_run { "would get " } else { "" };
    let moves = if args.dry_run { "to move" } else { "moved" };
    console.line(match shorter {
        _ if let Some(punched) = done.punched => {
            let gives = if args.dry_run { "would give" } else { "gave" };
            format!("{image}: {gives} {} back to the host", size(punched))
        }
        0 if done.content.is_none() && !args.free && done.data > 0 => {
            let long = size(done.file_len);
            format!("{image}: stays {long} long by its tables alone, next is --content")
        }
        0 => format!("{image}: stays {} long", size(done.file_len)),
        _ => format!("{image}: {would}{} shorter, {} {moves}", size(shorter), size(done.moved)),
    })?;
    console.line(format!("  tables    {} unused", size(done.tables)))?;
    match done.content {
        Some(content) => {
            let what = "of zeros, or of what the parent shows";
            console.line(format!("  content   {} {what}", size(content)))?;
        }
        None if args.free => {}
        None => {
            let data = size(done.data);
            let what = "of blocks that need not be there";
            console.line(format!(
                "  content   --content reads {data} to find out, and drops what it finds {what}"
            ))?;
        }
    }
    if args.free {
        console.line(format!("  free      {} that no file system uses", size(done.free)))?;
    }
    for volume in volumes.iter().flatten() {
        if let Some(why) = &volume.left_alone {
            let (name, kind) = (volume.name(), &volume.file_system);
            console.line(format!("  left      {name} ({kind}): {why}"))?;
        }
    }
    if done.table > 0 {
        console.line(format!("  table     {} {moves}, of block allocation", size(done.table)))?;
    }
    if done.tables > 0 && shorter == 0 && done.punched.is_none() {
        let what = "what lies behind the unused space does not move: flatten makes a shorter file";
        console.line(format!("  kept      {what}"))?;
    }
    if let Some(bytes) = punchable {
        let would = "--punch gives this back in place, and the file is sparse then";
        console.line(format!("  punch     {}: {would}", size(bytes)))?;
    }
    console.line(format!(
        "  file      {}, before {}",
        size(done.file_len),
        size(done.file_len_before)
    ))?;
    if let Some(forecast) = forecast.filter(|forecast| forecast.peak > 0) {
        let available = forecast.available.map(|free| format!(", available {}", size(free)));
        let available = available.unwrap_or_default();
        console.line(format!("  space     {} needed at most{available}", size(forecast.peak)))?;
    }
    Ok(())
}
