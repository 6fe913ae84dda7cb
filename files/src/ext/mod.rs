//! ext2, ext3 and ext4.
//!
//! The crate for ext names files by their paths alone, counts its way to a place in a file block by block, and takes long
//! holes of ext2 for damage. So inodes are read here: they tell which names are of one file, which folders are in a
//! circle, and where holes are. A journal that is not empty is read through. Checksums of metadata are verified only before
//! free space is given away.

mod clean;
mod counts;
mod frame;
mod inode;
mod journal;
mod shape;
mod space;

use std::any::Any;
use std::ops::Range;

use crate::boundary::{Bytes, number, u16_at, u32_at};
use crate::changed::Changed;
use crate::error::{Error, ErrorKind, Result};
use crate::item::{About, Item, Kind, Node, Stream, System, check_count};
use clean::Clean;
use inode::{File, Inode};
use shape::{HAS_JOURNAL, IS_64_BIT, META_GROUPS, NEEDS_RECOVERY, Shape};
use space::Space;

const SUPERBLOCK: u64 = 1024;
const SUPERBLOCK_LEN: usize = 1024;
const ROOT: u32 = 2;
/// A folder has no more bytes.
const MOST_FOLDER: u64 = 2 << 30;
/// A folder with more names of no inode is none.
const MOST_BROKEN: usize = 1 << 12;
/// A link leads no further.
const MOST_TARGET: u64 = 4096;

/// Features without which a reader misreads.
const HAS_EXTENTS: u32 = 0x40;
/// Those that are read: types in folders, the four above, protection against double mounts, groups in groups, values in
/// inodes of their own, seeds of checksums, large folders, and files that are inline, encrypted or folded.
const KNOWN: u32 =
    0x2 | NEEDS_RECOVERY | META_GROUPS | HAS_EXTENTS | IS_64_BIT | 0x100 | 0x200 | 0x400 | 0x3_E000;

pub(crate) struct Ext {
    about: About,
    shape: Shape,
    space: Space,
    clean: Clean,
}

impl Ext {
    pub(crate) fn open(bytes: Bytes) -> Result<Self> {
        let mut raw = bytes.read(SUPERBLOCK, SUPERBLOCK_LEN)?;
        let (compatible, incompatible) = (u32_at(&raw, 92), u32_at(&raw, 96));
        if incompatible & !KNOWN != 0 {
            let message =
                format!("the file system has unknown features {:#x}", incompatible & !KNOWN);
            return Err(Error::unsupported("ext.feature", message));
        }
        let mut shape = Shape::of(&raw, bytes)?;
        let mut warnings = Vec::new();
        if incompatible & NEEDS_RECOVERY != 0 && compatible & HAS_JOURNAL != 0 {
            let number = match u32_at(&raw, 224) {
                0 => 8,
                number => number,
            };
            let (waiting, is_whole) = journal::read(&shape, Inode::read(&shape, number)?)?;
            shape.waiting = waiting.into();
            // The superblock may wait too, as after the file system grew in use.
            if shape.waiting.contains_key(&(SUPERBLOCK / shape.block)) {
                shape.read(&mut raw, SUPERBLOCK / shape.block, SUPERBLOCK % shape.block)?;
                let mut grown = Shape::of(&raw, shape.bytes)?;
                grown.waiting = shape.waiting;
                shape = grown;
            }
            let warning =
                "the file system was in use: it is shown with the changes that wait in its journal";
            warnings.push(warning.into());
            if !is_whole {
                warnings.push("the journal has fast commits, which are not shown".into());
            }
        }
        let space = Space::of(&raw)?;
        let (len, held) = (shape.bytes.len(), shape.blocks.saturating_mul(shape.block));
        if held > len {
            warnings.push(format!(
                "the file system has {held} bytes and the volume {len}: what lies behind its end is not read"
            ));
        }
        let kind = match () {
            () if incompatible & (HAS_EXTENTS | IS_64_BIT) != 0 => "ext4",
            () if compatible & HAS_JOURNAL != 0 => "ext3",
            () => "ext2",
        };
        let label = raw[120..136].split(|byte| *byte == 0).next().unwrap_or_default();
        let label = String::from_utf8_lossy(label).into_owned();
        let hex = |range: std::ops::Range<usize>| -> String {
            raw[range].iter().map(|byte| format!("{byte:02x}")).collect()
        };
        let id = [104..108, 108..110, 110..112, 112..114, 114..120].map(hex).join("-");
        let label = Some(label).filter(|label| !label.is_empty());
        let about =
            About { kind, label, id: Some(id), warnings, has_backslash: false, is_cut: held > len };
        let clean = Clean::of(&raw);
        Ok(Self { about, shape, space, clean })
    }

    fn inode(&self, item: &Item) -> Result<Inode> {
        match item.node {
            Node::Inode(number) => Inode::read(&self.shape, number),
            _ => Err(Error::damaged("ext.node", "this is no file of ext")),
        }
    }

    fn item(&self, name: Vec<u8>, number: u32) -> Item {
        let facts = Inode::read(&self.shape, number).map(|inode| inode.facts());
        Item { name, node: Node::Inode(number), facts }
    }

    /// Shows the names of a folder with their inodes, until one is taken.
    fn names(&self, folder: &Inode, mut take: impl FnMut(&[u8], u32) -> bool) -> Result<()> {
        let most = self.shape.bytes.len().min(MOST_FOLDER);
        let damaged = |what: String| Err(Error::damaged("ext.folder", what));
        if folder.size > most {
            return damaged(format!(
                "the folder has {} bytes, expected {most} at most",
                folder.size
            ));
        }
        let mut file = File::new(self.shape.clone(), folder.clone());
        let mut block = vec![0; self.shape.block as usize];
        let mut at = 0;
        while at < file.len() {
            let behind = file.hole_end(at);
            if behind > at {
                at = behind;
                continue;
            }
            let len = (file.len() - at).min(self.shape.block) as usize;
            let block = &mut block[..len];
            file.read_at(block, at)?;
            let mut rest = &block[..];
            while rest.len() >= 8 {
                let len = match usize::from(u16_at(rest, 4)) {
                    0 | 0xFFFF if rest.len() == 1 << 16 => rest.len(),
                    len => len,
                };
                let name_len = number(rest, 6, 1) as usize;
                if len < 8 + name_len || !len.is_multiple_of(4) || len > rest.len() {
                    return damaged(format!(
                        "the folder has an entry of {len} bytes in its block at {at}"
                    ));
                }
                let (inode, name) = (u32_at(rest, 0), &rest[8..8 + name_len]);
                if inode != 0 && !matches!(name, [] | b"." | b"..") && take(name, inode) {
                    return Ok(());
                }
                rest = &rest[len..];
            }
            at += len as u64;
        }
        Ok(())
    }
}

impl System for Ext {
    fn about(&self) -> &About {
        &self.about
    }

    fn root(&self) -> Result<Item> {
        let facts = Ok(Inode::read(&self.shape, ROOT)?.facts());
        Ok(Item { name: Vec::new(), node: Node::Inode(ROOT), facts })
    }

    fn list(&self, folder: &Item) -> Result<Vec<Item>> {
        let (mut items, mut broken) = (Vec::new(), 0);
        self.names(&self.inode(folder)?, |name, number| {
            let item = self.item(name.to_vec(), number);
            broken += usize::from(item.facts.is_err());
            items.push(item);
            broken > MOST_BROKEN || check_count(items.len()).is_err()
        })?;
        if broken > MOST_BROKEN {
            let message = format!("the folder has more than {MOST_BROKEN} names of no inode");
            return Err(Error::damaged("ext.folder", message));
        }
        check_count(items.len())?;
        Ok(items)
    }

    fn child(&self, folder: &Item, name: &[u8]) -> Result<Option<Item>> {
        let inode = self.inode(folder)?;
        inode.facts().check_readable()?;
        let mut found = None;
        self.names(&inode, |other, number| {
            found = (other == name).then_some(number);
            found.is_some()
        })?;
        Ok(found.map(|number| self.item(name.to_vec(), number)))
    }

    fn open(&self, file: &Item, stream: Option<&[u8]>) -> Result<Box<dyn Stream>> {
        if stream.is_some() {
            let message = "files of ext have no further streams";
            return Err(Error::new(ErrorKind::NotFound, "files.stream", message));
        }
        Ok(Box::new(File::new(self.shape.clone(), self.inode(file)?)))
    }

    fn target(&self, link: &Item) -> Result<Vec<u8>> {
        let inode = self.inode(link)?;
        inode.facts().check_readable()?;
        if let Some(target) = inode.short_target() {
            return Ok(target.to_vec());
        }
        if inode.size > MOST_TARGET {
            let message = format!("the link has a target of {} bytes", inode.size);
            return Err(Error::damaged("ext.link", message));
        }
        let mut target = vec![0; inode.size as usize];
        File::new(self.shape.clone(), inode).read_at(&mut target, 0)?;
        Ok(target)
    }

    fn stored(&self, file: &Item, stream: Option<&[u8]>) -> Result<Option<Box<dyn Stream>>> {
        let inode = self.inode(file)?;
        Ok(match stream {
            None => inode.stored(&self.shape),
            Some(_) => None,
        })
    }

    fn nature(&self, item: &Item) -> Result<Vec<u8>> {
        let inode = self.inode(item)?;
        match item.facts()?.kind {
            Kind::Link if item.facts()?.refusal.is_none() => self.target(item),
            _ => Ok(inode.nature()),
        }
    }

    fn reframed(&self, other: &dyn System, changed: &Changed) -> Result<Option<Vec<Range<u64>>>> {
        match (other as &dyn Any).downcast_ref::<Self>() {
            Some(other) => frame::reframed(&self.shape, &other.shape, changed),
            None => Ok(None),
        }
    }

    fn capacity(&self) -> u64 {
        self.shape.blocks * self.shape.block
    }

    fn free(&self, each: &mut dyn FnMut(Range<u64>)) -> Result<()> {
        self.space.free(&self.shape, each)
    }

    fn check_clean(&self) -> Result<()> {
        self.clean.check_closed(&self.shape)
    }

    fn check_free(&self) -> Result<()> {
        self.clean.check_blocks(&self.shape, &self.space)
    }
}
