//! A chain in use: after each step the tip and the points read as flat models have it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use avhdx::ops::{Check, Checkpoint, Compact, Delete, Merge, Rebase, Resize, Revert, Severity};
use avhdx::{Budget, CreateOptions, DiffChain, Disk, ErrorKind, OpenOptions, Zeroing};
use avhdx_testkit::bytes::difference;
use avhdx_testkit::naive::Chain;
use avhdx_testkit::sim::{FOLDER, SimHost};
use avhdx_testkit::verdict::layer;

use crate::compare::{Errors, agrees, ids};
use crate::input::Input;

const MIB: u64 = 1 << 20;
/// Small, so that tables are evicted.
const BUDGET: usize = 16 << 10;
const MOST_LAYERS: usize = 5;
const MOST_STEPS: u64 = 24;

/// A chain and what its disks read as.
struct Scene {
    host: SimHost,
    chain: DiffChain,
    /// The disk at each layer, base first; the last is the tip.
    points: Vec<Vec<u8>>,
    /// The base that has nothing to do with the chain.
    other: Vec<u8>,
    names: u64,
}

pub fn run(input: &mut Input<'_>) {
    let mut scene = Scene::new(input);
    for n in 0..1 + input.below(MOST_STEPS) {
        if input.is_over() && n > 0 {
            break;
        }
        let story = scene.step(n, input);
        scene.looks_right(&story, input);
    }
    scene.ends(input);
}

fn path(name: &str) -> PathBuf {
    Path::new(FOLDER).join(name)
}

fn options(host: &SimHost, writable: bool) -> OpenOptions {
    let budget = Budget::new(BUDGET);
    OpenOptions::new().host(Arc::new(host.clone())).budget(budget).writable(writable)
}

fn create(host: &SimHost, name: &str, size: u64, input: &mut Input<'_>) -> DiffChain {
    let options = match input.chance(1, 6) {
        true => CreateOptions::fixed(size),
        false => CreateOptions::dynamic(size),
    };
    let options = options.block_size((MIB << input.below(2)) as u32);
    drop(options.create_on(Arc::new(host.clone()), path(name)).expect("a new image"));
    self::options(host, true).open(path(name)).expect("a new image")
}

impl Scene {
    fn new(input: &mut Input<'_>) -> Self {
        let host = SimHost::default();
        let size = any_size(input);
        let other = create(&host, "other.vhdx", 2 * MIB, input);
        let mut bytes = vec![0; 2 * MIB as usize];
        bytes[100_000..200_000].fill(0xC3);
        other.write_at(&bytes[100_000..200_000], 100_000).expect("a write");
        other.close().expect("a close");
        let chain = create(&host, "base.vhdx", size, input);
        Self { host, chain, points: vec![vec![0; size as usize]], other: bytes, names: 0 }
    }

    fn new_path(&mut self) -> PathBuf {
        self.names += 1;
        path(&format!("p{}.avhdx", self.names))
    }

    fn tip(&mut self) -> &mut Vec<u8> {
        self.points.last_mut().expect("a tip")
    }

    fn tip_path(&self) -> PathBuf {
        self.chain.layers()[0].path.clone().expect("a path")
    }

    fn reopen(&mut self) {
        let path = self.tip_path();
        self.chain.close().unwrap_or_else(|error| panic!("a close: {error}"));
        self.open(&path);
    }

    fn open(&mut self, path: &Path) {
        let opened = options(&self.host, true).open(path);
        self.chain = opened.unwrap_or_else(|error| panic!("a reopen: {error}"));
    }

    /// Makes a change, in the chain and in the models. Returns what it was.
    fn step(&mut self, seed: u64, input: &mut Input<'_>) -> String {
        let count = self.points.len();
        let kind = input.below(20);
        let kind = if kind == 9 && count >= MOST_LAYERS { 11 } else { kind };
        match kind {
            0..9 => self.change(kind, seed, input),
            9 | 10 if count < MOST_LAYERS => {
                let to = self.new_path();
                let block_size = (MIB << input.below(2)) as u32;
                let done = Checkpoint::new().path(&to).block_size(block_size).run(&self.chain);
                done.unwrap_or_else(|error| panic!("a checkpoint: {error}"));
                let tip = self.tip().clone();
                self.points.push(tip);
                "checkpoint".into()
            }
            11 if count > 1 => {
                let (n, low_space) =
                    (1 + input.below(count as u64 - 1) as usize, input.chance(1, 3));
                let keep_name = input.chance(1, 2);
                let merge = Merge::new(ids(&self.chain)[n]).low_space(low_space).shrink(true);
                let merge = if n + 1 == count { merge.keep_name(keep_name) } else { merge };
                let done = merge.run(&self.chain).map(drop);
                let story = format!("merge of {n} of {count}, low space: {low_space}");
                if self.is_done(&story, done) {
                    self.points.remove(n - 1);
                }
                story
            }
            12 if count > 1 => {
                let n = input.below(count as u64 - 1) as usize;
                let delete = Delete::point(ids(&self.chain)[n]).shrink(true);
                let done = delete.low_space(input.chance(1, 3)).run(&self.chain).map(drop);
                let story = format!("delete of {n} of {count}");
                if self.is_done(&story, done) {
                    self.points.remove(n);
                }
                story
            }
            13 if count > 1 => {
                let (n, deletes) = (input.below(count as u64 - 1) as usize, !input.chance(1, 4));
                let to = self.new_path();
                let revert = Revert::to(ids(&self.chain)[n]).path(&to).delete_newer(deletes);
                let done = revert.run(&self.chain).map(drop);
                let story = format!("revert to {n} of {count}, the newer deleted: {deletes}");
                if self.is_done(&story, done) {
                    self.points.truncate(n + 1);
                    self.points.push(self.points[n].clone());
                }
                story
            }
            14 | 15 => {
                let (content, punch) = (input.chance(1, 2), input.chance(1, 3));
                let done = Compact::new().content(content).punch(punch).run(&self.chain);
                let story = format!("compact, content: {content}, punch: {punch}");
                self.is_done(&story, done.map(drop));
                story
            }
            16 => {
                let size = any_size(input);
                let done = Resize::to(size).shrink(true).run(&self.chain).map(drop);
                let story = format!("resize from {} to {size}", self.tip().len());
                if self.is_done(&story, done) {
                    self.tip().resize(size as usize, 0);
                }
                story
            }
            17 if count > 1 => self.rebase(input),
            _ => {
                self.reopen();
                "reopen".into()
            }
        }
    }

    fn rebase(&mut self, input: &mut Input<'_>) -> String {
        let count = self.points.len();
        let n = input.below(count as u64) as usize;
        let layers = self.chain.layers();
        let tip = self.tip_path();
        // The last choice is the other base.
        let (base, below) = match n + 1 < count {
            true => (layers[count - 1 - n].path.clone(), self.points[..=n].to_vec()),
            false => (Some(path("other.vhdx")), vec![self.other.clone()]),
        };
        self.chain.close().unwrap_or_else(|error| panic!("a close: {error}"));
        // Closes the files.
        self.chain = options(&self.host, false).open(path("other.vhdx")).expect("the other base");
        let rebase = Rebase::new(base.expect("a path")).options(options(&self.host, true));
        let done = rebase.run(&tip).map(drop);
        let story = format!("rebase of {count} onto {n}");
        if self.is_done(&story, done) {
            let top = self.tip().clone();
            self.points = below;
            self.points.push(top);
        }
        self.open(&tip);
        story
    }

    fn change(&mut self, kind: u64, seed: u64, input: &mut Input<'_>) -> String {
        let size = self.tip().len() as u64;
        if kind == 8 {
            self.chain.flush().unwrap_or_else(|error| panic!("a flush: {error}"));
            return "flush".into();
        }
        let at = match input.below(3) {
            0 => input.below(size.div_ceil(MIB)) * MIB,
            1 => input.below(size),
            _ => input.below(size) / 512 * 512,
        };
        let len = match input.below(5) {
            0 => MIB,
            1 => 1 + input.below(1000),
            2 => 2 * MIB,
            _ => 512 * (1 + input.below(40)),
        };
        let range = at..size.min(at + len);
        let place = range.start as usize..range.end as usize;
        let tip = self.points.last_mut().expect("a tip");
        let done = match kind {
            5 => self.chain.write_zeroes(range.clone(), Zeroing::KeepSpace),
            6 => self.chain.write_zeroes(range.clone(), Zeroing::MayUnmap),
            7 => self.chain.discard(range.clone()),
            _ => {
                let bytes: Vec<u8> =
                    range.clone().map(|at| ((at >> 9) + at * 3 + seed * 7) as u8 | 1).collect();
                tip[place.clone()].copy_from_slice(&bytes);
                self.chain.write_at(&bytes, range.start)
            }
        };
        done.unwrap_or_else(|error| panic!("change {kind} of {range:?}: {error}"));
        if matches!(kind, 5..8) {
            tip[place].fill(0);
        }
        format!("change {kind} of {range:?}")
    }

    /// Whether an operation was carried out; it may be refused for children of a branch that was left behind.
    fn is_done(&self, story: &str, done: avhdx::Result<()>) -> bool {
        match done {
            Ok(()) => true,
            Err(error) if error.kind() == ErrorKind::HasChildren => false,
            Err(error) if error.code() == "compact.fixed" => false,
            Err(error) => panic!("{story}: {error}"),
        }
    }

    fn looks_right(&mut self, story: &str, input: &mut Input<'_>) {
        reads_as(&self.chain, self.points.last().expect("a tip"), story);
        let n = input.below(self.points.len() as u64) as usize;
        let layers = ids(&self.chain);
        assert_eq!(layers.len(), self.points.len(), "{story}: layers");
        let view = self.chain.view(layers[n]).expect("a layer");
        reads_as(&view, &self.points[n], &format!("{story}: point {n}"));
    }

    /// The closed files are sound, and the naive reader has the same bytes.
    fn ends(mut self, input: &mut Input<'_>) {
        self.reopen();
        self.looks_right("the end", input);
        self.chain.close().expect("a close");
        let files = self.host.files();
        let paths: Vec<PathBuf> = self
            .chain
            .layers()
            .iter()
            .rev()
            .map(|layer| layer.path.clone().expect("a path"))
            .collect();
        let naive = paths.iter().map(|path| layer(&files, path)).collect::<Result<_, _>>();
        let naive = Chain(naive.unwrap_or_else(|why| panic!("{why}")));
        agrees(&self.chain, &naive, paths.len() - 1, &[], Errors::Refused, input);
        let tip = self.tip_path();
        drop(self.chain);
        let report = Check::new().options(options(&self.host, false)).run(&tip);
        let report = report.unwrap_or_else(|error| panic!("a check: {error}"));
        let wrong = report.findings.iter().find(|finding| finding.severity == Severity::Error);
        assert!(wrong.is_none(), "{wrong:?}");
        for layer in &naive.0 {
            assert!(layer.faults().is_empty(), "{:?}", layer.faults());
        }
    }
}

fn any_size(input: &mut Input<'_>) -> u64 {
    (MIB + input.below(3) * MIB + *input.pick(&[0, 512, MIB - 512])).min(4 * MIB)
}

fn reads_as(disk: &dyn Disk, expected: &[u8], story: &str) {
    assert_eq!(disk.geometry().size, expected.len() as u64, "{story}: the size");
    let mut bytes = vec![0xAA; expected.len()];
    disk.read_at(&mut bytes, 0).unwrap_or_else(|error| panic!("{story}: {error}"));
    assert_eq!(difference(&bytes, expected), None, "{story}: the bytes");
}
