//! Reads one file of a FAT, NTFS or ext4 partition as it was at a checkpoint.
//!
//! ```sh
//! cargo run --release --example file                                        # on disks of its own
//! cargo run --release --example file -- web.avhdx monday 2 etc/motd > motd  # partition 2 at the checkpoint "monday"
//! ```
//!
//! The file systems are read by the crates `fatfs`, `ntfs` and `ext4-view`, the partition table, a GPT or the four
//! entries of an MBR, by `gpt`. A point in time is a chain, a partition is a [`Part`] of it, and a [`Cursor`] is what
//! such crates read.
//! Without arguments, the example makes a disk for each file system, those whose tools are installed, writes a file,
//! makes a checkpoint, writes other text to the file, and reads both.

#![allow(clippy::disallowed_methods)] // the files of a user

use std::error::Error;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::process::Command;

use avhdx::ops::{Checkpoint, Export};
use avhdx::storage::{Access, Host, LocalHost};
use avhdx::{CreateOptions, Cursor, DiffChain, Disk, OpenOptions, Part, RawDisk};
use gpt::mbr::PartRecord;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const MIB: u64 = 1 << 20;
/// Where partition 1 of the disks made here begins, and its size.
const START: u64 = MIB;
const SIZE: u64 = 48 * MIB;
/// The first sector of a disk that is partitioned: its length, and where the records of the partitions are.
const MBR_LEN: usize = 512;
const MBR_RECORDS: usize = 446;
const MBR_RECORD_LEN: usize = 16;
/// The types of a partition that stands for a GPT, and of one with a FAT file system.
const OF_GPT: u8 = 0xEE;
const OF_FAT: u8 = 0x0C;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match &args[..] {
        [] => show(),
        [image, point, number, path] => {
            let chain = DiffChain::open(image)?.view_at(point)?;
            let contents = read(partition(&chain, number.parse()?)?, path)?;
            Ok(io::stdout().write_all(&contents)?)
        }
        _ => Err("usage: file IMAGE POINT PARTITION PATH".into()),
    }
}

/// A partition of the disk, by the number that its table gives it.
fn partition(disk: &DiffChain, number: u32) -> Result<Part<DiffChain>> {
    let sector = u64::from(disk.geometry().logical_sector);
    let mut first = [0; MBR_LEN];
    disk.read_at(&mut first, 0)?;
    if first[MBR_LEN - 2..] != [0x55, 0xAA] {
        return Err("the disk has no partition table".into());
    }
    let record = |n: usize| {
        let at = MBR_RECORDS + n * MBR_RECORD_LEN;
        PartRecord::from_bytes(&first[at..at + MBR_RECORD_LEN])
    };
    let records: Vec<_> = (0..4).map(record).collect::<std::result::Result<_, _>>()?;
    if !records.iter().any(|record| record.os_type == OF_GPT) {
        let index = number.checked_sub(1).ok_or("partitions are numbered from 1")? as usize;
        let found =
            records.get(index).ok_or("only the four partitions of the MBR itself are read")?;
        if found.lb_size == 0 {
            return Err("there is no such partition".into());
        }
        let start = u64::from(found.lb_start) * sector;
        return Ok(Part::new(disk.clone(), start..start + u64::from(found.lb_size) * sector)?);
    }
    let size = match sector {
        4096 => gpt::disk::LogicalBlockSize::Lb4096,
        _ => gpt::disk::LogicalBlockSize::Lb512,
    };
    let config = gpt::GptConfig::new().logical_block_size(size).writable(false);
    let table = config.open_from_device(Cursor::new(disk))?;
    let found = table.partitions().get(&number).ok_or("there is no such partition")?;
    let end = found.last_lba.checked_add(1).and_then(|end| end.checked_mul(sector));
    let start = found.first_lba.checked_mul(sector);
    let (start, end) = start.zip(end).ok_or("the partition lies outside of any disk")?;
    // Refuses what does not lie within the disk.
    Ok(Part::new(disk.clone(), start..end)?)
}

/// Reads a file of the file system on a disk, whichever it is.
fn read(disk: Part<DiffChain>, path: &str) -> Result<Vec<u8>> {
    let mut first = vec![0; 2048];
    disk.read_at(&mut first, 0)?;
    if &first[3..11] == b"NTFS    " {
        read_ntfs(&disk, path)
    } else if first[1024 + 56..1024 + 58] == [0x53, 0xEF] {
        let volume = ext4_view::Ext4::load(Box::new(Ext4Reader(Cursor::new(disk))))?;
        Ok(volume.read(&format!("/{path}")[..])?)
    } else {
        read_fat(&disk, path)
    }
}

fn read_fat(disk: &Part<DiffChain>, path: &str) -> Result<Vec<u8>> {
    // It asks for a writer even if it only reads; a point in time refuses to be written to.
    let volume = fatfs::FileSystem::new(Cursor::new(disk), fatfs::FsOptions::new())?;
    let mut contents = Vec::new();
    volume.root_dir().open_file(path)?.read_to_end(&mut contents)?;
    Ok(contents)
}

fn read_ntfs(disk: &Part<DiffChain>, path: &str) -> Result<Vec<u8>> {
    let mut cursor = io::BufReader::new(Cursor::new(disk));
    let mut volume = ::ntfs::Ntfs::new(&mut cursor)?;
    volume.read_upcase_table(&mut cursor)?;
    let mut file = volume.root_directory(&mut cursor)?;
    for name in path.split('/') {
        let index = file.directory_index(&mut cursor)?;
        let mut names = index.finder();
        let found =
            ::ntfs::indexes::NtfsFileNameIndex::find(&mut names, &volume, &mut cursor, name);
        file = found.ok_or("there is no such file")??.to_file(&volume, &mut cursor)?;
    }
    let data = file.data(&mut cursor, "").ok_or("it has no data")??;
    let mut contents = Vec::new();
    data.to_attribute()?.value(&mut cursor)?.attach(&mut cursor).read_to_end(&mut contents)?;
    Ok(contents)
}

/// `ext4-view` reads through a trait of its own.
struct Ext4Reader(Cursor<Part<DiffChain>>);

impl ext4_view::Ext4Read for Ext4Reader {
    fn read(
        &mut self,
        start: u64,
        buf: &mut [u8],
    ) -> std::result::Result<(), Box<dyn Error + Send + Sync>> {
        self.0.seek(SeekFrom::Start(start))?;
        Ok(self.0.read_exact(buf)?)
    }
}

fn show() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for (name, format) in [("fat", fat as Format), ("ext4", ext4), ("ntfs", ntfs)] {
        let image = folder.path().join(format!("{name}.vhdx"));
        partitioned(&image, name == "fat")?;
        let made = {
            let chain = OpenOptions::new().writable(true).open(&image)?;
            let Some(()) = write(&chain, format, folder.path(), "as it was\n")? else {
                println!("{name:5} the tools that make one are not installed");
                continue;
            };
            let made = Checkpoint::new().label("before").run(&chain)?;
            write(&chain, format, folder.path(), "as it is\n")?;
            chain.close()?;
            made
        };
        let chain = DiffChain::open(&made.path)?;
        for (point, disk) in [("before", chain.view_at("before")?), ("now", chain.clone())] {
            let text = String::from_utf8(read(partition(&disk, 1)?, "notes.txt")?)?;
            println!("{name:5} {point:7} {}", text.trim());
            let expected = if point == "now" { "as it is\n" } else { "as it was\n" };
            if text != expected {
                return Err(format!("{name} does not read as written").into());
            }
        }
    }
    Ok(())
}

/// Makes a volume that holds `notes.txt` in the file `raw`; `None` if it cannot be made here.
type Format = fn(&Path, &Path) -> Result<Option<()>>;

/// Puts a new volume into the partition.
fn write(chain: &DiffChain, format: Format, folder: &Path, text: &str) -> Result<Option<()>> {
    let (raw, notes) = (folder.join("volume"), folder.join("notes.txt"));
    std::fs::File::create(&raw)?.set_len(SIZE)?;
    std::fs::write(&notes, text)?;
    let Some(()) = format(&raw, &notes)? else { return Ok(None) };
    let part = partition(chain, 1)?;
    // Nothing of an earlier volume shows through.
    part.discard(0..SIZE)?;
    Export::new().onto(&RawDisk::new(LocalHost.open(&raw, Access::Read)?)?, &part)?;
    Ok(Some(()))
}

/// Makes a disk with one partition, in an MBR or in a GPT.
fn partitioned(image: &Path, is_mbr: bool) -> Result<()> {
    let disk = CreateOptions::dynamic(START + SIZE + MIB).create(image)?;
    if is_mbr {
        let (lb_start, lb_size) = ((START / 512) as u32, (SIZE / 512) as u32);
        let record = PartRecord { os_type: OF_FAT, lb_start, lb_size, ..PartRecord::zero() };
        let mut first = [0; MBR_LEN];
        first[MBR_RECORDS..MBR_RECORDS + MBR_RECORD_LEN].copy_from_slice(&record.to_bytes());
        first[MBR_LEN - 2..].copy_from_slice(&[0x55, 0xAA]);
        disk.write_at(&first, 0)?;
        return Ok(disk.close()?);
    }
    let sectors = (START + SIZE + MIB) / 512;
    gpt::mbr::ProtectiveMBR::with_lb_size((sectors - 1) as u32)
        .overwrite_lba0(&mut Cursor::new(&disk))?;
    let config = gpt::GptConfig::new().logical_block_size(gpt::disk::LogicalBlockSize::Lb512);
    let mut table = config.writable(true).create_from_device(Cursor::new(&disk), None)?;
    table.add_partition("data", SIZE, gpt::partition_types::BASIC, 0, Some(START / 512))?;
    table.write()?;
    Ok(disk.close()?)
}

fn fat(raw: &Path, notes: &Path) -> Result<Option<()>> {
    let mut file = std::fs::File::options().read(true).write(true).open(raw)?;
    fatfs::format_volume(&mut file, fatfs::FormatVolumeOptions::new())?;
    let volume = fatfs::FileSystem::new(file, fatfs::FsOptions::new())?;
    volume.root_dir().create_file("notes.txt")?.write_all(&std::fs::read(notes)?)?;
    volume.unmount()?;
    Ok(Some(()))
}

fn ext4(raw: &Path, notes: &Path) -> Result<Option<()>> {
    let files = tempfile::tempdir()?;
    std::fs::copy(notes, files.path().join("notes.txt"))?;
    run(Command::new("mkfs.ext4").args(["-q", "-F", "-d"]).arg(files.path()).arg(raw))
}

fn ntfs(raw: &Path, notes: &Path) -> Result<Option<()>> {
    let geometry = ["-q", "-F", "-f", "-s", "512", "-p", "0", "-H", "16", "-S", "63"];
    match run(Command::new("mkntfs").args(geometry).arg(raw))? {
        Some(()) => run(Command::new("ntfscp").arg("-f").arg(raw).arg(notes).arg("notes.txt")),
        None => Ok(None),
    }
}

/// Runs a tool, which may be one of the administrator's; `None` if it is not installed.
fn run(command: &mut Command) -> Result<Option<()>> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    let output = match command.env("PATH", std::env::join_paths(folders)?).output() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        output => output?,
    };
    match output.status.success() {
        true => Ok(Some(())),
        false => Err(String::from_utf8_lossy(&output.stderr).into()),
    }
}
