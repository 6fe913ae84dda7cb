//! Kinds of trouble that only a repair cares about, and those that a check tells from harmless ones.

use avhdx_testkit::build::{Block, Checksum, Data, Descriptor, LogEntry, Tail, state};
use avhdx_testkit::mutate::{put, put_u8, put_u32, put_u64};
use uuid::Uuid;

use super::corruptions::Change::{Bytes, Image as Of};
use super::corruptions::{Corruption, Start};

const MIB: u64 = 1 << 20;
const OTHER: Uuid = Uuid::from_u128(0x5678);

/// Further kinds, with the codes of errors and warnings.
pub fn more() -> Vec<Corruption> {
    use Start::{Child, Dirty, Dynamic};
    vec![
        (
            "the sum of the header in use",
            Dynamic,
            Of(|i| i.headers[1].as_mut().unwrap().checksum = Checksum::Wrong),
            &["~header.checksum"],
        ),
        (
            "the header in use, of an image with a pending log that only it names",
            Dirty,
            Of(|i| {
                i.headers[1].as_mut().unwrap().checksum = Checksum::Wrong;
                i.headers[0].as_mut().unwrap().log_guid = Uuid::nil();
            }),
            &["~header.checksum"],
        ),
        (
            "the header not in use, of an image with a pending log",
            Dirty,
            Of(|i| i.headers[0].as_mut().unwrap().checksum = Checksum::Wrong),
            &["~header.checksum"],
        ),
        ("a pending log", Dirty, Of(|_| {}), &[]),
        (
            "a pending log whose end was cut off by a crash",
            Dirty,
            Of(|i| {
                let number = i.log[0].sequence_number;
                i.log.push(LogEntry::new(number + 1, vec![Descriptor::zero(3 * MIB, 4096)]));
                i.log[1].checksum = Checksum::Wrong;
            }),
            &[],
        ),
        (
            "a log GUID whose bytes lie in the log, but in no entry",
            Dynamic,
            Bytes(|b, l| {
                for at in [64 << 10, 128 << 10] {
                    put(b, at + 48, &OTHER.to_bytes_le());
                }
                put(b, l.get("log").start + 12345, &OTHER.to_bytes_le());
            }),
            &["log.no-entries", "~log.not-replayed"],
        ),
        (
            "a log GUID without entries, and a damaged table",
            Dynamic,
            Of(|i| {
                i.set_log_guid(OTHER);
                i.bat_override.insert(1, 1 << 40 | 6);
            }),
            &["bat.payload-place", "log.no-entries", "~log.not-replayed"],
        ),
        (
            "reserved bytes of the header that is not in use",
            Dynamic,
            Bytes(|b, l| put_u8(b, l.get("header1").start + 90, 7)),
            &["~header.reserved"],
        ),
        (
            "the signature of the file and one header",
            Dynamic,
            Of(|i| {
                i.signature[0] = b'V';
                i.headers[0].as_mut().unwrap().checksum = Checksum::Wrong;
            }),
            &["~header.checksum", "identifier.signature"],
        ),
        (
            "a region table and a header",
            Dynamic,
            Of(|i| {
                i.region_tables[1].as_mut().unwrap().checksum = Checksum::Wrong;
                i.headers[0].as_mut().unwrap().checksum = Checksum::Wrong;
            }),
            &["region.checksum", "~header.checksum"],
        ),
        (
            "both region tables",
            Dynamic,
            Of(|i| {
                for table in i.region_tables.iter_mut().flatten() {
                    table.checksum = Checksum::Wrong;
                }
            }),
            &["region.checksum"],
        ),
        (
            "region tables with other places",
            Dynamic,
            Of(|i| {
                let table = i.region_tables[1].as_mut().unwrap();
                table.entries[0].offset = Some(6 * MIB);
            }),
            &["region.copies-differ"],
        ),
        (
            "entries behind the last block",
            Dynamic,
            Bytes(|b, l| put_u64(b, l.get("bat").start + 8 * 5000, 9 << 20 | 6)),
            &[],
        ),
        (
            "a sector bitmap with stray bits",
            Child,
            Of(|i| {
                let mut full = Block::full(Data::Pattern(4));
                full.bitmap = vec![true; 9];
                i.put(1, full);
            }),
            &[],
        ),
        (
            "a partially present block with all bits",
            Child,
            Of(|i| {
                i.put(0, Block::partial(Data::Pattern(1), vec![true; 4096]));
            }),
            &[],
        ),
        (
            "a partially present block without a bit, of zeros",
            Child,
            Of(|i| {
                i.put(3, Block::partial(Data::Zeros, vec![false; 4096]));
            }),
            &[],
        ),
        (
            "a partially present block without a bit, with data",
            Child,
            Of(|i| {
                i.put(3, Block::partial(Data::Pattern(9), vec![false; 4096]));
            }),
            &["~bitmap.hidden"],
        ),
        (
            "a block and its neighbour that overlap in a child",
            Child,
            Of(|i| {
                i.bat_override.insert(i.bat_index(2), (i.layout().payload[&1] + MIB) | 6);
            }),
            &["bat.overlap"],
        ),
        (
            "three blocks in one place, one of them unmapped",
            Dynamic,
            Of(|i| {
                let place = i.layout().payload[&0];
                i.bat_override.insert(1, place | 6);
                i.bat_override.insert(3, place | 3);
            }),
            &["bat.duplicate"],
        ),
        (
            "a lost block and two in one place",
            Dynamic,
            Of(|i| {
                let place = i.layout().payload[&0];
                i.bat_override.insert(1, place | 6);
                i.bat_override.insert(3, 1 << 40 | 6);
            }),
            &["bat.duplicate", "bat.payload-place"],
        ),
        (
            "an idle place of a block that is not present",
            Dynamic,
            Of(|i| {
                i.put(1, Block::full(Data::Pattern(5)).with_state(state::NOT_PRESENT));
            }),
            &["~bat.idle-place"],
        ),
        (
            "unused zeros at the end of the file",
            Dynamic,
            Of(|i| i.file_length = Some(i.layout().needed_length + 5 * MIB)),
            &[],
        ),
        (
            "unused data at the end of the file",
            Dynamic,
            Bytes(|b, _| {
                let len = b.len();
                b.resize(len + (3 << 20), 0);
                b[len + (1 << 20) + 77] = 1;
            }),
            &[],
        ),
        ("unused space between blocks", Dynamic, Of(|i| i.gap = 3 * MIB), &[]),
        (
            "a file that ends within the last MiB",
            Dynamic,
            Of(|i| {
                i.size = 5 * MIB;
                i.file_length = Some(i.layout().needed_length - MIB + 512);
            }),
            &["~bat.truncated", "~file.length"],
        ),
        (
            "a file that ends within a block",
            Dynamic,
            Of(|i| i.file_length = Some(i.layout().needed_length - MIB - 1024)),
            &["bat.truncated", "~file.length"],
        ),
        (
            "a reserved byte in an entry of the metadata table",
            Dynamic,
            Bytes(|b, l| put_u32(b, l.get("metadata_entry:disk_id").start + 28, 77)),
            &["~metadata.reserved"],
        ),
        (
            "a stale path besides one that leads to the parent",
            Child,
            Of(|i| {
                i.locator.set("absolute_win32_path", "\\\\?\\C:\\vm\\l0.vhdx");
            }),
            &[],
        ),
        (
            "a recorded path to another name of the parent's folder",
            Child,
            Of(|i| {
                i.parent_path("..\\gone\\parent.vhdx");
            }),
            &["parent.missing"],
        ),
        (
            "a torn header and a tail to cut off",
            Dynamic,
            Of(|i| {
                i.headers[0].as_mut().unwrap().checksum = Checksum::Wrong;
                i.file_length = Some(i.layout().needed_length + 2 * MIB);
            }),
            &["~header.checksum"],
        ),
        (
            "a pending log and reserved bits of an entry that it holds",
            Dirty,
            Of(|i| {
                i.log.iter_mut().for_each(|e| e.tail = Tail::Own);
                i.bat_override.insert(3, 1 << 3);
            }),
            &[],
        ),
    ]
}
