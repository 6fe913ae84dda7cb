//! Crashes while an image is repaired, and while a repair is undone: undoing it restores every byte.

use std::ops::ControlFlow;
use std::path::PathBuf;

use avhdx::ops::{Repair, RepairPlan, Severity, UndoRepair};
use avhdx_testkit::build::{Block, Checksum, Data, Image};
use avhdx_testkit::loss::Readable;
use uuid::Uuid;

use crate::driver::{MIB, path};
use crate::explore::judge_outcomes;
use crate::outcomes::Depth;
use crate::sim::{Arrived, Bytes, Files, SimHost};
use crate::verdict::{layer, options};
use crate::{explore_each, is_long};

/// An image in trouble, with its parent if it has one.
struct Trouble {
    name: &'static str,
    files: Files,
    accepts_loss: bool,
    /// Whether each state on the way reads as before. Items of the metadata span sectors, and the undo file mends them.
    is_smooth: bool,
}

const TIP: &str = "tip.vhdx";
const UNDO: &str = "tip.vhdx.undo";

fn base() -> Image {
    let mut base = Image::dynamic(5 * MIB + 64 * 4096);
    base.logical_sector = 4096;
    for block in 0..6 {
        base.put(block, Block::full(Data::Pattern(block + 1)));
    }
    base
}

fn child() -> Image {
    let mut tip = base().new_child();
    tip.parent_path(".\\base.vhdx");
    tip.put(0, Block::full(Data::Pattern(10)));
    tip.put(1, Block::partial_runs(Data::Pattern(11), &[(3, 40), (200, 8)]));
    tip.put(4, Block::full(Data::Pattern(14)));
    tip
}

fn all() -> Vec<Trouble> {
    let alone = |change: fn(&mut Image)| {
        let mut tip = base();
        change(&mut tip);
        files(&[(TIP, &tip)])
    };
    let of_child = |change: fn(&mut Image)| {
        let mut tip = child();
        change(&mut tip);
        files(&[("base.vhdx", &base()), (TIP, &tip)])
    };
    let trouble = |name, files| Trouble { name, files, accepts_loss: false, is_smooth: true };
    let dirty = |change: fn(&mut Image)| {
        let mut before = base();
        before.bat_override.extend([(0, 0), (2, 0)]);
        let mut tip = Image::dirty(&before, &base(), Uuid::from_u128(77), 1);
        change(&mut tip);
        files(&[(TIP, &tip)])
    };
    vec![
        trouble(
            "a header, a region table and a tail",
            alone(|i| {
                i.headers[0].as_mut().unwrap().checksum = Checksum::Wrong;
                i.region_tables[0].as_mut().unwrap().checksum = Checksum::Wrong;
                i.file_length = Some(i.layout().needed_length + 3 * MIB);
            }),
        ),
        trouble(
            "two blocks in one place",
            alone(|i| {
                let place = i.layout().payload[&4];
                i.bat_override.insert(i.bat_index(2), place | 6);
                i.bat_override.insert(i.bat_index(3), place | 3);
            }),
        ),
        trouble(
            "full and stray bits, one place for a block and a bitmap",
            of_child(|i| {
                i.put(2, Block::partial(Data::Pattern(7), vec![true; 256]));
                i.put(3, Block::partial(Data::Zeros, vec![false; 256]));
                let mut full = Block::full(Data::Pattern(4));
                full.bitmap = vec![true; 9];
                i.put(0, full);
                i.bat_override.insert(i.bat_index(5), i.layout().bitmaps[&0] | 6);
            }),
        ),
        trouble("a pending log", dirty(|_| {})),
        trouble(
            "a pending log, a damaged header and an unaligned length",
            dirty(|i| {
                i.headers[0].as_mut().unwrap().checksum = Checksum::Wrong;
                i.file_length = Some(i.layout().needed_length + 512);
            }),
        ),
        Trouble {
            is_smooth: false,
            ..trouble(
                "a path that leads nowhere",
                of_child(|i| {
                    i.parent_path("..\\gone\\base.vhdx");
                }),
            )
        },
        Trouble {
            accepts_loss: true,
            is_smooth: false,
            ..trouble(
                "a lost end",
                alone(|i| i.file_length = Some(i.layout().needed_length - 2 * MIB - 5000)),
            )
        },
    ]
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

fn repair(host: &SimHost, trouble: &Trouble) -> avhdx::Result<(RepairPlan, Option<PathBuf>)> {
    let repair = Repair::new().options(options(host)).accept_loss(trouble.accepts_loss);
    let done = repair.run(path(TIP), &mut |_| ControlFlow::Continue(()))?;
    Ok((done.plan, done.undo))
}

fn undo(host: &SimHost) -> avhdx::Result<avhdx::ops::Undone> {
    UndoRepair::new().options(options(host)).run(path(TIP), path(UNDO))
}

fn bytes(files: &Files, name: &str) -> Option<Vec<u8>> {
    let file = files.file(&path(name))?;
    let mut bytes = vec![0; file.len() as usize];
    file.read(0, &mut bytes);
    Some(bytes)
}

fn readable(files: &Files) -> Option<Readable> {
    let parent = layer(files, &path("base.vhdx")).ok().map(|base| base.readable(None));
    Some(layer(files, &path(TIP)).ok()?.readable(parent.as_ref()))
}

/// Whether undoing leaves the image as it was, whatever the repair or the undo had done.
fn judge(
    trouble: &Trouble,
    old: &[u8],
    before: &Option<Readable>,
    files: &Files,
) -> Result<(), String> {
    let is_old = bytes(files, TIP).as_deref() == Some(old);
    if let (true, Some(before)) = (trouble.is_smooth, before) {
        let now = readable(files).ok_or("the image cannot be read on the way")?;
        for at in (0..before.bytes.len()).step_by(512) {
            let is_same = now.bytes[at..at + 512] == before.bytes[at..at + 512];
            if !before.lost[at / 512] && (now.lost[at / 512] || !is_same) {
                return Err(format!("the disk reads otherwise at {at:#x}"));
            }
        }
    }
    let host = SimHost::new(files.clone());
    let undone = undo(&host);
    if bytes(&host.files(), TIP).as_deref() != Some(old) {
        return Err(format!("not as it was: {undone:?}"));
    }
    match undone {
        Err(error) if !is_old => Err(format!("not undone: {error}")),
        _ => Ok(()),
    }
}

#[test]
fn a_crash_while_an_image_is_repaired_or_restored_is_undone_to_the_byte() {
    let only = std::env::var("AVHDX_WORKLOAD").unwrap_or_default();
    let distinct = explore_each(
        all().iter().filter(|trouble| trouble.name.contains(&only)),
        |trouble| trouble.name,
        |trouble| {
            let old = bytes(&trouble.files, TIP).unwrap();
            let before = readable(&trouble.files);
            let host = SimHost::new(trouble.files.clone());
            host.record();
            let (plan, undo_file) = repair(&host, trouble).unwrap();
            let is_wrong = plan.left.iter().any(|left| left.finding.severity < Severity::Info);
            assert!(!plan.steps.is_empty() && !is_wrong, "{}: {plan:#?}", trouble.name);
            assert_eq!(undo_file, Some(path(UNDO)));
            let depth = match is_long() {
                true => Depth { exhaustive: 10, samples: 200, torn: 60 },
                false => Depth { exhaustive: 7, samples: 20, torn: 12 },
            };
            let events = host.events();
            let (one, mut failed) = judge_outcomes(&trouble.files, &events, depth, |files, _| {
                judge(trouble, &old, &before, files)
            });
            // The same while it is undone.
            let repaired = host.files();
            let host = SimHost::new(repaired.clone());
            host.record();
            undo(&host).unwrap();
            assert!(bytes(&host.files(), TIP).unwrap() == old, "{}", trouble.name);
            let unread = Trouble { files: Files::default(), is_smooth: false, ..*trouble };
            let (other, more) = judge_outcomes(&repaired, &host.events(), depth, |files, _| {
                judge(&unread, &old, &before, files)
            });
            failed.extend(more);
            (one + other, failed)
        },
    );
    assert!(!only.is_empty() || distinct >= 300, "{distinct} outcomes");
}

/// A host that fails at any step leaves what is undone, and what another repair completes.
#[test]
fn a_host_that_fails_while_an_image_is_repaired_leaves_what_is_undone() {
    for trouble in all() {
        let old = bytes(&trouble.files, TIP).unwrap();
        for arrived in [Arrived::Nothing, Arrived::Half] {
            let mut failed = 0;
            for n in 0.. {
                let host = SimHost::new(trouble.files.clone());
                host.run_out(n..n + 1, arrived);
                let done = repair(&host, &trouble);
                host.relent();
                let Err(error) = done else { break };
                failed += 1;
                assert_eq!(error.kind(), avhdx::ErrorKind::Io, "{}: {error}", trouble.name);
                let is_old = bytes(&host.files(), TIP).unwrap() == old;
                if error.code() != "repair.write" {
                    assert!(is_old, "{}, {n}: {error}", trouble.name);
                    continue;
                }
                undo(&host).unwrap_or_else(|e| panic!("{}, {n}: {e}", trouble.name));
                assert!(bytes(&host.files(), TIP).unwrap() == old, "{}, {n}", trouble.name);
            }
            assert!(failed > 4, "{}: {failed}", trouble.name);
        }
    }
}
