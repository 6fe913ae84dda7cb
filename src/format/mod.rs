//! The structures of \[MS-VHDX\], parsed from bytes and serialized to bytes. Does no I/O.
//!
//! Parsers take the file offset of the structure, so that errors can report it.

pub(crate) mod bat;
pub(crate) mod header;
pub(crate) mod identifier;
mod limits;
pub(crate) mod locator;
pub(crate) mod log_entry;
pub(crate) mod marks;
pub(crate) mod metadata;
pub(crate) mod region;
#[cfg(test)]
mod tests;

use byteorder::{ByteOrder, LittleEndian};
use uuid::Uuid;

use crate::error::{Error, Result};

pub(crate) use limits::MOST_NEEDED;

/// The number at `at`, if the bytes reach so far.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(LittleEndian::read_u32(bytes.get(at..)?.get(..4)?))
}

/// As [`u32_at`].
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(LittleEndian::read_u64(bytes.get(at..)?.get(..8)?))
}

/// An identity as structures hold it.
pub(crate) fn guid_bytes(guid: Uuid) -> [u8; 16] {
    guid.to_bytes_le()
}

/// Receives the faults of a structure, one by one.
pub(crate) type OnError<'a> = &'a mut dyn FnMut(Error);

/// Turns an inspection, which continues after a fault, into a parser, which fails with the first one.
/// An inspection without a value must have reported a fault.
pub(crate) fn strict<T>(inspect: impl FnOnce(OnError<'_>) -> Option<T>) -> Result<T> {
    let mut first = None;
    let value = inspect(&mut |error| {
        first.get_or_insert(error);
    });
    match first {
        Some(error) => Err(error),
        None => Ok(value.expect("an inspection without a value reports an error")),
    }
}

/// Reports reserved bytes that are not zero; `at` is the file offset of `bytes`.
fn check_reserved(
    bytes: &[u8],
    at: u64,
    code: &'static str,
    section: &'static str,
    what: &str,
    on: OnError<'_>,
) {
    if let Some(i) = bytes.iter().position(|byte| *byte != 0) {
        on(Error::damaged(
            code,
            section,
            at + i as u64,
            format!("reserved bytes of {what} are used"),
        )
        .with_found(format_args!("{:#04x}", bytes[i]))
        .with_expected("zeros"));
    }
}

/// Reads fields of a structure by offset.
#[derive(Clone, Copy)]
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn u16(self, at: usize) -> u16 {
        LittleEndian::read_u16(&self.0[at..])
    }

    fn u32(self, at: usize) -> u32 {
        LittleEndian::read_u32(&self.0[at..])
    }

    fn u64(self, at: usize) -> u64 {
        LittleEndian::read_u64(&self.0[at..])
    }

    fn guid(self, at: usize) -> Uuid {
        Uuid::from_bytes_le(self.array(at))
    }

    fn array<const N: usize>(self, at: usize) -> [u8; N] {
        let mut bytes = [0; N];
        bytes.copy_from_slice(&self.0[at..at + N]);
        bytes
    }

    /// The structure that starts at `at`.
    fn from(self, at: usize) -> Fields<'a> {
        Fields(&self.0[at..])
    }
}

/// Writes fields of a structure by offset.
struct FieldsMut<'a>(&'a mut [u8]);

impl FieldsMut<'_> {
    fn u16(&mut self, at: usize, value: u16) {
        LittleEndian::write_u16(&mut self.0[at..], value);
    }

    fn u16s(&mut self, at: usize, values: &[u16]) {
        LittleEndian::write_u16_into(values, &mut self.0[at..at + 2 * values.len()]);
    }

    fn u32(&mut self, at: usize, value: u32) {
        LittleEndian::write_u32(&mut self.0[at..], value);
    }

    fn u64(&mut self, at: usize, value: u64) {
        LittleEndian::write_u64(&mut self.0[at..], value);
    }

    fn guid(&mut self, at: usize, value: Uuid) {
        self.bytes(at, &value.to_bytes_le());
    }

    fn bytes(&mut self, at: usize, value: &[u8]) {
        self.0[at..at + value.len()].copy_from_slice(value);
    }
}

/// Computes the CRC-32C of a structure, counting its checksum field, four bytes at offset 4, as zero.
fn checksum(bytes: &[u8]) -> u32 {
    let crc = crc32c::crc32c(&bytes[..4]);
    let crc = crc32c::crc32c_append(crc, &[0; 4]);
    crc32c::crc32c_append(crc, &bytes[8..])
}

/// Stores the checksum in a complete structure.
fn seal(bytes: &mut [u8]) {
    let sum = checksum(bytes);
    FieldsMut(bytes).u32(4, sum);
}

/// Formats a signature for an error.
fn text(bytes: &[u8]) -> String {
    format!("\"{}\"", bytes.escape_ascii())
}

/// Refuses a structure that does not start with `expected`.
fn check_signature(
    bytes: &[u8],
    expected: &[u8],
    at: u64,
    code: &'static str,
    section: &'static str,
    what: &str,
) -> Result<()> {
    let found = &bytes[..expected.len()];
    if found == expected {
        return Ok(());
    }
    Err(Error::damaged(code, section, at, format!("no {what} signature"))
        .with_found(text(found))
        .with_expected(text(expected)))
}

/// Refuses a structure whose stored checksum is wrong.
fn check_sum(
    bytes: &[u8],
    at: u64,
    code: &'static str,
    section: &'static str,
    what: &str,
) -> Result<()> {
    let (claimed, actual) = (Fields(bytes).u32(4), checksum(bytes));
    if claimed == actual {
        return Ok(());
    }
    Err(Error::damaged(code, section, at + 4, format!("wrong checksum of the {what}"))
        .with_found(format_args!("{claimed:#010x}"))
        .with_expected(format_args!("{actual:#010x}")))
}
