//! `avhdx df`: how much of a disk its file systems use, and how much of the image for it could go.

use std::sync::Arc;

use avhdx::{Lock, VhdxFile};
use avhdx_files::{Volume, Volumes};
use serde::{Serialize, Serializer};

use crate::args::{ImageArg, ReadFlags};
use crate::failure::{Failure, Reply};
use crate::input;
use crate::output::Console;
use crate::table::TextTable;
use crate::text::units;
use crate::unused::Held;
use crate::vocabulary::Answer;
use crate::volume;

const MIB: u64 = 1 << 20;

/// Show how much the file systems inside the disk use, and what the image holds of what they do not use.
///
/// HELD is what the image, without its parents, holds of the space that nothing uses, in whole blocks: `compact --free` gives
/// it back, and plain `compact` does once the file system inside has discarded it (fstrim, Optimize-Volume). A fixed disk
/// gives back none of its blocks and has no HELD. AT 1M is the same, of a fixed disk too, counted in blocks of 1 MiB of
/// which the image holds a part. A copy by `convert --block 1M` holds less there, as it copies no zeros, or more, if
/// parents hold something there. A file system that was not closed cleanly is said: what it calls free may be in use, and
/// `compact --free` refuses it. A file system that cannot be read is listed all the same (exit code 8 if it is damaged).
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    image: ImageArg,
    #[command(flatten)]
    opening: ReadFlags,
}

/// The space of the file systems inside a disk, in bytes.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct DfAnswer {
    image: String,
    block_size: u32,
    volumes: Vec<VolumeSpace>,
}

impl Answer for DfAnswer {
    const SCHEMA: &'static str = "avhdx.df/1";
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct VolumeSpace {
    /// The number in the partition table; null for a disk without one.
    number: Option<u32>,
    label: Option<String>,
    /// The kind of file system, such as `NTFS`.
    file_system: String,
    size: u64,
    /// What files and the file system itself use; null if it is not read.
    used: Option<u64>,
    /// What nothing uses; null if it is not read.
    free: Option<u64>,
    /// Blocks that the image holds in what nothing uses; null for a fixed disk too, which gives none back.
    held: Option<u64>,
    /// The same counted in blocks of 1 MiB of which the image holds a part, of a fixed disk too.
    held_at_1m: Option<u64>,
    /// Why it is not certain that nothing uses the free space, so that `compact --free` refuses; null if it was closed
    /// cleanly, and if it is not read.
    #[serde(serialize_with = "message")]
    #[cfg_attr(test, schemars(with = "Option<String>"))]
    unclean: Option<(&'static str, String)>,
    /// Why it is not read; null if it is.
    problem: Option<String>,
}

fn message<S: Serializer>(
    unclean: &Option<(&'static str, String)>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    unclean.as_ref().map(|(_, message)| message).serialize(serializer)
}

pub(crate) fn run(args: Args, console: &mut Console) -> Result<Reply, Failure> {
    avhdx_files::silence_caught_panics();
    let chain = input::chain(&args.image.image, &args.opening, Lock::Shared, console)?;
    let image = chain.tip();
    let block_size = image.block_size();
    let name = args.image.name();
    let volumes = Volumes::of(Arc::new(chain)).map_err(|error| volume::failure(&name, error))?;
    for warning in volumes.warnings() {
        console.warn("files.table", &format!("{name}: {warning}"));
    }
    let mut is_whole = true;
    let mut rows = Vec::new();
    for volume in volumes.iter() {
        let mut row = VolumeSpace::of(volume);
        if volume.is_readable() {
            match space(volume, &image, &mut row) {
                Ok(()) => {
                    if let Some((code, message)) = &row.unclean {
                        console.warn(code, message);
                    }
                }
                Err(Failed::Disk(error)) => return Err(error.into()),
                Err(Failed::Volume(error)) => {
                    is_whole = false;
                    console.warn(error.code(), &volume::told(&name, &error));
                    row.problem = Some(error.to_string());
                }
            }
        }
        rows.push(row);
    }
    let answer = DfAnswer { image: name, block_size, volumes: rows };
    let reply = if is_whole { Reply::Yes } else { Reply::Losses };
    if console.is_json() {
        console.document(&answer)?;
        return Ok(reply);
    }
    let columns = [">VOLUME", "HOLDS", "~LABEL", ">SIZE", ">USED", ">FREE", ">HELD", ">AT 1M"];
    let mut table = TextTable::new("", &columns);
    for row in &answer.volumes {
        let bytes = |bytes: Option<u64>| bytes.map_or("-".into(), units);
        table.row([
            row.number.map_or("-".into(), |number| number.to_string()),
            row.file_system.clone(),
            row.label.clone().unwrap_or_else(|| "-".into()),
            units(row.size),
            bytes(row.used),
            bytes(row.free),
            bytes(row.held),
            bytes(row.held_at_1m),
        ]);
    }
    console.table(table)?;
    Ok(reply)
}

enum Failed {
    Disk(avhdx::Error),
    Volume(avhdx_files::Error),
}

impl From<avhdx_files::Error> for Failed {
    fn from(error: avhdx_files::Error) -> Self {
        error.into_disk_error().map_or_else(Self::Volume, Self::Disk)
    }
}

impl VolumeSpace {
    fn of(volume: &Volume) -> Self {
        Self {
            number: volume.number(),
            label: volume.label().or(volume.partition_name()).map(str::to_owned),
            file_system: volume.content().to_string(),
            size: volume.size(),
            used: None,
            free: None,
            held: None,
            held_at_1m: None,
            unclean: None,
            problem: None,
        }
    }
}

/// Fills in what a file system says of its space, and what the image holds there.
fn space(volume: &Volume, image: &VhdxFile, row: &mut VolumeSpace) -> Result<(), Failed> {
    let tree = volume.open()?;
    row.file_system = tree.kind().to_owned();
    match tree.check_clean() {
        Err(error) if error.disk_error().is_some() => return Err(error.into()),
        checked => row.unclean = checked.err().map(|error| (error.code(), error.to_string())),
    }
    let mut held = Held::new(image, image.block_size().into());
    let mut small = Held::new(image, MIB);
    let mut failed = Ok(());
    let free = tree.free(&mut |range| {
        if failed.is_ok() {
            failed = held.add(&range).and_then(|()| small.add(&range));
        }
    })?;
    failed.map_err(Failed::Disk)?;
    row.used = Some(tree.capacity().saturating_sub(free));
    row.free = Some(free);
    row.held = (!image.info().leave_blocks_allocated).then_some(held.bytes);
    row.held_at_1m = Some(small.bytes);
    Ok(())
}
