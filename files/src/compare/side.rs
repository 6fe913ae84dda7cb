//! The two points in time, and what cannot be read at one of them.

use std::error;
use std::fmt;

use crate::error::Error;

/// One of the two points in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// The first.
    Before,
    /// The second.
    After,
}

/// What could not be read, so that nothing is known of its changes.
#[derive(Debug)]
#[non_exhaustive]
pub struct Unread {
    /// Where it could not be read.
    pub side: Side,
    /// Why, with its path.
    pub error: Error,
}

impl fmt::Display for Unread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let side = match self.side {
            Side::Before => "before",
            Side::After => "after",
        };
        write!(f, "{side}: {}", self.error)
    }
}

impl error::Error for Unread {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        Some(&self.error)
    }
}
