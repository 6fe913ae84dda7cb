//! Crashes while a loss is being accepted: the image is then unchanged or repaired, and another run completes
//! the rest.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::path::PathBuf;

use avhdx::Disk;
use avhdx::ops::{AcceptLoss, Check, LossKind, Severity};
use avhdx_testkit::build::{Block, Data, Image};
use avhdx_testkit::loss::{Losses, Readable, Why};
use avhdx_testkit::naive::{Layer, Says};
use uuid::Uuid;

use crate::driver::{GIB, MIB, path};
use crate::explore::{judge_outcomes, story};
use crate::outcomes::{Depth, Explorer};
use crate::sim::{Bytes, Event, Files, SimHost};
use crate::verdict::{layer, options};
use crate::{explore_each, is_long};

/// An image with losses, over a sound base.
struct Damaged {
    name: &'static str,
    files: Files,
    tip: PathBuf,
}

/// What is known about it in advance.
struct Known {
    parent: Option<Readable>,
    losses: Losses,
    before: Readable,
    after: Readable,
    identity: Uuid,
    report: Vec<u8>,
}

#[test]
fn a_crash_while_a_loss_is_accepted_leaves_the_image_unchanged_or_repaired() {
    let only = std::env::var("AVHDX_WORKLOAD").unwrap_or_default();
    let distinct = explore_each(
        all().iter().filter(|damaged| damaged.name.contains(&only)),
        |damaged| damaged.name,
        explore,
    );
    assert!(!only.is_empty() || distinct >= 150, "{distinct} outcomes");
}

fn all() -> Vec<Damaged> {
    vec![
        lost("blocks lost, whole and in part", false, false),
        lost("blocks lost, one place for two", false, true),
        lost("blocks and bits lost, child", true, false),
        lost("blocks lost, one place for two, child", true, true),
        shared("one place for two", false),
        shared("one place for a block and a bitmap, child", true),
    ]
}

/// Five blocks, some of which are lost. Large sectors, because fewer of them take less time.
fn image(is_child: bool) -> (Vec<Image>, Image) {
    let mut base = Image::dynamic(5 * MIB + 64 * 4096);
    base.logical_sector = 4096;
    if !is_child {
        for block in 0..5 {
            base.put(block, Block::full(Data::Pattern(block + 1)));
        }
        return (Vec::new(), base);
    }
    for block in 0..6 {
        base.put(block, Block::full(Data::Pattern(block + 1)));
    }
    let mut tip = base.new_child();
    tip.parent_path(".\\base.vhdx");
    tip.put(0, Block::full(Data::Pattern(10)));
    tip.put(1, Block::partial_runs(Data::Pattern(11), &[(3, 40), (200, 8)]));
    tip.put(3, Block::partial_runs(Data::Pattern(13), &[(0, 1), (100, 30)]));
    tip.put(4, Block::full(Data::Pattern(14)));
    (vec![base], tip)
}

fn lost(name: &'static str, is_child: bool, is_doubled: bool) -> Damaged {
    let (below, mut tip) = image(is_child);
    let layout = tip.layout();
    if is_doubled {
        let place = layout.payload[&0];
        tip.bat_override.insert(tip.bat_index(2), place | 6);
    }
    // Within the last block but one, not at a sector boundary; later blocks are gone.
    let mut places: Vec<u64> = layout.payload.values().copied().collect();
    places.sort_unstable();
    tip.file_length = Some(places[places.len() - 2] + 5000);
    if is_child {
        // The bitmap is beyond the end.
        tip.bitmap_at.insert(0, places[places.len() - 1] + 4 * MIB);
    }
    damaged(name, &below, &tip)
}

fn shared(name: &'static str, is_child: bool) -> Damaged {
    let (below, mut tip) = image(is_child);
    let layout = tip.layout();
    let place = layout.payload[&4];
    tip.bat_override.insert(tip.bat_index(2), place | 6);
    if is_child {
        tip.bat_override.insert(tip.bat_index(5), layout.bitmaps[&0] | 6);
    } else {
        tip.bat_override.insert(tip.bat_index(5), place | 3);
    }
    damaged(name, &below, &tip)
}

fn damaged(name: &'static str, below: &[Image], tip: &Image) -> Damaged {
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
    Damaged { name, files, tip: path("tip.vhdx") }
}

fn explore(damaged: &Damaged) -> (usize, Vec<String>) {
    let before = layer(&damaged.files, &damaged.tip).unwrap();
    let parent = layer(&damaged.files, &path("base.vhdx")).ok().map(|base| base.readable(None));
    let mut known = Known {
        losses: before.losses(),
        before: before.readable(parent.as_ref()),
        after: before.mended(parent.as_ref()),
        identity: before.data_write_guid,
        report: Vec::new(),
        parent,
    };
    assert!(known.losses.refused && !known.losses.beyond, "{}", damaged.name);
    let host = SimHost::new(damaged.files.clone());
    host.record();
    let losses = accept(&host, damaged).unwrap();
    assert_eq!(list(&losses), known.losses.list, "{}", damaged.name);
    let report = host.files().file(&losses.report.unwrap()).unwrap().clone();
    known.report = vec![0; report.len() as usize];
    report.read(0, &mut known.report);

    let depth = match is_long() {
        true => Depth { exhaustive: 10, samples: 200, torn: 60 },
        false => Depth { exhaustive: 8, samples: 20, torn: 12 },
    };
    let events = host.events();
    judge_outcomes(&damaged.files, &events, depth, |files, _| judge(damaged, &known, files))
}

fn accept(host: &SimHost, damaged: &Damaged) -> avhdx::Result<avhdx::ops::Losses> {
    let accept = AcceptLoss::new().options(options(host));
    accept.run(&damaged.tip, &mut |_| ControlFlow::Continue(()))
}

fn list(losses: &avhdx::ops::Losses) -> Vec<(std::ops::Range<u64>, Why)> {
    let why = |kind| match kind {
        LossKind::Lost => Why::Lost,
        LossKind::Rest => Why::Rest,
        LossKind::Bits => Why::Bits,
        LossKind::Shared => Why::Shared,
        LossKind::Unmapped => Why::Unmapped,
        other => panic!("{other:?}"),
    };
    losses.list.iter().map(|loss| (loss.range.clone(), why(loss.kind))).collect()
}

fn judge(damaged: &Damaged, known: &Known, files: &Files) -> Result<(), String> {
    let found = layer(files, &damaged.tip)?;
    let losses = found.losses();
    let reads = found.readable(known.parent.as_ref());
    // Lost blocks go at once. Copies do not change what is read.
    let gone = |losses: &Losses| -> Vec<_> {
        losses.list.iter().filter(|(_, why)| *why <= Why::Bits).cloned().collect()
    };
    let is_as_before = reads == known.before && gone(&losses) == gone(&known.losses);
    let is_settled = reads == known.after && gone(&losses).is_empty();
    if !is_as_before && !is_settled {
        return Err(format!("neither as it was nor mended: {losses:?}"));
    }
    if !is_as_before || !losses.refused {
        if found.data_write_guid == known.identity {
            return Err("mended under the old identity".into());
        }
        let is_report = |file: &Bytes| {
            let mut bytes = vec![0; file.len() as usize];
            file.read(0, &mut bytes);
            bytes == known.report
        };
        if !files.files.iter().any(is_report) || files.names.len() == damaged.files.names.len() {
            return Err("mended, and the list of what was lost is not there".into());
        }
    }
    reads_as(files, damaged, &reads)?;
    // The next run completes the rest.
    let host = SimHost::new(files.clone());
    let done = accept(&host, damaged).map_err(|error| format!("once more: {error}"))?;
    if done.damaged != losses.refused || list(&done) != losses.list {
        return Err(format!("once more: {done:?}, not {losses:?}"));
    }
    let files = host.files();
    let mended: Layer = layer(&files, &damaged.tip)?;
    if mended.readable(known.parent.as_ref()) != known.after {
        return Err("once more, and the disk reads otherwise".into());
    }
    if mended.losses() != Losses::default() || mended.log_is_pending() {
        return Err(format!("once more, and still {:?}", mended.losses()));
    }
    match mended.faults() {
        faults if faults.is_empty() => {}
        faults => return Err(format!("the naive checker: {}", faults.join("; "))),
    }
    reads_as(&files, damaged, &known.after)?;
    let report =
        Check::new().options(options(&host)).run(&damaged.tip).map_err(|e| e.to_string())?;
    match report.findings.iter().find(|finding| finding.severity < Severity::Info) {
        None => Ok(()),
        Some(finding) => Err(format!("the check: {finding:?}")),
    }
}

/// The crate reads what the model does.
fn reads_as(files: &Files, damaged: &Damaged, disk: &Readable) -> Result<(), String> {
    const SECTOR: usize = 4096;
    let host = SimHost::new(files.clone());
    let chain = crate::verdict::open(&host, &damaged.tip, false)?;
    let mut bytes = [0; SECTOR];
    for at in (0..disk.bytes.len()).step_by(SECTOR) {
        let is_lost = disk.lost[at / 512];
        match chain.read_at(&mut bytes, at as u64) {
            Ok(()) if is_lost => return Err(format!("{at:#x} is read and was lost")),
            Ok(()) if bytes != disk.bytes[at..at + SECTOR] => {
                return Err(format!("the disk reads otherwise at {at:#x}"));
            }
            Err(error) if !is_lost => return Err(format!("{at:#x}: {error}")),
            _ => {}
        }
    }
    Ok(())
}

/// Blocks whose entries are in so many table pages that the log takes them in two parts: each is lost or repaired,
/// and the file grows with the last of them.
#[test]
fn a_crash_between_two_parts_of_a_repair_leaves_each_block_lost_or_repaired() {
    const PAGES: u64 = 260;
    let mut tip = Image::dynamic(133 * GIB);
    tip.put(0, Block::full(Data::Pattern(1)));
    let (first, ratio) = (tip.layout().payload[&0], tip.chunk_ratio());
    for page in 0..PAGES {
        let entry = page * 512 + 100;
        let block = entry - entry / (ratio + 1);
        tip.bat_override.insert(tip.bat_index(block), (first + (page + 1) * MIB) | 6);
    }
    // All blocks after the first are gone, and half of the first.
    tip.file_length = Some(first + MIB / 2);
    let damaged = damaged("more pages than an entry takes", &[], &tip);
    let before = layer(&damaged.files, &damaged.tip).unwrap();
    let known = before.losses();
    assert_eq!(known.list.len() as u64, PAGES + 1);
    let host = SimHost::new(damaged.files.clone());
    host.record();
    assert_eq!(list(&accept(&host, &damaged).unwrap()), known.list);

    let events = host.events();
    let pages = |event: &Event| match event {
        Event::Write(_, chunk) => chunk.data.len() / 4096,
        _ => 0,
    };
    let one = events.iter().position(|event| pages(event) > 100).unwrap();
    let other = events.iter().rposition(|event| pages(event) > 6).unwrap();
    assert!(one < other, "in one part");
    let depth = Depth { exhaustive: 4, samples: 4, torn: 3 };
    let (mut seen, mut parts) = (HashSet::new(), 0);
    for (from, to) in [(one - 2, one + 12), (other - 4, events.len())] {
        let mut explorer = Explorer::new(damaged.files.clone(), &events[..to], depth, 11);
        explorer.run(from, &|_| 0, &mut |outcome| {
            if !seen.insert(outcome.files.sum().exact) {
                return;
            }
            let story = story(&events, &outcome);
            let found =
                layer(&outcome.files, &damaged.tip).unwrap_or_else(|e| panic!("{story}: {e}"));
            let left = found.losses().list;
            let is_mended = |range: &std::ops::Range<u64>| {
                matches!(found.says(range.start / 512), Ok(Says::Zero))
            };
            for (range, why) in &known.list {
                let is_left = left.iter().any(|(other, _)| other == range);
                // The rest of a block exists once the file is long enough.
                let is_right =
                    is_left || if *why == Why::Rest { left.is_empty() } else { is_mended(range) };
                assert!(is_right, "{story}: {range:?}, {why:?}");
            }
            assert!(left.iter().all(|loss| known.list.contains(loss)), "{story}");
            let is_changed = left.len() < known.list.len();
            assert!(!is_changed || found.data_write_guid != before.data_write_guid, "{story}");
            if is_changed && !left.is_empty() {
                parts += 1;
            }
            // The next run completes the rest.
            if !left.is_empty() && parts % 8 == 1 {
                let host = SimHost::new(outcome.files.clone());
                assert_eq!(list(&accept(&host, &damaged).unwrap()), left, "{story}");
                let mended = layer(&host.files(), &damaged.tip).unwrap();
                assert_eq!(mended.losses(), Losses::default(), "{story}");
                assert_eq!(mended.faults(), [""; 0], "{story}");
            }
        });
    }
    assert!(parts > 10, "{parts} of {} outcomes are between the parts", seen.len());
}

/// A host that fails at any step leaves the same state as a crash.
#[test]
fn a_host_that_fails_while_a_loss_is_accepted_leaves_what_the_next_run_repairs() {
    for damaged in all() {
        let before = layer(&damaged.files, &damaged.tip).unwrap();
        let parent = layer(&damaged.files, &path("base.vhdx")).ok().map(|base| base.readable(None));
        let after = before.mended(parent.as_ref());
        for arrived in [crate::sim::Arrived::Nothing, crate::sim::Arrived::Half] {
            let mut failed = 0;
            for n in 0.. {
                let host = SimHost::new(damaged.files.clone());
                host.run_out(n..n + 1, arrived);
                let done = accept(&host, &damaged);
                host.relent();
                let Err(error) = done else { break };
                failed += 1;
                assert_eq!(error.kind(), avhdx::ErrorKind::Io, "{}: {error}", damaged.name);
                accept(&host, &damaged)
                    .unwrap_or_else(|error| panic!("{}, {n}: {error}", damaged.name));
                let mended = layer(&host.files(), &damaged.tip).unwrap();
                assert!(mended.readable(parent.as_ref()) == after, "{}, {n}", damaged.name);
                assert_eq!(mended.losses(), Losses::default(), "{}, {n}", damaged.name);
            }
            assert!(failed > 5, "{}", damaged.name);
        }
    }
}
