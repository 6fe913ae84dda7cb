//! What images take in memory, whatever they say of themselves. A program of its own: it measures its process.

#![allow(clippy::disallowed_methods)] // tests make files of their own

#[allow(dead_code)] // what the other program uses
mod tools;

use std::fs;
use std::path::Path;

use avhdx::Disk;
use avhdx::ops::Export;
use avhdx::storage::FileStorage;
use avhdx_formats::{qcow2, vhd, vmdk};
use peak_alloc::PeakAlloc;
use tools::{name, run};

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// How much memory opening and reading an image may take.
const MOST_MEMORY: usize = 64 << 20;
const MIB: usize = 1 << 20;

/// Opens the image as each format and reads it in pieces of all sizes. Returns whether one did, and the memory taken.
fn look(path: &Path) -> (bool, usize) {
    let before = ALLOCATOR.current_usage();
    ALLOCATOR.reset_peak_usage();
    let mut buf = vec![0; 4 * MIB];
    let mut is_read = false;
    let mut whole = |disk: &dyn Disk| {
        let size = disk.geometry().size;
        for place in [0, size / 2, size - size.min(4 << 20)] {
            for len in [512, 70_000, 512 << 10, 4 * MIB] {
                let len = len.min((size - place) as usize);
                is_read |= disk.read_at(&mut buf[..len], place).is_ok();
            }
        }
        for place in [0, size / 2, size / 3] {
            drop(disk.next_extent(place..size));
        }
    };
    if let Ok(disk) = qcow2::OpenOptions::new().open(path) {
        whole(&disk);
    }
    if let Ok(disk) = vhd::OpenOptions::new().open(path) {
        whole(&disk);
    }
    if let Ok(disk) = vmdk::OpenOptions::new().open(path) {
        whole(&disk);
    }
    drop(buf);
    let taken = ALLOCATOR.peak_usage().saturating_sub(before);
    println!("{}: {} KiB", path.display(), taken / 1024);
    (is_read, taken)
}

fn is_bounded(path: &Path, what: &str) {
    let (is_read, taken) = look(path);
    assert!(is_read, "{what}: not read");
    assert!(taken <= MOST_MEMORY, "{what}: {taken} bytes");
}

/// A qcow2 image of which `count` second tables and the first one are there. `entry` is what all their entries are.
fn tables(path: &Path, bits: u32, count: u64, entry: u64, is_zstd: bool, packed: &[u8]) {
    let cluster = 1_u64 << bits;
    let file = fs::File::create(path).unwrap();
    let at = |offset: u64, bytes: &[u8]| {
        std::os::unix::fs::FileExt::write_all_at(&file, bytes, offset).unwrap();
    };
    let l1_len = (count * 8).next_multiple_of(cluster);
    let mut header = vec![0; 112];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"QFI\xfb");
    put(4, &3_u32.to_be_bytes());
    put(20, &bits.to_be_bytes());
    put(24, &(count * cluster * (cluster / 8)).min(1 << 62).to_be_bytes());
    put(36, &(count as u32).to_be_bytes());
    put(40, &cluster.to_be_bytes());
    put(72, &u64::from(is_zstd).wrapping_mul(8).to_be_bytes());
    put(96, &4_u32.to_be_bytes());
    put(100, &112_u32.to_be_bytes());
    put(104, &[u8::from(is_zstd)]);
    at(0, &header);
    let first = cluster + l1_len;
    let l1: Vec<u8> = (0..count).flat_map(|n| (first + n * cluster).to_be_bytes()).collect();
    at(cluster, &l1);
    // The first table is full, the others are holes of the file.
    at(first, &entry.to_be_bytes().repeat((cluster / 8) as usize));
    let data = first + count * cluster;
    at(data, packed);
    file.set_len(data + 4 * cluster).unwrap();
}

/// The entry of a packed cluster that begins a cluster behind the tables.
fn packed_at(bits: u32, place: u64) -> u64 {
    let shift = 62 - (bits - 8);
    1 << 62 | ((1 << (bits - 8)) - 1) << shift | place
}

#[test]
fn images_take_little_memory_whatever_they_say() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    // 2 TiB in clusters of 2 MiB, and the longest first table that there is: its disk has 2 EiB.
    for (count, what) in [(4, "2 TiB"), (1 << 21, "2 EiB")] {
        let image = path("large.qcow2");
        tables(&image, 21, count, 1, false, &[]);
        is_bounded(&image, what);
    }
    // Each packed cluster unpacks to as much as a cluster has, or wants to be more.
    let cluster = 2 * MIB;
    let first = (2 * cluster + cluster) as u64;
    let mut deflate = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
    std::io::Write::write_all(&mut deflate, &vec![0; 16 * MIB]).unwrap();
    let image = path("deflate.qcow2");
    tables(&image, 21, 1, packed_at(21, first), false, &deflate.finish().unwrap());
    is_bounded(&image, "a deflate bomb");
    // A frame of zstd with a window of 8 MiB, of blocks that repeat one byte 128 KiB times.
    let mut frame = vec![0x28, 0xB5, 0x2F, 0xFD, 0, 13 << 3];
    for n in 0..128_u32 {
        let head = 128 << 10 << 3 | 1 << 1 | u32::from(n == 127);
        frame.extend_from_slice(&head.to_le_bytes()[..3]);
        frame.push(7);
    }
    let image = path("zstd.qcow2");
    tables(&image, 21, 1, packed_at(21, first), true, &frame);
    is_bounded(&image, "a zstd bomb");
    // Images by QEMU of 2 TiB disks, in each format that it makes.
    for (format, options) in [
        ("qcow2", "cluster_size=2M"),
        ("qcow2", "cluster_size=512,size=8G"),
        ("vpc", "subformat=dynamic,size=2000G"),
        ("vmdk", "subformat=monolithicSparse"),
        ("vmdk", "subformat=streamOptimized"),
    ] {
        let ending = if format == "vpc" { "vhd" } else { format };
        let image = path(&format!("qemu.{ending}"));
        let size = if options.contains("size=") && options.contains('G') { "8G" } else { "2T" };
        let options = options.split(",size").next().unwrap();
        if run("qemu-img", &["create", "-q", "-f", format, "-o", options, name(&image), size])
            .is_some()
        {
            is_bounded(&image, &format!("{format}, {options}"));
        }
    }
    // All of a packed disk, as a copy reads it.
    let before = ALLOCATOR.current_usage();
    let disk = qcow2::OpenOptions::new().open(path("zstd.qcow2")).unwrap();
    let file = fs::File::options().read(true).write(true).create_new(true).open(path("out"));
    let out = FileStorage::from_file(file.unwrap(), "out");
    ALLOCATOR.reset_peak_usage();
    let stopped = Export::new()
        .on_progress(|now| match now.done > 32 << 20 {
            true => std::ops::ControlFlow::Break(()),
            false => std::ops::ControlFlow::Continue(()),
        })
        .run(&disk, &out);
    assert!(stopped.is_err());
    drop((stopped, out));
    let taken = ALLOCATOR.peak_usage().saturating_sub(before);
    println!("a copy: {} KiB", taken / 1024);
    assert!(taken <= MOST_MEMORY, "{taken} bytes");
}
