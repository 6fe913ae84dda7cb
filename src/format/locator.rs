//! The parent locator, \[MS-VHDX\] 2.6.2.6.

use std::collections::HashSet;

use uuid::{Uuid, uuid};

use super::{Fields, FieldsMut, OnError, check_reserved};
use crate::error::{Error, ErrorKind, Result};
use crate::types::MIB;

pub(crate) const VHDX_TYPE: Uuid = uuid!("B04AEFB7-D19E-4A81-B789-25B8E9445913");

const HEADER_LEN: usize = 20;
const ENTRY_LEN: usize = 12;
const SECTION: &str = "2.6.2.6";

/// The location and identity of the parent, as key-value pairs in the writer's order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ParentLocator {
    pub(crate) locator_type: Uuid,
    pub(crate) entries: Vec<(String, String)>,
}

impl ParentLocator {
    /// Parses what it can and reports every fault; invalid entries are left out. Returns `None` for a type other
    /// than VHDX, whose keys are unknown.
    pub(crate) fn inspect(bytes: &[u8], at: u64, on: OnError<'_>) -> Option<Self> {
        if bytes.len() < HEADER_LEN {
            let message = "the parent locator is too short";
            on(Error::damaged("locator.length", SECTION, at, message)
                .with_found(format_args!("{} bytes", bytes.len()))
                .with_expected(format_args!("at least {HEADER_LEN}")));
            return None;
        }
        let locator_type = Fields(bytes).guid(0);
        if locator_type != VHDX_TYPE {
            let message = "unknown type of parent locator";
            on(Error::new(ErrorKind::Unsupported, "locator.type", message)
                .with_section("2.6.2.6.1")
                .at(at)
                .with_found(locator_type)
                .with_expected(VHDX_TYPE));
            return None;
        }
        let count = usize::from(Fields(bytes).u16(18));
        let room = (bytes.len() - HEADER_LEN) / ENTRY_LEN;
        if count > room {
            let message = "more parent locator entries than the item has room for";
            on(Error::damaged("locator.count", "2.6.2.6.1", at + 18, message)
                .with_found(count)
                .with_expected(format_args!("at most {room}")));
        }
        let mut entries: Vec<(String, String)> = Vec::new();
        let mut keys = HashSet::new();
        // Strings may overlap, but their total size is bounded by the greatest length of an item.
        let mut room_left = MIB as usize;
        for i in 0..count.min(room) {
            let start = HEADER_LEN + ENTRY_LEN * i;
            let fields = Fields(bytes).from(start);
            let place = at + start as u64;
            let (key_len, value_len) = (fields.u16(8), fields.u16(10));
            let Some(left) = room_left.checked_sub(usize::from(key_len) + usize::from(value_len))
            else {
                let message = "overlapping parent locator strings";
                on(Error::damaged("locator.string-overlap", "2.6.2.6.2", place, message)
                    .with_found("more bytes of strings than an item can hold")
                    .with_expected(format_args!("at most {MIB}")));
                break;
            };
            room_left = left;
            let key = string(bytes, fields.u32(0), key_len, at, place);
            let value = string(bytes, fields.u32(4), value_len, at, place + 4);
            let mut said = |string: Result<Text>| match string {
                Ok((text, fault)) => {
                    fault.into_iter().for_each(&mut *on);
                    Some(text)
                }
                Err(error) => {
                    on(error);
                    None
                }
            };
            let (key, value) = (said(key), said(value));
            let (Some(key), Some(value)) = (key, value) else { continue };
            if !keys.insert(key.clone()) {
                let message = "duplicate parent locator key";
                on(Error::damaged("locator.duplicate", "2.6.2.6.2", place, message)
                    .with_found(format_args!("{key:?}"))
                    .with_expected("every key once"));
                continue;
            }
            entries.push((key, value));
        }
        Some(Self { locator_type, entries })
    }

    /// Creates a locator without entries.
    pub(crate) fn empty() -> Self {
        Self { locator_type: VHDX_TYPE, entries: Vec::new() }
    }

    /// Reports a reserved field that is not zero. Readers ignore it.
    pub(crate) fn inspect_reserved(bytes: &[u8], at: u64, on: OnError<'_>) {
        let field = bytes.get(16..18).unwrap_or_default();
        let what = "the parent locator";
        check_reserved(field, at + 16, "locator.reserved", "2.6.2.6.1", what, on);
    }

    /// Serializes the item.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] if a string is longer than the format allows.
    pub(crate) fn to_bytes(&self) -> Result<Vec<u8>> {
        let strings = self.entries.iter().flat_map(|(key, value)| [key, value]);
        let longest = strings.map(|text| 2 * text.encode_utf16().count()).max().unwrap_or(0);
        if longest > usize::from(u16::MAX) {
            let message = "the path to the parent is too long for a parent locator";
            return Err(Error::new(ErrorKind::Unsupported, "create.metadata", message)
                .with_section("2.6.2.6.2")
                .with_found(format_args!("{longest} bytes of UTF-16"))
                .with_expected(format_args!("at most {}", u16::MAX)));
        }
        let mut bytes = vec![0; HEADER_LEN + ENTRY_LEN * self.entries.len()];
        FieldsMut(&mut bytes).guid(0, self.locator_type);
        FieldsMut(&mut bytes).u16(18, self.entries.len() as u16);
        for (i, (key, value)) in self.entries.iter().enumerate() {
            for (text, offset_at, length_at) in [(key, 0, 8), (value, 4, 10)] {
                let offset = bytes.len() as u32;
                let units: Vec<u16> = text.encode_utf16().collect();
                let length = 2 * units.len();
                bytes.resize(bytes.len() + length, 0);
                FieldsMut(&mut bytes).u16s(offset as usize, &units);
                let mut fields = FieldsMut(&mut bytes[HEADER_LEN + ENTRY_LEN * i..]);
                fields.u32(offset_at, offset);
                fields.u16(length_at, length as u16);
            }
        }
        Ok(bytes)
    }

    /// Returns the value of a key. Keys are case-sensitive.
    pub(crate) fn value(&self, key: &str) -> Option<&str> {
        self.entries.iter().find(|(other, _)| other == key).map(|(_, value)| value.as_str())
    }

    /// Replaces the value of a key in place, appends the key, or removes it.
    pub(crate) fn set(&mut self, key: &str, value: Option<String>) {
        let place = self.entries.iter().position(|(other, _)| other == key);
        match (place, value) {
            (Some(i), Some(value)) => self.entries[i].1 = value,
            (Some(i), None) => drop(self.entries.remove(i)),
            (None, Some(value)) => self.entries.push((key.to_owned(), value)),
            (None, None) => {}
        }
    }

    /// The identity that the parent had when it was linked. Required.
    pub(crate) fn linkage(&self, at: u64) -> Result<Uuid> {
        self.guid("parent_linkage", at)?.ok_or_else(|| {
            Error::damaged("locator.linkage-missing", "2.6.2.6.3", at, "no parent linkage")
                .with_found("a parent locator without it")
                .with_expected("the key \"parent_linkage\"")
        })
    }

    /// A second identity that the parent may have while a merge is in progress.
    pub(crate) fn linkage2(&self, at: u64) -> Result<Option<Uuid>> {
        self.guid("parent_linkage2", at)
    }

    /// Returns the identities that the parent may have, tolerating and reporting faults in their form. An
    /// identity that cannot be parsed is nil.
    pub(crate) fn linkages_as_meant(&self, at: u64, on: OnError<'_>) -> (Uuid, Option<Uuid>) {
        let first = self.linkage(at).unwrap_or_else(|error| {
            on(error);
            self.without_braces("parent_linkage").unwrap_or_default()
        });
        let second = self.linkage2(at).unwrap_or_else(|error| {
            on(error);
            self.without_braces("parent_linkage2")
        });
        (first, second)
    }

    /// Parses a GUID without braces.
    fn without_braces(&self, key: &str) -> Option<Uuid> {
        let text = self.value(key)?.trim();
        (text.len() == 36).then(|| text.parse().ok()).flatten()
    }

    fn guid(&self, key: &str, at: u64) -> Result<Option<Uuid>> {
        let Some(text) = self.value(key) else { return Ok(None) };
        // The `uuid` crate also accepts forms without hyphens or with "urn:", which no writer uses.
        let inner = text.strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
        let guid = inner.filter(|inner| inner.len() == 36).and_then(|inner| inner.parse().ok());
        guid.map(Some).ok_or_else(|| {
            Error::damaged("locator.linkage", "2.6.2.6.3", at, format!("{key} is not a GUID"))
                .with_found(format_args!("{text:?}"))
                .with_expected("the form {xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx}")
        })
    }
}

/// A string, and a fault in it that can be tolerated.
type Text = (String, Option<Error>);

/// Reads a string; `item_at` is the file offset of the item, `field_at` that of the string's entry.
fn string(bytes: &[u8], offset: u32, length: u16, item_at: u64, field_at: u64) -> Result<Text> {
    let start = offset as usize;
    let damaged = |code, message| Error::damaged(code, "2.6.2.6.2", field_at, message);
    let end = start.saturating_add(length.into());
    let Some(raw) = bytes.get(start..end).filter(|_| length > 0) else {
        return Err(damaged("locator.string-place", "a locator string outside the item")
            .with_found(format_args!("{length} bytes from {offset:#x} of the item"))
            .with_expected(format_args!("1 to {} bytes within the item", bytes.len())));
    };
    if !length.is_multiple_of(2) {
        return Err(damaged("locator.string-length", "odd length of a locator string")
            .with_found(length)
            .with_expected("an even number of bytes"));
    }
    let units: Vec<u16> = raw.chunks_exact(2).map(|unit| Fields(unit).u16(0)).collect();
    let is_no_text = || {
        let message = "a locator string is not valid text";
        Error::damaged("locator.string", "2.6.2.6.2", item_at + u64::from(offset), message)
            .with_found(format_args!("{:?}", String::from_utf16_lossy(&units)))
            .with_expected("UTF-16 without NULs")
    };
    let Ok(text) = String::from_utf16(&units) else { return Err(is_no_text()) };
    // Trailing NULs are tolerated: the string is what precedes them.
    match text.trim_end_matches('\0') {
        trimmed if trimmed.is_empty() || trimmed.contains('\0') => Err(is_no_text()),
        trimmed if trimmed.len() < text.len() => Ok((trimmed.to_owned(), Some(is_no_text()))),
        _ => Ok((text, None)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_over_each_other_take_no_more_memory_than_the_item() {
        // 1 MiB, with entries that all use the same 32 KiB as their keys.
        let mut bytes = vec![b'a'; 1 << 20];
        let mut fields = FieldsMut(&mut bytes);
        fields.guid(0, VHDX_TYPE);
        fields.u16(16, 0);
        fields.u16(18, 65_535);
        for i in 0..65_535 {
            let start = HEADER_LEN + ENTRY_LEN * i;
            fields.u32(start, 1 << 19);
            fields.u32(start + 4, (1 << 19) + 2 * i as u32);
            fields.u16(start + 8, 32 << 10);
            fields.u16(start + 10, 32 << 10);
        }
        let mut errors = Vec::new();
        let locator = ParentLocator::inspect(&bytes, 0, &mut |error| errors.push(error.code()));
        let held: usize = locator.unwrap().entries.iter().map(|(k, v)| k.len() + v.len()).sum();
        assert!(held <= 3 << 20, "{held} bytes"); // a UTF-16 unit takes up to three bytes in UTF-8
        assert_eq!(errors.last(), Some(&"locator.string-overlap"));
    }
}
