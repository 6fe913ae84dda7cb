//! What structures say of the places of blocks, and what follows from all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::space::holding;
use super::{Hit, Known, MIB};

/// More sightings are not kept.
const MOST_SIGHTINGS: usize = 1 << 20;
/// So many structures that agree on a place are one that counts.
const LEAST_SURE: u64 = 2;
/// One structure that contradicts is outweighed by so many that agree.
const OUTWEIGHED: u64 = 8;
/// A claim of one or two structures is no rival of one with so many times as many.
const NO_RIVAL: u64 = 16;
/// So many structures that agree on a place where they cannot be are a copy of the volume.
const COPY: u64 = 8;

/// Structures in a row that say where they lie.
#[derive(Clone, Debug)]
pub(super) struct Sighting {
    file: u64,
    end: u64,
    /// What is added to the place in the file for the one on the disk, if they can be on the disk at all.
    delta: Option<i64>,
    count: u64,
    what: &'static str,
    volume: usize,
    /// Whether a checksum or a number of its own says so.
    strong: bool,
}

/// All sightings.
#[derive(Debug, Default)]
pub(super) struct Sightings {
    all: Vec<Sighting>,
    is_full: bool,
}

/// What is seen.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    pub(super) what: &'static str,
    pub(super) volume: usize,
    pub(super) strong: bool,
}

impl Sightings {
    /// Adds a structure in the file that belongs at a place of the disk; without one, it belongs nowhere.
    pub(super) fn add(&mut self, file: Range<u64>, at: Option<u64>, seen: Seen) {
        let place = at.and_then(|at| i64::try_from(at).ok());
        let delta = place.zip(i64::try_from(file.start).ok()).map(|(at, file)| at - file);
        let Seen { what, volume, strong } = seen;
        if let Some(last) = self.all.last_mut()
            && last.end == file.start
            && (last.delta, last.volume, last.strong) == (delta, volume, strong)
            && last.what == what
            && last.file / MIB == file.start / MIB
        {
            last.end = file.end;
            last.count += 1;
            return;
        }
        self.is_full |= self.all.len() == MOST_SIGHTINGS;
        if !self.is_full {
            let (file, end) = (file.start, file.end);
            self.all.push(Sighting { file, end, delta, count: 1, what, volume, strong });
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.is_full
    }
}

/// A volume, as far as it matters to claims.
#[derive(Clone, Debug)]
pub(super) struct Volume {
    pub(super) name: String,
    pub(super) sure: bool,
    /// What of the disk holds copies of its structures, in order.
    pub(super) copies: Vec<Range<u64>>,
}

impl Volume {
    pub(super) fn new(name: &str, sure: bool) -> Self {
        Self { name: name.to_owned(), sure, copies: Vec::new() }
    }
}

/// What claims are judged by.
pub(super) struct Ground<'a> {
    known: &'a [Range<u64>],
    loose: &'a [Range<u64>],
    size: Option<u64>,
    block: Option<u64>,
    pub(super) volumes: Vec<Volume>,
    /// The first and the last block of a journal in each MiB of the file that has any.
    journal_marks: &'a BTreeMap<u64, (u64, u64)>,
}

/// Bytes that are placed.
#[derive(Clone, Debug)]
pub(super) struct Placed {
    pub(super) disk: u64,
    pub(super) file: u64,
    pub(super) len: u64,
    pub(super) sure: bool,
    fits: u64,
    misfits: u64,
    kinds: BTreeMap<&'static str, u64>,
    volumes: BTreeSet<usize>,
    /// Those whose structures may make it sure.
    strong_volumes: BTreeSet<usize>,
    is_contested: bool,
    is_tied: bool,
    doubted: BTreeSet<usize>,
}

impl<'a> Ground<'a> {
    pub(super) fn new(
        known: &'a Known<'a>,
        loose: &'a [Range<u64>],
        size: Option<u64>,
        journal_marks: &'a BTreeMap<u64, (u64, u64)>,
    ) -> Self {
        let block = known.block_size.map(u64::from);
        let block = block.filter(|block| block.is_power_of_two() && *block >= MIB);
        Self { known: known.ranges, loose, size, block, volumes: Vec::new(), journal_marks }
    }

    fn unit(&self) -> u64 {
        self.block.unwrap_or(MIB)
    }

    /// The block that a structure places, in the file and on the disk.
    fn base(&self, file: u64, delta: i64) -> Option<(u64, u64)> {
        if delta.rem_euclid(MIB as i64) != 0 {
            return None;
        }
        let unit = self.unit();
        let at = file.checked_add_signed(delta)?;
        let (base, disk) = (file.checked_sub(at % unit)?, at - at % unit);
        let is_loose = holding(self.loose, base).is_some_and(|range| range.end - base >= unit);
        let is_known = self.known.iter().any(|range| range.start < disk + unit && disk < range.end);
        let is_inside = self.size.is_none_or(|size| disk < size);
        (is_loose && !is_known && is_inside).then_some((base, disk))
    }

    fn holds_copies(&self, disk: Range<u64>) -> bool {
        self.volumes.iter().any(|volume| {
            let range = holding(&volume.copies, disk.start);
            range.is_some_and(|range| disk.end <= range.end)
        })
    }

    /// Says which volumes are doubted.
    pub(super) fn doubts(&self, placed: &[Placed]) -> Vec<String> {
        let doubted: BTreeSet<usize> =
            placed.iter().flat_map(|placed| placed.doubted.iter().copied()).collect();
        let said = doubted.into_iter().filter_map(|index| self.volumes.get(index)).map(|volume| {
            format!("structures of {} are there twice: what they place is a guess", volume.name)
        });
        said.collect()
    }
}

/// What follows from all that was seen, by the place on the disk.
pub(super) fn resolve(sightings: &Sightings, ground: &Ground<'_>) -> Vec<Placed> {
    let mut all = sightings.all.clone();
    all.sort_by_key(|seen| (seen.file, seen.end));
    let mut bases = BTreeSet::new();
    for seen in &all {
        bases.extend(seen.delta.and_then(|delta| ground.base(seen.file, delta)));
    }
    let mut claims: Vec<Placed> =
        bases.into_iter().filter_map(|(file, disk)| weigh(file, disk, &all, ground)).collect();
    // Those with the most that fits first; others are their rivals.
    claims.sort_by_key(|claim| (std::cmp::Reverse(claim.fits), claim.disk));
    let mut doubted = copies(&all, &claims, ground);
    let (mut accepted, mut by_file, mut by_disk) =
        (Vec::<Placed>::new(), BTreeMap::new(), BTreeMap::new());
    for claim in claims {
        let met: BTreeSet<usize> = meeting(&by_file, claim.file, claim.len)
            .chain(meeting(&by_disk, claim.disk, claim.len))
            .collect();
        for index in &met {
            let other = &mut accepted[*index];
            if claim.fits < LEAST_SURE && claim.fits * NO_RIVAL <= other.fits {
                continue;
            }
            other.is_contested = true;
            other.is_tied |= claim.fits == other.fits;
            if claim.fits >= LEAST_SURE && other.fits >= LEAST_SURE {
                doubted.extend(claim.strong_volumes.intersection(&other.strong_volumes));
            }
        }
        if met.is_empty() {
            by_file.insert(claim.file, (claim.len, accepted.len()));
            by_disk.insert(claim.disk, (claim.len, accepted.len()));
            accepted.push(claim);
        }
    }
    accepted.retain(|claim| !claim.is_tied);
    for claim in &mut accepted {
        claim.doubted = claim.strong_volumes.intersection(&doubted).copied().collect();
        let is_certain = claim.strong_volumes.iter().any(|volume| !doubted.contains(volume));
        claim.sure &= is_certain && !claim.is_contested && !sightings.is_full;
    }
    accepted.sort_by_key(|claim| claim.disk);
    accepted
}

fn meeting(
    by: &BTreeMap<u64, (u64, usize)>,
    start: u64,
    len: u64,
) -> impl Iterator<Item = usize> + '_ {
    // No two that are accepted overlap, so at most one begins before.
    let before = by.range(..start).next_back().filter(move |(at, (held, _))| **at + held > start);
    before.into_iter().chain(by.range(start..start + len)).map(|(_, (_, index))| *index)
}

/// Counts what speaks for a block at this place and what against it; nothing if the claim is not credible.
fn weigh(file: u64, disk: u64, all: &[Sighting], ground: &Ground<'_>) -> Option<Placed> {
    let len = ground.unit();
    let delta = i64::try_from(disk).ok()? - i64::try_from(file).ok()?;
    let from = all.partition_point(|seen| seen.file < file);
    let within: Vec<&Sighting> =
        all[from..].iter().take_while(|seen| seen.file < file + len).collect();
    let on_disk = |at: u64| (at - file) + disk;
    let mut placed = Placed {
        disk,
        file,
        len,
        sure: false,
        fits: 0,
        misfits: 0,
        kinds: BTreeMap::new(),
        volumes: BTreeSet::new(),
        strong_volumes: BTreeSet::new(),
        is_contested: false,
        is_tied: false,
        doubted: BTreeSet::new(),
    };
    let mut strong = 0;
    let mut last_fit = 0;
    let mut fits = Vec::new();
    for seen in within.iter().filter(|seen| seen.delta == Some(delta)) {
        // In a journal, a copy of what lies here by chance says nothing.
        if ground.holds_copies(on_disk(seen.file)..on_disk(seen.end)) {
            continue;
        }
        // Bytes count once, whatever sees something in them.
        if seen.end > last_fit {
            placed.fits += seen.count;
            let volume_is_sure = ground.volumes.get(seen.volume).is_some_and(|it| it.sure);
            if seen.strong && volume_is_sure {
                strong += seen.count;
                placed.strong_volumes.insert(seen.volume);
            }
            last_fit = seen.end;
        }
        fits.push(seen.file..seen.end);
        *placed.kinds.entry(seen.what).or_default() += seen.count;
        placed.volumes.insert(seen.volume);
    }
    let mut last_misfit = 0;
    for seen in within.iter().filter(|seen| seen.delta != Some(delta) && seen.strong) {
        let is_copy = ground.holds_copies(on_disk(seen.file)..on_disk(seen.end));
        let fits_otherwise = fits.partition_point(|fit| fit.end <= seen.file);
        let fits_otherwise = fits.get(fits_otherwise).is_some_and(|fit| fit.start < seen.end);
        if !is_copy && !fits_otherwise && seen.end > last_misfit {
            placed.misfits += seen.count;
            last_misfit = seen.end;
        }
    }
    let is_explained = |mark: u64| ground.holds_copies(on_disk(mark)..on_disk(mark) + 1);
    let mut marks = ground.journal_marks.range(file..file + len);
    let is_marked = marks.any(|(_, (first, last))| !is_explained(*first) || !is_explained(*last));
    if placed.fits == 0 || placed.misfits * OUTWEIGHED > placed.fits || is_marked {
        return None;
    }
    placed.sure = strong >= LEAST_SURE && placed.misfits * OUTWEIGHED <= strong;
    Some(placed)
}

/// The volumes of which structures agree in a place where they cannot be: there is a copy of the volume.
fn copies(all: &[Sighting], claims: &[Placed], ground: &Ground<'_>) -> BTreeSet<usize> {
    let mut by_file: Vec<&Placed> = claims.iter().collect();
    by_file.sort_by_key(|claim| claim.file);
    let is_explained = |seen: &Sighting| {
        // Another volume may have the structure where it is.
        let next = by_file.partition_point(|claim| claim.file <= seen.file);
        let claims = by_file[..next].iter().rev();
        claims.take_while(|claim| claim.file + claim.len > seen.file).any(|claim| {
            let delta = claim.disk as i64 - claim.file as i64;
            let at = seen.file - claim.file + claim.disk;
            let from = all.partition_point(|other| other.file < seen.file & !(MIB - 1));
            let near = all[from..].iter().take_while(|other| other.file < seen.end);
            ground.holds_copies(at..at + 1)
                || near
                    .filter(|other| other.delta == Some(delta))
                    .any(|other| other.end > seen.file)
        })
    };
    let is_bad = |seen: &&Sighting| {
        seen.strong
            && seen.count >= COPY
            && !ground.journal_marks.contains_key(&(seen.file & !(MIB - 1)))
            && !is_explained(seen)
    };
    all.iter().filter(is_bad).map(|seen| seen.volume).collect()
}

/// The hits, of which those are one that follow each other in both places and are of one grade.
pub(super) fn joined(placed: Vec<Placed>, ground: &Ground<'_>) -> Vec<Hit> {
    let mut hits: Vec<Hit> = Vec::new();
    for placed in placed {
        let evidence = said(&placed, ground);
        let Placed { disk, file, len, sure, .. } = placed;
        match hits.last_mut() {
            Some(last)
                if ground.block.is_none()
                    && last.sure == sure
                    && last.disk_offset + last.len == disk
                    && last.file_offset + last.len == file =>
            {
                last.len += len;
            }
            _ => hits.push(Hit { file_offset: file, disk_offset: disk, len, sure, evidence }),
        }
    }
    hits
}

fn said(placed: &Placed, ground: &Ground<'_>) -> String {
    let kinds: Vec<String> = placed
        .kinds
        .iter()
        .map(|(what, count)| match count {
            1 => (*what).to_owned(),
            count => format!("{what} ({count} of them)"),
        })
        .collect();
    let names: Vec<&str> = placed
        .volumes
        .iter()
        .filter_map(|index| ground.volumes.get(*index))
        .map(|volume| &volume.name[..])
        .collect();
    let mut said = format!("{} of {}", kinds.join(", "), names.join(" and "));
    if placed.misfits > 0 {
        said += &format!("; {} contradict", placed.misfits);
    }
    if placed.is_contested {
        said += "; another block claims the place, or this one claims another";
    } else if !placed.doubted.is_empty() {
        said += "; there is a copy of the volume";
    }
    said
}
