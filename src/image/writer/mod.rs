//! What an image needs beyond reading so that it can be written and survive a crash.
//!
//! A write plans, moves its bytes and then commits: the block tables change in memory only once the
//! payload is written, and reach the file at the next flush, through the log. `commit.rs` has the
//! protocol, `data.rs` the ways of a write.

mod blocks;
mod commit;
mod data;
mod pins;
mod session;
mod space;
mod tables;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};

use crate::error::{Error, ErrorKind, Result};
use crate::mutants::planted;
use crate::storage::Storage;

use blocks::BlockLocks;
pub(crate) use pins::Pin;
use pins::Pins;
use session::Session;
pub(crate) use session::{flush, update_headers};
use space::{Allocated, Freed, Space};
use tables::Tables;

/// The writing side of an image.
#[derive(Debug)]
pub(crate) struct Writer {
    file: Arc<dyn Storage>,
    pub(super) tables: Tables,
    blocks: BlockLocks,
    /// Taken while a chunk gets its sector bitmap block.
    bitmaps: Mutex<()>,
    space: Mutex<Growing>,
    thawed: Condvar,
    /// Readers, whom whoever gives places away waits for.
    pub(super) pins: Pins,
    /// Held by every change, and alone by whoever ends the session.
    ops: RwLock<()>,
    session: Mutex<Session>,
    begun: AtomicBool,
    /// Whether payload was written since the last flush started.
    payload_written: AtomicBool,
    flushes_asked: AtomicU64,
    poison: OnceLock<String>,
}

#[derive(Debug)]
struct Growing {
    space: Space,
    /// While a commit is on its way to the log the file must not grow.
    frozen: bool,
}

/// Keeps the file from growing until it is dropped.
struct Frozen<'a>(&'a Writer);

impl Writer {
    /// A writer of a file of `file_len` bytes whose log is empty.
    pub(crate) fn new(file: Arc<dyn Storage>, file_len: u64) -> Self {
        Self {
            file,
            tables: Tables::default(),
            blocks: BlockLocks::default(),
            bitmaps: Mutex::new(()),
            space: Mutex::new(Growing { space: Space::new(file_len), frozen: false }),
            thawed: Condvar::new(),
            pins: Pins::default(),
            ops: RwLock::new(()),
            session: Mutex::new(Session::new(file_len)),
            begun: AtomicBool::new(false),
            payload_written: AtomicBool::new(false),
            flushes_asked: AtomicU64::new(0),
            poison: OnceLock::new(),
        }
    }

    /// Length of the file.
    pub(crate) fn file_len(&self) -> u64 {
        self.space().space.file_len()
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
        if planted("nothing-poisons") {
            return error.in_file(self.file.name());
        }
        self.poison.get_or_init(|| error.message().to_owned());
        error.in_file(self.file.name())
    }

    fn space(&self) -> MutexGuard<'_, Growing> {
        self.space.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn session(&self) -> MutexGuard<'_, Session> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Space for a block of `len` bytes. Waits for a commit under way when the file must grow.
    fn allocate(&self, len: u64) -> Result<Allocated> {
        let mut growing = self.space();
        loop {
            if let Some(space) = growing.space.allocate(len) {
                return Ok(space);
            }
            if growing.frozen && !planted("growth-during-commit") {
                growing = self.thawed.wait(growing).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            growing.space.grow(self.file.as_ref(), len).map_err(|error| {
                let message = format!("cannot grow the file by {len} bytes");
                let error = Error::io("space.grow", message, error).in_file(self.file.name());
                if planted("failed-growth-poisons") { self.poisoned_by(error) } else { error }
            })?;
        }
    }

    fn give_back(&self, space: Allocated) {
        self.space().space.give_back(space);
    }

    fn free_later(&self, freed: Freed) {
        self.space().space.free_later(freed);
    }

    /// Cuts off what this session grew the file by and does not use.
    fn cut(&self) -> Result<bool> {
        let mut growing = self.space();
        let Some(len) = growing.space.cut_len() else { return Ok(false) };
        let cut = self.file.set_len(len);
        cut.map_err(|error| Error::io("space.cut", "cannot cut the file", error))?;
        growing.space.was_cut(len);
        Ok(true)
    }

    fn freeze(&self) -> Frozen<'_> {
        self.space().frozen = true;
        Frozen(self)
    }

    /// Writes payload, whose failure is that call's alone.
    fn write_payload(&self, buf: &[u8], at: u64) -> Result<()> {
        let written = self.file.write_at(buf, at);
        // Said even of a failed write: parts of it may have arrived.
        self.payload_written.store(true, Ordering::Release);
        written.map_err(|error| {
            let message = format!("cannot write {} bytes", buf.len());
            let error = Error::io("payload.write", message, error);
            let error = error.in_file(self.file.name()).at(at);
            if planted("failed-payload-poisons") { self.poisoned_by(error) } else { error }
        })
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        self.0.space().frozen = false;
        self.0.thawed.notify_all();
    }
}
