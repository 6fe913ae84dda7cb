//! Logs of any entries: a replay is the naive reader's, in memory and in the file, and a second one changes nothing.

use std::sync::Arc;

use avhdx::ops::{Check, Severity};
use avhdx::storage::Storage;
use avhdx::{Budget, OpenOptions};
use avhdx_testkit::build::{Block, Data, Descriptor, Image, Layout, LogEntry, SECTOR, Tail};
use avhdx_testkit::bytes::difference;
use avhdx_testkit::naive::{Chain, Layer};
use uuid::Uuid;

use crate::TABLES;
use crate::common::ReadOnly;
use crate::common::sparse::{Bounds, Sparse};
use crate::compare::{Errors, agrees, is_beyond_naive};
use crate::input::Input;
use crate::reading::{is_told, read_all};

const MIB: u64 = 1 << 20;
const GUID: Uuid = Uuid::from_u128(0x1ec0_0000_0000_4000_8000_0000_0000_0002);
const OTHER: Uuid = Uuid::from_u128(0x1ec0_0000_0000_4000_8000_0000_0000_0003);
const FIRST: [u64; 4] = [1, 2, (1 << 32) - 2, u64::MAX - 3];
/// How much of the start of the file is compared: all structures and blocks.
const FRONT: u64 = 6 * MIB;

pub fn run(input: &mut Input<'_>) {
    let mut image = Image::dynamic(2 * MIB);
    image.put(0, Block::full(Data::Bytes(vec![1; 9000])));
    let layout = image.layout();
    let sound = image.to_bytes();
    image.set_log_guid(GUID);
    let mut number = *input.pick(&FIRST);
    for n in 0..1 + input.below(6) {
        image.log.push(entry(number, n as usize, &layout, &sound, input));
        number = match input.below(8) {
            7 => input.number().max(1),
            6 => number.saturating_add(2),
            5 => number,
            _ => number.saturating_add(1),
        };
    }
    if input.chance(1, 8) {
        image.file_length = Some(layout.file_length + input.below(8) * 4096);
    }
    judge(Arc::new(image.to_bytes()), input);
}

fn entry(
    number: u64,
    index: usize,
    layout: &Layout,
    sound: &[u8],
    input: &mut Input<'_>,
) -> LogEntry {
    let descriptors = (0..input.below(5)).map(|_| descriptor(layout, sound, input)).collect();
    let mut entry = LogEntry::new(number, descriptors);
    if input.chance(1, 8) {
        entry.guid = Some(OTHER);
    }
    entry.tail = match input.below(6) {
        3 => Tail::Own,
        4 => Tail::Entry(input.below(index as u64 + 1) as usize),
        5 => Tail::At(input.number() as u32),
        _ => Tail::First,
    };
    let length = |input: &mut Input<'_>| match input.below(8) {
        5 => Some(layout.file_length),
        6 => Some(input.below(12) * MIB),
        7 => Some(input.number()),
        _ => None,
    };
    entry.flushed_file_offset = length(input);
    entry.last_file_offset = length(input);
    if input.chance(1, 8) {
        // Also near the end of the ring, which an entry wraps at.
        let sector = if input.chance(1, 2) { 255 - input.below(4) } else { input.below(256) };
        entry.position = Some(sector as u32 * SECTOR as u32);
    }
    match input.below(16) {
        13 => entry = entry.torn(input.below(4) as u32),
        14 => entry.descriptor_count = Some(input.number() as u32),
        15 => entry.entry_length = Some(input.number() as u32),
        _ => {}
    }
    entry
}

fn descriptor(layout: &Layout, sound: &[u8], input: &mut Input<'_>) -> Descriptor {
    let places =
        ["bat", "metadata_table", "metadata", "payload:0", "region_table2", "log", "header1"];
    let at = match input.below(12) {
        n @ 0..7 => {
            let range = layout.get(places[n as usize]);
            range.start + input.below((range.end - range.start) / 4096) * 4096
        }
        7 => input.number(),
        // Behind all blocks.
        _ => layout.needed_length + input.below(600) * 4096,
    };
    let is_kept = at.checked_add(4096).is_some_and(|end| end <= sound.len() as u64);
    let bytes = match input.below(4) {
        0..2 if is_kept => sound[at as usize..][..4096].to_vec(),
        _ => (0..4096_u64).map(|n| ((n / 8).wrapping_mul(at >> 12 | 1) >> 3) as u8).collect(),
    };
    let number = input.chance(1, 24).then(|| input.number());
    match input.below(8) {
        0..4 => Descriptor::Data {
            file_offset: at,
            bytes,
            sequence_number: number,
            sector_sequence: input.chance(1, 24).then(|| input.number()),
        },
        7 if input.chance(1, 4) => {
            let mut raw = [0; 32];
            let bytes = input.bytes(32);
            raw[..bytes.len()].copy_from_slice(&bytes);
            Descriptor::Raw(raw)
        }
        _ => {
            let length = match input.below(4) {
                0 => input.number(),
                _ => input.below(300) * 4096,
            };
            Descriptor::Zero { file_offset: at, length, sequence_number: number }
        }
    }
}

fn options() -> OpenOptions {
    OpenOptions::new().budget(Budget::new(TABLES)).orphan_children(true)
}

fn errors_of(file: &Arc<Sparse>) -> Option<Vec<&'static str>> {
    let read = ReadOnly(Arc::clone(file) as Arc<dyn Storage>);
    match Check::new().options(options()).run_file(Arc::new(read)) {
        Ok(report) => {
            let errors = report.findings.iter().filter(|it| it.severity == Severity::Error);
            Some(errors.map(|finding| finding.code).collect())
        }
        Err(error) => {
            is_told(&error);
            None
        }
    }
}

fn judge(bytes: Arc<Vec<u8>>, input: &mut Input<'_>) {
    let file = Sparse::new("log", Arc::clone(&bytes), Bounds::default());
    let naive = Layer::from_bytes(bytes.to_vec());
    let errors = errors_of(&file);
    let read = ReadOnly(Arc::clone(&file) as Arc<dyn Storage>);
    let chain = options().open_file(Arc::new(read)).and_then(|it| options().open_chain(it));
    let is_read = chain.is_ok();
    match chain {
        Ok(chain) if is_beyond_naive(&chain) => read_all(&chain),
        Ok(chain) => {
            let log = chain.tip().info().log;
            let naive =
                naive.clone().unwrap_or_else(|why| panic!("it opens with {log:?}, but {why}"));
            agrees(&chain, &Chain(vec![naive]), 0, &[], Errors::Allowed, input);
        }
        Err(error) => is_told(&error),
    }
    let write = || options().writable(true).open_file(Arc::clone(&file) as Arc<dyn Storage>);
    match write() {
        Ok(image) => {
            assert!(is_read, "it opens for writing alone");
            image.close().expect("a close");
        }
        Err(error) => {
            is_told(&error);
            assert!(file.is_as_before(), "refused, and not as before: {error}");
            return;
        }
    }
    let replayed = front(&file);
    let expected = match naive {
        Ok(naive) => naive.get(0, FRONT).expect("bytes"),
        Err(_) => replayed.clone(),
    };
    // The headers and the log are the session's own.
    for range in [0..0x1_0000, 0x3_0000..MIB as usize, 2 * MIB as usize..FRONT as usize] {
        let differs = difference(&replayed[range.clone()], &expected[range.clone()]);
        assert_eq!(differs, None, "the replay differs from {:#x} on", range.start);
    }
    let len = file.len().expect("a length");
    file.take_done();
    drop(write().unwrap_or_else(|error| panic!("to be written again: {error}")));
    let done = file.take_done();
    let has_moved =
        done.writes.iter().any(|range| range.start >= 2 * MIB) || !done.zeroed.is_empty();
    assert!(!has_moved && file.len().expect("a length") == len, "replayed twice: {done:?}");
    assert!(front(&file) == replayed || done.writes.iter().all(|range| range.end <= 2 * MIB));
    assert_eq!(errors_of(&file), errors, "a check before and after the replay");
}

fn front(file: &Sparse) -> Vec<u8> {
    let mut bytes = vec![0; FRONT as usize];
    file.read_at(&mut bytes, 0).expect("a file in memory");
    bytes
}
