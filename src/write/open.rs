//! Opens one image for writing: lock, children, pending log.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, PoisonError};

use uuid::Uuid;

use super::children::ChildSearch;
use super::drafts::clear_drafts;
use super::headers::{flush, update_headers};
use super::writer::Writer;
use crate::counters::Tally;
use crate::error::{Error, ErrorKind, Result};
use crate::format::header::{Header, Headers};
use crate::image::{
    Core, Feed, FoundLog, ImagePolicy, LogPolicy, OneFlush, Start, lock, log_pending,
};
use crate::log;
use crate::storage::{Host, LockMode, Overlay, Storage, folder_of, length_of};
use crate::sync::Ordering;
use crate::trace;
use crate::warning::Warning;

/// An open image, with a writer if it was opened for writing.
#[derive(Clone, Debug)]
pub(crate) struct OpenImage {
    pub(crate) core: Arc<Core>,
    pub(crate) writer: Option<Arc<Writer>>,
}

impl OpenImage {
    /// Opens the image in `storage` for reading.
    pub(crate) fn read(storage: Arc<dyn Storage>, policy: &ImagePolicy) -> Result<Self> {
        Core::open(storage, policy).map(|core| Self { core: Arc::new(core), writer: None })
    }

    /// Opens the image in `storage` for writing.
    pub(crate) fn write(storage: Arc<dyn Storage>, policy: &WritePolicy) -> Result<Self> {
        let writer = Writer::open(storage, policy, Vec::new())?;
        trace::opened(writer.core().name(), true, false);
        Ok(Self::from(writer))
    }
}

impl From<Writer> for OpenImage {
    fn from(writer: Writer) -> Self {
        Self { core: Arc::clone(writer.core()), writer: Some(writer.shared()) }
    }
}

/// How an image is opened for writing.
#[derive(Clone, Debug)]
pub(crate) struct WritePolicy {
    pub(crate) image: ImagePolicy,
    /// Set to cancel a replay to the file.
    pub(crate) cancel: Option<Arc<AtomicBool>>,
    /// Where children are searched for first; `None` to skip the search.
    pub(crate) children: Option<ChildSearch>,
}

impl WritePolicy {
    /// The policy of reading, without a search for children.
    pub(crate) fn of(image: ImagePolicy) -> Self {
        Self { image, cancel: None, children: None }
    }
}

/// An image that is open for writing, but read-only until its pending log [is
/// replayed](Self::replay) to the file.
#[derive(Debug)]
pub(crate) struct Pending {
    core: Core,
    one_flush: OneFlush,
}

impl Pending {
    /// Opens the image in `storage` without changing it. `others` are warnings to be reported with
    /// its own.
    pub(crate) fn open(
        storage: Arc<dyn Storage>,
        policy: &WritePolicy,
        others: Vec<Warning>,
    ) -> Result<Self> {
        let name = storage.name().to_owned();
        let core = open(storage, policy, others).map_err(|error| error.in_file(name))?;
        Ok(Self { core, one_flush: policy.image.one_flush })
    }

    /// The image with the changes of its log.
    pub(crate) fn core(&self) -> &Core {
        &self.core
    }

    /// Replays the pending log to the file, if there is one, and makes the image writable.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] if the host fails; [`ErrorKind::Cancelled`]. In both cases the log stays
    /// to be replayed again.
    pub(crate) fn replay(self, cancel: Option<&AtomicBool>) -> Result<Writer> {
        let Self { mut core, one_flush } = self;
        if let Some(overlay) = core.overlay.take() {
            let bare = Arc::clone(overlay.base());
            let headers = core.headers.get_mut().unwrap_or_else(PoisonError::into_inner);
            replay_to_file(&bare, &overlay, headers, cancel, &core.tally)
                .map_err(|error| error.in_file(core.name()))?;
            (core.log, core.storage) = (FoundLog::Empty, bare);
        }
        let feed = Arc::new(Feed::default());
        core.feed = Some(Arc::clone(&feed));
        Ok(Writer::new(Arc::new(core), feed, one_flush))
    }
}

impl Writer {
    /// Opens the image in `storage`. A pending log is replayed to the file once the image and its
    /// tables are found sound: a file that is refused stays unchanged. Without a pending log
    /// nothing is written before the first change, which checks the tables.
    pub(crate) fn open(
        storage: Arc<dyn Storage>,
        policy: &WritePolicy,
        others: Vec<Warning>,
    ) -> Result<Self> {
        let pending = Pending::open(storage, policy, others)?;
        let core = pending.core();
        if core.overlay.is_some() {
            core.check_claims().map_err(|error| error.in_file(core.name()))?;
        }
        pending.replay(policy.cancel.as_deref())
    }
}

fn open(storage: Arc<dyn Storage>, policy: &WritePolicy, mut others: Vec<Warning>) -> Result<Core> {
    let mut warnings = Vec::new();
    lock(storage.as_ref(), policy.image.lock, LockMode::Exclusive, &mut warnings)?;
    if let Some(search) = &policy.children {
        check_named(search.host.as_ref(), storage.as_ref())?;
    }
    let start = Start::read(storage.as_ref())?;
    check_writable(&start.headers, storage.as_ref(), policy.image.log)?;
    if let Some(search) = &policy.children {
        let guid = start.headers.current().data_write_guid;
        search.refuse_children(storage.as_ref(), guid, &mut warnings)?;
        if let Some(own) = storage.path().filter(|_| !search.orphans) {
            // The folder is about to be written to.
            others.extend(clear_drafts(search.host.as_ref(), folder_of(own)));
        }
        warnings.extend(search.stale_trackers(storage.as_ref()));
    }
    start.image(storage, &policy.image, warnings, others)
}

/// Refuses a file whose name belongs to another file by the time it is locked: writes to it would
/// be lost.
pub(crate) fn check_named(host: &dyn Host, storage: &dyn Storage) -> Result<()> {
    let there = storage.path().and_then(|path| host.stat(path).ok()).and_then(|stat| stat.id);
    let own = storage.id().ok().flatten();
    match (there, own) {
        (Some(there), Some(own)) if there != own => {
            let message = "another file took the name of this one while it was opened";
            Err(Error::new(ErrorKind::InUse, "file.replaced", message)
                .with_found("another file of that name")
                .with_expected("the file that was opened"))
        }
        _ => Ok(()),
    }
}

/// Refuses an image whose log cannot be written, or whose pending log must not be replayed.
fn check_writable(headers: &Headers, storage: &dyn Storage, policy: LogPolicy) -> Result<()> {
    let header = headers.current();
    log::check_place(header, length_of(storage)?)?;
    header.check_numbers(Header::OFFSETS[headers.current])?;
    match policy {
        LogPolicy::Replay => Ok(()),
        _ if header.log_guid.is_nil() => Ok(()),
        LogPolicy::Refuse | LogPolicy::Ignore => Err(log_pending(header)),
    }
}

/// Writes the changes of a log from its overlay to the file, \[MS-VHDX\] 2.3.3. After a crash on
/// the way the log is unchanged and can be replayed again.
fn replay_to_file(
    storage: &Arc<dyn Storage>,
    overlay: &Overlay,
    headers: &mut Headers,
    cancel: Option<&AtomicBool>,
    tally: &Tally,
) -> Result<()> {
    let is_stopped = || cancel.is_some_and(|flag| flag.load(Ordering::Relaxed));
    // The header that names the log may not be durable yet: if both headers were in flight, a crash
    // could leave neither.
    flush(storage.as_ref(), tally)?;
    update_headers(headers, storage.as_ref(), tally, |header| {
        header.file_write_guid = Uuid::new_v4();
    })?;
    let is_done = overlay
        .write_back(&is_stopped)
        .map_err(|error| Error::io("log.replay", "cannot replay the log", error))?;
    if !is_done {
        return Err(Error::cancelled());
    }
    flush(storage.as_ref(), tally)?;
    update_headers(headers, storage.as_ref(), tally, |header| header.log_guid = Uuid::nil())?;
    trace::replayed(storage.name());
    Ok(())
}
