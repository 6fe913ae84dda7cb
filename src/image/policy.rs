//! What the opener of an image decides.

use crate::tables::Budget;

/// How one image is read.
#[derive(Clone, Debug)]
pub(crate) struct ImagePolicy {
    pub(crate) lock: Lock,
    pub(crate) log: LogPolicy,
    pub(crate) budget: Budget,
    /// Whether a parent locator that breaks rules is only warned of: for callers that do not go by what it says.
    pub(crate) any_locator: bool,
}

impl Default for ImagePolicy {
    fn default() -> Self {
        Self {
            lock: Lock::default(),
            log: LogPolicy::default(),
            budget: Budget::shared(),
            any_locator: false,
        }
    }
}

/// Whether to keep writers away from files while they are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Lock {
    /// Take a shared lock on every file; fail with [`ErrorKind::InUse`](crate::ErrorKind::InUse) when
    /// somebody writes to one. Where files cannot be locked, that is a warning.
    #[default]
    Shared,
    /// The same, but only warn when somebody writes to one: what is read may then be changing.
    Try,
    /// Neither lock nor look.
    None,
}

/// What to do about a log that is not empty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum LogPolicy {
    /// Replay it in memory and leave the file as it is.
    #[default]
    Replay,
    /// Fail with [`ErrorKind::LogPending`](crate::ErrorKind::LogPending).
    Refuse,
    /// Read the file as if it had no log, and warn: the bytes are **not** what the disk holds. For
    /// forensics.
    Ignore,
}
