//! Pending logs: found, validated and replayed in memory as the specification says, without writing to the file.
//!
//! Every storage here panics when it is written to.

use std::sync::Arc;

use avhdx::ops::Check;
use avhdx::storage::{MemStorage, Storage};
use avhdx::{
    DiffChain, Disk, DiskExt, ErrorKind, LogPolicy, LogState, OpenOptions, Source, VhdxFile,
};
use avhdx_testkit::build::{
    Block, Checksum, Data, Descriptor, Image, LogEntry, SECTOR, Tail, random_chain, write_chain,
};
use avhdx_testkit::images::sha256_file;
use avhdx_testkit::naive;
use avhdx_testkit::qemu::Qemu;
use proptest::prelude::*;
use uuid::Uuid;

use crate::common::disk::{flat, reads_as};
use crate::common::oracle::agrees;
use crate::common::{Counting, MIB, memory, open_images, open_stack};

const GUID: Uuid = Uuid::from_u128(0x1ec0_0000_0000_4000_8000_0000_0000_0001);
const OLD: Uuid = Uuid::from_u128(0x1ec0_0000_0000_4000_8000_0000_0000_0002);
const LAST: u32 = (MIB as usize - SECTOR) as u32;

/// An image whose table is empty in the file, and the image once its log is replayed.
fn before_and_after() -> (Image, Image) {
    let before = Image::dynamic(8 * MIB);
    let mut after = before.clone();
    after.put(1, Block::full(Data::Pattern(1))).put(6, Block::full(Data::Pattern(2)));
    (before, after)
}

/// An image with a pending log, the update that fills its table, and one that empties it.
fn dirty() -> (Image, Descriptor, Descriptor) {
    let (before, after) = before_and_after();
    let image = Image::dirty(&before, &after, GUID, 1);
    let full = image.log[0].descriptors[0].clone();
    let empty = Descriptor::zero(image.layout().get("bat").start, SECTOR as u64);
    (image, full, empty)
}

fn replayed() -> Vec<u8> {
    before_and_after().1.flat(None)
}

/// The image reads as `want`, with this crate and with the naive reader.
fn reads(image: &Image, want: &[u8]) -> DiffChain {
    let chain = agrees(std::slice::from_ref(image));
    assert!(flat(&chain) == want);
    assert!(chain.layers()[0].log_pending);
    chain
}

/// QEMU replays the log with the same result, if it is installed.
fn qemu_reads(image: &Image, want: &[u8]) {
    let Some(qemu) = Qemu::find() else { return };
    let folder = tempfile::tempdir().unwrap();
    let (path, raw) = (folder.path().join("image.vhdx"), folder.path().join("raw"));
    image.write_to(&path);
    qemu.repair(&path);
    qemu.to_raw(&path, &raw);
    assert!(std::fs::read(&raw).unwrap() == want, "as QEMU replays it");
    reads_as(&DiffChain::open(&path).unwrap(), want);
}

fn refused(image: &Image) -> avhdx::Error {
    let error = open_images(OpenOptions::new(), std::slice::from_ref(image)).unwrap_err();
    assert_eq!(error.file(), Some("l0"), "{error}");
    assert!(error.offset().is_some() && error.section().is_some(), "{error}");
    assert!(error.found().is_some() && error.expected().is_some(), "{error}");
    error
}

fn replay_of(chain: &DiffChain) -> (u64, u64, u64, u64) {
    match chain.tip().info().log.state {
        LogState::Replayed { entries, tail_sequence, head_sequence, descriptors, .. } => {
            (entries, tail_sequence, head_sequence, descriptors)
        }
        state => panic!("{state:?}"),
    }
}

#[test]
fn changes_of_the_log_are_read() {
    let (image, ..) = dirty();
    let chain = reads(&image, &replayed());
    assert_eq!(chain.warnings(), []);
    let number = image.log[0].sequence_number;
    assert_eq!(replay_of(&chain), (1, number, number, 1));
    qemu_reads(&image, &replayed());
    // The table in the file is empty: the data came from the log.
    let mut forgotten = image.clone();
    forgotten.set_log_guid(Uuid::nil());
    let chain = agrees(&[forgotten]);
    assert!(flat(&chain) == vec![0; 8 << 20]);
    assert_eq!(chain.tip().info().log.state, LogState::Empty);
    assert!(!chain.layers()[0].log_pending);
}

#[test]
fn policies() {
    let (image, ..) = dirty();
    let open = |policy| open_images(OpenOptions::new().log(policy), std::slice::from_ref(&image));
    assert!(flat(&open(LogPolicy::Replay).unwrap()) == replayed());

    let error = open(LogPolicy::Refuse).unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::LogPending, "log.pending"));
    assert!(error.found().unwrap().contains(&GUID.to_string()), "{error}");
    assert_eq!(error.offset(), Some(MIB));

    let ignored = open(LogPolicy::Ignore).unwrap();
    assert!(flat(&ignored) == vec![0; 8 << 20]);
    assert_eq!(ignored.tip().info().log.state, LogState::Ignored);
    let warnings = ignored.warnings();
    assert_eq!(warnings.len(), 1);
    assert_eq!(warnings[0].code, "log.ignored");
    assert_eq!(warnings[0].layer, Some(ignored.tip().id()));
    assert!(warnings[0].message.contains("IGNORED") && warnings[0].file.contains("l0"));

    // Without a pending log the policies make no difference.
    for policy in [LogPolicy::Replay, LogPolicy::Refuse, LogPolicy::Ignore] {
        let (_, clean) = before_and_after();
        let chain = open_images(OpenOptions::new().log(policy), &[clean]).unwrap();
        assert_eq!((chain.warnings().len(), chain.layers()[0].log_pending), (0, false));
    }
    // The policy applies to parents, too.
    let tip = image.new_child();
    let chain = [image, tip];
    let open = |policy| open_images(OpenOptions::new().log(policy), &chain);
    assert!(flat(&open(LogPolicy::Replay).unwrap()) == replayed());
    let error = open(LogPolicy::Refuse).unwrap_err();
    assert_eq!((error.kind(), error.file()), (ErrorKind::LogPending, Some("l0")));
    assert_eq!(open(LogPolicy::Ignore).unwrap().warnings().len(), 1);
}

#[test]
fn a_file_with_a_log_is_left_as_it_is() {
    let (image, ..) = dirty();
    let tip = image.new_child();
    let folder = tempfile::tempdir().unwrap();
    let paths = write_chain(folder.path(), &[image, tip]);
    let sums = || paths.iter().map(|path| sha256_file(path)).collect::<Vec<_>>();
    let before = sums();
    let chain = DiffChain::open(&paths[1]).unwrap();
    reads_as(&chain, &replayed());
    chain.flush().unwrap();
    let image = VhdxFile::open(&paths[0]).unwrap();
    assert_eq!(image.write_at(&[1], 0).unwrap_err().kind(), ErrorKind::ReadOnly);
    drop((chain, image));
    assert_eq!(sums(), before);
    assert_eq!(crate::common::files_below(folder.path()).len(), 2);
}

#[test]
fn entries_that_wrap_around_the_end_of_the_ring() {
    let (image, full, empty) = dirty();
    // The second entry's header is the ring's last sector, its data the first.
    let mut wraps = image.clone();
    let first = LogEntry::new(41, vec![empty.clone()]).at(LAST - SECTOR as u32);
    wraps.log = vec![first, LogEntry::new(42, vec![full.clone()])];
    assert_eq!(wraps.layout().get("log_entry:1").end, wraps.layout().get("log").end);
    let chain = reads(&wraps, &replayed());
    assert_eq!(replay_of(&chain), (2, 41, 42, 2));
    qemu_reads(&wraps, &replayed());
    // Its second descriptor sector is the first sector of the ring.
    let spare = image.layout().needed_length;
    let mut descriptors: Vec<_> =
        (0..130).map(|n| Descriptor::zero(spare + n * SECTOR as u64, SECTOR as u64)).collect();
    descriptors.push(full);
    wraps.log = vec![LogEntry::new(42, descriptors).at(LAST)];
    reads(&wraps, &replayed());
    // The sequence wraps between two entries.
    let (_, full, _) = dirty();
    wraps.log = vec![LogEntry::new(7, vec![empty]).at(LAST), LogEntry::new(8, vec![full])];
    assert_eq!(replay_of(&reads(&wraps, &replayed())).0, 2);
}

#[test]
fn entries_of_another_guid_count_for_nothing() {
    let (image, full, empty) = dirty();
    let mut stale = image.clone();
    stale.log = vec![
        LogEntry::new(5, vec![full.clone()]),
        LogEntry::new(6, vec![empty.clone()]).guid(OLD),
        LogEntry::new(900, vec![empty.clone()]).guid(OLD).at(64 << 10),
        // Part of an older, larger entry that the first one overwrote.
        LogEntry::new(4, vec![empty.clone()]).guid(OLD).at(512 << 10).torn(1),
    ];
    assert_eq!(replay_of(&reads(&stale, &replayed())), (1, 5, 5, 1));
    qemu_reads(&stale, &replayed());
    // Entries with sequence number zero are ignored, too.
    stale.log[1] = LogEntry::new(0, vec![empty]);
    stale.log[0] = LogEntry::new(u64::MAX, vec![full]);
    assert_eq!(replay_of(&reads(&stale, &replayed())), (1, u64::MAX, u64::MAX, 1));
}

#[test]
fn torn_heads() {
    let (image, full, empty) = dirty();
    let bat = image.layout().get("bat").start;
    let wrong = Descriptor::data(bat, vec![0xFF; SECTOR]);
    let whole = LogEntry::new(1, vec![empty, full.clone()]);
    let mut torn = image.clone();
    for fault in 0..6 {
        let mut head = LogEntry::new(2, vec![wrong.clone()]);
        match fault {
            // Only its first sector reached the disk; only its second.
            0 => head = head.torn(1),
            1 => head.lost = vec![0],
            2 => head.checksum = Checksum::Wrong,
            3 => head.signature = *b"eglo",
            // The checksum is right, but a part is from another time.
            4 => {
                head.descriptors = vec![Descriptor::Data {
                    file_offset: bat,
                    bytes: vec![0xFF; SECTOR],
                    sequence_number: None,
                    sector_sequence: Some(1),
                }];
            }
            _ => {
                head.descriptors = vec![Descriptor::Data {
                    file_offset: bat,
                    bytes: vec![0xFF; SECTOR],
                    sequence_number: Some(1),
                    sector_sequence: None,
                }];
            }
        }
        torn.log = vec![whole.clone(), head];
        assert_eq!(replay_of(&reads(&torn, &replayed())), (1, 1, 1, 2), "fault {fault}");
        if fault < 3 {
            qemu_reads(&torn, &replayed());
        }
    }
    // After a torn entry, only entries whose tail is reachable count.
    torn.log = vec![
        whole.clone(),
        LogEntry::new(2, vec![wrong.clone()]).torn(1),
        LogEntry::new(3, vec![wrong.clone()]),
    ];
    assert_eq!(replay_of(&reads(&torn, &replayed())).0, 1);
    torn.log[2].tail = Tail::Own;
    let error = open_images(OpenOptions::new(), &[torn.clone()]).unwrap().read_at(&mut [0], 0);
    assert!(error.is_err(), "the newest whole run is the wrong one here");
    // Nothing is left if the only entry is torn.
    torn.log = vec![whole.torn(1)];
    assert_eq!(refused(&torn).kind(), ErrorKind::LogWithoutEntries);
}

#[test]
fn a_guid_without_entries_is_an_error_of_its_own() {
    let (image, full, _) = dirty();
    let mut none = image.clone();
    for log in [
        vec![],
        vec![LogEntry::new(7, vec![full.clone()]).guid(OLD)],
        vec![LogEntry::new(0, vec![full])],
    ] {
        none.log = log;
        let error = refused(&none);
        assert_eq!((error.kind(), error.code()), (ErrorKind::LogWithoutEntries, "log.no-entries"));
        assert_eq!(error.offset(), Some(MIB));
        assert!(error.expected().unwrap().contains(&GUID.to_string()), "{error}");
        // Nothing was applied, so that the file holds the last complete state.
        let options = OpenOptions::new().log(LogPolicy::Ignore);
        assert!(flat(&open_images(options, &[none.clone()]).unwrap()) == vec![0; 8 << 20]);
    }
}

#[test]
fn a_log_without_an_active_sequence_is_damage() {
    let (image, full, empty) = dirty();
    let mut broken = image.clone();
    for tail in [Tail::At(512 << 10), Tail::At(4096), Tail::At(u32::MAX - 4095), Tail::At(100)] {
        broken.log = vec![LogEntry::new(7, vec![full.clone()]).tail(tail)];
        let error = refused(&broken);
        let code = match tail {
            // Such a tail makes the entry itself invalid.
            Tail::At(100) | Tail::At(0xFFFF_F000) => "log.no-entries",
            _ => "log.no-active-sequence",
        };
        assert_eq!(error.code(), code, "{tail:?}");
    }
    // The entry at the tail exists, but not in the head's run.
    broken.log = vec![
        LogEntry::new(5, vec![empty]).tail(Tail::At(64 << 10)),
        LogEntry::new(7, vec![full]).tail(Tail::Entry(0)),
    ];
    let error = refused(&broken);
    assert_eq!((error.kind(), error.code()), (ErrorKind::Damaged, "log.no-active-sequence"));
    assert_eq!(error.section(), Some("2.3.3"));
}

#[test]
fn of_several_runs_the_newest_complete_one_counts() {
    let (image, full, empty) = dirty();
    let mut runs = image.clone();
    let own =
        |number, update: &Descriptor| LogEntry::new(number, vec![update.clone()]).tail(Tail::Own);
    runs.log = vec![own(1, &empty).at(128 << 10), own(7, &full).at(0)];
    assert_eq!(replay_of(&reads(&runs, &replayed())), (1, 7, 7, 1));
    runs.log = vec![own(8, &full).at(128 << 10), own(7, &empty).at(0)];
    assert_eq!(replay_of(&reads(&runs, &replayed())), (1, 8, 8, 1));
    // The newest run lost its tail and is ignored; the one before it is used.
    runs.log.push(LogEntry::new(90, vec![empty.clone()]).at(256 << 10).tail(Tail::At(200 << 10)));
    assert_eq!(replay_of(&reads(&runs, &replayed())), (1, 8, 8, 1));
    // Entries before the head's tail were applied long ago.
    runs.log = vec![
        LogEntry::new(1, vec![full.clone()]),
        LogEntry::new(2, vec![empty.clone()]),
        LogEntry::new(3, vec![full.clone()]),
        LogEntry::new(4, vec![]).tail(Tail::Entry(2)),
    ];
    assert_eq!(replay_of(&reads(&runs, &replayed())), (2, 3, 4, 1));
    // In order, later changes over earlier ones.
    runs.log = vec![
        LogEntry::new(1, vec![full.clone(), empty.clone()]),
        LogEntry::new(2, vec![full.clone()]),
    ];
    reads(&runs, &replayed());
    runs.log = vec![LogEntry::new(1, vec![full.clone()]), LogEntry::new(2, vec![full, empty])];
    reads(&runs, &vec![0; 8 << 20]);
    // A gap in the numbers ends a run.
    let (_, full, empty) = dirty();
    runs.log = vec![own(1, &empty), own(3, &full)];
    assert_eq!(replay_of(&reads(&runs, &replayed())).0, 1);
}

/// What the library says of damage in the middle of a log: the file offset, how many newer entries are intact, the
/// number of the newest.
fn gap_of(image: &Image) -> Option<(u64, u64, u64)> {
    let chain = open_images(OpenOptions::new(), std::slice::from_ref(image)).unwrap();
    let gap = match chain.tip().info().log.state {
        LogState::Replayed { gap, .. } => gap,
        state => panic!("{state:?}"),
    };
    let warnings = chain.warnings();
    assert_eq!(warnings.iter().any(|warning| warning.code == "log.gap"), gap.is_some());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image.vhdx");
    image.write_to(&path);
    let report = Check::new().run(&path).unwrap();
    assert!(report.is_sound(), "{:#?}", report.findings);
    assert_eq!(report.is_doubtful(), gap.is_some(), "{:#?}", report.findings);
    let found: Vec<_> = report.findings.iter().filter(|found| found.code == "log.gap").collect();
    let offsets: Vec<_> = found.iter().filter_map(|found| found.offset).collect();
    assert_eq!(offsets, gap.iter().map(|gap| gap.offset.get()).collect::<Vec<_>>());
    gap.map(|gap| (gap.offset.get(), gap.newer_entries, gap.newest_sequence))
}

#[test]
fn intact_entries_behind_a_damaged_one_are_not_lost_in_silence() {
    let (image, full, empty) = dirty();
    let mut log = image.clone();
    let entry = |number| LogEntry::new(number, vec![full.clone()]);
    let length = entry(1).length() as u64;
    let damaged = |at: usize| {
        let mut log = image.clone();
        log.log = (1..=6).map(entry).collect();
        log.log[at].checksum = Checksum::Wrong;
        log
    };
    // In the middle, and one before the end; the last entry may be one that a crash cut off.
    assert_eq!(gap_of(&damaged(2)), Some((MIB + 2 * length, 3, 6)));
    assert_eq!(gap_of(&damaged(4)), Some((MIB + 4 * length, 1, 6)));
    assert_eq!(gap_of(&damaged(5)), None);
    // The damaged entry is the tail of those behind it.
    let mut tail = damaged(1);
    tail.log[2..].iter_mut().for_each(|entry| entry.tail = Tail::Entry(1));
    assert_eq!(gap_of(&tail), Some((MIB + length, 4, 6)));
    // Two are damaged: the first ends the replay.
    let mut two = damaged(1);
    two.log[3].signature = *b"eglo";
    assert_eq!(gap_of(&two), Some((MIB + length, 3, 6)));
    // One never reached the disk.
    let mut lost = damaged(2);
    lost.log[2] = entry(3).torn(0);
    assert_eq!(gap_of(&lost), Some((MIB + 2 * length, 3, 6)));
    // Behind the end of the ring, and over it.
    let mut wraps = damaged(2);
    wraps.log[0].position = Some(LAST - 3 * SECTOR as u32);
    assert_eq!(wraps.layout().get("log_entry:2").start, MIB);
    assert_eq!(gap_of(&wraps), Some((MIB, 3, 6)));

    // An entry of the lap before is whole, and the oldest that the newest ones need is not: a replay goes back to the
    // lap before, and the damage is not where its entry ends.
    let old = |number| LogEntry::new(number, vec![empty.clone()]).tail(Tail::Own);
    log.log = vec![old(2).at(512 << 10), old(3), entry(21).at(0), entry(22), entry(23)];
    log.log[2].checksum = Checksum::Wrong;
    log.log[3..].iter_mut().for_each(|entry| entry.tail = Tail::Entry(2));
    assert_eq!(gap_of(&log), Some((MIB, 2, 23)));
    // Remains of earlier laps behind the head, in whole and in part, are no gap; nor are those of another log.
    log.log = vec![
        entry(21).at(0),
        entry(22),
        LogEntry::new(23, vec![full.clone()]).torn(1),
        old(3).at(128 << 10),
        old(4).at(256 << 10),
        LogEntry::new(90, vec![empty.clone()]).guid(OLD),
    ];
    assert_eq!(gap_of(&log), None);
}

#[test]
fn a_writer_is_warned_before_it_replays_a_damaged_log() {
    let (image, full, _) = dirty();
    let mut image = image;
    image.log = (1..=4).map(|number| LogEntry::new(number, vec![full.clone()])).collect();
    image.log[1].checksum = Checksum::Wrong;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image.vhdx");
    image.write_to(&path);
    let opened = OpenOptions::new().writable(true).open(&path).unwrap();
    let warnings = opened.warnings();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert_eq!(warnings[0].code, "log.gap");
    assert!(warnings[0].message.contains("2 intact entries up to 4"), "{}", warnings[0]);
    assert!(warnings[0].message.contains("lost"), "{}", warnings[0]);
    drop(opened);
    let chain = DiffChain::open(&path).unwrap();
    assert_eq!((chain.tip().info().log.state, chain.warnings()), (LogState::Empty, Vec::new()));
}

#[test]
fn changes_past_the_end_of_the_file() {
    // The bitmap block and the last payload block of this child never reached the file; the log has
    // the only page of the bitmap that is not zero.
    let mut base = Image::dynamic(2 * MIB);
    (0..2).for_each(|b| _ = base.put(b, Block::full(Data::Pattern(50 + b))));
    let mut after = base.new_child();
    let spare = after.layout().needed_length;
    after.put(0, Block::partial_runs(Data::Pattern(1), &[(3, 4), (9, 1)]).at(spare));
    after.put(1, Block::full(Data::Zeros).at(spare + 2 * MIB));
    after.bitmap_at.insert(0, spare + MIB);
    let mut before = after.clone();
    before.blocks.clear();
    let mut image = Image::dirty(&before, &after, GUID, 9);
    image.file_length = Some(spare + MIB);
    assert!(image.log[0].descriptors.len() == 2);
    let chain = agrees(&[base.clone(), image.clone()]);
    assert!(flat(&chain) == after.flat(Some(&base.flat(None))));
    assert_eq!(chain.layers()[0].file_len, spare + 3 * MIB, "as long as last_file_offset says");

    // If the head does not record the length, the last block is missing.
    image.log[0].last_file_offset = Some(spare + 2 * MIB);
    let chain = open_images(OpenOptions::new(), &[base, image]).unwrap();
    assert_eq!(chain.read_at(&mut [0], MIB).unwrap_err().kind(), ErrorKind::Damaged);
}

#[test]
fn zero_descriptors() {
    let (image, full, empty) = dirty();
    let layout = image.layout();
    let bat = layout.get("bat");
    let mut zeroed = image.clone();
    // The whole table, of which every entry in the file is wrong, and then one page of it.
    zeroed.patches = vec![(bat.start, vec![0xFF; MIB as usize])];
    zeroed.log = vec![LogEntry::new(1, vec![Descriptor::zero(bat.start, MIB), full.clone()])];
    reads(&zeroed, &replayed());
    // A length of zero changes nothing. Then more than one page, and part of an earlier change.
    zeroed.log = vec![LogEntry::new(
        1,
        vec![
            Descriptor::zero(bat.start, MIB),
            full.clone(),
            Descriptor::zero(bat.start, 0),
            Descriptor::zero(bat.start + SECTOR as u64, 2 * SECTOR as u64),
        ],
    )];
    reads(&zeroed, &replayed());
    zeroed.log.push(LogEntry::new(2, vec![empty]));
    reads(&zeroed, &vec![0; 8 << 20]);
    // Over payload: large, and past the end of the file.
    let payload = *layout.payload.values().min().unwrap();
    let mut over = image.clone();
    over.log = vec![LogEntry::new(1, vec![full, Descriptor::zero(payload, 1 << 40)])];
    let chain = open_images(OpenOptions::new(), &[over]).unwrap();
    assert!(flat(&chain) == vec![0; 8 << 20]);
    assert_eq!(chain.layers()[0].file_len, payload + (1 << 40));
}

#[test]
fn several_sectors_of_descriptors() {
    let (image, full, empty) = dirty();
    let spare = image.layout().needed_length;
    for count in [124, 125, 126, 252, 253, 300, 20_000] {
        let mut many = image.clone();
        let zeros = (0..count).map(|n| Descriptor::zero(spare + n * SECTOR as u64, SECTOR as u64));
        let updates: Vec<_> =
            [empty.clone()].into_iter().chain(zeros).chain([full.clone()]).collect();
        many.log = vec![LogEntry::new(9, updates)];
        let chain = open_images(OpenOptions::new(), &[many]).unwrap();
        assert!(flat(&chain) == replayed(), "{count} descriptors");
        assert_eq!(replay_of(&chain).3, count + 2);
        assert_eq!(chain.layers()[0].file_len, spare + count * SECTOR as u64);
    }
}

#[test]
fn a_file_shorter_than_the_log_knew_it_is_truncated() {
    let (image, ..) = dirty();
    let mut cut = image.clone();
    let len = image.layout().file_length;
    cut.log[0].flushed_file_offset = Some(len + MIB);
    let error = refused(&cut);
    assert_eq!((error.kind(), error.code()), (ErrorKind::Damaged, "log.truncated-file"));
    assert_eq!(error.found(), Some(&*format!("{len} bytes")));
    assert!(error.expected().unwrap().contains(&(len + MIB).to_string()), "{error}");
    assert_eq!(error.offset(), Some(MIB + 48));
    cut.log[0].flushed_file_offset = Some(len);
    reads(&cut, &replayed());
    cut.log[0].flushed_file_offset = Some(u64::MAX);
    assert_eq!(refused(&cut).code(), "log.truncated-file");
    // Only the newest entry's value applies.
    let (image, full, empty) = dirty();
    let mut shrunk = image.clone();
    shrunk.log = vec![LogEntry::new(1, vec![empty]), LogEntry::new(2, vec![full])];
    shrunk.log[0].flushed_file_offset = Some(len + MIB);
    reads(&shrunk, &replayed());
}

#[test]
fn versions_of_the_log() {
    let (mut image, ..) = dirty();
    image.headers.iter_mut().flatten().for_each(|header| header.log_version = 1);
    let error = refused(&image);
    assert_eq!((error.kind(), error.code()), (ErrorKind::Unsupported, "header.log-version"));
    assert_eq!((error.found(), error.expected()), (Some("1"), Some("0")));
    // Without a log GUID the log version does not matter.
    image.set_log_guid(Uuid::nil());
    agrees(&[image]);
}

#[test]
fn misplaced_logs() {
    let (image, ..) = dirty();
    let with = |offset, length| {
        let mut image = image.clone();
        for header in image.headers.iter_mut().flatten() {
            (header.log_offset, header.log_length) = (Some(offset), Some(length));
        }
        let error = refused(&image);
        assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
        error.code()
    };
    assert_eq!(with(0, 1 << 20), "log.place");
    assert_eq!(with(MIB, 0), "log.place");
    assert_eq!(with(1 << 40, 1 << 20), "log.place");
    assert_eq!(with(!0 << 20, 1 << 20), "log.place");
    assert_eq!(with(MIB, !0 << 20), "log.place");
    assert_eq!(with(MIB + 512, 1 << 20), "header.log-offset");
    assert_eq!(with(MIB, 4096), "header.log-length");
    // A log that overlaps a region.
    assert_eq!(with(MIB, 2 << 20), "region.overlap");
}

/// If the log holds payload, it is at no place in the file, but can be read.
#[test]
fn payload_that_lies_in_the_log() {
    let (_, mut image) = before_and_after();
    let at = image.layout().payload[&1];
    let over = vec![0x5A; SECTOR];
    image.log = vec![LogEntry::new(7, vec![Descriptor::data(at + 8192, over.clone())])];
    image.set_log_guid(GUID);
    let mut want = replayed();
    want[MIB as usize + 8192..][..SECTOR].copy_from_slice(&over);
    let chain = open_images(OpenOptions::new(), std::slice::from_ref(&image)).unwrap();
    reads_as(&chain, &want);
    reads_as(&chain.tip(), &want);
    for disk in [&chain as &dyn Disk, &chain.tip()] {
        let before = disk.next_extent(MIB..MIB + 8192).unwrap().unwrap();
        assert!(matches!(before.source, Source::Data { at: place, .. } if place.get() == at));
        assert_eq!(before.range, MIB..MIB + 8192);
        for range in [MIB..MIB + 8193, MIB + 8192..MIB + 8193, MIB + 12287..2 * MIB, MIB..8 * MIB] {
            let error = disk.next_extent(range.clone()).unwrap_err();
            assert_eq!((error.kind(), error.code()), (ErrorKind::LogOverlay, "extent.log-overlay"));
            assert_eq!(error.offset(), Some(at + 8192 + (range.start.saturating_sub(MIB + 8192))));
        }
        let after = disk.next_extent(MIB + 12288..2 * MIB).unwrap().unwrap();
        assert!(
            matches!(after.source, Source::Data { at: place, .. } if place.get() == at + 12288)
        );
        let walk: Vec<_> = disk.extents(0..8 * MIB).collect();
        assert_eq!(walk.len(), 2, "what comes before it, and the error");
        assert_eq!(walk[1].as_ref().unwrap_err().kind(), ErrorKind::LogOverlay);
    }
    // The first eight bytes and the last four are in the descriptor.
    let mut marked = vec![0; SECTOR];
    marked[..8].fill(1);
    marked[8..4092].fill(2);
    marked[4092..].fill(3);
    image.log = vec![LogEntry::new(7, vec![Descriptor::data(at, marked.clone())])];
    let chain = open_images(OpenOptions::new(), &[image]).unwrap();
    want = replayed();
    want[MIB as usize..][..SECTOR].copy_from_slice(&marked);
    reads_as(&chain, &want);
    for from in [0, 1, 6, 7, 8, 9, 4090, 4091, 4092, 4095] {
        for len in [1, 2, 3, 5, 4086] {
            let mut bytes = vec![0; len];
            chain.read_at(&mut bytes, MIB + from).unwrap();
            assert!(bytes == want[(MIB + from) as usize..][..len], "{len} bytes from {from}");
        }
    }
}

#[test]
fn descriptors_with_invalid_targets() {
    let (image, full, _) = dirty();
    let layout = image.layout();
    let log = layout.get("log");
    let with = |descriptor: Descriptor| {
        let mut hostile = image.clone();
        hostile.log = vec![LogEntry::new(7, vec![full.clone(), descriptor])];
        let error = refused(&hostile);
        assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
        // The error names the second descriptor of the first entry.
        let named = log.start + 64 + 32..log.start + 64 + 64;
        assert!(named.contains(&error.offset().unwrap()), "{error}");
        error.code()
    };
    let data = |at| Descriptor::data(at, vec![0xEE; SECTOR]);
    for at in [0, 64 << 10, 128 << 10, 188 << 10, log.start, log.end - 4096] {
        assert_eq!(with(data(at)), "log.target", "{at:#x}");
        assert_eq!(with(Descriptor::zero(at, 4096)), "log.target", "{at:#x}");
    }
    assert_eq!(
        with(Descriptor::zero(192 << 10, MIB)),
        "log.target",
        "from the tables into the log"
    );
    assert_eq!(with(Descriptor::zero(0, 1 << 60)), "log.target");
    for at in [1, 512, 4095, log.end + 513, u64::MAX, u64::MAX - 4096] {
        assert_eq!(with(data(at)), "log.target", "{at:#x}");
        assert_eq!(with(Descriptor::zero(at, 4096)), "log.target", "{at:#x}");
    }
    for length in [1, 512, 4097, u64::MAX, !4095, 1 << 63, (1 << 63) - 4096] {
        assert_eq!(with(Descriptor::zero(log.end, length)), "log.zero-length", "{length:#x}");
    }
    for at in [!4095, 1 << 60, 100 << 40] {
        assert_eq!(with(data(at)), "log.target", "past the end of the largest file");
    }
    for length in [1 << 62, 1 << 60, 100 << 40] {
        assert_eq!(with(Descriptor::zero(log.end, length)), "log.zero-length", "{length:#x}");
    }
    // Zeros over everything after the log: the log is valid, but the image is destroyed.
    let mut nothing = image.clone();
    nothing.log = vec![LogEntry::new(7, vec![Descriptor::zero(log.end, 64 << 40)])];
    assert_eq!(refused(&nothing).code(), "metadata.signature");
    // Invalid descriptors make the entry invalid.
    let mut unknown = image.clone();
    unknown.log = vec![LogEntry::new(7, vec![Descriptor::Raw([0x77; 32])])];
    assert_eq!(refused(&unknown).kind(), ErrorKind::LogWithoutEntries);
    // Region tables may be logged.
    let mut tables = image.clone();
    let table = image.to_bytes()[192 << 10..196 << 10].to_vec();
    tables.region_tables[0] = None;
    tables.log[0].descriptors.insert(0, Descriptor::data(192 << 10, table));
    let info = reads(&tables, &replayed()).tip().info();
    assert_eq!(info.current_region_table, 0);
}

#[test]
fn entries_with_wrong_fields() {
    let (image, full, _) = dirty();
    let with = |change: &dyn Fn(&mut LogEntry)| {
        let mut lies = image.clone();
        lies.log = vec![LogEntry::new(7, vec![full.clone()])];
        change(&mut lies.log[0]);
        let error = refused(&lies);
        assert_eq!(error.kind(), ErrorKind::LogWithoutEntries, "{error}");
    };
    for length in [0, 1, 4095, 4096, 8191, 12288, 1 << 20, (1 << 20) + 4096, !4095, !0] {
        with(&|entry| entry.entry_length = Some(length));
    }
    for count in [2, 126, 127, 1 << 20, !0] {
        with(&|entry| entry.descriptor_count = Some(count));
    }
    with(&|entry| entry.raw.push((16, vec![0; 8])));
    // With fewer descriptors than data sectors there is unused room, which is allowed.
    let mut fewer = image.clone();
    fewer.log[0].descriptor_count = Some(0);
    assert_eq!(replay_of(&open_images(OpenOptions::new(), &[fewer]).unwrap()).3, 0);
}

/// A 64 MiB log in which every sector claims to start an entry as long as the ring: each sector
/// is examined a few times, not once for every entry.
#[test]
fn entries_that_claim_the_whole_ring_are_judged_in_one_pass() {
    const LOG: u64 = 64 * MIB;
    let mut image = Image::dynamic(8 * MIB);
    image.log_length = LOG as u32;
    (image.metadata_offset, image.bat_offset) = (MIB + LOG, 2 * MIB + LOG);
    image.set_log_guid(GUID);
    let clean = image.to_bytes();
    let sector = |position: u64, length: u64, count: u32, number: u64, tail: u64| {
        let mut sector = vec![0; SECTOR];
        sector[..4].copy_from_slice(b"loge");
        sector[8..12].copy_from_slice(&(length as u32).to_le_bytes());
        sector[12..16].copy_from_slice(&(tail as u32).to_le_bytes());
        sector[16..24].copy_from_slice(&number.to_le_bytes());
        sector[24..28].copy_from_slice(&count.to_le_bytes());
        sector[32..48].copy_from_slice(&GUID.to_bytes_le());
        let sum = avhdx_testkit::crc::sealed(&sector, 4);
        sector[4..8].copy_from_slice(&sum.to_le_bytes());
        (position, sector)
    };
    let descriptors = |number: u64| {
        let mut descriptor = [0; 32];
        descriptor[..4].copy_from_slice(b"zero");
        descriptor[16..24].copy_from_slice(&(80 * MIB).to_le_bytes());
        descriptor[24..].copy_from_slice(&number.to_le_bytes());
        descriptor.repeat(SECTOR / 32)
    };
    let each = |step: u64| (0..LOG).step_by((step * SECTOR as u64) as usize);
    type Sectors = Vec<(u64, Vec<u8>)>;
    let cases: [(&str, Sectors, Option<&str>); 6] = [
        (
            "no descriptors",
            each(1).map(|at| sector(at, LOG, 0, 7, 0)).collect(),
            Some("log.no-entries"),
        ),
        (
            "half the ring each",
            each(1).map(|at| sector(at, LOG / 2, 0, at + 1, at)).collect(),
            Some("log.no-entries"),
        ),
        (
            "as many descriptors as there could be",
            each(1).map(|at| sector(at, LOG, (LOG / 32) as u32 - 2, 7, 0)).collect(),
            Some("log.no-entries"),
        ),
        (
            // Each entry's descriptors would continue to the ring's end, were it not for the next entry.
            "descriptors of one number between",
            each(1)
                .map(|at| match at / SECTOR as u64 % 16 {
                    0 => sector(at, LOG, (LOG / 32) as u32 - 2, 7, 0),
                    _ => (at, descriptors(7)),
                })
                .collect(),
            Some("log.no-entries"),
        ),
        (
            "valid entries, each a run of its own",
            each(1).map(|at| sector(at, SECTOR as u64, 0, 2 * at + 1, at)).collect(),
            None,
        ),
        (
            "one run as long as the ring",
            each(1).map(|at| sector(at, SECTOR as u64, 0, at / SECTOR as u64 + 1, 0)).collect(),
            None,
        ),
    ];
    for (what, sectors, code) in cases {
        let mut bytes = clean.clone();
        for (at, sector) in sectors {
            bytes[(MIB + at) as usize..][..SECTOR].copy_from_slice(&sector);
        }
        let counting = Counting::new(memory("l0", bytes));
        let opened = OpenOptions::new().open_file(Arc::clone(&counting) as Arc<dyn Storage>);
        assert_eq!(opened.err().map(|error| error.code()), code, "{what}");
        let (calls, read) = counting.counts();
        assert!(read <= 6 * LOG, "{what}: {read} bytes read of a log of {LOG}");
        assert!(calls < 20_000, "{what}: {calls} reads");
    }
}

#[test]
fn children_whose_log_holds_tables_and_bitmaps() {
    for seed in 0..12 {
        let chain = random_chain(seed, 2);
        let mut before = chain[1].clone();
        before.blocks.clear();
        before.bitmap_chunks.insert(0);
        before.bitmap_at = chain[1].layout().bitmaps;
        let dirty = Image::dirty(&before, &chain[1], GUID, 1 + seed as usize % 3);
        let want = chain[1].flat(Some(&chain[0].flat(None)));
        assert!(flat(&agrees(&[chain[0].clone(), dirty])) == want, "seed {seed}");
    }
}

/// A storage that returns fewer bytes than asked for, as hosts may.
#[derive(Debug)]
struct Stingy(MemStorage);

impl Storage for Stingy {
    fn name(&self) -> &str {
        "stingy"
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<usize> {
        let len = buf.len().min(1000);
        self.0.read_at(&mut buf[..len], offset)
    }
    fn write_at(&self, _: &[u8], _: u64) -> std::io::Result<()> {
        panic!("a write")
    }
    fn flush(&self) -> std::io::Result<()> {
        panic!("a flush")
    }
    fn len(&self) -> std::io::Result<u64> {
        self.0.len()
    }
    fn set_len(&self, _: u64) -> std::io::Result<()> {
        panic!("a new length")
    }
}

#[test]
fn hosts_that_serve_a_part_are_asked_again() {
    let (image, ..) = dirty();
    let storage = Arc::new(Stingy(MemStorage::new(image.to_bytes())));
    let chain = open_stack(OpenOptions::new(), &[storage]).unwrap();
    assert!(flat(&chain) == replayed());
}

/// A random entry: its update, whether it follows the one before, its faults and its tail.
fn any_entry() -> impl Strategy<Value = (u8, u8, u8, u8, bool)> {
    (0..6_u8, 0..8_u8, 0..12_u8, 0..6_u8, proptest::bool::weighted(0.15))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Any sequence of entries in a ring is replayed as by the naive reader.
    #[test]
    fn any_log_reads_as_the_naive_reader_reads_it(
        entries in proptest::collection::vec(any_entry(), 0..9),
        start in 0..256_u32,
        first in prop_oneof![Just(1_u64), Just(u64::from(u32::MAX) - 2), any::<u64>()],
    ) {
        let mut image = Image::dynamic(4 * MIB);
        (0..4).for_each(|b| _ = image.put(b, Block::full(Data::Pattern(b))));
        let layout = image.layout();
        let bat = layout.get("bat").start;
        // Each update orders the blocks differently; the last one applies.
        let updates: Vec<Descriptor> = (0..6_u64)
            .map(|turn| {
                let mut page = vec![0; SECTOR];
                for b in 0..4 {
                    let entry = layout.payload[&((b + turn) % 4)] | 6;
                    page[b as usize * 8..][..8].copy_from_slice(&entry.to_le_bytes());
                }
                if turn == 5 { Descriptor::zero(bat, SECTOR as u64) } else { Descriptor::data(bat, page) }
            })
            .collect();
        let mut number = first;
        for (i, (update, jump, fault, tail, is_old)) in entries.iter().enumerate() {
            number = number.saturating_add(if *jump == 0 { 2 } else { 1 });
            let mut entry = LogEntry::new(number, vec![updates[*update as usize].clone()]);
            match fault {
                0 => entry = entry.torn(1),
                1 => entry.checksum = Checksum::Wrong,
                2 => entry.lost = vec![0],
                _ => {}
            }
            entry.tail = match tail {
                0 => Tail::Own,
                1 => Tail::Entry(i / 2),
                2 => Tail::At(4096 * u32::from(*update)),
                _ => Tail::First,
            };
            if *is_old {
                entry = entry.guid(OLD);
            }
            if i == 0 {
                entry = entry.at(start * SECTOR as u32);
            }
            image.log.push(entry);
        }
        image.set_log_guid(GUID);
        let naive = naive::Chain::from_bytes([image.to_bytes()]);
        match (naive, open_images(OpenOptions::new(), &[image])) {
            (Ok(naive), Ok(chain)) => prop_assert!(naive.flat(0).unwrap() == flat(&chain)),
            (Err(_), Err(error)) => prop_assert!(
                matches!(error.kind(), ErrorKind::Damaged | ErrorKind::LogWithoutEntries), "{}", error
            ),
            (naive, chain) => prop_assert!(
                false, "naive {:?}, here {:?}", naive.map(drop), chain.map(drop)
            ),
        }
    }
}
