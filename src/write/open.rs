//! Opening one image for writing: lock, children, a pending log.

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
use crate::image::{Core, Feed, FoundLog, ImagePolicy, LogPolicy, Start, lock, log_pending};
use crate::log;
use crate::storage::{Host, LockMode, Overlay, Storage, folder_of, length_of};
use crate::sync::Ordering;
use crate::warning::Warning;

/// An image as it was opened: to be read, and written where that was asked for.
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

    /// Opens it for writing too.
    pub(crate) fn write(storage: Arc<dyn Storage>, policy: &WritePolicy) -> Result<Self> {
        Writer::open(storage, policy, Vec::new()).map(Self::from)
    }
}

impl From<Writer> for OpenImage {
    fn from(writer: Writer) -> Self {
        Self { core: Arc::clone(writer.core()), writer: Some(Arc::new(writer)) }
    }
}

/// How an image is opened for writing.
#[derive(Clone, Debug)]
pub(crate) struct WritePolicy {
    pub(crate) image: ImagePolicy,
    /// Says that a replay to the file is to stop.
    pub(crate) cancel: Option<Arc<AtomicBool>>,
    /// Who is to be looked for before the image is written; `None` for nobody.
    pub(crate) children: Option<ChildSearch>,
}

impl WritePolicy {
    /// The same as for reading; no children are looked for.
    pub(crate) fn of(image: ImagePolicy) -> Self {
        Self { image, cancel: None, children: None }
    }
}

/// An image that is open for writing and only read until its pending log [is replayed](Self::replay) to the file.
#[derive(Debug)]
pub(crate) struct Pending(Core);

impl Pending {
    /// Opens the image in `storage`; nothing of it is changed. `others` are warnings to be told with its own.
    pub(crate) fn open(
        storage: Arc<dyn Storage>,
        policy: &WritePolicy,
        others: Vec<Warning>,
    ) -> Result<Self> {
        let name = storage.name().to_owned();
        open(storage, policy, others).map(Self).map_err(|error| error.in_file(name))
    }

    /// The image as it reads, its log included.
    pub(crate) fn core(&self) -> &Core {
        &self.0
    }

    /// Replays the pending log to the file, if there is one, and has the image take writes.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] when the host fails, and [`ErrorKind::Cancelled`]: the log is as it was, to be replayed again.
    pub(crate) fn replay(self, cancel: Option<&AtomicBool>) -> Result<Writer> {
        let Self(mut core) = self;
        if let Some(overlay) = core.overlay.take() {
            let bare = Arc::clone(overlay.base());
            let headers = core.headers.get_mut().unwrap_or_else(PoisonError::into_inner);
            replay_to_file(&bare, &overlay, headers, cancel, &core.tally)
                .map_err(|error| error.in_file(core.name()))?;
            (core.log, core.storage) = (FoundLog::Empty, bare);
        }
        let feed = Arc::new(Feed::default());
        core.feed = Some(Arc::clone(&feed));
        Ok(Writer::new(Arc::new(core), feed))
    }
}

impl Writer {
    /// Opens the image in `storage`. A pending log is replayed to the file, once the image has shown to be one and its
    /// tables to be sound: a file that is refused stays as it is. Without a log nothing is written until the first
    /// change, which looks at the tables.
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
            // It is going to be written there.
            others.extend(clear_drafts(search.host.as_ref(), folder_of(own)));
        }
        warnings.extend(search.stale_trackers(storage.as_ref()));
    }
    start.image(storage, &policy.image, warnings, others)
}

/// Refuses a file whose name is another's by the time that it is locked: nobody would find what is written to it.
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

/// Refuses to write where the protocol of the log cannot be kept, or a log that counts is not to be replayed.
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

/// Brings the changes of a log, which lie over the file, to it, \[MS-VHDX\] 2.3.3. A crash on the way leaves the log
/// as it was, to be replayed again.
fn replay_to_file(
    storage: &Arc<dyn Storage>,
    overlay: &Overlay,
    headers: &mut Headers,
    cancel: Option<&AtomicBool>,
    tally: &Tally,
) -> Result<()> {
    let is_stopped = || cancel.is_some_and(|flag| flag.load(Ordering::Relaxed));
    // The header that names the log may not be durable yet: with both on their way none could be left.
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
    update_headers(headers, storage.as_ref(), tally, |header| header.log_guid = Uuid::nil())
}
