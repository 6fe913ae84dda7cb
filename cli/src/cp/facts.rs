//! What a copy takes over of the entry besides its bytes.

use avhdx_files::{Entry, Time};

/// The most nanoseconds after a second. Larger numbers mean something else to some hosts.
const MOST_NANOSECONDS: u32 = 999_999_999;
/// Permissions that everybody may give.
const PLAIN: u16 = 0o777;

/// What is taken over where it is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    pub(super) owners: bool,
    pub(super) devices: bool,
}

/// The owner, permissions and times of a copy.
#[derive(Clone, Copy, Debug, Default)]
#[cfg_attr(not(unix), allow(dead_code))]
pub(super) struct Facts {
    /// The permissions of Unix, where the file system keeps them.
    pub(super) mode: Option<u16>,
    /// The user and the group, where they are wanted.
    pub(super) owner: Option<(u32, u32)>,
    pub(super) modified: Option<Time>,
    pub(super) accessed: Option<Time>,
}

impl Facts {
    pub(super) fn of(entry: &Entry, wanted: Wanted) -> Self {
        let times = entry.times();
        let most = if wanted.owners { 0o7777 } else { PLAIN };
        Self {
            mode: entry.mode().map(|mode| mode & most),
            owner: entry.owner().filter(|_| wanted.owners),
            modified: times.modified.map(bounded),
            accessed: times.accessed.map(bounded),
        }
    }
}

/// Whether a copy by this user, who makes files of `own` user and group, is without something of its owner.
pub(super) fn is_unowned(entry: &Entry, own: Option<(u32, u32)>) -> bool {
    let has_more = entry.mode().is_some_and(|mode| mode & !PLAIN != 0);
    has_more || entry.owner().is_some() && entry.owner() != own
}

/// A time as hosts have them.
pub(super) fn bounded(time: Time) -> Time {
    Time { nanoseconds: time.nanoseconds.min(MOST_NANOSECONDS), ..time }
}
