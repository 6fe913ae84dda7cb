//! The error type of the crate: what went wrong, in which volume, at which path.

use std::any::Any;
use std::fmt;

/// The result of the crate's fallible calls.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The reason why a call failed.
///
/// Match on [`kind`](Self::kind) to decide what to do, and on [`code`](Self::code) for the exact problem.
/// [`volume`](Self::volume) and [`path`](Self::path) say where. [`std::error::Error::source`] is the error of the disk or
/// of a crate that reads a file system, if there is one; it is not part of the displayed text.
#[derive(Debug)]
pub struct Error(Box<Repr>);

/// The category of an [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The disk could not be read. The source is an [`avhdx::Error`].
    Disk,
    /// A partition table or a file system breaks a rule of its format.
    Damaged,
    /// The volume, file or stream is of a kind that this crate recognizes and does not read.
    Unsupported,
    /// There is no such volume, file or stream.
    NotFound,
    /// The argument does not fit: several volumes could be meant, a folder was read as a file.
    InvalidInput,
    /// The file system was not closed cleanly, or something holds on to space that it calls free: which space nothing uses
    /// is not certain.
    Unclean,
    /// A limit was reached that keeps hostile volumes from taking time and memory without bound.
    Limit,
}

#[derive(Debug)]
struct Repr {
    kind: ErrorKind,
    code: &'static str,
    message: String,
    volume: Option<String>,
    path: Option<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// The category of the failure.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// A short, stable name of the exact failure, such as `files.encrypted`.
    pub fn code(&self) -> &'static str {
        self.0.code
    }

    /// What went wrong, without volume and path.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The volume concerned, such as `partition 2`.
    pub fn volume(&self) -> Option<&str> {
        self.0.volume.as_deref()
    }

    /// The path concerned, within the volume.
    pub fn path(&self) -> Option<&str> {
        self.0.path.as_deref()
    }

    /// The error of the disk, if that is what failed.
    pub fn disk_error(&self) -> Option<&avhdx::Error> {
        self.0.source.as_ref()?.downcast_ref()
    }

    /// The error of the disk, if that is what failed; this error otherwise.
    ///
    /// # Errors
    /// This error, if it is not one of the disk.
    pub fn into_disk_error(mut self) -> Result<avhdx::Error> {
        match self.0.source.take().map(|source| source.downcast::<avhdx::Error>()) {
            Some(Ok(error)) => Ok(*error),
            Some(Err(source)) => {
                self.0.source = Some(source);
                Err(self)
            }
            None => Err(self),
        }
    }

    pub(crate) fn new(kind: ErrorKind, code: &'static str, message: impl Into<String>) -> Self {
        let message = message.into();
        Self(Box::new(Repr { kind, code, message, volume: None, path: None, source: None }))
    }

    /// A file system that breaks a rule of its format.
    pub(crate) fn damaged(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Damaged, code, message)
    }

    /// What is recognized and not read.
    pub(crate) fn unsupported(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unsupported, code, message)
    }

    /// A file system whose free space is not certain.
    pub(crate) fn unclean(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unclean, code, message)
    }

    /// What caught panic of a crate says, which is damage that the crate did not expect.
    pub(crate) fn panicked(payload: &(dyn Any + Send)) -> Self {
        let text = payload.downcast_ref::<&str>().copied();
        let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        let message = format!("a reader of the volume gave up: {}", text.unwrap_or("no reason"));
        Self::new(ErrorKind::Damaged, "files.panic", message)
    }

    pub(crate) fn with_source(
        mut self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// Sets the volume, unless it is set already.
    pub(crate) fn in_volume(mut self, volume: &str) -> Self {
        self.0.volume.get_or_insert_with(|| volume.to_owned());
        self
    }

    /// Sets the path, unless it is set already; an empty one is none.
    pub(crate) fn at_path(mut self, path: &[u8]) -> Self {
        if !path.is_empty() {
            self.0.path.get_or_insert_with(|| String::from_utf8_lossy(path).into_owned());
        }
        self
    }
}

impl From<avhdx::Error> for Error {
    fn from(error: avhdx::Error) -> Self {
        Self::new(ErrorKind::Disk, "files.disk", format!("the disk cannot be read: {error}"))
            .with_source(error)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for place in [&self.0.volume, &self.0.path].into_iter().flatten() {
            write!(f, "{place}: ")?;
        }
        f.write_str(&self.0.message)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}
