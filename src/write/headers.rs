//! Durable updates of the headers, \[MS-VHDX\] 2.2.2.1.

use crate::counters::Tally;
use crate::error::{Error, Result};
use crate::format::header::{Header, Headers};
use crate::storage::Storage;
use crate::trace;

/// Writes both headers; each is durable before the other is written, and on return.
pub(crate) fn update_headers(
    headers: &mut Headers,
    file: &dyn Storage,
    tally: &Tally,
    change: impl FnOnce(&mut Header),
) -> Result<()> {
    write_headers(headers, file, tally, change)?;
    flush(file, tally)
}

/// The same, but the second header is not durable yet, and must be before another header is written.
pub(super) fn write_headers(
    headers: &mut Headers,
    file: &dyn Storage,
    tally: &Tally,
    change: impl FnOnce(&mut Header),
) -> Result<()> {
    let mut header = headers.current().clone();
    change(&mut header);
    write_other(headers, file, &mut header)?;
    flush(file, tally)?;
    write_other(headers, file, &mut header)
}

/// Writes the header that is not current, which makes it current.
fn write_other(headers: &mut Headers, file: &dyn Storage, header: &mut Header) -> Result<()> {
    header.sequence_number = headers.current().next_number(Header::OFFSETS[headers.current])?;
    let slot = 1 - headers.current;
    let at = Header::OFFSETS[slot];
    let written = file.write_at(&header.to_bytes(), at);
    written.map_err(|error| Error::io("header.write", "cannot write a header", error).at(at))?;
    headers.copies[slot] = Ok(header.clone());
    headers.current = slot;
    Ok(())
}

pub(crate) fn flush(file: &dyn Storage, tally: &Tally) -> Result<()> {
    trace::flushing(file.name());
    tally.flushes.add(1);
    file.flush().map_err(|error| Error::io("file.flush", "cannot flush the file", error))
}
