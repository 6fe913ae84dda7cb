//! Seal files: finding them beside their images, and reading them as far as a range needs.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use avhdx::storage::{Access, FileKind, Host, Storage};
use avhdx::{Error, ErrorKind, Result};

use crate::format::{
    Entry, HEADER, Header, Leaf, damaged, hash_of_entries, hash_of_leaves, levels, parse_entries,
    parse_leaves,
};
use crate::hash::{Hash, Identity};
use crate::map::{FAN_OUT, GROUP, LEAF, State, span};

/// The seal of an image: the name of its file, and `.seal`.
pub fn seal_path(image: &Path) -> PathBuf {
    let mut name = image.as_os_str().to_owned();
    name.push(".seal");
    name.into()
}

/// A seal file, of which the header was read.
#[derive(Debug)]
pub struct SealFile {
    storage: Arc<dyn Storage>,
    header: Header,
    layer: Hash,
    /// The page of each level above the leaves that was read last.
    pages: Mutex<Vec<LastPage>>,
}

/// The number of a node, and its entries.
type LastPage = Option<(u64, Arc<[Entry]>)>;

/// What a seal says of a group of leaves.
#[derive(Debug)]
pub(crate) enum Group {
    /// So many groups from the one asked for on have this state.
    Uniform(State, u64),
    Leaves(Vec<Leaf>),
    /// Nothing can be told of so many groups, for this reason.
    Damaged(Error, u64),
}

impl SealFile {
    /// Opens the seal beside an image. `None` if there is none. A link is not followed.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] with the code `seal.damaged`; [`ErrorKind::Unsupported`] for a newer version;
    /// [`ErrorKind::Unproven`] with `seal.link` for a link; [`ErrorKind::Io`].
    pub fn beside(host: &dyn Host, image: &Path) -> Result<Option<Self>> {
        found(host, &seal_path(image))?.map(Self::open).transpose()
    }

    /// Opens a seal.
    ///
    /// # Errors
    /// As for [`beside`](Self::beside).
    pub fn open(storage: Arc<dyn Storage>) -> Result<Self> {
        let name = storage.name().to_owned();
        let read = || {
            let len = storage.len().map_err(|error| unread(&error))?;
            if len < HEADER as u64 {
                return Err(damaged(0, "the file is too short")
                    .with_found(len)
                    .with_expected(format_args!("{HEADER} bytes or more")));
            }
            let mut bytes = [0; HEADER];
            storage.read_exact_at(&mut bytes, 0).map_err(|error| unread(&error))?;
            Header::parse(&bytes, len)
        };
        let header = read().map_err(|error| error.in_file(&name))?;
        let layer = header.layer();
        let levels = levels(header.identity.size) as usize;
        Ok(Self { storage, header, layer, pages: Mutex::new(vec![None; levels + 1]) })
    }

    /// The layer that the seal is of.
    pub fn identity(&self) -> Identity {
        self.header.identity
    }

    /// The hash of the layer.
    pub fn hash(&self) -> Hash {
        self.layer
    }

    /// The file.
    pub fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    /// What the seal says of a group, or of it and more behind it.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] alone.
    pub(crate) fn group(&self, group: u64) -> Result<Group> {
        let groups = self.header.identity.size.div_ceil(GROUP);
        let mut entry = self.header.root;
        for level in (1..=levels(self.header.identity.size)).rev() {
            // The groups below a node of this level.
            let below = FAN_OUT.pow(level - 1);
            let node = group / below;
            let (hash, at, len) = match entry {
                Entry::Uniform(state) => {
                    let end = (node + 1).saturating_mul(below).min(groups);
                    return Ok(Group::Uniform(state, end.saturating_sub(group).max(1)));
                }
                Entry::Page { hash, at, len } => (hash, at, len),
            };
            let end = (node + 1).saturating_mul(below).min(groups);
            let damaged = |error: Error| match error.kind() {
                ErrorKind::Damaged => Ok(Group::Damaged(error, end.saturating_sub(group).max(1))),
                _ => Err(error),
            };
            if level == 1 {
                return self
                    .leaves(group, hash, at, len)
                    .map_or_else(damaged, |leaves| Ok(Group::Leaves(leaves)));
            }
            let child_groups = below / FAN_OUT;
            let count = groups.div_ceil(child_groups).saturating_sub(node * FAN_OUT).min(FAN_OUT);
            let entries = match self.entries(level, node, count, (hash, at, len)) {
                Ok(entries) => entries,
                Err(error) => return damaged(error),
            };
            let child = group / child_groups % FAN_OUT;
            entry = entries[child as usize];
        }
        unreachable!("the last level returns")
    }

    /// The leaves of a group, each for itself.
    pub(crate) fn leaves_of(&self, group: u64) -> Result<Vec<Leaf>> {
        Ok(match self.group(group)? {
            Group::Leaves(leaves) => leaves,
            Group::Damaged(error, _) => return Err(error),
            Group::Uniform(state, _) => {
                vec![Leaf::Uniform(state); self.leaf_sectors(group).len()]
            }
        })
    }

    fn leaves(&self, group: u64, hash: Hash, at: u64, len: u32) -> Result<Vec<Leaf>> {
        let page = self.page(at, len)?;
        let leaves = parse_leaves(&page, at, self.leaf_sectors(group))
            .and_then(|leaves| expect(hash_of_leaves(&leaves), hash, at).map(|()| leaves));
        leaves.map_err(|error| error.in_file(self.storage.name()))
    }

    fn entries(
        &self,
        level: u32,
        node: u64,
        count: u64,
        (hash, at, len): (Hash, u64, u32),
    ) -> Result<Arc<[Entry]>> {
        let known = |pages: &Vec<LastPage>| {
            let known = pages[level as usize].as_ref().filter(|(of, _)| *of == node);
            known.map(|(_, entries)| Arc::clone(entries))
        };
        let held = || self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entries) = known(&held()) {
            return Ok(entries);
        }
        let page = self.page(at, len)?;
        let entries = parse_entries(&page, at, count, self.header.file_len).and_then(|entries| {
            expect(hash_of_entries(level, &entries), hash, at).map(|()| entries)
        });
        let entries: Arc<[Entry]> =
            entries.map_err(|error| error.in_file(self.storage.name()))?.into();
        held()[level as usize] = Some((node, Arc::clone(&entries)));
        Ok(entries)
    }

    /// The bytes of a page, whose place was checked.
    fn page(&self, at: u64, len: u32) -> Result<Vec<u8>> {
        let mut page = vec![0; len as usize];
        let read = self.storage.read_exact_at(&mut page, at);
        read.map_err(|error| unread(&error).at(at).in_file(self.storage.name()))?;
        Ok(page)
    }

    fn leaf_sectors(&self, group: u64) -> impl ExactSizeIterator<Item = u32> + use<> {
        let Identity { size, sector, .. } = self.header.identity;
        let range = span(group, GROUP, size);
        let first = range.start / LEAF;
        let count = (range.end - range.start).div_ceil(LEAF) as u32;
        (0..count).map(move |leaf| {
            let Range { start, end } = span(first + u64::from(leaf), LEAF, size);
            ((end - start) / u64::from(sector)) as u32
        })
    }
}

/// The file at the name of a seal, if there is one.
pub(crate) fn found(host: &dyn Host, path: &Path) -> Result<Option<Arc<dyn Storage>>> {
    let name = path.display();
    match host.is_link(path) {
        Ok(true) => {
            let message = "a link lies where a seal belongs";
            return Err(Error::new(ErrorKind::Unproven, "seal.link", message).in_file(name));
        }
        Ok(false) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unread(&error).in_file(name)),
    }
    match host.stat(path).map(|stat| stat.kind) {
        Ok(FileKind::File) => {}
        Ok(kind) => {
            return Err(damaged(0, "it is no file").with_found(kind).in_file(name));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unread(&error).in_file(name)),
    }
    match host.open(path, Access::Read) {
        Ok(storage) => Ok(Some(storage)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(unread(&error).in_file(name)),
    }
}

fn unread(error: &io::Error) -> Error {
    Error::new(ErrorKind::Io, "seal.read", format!("cannot read the seal: {error}"))
}

fn expect(found: Hash, expected: Hash, at: u64) -> Result<()> {
    match found == expected {
        true => Ok(()),
        false => Err(damaged(at, "a page is not the one that the page above names")
            .with_found(found)
            .with_expected(expected)),
    }
}
