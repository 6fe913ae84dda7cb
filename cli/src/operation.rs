//! Operations that change the layers of a chain: the chain, the forecast, and the run.

use std::ffi::OsStr;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use avhdx::ops::{FileChange, FileChangeKind, Forecast, Progress};
use avhdx::storage::{Access, Host, LocalHost};
use avhdx::{DiffChain, Layer, LogState, MergeState, OpenOptions, Warning};
use serde::Serialize;

use crate::failure::{Exit, Failure};
use crate::input;
use crate::interrupt::{InProgress, in_progress};
use crate::output::Console;
use crate::parents;
use crate::point::{Point, folder_of};
use crate::points::Points;
use crate::progress::ProgressMeter;
use crate::table::TextTable;
use crate::text::size;
use crate::typed;
use crate::vocabulary::{Answer, shown};

/// A chain whose layers are to change.
#[derive(Debug)]
pub(crate) struct Subject {
    pub(crate) chain: DiffChain,
    /// The image as typed, without `@SEL`.
    pub(crate) image: PathBuf,
    points: Points,
    selector: Option<String>,
    argument: String,
}

impl Subject {
    /// Opens the chain to change it.
    pub(crate) fn open(
        argument: &OsStr,
        options: &OpenOptions,
        console: &mut Console,
    ) -> Result<Self, Failure> {
        let new = Self::open_quietly(argument, options)?;
        input::note_link(&new.chain, console);
        console.warnings(&new.chain.warnings());
        Ok(new)
    }

    /// Opens the chain to inspect it: no file changes, and warnings wait for [`open`](Self::open).
    pub(crate) fn inspect(argument: &OsStr, options: &OpenOptions) -> Result<Self, Failure> {
        Self::open_quietly(argument, &options.clone().writable(false))
    }

    fn open_quietly(argument: &OsStr, options: &OpenOptions) -> Result<Self, Failure> {
        let Point { image, selector } = Point::parse(argument);
        let chain =
            options.open(&image).map_err(|error| parents::failure(error, &image, options))?;
        let points = Points::of(&chain);
        Ok(Self { chain, image, points, selector, argument: argument.to_string_lossy().into() })
    }

    /// Prints the warnings that opening the chain to change it would print.
    pub(crate) fn warn(&self, options: &OpenOptions, console: &mut Console) -> Result<(), Failure> {
        input::note_link(&self.chain, console);
        console.warnings(&self.chain.warnings());
        let Some(path) = &self.tip().path else { return Ok(()) };
        let file = LocalHost.open(path, Access::Read);
        let file = file.map_err(|error| {
            Failure::io("file.open", format!("{}: cannot open the file", path.display()), &error)
        })?;
        console.warnings(&options.check_childless(file.as_ref())?);
        Ok(())
    }

    /// Whether opening the image to change it replays a log, which changes the file.
    pub(crate) fn is_log_pending(&self) -> bool {
        matches!(self.chain.tip().info().log.state, LogState::Replayed { .. })
    }

    /// The layer that the argument selects, printed; `None` if it names the image alone.
    pub(crate) fn resolve_point(&self, console: &mut Console) -> Result<Option<&Layer>, Failure> {
        let Some(selector) = &self.selector else { return Ok(None) };
        self.points.resolve(selector, &self.argument, console).map(Some)
    }

    /// The layer that the argument selects; `None` if it names the image alone.
    pub(crate) fn point(&self) -> Result<Option<&Layer>, Failure> {
        let Some(selector) = &self.selector else { return Ok(None) };
        self.points.select(selector, &self.argument).map(Some)
    }

    /// All points in time, one per line.
    pub(crate) fn listing(&self) -> String {
        self.points.listing()
    }

    /// The layer that the argument selects, printed; the tip if it names the image alone.
    pub(crate) fn layer(&self, console: &mut Console) -> Result<&Layer, Failure> {
        Ok(self.resolve_point(console)?.unwrap_or_else(|| self.tip()))
    }

    /// The layer that a flag's value means: a selector or the path of a layer.
    pub(crate) fn layer_of(&self, value: &OsStr) -> Result<&Layer, Failure> {
        let path = LocalHost.canonical(Path::new(value)).ok();
        let is_there = |layer: &&Layer| {
            let own = layer.path.as_deref().and_then(|path| LocalHost.canonical(path).ok());
            path.is_some() && own == path
        };
        if let Some(layer) = self.points.layers().iter().find(is_there) {
            return Ok(layer);
        }
        let text = value.to_string_lossy();
        let selector = text.strip_prefix('@').unwrap_or(&text);
        self.points.select(selector, &text)
    }

    /// The layer whose merge is unfinished, the lowest if there are several.
    pub(crate) fn being_merged(&self) -> Result<&Layer, Failure> {
        let is_merged = |layer: &&Layer| {
            let mark = self.chain.image(layer.id).and_then(|image| image.merge_mark());
            mark.is_some_and(|mark| matches!(mark.state, MergeState::Merging | MergeState::Spent))
        };
        self.points.layers().iter().rev().find(is_merged).ok_or_else(|| {
            let message = format!("{}: this chain has no unfinished merge", self.image.display());
            Failure::usage("merge.not-begun", message)
        })
    }

    pub(crate) fn tip(&self) -> &Layer {
        &self.points.layers()[0]
    }

    /// Closes the chain.
    pub(crate) fn close(self) -> Result<(), Failure> {
        Ok(self.chain.close()?)
    }
}

/// Runs an operation and shows its progress. A first interruption stops the operation where it can be resumed; a
/// second one ends the program.
pub(crate) fn run<T>(
    console: &Console,
    operation: impl FnOnce(&mut dyn FnMut(Progress) -> ControlFlow<()>) -> avhdx::Result<T>,
) -> Result<T, Failure> {
    let stop = Arc::new(AtomicBool::new(false));
    *in_progress() = InProgress::Operation(Arc::clone(&stop));
    let mut meter = ProgressMeter::of_operation(console);
    let done = operation(&mut |progress| match stop.load(Ordering::Relaxed) {
        true => ControlFlow::Break(()),
        false => meter.report(progress),
    });
    drop(meter);
    *in_progress() = InProgress::Nothing;
    Ok(done?)
}

/// Refuses an operation that would fail even after the image is repaired.
pub(crate) fn refuse_impossible(forecast: avhdx::Result<Forecast>) -> Result<(), Failure> {
    match forecast {
        Err(error) if error.code().starts_with("claim.") => Ok(()),
        forecast => Ok(forecast?.check()?),
    }
}

/// The failure to remove a file after everything else succeeded, if the warnings report one.
pub(crate) fn refuse_leftover(warnings: &[Warning], next: Option<String>) -> Result<(), Failure> {
    let is_left = |warning: &&Warning| matches!(warning.code, "merge.not-removed" | "revert.kept");
    let Some(left) = warnings.iter().find(is_left) else { return Ok(()) };
    let message = format!("the operation succeeded, but a file remains: {left}");
    let failure = Failure::new(Exit::Io, left.code, message);
    Err(next.into_iter().fold(failure, Failure::then))
}

/// The failure to name the result, if the warnings report that another file took its name.
pub(crate) fn refuse_lost_name(
    warnings: &[Warning],
    known: Option<&Path>,
    found: Option<&Path>,
) -> Result<(), Failure> {
    let is_lost = |warning: &&Warning| warning.code == "op.renamed";
    let Some(lost) = warnings.iter().find(is_lost) else { return Ok(()) };
    let message = format!("the operation succeeded, but another file took a name: {lost}");
    let folder = known.map_or(Path::new("."), folder_of);
    let next = match found {
        Some(found) => typed::with_parents("info --chain", found),
        None => typed::with_parents("tree", folder),
    };
    Err(Failure::new(Exit::Refused, lost.code, message).then(next))
}

/// Prints what an operation would do. Fails if there is not enough space.
pub(crate) fn print_forecast(
    forecast: &Forecast,
    console: &mut Console,
) -> Result<(), Failure> {
    if console.is_json() {
        console.document(&ForecastAnswer::of(forecast))?;
    } else {
        console.table(table(forecast))?;
    }
    Ok(forecast.check()?)
}

fn table(forecast: &Forecast) -> TextTable {
    let mut table = TextTable::fields("Forecast (nothing is changed)");
    table.field("read", size(forecast.read));
    table.field("written", size(forecast.written));
    table.field("freed", size(forecast.freed));
    if forecast.cut > 0 {
        let data = match forecast.cut_data {
            0 => "without data".into(),
            data => format!("with {} of data, which are lost", size(data)),
        };
        table.field("cut off", format!("{} at the end of the disk, {data}", size(forecast.cut)));
    }
    let space = match forecast.available {
        Some(available) => {
            format!("{}, available {}", size(forecast.peak), size(available))
        }
        None => size(forecast.peak),
    };
    table.field("space needed", space);
    for FileChange { path, kind, .. } in &forecast.files {
        table.field(change(*kind), path.display());
    }
    table
}

/// What an operation would do, at most. All sizes are in bytes.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct ForecastAnswer {
    read: u64,
    written: u64,
    freed: u64,
    /// The space needed in addition.
    peak: u64,
    /// The bytes cut off at the end of the disk.
    cut: u64,
    /// The data among them, which is lost.
    cut_data: u64,
    /// The free space; null if unknown.
    available: Option<u64>,
    files: Vec<ForecastFile>,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct ForecastFile {
    image: String,
    /// `created`, `changed` or `removed`.
    change: &'static str,
}

impl Answer for ForecastAnswer {
    const SCHEMA: &'static str = "avhdx.forecast/1";
}

impl ForecastAnswer {
    fn of(forecast: &Forecast) -> Self {
        let file = |FileChange { path, kind, .. }: &FileChange| ForecastFile {
            image: shown(path),
            change: change(*kind),
        };
        Self {
            read: forecast.read,
            written: forecast.written,
            freed: forecast.freed,
            peak: forecast.peak,
            cut: forecast.cut,
            cut_data: forecast.cut_data,
            available: forecast.available,
            files: forecast.files.iter().map(file).collect(),
        }
    }
}

fn change(kind: FileChangeKind) -> &'static str {
    match kind {
        FileChangeKind::Created => "created",
        FileChangeKind::Changed => "changed",
        FileChangeKind::Removed => "removed",
        _ => "touched",
    }
}

/// Paths as JSON strings.
pub(crate) fn paths(paths: &[PathBuf]) -> Vec<String> {
    paths.iter().map(|path| shown(path)).collect()
}
