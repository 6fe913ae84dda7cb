//! The two states of a volume, and whether a file has the same content in both.

use std::fmt;
use std::sync::Arc;

use avhdx::Disk;

use crate::changed::Changed;
use crate::compare::side::{Side, Unread};
use crate::error::{Error, Result};
use crate::item::{Kind, Piece, Place, Stream};
use crate::tree::{Entry, FileReader, FileSystem, Options, shown};
use crate::volumes::Volumes;

/// Bytes of a file that are compared at once.
const MOST_READ: u64 = 256 << 10;

pub(super) struct Pair {
    before: FileSystem,
    after: FileSystem,
    changed: Changed,
    reads_content: bool,
    /// What was read to find the volumes.
    opening: [u64; 2],
}

/// Whether files differ, in more than their facts.
#[derive(Debug, Default)]
pub(super) struct Content {
    pub(super) is_other: bool,
    pub(super) streams: Vec<Vec<u8>>,
}

/// The bytes of a file at one of the points, none if it has none.
type Stored = Option<Box<dyn Stream>>;

impl Pair {
    pub(super) fn open(
        [before, after]: [Arc<dyn Disk>; 2],
        volume: Option<&str>,
        options: Options,
        changed: Option<&Changed>,
        reads_content: bool,
    ) -> Result<Self, Unread> {
        let open = |side, disk| open(disk, volume, options).map_err(|error| Unread { side, error });
        let (before, first) = open(Side::Before, before)?;
        let (after, second) = open(Side::After, after)?;
        let (start, len) = (before.bytes().start(), before.bytes().len());
        let is_there = (start, len) == (after.bytes().start(), after.bytes().len());
        let within = changed.filter(|_| is_there).map(|changed| {
            let end = start + len;
            let clipped = changed.iter().map(|range| range.start.max(start)..range.end.min(end));
            let clipped = clipped.filter(|range| !range.is_empty());
            Changed::of(clipped.map(|range| range.start - start..range.end - start))
        });
        let framed = within.and_then(|written| {
            let more = before.task(b"", |system| system.reframed(after.system(), &written));
            // What cannot be compared as a whole is compared file by file.
            let reframed = Changed::of(more.ok().flatten()?);
            Some((written, reframed))
        });
        let changed = match framed {
            None => Changed::everything(),
            Some((written, reframed)) => {
                let changed = written.clone().and(reframed.iter().cloned());
                before.bytes().watch(written, reframed, after.bytes().clone());
                changed
            }
        };
        let opening = [first, second];
        Ok(Self { before, after, changed, reads_content, opening })
    }

    fn tree(&self, side: Side) -> &FileSystem {
        match side {
            Side::Before => &self.before,
            Side::After => &self.after,
        }
    }

    pub(super) fn read(&self) -> [u64; 2] {
        let [first, second] = self.opening;
        [first + self.before.bytes().count(), second + self.after.bytes().count()]
    }

    pub(super) fn warnings(&self) -> impl Iterator<Item = (Side, &str)> {
        let of = |side| self.tree(side).warnings().iter().map(move |text| (side, text.as_str()));
        of(Side::Before).chain(of(Side::After))
    }

    /// The error of an entry.
    pub(super) fn unread(&self, side: Side, entry: &Entry, error: Error) -> Unread {
        let error = self.tree(side).named(error, &path(entry));
        Unread { side, error }
    }

    /// Why nothing is known of an entry.
    pub(super) fn problem(&self, side: Side, entry: &Entry) -> Option<Unread> {
        entry.item().facts().err().map(|error| self.unread(side, entry, error))
    }

    pub(super) fn roots(&self) -> Result<(Entry, Entry), Unread> {
        let root = |side| self.tree(side).root().map_err(|error| Unread { side, error });
        Ok((root(Side::Before)?, root(Side::After)?))
    }

    pub(super) fn list(&self, side: Side, folder: &Entry) -> Result<Vec<Entry>, Unread> {
        self.tree(side).read_dir(folder).map_err(|error| Unread { side, error })
    }

    /// Watches from now on whether the first point reads what may have changed.
    pub(super) fn watch(&self) {
        self.before.bytes().take_met();
    }

    /// Whether the first point has read what may be other at the second since then.
    pub(super) fn has_met(&self) -> bool {
        self.before.bytes().take_met() || self.changed.is_everything()
    }

    /// Compares the content of two files of the same kind.
    pub(super) fn content(&self, before: &Entry, after: &Entry) -> Result<Content, Unread> {
        if before.item().node == after.item().node && self.is_untouched(before) {
            return Ok(Content::default());
        }
        let tell = |side, entry: &Entry| {
            let told = self.tree(side).task(&path(entry), |system| {
                let streams = system.streams(entry.item())?;
                let names = streams.into_iter().map(|stream| stream.name).collect::<Vec<_>>();
                Ok((system.nature(entry.item())?, names))
            });
            told.map_err(|error| Unread { side, error })
        };
        let (nature, mut names) = tell(Side::Before, before)?;
        let (other_nature, other_names) = tell(Side::After, after)?;
        let mut content = Content { is_other: nature != other_nature, streams: Vec::new() };
        if before.kind() == Some(Kind::File) {
            content.is_other |= self.differs([before, after], None)?;
        }
        names.extend(other_names);
        names.sort();
        names.dedup();
        for name in names {
            if self.differs([before, after], Some(&name))? {
                content.streams.push(name);
            }
        }
        content.is_other |= !content.streams.is_empty();
        Ok(content)
    }

    /// Whether neither the bytes of the file at the first point, nor what says where they lie, may have changed.
    fn is_untouched(&self, file: &Entry) -> bool {
        if self.changed.is_everything() {
            return false;
        }
        self.watch();
        let is_untouched = self.before.task(&path(file), |system| {
            let item = file.item();
            system.nature(item)?;
            let streams = system.streams(item)?;
            let streams = streams.iter().map(|stream| Some(&stream.name[..]));
            let contents = (file.kind() == Some(Kind::File)).then_some(None);
            for name in contents.into_iter().chain(streams) {
                // What lies in no clusters was read with the facts.
                let Some(mut stored) = system.stored(item, name)? else { continue };
                let (mut at, len) = (0, stored.len());
                while at < len {
                    let piece = stored.piece(at)?;
                    if self.may_differ(&piece, len - at) {
                        return Ok(false);
                    }
                    at += piece.len;
                }
            }
            Ok(!self.has_met())
        });
        // The comparison tells what is wrong.
        is_untouched.unwrap_or(false)
    }

    fn may_differ(&self, piece: &Piece, most: u64) -> bool {
        match &piece.place {
            Place::Zeros | Place::Inside => false,
            Place::At(at) => self.changed.meets(&(*at..at.saturating_add(piece.len.min(most)))),
            Place::Packed(ranges, _) => ranges.iter().any(|range| self.changed.meets(range)),
        }
    }

    /// Whether a file, or one of its streams, has other bytes at the second point.
    fn differs(&self, entries: [&Entry; 2], name: Option<&[u8]>) -> Result<bool, Unread> {
        let [before, after] = entries;
        let stored = |side, entry: &Entry| -> Result<Stored, Unread> {
            let stored =
                self.tree(side).task(&path(entry), |system| system.stored(entry.item(), name));
            stored.map_err(|error| Unread { side, error })
        };
        let (one, other) = (stored(Side::Before, before)?, stored(Side::After, after)?);
        let (mut one, mut other) = match (one, other) {
            (Some(one), Some(other)) => (one, other),
            (one, other) => return Ok(one.is_some() != other.is_some()),
        };
        let len = one.len();
        if len != other.len() {
            return Ok(true);
        }
        let mut files: Option<[FileReader<'_>; 2]> = None;
        let mut at = 0;
        while at < len {
            let piece = |side, stream: &mut Box<dyn Stream>, entry: &Entry| {
                let piece = self.tree(side).task(&path(entry), |_| stream.piece(at));
                piece.map_err(|error| Unread { side, error })
            };
            let pieces =
                [piece(Side::Before, &mut one, before)?, piece(Side::After, &mut other, after)?];
            let same = self.same(&pieces, len - at);
            if same > 0 {
                at += same;
                continue;
            }
            let is_at_hand = pieces.iter().all(|piece| piece.place == Place::Inside);
            if !self.reads_content && !is_at_hand {
                return Ok(true);
            }
            let files = match &mut files {
                Some(files) => files,
                None => {
                    let open = |side, entry| {
                        let file = self.tree(side).open(entry, name);
                        file.map_err(|error| Unread { side, error })
                    };
                    files.insert([open(Side::Before, before)?, open(Side::After, after)?])
                }
            };
            self.before.bytes().look_away();
            let most = (len - at).min(MOST_READ).min(pieces[0].len).min(pieces[1].len);
            let mut bytes = [vec![0; most as usize], vec![0; most as usize]];
            for ((file, bytes), side) in
                files.iter_mut().zip(&mut bytes).zip([Side::Before, Side::After])
            {
                file.read_at(bytes, at).map_err(|error| Unread { side, error })?;
            }
            if bytes[0] != bytes[1] {
                return Ok(true);
            }
            at += most;
        }
        Ok(false)
    }

    /// How many of the first bytes of two pieces are the same without a look.
    fn same(&self, pieces: &[Piece; 2], most: u64) -> u64 {
        let [one, other] = pieces;
        let len = one.len.min(other.len).min(most);
        match (&one.place, &other.place) {
            (Place::Zeros, Place::Zeros) => len,
            (Place::At(at), Place::At(there)) if at == there => {
                let changed = self.changed.first_in(&(*at..at.saturating_add(len)));
                changed.map_or(len, |changed| changed.start - at)
            }
            (Place::Packed(..), Place::Packed(..)) if one.place == other.place => {
                if self.may_differ(one, most) { 0 } else { len }
            }
            _ => 0,
        }
    }
}

impl fmt::Debug for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { before, after, .. } = self;
        f.debug_struct("Pair").field("before", before).field("after", after).finish()
    }
}

fn open(disk: Arc<dyn Disk>, volume: Option<&str>, options: Options) -> Result<(FileSystem, u64)> {
    let volumes = Volumes::of(disk)?;
    let volume = volumes.select(volume)?;
    let tree = volume.open_with(options)?;
    let read = volumes.touched().iter().map(|range| range.end - range.start).sum();
    Ok((tree, read))
}

/// The path of an entry as errors show it.
fn path(entry: &Entry) -> Vec<u8> {
    shown(entry.path())
}
