//! Promises of every storage and host: this machine, memory and the simulated host.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use avhdx::storage::{Access, Host, LocalHost, LockMode, LockOutcome, MemStorage, Storage};
use avhdx_testkit::rng::Rng;

use crate::sim::{Arrived, FOLDER, SimHost};

const KIB: u64 = 1 << 10;

fn bytes(seed: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![0; len as usize];
    Rng::new(seed).fill(&mut bytes);
    bytes
}

fn all(storage: &dyn Storage) -> Vec<u8> {
    let mut bytes = vec![0xAA; storage.len().unwrap() as usize];
    storage.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// The promises for two files, one of which copies from the other. Returns whether the host copies, punches and zeros.
fn conforms(file: &dyn Storage, other: &dyn Storage) -> (bool, bool, bool) {
    let (mut here, there) = (bytes(1, 300 * KIB), bytes(2, 200 * KIB + 77));
    file.write_at(&here, 0).unwrap();
    other.write_at(&there, 0).unwrap();
    let mut copies = true;
    for (from_at, at, len) in [
        (0, 0, 4 * KIB),
        (8 * KIB, 128 * KIB, 64 * KIB),
        (3, 70_001, 513),
        (5, 299 * KIB, 9000),
        (7, 9, 0),
    ] {
        let copied = file.copy_from(other, from_at, at, len).unwrap();
        copies &= copied;
        let part = &there[from_at as usize..(from_at + len) as usize];
        if !copied {
            file.write_at(part, at).unwrap();
        }
        here.resize(here.len().max((at + len) as usize), 0);
        here[at as usize..(at + len) as usize].copy_from_slice(part);
        assert!(all(file) == here, "{len} bytes from {from_at} to {at}");
    }
    let past_the_end = file.copy_from(other, 200 * KIB, 0, KIB);
    match past_the_end {
        Ok(copied) => assert!(!copied),
        Err(error) => assert_eq!(error.kind(), ErrorKind::UnexpectedEof),
    }
    here[..KIB as usize].fill(9);
    file.write_at(&here[..KIB as usize], 0).unwrap();
    assert!(all(other) == there, "what is copied from stays as it is");

    let mut punches = true;
    for range in [64 * KIB..128 * KIB, 8191..8193, 290 * KIB..400 * KIB, 500 * KIB..501 * KIB] {
        if !file.punch(range.clone()).unwrap() {
            punches = false;
            assert!(all(file) == here, "{range:?}");
            continue;
        }
        let end = (range.end as usize).min(here.len());
        here[(range.start as usize).min(end)..end].fill(0);
        assert!(all(file) == here, "{range:?}");
    }
    let mut zeros = true;
    file.write_at(&bytes(4, 300 * KIB), 0).unwrap();
    here[..300 * KIB as usize].copy_from_slice(&bytes(4, 300 * KIB));
    for range in [64 * KIB..128 * KIB, 8191..8193, 290 * KIB..400 * KIB, 500 * KIB..501 * KIB, 7..7]
    {
        if !file.zero(range.clone()).unwrap() {
            zeros = false;
            assert!(all(file) == here, "{range:?}");
            continue;
        }
        let end = (range.end as usize).min(here.len());
        here[(range.start as usize).min(end)..end].fill(0);
        assert!(all(file) == here, "{range:?}");
    }
    // A range that ends beyond any file, and one that starts there.
    for range in [299 * KIB..u64::MAX >> 1, u64::MAX - 4096..u64::MAX] {
        if file.zero(range.clone()).unwrap() {
            let len = here.len();
            here[(range.start.min(len as u64)) as usize..].fill(0);
        }
        assert!(all(file) == here, "{range:?}");
    }
    // Growth reads as zeros, and is not data if the host can tell.
    let len = here.len() as u64;
    file.set_len(len + 900 * KIB).unwrap();
    here.resize(here.len() + 900 * KIB as usize, 0);
    assert!(all(file) == here);
    if let Some(data) = file.next_data(len + 64 * KIB).unwrap() {
        assert_eq!(data, len + 64 * KIB..len + 900 * KIB, "a host that does not tell");
    }
    file.write_at(&[8; 100], len + 800 * KIB).unwrap();
    here[(len + 800 * KIB) as usize..][..100].fill(8);
    assert!(all(file) == here);
    file.set_len(len).unwrap();
    here.truncate(len as usize);
    file.set_len(len + KIB).unwrap();
    here.resize((len + KIB) as usize, 0);
    assert!(all(file) == here, "what was cut off is gone");
    // A change to shared bytes affects only one of the files.
    file.write_at(&[5; 4096], 130 * KIB).unwrap();
    other.write_at(&[6; 4096], 8 * KIB).unwrap();
    here[130 * KIB as usize..][..4096].fill(5);
    assert!(all(file) == here);

    file.unlock().unwrap();
    assert_eq!(file.try_lock(LockMode::Exclusive).unwrap(), LockOutcome::Locked);
    file.unlock().unwrap();
    file.unlock().unwrap();
    assert_eq!(file.try_lock(LockMode::Shared).unwrap(), LockOutcome::Locked);
    (copies, punches, zeros)
}

/// As for [`conforms`], on a host; and a read-only file does not change.
fn host_conforms(host: &dyn Host, folder: &Path) -> (bool, bool, bool) {
    let (path, other) = (folder.join("file"), folder.join("other"));
    let can = conforms(&*host.create_new(&path).unwrap(), &*host.create_new(&other).unwrap());
    let file = host.open(&path, Access::Read).unwrap();
    let before = all(&*file);
    let other = host.open(&other, Access::ReadWrite).unwrap();
    assert!(!matches!(file.copy_from(&*other, 0, 0, 512), Ok(true)));
    assert!(!matches!(file.punch(0..512), Ok(true)));
    assert!(!matches!(file.zero(0..512), Ok(true)));
    assert!(all(&*file) == before);
    can
}

#[test]
fn files_of_this_machine() {
    let folder = tempfile::tempdir().unwrap();
    let (copies, punches, zeros) = host_conforms(&LocalHost, folder.path());
    if cfg!(target_os = "linux") {
        // All common Linux file systems copy within themselves.
        assert!(copies && punches && zeros);
    }
    let file = LocalHost.open(&folder.path().join("file"), Access::ReadWrite).unwrap();
    file.set_len(0).unwrap();
    conforms(&*file, &MemStorage::new(Vec::new()));
}

/// Volumes in memory, if there are any: nothing can be copied between two volumes by the host.
#[test]
#[cfg(target_os = "linux")]
fn files_of_two_volumes() {
    let Ok(memory) = tempfile::tempdir_in("/dev/shm") else { return };
    host_conforms(&LocalHost, memory.path());
    let folder = tempfile::tempdir().unwrap();
    let file = LocalHost.create_new(&folder.path().join("file")).unwrap();
    conforms(&*file, &*LocalHost.create_new(&memory.path().join("there")).unwrap());
}

#[test]
#[cfg(target_os = "linux")]
fn punched_space_is_free_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    let file = LocalHost.create_new(&path).unwrap();
    file.write_at(&bytes(3, 1 << 20), 0).unwrap();
    file.flush().unwrap();
    let before = LocalHost.stat(&path).unwrap().allocated.unwrap();
    if file.punch(0..1 << 19).unwrap() {
        let after = LocalHost.stat(&path).unwrap().allocated.unwrap();
        assert!(after + (1 << 18) < before, "{before} and then {after}");
    }
}

#[test]
fn a_file_in_memory() {
    let can = conforms(&MemStorage::new(Vec::new()), &MemStorage::new(Vec::new()));
    assert_eq!(can, (false, false, true));
}

/// Length alone takes no memory: an image may claim any.
#[test]
fn a_file_in_memory_grows_without_taking_memory() {
    let file = MemStorage::new(vec![7; 100]);
    file.set_len(1 << 62).unwrap();
    assert_eq!(file.len().unwrap(), 1 << 62);
    assert_eq!(file.next_data(0).unwrap(), Some(0..100));
    assert_eq!(file.next_data(100).unwrap(), None);
    let mut read = [1; 64];
    file.read_exact_at(&mut read, 70).unwrap();
    assert_eq!((read[29], read[30]), (7, 0));
    file.read_exact_at(&mut read, (1 << 62) - 64).unwrap();
    assert_eq!(read, [0; 64]);
    assert_eq!(file.read_at(&mut read, (1 << 62) - 10).unwrap(), 10);
    assert!(file.zero(50..1 << 61).unwrap());
    assert_eq!(file.write_at(&[1], 1 << 62).unwrap_err().kind(), ErrorKind::OutOfMemory);
    assert_eq!(file.write_at(&[1], u64::MAX).unwrap_err().kind(), ErrorKind::FileTooLarge);
    file.set_len(120).unwrap();
    assert_eq!(file.into_bytes(), [[7; 50].as_slice(), &[0; 70]].concat());
}

#[test]
fn files_of_a_simulated_host() {
    let host = SimHost::default();
    assert_eq!(host_conforms(&host, Path::new(FOLDER)), (true, true, true));
    let by_hand = SimHost::default();
    by_hand.copy_by_hand();
    assert_eq!(host_conforms(&by_hand, Path::new(FOLDER)), (false, true, true));
}

#[test]
fn a_lock_that_is_given_up_is_for_others() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    let first = LocalHost.create_new(&path).unwrap();
    let second = LocalHost.open(&path, Access::ReadWrite).unwrap();
    assert_eq!(first.try_lock(LockMode::Exclusive).unwrap(), LockOutcome::Locked);
    assert!(matches!(second.try_lock(LockMode::Shared).unwrap(), LockOutcome::InUse(_)));
    first.unlock().unwrap();
    assert_eq!(first.try_lock(LockMode::Shared).unwrap(), LockOutcome::Locked);
    assert_eq!(second.try_lock(LockMode::Shared).unwrap(), LockOutcome::Locked);
    second.unlock().unwrap();
    drop(first);
    assert_eq!(second.try_lock(LockMode::Exclusive).unwrap(), LockOutcome::Locked);
}

#[test]
fn free_space_is_that_of_the_volume() {
    let folder = tempfile::tempdir().unwrap();
    if cfg!(unix) {
        let free = LocalHost.free_space(folder.path()).unwrap().unwrap();
        // As another program counts it, while others write.
        let said = std::process::Command::new("df")
            .args(["--output=avail", "-B1"])
            .arg(folder.path())
            .output();
        if let Ok(said) = said
            && let Some(Ok(said)) = String::from_utf8_lossy(&said.stdout)
                .lines()
                .nth(1)
                .map(|line| line.trim().parse::<u64>())
        {
            assert!(free.abs_diff(said) < said / 4 + (4 << 30), "{free}, and df says {said}");
        }
        assert!(LocalHost.free_space(Path::new("")).unwrap().is_some());
        let missing = LocalHost.free_space(&folder.path().join("no")).unwrap_err();
        assert_eq!(missing.kind(), ErrorKind::NotFound);
    }
    let host = SimHost::default();
    assert_eq!(host.free_space(Path::new(FOLDER)).unwrap(), None);
    host.set_free_space(Some(7));
    assert_eq!(host.free_space(Path::new(FOLDER)).unwrap(), Some(7));
}

#[test]
fn a_simulated_host_runs_out_of_space_at_the_chosen_step() {
    let host = SimHost::default();
    let file = host.create_new(&Path::new(FOLDER).join("file")).unwrap();
    let steps = || -> Vec<bool> {
        vec![
            file.write_at(&[1; 1024], 0).is_ok(),
            file.set_len(4096).is_ok(),
            file.set_len(512).is_ok(),
            file.flush().is_ok(),
            host.create_new(&Path::new(FOLDER).join("other")).is_ok(),
        ]
    };
    let count = host.run_out_at(1, Arrived::Nothing);
    // Calls that need no space succeed.
    assert_eq!(steps(), [true, false, true, true, false]);
    assert!(count.load(std::sync::atomic::Ordering::SeqCst) >= 3);
    let error = file.write_at(&[1], 0).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StorageFull);
    host.relent();
    assert_eq!(steps(), [true; 5]);
    drop(Arc::new(file));
}
