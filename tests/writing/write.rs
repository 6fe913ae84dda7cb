//! Writes, compared with a plain vector of bytes.

use std::collections::BTreeMap;
use std::io::IoSlice;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::sim::{FOLDER, SimHost};
use avhdx::ops::{Check, Severity};
use avhdx::storage::{Access, Host, LocalHost, Storage};
use avhdx::{Budget, CreateOptions, DiffChain, Disk, DiskExt, OpenOptions, Source, Zeroing};
use avhdx_testkit::bytes::is_zero;
use avhdx_testkit::naive::{self, Chain};
use avhdx_testkit::rng::Rng;
use proptest::prelude::*;

const MIB: u64 = 1 << 20;

/// A chain and the operations on it. All offsets are relative to the layout, so that they stay
/// interesting while a failing case is being reduced.
#[derive(Clone, Debug)]
struct Plan {
    layers: Vec<Layer>,
    sector: u32,
    /// In sectors of 4096 bytes, plus the number of smaller sectors at the end of the disk.
    size: (u64, u64),
    /// Whether everything happens around the boundary of two chunks, far from the start of the disk.
    far: bool,
    budget: usize,
}

/// One layer, and the operations on it before the next one is created.
#[derive(Clone, Debug)]
struct Layer {
    block: u32,
    /// How many bytes larger than its parent it is.
    grown: u64,
    ops: Vec<Op>,
}

#[derive(Clone, Debug)]
struct Op {
    what: What,
    near: Near,
    pick: u64,
    off_by: i64,
    len: Len,
    seed: u64,
}

#[derive(Clone, Copy, Debug)]
enum What {
    Write,
    WriteVectored,
    Zero(Zeroing),
    Discard,
    Flush,
    Close,
    Reopen,
    /// Reopens the image with its file cut just after the last byte of the disk, as other writers do.
    CutEnd,
}

/// Interesting offsets.
#[derive(Clone, Copy, Debug)]
enum Near {
    /// The first byte, or the middle if that is the boundary between two chunks.
    Chunk,
    Block,
    /// A block of 1 MiB, whatever the block sizes of this chain.
    SmallBlock,
    /// The range of the last bit in a page of a sector bitmap.
    BitmapPage,
    /// The end of a layer below.
    LayerEnd,
    End,
    /// One of a few offsets that are used repeatedly.
    Warm,
}

#[derive(Clone, Copy, Debug)]
enum Len {
    Bytes(u64),
    Sectors(u64),
    ToEndOfBlock,
    HalfBlock,
    Block,
}

fn op() -> impl Strategy<Value = Op> {
    let what = prop_oneof![
        6 => Just(What::Write),
        3 => Just(What::WriteVectored),
        1 => Just(What::Zero(Zeroing::MayUnmap)),
        1 => Just(What::Zero(Zeroing::KeepSpace)),
        2 => Just(What::Discard),
        2 => Just(What::Flush),
        1 => Just(What::Close),
        1 => Just(What::Reopen),
        1 => Just(What::CutEnd),
    ];
    let near = prop_oneof![
        Just(Near::Chunk),
        Just(Near::Block),
        Just(Near::Block),
        Just(Near::SmallBlock),
        Just(Near::BitmapPage),
        Just(Near::LayerEnd),
        Just(Near::End),
        Just(Near::Warm),
        Just(Near::Warm),
    ];
    let off_by = prop_oneof![
        Just(0),
        Just(0),
        Just(1),
        Just(-1),
        Just(-512),
        Just(-4096),
        -9000..9000_i64,
        (-40..40_i64).prop_map(|sectors| sectors * 512),
    ];
    let len = prop_oneof![
        4 => (1..600_u64).prop_map(Len::Bytes),
        4 => (1..40_u64).prop_map(Len::Sectors),
        2 => (1..3 * MIB).prop_map(Len::Bytes),
        2 => Just(Len::ToEndOfBlock),
        1 => Just(Len::HalfBlock),
        2 => Just(Len::Block),
    ];
    (what, near, any::<u64>(), off_by, len, any::<u64>()).prop_map(
        |(what, near, pick, off_by, len, seed)| Op { what, near, pick, off_by, len, seed },
    )
}

fn plan() -> impl Strategy<Value = Plan> {
    let layer = (
        prop_oneof![3 => Just(1_u32 << 20), 2 => Just(2 << 20), 1 => Just(32 << 20)],
        prop_oneof![3 => Just(0), 1 => (1..8 * MIB / 4096).prop_map(|sectors| sectors * 4096)],
        proptest::collection::vec(op(), 1..14),
    )
        .prop_map(|(block, grown, ops)| Layer { block, grown, ops });
    let size = prop_oneof![2 => 5 * MIB..9 * MIB, 1 => 9 * MIB..40 * MIB];
    (
        proptest::collection::vec(layer, 1..=5),
        prop_oneof![Just(512), Just(4096)],
        (size.prop_map(|size| size / 4096), 0..8_u64),
        prop_oneof![3 => Just(false), 1 => Just(true)],
        prop_oneof![Just(0), Just(2 << 10), Just(64 << 20)],
    )
        .prop_map(|(layers, sector, size, far, budget)| Plan {
            layers,
            sector,
            size,
            far,
            budget,
        })
}

/// The bytes of a disk from `origin` on. The bytes before it are never written.
struct Model {
    origin: u64,
    bytes: Vec<u8>,
    touched: Vec<Range<u64>>,
}

impl Model {
    fn end(&self) -> u64 {
        self.origin + self.bytes.len() as u64
    }

    fn at(&mut self, range: &Range<u64>) -> &mut [u8] {
        self.touched.push(range.clone());
        &mut self.bytes[(range.start - self.origin) as usize..(range.end - self.origin) as usize]
    }

    /// Compares the disk with the model in this range and slightly around it.
    fn compare(&self, disk: &dyn Disk, range: Range<u64>, after: &dyn std::fmt::Debug) {
        const AROUND: u64 = 70_000;
        let start = range.start.saturating_sub(AROUND).max(self.origin);
        let end = (range.end + AROUND).min(self.end());
        let mut bytes = vec![0xAA; (end - start) as usize];
        disk.read_at(&mut bytes, start).unwrap();
        let expected = &self.bytes[(start - self.origin) as usize..(end - self.origin) as usize];
        if bytes != expected {
            let first = (0..bytes.len()).find(|i| bytes[*i] != expected[*i]).unwrap() as u64;
            let (found, expected) = (bytes[first as usize], expected[first as usize]);
            let at = start + first;
            panic!("after {after:?} the disk at {at:#x} reads {found}, not {expected}");
        }
    }
}

/// A chain while it is being built and written.
struct Run<'a> {
    host: Arc<dyn Host>,
    folder: &'a Path,
    budget: usize,
    sector: u64,
    /// The end of each layer so far, and the block size of the last one.
    ends: Vec<u64>,
    block: u64,
    model: Model,
    chain: Option<DiffChain>,
}

impl Run<'_> {
    fn path(&self, layer: usize) -> PathBuf {
        self.folder.join(format!("l{layer}.vhdx"))
    }

    fn open(&self, layer: usize, writable: bool) -> DiffChain {
        let options = OpenOptions::new().host(Arc::clone(&self.host)).writable(writable);
        options.budget(Budget::new(self.budget)).open(self.path(layer)).unwrap()
    }

    /// The range of an operation.
    fn range(&self, op: &Op) -> Range<u64> {
        let Model { origin, .. } = self.model;
        let (end, tip) = (self.model.end(), self.ends.len() as u64);
        let multiple = |of: u64| (origin + op.pick % (end - origin)).next_multiple_of(of);
        let anchor = match op.near {
            Near::Chunk => multiple(self.sector << 23),
            Near::Block => multiple(self.block),
            Near::SmallBlock => multiple(MIB),
            Near::BitmapPage => multiple(self.sector * 8 * 4096),
            Near::LayerEnd => self.ends[(op.pick % tip) as usize],
            Near::End => end,
            Near::Warm => origin + [3, 4, 7][op.pick as usize % 3] * MIB / 2,
        };
        // Not every disk has such a boundary.
        let anchor = if anchor > end { origin } else { anchor };
        let start = anchor.saturating_add_signed(op.off_by).clamp(origin, end - 1);
        let in_block = start % self.block;
        let len = match op.len {
            Len::Bytes(bytes) => bytes,
            Len::Sectors(sectors) => sectors * self.sector,
            Len::ToEndOfBlock => self.block - in_block,
            Len::HalfBlock => self.block / 2,
            Len::Block => self.block,
        };
        start..(start + len).min(end)
    }

    fn run(&mut self, op: &Op) {
        let range = self.range(op);
        let tip = self.ends.len() - 1;
        let chain = self.chain.take().unwrap_or_else(|| self.open(tip, true));
        match op.what {
            What::Write | What::WriteVectored => {
                let mut bytes = vec![0; (range.end - range.start) as usize];
                Rng::new(op.seed).fill(&mut bytes);
                if matches!(op.what, What::Write) {
                    chain.write_at(&bytes, range.start).unwrap();
                } else {
                    let (first, rest) = bytes.split_at(op.seed as usize % (bytes.len() + 1));
                    let (second, third) = rest.split_at(op.pick as usize % (rest.len() + 1));
                    let bufs = [first, &[], second, third].map(IoSlice::new);
                    chain.write_vectored_at(&bufs, range.start).unwrap();
                }
                self.model.at(&range).copy_from_slice(&bytes);
            }
            What::Zero(how) => {
                chain.write_zeroes(range.clone(), how).unwrap();
                self.model.at(&range).fill(0);
            }
            What::Discard => {
                chain.discard(range.clone()).unwrap();
                self.model.at(&range).fill(0);
            }
            What::Flush => chain.flush().unwrap(),
            What::Close => chain.close().unwrap(),
            What::Reopen => return,
            What::CutEnd => {
                drop(chain);
                return self.cut_end(tip);
            }
        }
        self.model.compare(&chain, range, op);
        self.chain = Some(chain);
    }

    fn cut_end(&self, layer: usize) {
        let file = self.host.open(&self.path(layer), Access::ReadWrite).unwrap();
        let whole = naive::Layer::from_source(Arc::new(Whole(Arc::clone(&file)))).unwrap();
        let len = file.len().unwrap();
        file.set_len(whole.needed_length().min(len)).unwrap();
    }

    /// Adds the next layer and runs the operations on it.
    fn layer(&mut self, layer: &Layer) {
        let n = self.ends.len();
        let size = self.model.end() + layer.grown;
        let options = match n.checked_sub(1) {
            None => CreateOptions::dynamic(size).logical_sector(self.sector as u32),
            Some(below) => CreateOptions::child_of(&self.open(below, false).tip()).unwrap(),
        };
        let options = options.size(size).block_size(layer.block);
        drop(options.create_on(Arc::clone(&self.host), self.path(n)).unwrap());
        self.model.bytes.resize((size - self.model.origin) as usize, 0);
        self.ends.push(size);
        self.block = layer.block.into();
        for op in &layer.ops {
            self.run(op);
        }
        if let Some(chain) = self.chain.take() {
            chain.close().unwrap();
            self.model.compare(&chain, self.model.origin..self.model.end(), &"a close");
        }
        let chain = self.open(n, false);
        self.model.compare(&chain, self.model.origin..self.model.end(), &"all");
        // Only the block that contains the model's origin may extend further back.
        let before = self.model.origin / (32 * MIB) * (32 * MIB);
        for extent in chain.extents(0..before).map(Result::unwrap) {
            assert!(matches!(extent.source, Source::Zero { .. }), "{extent:?}");
        }
        let mut gap = vec![0xAA; (self.model.origin - before) as usize];
        chain.read_at(&mut gap, before).unwrap();
        assert!(is_zero(&gap));
    }

    /// Runs both checkers, and compares the disk with the naive reader at all changed places and a few
    /// others.
    fn judge(&self) {
        let tip = self.ends.len() - 1;
        let options = OpenOptions::new().host(Arc::clone(&self.host));
        let report = Check::new().options(options).run(self.path(tip)).unwrap();
        // A file that was cut gets only these findings.
        let is_cut = |code: &str| matches!(code, "bat.truncated" | "file.length");
        let bad = report.findings.iter().filter(|finding| match finding.severity {
            Severity::Error => true,
            Severity::Warning => !is_cut(finding.code),
            _ => false,
        });
        let bad: Vec<_> = bad.collect();
        assert!(bad.is_empty(), "{bad:#?}");

        let layer = |n| {
            let storage = self.host.open(&self.path(n), Access::Read).unwrap();
            let layer = naive::Layer::from_source(Arc::new(Whole(storage))).unwrap();
            assert_eq!(layer.faults(), [""; 0], "layer {n}");
            layer
        };
        let naive = Chain((0..=tip).map(layer).collect());
        let Model { origin, touched, bytes } = &self.model;
        let end = self.model.end();
        let edges = touched.iter().flat_map(|range| [range.start, range.end]);
        let around = edges.map(|at| at.saturating_sub(5000).max(*origin)..(at + 5000).min(end));
        let between = (*origin..end).step_by(96 << 10).map(|at| at..(at + 512).min(end));
        for range in around.chain(between) {
            let (at, len) = ((range.start - origin) as usize, (range.end - range.start) as usize);
            let read = naive.read(tip, range.start, len).unwrap();
            assert!(read == bytes[at..][..len], "the naive reader at {:#x}", range.start);
        }
    }
}

/// A whole file, for the naive reader.
#[derive(Debug)]
struct Whole(Arc<dyn Storage>);

impl naive::Bytes for Whole {
    fn len(&self) -> u64 {
        self.0.len().unwrap()
    }

    fn read(&self, at: u64, buf: &mut [u8]) {
        let len = self.len().saturating_sub(at).min(buf.len() as u64) as usize;
        self.0.read_exact_at(&mut buf[..len], at).unwrap();
    }
}

/// The length of a file and all pages that are not zeros.
fn snapshot(host: &dyn Host, path: &Path) -> (u64, BTreeMap<u64, Vec<u8>>) {
    let storage = host.open(path, Access::Read).unwrap();
    let len = storage.len().unwrap();
    let mut window = vec![0; MIB as usize];
    let mut pages = BTreeMap::new();
    for at in (0..len).step_by(MIB as usize) {
        let window = &mut window[..(len - at).min(MIB) as usize];
        storage.read_exact_at(window, at).unwrap();
        for (i, page) in window.chunks(4096).enumerate() {
            if !is_zero(page) {
                pages.insert(at + i as u64 * 4096, page.to_vec());
            }
        }
    }
    (len, pages)
}

fn check(plan: &Plan, host: Arc<dyn Host>, folder: &Path) {
    let sector = u64::from(plan.sector);
    let size = plan.size.0 * 4096 + plan.size.1 * 512 / sector * sector;
    let chunk = sector << 23;
    let origin = if plan.far { chunk - size / 2 / MIB * MIB } else { 0 };
    let mut run = Run {
        host,
        folder,
        budget: plan.budget,
        sector,
        ends: Vec::new(),
        block: 0,
        model: Model { origin, bytes: vec![0; size as usize], touched: Vec::new() },
        chain: None,
    };
    let mut below = Vec::new();
    for (n, layer) in plan.layers.iter().enumerate() {
        run.layer(layer);
        // The layers below the tip stay the same, bit for bit.
        for (n, before) in below.iter().enumerate() {
            assert!(snapshot(run.host.as_ref(), &run.path(n)) == *before, "layer {n} changed");
        }
        below.push(snapshot(run.host.as_ref(), &run.path(n)));
    }
    run.judge();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn writes_read_back_as_from_a_plain_array(plan in plan()) {
        check(&plan, Arc::new(SimHost::default()), Path::new(FOLDER));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    #[test]
    fn writes_to_real_files_read_back_as_from_a_plain_array(plan in plan()) {
        let folder = tempfile::tempdir().unwrap();
        check(&plan, Arc::new(LocalHost), folder.path());
    }
}
