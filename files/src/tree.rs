//! The tree of a file system: paths, walks and the bytes of files.

use std::collections::HashSet;
use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use crate::boundary::{Bytes, guard};
use crate::content::Content;
use crate::error::{Error, ErrorKind, Result};
use crate::ext::Ext;
use crate::fat::Fat;
use crate::item::{Facts, Item, Kind, Node, Place, Stream, StreamInfo, System, Times};
use crate::ntfs::Ntfs;

/// The most links that a path leads through.
const MOST_LINKS: usize = 40;
/// The most folders within each other.
pub(crate) const MOST_DEPTH: usize = 256;
/// The most entries of a walk.
pub(crate) const MOST_ENTRIES: u64 = 1 << 28;
/// The most names that a walk has in memory: those left in all the folders on the way.
const MOST_HELD: usize = 1 << 21;
/// The most bytes of a path.
pub(crate) const MOST_PATH: usize = 64 << 10;

/// How a file system is opened.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct Options {
    /// Show the files in which NTFS keeps itself, such as `$MFT`.
    pub system: bool,
    /// Record which bytes of the disk are read.
    pub record: bool,
}

impl Options {
    /// Sets whether the files are shown in which NTFS keeps itself, such as `$MFT`.
    #[must_use]
    pub fn system(mut self, yes: bool) -> Self {
        self.system = yes;
        self
    }

    /// Sets whether [`FileSystem::touched`] tells which bytes of the disk were read.
    #[must_use]
    pub fn record(mut self, yes: bool) -> Self {
        self.record = yes;
        self
    }
}

/// A file system of a volume, for reading. Open one for each thread.
pub struct FileSystem {
    system: Box<dyn System>,
    bytes: Bytes,
    volume: String,
    /// Why none of its space may be called free, whatever it says.
    doubt: Option<String>,
}

/// A file, folder or link, at a path.
#[derive(Debug)]
pub struct Entry {
    /// The path of the folder that it lies in, which all in the folder share: paths are long where folders are deep.
    above: Arc<[u8]>,
    /// The whole path, once somebody asks for it.
    path: OnceLock<Vec<u8>>,
    item: Item,
}

/// The bytes of a file, or of one of its streams.
pub struct FileReader<'t> {
    tree: &'t FileSystem,
    path: Vec<u8>,
    stream: Box<dyn Stream>,
    position: u64,
}

/// What lies in a folder and below. Made by [`FileSystem::walk`].
#[derive(Debug)]
pub struct Walk<'t> {
    tree: &'t FileSystem,
    /// What is left of each folder on the way, the innermost last.
    levels: Vec<std::vec::IntoIter<Entry>>,
    /// The folders so far: each lies in one other.
    seen: HashSet<Node>,
    /// The folder to go into next.
    ahead: Option<Entry>,
    count: u64,
    /// How many entries are left in all levels.
    held: usize,
}

impl FileSystem {
    pub(crate) fn of(
        bytes: Bytes,
        content: Content,
        options: Options,
        volume: &str,
        doubt: Option<String>,
    ) -> Result<Self> {
        if options.record {
            bytes.record();
        }
        let system = guard(|| {
            Ok(match content {
                Content::Fat => Box::new(Fat::open(bytes.clone())?) as Box<dyn System>,
                Content::Ntfs => Box::new(Ntfs::open(bytes.clone(), options.system)?),
                _ => Box::new(Ext::open(bytes.clone())?),
            })
        });
        Ok(Self { system: system?, bytes, volume: volume.to_owned(), doubt })
    }

    /// The kind of file system, such as `NTFS`, `FAT32` or `ext4`.
    pub fn kind(&self) -> &str {
        self.system.about().kind
    }

    /// The label.
    pub fn label(&self) -> Option<&str> {
        self.system.about().label.as_deref()
    }

    /// The identity: a GUID, or a serial number in hexadecimal digits.
    pub fn id(&self) -> Option<&str> {
        self.system.about().id.as_deref()
    }

    /// What is noteworthy although the file system is read, such as changes that wait in its journal.
    pub fn warnings(&self) -> &[String] {
        &self.system.about().warnings
    }

    /// The folder at the top.
    ///
    /// # Errors
    /// As for [`lookup`](Self::lookup).
    pub fn root(&self) -> Result<Entry> {
        let item = self.task(b"/", |system| system.root())?;
        Ok(Entry::of(Arc::from([]), item))
    }

    /// Finds a file by its path from the top. `/` separates names, on FAT and NTFS `\` too. Names are equal as the file
    /// system has it. Links on the way are followed within the volume; the last name is not.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if there is none; [`ErrorKind::Damaged`] if the file system breaks a rule of its format
    /// on the way; [`ErrorKind::Unsupported`] if a link on the way leads elsewhere; [`ErrorKind::Disk`] if the disk
    /// cannot be read.
    pub fn lookup(&self, path: &[u8]) -> Result<Entry> {
        self.find(path, false)
    }

    /// Like [`lookup`](Self::lookup), and follows the last name too if it is a link.
    ///
    /// # Errors
    /// As for [`lookup`](Self::lookup).
    pub fn resolve(&self, path: &[u8]) -> Result<Entry> {
        self.find(path, true)
    }

    fn find(&self, path: &[u8], to_the_end: bool) -> Result<Entry> {
        let mut way = vec![self.root()?];
        let mut names = self.names(path);
        names.reverse();
        let mut links = 0;
        while let Some(name) = names.pop() {
            if name == b".." {
                if way.len() > 1 {
                    way.pop();
                }
                continue;
            }
            let Some(folder) = way.last() else { break };
            if folder.kind() != Some(Kind::Folder) {
                return Err(self.not_a_folder(folder));
            }
            let found = self.child(folder, &name)?;
            let Some(found) = found else {
                let path = folder.join(&name);
                let message = format!("there is no {:?} here", String::from_utf8_lossy(&name));
                let error = Error::new(ErrorKind::NotFound, "files.not-found", message);
                return Err(error.in_volume(&self.volume).at_path(&shown(&path)));
            };
            if found.kind() != Some(Kind::Link) || names.is_empty() && !to_the_end {
                way.push(found);
                continue;
            }
            links += 1;
            let target = self.target(&found)?;
            let target = self.within_volume(target).filter(|_| links <= MOST_LINKS);
            let Some(target) = target else {
                let leads = String::from_utf8_lossy(&self.target(&found)?).into_owned();
                let message = match links > MOST_LINKS {
                    true => format!("the path leads through more than {MOST_LINKS} links"),
                    false => format!("this is a link to {leads:?}, which is not in this volume"),
                };
                let error = Error::unsupported("files.link", message);
                return Err(error.in_volume(&self.volume).at_path(&shown(found.path())));
            };
            if self.is_separator(target.first()) {
                way.truncate(1);
            }
            names.extend(self.names(&target).into_iter().rev());
        }
        way.pop().ok_or_else(|| Error::damaged("files.root", "there is no folder at the top"))
    }

    /// The target, if it may lie in this volume.
    fn within_volume(&self, target: Vec<u8>) -> Option<Vec<u8>> {
        let has_drive = self.system.about().has_backslash
            && (target.contains(&b':') || target.starts_with(br"\\"));
        (!has_drive && target.len() <= MOST_PATH).then_some(target)
    }

    fn child(&self, folder: &Entry, name: &[u8]) -> Result<Option<Entry>> {
        let path = folder.join(name);
        let item = self.task(&shown(&path), |system| system.child(&folder.item, name))?;
        // The name as the folder has it.
        Ok(item.map(|item| Entry::of(folder.path().into(), item)))
    }

    fn is_separator(&self, byte: Option<&u8>) -> bool {
        match byte {
            Some(b'/') => true,
            Some(b'\\') => self.system.about().has_backslash,
            _ => false,
        }
    }

    fn names(&self, path: &[u8]) -> Vec<Vec<u8>> {
        let names = path.split(|byte| self.is_separator(Some(byte)));
        names.filter(|name| !matches!(name, [] | [b'.'])).map(<[u8]>::to_vec).collect()
    }

    /// What a folder holds, sorted by name. An entry whose facts cannot be read is in the list, with its
    /// [`problem`](Entry::problem).
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if it is no folder; and as for [`lookup`](Self::lookup).
    pub fn read_dir(&self, folder: &Entry) -> Result<Vec<Entry>> {
        if folder.kind().is_some_and(|kind| kind != Kind::Folder) {
            return Err(self.not_a_folder(folder));
        }
        let items = self.task(&shown(folder.path()), |system| {
            folder.item.facts()?.check_readable()?;
            system.list(&folder.item)
        })?;
        let above: Arc<[u8]> = folder.path().into();
        let entry = |item: Item| Entry::of(Arc::clone(&above), item);
        let mut entries: Vec<Entry> = items.into_iter().map(entry).collect();
        entries.sort_by(|a, b| a.item.name.cmp(&b.item.name));
        Ok(entries)
    }

    fn not_a_folder(&self, entry: &Entry) -> Error {
        let kind = entry.kind().map_or("unknown".into(), |kind| kind.to_string());
        let message = format!("this is no folder: found {kind}");
        Error::new(ErrorKind::InvalidInput, "files.not-folder", message)
            .in_volume(&self.volume)
            .at_path(&shown(entry.path()))
    }

    /// Lists what lies in a folder and below, each folder before what it holds. What cannot be read is an error in its
    /// place, and the walk goes on.
    pub fn walk(&self, folder: &Entry) -> Walk<'_> {
        let (levels, seen, ahead) = (Vec::new(), HashSet::new(), Some(folder.again()));
        Walk { tree: self, levels, seen, ahead, count: 0, held: 0 }
    }

    /// The streams of a file besides its contents, with their sizes: alternate data streams of NTFS.
    ///
    /// # Errors
    /// As for [`lookup`](Self::lookup).
    pub fn streams(&self, file: &Entry) -> Result<Vec<StreamInfo>> {
        self.task(&shown(file.path()), |system| system.streams(&file.item))
    }

    /// Opens a file, or one of its streams, to be read.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if it is a folder, a link or a device; [`ErrorKind::Unsupported`] if its bytes are
    /// stored in a way that is not read, such as encrypted ones; [`ErrorKind::NotFound`] if it has no such stream; and
    /// as for [`lookup`](Self::lookup).
    pub fn open(&self, file: &Entry, stream: Option<&[u8]>) -> Result<FileReader<'_>> {
        let opened = self.task(&shown(file.path()), |system| {
            let facts = file.item.facts()?;
            if stream.is_none() && facts.kind != Kind::File {
                let message = format!("this is no file: found {}", facts.kind);
                return Err(Error::new(ErrorKind::InvalidInput, "files.not-file", message));
            }
            if stream.is_none() {
                facts.check_readable()?;
            }
            system.open(&file.item, stream)
        })?;
        Ok(FileReader { tree: self, path: file.path().to_vec(), stream: opened, position: 0 })
    }

    /// Where a link leads, as it is stored.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if it is no link; and as for [`lookup`](Self::lookup).
    pub fn target(&self, link: &Entry) -> Result<Vec<u8>> {
        self.task(&shown(link.path()), |system| match link.item.facts()?.kind {
            Kind::Link => system.target(&link.item),
            kind => {
                let message = format!("this is no link: found {kind}");
                Err(Error::new(ErrorKind::InvalidInput, "files.not-link", message))
            }
        })
    }

    /// Whether a file, or one of its streams, has bytes in one of these ranges of the volume, which are in order and do not
    /// overlap. What lies within the record that describes the file does not count. Reads where the bytes lie, and none
    /// of them.
    ///
    /// # Errors
    /// As for [`lookup`](Self::lookup).
    pub fn lies_in(
        &self,
        file: &Entry,
        stream: Option<&[u8]>,
        ranges: &[Range<u64>],
    ) -> Result<bool> {
        let meets = |range: &Range<u64>| {
            let next = ranges.partition_point(|own| own.end <= range.start);
            ranges.get(next).is_some_and(|own| own.start < range.end)
        };
        self.task(&shown(file.path()), |system| {
            let Some(mut stored) = system.stored(&file.item, stream)? else { return Ok(false) };
            let (mut at, len) = (0, stored.len());
            while at < len {
                let piece = stored.piece(at)?;
                let most = piece.len.min(len - at);
                let is_hit = match &piece.place {
                    Place::Zeros | Place::Inside => false,
                    Place::At(from) => meets(&(*from..from.saturating_add(most))),
                    Place::Packed(parts, _) => parts.iter().any(meets),
                };
                if is_hit {
                    return Ok(true);
                }
                at += piece.len;
            }
            Ok(false)
        })
    }

    /// How many bytes of the volume the file system gives out, to files and to what it keeps itself.
    pub fn capacity(&self) -> u64 {
        self.system.capacity()
    }

    /// Passes on the ranges of the disk, in bytes and in order, that the file system gives out and nothing uses; returns
    /// how many bytes they have. What waits in a log of NTFS may yet use some.
    ///
    /// # Errors
    /// As for [`lookup`](Self::lookup).
    pub fn free(&self, each: &mut dyn FnMut(Range<u64>)) -> Result<u64> {
        let (start, end) = (self.bytes.start(), self.bytes.start() + self.bytes.len());
        let mut sum = 0;
        self.task(b"", |system| {
            system.free(&mut |range| {
                // A file system may have more than the volume.
                let range = (start + range.start).min(end)..(start + range.end).min(end);
                sum += range.end - range.start;
                if !range.is_empty() {
                    each(range);
                }
            })
        })?;
        Ok(sum)
    }

    /// Refuses a file system of which it is not certain which space nothing uses, by what it and its surroundings say:
    /// it was not closed cleanly, as while it is in use; Windows hibernates on it, or keeps shadow copies in it; or its
    /// partition shares bytes with something else. Reads little.
    ///
    /// # Errors
    /// [`ErrorKind::Unclean`], with the reason; and as for [`lookup`](Self::lookup).
    pub fn check_clean(&self) -> Result<()> {
        self.task(b"", |system| {
            if let Some(doubt) = &self.doubt {
                return Err(Error::unclean("unclean.doubtful", doubt.clone()));
            }
            system.about().check_whole()?;
            system.check_clean()
        })
    }

    /// Like [`free`](Self::free), for those who give the space away: only of a file system that is
    /// [clean](Self::check_clean), and after it was checked that no file and nothing that the file system keeps itself
    /// lies in what its bitmaps or tables call free. That reads where every file lies, with memory that does not grow
    /// with their number. Passes nothing on before all is checked. Nobody may write to the disk meanwhile.
    ///
    /// # Errors
    /// [`ErrorKind::Unclean`], with the reason; [`ErrorKind::Damaged`] if anything lies in free space, or if it cannot be
    /// told where a file lies; and as for [`lookup`](Self::lookup).
    pub fn verified_free(&self, each: &mut dyn FnMut(Range<u64>)) -> Result<u64> {
        self.check_clean()?;
        self.bytes.renew_for_all();
        let done = guard(|| self.system.check_free());
        done.map_err(|error| error.in_volume(&self.volume))?;
        self.free(each)
    }

    /// The ranges of the disk that were read so far, in order, if the file system was opened with
    /// [`Options::record`]: as long as their bytes are the same, the same calls answer the same.
    pub fn touched(&self) -> Vec<Range<u64>> {
        self.bytes.touched()
    }

    /// What it reads through.
    pub(crate) fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    pub(crate) fn system(&self) -> &dyn System {
        &*self.system
    }

    /// Runs a task of the reader within the boundary.
    pub(crate) fn task<T>(
        &self,
        path: &[u8],
        run: impl FnOnce(&dyn System) -> Result<T>,
    ) -> Result<T> {
        self.bytes.renew();
        let done = guard(|| run(&*self.system));
        done.map_err(|error| self.named(error, path))
    }

    /// Names the volume and the path that an error is about.
    pub(crate) fn named(&self, error: Error, path: &[u8]) -> Error {
        error.in_volume(&self.volume).at_path(path)
    }
}

impl fmt::Debug for FileSystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let about = self.system.about();
        f.debug_struct("FileSystem").field("about", about).field("bytes", &self.bytes).finish()
    }
}

impl Entry {
    fn of(above: Arc<[u8]>, item: Item) -> Self {
        Self { above, path: OnceLock::new(), item }
    }

    /// The same once more.
    fn again(&self) -> Self {
        Self::of(Arc::clone(&self.above), self.item.again())
    }

    pub(crate) fn item(&self) -> &Item {
        &self.item
    }

    /// The same file at another path.
    pub(crate) fn at(&self, path: Vec<u8>) -> Self {
        Self { above: Arc::from([]), path: OnceLock::from(path), item: self.item.again() }
    }

    /// The path from the top, as bytes with `/` between names; empty at the top. Names of FAT and NTFS are UTF-8, in
    /// which half surrogate pairs keep their number.
    pub fn path(&self) -> &[u8] {
        self.path.get_or_init(|| match (&self.above[..], &self.item.name[..]) {
            ([], name) => name.to_vec(),
            (above, name) => [above, b"/", name].concat(),
        })
    }

    /// The last name of the path.
    pub fn name(&self) -> &[u8] {
        &self.item.name
    }

    /// What it is; `None` if that cannot be read.
    pub fn kind(&self) -> Option<Kind> {
        self.known().map(|facts| facts.kind)
    }

    /// The number of bytes of a file; 0 for others.
    pub fn size(&self) -> u64 {
        self.known().map_or(0, |facts| facts.size)
    }

    /// The times.
    pub fn times(&self) -> Times {
        self.known().map(|facts| facts.times).unwrap_or_default()
    }

    /// The file record of NTFS, the inode of ext, or the first cluster of FAT. Names with the same one are the same file.
    pub fn id(&self) -> Option<u64> {
        self.known()?.id
    }

    /// How many names the file has, where that is known.
    pub fn links(&self) -> Option<u32> {
        self.known()?.links
    }

    /// The permissions of Unix with setuid, setgid and sticky bit.
    pub fn mode(&self) -> Option<u16> {
        self.known()?.mode
    }

    /// The user and the group of Unix.
    pub fn owner(&self) -> Option<(u32, u32)> {
        self.known()?.owner
    }

    /// The major and the minor number of a device, where the file system keeps them.
    pub fn device(&self) -> Option<(u32, u32)> {
        self.known()?.device
    }

    /// The attributes of Windows.
    pub fn attributes(&self) -> Option<u32> {
        self.known()?.attributes
    }

    /// Why the contents are not read although the file is recognized: the code and the message of the error that
    /// [`FileSystem::open`] returns.
    pub fn refusal(&self) -> Option<(&'static str, &str)> {
        self.known()?.refusal.as_ref().map(|(code, message)| (*code, message.as_str()))
    }

    /// Why nothing but the name is known.
    pub fn problem(&self) -> Option<&Error> {
        self.item.facts.as_ref().err()
    }

    pub(crate) fn known(&self) -> Option<&Facts> {
        self.item.facts.as_ref().ok()
    }

    pub(crate) fn join(&self, name: &[u8]) -> Vec<u8> {
        match self.path() {
            [] => name.to_vec(),
            path => [path, b"/", name].concat(),
        }
    }
}

impl Iterator for Walk<'_> {
    type Item = Result<Entry>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(folder) = self.ahead.take()
            && let Err(error) = self.enter(&folder)
        {
            return Some(Err(error));
        }
        loop {
            let level = self.levels.last_mut()?;
            let Some(entry) = level.next() else {
                self.levels.pop();
                continue;
            };
            self.count += 1;
            self.held -= 1;
            if self.count > MOST_ENTRIES {
                self.levels.clear();
                self.held = 0;
                let message = format!("a walk ends after {MOST_ENTRIES} entries");
                return Some(Err(self.limit(message, &entry)));
            }
            if entry.kind() == Some(Kind::Folder) {
                self.ahead = Some(entry.again());
            }
            return Some(Ok(entry));
        }
    }
}

impl Walk<'_> {
    fn enter(&mut self, folder: &Entry) -> Result<()> {
        if !self.seen.insert(folder.item.node.clone()) {
            let message = "the folder lies in more than one other, or within itself";
            let error = Error::damaged("files.loop", message).in_volume(&self.tree.volume);
            return Err(error.at_path(&shown(folder.path())));
        }
        if self.levels.len() == MOST_DEPTH || folder.path().len() > MOST_PATH {
            let message = format!("more than {MOST_DEPTH} folders lie within each other");
            return Err(self.limit(message, folder));
        }
        let entries = self.tree.read_dir(folder)?;
        if self.held + entries.len() > MOST_HELD {
            let message = format!("the folders on the way hold more than {MOST_HELD} names");
            return Err(self.limit(message, folder));
        }
        self.held += entries.len();
        self.levels.push(entries.into_iter());
        Ok(())
    }

    fn limit(&self, message: String, entry: &Entry) -> Error {
        let error = Error::new(ErrorKind::Limit, "files.walk", message);
        error.in_volume(&self.tree.volume).at_path(&shown(entry.path()))
    }
}

impl FileReader<'_> {
    /// The number of bytes.
    pub fn size(&self) -> u64 {
        self.stream.len()
    }

    /// Fills `buf` with the bytes at `offset`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if the range does not lie within the file; and as for [`FileSystem::lookup`].
    pub fn read_at(&mut self, buf: &mut [u8], offset: u64) -> Result<()> {
        let (len, size) = (buf.len() as u64, self.size());
        let stream = &mut self.stream;
        self.tree.task(&shown(&self.path), |_| {
            if offset.checked_add(len).is_none_or(|end| end > size) {
                let message =
                    format!("{len} bytes at {offset} do not lie within the file of {size}");
                return Err(Error::new(ErrorKind::InvalidInput, "files.range", message));
            }
            stream.read_at(buf, offset)
        })
    }

    /// The end of the hole at `offset`, which reads as zeros; `offset` itself if bytes are stored there, or if the file
    /// system does not tell.
    pub fn hole_end(&self, offset: u64) -> u64 {
        self.stream.hole_end(offset).clamp(offset, self.size().max(offset))
    }

    /// Reads the rest of the file into memory, if it is at most `most` bytes.
    ///
    /// # Errors
    /// [`ErrorKind::Limit`] if it is longer; and as for [`read_at`](Self::read_at).
    pub fn read_to_end(&mut self, most: u64) -> Result<Vec<u8>> {
        let len = self.size().saturating_sub(self.position);
        if len > most {
            let message = format!("the file has {len} bytes, more than {most}");
            let error = Error::new(ErrorKind::Limit, "files.too-long", message);
            return Err(error.in_volume(&self.tree.volume).at_path(&shown(&self.path)));
        }
        let mut bytes = vec![0; len as usize];
        self.read_at(&mut bytes, self.position)?;
        self.position += len;
        Ok(bytes)
    }
}

impl io::Read for FileReader<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = self.size().saturating_sub(self.position);
        let count = left.min(buf.len() as u64) as usize;
        self.read_at(&mut buf[..count], self.position).map_err(io::Error::other)?;
        self.position += count as u64;
        Ok(count)
    }
}

impl fmt::Debug for FileReader<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = String::from_utf8_lossy(&self.path);
        f.debug_struct("FileReader").field("path", &path).field("size", &self.size()).finish()
    }
}

/// A path as errors show it.
pub(crate) fn shown(path: &[u8]) -> Vec<u8> {
    [b"/", path].concat()
}
