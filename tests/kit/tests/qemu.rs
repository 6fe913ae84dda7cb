//! QEMU reads what the builder writes.

#![allow(clippy::disallowed_methods)]

use avhdx_testkit::build::{Block, Data, Image, Order, state};
use avhdx_testkit::naive::Chain;
use avhdx_testkit::qemu::Qemu;
use std::fs;

const MIB: u64 = 1 << 20;

/// The image is clean for QEMU, and has the same contents.
fn agrees(image: &Image) {
    let Some(qemu) = Qemu::find() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (path, raw) = (dir.path().join("i.vhdx"), dir.path().join("i.raw"));
    image.write_to(&path);
    assert!(fs::read(&path).unwrap() == image.to_bytes(), "both outputs are the same");
    qemu.check(&path);
    qemu.to_raw(&path, &raw);
    assert!(fs::read(&raw).unwrap() == image.flat(None));
}

fn scattered() -> Image {
    let mut image = Image::dynamic(20 * MIB - 512);
    for (b, seed) in [(0, 1), (3, 2), (4, 3), (19, 4)] {
        image.put(b, Block::full(Data::Pattern(seed)));
    }
    image.put(5, Block::full(Data::Bytes(b"short".to_vec())));
    image.put(7, Block::bare(state::ZERO));
    image.put(8, Block::full(Data::Zeros));
    image
}

#[test]
fn dynamic() {
    agrees(&Image::dynamic(64 * MIB));
    agrees(&scattered());
}

#[test]
fn dynamic_in_other_orders() {
    for order in [Order::Reversed, Order::Shuffled(7)] {
        let mut image = scattered();
        image.order = order;
        image.gap = 2 * MIB;
        agrees(&image);
    }
}

#[test]
fn dynamic_with_large_blocks() {
    let mut image = Image::dynamic(100 * MIB);
    image.block_size = 32 << 20;
    image.put(3, Block::full(Data::Pattern(9)));
    image.put(1, Block::full(Data::Pattern(8)));
    agrees(&image);
}

#[test]
fn fixed() {
    let mut image = Image::fixed(5 * MIB);
    image.put(2, Block::full(Data::Pattern(5)));
    agrees(&image);
    // Log and metadata after the data.
    image.bat_offset = MIB;
    image.data_offset = Some(2 * MIB);
    image.log_offset = 7 * MIB;
    image.metadata_offset = 8 * MIB;
    agrees(&image);
}

/// Conversely, the naive reader reads what QEMU writes.
#[test]
fn written_by_qemu() {
    let Some(qemu) = Qemu::find() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (path, raw) = (dir.path().join("i.vhdx"), dir.path().join("i.raw"));
    for options in
        [&[("block_size", "1048576"), ("log_size", "2097152")][..], &[("subformat", "fixed")]]
    {
        let size = 40 * MIB + 512;
        qemu.create(&path, size, options);
        qemu.io(&path, &["write -P 0x11 512 64k", "write -P 0x22 7M 2M", "flush"]);
        qemu.write_pattern(&path, size - 512, 512, 0x33);
        qemu.check(&path);
        qemu.to_raw(&path, &raw);
        let flat = Chain::open([&path]).unwrap().flat(0).unwrap();
        assert!(flat == fs::read(&raw).unwrap());
        assert_eq!((flat[511], flat[512], flat[size as usize - 1]), (0, 0x11, 0x33));
        assert!(qemu.info(&path).contains("\"vhdx\""));
        qemu.compare(("vhdx", &path), ("raw", &raw));
        qemu.from_raw(&raw, &path, options);
        assert!(Chain::open([&path]).unwrap().flat(0).unwrap() == flat);
        assert!(qemu.map(&path).starts_with('['));
    }
}
