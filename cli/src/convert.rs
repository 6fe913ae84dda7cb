//! `avhdx convert`: copies the flat disk to another format.

mod copied;
#[cfg(unix)]
mod file;
mod stdin;

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use avhdx::ops::Export;
use avhdx::storage::LocalHost;
use avhdx::{CreateOptions, Disk};

use crate::args::{
    CopyFormat, Format, ImageArg, NamingFlags, NewImageFlags, ReadFlags, ReplaceFlags,
};
use crate::endings;
use crate::failure::{Failure, Reply};
use crate::input::{self, Input};
use crate::new_file::{NewFile, Place};
use crate::next;
use crate::output::Console;
use crate::progress::ProgressMeter;
use crate::values;
use copied::Copied;
use stdin::Stream;

#[cfg(test)]
pub(crate) use copied::ConvertAnswer;

/// Copy the flat disk to a raw file (sparse), to standard output, or to an image without a parent.
///
/// Zeros take no space in a raw file and no blocks in a dynamic image.
///
/// With -f raw, IMAGE can be - for standard input. Its end is the end of the disk: whether the program that wrote it
/// finished or failed cannot be known here. --size says how long the disk is.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    image: ImageArg,
    /// The file to make; - for standard output.
    #[arg(value_name = "OUT")]
    out: PathBuf,
    /// The format of the copy [default: by the ending of OUT: .raw and .img are raw, others VHDX].
    #[arg(short = 'O', long, value_name = "FORMAT", value_enum)]
    output_format: Option<CopyFormat>,
    /// The format of the input.
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value = "vhdx")]
    format: Format,
    /// The size of the disk from standard input [default: up to its end]. Missing bytes are zeros, further ones an error.
    #[arg(long, value_name = "N", value_parser = values::size, allow_negative_numbers = true)]
    size: Option<u64>,
    #[command(flatten)]
    naming: NamingFlags,
    #[command(flatten)]
    replacing: ReplaceFlags,
    #[command(flatten)]
    new_image: NewImageFlags,
    #[command(flatten)]
    opening: ReadFlags,
}

pub(crate) fn run(args: Args, console: &mut Console) -> Result<Reply, Failure> {
    let format = endings::copy_format(&args.out, args.output_format);
    let is_raw = format == CopyFormat::Raw;
    if is_raw && args.new_image.is_given() {
        let message =
            "--block, --sector, --physical-sector and --log-size apply to images, not to raw disks";
        return Err(Failure::usage("usage", message));
    }
    if !is_raw && args.out.as_os_str() == "-" {
        let message = "an image cannot be written to standard output, only a raw disk";
        return Err(Failure::usage("usage", message));
    }
    let is_stdin = args.image.image == "-";
    if args.size.is_some() && !is_stdin {
        let message = "--size is for standard input: a file has its own size";
        return Err(Failure::usage("usage", message));
    }
    if is_stdin {
        return from_stdin(&args, format, console);
    }
    let input = Input::open(&args.image.image, args.format, &args.opening, console)?;
    if input.disk().geometry().size == 0 && !is_raw {
        let message = format!("{}: the file is empty, an image cannot be", args.image.name());
        return Err(Failure::usage("convert.empty", message));
    }
    if args.out.as_os_str() == "-" {
        input::refuse_own_output(input.disk())?;
        return stream(&input, console);
    }
    let target = Path::new(&args.out);
    let place = Place::find(target, &args.replacing, &input.paths(), console)?;
    endings::check_copy(target, args.output_format, args.naming, console)?;
    let file = place.start(console)?;
    let copy = match format {
        CopyFormat::Raw => raw_copy(&input, &file, console)?,
        CopyFormat::Vhdx | CopyFormat::VhdxFixed => {
            let options = image_options(&input, &args.new_image, format, console)?;
            image_copy(&input, &file, &options, console)?
        }
    };
    file.publish(console)?;
    console.done();
    copy.print(&args.image, target, format, console)?;
    Ok(Reply::Yes)
}

/// Takes in the disk from standard input.
fn from_stdin(args: &Args, format: CopyFormat, console: &mut Console) -> Result<Reply, Failure> {
    if args.out.as_os_str() == "-" {
        let message = "standard input to standard output: cat copies it";
        return Err(Failure::usage("usage", message));
    }
    if args.format != Format::Raw {
        let message = "standard input can only be a raw disk";
        let failure = Failure::usage("usage", message);
        return Err(match next::with_flag("-f raw") {
            Some(command) => failure.then(command),
            None => failure,
        });
    }
    let stream = Stream::new(args.size, &args.new_image, format)?;
    let place = Place::find(&args.out, &args.replacing, &[], console)?;
    endings::check_copy(&args.out, args.output_format, args.naming, console)?;
    let file = place.start(console)?;
    let copy = stream.copy(&file, console)?;
    file.publish(console)?;
    console.done();
    copy.print(&args.image, &args.out, format, console)?;
    Ok(Reply::Yes)
}

fn stream(input: &Input, console: &Console) -> Result<Reply, Failure> {
    let mut meter = ProgressMeter::beside_output(console);
    let mut out = io::stdout().lock();
    let done = Export::new().on_progress(|now| meter.report(now)).stream(input.disk(), &mut out);
    drop(meter);
    done.map_err(stdout_failure)?;
    out.flush().map(|()| Reply::Yes).map_err(|error| Failure::stdout(&error))
}

fn raw_copy(input: &Input, file: &NewFile, console: &Console) -> Result<Copied, Failure> {
    let (mut meter, to) = (ProgressMeter::new(console), file.storage().as_ref());
    let done = Export::new().on_progress(|now| meter.report(now)).run(input.disk(), to);
    drop(meter);
    let exported = done.map_err(|error| file.failure(error))?;
    Ok(Copied { virtual_size: exported.size, written: exported.written, block_size: None })
}

fn image_copy(
    input: &Input,
    file: &NewFile,
    options: &CreateOptions,
    console: &Console,
) -> Result<Copied, Failure> {
    let image = options.create_draft(&LocalHost, file.draft());
    let image = image.map_err(|error| file.failure(error))?;
    let mut meter = ProgressMeter::new(console);
    let done = Export::new().on_progress(|now| meter.report(now)).onto(input.disk(), &image);
    drop(meter);
    let done = done.and_then(|exported| image.close().map(|()| exported));
    let exported = done.map_err(|error| file.failure(error))?;
    let block_size = Some(image.block_size());
    let virtual_size = image.geometry().size;
    Ok(Copied { virtual_size, written: exported.written, block_size })
}

fn image_options(
    input: &Input,
    new_image: &NewImageFlags,
    format: CopyFormat,
    console: &mut Console,
) -> Result<CreateOptions, Failure> {
    let geometry = input.disk().geometry();
    let sector = match (new_image.sector, input) {
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
    let mut options = match format {
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
    new_image.apply(options)
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
