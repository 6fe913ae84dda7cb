//! What a copy takes over of the entry besides its bytes.

use avhdx_files::{Entry, Time};

/// The most nanoseconds after a second. Larger numbers mean something else to some hosts.
const MOST_NANOSECONDS: u32 = 999_999_999;

/// The permissions and times of a copy.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Facts {
    /// The permissions of Unix, where the file system keeps them.
    #[cfg_attr(not(unix), allow(dead_code))]
    pub(super) mode: Option<u16>,
    pub(super) modified: Option<Time>,
    pub(super) accessed: Option<Time>,
}

impl Facts {
    pub(super) fn of(entry: &Entry) -> Self {
        let bounded =
            |time: Time| Time { nanoseconds: time.nanoseconds.min(MOST_NANOSECONDS), ..time };
        let times = entry.times();
        Self {
            mode: entry.mode().map(|mode| mode & 0o777),
            modified: times.modified.map(bounded),
            accessed: times.accessed.map(bounded),
        }
    }
}
