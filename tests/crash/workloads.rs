//! Workloads during which the host may crash.

use std::sync::Arc;

use avhdx::ops::Export;
use avhdx::{CreateOptions, DiffChain, Zeroing};
use avhdx_testkit::rng::Rng;

use crate::driver::{Driver, GIB, KIB, MIB, Recorded, Setup, fixed_identities, host, path};
use crate::interleave::interleaved;
use crate::sim::{Event, SimHost};

/// A name, and its histories.
pub struct Workload {
    pub name: &'static str,
    pub record: Record,
    /// Fewer outcomes per cut, because there are many cuts or outcomes are costly to judge.
    pub is_large: bool,
    /// Whether it also runs on a host that shows stale bytes where a crash lost the first write to grown space.
    pub is_on_both: bool,
}

/// How a workload is recorded.
pub enum Record {
    Once(fn() -> Vec<Recorded>),
    /// A different one for each seed.
    Seeded(fn(u64) -> Vec<Recorded>),
}

/// All workloads.
pub fn all() -> impl Iterator<Item = &'static Workload> {
    ALL.iter().chain(crate::growing::ALL).chain([&ANYTHING])
}

/// Last, because it continues until there are enough outcomes.
const ANYTHING: Workload = seeded("anything at random", anything).on_both();

const ALL: &[Workload] = &[
    small("first write, empty child", || one(child(2 * MIB), first_write)).on_both(),
    small("first write, empty dynamic", || one(dynamic(4 * MIB).start(), first_write)).on_both(),
    small("block fills", || one(child(2 * MIB), block_fills)).on_both(),
    small("bitmap shared by two blocks", || one(child(4 * MIB), shared_bitmap)),
    small("discard and reuse, dynamic", || one(dynamic(6 * MIB).start(), discard_and_reuse))
        .on_both(),
    small("discard and reuse, child", || one(child(6 * MIB), discard_and_reuse)),
    small("zeros over the parent", || one(child(4 * MIB), zeros_over_parent)),
    small("growth", || one(dynamic(8 * MIB).start(), growth)).on_both(),
    small("a length of no whole MiB", odd_length),
    small("an end behind the end of the disk", || one(cut_end(false), last_block)),
    small("an end behind the end of the disk, child", || one(cut_end(true), last_block)),
    small("close with room to cut", || one(wide(), close_and_cut)).on_both(),
    small("stale bits", stale_bits).on_both(),
    small("sessions one after the other", || one(child(4 * MIB), sessions)).on_both(),
    small("headers full", || one(headers_full().start(), sessions)),
    small("a header torn twice", header_torn_twice),
    small("replay of zeros interrupted", crate::logs::zeros),
    small("replay interrupted", || one(child(4 * MIB), replays)).on_both(),
    small("fixed disk", fixed),
    small("unaligned, sectors of 512", || one(child(4 * MIB), unaligned)),
    small("unaligned, sectors of 4096", unaligned_in_large_sectors),
    small("new bitmap in another chunk", second_chunk),
    small("create", create).on_both(),
    small("create, fixed", || vec![created(CreateOptions::fixed(4 * MIB))]),
    small("another parent", || one(two_bases(), another_parent)),
    small("scattered writes", || one(child(6 * MIB), scattered_writes)),
    small("scattered tables", || one(scattered(), scattered_tables)),
    small("flush, a write in place meanwhile", || {
        interleaved(|| child(4 * MIB), busy, flush, |d, c| d.write(c, 60, 4 * KIB, 2 * KIB))
    }),
    small("flush, a new sector meanwhile", || {
        interleaved(|| child(4 * MIB), busy, flush, |d, c| d.write(c, 61, 64 * KIB, KIB))
    }),
    small("flush, a new block meanwhile", || {
        interleaved(|| child(4 * MIB), busy, flush, |d, c| d.write(c, 62, 3 * MIB + 8 * KIB, KIB))
    }),
    small("flush, a discard meanwhile", || {
        interleaved(
            || child(4 * MIB),
            busy,
            flush,
            |d, c| {
                d.discard(c, MIB, MIB);
                d.write(c, 63, 2 * MIB, 2 * MIB);
            },
        )
    }),
    small("flush, a write and a flush meanwhile", || {
        interleaved(
            || child(4 * MIB),
            busy,
            flush,
            |d, c| {
                d.write(c, 64, 32 * KIB, KIB);
                d.flush(c);
            },
        )
    }),
    small("a new block, a flush meanwhile", || {
        interleaved(|| child(4 * MIB), |_, _| {}, |d, c| d.write(c, 65, 8 * KIB, KIB), flush)
    }),
    small("a new sector, a flush meanwhile", || {
        interleaved(|| child(4 * MIB), busy, |d, c| d.write(c, 66, 96 * KIB, KIB), flush)
    }),
    small("reuse, a flush meanwhile", || {
        interleaved(|| dynamic(4 * MIB).start(), freed, |d, c| d.write(c, 67, 3 * MIB, KIB), flush)
    }),
    large("log wraps", || one(child(4 * MIB), log_wraps)),
    large("entries as large as half the log", || one(vast(), large_entries)),
    large("commit larger than one entry", || one(vast_with_stale_bits(), split_commit)),
    large("table larger than one entry", || one(vaster(), split_table)),
];

impl Workload {
    pub const fn on_both(self) -> Self {
        Self { is_on_both: true, ..self }
    }
}

pub const fn small(name: &'static str, record: fn() -> Vec<Recorded>) -> Workload {
    Workload { name, record: Record::Once(record), is_large: false, is_on_both: false }
}

const fn seeded(name: &'static str, record: fn(u64) -> Vec<Recorded>) -> Workload {
    Workload { name, record: Record::Seeded(record), is_large: false, is_on_both: false }
}

pub const fn large(name: &'static str, record: fn() -> Vec<Recorded>) -> Workload {
    Workload { name, record: Record::Once(record), is_large: true, is_on_both: false }
}

pub fn one(driver: Driver, run: fn(&Driver)) -> Vec<Recorded> {
    run(&driver);
    vec![driver.finish()]
}

pub fn dynamic(size: u64) -> Setup {
    base(size, 1 << 20)
}

/// A dynamic disk.
pub fn base(size: u64, block_size: u32) -> Setup {
    Setup::base(CreateOptions::dynamic(size), size, block_size)
}

/// An empty child over a base with data in every block.
fn child(size: u64) -> Driver {
    child_setup(size).start()
}

pub fn child_setup(size: u64) -> Setup {
    let blocks = size / MIB;
    let base = (0..blocks).fold(dynamic(size), |base, block| {
        base.write(block * MIB, 20 * KIB).write(block * MIB + 90 * KIB, 20 * KIB)
    });
    base.child(1 << 20)
}

/// The same beside a second base with the same contents.
fn two_bases() -> Driver {
    let setup = child_setup(4 * MIB);
    let base = crate::verdict::open(&setup.host, &path("base.vhdx"), false).unwrap();
    let options = fixed_identities(CreateOptions::dynamic(4 * MIB).block_size(2 << 20), 3);
    let second = options.create_on(Arc::new(setup.host.clone()), path("second.vhdx")).unwrap();
    Export::new().onto(&base, &second).unwrap();
    second.close().unwrap();
    setup.start()
}

/// A base large enough to grow by more than it needs.
fn wide() -> Driver {
    (0..20).fold(dynamic(24 * MIB), |base, block| base.write(block * MIB, 512)).start()
}

/// A child in which every written block has a table page of its own.
fn vast() -> Driver {
    let size = 80 << 30;
    dynamic(size).write(0, 4 * KIB).write(512 * MIB, 4 * KIB).child(1 << 20).start()
}

pub fn flush(driver: &Driver, chain: &DiffChain) {
    driver.flush(chain);
}

fn first_write(driver: &Driver) {
    let chain = driver.open();
    driver.write(&chain, 1, 8 * KIB, 4 * KIB);
    driver.flush(&chain);
    driver.write(&chain, 2, 10 * KIB, 4 * KIB);
    driver.write(&chain, 3, MIB, 4 * KIB);
    driver.close(&chain);
}

fn block_fills(driver: &Driver) {
    let chain = driver.open();
    driver.write(&chain, 1, 200 * KIB, 400 * KIB);
    driver.write(&chain, 2, 900 * KIB, 4 * KIB);
    driver.flush(&chain);
    driver.write(&chain, 7, 0, 200 * KIB);
    driver.write(&chain, 3, 600 * KIB, 300 * KIB);
    driver.write(&chain, 4, 904 * KIB, 120 * KIB);
    driver.flush(&chain);
    driver.write(&chain, 5, 4 * KIB, 4 * KIB);
    driver.write(&chain, 6, MIB, MIB);
    driver.close(&chain);
}

fn shared_bitmap(driver: &Driver) {
    let chain = driver.open();
    driver.write(&chain, 1, 4 * KIB, 2 * KIB);
    driver.write(&chain, 2, MIB + 4 * KIB, 2 * KIB);
    driver.flush(&chain);
    driver.write(&chain, 3, 5 * KIB, 2 * KIB);
    driver.write(&chain, 4, MIB + 3 * KIB, 2 * KIB);
    driver.write(&chain, 5, 2 * MIB + 4 * KIB, KIB);
    driver.flush(&chain);
    driver.write(&chain, 6, MIB + 92 * KIB, KIB);
    driver.write(&chain, 7, 92 * KIB, KIB);
    driver.flush(&chain);
    driver.kill(chain);
}

fn discard_and_reuse(driver: &Driver) {
    let chain = driver.open();
    driver.write(&chain, 1, 0, MIB);
    driver.write(&chain, 2, MIB, 4 * KIB);
    driver.flush(&chain);
    driver.discard(&chain, 0, MIB);
    driver.write(&chain, 3, 2 * MIB, 4 * KIB);
    driver.flush(&chain);
    // Into the space freed by the first block, in part: its other old contents must not show.
    driver.write(&chain, 4, 3 * MIB + 8 * KIB, 4 * KIB);
    driver.flush(&chain);
    driver.write(&chain, 5, 512, KIB);
    driver.discard(&chain, 3 * MIB, MIB);
    driver.write(&chain, 6, 4 * MIB, 8 * KIB);
    driver.flush(&chain);
    driver.write(&chain, 7, 5 * MIB, MIB);
    driver.close(&chain);
}

fn zeros_over_parent(driver: &Driver) {
    let chain = driver.open();
    driver.discard(&chain, 0, MIB);
    driver.zero(&chain, MIB + 8 * KIB, 8 * KIB, Zeroing::MayUnmap);
    driver.flush(&chain);
    driver.write(&chain, 1, 8 * KIB, 2 * KIB);
    driver.zero(&chain, 2 * MIB, MIB, Zeroing::KeepSpace);
    driver.flush(&chain);
    driver.zero(&chain, MIB, MIB, Zeroing::KeepSpace);
    driver.write(&chain, 2, 2 * MIB + 90 * KIB, KIB);
    driver.write(&chain, 3, 90 * KIB, KIB);
    driver.close(&chain);
}

fn growth(driver: &Driver) {
    let chain = driver.open();
    for block in 0..3 {
        driver.write(&chain, block, block * MIB, 4 * KIB);
    }
    driver.flush(&chain);
    driver.write(&chain, 3, 3 * MIB, MIB);
    driver.write(&chain, 4, 4 * MIB + 512, 4 * KIB);
    driver.flush(&chain);
    driver.write(&chain, 5, 5 * MIB + 4 * KIB, 4 * KIB);
    driver.flush(&chain);
    driver.write(&chain, 6, 6 * MIB, 4 * KIB);
    driver.kill(chain);
}

fn close_and_cut(driver: &Driver) {
    let chain = driver.open();
    driver.write(&chain, 1, 20 * MIB, 4 * KIB);
    driver.flush(&chain);
    driver.write(&chain, 2, 4 * KIB, 4 * KIB);
    driver.close(&chain);
    // The same handle writes on, to space that was cut off.
    driver.write(&chain, 3, 21 * MIB, 4 * KIB);
    driver.write(&chain, 4, 22 * MIB + 4 * KIB, 4 * KIB);
    driver.discard(&chain, 21 * MIB, MIB);
    driver.discard(&chain, 22 * MIB, MIB);
    driver.close(&chain);
}

/// A child whose bitmap has bits set for blocks that are not partially present.
fn stale_bits() -> Vec<Recorded> {
    let size = 4 * MIB;
    let base = (0..4).fold(dynamic(size), |base, block| base.write(block * MIB, 60 * KIB));
    let setup = base.child(1 << 20).write(2 * MIB, KIB);
    let layer = crate::verdict::layer(&setup.host.files(), &setup.tip).unwrap();
    let bitmap = layer.bitmaps().unwrap()[0];
    let mut files = setup.host.files();
    let file = files.names[&setup.tip];
    // The bits of blocks 0, 1 and 3: 256 bytes each.
    files.file_mut(file).write(bitmap, &[0xFF; 512]);
    files.file_mut(file).write(bitmap + 3 * 256, &[0xFF; 256]);
    let driver = Setup { host: SimHost::new(files), ..setup }.start();
    let chain = driver.open();
    driver.write(&chain, 1, 8 * KIB, KIB);
    driver.flush(&chain);
    driver.write(&chain, 2, MIB + 20 * KIB, KIB);
    driver.discard(&chain, 3 * MIB, MIB);
    driver.flush(&chain);
    driver.write(&chain, 3, 3 * MIB + 8 * KIB, KIB);
    driver.close(&chain);
    vec![driver.finish()]
}

/// A file whose length is not a multiple of 1 MiB, as by some other writers.
fn odd_length() -> Vec<Recorded> {
    let setup = dynamic(4 * MIB).write(0, 4 * KIB).child(1 << 20);
    let mut files = setup.host.files();
    let file = files.file_mut(files.names[&setup.tip]);
    file.set_len(file.len() + 700 * KIB);
    let driver = Setup { host: SimHost::new(files), ..setup }.start();
    let chain = driver.open();
    // A log entry while the file still has that length.
    driver.discard(&chain, 2 * MIB, MIB);
    driver.flush(&chain);
    driver.write(&chain, 1, 8 * KIB, KIB);
    driver.flush(&chain);
    driver.write(&chain, 2, MIB, MIB);
    driver.close(&chain);
    vec![driver.finish()]
}

/// A disk, and its file, that end in the middle of the second block, as by some other writers.
fn cut_end(is_child: bool) -> Driver {
    let size = 6 * MIB - 3 * KIB;
    let base = Setup::base(CreateOptions::dynamic(size), size, 4 << 20);
    // The bitmap is created with the first block.
    let base = if is_child { base.write(0, 20 * KIB).child(4 << 20).write(KIB, KIB) } else { base };
    let setup = base.write(5 * MIB, 8 * KIB).write(size - 2 * KIB, 2 * KIB);
    let mut files = setup.host.files();
    let needed = crate::verdict::layer(&files, &setup.tip).unwrap().needed_length();
    let file = files.file_mut(files.names[&setup.tip]);
    assert!(needed < file.len());
    file.set_len(needed);
    Setup { host: SimHost::new(files), ..setup }.start()
}

fn last_block(driver: &Driver) {
    let chain = driver.open();
    let end = 6 * MIB - 3 * KIB;
    driver.write(&chain, 1, end - 700, 700);
    driver.flush(&chain);
    driver.write(&chain, 2, 4 * KIB, 8 * KIB);
    driver.write(&chain, 3, end - 4 * KIB, KIB);
    driver.flush(&chain);
    driver.discard(&chain, 4 * MIB, end - 4 * MIB);
    driver.flush(&chain);
    // The space of the last block, which is longer than the file was.
    driver.write(&chain, 4, end - KIB, KIB);
    driver.discard(&chain, 0, 4 * MIB);
    driver.flush(&chain);
    driver.write(&chain, 5, 3 * MIB + 512, KIB);
    driver.close(&chain);
}

/// A child whose headers fill all of their 4 KiB, so that a torn one is always invalid.
pub fn headers_full() -> Setup {
    let setup = child_setup(4 * MIB);
    let mut files = setup.host.files();
    let file = files.file_mut(files.names[&setup.tip]);
    for at in [64 * KIB, 128 * KIB] {
        let mut header = vec![0; 4096];
        file.read(at, &mut header);
        header[512..].fill(0xA5);
        let sum = avhdx_testkit::crc::sealed(&header, 4);
        header[4..8].copy_from_slice(&sum.to_le_bytes());
        file.write(at, &header);
    }
    Setup { host: SimHost::new(files), ..setup }
}

/// Two crashes, each while a header is written; the second may complete what the first lost.
fn header_torn_twice() -> Vec<Recorded> {
    let setup = headers_full();
    let mut files = setup.host.files();
    let first = Setup { host: SimHost::new(files.clone()), ..setup.clone() }.start();
    let chain = first.open();
    first.write(&chain, 1, 8 * KIB, KIB);
    first.kill(chain);
    for event in first.host.events() {
        if let Event::Write(file, chunk) = &event
            && chunk.data.starts_with(b"head")
        {
            files.file_mut(*file).write(chunk.at, &chunk.data[..512]);
            break;
        }
        files.apply(&event);
    }
    let driver = Setup { host: SimHost::new(files), ..setup }.start();
    let chain = driver.open();
    driver.write(&chain, 2, 8 * KIB, KIB);
    driver.flush(&chain);
    driver.write(&chain, 3, MIB, KIB);
    driver.close(&chain);
    vec![driver.finish()]
}

/// Everything that can be done to a small disk, in random order and at random offsets.
fn anything(seed: u64) -> Vec<Recorded> {
    let mut rng = Rng::new(seed);
    let size = 4 * MIB;
    let driver = match seed % 4 {
        0 => dynamic(size).start(),
        1 => scattered(),
        _ => child(size),
    };
    // The same few offsets of a large disk, one table page each.
    let spread = if seed % 4 == 1 { 512 } else { 1 };
    let place = |rng: &mut Rng| rng.below(4) * spread * MIB + rng.below(512) * 2 * KIB;
    let mut chain = driver.open();
    for i in 0..8 + rng.below(16) {
        let at = place(&mut rng);
        match rng.below(24) {
            0 => driver.write(&chain, i, at / MIB * MIB, MIB),
            1 => driver.write(&chain, i, at / MIB * MIB, MIB / 2),
            2 => driver.write(&chain, i, at + rng.below(600), 1 + rng.below(3000)),
            3 => driver.discard(&chain, at / MIB * MIB, MIB),
            4 => driver.zero(&chain, at, 2 * KIB, Zeroing::MayUnmap),
            5 => driver.zero(&chain, at / MIB * MIB, MIB, Zeroing::KeepSpace),
            6 => {
                driver.close(&chain);
                driver.session();
            }
            7 => {
                driver.kill(chain);
                chain = driver.open_after_kill();
            }
            8..12 => driver.flush(&chain),
            _ => driver.write(&chain, i, at, 512 << rng.below(4)),
        }
    }
    driver.flush(&chain);
    driver.kill(chain);
    vec![driver.finish()]
}

fn sessions(driver: &Driver) {
    let chain = driver.open();
    for round in 0..2 {
        driver.write(&chain, 10 * round, round * MIB + 4 * KIB, 2 * KIB);
        driver.write(&chain, 10 * round + 1, 2 * MIB + round * 4 * KIB, KIB);
        driver.flush(&chain);
        driver.write(&chain, 10 * round + 2, round * MIB + 6 * KIB, KIB);
        driver.flush(&chain);
        driver.write(&chain, 10 * round + 3, round * MIB + 8 * KIB, KIB);
        driver.flush(&chain);
        driver.close(&chain);
        driver.session();
    }
    drop(chain);
    let chain = driver.open();
    driver.session();
    driver.write(&chain, 30, 3 * MIB, KIB);
    driver.flush(&chain);
    driver.write(&chain, 31, 3 * MIB, KIB);
    driver.close(&chain);
}

fn another_parent(driver: &Driver) {
    let chain = driver.open();
    driver.write(&chain, 1, 4 * KIB, 2 * KIB);
    driver.flush(&chain);
    driver.write(&chain, 2, MIB, KIB);
    driver.kill(chain);
    // The log is replayed to the file first.
    driver.reparent("second.vhdx");
    // The old one is no longer needed.
    driver.remove("base.vhdx");
    let chain = driver.open_after_kill();
    driver.write(&chain, 3, 2 * MIB + 4 * KIB, 2 * KIB);
    driver.close(&chain);
}

fn replays(driver: &Driver) {
    let chain = driver.open();
    driver.write(&chain, 1, 4 * KIB, 2 * KIB);
    driver.write(&chain, 2, MIB + 4 * KIB, 2 * KIB);
    driver.flush(&chain);
    driver.write(&chain, 3, 6 * KIB, 2 * KIB);
    driver.discard(&chain, MIB, MIB);
    driver.flush(&chain);
    driver.write(&chain, 4, 4 * KIB, KIB);
    driver.write(&chain, 5, 2 * MIB, KIB);
    driver.kill(chain);
    let chain = driver.open_after_kill();
    driver.write(&chain, 6, 8 * KIB, KIB);
    driver.write(&chain, 7, 3 * MIB + 4 * KIB, KIB);
    driver.flush(&chain);
    driver.write(&chain, 8, MIB, KIB);
    driver.kill(chain);
    let chain = driver.open_after_kill();
    driver.kill(chain);
    let chain = driver.open_after_kill();
    driver.write(&chain, 9, 2 * MIB, KIB);
    driver.close(&chain);
}

fn fixed() -> Vec<Recorded> {
    let setup = Setup::base(CreateOptions::fixed(3 * MIB), 3 * MIB, 1 << 20);
    let driver = setup.write(MIB, 8 * KIB).start();
    let chain = driver.open();
    driver.write(&chain, 1, 4 * KIB, 4 * KIB);
    driver.flush(&chain);
    driver.zero(&chain, 6 * KIB, 4 * KIB, Zeroing::MayUnmap);
    driver.write(&chain, 2, MIB - 2 * KIB, 4 * KIB);
    driver.flush(&chain);
    driver.discard(&chain, MIB, MIB);
    driver.write(&chain, 3, 2 * MIB, 4 * KIB);
    driver.close(&chain);
    vec![driver.finish()]
}

fn unaligned(driver: &Driver) {
    let chain = driver.open();
    driver.write(&chain, 1, 700, 3000);
    driver.write(&chain, 2, MIB - 100, 200);
    driver.flush(&chain);
    driver.write(&chain, 3, 650, 100);
    driver.write(&chain, 4, 3650, 10_000);
    driver.flush(&chain);
    driver.zero(&chain, MIB + 10, 2000, Zeroing::MayUnmap);
    driver.write(&chain, 5, 2 * MIB + 1, 511);
    driver.write(&chain, 6, 3 * MIB + 1, 1);
    driver.close(&chain);
}

fn unaligned_in_large_sectors() -> Vec<Recorded> {
    let options = CreateOptions::dynamic(4 * MIB).logical_sector(4096);
    let base = Setup::base(options, 4 * MIB, 1 << 20);
    let base = (0..4).fold(base, |base, block| base.write(block * MIB, 20 * KIB));
    one(base.child(1 << 20).start(), unaligned)
}

fn second_chunk() -> Vec<Recorded> {
    let base = dynamic(5 << 30).write(4 << 30, 8 * KIB).write(8 * KIB, 8 * KIB);
    let driver = base.child(1 << 20).start();
    let chain = driver.open();
    driver.write(&chain, 1, 4 << 30, KIB);
    driver.write(&chain, 2, 8 * KIB, KIB);
    driver.flush(&chain);
    driver.write(&chain, 3, (4 << 30) + MIB, MIB);
    driver.write(&chain, 4, (4 << 30) + 4 * KIB, KIB);
    driver.flush(&chain);
    driver.write(&chain, 5, 10 * KIB, KIB);
    driver.close(&chain);
    vec![driver.finish()]
}

/// Writes of every kind before one flush.
fn scattered_writes(driver: &Driver) {
    let chain = driver.open();
    driver.write(&chain, 1, 4 * KIB, 2 * KIB);
    driver.write(&chain, 2, MIB, MIB);
    driver.write(&chain, 3, 2 * MIB + 6 * KIB, 2 * KIB);
    driver.flush(&chain);
    for round in 1..3 {
        let seed = 10 * round;
        // In place and in new sectors of a partially present block, twice over the same bytes, in a full block.
        driver.write(&chain, seed, 5 * KIB, 2 * KIB);
        driver.write(&chain, seed + 1, 6 * KIB, 2 * KIB);
        driver.write(&chain, seed + 2, MIB + 8 * KIB, 3 * KIB);
        driver.discard(&chain, 2 * MIB, MIB);
        driver.write(&chain, seed + 3, (2 + round) * MIB + 700, 3000);
        driver.write(&chain, seed + 4, 92 * KIB + round * 4 * KIB, KIB);
        driver.write(&chain, seed + 5, 2 * MIB - 512, KIB);
        driver.zero(&chain, MIB + 9 * KIB, KIB, Zeroing::MayUnmap);
        driver.flush(&chain);
    }
    driver.close(&chain);
}

fn scattered() -> Driver {
    let base = (0..5).fold(dynamic(4 << 30), |base, i| base.write(i * 512 * MIB, 8 * KIB));
    base.child(1 << 20).start()
}

/// A table page and a bitmap page for each of a few blocks.
fn scattered_tables(driver: &Driver) {
    let chain = driver.open();
    for round in 0..3 {
        for i in 0..5 {
            driver.write(&chain, 10 * round + i, i * 512 * MIB + 2 * round * KIB, 2 * KIB);
        }
        if round == 1 {
            driver.discard(&chain, 0, MIB);
        }
        driver.flush(&chain);
    }
    driver.close(&chain);
}

fn create() -> Vec<Recorded> {
    let size = 4 * MIB;
    let base = dynamic(size).write(MIB, 20 * KIB);
    let parent = crate::verdict::open(&base.host, &base.tip, false).unwrap();
    let over = CreateOptions::child_of(&parent.tip()).unwrap();
    drop(parent);
    let child = Setup { tip: path("new.avhdx"), ..base }.start();
    vec![created(CreateOptions::dynamic(size)), create_and_write(child, over)]
}

/// A disk of 4 MiB without a parent.
fn created(options: CreateOptions) -> Recorded {
    let empty = crate::model::Model::new(Default::default(), 4 * MIB, MIB);
    create_and_write(Driver::new(host(), path("new.vhdx"), empty), options)
}

fn create_and_write(driver: Driver, options: CreateOptions) -> Recorded {
    drop(driver.create(&fixed_identities(options.block_size(1 << 20), 3)));
    let chain = driver.open();
    driver.write(&chain, 1, MIB + 4 * KIB, 4 * KIB);
    driver.close(&chain);
    driver.finish()
}

/// Before an interrupted flush: two new blocks and a new bitmap, and a block and a
/// bitmap in place.
fn busy(driver: &Driver, chain: &DiffChain) {
    driver.write(chain, 1, 4 * KIB, 4 * KIB);
    driver.write(chain, 2, MIB, MIB);
    driver.flush(chain);
    driver.write(chain, 3, 6 * KIB, 4 * KIB);
    driver.write(chain, 4, 2 * MIB + 4 * KIB, KIB);
}

pub fn freed(driver: &Driver, chain: &DiffChain) {
    driver.write(chain, 1, 0, MIB);
    driver.write(chain, 2, MIB, 4 * KIB);
    driver.flush(chain);
    driver.discard(chain, 0, MIB);
    driver.flush(chain);
}

/// One sector more in each round, until the ring has wrapped.
fn log_wraps(driver: &Driver) {
    let chain = driver.open();
    driver.write(&chain, 0, 0, KIB);
    for round in 1..140 {
        driver.write(&chain, round, round * 2 * KIB, KIB);
        driver.flush(&chain);
        if round == 110 {
            driver.look_from_here();
        }
    }
    driver.close(&chain);
}

/// Two commits that each take more than half of the log, so that the second must not overwrite what
/// the first still needs.
fn large_entries(driver: &Driver) {
    let chain = driver.open();
    for round in 0..3 {
        for i in 0..70 {
            driver.write(&chain, round * 100 + i, (i * 512 + round) * MIB + 4 * KIB, KIB);
        }
        if round == 1 {
            driver.look_from_here();
        }
        driver.flush(&chain);
    }
    driver.kill(chain);
}

/// A child whose first bitmap has all bits set.
fn vast_with_stale_bits() -> Driver {
    let setup = dynamic(80 << 30).write(512 * MIB, 4 * KIB).write(GIB, 4 * KIB);
    let setup = setup.child(1 << 20).write(8 * KIB, KIB);
    let mut files = setup.host.files();
    let bitmap = crate::verdict::layer(&files, &setup.tip).unwrap().bitmaps().unwrap()[0];
    let file = files.names[&setup.tip];
    files.file_mut(file).write(bitmap + 256, &vec![0xFF; MIB as usize - 256]);
    Setup { host: SimHost::new(files), ..setup }.start()
}

/// More changed pages than the 252 that fit in an entry, bitmaps and tables alike.
fn split_commit(driver: &Driver) {
    let chain = driver.open();
    // A bitmap per eight blocks, a page of it and one of the table per block: 249.
    for i in 0..124 {
        driver.write(&chain, i, i * 512 * MIB + KIB, KIB);
    }
    driver.look_from_here();
    // Two more blocks in two more chunks, in one write.
    driver.write(&chain, 130, 17 * 4 * GIB - KIB, 2 * KIB);
    driver.flush(&chain);
    driver.write(&chain, 200, 2 * MIB, KIB);
    driver.flush(&chain);
    driver.kill(chain);
}

/// A child whose table has more pages than fit in an entry.
fn vaster() -> Driver {
    let size = 132 * GIB;
    dynamic(size).write((128_480 + 1) * MIB - 4 * KIB, 8 * KIB).child(1 << 20).start()
}

/// Changes in 253 pages of the table: blocks in the first 252 need the bitmap block that the
/// last one adds.
fn split_table(driver: &Driver) {
    let chain = driver.open();
    driver.model().look_at_most(16 * KIB);
    for page in 0..250 {
        let entry = page * 512 + 100;
        driver.discard(&chain, (entry - entry / 4097) * MIB, MIB);
    }
    driver.look_from_here();
    driver.write(&chain, 1, (128_480 + 1) * MIB - KIB, 2 * KIB);
    driver.flush(&chain);
    driver.kill(chain);
}
