//! Reads the start of a file: its identifier and headers.

use uuid::Uuid;

use super::bytes::{is_too_short, read_what_is_there, too_short};
use super::foreign::named;
use crate::error::{Error, ErrorKind, Result};
use crate::format::header::{Header, Headers};
use crate::format::identifier::FileIdentifier;
use crate::storage::Storage;

/// The identity by which children know the image, without revealing anything else in the file.
///
/// # Errors
/// [`ErrorKind::Io`] if the host cannot read the file, which may then be anything. If no header gives an identity,
/// the error is that of opening the image, but without the contents found: they may be someone else's data.
pub(crate) fn probe_identity(storage: &dyn Storage) -> Result<Uuid> {
    let headers = read_identifier(storage).and_then(|_| read_headers_as_they_are(storage));
    match headers {
        Ok(headers) => Ok(headers.current().data_write_guid),
        // How long the file is says nothing of what it holds.
        Err(error) if is_too_short(&error) => Err(error.in_file(storage.name())),
        Err(error) => Err(error.without_found().in_file(storage.name())),
    }
}

/// The identity of a file that may not be an image; `None` if it is not recognizable as one.
///
/// # Errors
/// [`ErrorKind::Io`] and [`ErrorKind::InUse`] if the file, which may be anything, cannot be read.
pub(crate) fn identity_if_any(storage: &dyn Storage) -> Result<Option<Uuid>> {
    match probe_identity(storage) {
        Ok(guid) => Ok(Some(guid)),
        Err(error) if matches!(error.kind(), ErrorKind::Io | ErrorKind::InUse) => Err(error),
        Err(_) => Ok(None),
    }
}

/// Whether the file's headers name a log to replay. `false` for a file that is not an image.
///
/// # Errors
/// [`ErrorKind::Io`] if the headers cannot be read.
pub(crate) fn names_log(storage: &dyn Storage) -> Result<bool> {
    match read_headers(storage) {
        Ok(headers) => Ok(!headers.current().log_guid.is_nil()),
        Err(error) if error.kind() == ErrorKind::Io => Err(error),
        Err(_) => Ok(false),
    }
}

/// Whether the file has the signature of an image, even if it is damaged.
pub(crate) fn is_signed(storage: &dyn Storage) -> bool {
    read_identifier(storage).is_ok()
}

/// The error for a file without the signature.
pub(crate) fn why_no_image(storage: &dyn Storage) -> Error {
    read_identifier(storage).err().unwrap_or_else(unsigned)
}

/// As [`probe_identity`], but of a file that is no image, nothing is told but that. That it is empty or holds nothing but
/// zeros, as a copy that broke off, is told.
pub(crate) fn probe_in_silence(storage: &dyn Storage) -> Result<Uuid> {
    probe_identity(storage).map_err(|error| match (error.kind(), error.code()) {
        (_, "foreign.empty" | "foreign.zeros") => error,
        (ErrorKind::NotVhdx, _) => unsigned().without_found().in_file(storage.name()),
        _ => error,
    })
}

fn unsigned() -> Error {
    let nothing = [0; FileIdentifier::LEN];
    FileIdentifier::parse(&nothing).expect_err("zeros are no signature")
}

/// The program that created the image, as recorded; `None` if the file is not an image.
pub(crate) fn read_creator(storage: &dyn Storage) -> Option<String> {
    read_identifier(storage).ok().map(|identifier| identifier.creator)
}

pub(super) fn read_identifier(storage: &dyn Storage) -> Result<FileIdentifier> {
    let mut bytes = [0; FileIdentifier::LEN];
    let read = read_what_is_there(storage, &mut bytes, 0)?;
    let identifier = FileIdentifier::parse(&bytes).map_err(|error| named(storage, error))?;
    if read < bytes.len() {
        return Err(too_short("identifier.length", "2.2.1", 0, read, bytes.len()));
    }
    Ok(identifier)
}

pub(crate) fn read_headers(storage: &dyn Storage) -> Result<Headers> {
    read_headers_as_they_are(storage)?.inspected()
}

/// The headers. The current one may be unusable.
fn read_headers_as_they_are(storage: &dyn Storage) -> Result<Headers> {
    let mut copies = [[0; Header::LEN]; 2];
    for (copy, at) in copies.iter_mut().zip(Header::OFFSETS) {
        let read = read_what_is_there(storage, copy, at)?;
        if read < copy.len() {
            return Err(too_short("header.length", "2.2.2", at, read, copy.len()));
        }
    }
    Headers::parse([&copies[0], &copies[1]])
}
