//! Which files differ between two points in time of a volume.
//!
//! The points are walked side by side. What the first shows of a folder or a file rests on bytes that are watched while it
//! is read; those that may have changed are compared with the second point, and where none has, it shows the same.

mod pair;
mod side;

use std::collections::{HashMap, HashSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use avhdx::Disk;

use crate::changed::Changed;
use crate::error::{Error, ErrorKind};
use crate::item::{Kind, Node};
use crate::tree::{Entry, MOST_DEPTH, MOST_ENTRIES, MOST_PATH, Options};
use pair::Pair;
pub use side::{Side, Unread};

/// Compares the files of two points in time of a volume.
///
/// A file is named by its path. Its content is its bytes, those of its alternate streams, and where it leads if it is a
/// link or a reparse point. Its facts are the rest of what an [`Entry`] tells, but for its number and its last access.
/// Extended attributes, access control lists and security descriptors are not compared.
///
/// A file that has another name in the same folder is renamed, where NTFS or ext tells by its number, generation and time
/// of creation that it is the same. One that was moved to another folder is removed there and added here.
///
/// ```no_run
/// use std::sync::Arc;
///
/// use avhdx::{DiffChain, ops::Diff};
/// use avhdx_files::Compare;
///
/// let chain = DiffChain::open("web_77F0.avhdx")?;
/// let (monday, now) = (chain.view_at("monday")?, chain.view(chain.layers()[0].id)?);
/// let written = Diff::new().run(&monday, &now)?.collect::<Result<Vec<_>, _>>()?;
/// let compare = Compare::new().changed(written).content(true);
/// for change in compare.run(Arc::new(monday), Arc::new(now))? {
///     match change {
///         Ok(change) => println!("{:?} {}", change.change, String::from_utf8_lossy(change.path())),
///         Err(unread) => eprintln!("{unread}"),
///     }
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Compare {
    volume: Option<String>,
    options: Options,
    changed: Option<Changed>,
    content: bool,
}

/// What became of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Change {
    /// There was none.
    Added,
    /// There is none any more.
    Removed,
    /// It is another kind of thing.
    Kind,
    /// Its content is another, or may be: see [`Compare::content`]. It may have been renamed too.
    Content,
    /// It has another name, and the same content.
    Renamed,
    /// Only its facts are others.
    Facts,
}

/// A file that differs.
#[derive(Debug)]
#[non_exhaustive]
pub struct FileChange {
    /// What became of it.
    pub change: Change,
    /// The file as it was; `None` if it was added. Its path differs from that of `after` where the file or a folder on its
    /// way was renamed.
    pub before: Option<Entry>,
    /// The file as it is; `None` if it was removed.
    pub after: Option<Entry>,
    /// The names of the streams, besides its contents, that are new, gone or others.
    pub streams: Vec<Vec<u8>>,
}

/// What a comparison has cost so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Totals {
    /// The files, folders and links that were looked at, on either side.
    pub files: u64,
    /// The bytes of the first disk that were read.
    pub read_before: u64,
    /// The bytes of the second disk that were read.
    pub read_after: u64,
}

/// The files that differ, by their paths: each folder before what it holds, names in order. Made by [`Compare::run`].
///
/// What cannot be read is an error in its place, that of the first point if it can be read at neither, and the rest goes on.
/// Memory grows with the depth and the largest folders
/// on the way, and by a few bytes for each folder.
#[derive(Debug)]
pub struct FileChanges {
    pair: Pair,
    levels: Vec<Level>,
    /// The folder to go into next.
    ahead: Option<Ahead>,
    ready: VecDeque<Result<FileChange, Unread>>,
    /// The folders so far: each lies in one other.
    seen: [HashSet<Node>; 2],
    files: u64,
}

/// What is left of a folder.
#[derive(Debug)]
struct Level {
    /// The path of the folder at the second point.
    after: Option<Entry>,
    steps: std::vec::IntoIter<Step>,
}

#[derive(Debug)]
enum Step {
    /// The second point has the same.
    Same(Entry),
    Both(Box<[Entry; 2]>),
    Removed(Entry),
    Added(Entry),
}

#[derive(Debug)]
enum Ahead {
    Both(Box<[Entry; 2]>),
    Removed(Entry),
    Added(Entry),
}

impl Compare {
    /// Compares everything.
    pub fn new() -> Self {
        Self::default()
    }

    /// Which volume to compare, as [`Volumes::select`](crate::Volumes::select) has it.
    #[must_use]
    pub fn volume(mut self, selector: Option<&str>) -> Self {
        self.volume = selector.map(str::to_owned);
        self
    }

    /// How both file systems are opened.
    #[must_use]
    pub fn options(mut self, options: Options) -> Self {
        self.options = options;
        self
    }

    /// The ranges of the disk outside of which the two are the same, as `avhdx::ops::Diff` lists them. Without them, and
    /// where the volume or its file system was moved or resized, all may differ.
    #[must_use]
    pub fn changed(mut self, ranges: impl IntoIterator<Item = Range<u64>>) -> Self {
        self.changed = Some(Changed::of(ranges));
        self
    }

    /// Whether to read what may differ of files, and to call their content another only if their bytes are. Without it, a
    /// file has another content if it has another length, lies elsewhere, or was written to where it lies.
    #[must_use]
    pub fn content(mut self, yes: bool) -> Self {
        self.content = yes;
        self
    }

    /// Starts to compare.
    ///
    /// # Errors
    /// That the volume, or its top, cannot be read at one of the points; as for [`Volumes::of`](crate::Volumes::of),
    /// [`Volumes::select`](crate::Volumes::select) and [`Volume::open_with`](crate::Volume::open_with).
    pub fn run(&self, before: Arc<dyn Disk>, after: Arc<dyn Disk>) -> Result<FileChanges, Unread> {
        let volume = self.volume.as_deref();
        let pair =
            Pair::open([before, after], volume, self.options, self.changed.as_ref(), self.content)?;
        let (before, after) = pair.roots()?;
        Ok(FileChanges {
            pair,
            levels: Vec::new(),
            ahead: Some(Ahead::Both(Box::new([before, after]))),
            ready: VecDeque::new(),
            seen: [HashSet::new(), HashSet::new()],
            files: 0,
        })
    }
}

impl FileChange {
    /// The path at the second point, or that at the first of a file that was removed.
    pub fn path(&self) -> &[u8] {
        self.after.as_ref().or(self.before.as_ref()).map_or(&[], Entry::path)
    }

    fn of(change: Change, before: Option<Entry>, after: Option<Entry>) -> Self {
        Self { change, before, after, streams: Vec::new() }
    }
}

impl FileChanges {
    /// What the comparison has cost so far.
    pub fn totals(&self) -> Totals {
        let [read_before, read_after] = self.pair.read();
        Totals { files: self.files, read_before, read_after }
    }

    /// What is noteworthy of the file systems although they are read.
    pub fn warnings(&self) -> impl Iterator<Item = (Side, &str)> {
        self.pair.warnings()
    }

    fn step(&mut self, step: Step) {
        self.files += 1;
        match step {
            Step::Same(before) => {
                let folder = self.levels.last().and_then(|level| level.after.as_ref());
                let path = folder.map(|folder| folder.join(before.name()));
                let after = before.at(path.unwrap_or_else(|| before.path().to_vec()));
                self.compare(before, after, true);
            }
            Step::Both(both) => {
                let [before, after] = *both;
                let problems = [(Side::Before, &before), (Side::After, &after)];
                let mut found =
                    problems.map(|(side, entry)| self.pair.problem(side, entry)).into_iter();
                match found.find_map(|problem| problem) {
                    None => self.compare(before, after, false),
                    Some(unread) => self.ready.push_back(Err(unread)),
                }
            }
            Step::Removed(entry) => self.alone(Side::Before, entry),
            Step::Added(entry) => self.alone(Side::After, entry),
        }
    }

    /// Takes in a file that only one of the points has.
    fn alone(&mut self, side: Side, entry: Entry) {
        let problem = self.pair.problem(side, &entry);
        let folder = (entry.kind() == Some(Kind::Folder)).then(|| entry.at(entry.path().to_vec()));
        let (change, ahead) = match side {
            Side::Before => {
                (FileChange::of(Change::Removed, Some(entry), None), folder.map(Ahead::Removed))
            }
            Side::After => {
                (FileChange::of(Change::Added, None, Some(entry)), folder.map(Ahead::Added))
            }
        };
        self.ready.push_back(Ok(change));
        self.ready.extend(problem.map(Err));
        self.ahead = ahead;
    }

    fn compare(&mut self, before: Entry, after: Entry, has_same_facts: bool) {
        let again = |entry: &Entry| entry.at(entry.path().to_vec());
        let is_folder = |entry: &Entry| entry.kind() == Some(Kind::Folder);
        if before.kind() != after.kind() {
            self.ahead = match (is_folder(&before), is_folder(&after)) {
                (true, _) => Some(Ahead::Removed(again(&before))),
                (_, true) => Some(Ahead::Added(again(&after))),
                _ => None,
            };
            let change = FileChange::of(Change::Kind, Some(before), Some(after));
            return self.ready.push_back(Ok(change));
        }
        if is_folder(&before) {
            self.ahead = Some(Ahead::Both(Box::new([again(&before), again(&after)])));
        }
        let content = match self.pair.content(&before, &after) {
            Ok(content) => content,
            Err(unread) => return self.ready.push_back(Err(unread)),
        };
        let says_same = || match (before.known(), after.known()) {
            (Some(before), Some(after)) => before.says(after),
            _ => false,
        };
        let change = match () {
            () if content.is_other => Change::Content,
            () if before.name() != after.name() => Change::Renamed,
            () if !has_same_facts && !says_same() => Change::Facts,
            () => return,
        };
        let mut change = FileChange::of(change, Some(before), Some(after));
        change.streams = content.streams;
        self.ready.push_back(Ok(change));
    }

    fn enter(&mut self, ahead: Ahead) {
        let entered = match ahead {
            Ahead::Both(both) => self.enter_both(*both),
            Ahead::Removed(folder) => {
                self.list(Side::Before, &folder).map(|entries| Level::of(entries, Step::Removed))
            }
            Ahead::Added(folder) => {
                self.list(Side::After, &folder).map(|entries| Level::of(entries, Step::Added))
            }
        };
        match entered {
            Ok(level) => self.levels.push(level),
            Err(unread) => self.ready.push_back(Err(unread)),
        }
    }

    fn enter_both(&mut self, [before, after]: [Entry; 2]) -> Result<Level, Unread> {
        self.pair.watch();
        let entries = self.list(Side::Before, &before);
        let is_same = !self.pair.has_met() && before.item().node == after.item().node;
        let is_whole = |entries: &[Entry]| entries.iter().all(|entry| entry.problem().is_none());
        match entries {
            Ok(entries) if is_same && is_whole(&entries) => {
                let level = Level::of(entries, Step::Same);
                Ok(Level { after: Some(after), ..level })
            }
            // What the second point holds has nothing to be compared with.
            Err(unread) => Err(unread),
            Ok(entries) => {
                let others = self.list(Side::After, &after)?;
                Ok(Level { after: None, steps: merged(entries, others).into_iter() })
            }
        }
    }

    fn list(&mut self, side: Side, folder: &Entry) -> Result<Vec<Entry>, Unread> {
        let error = match () {
            () if !self.seen[side as usize].insert(folder.item().node.clone()) => {
                let message = "the folder lies in more than one other, or within itself";
                Error::damaged("files.loop", message)
            }
            () if self.levels.len() >= MOST_DEPTH || folder.path().len() > MOST_PATH => {
                let message = format!("more than {MOST_DEPTH} folders lie within each other");
                Error::new(ErrorKind::Limit, "files.walk", message)
            }
            () => return self.pair.list(side, folder),
        };
        Err(self.pair.unread(side, folder, error))
    }

    fn is_over(&mut self, entry: &Step) -> bool {
        if self.files < MOST_ENTRIES {
            return false;
        }
        let (side, entry) = match entry {
            Step::Both(both) => (Side::Before, &both[0]),
            Step::Same(entry) | Step::Removed(entry) => (Side::Before, entry),
            Step::Added(entry) => (Side::After, entry),
        };
        let message = format!("a walk ends after {MOST_ENTRIES} entries");
        let error = Error::new(ErrorKind::Limit, "files.walk", message);
        self.ready.push_back(Err(self.pair.unread(side, entry, error)));
        self.levels.clear();
        true
    }
}

impl Level {
    fn of(entries: Vec<Entry>, step: impl Fn(Entry) -> Step) -> Self {
        let steps: Vec<Step> = entries.into_iter().map(step).collect();
        Self { after: None, steps: steps.into_iter() }
    }
}

impl Iterator for FileChanges {
    type Item = Result<FileChange, Unread>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(found) = self.ready.pop_front() {
                return Some(found);
            }
            if let Some(ahead) = self.ahead.take() {
                self.enter(ahead);
                continue;
            }
            match self.levels.last_mut()?.steps.next() {
                None => drop(self.levels.pop()),
                Some(step) if self.is_over(&step) => {}
                Some(step) => self.step(step),
            }
        }
    }
}

/// The entries of a folder at both points, in the order of their names.
fn merged(before: Vec<Entry>, after: Vec<Entry>) -> Vec<Step> {
    let (mut steps, mut gone, mut new) = (Vec::new(), Vec::new(), Vec::new());
    let (mut before, mut after) = (before.into_iter().peekable(), after.into_iter().peekable());
    loop {
        let order = match (before.peek(), after.peek()) {
            (Some(one), Some(other)) => one.name().cmp(other.name()),
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (None, None) => break,
        };
        let one = if order.is_le() { before.next() } else { None };
        let other = if order.is_ge() { after.next() } else { None };
        match (one, other) {
            (Some(one), Some(other)) => steps.push(Step::Both(Box::new([one, other]))),
            (one, other) => {
                gone.extend(one);
                new.extend(other);
            }
        }
    }
    let mut by_identity: HashMap<_, _> = HashMap::new();
    let mut gone: Vec<Option<Entry>> = gone.into_iter().map(Some).collect();
    for (n, entry) in gone.iter().enumerate() {
        if let Some(identity) = entry.as_ref().and_then(identity) {
            by_identity.insert(identity, n);
        }
    }
    for entry in new {
        let old = identity(&entry).and_then(|identity| by_identity.remove(&identity));
        steps.push(match old.and_then(|n| gone[n].take()) {
            Some(old) => Step::Both(Box::new([old, entry])),
            None => Step::Added(entry),
        });
    }
    steps.extend(gone.into_iter().flatten().map(Step::Removed));
    steps.sort_by(|one, other| one.name().cmp(other.name()));
    steps
}

impl Step {
    fn name(&self) -> &[u8] {
        match self {
            Self::Same(entry) | Self::Removed(entry) | Self::Added(entry) => entry.name(),
            Self::Both(both) => both[1].name(),
        }
    }
}

/// What two names of one file have in common and no other file has; `None` if the file system does not tell.
fn identity(entry: &Entry) -> Option<impl Eq + std::hash::Hash + use<>> {
    let facts = entry.known()?;
    let node = match &entry.item().node {
        Node::Cluster { .. } => return None,
        node => node.clone(),
    };
    Some((node, facts.generation?, facts.times.created, facts.kind))
}
