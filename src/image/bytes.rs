//! Reads files that may end too early.

use crate::error::{Error, Result};
use crate::storage::Storage;
use crate::types::counted;

/// Reads up to the end of `buf` or of the file, from `at` on.
pub(crate) fn read_what_is_there(storage: &dyn Storage, buf: &mut [u8], at: u64) -> Result<usize> {
    let mut read = 0;
    while read < buf.len() {
        match storage.read_at(&mut buf[read..], at + read as u64) {
            Ok(0) => break,
            Ok(more) => read += more,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::io("file.read", "cannot read the file", error).at(at)),
        }
    }
    Ok(read)
}

/// The error for a structure that the end of the file cuts off.
pub(crate) fn too_short(
    code: &'static str,
    section: &'static str,
    at: u64,
    found: usize,
    expected: usize,
) -> Error {
    Error::damaged(code, section, at, "the file ends too early")
        .with_found(counted(found as u64, "byte", "bytes"))
        .with_expected(format_args!("{expected}"))
}

/// Whether that is the error.
pub(crate) fn is_too_short(error: &Error) -> bool {
    matches!(error.code(), "identifier.length" | "header.length")
}
