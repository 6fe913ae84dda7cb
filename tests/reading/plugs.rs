//! Partition and file-system crates read a chain through its cursor: `gpt`, `fatfs`, `ntfs`, `ext4-view`.
//!
//! The file systems are created by their own tools. Tests whose tools are not installed are skipped by
//! name; with `AVHDX_INTEROP=1` they fail.

use std::error::Error;
use std::ffi::OsStr;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use avhdx::storage::{MemStorage, Storage};
use avhdx::{Cursor, DiffChain, Disk, DiskExt, OpenOptions, RawDisk, VhdxFile};
use avhdx_testkit::build::{Block, Data, Image};

use crate::common::disk::reads_as;
use crate::common::{MIB, in_memory, open_images};

/// Finds an administrator's tool, whose folder may not be on the path.
fn tool(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    let found = folders.map(|folder| folder.join(name)).find(|path| path.is_file());
    if found.is_none() {
        let wanted = std::env::var_os("AVHDX_INTEROP").is_some_and(|value| value == "1");
        assert!(!wanted, "AVHDX_INTEROP=1, but {name} is not to be found");
        eprintln!("skipped: {name} is not to be found");
    }
    found
}

fn run(tool: &Path, args: &[&OsStr]) {
    let output = Command::new(tool).args(args).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{} {args:?}: {said}", tool.display());
}

/// A file of zeros for a file system.
fn blank(folder: &Path, size: u64) -> PathBuf {
    let path = folder.join("raw");
    std::fs::File::create(&path).unwrap().set_len(size).unwrap();
    path
}

/// A base that holds the first disk, and a child that holds the differences of the second.
fn chain_of(before: &[u8], after: &[u8]) -> DiffChain {
    assert_eq!(before.len(), after.len());
    let mut base = Image::dynamic(before.len() as u64);
    for (b, block) in before.chunks(MIB as usize).enumerate() {
        if block.iter().any(|byte| *byte != 0) {
            base.put(b as u64, Block::full(Data::Bytes(block.to_vec())));
        }
    }
    let mut child = base.new_child();
    let blocks = before.chunks(MIB as usize).zip(after.chunks(MIB as usize));
    for (b, (old, new)) in blocks.enumerate().filter(|(_, (old, new))| old != new) {
        // Sectors that the child does not own hold wrong bytes on purpose.
        let mut own = vec![0xEE; new.len()];
        let mut bits = Vec::new();
        for (i, (old, new)) in old.chunks(512).zip(new.chunks(512)).enumerate() {
            bits.push(old != new);
            if old != new {
                own[i * 512..][..512].copy_from_slice(new);
            }
        }
        child.put(b as u64, Block::partial(Data::Bytes(own), bits));
    }
    assert!(!child.blocks.is_empty(), "the child changes something");
    let chain = open_images(OpenOptions::new(), &[base, child]).unwrap();
    reads_as(&chain, after);
    chain
}

/// The disk below the tip.
fn base_of(chain: &DiffChain) -> DiffChain {
    chain.view(chain.layers()[1].id).unwrap()
}

/// A text of more than a few sectors.
fn text(who: &str) -> Vec<u8> {
    format!("a line of the {who}\n").repeat(700).into_bytes()
}

/// Replaces every occurrence of a text by another of the same length.
fn replaced(disk: &[u8], old: &[u8], new: &[u8]) -> Vec<u8> {
    assert_eq!(old.len(), new.len());
    let mut disk = disk.to_vec();
    let mut at = 0;
    let mut count = 0;
    while let Some(found) = disk[at..].chunks(512).position(|sector| old.starts_with(sector)) {
        let start = at + found * 512;
        assert_eq!(&disk[start..start + old.len()], old, "the file lies in one piece");
        disk[start..start + new.len()].copy_from_slice(new);
        at = start + new.len().next_multiple_of(512);
        count += 1;
    }
    assert_eq!(count, 1, "the text stands in the disk");
    disk
}

/// `ext4-view` reads through a trait of its own; this adapts a cursor to it.
struct Ext4Reader(Cursor<DiffChain>);

impl ext4_view::Ext4Read for Ext4Reader {
    fn read(
        &mut self,
        start: u64,
        buf: &mut [u8],
    ) -> Result<(), Box<dyn Error + Send + Sync + 'static>> {
        self.0.seek(SeekFrom::Start(start))?;
        Ok(self.0.read_exact(buf)?)
    }
}

#[test]
fn ext4_view() {
    let Some(mkfs) = tool("mkfs.ext4") else { return };
    let folder = tempfile::tempdir().unwrap();
    let files = folder.path().join("files");
    std::fs::create_dir_all(files.join("etc")).unwrap();
    std::fs::write(files.join("etc/motd"), text("base")).unwrap();
    let raw = blank(folder.path(), 16 * MIB);
    run(&mkfs, &["-q".as_ref(), "-F".as_ref(), "-d".as_ref(), files.as_ref(), raw.as_ref()]);
    let before = std::fs::read(&raw).unwrap();
    let after = replaced(&before, &text("base"), &text("tips"));
    let chain = chain_of(&before, &after);
    for (disk, who) in [(base_of(&chain), "base"), (chain, "tips")] {
        let fs = ext4_view::Ext4::load(Box::new(Ext4Reader(Cursor::new(disk)))).unwrap();
        assert!(fs.read("/etc/motd").unwrap() == text(who), "{who}");
        let names: Vec<_> = fs
            .read_dir("/etc")
            .unwrap()
            .map(|e| e.unwrap().file_name().as_str().unwrap().to_owned())
            .collect();
        assert!(names.contains(&"motd".to_owned()), "{names:?}");
    }
}

#[test]
fn fatfs() {
    let Some(mkfs) = tool("mkfs.vfat") else { return };
    let folder = tempfile::tempdir().unwrap();
    let raw = blank(folder.path(), 8 * MIB);
    run(&mkfs, &[raw.as_ref()]);
    // The crate writes through a cursor, too.
    let storage = Arc::new(MemStorage::new(std::fs::read(&raw).unwrap()));
    let disk = RawDisk::new(Arc::clone(&storage) as Arc<dyn Storage>).unwrap();
    let write = |name: &str, contents: &[u8]| {
        let fs = ::fatfs::FileSystem::new(Cursor::new(&disk), ::fatfs::FsOptions::new()).unwrap();
        let folder = fs.root_dir().create_dir("logs").unwrap();
        let mut file = folder.create_file(name).unwrap();
        file.truncate().unwrap();
        file.write_all(contents).unwrap();
        file.flush().unwrap();
    };
    let bytes = || {
        let mut bytes = vec![0; 8 << 20];
        disk.read_at(&mut bytes, 0).unwrap();
        bytes
    };
    write("old name.txt", &text("base"));
    let before = bytes();
    write("a new and long name.txt", &text("tips"));
    let chain = chain_of(&before, &bytes());
    let read = |disk: &dyn Disk, name: &str| {
        // It asks for a writer even if it only reads.
        let fs = ::fatfs::FileSystem::new(Cursor::new(disk), ::fatfs::FsOptions::new()).unwrap();
        let mut contents = Vec::new();
        let opened = fs.root_dir().open_file(&format!("logs/{name}"));
        let read = opened.and_then(|mut file| file.read_to_end(&mut contents));
        read.map(|_| contents)
    };
    assert!(read(&chain, "a new and long name.txt").unwrap() == text("tips"));
    assert!(read(&chain, "old name.txt").unwrap() == text("base"));
    let base = base_of(&chain);
    assert!(read(&base, "old name.txt").unwrap() == text("base"));
    let missing = read(&base, "a new and long name.txt").unwrap_err();
    assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    // A write is refused before anything changes.
    let fs = ::fatfs::FileSystem::new(chain.cursor(), ::fatfs::FsOptions::new()).unwrap();
    let error = fs.root_dir().create_file("new").map(drop).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
}

#[test]
fn ntfs() {
    let (Some(mkfs), Some(copy)) = (tool("mkntfs"), tool("ntfscp")) else { return };
    let folder = tempfile::tempdir().unwrap();
    let raw = blank(folder.path(), 8 * MIB);
    let args = ["-q", "-F", "-f", "-s", "512", "-p", "0", "-H", "16", "-S", "63"].map(OsStr::new);
    run(&mkfs, &[&args[..], &[raw.as_os_str()]].concat());
    let put = |name: &str, who: &str| {
        let file = folder.path().join(name);
        std::fs::write(&file, text(who)).unwrap();
        run(&copy, &["-f".as_ref(), raw.as_ref(), file.as_ref(), name.as_ref()]);
        std::fs::read(&raw).unwrap()
    };
    let before = put("first.txt", "base");
    let chain = chain_of(&before, &put("second.txt", "tips"));
    let read = |disk: &dyn Disk, name: &str| {
        let mut cursor = io::BufReader::new(Cursor::new(disk));
        let mut fs = ::ntfs::Ntfs::new(&mut cursor).unwrap();
        fs.read_upcase_table(&mut cursor).unwrap();
        let root = fs.root_directory(&mut cursor).unwrap();
        let index = root.directory_index(&mut cursor).unwrap();
        let mut finder = index.finder();
        let found = ::ntfs::indexes::NtfsFileNameIndex::find(&mut finder, &fs, &mut cursor, name)?;
        let file = found.unwrap().to_file(&fs, &mut cursor).unwrap();
        let item = file.data(&mut cursor, "").unwrap().unwrap();
        let attribute = item.to_attribute().unwrap();
        let value = attribute.value(&mut cursor).unwrap();
        let mut contents = Vec::new();
        value.attach(&mut cursor).read_to_end(&mut contents).unwrap();
        Some(contents)
    };
    assert!(read(&chain, "FIRST.TXT").unwrap() == text("base"));
    assert!(read(&chain, "second.txt").unwrap() == text("tips"));
    let base = base_of(&chain);
    assert!(read(&base, "first.txt").unwrap() == text("base"));
    assert!(read(&base, "second.txt").is_none());
}

#[test]
fn gpt() {
    let config =
        || ::gpt::GptConfig::new().logical_block_size(::gpt::disk::LogicalBlockSize::Lb512);
    let storage = Arc::new(MemStorage::new(vec![0; 16 << 20]));
    let disk = RawDisk::new(storage).unwrap();
    let bytes = || {
        let mut bytes = vec![0; 16 << 20];
        disk.read_at(&mut bytes, 0).unwrap();
        bytes
    };
    ::gpt::mbr::ProtectiveMBR::with_lb_size((16 << 20) / 512 - 1)
        .overwrite_lba0(&mut Cursor::new(&disk))
        .unwrap();
    let mut table = config().writable(true).create_from_device(Cursor::new(&disk), None).unwrap();
    table.add_partition("boot", 2 << 20, ::gpt::partition_types::EFI, 0, None).unwrap();
    table.write().unwrap();
    let before = bytes();
    let mut table = config().writable(true).open_from_device(Cursor::new(&disk)).unwrap();
    table.add_partition("root", 4 << 20, ::gpt::partition_types::LINUX_FS, 0, None).unwrap();
    table.write().unwrap();
    let chain = chain_of(&before, &bytes());

    let names = |disk: DiffChain| {
        let table = config().writable(false).open_from_device(Cursor::new(disk)).unwrap();
        assert!(table.primary_header().is_ok() && table.backup_header().is_ok());
        let partitions = table.partitions().values();
        partitions
            .map(|p| (p.name.clone(), (p.last_lba - p.first_lba + 1) * 512))
            .collect::<Vec<_>>()
    };
    assert_eq!(names(chain.clone()), [("boot".into(), 2 << 20), ("root".into(), 4 << 20)]);
    assert_eq!(names(base_of(&chain)), [("boot".into(), 2 << 20)]);
    let table = config().writable(true).open_from_device(Cursor::new(chain)).unwrap();
    assert!(table.write().is_err(), "the disk is open for reading only");
}

#[test]
fn cursors_of_disks_that_cannot_be_written_to() {
    let mut base = Image::dynamic(2 * MIB);
    base.put(0, Block::full(Data::Pattern(1)));
    let tip = base.new_child();
    let image =
        OpenOptions::new().open_file(in_memory(std::slice::from_ref(&base)).remove(0)).unwrap();
    let chain = open_images(OpenOptions::new(), &[base, tip]).unwrap();
    let disks: [&dyn Disk; 2] = [&image, &chain];
    for disk in disks {
        let mut cursor = Cursor::new(disk);
        for at in [0, 1, 2 * MIB - 1, 2 * MIB, 3 * MIB] {
            cursor.seek(SeekFrom::Start(at)).unwrap();
            for buf in [&b"x"[..], b"", &[0; 5000]] {
                let error = cursor.write(buf).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{} at {at}", buf.len());
                // The crate's own error is inside.
                let inner = error.into_inner().unwrap().downcast::<avhdx::Error>().unwrap();
                assert_eq!(inner.kind(), avhdx::ErrorKind::ReadOnly);
            }
            assert_eq!(cursor.stream_position().unwrap(), at, "a refused write moves nothing");
        }
        cursor.flush().unwrap();
        assert_eq!(cursor.seek(SeekFrom::Current(-3)).unwrap(), 3 * MIB - 3);
        assert_eq!(cursor.read(&mut [0; 10]).unwrap(), 0, "past the end there is nothing");
        assert_eq!(cursor.seek(SeekFrom::End(-1)).unwrap(), 2 * MIB - 1);
        assert_eq!(cursor.read(&mut [0; 10]).unwrap(), 1);
        let error = cursor.seek(SeekFrom::Current(-1 << 40)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert_eq!(cursor.stream_position().unwrap(), 2 * MIB);
    }
    let image: VhdxFile = Cursor::new(image).into_inner();
    assert_eq!(image.geometry().size, 2 * MIB);
}

#[test]
fn cursors_of_disks_that_can() {
    let storage = Arc::new(MemStorage::new(vec![7; 5000]));
    let disk = RawDisk::new(Arc::clone(&storage) as Arc<dyn Storage>).unwrap();
    let mut cursor = disk.cursor();
    cursor.seek(SeekFrom::Start(4990)).unwrap();
    cursor.write_all(b"0123456789").unwrap();
    assert_eq!(cursor.write(b"more").unwrap(), 0, "a disk does not grow");
    assert_eq!(cursor.write_all(b"more").unwrap_err().kind(), io::ErrorKind::WriteZero);
    cursor.seek(SeekFrom::Start(4995)).unwrap();
    assert_eq!(cursor.write(b"abcdefgh").unwrap(), 5, "as much as there is room for");
    cursor.rewind().unwrap();
    let bufs = [io::IoSlice::new(b"ab"), io::IoSlice::new(b""), io::IoSlice::new(b"cde")];
    disk.write_vectored_at(&bufs, 1).unwrap();
    cursor.flush().unwrap();
    drop(disk);
    let mut expected = vec![7; 5000];
    expected[1..6].copy_from_slice(b"abcde");
    expected[4990..].copy_from_slice(b"01234abcde");
    assert_eq!(Arc::into_inner(storage).unwrap().into_bytes(), expected);
}
