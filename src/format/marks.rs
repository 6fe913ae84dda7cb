//! Marks that this crate stores as user metadata items: the label of a checkpoint, the state of a merge, and the
//! request for one.
//!
//! All are user items that do not describe the virtual disk: readers that do not know them ignore them, and children
//! do not inherit them. All numbers are little-endian; texts are UTF-8 without a terminator.
//!
//! The checkpoint mark, item `21898540-3963-47d4-a9ed-35ef1adeb3c0`, is stored in the child that a checkpoint created
//! and describes the point in time below it:
//!
//! | Offset | Bytes | What |
//! |---|---|---|
//! | 0 | 2 | version: 1 |
//! | 2 | 2 | reserved: 0 |
//! | 4 | 4 | length of the label in bytes |
//! | 8 | 8 | time of the checkpoint in seconds since 1970-01-01 UTC, signed |
//! | 16 | | label |
//!
//! The merge mark, item `917330e3-c6a3-4d5f-913e-f0fa001aaec7`, is stored in the images that a merge involves until
//! the merge is complete:
//!
//! | Offset | Bytes | What |
//! |---|---|---|
//! | 0 | 2 | version: 1 |
//! | 2 | 1 | state: 1 merging, 2 spent, 3 target |
//! | 3 | 1 | flags: bit 0, moved blocks are freed at once; bit 1, the last two fields are present |
//! | 4 | 4 | length of the name in bytes |
//! | 8 | 16 | identity of the other image |
//! | 24 | | name of the other image |
//! | | 8 | number of bytes, from the start of the disk, whose data from a stopped merge is durable in the parent |
//! | | 16 | identity of the child at that time; with another identity it may have newer data |
//!
//! The merge request, item `d1d9c7c4-3b0f-4a55-8f0e-6d0a3f2f7b61`, is stored in a layer that is to be merged into its
//! parent once the merges below it are complete. It goes with the layer's file:
//!
//! | Offset | Bytes | What |
//! |---|---|---|
//! | 0 | 2 | version: 1 |
//! | 2 | 2 | reserved: 0 |
//! | 4 | 4 | length of the name in bytes |
//! | 8 | | file name that the parent is to have afterwards; empty if it keeps its own |

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use uuid::{Uuid, uuid};

use super::{Fields, FieldsMut};
use crate::error::{Error, ErrorKind, Result};

pub(crate) const CHECKPOINT: Uuid = uuid!("21898540-3963-47d4-a9ed-35ef1adeb3c0");
pub(crate) const MERGE: Uuid = uuid!("917330e3-c6a3-4d5f-913e-f0fa001aaec7");
pub(crate) const REQUEST: Uuid = uuid!("d1d9c7c4-3b0f-4a55-8f0e-6d0a3f2f7b61");

const VERSION: u16 = 1;
const CHECKPOINT_LEN: usize = 16;
const MERGE_LEN: usize = 24;
const REQUEST_LEN: usize = 8;
const LOW_SPACE: u8 = 1;
const HAS_MOVED: u8 = 2;
const MOVED_LEN: usize = 24;

/// The mark that a checkpoint leaves in the child it creates. It describes the point in time below that child.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct CheckpointMark {
    /// The label given by the user; may be empty.
    pub label: String,
    /// The time of the checkpoint, to the second.
    #[cfg_attr(feature = "serde", serde(serialize_with = "crate::types::seconds"))]
    pub time: SystemTime,
}

/// The mark of an unfinished merge in an image that it involves.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct MergeMark {
    /// The image's part in the merge.
    pub state: MergeState,
    /// The identity of the other image. In a child, this is the identity that the parent has during the merge; in
    /// the parent, the child's identity.
    pub other: Uuid,
    /// The file name of the other image when the merge began.
    pub name: String,
    /// Whether blocks of the child are freed as soon as they are moved.
    pub low_space: bool,
    /// How far a stopped merge got, if that could be recorded.
    #[cfg_attr(feature = "serde", serde(skip))]
    pub(crate) moved: Option<Moved>,
}

/// The mark of a layer that is to be merged into its parent, but may have to wait for the merges below it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct MergeRequest {
    /// The file name that the parent is to have afterwards, if not its own.
    pub name: Option<String>,
}

/// The progress of a stopped merge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moved {
    /// The parent holds everything that the child has of the disk before this byte.
    pub(crate) end: u64,
    /// The child's identity at that time. A change gives it another one.
    pub(crate) child: Uuid,
}

/// The part of an image in a merge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum MergeState {
    /// A child whose data is being moved into its parent. Read through the child, the disk is unchanged.
    Merging,
    /// A child whose data is completely in its parent. The image is no longer needed.
    Spent,
    /// A parent that receives a child's data. Read on its own, it is a mixture of two points in time.
    Target,
}

impl CheckpointMark {
    /// The maximum length of a label in bytes.
    pub(crate) const MOST_LABEL: usize = 4096;

    /// Parses the item at file offset `at`.
    pub(crate) fn parse(bytes: &[u8], at: u64) -> Result<Self> {
        let what = "checkpoint mark";
        check_head(bytes, CHECKPOINT_LEN, what, at)?;
        let seconds = Fields(bytes).u64(8) as i64;
        let distance = Duration::from_secs(seconds.unsigned_abs());
        let time = match seconds {
            0.. => UNIX_EPOCH.checked_add(distance),
            _ => UNIX_EPOCH.checked_sub(distance),
        };
        let time = time.ok_or_else(|| {
            unreadable(what, at + 8).with_found(seconds).with_expected("seconds since 1970")
        })?;
        Ok(Self { label: text(bytes, CHECKPOINT_LEN, what, at)?, time })
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let seconds = |duration: Duration| i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
        let seconds = match self.time.duration_since(UNIX_EPOCH) {
            Ok(after) => seconds(after),
            Err(before) => -seconds(before.duration()),
        };
        let mut bytes = vec![0; CHECKPOINT_LEN];
        let mut fields = FieldsMut(&mut bytes);
        fields.u16(0, VERSION);
        fields.u32(4, self.label.len() as u32);
        fields.u64(8, seconds as u64);
        bytes.extend(self.label.as_bytes());
        bytes
    }
}

impl MergeMark {
    /// Parses the item at file offset `at`.
    pub(crate) fn parse(bytes: &[u8], at: u64) -> Result<Self> {
        let what = "merge mark";
        check_head(bytes, MERGE_LEN, what, at)?;
        let state = match bytes[2] {
            1 => MergeState::Merging,
            2 => MergeState::Spent,
            3 => MergeState::Target,
            other => {
                return Err(unreadable(what, at + 2).with_found(other).with_expected("1 to 3"));
            }
        };
        let name = text(bytes, MERGE_LEN, what, at)?;
        // Only an optimization depends on the record: if it cannot be read, it is treated as absent.
        let rest = &bytes[MERGE_LEN + name.len()..];
        let moved = rest.get(..MOVED_LEN).filter(|_| bytes[3] & HAS_MOVED != 0).map(Fields);
        Ok(Self {
            state,
            other: Fields(bytes).guid(8),
            name,
            low_space: bytes[3] & LOW_SPACE != 0,
            moved: moved.map(|moved| Moved { end: moved.u64(0), child: moved.guid(8) }),
        })
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; MERGE_LEN];
        bytes[2] = match self.state {
            MergeState::Merging => 1,
            MergeState::Spent => 2,
            MergeState::Target => 3,
        };
        bytes[3] = if self.low_space { LOW_SPACE } else { 0 };
        bytes[3] |= if self.moved.is_some() { HAS_MOVED } else { 0 };
        let mut fields = FieldsMut(&mut bytes);
        fields.u16(0, VERSION);
        fields.u32(4, self.name.len() as u32);
        fields.guid(8, self.other);
        bytes.extend(self.name.as_bytes());
        if let Some(Moved { end, child }) = self.moved {
            let mut moved = [0; MOVED_LEN];
            let mut fields = FieldsMut(&mut moved);
            fields.u64(0, end);
            fields.guid(8, child);
            bytes.extend(moved);
        }
        bytes
    }
}

impl MergeRequest {
    /// Parses the item at file offset `at`.
    pub(crate) fn parse(bytes: &[u8], at: u64) -> Result<Self> {
        let what = "merge request";
        check_head(bytes, REQUEST_LEN, what, at)?;
        let name = text(bytes, REQUEST_LEN, what, at)?;
        // It is used as a name in the layer's own folder, never as a way out of it.
        if name.contains(['/', '\\', '\0', ':']) || matches!(&name[..], "." | "..") {
            return Err(unreadable(what, at + REQUEST_LEN as u64)
                .with_found(format_args!("{name:?}"))
                .with_expected("a file name"));
        }
        Ok(Self { name: Some(name).filter(|name| !name.is_empty()) })
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let name = self.name.as_deref().unwrap_or_default();
        let mut bytes = vec![0; REQUEST_LEN];
        let mut fields = FieldsMut(&mut bytes);
        fields.u16(0, VERSION);
        fields.u32(4, name.len() as u32);
        bytes.extend(name.as_bytes());
        bytes
    }
}

/// Refuses an item that is too short for its fixed fields or has an unknown version.
fn check_head(bytes: &[u8], len: usize, what: &str, at: u64) -> Result<()> {
    if bytes.len() < len {
        return Err(unreadable(what, at)
            .with_found(format_args!("{} bytes", bytes.len()))
            .with_expected(format_args!("at least {len}")));
    }
    let version = Fields(bytes).u16(0);
    if version != VERSION {
        return Err(unreadable(what, at)
            .with_found(format_args!("version {version}"))
            .with_expected(format_args!("version {VERSION}")));
    }
    Ok(())
}

/// Returns the text after the fixed fields, whose length is stored at byte 4.
fn text(bytes: &[u8], start: usize, what: &str, at: u64) -> Result<String> {
    let len = Fields(bytes).u32(4) as usize;
    let raw = bytes[start..].get(..len).ok_or_else(|| {
        unreadable(what, at + 4)
            .with_found(format_args!("{len} bytes of text"))
            .with_expected(format_args!("at most {}", bytes.len() - start))
    })?;
    let text = std::str::from_utf8(raw).map_err(|_| {
        unreadable(what, at + start as u64)
            .with_found(format_args!("{:?}", String::from_utf8_lossy(raw)))
            .with_expected("UTF-8")
    })?;
    Ok(text.to_owned())
}

fn unreadable(what: &str, at: u64) -> Error {
    let message = format!("the {what} cannot be read");
    Error::new(ErrorKind::Damaged, "mark.unreadable", message).at(at)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn literal_checkpoint_mark() {
        let literal = [
            1, 0, 0, 0, 6, 0, 0, 0, 0x80, 0x51, 1, 0, 0, 0, 0, 0, b'b', b'e', b'f', b'o', 0xC3,
            0xA4,
        ];
        let time = UNIX_EPOCH + Duration::from_secs(86_400);
        let mark = CheckpointMark { label: "befoä".into(), time };
        assert_eq!(CheckpointMark::parse(&literal, 0).unwrap(), mark);
        assert_eq!(mark.to_bytes(), literal);
        let early =
            CheckpointMark { label: String::new(), time: UNIX_EPOCH - Duration::from_secs(2) };
        assert_eq!(early.to_bytes()[8..], [0xFE, 255, 255, 255, 255, 255, 255, 255]);
        assert_eq!(CheckpointMark::parse(&early.to_bytes(), 0).unwrap(), early);
    }

    #[test]
    fn literal_merge_mark() {
        let literal = [
            1, 0, 3, 1, 2, 0, 0, 0, 0x33, 0x22, 0x11, 0, 0x55, 0x44, 0x77, 0x66, 0x88, 0x99, 0xAA,
            0xBB, 0xCC, 0xDD, 0xEE, 0xFF, b'c', b'.',
        ];
        let mut mark = MergeMark {
            state: MergeState::Target,
            other: uuid!("00112233-4455-6677-8899-aabbccddeeff"),
            name: "c.".into(),
            low_space: true,
            moved: None,
        };
        assert_eq!(MergeMark::parse(&literal, 0).unwrap(), mark);
        assert_eq!(mark.to_bytes(), literal);
        let behind = [
            0, 0, 0, 0, 1, 0, 0, 0, 0x0F, 0x0E, 0x0D, 0x0C, 0x0B, 0x0A, 9, 8, 7, 6, 5, 4, 3, 2, 1,
            0,
        ];
        let mut longer = [&literal[..], &behind].concat();
        assert_eq!(MergeMark::parse(&longer, 0).unwrap(), mark, "a flag says that it is there");
        longer[3] = 3;
        let child = uuid!("0c0d0e0f-0a0b-0809-0706-050403020100");
        mark.moved = Some(Moved { end: 4 << 30, child });
        assert_eq!(MergeMark::parse(&longer, 0).unwrap(), mark);
        assert_eq!(mark.to_bytes(), longer);
        mark.moved = None;
        longer.pop();
        assert_eq!(MergeMark::parse(&longer, 0).unwrap(), mark, "a part of it says nothing");
        for (number, state) in [(1, MergeState::Merging), (2, MergeState::Spent)] {
            mark.state = state;
            mark.low_space = false;
            assert_eq!(mark.to_bytes()[2..4], [number, 0]);
            assert_eq!(MergeMark::parse(&mark.to_bytes(), 0).unwrap(), mark);
        }
    }

    #[test]
    fn literal_merge_request() {
        let named = [1, 0, 0, 0, 4, 0, 0, 0, b't', 0xC3, 0xA4, b'.'];
        let request = MergeRequest { name: Some("tä.".into()) };
        assert_eq!(MergeRequest::parse(&named, 0).unwrap(), request);
        assert_eq!(request.to_bytes(), named);
        let plain = MergeRequest { name: None };
        assert_eq!(MergeRequest::parse(&named[..4], 0).unwrap_err().offset(), Some(0));
        assert_eq!(plain.to_bytes(), [1, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(MergeRequest::parse(&plain.to_bytes(), 0).unwrap(), plain);
    }

    #[test]
    fn a_requested_name_leads_nowhere_else() {
        for name in ["..", ".", "../a.vhdx", "/etc/passwd", "a\\b", "c:x", "a\0"] {
            let request = MergeRequest { name: Some(name.into()) };
            let error = MergeRequest::parse(&request.to_bytes(), 100).unwrap_err();
            assert_eq!((error.code(), error.offset()), ("mark.unreadable", Some(108)), "{name}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_said_with_its_place() {
        let good = MergeMark {
            state: MergeState::Spent,
            other: Uuid::nil(),
            name: "name".into(),
            low_space: false,
            moved: None,
        };
        let good = good.to_bytes();
        let with = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            bytes
        };
        for (bytes, at) in [
            (with(0, 2), 100),
            (with(2, 0), 102),
            (with(2, 4), 102),
            (with(4, 5), 104),
            (with(7, 255), 104),
            (with(25, 0xFF), 124),
            (good[..23].to_vec(), 100),
            (Vec::new(), 100),
        ] {
            let error = MergeMark::parse(&bytes, 100).unwrap_err();
            assert_eq!((error.code(), error.offset()), ("mark.unreadable", Some(at)));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_mark_or_none(mut bytes in prop::collection::vec(any::<u8>(), 0..60), is_known: bool) {
            if is_known && bytes.len() > 1 {
                bytes[..2].copy_from_slice(&[1, 0]);
            }
            if let Ok(mark) = CheckpointMark::parse(&bytes, 0) {
                prop_assert_eq!(CheckpointMark::parse(&mark.to_bytes(), 0).unwrap(), mark);
            }
            if let Ok(mark) = MergeMark::parse(&bytes, 0) {
                prop_assert_eq!(MergeMark::parse(&mark.to_bytes(), 0).unwrap(), mark);
            }
            if let Ok(mark) = MergeRequest::parse(&bytes, 0) {
                prop_assert_eq!(MergeRequest::parse(&mark.to_bytes(), 0).unwrap(), mark);
            }
        }
    }
}
