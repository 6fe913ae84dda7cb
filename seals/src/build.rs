//! Writes seal files: complete and durable before they get their name.

use std::io;
use std::path::{Path, PathBuf};

use avhdx::storage::{Access, Draft, Host, Storage};
use avhdx::{Error, ErrorKind, Result};

use crate::file::{found, seal_path};
use crate::format::{
    Entry, HEADER, Header, Leaf, entry_page, hash_of_entries, hash_of_leaves, leaf_page, levels,
};
use crate::hash::{Hash, Identity};
use crate::map::{FAN_OUT, State};

/// Pages are written in pieces of about this size.
const PIECE: usize = 1 << 20;

/// The tree of a layer, from its first group on.
pub(crate) struct Tree<'s> {
    out: &'s dyn Storage,
    identity: Identity,
    /// Where `pages` will lie in the file.
    at: u64,
    pages: Vec<u8>,
    /// The nodes of each level that have no node above them yet.
    open: Vec<Vec<Entry>>,
}

impl<'s> Tree<'s> {
    pub(crate) fn new(out: &'s dyn Storage, identity: Identity) -> Self {
        let open = vec![Vec::new(); levels(identity.size) as usize];
        Self { out, identity, at: HEADER as u64, pages: Vec::new(), open }
    }

    /// Adds the next group.
    pub(crate) fn add(&mut self, leaves: &[Leaf]) -> Result<()> {
        let first = leaves.first().and_then(Leaf::uniform);
        let entry = match first.filter(|_| leaves.iter().all(|leaf| leaf.uniform() == first)) {
            Some(state) => Entry::Uniform(state),
            None => self.page(hash_of_leaves(leaves), &leaf_page(leaves))?,
        };
        self.push(0, entry)
    }

    /// Adds so many groups that have one state.
    pub(crate) fn add_uniform(&mut self, state: State, groups: u64) -> Result<()> {
        (0..groups).try_for_each(|_| self.push(0, Entry::Uniform(state)))
    }

    /// Ends the tree, and writes the header.
    pub(crate) fn finish(mut self) -> Result<Hash> {
        for level in 0..self.open.len() - 1 {
            self.close(level)?;
        }
        let root = self.open.last().and_then(|top| top.first()).copied();
        let root = root.unwrap_or(Entry::Uniform(State::Zero));
        self.write()?;
        let header = Header { identity: self.identity, root, file_len: self.at };
        self.out.write_at(&header.to_bytes(), 0).map_err(|error| failed(&error))?;
        self.out.flush().map_err(|error| failed(&error))?;
        Ok(header.layer())
    }

    fn push(&mut self, level: usize, entry: Entry) -> Result<()> {
        self.open[level].push(entry);
        let is_full = self.open[level].len() as u64 == FAN_OUT && level + 1 < self.open.len();
        if is_full { self.close(level) } else { Ok(()) }
    }

    /// Makes one node of those of a level that have none above them.
    fn close(&mut self, level: usize) -> Result<()> {
        let entries = std::mem::take(&mut self.open[level]);
        let Some(first) = entries.first() else { return Ok(()) };
        let is_same = matches!(first, Entry::Uniform(_)) && entries.iter().all(|e| e == first);
        let entry = match is_same {
            true => *first,
            false => {
                let hash = hash_of_entries(level as u32 + 2, &entries);
                self.page(hash, &entry_page(&entries))?
            }
        };
        self.push(level + 1, entry)
    }

    fn page(&mut self, hash: Hash, page: &[u8]) -> Result<Entry> {
        let at = self.at + self.pages.len() as u64;
        self.pages.extend(page);
        if self.pages.len() >= PIECE {
            self.write()?;
        }
        Ok(Entry::Page { hash, at, len: page.len() as u32 })
    }

    fn write(&mut self) -> Result<()> {
        self.out.write_at(&self.pages, self.at).map_err(|error| failed(&error))?;
        self.at += self.pages.len() as u64;
        self.pages.clear();
        Ok(())
    }
}

/// A seal that has its name.
pub(crate) struct Published {
    pub(crate) hash: Hash,
    /// The seal in whose place it came, if that could not be removed.
    pub(crate) left: Option<PathBuf>,
}

/// Makes the seal of an image. `add` adds all groups; `check` is asked last, before the file gets its name.
pub(crate) fn publish(
    host: &dyn Host,
    image: &Path,
    identity: Identity,
    add: impl FnOnce(&mut Tree<'_>) -> Result<()>,
    check: impl FnOnce() -> Result<()>,
) -> Result<Published> {
    let path = seal_path(image);
    let named =
        |error: Error| if error.file().is_some() { error } else { error.in_file(path.display()) };
    // Before the work, and again below: a link is refused early, and replaced never.
    found(host, &path)?;
    let model = host.open(image, Access::Read).map_err(|error| named(failed(&error)))?;
    let draft = Draft::new(host, &path).map_err(|error| named(failed(&error)))?;
    let storage = draft.storage();
    let mut tree = Tree::new(storage.as_ref(), identity);
    add(&mut tree).map_err(named)?;
    let hash = tree.finish().map_err(named)?;
    check()?;
    let old = found(host, &path)?;
    let put = || -> io::Result<Option<PathBuf>> {
        storage.copy_owner_from(model.as_ref())?;
        let left = draft.publish(old.as_deref())?;
        // The seal in whose place it came may have had another owner.
        storage.copy_owner_from(model.as_ref())?;
        host.sync_dir(
            path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new(".")),
        )?;
        Ok(left)
    };
    let left = put().map_err(|error| named(failed(&error)))?;
    Ok(Published { hash, left })
}

fn failed(error: &io::Error) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::NoSpace,
        _ => ErrorKind::Io,
    };
    Error::new(kind, "seal.write", format!("cannot write the seal: {error}"))
}
