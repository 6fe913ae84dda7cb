//! Single reads, writes and zeros over many blocks, layers and buffers, and copies between files
//! by storages.

use std::io::IoSliceMut;
use std::sync::Arc;

use avhdx::ops::Checkpoint;
use avhdx::storage::{Access, Host, LocalHost, MemStorage, Storage};
use avhdx::{Budget, CreateOptions, Disk, OpenOptions, Zeroing};
use avhdx_testkit::naive;
use avhdx_testkit::rng::pattern;

use super::sim::SimHost;
use super::{MIB, Model, base, file, longest_run};

fn numbered(len: u64) -> Vec<u8> {
    let mut bytes = vec![0; len as usize];
    pattern(9, 0, &mut bytes);
    bytes
}

/// Alternating runs of three layers, read in one call, starting within sectors, and in buffers of odd lengths.
#[test]
fn one_read_takes_in_many_long_runs() {
    const SIZE: u64 = 40 * MIB + 512;
    let sim = SimHost::default();
    let host: Arc<dyn Host> = Arc::new(sim.clone());
    let options = CreateOptions::dynamic(SIZE).block_size(1 << 20);
    let chain = base(&host, &file("l0.vhdx"), options);
    let mut model = Model::new(SIZE);
    model.write(&chain, 1, 512..SIZE);
    for (n, block, part) in [
        (1, 32, 2 * MIB + 512..20 * MIB),
        (2, 2, 21 * MIB..39 * MIB + 1024),
        (3, 1, 30 * MIB + 3 * 512..31 * MIB),
    ] {
        let made = Checkpoint::new().path(file(&format!("l{n}.avhdx"))).block_size(block << 20);
        made.run(&chain).unwrap();
        model.write(&chain, n + 1, part);
    }
    chain.write_zeroes(35 * MIB..36 * MIB, Zeroing::MayUnmap).unwrap();
    model.zeroed(35 * MIB..36 * MIB);
    chain.close().unwrap();
    assert!(longest_run(&chain) > 17 * MIB);
    for budget in [0, 64 << 20] {
        let options = OpenOptions::new().host(Arc::clone(&host)).budget(Budget::new(budget));
        let chain = options.open(file("l3.avhdx")).unwrap();
        for round in 0..2 {
            model.reads(&chain, &format!("budget {budget}, round {round}"));
            let (first, last) = (511, SIZE as usize - 77);
            let mut found = vec![0xAA; last - first];
            chain.read_at(&mut found, first as u64).unwrap();
            assert!(found == model.0[first..last]);
            // More buffers for one run than one read fills.
            found.fill(0xAA);
            let mut bufs: Vec<_> = found.chunks_mut(345_678).map(IoSliceMut::new).collect();
            assert!(longest_run(&chain) > 2 * 16 * 345_678);
            chain.read_vectored_at(&mut bufs, first as u64).unwrap();
            assert!(found == model.0[first..last]);
        }
    }
}

/// Into existing blocks, adjacent in the file or not, and into blocks without space.
#[test]
fn one_write_goes_to_more_blocks_than_are_held_at_once() {
    for (size, options, first) in [
        (67 * MIB, CreateOptions::fixed(67 * MIB).block_size(1 << 20), None),
        (20 * MIB, CreateOptions::dynamic(20 * MIB).block_size(1 << 20), Some(9 * MIB..13 * MIB)),
        (20 * MIB, CreateOptions::dynamic(20 * MIB).block_size(64 << 20), Some(MIB..MIB + 5)),
    ] {
        let storage: Arc<dyn Storage> = Arc::new(MemStorage::new(Vec::new()));
        drop(options.create_in(&LocalHost, Arc::clone(&storage)).unwrap());
        let image = OpenOptions::new().writable(true).open_file(Arc::clone(&storage)).unwrap();
        let mut model = Model::new(size);
        if let Some(first) = first {
            model.write(&image, 1, first);
        }
        // The second time over existing data.
        for seed in [2, 3] {
            model.write(&image, seed, seed * 100..size - 700 * seed);
            model.reads(&image, "written");
        }
        image.close().unwrap();
        drop(image);
        let mut bytes = vec![0; storage.len().unwrap() as usize];
        storage.read_exact_at(&mut bytes, 0).unwrap();
        model.is(&naive::Chain::from_bytes([bytes]).unwrap().flat(0).unwrap(), "closed");
    }
}

/// Within one long block, over many short ones, and where a parent shows.
#[test]
fn zeros_longer_than_the_zeros_at_hand_are_written_whole() {
    const SIZE: u64 = 40 * MIB;
    for block in [1, 32] {
        for how in [Zeroing::KeepSpace, Zeroing::MayUnmap] {
            let sim = SimHost::default();
            let host: Arc<dyn Host> = Arc::new(sim.clone());
            let options = CreateOptions::dynamic(SIZE).block_size(block << 20);
            let chain = base(&host, &file("base.vhdx"), options);
            let mut model = Model::new(SIZE);
            model.write(&chain, 1, 0..SIZE);
            let part = 2 * MIB + 100..21 * MIB + 700;
            chain.write_zeroes(part.clone(), how).unwrap();
            model.zeroed(part);
            model.reads(&chain, "a base");
            let made = Checkpoint::new().path(file("tip.avhdx")).block_size(block << 20);
            made.run(&chain).unwrap();
            model.write(&chain, 2, MIB..30 * MIB);
            for part in [5 * MIB + 1..24 * MIB + 3, 28 * MIB..39 * MIB] {
                chain.write_zeroes(part.clone(), how).unwrap();
                model.zeroed(part);
            }
            model.reads(&chain, "a tip");
            // The whole of the first block, which may be a long one.
            let first = 0..u64::from(block) * MIB;
            chain.write_zeroes(first.clone(), how).unwrap();
            model.zeroed(first);
            model.write(&chain, 3, 7 * MIB..7 * MIB + 512);
            chain.close().unwrap();
            model.is_in(&sim, &["base.vhdx", "tip.avhdx"], "closed");
        }
    }
}

/// A long block in space that another block used: none of the old data shows.
#[test]
fn a_long_block_in_space_that_was_another_s_is_zeros_but_for_what_is_written() {
    const BLOCK: u64 = 32 * MIB;
    let storage: Arc<dyn Storage> = Arc::new(MemStorage::new(Vec::new()));
    let options = CreateOptions::dynamic(3 * BLOCK).block_size(BLOCK as u32);
    drop(options.create_in(&LocalHost, Arc::clone(&storage)).unwrap());
    let image = OpenOptions::new().writable(true).open_file(Arc::clone(&storage)).unwrap();
    let mut model = Model::new(3 * BLOCK);
    model.write(&image, 1, 0..2 * BLOCK);
    image.discard(0..BLOCK).unwrap();
    model.zeroed(0..BLOCK);
    // Freed space is available once the change is durable.
    image.flush().unwrap();
    let before = storage.len().unwrap();
    model.write(&image, 2, 2 * BLOCK + 3 * MIB + 512..2 * BLOCK + 4 * MIB);
    assert_eq!(storage.len().unwrap(), before, "it was reused");
    model.reads(&image, "written");
    image.close().unwrap();
}

/// Copies by the host from and to any offset, and the contents of a file in memory.
#[test]
fn storages_move_more_than_a_piece() {
    let bytes = numbered(40 * MIB);
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::write(at("from"), &bytes).unwrap();
    let from = LocalHost.open(&at("from"), Access::Read).unwrap();
    let to = LocalHost.create_new(&at("to")).unwrap();
    to.write_at(&[7; 3 << 20], 0).unwrap();
    let (from_at, to_at, len) = (3 * MIB + 512, MIB + 1024, 33 * MIB + 512);
    let is_copied = to.copy_from(from.as_ref(), from_at, to_at, len).unwrap();
    assert!(is_copied || !cfg!(target_os = "linux"), "this machine can, within a folder");
    if is_copied {
        let found = std::fs::read(at("to")).unwrap();
        let (start, end) = (to_at as usize, (to_at + len) as usize);
        assert!(found[..start] == [7; 3 << 20][..start]);
        assert!(found[start..end] == bytes[from_at as usize..][..len as usize]);
        assert_eq!(found.len(), end);
    }
    let memory = MemStorage::new(bytes[..MIB as usize].to_vec());
    memory.reserve(20 * MIB + 77).unwrap();
    assert_eq!(memory.len().unwrap(), 20 * MIB + 77);
    memory.write_at(&bytes[5 << 20..], 18 * MIB).unwrap();
    let mut found = vec![0xAA; 54 << 20];
    assert_eq!(memory.read_at(&mut found, 0).unwrap(), 53 << 20);
    assert!(found[..1 << 20] == bytes[..1 << 20]);
    assert!(found[1 << 20..18 << 20].iter().all(|byte| *byte == 0));
    assert!(found[18 << 20..53 << 20] == bytes[5 << 20..]);
    memory.zero(20 * MIB + 1..50 * MIB - 1).unwrap();
    let found = memory.into_bytes();
    assert!(found[20 << 20] == bytes[7 << 20] && found[(50 << 20) - 1] == bytes[(37 << 20) - 1]);
    assert!(found[(20 << 20) + 1..(50 << 20) - 1].iter().all(|byte| *byte == 0));
    assert!(found[50 << 20..] == bytes[37 << 20..]);
}
