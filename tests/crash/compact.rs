//! Crashes and failures while an image is compacted: the disk reads as before, and another run does the rest.

use std::ops::{ControlFlow, Range};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use avhdx::ops::{Check, Compact, Compacted, Severity};
use avhdx::{DiffChain, Disk};
use avhdx_testkit::build::{Block, Data, Image, state};
use avhdx_testkit::bytes::difference;
use avhdx_testkit::naive::{Chain, Layer};
use uuid::Uuid;

use crate::driver::{MIB, path};
use crate::explore::judge_outcomes;
use crate::outcomes::Depth;
use crate::sim::{Arrived, Bytes, Files, Refusal, SimHost};
use crate::verdict::{layer, open, options};
use crate::{explore_each, is_long};

/// Where a write on the way goes.
const WRITTEN: Range<usize> = 8192..8192 + 4096;

/// An image to be compacted, over a base if there is one.
struct Wasteful {
    name: &'static str,
    files: Files,
    tip: PathBuf,
    content: bool,
    punch: bool,
    /// Whether the disk is written to on the way.
    is_written: bool,
    free: Vec<Range<u64>>,
    /// Whether the short form of the exploration has it.
    is_in_short: bool,
}

/// What is known about it in advance.
struct Known {
    before: Vec<u8>,
    after: Vec<u8>,
    identity: Uuid,
    done: Compacted,
}

#[test]
fn a_crash_while_an_image_is_compacted_changes_no_byte_of_the_disk() {
    let only = std::env::var("AVHDX_WORKLOAD").unwrap_or_default();
    let is_short = !is_long() && std::env::var_os("AVHDX_MUTANT").is_none() && only.is_empty();
    let is_chosen =
        |wasteful: &&Wasteful| wasteful.name.contains(&only) && (wasteful.is_in_short || !is_short);
    let distinct = explore_each(all().iter().filter(is_chosen), |wasteful| wasteful.name, explore);
    assert!(!only.is_empty() || distinct >= 100, "{distinct} outcomes");
}

fn all() -> Vec<Wasteful> {
    let plain = |name, (below, tip): (Vec<Image>, Image)| wasteful(name, &below, &tip);
    vec![
        plain("holes, base", base()),
        Wasteful { content: true, is_in_short: true, ..plain("holes and zeros, base", base()) },
        Wasteful {
            is_written: true,
            is_in_short: true,
            ..plain("holes, base, written to", base())
        },
        plain("holes and bits, child", child()),
        Wasteful { content: true, ..plain("what the parent shows, child", child()) },
        Wasteful {
            content: true,
            is_written: true,
            is_in_short: true,
            ..plain("what the parent shows, child, written to", child())
        },
        Wasteful {
            content: true,
            punch: true,
            is_in_short: true,
            ..plain("punched, child", child())
        },
        plain("table behind, base", table_behind(base())),
        Wasteful {
            content: true,
            is_written: true,
            is_in_short: true,
            ..plain("table behind, child, written to", table_behind(child()))
        },
        Wasteful {
            free: Vec::from_iter(Some(0..2 * MIB)),
            is_in_short: true,
            ..plain("free, base", base())
        },
        Wasteful {
            // A block that holds a part, one that is transparent, and one that the parent shows too.
            free: vec![0..2 * MIB, 4 * MIB..5 * MIB],
            content: true,
            is_in_short: true,
            ..plain("free and what the parent shows, child", child())
        },
    ]
}

/// Blocks with holes between them, zeros, and space that an unmapped block still has. Large sectors, because fewer of them
/// take less time.
fn base() -> (Vec<Image>, Image) {
    let mut base = Image::dynamic(5 * MIB + 64 * 4096);
    base.logical_sector = 4096;
    base.put(0, Block::full(Data::Pattern(1)));
    base.put(1, Block::full(Data::Pattern(2)).with_state(state::UNMAPPED));
    base.put(2, Block::full(Data::Zeros));
    base.put(4, Block::full(Data::Pattern(4)));
    base.put(5, Block::full(Data::Pattern(5)));
    (Vec::new(), base)
}

/// The block allocation table lies behind all else, and is longer than it needs to be.
fn table_behind((below, mut tip): (Vec<Image>, Image)) -> (Vec<Image>, Image) {
    tip.data_offset = Some(tip.bat_offset);
    tip.gap = MIB;
    tip.bat_offset = 30 * MIB;
    tip.bat_length = Some(2 << 20);
    (below, tip)
}

/// Bits that lie behind all else, a block that the parent shows, and one that only holds a part of it.
fn child() -> (Vec<Image>, Image) {
    let mut below = Image::dynamic(5 * MIB + 64 * 4096);
    below.logical_sector = 4096;
    for block in 0..6 {
        below.put(block, Block::full(Data::Pattern(block + 1)));
    }
    let mut tip = below.new_child();
    tip.parent_path(".\\base.vhdx");
    tip.put(0, Block::partial_runs(Data::Pattern(11), &[(3, 40), (200, 8)]));
    tip.put(1, Block::full(Data::Pattern(2)));
    tip.put(2, Block::full(Data::Zeros));
    tip.put(3, Block::full(Data::Pattern(13)));
    tip.put(4, Block::partial_runs(Data::Pattern(5), &[(0, 1), (100, 30)]));
    tip.gap = MIB;
    tip.bitmap_at.insert(0, 20 * MIB);
    (vec![below], tip)
}

fn wasteful(name: &'static str, below: &[Image], tip: &Image) -> Wasteful {
    let mut files = Files::default();
    let layers = below.iter().map(|base| ("base.vhdx", base)).chain([("tip.vhdx", tip)]);
    for (number, (name, image)) in layers.enumerate() {
        let bytes = image.to_bytes();
        let mut file = Bytes::default();
        for (n, page) in bytes.chunks(4096).enumerate() {
            file.write(n as u64 * 4096, page);
        }
        file.set_len(bytes.len() as u64);
        *files.file_mut(number) = file;
        files.names.insert(path(name), number);
    }
    let (tip, free) = (path("tip.vhdx"), Vec::new());
    let (content, punch, is_written, is_in_short) = (false, false, false, false);
    Wasteful { name, files, tip, content, punch, is_written, free, is_in_short }
}

impl Wasteful {
    fn compact(&self) -> Compact<'_> {
        Compact::new().content(self.content).punch(self.punch).free(self.free.clone())
    }

    /// What the naive reader reads.
    fn flat(&self, files: &Files) -> Result<Vec<u8>, String> {
        let layers = [layer(files, &path("base.vhdx")), Ok(layer(files, &self.tip)?)];
        let layers: Vec<Layer> = layers.into_iter().filter_map(Result::ok).collect();
        let tip = layers.len() - 1;
        Chain(layers).flat(tip)
    }

    fn known(&self) -> Known {
        let before = self.flat(&self.files).unwrap();
        let mut after = before.clone();
        for range in &self.free {
            after[range.start as usize..range.end as usize].fill(0);
        }
        if self.is_written {
            after[WRITTEN].fill(0x77);
        }
        let identity = layer(&self.files, &self.tip).unwrap().data_write_guid;
        let host = SimHost::new(self.files.clone());
        let chain = open(&host, &self.tip, true).unwrap();
        let done = self.compact().forecast(&chain).unwrap().outcome;
        Known { before, after, identity, done }
    }

    /// Compacts the image and closes it.
    fn run(&self, chain: &DiffChain, is_written: bool) -> avhdx::Result<Compacted> {
        let calls = AtomicUsize::new(0);
        let on = |_| {
            // The second call comes before the second move.
            if calls.fetch_add(1, Ordering::Relaxed) == 2 && is_written {
                drop(chain.write_at(&[0x77; 4096], WRITTEN.start as u64));
            }
            ControlFlow::Continue(())
        };
        let done = self.compact().on_progress(on).run(chain);
        let closed = chain.close();
        done.and_then(|done| closed.map(|()| done))
    }
}

fn explore(wasteful: &Wasteful) -> (usize, Vec<String>) {
    let known = wasteful.known();
    let host = SimHost::new(wasteful.files.clone());
    host.record();
    let done = wasteful.run(&open(&host, &wasteful.tip, true).unwrap(), wasteful.is_written);
    assert_eq!(done.unwrap(), known.done, "{}", wasteful.name);
    let is_shorter = known.done.moved > 0 && known.done.file_len < known.done.file_len_before;
    assert!(is_shorter || known.done.punched > Some(MIB));
    assert!(difference(&wasteful.flat(&host.files()).unwrap(), &known.after).is_none());

    let depth = match (is_long(), std::env::var_os("AVHDX_MUTANT").is_some()) {
        (true, _) => Depth { exhaustive: 10, samples: 200, torn: 60 },
        (false, true) => Depth { exhaustive: 6, samples: 12, torn: 6 },
        (false, false) => Depth { exhaustive: 3, samples: 3, torn: 2 },
    };
    let events = host.events();
    judge_outcomes(&wasteful.files, &events, depth, |files, _| judge(wasteful, &known, files))
}

fn judge(wasteful: &Wasteful, known: &Known, files: &Files) -> Result<(), String> {
    let found = wasteful.flat(files)?;
    let is_as_before = difference(&found, &known.before).is_none();
    if !is_as_before {
        let units = found.chunks(512).zip(known.before.chunks(512).zip(known.after.chunks(512)));
        for (n, (unit, (before, after))) in units.enumerate() {
            if unit != before && unit != after {
                return Err(format!("{:#x} is neither as it was nor as it will be", n * 512));
            }
        }
    }
    let identity = layer(files, &wasteful.tip)?.data_write_guid;
    if !is_as_before && identity == known.identity {
        return Err("changed under the old identity".into());
    }
    if difference(&known.before, &known.after).is_none() && identity != known.identity {
        return Err("another identity, and nothing changed".into());
    }
    reads_as(files, wasteful, &found, "")?;
    // The next run does the rest.
    let host = SimHost::new(files.clone());
    let chain = open(&host, &wasteful.tip, true)?;
    let done = wasteful.run(&chain, false).map_err(|error| format!("once more: {error}"))?;
    drop(chain);
    let files = host.files();
    if done.file_len != known.done.file_len || file_len(&files, wasteful) != done.file_len {
        return Err(format!("once more, and {done:?}, not {:?}", known.done));
    }
    let mut expected = found;
    for range in &wasteful.free {
        expected[range.start as usize..range.end as usize].fill(0);
    }
    reads_as(&files, wasteful, &expected, "once more, ")?;
    match layer(&files, &wasteful.tip)?.faults() {
        faults if faults.is_empty() => {}
        faults => return Err(format!("the naive checker: {}", faults.join("; "))),
    }
    let report = Check::new().options(options(&host)).run(&wasteful.tip);
    let report = report.map_err(|error| error.to_string())?;
    match report.findings.iter().find(|finding| finding.severity < Severity::Info) {
        None => Ok(()),
        Some(finding) => Err(format!("the check: {finding:?}")),
    }
}

fn file_len(files: &Files, wasteful: &Wasteful) -> u64 {
    files.file(&wasteful.tip).map_or(0, Bytes::len)
}

/// The naive reader and the crate read this.
fn reads_as(files: &Files, wasteful: &Wasteful, expected: &[u8], when: &str) -> Result<(), String> {
    let host = SimHost::new(files.clone());
    let mut bytes = vec![0xAA; expected.len()];
    let chain = open(&host, &wasteful.tip, false)?;
    chain.read_at(&mut bytes, 0).map_err(|error| format!("{when}read: {error}"))?;
    let naive = wasteful.flat(files)?;
    match difference(&bytes, expected).or(difference(&naive, expected)) {
        None => Ok(()),
        Some(at) => Err(format!("{when}the disk reads otherwise at {at:#x}")),
    }
}

/// A host that fails at any step, for lack of space or otherwise: the disk reads as before, and the next run does the rest.
#[test]
fn a_host_that_fails_while_an_image_is_compacted_changes_no_byte_of_the_disk() {
    const IO: i32 = 5;
    const NO_SPACE: i32 = 28;
    let failures = [(NO_SPACE, Arrived::Nothing), (IO, Arrived::Half)];
    for wasteful in all().iter().filter(|wasteful| wasteful.content && !wasteful.is_written) {
        let known = wasteful.known();
        for (turn, (code, arrived)) in failures.into_iter().enumerate() {
            let mut failed = 0;
            // In the short form some steps fail, in one of the ways each.
            let (first, each) = if is_long() { (0, 1) } else { (turn * 3, 7) };
            for n in (first..).step_by(each) {
                let host = SimHost::new(wasteful.files.clone());
                let chain = open(&host, &wasteful.tip, true).unwrap();
                let steps = Arc::new(AtomicUsize::new(0));
                let counted = Arc::clone(&steps);
                host.refuse(move |_, _| {
                    let is_now = counted.fetch_add(1, Ordering::SeqCst) == n;
                    is_now.then_some(Refusal { code, arrived })
                });
                let done = wasteful.run(&chain, false);
                host.relent();
                let is_reached = steps.load(Ordering::SeqCst) > n;
                drop(chain);
                let told = format!("{}, step {n}: {done:?}", wasteful.name);
                judge(wasteful, &known, &host.files())
                    .unwrap_or_else(|why| panic!("{told}: {why}"));
                failed += usize::from(done.is_err());
                if !is_reached {
                    assert!(done.is_ok(), "{told}");
                    break;
                }
            }
            assert!(failed > 5, "{}: {failed}", wasteful.name);
        }
    }
}
