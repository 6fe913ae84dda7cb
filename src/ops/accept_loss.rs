//! Accepts what an image has lost, so that it can be changed again.

use std::fmt::Write as _;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{CallerPanic, FileChangeKind, Forecast};
use crate::error::{Error, Result};
use crate::image::{Core, ImagePolicy, Lock, LogPolicy, Mend};
use crate::options::OpenOptions;
use crate::storage::{self, Host, Storage, folder_of, is_file};
use crate::trace::operation;

pub use crate::image::{Loss, LossKind};

/// How many names are tried for the list of losses.
const MOST_NAMES: u32 = 1000;

/// Repairs an image whose file was cut short or whose blocks overlap, at the price of the lost bytes.
///
/// Such an image is readable as far as possible, but every change is refused: a write could overwrite bytes that
/// only appear free. This operation is the consent to continue without the lost bytes. A block whose bytes are lost
/// reads as zeros from then on, never as the parent's data; a block that is partly there keeps that part; blocks that
/// share bytes of the file each get a copy. If a sector bitmap block is lost, it is unknown which sectors of its
/// partially present blocks are the parent's, and those blocks count as lost, \[MS-VHDX\] 2.5.1.2. The image gets a
/// new identity.
///
/// The list of losses is written to a file of its own and made durable first. Then a pending log is replayed to the
/// file, and the image is repaired through its log. A crash or kill at any moment leaves the image as it was,
/// repaired, or without the lost bytes but with the copies still to be made; another run completes the work. (If more
/// than 252 pages of the table change, with a log of 1 MiB, the repair goes in steps of that many.) Lost structures
/// and blocks that overlap the block allocation table cannot be repaired, and stay refused.
///
/// # A child whose merge was stopped
///
/// Such a child is repaired too, as long as it is nobody's parent, and stays marked: its merge is refused before, and
/// [`Merge::resume`](super::Merge::resume) completes it afterwards. A merge that is stopped by its callback, or by the
/// loss itself (`merge.child-lost`), records in the child how far the parent holds its data. Blocks that are lost
/// before that place read as before, from the parent ([`LossKind::Merged`]), unless the child was written to since.
/// After a crash or kill there is no such record, and every lost block reads as zeros: some of its data may be in the
/// parent, but the parent holds a mixture until the merge is complete.
///
/// A sound image is not changed, except that a pending log is replayed as on every open for writing. The same goes
/// for an image whose file ends with the disk, within the last block.
///
/// ```no_run
/// use std::ops::ControlFlow;
///
/// use avhdx::ops::AcceptLoss;
///
/// let losses = AcceptLoss::new().run("web.vhdx", &mut |losses| {
///     for loss in &losses.list {
///         println!("{:?} {:?}", loss.range, loss.kind);
///     }
///     ControlFlow::Continue(())
/// })?;
/// assert!(losses.report.is_some() || !losses.damaged);
/// # Ok::<(), avhdx::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct AcceptLoss {
    options: OpenOptions,
    report: Option<PathBuf>,
}

/// What an image has lost.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Losses {
    /// Whether changes to the image are refused in its present state. That alone does not mean that data is lost.
    pub damaged: bool,
    /// The lost or doubtful ranges of the disk, in ascending order.
    pub list: Vec<Loss>,
    /// The file that this list was written to.
    pub report: Option<PathBuf>,
}

impl Losses {
    /// Bytes of the disk that are lost.
    pub fn bytes(&self) -> u64 {
        let lost = self.list.iter().filter(|loss| loss.kind.is_lost());
        lost.map(|loss| loss.range.end - loss.range.start).sum()
    }
}

impl AcceptLoss {
    /// Works on an image of this machine.
    pub fn new() -> Self {
        Self { options: OpenOptions::new(), report: None }
    }

    /// How to open the image, and where to search for its children. As for every change, an image with children is
    /// refused.
    pub fn options(mut self, options: OpenOptions) -> Self {
        self.options = options;
        self
    }

    /// The file to create for the list of losses. The default is a new file beside the image: its name and
    /// `.lost`, with a number if that name is taken.
    pub fn report(mut self, path: impl Into<PathBuf>) -> Self {
        self.report = Some(path.into());
        self
    }

    /// Returns what the image at `path` has lost, without changing anything.
    ///
    /// # Errors
    /// As for [`OpenOptions::open_image`] for reading, and those of [`run`](Self::run) for what cannot be repaired.
    pub fn survey(&self, path: impl AsRef<Path>) -> Result<Losses> {
        let image = self.options.clone().writable(false).open_image(path)?.into_image().core;
        Ok(image.plan_mend()?.map_or_else(Losses::default, |mend| losses_of(&mend)))
    }

    /// Repairs the image at `path`, which must not be open elsewhere, and returns what it lost. `on` is called with the
    /// losses once their list is durable and before the image is changed, and can stop the operation.
    ///
    /// # Errors
    /// As for [`OpenOptions::open_image`] for writing, including
    /// [`ErrorKind::HasChildren`](crate::ErrorKind::HasChildren);
    /// [`ErrorKind::Damaged`](crate::ErrorKind::Damaged) for what cannot be repaired;
    /// [`ErrorKind::Limit`](crate::ErrorKind::Limit) if a million blocks or more are damaged;
    /// [`ErrorKind::Unfinished`](crate::ErrorKind::Unfinished) for the parent of an unfinished merge;
    /// [`ErrorKind::Merged`](crate::ErrorKind::Merged) for the child of a complete one;
    /// [`ErrorKind::NoSpace`](crate::ErrorKind::NoSpace); [`ErrorKind::Cancelled`](crate::ErrorKind::Cancelled). The
    /// image is unchanged after these. If the host fails later ([`ErrorKind::Io`](crate::ErrorKind::Io)), the image is
    /// as after a crash.
    pub fn run(
        &self,
        path: impl AsRef<Path>,
        on: &mut dyn FnMut(&Losses) -> ControlFlow<()>,
    ) -> Result<Losses> {
        let path = path.as_ref();
        let _span = operation("accept loss", &path.to_string_lossy());
        let pending = self.options.open_pending(path)?;
        let cancel = self.options.cancel_flag();
        let image = pending.core();
        let Some(mend) = image.plan_mend()? else {
            // A replay may be all that an earlier, stopped run left to do.
            pending.replay(cancel)?;
            return Ok(Losses::default());
        };
        image.check_point()?;
        let host = self.options.host_used().as_ref();
        let at = image.path().unwrap_or(path).to_path_buf();
        let mut forecast = Forecast::on(host, &at)?;
        // Replaying a pending log may grow the file.
        let grown = image.file_len().saturating_sub(image.len_of_file());
        forecast.peak = mend.room(image.file_len()) + grown;
        forecast.add(&at, FileChangeKind::Changed);
        forecast.check()?;
        let mut losses = losses_of(&mend);
        let text = text_of(image, &losses);
        let (report, list) = self.write_report(host, &at, image.bare_storage().as_ref(), &text)?;
        losses.report = Some(report.clone());
        let mut panic = CallerPanic::default();
        if panic.catch(|| on(&losses)).is_break() {
            // The list describes a repair that did not happen.
            discard(host, &report, list.as_ref());
            panic.resume();
            return Err(Error::cancelled());
        }
        // A replay changes neither the disk nor the plan. If it is cancelled, nothing was repaired.
        let writer =
            pending.replay(cancel).inspect_err(|_| discard(host, &report, list.as_ref()))?;
        writer.mend(&mend)?;
        let image = writer.core();
        // Checked on a fresh view, under the lock that is still held.
        let policy = ImagePolicy {
            lock: Lock::None,
            log: LogPolicy::Refuse,
            budget: image.budget().clone(),
            ..ImagePolicy::default()
        };
        Core::open(Arc::clone(image.bare_storage()), &policy)?.check_claims()?;
        Ok(losses)
    }

    /// Writes the list durably, readable by those who may read the image.
    fn write_report(
        &self,
        host: &dyn Host,
        image: &Path,
        model: &dyn Storage,
        text: &str,
    ) -> Result<(PathBuf, Arc<dyn Storage>)> {
        let failed = |path: &Path| {
            let path = path.to_path_buf();
            move |error| {
                let message = "cannot write the list of losses; nothing was changed";
                Error::io("loss.report", message, error).in_path(&path)
            }
        };
        let (path, storage) = match &self.report {
            Some(path) => (path.clone(), host.create_new(path).map_err(failed(path))?),
            None => new_beside(host, image).map_err(failed(image))?,
        };
        // The list reveals the image's contents: it gets the same owner and mode.
        let written = storage
            .copy_owner_from(model)
            .and_then(|()| storage.write_at(text.as_bytes(), 0))
            .and_then(|()| storage.flush())
            .and_then(|()| host.sync_dir(folder_of(&path)));
        if let Err(error) = written {
            discard(host, &path, storage.as_ref());
            return Err(failed(&path)(error));
        }
        Ok((path, storage))
    }
}

/// Removes the list, unless another file has its name by now.
fn discard(host: &dyn Host, path: &Path, list: &dyn Storage) {
    drop(storage::remove(host, path, &|path| is_file(host, path, list)));
}

impl Default for AcceptLoss {
    fn default() -> Self {
        Self::new()
    }
}

/// Creates a file whose name is the image's with `.lost` appended.
fn new_beside(
    host: &dyn Host,
    image: &Path,
) -> io::Result<(PathBuf, Arc<dyn crate::storage::Storage>)> {
    let name = image.file_name().unwrap_or_default();
    for n in 1..=MOST_NAMES {
        let mut name = name.to_os_string();
        name.push(if n == 1 { ".lost".into() } else { format!(".lost-{n}") });
        let path = image.with_file_name(name);
        match host.create_new(&path) {
            Ok(storage) => return Ok((path, storage)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

fn losses_of(mend: &Mend) -> Losses {
    Losses { damaged: true, list: mend.losses.clone(), report: None }
}

/// Formats the list as tab-separated columns, one loss per line.
fn text_of(image: &Core, losses: &Losses) -> String {
    let mut text = format!(
        "# What the disk of {} lost: {} bytes are gone. The image was {} then.\n\
         # offset on the disk\tlength\twhat\tplace in the file\n",
        image.name().escape_debug(),
        losses.bytes(),
        image.data_write_guid()
    );
    for Loss { range, kind, at } in &losses.list {
        let len = range.end - range.start;
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{}\t{len}\t{}\t{at}", range.start, kind.name());
    }
    text
}
