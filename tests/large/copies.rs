//! Copies, comparisons and proofs of disks that are mostly one run, and copies within an image.

use std::path::Path;
use std::sync::Arc;

use avhdx::ops::{AcceptLoss, Compare, Export, Reparent};
use avhdx::storage::{Access, Host, LocalHost, MemStorage, Storage};
use avhdx::{CreateOptions, DiffChain, Disk, ErrorKind, OpenOptions, RawDisk};
use avhdx_testkit::build::{Block, Data, Image};
use avhdx_testkit::naive;

use super::sim::{Bytes, Files, SimHost};
use super::{MIB, Model, base, file, longest_run, writable};

const SIZE: u64 = 25 * MIB + 512;
/// How many bytes are read at once.
const WINDOW: u64 = 2 * MIB;

/// A tip with one run of eight windows over a base with another.
fn chain(host: &Arc<dyn Host>, folder: &Path) -> (DiffChain, Model) {
    let options = CreateOptions::dynamic(SIZE).block_size(1 << 20);
    let chain = base(host, &folder.join("base.vhdx"), options);
    let mut model = Model::new(SIZE);
    model.write(&chain, 1, MIB + 512..21 * MIB);
    let made = avhdx::ops::Checkpoint::new().path(folder.join("tip.avhdx")).block_size(32 << 20);
    made.run(&chain).unwrap();
    model.write(&chain, 2, 5 * MIB + 1024..22 * MIB + 512);
    chain.flush().unwrap();
    assert!(longest_run(&chain) > 8 * WINDOW);
    (chain, model)
}

fn in_memory() -> (SimHost, DiffChain, Model) {
    let sim = SimHost::default();
    let host: Arc<dyn Host> = Arc::new(sim.clone());
    let (chain, model) = chain(&host, &file(""));
    (sim, chain, model)
}

#[test]
fn a_long_run_is_exported_whole_to_files_and_streams() {
    let (_, chain, model) = in_memory();
    let copy = MemStorage::new(vec![0xEE; 30 << 20]);
    let exported = Export::new().run(&chain, &copy).unwrap();
    assert_eq!(exported.size, SIZE);
    model.is(&copy.into_bytes(), "in memory");
    let mut stream = Vec::new();
    Export::new().stream(&chain, &mut stream).unwrap();
    model.is(&stream, "as a stream");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("raw");
    let copy = LocalHost.create_new(&path).unwrap();
    Export::new().run(&chain, copy.as_ref()).unwrap();
    model.is(&std::fs::read(&path).unwrap(), "on this machine");
    // And back from there, where holes are told from data.
    let disk = RawDisk::new(LocalHost.open(&path, Access::Read).unwrap()).unwrap();
    let copy = MemStorage::new(Vec::new());
    Export::new().run(&disk, &copy).unwrap();
    model.is(&copy.into_bytes(), "from a file with holes");
}

#[test]
fn a_long_run_is_copied_whole_onto_images_of_all_kinds() {
    let (_, chain, model) = in_memory();
    for (what, options) in [
        ("dynamic, small blocks", CreateOptions::dynamic(SIZE).block_size(1 << 20)),
        ("dynamic, one block", CreateOptions::dynamic(SIZE).block_size(64 << 20)),
        ("fixed", CreateOptions::fixed(SIZE).block_size(2 << 20)),
    ] {
        let copy: Arc<MemStorage> = Arc::new(MemStorage::new(Vec::new()));
        let storage: Arc<dyn Storage> = copy.clone();
        let image = options.create_in(&LocalHost, storage).unwrap();
        Export::new().onto(&chain, &image).unwrap();
        model.reads(&image, what);
        image.close().unwrap();
        drop(image);
        let copy = Arc::into_inner(copy).unwrap().into_bytes();
        model.is(&naive::Chain::from_bytes([copy]).unwrap().flat(0).unwrap(), what);
    }
}

#[test]
fn a_comparison_finds_a_byte_however_deep_in_a_long_run() {
    let (_, chain, model) = in_memory();
    let raw = |bytes: &[u8]| RawDisk::new(Arc::new(MemStorage::new(bytes.to_vec()))).unwrap();
    let same = Compare::new().run(&chain, &raw(&model.0)).unwrap();
    assert!(same.same_contents() && same.same_size());
    // Both halves of the first bytes of windows, and their last ones.
    for at in [2 * WINDOW, 3 * WINDOW, 6 * WINDOW - 1, 8 * WINDOW + 77, 22 * MIB + 511, SIZE - 1] {
        let mut other = Model(model.0.clone());
        other.0[at as usize] ^= 1;
        // A later difference as well.
        other.0[SIZE as usize - 1] ^= 2;
        let found = Compare::new().run(&chain, &raw(&other.0)).unwrap();
        let found = found.first_difference.unwrap();
        let byte = |model: &Model| Some(model.0[at as usize]);
        assert_eq!((found.offset, found.a, found.b), (at, byte(&model), byte(&other)));
    }
}

/// The image leaves one long run to its parent, which in the other parent differs in one byte, or not at all.
#[test]
fn a_proof_reads_all_of_a_long_run() {
    let bytes = {
        let mut model = Model::new(SIZE);
        let disk = RawDisk::new(Arc::new(MemStorage::new(model.0.clone()))).unwrap();
        model.write(&disk, 3, 0..SIZE);
        model.0
    };
    for wrong in [None, Some(2 * MIB), Some(17 * MIB + 511), Some(SIZE - 1)] {
        let sim = SimHost::default();
        let host: Arc<dyn Host> = Arc::new(sim.clone());
        for (name, block, is_other) in [("base.vhdx", 1, false), ("other.vhdx", 32, true)] {
            let mut bytes = bytes.clone();
            if let (Some(wrong), true) = (wrong, is_other) {
                bytes[wrong as usize] ^= 0x10;
            }
            let options = CreateOptions::dynamic(SIZE).block_size(block << 20);
            let image = base(&host, &file(name), options);
            image.write_at(&bytes, 0).unwrap();
            image.close().unwrap();
        }
        let options = OpenOptions::new().host(Arc::clone(&host));
        let parent = options.open_image(file("base.vhdx")).unwrap();
        let child = CreateOptions::child_of(&parent).unwrap();
        drop(child.create_on(Arc::clone(&host), file("tip.avhdx")).unwrap());
        drop(parent);
        let reparent = Reparent::new(file("other.vhdx")).options(options);
        let done = reparent.run(file("tip.avhdx"));
        let Some(wrong) = wrong else {
            assert_eq!(done.unwrap().proven, SIZE);
            continue;
        };
        let error = done.unwrap_err();
        assert_eq!((error.kind(), error.code()), (ErrorKind::Unproven, "reparent.differs"));
        assert!(error.to_string().contains(&format!("byte {wrong} ")), "{error}");
    }
}

/// Two blocks of 32 MiB at the same offset: each gets its own copy of the bytes.
#[test]
fn a_long_block_that_two_share_is_copied_whole() {
    const BLOCK: u64 = 32 * MIB;
    let mut image = Image::dynamic(2 * BLOCK + MIB);
    image.block_size = BLOCK as u32;
    image.put(0, Block::full(Data::Pattern(1)));
    let at = image.layout().payload[&0];
    image.put(1, Block::full(Data::None).at(at));
    let mut files = Files::default();
    let mut there = Bytes::default();
    there.write(0, &image.to_bytes());
    *files.file_mut(0) = there;
    files.names.insert(file("base.vhdx"), 0);
    let sim = SimHost::new(files);
    let options = OpenOptions::new().host(Arc::new(sim.clone()));
    let accept = AcceptLoss::new().options(options);
    let losses =
        accept.run(file("base.vhdx"), &mut |_| std::ops::ControlFlow::Continue(())).unwrap();
    assert_eq!(losses.bytes(), 0);
    let mut model = Model::new(2 * BLOCK + MIB);
    avhdx_testkit::rng::pattern(1, 0, &mut model.0[..BLOCK as usize]);
    model.0.copy_within(..BLOCK as usize, BLOCK as usize);
    model.is_in(&sim, &["base.vhdx"], "mended");
    // The copies are independent.
    let host: Arc<dyn Host> = Arc::new(sim.clone());
    let chain = writable(&host, &file("base.vhdx"));
    model.write(&chain, 5, 20 * MIB..40 * MIB);
    model.reads(&chain, "written");
    chain.close().unwrap();
    model.is_in(&sim, &["base.vhdx"], "written");
}
