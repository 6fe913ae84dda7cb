//! Releases blocks of a differencing image once its parent has their bytes.
//!
//! Readers of the chain see no change, so the image keeps its identity. The space is returned to
//! the host once the release is durable and no reader may still use it.

use std::sync::PoisonError;

use super::space::{Freed, Released};
use super::writer::Writer;
use crate::error::{Error, ErrorKind, Result};
use crate::format::bat::{BatEntry, PayloadState};
use crate::tables::Order;
use crate::types::{BlockIndex, FileOffset};

impl Writer {
    /// Releases blocks for which the parent answers from now on, durably on return; returns how
    /// many bytes of the file that freed. They are punched out of the file as far as the host can
    /// do that and no pin may name them; a later call or the end of the session punches the rest.
    /// Works in a frozen image too. Blocks without space stay unchanged, as do blocks that a
    /// tracker has marked since they were copied, and all blocks while planned writes are open.
    ///
    /// The parent must hold the bytes durably, and the caller invalidates the answers that a chain
    /// has cached.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if the image has no parent, otherwise those of
    /// [`flush`](crate::Disk::flush).
    pub(crate) fn release_blocks(&self, blocks: &[BlockIndex]) -> Result<u64> {
        if !self.core.has_parent() {
            let message = "blocks can be released only in an image with a parent";
            return Err(Error::new(ErrorKind::InvalidInput, "block.no-parent", message)
                .in_file(self.core.name()));
        }
        let mut freed = Vec::new();
        {
            // Exclusively: no change may come between the check of a block and its release.
            let state = self.change_lock.write();
            self.prepare_hidden_change()?;
            let of_disk = |block: &BlockIndex| {
                let start = self.core.layout.block_start(*block).0;
                start..self.core.layout.size().min(start + self.core.layout.block_size())
            };
            let blocks: &[BlockIndex] = if self.plans.has_any() { &[] } else { blocks };
            for block in blocks.iter().filter(|block| !state.is_changed(&of_disk(block))) {
                let _locked = self.blocks.lock_exclusive(*block);
                freed.extend(self.release_block(*block)?);
                self.limit_changes()?;
            }
        }
        self.commit()?;
        let bytes = freed.iter().map(|freed| freed.len).sum();
        if !freed.is_empty() {
            // No table names them any more: pins of the next generation cannot find them.
            let generation = self.pins().end_generation();
            self.released().push(Released { generation, freed, is_reused: false });
        }
        self.punch_released()?;
        Ok(bytes)
    }

    fn release_block(&self, block: BlockIndex) -> Result<Option<Freed>> {
        let index = self.core.layout.payload_index(block);
        let entry = self.core.bat_entry(index)?;
        match entry.payload_state() {
            PayloadState::FullyPresent | PayloadState::PartiallyPresent => {}
            _ => return Ok(None),
        }
        let start = self.core.layout.block_start(block);
        let in_disk = self.core.layout.block_size().min(self.core.layout.size() - start.0);
        let at = self.core.place_of(entry, index, start, in_disk)?;
        self.set_block(block, BatEntry::new(0, FileOffset::new(0)), Order::Any)?;
        Ok(Some(Freed { at, len: self.core.layout.block_size() }))
    }
}

impl Writer {
    /// Punches released space that no pin may name.
    pub(crate) fn punch_released(&self) -> Result<()> {
        let oldest = self.pins().oldest();
        let all = std::mem::take(&mut *self.released());
        let is_free = |released: &Released| released.generation < oldest;
        let (free, kept): (Vec<_>, Vec<_>) = all.into_iter().partition(is_free);
        self.released().extend(kept);
        free.into_iter().try_for_each(|released| {
            let punched = self.punch(&released.freed);
            if released.is_reused {
                self.space.reuse_now(released.freed);
            }
            punched
        })
    }

    fn punch(&self, freed: &[Freed]) -> Result<()> {
        for Freed { at, len } in freed {
            let range = at.get()..at.get() + len;
            self.file.punch(range).map_err(|error| {
                let error = Error::io("space.punch", "cannot return space to the host", error);
                error.in_file(self.file.name()).at(at.get())
            })?;
        }
        Ok(())
    }

    pub(super) fn released(&self) -> crate::sync::MutexGuard<'_, Vec<Released>> {
        self.released.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::io;
    use std::ops::Range;
    use std::sync::{Arc, Mutex};

    use avhdx_testkit::build::{Block, Data, Image, state};
    use avhdx_testkit::naive;

    use super::*;
    use crate::storage::{MemStorage, Storage};
    use crate::types::MIB;
    use crate::{Disk, OpenOptions, Source};

    /// A file in memory that records flushes and punches.
    #[derive(Debug)]
    struct Watched {
        bytes: MemStorage,
        flushed: Mutex<Vec<u8>>,
        punched: Mutex<Vec<Range<u64>>>,
    }

    impl Storage for Watched {
        fn name(&self) -> &str {
            "watched"
        }
        fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
            self.bytes.read_at(buf, offset)
        }
        fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
            self.bytes.write_at(buf, offset)
        }
        fn punch(&self, range: Range<u64>) -> io::Result<bool> {
            // As if only the writes before the last flush, and this punch, had reached the disk.
            let layer = naive::Layer::from_bytes(self.flushed.lock().unwrap().clone()).unwrap();
            for index in 0..layer_blocks() {
                let entry = layer.bat_entry(index).unwrap();
                let at = entry >> 20 << 20;
                let is_there = matches!(entry & 7, 6 | 7);
                assert!(!is_there || at >= range.end || at + MIB <= range.start, "{index}");
            }
            self.punched.lock().unwrap().push(range.clone());
            self.bytes.write_at(&vec![0; (range.end - range.start) as usize], range.start)?;
            Ok(true)
        }
        fn flush(&self) -> io::Result<()> {
            *self.flushed.lock().unwrap() = self.bytes();
            Ok(())
        }
        fn len(&self) -> io::Result<u64> {
            self.bytes.len()
        }
        fn set_len(&self, len: u64) -> io::Result<()> {
            self.bytes.set_len(len)
        }
    }

    fn layer_blocks() -> u64 {
        8
    }

    impl Watched {
        fn bytes(&self) -> Vec<u8> {
            let mut bytes = vec![0; self.bytes.len().unwrap() as usize];
            self.bytes.read_exact_at(&mut bytes, 0).unwrap();
            bytes
        }
    }

    fn images() -> (Image, Image) {
        let mut base = Image::dynamic(layer_blocks() * MIB);
        let mut child = base.new_child();
        for block in 0..layer_blocks() {
            base.put(block, Block::full(Data::Pattern(block + 1)));
        }
        child.put(0, Block::full(Data::Pattern(100)));
        child.put(1, Block::partial_runs(Data::Pattern(101), &[(7, 9)]));
        child.put(2, Block::bare(state::ZERO));
        child.put(4, Block::full(Data::Pattern(104)));
        (base, child)
    }

    fn watched(image: &Image) -> (Arc<Watched>, crate::VhdxFile) {
        let file = Arc::new(Watched {
            bytes: MemStorage::new(image.to_bytes()),
            flushed: Mutex::new(image.to_bytes()),
            punched: Mutex::default(),
        });
        let storage: Arc<dyn Storage> = file.clone();
        let image = OpenOptions::new().writable(true).open_file(storage).unwrap();
        (file, image)
    }

    fn places(image: &crate::VhdxFile, blocks: &[u64]) -> Vec<u64> {
        let place = |block: &u64| match image.next_extent(block * MIB + 7 * 512..(block + 1) * MIB)
        {
            Ok(Some(extent)) => match extent.source {
                Source::Data { at, .. } => at.get() / MIB * MIB,
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        };
        blocks.iter().map(place).collect()
    }

    #[test]
    fn what_is_released_is_the_parents_and_its_space_the_hosts() {
        let (base, mut model) = images();
        let (file, image) = watched(&model);
        let known = image.data_write_guid();
        let mut expected = places(&image, &[0, 1]);
        // A frozen image too.
        image.its_writer().freeze(|| Ok(())).unwrap();
        let blocks = [0, 1, 2, 3].map(BlockIndex);
        assert_eq!(image.its_writer().release_blocks(&blocks).unwrap(), 2 * MIB);
        let mut punched: Vec<u64> =
            file.punched.lock().unwrap().iter().map(|range| range.start).collect();
        expected.sort_unstable();
        punched.sort_unstable();
        assert_eq!(punched, expected);
        assert_eq!(image.its_writer().release_blocks(&blocks).unwrap(), 0);
        assert_eq!(image.data_write_guid(), known, "its children still know it");
        for block in [0, 1] {
            model.blocks.remove(&block);
        }
        let flat = model.flat(Some(&base.flat(None)));
        let naively = |bytes: Vec<u8>| {
            let chain = naive::Chain::from_bytes([base.to_bytes(), bytes]).unwrap();
            chain.flat(1).unwrap()
        };
        assert!(naively(file.flushed.lock().unwrap().clone()) == flat, "durable on return");
        image.close().unwrap();
        assert!(naively(file.bytes()) == flat);
        assert_eq!(naive::Layer::from_bytes(file.bytes()).unwrap().data_write_guid, known);
        // Later writes change the identity.
        image.its_writer().thaw();
        image.write_at(&[1; 512], 0).unwrap();
        assert_ne!(image.data_write_guid(), known);
    }

    #[test]
    fn nothing_is_punched_under_a_reader() {
        let (_, model) = images();
        let (file, image) = watched(&model);
        let pin = image.pin().unwrap();
        let [place] = places(&image, &[0])[..] else { unreachable!() };
        image.its_writer().release_blocks(&[BlockIndex(0)]).unwrap();
        assert_eq!(*file.punched.lock().unwrap(), []);
        let mut bytes = [0; 512];
        image.read_payload(&mut bytes, FileOffset::new(place)).unwrap();
        assert!(bytes[..] == file.bytes()[place as usize..][..512] && bytes != [0; 512]);
        drop(pin);
        // The next release punches it.
        image.its_writer().release_blocks(&[BlockIndex(4)]).unwrap();
        assert_eq!(file.punched.lock().unwrap().len(), 2);

        let (file, image) = watched(&model);
        let pin = image.pin().unwrap();
        image.its_writer().release_blocks(&[BlockIndex(0)]).unwrap();
        drop(pin);
        image.close().unwrap();
        assert_eq!(file.punched.lock().unwrap().len(), 1);
    }

    #[test]
    fn an_image_without_a_parent_gives_up_nothing() {
        let (base, _) = images();
        let (file, image) = watched(&base);
        let error = image.its_writer().release_blocks(&[BlockIndex(0)]).unwrap_err();
        assert_eq!((error.kind(), error.code()), (ErrorKind::InvalidInput, "block.no-parent"));
        drop(image);
        assert!(file.bytes() == base.to_bytes());
    }
}
