//! `avhdx convert`: copies the flat disk to another format.

pub(crate) mod chain;
#[cfg(unix)]
mod file;
mod stdin;

use std::ffi::OsString;
use std::io::{self, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use avhdx::ops::Export;
use clap::builder::{PathBufValueParser, TypedValueParser};
use serde::Serialize;

use crate::args::{CopyFormat, Format, ImageArg, NewImageFlags};
use crate::copying::{Copied, CopyFlags, DiskCopy};
use crate::endings;
use crate::failure::{Failure, Reply};
use crate::input::{self, Input, Stamps};
use crate::new_file::Place;
use crate::next;
use crate::output::Console;
use crate::progress::ProgressMeter;
use crate::table::TextTable;
use crate::values;
use crate::vhd;
use crate::vocabulary::Answer;
use stdin::Stream;

/// Copy the flat disk to a raw file (sparse), to standard output, or to an image without a parent.
///
/// Zeros take no space in a raw file and no blocks in a dynamic image.
///
/// OUT can be - for standard output. With -f raw, IMAGE can be - for standard input. Its end is the end of the disk:
/// whether the program that wrote it finished or failed cannot be known here. --size says how long the disk is.
///
/// --chain makes a qcow2 image of each layer in a folder: a machine leaves for QEMU with all its points in time. With
/// several tips, the layers that they share are made once.
#[derive(clap::Args, Debug)]
#[command(override_usage = "avhdx convert [OPTIONS] IMAGE OUT\n       \
                            avhdx convert [OPTIONS] --chain IMAGE... FOLDER")]
pub(crate) struct Args {
    /// The image, or a point in time of its chain: IMAGE@-1, IMAGE@base, IMAGE@NAME, IMAGE@GUIDPREFIX; and the file to make
    /// [OUT].
    #[arg(value_name = "IMAGE", num_args = 1.., required = true,
        value_parser = PathBufValueParser::new().map(PathBuf::into_os_string))]
    images_and_out: Vec<OsString>,
    #[command(flatten)]
    flags: CopyFlags,
    /// The format of the copy [default: by the ending of OUT: .raw and .img are raw, .vhd a dynamic VHD,
    /// .qcow2 qcow2, others VHDX].
    #[arg(short = 'O', long, value_name = "FORMAT", value_enum)]
    output_format: Option<CopyFormat>,
    /// The format of the input [default: by the ending of its name, else VHDX].
    #[arg(short, long, value_name = "FORMAT", value_enum)]
    format: Option<Format>,
    /// The size of the disk from standard input [default: up to its end]. Missing bytes are zeros, further ones an error.
    #[arg(long, value_name = "N", value_parser = values::size, allow_negative_numbers = true)]
    size: Option<u64>,
    /// Make a qcow2 image of each layer in FOLDER, over each other as the layers are: all points in time of the chain, or of
    /// several chains with layers in common. Each is named as its layer. They appear once all of them are complete.
    #[arg(long, conflicts_with_all = ["azure", "size", "no_share", "any_name"])]
    chain: bool,
    /// Make a VHD image that Azure takes: fixed, of whole MiB, from 20 MiB to 2,040 GiB, in sectors of 512 bytes. A disk
    /// that is none is refused.
    #[arg(long)]
    azure: bool,
    /// Write zeros where the disk cannot be read, list these ranges, and exit with 8. For an image that does not open,
    /// rescue searches what is left.
    #[arg(long, conflicts_with_all = ["chain", "dry_run"])]
    keep_going: bool,
    /// Add zeros behind the end of the disk, up to a size that Azure takes. A partition table stays as it is.
    #[arg(long, requires = "azure")]
    pad: bool,
}

pub(crate) fn run(args: Args, console: &mut Console) -> Result<Reply, Failure> {
    let Args { images_and_out: mut images, flags, output_format, format, size, .. } = args;
    let output_format = match (args.azure, output_format) {
        (false, asked) => asked,
        (true, None | Some(CopyFormat::VhdFixed)) => Some(CopyFormat::VhdFixed),
        (true, Some(other)) => {
            let message = format!("--azure makes a vhd-fixed, not a {}", other.name());
            return Err(Failure::usage("usage", message));
        }
    };
    let out = images.pop().map(PathBuf::from).unwrap_or_default();
    if images.is_empty() {
        let message = "OUT is missing: the file to make, or with --chain a folder";
        return Err(Failure::usage("usage", message));
    }
    if args.chain {
        return chain(&images, &out, &flags, (output_format, format), console);
    }
    if images.len() > 1 {
        let message = "one disk becomes one file; --chain makes images of several tips in a folder";
        return Err(Failure::usage("usage", message));
    }
    let image = ImageArg { image: images.remove(0) };
    let copy = DiskCopy { image, out, flags };
    let sizing = Sizing { size, azure: args.azure, pad: args.pad, keep_going: args.keep_going };
    one(&copy, output_format, format, &sizing, console)
}

/// Which size the copy has, and whether all of it must be readable.
struct Sizing {
    size: Option<u64>,
    keep_going: bool,
    azure: bool,
    pad: bool,
}

/// Copies one disk.
fn one(
    copy: &DiskCopy,
    output_format: Option<CopyFormat>,
    input_format: Option<Format>,
    sizing: &Sizing,
    console: &mut Console,
) -> Result<Reply, Failure> {
    let flags = &copy.flags;
    let format = endings::copy_format(&copy.out, output_format);
    let is_raw = format == CopyFormat::Raw;
    if is_raw && flags.new_image.is_given() {
        let message =
            "--block, --sector, --physical-sector and --log-size apply to images, not to raw disks";
        return Err(Failure::usage("usage", message));
    }
    let (is_stdin, is_stdout) = (copy.image.image == "-", copy.out.as_os_str() == "-");
    if !is_raw && is_stdout {
        let message = "an image cannot be written to standard output, only a raw disk";
        return Err(Failure::usage("usage", message));
    }
    if sizing.size.is_some() && !is_stdin {
        let message = "--size is for standard input: a file has its own size";
        return Err(Failure::usage("usage", message));
    }
    if flags.verify && (is_stdin || is_stdout) {
        let message = "--verify reads both disks again: standard input and output are passed once";
        return Err(Failure::usage("usage", message));
    }
    if flags.dry_run && (is_stdin || is_stdout) {
        let message = "--dry-run is for files: a stream is not known before it is passed";
        return Err(Failure::usage("usage", message));
    }
    if sizing.keep_going && (is_stdin || is_stdout) {
        let message = "--keep-going is for files: a stream is passed once";
        return Err(Failure::usage("usage", message));
    }
    if is_stdin {
        return from_stdin(copy, (output_format, input_format), sizing.size, format, console);
    }
    let input = copy.input(input_format, console)?;
    let input = if sizing.keep_going { input.kept() } else { input };
    if input.disk().geometry().size == 0 && !is_raw {
        let message = format!("{}: the file is empty, an image cannot be", copy.image.name());
        return Err(Failure::usage("convert.empty", message));
    }
    if is_stdout {
        input::refuse_own_output(input.disk())?;
        return stream(&input, console);
    }
    let padded = if sizing.azure { Some(vhd::size_for_azure(&input, sizing.pad)?) } else { None };
    if flags.dry_run {
        return copy.foresee(&input, format, output_format, padded, console);
    }
    let copied = copy.copy(&input, format, output_format, padded, console)?;
    let lost = match &input {
        Input::Kept { disk, .. } => Some(disk.lost()),
        _ => None,
    };
    print(copy, &copied, format, lost.as_deref(), console)
}

/// Makes images of all layers.
fn chain(
    images: &[OsString],
    out: &Path,
    flags: &CopyFlags,
    (output_format, format): (Option<CopyFormat>, Option<Format>),
    console: &mut Console,
) -> Result<Reply, Failure> {
    if output_format.is_some_and(|format| format != CopyFormat::Qcow2) {
        let message = "--chain makes qcow2 images";
        return Err(Failure::usage("usage", message));
    }
    let NewImageFlags { sector, physical_sector, log_size, .. } = flags.new_image;
    if sector.or(physical_sector).or(log_size).is_some() {
        let message = "a qcow2 image has neither a log nor a sector size";
        return Err(Failure::usage("usage", message));
    }
    let mut chains = Vec::new();
    for image in images {
        match Input::open(image, format, &flags.opening, console)? {
            Input::Chain(chain) => chains.push(chain),
            Input::Foreign(_) | Input::Raw { .. } | Input::Ruin(_) | Input::Kept { .. } => {
                let image = image.to_string_lossy();
                let message = format!("{image}: only a chain of VHDX has points in time");
                return Err(Failure::usage("convert.no-chain", message));
            }
        }
    }
    chain::run(&chains, out, flags, console)
}

/// Takes in the disk from standard input.
fn from_stdin(
    copy: &DiskCopy,
    (asked, input_format): (Option<CopyFormat>, Option<Format>),
    size: Option<u64>,
    format: CopyFormat,
    console: &mut Console,
) -> Result<Reply, Failure> {
    if copy.out.as_os_str() == "-" {
        let message = "standard input to standard output: cat copies it";
        return Err(Failure::usage("usage", message));
    }
    if input_format != Some(Format::Raw) {
        let message = "standard input can only be a raw disk";
        let failure = Failure::usage("usage", message);
        return Err(match next::with_flag("-f raw") {
            Some(command) => failure.then(command),
            None => failure,
        });
    }
    if format.is_vhd() || format == CopyFormat::Qcow2 {
        let message = format!(
            "{} is not made of standard input, which is passed once: make a raw disk of it first",
            format.what()
        );
        return Err(Failure::usage("usage", message));
    }
    let stream = Stream::new(size, &copy.flags.new_image, format)?;
    let place = Place::find(&copy.out, &copy.flags.replacing, &[], console)?;
    endings::check_copy(&copy.out, asked, copy.flags.naming, console)?;
    let file = place.start(console)?;
    let copied = stream.copy(&file, console)?;
    file.publish(console)?;
    console.done();
    print(copy, &copied, format, None, console)
}

fn print(
    copy: &DiskCopy,
    copied: &Copied,
    format: CopyFormat,
    lost: Option<&[Range<u64>]>,
    console: &mut Console,
) -> Result<Reply, Failure> {
    let unread = lost.unwrap_or_default();
    let reply = if unread.is_empty() { Reply::Yes } else { Reply::Losses };
    if !console.is_json() {
        if !unread.is_empty() {
            let mut table = TextTable::new("Not read: zeros in the copy", &[">offset", ">bytes"]);
            for range in unread {
                table.row([range.start.to_string(), (range.end - range.start).to_string()]);
            }
            console.table(table)?;
        }
        return console.line(copy.line(copied)).map(|()| reply);
    }
    let answer = ConvertAnswer {
        image: copy.image.name(),
        output: copy.out.to_string_lossy().into_owned(),
        format: format.name(),
        virtual_size: copied.virtual_size,
        written: copied.written,
        handed_over: copied.handed_over,
        block_size: copied.block_size,
        verified: copy.flags.verify,
        lost: lost.map(|lost| lost.iter().map(UnreadRange::of).collect()),
    };
    console.document(&answer).map(|()| reply)
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
    /// How many of them the file system was asked to share between the files.
    handed_over: u64,
    /// Null for a copy without blocks.
    block_size: Option<u32>,
    /// Whether the copy was read back and compared with the disk.
    verified: bool,
    /// What could not be read, with --keep-going; zeros in the copy.
    #[serde(skip_serializing_if = "Option::is_none")]
    lost: Option<Vec<UnreadRange>>,
}

/// A range of the disk that could not be read.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct UnreadRange {
    offset: u64,
    length: u64,
}

impl UnreadRange {
    fn of(range: &Range<u64>) -> Self {
        Self { offset: range.start, length: range.end - range.start }
    }
}

impl Answer for ConvertAnswer {
    const SCHEMA: &'static str = "avhdx.convert/1";
}

fn stream(input: &Input, console: &Console) -> Result<Reply, Failure> {
    let stamps = Stamps::of(input);
    let mut meter = ProgressMeter::beside_output(console);
    let mut out = io::stdout().lock();
    let done = Export::new().on_progress(|now| meter.report(now)).stream(input.disk(), &mut out);
    drop(meter);
    done.map_err(stdout_failure)?;
    out.flush().map_err(|error| Failure::stdout(&error))?;
    stamps.check().map(|()| Reply::Yes)
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
