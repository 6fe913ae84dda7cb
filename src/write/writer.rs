//! An image's writer: what it needs beyond reading so that it can be written and survive a crash.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, PoisonError};

use super::block_locks::BlockLocks;
use super::change_lock::ChangeLock;
use super::flush_requests::FlushRequests;
use super::growth::Growth;
use super::headers::flush;
use super::payload::Payload;
use super::session_state::{Session, Surveyed};
use super::space::{Allocated, Released};
use crate::counters::Tally;
use crate::error::{Error, ErrorKind, Result};
use crate::image::{Core, Feed, Pins};
use crate::log::LogWriter;
use crate::read::Layer;
use crate::storage::Storage;
use crate::sync::{Mutex, MutexGuard};
use crate::types::FileOffset;

/// Pages of tables that may be changed in memory before a flush is due, however large the log is: 4 MiB.
const MOST_DIRTY: usize = 1024;

/// What writes to an image.
#[derive(Debug)]
pub(crate) struct Writer {
    pub(super) core: Layer,
    pub(super) feed: Arc<Feed>,
    pub(super) file: Arc<dyn Storage>,
    pub(super) blocks: BlockLocks,
    /// Taken while a chunk gets its sector bitmap block.
    pub(super) bitmaps: Mutex<()>,
    pub(super) space: Growth,
    /// Space that was given up and not given back to the host yet.
    pub(super) released: Mutex<Vec<Released>>,
    /// Held by every change, and alone by whoever ends the session.
    pub(super) change_lock: ChangeLock,
    pub(super) session: Mutex<Session>,
    /// Taken before the session: what comes of a look at all that the tables claim.
    pub(super) surveyed: Mutex<Surveyed>,
    /// Whether the image has an identity that nobody else knows, so that visible changes may go on.
    pub(super) begun: AtomicBool,
    /// Held by whoever edits the metadata.
    pub(super) edits: Mutex<()>,
    /// Whether payload was written since the last flush started.
    pub(super) payload_written: AtomicBool,
    pub(super) flushes: FlushRequests,
    pub(super) poison: OnceLock<String>,
    /// Table pages that may be changed in memory before a flush is due.
    pub(super) most_dirty: usize,
    pub(super) tally: Arc<Tally>,
}

impl Writer {
    /// A writer of an image whose log is empty.
    pub(super) fn new(core: Arc<Core>, feed: Arc<Feed>) -> Self {
        let file_len = core.file_len();
        Self {
            file: Arc::clone(&core.storage),
            blocks: BlockLocks::default(),
            bitmaps: Mutex::new(()),
            space: Growth::new(file_len, Arc::clone(&feed.pins)),
            released: Mutex::default(),
            change_lock: ChangeLock::default(),
            session: Mutex::new(Session::new(file_len)),
            surveyed: Mutex::default(),
            begun: AtomicBool::new(false),
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

    /// The image.
    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.core.image
    }

    /// Makes all durable and leaves the log empty, so that any reader takes the file, and cuts off what
    /// the file was grown by and does not need, but for what a plan of a read may name. Dropping the writer does
    /// the same but cannot report.
    pub(crate) fn close(&self) -> Result<()> {
        self.end_session()
    }

    /// Length of the file.
    pub(crate) fn file_len(&self) -> u64 {
        self.space.file_len()
    }

    /// Who reads from the file.
    pub(crate) fn pins(&self) -> &Pins {
        &self.feed.pins
    }

    /// Refuses to go on after a failure that left open what the file holds.
    pub(super) fn check(&self) -> Result<()> {
        let Some(why) = self.poison.get() else { return Ok(()) };
        let message = "an earlier failure left open what the file holds: it must be opened again";
        Err(Error::new(ErrorKind::Poisoned, "image.poisoned", message)
            .in_file(self.file.name())
            .with_found(why)
            .with_expected("no failed flush and no failed write of metadata"))
    }

    /// Notes a failure after which nothing may be written any more.
    pub(super) fn poisoned_by(&self, error: Error) -> Error {
        self.poison.get_or_init(|| error.message().to_owned());
        error.in_file(self.file.name())
    }

    /// Has the host make durable what was written.
    pub(super) fn flush_file(&self) -> Result<()> {
        flush(self.file.as_ref(), &self.tally)
    }

    pub(super) fn session(&self) -> MutexGuard<'_, Session> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Space for a block of `len` bytes. Waits for a commit under way when the file must grow.
    pub(super) fn allocate(&self, len: u64) -> Result<Allocated> {
        self.space.allocate(self.file.as_ref(), len).map_err(|error| {
            let message = format!("cannot grow the file by {len} bytes");
            Error::io("space.grow", message, error).in_file(self.file.name())
        })
    }

    /// Cuts off what this session grew the file by and does not use.
    pub(super) fn cut(&self) -> Result<bool> {
        let cut = self.space.cut(self.file.as_ref());
        cut.map_err(|error| Error::io("space.cut", "cannot cut the file", error))
    }

    /// Writes payload, whose failure is that call's alone.
    pub(super) fn write_payload(&self, payload: Payload<'_>, at: FileOffset) -> Result<()> {
        match payload {
            Payload::Bytes(buf) => self.write_bytes(buf, at.get()),
            Payload::InFile { len, from, at: from_at, copier } => {
                self.copy_payload(from, from_at, len, at, copier)
            }
        }
    }

    /// Notes that payload was written. Said even of a failed write: parts of it may have arrived.
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

impl Drop for Writer {
    fn drop(&mut self) {
        // Nothing that was flushed depends on this, and nobody is left to hear of a failure.
        drop(self.end_session());
    }
}

/// Table pages of an image that may be changed in memory before a flush is due: as many as one entry of its log takes.
pub(super) fn most_dirty(core: &Core) -> usize {
    let log = core.headers().current().log_length.into();
    LogWriter::most_changes_in(log).min(MOST_DIRTY)
}
