//! The one error type: what went wrong, in which file, where in it, what stood there and what should have.

use std::fmt;
use std::io;
use std::path::Path;

/// The result of the crate's fallible calls.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call failed.
///
/// Match on [`kind`](Self::kind) for what to do next and on [`code`](Self::code) for the exact
/// finding. Where bytes of an image are at fault, [`file`](Self::file), [`offset`](Self::offset),
/// [`found`](Self::found), [`expected`](Self::expected) and [`section`](Self::section) say where to
/// look and which rule of \[MS-VHDX\] was broken. [`std::error::Error::source`] is the host's own error,
/// where there is one; it is not part of the displayed text.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct Error(Box<Repr>);

/// What sort of failure an [`Error`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The host could not read, write or open a file.
    Io,
    /// The file is no VHDX file: its first bytes are not `vhdxfile`.
    NotVhdx,
    /// The image breaks a rule of the format.
    Damaged,
    /// The image follows the format but asks for something this crate does not know.
    Unsupported,
    /// The header names a log that holds no valid entry: the writer stopped between the two.
    /// Nothing of that log was applied yet.
    LogWithoutEntries,
    /// The log holds changes, and the caller asked to refuse such images.
    LogPending,
    /// Bytes of a pending log lie over the payload, so no place in the file answers for the range.
    LogOverlay,
    /// A differencing image was read alone where only its parent has the bytes.
    ParentRequired,
    /// No file was found where the parent should be.
    ParentMissing,
    /// Files were found where the parent should be, but none with the recorded identity.
    ParentMismatch,
    /// The parent lies where the caller's policy does not allow it.
    ParentDenied,
    /// Another program has the file open in a way that does not admit this use.
    InUse,
    /// An earlier flush or write of metadata failed and left open what the file holds: nothing more is
    /// written, and it must be opened again. See [`VhdxFile`](crate::VhdxFile#after-a-failure).
    Poisoned,
    /// The image to be changed has a child, which the change would cut off.
    HasChildren,
    /// A link to another parent was refused, for nothing shows that the disk stays what it is.
    Unproven,
    /// A child whose content was merged into its parent was opened by itself: the parent has it all by now, and
    /// may have newer bytes.
    Merged,
    /// A child is being merged into the image that was opened by itself: until that is completed it holds neither
    /// the old point in time nor the new one.
    Unfinished,
    /// An operation would need more space than there is. Nothing was written.
    NoSpace,
    /// An operation would lose data, which nobody consented to. Nothing was written.
    WouldLose,
    /// A change was asked of something that is open for reading only.
    ReadOnly,
    /// The range or argument given lies outside what the disk or the call allows.
    InvalidInput,
    /// The callback of an operation asked it to stop, or the flag of an open.
    Cancelled,
    /// A limit was reached: the depth of a chain, the files a process may open, or the changes of a
    /// log that are kept in memory.
    Limit,
}

#[derive(Debug, thiserror::Error)]
#[error("{}", self.text())]
struct Repr {
    kind: ErrorKind,
    code: &'static str,
    message: String,
    file: Option<String>,
    child: Option<String>,
    offset: Option<u64>,
    found: Option<String>,
    expected: Option<String>,
    section: Option<&'static str>,
    source: Option<io::Error>,
}

impl Error {
    /// What sort of failure this is.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// A short, stable name of the exact failure, such as `header.checksum`.
    pub fn code(&self) -> &'static str {
        self.0.code
    }

    /// What went wrong, without the place and the values.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The file concerned, by the name it was opened under.
    pub fn file(&self) -> Option<&str> {
        self.0.file.as_deref()
    }

    /// The image whose parent the file is, or lies in the place of, where that is why it was looked at.
    pub fn child(&self) -> Option<&str> {
        self.0.child.as_deref()
    }

    /// The place in the file, in bytes from its start.
    pub fn offset(&self) -> Option<u64> {
        self.0.offset
    }

    /// What was found there.
    pub fn found(&self) -> Option<&str> {
        self.0.found.as_deref()
    }

    /// What the format or the caller expected there.
    pub fn expected(&self) -> Option<&str> {
        self.0.expected.as_deref()
    }

    /// The section of \[MS-VHDX\] that has the rule, such as `2.2.2`.
    pub fn section(&self) -> Option<&'static str> {
        self.0.section
    }

    pub(crate) fn new(kind: ErrorKind, code: &'static str, message: impl Into<String>) -> Self {
        Self(Box::new(Repr {
            kind,
            code,
            message: message.into(),
            file: None,
            child: None,
            offset: None,
            found: None,
            expected: None,
            section: None,
            source: None,
        }))
    }

    /// The image breaks the rule of `section` at `offset`.
    pub(crate) fn damaged(
        code: &'static str,
        section: &'static str,
        offset: u64,
        message: impl Into<String>,
    ) -> Self {
        Self::new(ErrorKind::Damaged, code, message).with_section(section).at(offset)
    }

    /// The host failed; `message` says at what. Where locks keep others from a file's bytes, that is no failure of
    /// the host's.
    pub(crate) fn io(code: &'static str, message: impl Into<String>, source: io::Error) -> Self {
        let kind = match source.kind() {
            io::ErrorKind::ResourceBusy => ErrorKind::InUse,
            _ => ErrorKind::Io,
        };
        let mut error = Self::new(kind, code, message);
        error.0.source = Some(source);
        error
    }

    pub(crate) fn with_kind(mut self, kind: ErrorKind, code: &'static str) -> Self {
        self.0.kind = kind;
        self.0.code = code;
        self
    }

    pub(crate) fn at(mut self, offset: u64) -> Self {
        self.0.offset = Some(offset);
        self
    }

    pub(crate) fn with_section(mut self, section: &'static str) -> Self {
        self.0.section = Some(section);
        self
    }

    /// That whoever was asked whether to go on said no.
    pub(crate) fn cancelled() -> Self {
        Self::new(ErrorKind::Cancelled, "op.cancelled", "stopped as asked")
    }

    /// With another message.
    pub(crate) fn with_message(mut self, message: impl Into<String>) -> Self {
        self.0.message = message.into();
        self
    }

    /// Names the image whose parent the file is, or should be.
    pub(crate) fn of_parent_of(mut self, child: &str) -> Self {
        self.0.child = Some(child.to_owned());
        self
    }

    /// Without a word of what was found, for the file may be a stranger's.
    pub(crate) fn without_found(self) -> Self {
        if self.0.found.is_some() { self.with_found("something else") } else { self }
    }

    pub(crate) fn with_found(mut self, found: impl fmt::Display) -> Self {
        self.0.found = Some(found.to_string());
        self
    }

    pub(crate) fn with_expected(mut self, expected: impl fmt::Display) -> Self {
        self.0.expected = Some(expected.to_string());
        self
    }

    /// Names the file, unless an inner layer already did.
    pub(crate) fn in_file(mut self, name: impl fmt::Display) -> Self {
        self.0.file.get_or_insert_with(|| name.to_string());
        self
    }

    /// Names the limit where the host's refusal is one: descriptors run out in deep chains.
    pub(crate) fn limits_named(self) -> Self {
        // EMFILE and ENFILE; Windows has no such limit worth the name.
        let code = self.0.source.as_ref().and_then(io::Error::raw_os_error);
        if cfg!(unix) && matches!(code, Some(23 | 24)) {
            return self
                .with_kind(ErrorKind::Limit, "limit.open-files")
                .with_found("no file descriptor left")
                .with_expected("a limit on open files above the depth of the chain");
        }
        self
    }

    /// The same finding for a second caller; without the host's own error, which cannot be copied.
    pub(crate) fn same_again(&self) -> Self {
        let Repr {
            kind,
            code,
            ref message,
            ref file,
            ref child,
            offset,
            ref found,
            ref expected,
            section,
            ..
        } = *self.0;
        Self(Box::new(Repr {
            kind,
            code,
            message: message.clone(),
            file: file.clone(),
            child: child.clone(),
            offset,
            found: found.clone(),
            expected: expected.clone(),
            section,
            source: None,
        }))
    }

    pub(crate) fn in_path(self, path: &Path) -> Self {
        self.in_file(path.display())
    }
}

impl Repr {
    fn text(&self) -> String {
        let mut text = String::new();
        if let Some(file) = &self.file {
            text += &format!("{file}: ");
        }
        text += &self.message;
        if let Some(offset) = self.offset {
            text += &format!(" at offset {offset:#x}");
        }
        text += &match (&self.found, &self.expected) {
            (Some(found), Some(expected)) => format!(": found {found}, expected {expected}"),
            (Some(found), None) => format!(": found {found}"),
            (None, Some(expected)) => format!(": expected {expected}"),
            (None, None) => String::new(),
        };
        if let Some(section) = self.section {
            text += &format!(" [MS-VHDX {section}]");
        }
        text
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = match error.kind() {
            ErrorKind::Io => error.0.source.as_ref().map_or(io::ErrorKind::Other, io::Error::kind),
            ErrorKind::NotVhdx | ErrorKind::Damaged | ErrorKind::LogWithoutEntries => {
                io::ErrorKind::InvalidData
            }
            ErrorKind::Unsupported => io::ErrorKind::Unsupported,
            ErrorKind::ParentMissing => io::ErrorKind::NotFound,
            ErrorKind::ParentDenied | ErrorKind::ReadOnly => io::ErrorKind::PermissionDenied,
            ErrorKind::InUse => io::ErrorKind::ResourceBusy,
            ErrorKind::InvalidInput => io::ErrorKind::InvalidInput,
            _ => io::ErrorKind::Other,
        };
        io::Error::new(kind, error)
    }
}
