//! The promises of [`Storage`].

use std::io::{ErrorKind, IoSliceMut};
use std::ops::Range;
use std::sync::Arc;

use avhdx::storage::{LockMode, LockOutcome, Storage};

use crate::rng::Rng;

/// Makes a file that is empty and open for writing, another one each time.
pub type Make<'a> = &'a dyn Fn() -> Arc<dyn Storage>;

/// A promise by name, and the function that checks it.
pub type Promise = (&'static str, fn(Make<'_>));

/// The promises of every storage.
pub const OF_ALL: &[Promise] = &[
    ("a read is short at the end of the file only", reads),
    ("an exact read fills its buffer or fails", exact_reads),
    ("a vectored read returns what a flat one does", vectored_reads),
    ("a write changes its range and grows the file", writes),
    ("a longer file ends in zeros, a shorter one loses its end", lengths),
    ("reserved space keeps what the file holds", reserves),
    ("what is no data reads as zeros", data),
    ("punched space reads as zeros, or nothing changes", punches),
    ("zeroed bytes read as zeros, or nothing changes", zeroes),
    ("a copy has the bytes of its source, which stays", copies),
    ("a file has one identity, which no other file has", identities),
    ("a lock can be given up and taken again", locks),
    ("threads do not disturb each other", threads),
];

const KIB: u64 = 1 << 10;

/// Checks every promise.
pub fn keeps_every_promise(make: Make<'_>) {
    for (_, check) in OF_ALL {
        check(make);
    }
}

/// What a file holds.
pub fn contents(file: &dyn Storage) -> Vec<u8> {
    let mut bytes = vec![0xAA; file.len().unwrap() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

fn random(seed: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![0; len as usize];
    Rng::new(seed).fill(&mut bytes);
    bytes
}

fn filled(make: Make<'_>, seed: u64, len: u64) -> (Arc<dyn Storage>, Vec<u8>) {
    let (file, bytes) = (make(), random(seed, len));
    file.write_at(&bytes, 0).unwrap();
    (file, bytes)
}

fn reads(make: Make<'_>) {
    let (file, bytes) = filled(make, 1, 10_000);
    for (at, len) in [(0, 10_000), (0, 1), (5000, 4999), (9999, 1), (9000, 2000), (10_000, 5)] {
        let mut found = vec![0xAA; len];
        let read = file.read_at(&mut found, at as u64).unwrap();
        let expected = &bytes[at..bytes.len().min(at + len)];
        assert!(read <= expected.len() && (read > 0 || expected.is_empty()), "{len} at {at}");
        assert!(found[..read] == expected[..read], "{len} at {at}");
    }
    for at in [10_001, 1 << 40, i64::MAX as u64 - 10] {
        assert_eq!(file.read_at(&mut [0; 5], at).unwrap(), 0, "at {at}");
    }
    assert_eq!(file.read_at(&mut [], 7).unwrap(), 0);
}

fn exact_reads(make: Make<'_>) {
    let (file, bytes) = filled(make, 2, 10_000);
    let mut found = vec![0; 10_000];
    file.read_exact_at(&mut found, 0).unwrap();
    assert!(found == bytes);
    file.read_exact_at(&mut found[..100], 9900).unwrap();
    assert!(found[..100] == bytes[9900..]);
    for (at, len) in [(9999, 2), (10_000, 1), (0, 10_000 + 1)] {
        let error = file.read_exact_at(&mut vec![0; len], at).expect_err("past the end");
        assert_eq!(error.kind(), ErrorKind::UnexpectedEof, "{len} at {at}");
        let mut buf = vec![0; len];
        let error = file.read_exact_vectored_at(&mut [IoSliceMut::new(&mut buf)], at);
        assert_eq!(error.expect_err("past the end").kind(), ErrorKind::UnexpectedEof);
    }
    file.read_exact_at(&mut [], 10_000).unwrap();
}

fn vectored_reads(make: Make<'_>) {
    let (file, bytes) = filled(make, 3, 100_000);
    let mut rng = Rng::new(3);
    for count in [0, 1, 3, 40, 1500] {
        let lens: Vec<usize> = (0..count).map(|_| rng.below(60) as usize).collect();
        let total: usize = lens.iter().sum();
        let at = rng.below(100_000 - total as u64 + 1) as usize;
        let mut found: Vec<Vec<u8>> = lens.iter().map(|len| vec![0xAA; *len]).collect();
        let mut bufs: Vec<_> = found.iter_mut().map(|buf| IoSliceMut::new(buf)).collect();
        file.read_exact_vectored_at(&mut bufs, at as u64).unwrap();
        assert!(found.concat() == bytes[at..at + total], "{count} buffers at {at}");
    }
    let (mut one, mut two) = ([0xAA; 10], [0xAA; 10]);
    let read = file
        .read_vectored_at(&mut [IoSliceMut::new(&mut one), IoSliceMut::new(&mut two)], 99_985)
        .unwrap();
    assert!((1..=15).contains(&read), "{read} of the 15 bytes at the end");
    assert!([one, two].concat()[..read] == bytes[99_985..][..read]);
}

fn writes(make: Make<'_>) {
    let (file, mut bytes) = filled(make, 4, 10_000);
    for (n, (at, len)) in
        [(0, 1), (4095, 2), (100, 9000), (9999, 3), (50_000, 10), (7, 0)].into_iter().enumerate()
    {
        let new = random(40 + n as u64, len as u64);
        file.write_at(&new, at as u64).unwrap();
        bytes.resize(bytes.len().max(if len > 0 { at + len } else { 0 }), 0);
        bytes[at..at + len].copy_from_slice(&new);
        assert_eq!(file.len().unwrap(), bytes.len() as u64, "{len} at {at}");
        assert!(contents(&*file) == bytes, "{len} at {at}");
    }
    file.flush().unwrap();
    assert!(contents(&*file) == bytes, "after a flush");
}

fn lengths(make: Make<'_>) {
    let file = make();
    assert!(file.is_empty().unwrap());
    let mut bytes = random(5, 10_000);
    file.write_at(&bytes, 0).unwrap();
    assert!(!file.is_empty().unwrap());
    for len in [20_000, 5000, 5000, 300_000, 0, 4096] {
        file.set_len(len).unwrap();
        bytes.resize(len as usize, 0);
        assert_eq!(file.len().unwrap(), len);
        assert!(contents(&*file) == bytes, "{len} bytes long");
    }
}

fn reserves(make: Make<'_>) {
    let (file, mut bytes) = filled(make, 6, 5000);
    file.reserve(2 << 20).unwrap();
    bytes.resize(2 << 20, 0);
    assert!(contents(&*file) == bytes);
}

fn data(make: Make<'_>) {
    let (file, mut bytes) = filled(make, 7, 100 * KIB);
    file.set_len(4 << 20).unwrap();
    bytes.resize(4 << 20, 0);
    file.write_at(&[8; 100], 3 << 20).unwrap();
    bytes[3 << 20..][..100].fill(8);
    let mut at = 0;
    while let Some(found) = file.next_data(at).unwrap() {
        assert!(found.start >= at && found.end > found.start, "{found:?} from {at}");
        assert!(found.end <= 4 << 20, "{found:?} from {at}");
        let hole = &bytes[at as usize..found.start as usize];
        assert!(hole.iter().all(|byte| *byte == 0), "data in the hole at {at}");
        at = found.end;
    }
    assert!(bytes[at as usize..].iter().all(|byte| *byte == 0), "data behind {at}");
    assert_eq!(file.next_data(4 << 20).unwrap(), None);
    // Growth is no data, unless the host does not tell.
    file.set_len(8 << 20).unwrap();
    if let Some(found) = file.next_data(5 << 20).unwrap() {
        assert_eq!(found, 5 << 20..8 << 20);
    }
    assert_eq!(make().next_data(0).unwrap(), None);
}

/// Ranges of a file of 300 KiB, the last ones over or past its end.
fn ranges() -> [Range<u64>; 8] {
    [
        64 * KIB..128 * KIB,
        8191..8193,
        0..1,
        290 * KIB..400 * KIB,
        500 * KIB..501 * KIB,
        7..7,
        299 * KIB..u64::MAX >> 1,
        u64::MAX - 4096..u64::MAX,
    ]
}

fn zeroed(make: Make<'_>, change: impl Fn(&dyn Storage, Range<u64>) -> bool) {
    let (file, mut bytes) = filled(make, 8, 300 * KIB);
    for range in ranges() {
        if change(&*file, range.clone()) {
            let end = range.end.min(300 * KIB);
            bytes[range.start.min(end) as usize..end as usize].fill(0);
        }
        assert!(contents(&*file) == bytes, "{range:?}");
    }
}

fn punches(make: Make<'_>) {
    // A host punches ranges that a file can have.
    let is_possible = |range: &Range<u64>| !range.is_empty() && range.end < 1 << 40;
    zeroed(make, |file, range| is_possible(&range) && file.punch(range).unwrap());
}

fn zeroes(make: Make<'_>) {
    zeroed(make, |file, range| file.zero(range).unwrap());
}

fn copies(make: Make<'_>) {
    let (file, mut here) = filled(make, 9, 300 * KIB);
    let (other, there) = filled(make, 10, 200 * KIB + 77);
    let ways =
        [(0, 0, 4096), (8192, 128 << 10, 65_536), (3, 70_001, 513), (5, 306_176, 9000), (7, 9, 0)];
    for (from_at, at, len) in ways {
        let part = &there[from_at..from_at + len];
        if !file.copy_from(&*other, from_at as u64, at as u64, len as u64).unwrap() {
            file.write_at(part, at as u64).unwrap();
        }
        here.resize(here.len().max(at + len), 0);
        here[at..at + len].copy_from_slice(part);
        assert!(contents(&*file) == here, "{len} bytes from {from_at} to {at}");
    }
    if let Some(unit) = file.sharing_unit(&*other) {
        assert!(unit.is_power_of_two() && contents(&*file) == here && contents(&*other) == there);
        let part = unit.min(there.len() as u64 / unit * unit);
        assert!(file.copy_from(&*other, 0, 0, part).unwrap(), "{part} bytes in whole units");
        here[..part as usize].copy_from_slice(&there[..part as usize]);
        assert!(contents(&*file) == here, "{part} bytes in whole units");
    }
    match file.copy_from(&*other, 200 * KIB, 0, KIB) {
        Ok(is_copied) => assert!(!is_copied, "bytes that the source does not have"),
        Err(error) => assert_eq!(error.kind(), ErrorKind::UnexpectedEof),
    }
    file.write_at(&[9; 4096], 0).unwrap();
    assert!(contents(&*other) == there, "what is copied from stays as it is");
    other.write_at(&[6; 4096], 8192).unwrap();
    assert!(contents(&*file)[4096..] == here[4096..], "a copy stays as it is");
}

fn identities(make: Make<'_>) {
    let (one, other) = (make(), make());
    assert_eq!(one.id().unwrap(), one.id().unwrap());
    if let Some(id) = one.id().unwrap() {
        assert_ne!(Some(id), other.id().unwrap());
        one.write_at(&[1; 10_000], 0).unwrap();
        assert_eq!(one.id().unwrap(), Some(id));
    }
}

fn locks(make: Make<'_>) {
    let file = make();
    for mode in [LockMode::Exclusive, LockMode::Shared, LockMode::Exclusive] {
        match file.try_lock(mode) {
            Ok(outcome) => assert_eq!(outcome, LockOutcome::Locked, "{mode:?}"),
            Err(error) => return assert_eq!(error.kind(), ErrorKind::Unsupported),
        }
        file.unlock().unwrap();
    }
    file.unlock().expect("no lock to be given up");
}

fn threads(make: Make<'_>) {
    let file = &*make();
    file.set_len(4 * 64 * KIB).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            scope.spawn(move || {
                let mut rng = Rng::new(thread);
                for round in 0..200 {
                    let bytes = random(thread * 1000 + round, 1 + rng.below(5000));
                    let at = thread * 64 * KIB + rng.below(64 * KIB - bytes.len() as u64);
                    file.write_at(&bytes, at).unwrap();
                    let mut found = vec![0; bytes.len()];
                    file.read_exact_at(&mut found, at).unwrap();
                    assert!(found == bytes, "{} bytes at {at}", bytes.len());
                }
            });
        }
    });
}
