//! `avhdx info`: the facts of an image and of its chain.

pub(crate) mod qcow2;
pub(crate) mod vhd;

use std::path::Path;

use avhdx::{ErrorKind, Followed, Lock, LogPolicy, OpenOptions, VhdxFile};

use crate::args::{Format, ImageArg, ImageFormat, Log, ReadFlags};
use crate::facts::json::InfoAnswer;
use crate::facts::print;
use crate::facts::report::{ChainReport, LayerFacts};
use crate::failure::{Failure, Reply};
use crate::input;
use crate::output::Console;
use crate::parents;
use crate::progress::Activity;

/// Show the facts of an image: headers, regions, metadata, blocks, log, parent.
///
/// Also works if the image is in use, or if its parents or its log are broken, and reports that. Of a .vhd and a .qcow2,
/// the facts that those formats have.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    image: ImageArg,
    /// Show every layer of the chain.
    #[arg(long)]
    chain: bool,
    /// The format of the image [default: by the ending of its name, else VHDX].
    #[arg(short, long, value_name = "FORMAT", value_enum)]
    format: Option<ImageFormat>,
    #[command(flatten)]
    opening: ReadFlags,
}

pub(crate) fn run(args: Args, console: &mut Console) -> Result<Reply, Failure> {
    let format = args.format.unwrap_or_else(|| match Format::of(&args.image.image, None) {
        Format::Vhd => ImageFormat::Vhd,
        Format::Qcow2 => ImageFormat::Qcow2,
        // A name for a raw disk may be that of an image, and a raw disk has no facts.
        Format::Vhdx | Format::Raw => ImageFormat::Vhdx,
    });
    match format {
        ImageFormat::Vhd => return vhd::run(&args.image, args.chain, &args.opening, console),
        ImageFormat::Qcow2 => return qcow2::run(&args.image, args.chain, &args.opening, console),
        ImageFormat::Vhdx => {}
    }
    let path = input::resolve(&args.image.image, &args.opening.inspecting(), console)?.path;
    let options = args.opening.options().lock(Lock::Try);
    let (tip, log_failure) = open(&path, &options, args.opening.log())?;
    let Followed { layers, warnings, broken, .. } = options.follow(tip);
    console.warnings(&warnings);
    let in_use = |layer| warnings.iter().any(|w| w.code == "lock.in-use" && w.layer == Some(layer));
    let wanted = if args.chain { layers.len() } else { 1 };
    let depth = layers.len();
    let parent = layers.get(1).map(|(layer, _)| (layer.name.clone(), layer.found_by));
    let broken = broken.map(|error| parents::failure(error, &path, &options));
    let mut report = ChainReport { layers: Vec::new(), depth, parent, broken };
    let activity = Activity::of(console, "counting blocks");
    for (layer, image) in layers.into_iter().take(wanted) {
        let in_use = in_use(layer.id);
        report.layers.push(LayerFacts::of(layer, &image, in_use));
    }
    drop(activity);
    if let (Some(failure), Some(tip)) = (&log_failure, report.layers.first_mut()) {
        tip.broken_log = Some(failure.message().to_owned());
    }
    if console.is_json() {
        console.document(&InfoAnswer::of(&report, args.chain))?;
    } else if args.chain {
        print::chain(&report, console)?;
    } else {
        print::image(&report, console)?;
    }
    match (log_failure, report.broken) {
        (Some(failure), _) => Err(failure),
        (None, Some(failure)) if args.chain => Err(failure),
        (None, Some(failure)) => {
            console.warn("chain.broken", failure.message());
            Ok(Reply::Yes)
        }
        (None, None) => Ok(Reply::Yes),
    }
}

/// Opens the image, without its log if the log is broken.
fn open(
    path: &Path,
    options: &OpenOptions,
    log: Log,
) -> Result<(VhdxFile, Option<Failure>), Failure> {
    let error = match options.open_image(path) {
        Ok(image) => return Ok((image, None)),
        Err(error) => error,
    };
    let is_of_log = matches!(error.kind(), ErrorKind::Damaged | ErrorKind::LogWithoutEntries)
        && error.code().starts_with("log.");
    if !is_of_log || log != Log::Replay {
        return Err(error.into());
    }
    match options.clone().log(LogPolicy::Ignore).open_image(path) {
        Ok(image) => Ok((image, Some(error.into()))),
        // More than the log is broken; the first error is reported.
        Err(_) => Err(error.into()),
    }
}
