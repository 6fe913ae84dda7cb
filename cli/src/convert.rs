//! `avhdx convert`: copies the flat disk to another format.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use avhdx::CreateOptions;
use avhdx::ops::{Export, Exported};
use avhdx::storage::LocalHost;
use serde::Serialize;

use crate::args::{self, CopyFormat, Format, ImageArg, NewImageFlags, ReadFlags, ReplaceFlags};
use crate::failure::{Failure, Reply};
use crate::input::{self, Input};
use crate::new_file::NewFile;
use crate::output::Console;
use crate::progress::ProgressMeter;
use crate::text::{size, units};
use crate::values;
use crate::vocabulary::Answer;

/// Copy the flat disk to a raw file (sparse), to standard output, or to an image without a parent.
///
/// Zeros take no space in a raw file and no blocks in a dynamic image.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    image: ImageArg,
    /// The file to make; - for standard output.
    #[arg(value_name = "OUT")]
    out: PathBuf,
    /// The format of the copy.
    #[arg(short = 'O', long, value_name = "FORMAT", value_enum)]
    output_format: CopyFormat,
    /// The format of the input.
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value = "vhdx")]
    format: Format,
    #[command(flatten)]
    replacing: ReplaceFlags,
    #[command(flatten)]
    new_image: NewImageFlags,
    /// The size of the log, a multiple of 1M [default: 1M].
    #[arg(long, value_name = "N", value_parser = values::bytes, allow_negative_numbers = true, help_heading = "The new image")]
    log_size: Option<u64>,
    #[command(flatten)]
    opening: ReadFlags,
}

pub(crate) fn run(args: Args, console: &mut Console) -> Result<Reply, Failure> {
    let is_raw = args.output_format == CopyFormat::Raw;
    if is_raw && (args.new_image.is_given() || args.log_size.is_some()) {
        let message =
            "--block, --sector, --physical-sector and --log-size apply to images, not to raw disks";
        return Err(Failure::usage("usage", message));
    }
    if !is_raw && args.out.as_os_str() == "-" {
        let message = "an image cannot be written to standard output, only a raw disk";
        return Err(Failure::usage("usage", message));
    }
    let input = Input::open(&args.image.image, args.format, &args.opening, console)?;
    if args.out.as_os_str() == "-" {
        input::refuse_own_output(input.disk())?;
        return stream(&input, console);
    }
    let target = Path::new(&args.out);
    let file = NewFile::new(target, &args.replacing, &input.paths(), console)?;
    let copy = match args.output_format {
        CopyFormat::Raw => raw_copy(&input, &file, target, console)?,
        CopyFormat::Vhdx | CopyFormat::VhdxFixed => image_copy(&input, &file, &args, console)?,
    };
    file.publish(console)?;
    console.done();
    copy.print(&args, console)?;
    Ok(Reply::Yes)
}

/// A finished copy.
struct Copied {
    exported: Exported,
    /// The block size, if the copy is an image.
    block_size: Option<u32>,
}

fn stream(input: &Input, console: &Console) -> Result<Reply, Failure> {
    let mut meter = ProgressMeter::beside_output(console);
    let mut out = io::stdout().lock();
    let done = Export::new().on_progress(|now| meter.report(now)).stream(input.disk(), &mut out);
    drop(meter);
    done.map_err(stdout_failure)?;
    out.flush().map(|()| Reply::Yes).map_err(|error| Failure::stdout(&error))
}

fn raw_copy(
    input: &Input,
    file: &NewFile,
    target: &Path,
    console: &Console,
) -> Result<Copied, Failure> {
    let (mut meter, to) = (ProgressMeter::new(console), file.storage().as_ref());
    let done = Export::new().on_progress(|now| meter.report(now)).run(input.disk(), to);
    drop(meter);
    let exported = done.map_err(|error| copy_failure(error, target))?;
    Ok(Copied { exported, block_size: None })
}

fn image_copy(
    input: &Input,
    file: &NewFile,
    args: &Args,
    console: &mut Console,
) -> Result<Copied, Failure> {
    let options = image_options(input, args, console)?;
    let image = options.create_draft(&LocalHost, file.draft());
    let image = image.map_err(|error| file.failure(error))?;
    let mut meter = ProgressMeter::new(console);
    let done = Export::new().on_progress(|now| meter.report(now)).onto(input.disk(), &image);
    drop(meter);
    let done = done.and_then(|exported| image.close().map(|()| exported));
    let exported = done.map_err(|error| file.failure(error))?;
    Ok(Copied { exported, block_size: Some(image.block_size()) })
}

fn image_options(
    input: &Input,
    args: &Args,
    console: &mut Console,
) -> Result<CreateOptions, Failure> {
    let geometry = input.disk().geometry();
    let sector = match (args.new_image.sector, input) {
        (Some(sector), _) => sector,
        (None, Input::Chain(_)) => geometry.logical_sector.into(),
        (None, Input::Raw { .. }) => 512,
    };
    let whole = geometry.size.checked_next_multiple_of(sector.max(1)).unwrap_or(geometry.size);
    if whole > geometry.size {
        let message = format!(
            "the copy has {whole} bytes, {} more than the input: a disk is a whole number of sectors",
            whole - geometry.size
        );
        console.warn("convert.padded", &message);
    }
    let mut options = match args.output_format {
        CopyFormat::VhdxFixed => CreateOptions::fixed(whole),
        CopyFormat::Raw | CopyFormat::Vhdx => CreateOptions::dynamic(whole),
    };
    if let Input::Chain(_) = input {
        options = options
            .logical_sector(geometry.logical_sector)
            .physical_sector(geometry.physical_sector);
        if sector != u64::from(geometry.logical_sector) {
            let message = format!(
                "the sector size changes from {} to {sector} bytes: partition tables count in sectors",
                geometry.logical_sector
            );
            console.warn("convert.sector-size", &message);
        }
    }
    if let Some(bytes) = args.log_size {
        options = options.log_size(args::u32_size("--log-size", bytes)?);
    }
    args.new_image.apply(options)
}

/// A copy of a disk.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct ConvertAnswer {
    image: String,
    /// The file made.
    output: String,
    format: &'static str,
    virtual_size: u64,
    /// The number of bytes of the disk that were written; the rest are zeros.
    written: u64,
    /// Null for a raw disk.
    block_size: Option<u32>,
}

impl Answer for ConvertAnswer {
    const SCHEMA: &'static str = "avhdx.convert/1";
}

impl Copied {
    fn print(&self, args: &Args, console: &mut Console) -> Result<(), Failure> {
        let out = args.out.to_string_lossy();
        let Exported { size: disk_size, written, .. } = self.exported;
        if console.is_json() {
            return console.document(&ConvertAnswer {
                image: args.image.name(),
                output: out.into_owned(),
                format: args.output_format.name(),
                virtual_size: disk_size,
                written,
                block_size: self.block_size,
            });
        }
        let mut line = format!("{out}: {}, {} written", size(disk_size), size(written));
        if let Some(block_size) = self.block_size {
            line += &format!(", block size {}", units(block_size.into()));
        }
        console.line(line)
    }
}

/// A failure that shows the final name, not the temporary one.
fn copy_failure(error: avhdx::Error, target: &Path) -> Failure {
    match host_error(&error) {
        Some(host) => {
            Failure::io("export.write", format!("{}: {}", target.display(), error.message()), host)
        }
        None => error.into(),
    }
}

/// A failure to write to standard output, which a closed pipe makes silent.
fn stdout_failure(error: avhdx::Error) -> Failure {
    match host_error(&error) {
        Some(host) => Failure::stdout(host),
        None => error.into(),
    }
}

/// The host's error, if writing failed.
fn host_error(error: &avhdx::Error) -> Option<&io::Error> {
    let source = std::error::Error::source(error)?;
    source.downcast_ref().filter(|_| error.code() == "export.write")
}
