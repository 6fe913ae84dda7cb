//! `avhdx metadata`: lists, reads and changes metadata items of users, and what an image records of its disk.

use std::io::{self, Read};
use std::path::Path;

use avhdx::ops::{EditMetadata, Forecast, Provision};
use avhdx::storage::{Access, Host, LocalHost};
use avhdx::{Disk, Lock, OpenOptions, VhdxFile};
use serde::Serialize;
use uuid::Uuid;

use crate::args::{ImageArg, OperationFlags, u32_size};
use crate::facts::report;
use crate::failure::{Failure, Reply};
use crate::input::{self, Resolved};
use crate::interrupt::in_progress;
use crate::operation;
use crate::output::Console;
use crate::table::TextTable;
use crate::text::hex;
use crate::values;
use crate::vocabulary::Answer;
use crate::writing::below_the_tip;

/// The longest item of the format.
const MOST: u64 = 1 << 20;

/// List, read or change metadata items of users in one image file, or its type.
///
/// Without flags, the items are listed, or the bytes of ITEM go to standard output. Items have the flag IsUser: other
/// programs ignore them. Changes are made in one step and keep the bytes and the identity of the image; an image with
/// children is refused, unless it only becomes fixed or dynamic. The marks of avhdx are listed, and changed by label and merge alone.
#[derive(clap::Args, Debug)]
#[command(group = clap::ArgGroup::new("change").multiple(true))]
pub(crate) struct Args {
    #[command(flatten)]
    image: ImageArg,
    /// The item.
    #[arg(value_name = "ITEM", value_parser = values::guid)]
    item: Option<Uuid>,
    /// Replace the contents of ITEM, or add it, with standard input.
    #[arg(long, requires = "item", group = "change")]
    write: bool,
    /// Remove ITEM.
    #[arg(long, requires = "item", conflicts_with = "write", group = "change")]
    delete: bool,
    /// Give the virtual disk another identity, or a new one with 'new'.
    #[arg(
        long,
        value_name = "GUID",
        value_parser = values::new_guid,
        conflicts_with = "item",
        group = "change"
    )]
    disk_id: Option<Uuid>,
    /// Set the physical sector size that the disk claims to have: 512 or 4096.
    #[arg(
        long,
        value_name = "N",
        value_parser = values::bytes,
        allow_negative_numbers = true,
        conflicts_with = "item",
        group = "change"
    )]
    physical_sector: Option<u64>,
    /// Make a dynamic image fixed, in place: its blocks without space get some.
    #[arg(long, conflicts_with_all = ["item", "disk_id", "physical_sector"], group = "change")]
    fixed: bool,
    /// Make a fixed image dynamic, in place: its blocks keep their space until they are discarded.
    #[arg(
        long,
        conflicts_with_all = ["item", "disk_id", "physical_sector", "fixed"],
        group = "change"
    )]
    dynamic: bool,
    /// Only print what would be done.
    #[arg(long, requires = "change")]
    dry_run: bool,
    #[command(flatten)]
    opening: OperationFlags,
}

/// The items of users, after the change if there was one.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct MetadataAnswer {
    image: String,
    /// The identity of the virtual disk.
    disk_id: Uuid,
    physical_sector_size: u32,
    /// `fixed`, `dynamic` or `differencing`.
    r#type: &'static str,
    items: Vec<UserItem>,
}

impl Answer for MetadataAnswer {
    const SCHEMA: &'static str = "avhdx.metadata/1";
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct UserItem {
    guid: Uuid,
    length: u32,
    virtual_disk: bool,
    required: bool,
}

/// The bytes of an item.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct MetadataItemAnswer {
    image: String,
    guid: Uuid,
    length: usize,
    /// The bytes, as two hexadecimal digits each.
    hex: String,
}

impl Answer for MetadataItemAnswer {
    const SCHEMA: &'static str = "avhdx.metadata-item/1";
}

pub(crate) fn run(args: Args, console: &mut Console) -> Result<Reply, Failure> {
    let options = args.opening.options()?;
    let reading = options.clone().writable(false).lock(Lock::Try);
    let Resolved { path, is_tip } = input::resolve(&args.image.image, &reading, console)?;
    let is_provision = args.fixed || args.dynamic;
    let is_edit =
        args.write || args.delete || args.disk_id.is_some() || args.physical_sector.is_some();
    let is_change = is_provision || is_edit;
    if is_change && !is_tip {
        return Err(below_the_tip(&args.image));
    }
    let forecast = match (is_provision, is_edit) {
        (true, _) => provision(&args, &path, options, console)?,
        (_, true) => change(&args, &path, &options, &reading, console)?,
        _ => None,
    };
    if let Some(forecast) = forecast {
        operation::print_forecast(&forecast, console)?;
        return Ok(Reply::Yes);
    }
    let image = reading.open_image(&path)?;
    if !is_change {
        console.warnings(image.warnings());
    }
    match args.item {
        Some(item) if !is_change => show_item(&args, &image, item, console)?,
        _ => show_list(&args, &image, console)?,
    }
    Ok(Reply::Yes)
}

/// Makes the image fixed or dynamic, or only says what that takes.
fn provision(
    args: &Args,
    path: &Path,
    options: OpenOptions,
    console: &mut Console,
) -> Result<Option<Forecast>, Failure> {
    let provision = if args.fixed { Provision::fixed() } else { Provision::dynamic() };
    let provision = provision.options(options);
    if args.dry_run {
        return Ok(Some(provision.forecast(path)?));
    }
    let done = operation::run(console, |on| provision.on_progress(on).run(path))?;
    console.warnings(&done.warnings);
    console.done();
    Ok(None)
}

/// Edits the metadata, or only says what that takes.
fn change(
    args: &Args,
    path: &Path,
    options: &OpenOptions,
    reading: &OpenOptions,
    console: &mut Console,
) -> Result<Option<Forecast>, Failure> {
    let mut edit = EditMetadata::new();
    if let Some(item) = args.item {
        if args.write {
            edit = edit.set(item, contents()?);
        }
        if args.delete {
            edit = edit.remove(item);
        }
    }
    if let Some(id) = args.disk_id {
        edit = edit.disk_id(id);
    }
    if let Some(bytes) = args.physical_sector {
        edit = edit.physical_sector(u32_size("--physical-sector", bytes)?);
    }
    // A change that will be refused must not replay a log.
    let forecast = edit.forecast(&reading.open_image(path)?)?;
    let file = LocalHost.open(path, Access::Read).map_err(|error| {
        Failure::io("file.open", format!("{}: cannot open the file", path.display()), &error)
    })?;
    let warnings = options.check_childless(file.as_ref()).map_err(of_parent)?;
    drop(file);
    if args.dry_run {
        console.warnings(&warnings);
        return Ok(Some(forecast));
    }
    let image = options.open_image(path).map_err(of_parent)?;
    console.warnings(image.warnings());
    // An interruption waits.
    let _held = in_progress();
    let edited = edit.run(&image);
    let closed = image.close();
    edited?;
    closed?;
    console.done();
    Ok(None)
}

/// The refusal to change a parent, in words about metadata.
fn of_parent(error: avhdx::Error) -> Failure {
    let has = match error.code() {
        "image.children" => "has",
        "image.children-unknown" => "may have",
        _ => return error.into(),
    };
    let said = [error.message(), error.expected().unwrap_or_default()].map(str::to_owned);
    let message = format!("the image {has} a child, and the metadata of a parent stays as it is");
    let failure = Failure::from(error).worded(&said[0], &message);
    failure.worded(&said[1], "an image without children")
}

/// All of standard input.
fn contents() -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let read = io::stdin().lock().take(MOST + 1).read_to_end(&mut bytes);
    read.map_err(|error| Failure::io("stdin.read", "cannot read standard input", &error))?;
    Ok(bytes)
}

fn show_item(
    args: &Args,
    image: &VhdxFile,
    item: Uuid,
    console: &mut Console,
) -> Result<(), Failure> {
    let bytes = image.user_item(item)?;
    if !console.is_json() {
        input::refuse_own_output(image)?;
        return console.bytes(&bytes);
    }
    let hex = hex(&bytes);
    let (image, length) = (args.image.name(), bytes.len());
    console.document(&MetadataItemAnswer { image, guid: item, length, hex })
}

fn show_list(args: &Args, image: &VhdxFile, console: &mut Console) -> Result<(), Failure> {
    let info = image.info();
    let physical_sector_size = image.geometry().physical_sector;
    let kind = report::kind(&info);
    let items: Vec<_> = info.metadata.iter().filter(|item| item.is_user).collect();
    if console.is_json() {
        let items = items.iter().map(|item| UserItem {
            guid: item.guid,
            length: item.length,
            virtual_disk: item.is_virtual_disk,
            required: item.is_required,
        });
        return console.document(&MetadataAnswer {
            image: args.image.name(),
            disk_id: info.disk_id,
            physical_sector_size,
            r#type: kind,
            items: items.collect(),
        });
    }
    let mut disk = TextTable::fields("Disk");
    disk.field("Identity", info.disk_id);
    disk.field("Type", kind);
    disk.field("Physical sector", format!("{physical_sector_size} bytes"));
    console.table(disk)?;
    let mut table = TextTable::new("Items of users", &["GUID", ">LENGTH", "REQUIRED", "OF"]);
    for item in items {
        let required = if item.is_required { "yes" } else { "no" };
        let of = if item.is_virtual_disk { "disk" } else { "file" };
        table.row([item.guid.to_string(), item.length.to_string(), required.into(), of.into()]);
    }
    console.table(table)
}
