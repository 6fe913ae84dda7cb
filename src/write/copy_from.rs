//! Copies payload from another file without passing it through the caller.

use super::payload::{Copier, Payload};
use super::writer::Writer;
use crate::error::{Error, Result};
use crate::image::{Core, cannot_read};
use crate::mover::{PIECE, read_ahead};
use crate::storage::Storage;
use crate::types::{DiskOffset, FileOffset};

impl Writer {
    /// Writes `len` bytes, whole sectors, at `at`, as [`write_at`](crate::Disk::write_at) does,
    /// from `from_at` in another file. They are durable after a flush. If that is the file of an image, the caller pins
    /// the image before it looks that place up.
    ///
    /// # Errors
    /// Those of [`write_at`](crate::Disk::write_at), and a failure to read the other file.
    pub(crate) fn copy_from(
        &self,
        at: DiskOffset,
        len: u64,
        from: &dyn Storage,
        from_at: FileOffset,
        copier: &Copier,
    ) -> Result<()> {
        let sector = self.core.layout.sector_size();
        debug_assert!(at.0.is_multiple_of(sector) && len.is_multiple_of(sector), "whole sectors");
        self.write_whole(Payload::InFile { len, from, at: from_at, copier }, at)
    }
}

impl Writer {
    /// Writes payload of an image.
    pub(super) fn copy_payload(
        &self,
        from: &Core,
        from_at: FileOffset,
        len: u64,
        at: FileOffset,
        copier: &Copier,
    ) -> Result<()> {
        self.copy_bytes(from.storage(), from_at, len, at, copier)
    }

    /// Writes payload from another file.
    pub(super) fn copy_bytes(
        &self,
        from: &dyn Storage,
        from_at: FileOffset,
        len: u64,
        at: FileOffset,
        copier: &Copier,
    ) -> Result<()> {
        let read = |buffer: &mut [u8], at: FileOffset| {
            let read = from.read_exact_at(buffer, at.get());
            read.map_err(|error| cannot_read(from, buffer.len(), at, error))
        };
        if copier.by_host.get() {
            let copied = self.file.copy_from(from, from_at.get(), at.get(), len);
            self.wrote_payload();
            match copied {
                Ok(true) => {
                    copier.shared.set(copier.shared.get() + len);
                    return Ok(());
                }
                Ok(false) => copier.by_host.set(false),
                Err(error) => {
                    let message = format!("cannot copy {len} bytes from {}", from.name());
                    let error = Error::io("payload.copy", message, error);
                    return Err(error.in_file(self.file.name()).at(at.get()));
                }
            }
        }
        if len <= PIECE {
            let mut buffer = copier.buffer.borrow_mut();
            buffer.resize(len as usize, 0);
            read(&mut buffer, from_at)?;
            return self.write_bytes(&buffer, at.get());
        }
        let mut done = 0;
        let read_next = move |buffer: &mut Vec<u8>| {
            let start = done;
            if start == len {
                return Ok(None);
            }
            let piece = (len - start).min(PIECE);
            buffer.resize(piece as usize, 0);
            read(buffer, from_at + start)?;
            done += piece;
            Ok(Some(start))
        };
        read_ahead(read_next, |start, bytes| self.write_bytes(bytes, at.get() + start))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::io;
    use std::path::Path;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use avhdx_testkit::build::{Block, Data, Image, Order, state};
    use avhdx_testkit::naive;

    use super::*;
    use crate::error::ErrorKind;
    use crate::storage::{Access, Host, LocalHost, MemStorage, Storage};
    use crate::types::MIB;
    use crate::{Disk, DiskExt, OpenOptions, Source};

    const SIZE: u64 = 12 * MIB;

    /// A parent with blocks of all states over a base, and a child with other states.
    fn images() -> [Image; 3] {
        let mut base = Image::dynamic(SIZE);
        for block in 0..12 {
            base.put(block, Block::full(Data::Pattern(block + 1)));
        }
        let mut parent = base.new_child();
        parent.order = Order::Reversed;
        for block in 0..12 {
            match block % 4 {
                0 => parent.put(block, Block::full(Data::Pattern(block + 50))),
                1 => parent
                    .put(block, Block::partial_runs(Data::Pattern(77), &[(5, 90), (2000, 48)])),
                2 => parent.put(block, Block::bare(state::ZERO)),
                _ => &mut parent,
            };
        }
        let mut child = parent.new_child();
        // Contiguous in the file, so that several are copied at once.
        for block in [0, 1, 2, 3, 8] {
            child.put(block, Block::full(Data::Pattern(block + 150)));
        }
        for block in 4..8 {
            let runs = [(0, 1), (3, 700), (1000, 8), (2040, 8)];
            child.put(block, Block::partial_runs(Data::Pattern(200 + block), &runs));
        }
        [base, parent, child]
    }

    fn naively(layers: &[Vec<u8>]) -> Vec<u8> {
        let chain = naive::Chain::from_bytes(layers.iter().cloned()).unwrap();
        chain.flat(layers.len() - 1).unwrap()
    }

    fn open(storage: &Arc<dyn Storage>, writable: bool) -> crate::VhdxFile {
        OpenOptions::new()
            .orphan_children(true)
            .writable(writable)
            .open_file(Arc::clone(storage))
            .unwrap()
    }

    fn copy_all(parent: &crate::VhdxFile, child: &crate::VhdxFile, copier: &Copier) -> Result<u64> {
        let mut copied = 0;
        for extent in child.extents(0..SIZE) {
            let extent = extent?;
            if let Source::Data { at, .. } = extent.source {
                let len = extent.range.end - extent.range.start;
                parent.its_writer().copy_from(
                    DiskOffset(extent.range.start),
                    len,
                    child.storage(),
                    at,
                    copier,
                )?;
                copied += len;
            }
        }
        Ok(copied)
    }

    fn bytes_of(storage: &dyn Storage) -> Vec<u8> {
        let mut bytes = vec![0; storage.len().unwrap() as usize];
        storage.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    /// Copies the child's payload to the parent, checks what the parent reads as, and returns
    /// whether the host copied.
    fn copies(parent: Arc<dyn Storage>, child: Arc<dyn Storage>, share: bool) -> bool {
        let [base, a, b] = images();
        let expected = b.flat(Some(&a.flat(Some(&base.flat(None)))));
        parent.write_at(&a.to_bytes(), 0).unwrap();
        child.write_at(&b.to_bytes(), 0).unwrap();
        let (parent_image, child_image) = (open(&parent, true), open(&child, false));
        let copier = Copier::new(share);
        let known = parent_image.data_write_guid();
        let copied = copy_all(&parent_image, &child_image, &copier).unwrap();
        assert_eq!(copied, 5 * MIB + 4 * 717 * 512);
        assert_ne!(parent_image.data_write_guid(), known);
        parent_image.flush().unwrap();
        // As after a crash that follows the flush.
        assert!(naively(&[base.to_bytes(), bytes_of(&*parent)]) == expected);
        parent_image.close().unwrap();
        assert!(naively(&[base.to_bytes(), bytes_of(&*parent)]) == expected);
        assert!(bytes_of(&*child) == b.to_bytes(), "the source stays unchanged");
        assert!([0, copied].contains(&copier.shared()));
        copier.shared() == copied
    }

    fn file(folder: &Path, name: &str) -> Arc<dyn Storage> {
        LocalHost.create_new(&folder.join(name)).unwrap()
    }

    fn memory() -> Arc<dyn Storage> {
        Arc::new(MemStorage::new(Vec::new()))
    }

    #[test]
    fn copied_payload_is_that_of_the_other_image() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name| file(folder.path(), name);
        let by_host = copies(file("a"), file("b"), true);
        assert!(by_host || !cfg!(target_os = "linux"));
        assert!(!copies(file("c"), file("d"), false));
        assert!(!copies(memory(), file("e"), true));
        assert!(!copies(memory(), memory(), true));
        let (a, b) = (folder.path().join("a"), folder.path().join("c"));
        let flat = |path: &Path| {
            let file = LocalHost.open(path, Access::Read).unwrap();
            naively(&[images()[0].to_bytes(), bytes_of(&*file)])
        };
        assert!(flat(&a) == flat(&b));
    }

    /// A file whose copies fail after so many, having written a part.
    #[derive(Debug)]
    struct Failing(MemStorage, AtomicUsize);

    impl Storage for Failing {
        fn name(&self) -> &str {
            "failing"
        }
        fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
            self.0.read_at(buf, offset)
        }
        fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
            self.0.write_at(buf, offset)
        }
        fn copy_from(
            &self,
            from: &dyn Storage,
            from_at: u64,
            at: u64,
            len: u64,
        ) -> io::Result<bool> {
            let left = self.1.load(Ordering::SeqCst);
            self.1.store(left.saturating_sub(1), Ordering::SeqCst);
            let mut bytes = vec![0; if left == 0 { len / 1024 * 512 } else { len } as usize];
            from.read_exact_at(&mut bytes, from_at)?;
            self.0.write_at(&bytes, at)?;
            if left == 0 { Err(io::ErrorKind::StorageFull.into()) } else { Ok(true) }
        }
        fn flush(&self) -> io::Result<()> {
            self.0.flush()
        }
        fn len(&self) -> io::Result<u64> {
            self.0.len()
        }
        fn set_len(&self, len: u64) -> io::Result<()> {
            self.0.set_len(len)
        }
    }

    #[test]
    fn a_copy_that_fails_leaves_each_sector_as_before_or_as_copied() {
        let [base, a, b] = images();
        let before = a.flat(Some(&base.flat(None)));
        let after = b.flat(Some(&before));
        let child: Arc<dyn Storage> = Arc::new(MemStorage::new(b.to_bytes()));
        for n in 0..8 {
            let failing = Failing(MemStorage::new(a.to_bytes()), AtomicUsize::new(n));
            let failing = Arc::new(failing);
            let parent: Arc<dyn Storage> = failing.clone();
            let (image, child) = (open(&parent, true), open(&child, false));
            let copier = Copier::new(true);
            let error = copy_all(&image, &child, &copier).unwrap_err();
            assert_eq!((error.kind(), error.code()), (ErrorKind::Io, "payload.copy"));
            image.flush().unwrap();
            let found = naively(&[base.to_bytes(), bytes_of(&*parent)]);
            for (at, found) in found.chunks(512).enumerate() {
                let part = |flat: &[u8]| found == &flat[at * 512..at * 512 + 512];
                assert!(part(&before) || part(&after), "sector {at}, failure {n}");
            }
            // The copy can be repeated.
            failing.1.store(100, Ordering::SeqCst);
            copy_all(&image, &child, &copier).unwrap();
            image.close().unwrap();
            assert!(naively(&[base.to_bytes(), bytes_of(&*parent)]) == after);
        }
    }

    /// Each piece is several buffers long.
    #[test]
    fn large_pieces_are_copied_in_order_and_up_to_a_failure() {
        const LEN: u64 = 7 * MIB + 1536;
        let there = memory();
        let mut bytes = vec![0; 16 << 20];
        avhdx_testkit::rng::Rng::new(5).fill(&mut bytes);
        there.write_at(&images()[0].to_bytes(), 0).unwrap();
        let end = there.len().unwrap();
        there.write_at(&bytes, end).unwrap();
        let (here, from) = (memory(), open(&there, false));
        let options = crate::CreateOptions::dynamic(16 * MIB).block_size(16 << 20);
        drop(options.create_in(&LocalHost, Arc::clone(&here)).unwrap());
        let image = open(&here, true);
        let copier = Copier::new(true);
        for (at, first) in [(0, 0), (3 * MIB, 512), (MIB + 512, 7 * MIB)] {
            image
                .its_writer()
                .copy_from(
                    DiskOffset(at),
                    LEN,
                    from.storage(),
                    FileOffset::new(end + first),
                    &copier,
                )
                .unwrap();
            let mut found = vec![0; LEN as usize];
            image.read_at(&mut found, at).unwrap();
            assert!(found == bytes[first as usize..(first + LEN) as usize]);
        }
        assert_eq!(copier.shared(), 0);
        let before = naively(&[bytes_of(&*here)]).len();
        let late = FileOffset::new(end + (16 << 20) - 3 * MIB);
        let error = image
            .its_writer()
            .copy_from(DiskOffset(0), LEN, from.storage(), late, &copier)
            .unwrap_err();
        assert_eq!((error.kind(), error.code()), (ErrorKind::Io, "payload.read"), "{error}");
        let mut found = vec![0; 3 << 20];
        image.read_at(&mut found, 0).unwrap();
        assert!(found == bytes[13 << 20..], "what came before");
        // The writer continues to work.
        let first = FileOffset::new(end);
        image.its_writer().copy_from(DiskOffset(0), LEN, from.storage(), first, &copier).unwrap();
        image.close().unwrap();
        let found = naively(&[bytes_of(&*here)]);
        assert!(found[..LEN as usize] == bytes[..LEN as usize] && found.len() == before);
    }

    #[test]
    fn what_the_other_file_does_not_hold_is_an_error() {
        let [_, a, b] = images();
        for share in [false, true] {
            let folder = tempfile::tempdir().unwrap();
            let (parent, child) = (file(folder.path(), "a"), file(folder.path(), "b"));
            parent.write_at(&a.to_bytes(), 0).unwrap();
            child.write_at(&b.to_bytes(), 0).unwrap();
            let (image, other) = (open(&parent, true), open(&child, false));
            let end = FileOffset::new(child.len().unwrap());
            let copier = Copier::new(share);
            let error = image
                .its_writer()
                .copy_from(DiskOffset(MIB), 4096, other.storage(), end, &copier)
                .unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Io, "{error}");
            let outside = image.its_writer().copy_from(
                DiskOffset(SIZE),
                512,
                other.storage(),
                FileOffset::new(0),
                &copier,
            );
            assert_eq!(outside.unwrap_err().kind(), ErrorKind::InvalidInput);
            assert!(other.writer().is_none(), "an image opened for reading has no writer");
        }
    }
}
