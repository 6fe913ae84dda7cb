//! `avhdx info`: everything that an image says of itself, and its chain.

use std::path::Path;

use avhdx::storage::{Host, LocalHost};
use avhdx::{
    BlockCounts, ErrorKind, Followed, FoundBy, ImageInfo, Layer, Lock, LogPolicy, OpenOptions,
    VhdxFile,
};

use crate::args::{self, Log, Opening};
use crate::exit::{Failure, Outcome};
use crate::facts::{json as facts_json, text as facts_text};
use crate::input;
use crate::output::Console;
use crate::parents;

/// Show what an image says of itself: headers, regions, metadata, blocks, log, parent.
///
/// Works on an image that is in use elsewhere, and on one whose parents or log are broken, and says so.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    image: args::Image,
    /// Show every layer of the chain.
    #[arg(long)]
    chain: bool,
    #[command(flatten)]
    opening: Opening,
}

/// Everything there is to show.
#[derive(Debug)]
pub(crate) struct Report {
    /// From the tip downwards, as far as the chain could be followed.
    pub(crate) layers: Vec<LayerFacts>,
    /// Why it could not be followed to its base.
    pub(crate) broken: Option<Failure>,
}

#[derive(Debug)]
pub(crate) struct LayerFacts {
    pub(crate) layer: Layer,
    pub(crate) info: ImageInfo,
    /// Blocks by state, or why they cannot be counted.
    pub(crate) blocks: Result<BlockCounts, String>,
    /// Bytes that the file takes up on its volume.
    pub(crate) allocated: Option<u64>,
    pub(crate) in_use: bool,
    /// What is wrong with a log that could therefore not be replayed.
    pub(crate) broken_log: Option<String>,
}

pub(crate) fn run(args: Args, console: &mut Console) -> Result<Outcome, Failure> {
    let path = input::resolve(&args.image.image, &args.opening.looking(), console)?.path;
    let options = args.opening.options().lock(Lock::Try);
    let (tip, log_failure) = open(&path, &options, args.opening.log())?;
    let Followed { layers, warnings, broken, .. } = options.follow(tip);
    console.warnings(&warnings);
    let in_use = |layer| warnings.iter().any(|w| w.code == "lock.in-use" && w.layer == Some(layer));
    let wanted = if args.chain { layers.len() } else { 1 };
    let depth = layers.len();
    let names = layers.get(1).map(|(layer, _)| (layer.name.clone(), layer.found_by));
    let broken = broken.map(|error| parents::failure(error, &path, &options));
    let mut report = Report { layers: Vec::new(), broken };
    for (layer, image) in layers.into_iter().take(wanted) {
        let in_use = in_use(layer.id);
        report.layers.push(LayerFacts::of(layer, &image, in_use));
    }
    if let (Some(failure), Some(tip)) = (&log_failure, report.layers.first_mut()) {
        tip.broken_log = Some(failure.message().to_owned());
    }
    if console.is_json() {
        let chain = args.chain.then_some(());
        console.document(&facts_json::report(&report, chain.is_some(), depth, names.as_ref()))?;
    } else if args.chain {
        facts_text::chain(&report, console)?;
    } else {
        facts_text::image(&report, depth, names.as_ref(), console)?;
    }
    match (log_failure, report.broken) {
        (Some(failure), _) => Err(failure),
        (None, Some(failure)) if args.chain => Err(failure),
        (None, Some(failure)) => {
            console.warn("chain.broken", failure.message());
            Ok(Outcome::Yes)
        }
        (None, None) => Ok(Outcome::Yes),
    }
}

/// Opens the image, past its log where that is what is broken.
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
        // The log may have been the least of it, but it came first.
        Err(_) => Err(error.into()),
    }
}

impl LayerFacts {
    fn of(layer: Layer, image: &VhdxFile, in_use: bool) -> Self {
        let stat = layer.path.as_deref().and_then(|path| LocalHost.stat(path).ok());
        Self {
            info: image.info(),
            blocks: image.count_blocks().map_err(|error| error.to_string()),
            allocated: stat.and_then(|stat| stat.allocated),
            in_use,
            broken_log: None,
            layer,
        }
    }

    /// What kind of image it is.
    pub(crate) fn kind(&self) -> &'static str {
        match (self.info.has_parent, self.info.leave_blocks_allocated) {
            (true, _) => "differencing",
            (false, true) => "fixed",
            (false, false) => "dynamic",
        }
    }
}

/// How a parent was found: the locator's key or the flag.
pub(crate) fn found_by(by: FoundBy) -> &'static str {
    match by {
        FoundBy::Given => "with-parent",
        FoundBy::RelativePath => "relative_path",
        FoundBy::VolumePath => "volume_path",
        FoundBy::AbsoluteWin32Path => "absolute_win32_path",
        FoundBy::FolderName => "parent-dir-name",
        FoundBy::FolderSearch => "parent-dir-identity",
        _ => "other",
    }
}
