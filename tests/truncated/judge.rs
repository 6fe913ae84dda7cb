//! Changes to damaged images, and the model's expectations.

use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};
use std::path::Path;
use std::sync::Arc;

use avhdx::ops::{AcceptLoss, Check, LossKind, Losses, Severity};
use avhdx::{Budget, DiffChain, Disk, ErrorKind, OpenOptions, Zeroing};
use avhdx_testkit::loss::{self, Readable, Why};
use avhdx_testkit::naive::Layer;
use avhdx_testkit::rng::Rng;

use crate::cases::{Case, Damage};
use crate::sim::{Files, SimHost};

/// Counts of what was done.
#[derive(Debug, Default)]
pub struct Tally {
    pub images: u64,
    pub files: u64,
    pub sound: u64,
    pub damaged: u64,
    pub not_opened: u64,
    pub made: u64,
    pub refused: u64,
    pub mended: u64,
    pub losses: u64,
}

const UNIT: u64 = 512;

pub fn layer(files: &Files, path: &Path) -> Result<Layer, String> {
    Layer::from_source(Arc::new(files.file(path).ok_or("no such file")?.clone()))
}

fn options(host: &SimHost) -> OpenOptions {
    OpenOptions::new().host(Arc::new(host.clone())).budget(Budget::new(1 << 20))
}

/// The expected disk of the tip, over all layers.
fn readable(case: &Case, files: &Files) -> Result<Readable, String> {
    let mut below: Option<Readable> = None;
    for path in &case.layers {
        let layer = layer(files, path)?;
        let mut seen = below.unwrap_or(Readable { bytes: Vec::new(), lost: Vec::new() });
        // Beyond a parent's end there are zeros.
        seen.bytes.resize(layer.size as usize, 0);
        seen.lost.resize(layer.size as usize / 512, false);
        below = Some(layer.readable(Some(&seen)));
    }
    below.ok_or_else(|| "no layers".into())
}

/// Runs everything on a damaged image.
pub fn all(case: &Case, damage: &[Damage], seed: u64, tally: &mut Tally) {
    let files = case.damaged(damage);
    let what = format!("{}, {damage:?}", case.name);
    tally.files += 1;
    let parent_is_cut = damage.iter().any(|damage| matches!(damage, Damage::CutParent(_)));
    let model = layer(&files, case.tip()).map(|layer| layer.losses());
    let disk = readable(case, &files);
    // Lost structures are reported at once, and nothing is touched.
    let has_structures = case.layers.iter().all(|path| !has_lost_structures(&files, path));
    let (losses, disk) = match (model, disk) {
        (Ok(losses), Ok(disk)) if has_structures => (losses, disk),
        _ => {
            tally.not_opened += 1;
            let host = SimHost::new(files.clone());
            match options(&host).writable(true).open(case.tip()) {
                // A parent may lack what only a writer needs.
                Ok(_) => assert!(parent_is_cut, "{what}: opened"),
                Err(error) => assert!(
                    matches!(error.kind(), ErrorKind::Damaged | ErrorKind::NotVhdx)
                        || parent_is_cut,
                    "{what}: {error}"
                ),
            }
            assert!(host.files().sum() == files.sum(), "{what}: a file that is not opened changed");
            if !parent_is_cut {
                accept(&files, case, &what, None);
            }
            return;
        }
    };
    written(case, &files, &losses, disk, parent_is_cut, seed, &what, tally);
    if parent_is_cut {
        return;
    }
    mended(case, &files, &losses, seed, &what, tally);
}

fn has_lost_structures(files: &Files, path: &Path) -> bool {
    let Ok(layer) = layer(files, path) else { return true };
    let len = files.file(path).unwrap().len();
    layer.places().iter().any(|place| place.end > len)
}

/// A hundred random changes of the image as it is.
#[allow(clippy::too_many_arguments)]
fn written(
    case: &Case,
    files: &Files,
    losses: &loss::Losses,
    disk: Readable,
    parent_is_cut: bool,
    seed: u64,
    what: &str,
    tally: &mut Tally,
) {
    let host = SimHost::new(files.clone());
    let before = faults(&host, case.tip());
    let mut run =
        Run { host: &host, case, disk, aligned: parent_is_cut, rng: Rng::new(seed), what };
    if losses.refused {
        tally.damaged += 1;
        tally.refused += run.refused(100);
        assert!(host.files().sum() == files.sum(), "{what}: a refused change changed the file");
        return;
    }
    tally.sound += 1;
    tally.made += run.changes(100);
    let after = faults(&host, case.tip());
    for (code, count) in after {
        assert!(
            before.get(&code).is_some_and(|before| *before >= count),
            "{what}: {count} of {code}"
        );
    }
    let naive = readable(case, &host.files()).unwrap();
    assert!(naive == run.disk, "{what}: the naive reader sees another disk");
}

/// Accepts the losses, and writes then.
fn mended(
    case: &Case,
    files: &Files,
    losses: &loss::Losses,
    seed: u64,
    what: &str,
    tally: &mut Tally,
) {
    let Some((host, list)) = accept(files, case, what, Some(losses)) else { return };
    tally.mended += 1;
    tally.losses += list.list.len() as u64;
    // The model predicts the rest from the original file.
    let below = Case {
        name: String::new(),
        layers: case.layers[..case.layers.len() - 1].to_vec(),
        files: Files::default(),
    };
    let was = layer(files, case.tip()).unwrap();
    let parent = (!below.layers.is_empty()).then(|| {
        let mut parent = readable(&below, files).unwrap();
        parent.bytes.resize(was.size as usize, 0);
        parent.lost.resize((was.size / UNIT) as usize, false);
        parent
    });
    let disk = was.mended(parent.as_ref());
    let naive = readable(case, &host.files()).unwrap();
    assert!(
        naive == disk,
        "{what}: mended, the naive reader sees another disk: {}",
        first(&naive, &disk)
    );
    let again = layer(&host.files(), case.tip()).unwrap();
    assert!(!again.losses().refused, "{what}: mended, and still {:?}", again.losses());
    assert_ne!(again.data_write_guid, was.data_write_guid, "{what}");
    let report = Check::new().options(options(&host)).run(case.tip()).unwrap();
    let found: Vec<_> = report
        .findings
        .iter()
        .filter(|finding| finding.severity == Severity::Error)
        .map(|finding| (finding.code, finding.message.clone()))
        .collect();
    assert!(found.is_empty(), "{what}: mended, {found:#?}");
    let mut run = Run { host: &host, case, disk, aligned: false, rng: Rng::new(seed ^ 1), what };
    tally.made += run.changes(40);
    let naive = readable(case, &host.files()).unwrap();
    assert!(naive == run.disk, "{what}: mended and written, {}", first(&naive, &run.disk));
}

fn first(a: &Readable, b: &Readable) -> String {
    let byte = a.bytes.iter().zip(&b.bytes).position(|(a, b)| a != b);
    let lost = a.lost.iter().zip(&b.lost).position(|(a, b)| a != b);
    format!("first byte {byte:x?}, first unit that is lost in one alone {lost:x?}")
}

/// The list equals the model's, which is `None` for an image that does not open.
fn accept(
    files: &Files,
    case: &Case,
    what: &str,
    model: Option<&loss::Losses>,
) -> Option<(SimHost, Losses)> {
    let host = SimHost::new(files.clone());
    let accept = AcceptLoss::new().options(options(&host));
    let mut told = None;
    let mut on = |losses: &Losses| {
        // Bytes reported as lost are in the list on disk before the image changes.
        let report = losses.report.clone().unwrap();
        let text = text(&host.files(), &report);
        let lines = text.lines().filter(|line| !line.starts_with('#')).count();
        assert_eq!(lines, losses.list.len(), "{what}: {text}");
        let file = |files: &Files| files.file(case.tip()).unwrap().sum();
        assert!(file(&host.files()) == file(files), "{what}: changed before the list is there");
        told = Some(losses.clone());
        ControlFlow::Continue(())
    };
    let done = accept.run(case.tip(), &mut on);
    let Some(model) = model.filter(|model| !model.beyond) else {
        assert!(done.is_err(), "{what}: nobody can mend that");
        assert!(host.files().sum() == files.sum(), "{what}: changed though it cannot be mended");
        return None;
    };
    let losses = done.unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(losses.damaged, model.refused, "{what}");
    if !losses.damaged {
        assert!(host.files().sum() == files.sum(), "{what}: a sound image changed");
        return None;
    }
    assert_eq!(told.as_ref(), Some(&losses), "{what}");
    let list: Vec<(Range<u64>, Why)> =
        losses.list.iter().map(|loss| (loss.range.clone(), why(loss.kind))).collect();
    assert_eq!(list, model.list, "{what}");
    Some((host, losses))
}

fn why(kind: LossKind) -> Why {
    match kind {
        LossKind::Lost => Why::Lost,
        LossKind::Rest => Why::Rest,
        LossKind::Bits => Why::Bits,
        LossKind::Shared => Why::Shared,
        LossKind::Unmapped => Why::Unmapped,
        other => panic!("{other:?}"),
    }
}

fn text(files: &Files, path: &Path) -> String {
    let file = files.file(path).unwrap();
    let mut bytes = vec![0; file.len() as usize];
    file.read(0, &mut bytes);
    String::from_utf8(bytes).unwrap()
}

/// Checks only the list, for an image that is too large to model its bytes.
pub fn list_alone(case: &Case, damage: &[Damage], tally: &mut Tally) {
    let files = case.damaged(damage);
    let what = format!("{}, {damage:?}", case.name);
    if has_lost_structures(&files, case.tip()) {
        accept(&files, case, &what, None);
        return;
    }
    let losses = layer(&files, case.tip()).unwrap().losses();
    let Some((host, _)) = accept(&files, case, &what, Some(&losses)) else { return };
    tally.mended += 1;
    let again = layer(&host.files(), case.tip()).unwrap();
    assert!(!again.losses().refused && again.losses().list.is_empty(), "{what}");
    assert_eq!(faults(&host, case.tip()), BTreeMap::new(), "{what}");
}

/// The findings of a check that are more than remarks.
fn faults(host: &SimHost, tip: &Path) -> BTreeMap<&'static str, u64> {
    let report = Check::new().options(options(host)).run(tip).unwrap();
    let mut faults = BTreeMap::new();
    for finding in report.findings.iter().filter(|finding| finding.severity <= Severity::Warning) {
        *faults.entry(finding.code).or_default() += 1;
    }
    faults
}

/// One image that is written to.
struct Run<'a> {
    host: &'a SimHost,
    case: &'a Case,
    disk: Readable,
    /// Whether partial sectors are avoided, because the rest of a sector may be lost.
    aligned: bool,
    rng: Rng,
    what: &'a str,
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Write(u64),
    Zero(Zeroing),
    Discard,
    Flush,
    Close,
    Reopen,
}

impl Run<'_> {
    fn open(&self) -> DiffChain {
        options(self.host)
            .writable(true)
            .open(self.case.tip())
            .unwrap_or_else(|error| panic!("{}: {error}", self.what))
    }

    fn next(&mut self) -> (Op, Range<u64>) {
        let rng = &mut self.rng;
        let op = match rng.below(12) {
            0..=5 => Op::Write(rng.next_u64()),
            6 => Op::Zero(Zeroing::MayUnmap),
            7 => Op::Zero(Zeroing::KeepSpace),
            8 => Op::Discard,
            9 => Op::Flush,
            10 => Op::Close,
            _ => Op::Reopen,
        };
        let size = self.disk.bytes.len() as u64;
        let (from, len) = (rng.below(size), rng.below(6));
        let from = if rng.chance(1, 4) { from >> 20 << 20 } else { from };
        let len = [1, 700, 4096, 70_000, 1 << 20, 1_500_000][len as usize];
        let mut range = from..(from + len).min(size);
        if self.aligned {
            range = range.start / 4096 * 4096..(range.end.next_multiple_of(4096)).min(size);
        }
        (op, range)
    }

    fn run(chain: &DiffChain, op: Op, range: &Range<u64>) -> avhdx::Result<()> {
        match op {
            Op::Write(seed) => {
                let mut bytes = vec![0; (range.end - range.start) as usize];
                Rng::new(seed).fill(&mut bytes);
                chain.write_at(&bytes, range.start)
            }
            Op::Zero(how) => chain.write_zeroes(range.clone(), how),
            Op::Discard => chain.discard(range.clone()),
            Op::Flush => chain.flush(),
            Op::Close | Op::Reopen => chain.close(),
        }
    }

    /// Makes changes that must succeed. Returns how many.
    fn changes(&mut self, count: usize) -> u64 {
        let mut chain = self.open();
        let mut made = 0;
        self.compare(&chain, 0..self.disk.bytes.len() as u64, &"the open");
        for n in 0..count {
            let (op, range) = self.next();
            let done = Self::run(&chain, op, &range);
            done.unwrap_or_else(|error| panic!("{}: {op:?} of {range:x?}: {error}", self.what));
            let bytes = range.start as usize..range.end as usize;
            match op {
                Op::Write(seed) => Rng::new(seed).fill(&mut self.disk.bytes[bytes]),
                Op::Zero(_) | Op::Discard => self.disk.bytes[bytes].fill(0),
                Op::Reopen => {
                    drop(chain);
                    chain = self.open();
                }
                _ => {}
            }
            if matches!(op, Op::Write(_) | Op::Zero(_) | Op::Discard) {
                made += 1;
                let units = (range.start / UNIT) as usize..range.end.div_ceil(UNIT) as usize;
                self.disk.lost[units].fill(false);
                self.compare(&chain, range.start.saturating_sub(9000)..range.end + 9000, &op);
            }
            if n % 25 == 24 {
                self.compare(&chain, 0..self.disk.bytes.len() as u64, &op);
            }
        }
        chain.close().unwrap();
        self.compare(&chain, 0..self.disk.bytes.len() as u64, &"the close");
        made
    }

    /// Makes changes that must be refused. Returns how many were.
    fn refused(&mut self, count: usize) -> u64 {
        let sum = self.host.files().sum();
        let mut chain = self.open();
        let mut refused = 0;
        self.compare(&chain, 0..self.disk.bytes.len() as u64, &"the open");
        for _ in 0..count {
            let (op, range) = self.next();
            match (op, Self::run(&chain, op, &range)) {
                (Op::Write(_) | Op::Zero(_) | Op::Discard, Err(error)) => {
                    refused += 1;
                    assert_eq!(error.kind(), ErrorKind::Damaged, "{}: {op:?}: {error}", self.what);
                }
                // Zeroing what reads as zeros changes nothing.
                (Op::Zero(_) | Op::Discard, Ok(())) => {
                    let units = (range.start / UNIT) as usize..range.end.div_ceil(UNIT) as usize;
                    let bytes = &self.disk.bytes[range.start as usize..range.end as usize];
                    let is_zero = bytes.iter().all(|byte| *byte == 0)
                        && self.disk.lost[units].iter().all(|lost| !lost);
                    assert!(is_zero, "{}: {op:?} of {range:x?} is not refused", self.what);
                }
                (Op::Write(_), Ok(())) => panic!("{}: {range:x?} is written", self.what),
                (_, done) => done.unwrap_or_else(|error| panic!("{}: {op:?}: {error}", self.what)),
            }
            if matches!(op, Op::Reopen) {
                drop(chain);
                chain = self.open();
            }
            assert!(self.host.files().sum() == sum, "{}: {op:?} of {range:x?} wrote", self.what);
        }
        self.compare(&chain, 0..self.disk.bytes.len() as u64, &"all");
        refused
    }

    /// Readable ranges have the model's contents, and others are errors.
    fn compare(&self, chain: &DiffChain, range: Range<u64>, after: &dyn std::fmt::Debug) {
        const PIECE: u64 = 64 << 10;
        let sector = u64::from(chain.geometry().logical_sector);
        let end = range.end.min(self.disk.bytes.len() as u64);
        let mut at = range.start / sector * sector;
        let mut bytes = vec![0; PIECE as usize];
        while at < end {
            let mut len = PIECE.min(end - at);
            let is_lost = |at: u64, len: u64| {
                let units = (at / UNIT) as usize..(at + len).div_ceil(UNIT) as usize;
                self.disk.lost[units].iter().any(|lost| *lost)
            };
            if is_lost(at, len) {
                len = len.min(sector);
            }
            let piece = &mut bytes[..len as usize];
            match chain.read_at(piece, at) {
                Ok(()) => {
                    let lost = is_lost(at, len);
                    assert!(!lost, "{}: after {after:?} {at:#x} is read and was lost", self.what);
                    let expected = &self.disk.bytes[at as usize..(at + len) as usize];
                    assert!(
                        piece == expected,
                        "{}: after {after:?} the disk reads otherwise near {at:#x}",
                        self.what
                    );
                }
                Err(error) => {
                    assert!(is_lost(at, len), "{}: after {after:?} {at:#x}: {error}", self.what);
                    assert_eq!(error.kind(), ErrorKind::Damaged, "{}: {error}", self.what);
                }
            }
            at += len;
        }
    }
}
