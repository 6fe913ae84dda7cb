//! `avhdx convert`: the flat disk in another format.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use avhdx::CreateOptions;
use avhdx::ops::{Export, Exported};
use avhdx::storage::LocalHost;
use serde_json::json;

use crate::args::{self, Format, Opening, Replacing, Shape, Target};
use crate::exit::{Failure, Outcome};
use crate::input::{self, Input};
use crate::output::{Console, size, units};
use crate::progress::Meter;
use crate::replace::Draft;

/// Write the flat disk to a file, raw (sparse) or as an image without a parent, or raw to standard output.
///
/// Zeros take no space in a raw file and get no blocks in a dynamic image.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    image: args::Image,
    /// The file to make; - is standard output.
    #[arg(value_name = "OUT")]
    out: PathBuf,
    /// What to make.
    #[arg(short = 'O', long, value_name = "FORMAT", value_enum)]
    output_format: Target,
    /// What the input is.
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value = "vhdx")]
    format: Format,
    #[command(flatten)]
    replacing: Replacing,
    #[command(flatten)]
    shape: Shape,
    /// The size of the new image's log, a multiple of 1M [default: 1M].
    #[arg(long, value_name = "N", value_parser = args::bytes, help_heading = "The new image")]
    log_size: Option<u64>,
    #[command(flatten)]
    opening: Opening,
}

pub(crate) fn run(args: Args, console: &mut Console) -> Result<Outcome, Failure> {
    let is_raw = args.output_format == Target::Raw;
    if is_raw && (args.shape.is_given() || args.log_size.is_some()) {
        let message =
            "--block, --sector, --physical-sector and --log-size are of images, not of raw disks";
        return Err(Failure::usage("usage", message));
    }
    if !is_raw && args.out.as_os_str() == "-" {
        let message = "an image is not written from its start to its end: - is for raw disks";
        return Err(Failure::usage("usage", message));
    }
    let input = Input::open(&args.image.image, args.format, &args.opening, console)?;
    if args.out.as_os_str() == "-" {
        input::refuse_own_output(input.disk())?;
        return stream(&input, console);
    }
    let target = Path::new(&args.out);
    let draft = Draft::new(target, &args.replacing, &input.paths(), console)?;
    let copy = match args.output_format {
        Target::Raw => raw_copy(&input, &draft, target, console)?,
        Target::Vhdx | Target::VhdxFixed => image_copy(&input, &draft, &args, console)?,
    };
    draft.publish(console)?;
    console.done();
    copy.say(&args, console)?;
    Ok(Outcome::Yes)
}

/// What was made.
struct Copied {
    exported: Exported,
    /// Bytes of a block, where it has blocks.
    block_size: Option<u32>,
}

fn stream(input: &Input, console: &Console) -> Result<Outcome, Failure> {
    let mut meter = Meter::new(console);
    let mut out = io::stdout().lock();
    let done = Export::new().stream(input.disk(), &mut out, &mut |now| meter.report(now));
    drop(meter);
    done.map_err(of_stdout)?;
    out.flush().map(|()| Outcome::Yes).map_err(|error| Failure::stdout(&error))
}

fn raw_copy(
    input: &Input,
    draft: &Draft,
    target: &Path,
    console: &Console,
) -> Result<Copied, Failure> {
    let (mut meter, to) = (Meter::new(console), draft.storage().as_ref());
    let done = Export::new().run(input.disk(), to, &mut |now| meter.report(now));
    drop(meter);
    let exported = done.map_err(|error| of_copy(error, target))?;
    Ok(Copied { exported, block_size: None })
}

fn image_copy(
    input: &Input,
    draft: &Draft,
    args: &Args,
    console: &mut Console,
) -> Result<Copied, Failure> {
    let options = image_options(input, args, console)?;
    let image = options.create_draft(&LocalHost, draft.inner());
    let image = image.map_err(|error| draft.failure(error))?;
    let mut meter = Meter::new(console);
    let done = Export::new().onto(input.disk(), &image, &mut |now| meter.report(now));
    drop(meter);
    let done = done.and_then(|exported| image.close().map(|()| exported));
    let exported = done.map_err(|error| draft.failure(error))?;
    Ok(Copied { exported, block_size: Some(image.block_size()) })
}

fn image_options(
    input: &Input,
    args: &Args,
    console: &mut Console,
) -> Result<CreateOptions, Failure> {
    let geometry = input.disk().geometry();
    let sector = match (args.shape.sector, input) {
        (Some(sector), _) => sector,
        (None, Input::Chain(_)) => geometry.logical_sector.into(),
        (None, Input::Raw { .. }) => 512,
    };
    let whole = geometry.size.checked_next_multiple_of(sector.max(1)).unwrap_or(geometry.size);
    if whole > geometry.size {
        let message = format!(
            "the copy is a disk of {whole} bytes, {} more than the input: disks are made of whole sectors",
            whole - geometry.size
        );
        console.warn("convert.padded", &message);
    }
    let mut options = match args.output_format {
        Target::VhdxFixed => CreateOptions::fixed(whole),
        Target::Raw | Target::Vhdx => CreateOptions::dynamic(whole),
    };
    if let Input::Chain(_) = input {
        options = options
            .logical_sector(geometry.logical_sector)
            .physical_sector(geometry.physical_sector);
        if sector != u64::from(geometry.logical_sector) {
            let message = format!(
                "the input has sectors of {} bytes, the copy of {sector}: partition tables count in them",
                geometry.logical_sector
            );
            console.warn("convert.sector-size", &message);
        }
    }
    if let Some(bytes) = args.log_size {
        options = options.log_size(args::number("--log-size", bytes)?);
    }
    args.shape.of(options)
}

impl Copied {
    fn say(&self, args: &Args, console: &mut Console) -> Result<(), Failure> {
        let out = args.out.to_string_lossy();
        let Exported { size: of_disk, written, .. } = self.exported;
        if console.is_json() {
            let mut object = json!({
                "schema": "avhdx.convert/1",
                "output": out,
                "format": args.output_format.name(),
                "size": of_disk,
                "written": written,
            });
            if let Some(block_size) = self.block_size {
                object["block_size"] = block_size.into();
            }
            return console.document(&object);
        }
        let mut line = format!("{out}: {}, of which {} written", size(of_disk), size(written));
        if let Some(block_size) = self.block_size {
            line += &format!(", blocks of {}", units(block_size.into()));
        }
        console.line(line)
    }
}

/// The copy is called by its name to be, not by the draft's.
fn of_copy(error: avhdx::Error, target: &Path) -> Failure {
    match host_error(&error) {
        Some(host) => {
            Failure::io("export.write", format!("{}: {}", target.display(), error.message()), host)
        }
        None => error.into(),
    }
}

/// A failure to write to standard output is one of its own kind.
fn of_stdout(error: avhdx::Error) -> Failure {
    match host_error(&error) {
        Some(host) => Failure::stdout(host),
        None => error.into(),
    }
}

/// What the host said to writing.
fn host_error(error: &avhdx::Error) -> Option<&io::Error> {
    let source = std::error::Error::source(error)?;
    source.downcast_ref().filter(|_| error.code() == "export.write")
}
