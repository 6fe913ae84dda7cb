//! File records, their attributes, and records of indexes.

use crate::boundary::{number, u16_at, u32_at, u64_at};
use crate::error::{Error, Result};
use crate::ntfs::runs::{self, Run};

pub(super) const STANDARD_INFORMATION: u32 = 0x10;
pub(super) const ATTRIBUTE_LIST: u32 = 0x20;
pub(super) const FILE_NAME: u32 = 0x30;
pub(super) const VOLUME_NAME: u32 = 0x60;
pub(super) const DATA: u32 = 0x80;
pub(super) const INDEX_ROOT: u32 = 0x90;
pub(super) const INDEX_ALLOCATION: u32 = 0xA0;
pub(super) const REPARSE_POINT: u32 = 0xC0;
const END: u32 = 0xFFFF_FFFF;

pub(super) const IS_COMPRESSED: u16 = 0x00FF;
pub(super) const IS_ENCRYPTED: u16 = 0x4000;

const IN_USE: u16 = 1;
const IS_FOLDER: u16 = 2;
/// The two last bytes of each so many are kept elsewhere, to find torn writes.
const STRIDE: usize = 512;
/// The bits of a reference that number the record; the others count its uses.
pub(super) const RECORD_BITS: u64 = (1 << 48) - 1;

/// A file record.
#[derive(Clone, Debug)]
pub(super) struct Record {
    pub(super) sequence: u16,
    pub(super) links: u16,
    pub(super) is_used: bool,
    pub(super) is_folder: bool,
    /// The record that this one continues; 0 for none.
    pub(super) base: u64,
    pub(super) attributes: Vec<Attribute>,
}

/// An attribute, or the part of one that stands in one record.
#[derive(Clone, Debug)]
pub(super) struct Attribute {
    pub(super) kind: u32,
    pub(super) name: Vec<u16>,
    pub(super) flags: u16,
    pub(super) value: Value,
}

#[derive(Clone, Debug)]
pub(super) enum Value {
    Resident(Vec<u8>),
    Outside { lowest: u64, runs: Vec<Run>, size: u64, initialized: u64, unit_bits: u8 },
}

impl Record {
    /// Parses the bytes of a record, on a volume of so many clusters.
    pub(super) fn parse(mut bytes: Vec<u8>, number: u64, clusters: u64) -> Result<Self> {
        let damaged =
            |what: String| Error::damaged("ntfs.record", format!("file record {number} {what}"));
        if bytes.get(..4) != Some(b"FILE") {
            let found = String::from_utf8_lossy(&bytes[..4.min(bytes.len())]).into_owned();
            return Err(damaged(format!("has the signature {found:?}, expected \"FILE\"")));
        }
        fix_up(&mut bytes).map_err(damaged)?;
        let flags = u16_at(&bytes, 22);
        let used = (u32_at(&bytes, 24) as usize).min(bytes.len());
        let mut attributes = Vec::new();
        let mut at = usize::from(u16_at(&bytes, 20));
        while let Some(rest) = bytes[..used].get(at..).filter(|rest| rest.len() >= 8) {
            if u32_at(rest, 0) == END {
                break;
            }
            let len = u32_at(rest, 4) as usize;
            let Some(raw) = rest.get(..len).filter(|_| len >= 24 && len.is_multiple_of(8)) else {
                return Err(damaged(format!("has an attribute of {len} bytes at {at}")));
            };
            let attribute = Attribute::parse(raw, clusters);
            attributes.push(attribute.map_err(|what| damaged(format!("at {at}: {what}")))?);
            at += len;
        }
        Ok(Self {
            sequence: u16_at(&bytes, 16),
            links: u16_at(&bytes, 18),
            is_used: flags & IN_USE != 0,
            is_folder: flags & IS_FOLDER != 0,
            base: u64_at(&bytes, 32) & RECORD_BITS,
            attributes,
        })
    }
}

impl Attribute {
    fn parse(raw: &[u8], clusters: u64) -> Result<Self, String> {
        let kind = u32_at(raw, 0);
        let outside = |what: &str| format!("attribute {kind:#x} has {what} outside of it");
        let (name_len, name_at) = (usize::from(raw[9]) * 2, usize::from(u16_at(raw, 10)));
        let name = match name_len {
            0 => &[],
            _ => raw.get(name_at..name_at + name_len).ok_or_else(|| outside("its name"))?,
        };
        let name = name.chunks_exact(2).map(|unit| u16_at(unit, 0)).collect();
        let value = if raw[8] == 0 {
            let (len, at) = (u32_at(raw, 16) as usize, usize::from(u16_at(raw, 20)));
            let value = raw.get(at..).and_then(|rest| rest.get(..len));
            Value::Resident(value.ok_or_else(|| outside("its value"))?.to_vec())
        } else {
            let list = raw.get(usize::from(u16_at(raw, 32))..).filter(|_| raw.len() >= 64);
            let list = list.ok_or_else(|| outside("its runs"))?;
            let lowest = u64_at(raw, 16);
            Value::Outside {
                lowest,
                runs: runs::parse(list, lowest, clusters).map_err(|e| e.message().to_owned())?,
                size: u64_at(raw, 48),
                initialized: u64_at(raw, 56),
                unit_bits: raw[34],
            }
        };
        Ok(Self { kind, name, flags: u16_at(raw, 12), value })
    }

    pub(super) fn is(&self, kind: u32, name: &[u16]) -> bool {
        self.kind == kind && self.name == name
    }
}

/// Puts the last two bytes of each stride where they belong. The error continues a sentence about the record.
pub(super) fn fix_up(bytes: &mut [u8]) -> Result<(), String> {
    let (at, count) = (usize::from(u16_at(bytes, 4)), usize::from(u16_at(bytes, 6)));
    if count != bytes.len() / STRIDE + 1 {
        return Err(format!("has {count} marks against torn writes in {} bytes", bytes.len()));
    }
    let Some(marks) = bytes.get(at..at + 2 * count) else {
        return Err("has marks against torn writes outside of it".into());
    };
    let marks = marks.to_vec();
    for (stride, original) in bytes.chunks_exact_mut(STRIDE).zip(marks[2..].chunks_exact(2)) {
        let end = &mut stride[STRIDE - 2..];
        if end != &marks[..2] {
            return Err("was written in part only".into());
        }
        end.copy_from_slice(original);
    }
    Ok(())
}

/// An entry of the list that says which records hold the attributes of a file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Listed {
    pub(super) kind: u32,
    pub(super) lowest: u64,
    pub(super) record: u64,
    pub(super) has_name: bool,
}

pub(super) fn listed(mut list: &[u8]) -> Result<Vec<Listed>> {
    let mut all = Vec::new();
    while list.len() >= 26 {
        let len = usize::from(u16_at(list, 4));
        if len < 26 || len > list.len() {
            let message = format!("a list of attributes has an entry of {len} bytes");
            return Err(Error::damaged("ntfs.attribute-list", message));
        }
        all.push(Listed {
            kind: u32_at(list, 0),
            lowest: u64_at(list, 8),
            record: u64_at(list, 16) & RECORD_BITS,
            has_name: number(list, 6, 1) > 0,
        });
        list = &list[len..];
    }
    Ok(all)
}
