//! The file systems of the volumes, as far as they are known.

use std::ops::Range;

use super::MIB;
use super::anchors::Anchors;
use super::claims::{Ground, Sightings, Volume};
use super::ext::{self, Ext, Super};
use super::fat::{self, Fat};
use super::ntfs::{self, Boot, Ntfs};
use super::space::Space;
use super::table::Root;

/// A file system has at least this part of its volume, if nothing says which volume it is of.
const LEAST_PART: u64 = 2;

/// The file systems of all volumes.
#[derive(Debug, Default)]
pub(super) struct Volumes {
    /// With the indexes of their volumes.
    ext: Vec<(Ext, usize)>,
    ntfs: Vec<Ntfs>,
    fat: Vec<Fat>,
}

enum Found {
    Ext(Super),
    Ntfs(Boot),
    Fat(Vec<u8>),
}

/// Finds the file system of each volume of the table.
pub(super) fn find(
    space: &Space<'_>,
    root: &Root,
    anchors: &Anchors,
    sightings: &mut Sightings,
    ground: &mut Ground<'_>,
    notes: &mut Vec<String>,
) -> Volumes {
    let mut volumes = Volumes::default();
    for partition in &root.partitions {
        let volume = ground.volumes.len();
        let (found, sure) = match placed(space, partition) {
            Some((found, sure)) => (found, sure && root.sure),
            None => match by_anchors(anchors, partition, root) {
                Some((found, sure)) => (found, sure && root.sure),
                None => continue,
            },
        };
        let (at, kind) = (
            partition.start,
            match &found {
                Found::Ext(_) => "ext",
                Found::Ntfs(_) => "NTFS",
                Found::Fat(_) => "FAT",
            },
        );
        let mut named = Volume::new(&format!("{kind} at byte {at} of the disk"), sure);
        match found {
            Found::Ext(shape) => {
                let copies: Vec<(u64, &Super)> =
                    anchors.ext.iter().map(|(file, copy)| (*file, copy)).collect();
                let ext = Ext::new(space, at, shape, volume, &copies);
                named.sure &= ext.is_certain;
                ext.add_superblocks(space, &copies, sightings);
                volumes.ext.push((ext, volume));
            }
            Found::Ntfs(boot) => match Ntfs::new(space, at, boot, volume, anchors) {
                Some((ntfs, is_certain)) => {
                    named.sure &= is_certain;
                    volumes.ntfs.push(ntfs);
                }
                None => notes.push(format!("the table of files of {} is not found", named.name)),
            },
            Found::Fat(boot) => volumes.fat.extend(Fat::new(at, &boot, volume)),
        }
        ground.volumes.push(named);
    }
    ntfs::add(space, &volumes.ntfs, anchors, sightings);
    volumes.fat.iter().for_each(|fat| fat.add(anchors, sightings));
    volumes
}

fn placed(space: &Space<'_>, partition: &Range<u64>) -> Option<(Found, bool)> {
    let start = partition.start;
    let ext = || ext::at(space, start).map(|(found, sure)| (Found::Ext(found), sure));
    let ntfs = || ntfs::at(space, start).map(|(found, sure)| (Found::Ntfs(found), sure));
    let fat = || fat::at(space, start).map(|(found, sure)| (Found::Fat(found), sure));
    ntfs().or_else(ext).or_else(fat)
}

/// The file system that can lie in the partition by its size and by where its structures lie. It is certain if nothing
/// else is as likely, and if it fills the partition.
fn by_anchors(anchors: &Anchors, partition: &Range<u64>, root: &Root) -> Option<(Found, bool)> {
    let len = partition.end - partition.start;
    let is_even = |at: u64, file: u64| at.wrapping_sub(file).is_multiple_of(MIB);
    let fits = |size: u64| size <= len && size >= len / LEAST_PART;
    let mut kin: Vec<(&Super, usize)> = Vec::new();
    for (file, copy) in &anchors.ext {
        if !fits(copy.len()) || !is_even(partition.start + copy.place(), *file) {
            continue;
        }
        match kin.iter_mut().find(|(other, _)| other.is_kin(copy)) {
            // The first copy is written most often.
            Some((other, count)) => {
                *count += 1;
                if copy.group == 0 {
                    *other = copy;
                }
            }
            None => kin.push((copy, 1)),
        }
    }
    let boots: Vec<&Boot> = anchors
        .ntfs
        .iter()
        .filter(|(file, boot)| {
            let ends = [partition.start, partition.start + boot.size];
            fits(boot.size) && ends.into_iter().any(|at| is_even(at, *file))
        })
        .map(|(_, boot)| boot)
        .collect();
    let is_one = boots.iter().all(|boot| *boot == boots[0]);
    let tables: Vec<&Vec<u8>> = anchors
        .fat
        .iter()
        .filter(|(file, raw)| fat::size(raw).is_some_and(fits) && is_even(partition.start, *file))
        .map(|(_, raw)| raw)
        .collect();
    let is_same = tables.iter().all(|raw| *raw == tables[0]);
    let is_filled = |size: u64| {
        len - size < MIB
            && root.partitions.iter().filter(|it| it.end - it.start == len).count() == 1
    };
    kin.sort_by_key(|(found, count)| std::cmp::Reverse((is_filled(found.len()), *count)));
    match (&kin[..], &boots[..], &tables[..]) {
        ([(found, _)], [], []) => {
            Some((Found::Ext((*found).clone()), found.group == 0 && is_filled(found.len())))
        }
        ([], [boot, ..], []) => {
            let sure = is_one && is_filled(boot.size) && boot.is_of(partition.start);
            Some((Found::Ntfs((*boot).clone()), sure))
        }
        ([], [], [raw, ..]) => Some((Found::Fat((*raw).clone()), false && is_same)),
        ([(found, count), ..], [], _) if *count > 1 => Some((Found::Ext((*found).clone()), false)),
        ([], [boot, ..], _) => Some((Found::Ntfs((*boot).clone()), false)),
        _ => None,
    }
}

impl Volumes {
    /// Looks at loose bytes, which begin at a MiB of the file.
    pub(super) fn look(&mut self, at: u64, bytes: &[u8], sightings: &mut Sightings) {
        self.ext.iter_mut().for_each(|(ext, _)| ext.look(at, bytes, sightings));
    }

    /// Adds what is named by structures that are placed by now.
    pub(super) fn follow(
        &mut self,
        space: &Space<'_>,
        anchors: &Anchors,
        sightings: &mut Sightings,
        ground: &mut Ground<'_>,
    ) {
        for (ext, volume) in &mut self.ext {
            let journal = ext.follow(space, sightings);
            let facts = &mut ground.volumes[*volume];
            match journal {
                Some(journal) => facts.copies = journal,
                // Copies in it could not be told from what they are copies of.
                None => facts.sure = false,
            }
        }
        self.ntfs.iter().for_each(|ntfs| ntfs.follow(space, anchors, sightings));
        self.fat.iter().for_each(|fat| fat.follow(space, anchors, sightings));
    }
}
