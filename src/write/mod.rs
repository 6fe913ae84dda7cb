//! What an image needs beyond reading so that it can be written and survive a crash.
//!
//! A write plans, moves its bytes and then commits: the block tables change in memory only once the
//! payload is written, and reach the file at the next flush, through the log. `commit.rs` has the
//! protocol, `data.rs` the ways of a write.

mod block_locks;
mod children;
mod copy_from;
#[cfg(all(test, not(loom)))]
mod crashes;
mod create;
mod data;
mod drafts;
mod flush;
mod flush_requests;
mod follow;
mod freeze;
mod growth;
#[cfg(all(test, loom))]
mod interleavings;
mod mend;
mod metadata_edit;
mod punch;
mod resize;
mod session;
mod space;
#[cfg(all(test, not(loom)))]
mod tests;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, PoisonError};

use crate::counters::Tally;
use crate::error::{Error, ErrorKind, Result};
use crate::image::{Pins, Watch};
use crate::storage::Storage;
use crate::sync::{Mutex, MutexGuard};
use crate::tables::Tables;
use crate::types::FileOffset;

use block_locks::BlockLocks;
pub(crate) use children::{ChildSearch, OTHER_NAMES, children_unknown};
pub(crate) use copy_from::Copier;
use copy_from::Payload;
pub use create::CreateOptions;
pub use drafts::clear_drafts;
use flush_requests::Tickets;
pub(crate) use follow::{Follow, Held};
use freeze::Gate;
use growth::{Frozen, Growth};
pub(crate) use metadata_edit::ItemEdit;
use punch::Released;
pub(crate) use resize::table_len;
use session::{Session, Surveyed};
pub(crate) use session::{flush, update_headers};
use space::Allocated;

/// The writing side of an image.
#[derive(Debug)]
pub(crate) struct Writer {
    file: Arc<dyn Storage>,
    pub(crate) tables: Tables,
    blocks: BlockLocks,
    /// Taken while a chunk gets its sector bitmap block.
    bitmaps: Mutex<()>,
    space: Growth,
    /// Space that was given up and not given back to the host yet.
    released: Mutex<Vec<Released>>,
    /// Held by every change, and alone by whoever ends the session.
    ops: Gate,
    session: Mutex<Session>,
    /// Taken before the session: what comes of a look at all that the tables claim.
    surveyed: Mutex<Surveyed>,
    /// Whether the image has an identity that nobody else knows, so that visible changes may go on.
    begun: AtomicBool,
    /// Held by whoever edits the metadata.
    edits: Mutex<()>,
    /// Whether payload was written since the last flush started.
    payload_written: AtomicBool,
    flushes: Tickets,
    /// What the chain whose tip this is knows it by.
    watch: Watch,
    poison: OnceLock<String>,
    tally: Arc<Tally>,
}

impl Writer {
    /// A writer of a file of `file_len` bytes whose log is empty.
    pub(crate) fn new(file: Arc<dyn Storage>, file_len: u64, tally: Arc<Tally>) -> Self {
        Self {
            file,
            tables: Tables::default(),
            blocks: BlockLocks::default(),
            bitmaps: Mutex::new(()),
            space: Growth::new(file_len),
            released: Mutex::default(),
            ops: Gate::default(),
            session: Mutex::new(Session::new(file_len)),
            surveyed: Mutex::default(),
            begun: AtomicBool::new(false),
            edits: Mutex::new(()),
            payload_written: AtomicBool::new(false),
            flushes: Tickets::default(),
            watch: Watch::default(),
            poison: OnceLock::new(),
            tally,
        }
    }

    /// Has answers about spans of the disk of this length forgotten, which are kept under this number, when
    /// they are no longer right.
    pub(super) fn watch(&self, stack: u64, span: u64) {
        self.watch.start(stack, span);
    }

    pub(super) fn watch_only(&self, stack: u64) {
        self.watch.only(stack);
    }

    pub(super) fn changes(&self) -> u64 {
        self.watch.changes()
    }

    pub(super) fn is_quiet(&self) -> bool {
        self.watch.is_quiet()
    }

    /// Length of the file.
    pub(crate) fn file_len(&self) -> u64 {
        self.space.file_len()
    }

    /// Who reads from the file.
    pub(crate) fn pins(&self) -> &Pins {
        self.space.pins()
    }

    /// Refuses to go on after a failure that left open what the file holds.
    fn check(&self) -> Result<()> {
        let Some(why) = self.poison.get() else { return Ok(()) };
        let message = "an earlier failure left open what the file holds: it must be opened again";
        Err(Error::new(ErrorKind::Poisoned, "image.poisoned", message)
            .in_file(self.file.name())
            .with_found(why)
            .with_expected("no failed flush and no failed write of metadata"))
    }

    /// Notes a failure after which nothing may be written any more.
    fn poisoned_by(&self, error: Error) -> Error {
        self.poison.get_or_init(|| error.message().to_owned());
        error.in_file(self.file.name())
    }

    /// Has the host make durable what was written.
    fn flush(&self) -> Result<()> {
        flush(self.file.as_ref(), &self.tally)
    }

    fn session(&self) -> MutexGuard<'_, Session> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Space for a block of `len` bytes. Waits for a commit under way when the file must grow.
    fn allocate(&self, len: u64) -> Result<Allocated> {
        self.space.allocate(self.file.as_ref(), len).map_err(|error| {
            let message = format!("cannot grow the file by {len} bytes");
            Error::io("space.grow", message, error).in_file(self.file.name())
        })
    }

    /// Cuts off what this session grew the file by and does not use.
    fn cut(&self) -> Result<bool> {
        let cut = self.space.cut(self.file.as_ref());
        cut.map_err(|error| Error::io("space.cut", "cannot cut the file", error))
    }

    /// Writes payload, whose failure is that call's alone.
    fn write_payload(&self, payload: Payload<'_>, at: FileOffset) -> Result<()> {
        match payload {
            Payload::Bytes(buf) => self.write_bytes(buf, at.get()),
            Payload::There { len, from, at: from_at, copier } => {
                self.copy_payload(from, from_at, len, at, copier)
            }
        }
    }

    /// Notes that payload was written. Said even of a failed write: parts of it may have arrived.
    fn wrote_payload(&self) {
        self.payload_written.store(true, Ordering::Release);
    }

    fn write_bytes(&self, buf: &[u8], at: u64) -> Result<()> {
        let written = self.file.write_at(buf, at);
        self.wrote_payload();
        written.map_err(|error| {
            let message = format!("cannot write {} bytes", buf.len());
            Error::io("payload.write", message, error).in_file(self.file.name()).at(at)
        })
    }
}
