//! Corrupts images, and corrects the checksums afterwards.

use crate::crc::sealed;
use std::ops::Range;

/// Sets a byte.
pub fn put_u8(bytes: &mut [u8], at: u64, value: u8) {
    put(bytes, at, &[value]);
}

/// Sets a little-endian 16-bit field.
pub fn put_u16(bytes: &mut [u8], at: u64, value: u16) {
    put(bytes, at, &value.to_le_bytes());
}

/// Sets a little-endian 32-bit field.
pub fn put_u32(bytes: &mut [u8], at: u64, value: u32) {
    put(bytes, at, &value.to_le_bytes());
}

/// Sets a little-endian 64-bit field.
pub fn put_u64(bytes: &mut [u8], at: u64, value: u64) {
    put(bytes, at, &value.to_le_bytes());
}

/// Sets a GUID in Microsoft's byte order.
pub fn put_uuid(bytes: &mut [u8], at: u64, value: uuid::Uuid) {
    put(bytes, at, &value.to_bytes_le());
}

/// Sets bytes.
pub fn put(bytes: &mut [u8], at: u64, value: &[u8]) {
    let at = at as usize;
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// Reads a little-endian 16-bit field.
pub fn u16_at(bytes: &[u8], at: u64) -> u16 {
    bytes[at as usize..][..2].iter().rev().fold(0, |n, b| n << 8 | u16::from(*b))
}

/// Reads a little-endian 32-bit field.
pub fn u32_at(bytes: &[u8], at: u64) -> u32 {
    bytes[at as usize..][..4].iter().rev().fold(0, |n, b| n << 8 | u32::from(*b))
}

/// Reads a little-endian 64-bit field.
pub fn u64_at(bytes: &[u8], at: u64) -> u64 {
    bytes[at as usize..][..8].iter().rev().fold(0, |n, b| n << 8 | u64::from(*b))
}

/// Corrects the checksums of both headers, both region tables and all log entries, whatever
/// else is wrong with them.
pub fn reseal(bytes: &mut [u8]) {
    // The log may have been moved in one header only: both places count, each once.
    let mut logs = Vec::new();
    for header in HEADERS.iter().filter(|h| bytes.len() as u64 >= h.end) {
        let offset = u64_at(bytes, header.start + 72);
        logs.push(offset..offset.saturating_add(u32_at(bytes, header.start + 68).into()));
    }
    logs.dedup();
    reseal_headers(bytes);
    reseal_region_tables(bytes);
    for log in logs {
        reseal_log(bytes, log);
    }
}

/// [MS-VHDX] 2.2
const HEADERS: [Range<u64>; 2] = [0x1_0000..0x1_1000, 0x2_0000..0x2_1000];
/// [MS-VHDX] 2.2
const REGION_TABLES: [Range<u64>; 2] = [0x3_0000..0x4_0000, 0x4_0000..0x5_0000];

/// Seals both headers. [MS-VHDX] 2.2.2
pub fn reseal_headers(bytes: &mut [u8]) {
    HEADERS.into_iter().for_each(|r| seal(bytes, r));
}

/// Seals both region tables. [MS-VHDX] 2.2.3
pub fn reseal_region_tables(bytes: &mut [u8]) {
    REGION_TABLES.into_iter().for_each(|r| seal(bytes, r));
}

/// Seals everything in the ring that starts like an entry with a possible length, including stale and
/// torn ones. [MS-VHDX] 2.3.1.1
pub fn reseal_log(bytes: &mut [u8], log: Range<u64>) {
    let size = log.end.saturating_sub(log.start);
    if log.end > bytes.len() as u64 || size == 0 || !size.is_multiple_of(4096) {
        return;
    }
    let ring = &mut bytes[log.start as usize..log.end as usize];
    let size = ring.len();
    for at in (0..size).step_by(4096) {
        let length = u32_at(ring, at as u64 + 8) as usize;
        let possible = length.is_multiple_of(4096) && (1..=size).contains(&length);
        if &ring[at..at + 4] == b"loge" && possible {
            let entry: Vec<u8> = (0..length).map(|i| ring[(at + i) % size]).collect();
            put_u32(ring, at as u64 + 4, sealed(&entry, 4));
        }
    }
}

fn seal(bytes: &mut [u8], range: Range<u64>) {
    if bytes.len() as u64 >= range.end {
        let sum = sealed(&bytes[range.start as usize..range.end as usize], 4);
        put_u32(bytes, range.start + 4, sum);
    }
}
