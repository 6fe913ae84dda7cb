//! Crashes while an image is put on another base: it reads the same over the parent that it then has, and another run
//! completes the rest.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use avhdx::Disk;
use avhdx::ops::{Check, Rebase, Rebased};
use avhdx_testkit::build::{Block, Data, Image, braced, state};
use avhdx_testkit::bytes::difference;
use avhdx_testkit::naive::{Chain, Layer, Says};
use uuid::Uuid;

use crate::driver::{GIB, MIB, path};
use crate::explore::{judge_outcomes, story};
use crate::outcomes::{Depth, Explorer};
use crate::sim::{Arrived, Bytes, Files, SimHost};
use crate::verdict::{layer, options};
use crate::{explore_each, is_long};

/// A chain, and the base that its tip gets.
struct Workload {
    name: &'static str,
    files: Files,
    /// The layers below the tip, base first: now, and afterwards.
    old: Vec<&'static str>,
    new: Vec<&'static str>,
}

/// What stays through all of it.
struct Known {
    flat: Vec<u8>,
    identity: Uuid,
}

#[test]
fn a_crash_while_an_image_gets_another_base_leaves_it_reading_the_same() {
    let only = std::env::var("AVHDX_WORKLOAD").unwrap_or_default();
    let workloads = all().into_iter().filter(|workload| workload.name.contains(&only));
    let distinct = explore_each(&workloads.collect::<Vec<_>>(), |workload| workload.name, explore);
    assert!(!only.is_empty() || distinct >= 100, "{distinct} outcomes");
}

fn all() -> Vec<Workload> {
    vec![
        another("another base", false, false),
        another("another base, a pending log", true, false),
        another("another base, a host that shows stale bytes", false, true),
        ancestor("an ancestor"),
    ]
}

/// Large sectors, because fewer of them take less time.
fn dynamic(blocks: &[(u64, u64)], seed: u64) -> Image {
    let mut image = Image::dynamic(5 * MIB + 64 * 4096);
    image.logical_sector = 4096;
    image.reseed(seed);
    for (block, pattern) in blocks {
        image.put(*block, Block::full(Data::Pattern(*pattern)));
    }
    image
}

/// Sectors that differ in a block that the tip has in part; a block that it does not have, as a whole and in part; a
/// block of zeros; and what lies past the end of the new base.
fn another(name: &'static str, is_pending: bool, shows_stale: bool) -> Workload {
    let old = dynamic(&[(0, 1), (1, 2), (3, 4), (5, 6)], 1);
    let mut new = dynamic(&[(1, 12), (2, 13)], 2);
    new.size = 4 * MIB;
    let flat = old.flat(None);
    // All of block 0 but a few sectors, block 3 but a run.
    let but = |block: u64, runs: &[std::ops::Range<usize>]| {
        let mut bytes = flat[(block * MIB) as usize..((block + 1) * MIB) as usize].to_vec();
        for sector in runs.iter().cloned().flatten() {
            bytes[sector * 4096..(sector + 1) * 4096].fill(7);
        }
        Block::full(Data::Bytes(bytes))
    };
    new.put(0, but(0, &[2..3, 5..6, 100..101]));
    new.put(3, but(3, &[30..39, 39..40]));
    let mut tip = old.new_child();
    tip.reseed(3).parent_path(".\\old.vhdx");
    tip.put(0, Block::partial_runs(Data::Pattern(20), &[(3, 40), (200, 8)]));
    if is_pending {
        let mut after = tip.clone();
        after.put(4, Block::full(Data::Pattern(21)));
        tip = Image::dirty(&tip, &after, Uuid::from_u128(77), 2);
    }
    let mut files = files(&[("old.vhdx", &old), ("new.vhdx", &new), ("tip.vhdx", &tip)]);
    files.shows_stale = shows_stale;
    Workload { name, files, old: vec!["old.vhdx"], new: vec!["new.vhdx"] }
}

fn ancestor(name: &'static str) -> Workload {
    let base = dynamic(&[(0, 1), (1, 2), (2, 3), (3, 4)], 1);
    let mut middle = base.new_child();
    middle.reseed(2).parent_path(".\\base.vhdx");
    middle.put(0, Block::full(Data::Pattern(10)));
    middle.put(1, Block::bare(state::ZERO));
    middle.put(3, Block::partial_runs(Data::Pattern(13), &[(0, 1), (100, 30)]));
    let mut tip = middle.new_child();
    tip.reseed(3).parent_path(".\\middle.vhdx");
    tip.put(0, Block::partial_runs(Data::Pattern(20), &[(3, 100)]));
    let files = files(&[("base.vhdx", &base), ("middle.vhdx", &middle), ("tip.vhdx", &tip)]);
    Workload { name, files, old: vec!["base.vhdx", "middle.vhdx"], new: vec!["base.vhdx"] }
}

fn files(images: &[(&str, &Image)]) -> Files {
    let mut files = Files::default();
    for (number, (name, image)) in images.iter().enumerate() {
        let bytes = image.to_bytes();
        let mut file = Bytes::default();
        for (n, page) in bytes.chunks(4096).enumerate() {
            file.write(n as u64 * 4096, page);
        }
        file.set_len(bytes.len() as u64);
        *files.file_mut(number) = file;
        files.names.insert(path(name), number);
    }
    files
}

fn tip() -> PathBuf {
    path("tip.vhdx")
}

fn rebase(host: &SimHost, workload: &Workload) -> avhdx::Result<Rebased> {
    let base = path(workload.new.last().unwrap());
    Rebase::new(base).options(options(host)).run(tip())
}

fn known(workload: &Workload) -> Known {
    let chain = chain(&workload.files, &workload.old).unwrap();
    let identity = chain.0.last().unwrap().data_write_guid;
    Known { flat: chain.flat(chain.0.len() - 1).unwrap(), identity }
}

/// The tip over these layers.
fn chain(files: &Files, below: &[&str]) -> Result<Chain, String> {
    let paths = below.iter().map(|name| path(name)).chain([tip()]);
    paths.map(|path| layer(files, &path)).collect::<Result<_, _>>().map(Chain)
}

fn explore(workload: &Workload) -> (usize, Vec<String>) {
    let known = known(workload);
    let host = SimHost::new(workload.files.clone());
    host.record();
    let done = rebase(&host, workload).unwrap();
    assert!(done.written > 0 && done.zeroed > 0, "{}: {done:?}", workload.name);
    let depth = match is_long() {
        true => Depth { exhaustive: 10, samples: 200, torn: 60 },
        false => Depth { exhaustive: 3, samples: 3, torn: 2 },
    };
    let events = host.events();
    judge_outcomes(&workload.files, &events, depth, |files, sum| {
        judge(workload, &known, files, is_long() || sum.is_multiple_of(4))
    })
}

fn judge(workload: &Workload, known: &Known, files: &Files, again: bool) -> Result<(), String> {
    reads_the_same(workload, known, files)?;
    if !again {
        return Ok(());
    }
    // Another run completes the rest.
    let host = SimHost::new(files.clone());
    rebase(&host, workload).map_err(|error| format!("once more: {error}"))?;
    is_done(workload, known, &host)
}

/// The tip reads as before over the parent that it names.
fn reads_the_same(workload: &Workload, known: &Known, files: &Files) -> Result<Layer, String> {
    let found = layer(files, &tip())?;
    if found.data_write_guid != known.identity {
        return Err("it has another identity".into());
    }
    let linkage = found.locator.iter().find(|(key, _)| key == "parent_linkage");
    let parent = |below: &[&str]| layer(files, &path(below.last().unwrap()));
    let names = |below: &[&str]| {
        let guid = braced(parent(below)?.data_write_guid);
        Ok::<bool, String>(linkage.is_some_and(|(_, value)| *value == guid))
    };
    let below = match names(&workload.new)? {
        true => &workload.new,
        false if names(&workload.old)? => &workload.old,
        false => return Err(format!("a link to neither: {linkage:?}")),
    };
    let chain = chain(files, below)?;
    let flat = chain.flat(below.len())?;
    if let Some(at) = difference(&flat, &known.flat) {
        return Err(format!("over {below:?} the disk reads otherwise at {at:#x}"));
    }
    match found.faults() {
        faults if faults.is_empty() => {}
        faults => return Err(format!("the naive checker: {}", faults.join("; "))),
    }
    let host = SimHost::new(files.clone());
    let chain = crate::verdict::open(&host, &tip(), false)?;
    let mut read = vec![0; known.flat.len()];
    chain.read_at(&mut read, 0).map_err(|error| error.to_string())?;
    match difference(&read, &known.flat) {
        None => Ok(found),
        Some(at) => Err(format!("the crate reads otherwise at {at:#x}")),
    }
}

fn is_done(workload: &Workload, known: &Known, host: &SimHost) -> Result<(), String> {
    let files = host.files();
    let found = reads_the_same(workload, known, &files)?;
    let base = layer(&files, &path(workload.new.last().unwrap()))?;
    let guid = braced(base.data_write_guid);
    if !found.locator.iter().any(|(key, value)| key == "parent_linkage" && *value == guid) {
        return Err("once more, and the old link is left".into());
    }
    if found.log_is_pending() {
        return Err("once more, and the log is pending".into());
    }
    let report = Check::new().options(options(host)).run(tip()).map_err(|e| e.to_string())?;
    if report.is_sound() { Ok(()) } else { Err(format!("the check: {report:?}")) }
}

/// A host that fails at any step, or has no space from any step on, leaves what a crash does, and a clear error.
#[test]
fn a_host_that_fails_while_an_image_gets_another_base_leaves_it_reading_the_same() {
    let all = all();
    let short = [&all[0], &all[3]];
    for workload in if is_long() { all.iter().collect() } else { short.to_vec() } {
        let known = known(workload);
        for is_full in [false, true] {
            let mut failed = 0;
            for n in (0..).step_by(if is_long() { 1 } else { 4 }) {
                let host = SimHost::new(workload.files.clone());
                let met = match is_full {
                    true => host.run_out_at(n, Arrived::Nothing),
                    false => host.run_out(n..n + 1, Arrived::Half),
                };
                let done = rebase(&host, workload);
                host.relent();
                if met.load(Ordering::SeqCst) <= n {
                    break;
                }
                let what = format!("{}, {n}, {is_full}", workload.name);
                if let Err(error) = &done {
                    failed += 1;
                    assert_eq!(error.kind(), avhdx::ErrorKind::Io, "{what}: {error}");
                    assert_eq!(error.file(), tip().to_str(), "{what}: {error}");
                }
                let same = reads_the_same(workload, &known, &host.files());
                same.unwrap_or_else(|why| panic!("{what}: {why}"));
                if done.is_ok() || n.is_multiple_of(3) || is_long() {
                    let again = rebase(&host, workload).map_err(|error| error.to_string());
                    let again = again.and_then(|_| is_done(workload, &known, &host));
                    again.unwrap_or_else(|why| panic!("{what}, once more: {why}"));
                }
            }
            assert!(failed > 2, "{}: {failed}", workload.name);
        }
    }
}

/// As many pages of the table change as an entry of the log takes, so that the new link, which metadata precede, must
/// wait for them.
#[test]
fn a_crash_before_the_new_link_leaves_no_block_behind() {
    let mut with_link = 0;
    for pages in [250, 251] {
        let mut old = Image::dynamic(133 * GIB);
        old.put(0, Block::full(Data::Pattern(1)));
        let mut new = old.clone();
        new.reseed(2).put(0, Block::full(Data::Pattern(1)));
        let (ratio, place) = (old.chunk_ratio(), new.layout().payload[&0]);
        let blocks: Vec<u64> = (1..=pages)
            .map(|page| page * 512 + 100)
            .map(|entry| entry - entry / (ratio + 1))
            .collect();
        for block in &blocks {
            // It is only read.
            new.bat_override.insert(new.bat_index(*block), place | 6);
        }
        let mut tip = old.new_child();
        tip.reseed(3).parent_path(".\\old.vhdx");
        let files = files(&[("old.vhdx", &old), ("new.vhdx", &new), ("tip.vhdx", &tip)]);
        let name = "more pages than an entry takes";
        let workload = Workload { name, files, old: vec!["old.vhdx"], new: vec!["new.vhdx"] };
        let host = SimHost::new(workload.files.clone());
        host.record();
        assert_eq!(rebase(&host, &workload).unwrap().zeroed, pages * MIB);

        let events = host.events();
        let depth = match is_long() || std::env::var_os("AVHDX_MUTANT").is_some() {
            true => Depth { exhaustive: 6, samples: 8, torn: 3 },
            false => Depth { exhaustive: 3, samples: 2, torn: 1 },
        };
        let guid = braced(layer(&workload.files, &path("new.vhdx")).unwrap().data_write_guid);
        let mut explorer = Explorer::new(workload.files.clone(), &events, depth, 11);
        let mut seen = HashSet::new();
        explorer.run(0, &|_| 0, &mut |outcome| {
            if !seen.insert(outcome.files.sum().exact) {
                return;
            }
            let found = layer(&outcome.files, &path("tip.vhdx")).unwrap();
            let is_new =
                |(key, value): &(String, String)| key == "parent_linkage" && *value == guid;
            if !found.locator.iter().any(is_new) {
                return;
            }
            with_link += 1;
            for block in &blocks {
                let says = found.says(block * MIB / 512).unwrap();
                assert!(says == Says::Zero, "{}: block {block} {says:?}", story(&events, &outcome));
            }
        });
    }
    assert!(with_link > 4, "{with_link}");
}
