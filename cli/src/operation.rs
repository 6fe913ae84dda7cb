//! An operation that changes the layers of a chain: what it works on, what it is going to do, how far it has come.

use std::ffi::OsStr;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use avhdx::ops::{FileChange, FileChangeKind, Forecast, Progress};
use avhdx::storage::{Access, Host, LocalHost};
use avhdx::{DiffChain, Layer, LogState, MergeState, OpenOptions, Warning};
use serde_json::{Value, json};

use crate::exit::{Exit, Failure};
use crate::input;
use crate::interrupt::{UnderWay, under_way};
use crate::next;
use crate::output::{Console, Table, size};
use crate::parents;
use crate::point::{Point, Points};
use crate::progress::Meter;

/// A chain whose layers are to change.
#[derive(Debug)]
pub(crate) struct Subject {
    pub(crate) chain: DiffChain,
    /// The image as it was typed, without `@SEL`.
    pub(crate) image: PathBuf,
    points: Points,
    selector: Option<String>,
    argument: String,
}

impl Subject {
    /// Opens the chain that the argument's image is the tip of.
    pub(crate) fn open(
        argument: &OsStr,
        options: &OpenOptions,
        console: &mut Console,
    ) -> Result<Self, Failure> {
        let Point { image, selector } = Point::parse(argument);
        let chain =
            options.open(&image).map_err(|error| parents::failure(error, &image, options))?;
        input::tell_link(&chain, console);
        console.warnings(&chain.warnings());
        let points = Points::of(&chain);
        Ok(Self { chain, image, points, selector, argument: argument.to_string_lossy().into() })
    }

    /// Opens it to be looked at alone: no file changes, and nothing is said that is said again when it is opened to
    /// be changed.
    pub(crate) fn look(argument: &OsStr, options: &OpenOptions) -> Result<Self, Failure> {
        let Point { image, selector } = Point::parse(argument);
        let options = &options.clone().writable(false);
        let chain =
            options.open(&image).map_err(|error| parents::failure(error, &image, options))?;
        let points = Points::of(&chain);
        Ok(Self { chain, image, points, selector, argument: argument.to_string_lossy().into() })
    }

    /// Says what is to be said of a chain that was only looked at.
    pub(crate) fn introduce(
        &self,
        options: &OpenOptions,
        console: &mut Console,
    ) -> Result<(), Failure> {
        input::tell_link(&self.chain, console);
        console.warnings(&self.chain.warnings());
        // As when it is opened to be changed.
        let Some(path) = &self.tip().path else { return Ok(()) };
        let file = LocalHost.open(path, Access::Read);
        let file = file.map_err(|error| {
            Failure::io("file.open", format!("{}: cannot open the file", path.display()), &error)
        })?;
        console.warnings(&options.check_childless(file.as_ref())?);
        Ok(())
    }

    /// Whether opening the image to change it changes its file, for a log is to be replayed.
    pub(crate) fn is_log_pending(&self) -> bool {
        matches!(self.chain.tip().info().log.state, LogState::Replayed { .. })
    }

    /// The layer that the argument names, `None` where it names the image alone.
    pub(crate) fn point(&self, console: &mut Console) -> Result<Option<&Layer>, Failure> {
        let Some(selector) = &self.selector else { return Ok(None) };
        self.points.resolve(selector, &self.argument, console).map(Some)
    }

    /// The same, without a word.
    pub(crate) fn point_meant(&self) -> Result<Option<&Layer>, Failure> {
        let Some(selector) = &self.selector else { return Ok(None) };
        self.points.select(selector, &self.argument).map(Some)
    }

    /// The points in time that there are.
    pub(crate) fn listing(&self) -> String {
        self.points.listing()
    }

    /// The layer that the argument means, which is the tip unless it says otherwise.
    pub(crate) fn layer(&self, console: &mut Console) -> Result<&Layer, Failure> {
        Ok(self.point(console)?.unwrap_or_else(|| self.tip()))
    }

    /// The layer that a flag's value means: a selector, or the path of one of the layers.
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

    /// The layer that is being merged, the lowest if there are several.
    pub(crate) fn being_merged(&self) -> Result<&Layer, Failure> {
        let is_merged = |layer: &&Layer| {
            let mark = self.chain.image(layer.id).and_then(|image| image.merge_mark());
            mark.is_some_and(|mark| matches!(mark.state, MergeState::Merging | MergeState::Spent))
        };
        self.points.layers().iter().rev().find(is_merged).ok_or_else(|| {
            let message = format!("{}: no merge is under way in this chain", self.image.display());
            Failure::usage("merge.not-begun", message)
        })
    }

    pub(crate) fn tip(&self) -> &Layer {
        &self.points.layers()[0]
    }

    /// Ends the sessions of all that was written.
    pub(crate) fn end(self) -> Result<(), Failure> {
        Ok(self.chain.close()?)
    }
}

/// Runs an operation with its progress shown. An interruption does not end the program then, but is heard by the
/// operation, which stops where nothing is lost; a second one ends the program.
pub(crate) fn run<T>(
    console: &Console,
    operation: impl FnOnce(&mut dyn FnMut(Progress) -> ControlFlow<()>) -> avhdx::Result<T>,
) -> Result<T, Failure> {
    let stop = Arc::new(AtomicBool::new(false));
    *under_way() = UnderWay::Operation(Arc::clone(&stop));
    let mut meter = Meter::of_operation(console);
    let done = operation(&mut |progress| match stop.load(Ordering::Relaxed) {
        true => ControlFlow::Break(()),
        false => meter.report(progress),
    });
    drop(meter);
    *under_way() = UnderWay::Nothing;
    Ok(done?)
}

/// Whether an operation could be done on an image once what it lost is settled.
pub(crate) fn possible(forecast: avhdx::Result<Forecast>) -> Result<(), Failure> {
    match forecast {
        Err(error) if error.code().starts_with("claim.") => Ok(()),
        forecast => Ok(forecast?.check()?),
    }
}

/// The failure to remove a file after everything else was done, which the warnings tell of.
pub(crate) fn left_file(warnings: &[Warning], way_on: Option<String>) -> Result<(), Failure> {
    let is_left = |warning: &&Warning| matches!(warning.code, "merge.not-removed" | "revert.kept");
    let Some(left) = warnings.iter().find(is_left) else { return Ok(()) };
    let message = format!("all was done, but that a file is left: {left}");
    let failure = Failure::new(Exit::Io, left.code, message);
    Err(way_on.into_iter().fold(failure, Failure::then))
}

/// The failure to say by what name to go on: one that was known is another file's by now, as the warnings tell.
pub(crate) fn lost_name(
    warnings: &[Warning],
    known: Option<&Path>,
    found: Option<&Path>,
) -> Result<(), Failure> {
    let is_lost = |warning: &&Warning| warning.code == "op.renamed";
    let Some(lost) = warnings.iter().find(is_lost) else { return Ok(()) };
    let message = format!("all was done, but a name is lost: {lost}");
    let folder = known.and_then(Path::parent).filter(|folder| !folder.as_os_str().is_empty());
    let next = match found {
        Some(found) => next::with_parents("info --chain", found),
        None => next::with_parents("tree", folder.unwrap_or(Path::new("."))),
    };
    Err(Failure::new(Exit::Refused, lost.code, message).then(next))
}

/// Says what an operation is going to do, and fails where there is not the space for it.
pub(crate) fn foretell(
    schema: &str,
    forecast: &Forecast,
    console: &mut Console,
) -> Result<(), Failure> {
    if console.is_json() {
        console.document(&json!({
            "schema": schema,
            "dry_run": true,
            "forecast": object(forecast),
        }))?;
    } else {
        console.table(table(forecast))?;
    }
    Ok(forecast.check()?)
}

fn table(forecast: &Forecast) -> Table {
    let mut table = Table::fields("What would be done (nothing is changed)");
    table.field("read", size(forecast.read));
    table.field("written", size(forecast.written));
    table.field("freed", size(forecast.freed));
    if forecast.cut > 0 {
        let data = match forecast.cut_data {
            0 => "where the layers hold nothing".into(),
            data => format!("where the layers hold {} of data, which are lost", size(data)),
        };
        table.field("cut off", format!("{} at the end of the disk, {data}", size(forecast.cut)));
    }
    let room = match forecast.available {
        Some(available) => {
            format!("{}, of which there are {}", size(forecast.peak), size(available))
        }
        None => size(forecast.peak),
    };
    table.field("room needed", room);
    for FileChange { path, kind, .. } in &forecast.files {
        table.field(change(*kind), path.display());
    }
    table
}

fn object(forecast: &Forecast) -> Value {
    let file = |FileChange { path, kind, .. }: &FileChange| json!({ "path": path.to_string_lossy(), "change": change(*kind) });
    json!({
        "read": forecast.read,
        "written": forecast.written,
        "freed": forecast.freed,
        "peak": forecast.peak,
        "cut": forecast.cut,
        "cut_data": forecast.cut_data,
        "available": forecast.available,
        "files": forecast.files.iter().map(file).collect::<Vec<_>>(),
    })
}

fn change(kind: FileChangeKind) -> &'static str {
    match kind {
        FileChangeKind::Created => "created",
        FileChangeKind::Changed => "changed",
        FileChangeKind::Removed => "removed",
        _ => "touched",
    }
}

/// Paths in JSON.
pub(crate) fn paths(paths: &[PathBuf]) -> Vec<String> {
    paths.iter().map(|path| path.to_string_lossy().into_owned()).collect()
}
