//! Durable updates of the headers, \[MS-VHDX\] 2.2.2.1.

use crate::counters::Tally;
use crate::error::{Error, Result};
use crate::format::header::{Header, Headers};
use crate::storage::Storage;

/// Writes both headers; the first is durable before the second is written.
pub(crate) fn update_headers(
    headers: &mut Headers,
    file: &dyn Storage,
    tally: &Tally,
    change: impl FnOnce(&mut Header),
) -> Result<()> {
    let mut header = headers.current().clone();
    change(&mut header);
    for _ in 0..2 {
        header.sequence_number = header.next_number(Header::OFFSETS[headers.current])?;
        let slot = 1 - headers.current;
        let at = Header::OFFSETS[slot];
        let written = file.write_at(&header.to_bytes(), at);
        written
            .map_err(|error| Error::io("header.write", "cannot write a header", error).at(at))?;
        flush(file, tally)?;
        headers.copies[slot] = Ok(header.clone());
        headers.current = slot;
    }
    Ok(())
}

pub(crate) fn flush(file: &dyn Storage, tally: &Tally) -> Result<()> {
    tally.flushes.add(1);
    file.flush().map_err(|error| Error::io("file.flush", "cannot flush the file", error))
}
