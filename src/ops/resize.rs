//! Gives a disk another size.

use std::ops::{ControlFlow, Range};
use std::path::PathBuf;
use std::sync::Arc;

use super::merge::ParentModel;
use super::{CallerPanic, DiskRuns, FileChangeKind, Forecast, Listener, Progress, window_end};
use crate::chain::{DiffChain, Operation, path_of};
use crate::disk::{Disk, LayerId};
use crate::error::{Error, ErrorKind, Result};
use crate::image::{Core, is_zero};
use crate::trace::operation;
use crate::types::MIB;
use crate::warning::Warning;
use crate::write::{
    ChangeRecord, OTHER_NAMES, Writer, check_size, children_unknown, growth_in_blocks,
};

/// Is told how much of how much is done.
type Report<'a> = &'a mut dyn FnMut(u64, u64) -> Result<()>;

/// Grains and memory of the record of what changes while the cut bytes are looked at.
const GRAIN: u64 = 64 << 10;
const RECORD: usize = MIB as usize;

/// Gives the disk of a chain another size, by resizing the tip. Layers below keep theirs.
///
/// New space reads as zeros. A disk does not shrink over bytes other than zeros without [consent](Self::shrink);
/// consented to or not, what lies behind the new end is gone: the disk has zeros there if it grows again. Partitions
/// are not looked at: a GPT has a copy in the last sectors of the disk.
///
/// The chain may be in use. Writes in progress finish first, later ones go on in the resized image, and wait no longer
/// than the change of the tables takes. Reads in progress finish on the disk as it was. From then on,
/// [`geometry`](Disk::geometry) tells the new size, and what lies beyond the end is refused with the code
/// `disk.out-of-range`. [Tracking](crate::ChangeTracking) records the bytes that were added or cut off as changed.
///
/// A crash leaves a disk of the old or of the new size. The file of a disk that shrinks keeps its length.
///
/// ```no_run
/// use avhdx::OpenOptions;
/// use avhdx::ops::Resize;
///
/// let chain = OpenOptions::new().writable(true).open("data.vhdx")?;
/// let resized = Resize::to(200 << 30).run(&chain)?;
/// println!("{} bytes, {} before", resized.to, resized.from);
/// # Ok::<(), avhdx::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Resize<'a> {
    size: u64,
    shrink: bool,
    orphan_children: bool,
    folders: Vec<PathBuf>,
    progress: Listener<'a>,
}

/// What a resize will do.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct ResizeForecast {
    /// The present size of the disk in bytes.
    pub from: u64,
    /// The new one.
    pub to: u64,
    /// The present length of the tip's file in bytes.
    pub file_len: u64,
    /// Its length afterwards, at most.
    pub file_len_after: u64,
    /// Whether the block allocation table does not stay in its place in the file.
    pub moves_table: bool,
    /// The offset on the disk of the first byte behind the new end that is not zero.
    pub first_cut: Option<u64>,
    /// The space and the bytes that the resize takes, and what it cuts off.
    pub needs: Forecast,
    /// Whether the caller agreed to lose what is cut off.
    #[cfg_attr(feature = "serde", serde(skip))]
    may_cut: bool,
    /// The name of the file.
    #[cfg_attr(feature = "serde", serde(skip))]
    name: String,
}

/// The result of a resize.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Resized {
    /// The size of the disk before, in bytes.
    pub from: u64,
    /// Its size now.
    pub to: u64,
    /// The tip, which has another id than before if the size changed.
    pub tip: LayerId,
    /// The length of the tip's file in bytes.
    pub file_len: u64,
    /// Conditions that the caller should report.
    pub warnings: Vec<Warning>,
}

impl<'a> Resize<'a> {
    /// Gives the disk a size of this many bytes: whole logical sectors, up to 64 TiB.
    pub fn to(bytes: u64) -> Self {
        Self {
            size: bytes,
            shrink: false,
            orphan_children: false,
            folders: Vec::new(),
            progress: Listener::default(),
        }
    }

    /// Whether a smaller disk may lose bytes other than zeros. Without this, the bytes behind the new end are read, as
    /// far as they are not known to be zeros.
    pub fn shrink(mut self, yes: bool) -> Self {
        self.shrink = yes;
        self
    }

    /// Whether to resize an image that has children, which are then left without a parent: they know it by an identity
    /// that changes.
    pub fn orphan_children(mut self, yes: bool) -> Self {
        self.orphan_children = yes;
        self
    }

    /// Adds a folder to search for children, besides the folders of the layers themselves.
    pub fn children_in(mut self, folder: impl Into<PathBuf>) -> Self {
        self.folders.push(folder.into());
        self
    }

    /// Calls `on` while the operation runs. A break stops it with [`ErrorKind::Cancelled`] as long as the size has not
    /// changed.
    pub fn on_progress(mut self, on: impl FnMut(Progress) -> ControlFlow<()> + Send + 'a) -> Self {
        self.progress = Listener::new(on);
        self
    }

    /// Predicts what [`run`](Self::run) will do on the same chain opened for writing, without changing anything. Reads
    /// the bytes behind the new end up to the first one that is not zero.
    ///
    /// # Errors
    /// The errors of `run` that are found before anything is changed, except for those of [`ResizeForecast::check`].
    pub fn forecast(&self, chain: &DiffChain) -> Result<ResizeForecast> {
        let op = chain.operate()?;
        self.check(&op)?;
        let mut forecast = self.predict(&op)?;
        let (from, to) = (forecast.from, forecast.to);
        if to < from {
            forecast.needs.cut = from - to;
            forecast.needs.cut_data = data_in(chain, to..from)?;
            forecast.first_cut =
                first_data(chain, to..from, &mut |done, total| self.progress.report(done, total))?;
        }
        Ok(forecast)
    }

    /// Resizes the disk, in this chain and all its clones. A view of the tip has the new size too.
    ///
    /// # Errors
    /// Before anything is changed: [`ErrorKind::InvalidInput`] with the code `resize.size` for a size that the format
    /// does not allow; [`ErrorKind::WouldLose`] with the code `resize.cuts` if bytes would be lost without
    /// [consent](Self::shrink), with the first of them; [`ErrorKind::HasChildren`] if the tip has a child, or may have
    /// one; [`ErrorKind::Unfinished`] if a merge of the tip is unfinished; [`ErrorKind::ReadOnly`] if the chain is not
    /// open for writing; [`ErrorKind::InUse`] while planned writes are open, while another chain that was given the
    /// tip reads it, or while another operation runs; [`ErrorKind::Damaged`] as for a write; [`ErrorKind::NoSpace`];
    /// [`ErrorKind::Cancelled`].
    ///
    /// Later: [`ErrorKind::Io`] if the host fails. The disk has the old size, and can be used as before, unless it is
    /// [poisoned](crate::ErrorKind::Poisoned): then it has the old or the new size once it is opened again.
    pub fn run(self, chain: &DiffChain) -> Result<Resized> {
        let _span = operation("resize", chain.stack().tip().name());
        let mut panic = CallerPanic::default();
        let progress = self.progress.clone();
        let resized = self.resize(chain, &mut |done, total| match panic
            .catch(|| progress.call(Progress { done, total }))
        {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::cancelled()),
        });
        panic.resume();
        resized
    }

    fn resize(&self, chain: &DiffChain, report: Report<'_>) -> Result<Resized> {
        let op = chain.operate()?;
        let writer = tip_writer(&op)?;
        let warnings = self.check(&op)?;
        // Again once no change is in progress; now nothing has been read for it.
        check_unused(&writer)?;
        let ResizeForecast { from, to, needs, .. } = self.predict(&op)?;
        needs.check()?;
        if from == to {
            let (tip, file_len) = (writer.core().id(), writer.file_len());
            return Ok(Resized { from, to, tip, file_len, warnings });
        }
        let keeps_data = to < from && !self.shrink;
        let watch = keeps_data.then(|| Watch::of(&writer));
        if keeps_data && let Some(at) = first_data(chain, to..from, report)? {
            return Err(would_cut(writer.core().name(), to, at));
        }
        let total = growth_in_blocks(writer.core(), to) * u64::from(writer.core().block_size());
        let zeroed = writer.zero_growth(to, &mut |done| report(done, total))?;
        let check = || {
            check_unused(&writer)?;
            let changed = watch.iter().flat_map(|watch| watch.changed(to..from));
            for range in changed {
                if let Some(at) = first_data(chain, range, &mut |_, _| Ok(()))? {
                    return Err(would_cut(writer.core().name(), to, at));
                }
            }
            Ok(())
        };
        let reopened =
            writer.resize_in_use(to, zeroed, check, |resized| op.put_reopened(&writer, resized))?;
        let image = reopened.done();
        let file_len = image.writer.map_or(image.core.file_len(), |writer| writer.file_len());
        Ok(Resized { from, to, tip: image.core.id(), file_len, warnings })
    }

    /// Finds out what forbids a resize before anything changes. Returns what the caller should report.
    fn check(&self, op: &Operation<'_>) -> Result<Vec<Warning>> {
        let images = op.images();
        let tip = &images[0];
        check_size(tip, self.size)?;
        if tip.merge_mark().is_some() || tip.merge_request().is_some() {
            let message = "a merge of the tip is unfinished";
            return Err(Error::new(ErrorKind::Unfinished, "resize.unfinished", message)
                .in_file(tip.name())
                .with_found("the mark of a merge")
                .with_expected("a tip whose merge was resumed and has come to its end"));
        }
        op.check_claims(0)?;
        self.check_childless(op, &images)
    }

    fn check_childless(&self, op: &Operation<'_>, images: &[Arc<Core>]) -> Result<Vec<Warning>> {
        let tip = &images[0];
        if self.orphan_children || tip.path().is_none() {
            return Ok(Vec::new());
        }
        let known: Vec<&Core> = images.iter().map(|image| &**image).collect();
        let seen = op.child_search(&self.folders).refuse_others(tip, &known)?;
        if let Some(unread) = seen.unread {
            return Err(children_unknown(unread).in_file(tip.name()));
        }
        let mut warnings = seen.warnings;
        warnings.retain(|warning| warning.code == OTHER_NAMES);
        Ok(warnings.into_iter().map(|warning| warning.of_layer(tip.id())).collect())
    }

    fn predict(&self, op: &Operation<'_>) -> Result<ResizeForecast> {
        let tip = &op.images()[0];
        let (from, to) = (tip.geometry().size, self.size);
        let mut needs = Forecast::on(op.host().as_ref(), path_of(tip)?)?;
        let file_len = op.writer().map_or(tip.file_len(), |writer| writer.file_len());
        // Where the first change allocates space.
        let end = tip.claims(0)?.end.max(file_len);
        let mut model = ParentModel::new(tip, end);
        if from != to {
            model.resize(to)?;
            needs.add(path_of(tip)?, FileChangeKind::Changed);
        }
        (needs.written, needs.peak) = (model.zeroed, model.grown());
        // Bytes, not what tables hold data for, count here.
        needs.may_cut = true;
        let (file_len_after, moves_table) = (model.end, model.moves_table);
        Ok(ResizeForecast {
            from,
            to,
            file_len,
            file_len_after,
            moves_table,
            first_cut: None,
            needs,
            may_cut: self.shrink,
            name: tip.name().to_owned(),
        })
    }
}

impl ResizeForecast {
    /// Refuses a resize that would cut off bytes other than zeros without consent, or that needs more space than there
    /// is.
    ///
    /// # Errors
    /// [`ErrorKind::WouldLose`] with the code `resize.cuts`; those of [`Forecast::check`].
    pub fn check(&self) -> Result<()> {
        match self.first_cut.filter(|_| !self.may_cut) {
            Some(at) => Err(would_cut(&self.name, self.to, at)),
            None => self.needs.check(),
        }
    }
}

/// Records what changes while the bytes that are to be cut off are looked at.
struct Watch {
    record: Arc<ChangeRecord>,
    since: u64,
}

impl Watch {
    fn of(writer: &Writer) -> Self {
        let record = Arc::new(ChangeRecord::new(GRAIN, RECORD));
        writer.record_changes(&[Arc::downgrade(&record)]);
        let since = record.lock().end_period();
        Self { record, since }
    }

    /// What changed of a range that ends with the disk.
    fn changed(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let Ok((changed, _)) = self.record.lock().since(self.since, range.end) else {
            return vec![range];
        };
        let behind = |part: Range<u64>| part.start.max(range.start)..part.end;
        changed.into_iter().map(behind).filter(|part| !part.is_empty()).collect()
    }
}

/// How many bytes of the range the layers hold data for.
fn data_in(disk: &dyn Disk, range: Range<u64>) -> Result<u64> {
    let mut runs = DiskRuns::new(disk);
    let (mut at, mut data) = (range.start, 0);
    while at < range.end {
        let run = runs.at(at)?;
        let end = run.end.min(range.end);
        data += if run.is_zero() { 0 } else { end - at };
        at = end;
    }
    Ok(data)
}

/// The offset on the disk of the first byte of the range that is not zero.
fn first_data(disk: &dyn Disk, range: Range<u64>, report: Report<'_>) -> Result<Option<u64>> {
    let total = range.end - range.start;
    let mut runs = DiskRuns::new(disk);
    let (mut at, mut buf) = (range.start, Vec::new());
    while at < range.end {
        report(at - range.start, total)?;
        let run = runs.at(at)?;
        let end = run.end.min(range.end);
        if run.is_zero() {
            at = end;
            continue;
        }
        let end = window_end(at, end);
        buf.resize((end - at) as usize, 0);
        disk.read_at(&mut buf, at)?;
        if !is_zero(&buf) {
            let place = buf.iter().position(|byte| *byte != 0).unwrap_or_default();
            return Ok(Some(at + place as u64));
        }
        at = end;
    }
    report(total, total)?;
    Ok(None)
}

fn would_cut(name: &str, size: u64, at: u64) -> Error {
    let message = "the disk would lose bytes behind its new end";
    Error::new(ErrorKind::WouldLose, "resize.cuts", message)
        .in_file(name)
        .with_section("2.6.2.2")
        .with_found(format_args!("a byte other than zero at {at} of the disk"))
        .with_expected(format_args!("zeros from {size} on, or consent to lose what is there"))
}

/// Refuses a tip of which others know the size: the caller of a planned write, and a chain that was given the tip.
fn check_unused(writer: &Writer) -> Result<()> {
    writer.check_plans_ended()?;
    if !writer.has_guests() {
        return Ok(());
    }
    let message = "another chain was given the tip, and reads it";
    Err(Error::new(ErrorKind::InUse, "resize.guest", message)
        .in_file(writer.core().name())
        .with_found("another chain over the tip")
        .with_expected("this chain and its clones alone"))
}

fn tip_writer(op: &Operation<'_>) -> Result<Arc<Writer>> {
    let tip = &op.images()[0];
    if let Some(writer) = op.writer().filter(|_| tip.takes_writes()) {
        return Ok(writer);
    }
    Err(Error::new(ErrorKind::ReadOnly, "resize.read-only", "the tip is open for reading only")
        .in_file(tip.name())
        .with_found("a chain that was opened read-only")
        .with_expected("one that is open for writing"))
}
