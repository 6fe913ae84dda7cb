//! The bytes of a seal file: a header, and pages that form a tree. Does no I/O.
//!
//! `docs/seals.md` has the offsets.

use avhdx::uuid::Uuid;
use avhdx::{Error, ErrorKind, Result};

use crate::hash::{Domain, Hash, Identity};
use crate::map::{FAN_OUT, LEAF, LeafMap, Run, State};

pub(crate) const HEADER: usize = 256;
const MAGIC: &[u8; 8] = b"AVHDSEAL";
const VERSION: u32 = 1;
const CHECKSUM: usize = 32;
/// The longest page has 256 leaves of 128 runs each.
pub(crate) const MOST_PAGE: u32 = 32 + 256 * (1 + 1 + 128 * 2 + 32);
/// The largest disk that the format has.
const MOST_SIZE: u64 = 64 << 40;

/// What the tree says of a part of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// All of it has this state, which is not `Data`.
    Uniform(State),
    /// A page says it.
    Page { hash: Hash, at: u64, len: u32 },
}

/// What the tree says of a leaf.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Leaf {
    /// All of it has this state, which is not `Data`.
    Uniform(State),
    Held {
        hash: Hash,
        map: LeafMap,
    },
}

impl Leaf {
    pub(crate) fn uniform(&self) -> Option<State> {
        match self {
            Self::Uniform(state) => Some(*state),
            Self::Held { .. } => None,
        }
    }
}

/// The first bytes of a seal file.
#[derive(Clone, Debug)]
pub(crate) struct Header {
    pub(crate) identity: Identity,
    pub(crate) root: Entry,
    pub(crate) file_len: u64,
}

impl Header {
    /// The hash of the layer.
    pub(crate) fn layer(&self) -> Hash {
        let Identity { data_write_guid, disk_id, size, sector } = self.identity;
        let mut bytes = Vec::with_capacity(81);
        bytes.extend(data_write_guid.to_bytes_le());
        bytes.extend(disk_id.to_bytes_le());
        bytes.extend(size.to_le_bytes());
        bytes.extend(sector.to_le_bytes());
        bytes.extend((LEAF as u32).to_le_bytes());
        let (kind, hash) = kind_and_hash(&self.root);
        bytes.push(kind);
        bytes.extend(hash);
        Domain::Layer.hash(&bytes)
    }

    pub(crate) fn to_bytes(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        let Identity { data_write_guid, disk_id, size, sector } = self.identity;
        put(0, MAGIC);
        put(8, &VERSION.to_le_bytes());
        put(12, &(LEAF as u32).to_le_bytes());
        put(16, &(FAN_OUT as u32).to_le_bytes());
        put(20, &sector.to_le_bytes());
        put(24, &size.to_le_bytes());
        put(32, &data_write_guid.to_bytes_le());
        put(48, &disk_id.to_bytes_le());
        let (kind, hash) = kind_and_hash(&self.root);
        put(64, &[kind]);
        if let Entry::Page { at, len, .. } = self.root {
            put(72, &at.to_le_bytes());
            put(80, &len.to_le_bytes());
        }
        put(88, &self.file_len.to_le_bytes());
        put(96, &hash);
        put(128, self.layer().as_bytes());
        let checksum = Domain::Header.hash(&bytes[..HEADER - CHECKSUM]);
        bytes[HEADER - CHECKSUM..].copy_from_slice(checksum.as_bytes());
        bytes
    }

    /// Reads a header. `file_len` is the length of the file that it starts.
    pub(crate) fn parse(bytes: &[u8; HEADER], file_len: u64) -> Result<Self> {
        let field = |at: usize, found: u64, expected: u64| match found == expected {
            true => Ok(()),
            false => Err(damaged(at as u64, "a field of the header is wrong")
                .with_found(found)
                .with_expected(expected)),
        };
        if &bytes[..8] != MAGIC {
            return Err(damaged(0, "the file does not start as a seal does")
                .with_found(hex(&bytes[..8]))
                .with_expected(hex(MAGIC)));
        }
        let version = u32_at(bytes, 8);
        if version != VERSION {
            let message = "the seal has a version that is not known here";
            return Err(Error::new(ErrorKind::Unsupported, "seal.version", message)
                .at(8)
                .with_found(version)
                .with_expected(VERSION));
        }
        let (found, stored) = (
            Domain::Header.hash(&bytes[..HEADER - CHECKSUM]),
            Hash::new(array(&bytes[HEADER - CHECKSUM..])),
        );
        if found != stored {
            return Err(damaged(0, "the header does not have its checksum")
                .with_found(found)
                .with_expected(stored));
        }
        field(12, u32_at(bytes, 12).into(), LEAF)?;
        field(16, u32_at(bytes, 16).into(), FAN_OUT)?;
        let (sector, size) = (u32_at(bytes, 20), u64_at(bytes, 24));
        if !matches!(sector, 512 | 4096) {
            return Err(damaged(20, "the size of a sector is wrong")
                .with_found(sector)
                .with_expected("512 or 4096"));
        }
        if size == 0 || size > MOST_SIZE || !size.is_multiple_of(sector.into()) {
            return Err(damaged(24, "the size of the disk is wrong")
                .with_found(size)
                .with_expected(format_args!("whole sectors, at most {MOST_SIZE} bytes")));
        }
        field(88, u64_at(bytes, 88), file_len)?;
        let hash = Hash::new(array(&bytes[96..128]));
        let root = entry(bytes[64], hash, u64_at(bytes, 72), u32_at(bytes, 80), file_len);
        let root = root.ok_or_else(|| damaged(64, "the root of the tree is wrong"))?;
        let identity = Identity {
            data_write_guid: Uuid::from_bytes_le(array(&bytes[32..48])),
            disk_id: Uuid::from_bytes_le(array(&bytes[48..64])),
            size,
            sector,
        };
        let header = Self { identity, root, file_len };
        if header.to_bytes() != *bytes {
            return Err(damaged(0, "the header says what no seal says"));
        }
        Ok(header)
    }
}

/// The levels of the tree of a disk; those of level 1 have leaves below them.
pub(crate) fn levels(size: u64) -> u32 {
    let (mut levels, mut nodes) = (1, size.div_ceil(GROUP_OF_LEVEL_1));
    while nodes > 1 {
        nodes = nodes.div_ceil(FAN_OUT);
        levels += 1;
    }
    levels
}

const GROUP_OF_LEVEL_1: u64 = LEAF * FAN_OUT;

/// The hash of a node, of the kind and hash of each child.
fn node_hash<'a>(
    level: u32,
    children: impl ExactSizeIterator<Item = (u8, Option<&'a Hash>)>,
) -> Hash {
    let mut bytes = Vec::with_capacity(5 + children.len() * 33);
    bytes.push(level as u8);
    bytes.extend((children.len() as u32).to_le_bytes());
    for (kind, hash) in children {
        bytes.push(kind);
        bytes.extend(hash.map_or(&[][..], |hash| hash.as_bytes()));
    }
    Domain::Node.hash(&bytes)
}

pub(crate) fn hash_of_leaves(leaves: &[Leaf]) -> Hash {
    node_hash(
        1,
        leaves.iter().map(|leaf| match leaf {
            Leaf::Uniform(state) => (*state as u8, None),
            Leaf::Held { hash, .. } => (State::Data as u8, Some(hash)),
        }),
    )
}

pub(crate) fn hash_of_entries(level: u32, entries: &[Entry]) -> Hash {
    node_hash(
        level,
        entries.iter().map(|entry| match entry {
            Entry::Uniform(state) => (*state as u8, None),
            Entry::Page { hash, .. } => (State::Data as u8, Some(hash)),
        }),
    )
}

/// The page of a node of leaves.
pub(crate) fn leaf_page(leaves: &[Leaf]) -> Vec<u8> {
    page(|bytes| {
        for leaf in leaves {
            match leaf {
                Leaf::Uniform(state) => bytes.push(*state as u8),
                Leaf::Held { hash, map } => {
                    match map.uniform() {
                        Some(state) => bytes.push(state as u8),
                        None => {
                            bytes.extend([MIXED, map.runs().len() as u8]);
                            let runs = map.runs().iter();
                            bytes.extend(runs.flat_map(|run| [run.state as u8, run.sectors as u8]));
                        }
                    }
                    bytes.extend(hash.as_bytes());
                }
            }
        }
    })
}

/// A leaf with sectors of several states.
const MIXED: u8 = 3;

/// The page of a node above them.
pub(crate) fn entry_page(entries: &[Entry]) -> Vec<u8> {
    page(|bytes| {
        for entry in entries {
            match entry {
                Entry::Uniform(state) => bytes.push(*state as u8),
                Entry::Page { hash, at, len } => {
                    bytes.push(State::Data as u8);
                    bytes.extend(hash.as_bytes());
                    bytes.extend(at.to_le_bytes());
                    bytes.extend(len.to_le_bytes());
                }
            }
        }
    })
}

fn page(contents: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = vec![0; CHECKSUM];
    contents(&mut bytes);
    let checksum = Domain::Page.hash(&bytes[CHECKSUM..]);
    bytes[..CHECKSUM].copy_from_slice(checksum.as_bytes());
    bytes
}

/// The contents of the page at `at`.
fn contents(page: &[u8], at: u64) -> Result<Cursor<'_>> {
    let Some((stored, contents)) = page.split_first_chunk::<CHECKSUM>() else {
        return Err(damaged(at, "a page is too short").with_found(page.len()));
    };
    let (found, stored) = (Domain::Page.hash(contents), Hash::new(*stored));
    if found != stored {
        return Err(damaged(at, "a page does not have its checksum")
            .with_found(found)
            .with_expected(stored));
    }
    Ok(Cursor { contents, page: at, at: 0 })
}

/// Reads a page of leaves, which have the sectors that `sectors` says.
pub(crate) fn parse_leaves(
    page: &[u8],
    at: u64,
    sectors: impl ExactSizeIterator<Item = u32>,
) -> Result<Vec<Leaf>> {
    let mut from = contents(page, at)?;
    let mut leaves = Vec::with_capacity(sectors.len());
    for sectors in sectors {
        let kind = from.byte()?;
        let map = match State::of(kind) {
            Some(State::Data) => LeafMap::whole(State::Data, sectors),
            Some(state) => {
                leaves.push(Leaf::Uniform(state));
                continue;
            }
            None if kind == MIXED => from.map(sectors)?,
            None => return Err(from.wrong("a leaf has no such kind").with_found(kind)),
        };
        leaves.push(Leaf::Held { hash: from.hash()?, map });
    }
    from.end()?;
    Ok(leaves)
}

/// Reads a page of so many entries, in a file of this length.
pub(crate) fn parse_entries(page: &[u8], at: u64, count: u64, file_len: u64) -> Result<Vec<Entry>> {
    let mut from = contents(page, at)?;
    let mut entries = Vec::with_capacity(count as usize);
    for _ in 0..count {
        let kind = from.byte()?;
        let is_page = kind == State::Data as u8;
        let (hash, place, len) = match is_page {
            true => {
                (from.hash()?, u64::from_le_bytes(from.take()?), u32::from_le_bytes(from.take()?))
            }
            false => (Hash::new([0; CHECKSUM]), 0, 0),
        };
        let entry = entry(kind, hash, place, len, file_len);
        entries.push(entry.ok_or_else(|| from.wrong("an entry of the tree is wrong"))?);
    }
    from.end()?;
    Ok(entries)
}

fn entry(kind: u8, hash: Hash, at: u64, len: u32, file_len: u64) -> Option<Entry> {
    match State::of(kind)? {
        State::Data => {
            let end = at.checked_add(len.into())?;
            let is_within = at >= HEADER as u64 && end <= file_len && len <= MOST_PAGE;
            is_within.then_some(Entry::Page { hash, at, len })
        }
        state => Some(Entry::Uniform(state)),
    }
}

fn kind_and_hash(entry: &Entry) -> (u8, [u8; CHECKSUM]) {
    match entry {
        Entry::Uniform(state) => (*state as u8, [0; CHECKSUM]),
        Entry::Page { hash, .. } => (State::Data as u8, *hash.as_bytes()),
    }
}

/// Reads the contents of a page from the front.
struct Cursor<'a> {
    contents: &'a [u8],
    page: u64,
    at: usize,
}

impl Cursor<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        let bytes = self.contents.get(self.at..).and_then(|rest| rest.first_chunk());
        let bytes = *bytes.ok_or_else(|| self.wrong("a page ends too early"))?;
        self.at += N;
        Ok(bytes)
    }

    fn byte(&mut self) -> Result<u8> {
        self.take::<1>().map(|[byte]| byte)
    }

    fn hash(&mut self) -> Result<Hash> {
        self.take().map(Hash::new)
    }

    /// The runs of a leaf with so many sectors.
    fn map(&mut self, sectors: u32) -> Result<LeafMap> {
        let count = self.byte()?;
        let mut map = LeafMap::default();
        for _ in 0..count {
            let [state, length] = self.take()?;
            let state = State::of(state).filter(|_| length > 0);
            let state = state.ok_or_else(|| self.wrong("a run of sectors is wrong"))?;
            map.push(state, length.into());
        }
        let found: u32 = map.runs().iter().map(|Run { sectors, .. }| sectors).sum();
        if found != sectors || map.runs().len() != usize::from(count) || count < 2 {
            return Err(self
                .wrong("the runs of a leaf are not those of its sectors")
                .with_found(found)
                .with_expected(sectors));
        }
        Ok(map)
    }

    fn end(&self) -> Result<()> {
        match self.at == self.contents.len() {
            true => Ok(()),
            false => Err(self.wrong("a page goes on behind its end")),
        }
    }

    fn wrong(&self, message: &str) -> Error {
        damaged(self.page + (CHECKSUM + self.at) as u64, message)
    }
}

/// The error for a seal file whose bytes at `at` are wrong.
pub(crate) fn damaged(at: u64, message: &str) -> Error {
    Error::new(ErrorKind::Damaged, "seal.damaged", format!("the seal is damaged: {message}")).at(at)
}

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(bytes);
    array
}

fn u32_at(bytes: &[u8; HEADER], at: usize) -> u32 {
    u32::from_le_bytes(array(&bytes[at..at + 4]))
}

fn u64_at(bytes: &[u8; HEADER], at: usize) -> u64 {
    u64::from_le_bytes(array(&bytes[at..at + 8]))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
