//! What a plan has to wait for.

use std::fmt;
use std::sync::{Arc, Weak};

use super::writer::Writer;
use crate::error::Result;
use crate::types::BlockIndex;

/// Something that a planned write or flush waits for: work of the host, another write, or another flush.
///
/// Call [`run`](Self::run) on a thread that may block, then plan again. Dropping this value abandons the plan.
#[must_use = "nothing is planned"]
pub struct Wait {
    /// Weak, so that a value that is kept does not hold up operations that take the tip out of the chain.
    writer: Weak<Writer>,
    cause: Cause,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// An operation has all changes kept out.
    Changes,
    /// The first change of a session has to be prepared.
    Session,
    /// As many changes are in memory as one log entry holds.
    Flush,
    /// Another flush has not ended.
    Commit,
    /// The file grows.
    Growth,
    /// Another write changes the block.
    Block(BlockIndex, Wanted),
    /// The chunk of the block has no sector bitmap.
    Bitmap(BlockIndex),
    /// There is no room for so many blocks.
    Room { blocks: u64, must_be_zeros: bool },
}

/// The lock of a block that a plan needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    Shared,
    Exclusive,
}

impl Wait {
    pub(super) fn new(writer: &Arc<Writer>, cause: Cause) -> Self {
        Self { writer: Arc::downgrade(writer), cause }
    }

    /// Blocks until it can be planned. That may need the end of a [planned flush](crate::FlushInFlight), which this
    /// thread must not have in flight then.
    ///
    /// # Errors
    /// Those of [`write_at`](crate::Disk::write_at).
    pub fn run(self) -> Result<()> {
        match self.writer.upgrade() {
            Some(writer) => writer.wait_for(self.cause),
            // The next plan is for the tip that followed, or reports that there is none.
            None => Ok(()),
        }
    }
}

impl Writer {
    fn wait_for(&self, cause: Cause) -> Result<()> {
        match cause {
            Cause::Flush => return self.commit(),
            Cause::Commit => drop(self.session()),
            Cause::Growth => drop(self.space.pause()),
            Cause::Block(block, Wanted::Shared) => drop(self.blocks.lock_shared(block)),
            Cause::Block(block, Wanted::Exclusive) => drop(self.blocks.lock_exclusive(block)),
            Cause::Changes | Cause::Session | Cause::Bitmap(_) | Cause::Room { .. } => {
                return self.prepare_plan(cause);
            }
        }
        Ok(())
    }

    fn prepare_plan(&self, cause: Cause) -> Result<()> {
        let Ok(_change) = self.begin_change(0..0) else {
            // The next plan is for the tip that follows, or reports that there is none.
            return Ok(());
        };
        match cause {
            Cause::Session => self.prepare_visible_change(),
            Cause::Bitmap(block) => {
                self.prepare_visible_change()?;
                self.bitmap_for(block).map(drop)
            }
            Cause::Room { blocks, must_be_zeros } => {
                self.prepare_visible_change()?;
                let len = self.core.layout.block_size();
                self.space.make_room(self.file.as_ref(), (len, blocks), must_be_zeros, |space| {
                    self.write_zeros(space.at, space.len)
                })
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Debug for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wait").field("cause", &self.cause).finish_non_exhaustive()
    }
}
