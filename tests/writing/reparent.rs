//! Rewritten links: to a parent that is proven to be equivalent, and to files that
//! were moved. The naive reader provides the expected contents.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use avhdx::ops::{FileChangeKind, Pace, Relink, Relinked, Reparent};
use avhdx::storage::{Access, Host, LocalHost, LockMode, Stat, Storage};
use avhdx::{Budget, DiffChain, ErrorKind, OpenOptions, PathSource};
use avhdx_testkit::build::{
    Block, Contents, Data, IS_USER, Image, Item, braced, random_chain, state, write_chain,
};
use avhdx_testkit::images::sha256_file;
use avhdx_testkit::naive::{Chain, Layer, Says};
use tempfile::TempDir;
use uuid::Uuid;

use crate::common::{Counting, MIB};

/// A base that holds these bytes, in blocks of this size.
pub(crate) fn base_of(flat: &[u8], sector: u32, block: u32, seed: u64) -> Image {
    let mut image = Image::dynamic(flat.len() as u64);
    (image.logical_sector, image.block_size) = (sector, block);
    image.reseed(seed);
    for (n, bytes) in flat.chunks(block as usize).enumerate() {
        if bytes.iter().any(|byte| *byte != 0) {
            image.put(n as u64, Block::full(Data::Bytes(bytes.to_vec())));
        }
    }
    image
}

/// The ranges that a layer leaves to its parent, by the naive reader.
pub(crate) fn through(layer: &Layer) -> Vec<Range<u64>> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for sector in 0..layer.size / layer.sector {
        if layer.says(sector).unwrap() != Says::NotHere {
            continue;
        }
        let range = sector * layer.sector..(sector + 1) * layer.sector;
        match ranges.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => ranges.push(range),
        }
    }
    ranges
}

pub(crate) fn sums(folder: &Path) -> BTreeMap<PathBuf, String> {
    let mut sums = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            sums.insert(path.clone(), sha256_file(&path));
        }
    }
    sums
}

pub(crate) fn value<'a>(layer: &'a Layer, key: &str) -> Option<&'a str> {
    let mut pairs = layer.locator.iter();
    pairs.find(|(found, _)| found == key).map(|(_, value)| value.as_str())
}

/// Everything of an image but its headers, log and metadata.
fn the_rest(path: &Path) -> Vec<u8> {
    let mut bytes = fs::read(path).unwrap();
    bytes[64 << 10..192 << 10].fill(0);
    bytes[MIB as usize..3 * MIB as usize].fill(0);
    bytes
}

#[test]
fn a_parent_with_the_same_bytes_is_taken_and_only_the_link_changes() {
    let mut proven = 0;
    for seed in 0..14 {
        let folder = TempDir::new().unwrap();
        let images = random_chain(seed, 4);
        let paths = write_chain(folder.path(), &images);
        let naive = Chain::open(&paths).unwrap();
        let (tip, parent) = (3, 2);
        // The new parent has a chain of its own, longer or shorter by zeros, and holds other bytes where
        // the image does not defer to it.
        let mut flat = naive.flat(parent).unwrap();
        let before = naive.flat(tip).unwrap();
        let holes = through(&naive.0[tip]);
        let sector = naive.0[tip].sector;
        flat.resize(flat.len().max(before.len()), 0);
        let is_seen = |at: u64| holes.iter().any(|hole| hole.contains(&at));
        for at in (0..flat.len() as u64).step_by(sector as usize) {
            if at >= naive.0[tip].size || !is_seen(at) {
                flat[at as usize] ^= 0x5A;
            }
        }
        let block = 1 << (20 + seed % 3);
        let new = folder.path().join("new.vhdx");
        base_of(&flat, sector as u32, block, seed + 99).write_to(&new);

        let (rest, guid) = (the_rest(&paths[tip]), naive.0[tip].data_write_guid);
        let others = sums(folder.path());
        let done = Reparent::new(&new).run(&paths[tip]).unwrap();
        let seen = holes.iter().map(|hole| hole.end - hole.start).sum::<u64>();
        assert_eq!((done.proven, done.unproven), (seen, 0), "seed {seed}");
        proven += seen;

        let after = Chain::open([&new, &paths[tip]]).unwrap();
        assert!(after.flat(1).unwrap() == before, "seed {seed}: the disk is another");
        assert!(the_rest(&paths[tip]) == rest, "seed {seed}: more than the link was written");
        let (base, child) = (&after.0[0], &after.0[1]);
        assert_eq!(child.data_write_guid, guid);
        assert_eq!(done.linkage, base.data_write_guid);
        assert_eq!(value(child, "parent_linkage"), Some(&*braced(base.data_write_guid)));
        assert_eq!(value(child, "parent_linkage2"), None);
        assert_eq!(value(child, "relative_path"), Some(".\\new.vhdx"));
        let chain = DiffChain::open(&paths[tip]).unwrap();
        assert_eq!(chain.layers()[1].path.as_deref(), Some(&*new));
        for (path, sum) in sums(folder.path()) {
            assert!(path == paths[tip] || others[&path] == sum, "{} changed", path.display());
        }
    }
    assert!(proven > 0);
}

#[test]
fn the_first_byte_that_differs_refuses_and_nothing_changes() {
    let mut base = Image::dynamic(4 * MIB);
    for n in 0..4 {
        base.put(n, Block::full(Data::Pattern(n)));
    }
    let mut child = base.new_child();
    child.size = 6 * MIB;
    child.put(0, Block::partial_runs(Data::Pattern(20), &[(0, 8), (9, 2000)]));
    child.put(2, Block::full(Data::Pattern(21)));
    child.put(3, Block::bare(state::ZERO));
    let folder = TempDir::new().unwrap();
    let paths = write_chain(folder.path(), &[base.clone(), child.clone()]);
    let mut longer = base.flat(None);
    longer.resize(7 << 20, 0);
    let layer = Layer::open(&paths[1]).unwrap();
    let holes = through(&layer);
    // A byte of the one sector between others, the boundaries of all holes, and beyond the old parent's end.
    let mut places = vec![8 * 512, 8 * 512 + 511, 5 * MIB + 17];
    places.extend(holes.iter().flat_map(|hole| [hole.start, hole.end - 1]));
    for at in places {
        assert!(holes.iter().any(|hole| hole.contains(&at)), "{at}");
        let mut flat = longer.clone();
        flat[at as usize] ^= 0x80;
        // A later difference does not matter.
        flat[(6 << 20) - 1] ^= 1;
        let new = folder.path().join("new.vhdx");
        base_of(&flat, 512, 2 << 20, at).write_to(&new);
        let before = sums(folder.path());
        let error = Reparent::new(&new).run(&paths[1]).unwrap_err();
        assert_eq!((error.kind(), error.code()), (ErrorKind::Unproven, "reparent.differs"));
        let text =
            format!("the disk would change from byte {at} on: found {:#04x}", flat[at as usize]);
        assert!(error.to_string().contains(&text), "{error}, not {text}");
        assert_eq!(error.file(), paths[1].to_str());
        assert_eq!(sums(folder.path()), before, "{at}");
        // With consent it is linked all the same, and reported.
        if at == 8 * 512 {
            let done = Reparent::new(&new).unproven(true).run(&paths[1]).unwrap();
            let seen = holes.iter().map(|hole| hole.end - hole.start).sum::<u64>();
            assert_eq!((done.proven, done.unproven), (0, seen));
            let naive = Chain::open([&new, &paths[1]]).unwrap().flat(1).unwrap();
            assert!(naive == child.flat(Some(&flat)));
            Reparent::new(&paths[0]).unproven(true).run(&paths[1]).unwrap();
        }
    }
    // Beyond the child's end, and where the child has its own bytes, nothing is compared.
    let mut flat = longer.clone();
    for at in [0, 511, 9 * 512, 2 << 20, (4 << 20) - 1, 6 << 20, (7 << 20) - 1] {
        flat[at] ^= 1;
    }
    let new = folder.path().join("new.vhdx");
    base_of(&flat, 512, 1 << 20, 5).write_to(&new);
    Reparent::new(&new).run(&paths[1]).unwrap();
}

#[test]
fn without_the_old_parent_there_is_no_proof_and_consent_is_needed() {
    let folder = TempDir::new().unwrap();
    let mut base = Image::dynamic(3 * MIB);
    base.put(1, Block::full(Data::Pattern(1)));
    let mut child = base.new_child();
    child.put(0, Block::partial_runs(Data::Pattern(2), &[(0, 100)]));
    child.put(2, Block::full(Data::Pattern(3)));
    let paths = write_chain(folder.path(), &[base.clone(), child.clone()]);
    // A base that was written to by accident has another identity.
    base.reseed(4711);
    base.write_to(&paths[0]);
    let lost = 2 * MIB - 100 * 512;
    for is_gone in [false, true] {
        let new = if is_gone { folder.path().join("new.vhdx") } else { paths[0].clone() };
        if is_gone {
            child.write_to(&paths[1]);
            fs::rename(&paths[0], &new).unwrap();
        }
        let before = sums(folder.path());
        let error = Reparent::new(&new).run(&paths[1]).unwrap_err();
        assert_eq!((error.kind(), error.code()), (ErrorKind::Unproven, "reparent.parent-lost"));
        assert!(error.to_string().contains(&format!("found {lost} bytes")), "{error}");
        assert_eq!(sums(folder.path()), before);
        child.parent_path(".\\l0.vhdx");
        let done = Reparent::new(&new).unproven(true).run(&paths[1]).unwrap();
        assert_eq!((done.proven, done.unproven), (0, lost));
        let naive = Chain::open([&new, &paths[1]]).unwrap().flat(1).unwrap();
        assert!(naive == child.flat(Some(&base.flat(None))));
        DiffChain::open(&paths[1]).unwrap();
    }
    // An image that leaves nothing to its parent needs no proof.
    for n in 0..3 {
        child.put(n, Block::full(Data::Pattern(n)));
    }
    child.write_to(&paths[1]);
    let done = Reparent::new(folder.path().join("new.vhdx")).run(&paths[1]).unwrap();
    assert_eq!((done.proven, done.unproven), (0, 0));
    DiffChain::open(&paths[1]).unwrap();
}

#[test]
fn no_image_becomes_its_own_ancestor() {
    let folder = TempDir::new().unwrap();
    let at = |name: &str| folder.path().join(name);
    let base = Image::dynamic(MIB);
    let mut images = vec![base.clone(), base.new_child()];
    images.push(images[1].new_child());
    images[2].reseed(3);
    images.push(images[2].new_child());
    images[3].reseed(4);
    let paths = write_chain(folder.path(), &images);
    fs::hard_link(&paths[1], at("again.vhdx")).unwrap();
    std::os::unix::fs::symlink(&paths[1], at("link.vhdx")).unwrap();
    fs::copy(&paths[1], at("copy.vhdx")).unwrap();
    let mut of_copy = images[1].new_child();
    of_copy.reseed(5).parent_path(".\\copy.vhdx").write_to(at("of_copy.vhdx"));
    let before = sums(folder.path());
    for (new, code) in [
        (paths[1].clone(), "link.self"),
        (at("again.vhdx"), "link.self"),
        (at("link.vhdx"), "link.self"),
        (paths[2].clone(), "link.loop"),
        (paths[3].clone(), "link.loop"),
        (at("copy.vhdx"), "link.loop"),
        (at("of_copy.vhdx"), "link.loop"),
    ] {
        for unproven in [false, true] {
            let reparent = Reparent::new(&new).unproven(unproven);
            let error = reparent.run(&paths[1]).unwrap_err();
            let what = format!("{}: {error}", new.display());
            assert_eq!((error.kind(), error.code()), (ErrorKind::InvalidInput, code), "{what}");
        }
    }
    assert_eq!(sums(folder.path()), before);
}

#[test]
fn unsuitable_parents_are_refused() {
    let folder = TempDir::new().unwrap();
    let at = |name: &str| folder.path().join(name);
    let base = Image::dynamic(MIB);
    let paths = write_chain(folder.path(), &[base.clone(), base.new_child()]);
    let mut large = Image::dynamic(MIB);
    large.logical_sector = 4096;
    large.write_to(at("large.vhdx"));
    fs::write(at("none.vhdx"), b"no image").unwrap();
    // Images of an unfinished merge; docs/marks.md has the bytes of its mark.
    for (state, name) in [(1, "merging.vhdx"), (2, "spent.vhdx"), (3, "target.vhdx")] {
        let mut mark = vec![1, 0, state, 0, 5, 0, 0, 0];
        mark.extend(Uuid::from_u128(9).to_bytes_le());
        mark.extend(b"other");
        let mut image = base.new_child();
        image.reseed(state.into()).parent_path(".\\l0.vhdx");
        let id = Uuid::parse_str("917330e3-c6a3-4d5f-913e-f0fa001aaec7").unwrap();
        image.metadata.items.push(Item::new("mark", id, IS_USER, Contents::Bytes(mark)));
        image.write_to(at(name));
    }
    let marked = ["merging.vhdx", "spent.vhdx", "target.vhdx"].map(at);
    // One whose merge was requested and has not begun.
    let mut request = base.new_child();
    request.reseed(7).parent_path(".\\l0.vhdx");
    let id = Uuid::parse_str("d1d9c7c4-3b0f-4a55-8f0e-6d0a3f2f7b61").unwrap();
    let bytes = Contents::Bytes(vec![1, 0, 0, 0, 0, 0, 0, 0]);
    request.metadata.items.push(Item::new("request", id, IS_USER, bytes));
    request.write_to(at("asked.vhdx"));
    let asked = at("asked.vhdx");
    let kept = sums(folder.path());
    for (new, image, kind, code) in [
        ("merging.vhdx", &paths[1], ErrorKind::Unfinished, "link.unfinished"),
        ("spent.vhdx", &paths[1], ErrorKind::Merged, "merge.spent"),
        ("target.vhdx", &paths[1], ErrorKind::Unfinished, "merge.target"),
        ("l0.vhdx", &marked[0], ErrorKind::Unfinished, "link.unfinished"),
        ("l0.vhdx", &marked[1], ErrorKind::Merged, "merge.spent"),
        ("l0.vhdx", &marked[2], ErrorKind::Unfinished, "merge.target"),
        ("l0.vhdx", &asked, ErrorKind::Unfinished, "link.unfinished"),
        ("large.vhdx", &paths[1], ErrorKind::InvalidInput, "link.sector-size"),
        ("none.vhdx", &paths[1], ErrorKind::NotVhdx, "foreign.text"),
        ("gone.vhdx", &paths[1], ErrorKind::Io, "file.open"),
        ("l1.vhdx", &paths[0], ErrorKind::InvalidInput, "link.loop"),
        ("large.vhdx", &paths[0], ErrorKind::InvalidInput, "link.no-parent"),
    ] {
        let error = Reparent::new(at(new)).unproven(true).run(image).unwrap_err();
        assert_eq!((error.kind(), error.code()), (kind, code), "{error}");
        let error = Reparent::new(at(new)).unproven(true).forecast(image).unwrap_err();
        assert_eq!((error.kind(), error.code()), (kind, code), "{error}");
    }
    assert_eq!(sums(folder.path()), kept);
    base_of(&[7; 1 << 20], 512, 1 << 20, 4).write_to(at("full.vhdx"));
    let mut all = base_of(&[7; 1 << 20], 512, 1 << 20, 4).new_child();
    all.reseed(12).parent_path(".\\full.vhdx").write_to(at("all.avhdx"));
    let before = sums(folder.path());
    // Nor an image in use, nor one over a parent that is being written to.
    base_of(&[0; 1 << 20], 512, 1 << 20, 3).write_to(at("new.vhdx"));
    for (path, mode) in [(&paths[1], LockMode::Shared), (&at("new.vhdx"), LockMode::Exclusive)] {
        let held = LocalHost.open(path, Access::ReadWrite).unwrap();
        held.try_lock(mode).unwrap();
        let error = Reparent::new(at("new.vhdx")).run(&paths[1]).unwrap_err();
        assert_eq!((error.kind(), error.file()), (ErrorKind::InUse, path.to_str()));
    }
    // Nor after a cancellation, at once or while the operation waits.
    let pace = Pace::new();
    pace.pause();
    let paused = Reparent::new(at("new.vhdx")).pace(pace);
    let mut asked = 0;
    let error = paused
        .on_progress(|_| {
            asked += 1;
            if asked < 4 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })
        .run(at("all.avhdx"));
    assert_eq!(error.unwrap_err().kind(), ErrorKind::Cancelled);
    let mut asked = 0;
    let error = Reparent::new(at("new.vhdx"))
        .on_progress(|progress| {
            asked += 1;
            assert_eq!(progress.total, MIB);
            if progress.done == 0 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })
        .run(&paths[1]);
    assert_eq!((error.unwrap_err().kind(), asked), (ErrorKind::Cancelled, 2));
    fs::remove_file(at("new.vhdx")).unwrap();
    assert_eq!(sums(folder.path()), before);
}

/// This machine, counting the bytes read from its files.
#[derive(Debug, Default)]
pub(crate) struct Counts(Mutex<Vec<(PathBuf, Arc<Counting>)>>);

impl Counts {
    /// Returns the bytes by file, and releases the files.
    pub(crate) fn take(&self) -> BTreeMap<PathBuf, u64> {
        let mut read = BTreeMap::new();
        for (path, file) in self.0.lock().unwrap().drain(..) {
            *read.entry(path).or_default() += file.counts().1;
        }
        read
    }
}

impl Host for Counts {
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn Storage>> {
        let file = Counting::new(LocalHost.open(path, access)?);
        self.0.lock().unwrap().push((path.to_path_buf(), Arc::clone(&file)));
        Ok(file)
    }
    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn Storage>> {
        LocalHost.create_new(path)
    }
    fn list(&self, folder: &Path) -> io::Result<Vec<PathBuf>> {
        LocalHost.list(folder)
    }
    fn stat(&self, path: &Path) -> io::Result<Stat> {
        LocalHost.stat(path)
    }
    fn canonical(&self, path: &Path) -> io::Result<PathBuf> {
        LocalHost.canonical(path)
    }
    fn is_link(&self, path: &Path) -> io::Result<bool> {
        LocalHost.is_link(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        LocalHost.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        LocalHost.remove(path)
    }
    fn sync_dir(&self, folder: &Path) -> io::Result<()> {
        LocalHost.sync_dir(folder)
    }
}

#[test]
fn shared_files_are_not_compared() {
    let folder = TempDir::new().unwrap();
    let mut images = vec![Image::dynamic(16 * MIB)];
    for n in 0..16 {
        images[0].put(n, Block::full(Data::Pattern(n)));
    }
    for seed in 1..4 {
        let mut child = images[seed - 1].new_child();
        child.reseed(seed as u64);
        images.push(child);
    }
    images[2].put(5, Block::full(Data::Pattern(5)));
    let paths = write_chain(folder.path(), &images);
    let fresh = |image: usize, parent: usize| {
        let host = Arc::new(Counts::default());
        let options = OpenOptions::new().host(Arc::clone(&host) as Arc<dyn Host>);
        let reparent = Reparent::new(&paths[parent]).options(options.budget(Budget::new(1 << 20)));
        let forecast = reparent.forecast(&paths[image]).unwrap();
        let change: Vec<_> = forecast.files.iter().map(|file| (&file.path, file.kind)).collect();
        assert_eq!(change, [(&paths[image], FileChangeKind::Changed)]);
        assert_eq!((forecast.peak, forecast.freed), (0, 0));
        host.take();
        let done = reparent.run(&paths[image]).unwrap();
        let read = host.take();
        assert_eq!(forecast.read, if image == 3 { 2 * MIB } else { 0 });
        assert_eq!(DiffChain::open(&paths[image]).unwrap().layers().len(), parent + 2);
        (done.proven / MIB, read)
    };
    // The same file again, and one below an empty layer: only tables are read, no block.
    for (image, parent, proven) in [(2, 1, 15), (1, 0, 16), (2, 0, 15)] {
        let (looked, read) = fresh(image, parent);
        assert_eq!(looked, proven);
        assert!(read[&paths[0]] < MIB, "{} bytes", read[&paths[0]]);
    }
    // One block lies in a layer that is left out, and is compared.
    let (looked, read) = fresh(3, 0);
    assert_eq!(looked, 16);
    for path in [&paths[0], &paths[2]] {
        let read = read[path];
        assert!((MIB..3 * MIB).contains(&read), "{read} bytes of {}", path.display());
    }
    assert!(Chain::open([&paths[0], &paths[3]]).unwrap().flat(1).unwrap() == images[0].flat(None));
}

#[test]
fn an_image_named_by_a_link_and_one_with_a_log() {
    let folder = TempDir::new().unwrap();
    let at = |name: &str| folder.path().join(name);
    for name in ["images", "links", "new"] {
        fs::create_dir(at(name)).unwrap();
    }
    let mut base = Image::dynamic(2 * MIB);
    base.put(0, Block::full(Data::Pattern(1)));
    let before = base.new_child();
    let mut after = before.clone();
    after.put(1, Block::full(Data::Pattern(2)));
    let child = Image::dirty(&before, &after, Uuid::from_u128(77), 2);
    base.write_to(at("images/parent.vhdx"));
    fs::write(at("images/child.avhdx"), child.to_bytes()).unwrap();
    std::os::unix::fs::symlink("../images/child.avhdx", at("links/tip")).unwrap();
    let mut new = base.clone();
    new.reseed(9).write_to(at("new/Basis.vhdx"));
    let refused = Reparent::new(at("new/none")).run(at("links/tip")).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Io);
    assert!(Layer::open(at("images/child.avhdx")).unwrap().log_is_pending());
    Reparent::new(at("new/Basis.vhdx")).run(at("links/tip")).unwrap();
    let naive = Chain::open([at("new/Basis.vhdx"), at("images/child.avhdx")]).unwrap();
    assert!(naive.flat(1).unwrap() == after.flat(Some(&base.flat(None))));
    assert_eq!(value(&naive.0[1], "relative_path"), Some("..\\new\\Basis.vhdx"));
}

fn named(done: &Relinked) -> Vec<(String, String)> {
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    done.images.iter().map(|image| (name(&image.path), name(&image.parent))).collect()
}

fn pair(a: &str, b: &str) -> (String, String) {
    (a.to_owned(), b.to_owned())
}

#[test]
fn moved_and_renamed_files_find_each_other_again() {
    let folder = TempDir::new().unwrap();
    let at = |name: &str| folder.path().join(name);
    for name in ["vm", "vm/deep", "attic"] {
        fs::create_dir(at(name)).unwrap();
    }
    let mut images = vec![Image::dynamic(2 * MIB)];
    images[0].put(0, Block::full(Data::Pattern(0)));
    for seed in 1..5 {
        let mut child = images[seed - 1].new_child();
        child.reseed(seed as u64);
        child.put(1, Block::partial_runs(Data::Pattern(seed as u64), &[(8 * seed, 8)]));
        child.locator.set("absolute_win32_path", format!("D:\\vm\\l{}.vhdx", seed - 1));
        child.locator.set("unknown_key", "kept");
        images.push(child);
    }
    let paths = write_chain(&at("vm"), &images);
    let flat = Chain::open(&paths).unwrap().flat(4).unwrap();
    // The base goes to another folder, a layer gets another name, one goes deeper; the last path stays right.
    let moved = [
        at("attic/base.vhdx"),
        at("vm/one.avhdx"),
        at("vm/deep/l2.vhdx"),
        at("vm/deep/l3.vhdx"),
        at("vm/deep/l4.vhdx"),
    ];
    for (from, to) in paths.iter().zip(&moved) {
        fs::rename(from, to).unwrap();
    }
    let all = || [at("vm"), at("vm/deep"), at("attic")].map(|folder| sums(&folder));
    let before = all();
    // Without the attic the base is missing, which is reported.
    let plan = Relink::folder(at("vm")).plan().unwrap();
    assert_eq!(named(&plan), [pair("l2.vhdx", "one.avhdx")]);
    let codes: Vec<_> = plan.refused.iter().map(|error| (error.kind(), error.file())).collect();
    assert_eq!(codes, [(ErrorKind::ParentMissing, moved[1].to_str())]);
    // A folder without its subfolders.
    let source = PathSource::new().folder(at("attic"));
    let flat_only = Relink::folder(at("vm")).recursive(false).parents(source.clone());
    assert_eq!(named(&flat_only.plan().unwrap()), [pair("one.avhdx", "base.vhdx")]);
    let relink = Relink::folder(at("vm")).parents(source);
    let plan = relink.plan().unwrap();
    let wanted = [pair("one.avhdx", "base.vhdx"), pair("l2.vhdx", "one.avhdx")];
    assert_eq!(named(&plan), wanted);
    assert_eq!(plan.images[0].was, [".\\l0.vhdx", "D:\\vm\\l0.vhdx"]);
    assert!(plan.refused.is_empty());
    assert!(all() == before, "a plan changes nothing");

    let links = |path: &Path| {
        let layer = Layer::open(path).unwrap();
        let known =
            ["parent_linkage", "unknown_key"].map(|key| value(&layer, key).map(str::to_owned));
        (known, layer.data_write_guid, value(&layer, "relative_path").map(str::to_owned))
    };
    let old: Vec<_> = moved.iter().map(|path| links(path)).collect();
    let done = relink.clone().run().unwrap();
    assert_eq!(named(&done), wanted);
    assert!(done.refused.is_empty());
    for (n, path) in moved.iter().enumerate() {
        let (keys, guid, relative) = links(path);
        assert_eq!((&keys, guid), (&old[n].0, old[n].1), "{}", path.display());
        let wanted = ["", "..\\attic\\base.vhdx", "..\\one.avhdx", ".\\l2.vhdx", ".\\l3.vhdx"];
        assert_eq!(relative.as_deref().unwrap_or_default(), wanted[n]);
        // No recorded path leads to a place where another file may be now.
        let layer = Layer::open(path).unwrap();
        assert_eq!(value(&layer, "absolute_win32_path").is_some(), n > 2);
        assert_eq!(
            *path == moved[1] || *path == moved[2],
            sha256_file(path) != sum_of(&before, path)
        );
    }
    assert!(Chain::open(&moved).unwrap().flat(4).unwrap() == flat);
    assert_eq!(DiffChain::open(&moved[4]).unwrap().layers().len(), 5);
    assert!(relink.run().unwrap().images.is_empty(), "done is done");
}

fn sum_of(sums: &[BTreeMap<PathBuf, String>], path: &Path) -> String {
    sums.iter().find_map(|sums| sums.get(path)).cloned().unwrap_or_default()
}

#[test]
fn what_is_ambiguous_is_refused_and_the_others_are_relinked() {
    let folder = TempDir::new().unwrap();
    let at = |name: &str| folder.path().join(name);
    let child_of = |parent: &Image, seed, path: &str| {
        let mut child = parent.new_child();
        child.reseed(seed).parent_path(path);
        child
    };
    let two = base_of(&[1; 1 << 20], 512, 1 << 20, 1);
    let one = base_of(&[2; 1 << 20], 512, 1 << 20, 2);
    two.write_to(at("a.vhdx"));
    two.write_to(at("b.vhdx"));
    one.write_to(at("one.vhdx"));
    // Another name of the same file is not a second file.
    fs::hard_link(at("one.vhdx"), at("uno.vhdx")).unwrap();
    child_of(&two, 11, ".\\gone.vhdx").write_to(at("ambiguous.avhdx"));
    child_of(&one, 12, ".\\gone.vhdx").write_to(at("plain.avhdx"));
    // A path to a file with another identity.
    child_of(&one, 13, ".\\a.vhdx").write_to(at("wrong.avhdx"));
    child_of(&two, 14, ".\\b.vhdx").write_to(at("right.avhdx"));
    child_of(&one, 15, ".\\gone.vhdx").write_to(at("used.avhdx"));
    // Two that are each other's parents.
    let (mut x, mut y) = (Image::child(MIB, one.data_write_guid()), Image::dynamic(MIB));
    y.reseed(17);
    x.reseed(16).parent_path(".\\gone.vhdx");
    x.locator.set("parent_linkage", braced(y.data_write_guid()));
    let mut y = child_of(&x, 17, ".\\x.avhdx");
    y.reseed(17);
    x.write_to(at("x.avhdx"));
    y.write_to(at("y.avhdx"));
    // Another sector size.
    let mut odd = child_of(&one, 18, ".\\gone.vhdx");
    odd.logical_sector = 4096;
    odd.write_to(at("odd.avhdx"));
    // And an incomplete one.
    let temporary = at(&format!(".one.vhdx.{}.tmp", Uuid::from_u128(7).simple()));
    one.write_to(&temporary);

    let before = sums(folder.path());
    let held = LocalHost.open(&at("used.avhdx"), Access::Read).unwrap();
    held.try_lock(LockMode::Shared).unwrap();
    for recursive in [true, false] {
        let relink = Relink::folder(folder.path()).recursive(recursive);
        let plan = relink.plan().unwrap();
        let mut names: Vec<String> = named(&plan).into_iter().map(|(child, _)| child).collect();
        names.sort();
        assert_eq!(names, ["plain.avhdx", "used.avhdx", "wrong.avhdx"]);
    }
    assert_eq!(sums(folder.path()), before);
    let done = Relink::folder(folder.path()).run().unwrap();
    let mut refused: Vec<_> = done
        .refused
        .iter()
        .map(|error| {
            (error.file().unwrap().rsplit('/').next().unwrap(), error.kind(), error.code())
        })
        .collect();
    refused.sort_by_key(|(name, ..)| *name);
    assert_eq!(
        refused,
        [
            ("ambiguous.avhdx", ErrorKind::Unproven, "relink.ambiguous"),
            ("odd.avhdx", ErrorKind::Unproven, "relink.sector-size"),
            ("used.avhdx", ErrorKind::InUse, "lock.in-use"),
            ("x.avhdx", ErrorKind::Unproven, "relink.loop"),
        ]
    );
    let ambiguous = done.refused.iter().find(|error| error.code() == "relink.ambiguous").unwrap();
    for name in ["a.vhdx", "b.vhdx"] {
        assert!(ambiguous.to_string().contains(at(name).to_str().unwrap()), "{ambiguous}");
    }
    for (path, sum) in sums(folder.path()) {
        let changed = [at("plain.avhdx"), at("wrong.avhdx")].contains(&path);
        assert_eq!(before[&path] != sum, changed, "{}", path.display());
    }
    DiffChain::open(at("plain.avhdx")).unwrap();
    DiffChain::open(at("wrong.avhdx")).unwrap();
    assert_eq!(Relink::folder(at("nowhere")).plan().unwrap_err().kind(), ErrorKind::Io);
}

#[test]
fn parents_of_both_images_come_from_the_callers_source() {
    let folder = TempDir::new().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir(at("pool")).unwrap();
    let mut base = Image::dynamic(MIB);
    base.put(0, Block::full(Data::Pattern(1)));
    let mut old = base.new_child();
    old.reseed(1).parent_path(".\\gone.vhdx").write_to(at("pool/old"));
    let mut new = base.new_child();
    new.reseed(2).parent_path(".\\gone.vhdx").write_to(at("new.vhdx"));
    base.write_to(at("pool/base"));
    let mut child = old.new_child();
    child.reseed(3).write_to(at("child.avhdx"));
    let error = Reparent::new(at("new.vhdx")).run(at("child.avhdx")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ParentMissing);
    let options = OpenOptions::new().host(Arc::new(LocalHost));
    let options = options.parents(PathSource::new().folder(at("pool")));
    let done = Reparent::new(at("new.vhdx")).options(options.clone()).run(at("child.avhdx"));
    assert_eq!(done.unwrap().proven, MIB);
    assert_eq!(options.open(at("child.avhdx")).unwrap().layers()[1].path, Some(at("new.vhdx")));
}
