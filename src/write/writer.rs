//! The writer of an image: the state that changing the image takes beyond reading it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use uuid::Uuid;

use super::block_locks::BlockLocks;
use super::change_lock::{ChangeLock, ChangeState};
use super::flush_requests::FlushRequests;
use super::growth::Growth;
use super::open_plans::OpenPlans;
use super::payload::Payload;
use super::reserved::{GiveBack, Reservations};
use super::session_state::{ClaimsState, SessionGuard, SessionLock};
use super::space::{Ahead, Allocated, Released};
use crate::counters::Tally;
use crate::error::{Error, ErrorKind, Result};
use crate::image::{Core, Feed, IssueIdentity, OneFlush, Pins};
use crate::log::LogWriter;
use crate::read::Layer;
use crate::storage::Storage;
use crate::sync::{Mutex, RwLockWriteGuard};
use crate::trace;
use crate::types::FileOffset;

/// Limit of table pages changed in memory before a flush is due, however large the log is: 4 MiB.
const MOST_DIRTY: usize = 1024;

/// Writes to an image. See the [module](self).
#[derive(Debug)]
pub(crate) struct Writer {
    pub(super) core: Layer,
    pub(super) feed: Arc<Feed>,
    pub(super) file: Arc<dyn Storage>,
    pub(super) blocks: BlockLocks,
    /// Planned writes, and the space that they reserved.
    pub(super) plans: OpenPlans,
    pub(super) reserved: Reservations,
    /// Held while a chunk gets its sector bitmap block.
    pub(super) bitmaps: Mutex<()>,
    pub(super) space: Arc<Growth>,
    /// Space of released blocks that the host has not got back yet.
    pub(super) released: Mutex<Vec<Released>>,
    /// Held shared by every change, and exclusively to freeze the image or end the session.
    pub(super) change_lock: ChangeLock,
    pub(super) session: SessionLock,
    /// Result of the check of all claims of the tables. Locked before the session.
    pub(super) claims: Mutex<ClaimsState>,
    /// Whether visible changes need no new identity: no child knows that of the image, or the changes leave the disk
    /// [as it reads](Self::keep_identity).
    pub(super) has_new_identity: AtomicBool,
    /// Held during an edit of the metadata.
    pub(super) edits: Mutex<()>,
    /// Whether payload was written since the start of the last flush.
    pub(super) payload_written: AtomicBool,
    pub(super) flushes: FlushRequests,
    pub(super) poison: OnceLock<String>,
    /// Limit of table pages changed in memory before a flush is due.
    pub(super) most_dirty: usize,
    /// Whether payload and log entry may become durable in one flush, and what the caller said about it.
    pub(super) has_one_flush: bool,
    pub(super) one_flush: OneFlush,
    pub(super) tally: Arc<Tally>,
}

impl Writer {
    /// Creates the writer of an image whose log is empty.
    pub(super) fn new(core: Arc<Core>, feed: Arc<Feed>, one_flush: OneFlush) -> Self {
        let file_len = core.file_len();
        let has_one_flush = one_flush.is_allowed(|| core.storage.lost_writes_read_as_zeros());
        let ahead = match has_one_flush {
            true => Ahead::Far { blocks: core.layout.len_of_all(core.has_parent()) },
            false => Ahead::Little,
        };
        Self {
            one_flush,
            has_one_flush,
            file: Arc::clone(&core.storage),
            blocks: BlockLocks::default(),
            plans: OpenPlans::default(),
            reserved: Reservations::default(),
            bitmaps: Mutex::new(()),
            space: Arc::new(Growth::new(file_len, ahead, Arc::clone(&feed.pins))),
            released: Mutex::default(),
            change_lock: ChangeLock::default(),
            session: SessionLock::new(file_len),
            claims: Mutex::default(),
            has_new_identity: AtomicBool::new(false),
            edits: Mutex::new(()),
            payload_written: AtomicBool::new(false),
            flushes: FlushRequests::default(),
            poison: OnceLock::new(),
            most_dirty: most_dirty(&core),
            tally: Arc::clone(&core.tally),
            core: Layer::alone(core),
            feed,
        }
    }

    /// Shares the writer, which then issues the identities that new children record.
    pub(crate) fn shared(self) -> Arc<Self> {
        let writer = Arc::new(self);
        let issuer: Arc<dyn IssueIdentity> = writer.clone();
        writer.feed.set_issuer(Arc::downgrade(&issuer));
        writer
    }

    /// The image.
    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.core.image
    }

    /// Ends the session: makes everything durable, empties the log so that any reader accepts the
    /// file, and truncates the space that the file grew by and does not need, unless a pin may name
    /// it. Dropping the writer does the same without reporting errors.
    pub(crate) fn close(&self) -> Result<()> {
        self.end_session()
    }

    /// Length of the file in bytes.
    pub(crate) fn file_len(&self) -> u64 {
        self.space.file_len()
    }

    /// Length of the file in bytes once the session ends, if nothing else changes it.
    pub(crate) fn file_len_at_rest(&self) -> u64 {
        self.space.len_at_rest()
    }

    /// The pins of readers of the file.
    pub(crate) fn pins(&self) -> &Pins {
        &self.feed.pins
    }

    /// Fails if an earlier failure left the contents of the file unknown.
    pub(super) fn check(&self) -> Result<()> {
        let Some(why) = self.poison.get() else { return Ok(()) };
        let message =
            "an earlier failure left the contents of the file unknown: the image must be reopened";
        Err(Error::new(ErrorKind::Poisoned, "image.poisoned", message)
            .in_file(self.file.name())
            .with_found(why)
            .with_expected("no failed flush and no failed write of metadata"))
    }

    /// Poisons the writer: nothing is written after this failure.
    pub(super) fn poisoned_by(&self, error: Error) -> Error {
        self.poison.get_or_init(|| {
            trace::poisoned(self.file.name(), error.message());
            error.message().to_owned()
        });
        error.in_file(self.file.name())
    }

    /// Poisons the writer.
    pub(super) fn poisoned_because(&self, why: &str) {
        self.poison.get_or_init(|| why.to_owned());
    }

    /// Poisons the writer if `run` panics: what it had begun is unknown. A panic may come from the storage, or from a
    /// subscriber of events.
    pub(super) fn poison_on_panic<T>(&self, run: impl FnOnce() -> T) -> T {
        struct Armed<'a>(&'a Writer, bool);
        impl Drop for Armed<'_> {
            fn drop(&mut self) {
                if self.1 {
                    self.0.poisoned_because("a panic while the file was being changed");
                }
            }
        }
        let mut armed = Armed(self, true);
        let done = run();
        armed.1 = false;
        done
    }

    pub(super) fn session(&self) -> SessionGuard<'_> {
        self.session.lock()
    }

    /// Allocates a block of `len` bytes. Waits for a commit in progress if the file has to grow.
    pub(super) fn allocate(&self, len: u64) -> Result<Allocated> {
        self.space.allocate(self.file.as_ref(), len).map_err(|error| {
            let message = format!("cannot grow the file by {len} bytes");
            Error::io("space.grow", message, error).in_file(self.file.name())
        })
    }

    /// Returns space that no table names and nobody uses.
    pub(super) fn give_back(&self, space: Option<GiveBack>) {
        match space {
            Some(GiveBack::Unused(space)) => self.space.give_back_unused(space),
            Some(GiveBack::Used(space)) => self.space.give_back(space),
            None => {}
        }
    }

    /// Whether a chain other than the one that writes reads the image.
    pub(crate) fn has_guests(&self) -> bool {
        self.feed.has_guests()
    }

    /// Waits for all changes in progress, and keeps others out until the guard is dropped.
    ///
    /// # Errors
    /// [`ErrorKind::InUse`] if planned writes have not ended.
    pub(super) fn change_alone(&self) -> Result<RwLockWriteGuard<'_, ChangeState>> {
        let state = self.change_lock.write();
        self.check_plans_ended()?;
        Ok(state)
    }

    /// Refuses what needs all planned writes to have ended.
    ///
    /// # Errors
    /// [`ErrorKind::InUse`] with their number.
    pub(crate) fn check_plans_ended(&self) -> Result<()> {
        self.plans.check_all_ended().map_err(|error| error.in_file(self.core.name()))
    }

    /// Truncates unused space that the file grew by in this session; returns whether there was any.
    pub(super) fn truncate(&self) -> Result<bool> {
        let truncated = self.space.truncate(self.file.as_ref());
        truncated.map_err(|error| Error::io("space.cut", "cannot truncate the file", error))
    }

    /// Writes payload. A failure affects only this call.
    pub(super) fn write_payload(&self, payload: Payload<'_>, at: FileOffset) -> Result<()> {
        match payload {
            Payload::Bytes(buf) => self.write_bytes(buf, at.get()),
            Payload::InFile { len, from, at: from_at, copier } => {
                self.copy_bytes(from, from_at, len, at, copier)
            }
        }
    }

    /// Whether there is anything to commit. What was written until now counts as committed from here on.
    pub(super) fn begin_commit(&self) -> bool {
        let has_payload = self.payload_written.swap(false, Ordering::AcqRel);
        has_payload || self.feed.changed.read().any_dirty()
    }

    /// Records that payload was written, also after a failed write: a part of it may have arrived.
    pub(super) fn wrote_payload(&self) {
        self.payload_written.store(true, Ordering::Release);
    }

    pub(super) fn write_bytes(&self, buf: &[u8], at: u64) -> Result<()> {
        let written = self.file.write_at(buf, at);
        self.wrote_payload();
        written.map_err(|error| {
            let message = format!("cannot write {} bytes", buf.len());
            Error::io("payload.write", message, error).in_file(self.file.name()).at(at)
        })
    }
}

impl IssueIdentity for Writer {
    fn hand_out_identity(&self) -> Result<Uuid> {
        Self::hand_out_identity(self)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // Flushed data does not depend on this, and a drop cannot report an error.
        drop(self.end_session());
        self.feed.freeze(true);
    }
}

/// Limit of table pages of an image changed in memory before a flush is due: as many as one log
/// entry holds.
pub(super) fn most_dirty(core: &Core) -> usize {
    let log = core.headers().current().log_length.into();
    LogWriter::most_changes_in(log).min(MOST_DIRTY)
}
