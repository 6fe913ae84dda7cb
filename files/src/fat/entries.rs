//! The entries of a folder: short names, long names and what they say.

use crate::boundary::{number, u16_at};
use crate::fat::oem;
use crate::item::{Time, Times, bytes_of_utf16};

/// The length of an entry, in bytes.
pub(super) const ENTRY_LEN: usize = 32;

const LABEL: u8 = 0x08;
/// The attributes of an entry that holds a part of a long name.
const LONG: u8 = 0x0F;
/// The first byte of a deleted entry, and what stands for that byte in a name.
const DELETED: u8 = 0xE5;
const STANDS_FOR_DELETED: u8 = 0x05;
/// A long name has 20 parts at most.
const MOST_PARTS: u8 = 20;
const PART_UNITS: usize = 13;

/// An entry.
#[derive(Debug)]
pub(super) enum Parsed {
    /// The label of the volume, in the root folder.
    Label(String),
    Entry {
        name: Vec<u8>,
        short: Vec<u8>,
        attributes: u8,
        first: u32,
        size: u32,
        times: Times,
    },
}

/// Parts of a long name that stand before the entry they belong to, the last part first.
#[derive(Default)]
struct Long {
    units: Vec<u16>,
    sum: u8,
    /// The number of the part that comes next.
    next: u8,
}

/// The entries of a folder, without those of the folder itself and its parent.
pub(super) fn parse(bytes: &[u8]) -> Vec<Parsed> {
    let mut parsed = Vec::new();
    let mut long: Option<Long> = None;
    for raw in bytes.chunks_exact(ENTRY_LEN) {
        match raw[0] {
            0 => break,
            DELETED => {
                long = None;
                continue;
            }
            _ => {}
        }
        let attributes = raw[11] & 0x3F;
        if attributes == LONG {
            long = with_part(long, raw);
            continue;
        }
        let long_name = long.take().filter(|long| long.next == 0 && long.sum == checksum(raw));
        if attributes & LABEL != 0 {
            let label = oem::text(&raw[..11]).trim_end().to_owned();
            parsed.extend((!label.is_empty()).then_some(Parsed::Label(label)));
            continue;
        }
        let short = short_name(raw).into_bytes();
        if matches!(&short[..], b"." | b"..") {
            continue;
        }
        let name = match long_name {
            Some(long) => bytes_of_utf16(&long.units),
            None => short.clone(),
        };
        parsed.push(Parsed::Entry {
            name,
            short,
            attributes,
            first: u32::from(u16_at(raw, 20)) << 16 | u32::from(u16_at(raw, 26)),
            size: number(raw, 28, 4) as u32,
            times: Times {
                created: time(u16_at(raw, 16), u16_at(raw, 14), raw[13]),
                modified: time(u16_at(raw, 24), u16_at(raw, 22), 0),
                changed: None,
                accessed: time(u16_at(raw, 18), 0, 0),
            },
        });
    }
    parsed
}

/// The name with one part more; `None` if the part does not belong there.
fn with_part(long: Option<Long>, raw: &[u8]) -> Option<Long> {
    let part = raw[0] & 0x3F;
    let mut long = match long {
        _ if raw[0] & 0x40 != 0 => (1..=MOST_PARTS).contains(&part).then(|| Long {
            units: Vec::new(),
            sum: raw[13],
            next: part,
        })?,
        Some(long) => long,
        None => return None,
    };
    if part == 0 || part != long.next || raw[13] != long.sum {
        return None;
    }
    let places = [(1, 5), (14, 6), (28, 2)];
    let units = places.iter().flat_map(|(at, count)| (0..*count).map(move |n| at + 2 * n));
    let mut units: Vec<u16> = units.map(|at| u16_at(raw, at)).collect();
    debug_assert_eq!(units.len(), PART_UNITS);
    if let Some(end) = units.iter().position(|unit| *unit == 0) {
        units.truncate(end);
    }
    units.append(&mut long.units);
    (long.units, long.next) = (units, part - 1);
    Some(long)
}

fn checksum(raw: &[u8]) -> u8 {
    raw[..11].iter().fold(0u8, |sum, byte| sum.rotate_right(1).wrapping_add(*byte))
}

fn short_name(raw: &[u8]) -> String {
    let mut name: [u8; 8] = std::array::from_fn(|n| raw[n]);
    if name[0] == STANDS_FOR_DELETED {
        name[0] = DELETED;
    }
    let part = |bytes: &[u8], is_lower: bool| {
        let text = oem::text(bytes);
        let text = text.trim_end_matches(' ');
        if is_lower { text.to_lowercase() } else { text.to_owned() }
    };
    // Windows NT notes names in lower case here.
    let base = part(&name, raw[12] & 0x08 != 0);
    match part(&raw[8..11], raw[12] & 0x10 != 0) {
        ending if ending.is_empty() => base,
        ending => format!("{base}.{ending}"),
    }
}

/// The moment of a date and a time, taken as UTC; `None` for none.
fn time(date: u16, time: u16, hundredths: u8) -> Option<Time> {
    let (year, month, day) = (1980 + i64::from(date >> 9), date >> 5 & 0xF, date & 0x1F);
    if date == 0 || !(1..=12).contains(&month) || day == 0 {
        return None;
    }
    let (hour, minute, second) = (time >> 11, time >> 5 & 0x3F, (time & 0x1F) * 2);
    // Days since 1970 of the proleptic Gregorian calendar; years begin in March.
    let (year, month) = match month {
        1 | 2 => (year - 1, i64::from(month) + 9),
        _ => (year, i64::from(month) - 3),
    };
    let days =
        365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + i64::from(day)
            - 1
            - 719_468;
    let seconds = days * 86_400
        + i64::from(hour) * 3600
        + i64::from(minute) * 60
        + i64::from(second)
        + i64::from(hundredths / 100);
    Some(Time { seconds, nanoseconds: u32::from(hundredths % 100) * 10_000_000 })
}
