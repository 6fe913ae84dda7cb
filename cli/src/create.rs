//! `avhdx create`: makes an image.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use avhdx::storage::LocalHost;
use avhdx::{CreateOptions, DiffChain, Disk, VhdxFile};
use serde::Serialize;
use uuid::Uuid;

use crate::args::{ChainFlags, NamingFlags, NewImageFlags, ReplaceFlags};
use crate::endings;
use crate::facts::report::kind;
use crate::failure::{Failure, Reply};
use crate::input;
use crate::new_file::Place;
use crate::output::Console;
use crate::parents;
use crate::text::{size, units};
use crate::values;
use crate::vocabulary::Answer;

/// Make an image: dynamic, fixed, or with --parent a differencing one, a child.
///
/// OUT ends in .vhdx, or for a child also in .avhdx. Without a known ending it is made as VHDX, with a note.
///
/// A child has the size, the sector sizes and the virtual disk ID of its parent. The parent can be a point in time of
/// a chain. It must not be written from then on.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// The file to make.
    #[arg(value_name = "OUT")]
    out: PathBuf,
    /// The size of the disk, such as 64M, 10G or 1.5T. A child can be larger than its parent.
    #[arg(value_name = "SIZE", value_parser = values::size, allow_negative_numbers = true)]
    #[arg(id = "disk-size", required_unless_present_any = ["size", "parent"])]
    disk_size: Option<u64>,
    /// The size of the disk, as SIZE.
    #[arg(long, value_name = "N", value_parser = values::size, allow_negative_numbers = true)]
    #[arg(conflicts_with = "disk-size")]
    size: Option<u64>,
    /// Make a fixed image, with all space allocated.
    #[arg(long, conflicts_with = "parent")]
    fixed: bool,
    /// Make a child of IMAGE, or of a point in time: IMAGE@SEL.
    #[arg(long, value_name = "IMAGE")]
    parent: Option<OsString>,
    /// Give the child a new virtual disk ID, for clones of a base that run side by side.
    #[arg(long, requires = "parent")]
    new_disk_id: bool,
    /// The parent's path on Windows, recorded in addition to the relative path [default: derived from --path-map].
    #[arg(long, value_name = "PATH", requires = "parent", value_parser = values::windows_path)]
    absolute_win32_path: Option<String>,
    #[command(flatten)]
    naming: NamingFlags,
    #[command(flatten)]
    replacing: ReplaceFlags,
    #[command(flatten)]
    new_image: NewImageFlags,
    #[command(flatten, next_help_heading = "Parents")]
    chain: ChainFlags,
}

pub(crate) fn run(args: Args, console: &mut Console) -> Result<Reply, Failure> {
    let parent = match &args.parent {
        Some(argument) => Some(open_parent(argument, &args, console)?),
        None => None,
    };
    let options = options(&args, args.disk_size.or(args.size), parent.as_ref())?;
    let layers = parent.iter().flat_map(DiffChain::layers);
    let inputs: Vec<PathBuf> = layers.filter_map(|layer| layer.path).collect();
    let place = Place::find(&args.out, &args.replacing, &inputs, console)?;
    endings::check_image(&args.out, args.parent.is_some(), args.naming, console)?;
    let file = place.start(console)?;
    let image = options
        .create_draft(&LocalHost, file.draft())
        .and_then(|image| image.close().map(|()| image))
        .map_err(|error| file.failure(error))?;
    let made = CreateAnswer::of(&args.out, &image, parent.as_ref());
    file.publish(console)?;
    console.done();
    made.print(console)?;
    Ok(Reply::Yes)
}

/// Opens the parent with its whole chain: a child of an unreadable chain is useless.
fn open_parent(
    argument: &OsString,
    args: &Args,
    console: &mut Console,
) -> Result<DiffChain, Failure> {
    let opening = args.chain.options();
    let path = input::resolve(argument, &opening, console)?.path;
    let parent = opening.open(&path).map_err(|error| parents::failure(error, &path, &opening))?;
    console.warnings(&parent.warnings());
    Ok(parent)
}

fn options(
    args: &Args,
    size: Option<u64>,
    parent: Option<&DiffChain>,
) -> Result<CreateOptions, Failure> {
    let options = match (parent, size) {
        (Some(parent), size) => child_of(parent, size, args)?,
        (None, Some(size)) if args.fixed => CreateOptions::fixed(size),
        (None, Some(size)) => CreateOptions::dynamic(size),
        (None, None) => return Err(Failure::usage("usage", "a size or --parent is needed")),
    };
    args.new_image.apply(options)
}

fn child_of(parent: &DiffChain, size: Option<u64>, args: &Args) -> Result<CreateOptions, Failure> {
    let mut options = CreateOptions::child_of(&parent.tip())?;
    let least = parent.geometry().size;
    match size {
        Some(size) if size < least => {
            let message = format!("a child of {size} bytes is smaller than its parent");
            let hint = format!("use a size of {least} or more, or omit it to take the parent's");
            return Err(Failure::usage("create.smaller", message).hint(hint));
        }
        Some(size) => options = options.size(size),
        None => {}
    }
    if args.new_disk_id {
        options = options.disk_id(Uuid::new_v4());
    }
    let windows_path = match &args.absolute_win32_path {
        Some(given) => Some(given.clone()),
        None => parent.tip().path().and_then(|path| args.chain.parents.windows_path(path)),
    };
    Ok(match windows_path {
        Some(path) => options.absolute_win32_path(path),
        None => options,
    })
}

/// The facts of the new image.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct CreateAnswer {
    image: String,
    /// `fixed`, `dynamic` or `differencing`.
    #[serde(rename = "type")]
    kind: &'static str,
    virtual_size: u64,
    block_size: u32,
    logical_sector_size: u32,
    physical_sector_size: u32,
    log_size: u32,
    disk_id: Uuid,
    data_write_guid: Uuid,
    parent: Option<RecordedParent>,
}

impl Answer for CreateAnswer {
    const SCHEMA: &'static str = "avhdx.create/1";
}

/// The parent as the child records it.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct RecordedParent {
    image: String,
    data_write_guid: Uuid,
    relative_path: Option<String>,
    absolute_win32_path: Option<String>,
}

impl CreateAnswer {
    fn of(out: &Path, image: &VhdxFile, parent: Option<&DiffChain>) -> Self {
        let info = image.info();
        let recorded = |key: &str| {
            let entries = &info.locator.as_ref()?.entries;
            entries.iter().find(|(name, _)| name == key).map(|(_, path)| path.clone())
        };
        let parent = parent.map(|parent| RecordedParent {
            image: parent.tip().name().to_owned(),
            data_write_guid: parent.tip().data_write_guid(),
            relative_path: recorded("relative_path"),
            absolute_win32_path: recorded("absolute_win32_path"),
        });
        Self {
            image: out.display().to_string(),
            kind: kind(&info),
            virtual_size: info.geometry.size,
            block_size: info.block_size,
            logical_sector_size: info.geometry.logical_sector,
            physical_sector_size: info.geometry.physical_sector,
            log_size: info.log.length,
            disk_id: info.disk_id,
            data_write_guid: image.data_write_guid(),
            parent,
        }
    }

    fn print(&self, console: &mut Console) -> Result<(), Failure> {
        if console.is_json() {
            return console.document(self);
        }
        console.line(format!(
            "{}: a {} disk of {}, block size {}",
            self.image,
            self.kind,
            size(self.virtual_size),
            units(self.block_size.into())
        ))?;
        console.line(format!("  identity  {}", self.data_write_guid))?;
        let Some(parent) = &self.parent else { return Ok(()) };
        console.line(format!("  parent    {}, {}", parent.image, parent.data_write_guid))?;
        for path in [&parent.relative_path, &parent.absolute_win32_path].into_iter().flatten() {
            console.line(format!("  found by  {path}"))?;
        }
        Ok(())
    }
}
