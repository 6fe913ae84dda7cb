//! The suite over every kind of disk.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, RwLock};

use avhdx::storage::{Access, Host, LocalHost, MemStorage, Storage};
use avhdx::{Disk, LayerId, OpenOptions, Part, RawDisk};
use avhdx_testkit::build::{Block, Data, Image, Order, state};
use avhdx_testkit::conformance::disk::{Subject, failures_name_the_file, keeps_every_promise};

use crate::common::disk::flat;
use crate::common::{MIB, memory, open_stack};
use crate::concatenation::Concatenation;
use crate::ram::Ram;
use crate::{base, tip};

/// A file in memory that a crash sets back to its last flush.
#[derive(Debug)]
struct Volatile {
    name: String,
    bytes: RwLock<Vec<u8>>,
    durable: Mutex<Vec<u8>>,
}

impl Volatile {
    fn new(name: &str, bytes: Vec<u8>) -> Arc<Self> {
        let durable = Mutex::new(bytes.clone());
        Arc::new(Self { name: name.into(), bytes: RwLock::new(bytes), durable })
    }

    fn after_crash(&self) -> Vec<u8> {
        self.durable.lock().unwrap().clone()
    }
}

impl Storage for Volatile {
    fn name(&self) -> &str {
        &self.name
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let bytes = self.bytes.read().unwrap();
        let len = (bytes.len() as u64).saturating_sub(offset).min(buf.len() as u64) as usize;
        if len > 0 {
            buf[..len].copy_from_slice(&bytes[offset as usize..][..len]);
        }
        Ok(len)
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let mut bytes = self.bytes.write().unwrap();
        let end = offset as usize + buf.len();
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        bytes[offset as usize..end].copy_from_slice(buf);
        Ok(())
    }
    fn flush(&self) -> io::Result<()> {
        self.durable.lock().unwrap().clone_from(&self.bytes.read().unwrap());
        Ok(())
    }
    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes.read().unwrap().len() as u64)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.bytes.write().unwrap().resize(len as usize, 0);
        Ok(())
    }
    fn punch(&self, range: Range<u64>) -> io::Result<bool> {
        let mut bytes = self.bytes.write().unwrap();
        let end = (bytes.len() as u64).min(range.end) as usize;
        bytes[(range.start as usize).min(end)..end].fill(0);
        Ok(true)
    }
    fn try_lock(&self, _: avhdx::storage::LockMode) -> io::Result<avhdx::storage::LockOutcome> {
        Ok(avhdx::storage::LockOutcome::Locked)
    }
    fn unlock(&self) -> io::Result<()> {
        Ok(())
    }
}

/// The content of images, base first, each over those before it.
fn content(images: &[Image]) -> Vec<u8> {
    let over = |below: Option<Vec<u8>>, image: &Image| Some(image.flat(below.as_deref()));
    images.iter().fold(None, over).expect("an image")
}

/// The files of images; that of the last one may lose what is not flushed.
fn files(images: &[Image]) -> (Vec<Arc<dyn Storage>>, Arc<Volatile>) {
    let (tip, parents) = images.split_last().expect("an image");
    let parents = parents.iter().enumerate();
    let mut files: Vec<_> =
        parents.map(|(n, image)| memory(format!("l{n}"), image.to_bytes())).collect();
    let tip = Volatile::new("tip", tip.to_bytes());
    files.push(Arc::clone(&tip) as _);
    (files, tip)
}

fn read_place(files: &[(LayerId, Arc<dyn Storage>)], layer: LayerId, at: u64, buf: &mut [u8]) {
    let (_, file) = files.iter().find(|(id, _)| *id == layer).expect("a layer of the disk");
    file.read_exact_at(buf, at).unwrap();
}

/// The chain of images, base first.
fn chain(images: &[Image], is_writable: bool) -> Subject<'static> {
    let (files, tip) = files(images);
    let chain = open_stack(OpenOptions::new().writable(is_writable), &files).unwrap();
    let ids = chain.layers().into_iter().rev().map(|layer| layer.id);
    let named: Vec<_> = ids.zip(files.iter().cloned()).collect();
    let after_crash = move || {
        let mut files = files.clone();
        files.pop();
        files.push(memory("tip", tip.after_crash()));
        flat(&open_stack(OpenOptions::new(), &files).unwrap())
    };
    Subject {
        is_writable,
        at_place: Some(Box::new(move |layer, at, buf| read_place(&named, layer, at, buf))),
        after_crash: Some(Box::new(after_crash)),
        ..Subject::read_only(chain, content(images))
    }
}

/// The only image of a disk, by itself.
fn image(image: &Image, is_writable: bool) -> Subject<'static> {
    let (files, tip) = files(std::slice::from_ref(image));
    let opened = OpenOptions::new().writable(is_writable).open_file(files[0].clone()).unwrap();
    let named = [(opened.id(), files[0].clone())];
    let after_crash =
        move || flat(&OpenOptions::new().open_file(memory("tip", tip.after_crash())).unwrap());
    Subject {
        is_writable,
        at_place: Some(Box::new(move |layer, at, buf| read_place(&named, layer, at, buf))),
        after_crash: Some(Box::new(after_crash)),
        ..Subject::read_only(opened, image.flat(None))
    }
}

fn fixed() -> Image {
    let mut image = Image::fixed(3 * MIB + 512);
    for block in 0..4 {
        image.put(block, Block::full(Data::Pattern(block + 1)));
    }
    image
}

/// Layers of blocks of several sizes, all states among them.
fn layers(logical_sector: u32) -> Vec<Image> {
    let mut base = Image::dynamic(9 * MIB);
    base.logical_sector = logical_sector;
    base.physical_sector = 4096;
    base.order = Order::Reversed;
    base.block_size = 2 << 20;
    base.put(0, Block::full(Data::Pattern(1))).put(2, Block::full(Data::Pattern(2)));
    let mut images = vec![base];
    for (n, block_size) in [1 << 20, 4 << 20, 1 << 20, 2 << 20].into_iter().enumerate() {
        let mut child = images[n].new_child();
        child.block_size = block_size;
        let seed = 10 * (n as u64 + 1);
        child.put(0, Block::partial_runs(Data::Pattern(seed), &[(n * 20, 7), (100 + n, 1)]));
        child.put(
            1,
            match n % 2 {
                0 => Block::full(Data::Pattern(seed + 1)),
                _ => Block::bare(state::ZERO),
            },
        );
        images.push(child);
    }
    images
}

#[test]
fn a_fixed_image_keeps_every_promise() {
    keeps_every_promise(&|| image(&fixed(), true));
    keeps_every_promise(&|| image(&fixed(), false));
}

#[test]
fn a_dynamic_image_keeps_every_promise() {
    keeps_every_promise(&|| image(&base(), true));
    keeps_every_promise(&|| image(&base(), false));
}

#[test]
fn a_chain_of_one_image_keeps_every_promise() {
    keeps_every_promise(&|| chain(&[base()], true));
}

#[test]
fn a_child_on_its_base_keeps_every_promise() {
    let images = [base(), tip(&base())];
    keeps_every_promise(&|| chain(&images, true));
    keeps_every_promise(&|| chain(&images, false));
}

#[test]
fn a_chain_of_several_block_sizes_keeps_every_promise() {
    let images = layers(512);
    keeps_every_promise(&|| chain(&images, true));
    keeps_every_promise(&|| chain(&images, false));
}

#[test]
fn a_chain_of_sectors_of_4096_bytes_keeps_every_promise() {
    let images = layers(4096);
    keeps_every_promise(&|| chain(&images, true));
}

#[test]
fn a_view_of_a_chain_that_is_written_to_keeps_every_promise() {
    let images = layers(512);
    let (files, _) = files(&images);
    let chain = open_stack(OpenOptions::new().writable(true), &files).unwrap();
    let below = chain.layers()[2].id;
    keeps_every_promise(&|| {
        chain.write_at(&[0x77; 5000], 3000).unwrap();
        Subject::read_only(chain.view(below).unwrap(), content(&images[..3]))
    });
}

#[test]
fn a_raw_disk_keeps_every_promise() {
    let bytes = base().flat(None);
    keeps_every_promise(&|| {
        let file = Volatile::new("raw", bytes.clone());
        let disk = RawDisk::new(Arc::clone(&file) as _).unwrap();
        let named = Arc::clone(&file);
        Subject {
            at_place: Some(Box::new(move |_, at, buf| named.read_exact_at(buf, at).unwrap())),
            after_crash: Some(Box::new(move || file.after_crash())),
            ..Subject::writable(disk, bytes.clone())
        }
    });
    keeps_every_promise(&|| {
        let file = MemStorage::new(bytes.clone());
        Subject::writable(RawDisk::new(Arc::new(file)).unwrap(), bytes.clone())
    });
}

#[test]
fn a_part_of_a_raw_disk_keeps_every_promise() {
    let bytes = base().flat(None);
    let range = MIB - 512..3 * MIB + 1024;
    let expected = bytes[range.start as usize..range.end as usize].to_vec();
    keeps_every_promise(&|| {
        let file = Volatile::new("raw", bytes.clone());
        let disk = RawDisk::new(Arc::clone(&file) as _).unwrap();
        let (named, inner) = (Arc::clone(&file), range.clone());
        Subject {
            at_place: Some(Box::new(move |_, at, buf| named.read_exact_at(buf, at).unwrap())),
            after_crash: Some(Box::new(move || {
                file.after_crash()[inner.start as usize..inner.end as usize].to_vec()
            })),
            ..Subject::writable(Part::new(disk, range.clone()).unwrap(), expected.clone())
        }
    });
}

#[test]
fn a_part_of_a_chain_keeps_every_promise() {
    let images = [base(), tip(&base())];
    let range = MIB + 512..5 * MIB;
    keeps_every_promise(&|| {
        let (files, _) = files(&images);
        let chain = open_stack(OpenOptions::new().writable(true), &files).unwrap();
        let part = Part::new(chain, range.clone()).unwrap();
        Subject::writable(part, content(&images)[range.start as usize..range.end as usize].to_vec())
    });
    keeps_every_promise(&|| {
        let (files, _) = files(&images);
        let chain = open_stack(OpenOptions::new(), &files).unwrap();
        let part = Part::new(chain, range.clone()).unwrap();
        Subject::read_only(
            part,
            content(&images)[range.start as usize..range.end as usize].to_vec(),
        )
    });
}

#[test]
fn a_raw_disk_in_a_file_keeps_every_promise() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.img");
    let bytes = base().flat(None);
    let disk = |access| RawDisk::new(LocalHost.open(&path, access).unwrap()).unwrap();
    let fill = || std::fs::write(&path, &bytes).unwrap();
    keeps_every_promise(&|| {
        fill();
        Subject::writable(disk(Access::ReadWrite), bytes.clone())
    });
    fill();
    keeps_every_promise(&|| Subject::read_only(disk(Access::Read), bytes.clone()));
}

#[test]
fn a_disk_from_outside_the_crate_keeps_every_promise() {
    let bytes = base().flat(None);
    keeps_every_promise(&|| ram(&bytes));
}

#[test]
fn a_concatenation_from_outside_the_crate_keeps_every_promise() {
    let images = [base(), tip(&base())];
    let bytes = base().flat(None)[..MIB as usize + 512].to_vec();
    let parts = |is_writable| {
        let (first, second) = (image(&fixed(), is_writable), chain(&images, is_writable));
        let all = [first.bytes, bytes.clone(), second.bytes].concat();
        let disks = vec![first.disk, Box::new(Ram::new(bytes.clone())), second.disk];
        let subject = Subject::read_only(Concatenation::new(disks).unwrap(), all);
        Subject { is_writable, ..subject }
    };
    keeps_every_promise(&|| parts(true));
}

/// A disk in memory that holds `bytes`.
pub(crate) fn ram(bytes: &[u8]) -> Subject<'static> {
    let ram = Ram::new(bytes.to_vec());
    let (place, crash) = (ram.clone(), ram.clone());
    Subject {
        at_place: Some(Box::new(move |layer, at, buf| place.at_place(layer, at, buf))),
        after_crash: Some(Box::new(move || crash.after_crash())),
        ..Subject::writable(ram, bytes.to_vec())
    }
}

/// A file of which nothing can be read once it is opened.
#[derive(Debug)]
struct Failing(Arc<dyn Storage>, std::sync::atomic::AtomicBool);

impl Storage for Failing {
    fn name(&self) -> &str {
        self.0.name()
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        if self.1.load(std::sync::atomic::Ordering::SeqCst) {
            return Err(io::Error::other("the cable is out"));
        }
        self.0.read_at(buf, offset)
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_at(buf, offset)
    }
    fn flush(&self) -> io::Result<()> {
        self.0.flush()
    }
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
    fn try_lock(&self, mode: avhdx::storage::LockMode) -> io::Result<avhdx::storage::LockOutcome> {
        self.0.try_lock(mode)
    }
}

#[test]
fn failures_of_every_kind_of_disk_name_the_file() {
    let failing = |name: &str, bytes: Vec<u8>| Arc::new(Failing(memory(name, bytes), false.into()));
    let fail = |file: &Failing| file.1.store(true, std::sync::atomic::Ordering::SeqCst);

    let file = failing("a.vhdx", base().to_bytes());
    let image = OpenOptions::new().open_file(Arc::clone(&file) as _).unwrap();
    fail(&file);
    failures_name_the_file(&image, "a.vhdx");

    let file = failing("base.vhdx", base().to_bytes());
    let child = memory("child.avhdx", base().new_child().to_bytes());
    let chain = open_stack(OpenOptions::new(), &[Arc::clone(&file) as _, child]).unwrap();
    fail(&file);
    failures_name_the_file(&chain, "base.vhdx");
    let view = chain.view(chain.layers()[1].id).unwrap();
    failures_name_the_file(&view, "base.vhdx");

    let file = failing("a.img", vec![1; 4096]);
    let raw = RawDisk::new(Arc::clone(&file) as _).unwrap();
    fail(&file);
    failures_name_the_file(&raw, "a.img");
    let whole = Concatenation::new(vec![Box::new(raw) as Box<dyn Disk>]).unwrap();
    failures_name_the_file(&whole, "a.img");
}
