//! Consent to what an image lost, so that it can be changed again.

use std::fmt::Write as _;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{CallerPanic, FileChangeKind, Forecast};
use crate::error::{Error, Result};
use crate::image::{Core, ImagePolicy, Lock, LogPolicy, Mend};
use crate::mutants::planted;
use crate::options::OpenOptions;
use crate::storage::{self, Host, Storage, folder_of, is_file};

pub use crate::image::{Loss, LossKind};

/// Names that are tried for the list of what was lost.
const MOST_NAMES: u32 = 1000;

/// Settles what an image lost whose file was cut short, or whose blocks lie over each other.
///
/// Such an image is served as far as it goes, and every change of it is refused: a write could go over bytes that
/// only seem to be free. This is the consent to go on without what is gone. A block whose bytes are lost reads
/// as zeros from then on, never as what its parent has; one of which a part is there keeps that part; blocks that
/// have the same bytes of the file get a copy each. Where a sector bitmap block is lost, nobody can tell any more
/// which sectors of its partially present blocks are the parent's, and those blocks count as lost, \[MS-VHDX\]
/// 2.5.1.2. The image gets another identity.
///
/// First of all the list of what was lost is written to a file of its own and made durable. Then a log that is pending
/// is replayed to the file, and the image is mended through its log: a crash, or a kill, at any moment leaves it as it
/// was, mended, or without what is lost and its copies yet to be made, and another run does the rest. (An image of
/// which more than 252 pages of the table change, with a log of 1 MiB, is mended by as many at once.) What cannot be
/// mended stays refused: structures that are lost, and blocks over the block allocation table.
///
/// # A child whose merge was stopped
///
/// It is mended too, as long as it is nobody's parent, and stays marked: [`Merge::resume`](super::Merge::resume) then
/// completes the merge, which is refused before. A merge that is stopped by its callback, or by the loss itself
/// (`merge.child-lost`), notes in the child how far its parent has all of it. Blocks that are lost before that place
/// read as before, by the parent ([`LossKind::Merged`]), unless the child was written to since. After a crash or a kill
/// there is no such note, and all that is lost reads as zeros, though some of it may be in the parent: which nobody knows,
/// for the parent holds a mixture until the merge is completed.
///
/// An image that is sound stays as it is, but for a pending log, which is replayed as whenever an image is opened for
/// writing; so does one whose file ends where its disk does, within the last block.
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

/// What an image lost.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Losses {
    /// Whether the image is refused to be changed as it is. Nothing of the disk need be lost for that.
    pub damaged: bool,
    /// What of the disk is lost or doubtful, in the order of the disk.
    pub list: Vec<Loss>,
    /// The file that has this list.
    pub report: Option<PathBuf>,
}

impl Losses {
    /// Bytes of the disk that are gone.
    pub fn bytes(&self) -> u64 {
        let lost = self.list.iter().filter(|loss| loss.kind.is_lost());
        lost.map(|loss| loss.range.end - loss.range.start).sum()
    }
}

impl AcceptLoss {
    /// For an image on this machine.
    pub fn new() -> Self {
        Self { options: OpenOptions::new(), report: None }
    }

    /// How the image is opened, and where children of it are looked for: it is refused where there are any, as
    /// for every change.
    pub fn options(mut self, options: OpenOptions) -> Self {
        self.options = options;
        self
    }

    /// The file to be made for the list of what was lost. Unless told otherwise, a new one beside the image: its
    /// name and `.lost`, with a number where that is taken.
    pub fn report(mut self, path: impl Into<PathBuf>) -> Self {
        self.report = Some(path.into());
        self
    }

    /// What the image at `path` lost. Nothing is changed.
    ///
    /// # Errors
    /// As [`OpenOptions::open_image`] for reading, and those of [`run`](Self::run) for what cannot be mended.
    pub fn survey(&self, path: impl AsRef<Path>) -> Result<Losses> {
        let image = self.options.clone().writable(false).open_image(path)?.into_image().0;
        Ok(image.plan_mend()?.map_or_else(Losses::default, |mend| losses_of(&mend)))
    }

    /// Mends the image at `path`, which nobody has open, and says what was lost. `on` is called with that when it
    /// is durable in its file and nothing of the image is changed yet, and may stop it all.
    ///
    /// # Errors
    /// As [`OpenOptions::open_image`] for writing, [`ErrorKind::HasChildren`](crate::ErrorKind::HasChildren) among them;
    /// [`ErrorKind::Damaged`](crate::ErrorKind::Damaged) for what cannot be mended, and [`ErrorKind::Limit`](crate::ErrorKind::Limit) where a million blocks or more
    /// are damaged; [`ErrorKind::Unfinished`](crate::ErrorKind::Unfinished) and [`ErrorKind::Merged`](crate::ErrorKind::Merged) for the parent of a merge
    /// that is not over and for the child of one that is complete; [`ErrorKind::NoSpace`](crate::ErrorKind::NoSpace); [`ErrorKind::Cancelled`](crate::ErrorKind::Cancelled). The image is then as it was. When the host
    /// fails on the way ([`ErrorKind::Io`](crate::ErrorKind::Io)), it is as after a crash.
    pub fn run(
        &self,
        path: impl AsRef<Path>,
        on: &mut dyn FnMut(&Losses) -> ControlFlow<()>,
    ) -> Result<Losses> {
        let path = path.as_ref();
        let options = self.options.clone().writable(true).replay_later();
        let mut image = options.open_image(path)?.into_image().0;
        let cancel = self.options.policies().0.cancel.as_deref();
        let replay = |image: &mut Arc<Core>| {
            let image = Arc::get_mut(image).unwrap_or_else(|| unreachable!("it was opened here"));
            image.replay(cancel).map_err(|error| error.in_file(image.name()))
        };
        if planted("replayed-before-the-list") {
            replay(&mut image)?;
        }
        let Some(mend) = image.plan_mend()? else {
            // What an earlier run was stopped in may be all that is left to be done.
            replay(&mut image)?;
            return Ok(Losses::default());
        };
        image.check_point()?;
        let host = self.options.host_used().as_ref();
        let at = image.path().unwrap_or(path).to_path_buf();
        let mut forecast = Forecast::on(host, &at)?;
        // A pending log may have the file grow.
        let grown = image.file_len().saturating_sub(image.len_of_file());
        forecast.peak = mend.room(image.file_len()) + grown;
        forecast.add(&at, FileChangeKind::Changed);
        forecast.check()?;
        let mut losses = losses_of(&mend);
        if planted("mend-before-its-list") {
            image.mend(&mend)?;
        }
        let text = text_of(&image, &losses);
        let (report, list) = self.write_report(host, &at, image.bare_storage().as_ref(), &text)?;
        losses.report = Some(report.clone());
        let mut panic = CallerPanic::default();
        if panic.catch(|| on(&losses)).is_break() {
            // It tells of something that was not done.
            discard(host, &report, list.as_ref());
            panic.go_on();
            return Err(Error::cancelled());
        }
        if !planted("mend-before-its-list") {
            // The disk is as it was before a replay, and what is planned too. One that is stopped has done nothing.
            replay(&mut image).inspect_err(|_| discard(host, &report, list.as_ref()))?;
            image.mend(&mend)?;
        }
        // Looked at anew, under the lock that is still held.
        let policy = ImagePolicy {
            lock: Lock::None,
            log: LogPolicy::Refuse,
            budget: image.budget().clone(),
            ..ImagePolicy::default()
        };
        Core::from_storage(Arc::clone(image.bare_storage()), &policy)?.check_claims()?;
        Ok(losses)
    }

    /// Writes the list durably, under its name, for those who may read the image.
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
                let message = "cannot write the list of what was lost, and nothing was done";
                Error::io("loss.report", message, error).in_path(&path)
            }
        };
        let (path, storage) = match &self.report {
            Some(path) => (path.clone(), host.create_new(path).map_err(failed(path))?),
            None => new_beside(host, image).map_err(failed(image))?,
        };
        let flush = || if planted("list-not-flushed") { Ok(()) } else { storage.flush() };
        // Who may not read the image has no business with what it lost.
        let written = storage
            .copy_owner_from(model)
            .and_then(|()| storage.write_at(text.as_bytes(), 0))
            .and_then(|()| flush())
            .and_then(|()| host.sync_dir(folder_of(&path)));
        if let Err(error) = written {
            discard(host, &path, storage.as_ref());
            return Err(failed(&path)(error));
        }
        Ok((path, storage))
    }
}

/// Removes the list, unless its name is another file's by now.
fn discard(host: &dyn Host, path: &Path, list: &dyn Storage) {
    drop(storage::remove(host, path, &|path| is_file(host, path, list)));
}

impl Default for AcceptLoss {
    fn default() -> Self {
        Self::new()
    }
}

/// A new file whose name starts as the image's does.
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

/// The list as a file has it: a line for each loss, in columns.
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
        // Writing to a string does not fail.
        let _ = writeln!(text, "{}\t{len}\t{}\t{at}", range.start, kind.name());
    }
    text
}
