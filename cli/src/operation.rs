//! An operation that changes the layers of a chain: what it works on, what it is going to do, how far it has come.

use std::ffi::OsStr;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use avhdx::ops::{FileChange, FileChangeKind, Forecast, Progress};
use avhdx::storage::{Host, LocalHost};
use avhdx::{DiffChain, Layer, MergeState, OpenOptions};
use serde_json::{Value, json};

use crate::args;
use crate::exit::Failure;
use crate::input;
use crate::interrupt::{UnderWay, under_way};
use crate::loss;
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
        flags: &args::Chain,
        console: &mut Console,
    ) -> Result<Self, Failure> {
        Self::open_with(argument, &flags.options()?, console)
    }

    /// The same, once the tip is settled of which bytes are lost.
    pub(crate) fn open_accepting(
        argument: &OsStr,
        flags: &args::Chain,
        accepted: &args::Loss,
        console: &mut Console,
    ) -> Result<Self, Failure> {
        let options = flags.options()?;
        loss::accept(&Point::parse(argument).image, accepted, &options, console)?;
        Self::open_with(argument, &options, console)
    }

    /// The same, with options of the verb's own.
    pub(crate) fn open_with(
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

    /// The layer that the argument names, `None` where it names the image alone.
    pub(crate) fn point(&self, console: &mut Console) -> Result<Option<&Layer>, Failure> {
        let Some(selector) = &self.selector else { return Ok(None) };
        self.points.resolve(selector, &self.argument, console).map(Some)
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
    pub(crate) fn layer_of(&self, value: &OsStr, console: &mut Console) -> Result<&Layer, Failure> {
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
        self.points.resolve(selector, &text, console)
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
