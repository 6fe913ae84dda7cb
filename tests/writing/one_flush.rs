//! How many flushes of the file a flush of the disk costs, counted on a host that records every call.
//!
//! Where new blocks expose nothing but zeros, payload and log entry become durable together.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::sim::{Arrived, Event, FOLDER, Refusal, SimHost, Step};
use avhdx::ops::{Checkpoint, Merge};
use avhdx::{CreateOptions, DiffChain, Disk, ErrorKind, OneFlush, OpenOptions, Zeroing};
use avhdx_testkit::rng::Rng;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Flushes and changes of the length of one file, and how often its log began again at its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Cost {
    flushes: usize,
    growths: usize,
    laps: usize,
}

/// A chain open for writing on a host that records.
struct Watched {
    host: SimHost,
    tip: PathBuf,
    chain: DiffChain,
}

/// What a parent holds at an offset: 4 KiB of data.
type Held<'a> = &'a [u64];

impl Watched {
    /// A dynamic disk; or a child of a child that holds data at these offsets, of an empty disk.
    fn new(host: &SimHost, block: u32, parent: Option<Held<'_>>, when: OneFlush) -> Self {
        let path = |name: &str| Path::new(FOLDER).join(name);
        let on = || Arc::new(host.clone());
        let options = CreateOptions::dynamic(4 * GIB).block_size(block);
        let base = options.create_on(on(), path("base.vhdx")).unwrap();
        let mut tip = path("base.vhdx");
        if let Some(held) = parent {
            let child = |of| CreateOptions::child_of(of).unwrap().block_size(block);
            let middle = child(&base).create_on(on(), path("middle.avhdx")).unwrap();
            for at in held {
                middle.write_at(&[1; 4096], *at).unwrap();
            }
            middle.close().unwrap();
            tip = path("child.avhdx");
            drop(child(&middle).create_on(on(), &tip).unwrap());
        }
        drop(base);
        let options = OpenOptions::new().host(on()).writable(true).one_flush(when);
        let chain = options.open(&tip).unwrap();
        host.record();
        Self { host: host.clone(), tip, chain }
    }

    fn write(&self, at: u64, len: u64) {
        let mut bytes = vec![0; len as usize];
        Rng::new(at | 1).fill(&mut bytes);
        self.chain.write_at(&bytes, at).unwrap();
    }

    fn flush(&self) {
        self.chain.flush().unwrap();
    }

    fn cost(&self, what: impl FnOnce()) -> Cost {
        let from = self.host.mark();
        what();
        let file = self.host.files().names[&self.tip];
        let events = &self.host.events()[from..];
        let count = |is: &dyn Fn(&Event) -> bool| events.iter().filter(|event| is(event)).count();
        let entries = events.iter().filter_map(|event| match event {
            Event::Write(f, chunk) if *f == file && chunk.data.starts_with(b"loge") => {
                Some(chunk.at)
            }
            _ => None,
        });
        let entries: Vec<u64> = entries.collect();
        Cost {
            laps: entries.windows(2).filter(|pair| pair[1] < pair[0]).count(),
            flushes: count(&|event| matches!(event, Event::FlushStart(f) if *f == file)),
            growths: count(&|event| matches!(event, Event::SetLen(f, _) if *f == file)),
        }
    }

    /// The cost of 4 KiB in each of these blocks, each flushed.
    fn cost_of_blocks(&self, blocks: impl IntoIterator<Item = u64>, block: u32) -> Cost {
        self.cost(|| {
            for number in blocks {
                self.write(number * u64::from(block) + 12 * KIB, 4 * KIB);
                self.flush();
            }
        })
    }
}

fn zeros() -> SimHost {
    SimHost::default()
}

/// The session has begun, and a flush of growth has made room durable.
fn started(watched: &Watched) {
    watched.write(4 * GIB - MIB, 512);
    watched.flush();
}

#[test]
fn fresh_blocks_over_zeros_cost_one_flush_and_one_more_for_each_growth() {
    for block in [1 << 20, 2 << 20] {
        for parent in [None, Some(&[][..])] {
            let disk = Watched::new(&zeros(), block, parent, OneFlush::ByHost);
            started(&disk);
            let cost = disk.cost_of_blocks((0..400).rev(), block);
            let what = format!("{block}, {parent:?}: {cost:?}");
            // One flush may be for both.
            let flushes = 400 + cost.growths..=400 + cost.growths + cost.laps;
            assert!(flushes.contains(&cost.flushes), "{what}");
            assert!(cost.growths > 0 && cost.laps > 0, "{what}");
            assert!(cost.growths + cost.laps <= 400 / 20, "{what}");
            // More sectors of blocks that are there.
            let cost = disk.cost(|| {
                for i in 0..100 {
                    disk.write(i * u64::from(block) + 64 * KIB + i * 512, 8 * KIB);
                    disk.flush();
                }
            });
            assert_eq!((cost.flushes - cost.laps, cost.growths), (100, 0), "{what}");
            assert_eq!(disk.cost(|| disk.flush()), Cost::default(), "{what}");
        }
    }
}

/// The file grows by 64 MiB, or by a block.
#[test]
fn larger_blocks_grow_the_file_more_often() {
    for (block, growths) in [(8 << 20, 5), (32 << 20, 20), (64 << 20, 40), (256 << 20, 10)] {
        let disk = Watched::new(&zeros(), block, None, OneFlush::ByHost);
        started(&disk);
        let blocks = if block > 64 << 20 { 10 } else { 40 };
        let cost = disk.cost_of_blocks(0..blocks, block);
        assert_eq!(cost.flushes as u64, blocks + cost.growths as u64, "{block}");
        assert!(cost.growths.abs_diff(growths) <= 1, "{block}: {cost:?}");
    }
}

#[test]
fn blocks_over_data_cost_two_flushes() {
    let held: Vec<u64> = (0..100).map(|block| block * MIB + 12 * KIB).collect();
    let disk = Watched::new(&zeros(), 1 << 20, Some(&held), OneFlush::ByHost);
    started(&disk);
    assert_eq!(disk.cost_of_blocks(0..50, 1 << 20).flushes, 100);
    // Beside the parent's data: sectors that were zeros.
    let cost = disk.cost(|| {
        for block in 50..90 {
            disk.write(block * MIB + 100 * KIB, 4 * KIB);
            disk.flush();
        }
    });
    assert_eq!(cost.flushes, 40 + cost.growths + cost.laps);
    // The rest of the block, as a part of one write: one sector of data is enough.
    for (at, flushes) in [(90 * MIB, 2), (91 * MIB, 2)] {
        let cost = disk.cost(|| {
            disk.write(at, MIB);
            disk.flush();
        });
        assert_eq!(cost.flushes, flushes, "a whole block over a parent with data");
    }
    let cost = disk.cost(|| {
        disk.write(200 * MIB, MIB);
        disk.flush();
    });
    assert_eq!((cost.flushes, cost.growths), (1, 0), "a whole block over zeros");
}

#[test]
fn one_change_that_needs_its_payload_first_makes_it_two_flushes() {
    let disk = Watched::new(&zeros(), 1 << 20, Some(&[8 * MIB]), OneFlush::ByHost);
    started(&disk);
    // The one that needs it is not the last.
    let both = |first: u64, second: u64| {
        disk.cost(|| {
            disk.write(first, 4 * KIB);
            disk.write(second, 4 * KIB);
            disk.flush();
        })
    };
    assert_eq!(both(8 * MIB, MIB).flushes, 2);
    assert_eq!(both(2 * MIB, 3 * MIB).flushes, 1, "only that one commit");
    // Space that was another block's.
    disk.chain.discard(2 * MIB..3 * MIB).unwrap();
    disk.flush();
    let flushes: Vec<usize> =
        (0..4).map(|i| both((20 + i) * MIB, MIB + (i + 1) * 64 * KIB).flushes).collect();
    assert_eq!(flushes, [2, 1, 1, 1]);
}

#[test]
fn a_failed_write_may_have_left_something_in_its_space() {
    let disk = Watched::new(&zeros(), 1 << 20, Some(&[]), OneFlush::ByHost);
    started(&disk);
    let flushes = |at: u64| {
        let cost = disk.cost(|| {
            disk.write(at, 4 * KIB);
            disk.flush();
        });
        cost.flushes
    };
    assert_eq!((flushes(MIB), flushes(MIB + 8 * KIB)), (1, 1));
    let refusal = Refusal { code: 5, arrived: Arrived::Half };
    disk.host.refuse(move |_, step| matches!(step, Step::Write { .. }).then_some(refusal));
    disk.chain.write_at(&[7; 4096], MIB + 64 * KIB).unwrap_err();
    disk.host.relent();
    assert_eq!(flushes(MIB + 64 * KIB), 2);
    assert_eq!(flushes(MIB + 96 * KIB), 2, "the whole block is doubtful");
    assert_eq!(flushes(2 * MIB), 1, "and no other");
}

#[test]
fn discards_cost_one_flush_on_any_host() {
    for when in [OneFlush::ByHost, OneFlush::Never] {
        let disk = Watched::new(&zeros(), 1 << 20, Some(&[0, MIB, 2 * MIB]), when);
        started(&disk);
        for i in 0..3 {
            let cost = disk.cost(|| {
                disk.chain.write_zeroes(i * MIB..(i + 1) * MIB, Zeroing::MayUnmap).unwrap();
                disk.flush();
            });
            assert_eq!(cost, Cost { flushes: 1, growths: 0, laps: 0 });
        }
    }
}

#[test]
fn a_host_that_may_show_stale_bytes_gets_two_flushes() {
    let disk = Watched::new(&SimHost::showing_stale(true), 1 << 20, None, OneFlush::ByHost);
    started(&disk);
    assert_eq!(disk.cost_of_blocks(0..40, 1 << 20).flushes, 80);
}

#[test]
fn the_caller_may_say_otherwise_than_the_host() {
    let disk = Watched::new(&SimHost::showing_stale(true), 1 << 20, None, OneFlush::Always);
    started(&disk);
    assert_eq!(disk.cost_of_blocks(0..40, 1 << 20), Cost { flushes: 40, growths: 0, laps: 0 });
    let disk = Watched::new(&zeros(), 1 << 20, None, OneFlush::Never);
    started(&disk);
    assert_eq!(disk.cost_of_blocks(0..40, 1 << 20).flushes, 80);
}

#[test]
fn what_the_caller_said_holds_after_a_checkpoint_and_a_merge() {
    for (when, flushes) in [(OneFlush::Never, 2), (OneFlush::Always, 1)] {
        let mut disk = Watched::new(&SimHost::showing_stale(true), 1 << 20, None, when);
        started(&disk);
        let child = Path::new(FOLDER).join("next.avhdx");
        Checkpoint::new().path(&child).run(&disk.chain).unwrap();
        let base = std::mem::replace(&mut disk.tip, child);
        started(&disk);
        disk.write(40 * MIB, 512);
        disk.flush();
        let cost = |disk: &Watched, at| {
            let cost = disk.cost(|| {
                disk.write(at, 4 * KIB);
                disk.flush();
            });
            cost.flushes
        };
        assert_eq!(cost(&disk, 50 * MIB), flushes, "{when:?}, after a checkpoint");
        let merged = disk.chain.layers()[0].id;
        Merge::new(merged).run(&disk.chain).unwrap();
        disk.tip = base;
        started(&disk);
        disk.write(60 * MIB, 512);
        disk.flush();
        assert_eq!(cost(&disk, 70 * MIB), flushes, "{when:?}, after a merge");
    }
}

#[test]
fn sessions_that_are_killed_grow_a_file_no_further_than_its_disk_needs() {
    let host = zeros();
    let path = Path::new(FOLDER).join("killed.vhdx");
    let options = CreateOptions::dynamic(3 * MIB).block_size(1 << 20);
    drop(options.create_on(Arc::new(host.clone()), &path).unwrap());
    let len = || host.files().file(&path).unwrap().len();
    let before = len();
    for block in [0, 1, 1, 2, 0, 1, 2] {
        let options = OpenOptions::new().host(Arc::new(host.clone())).writable(true);
        let chain = options.open(&path).unwrap();
        chain.write_at(&[7; 512], block * MIB).unwrap();
        chain.flush().unwrap();
        std::mem::forget(chain);
    }
    // Each of the three that took new space left what it had grown by beyond the claims of its time.
    assert!(len() < before + 3 * 3 * MIB, "{} MiB more", (len() - before) / MIB);
}

#[test]
fn growth_that_was_not_needed_is_cut_at_close() {
    let disk = Watched::new(&zeros(), 1 << 20, None, OneFlush::ByHost);
    let len = |disk: &Watched| disk.host.files().file(&disk.tip).unwrap().len();
    let before = len(&disk);
    disk.write(0, 4 * KIB);
    disk.flush();
    let slack = len(&disk) - before;
    assert!((MIB + 1..=64 * MIB).contains(&slack), "{slack}");
    disk.chain.close().unwrap();
    assert_eq!(len(&disk), before + MIB);
    // No further than the disk is large.
    let small = CreateOptions::dynamic(3 * MIB).block_size(1 << 20);
    let path = Path::new(FOLDER).join("small.vhdx");
    let small = small.create_on(Arc::new(disk.host.clone()), &path).unwrap();
    let len = || disk.host.files().file(&path).unwrap().len();
    let before = len();
    small.write_at(&[1; 512], 0).unwrap();
    assert_eq!(len(), before + 3 * MIB);
}

#[test]
fn a_session_begins_with_two_flushes_where_no_header_names_a_log() {
    let disk = Watched::new(&zeros(), 1 << 20, None, OneFlush::ByHost);
    // An entry before its log is named, a header before the first change. The second header is
    // durable with the next flush.
    assert_eq!(disk.cost(|| disk.write(0, 512)).flushes, 2);
    assert_eq!(disk.cost(|| disk.flush()).flushes, 2, "growth");
    disk.chain.close().unwrap();
    assert_eq!(disk.cost(|| disk.write(0, 512)).flushes, 2);
    disk.flush();
}

/// The file has grown ahead; what it is cut to at the end must not be longer than what is there.
#[test]
fn a_file_that_another_cut_short_is_not_made_longer_at_the_close() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.vhdx");
    drop(CreateOptions::dynamic(64 * MIB).block_size(1 << 20).create(&path).unwrap());
    let options = OpenOptions::new().writable(true).one_flush(OneFlush::Always);
    let chain = options.open(&path).unwrap();
    for block in 0..4 {
        chain.write_at(&[7; 4096], block * MIB).unwrap();
    }
    chain.flush().unwrap();
    let needed = avhdx_testkit::naive::Layer::open(&path).unwrap().needed_length();
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    assert!(file.metadata().unwrap().len() > needed, "it grew ahead");
    file.set_len(needed - MIB).unwrap();
    drop(chain.close());
    // Nor does another session of the same writer take it for what it was.
    let error = chain.write_at(&[7; 4096], 9 * MIB).unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::InUse, "session.changed"));
    drop(chain);
    assert_eq!(file.metadata().unwrap().len(), needed - MIB);
    let chain = OpenOptions::new().open(&path).unwrap();
    chain.read_at(&mut [0; 512], 3 * MIB).unwrap_err();
}
