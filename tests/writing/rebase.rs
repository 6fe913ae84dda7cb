//! Images on other bases, with the naive reader as the judge.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use avhdx::ops::{Check, Pace, Rebase, Rebased};
use avhdx::storage::{Access, Host, LocalHost, LockMode};
use avhdx::{Budget, DiffChain, ErrorKind, OpenOptions};
use avhdx_testkit::build::{
    Block, Contents, Data, IS_USER, Image, Item, braced, random_chain, state, write_chain,
};
use avhdx_testkit::naive::{Chain, Layer};
use avhdx_testkit::rng::Rng;
use tempfile::TempDir;
use uuid::Uuid;

use crate::common::MIB;
use crate::reparent::{Counts, base_of, sums, through, value};

/// A disk with runs of sectors of it changed, some of them to zeros, and another end.
fn changed(flat: &[u8], sector: usize, rng: &mut Rng) -> Vec<u8> {
    let mut other = flat.to_vec();
    let end = [flat.len(), flat.len() / 2, flat.len() + (3 << 20)][rng.below(3) as usize];
    other.resize(end.next_multiple_of(sector), 0x77);
    for _ in 0..12 {
        let len = sector * [1, 3, 100, 3000][rng.below(4) as usize];
        let at = rng.below((other.len() / sector) as u64) as usize * sector;
        let end = (at + len).min(other.len());
        match rng.chance(1, 3) {
            true => other[at..end].fill(0),
            false => rng.fill(&mut other[at..end]),
        }
    }
    other
}

/// The bytes that an image leaves to its parent and that differ between two parents.
fn differing(image: &Layer, old: &[u8], new: &[u8]) -> u64 {
    let mut bytes = 0;
    let at = |flat: &[u8], start: u64, end: u64| {
        let len = flat.len() as u64;
        let mut part = flat[start.min(len) as usize..end.min(len) as usize].to_vec();
        part.resize((end - start) as usize, 0);
        part
    };
    for range in through(image) {
        for start in range.step_by(image.sector as usize) {
            let end = start + image.sector;
            bytes += if at(old, start, end) == at(new, start, end) { 0 } else { image.sector };
        }
    }
    bytes
}

#[test]
fn the_disk_is_the_same_on_any_other_base() {
    let (mut written, mut zeroed, mut kept) = (0, 0, 0);
    for seed in 0..12 {
        let mut rng = Rng::new(seed);
        let folder = TempDir::new().unwrap();
        let images = random_chain(seed, 4);
        let paths = write_chain(folder.path(), &images);
        let naive = Chain::open(&paths).unwrap();
        let (tip, sector) = (&paths[3], naive.0[3].sector);
        let (before, old) = (naive.flat(3).unwrap(), naive.flat(2).unwrap());
        let new = folder.path().join("new.vhdx");
        let below: Vec<PathBuf> = match seed % 4 {
            // An ancestor, so that the layers between are taken in.
            0 => paths[..1].to_vec(),
            1 => paths[..2].to_vec(),
            // Another child of the ancestor.
            2 => {
                let mut other = images[1].new_child();
                (other.size, other.logical_sector) = (images[2].size, images[1].logical_sector);
                other.scatter(seed + 50).reseed(seed + 50).parent_path(".\\l1.vhdx");
                other.write_to(&new);
                vec![paths[0].clone(), paths[1].clone(), new.clone()]
            }
            // A base that has nothing to do with the old one.
            _ => {
                let flat = changed(&old, sector as usize, &mut rng);
                base_of(&flat, sector as u32, 1 << (20 + seed % 3), seed + 99).write_to(&new);
                vec![new.clone()]
            }
        };
        let base = below.last().unwrap();
        let over = Chain::open(&below).unwrap().flat(below.len() - 1).unwrap();
        let differs = differing(&naive.0[3], &old, &over);
        let (others, len) = (sums(folder.path()), fs::metadata(tip).unwrap().len());

        let forecast = Rebase::new(base).forecast(tip).unwrap();
        assert!(sums(folder.path()) == others, "seed {seed}: a forecast changes nothing");
        let done = Rebase::new(base).run(tip).unwrap_or_else(|error| panic!("{seed}: {error}"));
        let layers: Vec<&PathBuf> = below.iter().chain([tip]).collect();
        let after = Chain::open(&layers).unwrap();
        let top = layers.len() - 1;
        assert!(after.flat(top).unwrap() == before, "seed {seed}: the disk is another");
        // Of blocks of zeros, those bytes count too that were zeros on both.
        let Rebased { written: data, zeroed: zeros, read, .. } = done;
        assert!(data <= differs && differs <= data + zeros, "{seed}: {differs}, {done:?}");
        assert!(read <= forecast.read && data <= forecast.written, "{seed}: {done:?} {forecast:?}");
        let grown = fs::metadata(tip).unwrap().len() - len;
        assert!(grown <= forecast.peak, "seed {seed}: {grown} for {}", forecast.peak);
        kept += u64::from(differs == 0);
        (written, zeroed) = (written + data, zeroed + zeros);

        // The identity stays, the link is the new one, and no other file has changed.
        let (child, parent) = (&after.0[top], &after.0[top - 1]);
        assert_eq!(child.data_write_guid, naive.0[3].data_write_guid, "seed {seed}");
        let linkage = braced(parent.data_write_guid);
        assert_eq!(value(child, "parent_linkage"), Some(&*linkage), "seed {seed}");
        assert!(!child.log_is_pending());
        for (path, sum) in sums(folder.path()) {
            assert!(path == *tip || others[&path] == sum, "{} changed", path.display());
        }
        let findings = Check::new().run(tip).unwrap();
        assert!(findings.is_sound(), "seed {seed}: {findings:?}");
        // Once more, and there is nothing to do.
        let sums_after = sums(folder.path());
        let again = Rebase::new(base).run(tip).unwrap();
        assert!(again.was_parent && again.read + again.written + again.zeroed == 0, "{again:?}");
        assert!(sums(folder.path()) == sums_after);
    }
    assert!(written > MIB && zeroed > MIB && kept < 6, "{written}, {zeroed}, {kept}");
}

/// Sixteen blocks of data, and a chain of four that changes three of them.
fn sixteen() -> Vec<Image> {
    let mut images = vec![Image::dynamic(16 * MIB)];
    for n in 0..16 {
        images[0].put(n, Block::full(Data::Pattern(n)));
    }
    for seed in 1..4 {
        let mut child = images[seed - 1].new_child();
        child.reseed(seed as u64);
        images.push(child);
    }
    images[2].put(5, Block::full(Data::Pattern(50)));
    images[2].put(7, Block::bare(state::ZERO));
    images[2].put(9, Block::partial_runs(Data::Pattern(90), &[(16, 8)]));
    images[3].put(5, Block::partial_runs(Data::Pattern(51), &[(0, 1024)]));
    images
}

#[test]
fn only_what_the_layers_between_hold_is_read_and_written() {
    let folder = TempDir::new().unwrap();
    let images = sixteen();
    let paths = write_chain(folder.path(), &images);
    let before = Chain::open(&paths).unwrap().flat(3).unwrap();
    let host = Arc::new(Counts::default());
    let options = OpenOptions::new().host(Arc::clone(&host) as Arc<dyn Host>);
    let options = options.budget(Budget::new(1 << 20));
    let rebase = Rebase::new(&paths[0]).options(options);
    let forecast = rebase.forecast(&paths[3]).unwrap();
    host.take();
    let done = rebase.run(&paths[3]).unwrap();
    let read = host.take();
    // Half of block 5 on both sides, block 7 of the base alone, 8 sectors of block 9 on both sides.
    let (half, runs) = (MIB / 2, 8 * 512);
    assert_eq!((done.written, done.zeroed), (half + runs, MIB));
    assert_eq!(forecast.read, 2 * half + MIB + 2 * runs);
    // Once the first half of block 7 tells that the block differs, it becomes one of zeros without reading the rest.
    assert_eq!(done.read, forecast.read - half);
    for (path, most) in [(&paths[0], half + half + runs), (&paths[2], half + runs)] {
        let tables = 600 << 10;
        let read = read[path];
        assert!((most..most + tables).contains(&read), "{read} bytes of {}", path.display());
    }
    let after = Chain::open([&paths[0], &paths[3]]).unwrap();
    assert!(after.flat(1).unwrap() == before);
    // A block of zeros takes no space: block 9 alone is new.
    let counts = avhdx::VhdxFile::open(&paths[3]).unwrap().count_blocks().unwrap();
    assert_eq!((counts.fully_present, counts.partially_present, counts.zero), (1, 1, 1));
    // Over a layer that holds nothing, nothing is read or written.
    let mut images = sixteen();
    images[2].blocks.clear();
    let paths = write_chain(folder.path(), &images);
    let done = Rebase::new(&paths[0]).run(&paths[3]).unwrap();
    assert_eq!((done.read, done.written, done.zeroed, done.was_parent), (0, 0, 0, false));
}

#[test]
fn children_of_the_image_stay_valid_and_read_the_same() {
    let folder = TempDir::new().unwrap();
    let images = sixteen();
    let paths = write_chain(folder.path(), &images);
    let flats = [2, 3].map(|tip| Chain::open(&paths).unwrap().flat(tip).unwrap());
    let new = folder.path().join("new.vhdx");
    base_of(&[3; 9 << 20], 512, 1 << 20, 70).write_to(&new);
    assert!(Rebase::new(&new).run(&paths[2]).unwrap().written > 8 * MIB);
    let after = Chain::open([&new, &paths[2], &paths[3]]).unwrap();
    assert!([1, 2].map(|tip| after.flat(tip).unwrap()) == flats);
    assert_eq!(DiffChain::open(&paths[3]).unwrap().layers().len(), 3);
}

#[test]
fn a_pending_log_counts_and_is_replayed() {
    let folder = TempDir::new().unwrap();
    let at = |name: &str| folder.path().join(name);
    let mut base = Image::dynamic(2 * MIB);
    base.put(0, Block::full(Data::Pattern(1)));
    let before = base.new_child();
    let mut after = before.clone();
    after.put(1, Block::full(Data::Pattern(2)));
    let child = Image::dirty(&before, &after, Uuid::from_u128(77), 2);
    base.write_to(at("parent.vhdx"));
    fs::write(at("child.avhdx"), child.to_bytes()).unwrap();
    let mut new = Image::dynamic(MIB);
    new.reseed(9).put(0, Block::full(Data::Pattern(3))).write_to(at("new.vhdx"));
    // What is refused leaves the log.
    Rebase::new(at("none.vhdx")).run(at("child.avhdx")).unwrap_err();
    assert!(Layer::open(at("child.avhdx")).unwrap().log_is_pending());
    let done = Rebase::new(at("new.vhdx")).run(at("child.avhdx")).unwrap();
    assert_eq!((done.read, done.written), (2 * MIB, MIB));
    let naive = Chain::open([at("new.vhdx"), at("child.avhdx")]).unwrap();
    assert!(naive.flat(1).unwrap() == after.flat(Some(&base.flat(None))));
}

/// Of the sector that a truncated file ends in, nothing is taken in: the old link stays, and the disk.
#[test]
fn a_parent_that_ends_within_a_sector_is_told() {
    let folder = TempDir::new().unwrap();
    let at = |name: &str| folder.path().join(name);
    let mut base = Image::dynamic(2 * MIB);
    base.put(1, Block::full(Data::Pattern(1)));
    let child = base.new_child();
    let paths = write_chain(folder.path(), &[base.clone(), child]);
    base_of(&[3; 2 << 20], 512, 1 << 20, 70).write_to(at("new.vhdx"));
    let whole = fs::read(&paths[0]).unwrap();
    fs::write(&paths[0], &whole[..whole.len() - (1 << 19) - 240]).unwrap();
    let error = Rebase::new(at("new.vhdx")).run(&paths[1]).unwrap_err();
    assert_eq!((error.kind(), error.file()), (ErrorKind::Damaged, paths[0].to_str()), "{error}");
    // What was taken in is what the parent has there.
    fs::write(&paths[0], &whole).unwrap();
    let naive = Chain::open(&paths).unwrap();
    assert!(naive.flat(1).unwrap() == base.flat(None));
    assert_eq!(Rebase::new(at("new.vhdx")).run(&paths[1]).unwrap().path, paths[1]);
    let naive = Chain::open([&at("new.vhdx"), &paths[1]]).unwrap();
    assert!(naive.flat(1).unwrap() == base.flat(None));
}

#[test]
fn what_is_refused_changes_no_file() {
    let folder = TempDir::new().unwrap();
    let at = |name: &str| folder.path().join(name);
    let paths = write_chain(folder.path(), &sixteen());
    base_of(&[3; 9 << 20], 512, 1 << 20, 70).write_to(at("new.vhdx"));
    let mut large = Image::dynamic(MIB);
    large.logical_sector = 4096;
    large.write_to(at("large.vhdx"));
    fs::write(at("none.vhdx"), b"no image").unwrap();
    // An image that lost its last block, one that is being merged, and one whose merge was requested.
    let cut = fs::read(&paths[3]).unwrap();
    fs::write(at("cut.avhdx"), &cut[..cut.len() - (1 << 19)]).unwrap();
    let mut lost = sixteen().remove(3);
    lost.reseed(80).parent_path(".\\gone.vhdx").write_to(at("lost.avhdx"));
    let mut mark = sixteen().remove(3);
    let id = Uuid::parse_str("917330e3-c6a3-4d5f-913e-f0fa001aaec7").unwrap();
    let mut bytes = vec![1, 0, 1, 0, 5, 0, 0, 0];
    bytes.extend(Uuid::from_u128(9).to_bytes_le());
    bytes.extend(b"other");
    mark.metadata.items.push(Item::new("mark", id, IS_USER, Contents::Bytes(bytes)));
    mark.reseed(81).parent_path(".\\l2.vhdx").write_to(at("merging.avhdx"));
    let mut request = sixteen().remove(3);
    let id = Uuid::parse_str("d1d9c7c4-3b0f-4a55-8f0e-6d0a3f2f7b61").unwrap();
    let bytes = Contents::Bytes(vec![1, 0, 0, 0, 0, 0, 0, 0]);
    request.metadata.items.push(Item::new("request", id, IS_USER, bytes));
    request.reseed(82).parent_path(".\\l2.vhdx").write_to(at("asked.avhdx"));
    let before = sums(folder.path());
    let refused = |image: &Path, base: &str, kind, code| {
        for error in [
            Rebase::new(at(base)).forecast(image).map(drop).unwrap_err(),
            Rebase::new(at(base)).run(image).map(drop).unwrap_err(),
        ] {
            assert_eq!((error.kind(), error.code()), (kind, code), "{error}");
        }
        assert!(sums(folder.path()) == before, "{base}");
    };
    refused(&paths[1], "l1.vhdx", ErrorKind::InvalidInput, "link.self");
    refused(&paths[1], "l3.vhdx", ErrorKind::InvalidInput, "link.loop");
    refused(&paths[0], "new.vhdx", ErrorKind::InvalidInput, "link.no-parent");
    refused(&paths[3], "large.vhdx", ErrorKind::InvalidInput, "link.sector-size");
    refused(&paths[3], "none.vhdx", ErrorKind::NotVhdx, "foreign.text");
    refused(&paths[3], "gone.vhdx", ErrorKind::Io, "file.open");
    refused(&at("lost.avhdx"), "new.vhdx", ErrorKind::ParentMissing, "parent.missing");
    for name in ["merging.avhdx", "asked.avhdx"] {
        refused(&at(name), "new.vhdx", ErrorKind::Unfinished, "link.unfinished");
    }
    let error = Rebase::new(at("new.vhdx")).run(at("cut.avhdx")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
    for (path, mode) in [(&paths[3], LockMode::Shared), (&at("new.vhdx"), LockMode::Exclusive)] {
        let held = LocalHost.open(path, Access::ReadWrite).unwrap();
        held.try_lock(mode).unwrap();
        let error = Rebase::new(at("new.vhdx")).run(&paths[3]).unwrap_err();
        assert_eq!((error.kind(), error.file()), (ErrorKind::InUse, path.to_str()));
    }
    assert!(sums(folder.path()) == before);
}

#[test]
fn one_that_is_stopped_or_panics_leaves_the_disk_and_goes_on_where_it_was() {
    let folder = TempDir::new().unwrap();
    let at = |name: &str| folder.path().join(name);
    let paths = write_chain(folder.path(), &sixteen());
    base_of(&[3; 9 << 20], 512, 1 << 20, 70).write_to(at("new.vhdx"));
    let flat = Chain::open(&paths).unwrap().flat(3).unwrap();
    let whole = Rebase::new(at("new.vhdx")).forecast(&paths[3]).unwrap().read;
    let pace = Pace::new();
    pace.limit(Some(1 << 40));
    let mut calls = 0;
    let stopped = Rebase::new(at("new.vhdx")).pace(pace).on_progress(|progress| {
        calls += 1;
        assert_eq!(progress.total, 16 * MIB);
        if progress.done < 6 * MIB { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    assert_eq!(stopped.run(&paths[3]).unwrap_err().kind(), ErrorKind::Cancelled);
    let panics = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let rebase = Rebase::new(at("new.vhdx"));
        rebase.on_progress(|now| panic_at(now.done, 9 * MIB)).run(&paths[3])
    }));
    panics.unwrap_err();
    assert!(calls > 3, "{calls}");
    let after = Chain::open(&paths).unwrap();
    assert!(after.flat(3).unwrap() == flat, "the old link is valid");
    let done = Rebase::new(at("new.vhdx")).run(&paths[3]).unwrap();
    assert!(done.read < whole - 8 * MIB, "{} of {whole}", done.read);
    assert!(Chain::open([&at("new.vhdx"), &paths[3]]).unwrap().flat(1).unwrap() == flat);
    assert!(Check::new().run(&paths[3]).unwrap().is_sound());
}

fn panic_at(done: u64, at: u64) -> ControlFlow<()> {
    assert!(done < at, "the callback panics");
    ControlFlow::Continue(())
}
