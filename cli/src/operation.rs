//! Operations that change the layers of a chain: the chain, the forecast, and the run.

use std::ffi::OsStr;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use avhdx::ops::{FileChange, FileChangeKind, Forecast, Progress, ResizeForecast};
use avhdx::storage::{Access, Host, LocalHost};
use avhdx::{DiffChain, Layer, LayerId, LogState, MergeState, OpenOptions, Warning};
use serde::Serialize;
use uuid::Uuid;

use crate::failure::{Exit, Failure};
use crate::input;
use crate::interrupt::{InProgress, in_progress};
use crate::output::Console;
use crate::parents;
use crate::point::{Point, folder_of};
use crate::points::Points;
use crate::progress::ProgressMeter;
use crate::table::TextTable;
use crate::text::{size, units};
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

    /// The layer that the argument selects.
    pub(crate) fn required_point(&self) -> Result<&Layer, Failure> {
        let image = self.image.display();
        let none = || {
            let message = format!("{image}: a point in time is required: {image}@SEL");
            let points = typed::with_parents("points", &self.image);
            Failure::usage("point.none", message).hint(self.listing()).then(points)
        };
        self.point()?.ok_or_else(none)
    }

    /// The layers from the tip down.
    pub(crate) fn layers(&self) -> &[Layer] {
        self.points.layers()
    }

    /// The layer below this one.
    pub(crate) fn below(&self, id: LayerId) -> Option<&Layer> {
        let at = self.layers().iter().position(|layer| layer.id == id)?;
        self.layers().get(at + 1)
    }

    /// Whether the point at this layer is the newest before the present.
    pub(crate) fn is_newest(&self, id: LayerId) -> bool {
        self.layers().get(1).is_some_and(|layer| layer.id == id)
    }

    /// What the point at this layer is called: its label, or the name of its file.
    pub(crate) fn called(&self, layer: &Layer) -> String {
        self.points.label(layer.id).map_or_else(|| layer.name.clone(), str::to_owned)
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
    pub(crate) fn being_merged(&self) -> Result<Layer, Failure> {
        being_merged(&self.chain).ok_or_else(|| {
            let message = format!("{}: this chain has no unfinished merge", self.image.display());
            Failure::usage("merge.not-begun", message)
        })
    }

    /// The layer above the one with this identity.
    pub(crate) fn above(&self, point: Uuid) -> Result<&Layer, Failure> {
        let layers = self.points.layers();
        let at = layers.iter().position(|layer| layer.data_write_guid == point);
        let above = at.and_then(|at| at.checked_sub(1)).map(|above| &layers[above]);
        above.ok_or_else(|| {
            let image = self.image.display();
            let message = format!("{image}: the chain no longer has the point {point}");
            Failure::new(Exit::InUse, "point.gone", message)
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

/// The layer whose merge was begun or requested and is not complete, the lowest if there are several.
pub(crate) fn being_merged(chain: &DiffChain) -> Option<Layer> {
    let is_merged = |layer: &Layer| {
        let Some(image) = chain.image(layer.id) else { return false };
        let state = image.merge_mark().map(|mark| mark.state);
        matches!(state, Some(MergeState::Merging | MergeState::Spent))
            || image.merge_request().is_some()
    };
    chain.layers().into_iter().rfind(is_merged)
}

/// Notes that Hyper-V lists checkpoints on its own, if it made the chain.
pub(crate) fn note_hyper_v(chain: &DiffChain, console: &mut Console) {
    let is_hyper_v = |layer: &Layer| {
        let image = chain.image(layer.id);
        image.is_some_and(|image| {
            image.checkpoint().is_none()
                && image.has_parent()
                && image.info().creator.starts_with("Microsoft")
        })
    };
    if chain.layers().iter().any(is_hyper_v) {
        let message = "Hyper-V made checkpoints of this disk and keeps its own list of them: while it manages the \
                       machine, use Remove-VMCheckpoint there, or its list and the machine's disk path go stale";
        console.note("hyper-v.checkpoints", message);
    }
}

/// Runs an operation and shows its progress. A first interruption stops the operation where it can be resumed; a
/// second one ends the program.
pub(crate) fn run<T>(
    console: &Console,
    operation: impl FnOnce(&mut (dyn FnMut(Progress) -> ControlFlow<()> + Send)) -> avhdx::Result<T>,
) -> Result<T, Failure> {
    run_metered(ProgressMeter::of_operation(console), operation)
}

/// The same, for an operation that is not measured in bytes.
pub(crate) fn run_steps<T>(
    console: &Console,
    what: &'static str,
    operation: impl FnOnce(&mut (dyn FnMut(Progress) -> ControlFlow<()> + Send)) -> avhdx::Result<T>,
) -> Result<T, Failure> {
    run_metered(ProgressMeter::of_steps(console, what), operation)
}

fn run_metered<T>(
    meter: ProgressMeter,
    operation: impl FnOnce(&mut (dyn FnMut(Progress) -> ControlFlow<()> + Send)) -> avhdx::Result<T>,
) -> Result<T, Failure> {
    counted(meter, |on| operation(&mut |progress: Progress| on(progress.done, progress.total)))
}

/// Like [`run`], for an operation that says how many bytes of how many are done.
pub(crate) fn run_counted<T>(
    console: &Console,
    operation: impl FnOnce(&mut Counted<'_>) -> avhdx::Result<T>,
) -> Result<T, Failure> {
    counted(ProgressMeter::of_operation(console), operation)
}

pub(crate) type Counted<'a> = dyn FnMut(u64, u64) -> ControlFlow<()> + Send + 'a;

fn counted<T>(
    mut meter: ProgressMeter,
    operation: impl FnOnce(&mut Counted<'_>) -> avhdx::Result<T>,
) -> Result<T, Failure> {
    let stop = Arc::new(AtomicBool::new(false));
    *in_progress() = InProgress::Operation(Arc::clone(&stop));
    let done = operation(&mut |done, total| match stop.load(Ordering::Relaxed) {
        true => ControlFlow::Break(()),
        false => {
            meter.show(done, total);
            ControlFlow::Continue(())
        }
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
    let is_left = |warning: &&Warning| {
        matches!(warning.code, "merge.not-removed" | "revert.kept" | "delete.kept")
    };
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
pub(crate) fn print_forecast(forecast: &Forecast, console: &mut Console) -> Result<(), Failure> {
    if console.is_json() {
        console.document(&ForecastAnswer::of(forecast))?;
    } else {
        console.table(table(forecast))?;
    }
    Ok(forecast.check()?)
}

/// Prints what a resize would do.
pub(crate) fn print_resize_forecast(
    forecast: &ResizeForecast,
    console: &mut Console,
) -> Result<(), Failure> {
    let ResizeForecast { from, to, file_len, file_len_after, moves_table, first_cut, .. } =
        *forecast;
    if console.is_json() {
        let of_resize = ResizeFacts {
            virtual_size_before: from,
            virtual_size: to,
            file_size_before: file_len,
            file_size: file_len_after,
            moves_table,
            first_cut,
        };
        let answer = ForecastAnswer::of(&forecast.needs);
        console.document(&ForecastAnswer { resize: Some(of_resize), ..answer })
    } else {
        let mut needs = forecast.needs.clone();
        if first_cut.is_none() {
            // The tables have data there, but all of it is zeros.
            needs.cut_data = 0;
        }
        let mut table = table(&needs);
        table.field("disk", format!("{}, now {}", size(to), size(from)));
        table.field("file", format!("{} at most, now {}", size(file_len_after), size(file_len)));
        if moves_table {
            table.field("table", "moves to another place in the file");
        }
        if let Some(at) = first_cut {
            table.field("bytes lost", format!("other than zeros, the first at {at}"));
        }
        console.table(table)
    }
}

/// What a copy takes at most, in bytes.
#[derive(Debug)]
pub(crate) struct CopyForecast {
    /// The data that is read and written.
    pub(crate) data: u64,
    pub(crate) peak: u64,
    pub(crate) available: Option<u64>,
    /// What is made, with the length of what it replaces.
    pub(crate) files: Vec<(PathBuf, Option<u64>)>,
}

/// Prints what a copy would do.
pub(crate) fn print_copy_forecast(
    forecast: &CopyForecast,
    facts: CopyFacts,
    console: &mut Console,
) -> Result<(), Failure> {
    let &CopyForecast { data, peak, available, ref files } = forecast;
    let changes = files.iter().flat_map(|(path, replaced)| {
        let removed = replaced.map(|_| "removed");
        removed.into_iter().chain(["created"]).map(move |change| (change, path))
    });
    let replaced: Vec<u64> = files.iter().filter_map(|(_, replaced)| *replaced).collect();
    let freed = replaced.iter().sum();
    if console.is_json() {
        return console.document(&ForecastAnswer {
            read: data,
            written: data,
            freed,
            peak,
            cut: 0,
            cut_data: 0,
            lost: 0,
            available,
            files: changes
                .map(|(change, path)| ForecastFile { image: shown(path), change })
                .collect(),
            resize: None,
            copy: Some(facts),
        });
    }
    let mut table = TextTable::fields("Forecast (nothing is changed)");
    table.field("read", format!("{} at most", size(data)));
    table.field("written", format!("{} at most", size(data)));
    if !replaced.is_empty() {
        table.field("freed", size(freed));
    }
    let available = available.map(|free| format!(", available {}", size(free)));
    table.field("space needed", size(peak) + &available.unwrap_or_default());
    let blocks = facts.blocks.zip(facts.block_size);
    let blocks = blocks.map(|(n, block)| format!(", {n} blocks of {}", units(block)));
    let (format, disk) = (facts.format, size(facts.virtual_size));
    table.field("copy", format!("{format}{}, a disk of {disk}", blocks.unwrap_or_default()));
    for (change, path) in changes {
        table.field(change, path.display());
    }
    console.table(table)
}

fn table(forecast: &Forecast) -> TextTable {
    let mut table = TextTable::fields("Forecast (nothing is changed)");
    table.field("read", size(forecast.read));
    table.field("written", size(forecast.written));
    table.field("freed", size(forecast.freed));
    if forecast.lost > 0 {
        table.field("lost", format!("{}, which no other point shows", size(forecast.lost)));
    }
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
    /// The data that no point in time shows afterwards.
    lost: u64,
    /// The free space; null if unknown.
    available: Option<u64>,
    files: Vec<ForecastFile>,
    /// Of a resize alone.
    resize: Option<ResizeFacts>,
    /// Of a copy alone.
    copy: Option<CopyFacts>,
}

/// What a resize does to the disk and its file.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct ResizeFacts {
    virtual_size_before: u64,
    virtual_size: u64,
    file_size_before: u64,
    /// The length of the file afterwards, at most.
    file_size: u64,
    /// Whether the block allocation table moves to another place in the file.
    moves_table: bool,
    /// The offset of the first byte behind the new end that is not zero; null if there is none.
    first_cut: Option<u64>,
}

/// What a copy makes.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct CopyFacts {
    /// `raw`, `vhdx`, `vhdx-fixed`, `vhd`, `vhd-fixed` or `qcow2`.
    pub(crate) format: &'static str,
    pub(crate) virtual_size: u64,
    /// Null for a copy without blocks.
    pub(crate) block_size: Option<u64>,
    /// The blocks with space, at most; null for a copy without blocks.
    pub(crate) blocks: Option<u64>,
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
            lost: forecast.lost,
            available: forecast.available,
            files: forecast.files.iter().map(file).collect(),
            resize: None,
            copy: None,
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
