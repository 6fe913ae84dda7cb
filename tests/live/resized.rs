//! Disks that get another size while they are in use.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use avhdx::ops::{Checkpoint, Compact, Merge, Resize};
use avhdx::storage::Host;
use avhdx::{
    CreateOptions, DiffChain, Disk, ErrorKind, OpenOptions, PlannedWrite, Since, TrackingOptions,
    Zeroing,
};
use avhdx_testkit::naive;
use avhdx_testkit::rng::Rng;

use super::sim::{Arrived, FOLDER, Files, SimHost};
use super::{MIB, base, bytes, naively, paths, writable};

const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

fn is_long() -> bool {
    std::env::var_os("AVHDX_LONG").is_some_and(|long| long == "1")
}

/// The first byte behind `size` that is not zero.
fn behind(model: &[u8], size: usize) -> Option<u64> {
    let place = model.get(size..)?.iter().position(|byte| *byte != 0)?;
    Some((size + place) as u64)
}

/// Resizes as the model says: with consent where bytes are lost, and refused without.
fn resize(chain: &DiffChain, model: &mut Vec<u8>, size: u64, what: &str) {
    let cut = behind(model, size as usize);
    let forecast = Resize::to(size).forecast(chain).unwrap_or_else(|e| panic!("{what}: {e}"));
    let now = model.len() as u64;
    assert_eq!((forecast.from, forecast.to, forecast.first_cut), (now, size, cut), "{what}");
    assert_eq!(forecast.needs.cut, now.saturating_sub(size), "{what}");
    if let Some(at) = cut {
        for refused in [forecast.check().unwrap_err(), Resize::to(size).run(chain).unwrap_err()] {
            assert_eq!((refused.kind(), refused.code()), (ErrorKind::WouldLose, "resize.cuts"));
            assert!(refused.found().unwrap().contains(&format!(" {at} ")), "{what}: {refused}");
        }
        assert!(bytes(chain) == *model, "{what}: refused");
    }
    let resized = Resize::to(size).shrink(cut.is_some()).run(chain);
    let resized = resized.unwrap_or_else(|e| panic!("{what}: {e}"));
    assert_eq!((resized.from, resized.to), (now, size), "{what}");
    assert_eq!(resized.tip, chain.tip().id(), "{what}");
    assert!(resized.warnings.is_empty(), "{what}: {:?}", resized.warnings);
    assert!(resized.file_len <= forecast.file_len_after, "{what}: {forecast:?}");
    model.resize(size as usize, 0);
    assert_eq!(chain.geometry().size, size, "{what}");
    let error = chain.write_at(&[1], size).unwrap_err();
    assert_eq!(error.code(), "disk.out-of-range", "{what}");
}

/// Bases, fixed disks and children, larger and smaller than what lies below, against a flat model.
#[test]
fn a_disk_of_any_size_reads_as_a_flat_one() {
    let seeds = if is_long() { 60 } else { 8 };
    for seed in 0..seeds {
        let folder = tempfile::tempdir().unwrap();
        let mut rng = Rng::new(seed);
        let first = 4 * MIB + 512 * rng.below(4096);
        let chain = match seed % 4 {
            0 => {
                let path = folder.path().join("web.vhdx");
                let options = CreateOptions::fixed(first).block_size(1 << 20);
                drop(options.create(&path).unwrap());
                writable(&path)
            }
            _ => base(folder.path(), first),
        };
        let mut model = vec![0; first as usize];
        for step in 0..30 {
            let what = format!("seed {seed}, step {step}");
            let size = model.len() as u64;
            match rng.below(10) {
                0 if chain.layers().len() < 5 => {
                    let made = Checkpoint::new().block_size(1 << (20 + rng.below(2)));
                    made.run(&chain).unwrap();
                }
                1..5 => {
                    let sectors = match rng.below(3) {
                        0 => rng.below(12 * 2048) + 1,
                        1 => (rng.below(12) + 1) * 2048,
                        _ => size / 512 + 1 - rng.below(3).min(size / 512),
                    };
                    resize(&chain, &mut model, sectors * 512, &what);
                }
                5 => {
                    let start = rng.below(size);
                    let range = start..start + 1 + rng.below(size - start);
                    let how = [Zeroing::MayUnmap, Zeroing::KeepSpace][rng.below(2) as usize];
                    chain.write_zeroes(range.clone(), how).unwrap();
                    model[range.start as usize..range.end as usize].fill(0);
                }
                6 => chain.close().unwrap(),
                _ => {
                    let start = rng.below(size);
                    let most = 1 << (9 + rng.below(13));
                    let len = 1 + rng.below((size - start).min(most));
                    let with = 1 + rng.below(255) as u8;
                    chain.write_at(&vec![with; len as usize], start).unwrap();
                    model[start as usize..(start + len) as usize].fill(with);
                }
            }
            assert!(bytes(&chain) == model, "{what}");
        }
        chain.flush().unwrap();
        assert!(naively(&paths(&chain)) == model, "seed {seed}");
        let paths = paths(&chain);
        drop(chain);
        for path in &paths {
            let report = avhdx::ops::Check::new().run(path).unwrap();
            assert!(report.is_sound(), "seed {seed}: {report:?}");
        }
        // What lies below the tip follows it into one file.
        let chain = writable(&paths[0]);
        while chain.layers().len() > 1 {
            Merge::new(chain.layers()[0].id).shrink(true).run(&chain).unwrap();
        }
        assert!(bytes(&chain) == model, "seed {seed}, merged");
    }
}

#[test]
fn a_disk_grows_from_1_gib_to_64_tib_and_back() {
    let blocks: &[u32] = if is_long() { &[1 << 20, 32 << 20] } else { &[32 << 20] };
    for block in blocks {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("web.vhdx");
        drop(CreateOptions::dynamic(GIB).block_size(*block).create(&path).unwrap());
        let chain = writable(&path);
        let mut expected = vec![(0, 1), (GIB - 512, 2)];
        let write = |at: u64, with: u8| chain.write_at(&[with; 512], at).unwrap();
        expected.iter().for_each(|(at, with)| write(*at, *with));
        let mut told = String::new();
        for (size, moves) in [(64 * TIB, true), (GIB, true), (2 * GIB, false), (64 * TIB, true)] {
            let forecast = Resize::to(size).shrink(true).forecast(&chain).unwrap();
            assert_eq!(forecast.moves_table, moves, "{size} bytes in blocks of {block}");
            let start = std::time::Instant::now();
            let resized = Resize::to(size).shrink(true).run(&chain).unwrap();
            told += &format!("{} MiB: {} KiB, ", size / MIB, resized.file_len / 1024);
            told += &format!("{} ms; ", start.elapsed().as_millis());
            expected.retain(|(at, _)| *at < size);
            for (at, with) in &expected {
                let mut sector = [0; 512];
                chain.read_at(&mut sector, *at).unwrap();
                assert_eq!(sector, [*with; 512], "at {at}");
            }
            let end = size - 512;
            if !expected.iter().any(|(at, _)| *at == end) {
                let mut sector = [9; 512];
                chain.read_at(&mut sector, end).unwrap();
                assert_eq!(sector, [0; 512], "new space");
                write(end, 3);
                expected.push((end, 3));
            }
            chain.flush().unwrap();
        }
        println!("blocks of {} MiB: {told}", block >> 20);
        let layer = naive::Layer::open(&path).unwrap();
        assert_eq!((layer.size, layer.faults()), (64 * TIB, vec![]));
        // The table is back where the first one was; what the large ones have left behind goes.
        let resized = Resize::to(GIB).shrink(true).run(&chain).unwrap();
        expected.retain(|(at, _)| *at < GIB);
        let forecast = Compact::new().forecast(&chain).unwrap();
        let done = Compact::new().run(&chain).unwrap();
        assert_eq!((done, done.file_len_before), (forecast.outcome, resized.file_len));
        assert_eq!((done.file_len, done.table), (4 * MIB + 2 * u64::from(*block), 0));
        write(GIB / 2, 4);
        expected.push((GIB / 2, 4));
        drop(chain);
        let layer = naive::Layer::open(&path).unwrap();
        assert_eq!((layer.size, layer.faults()), (GIB, vec![]));
        let naive = naive::Chain(vec![layer]);
        for (at, with) in expected {
            assert_eq!(naive.read(0, at, 512).unwrap(), [with; 512], "at {at}");
        }
    }
}

/// Two writers count in their own sectors, one of them also behind the end, while the size changes: what was
/// acknowledged is read at once and afterwards, through the chain and through its image.
#[test]
fn writers_go_on_in_the_resized_image() {
    const SECTORS: u64 = 2048;
    for with_parent in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let chain = base(folder.path(), 4 * MIB);
        chain.write_at(&[0xEE; 3 << 20], 512).unwrap();
        if with_parent {
            Checkpoint::new().block_size(1 << 20).run(&chain).unwrap();
        }
        chain.write_zeroes(0..2 * SECTORS * 512, Zeroing::MayUnmap).unwrap();
        let told: Vec<AtomicU64> = (0..2 * SECTORS).map(|_| AtomicU64::new(0)).collect();
        let (over, refused) = (AtomicBool::new(false), AtomicU64::new(0));
        let beyond = AtomicU64::new(0);
        std::thread::scope(|scope| {
            let (chain, told, over) = (&chain, &told, &over);
            let (refused, beyond) = (&refused, &beyond);
            for writer in 0..2 {
                scope.spawn(move || {
                    let (chain, mut rng) = (chain.clone(), Rng::new(writer));
                    for count in 1_u64.. {
                        if over.load(Ordering::SeqCst) {
                            break;
                        }
                        let sector = 2 * rng.below(SECTORS) + writer;
                        let block = sector / 2048 * MIB;
                        if rng.chance(1, 300) && writer == 0 {
                            // Space is freed, and used again after the flush.
                            chain.flush().unwrap();
                        }
                        chain.write_at(&count.to_le_bytes().repeat(64), sector * 512).unwrap();
                        told[sector as usize].store(count, Ordering::SeqCst);
                        if rng.chance(1, 40) {
                            let at = 4 * MIB + block % (4 * MIB);
                            match chain.write_zeroes(at..at + MIB, Zeroing::MayUnmap) {
                                Ok(()) => _ = beyond.fetch_add(1, Ordering::Relaxed),
                                Err(error) => {
                                    assert_eq!(error.code(), "disk.out-of-range");
                                    refused.fetch_add(1, Ordering::Relaxed);
                                }
                            }
                        }
                    }
                });
            }
            let image = chain.tip();
            scope.spawn(move || {
                let mut rng = Rng::new(7);
                while !over.load(Ordering::SeqCst) {
                    let sector = rng.below(2 * SECTORS);
                    let before = told[sector as usize].load(Ordering::SeqCst);
                    let by_image = rng.chance(1, 2) && (!with_parent || before > 0);
                    // A host may show parts of a write that is in progress, to the byte. The next read has all of it.
                    let count = (0..1000).find_map(|_| {
                        let mut bytes = [0; 512];
                        match by_image {
                            true => image.read_at(&mut bytes, sector * 512).unwrap(),
                            false => chain.read_at(&mut bytes, sector * 512).unwrap(),
                        }
                        let count = u64::from_le_bytes(bytes[..8].try_into().unwrap());
                        (bytes == *count.to_le_bytes().repeat(64)).then_some(count)
                    });
                    assert!(count >= Some(before), "sector {sector}: {count:?} after {before}");
                }
            });
            struct Over<'a>(&'a AtomicBool);
            impl Drop for Over<'_> {
                fn drop(&mut self) {
                    self.0.store(true, Ordering::SeqCst);
                }
            }
            let _over = Over(over);
            let rounds = if is_long() { 200 } else { 25 };
            for round in 0..rounds {
                let size = [9 * MIB, 4 * MIB, 150 * GIB, 4 * MIB + 512][round % 4];
                Resize::to(size).run(chain).unwrap();
                assert_eq!(chain.geometry().size, size);
                std::thread::sleep(std::time::Duration::from_millis(3));
            }
            Resize::to(4 * MIB).run(chain).unwrap();
        });
        let counts = told.iter().map(|count| count.load(Ordering::SeqCst));
        let expected: Vec<u8> = counts.flat_map(|count| count.to_le_bytes().repeat(64)).collect();
        assert!(bytes(&chain)[..expected.len()] == expected);
        chain.flush().unwrap();
        assert!(naively(&paths(&chain))[..expected.len()] == expected);
        assert!(refused.into_inner() > 0 && beyond.into_inner() > 0);
    }
}

/// A byte that is written behind the new end after that place was looked at, and zeros, which do no harm.
#[test]
fn what_is_written_meanwhile_behind_the_new_end_is_not_cut_off() {
    let folder = tempfile::tempdir().unwrap();
    let chain = base(folder.path(), 16 * MIB);
    chain.write_zeroes(8 * MIB..16 * MIB, Zeroing::KeepSpace).unwrap();
    chain.write_at(&[0; 2 << 20], 12 * MIB).unwrap();
    let at_the_end = |with: u8| {
        let writer = chain.clone();
        move |progress: avhdx::ops::Progress| {
            if progress.done == progress.total {
                writer.write_at(&[with], 9 * MIB + 70_000).unwrap();
            }
            std::ops::ControlFlow::Continue(())
        }
    };
    let error = Resize::to(8 * MIB).on_progress(at_the_end(5)).run(&chain).unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::WouldLose, "resize.cuts"));
    assert!(error.found().unwrap().contains(&format!(" {} ", 9 * MIB + 70_000)), "{error}");
    chain.write_at(&[0], 9 * MIB + 70_000).unwrap();
    Resize::to(8 * MIB).on_progress(at_the_end(0)).run(&chain).unwrap();
    assert_eq!(chain.geometry().size, 8 * MIB);
}

/// A plan made before, and a tracker, across a resize.
#[test]
#[allow(clippy::single_range_in_vec_init)] // lists of ranges, of which there may be one
fn plans_and_tracking_go_through_a_resize() {
    let folder = tempfile::tempdir().unwrap();
    let chain = base(folder.path(), 8 * MIB);
    chain.write_at(&[1; 1 << 20], 0).unwrap();
    let tracking = chain.track_changes(TrackingOptions::new()).unwrap();
    let view = chain.view(chain.tip().id()).unwrap();

    // A planned write refuses it by name.
    let planned = loop {
        match chain.plan_write(0..4096).unwrap() {
            PlannedWrite::Ready(plan) => break plan,
            PlannedWrite::Wait(wait) => wait.run().unwrap(),
            PlannedWrite::Load(_) => chain.read_at(&mut [0], 0).unwrap(),
        }
    };
    let error = Resize::to(9 * MIB).run(&chain).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InUse, "{error}");
    drop(planned);

    // A planned read goes on at its places, which are not used again.
    let avhdx::Planned::Ready(plan) = chain.plan_read(0..MIB).unwrap() else { panic!() };
    let point = tracking.mark();
    Resize::to(12 * MIB).run(&chain).unwrap();
    let Since::Known(changes) = tracking.changes_since(&point) else { panic!() };
    assert_eq!(changes.ranges, [8 * MIB..12 * MIB]);
    assert_eq!(view.geometry().size, 12 * MIB, "a view of the tip shows what becomes of it");
    chain.discard(0..MIB).unwrap();
    for n in 1..8 {
        chain.flush().unwrap();
        chain.write_at(&[2; 1 << 20], n * MIB).unwrap();
    }
    chain.flush().unwrap();
    for piece in plan.pieces() {
        let avhdx::PlannedSource::Data { at, .. } = piece.source else { panic!("{piece:?}") };
        let file = std::fs::read(folder.path().join("web.vhdx")).unwrap();
        let len = (piece.range.end - piece.range.start) as usize;
        assert!(file[at.get() as usize..][..len].iter().all(|byte| *byte == 1));
    }
    let point = changes.until;
    Resize::to(2 * MIB).shrink(true).run(&chain).unwrap();
    Resize::to(8 * MIB).run(&chain).unwrap();
    drop(plan);
    let Since::Known(changes) = tracking.changes_since(&point) else { panic!() };
    assert_eq!(changes.ranges, [0..8 * MIB]);
    chain.write_at(&[3], 5 * MIB).unwrap();
    let Since::Known(changes) = tracking.changes_since(&changes.until) else { panic!() };
    assert_eq!(changes.ranges, [5 * MIB..5 * MIB + 65536], "the tracker follows the tip");
}

#[test]
fn what_must_not_be_resized_is_refused_and_stays_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let chain = base(folder.path(), 8 * MIB);
    let path = folder.path().join("web.vhdx");
    chain.write_at(&[1; 1000], 0).unwrap();
    chain.close().unwrap();
    let before = std::fs::read(&path).unwrap();
    let refused = |chain: &DiffChain, size: u64, kind, code: &str| {
        let errors = [
            Resize::to(size).shrink(true).run(chain).unwrap_err(),
            Resize::to(size).forecast(chain).err().unwrap_or_else(|| {
                // Only the writer knows.
                Resize::to(size).run(chain).unwrap_err()
            }),
        ];
        for error in errors {
            assert_eq!((error.kind(), error.code()), (kind, code), "{error}");
        }
    };
    for size in [0, 8 * MIB + 1, (64 << 40) + 512] {
        refused(&chain, size, ErrorKind::InvalidInput, "resize.size");
    }
    let view = chain.view(chain.tip().id()).unwrap();
    refused(&view, MIB, ErrorKind::InvalidInput, "chain.view");
    // Another chain was given the tip.
    let tip = Arc::try_unwrap(chain.tip()).unwrap();
    let guest = OpenOptions::new().open_chain(tip).unwrap();
    refused(&chain, 4 * MIB, ErrorKind::InUse, "resize.guest");
    refused(&guest, 4 * MIB, ErrorKind::InUse, "chain.others-tip");
    drop((guest, view, chain));
    let read_only = OpenOptions::new().open(&path).unwrap();
    refused(&read_only, 4 * MIB, ErrorKind::ReadOnly, "resize.read-only");
    drop(read_only);
    // A child that is found, and one elsewhere.
    let elsewhere = tempfile::tempdir().unwrap();
    let image = avhdx::VhdxFile::open(&path).unwrap();
    let child = elsewhere.path().join("child.avhdx");
    drop(CreateOptions::child_of(&image).unwrap().create(&child).unwrap());
    drop(image);
    let chain = writable(&path);
    let resize = || Resize::to(9 * MIB).children_in(elsewhere.path());
    for error in [resize().run(&chain).unwrap_err(), resize().forecast(&chain).unwrap_err()] {
        assert_eq!(error.kind(), ErrorKind::HasChildren, "{error}");
        assert!(error.to_string().contains("child.avhdx"), "{error}");
    }
    chain.close().unwrap();
    assert!(std::fs::read(&path).unwrap() == before);
    assert_eq!(resize().orphan_children(true).run(&chain).unwrap().to, 9 * MIB);
    // A resize to the same size changes nothing.
    let before = std::fs::read(&path).unwrap();
    Resize::to(9 * MIB).orphan_children(true).run(&chain).unwrap();
    drop(chain);
    assert!(std::fs::read(&path).unwrap() == before);
    // A file that lost bytes.
    std::fs::File::options().write(true).open(&path).unwrap().set_len(4 * MIB + 512).unwrap();
    let cut = std::fs::read(&path).unwrap();
    let chain = OpenOptions::new().writable(true).orphan_children(true).open(&path).unwrap();
    let error = Resize::to(4 * MIB).orphan_children(true).run(&chain).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
    drop(chain);
    assert!(std::fs::read(&path).unwrap() == cut);
}

fn sim_file(name: &str) -> PathBuf {
    Path::new(FOLDER).join(name)
}

fn open(host: &SimHost, tip: &Path) -> DiffChain {
    let options = OpenOptions::new().host(Arc::new(host.clone())).writable(true);
    options.open(tip).unwrap_or_else(|error| panic!("{error}"))
}

/// A disk that ends within a block, alone or above a parent, on a host of its own.
fn on_host(kind: &str, size: u64) -> (Files, PathBuf, Vec<u8>) {
    let (host, path) = (SimHost::default(), sim_file("web.vhdx"));
    let shared: Arc<dyn Host> = Arc::new(host.clone());
    let options = match kind {
        "fixed" => CreateOptions::fixed(size),
        _ => CreateOptions::dynamic(size),
    };
    drop(options.block_size(1 << 20).create_on(shared, &path).unwrap());
    let chain = open(&host, &path);
    chain.write_at(&[1; 3 << 20], MIB / 2).unwrap();
    let mut tip = path;
    if kind == "child" {
        tip = sim_file("tip.avhdx");
        Checkpoint::new().path(&tip).block_size(1 << 20).run(&chain).unwrap();
    }
    chain.write_at(&[2; 5000], MIB + 700).unwrap();
    let model = if size < GIB { bytes(&chain) } else { Vec::new() };
    chain.close().unwrap();
    (host.files(), tip, model)
}

/// Whichever step finds no space, the disk is as before, at once and when reopened.
#[test]
fn a_resize_that_runs_out_of_space_changes_nothing() {
    let (small, large) = (4 * MIB + 512 * 9, 7 * MIB + 512);
    let cases =
        [("dynamic", large), ("dynamic", 2 * MIB + 512), ("fixed", large), ("child", large)];
    let (mut poisoned, mut unchanged) = (0, 0);
    for (kind, size) in cases.into_iter().chain([("child", 3 * MIB + 4096)]) {
        let (files, tip, model) = on_host(kind, small);
        for arrived in [Arrived::Nothing, Arrived::Half] {
            let mut ended_well = false;
            for n in (0..).step_by(if is_long() { 1 } else { 2 }) {
                let what = format!("{kind} to {size}, no space from {n} on, {arrived:?}");
                let host = SimHost::new(files.clone());
                let chain = open(&host, &tip);
                let count = host.run_out_at(n, arrived);
                let done = Resize::to(size).shrink(true).run(&chain);
                let is_over = count.load(Ordering::SeqCst) <= n;
                if let Err(error) = &done {
                    assert_eq!(error.kind(), ErrorKind::Io, "{what}: {error}");
                    host.relent();
                    let is_poisoned = |error: &avhdx::Error| error.kind() == ErrorKind::Poisoned;
                    if chain.write_at(&model[..1], 0).is_err_and(|error| is_poisoned(&error)) {
                        // The log may have the change already: only what stays is known.
                        let kept = size.min(small) as usize;
                        assert!(bytes(&chain)[..kept] == model[..kept], "{what}");
                        poisoned += 1;
                    } else {
                        assert!(bytes(&chain) == model, "{what}");
                        unchanged += 1;
                    }
                }
                host.relent();
                drop(chain);
                let chain = open(&host, &tip);
                let mut expected = model.clone();
                // Without a write of the metadata that failed, an error means that nothing changed.
                let is_new = chain.geometry().size == size;
                assert!(is_new || done.is_err(), "{what}");
                if is_new {
                    expected.resize(size as usize, 0);
                }
                assert!(bytes(&chain) == expected, "{what}, opened anew");
                chain.write_at(&[7; 3], 0).unwrap();
                chain.close().unwrap();
                assert!(chain.warnings().is_empty(), "{what}: {:?}", chain.warnings());
                drop(chain);
                let files = host.files();
                for path in files.names.keys() {
                    let file = files.file(path).unwrap();
                    let mut whole = vec![0; file.len() as usize];
                    file.read(0, &mut whole);
                    let layer = naive::Layer::from_bytes(whole).unwrap();
                    assert_eq!(layer.faults(), [""; 0], "{what}");
                }
                host.empty();
                if is_over {
                    done.unwrap_or_else(|error| panic!("{what}: {error}"));
                    ended_well = true;
                    break;
                }
            }
            assert!(ended_well);
        }
    }
    assert!(poisoned > 0 && unchanged > 0);
    // The forecast knows.
    let (files, tip, _) = on_host("fixed", small);
    let host = SimHost::new(files);
    host.set_free_space(Some(MIB));
    let chain = open(&host, &tip);
    let error = Resize::to(large).run(&chain).unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::NoSpace, "op.space"));
    assert_eq!(Resize::to(large).forecast(&chain).unwrap().needs.peak, 3 * MIB);
}

/// A plan from before a resize reads blocks that the disk lost, whatever happens to the file afterwards.
#[test]
fn a_compaction_leaves_what_a_plan_from_before_a_resize_reads() {
    let folder = tempfile::tempdir().unwrap();
    let chain = base(folder.path(), 8 * MIB);
    for block in (0..8).rev() {
        chain.write_at(&[1 + block as u8; 1 << 20], block * MIB).unwrap();
    }
    chain.flush().unwrap();
    let avhdx::Planned::Ready(plan) = chain.plan_read(4 * MIB..8 * MIB).unwrap() else { panic!() };
    let holds = |plan: &avhdx::ReadPlan| {
        let file = std::fs::read(folder.path().join("web.vhdx")).unwrap();
        plan.pieces().all(|piece| {
            let avhdx::PlannedSource::Data { at, .. } = piece.source else { panic!("{piece:?}") };
            let bytes = (piece.range.start..piece.range.end).map(|at| 1 + (at / MIB) as u8);
            file.get(at.get() as usize..).is_some_and(|file| bytes.zip(file).all(|(a, b)| a == *b))
        })
    };
    assert!(holds(&plan));
    Resize::to(4 * MIB).shrink(true).run(&chain).unwrap();
    Compact::new().run(&chain).unwrap();
    chain.write_at(&[9; 4 << 20], 0).unwrap();
    Resize::to(12 * MIB).run(&chain).unwrap();
    chain.write_at(&[9; 8 << 20], 4 * MIB).unwrap();
    chain.flush().unwrap();
    assert!(holds(&plan), "the places were used again");
    drop(plan);
    let done = Compact::new().run(&chain).unwrap();
    assert!(done.file_len < 17 * MIB, "{done:?}");
    assert!(bytes(&chain) == [9; 12 << 20]);
}

/// Otherwise a check would take the data of blocks that were cut off, and a former table, for that of lost entries.
#[test]
fn what_a_resize_leaves_behind_goes_back_to_the_host() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("web.vhdx");
    drop(CreateOptions::dynamic(256 * MIB).block_size(1 << 20).create(&path).unwrap());
    let chain = writable(&path);
    chain.write_at(&[1; 4 << 20], 0).unwrap();
    chain.write_at(&vec![2; 200 << 20], 8 * MIB).unwrap();
    drop(chain);
    let chain = writable(&path);
    let held = || std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(&path).unwrap()) * 512;
    assert!(held() > 200 * MIB);
    Resize::to(8 * MIB).shrink(true).run(&chain).unwrap();
    assert!(held() < 10 * MIB, "{}", held());
    let check = || {
        let file = avhdx::storage::MemStorage::new(std::fs::read(&path).unwrap());
        let report = avhdx::ops::Check::new().run_file(Arc::new(file)).unwrap();
        let codes: Vec<_> = report.findings.iter().map(|finding| finding.code).collect();
        assert!(codes.contains(&"space.leaked"), "{codes:?}");
        assert!(!codes.contains(&"bat.lost"), "{codes:?}");
    };
    chain.close().unwrap();
    check();
    for size in [2 * TIB, 64 * MIB] {
        Resize::to(size).run(&chain).unwrap();
        chain.close().unwrap();
        check();
        assert!(held() < 10 * MIB + size / MIB * 8 / 64, "{} of {size}", held());
    }
    // The space is used again before the file grows.
    let before = std::fs::metadata(&path).unwrap().len();
    chain.write_at(&vec![3; 48 << 20], 8 * MIB).unwrap();
    chain.close().unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().len(), before);
    let mut expected = vec![0; 64 << 20];
    expected[..4 << 20].fill(1);
    expected[8 << 20..56 << 20].fill(3);
    assert!(naively(&[path]) == expected);
}

/// A planned write that comes while the blocks are filled refuses the resize.
#[test]
fn a_refused_resize_of_a_fixed_disk_leaves_no_space_behind() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("web.vhdx");
    drop(CreateOptions::fixed(8 * MIB).block_size(1 << 20).create(&path).unwrap());
    let chain = writable(&path);
    let before = std::fs::metadata(&path).unwrap().len();
    for _ in 0..3 {
        let mut plan = None;
        let on = |_| {
            while plan.is_none() {
                match chain.plan_write(0..4096).unwrap() {
                    PlannedWrite::Ready(ready) => plan = Some(ready),
                    PlannedWrite::Wait(wait) => wait.run().unwrap(),
                    PlannedWrite::Load(_) => chain.read_at(&mut [0], 0).unwrap(),
                }
            }
            std::ops::ControlFlow::Continue(())
        };
        let error = Resize::to(28 * MIB).on_progress(on).run(&chain).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InUse, "{error}");
        assert!(plan.is_some());
    }
    chain.close().unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().len(), before);
    Resize::to(28 * MIB).run(&chain).unwrap();
    chain.close().unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().len(), before + 20 * MIB);
}
