//! Tells whether a disk reads as zeros by its tables alone.

use super::ask::{Run, Sink};
use super::layers::Layers;
use crate::answers::Answer;
use crate::error::Result;
use crate::tables::PageSource;
use crate::types::DiskOffset;

impl Layers<'_> {
    /// Whether the layers below the tip show zeros for these bytes of the disk, by their tables alone. `false` if the
    /// tables cannot tell.
    pub(crate) fn are_zeros_below_tip<S: PageSource>(
        self,
        source: S,
        at: DiskOffset,
        len: u64,
    ) -> bool {
        let below = Layers::new(&self.layers[1..], None);
        if below.layers.is_empty() {
            return false;
        }
        let mut found = Zeros(true);
        let (mut at, end) = (at, at.0 + len);
        while at.0 < end && found.0 {
            match below.ask(source, at, end - at.0, &mut found) {
                Ok(len) => at = at + len,
                Err(_) => return false,
            }
        }
        found.0
    }
}

/// Whether each run so far is zeros.
struct Zeros(bool);

impl Sink for Zeros {
    fn take(&mut self, run: Run) -> Result<()> {
        self.0 &= matches!(run.answer, Answer::Zero { .. });
        Ok(())
    }
}
