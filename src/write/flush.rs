//! Flushing: makes every write that returned before durable, payload before the tables that name
//! it.
//!
//! The order is: snapshot of the tables, with the changes whose payload is written → flush → log
//! entries, as few as possible, metadata and sector bitmaps before the block allocation table →
//! flush. The pages of earlier entries wait in the log; when many do, a commit writes them to their places
//! before its first flush, which makes them durable: its entry depends on no earlier entry.
//!
//! Where every change of the snapshot [allows it](super::exposure), the first flush is left out: payload, log
//! entry and pages on the way to their places become durable together, in any order. The entry then depends
//! on those before, whose pages may be lost.

use super::commit::{Commit, Turn};
use super::session_state::Session;
use super::writer::Writer;
use crate::error::Result;
use crate::trace;

impl Writer {
    /// Makes every write that returned before this call durable. Concurrent calls share one commit.
    pub(crate) fn commit(&self) -> Result<()> {
        self.flushes.request(
            || self.session(),
            |session| {
                self.check()?;
                let done = self.poison_on_panic(|| self.commit_session(session));
                done.map_err(|error| self.poisoned_by(error))
            },
        )
    }

    fn commit_session(&self, session: &mut Session) -> Result<()> {
        if !self.begin_commit() {
            return Ok(());
        }
        let _span = trace::commit(self.file.name());
        let mut commit = Commit::new(self.space.pause());
        while commit.turn(self, session, true)? == Turn::Step {
            let step = commit.step(self, session);
            self.carry_out(step, session)?;
        }
        Ok(())
    }
}
