//! How sure the parts of a rescued disk are.

use std::borrow::Cow;
use std::ops::Range;

/// How sure it is that bytes are those of the disk. Later ones are worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum Grade {
    /// All structures that name the bytes are intact and agree.
    Sure,
    /// What speaks for the bytes may be old, or mean something else.
    Guessed,
    /// The bytes are those of a parent that is missing; they read as zeros.
    ParentMissing,
    /// The bytes are not to be found; they read as zeros.
    Lost,
}

impl Grade {
    /// A short name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sure => "sure",
            Self::Guessed => "guessed",
            Self::ParentMissing => "parent-missing",
            Self::Lost => "lost",
        }
    }
}

/// A range of the disk of one grade.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Piece {
    /// The range of the disk, in bytes.
    pub range: Range<u64>,
    /// How sure its bytes are.
    pub grade: Grade,
    /// What says so.
    pub evidence: Cow<'static, str>,
}

/// Something that was found, guessed or missed in an image.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Trace {
    /// The file, as it was named when it was opened.
    pub file: String,
    /// How sure it is.
    pub grade: Grade,
    /// What it is, and where it was found.
    pub text: String,
}

/// A value, and what speaks for it.
#[derive(Clone, Debug)]
pub(super) struct Fact<T> {
    pub(super) value: T,
    pub(super) grade: Grade,
}

impl<T> Fact<T> {
    pub(super) fn sure(value: T) -> Self {
        Self { value, grade: Grade::Sure }
    }

    pub(super) fn guessed(value: T) -> Self {
        Self { value, grade: Grade::Guessed }
    }

    pub(super) fn is_sure(&self) -> bool {
        self.grade == Grade::Sure
    }
}

/// The traces of one file while it is examined.
#[derive(Debug, Default)]
pub(super) struct Traces {
    pub(super) list: Vec<(Grade, String)>,
}

impl Traces {
    pub(super) fn sure(&mut self, text: impl Into<String>) {
        self.list.push((Grade::Sure, text.into()));
    }

    pub(super) fn guessed(&mut self, text: impl Into<String>) {
        self.list.push((Grade::Guessed, text.into()));
    }

    pub(super) fn lost(&mut self, text: impl Into<String>) {
        self.list.push((Grade::Lost, text.into()));
    }
}
