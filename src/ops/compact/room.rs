//! The space that moves take up on the host, and whether it is there.

use super::parameters::CompactForecast;
use super::survey::Survey;
use crate::chain::Operation;
use crate::error::{Error, Result};
use crate::image::Core;
use crate::ops::forecast::check_space;
use crate::storage::folder_of;
use crate::write::BATCH;

impl CompactForecast {
    /// What a survey found, with the space that it takes and the space that there is.
    pub(super) fn of(op: &Operation<'_>, image: &Core, survey: &Survey, read: u64) -> Result<Self> {
        // A host that cannot give back a part of a file does so when the file is cut.
        let gives_back = image.bare_storage().punch(0..0).unwrap_or(true);
        let at_once = image.layout().block_size() + survey.moved_bitmaps() + BATCH;
        let at_once = if gives_back { at_once } else { u64::MAX };
        let peak = survey.taken.min(at_once) + survey.outcome.table;
        let peak = if peak > 0 { peak.min(survey.holes(image)?) } else { 0 };
        let on = image.path().unwrap_or_else(|| image.name().as_ref()).to_path_buf();
        let available = match image.path() {
            Some(path) => op.host().free_space(folder_of(path)).map_err(|error| {
                let message = "cannot tell how much space is free";
                Error::io("op.free-space", message, error).in_path(path)
            })?,
            None => None,
        };
        let mut outcome = survey.outcome;
        if let (true, Some(writer)) = (outcome.punched.is_some(), op.writer()) {
            outcome.file_len = writer.file_len_at_rest();
        }
        Ok(Self { outcome, read, peak, available, on })
    }

    /// Refuses a compaction that needs more space than there is.
    ///
    /// # Errors
    /// [`ErrorKind::NoSpace`](crate::ErrorKind::NoSpace), which states the bytes needed, free and missing.
    pub fn check(&self) -> Result<()> {
        check_space(self.peak, self.available, &self.on)
    }
}
