//! The error type of the crate: what went wrong, in which file, where, and what was found and expected there.

use std::fmt;
use std::io;
use std::path::Path;

/// The result of the crate's fallible calls.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The reason why a call failed.
///
/// Match on [`kind`](Self::kind) to decide what to do, and on [`code`](Self::code) for the exact
/// problem. If bytes of an image are at fault, [`file`](Self::file), [`offset`](Self::offset),
/// [`found`](Self::found), [`expected`](Self::expected) and [`section`](Self::section) say where they are
/// and which rule of \[MS-VHDX\] they break. [`std::error::Error::source`] is the host's own error,
/// if there is one; it is not part of the displayed text.
///
/// Implementations of [`Disk`](crate::Disk) and [`ParentSource`](crate::ParentSource) outside this crate make errors
/// with [`Error::new`], [`Error::other`] and `?` on an [`io::Error`], and say where with [`in_file`](Self::in_file) and
/// [`at`](Self::at), and what with [`with_found`](Self::with_found) and [`with_expected`](Self::with_expected):
///
/// ```
/// use avhdx::{Error, ErrorKind};
///
/// fn connect() -> std::io::Result<()> {
///     Err(std::io::ErrorKind::ConnectionRefused.into())
/// }
/// let error = connect().map_err(|error| Error::from(error).in_file("s3://disks/web.img").at(512));
/// let error = error.unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::Io);
/// assert_eq!(error.to_string(), "s3://disks/web.img: the host failed at offset 0x200");
/// ```
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct Error(Box<Repr>);

/// The category of an [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum ErrorKind {
    /// The host could not read, write or open a file.
    Io,
    /// The file is not a VHDX file: its first bytes are not `vhdxfile`.
    NotVhdx,
    /// The image breaks a rule of the format.
    Damaged,
    /// The image follows the format but uses a feature that this crate does not support.
    Unsupported,
    /// The header refers to a log that holds no valid entry: the writer stopped before it wrote one.
    /// No changes of that log were applied.
    LogWithoutEntries,
    /// The log is pending, and the caller asked to refuse such images.
    LogPending,
    /// Bytes of a pending log replace the payload, so that the range is stored at no place in the file.
    LogOverlay,
    /// A differencing image was read without its parent, which holds the bytes.
    ParentRequired,
    /// No file was found in the places where the parent may be.
    ParentMissing,
    /// Files were found in the places where the parent may be, but none has the recorded identity.
    ParentMismatch,
    /// The parent lies outside the places that the caller's policy allows.
    ParentDenied,
    /// Another program has the file open in a conflicting way, or plans, views or operations of this one are in the way.
    InUse,
    /// An earlier flush or metadata write failed, so that the contents of the file are uncertain. Nothing more is
    /// written; the image must be reopened. See [`VhdxFile`](crate::VhdxFile#after-a-failure).
    Poisoned,
    /// The image to be changed has children, which the change would orphan.
    HasChildren,
    /// A link to another parent was refused because nothing proves that the disk would stay the same.
    Unproven,
    /// The image was merged into its parent, which holds all its data and possibly newer data, and was opened on its
    /// own.
    Merged,
    /// The image is the target of an unfinished merge and was opened on its own: until the merge is completed, it holds
    /// neither the old point in time nor the new one.
    Unfinished,
    /// The operation needs more space than there is. Nothing was written.
    NoSpace,
    /// The operation would lose data without consent. Nothing was written.
    WouldLose,
    /// A change was requested through a read-only handle.
    ReadOnly,
    /// The given range or argument is outside what the disk or the call allows.
    InvalidInput,
    /// The callback of an operation asked it to stop, or the cancel flag of an open was set.
    Cancelled,
    /// A limit was reached: the depth of a chain, the open files of the process, or the changes in a
    /// log that fit in memory.
    Limit,
    /// A disk, a storage or a source of parents that is implemented outside this crate failed.
    Other,
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
    /// The category of the failure.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// A short, stable name of the exact failure, such as `header.checksum`.
    pub fn code(&self) -> &'static str {
        self.0.code
    }

    /// What went wrong, without location and values.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The file concerned, as it was named when it was opened.
    pub fn file(&self) -> Option<&str> {
        self.0.file.as_deref()
    }

    /// The image that looked for the file as its parent, if that is why the file was examined.
    pub fn child(&self) -> Option<&str> {
        self.0.child.as_deref()
    }

    /// The offset in the file, in bytes.
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

    /// The section of \[MS-VHDX\] with the rule, such as `2.2.2`.
    pub fn section(&self) -> Option<&'static str> {
        self.0.section
    }

    /// Creates an error. `code` is a short, stable name of the exact failure, which callers can match on; `message`
    /// says what went wrong, without the file and the offset.
    pub fn new(kind: ErrorKind, code: &'static str, message: impl Into<String>) -> Self {
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

    /// Wraps the failure of something outside this crate, as [`ErrorKind::Other`] with the code `other`. It is the
    /// error's [source](std::error::Error::source).
    pub fn other(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        let mut wrapped = Self::new(ErrorKind::Other, "other", "the implementation failed");
        wrapped.0.source = Some(io::Error::other(error));
        wrapped
    }

    /// Refuses a change through a read-only handle: [`ErrorKind::ReadOnly`] with the code `disk.read-only`.
    pub fn read_only() -> Self {
        Self::new(ErrorKind::ReadOnly, "disk.read-only", "the disk is open for reading only")
    }

    /// Sets the [offset](Self::offset) in the file, in bytes.
    #[must_use]
    pub fn at(mut self, offset: u64) -> Self {
        self.0.offset = Some(offset);
        self
    }

    /// Sets the [file](Self::file), unless it is set already.
    #[must_use]
    pub fn in_file(mut self, name: impl fmt::Display) -> Self {
        self.0.file.get_or_insert_with(|| name.to_string());
        self
    }

    /// Sets what was [found](Self::found) there.
    #[must_use]
    pub fn with_found(mut self, found: impl fmt::Display) -> Self {
        self.0.found = Some(found.to_string());
        self
    }

    /// Sets what was [expected](Self::expected) there.
    #[must_use]
    pub fn with_expected(mut self, expected: impl fmt::Display) -> Self {
        self.0.expected = Some(expected.to_string());
        self
    }

    /// An image that breaks the rule of `section` at `offset`.
    pub(crate) fn damaged(
        code: &'static str,
        section: &'static str,
        offset: u64,
        message: impl Into<String>,
    ) -> Self {
        Self::new(ErrorKind::Damaged, code, message).with_section(section).at(offset)
    }

    /// A failure of the host at what `message` says. If another process's lock blocks the file, the kind is
    /// [`ErrorKind::InUse`].
    pub(crate) fn io(code: &'static str, message: impl Into<String>, source: io::Error) -> Self {
        let kind = match source.kind() {
            io::ErrorKind::ResourceBusy => ErrorKind::InUse,
            _ => ErrorKind::Io,
        };
        // What the user can do something about comes first.
        let cause = match source.kind() {
            io::ErrorKind::StorageFull => "the volume is full: ",
            io::ErrorKind::QuotaExceeded => "the quota is used up: ",
            io::ErrorKind::FileTooLarge => "the file may not be that long: ",
            _ => "",
        };
        let mut error = Self::new(kind, code, cause.to_owned() + &message.into());
        error.0.source = Some(source);
        error
    }

    /// The file is locked by another process; `by` says which, if known.
    pub(crate) fn in_use(by: impl fmt::Display) -> Self {
        Self::new(ErrorKind::InUse, "lock.in-use", "the file is in use elsewhere").with_found(by)
    }

    pub(crate) fn with_kind(mut self, kind: ErrorKind, code: &'static str) -> Self {
        self.0.kind = kind;
        self.0.code = code;
        self
    }

    pub(crate) fn with_section(mut self, section: &'static str) -> Self {
        self.0.section = Some(section);
        self
    }

    /// The caller asked to stop.
    pub(crate) fn cancelled() -> Self {
        Self::new(ErrorKind::Cancelled, "op.cancelled", "stopped as asked")
    }

    /// Replaces the message.
    pub(crate) fn with_message(mut self, message: impl Into<String>) -> Self {
        self.0.message = message.into();
        self
    }

    /// Names the image that looked for the file as its parent.
    pub(crate) fn of_parent_of(mut self, child: &str) -> Self {
        self.0.child = Some(child.to_owned());
        self
    }

    /// Hides the bytes that were found, because the file may belong to somebody else.
    pub(crate) fn without_found(self) -> Self {
        if self.0.found.is_some() { self.with_found("other bytes") } else { self }
    }

    /// Names the limit if the host ran out of one: deep chains need many file descriptors.
    pub(crate) fn limits_named(self) -> Self {
        // EMFILE and ENFILE; Windows has no comparable limit.
        let code = self.0.source.as_ref().and_then(io::Error::raw_os_error);
        if cfg!(unix) && matches!(code, Some(23 | 24)) {
            return self
                .with_kind(ErrorKind::Limit, "limit.open-files")
                .with_found("no file descriptor left")
                .with_expected("a limit on open files above the depth of the chain");
        }
        self
    }

    /// Copies the error for another caller, without the host's own error, which cannot be copied.
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

    /// The displayed text without the name of `file`, for contexts that name it anyway.
    pub(crate) fn text_about(&self, file: impl fmt::Display) -> String {
        let is_told = self.file() == Some(file.to_string().as_str());
        if is_told { self.0.facts() } else { self.0.text() }
    }
}

/// The fields of an error by the names of its methods. `message` is as displayed, and `cause` is the host's own error.
#[cfg(feature = "serde")]
impl serde::Serialize for Error {
    fn serialize<S: serde::Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct;
        let Repr { kind, code, file, child, offset, found, expected, section, source, .. } =
            &*self.0;
        let mut fields = to.serialize_struct("Error", 10)?;
        fields.serialize_field("kind", kind)?;
        fields.serialize_field("code", code)?;
        fields.serialize_field("message", &self.to_string())?;
        fields.serialize_field("file", file)?;
        fields.serialize_field("child", child)?;
        fields.serialize_field("offset", offset)?;
        fields.serialize_field("found", found)?;
        fields.serialize_field("expected", expected)?;
        fields.serialize_field("section", section)?;
        fields.serialize_field("cause", &source.as_ref().map(io::Error::to_string))?;
        fields.end()
    }
}

impl Repr {
    fn text(&self) -> String {
        match &self.file {
            Some(file) => format!("{file}: {}", self.facts()),
            None => self.facts(),
        }
    }

    /// The text without the file's name.
    fn facts(&self) -> String {
        let mut text = self.message.clone();
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

/// An error of the host is [`ErrorKind::Io`] with the code `io`, or [`ErrorKind::InUse`] where a lock is in the way. An
/// [`Error`] that was made an [`io::Error`] is itself again.
impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        error.downcast().unwrap_or_else(|error| Self::io("io", "the host failed", error))
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
