//! A host in trouble while a chain is in use: reads that return less than was asked for or are interrupted, parents that
//! vanish or are cut short, file systems that become read-only. Failures of each single call are in `crash/failures.rs`.
#![allow(clippy::disallowed_methods)] // real files

use std::fmt::Debug;
use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use avhdx::ops::{Check, Checkpoint, Compact, Export, Merge, Resize, Severity};
use avhdx::storage::{Access, FileId, Host, LocalHost, LockMode, LockOutcome, Stat, Storage};
use avhdx::{CreateOptions, DiffChain, Disk, ErrorKind, Lock, OpenOptions};
use avhdx_testkit::rng::{Rng, pattern};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 12 * MIB;

/// This machine, where each read returns a part of what was asked for, and every third is interrupted before; and which
/// can become read-only.
#[derive(Clone, Debug, Default)]
struct Troubled {
    calls: Arc<AtomicU64>,
    chops: bool,
    is_read_only: Arc<AtomicBool>,
}

#[derive(Debug)]
struct TroubledFile {
    inner: Arc<dyn Storage>,
    host: Troubled,
}

impl Troubled {
    fn changes(&self) -> io::Result<()> {
        match self.is_read_only.load(Ordering::SeqCst) {
            true => Err(io::ErrorKind::ReadOnlyFilesystem.into()),
            false => Ok(()),
        }
    }

    fn wrap(&self, inner: Arc<dyn Storage>) -> Arc<dyn Storage> {
        Arc::new(TroubledFile { inner, host: self.clone() })
    }

    /// How much of a read of `len` bytes succeeds.
    fn part(&self, len: usize) -> io::Result<usize> {
        if !self.chops {
            return Ok(len);
        }
        let mut rng = Rng::new(self.calls.fetch_add(1, Ordering::SeqCst));
        match rng.chance(1, 3) {
            true => Err(io::ErrorKind::Interrupted.into()),
            // Small structures byte by byte, large ones in some pieces.
            false => Ok(1 + rng.below(len.max(2) as u64 - 1) as usize),
        }
    }
}

impl Host for Troubled {
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn Storage>> {
        if access == Access::ReadWrite {
            self.changes()?;
        }
        Ok(self.wrap(LocalHost.open(path, access)?))
    }
    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn Storage>> {
        self.changes()?;
        Ok(self.wrap(LocalHost.create_new(path)?))
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
        self.changes()?;
        LocalHost.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.changes()?;
        LocalHost.remove(path)
    }
    fn sync_dir(&self, folder: &Path) -> io::Result<()> {
        LocalHost.sync_dir(folder)
    }
}

impl Storage for TroubledFile {
    fn name(&self) -> &str {
        self.inner.name()
    }
    fn path(&self) -> Option<&Path> {
        self.inner.path()
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let len = match buf.len() {
            0 => 0,
            len => self.host.part(len)?,
        };
        self.inner.read_at(&mut buf[..len], offset)
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.host.changes()?;
        self.inner.write_at(buf, offset)
    }
    fn flush(&self) -> io::Result<()> {
        self.inner.flush()
    }
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }
    fn next_data(&self, from: u64) -> io::Result<Option<Range<u64>>> {
        self.inner.next_data(from)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.host.changes()?;
        self.inner.set_len(len)
    }
    fn id(&self) -> io::Result<Option<FileId>> {
        self.inner.id()
    }
    fn try_lock(&self, mode: LockMode) -> io::Result<LockOutcome> {
        self.inner.try_lock(mode)
    }
    fn unlock(&self) -> io::Result<()> {
        self.inner.unlock()
    }
}

/// A base and two points over it on `host`, and what the disk reads as.
struct Place {
    folder: TempDir,
    host: Arc<dyn Host>,
    chain: DiffChain,
    flat: Vec<u8>,
}

impl Place {
    fn new(host: impl Host + 'static) -> Self {
        let host: Arc<dyn Host> = Arc::new(host);
        let folder = TempDir::new().unwrap();
        let base = folder.path().join("base.vhdx");
        let new = CreateOptions::dynamic(SIZE).block_size(MIB as u32);
        drop(new.create_on(Arc::clone(&host), &base).unwrap());
        let chain = options(&host).writable(true).open(&base).unwrap();
        let mut place = Self { folder, host, chain, flat: vec![0; SIZE as usize] };
        place.write(1, 0..7 * MIB);
        for n in 2..4 {
            let to = place.at(&format!("p{n}.avhdx"));
            Checkpoint::new().path(to).run(&place.chain).unwrap();
            place.write(n, n * MIB + 300..n * MIB + 90_000);
            place.write(n + 10, (n + 4) * MIB..(n + 5) * MIB);
        }
        place
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&mut self, seed: u64, range: Range<u64>) {
        let bytes = &mut self.flat[range.start as usize..range.end as usize];
        pattern(seed, range.start / 512 * 512, bytes);
        self.chain.write_at(bytes, range.start).unwrap();
        self.chain.flush().unwrap();
    }

    fn reads_right(&self) {
        let mut read = vec![0xAA; self.flat.len()];
        self.chain.read_at(&mut read, 0).unwrap();
        assert!(read == self.flat);
    }

    fn tip(&self) -> PathBuf {
        self.chain.layers()[0].path.clone().unwrap()
    }

    fn is_sound(&self) {
        let options = options(&self.host).lock(Lock::None);
        let report = Check::new().options(options).run(self.tip()).unwrap();
        assert_eq!(report.count(Severity::Error), 0, "{:?}", report.findings);
    }
}

fn options(host: &Arc<dyn Host>) -> OpenOptions {
    let parents = avhdx::PathSource::new().host(Arc::clone(host));
    OpenOptions::new().host(Arc::clone(host)).parents(parents)
}

#[test]
fn reads_in_parts_and_interruptions_change_nothing() {
    let mut place = Place::new(Troubled { chops: true, ..Troubled::default() });
    place.reads_right();
    // A pending log, by a chain that is not closed.
    let copy = place.at("copy.avhdx");
    place.write(30, 5 * MIB + 100..5 * MIB + 9_000);
    fs::copy(place.tip(), &copy).unwrap();
    let again = options(&place.host).open(&copy).unwrap();
    let mut read = vec![0; place.flat.len()];
    again.read_at(&mut read, 0).unwrap();
    assert!(read == place.flat);
    drop(again);
    fs::remove_file(copy).unwrap();
    // Each operation that reads much.
    let middle = place.chain.layers()[1].id;
    Merge::new(middle).run(&place.chain).unwrap();
    place.reads_right();
    place.chain.discard(0..2 * MIB).unwrap();
    place.flat[..2 * MIB as usize].fill(0);
    Compact::new().run(&place.chain).unwrap();
    place.reads_right();
    Resize::to(SIZE + MIB).run(&place.chain).unwrap();
    place.flat.resize((SIZE + MIB) as usize, 0);
    place.reads_right();
    let raw = place.at("raw");
    Export::new().run(&place.chain, place.host.create_new(&raw).unwrap().as_ref()).unwrap();
    assert!(fs::read(raw).unwrap() == place.flat);
    place.chain.close().unwrap();
    place.is_sound();
}

#[test]
fn a_parent_that_loses_its_name_is_still_read() {
    let place = Place::new(LocalHost);
    for layer in &place.chain.layers()[1..] {
        fs::remove_file(layer.path.as_ref().unwrap()).unwrap();
    }
    place.reads_right();
    place.chain.write_at(&[7; 5000], 3 * MIB).unwrap();
    place.chain.flush().unwrap();
    // What needs the names says which one is missing, and leaves the chain as it is.
    let tip = place.chain.layers()[0].id;
    let error = Merge::new(tip).run(&place.chain).unwrap_err();
    assert!(error.file().is_some(), "{error}");
    assert!(place.tip().exists());
    let mut read = vec![0; 5000];
    place.chain.read_at(&mut read, 3 * MIB).unwrap();
    assert!(read == [7; 5000]);
    place.chain.close().unwrap();
}

#[test]
fn a_parent_that_is_cut_while_it_is_read_shows_no_zeros() {
    let place = Place::new(LocalHost);
    let base = place.at("base.vhdx");
    let whole = fs::read(&base).unwrap();
    // Blocks of the base lie at its end, the last ones cut off.
    let file = fs::OpenOptions::new().write(true).open(&base).unwrap();
    file.set_len(whole.len() as u64 - 2 * MIB - 100).unwrap();
    let (mut failed, mut read_right) = (0, 0);
    let mut sector = vec![0; 4096];
    for at in (0..SIZE).step_by(4096) {
        match place.chain.read_at(&mut sector, at) {
            Ok(()) => {
                assert!(
                    sector == place.flat[at as usize..at as usize + 4096],
                    "other bytes at {at:#x}"
                );
                read_right += 1;
            }
            Err(error) => {
                assert!(error.file().is_some_and(|name| name.contains("base.vhdx")), "{error}");
                assert!(error.offset().is_some(), "{error}");
                failed += 1;
            }
        }
    }
    assert!(failed > 0 && read_right > 2000, "{failed} failed, {read_right} right");
    // The tip takes writes, and nothing flushed is lost.
    place.chain.write_at(&[9; 4096], 2 * MIB).unwrap();
    place.chain.flush().unwrap();
    place.chain.close().unwrap();
    fs::write(&base, whole).unwrap();
    let chain = OpenOptions::new().lock(Lock::None).open(place.tip()).unwrap();
    chain.read_at(&mut sector, 2 * MIB).unwrap();
    assert!(sector == [9; 4096]);
}

#[test]
fn a_file_system_that_becomes_read_only_loses_nothing_flushed() {
    let host = Troubled::default();
    let switch = Arc::clone(&host.is_read_only);
    let mut place = Place::new(host);
    place.write(40, MIB + 7..MIB + 70_000);
    switch.store(true, Ordering::SeqCst);
    // Changes fail, and flushes say so; reads go on.
    let error = place.chain.write_at(&[1; 512], 11 * MIB).and_then(|()| place.chain.flush());
    let error = error.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io, "{error}");
    assert!(error.file().is_some(), "{error}");
    let mut read = vec![0; 10 * MIB as usize];
    place.chain.read_at(&mut read, 0).unwrap();
    assert!(read == place.flat[..read.len()]);
    for error in [
        Checkpoint::new().run(&place.chain).map(drop).unwrap_err(),
        Merge::new(place.chain.layers()[1].id).run(&place.chain).map(drop).unwrap_err(),
        options(&place.host).writable(true).open(place.tip()).map(drop).unwrap_err(),
    ] {
        assert!(error.file().is_some(), "{error}");
    }
    let tip = place.tip();
    let Place { folder, host, chain, flat } = place;
    drop(chain);
    // Reading needs no right to write, and a pending log is no obstacle.
    let chain = options(&host).open(&tip).unwrap();
    chain.read_at(&mut read, 0).unwrap();
    assert!(read == flat[..read.len()]);
    drop(chain);
    switch.store(false, Ordering::SeqCst);
    let chain = options(&host).writable(true).open(&tip).unwrap();
    chain.read_at(&mut read, 0).unwrap();
    assert!(read == flat[..read.len()]);
    chain.close().unwrap();
    drop(folder);
}
