//! `avhdx create`: a new image.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use avhdx::storage::LocalHost;
use avhdx::{CreateOptions, DiffChain, Disk, OpenOptions, VhdxFile};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::args::{self, Parents, Replacing, Shape};
use crate::exit::{Failure, Outcome};
use crate::input;
use crate::output::{Console, size, units};
use crate::parents;
use crate::replace::Draft;

/// Make a new image: dynamic, fixed, or with --parent a differencing one, a child.
///
/// A child has the size, the sectors and the virtual disk id of its parent. The parent may be a point in
/// time of a chain; it must not be written to from then on.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// The file to make.
    #[arg(value_name = "OUT")]
    out: PathBuf,
    /// The size of the disk. A child may be larger than its parent.
    #[arg(long, value_name = "N", value_parser = args::bytes, required_unless_present = "parent")]
    size: Option<u64>,
    /// Make a fixed image, which has all its space from the start.
    #[arg(long, conflicts_with = "parent")]
    fixed: bool,
    /// Make a child of IMAGE, which may be a point in time: IMAGE@SEL.
    #[arg(long, value_name = "IMAGE")]
    parent: Option<OsString>,
    /// Give a child a virtual disk id of its own: for clones of a base that run side by side.
    #[arg(long, requires = "parent")]
    new_disk_id: bool,
    /// What Windows calls the parent, to be recorded beside the path from the child's folder [default: by
    /// way of --path-map].
    #[arg(long, value_name = "S", requires = "parent", value_parser = windows_path)]
    absolute_win32_path: Option<String>,
    #[command(flatten)]
    replacing: Replacing,
    #[command(flatten)]
    shape: Shape,
    /// The size of the log, a multiple of 1M [default: 1M].
    #[arg(long, value_name = "N", value_parser = args::bytes, alias = "log-size")]
    #[arg(help_heading = "The new image")]
    log: Option<u64>,
    #[command(flatten)]
    parents: Parents,
    /// Layers that a chain may have.
    #[arg(long, value_name = "N", default_value_t = 256, help_heading = "Parents")]
    max_depth: usize,
}

pub(crate) fn run(args: Args, console: &mut Console) -> Result<Outcome, Failure> {
    let parent = match &args.parent {
        Some(argument) => Some(open_parent(argument, &args, console)?),
        None => None,
    };
    let options = options(&args, parent.as_ref())?;
    let layers = parent.iter().flat_map(DiffChain::layers);
    let inputs: Vec<PathBuf> = layers.filter_map(|layer| layer.path).collect();
    let draft = Draft::new(&args.out, &args.replacing, &inputs, console)?;
    let image = options
        .create_draft(&LocalHost, draft.inner())
        .and_then(|image| image.close().map(|()| image))
        .map_err(|error| draft.failure(error))?;
    let facts = Facts::of(&image, parent.as_ref());
    draft.publish(console)?;
    console.done();
    facts.say(&args.out, console)?;
    Ok(Outcome::Yes)
}

/// The parent with all of its own: a child of a chain that cannot be read would be of no use.
fn open_parent(
    argument: &OsString,
    args: &Args,
    console: &mut Console,
) -> Result<DiffChain, Failure> {
    let opening = OpenOptions::new().parents(args.parents.source()).max_depth(args.max_depth);
    let path = input::resolve(argument, &opening, console)?.path;
    let parent = opening.open(&path).map_err(|error| parents::failure(error, &path, &opening))?;
    console.warnings(&parent.warnings());
    Ok(parent)
}

fn options(args: &Args, parent: Option<&DiffChain>) -> Result<CreateOptions, Failure> {
    let mut options = match (parent, args.size) {
        (Some(parent), size) => child_of(parent, size, args)?,
        (None, Some(size)) if args.fixed => CreateOptions::fixed(size),
        (None, Some(size)) => CreateOptions::dynamic(size),
        (None, None) => return Err(Failure::usage("usage", "--size or --parent is needed")),
    };
    if let Some(bytes) = args.log {
        options = options.log_size(args::number("--log", bytes)?);
    }
    args.shape.of(options)
}

fn child_of(parent: &DiffChain, size: Option<u64>, args: &Args) -> Result<CreateOptions, Failure> {
    let mut options = CreateOptions::child_of(&parent.tip())?;
    let least = parent.geometry().size;
    match size {
        Some(size) if size < least => {
            let message = format!("a child of {size} bytes would be smaller than its parent");
            let hint = format!("--size {least} or more; without --size it is the parent's");
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
        None => parent.tip().path().and_then(|path| args.parents.windows_path(path)),
    };
    Ok(match windows_path {
        Some(path) => options.absolute_win32_path(path),
        None => options,
    })
}

/// A path that Windows could have written: others would send it looking for what cannot be.
fn windows_path(text: &str) -> Result<String, String> {
    match args::is_windows_path(text) {
        true => Ok(text.to_owned()),
        false => Err(r"no absolute path of a drive or a share, such as D:\vm\base.vhdx".into()),
    }
}

/// What is said of the new image.
struct Facts {
    kind: &'static str,
    size: u64,
    block_size: u32,
    logical_sector: u32,
    physical_sector: u32,
    log_size: u32,
    disk_id: Uuid,
    data_write_guid: Uuid,
    parent: Option<Parent>,
}

struct Parent {
    file: String,
    data_write_guid: Uuid,
    relative_path: Option<String>,
    absolute_win32_path: Option<String>,
}

impl Facts {
    fn of(image: &VhdxFile, parent: Option<&DiffChain>) -> Self {
        let info = image.info();
        let kind = match (info.has_parent, info.leave_blocks_allocated) {
            (true, _) => "differencing",
            (false, true) => "fixed",
            (false, false) => "dynamic",
        };
        let recorded = |key: &str| {
            let entries = &info.locator.as_ref()?.entries;
            entries.iter().find(|(name, _)| name == key).map(|(_, path)| path.clone())
        };
        let parent = parent.map(|parent| Parent {
            file: parent.tip().name().to_owned(),
            data_write_guid: parent.tip().data_write_guid(),
            relative_path: recorded("relative_path"),
            absolute_win32_path: recorded("absolute_win32_path"),
        });
        Self {
            kind,
            size: info.geometry.size,
            block_size: info.block_size,
            logical_sector: info.geometry.logical_sector,
            physical_sector: info.geometry.physical_sector,
            log_size: info.log.length,
            disk_id: info.disk_id,
            data_write_guid: image.data_write_guid(),
            parent,
        }
    }

    fn say(&self, out: &Path, console: &mut Console) -> Result<(), Failure> {
        let out = out.display();
        if console.is_json() {
            return console.document(&self.object(&out.to_string()));
        }
        console.line(format!(
            "{out}: a {} disk of {}, blocks of {}",
            self.kind,
            size(self.size),
            units(self.block_size.into())
        ))?;
        console.line(format!("  identity  {}", self.data_write_guid))?;
        let Some(parent) = &self.parent else { return Ok(()) };
        console.line(format!("  parent    {}, {}", parent.file, parent.data_write_guid))?;
        for path in [&parent.relative_path, &parent.absolute_win32_path].into_iter().flatten() {
            console.line(format!("  found by  {path}"))?;
        }
        Ok(())
    }

    fn object(&self, out: &str) -> Value {
        let parent = self.parent.as_ref().map(|parent| {
            json!({
                "file": parent.file,
                "data_write_guid": parent.data_write_guid.to_string(),
                "relative_path": parent.relative_path,
                "absolute_win32_path": parent.absolute_win32_path,
            })
        });
        json!({
            "schema": "avhdx.create/1",
            "output": out,
            "type": self.kind,
            "size": self.size,
            "block_size": self.block_size,
            "logical_sector": self.logical_sector,
            "physical_sector": self.physical_sector,
            "log_size": self.log_size,
            "disk_id": self.disk_id.to_string(),
            "data_write_guid": self.data_write_guid.to_string(),
            "parent": parent,
        })
    }
}
