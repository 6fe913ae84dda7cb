//! A session that a crash ends anywhere, with any of the unflushed changes lost or torn: what is left is sound, what
//! was flushed is there, and everything else is old or new.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use avhdx::{CreateOptions, Disk, Zeroing};
use avhdx_testkit::model::Model;
use avhdx_testkit::outcomes::Explorer;
use avhdx_testkit::rng::pattern;
use avhdx_testkit::sim::{Bytes, FOLDER, SimHost};
use avhdx_testkit::verdict::{Judge, layer, open};
use uuid::Uuid;

use crate::input::Input;

const MIB: u64 = 1 << 20;
const KIB: u64 = 1 << 10;
/// Outcomes that are judged of a record.
const OUTCOMES: u64 = 3;

/// A host with the image that is written to, and its disk.
struct Setup {
    host: SimHost,
    tip: PathBuf,
    disk: Bytes,
    size: u64,
    block_size: u64,
}

pub fn run(input: &mut Input<'_>) {
    let Setup { host, tip, disk, size, block_size } = setup(input);
    let mut model = Model::new(disk, size, block_size);
    host.record();
    let start = host.files();
    let mut parents = Vec::new();
    if tip != base() {
        parents.push(layer(&start, &base()).expect("a sound base"));
    }
    let mut chain = open(&host, &tip, true).unwrap_or_else(|why| panic!("{why}"));
    model.opened(host.mark(), chain.tip().data_write_guid());
    for seed in 1..2 + input.below(10) {
        match input.below(12) {
            0 | 1 => {
                let begun = host.mark();
                chain.flush().expect("a flush");
                model.flushed(begun, host.mark());
            }
            2 => {
                // Another session.
                let begun = host.mark();
                chain.close().expect("a close");
                model.flushed(begun, host.mark());
                drop(chain);
                chain = open(&host, &tip, true).unwrap_or_else(|why| panic!("{why}"));
                model.opened(host.mark(), chain.tip().data_write_guid());
            }
            kind => {
                let (at, len) = range(size, block_size, input);
                let bytes = if kind < 9 { bytes(seed, at, len) } else { vec![0; len as usize] };
                let write = model.begin(host.mark(), at, &bytes);
                let done = match kind {
                    9 => chain.write_zeroes(at..at + len, Zeroing::KeepSpace),
                    10 => chain.write_zeroes(at..at + len, Zeroing::MayUnmap),
                    11 => chain.discard(at..at + len),
                    _ => chain.write_at(&bytes, at),
                };
                done.unwrap_or_else(|error| panic!("{error}"));
                model.done(write, host.mark());
            }
        }
    }
    // As a killed process does.
    std::mem::forget(chain);
    let events = host.events();
    let judge = Judge { tip, parents };
    let segments = model.segments();
    for _ in 0..OUTCOMES {
        let cut = events.len() - input.below(events.len() as u64 + 1) as usize;
        let often = input.below(5);
        let mut fate = |units: usize| {
            if input.below(4) >= often {
                return None;
            }
            Some(match if units > 1 { input.below(6) } else { 0 } {
                3 => {
                    let at = input.below(units as u64) as usize;
                    (0..units).map(|unit| unit < at).collect()
                }
                4 => {
                    let at = input.below(units as u64) as usize;
                    (0..units).map(|unit| unit >= at).collect()
                }
                5 => {
                    let bits = input.any() | 1;
                    (0..units).map(|unit| bits >> (unit % 64) & 1 == 1).collect()
                }
                _ => vec![true; units],
            })
        };
        let left = Explorer::one(start.clone(), &events, cut, &mut fate);
        if let Err(why) = judge.judge(&left, &model.expected(&segments, cut)) {
            panic!("after {cut} of {} events: {why}", events.len());
        }
    }
    host.empty();
}

fn base() -> PathBuf {
    Path::new(FOLDER).join("base.vhdx")
}

fn bytes(seed: u64, at: u64, len: u64) -> Vec<u8> {
    let first = at / 512 * 512;
    let mut bytes = vec![0; ((at + len).next_multiple_of(512) - first) as usize];
    pattern(seed, first, &mut bytes);
    bytes[(at - first) as usize..][..len as usize].to_vec()
}

/// A few bytes to a few blocks.
fn range(size: u64, block_size: u64, input: &mut Input<'_>) -> (u64, u64) {
    let blocks = size.div_ceil(block_size);
    let at = input.below(blocks) * block_size
        + match input.below(4) {
            0 => 0,
            1 => input.below(40) * 512,
            2 => block_size - 4 * KIB,
            _ => input.below(block_size),
        };
    let at = at.min(size - 1);
    let len = match input.below(6) {
        0 => block_size,
        1 => 1 + input.below(1000),
        2 => 64 * KIB + input.below(100 * KIB),
        _ => 512 * (1 + input.below(16)),
    };
    (at, len.min(size - at))
}

fn setup(input: &mut Input<'_>) -> Setup {
    let host = SimHost::showing_stale(input.chance(1, 3));
    let block_size = MIB << input.below(2);
    let size = 4 * MIB - 512 * input.below(3);
    let options = match input.chance(1, 6) {
        true => CreateOptions::fixed(size),
        false => CreateOptions::dynamic(size),
    };
    let create = |options: CreateOptions, path: &Path, id: u128| {
        let options = options.block_size(block_size as u32).disk_id(Uuid::from_u128(7));
        let options = options.write_guids(Uuid::from_u128(id), Uuid::from_u128(id + 1));
        drop(options.create_on(Arc::new(host.clone()), path).expect("a new image"));
    };
    create(options, &base(), 16);
    let mut it =
        Setup { host: host.clone(), tip: base(), disk: Bytes::default(), size, block_size };
    write_before(&mut it, 1000, input);
    if input.chance(1, 2) {
        let chain = open(&host, &it.tip, false).expect("an image");
        let child = CreateOptions::child_of(&chain.tip()).expect("a child");
        drop(chain);
        it.tip = Path::new(FOLDER).join("child.avhdx");
        create(child, &it.tip, 32);
        write_before(&mut it, 2000, input);
    }
    it
}

/// A session before the record.
fn write_before(it: &mut Setup, seed: u64, input: &mut Input<'_>) {
    let count = input.below(3);
    if count == 0 {
        return;
    }
    let chain = open(&it.host, &it.tip, true).expect("an image");
    for n in 0..count {
        let (at, len) = range(it.size, it.block_size, input);
        let bytes = bytes(seed + n, at, len);
        chain.write_at(&bytes, at).expect("a write");
        it.disk.write(at, &bytes);
    }
    chain.close().expect("a close");
}
