//! Tables on simulated hosts, judged by a reader of their own.

use std::collections::HashSet;
use std::io::Cursor;
use std::path::Path;
use std::sync::Arc;

use avhdx::ops::Resize;
use avhdx::{CreateOptions, DiffChain, OpenOptions};
use avhdx_testkit::outcomes::{Depth, Explorer};
use avhdx_testkit::sim::{FOLDER, SimHost};
use gptman::GPT;

use super::*;

const SIZE: u64 = 8 << 20;

/// The checksum of GPT: CRC-32 with the polynomial of Ethernet, bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |sum: u32| if sum & 1 == 1 { sum >> 1 ^ 0xEDB8_8320 } else { sum >> 1 };
    !bytes
        .iter()
        .fold(u32::MAX, |sum, byte| (0..8).fold(sum ^ u32::from(*byte), |sum, _| step(sum)))
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

/// A copy as the test reads it: the other copy's sector, the last usable one, and the entries.
fn copy(disk: &[u8], sector: u64, lba: u64) -> Option<(u64, u64, Vec<u8>)> {
    let header = disk.get((lba * sector) as usize..)?.get(..92)?;
    let mut unsigned = header.to_vec();
    unsigned[16..20].fill(0);
    let start = (long(header, 72) * sector) as usize;
    let entries = disk.get(start..)?.get(..(word(header, 80) * word(header, 84)) as usize)?;
    let is_whole = header[..8] == *SIGNATURE
        && word(header, 16) == crc32(&unsigned)
        && long(header, 24) == lba
        && word(header, 88) == crc32(entries);
    is_whole.then(|| (long(header, 32), long(header, 48), entries.to_vec()))
}

/// A disk with one partition, up to `end`.
fn disk(sector: u64, end: u64) -> Vec<u8> {
    let mut disk = Cursor::new(vec![0; SIZE as usize]);
    let mut gpt = GPT::new_from(&mut disk, sector, [7; 16]).unwrap();
    gpt[1] = GPTPartitionEntry {
        partition_type_guid: [1; 16],
        unique_partition_guid: [2; 16],
        starting_lba: 40,
        ending_lba: end,
        attribute_bits: 5,
        partition_name: "data".into(),
    };
    gpt.write_into(&mut disk).unwrap();
    let mut disk = disk.into_inner();
    disk[450] = PROTECTIVE;
    disk[454..458].copy_from_slice(&1_u32.to_le_bytes());
    disk[458..462].copy_from_slice(&((SIZE / sector - 1) as u32).to_le_bytes());
    disk[510..512].copy_from_slice(&[0x55, 0xAA]);
    disk
}

fn on_host(sector: u64, bytes: &[u8]) -> (SimHost, DiffChain) {
    let host = SimHost::default();
    let path = Path::new(FOLDER).join("disk.vhdx");
    let options = CreateOptions::dynamic(SIZE).block_size(1 << 20).logical_sector(sector as u32);
    drop(options.create_on(Arc::new(host.clone()), &path).unwrap());
    let chain = open(&host, true);
    for (n, piece) in bytes.chunks(1 << 16).enumerate().filter(|(_, p)| p.iter().any(|b| *b != 0)) {
        chain.write_at(piece, (n as u64) << 16).unwrap();
    }
    chain.close().unwrap();
    (host, chain)
}

fn open(host: &SimHost, writable: bool) -> DiffChain {
    let options = OpenOptions::new().host(Arc::new(host.clone())).writable(writable);
    options.open(Path::new(FOLDER).join("disk.vhdx")).unwrap()
}

fn flat(disk: &DiffChain) -> Vec<u8> {
    let mut bytes = vec![0; disk.geometry().size as usize];
    disk.read_at(&mut bytes, 0).unwrap();
    bytes
}

/// What `resize --fix-gpt` does with a disk, whatever a crash left on it.
fn again(host: &SimHost, new: u64, is_torn: &mut usize) -> Vec<u8> {
    let chain = open(host, true);
    let from = chain.geometry().size;
    let gpt = Gpt::resume(&chain, "disk", Some(new)).unwrap();
    *is_torn += usize::from(gpt.is_torn());
    gpt.check_size(new).unwrap();
    gpt.check_place(&chain, new).unwrap();
    if new >= from {
        Resize::to(new).run(&chain).unwrap();
    }
    if new != from || !gpt.ends_with(new) {
        gpt.move_backup(&chain, new).unwrap();
    }
    Resize::to(new).run(&chain).unwrap();
    chain.close().unwrap();
    flat(&chain)
}

/// The disk with its table moved to the end of `new` bytes, made without the code under test.
fn moved(before: &[u8], sector: u64, new: u64) -> Vec<u8> {
    let array = 16384_u64.div_ceil(sector);
    let mut disk = before.to_vec();
    disk[(SIZE - (array + 1) * sector) as usize..].fill(0);
    disk.resize(new as usize, 0);
    let last = new / sector - 1;
    let entries = disk[2 * sector as usize..][..16384].to_vec();
    let place = ((last - array) * sector) as usize;
    disk[place..place + entries.len()].copy_from_slice(&entries);
    let header = disk[sector as usize..][..sector as usize].to_vec();
    for (lba, other, array_at) in [(1, last, 2), (last, 1, last - array)] {
        let mut header = header.clone();
        header[24..32].copy_from_slice(&lba.to_le_bytes());
        header[32..40].copy_from_slice(&other.to_le_bytes());
        header[48..56].copy_from_slice(&(last - array - 1).to_le_bytes());
        header[72..80].copy_from_slice(&array_at.to_le_bytes());
        header[16..20].fill(0);
        let sum = crc32(&header[..92]);
        header[16..20].copy_from_slice(&sum.to_le_bytes());
        disk[(lba * sector) as usize..][..sector as usize].copy_from_slice(&header);
    }
    disk[458..462].copy_from_slice(&(last as u32).to_le_bytes());
    disk
}

/// Smaller and larger, by more than the table takes and by less; whatever a crash leaves, the first copy is whole, and
/// so is a second one unless the two places overlap. The same command does the rest, by a size and by a difference.
#[test]
fn a_crash_leaves_a_whole_copy_and_the_same_command_does_the_rest() {
    let (mut outcomes, mut torn) = (0, 0);
    for (sector, by) in [(512, -2048), (512, -9), (512, 4096), (512, 5), (4096, -200), (4096, 3)] {
        let new = (SIZE as i64 + by * sector as i64) as u64;
        let before = disk(sector, 900);
        let (host, chain) = on_host(sector, &before);
        let start = host.files();
        host.record();
        let gpt = Gpt::read(&chain, "disk").unwrap();
        let resize = || drop(Resize::to(new).run(&chain).unwrap());
        if by < 0 {
            gpt.move_backup(&chain, new).unwrap();
            resize();
        } else {
            resize();
            gpt.move_backup(&chain, new).unwrap();
        }
        chain.close().unwrap();
        let (events, after) = (host.events(), flat(&chain));
        let entries = copy(&before, sector, 1).unwrap().2;
        let sectors = new / sector;
        let array = 16384_u64.div_ceil(sector);
        let last_usable = sectors - array - 2;
        assert_eq!(copy(&after, sector, 1), Some((sectors - 1, last_usable, entries.clone())));
        assert_eq!(copy(&after, sector, sectors - 1), Some((1, last_usable, entries.clone())));
        assert_eq!(word(&after, 458), (sectors - 1) as u32, "the protective MBR");
        // Nothing is left of the former second copy.
        let mut expected = before.clone();
        expected[(SIZE - (array + 1) * sector) as usize..].fill(0);
        expected.resize(new as usize, 0);
        let own = (2 * sector) as usize..(new - (array + 1) * sector) as usize;
        assert!(after[own.clone()] == expected[own]);
        assert!(after == moved(&before, sector, new));

        let overlaps = by.unsigned_abs() < array + 1;
        let mut seen = HashSet::new();
        let depth = Depth { exhaustive: 5, samples: 6, torn: 6 };
        Explorer::new(start, &events, depth, 42).run(0, &|_| 0, &mut |outcome| {
            if !seen.insert(outcome.files.sum().exact) {
                return;
            }
            let left = flat(&open(&SimHost::new(outcome.files.clone()), false));
            assert!([SIZE, new].contains(&(left.len() as u64)));
            let first = copy(&left, sector, 1).expect("the first copy is whole");
            assert!(first.2 == entries && [SIZE / sector - 1, sectors - 1].contains(&first.0));
            let seconds = [first.0, sectors - 1].map(|lba| copy(&left, sector, lba));
            let is_whole = |second: &(u64, u64, Vec<u8>)| second.2 == entries;
            assert!(overlaps || seconds.iter().flatten().any(is_whole), "{by}");
            let size = left.len() as u64;
            let done = again(&SimHost::new(outcome.files.clone()), new, &mut torn);
            assert!(done == after, "{by}: not as without a crash");
            if by > 0 && size == new {
                let larger = new + by as u64 * sector;
                let done = again(&SimHost::new(outcome.files), larger, &mut torn);
                assert!(done == moved(&before, sector, larger), "{by} twice");
            }
        });
        outcomes += seen.len();
        host.empty();
    }
    println!("{outcomes} outcomes, {torn} times with a copy in parts");
    assert!(outcomes > 150 && torn > 20, "{outcomes} and {torn}");
}

/// Only what a move writes counts as a copy in parts: other bytes in its place are not lost.
#[test]
fn other_bytes_than_those_of_a_move_are_not_replaced() {
    let before = disk(512, 900);
    let (last, new) = (SIZE / 512 - 1, SIZE + 5 * 512);
    let by = moved(&before, 512, new);
    let read = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut disk = before.clone();
        change(&mut disk);
        let (_, chain) = on_host(512, &disk);
        let read = Gpt::resume(&chain, "disk", Some(new));
        assert!(flat(&chain) == disk);
        read
    };
    // The former header has the new entries over it, or was made zeros.
    let torn = |disk: &mut Vec<u8>| {
        let at = (last * 512) as usize;
        disk[at..at + 512].copy_from_slice(&by[at..at + 512]);
    };
    assert!(read(&torn).unwrap().is_torn());
    assert!(read(&|disk| disk[(last * 512) as usize..].fill(0)).unwrap().is_torn());
    assert!(!read(&|_| ()).unwrap().is_torn());
    let both = |at: usize, disk: &mut Vec<u8>| {
        torn(disk);
        disk[at] ^= 0x40;
    };
    // A byte of somebody else there; a first copy that is damaged too; an MBR that is in use.
    let at = ((last - 20) * 512) as usize;
    assert!(read(&|disk| both(at, disk)).unwrap_err().is("resize.gpt-copies"));
    assert!(read(&|disk| both(512 + 60, disk)).unwrap_err().is("resize.gpt-copies"));
    assert!(read(&|disk| both(466, disk)).unwrap_err().is("resize.gpt-hybrid"));
}

/// Numbers that a guest may write: each is refused with its sector and both values, and changes nothing.
#[test]
fn numbers_of_a_guest_are_bounded() {
    let last = SIZE / 512 - 1;
    let changes: [(&str, u64, usize, &[u8], &str); 7] = [
        ("entries", 1, 80, &u32::MAX.to_le_bytes(), "4294967295, expected 1 to 4096"),
        ("no entries", 1, 80, &[0; 4], "0, expected 1 to 4096"),
        ("entry size", last, 84, &256_u32.to_le_bytes(), "256, expected 128"),
        ("header", 1, 12, &512_u32.to_le_bytes(), "512, expected 92"),
        ("place", 1, 72, &u64::MAX.to_le_bytes(), "expected a place in 2 to 34"),
        ("backup", 1, 32, &u64::MAX.to_le_bytes(), "is damaged"),
        ("sum", last, 40, &[9], "is damaged"),
    ];
    for (what, lba, at, bytes, says) in changes {
        let mut disk = disk(512, 900);
        disk[(lba * 512) as usize + at..][..bytes.len()].copy_from_slice(bytes);
        let (_, chain) = on_host(512, &disk);
        let error = Gpt::read(&chain, "disk").unwrap_err();
        let message = error.message();
        assert!(error.is("resize.gpt-copies") && message.contains(says), "{what}: {message}");
        assert!(message.contains(&format!("in sector {lba}, ")), "{what}: {message}");
        assert!(flat(&chain) == disk, "{what}");
    }
    // Copies that are whole, and of two tables.
    let (mut mixed, other) = (disk(512, 900), disk(512, 901));
    mixed[SIZE as usize / 2..].copy_from_slice(&other[SIZE as usize / 2..]);
    let (_, chain) = on_host(512, &mixed);
    assert!(Gpt::read(&chain, "disk").unwrap_err().is("resize.gpt-copies"));
    // Partitions that programs without GPT see too.
    let mut hybrid = disk(512, 900);
    hybrid[466] = 0x0C;
    let (_, chain) = on_host(512, &hybrid);
    let error = Gpt::read(&chain, "disk").unwrap_err();
    assert!(error.is("resize.gpt-hybrid") && error.message().contains("0xEE, 0x0C"));
    // A partition that would be cut, and no room for the table.
    let (_, chain) = on_host(512, &disk(512, 900));
    let gpt = Gpt::read(&chain, "disk").unwrap();
    assert_eq!(gpt.fitting_sectors(), 901 + 33);
    gpt.check_size(934 * 512).unwrap();
    let error = gpt.check_size(933 * 512).unwrap_err();
    assert!(error.message().contains("partition 1 would be cut: it ends at sector 900"));
    assert!(gpt.check_size(20 * 512).is_err());
    // The largest disk: its size does not fit into an MBR.
    let (host, chain) = on_host(512, &disk(512, 900));
    Resize::to(3 << 40).run(&chain).unwrap();
    Gpt::read(&chain, "disk").unwrap().move_backup(&chain, 3 << 40).unwrap();
    let mut size = [0; 4];
    chain.read_at(&mut size, 458).unwrap();
    assert_eq!(size, [0xFF; 4]);
    host.empty();
}
