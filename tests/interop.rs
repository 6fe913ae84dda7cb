//! Compares the crate with other programs: images that QEMU creates during the test, and chains that libvhdi and
//! dissect.hypervisor read.
//!
//! Tests whose programs are not installed are skipped by name; with `AVHDX_INTEROP=1` they fail.
#![allow(clippy::disallowed_methods)]

mod common;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use avhdx::{CreateOptions, DiffChain, Disk, OneFlush, OpenOptions, VhdxFile};
use avhdx_testkit::build::{Block, Data, Image, Order, state, write_chain};
use avhdx_testkit::images::sha256_file;
use avhdx_testkit::naive::{Chain, Layer};
use avhdx_testkit::qemu::Qemu;
use avhdx_testkit::rng::Rng;

use common::MIB;
use common::disk::{extents_name_the_bytes, in_pieces, sum};
use common::tools::{LIBVHDI, python, said, skipped};

/// The disk's contents equal those of a raw file.
fn equals_raw(disk: &dyn Disk, raw: &Path) {
    let file = File::open(raw).unwrap();
    assert_eq!(disk.geometry().size, file.metadata().unwrap().len());
    let mut wanted = vec![0; 1 << 20];
    in_pieces(disk, 1 << 20, |at, bytes| {
        use std::io::{Read, Seek, SeekFrom};
        let wanted = &mut wanted[..bytes.len()];
        (&file).seek(SeekFrom::Start(at)).unwrap();
        (&file).read_exact(wanted).unwrap();
        assert!(bytes == wanted, "at {at} of {}", raw.display());
    });
}

/// How much of a disk is written.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fill {
    Empty,
    Full,
    Scattered,
}

/// Returns `qemu-io` commands that fill a disk to this extent.
fn writes(fill: Fill, size: u64, block: u64) -> Vec<String> {
    let mut commands = Vec::new();
    match fill {
        Fill::Empty => {}
        Fill::Full => {
            // A little in every block allocates it; small disks are written completely.
            for (n, at) in (0..size).step_by(block as usize).enumerate() {
                let len = if block <= 2 * MIB { block } else { 64 << 10 };
                let len = len.min(size - at);
                commands.push(format!("write -P {} {at} {len}", n % 255 + 1));
            }
        }
        Fill::Scattered => {
            let mut rng = Rng::new(size ^ block);
            for n in 1..12 {
                let at = rng.below(size / 512 - 400) * 512;
                let len = (1 + rng.below(400)) * 512;
                commands.push(format!("write -P {n} {at} {len}"));
            }
            // Across a block boundary, the first and the last sector, zeros over data.
            commands.push(format!("write -P 200 {} 8192", block.min(size / 2) - 4096));
            commands.push("write -P 201 0 512".into());
            commands.push(format!("write -P 202 {} 512", size - 512));
            commands.push(format!("write -z {} 65536", block.min(size / 2)));
        }
    }
    commands
}

#[test]
fn twenty_images_by_qemu() {
    let Some(qemu) = Qemu::find() else { return skipped("qemu-img") };
    let folder = tempfile::tempdir().unwrap();
    let raw = folder.path().join("raw");
    let mut made = 0;
    for block_mib in [1_u64, 2, 8, 64, 256] {
        for (subformat, fill) in [
            ("dynamic", Fill::Empty),
            ("dynamic", Fill::Full),
            ("dynamic", Fill::Scattered),
            ("fixed", Fill::Scattered),
        ] {
            let block = block_mib * MIB;
            let size = match block_mib {
                1 | 2 => 9 * MIB + 512,
                8 => 33 * MIB + 1536,
                _ => block + 5 * MIB + 512,
            };
            let path = folder.path().join("image.vhdx");
            let block_size = block.to_string();
            qemu.create(&path, size, &[("subformat", subformat), ("block_size", &block_size)]);
            let commands = writes(fill, size, block);
            if !commands.is_empty() {
                qemu.io(&path, &commands.iter().map(String::as_str).collect::<Vec<_>>());
            }
            qemu.to_raw(&path, &raw);
            let before = sha256_file(&path);
            let what = format!("{block_mib} MiB, {subformat}, {fill:?}");
            let chain = DiffChain::open(&path).unwrap_or_else(|error| panic!("{what}: {error}"));
            assert_eq!(u64::from(chain.tip().block_size()), block, "{what}");
            assert_eq!(chain.tip().info().leave_blocks_allocated, subformat == "fixed", "{what}");
            equals_raw(&chain, &raw);
            assert_eq!(sum(&chain, 70_001), sha256_file(&raw), "{what}, in odd pieces");
            extents_name_the_bytes(&chain, 0..size);
            let counts = chain.tip().count_blocks().unwrap();
            match fill {
                Fill::Empty => assert_eq!(counts.fully_present, 0, "{what}"),
                Fill::Full => assert_eq!(counts.fully_present, counts.blocks, "{what}"),
                Fill::Scattered => assert!(counts.fully_present > 0, "{what}"),
            }
            drop(chain);
            assert_eq!(sha256_file(&path), before, "{what} was changed");
            made += 1;
        }
    }
    assert_eq!(made, 20);
}

/// A log that a kill leaves, of commits of one flush each: its newest entry needs those before, a page of which is
/// made as if it had been lost.
#[test]
fn qemu_replays_a_log_whose_tail_trails() {
    let Some(qemu) = Qemu::find() else { return skipped("qemu-img") };
    let folder = tempfile::tempdir().unwrap();
    let [live, left, raw] = ["live.vhdx", "left.vhdx", "raw"].map(|name| folder.path().join(name));
    drop(CreateOptions::dynamic(600 * MIB).block_size(1 << 20).create(&live).unwrap());
    let options = OpenOptions::new().writable(true).one_flush(OneFlush::Always);
    let image = options.open_image(&live).unwrap();
    let mut model = Vec::new();
    // The ninth flush writes the pages of the eight before to their places.
    for i in 0..9 {
        // The entries of blocks from 512 on are in another page of the table.
        let at = (i + i % 2 * 512) * MIB + 4096 * i;
        let mut bytes = vec![0; 8192];
        Rng::new(i).fill(&mut bytes);
        image.write_at(&bytes, at).unwrap();
        image.flush().unwrap();
        model.push((at, bytes));
    }
    std::fs::copy(&live, &left).unwrap();
    let mut file = std::fs::read(&left).unwrap();
    let (tail, position) = newest_entry(&file);
    assert_ne!(tail, position, "the newest entry needs another");
    let second = Layer::from_bytes(file.clone()).unwrap().bat().start as usize + 4096;
    file[second..][..4096].fill(0);
    std::fs::write(&left, &file).unwrap();
    let naive = Chain::open([&left]).unwrap();
    let chain = DiffChain::open(&left).unwrap();
    assert!(chain.layers()[0].log_pending);
    for (at, bytes) in &model {
        let mut found = vec![0; bytes.len()];
        chain.read_at(&mut found, *at).unwrap();
        assert!(found == *bytes && naive.read(0, *at, bytes.len()).unwrap() == *bytes, "at {at}");
    }
    drop((naive, chain));
    qemu.repair(&left);
    qemu.to_raw(&left, &raw);
    let raw = std::fs::read(&raw).unwrap();
    for (at, bytes) in &model {
        assert!(raw[*at as usize..][..bytes.len()] == *bytes, "at {at}");
    }
}

/// A log that a kill leaves right behind its start: QEMU replays what lies there alone.
#[test]
fn qemu_replays_a_log_that_has_wrapped() {
    let Some(qemu) = Qemu::find() else { return skipped("qemu-img") };
    let folder = tempfile::tempdir().unwrap();
    let mut checked = 0;
    for phase in 0..4 {
        let [live, left, raw] =
            ["live.vhdx", "left.vhdx", "raw"].map(|name| folder.path().join(name));
        drop(CreateOptions::dynamic(8 * 512 * MIB).block_size(1 << 20).create(&live).unwrap());
        let options = OpenOptions::new().writable(true).one_flush(OneFlush::Always);
        let image = options.open_image(&live).unwrap();
        // An entry of several pages, so that the log ends elsewhere in the turn of eight flushes.
        for page in 0..2 * phase {
            image.write_at(&[0xEE; 512], (page * 512 + 300) * MIB).unwrap();
        }
        image.flush().unwrap();
        let place = |n: u64| (n % 8 * 512 + n / 8) * MIB;
        for n in 0..134 {
            image.write_at(&[n as u8 | 1; 512], place(n)).unwrap();
            image.flush().unwrap();
            // QEMU refuses a single entry behind the start.
            let position = if n < 110 { 0 } else { position_of_newest(&live) };
            if !(8192..0x5000).contains(&position) {
                continue;
            }
            checked += 1;
            let sparse = Command::new("cp").arg("--sparse=always").args([&live, &left]).status();
            assert!(sparse.unwrap().success());
            qemu.repair(&left);
            qemu.to_raw(&left, &raw);
            let raw = File::open(&raw).unwrap();
            for n in 0..=n {
                let mut found = [0; 512];
                raw.read_exact_at(&mut found, place(n)).unwrap();
                assert!(
                    found == [n as u8 | 1; 512],
                    "phase {phase}, write {n}, entry at {position}"
                );
            }
        }
        drop(image);
        std::fs::remove_file(live).unwrap();
    }
    assert!(checked >= 4, "{checked}");
}

/// Where in the log of an image of ours, which follows the first MiB, the newest entry is.
fn position_of_newest(path: &Path) -> u64 {
    let mut log = vec![0; MIB as usize];
    File::open(path).unwrap().read_exact_at(&mut log, MIB).unwrap();
    let sectors = log.chunks(4096).zip((0..).step_by(4096));
    let entries = sectors.filter(|(sector, _)| sector.starts_with(b"loge"));
    let number = |sector: &[u8]| u64::from_le_bytes(sector[16..24].try_into().unwrap());
    entries.max_by_key(|(sector, _)| number(sector)).unwrap().1
}

/// The tail and the position of the entry with the highest sequence number in the log of an image,
/// \[MS-VHDX\] 2.3.1.1.
fn newest_entry(file: &[u8]) -> (u64, u64) {
    let u64_at = |at: usize| u64::from_le_bytes(file[at..at + 8].try_into().unwrap());
    let log = Layer::from_bytes(file.to_vec()).unwrap().log();
    let entries =
        (log.start..log.end).step_by(4096).filter(|at| &file[*at as usize..][..4] == b"loge");
    let newest = entries.max_by_key(|at| u64_at(*at as usize + 16)).unwrap();
    let tail = u32::from_le_bytes(file[newest as usize + 12..][..4].try_into().unwrap());
    (tail.into(), newest - log.start)
}

/// A chain that the other readers read correctly: one block size, one disk size, runs of sectors that
/// start and end at bytes of the bitmap, and no UNMAPPED blocks.
fn plain_chain() -> Vec<Image> {
    let mut base = Image::dynamic(9 * MIB - 4096);
    for b in [0, 1, 2, 4, 7, 8] {
        base.put(b, Block::full(Data::Pattern(b)));
    }
    let mut mid = base.new_child();
    mid.order = Order::Reversed;
    mid.put(0, Block::partial_runs(Data::Pattern(20), &[(0, 8), (64, 800)]));
    mid.put(1, Block::full(Data::Pattern(21)));
    mid.put(3, Block::partial_runs(Data::Pattern(23), &[(2040, 8)]));
    let mut tip = mid.new_child();
    tip.put(0, Block::partial_runs(Data::Pattern(30), &[(8, 8), (1024, 512)]));
    tip.put(2, Block::partial_runs(Data::Pattern(31), &[(16, 2032)]));
    tip.put(4, Block::bare(state::ZERO));
    tip.put(8, Block::partial_runs(Data::Pattern(32), &[(0, 8), (2024, 16)]));
    vec![base, mid, tip]
}

/// `dissect.hypervisor`, read block by block because its reads across blocks are wrong.
const DISSECT: &str = r"
import hashlib, pathlib, sys
from dissect.hypervisor.disk.vhdx import VHDX
for path in sys.argv[1:]:
    disk = VHDX(pathlib.Path(path))
    total = hashlib.sha256()
    per_block = disk.block_size // disk.sector_size
    sectors = disk.size // disk.sector_size
    for first in range(0, sectors, per_block):
        total.update(disk.read_sectors(first, min(per_block, sectors - first)))
    print(total.hexdigest())
";

/// A base and two children created and written by this crate, with the checksum of the flat disk at each. Limited to
/// what the other readers read correctly: runs of whole bitmap bytes, and zeroed blocks only with `zeros`, which
/// libvhdi misreads.
fn written_chain(
    folder: &Path,
    sector: u32,
    blocks: [u32; 3],
    zeros: bool,
) -> Vec<(PathBuf, String)> {
    let size = 20 * MIB;
    let mut flat = vec![0; size as usize];
    let mut rng = Rng::new(u64::from(sector) + u64::from(zeros));
    let mut layers: Vec<(PathBuf, String)> = Vec::new();
    for (n, block) in blocks.into_iter().enumerate() {
        let path = folder.join(format!("written{n}.vhdx"));
        let options = match layers.last() {
            None => CreateOptions::dynamic(size).logical_sector(sector),
            Some((parent, _)) => CreateOptions::child_of(&VhdxFile::open(parent).unwrap()).unwrap(),
        };
        drop(options.block_size(block).create(&path).unwrap());
        let chain = OpenOptions::new().writable(true).open(&path).unwrap();
        let unit = 8 * u64::from(sector);
        for _ in 0..30 {
            let len = (1 + rng.below(60)) * unit;
            let at = rng.below((size - len) / unit) * unit;
            let bytes = &mut flat[at as usize..(at + len) as usize];
            rng.fill(bytes);
            chain.write_at(bytes, at).unwrap();
        }
        let whole = u64::from(block)..2 * u64::from(block);
        rng.fill(&mut flat[whole.start as usize..whole.end as usize]);
        chain.write_at(&flat[whole.start as usize..whole.end as usize], whole.start).unwrap();
        if zeros {
            let whole = 2 * u64::from(block)..3 * u64::from(block);
            flat[whole.start as usize..whole.end as usize].fill(0);
            chain.discard(whole).unwrap();
        }
        chain.close().unwrap();
        layers.push((path, avhdx_testkit::images::sha256_hex(&flat[..])));
    }
    layers
}

#[test]
fn chains_that_the_crate_wrote_as_dissect_and_libvhdi_read_them() {
    let mib = MIB as u32;
    let (mut read, mut layers) = (0, 0);
    for (sector, blocks, zeros) in [
        (512, [2 * mib, 2 * mib, 2 * mib], false),
        (512, [mib, mib, mib], true),
        (4096, [2 * mib, 2 * mib, 2 * mib], false),
        (4096, [mib, mib, mib], true),
        // Blocks get smaller upwards: dissect.hypervisor misreads a parent across block boundaries.
        (512, [4 * mib, 2 * mib, mib], false),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let written = written_chain(folder.path(), sector, blocks, zeros);
        let (paths, sums): (Vec<PathBuf>, Vec<String>) = written.into_iter().unzip();
        let what = format!("sectors of {sector}, blocks of {blocks:?}, zeros: {zeros}");
        let ours = paths.iter().map(|path| sum(&DiffChain::open(path).unwrap(), 1 << 20));
        assert_eq!(ours.collect::<Vec<_>>(), sums, "avhdx, {what}");
        layers += paths.len();
        if let Some(theirs) = python("dissect.hypervisor.disk.vhdx", DISSECT, &paths) {
            assert_eq!(theirs, sums, "dissect.hypervisor, {what}");
            read += paths.len();
        }
        if !zeros && let Some(theirs) = python("pyvhdi", LIBVHDI, &paths) {
            assert_eq!(theirs, sums, "libvhdi, {what}");
            read += paths.len();
        }
    }
    println!("{layers} layers written, {read} read back alike by the other readers");
}

#[test]
fn chains_as_dissect_reads_them() {
    let folder = tempfile::tempdir().unwrap();
    let mut large = plain_chain();
    large.iter_mut().for_each(|image| image.logical_sector = 4096);
    // With sectors of 4096 bytes a block has 256 of them.
    large[1].blocks.clear();
    large[2].blocks.clear();
    large[1].put(1, Block::partial_runs(Data::Pattern(1), &[(8, 16)]));
    large[2].put(1, Block::partial_runs(Data::Pattern(2), &[(0, 8), (16, 240)]));
    let mut fixed = vec![Image::fixed(5 * MIB)];
    fixed[0].put(3, Block::full(Data::Pattern(4)));
    for (name, images) in [("plain", plain_chain()), ("large", large), ("fixed", fixed)] {
        let folder = folder.path().join(name);
        std::fs::create_dir(&folder).unwrap();
        let paths = write_chain(&folder, &images);
        let Some(theirs) = python("dissect.hypervisor.disk.vhdx", DISSECT, &paths) else { return };
        let ours: Vec<String> =
            paths.iter().map(|path| sum(&DiffChain::open(path).unwrap(), 1 << 20)).collect();
        assert_eq!(theirs, ours, "{name}");
    }
}

/// Runs `vhdiinfo` on each layer: sizes, sectors and kind.
#[test]
fn facts_as_libvhdi_tells_them() {
    let run = |path: &Path| Command::new("vhdiinfo").arg(path).output();
    if !Command::new("vhdiinfo").arg("-V").output().is_ok_and(|output| output.status.success()) {
        return skipped("vhdiinfo");
    }
    let folder = tempfile::tempdir().unwrap();
    let mut paths: Vec<PathBuf> = write_chain(folder.path(), &plain_chain());
    let mut others = [Image::fixed(5 * MIB), Image::dynamic(64 << 30), Image::dynamic(12 * MIB)];
    others[2].logical_sector = 4096;
    for (n, image) in others.iter().enumerate() {
        paths.push(folder.path().join(format!("other{n}.vhdx")));
        image.write_to(&paths[paths.len() - 1]);
    }
    for path in paths {
        let theirs = said(&run(&path).unwrap());
        let image = VhdxFile::open(&path).unwrap();
        let info = image.info();
        let kind = match (info.has_parent, info.leave_blocks_allocated) {
            (true, _) => "Differential",
            (false, true) => "Fixed",
            (false, false) => "Dynamic",
        };
        for fact in [
            format!("({} bytes)", image.geometry().size),
            format!("Bytes per sector\t: {} bytes", image.geometry().logical_sector),
            format!("Disk type\t\t: {kind}"),
        ] {
            assert!(theirs.contains(&fact), "{fact:?} of {} in {theirs}", path.display());
        }
    }
}
