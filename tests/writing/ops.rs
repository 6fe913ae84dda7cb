//! Operations on images from the testkit's builder, compared with the naive reader.

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;

use avhdx::ops::{Compare, Explain, Export, Measure, Progress, Verdict};
use avhdx::storage::{MemStorage, Storage};
use avhdx::{DiffChain, Disk, ErrorKind, OpenOptions, RawDisk, VhdxFile};
use avhdx_testkit::build::{
    Block, Data, Descriptor, Image, LogEntry, random_chain, state, write_chain,
};
use avhdx_testkit::naive::{Chain, Who};
use uuid::Uuid;

fn raw(bytes: &[u8]) -> RawDisk {
    RawDisk::new(Arc::new(MemStorage::new(bytes.to_vec()))).unwrap()
}

fn alone(image: &Image) -> VhdxFile {
    OpenOptions::new().open_file(Arc::new(MemStorage::new(image.to_bytes()))).unwrap()
}

/// Random chains with each layer as the tip: the open chain, the naive reader, and the tip's number.
fn each_random_view(mut look: impl FnMut(&DiffChain, &Chain, usize)) {
    for seed in 0..12 {
        let folder = tempfile::tempdir().unwrap();
        let paths = write_chain(folder.path(), &random_chain(seed, 4));
        let naive = Chain::open(&paths).unwrap();
        for (tip, path) in paths.iter().enumerate() {
            look(&DiffChain::open(path).unwrap(), &naive, tip);
        }
    }
}

#[test]
fn exports_are_what_the_naive_reader_reads() {
    each_random_view(|chain, naive, tip| {
        let flat = naive.flat(tip).unwrap();
        // Previous contents are gone.
        let copy = MemStorage::new(vec![0xEE; flat.len() + 5000]);
        let exported = Export::new().run(chain, &copy).unwrap();
        assert!(copy.into_bytes() == flat);
        assert_eq!(exported.size, flat.len() as u64);
        // No page of zeros is written, and no byte of the others is missing.
        let used = |len: usize| {
            let pieces = flat.chunks(len).filter(|piece| piece.iter().any(|byte| *byte != 0));
            pieces.map(|piece| piece.len() as u64).sum::<u64>()
        };
        assert!((used(512)..=used(4096)).contains(&exported.written));

        let mut stream = Vec::new();
        Export::new().stream(chain, &mut stream).unwrap();
        assert!(stream == flat);
    });
}

#[test]
fn progress_rises_to_the_end_and_can_stop() {
    let mut image = Image::dynamic(9 << 20);
    image.put(4, Block::full(Data::Pattern(1)));
    let disk = alone(&image);
    let mut seen = Vec::new();
    let copy = MemStorage::new(Vec::new());
    let on = |now: Progress| {
        seen.push(now.done);
        assert_eq!(now.total, 9 << 20);
        ControlFlow::Continue(())
    };
    Export::new().on_progress(on).run(&disk, &copy).unwrap();
    assert!(seen.is_sorted());
    assert_eq!((seen[0], seen[seen.len() - 1]), (0, 9 << 20));

    let stop = |now: Progress| match now.done {
        0 => ControlFlow::Continue(()),
        _ => ControlFlow::Break(()),
    };
    let error = Export::new().on_progress(stop).run(&disk, &copy).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    let error = Compare::new().on_progress(stop).run(&disk, &disk).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
}

#[test]
fn comparisons_find_the_first_difference() {
    each_random_view(|chain, naive, tip| {
        let mut flat = naive.flat(tip).unwrap();
        let same = Compare::new().run(chain, &raw(&flat)).unwrap();
        assert!(same.same_contents() && same.same_size());
        // The later of two differences must not be reported.
        let (first, second) = (flat.len() / 3 + tip * 7, flat.len() - 1 - tip);
        for at in [second, first] {
            flat[at] ^= 0x80;
            for swap in [false, true] {
                let other = raw(&flat);
                let (a, b): (&dyn Disk, &dyn Disk) =
                    if swap { (&other, chain) } else { (chain, &other) };
                let found = Compare::new().run(a, b).unwrap().first_difference.unwrap();
                assert_eq!(found.offset, at as u64);
                let (changed, kept) = if swap { (found.a, found.b) } else { (found.b, found.a) };
                assert_eq!(changed, Some(flat[at]));
                assert_eq!(kept, Some(flat[at] ^ 0x80));
            }
        }
    });
}

#[test]
fn what_is_past_the_shorter_disk_counts_as_zeros() {
    let mut image = Image::dynamic(6 << 20);
    image.put(0, Block::full(Data::Pattern(1)));
    let flat = image.flat(None);
    let short = raw(&flat[..(1 << 20) + 512]);
    let found = Compare::new().run(&alone(&image), &short).unwrap();
    assert!(found.same_contents() && !found.same_size());
    assert_eq!((found.size_a, found.size_b), (6 << 20, (1 << 20) + 512));

    image.put(5, Block::full(Data::Bytes(vec![0, 0, 3])));
    let found = Compare::new().run(&short, &alone(&image)).unwrap();
    let difference = found.first_difference.unwrap();
    assert_eq!((difference.offset, difference.a, difference.b), ((5 << 20) + 2, None, Some(3)));
}

/// A comparison does not read ranges that both disks map to zeros: this disk fails on every read.
#[test]
fn zeros_are_not_read() {
    struct Unreadable(VhdxFile);
    impl Disk for Unreadable {
        fn geometry(&self) -> avhdx::Geometry {
            self.0.geometry()
        }
        fn read_at(&self, _: &mut [u8], offset: u64) -> avhdx::Result<()> {
            panic!("read at {offset}")
        }
        fn next_extent(&self, range: std::ops::Range<u64>) -> avhdx::Result<Option<avhdx::Extent>> {
            self.0.next_extent(range)
        }
    }
    let disk = Unreadable(alone(&Image::dynamic(1 << 40)));
    assert!(Compare::new().run(&disk, &disk).unwrap().same_contents());
    let needed = Measure::raw().run(&disk).unwrap();
    assert_eq!((needed.required, needed.fully_allocated), (0, 1 << 40));
}

#[test]
fn measures() {
    // 10 MiB and a bit: the last block is partial. Data in blocks 0 and 3 and in the last.
    let size = (10 << 20) + 3 * 4096;
    let mut base = Image::dynamic(size);
    base.put(0, Block::full(Data::Pattern(1)));
    base.put(10, Block::full(Data::Pattern(2)));
    let mut child = base.new_child();
    // Sectors 7 to 9 touch two pages; sector 16 another one.
    child.put(3, Block::partial_runs(Data::Pattern(3), &[(7, 3), (16, 1)]));
    child.put(0, Block::bare(state::ZERO));
    let folder = tempfile::tempdir().unwrap();
    let paths = write_chain(folder.path(), &[base, child]);
    let (base, child) = (DiffChain::open(&paths[0]).unwrap(), DiffChain::open(&paths[1]).unwrap());
    let of = |measure: Measure, chain: &DiffChain| {
        let needed = measure.run(chain).unwrap();
        (needed.required, needed.fully_allocated)
    };
    const MIB: u64 = 1 << 20;
    let full = 10 * MIB + 3 * 4096;
    assert_eq!(of(Measure::raw(), &base), (MIB + 3 * 4096, full));
    assert_eq!(of(Measure::raw(), &child), (3 * 4096 + 3 * 4096, full));
    // Header section, log, metadata and table take 1 MiB each.
    assert_eq!(of(Measure::vhdx(1 << 20), &base), (4 * MIB + 2 * MIB, 4 * MIB + 11 * MIB));
    assert_eq!(of(Measure::vhdx(1 << 20), &child), (4 * MIB + 2 * MIB, 4 * MIB + 11 * MIB));
    // Blocks 0 and 3 lie in one block of 4 MiB.
    assert_eq!(of(Measure::vhdx(4 << 20), &child), (4 * MIB + 8 * MIB, 4 * MIB + 12 * MIB));
    assert_eq!(of(Measure::vhdx_fixed(4 << 20), &child), (16 * MIB, 16 * MIB));
    for wrong in [0, 1, 512 << 10, 3 << 20, 512 << 20] {
        let error = Measure::vhdx(wrong).run(&base).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
    // 1 TiB in blocks of 1 MiB: 2^20 entries, plus one for each 4096, of 8 bytes; that is a table
    // of 8 MiB and 2 KiB, rounded up to whole MiB.
    let huge = alone(&Image::dynamic(1 << 40));
    assert_eq!(Measure::vhdx(1 << 20).run(&huge).unwrap().required, 3 * MIB + 9 * MIB);
}

#[test]
fn explanations_agree_with_the_naive_reader() {
    each_random_view(|chain, naive, tip| {
        let size = chain.geometry().size;
        let sector = u64::from(chain.geometry().logical_sector);
        for at in (0..size).step_by(37 * 512 + 11) {
            let explanation = Explain::new(at).run(chain).unwrap();
            assert_eq!(explanation.offset, at);
            let depth = explanation.layers.len() - 1;
            let (last, above) = explanation.layers.split_last().unwrap();
            assert!(above.iter().all(|layer| matches!(layer.verdict, Verdict::Parent)));
            let who = naive.who(tip, at / sector).unwrap();
            match (&last.verdict, who) {
                (Verdict::Data { at: found, .. }, Who::Data { layer, at: expected }) => {
                    assert_eq!((depth, found.get()), (tip - layer, expected + at % sector));
                }
                (Verdict::Zero, Who::Zero { layer: Some(layer) }) => assert_eq!(depth, tip - layer),
                (Verdict::Zero | Verdict::PastEnd, Who::Zero { layer: None }) => {}
                (verdict, who) => panic!("at {at}: {verdict:?}, but {who:?}"),
            }
        }
    });
}

#[test]
fn explanations_name_what_the_file_holds() {
    let folder = tempfile::tempdir().unwrap();
    let mut base = Image::dynamic(3 << 20);
    base.logical_sector = 4096;
    let mut child = base.new_child();
    child.put(2, Block::partial_runs(Data::Pattern(3), &[(5, 2)]));
    let layout = child.layout();
    let paths = write_chain(folder.path(), &[base, child]);
    let bytes = std::fs::read(&paths[1]).unwrap();
    let chain = DiffChain::open(&paths[1]).unwrap();
    let explanation = Explain::new((2 << 20) + 6 * 4096 + 9).run(&chain).unwrap();
    let block = explanation.layers[0].block.as_ref().unwrap();
    let number = |at: u64| u64::from_le_bytes(bytes[at as usize..][..8].try_into().unwrap());

    assert_eq!((block.block, block.within), (2, 6 * 4096 + 9));
    assert_eq!(block.entry.index, 2);
    assert_eq!(block.entry.at.get(), layout.payload_entry(2).start);
    assert_eq!(block.entry.raw, number(layout.payload_entry(2).start));
    assert_eq!(block.entry.state, "PAYLOAD_BLOCK_PARTIALLY_PRESENT");
    let bitmap = block.bitmap.as_ref().unwrap();
    let entry = bitmap.entry.as_ref().unwrap();
    assert_eq!(bitmap.chunk, 0);
    assert_eq!(entry.at.get(), layout.bitmap_entry(0).start);
    assert_eq!(entry.raw, number(layout.bitmap_entry(0).start));
    let bit = bitmap.bit.as_ref().unwrap();
    // 256 sectors to a block, so bit 512 + 6.
    assert_eq!((bit.index, bit.bit, bit.is_set), (518, 6, true));
    assert_eq!(bit.at.get(), layout.bitmaps[&0] + 518 / 8);
    assert_eq!(bytes[bit.at.get() as usize] >> 6 & 1, 1);

    let outside = Explain::new(3 << 20).run(&chain).unwrap_err();
    assert_eq!(outside.kind(), ErrorKind::InvalidInput);
}

#[test]
fn explanations_show_what_is_wrong_with_the_tables() {
    let folder = tempfile::tempdir().unwrap();
    let base = Image::dynamic(3 << 20);
    let mut child = base.new_child();
    child.put(1, Block::partial_runs(Data::Pattern(3), &[(0, 9)]));
    // The bitmap's entry says that there is no bitmap.
    child.bat_override.insert(child.bitmap_index(0), 0);
    let paths = write_chain(folder.path(), &[base, child]);
    let chain = DiffChain::open(&paths[1]).unwrap();
    let explanation = Explain::new(1 << 20).run(&chain).unwrap();
    let [layer] = &explanation.layers[..] else { panic!("{explanation:?}") };
    let bitmap = layer.block.as_ref().unwrap().bitmap.as_ref().unwrap();
    assert_eq!(bitmap.entry.as_ref().unwrap().state, "SB_BLOCK_NOT_PRESENT");
    assert!(bitmap.bit.is_none());
    let Verdict::Unreadable(error) = &layer.verdict else { panic!("{layer:?}") };
    assert_eq!(error.code(), "bat.bitmap-missing");
}

/// No writer logs payload, but a file may: extents then fail, and reads work.
#[test]
fn a_log_over_payload_can_be_read() {
    let mut image = Image::dynamic(4 << 20);
    image.put(1, Block::full(Data::Pattern(1)));
    let at = image.layout().get("payload:1").start + 8192;
    image.log.push(LogEntry::new(1, vec![Descriptor::data(at, vec![0x5A; 4096])]));
    image.set_log_guid(Uuid::from_u128(5));
    let disk = alone(&image);
    assert_eq!(disk.next_extent(1 << 20..2 << 20).unwrap_err().kind(), ErrorKind::LogOverlay);

    let mut flat = image.flat(None);
    flat[(1 << 20) + 8192..][..4096].fill(0x5A);
    let copy = MemStorage::new(Vec::new());
    Export::new().run(&disk, &copy).unwrap();
    assert!(copy.into_bytes() == flat);
    assert!(Compare::new().run(&disk, &raw(&flat)).unwrap().same_contents());
    assert!(Measure::raw().run(&disk).unwrap().required >= 1 << 20);

    let folder = tempfile::tempdir().unwrap();
    image.write_to(folder.path().join("a.vhdx"));
    let chain = DiffChain::open(folder.path().join("a.vhdx")).unwrap();
    let explanation = Explain::new((1 << 20) + 8192).run(&chain).unwrap();
    let Verdict::Data { log_entry, .. } = explanation.layers[0].verdict else { panic!() };
    assert_eq!(log_entry, Some(1));
}

#[test]
fn what_the_host_says_to_writing_is_passed_on() {
    struct Full;
    impl io::Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let disk = raw(&[1; 10]);
    let error = Export::new().stream(&disk, &mut Full).unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::Io, "export.write"));
    let source = std::error::Error::source(&error).unwrap().downcast_ref::<io::Error>().unwrap();
    assert_eq!(source.kind(), io::ErrorKind::StorageFull);

    /// A file on a file system with room for 4 KiB.
    #[derive(Debug)]
    struct Small(MemStorage);
    impl Storage for Small {
        fn name(&self) -> &str {
            "small"
        }
        fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
            self.0.read_at(buf, offset)
        }
        fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
            match offset + buf.len() as u64 {
                0..=4096 => self.0.write_at(buf, offset),
                _ => Err(io::ErrorKind::StorageFull.into()),
            }
        }
        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
        fn len(&self) -> io::Result<u64> {
            self.0.len()
        }
        fn set_len(&self, len: u64) -> io::Result<()> {
            self.0.set_len(len)
        }
    }
    let small = Small(MemStorage::new(Vec::new()));
    let error = Export::new().run(&raw(&[1; 10_000]), &small).unwrap_err();
    assert_eq!((error.code(), error.file()), ("export.write", Some("small")));
}
