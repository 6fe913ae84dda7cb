//! `avhdx convert`: copies the flat disk to another format.

pub(crate) mod chain;
#[cfg(unix)]
mod file;
mod stdin;

use std::io::{self, Write};
use std::ops::Range;

use avhdx::ops::Export;
use serde::Serialize;

use crate::args::{CopyFormat, Format, NewImageFlags};
use crate::copying::{Copied, CopyFlags};
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
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    copy: CopyFlags,
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
    /// Make a qcow2 image of each layer in the folder OUT, over each other as the layers are: all points in time of the chain.
    /// Each is named as its layer.
    #[arg(long, conflicts_with_all = ["azure", "size", "verify", "dry_run", "no_share", "any_name"])]
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
    let Args { copy, output_format, azure, pad, .. } = &args;
    let output_format = match (azure, output_format) {
        (false, asked) => *asked,
        (true, None | Some(CopyFormat::VhdFixed)) => Some(CopyFormat::VhdFixed),
        (true, Some(other)) => {
            let message = format!("--azure makes a vhd-fixed, not a {}", other.name());
            return Err(Failure::usage("usage", message));
        }
    };
    if args.chain {
        return chain(&args, console);
    }
    let format = endings::copy_format(&copy.out, output_format);
    let is_raw = format == CopyFormat::Raw;
    if is_raw && copy.new_image.is_given() {
        let message =
            "--block, --sector, --physical-sector and --log-size apply to images, not to raw disks";
        return Err(Failure::usage("usage", message));
    }
    let (is_stdin, is_stdout) = (copy.image.image == "-", copy.out.as_os_str() == "-");
    if !is_raw && is_stdout {
        let message = "an image cannot be written to standard output, only a raw disk";
        return Err(Failure::usage("usage", message));
    }
    if args.size.is_some() && !is_stdin {
        let message = "--size is for standard input: a file has its own size";
        return Err(Failure::usage("usage", message));
    }
    if copy.verify && (is_stdin || is_stdout) {
        let message = "--verify reads both disks again: standard input and output are passed once";
        return Err(Failure::usage("usage", message));
    }
    if copy.dry_run && (is_stdin || is_stdout) {
        let message = "--dry-run is for files: a stream is not known before it is passed";
        return Err(Failure::usage("usage", message));
    }
    if args.keep_going && (is_stdin || is_stdout) {
        let message = "--keep-going is for files: a stream is passed once";
        return Err(Failure::usage("usage", message));
    }
    if is_stdin {
        return from_stdin(&args, output_format, format, console);
    }
    let input = copy.input(args.format, console)?;
    let input = if args.keep_going { input.kept() } else { input };
    if input.disk().geometry().size == 0 && !is_raw {
        let message = format!("{}: the file is empty, an image cannot be", copy.image.name());
        return Err(Failure::usage("convert.empty", message));
    }
    if is_stdout {
        input::refuse_own_output(input.disk())?;
        return stream(&input, console);
    }
    let padded = if *azure { Some(vhd::size_for_azure(&input, *pad)?) } else { None };
    if copy.dry_run {
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
fn chain(args: &Args, console: &mut Console) -> Result<Reply, Failure> {
    let Args { copy, output_format, format, .. } = args;
    if output_format.is_some_and(|format| format != CopyFormat::Qcow2) {
        let message = "--chain makes qcow2 images";
        return Err(Failure::usage("usage", message));
    }
    let NewImageFlags { sector, physical_sector, log_size, .. } = copy.new_image;
    if sector.or(physical_sector).or(log_size).is_some() {
        let message = "a qcow2 image has neither a log nor a sector size";
        return Err(Failure::usage("usage", message));
    }
    match copy.input(*format, console)? {
        Input::Chain(chain) => {
            chain::run(&chain, &copy.out, &copy.new_image, &copy.replacing, console)
        }
        Input::Foreign(_) | Input::Raw { .. } | Input::Ruin(_) | Input::Kept { .. } => {
            let message = format!("{}: only a chain of VHDX has points in time", copy.image.name());
            Err(Failure::usage("convert.no-chain", message))
        }
    }
}

/// Takes in the disk from standard input.
fn from_stdin(
    args: &Args,
    asked: Option<CopyFormat>,
    format: CopyFormat,
    console: &mut Console,
) -> Result<Reply, Failure> {
    let copy = &args.copy;
    if copy.out.as_os_str() == "-" {
        let message = "standard input to standard output: cat copies it";
        return Err(Failure::usage("usage", message));
    }
    if args.format != Some(Format::Raw) {
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
    let stream = Stream::new(args.size, &copy.new_image, format)?;
    let place = Place::find(&copy.out, &copy.replacing, &[], console)?;
    endings::check_copy(&copy.out, asked, copy.naming, console)?;
    let file = place.start(console)?;
    let copied = stream.copy(&file, console)?;
    file.publish(console)?;
    console.done();
    print(copy, &copied, format, None, console)
}

fn print(
    copy: &CopyFlags,
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
        verified: copy.verify,
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
