//! Folders: indexes of names.

use crate::boundary::{number, u16_at, u32_at, u64_at};
use crate::error::{Error, Result};
use crate::ntfs::record::{RECORD_BITS, fix_up};

const HAS_CHILD: u16 = 1;
const IS_LAST: u16 = 2;
/// The kind of names that exist for old programs beside a long one.
const SHORT_ONLY: u64 = 2;

/// A name in a folder.
#[derive(Clone, Debug)]
pub(super) struct Name {
    pub(super) record: u64,
    pub(super) sequence: u16,
    pub(super) name: Vec<u16>,
    /// A second name of the same file for old programs.
    pub(super) is_short: bool,
}

/// What a node of the index holds: names, and further nodes by their places.
#[derive(Debug, Default)]
pub(super) struct Contents {
    pub(super) names: Vec<Name>,
    pub(super) children: Vec<u64>,
}

/// The size of the nodes behind the root.
pub(super) fn node_len(root: &[u8]) -> u64 {
    u32_at(root, 8).into()
}

/// Parses the root, which lies in the file record.
pub(super) fn root(value: &[u8]) -> Result<Contents> {
    node(value, 16).map_err(|what| damaged(&what))
}

/// Parses a node that should lie in the cluster `vcn` of the index.
pub(super) fn child(mut bytes: Vec<u8>, vcn: u64) -> Result<Contents> {
    let parsed = (|| {
        if bytes.get(..4) != Some(b"INDX") {
            return Err("has no signature".to_owned());
        }
        fix_up(&mut bytes)?;
        match u64_at(&bytes, 16) {
            own if own != vcn => Err(format!("says that it is node {own}")),
            _ => node(&bytes, 24),
        }
    })();
    parsed.map_err(|what| damaged(&format!("node {vcn} {what}")))
}

fn damaged(what: &str) -> Error {
    Error::damaged("ntfs.index", format!("the index of a folder is damaged: {what}"))
}

/// Parses the entries behind the header at `header`.
fn node(bytes: &[u8], header: usize) -> Result<Contents, String> {
    let first = header.checked_add(u32_at(bytes, header) as usize);
    let end = header.checked_add(u32_at(bytes, header + 4) as usize);
    let entries = first.zip(end).and_then(|(first, end)| bytes.get(first..end));
    let mut rest = entries.ok_or("has its entries outside of it")?;
    let mut contents = Contents::default();
    loop {
        if rest.len() < 16 {
            return Err("has no last entry".into());
        }
        let (len, flags) = (usize::from(u16_at(rest, 8)), u16_at(rest, 12));
        let Some(entry) = rest.get(..len).filter(|_| len >= 16 && len.is_multiple_of(8)) else {
            return Err(format!("has an entry of {len} bytes"));
        };
        if flags & HAS_CHILD != 0 {
            contents.children.push(u64_at(entry, len - 8));
        }
        if flags & IS_LAST != 0 {
            return Ok(contents);
        }
        let (key, reference) = (&entry[16..], u64_at(entry, 0));
        let units = number(key, 64, 1) as usize;
        let name = key.get(66..66 + 2 * units).ok_or("has a name outside of its entry")?;
        contents.names.push(Name {
            record: reference & RECORD_BITS,
            sequence: (reference >> 48) as u16,
            name: name.chunks_exact(2).map(|unit| u16_at(unit, 0)).collect(),
            is_short: is_short(key),
        });
        rest = &rest[len..];
    }
}

/// Whether a name is a short one, for DOS alone, that stands beside another.
pub(super) fn is_short(name: &[u8]) -> bool {
    number(name, 65, 1) == SHORT_ONLY
}
