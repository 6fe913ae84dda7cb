//! Sound chains that lose structures, ends or layers: what a rescue calls sure is what was there.
//!
//! Payload is left alone, and so are single entries of tables: nothing tells another sound entry from the one that was.

use std::ops::Range;

use avhdx::ops::Rescue;
use avhdx::storage::Host;
use avhdx_testkit::build::Layout;
use avhdx_testkit::rng::Rng;
use avhdx_testkit::sim::Bytes;

use crate::chain::{Sound, sound};
use crate::input::Input;
use crate::judge::judge;
use crate::place::{Place, path};

const MIB: u64 = 1 << 20;
const SECTOR: u64 = 512;

pub fn run(input: &mut Input<'_>) {
    let Sound { files, .. } = sound(false, input);
    let (mut files, layouts): (Vec<Bytes>, Vec<Layout>) = files.into_iter().unzip();
    let place = Place::new(&files);
    let flat =
        place.naive(place.count).expect("sound images").flat(place.count - 1).expect("sound");
    let mut damages = Vec::new();
    for _ in 0..1 + input.below(4) {
        // Usually the tip.
        let n = files.len() - 1 - input.below(files.len() as u64) as usize;
        damages.push((n, damage(&mut files[n], &layouts[n], input)));
    }
    let place = Place::new(&files);
    if place.count > 1 && input.chance(1, 4) {
        let lost = input.below(place.count as u64 - 1) as usize;
        place.host.remove(&path(lost)).expect("a file");
        damages.push((lost, "the whole file"));
    }
    match Rescue::new().options(place.options()).open(path(place.count - 1)) {
        Ok(ruin) => drop(judge(&ruin, &flat, &format!("{damages:?}"))),
        Err(error) => {
            let codes = ["rescue.size-unknown", "rescue.nothing"];
            assert!(codes.contains(&error.code()), "{damages:?}: {error}");
        }
    }
}

/// Damages a file, and says by what.
fn damage(file: &mut Bytes, layout: &Layout, input: &mut Input<'_>) -> &'static str {
    const HEADERS: [Range<u64>; 2] = [64 << 10..128 << 10, 128 << 10..192 << 10];
    const REGIONS: [Range<u64>; 2] = [192 << 10..256 << 10, 256 << 10..320 << 10];
    let mut zero_some = |of: &[Range<u64>; 2], input: &mut Input<'_>| {
        let which = input.below(3);
        let lost = of.iter().zip(1..).filter(|(_, n)| which == 2 || which + 1 == *n);
        lost.for_each(|(range, _)| zero(file, range.clone()));
    };
    match input.below(8) {
        0 => {
            zero_some(&HEADERS, input);
            "headers"
        }
        1 => {
            zero_some(&REGIONS, input);
            "region tables"
        }
        2 => {
            zero(file, 0..MIB);
            "the first MiB"
        }
        3 => {
            let at = layout.get("metadata");
            let len = *input.pick(&[64 << 10, MIB, 4096]);
            zero(file, at.start..at.end.min(at.start + len));
            "metadata"
        }
        4 => {
            noise(file, layout.get("bat"), input);
            "a part of the table"
        }
        5 => {
            file.set_len(input.below(file.len() + 1));
            "the end"
        }
        6 => {
            let of = [0..MIB, layout.get("log"), layout.get("metadata")];
            noise(file, input.pick(&of).clone(), input);
            "a part of the structures"
        }
        _ => {
            let at = layout.get("metadata");
            let start = at.start + input.below(80) * 1024;
            zero(file, start..at.end.min(start + 4096));
            "a part of the metadata"
        }
    }
}

fn zero(file: &mut Bytes, range: Range<u64>) {
    let end = range.end.min(file.len());
    if range.start < end {
        file.write(range.start, &vec![0; (end - range.start) as usize]);
    }
}

/// Overwrites some sectors by chance, mostly close to the start.
fn noise(file: &mut Bytes, range: Range<u64>, input: &mut Input<'_>) {
    let sectors = (range.end - range.start) / SECTOR;
    let near = if input.chance(1, 2) { sectors } else { sectors.min(8) };
    let start = range.start + input.below(near) * SECTOR;
    let end = range.end.min(start + (1 + input.below(16)) * SECTOR).min(file.len());
    if start < end {
        let mut bytes = vec![0; (end - start) as usize];
        Rng::new(input.any()).fill(&mut bytes);
        file.write(start, &bytes);
    }
}
