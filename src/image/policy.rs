//! Options that apply to each image that is opened.

use crate::tables::Budget;

/// How one image is read.
#[derive(Clone, Debug)]
pub(crate) struct ImagePolicy {
    pub(crate) lock: Lock,
    pub(crate) log: LogPolicy,
    pub(crate) budget: Budget,
    /// Whether an invalid parent locator causes only a warning, for callers that do not rely on it.
    pub(crate) any_locator: bool,
    /// For when the image is written.
    pub(crate) one_flush: OneFlush,
}

impl Default for ImagePolicy {
    fn default() -> Self {
        Self {
            lock: Lock::default(),
            log: LogPolicy::default(),
            budget: Budget::shared(),
            any_locator: false,
            one_flush: OneFlush::default(),
        }
    }
}

/// Whether to keep writers out of files while they are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Lock {
    /// Takes a shared lock on every file. Fails with [`ErrorKind::InUse`](crate::ErrorKind::InUse) if a file is being
    /// written to, and warns if files cannot be locked.
    #[default]
    Shared,
    /// As `Shared`, but only warns if a file is being written to: its data may then change while it is read.
    Try,
    /// Neither takes nor checks locks.
    None,
}

/// How to handle a log that is not empty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum LogPolicy {
    /// Replays it in memory and leaves the file unchanged.
    #[default]
    Replay,
    /// Fails with [`ErrorKind::LogPending`](crate::ErrorKind::LogPending).
    Refuse,
    /// Reads the file as if it had no log, with a warning: the bytes are **not** the contents of the disk. For
    /// forensics.
    Ignore,
}

/// Whether a flush of new blocks may cost one flush of the file, where that is enough, instead of two.
///
/// With one, a crash can leave a block in place whose data was lost: it reads as zeros, as it did before. That needs a
/// host that [shows zeros](crate::storage::Storage::lost_writes_read_as_zeros) there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OneFlush {
    /// If the storage says that its host shows zeros.
    #[default]
    ByHost,
    /// Whatever the storage says: the caller knows that the host shows zeros. On one that does not, a crash may leave
    /// bytes of removed files in place of the last writes.
    Always,
    /// Never.
    Never,
}

impl OneFlush {
    /// Whether it may, if the storage answers so.
    pub(crate) fn is_allowed(self, by_host: impl FnOnce() -> bool) -> bool {
        match self {
            Self::ByHost => by_host(),
            Self::Always => true,
            Self::Never => false,
        }
    }
}
