//! Metadata of any items: what is accepted is what was put there, and what is set is read again.

use std::sync::Arc;

use avhdx::ops::EditMetadata;
use avhdx::storage::Storage;
use avhdx::{Budget, Disk, OpenOptions};
use avhdx_testkit::build::{
    Contents, IS_REQUIRED, IS_USER, IS_VIRTUAL_DISK, ITEM_DISK_ID, ITEM_DISK_SIZE,
    ITEM_FILE_PARAMETERS, ITEM_LOGICAL_SECTOR, ITEM_PARENT_LOCATOR, ITEM_PHYSICAL_SECTOR, Image,
    Item, braced,
};
use avhdx_testkit::naive::Layer;
use uuid::Uuid;

use crate::TABLES;
use crate::common::ReadOnly;
use crate::common::sparse::{Bounds, Sparse};
use crate::compare::is_of_locator;
use crate::input::Input;
use crate::reading::is_told;

const MIB: u64 = 1 << 20;
const KNOWN: [Uuid; 6] = [
    ITEM_FILE_PARAMETERS,
    ITEM_DISK_SIZE,
    ITEM_DISK_ID,
    ITEM_LOGICAL_SECTOR,
    ITEM_PHYSICAL_SECTOR,
    ITEM_PARENT_LOCATOR,
];
const KEYS: [&str; 6] = [
    "parent_linkage",
    "parent_linkage2",
    "relative_path",
    "volume_path",
    "absolute_win32_path",
    "other",
];

pub fn run(input: &mut Input<'_>) {
    let bytes = Arc::new(image(input).to_bytes());
    let naive = Layer::from_bytes(bytes.to_vec());
    let file = Sparse::new("it", Arc::clone(&bytes), Bounds::default());
    let read = || Arc::new(ReadOnly(Arc::clone(&file) as Arc<dyn Storage>));
    let options = || OpenOptions::new().budget(Budget::new(TABLES)).orphan_children(true);
    let opened = match options().open_file(read()) {
        Ok(opened) => opened,
        Err(error) => return is_told(&error),
    };
    let naive = match naive {
        Ok(naive) => naive,
        Err(why) => {
            assert!(is_of_locator(&why), "it opens, but {why}");
            return opened.parent_link().map_or_else(|error| is_told(&error), drop);
        }
    };
    let info = opened.info();
    assert_eq!(info.geometry.size, naive.size);
    assert_eq!(u64::from(info.geometry.logical_sector), naive.sector);
    assert_eq!(u64::from(info.block_size), naive.block_size);
    assert_eq!(info.has_parent, naive.has_parent);
    if let Some(locator) = &info.locator {
        assert_eq!(locator.entries, naive.locator);
    }
    if let Err(error) = opened.parent_link() {
        is_told(&error);
    }
    let users = |layer: &Layer| -> Vec<(Uuid, Vec<u8>)> {
        let users = layer.items.iter().filter(|(_, flags, _)| flags & IS_USER != 0);
        users.map(|(id, _, bytes)| (*id, bytes.clone())).collect()
    };
    for (id, expected) in users(&naive) {
        match opened.user_item(id) {
            Ok(bytes) => assert_eq!(bytes, expected, "the item {id}"),
            Err(error) => assert!(!error.message().is_empty()),
        }
    }
    drop(opened);
    let written = options().writable(true).open_file(Arc::clone(&file) as Arc<dyn Storage>);
    let written = match written {
        Ok(written) => written,
        Err(error) => {
            assert!(file.is_as_before(), "refused, and not as before: {error}");
            return is_told(&error);
        }
    };
    let mut ids: Vec<Uuid> = users(&naive).into_iter().map(|(id, _)| id).collect();
    ids.extend([input.uuid(), KNOWN[2]]);
    let (id, bytes) = (*input.pick(&ids), input.bytes(300));
    let edit = EditMetadata::new().set(id, bytes.clone());
    let done = edit.run(&written);
    let close = written.close();
    drop(written);
    let after = Layer::from_bytes(file.bytes()).expect("an image after an edit");
    match done {
        Ok(()) => {
            close.expect("a close");
            let mut expected = users(&naive);
            expected.retain(|(there, _)| *there != id);
            let mut found = users(&after);
            let set = found.iter().position(|(there, _)| *there == id).expect("the item is set");
            assert_eq!(found.remove(set).1, bytes, "the item as it was set");
            expected.sort();
            found.sort();
            assert_eq!(found, expected, "the other items");
        }
        Err(error) => {
            assert!(!error.code().is_empty());
            assert_eq!(users(&after), users(&naive), "refused: {error}");
        }
    }
    assert_eq!(after.locator, naive.locator);
    let reopened = options().open_file(read()).unwrap_or_else(|error| panic!("again: {error}"));
    assert_eq!(reopened.geometry().size, naive.size);
}

fn image(input: &mut Input<'_>) -> Image {
    let has_parent = input.chance(1, 2);
    let mut image = match has_parent {
        true => Image::child(2 * MIB, Uuid::from_u128(input.below(3).into())),
        false => Image::dynamic(2 * MIB),
    };
    if input.chance(1, 4) {
        image.size = input.number();
    }
    if input.chance(1, 8) {
        image.block_size = *input.pick(&[1 << 20, 2 << 20, 3 << 20, 256 << 20, 0, 1 << 19]);
    }
    image.bat_length = Some(1 << 20);
    if input.chance(1, 8) {
        image.logical_sector = *input.pick(&[4096, 512, 0, 1024]);
    }
    if input.chance(1, 8) {
        image.physical_sector = *input.pick(&[4096, 512, 0, 1024]);
    }
    // What the builder computes needs a block size and a sector size.
    let (block, sector) = (image.block_size, image.logical_sector);
    let has_shape = block >= 1 << 20 && matches!(sector, 512 | 4096) && image.size < 1 << 36;
    if !has_shape {
        let parameters = [block.to_le_bytes(), (u32::from(has_parent) << 1).to_le_bytes()].concat();
        image.item("file_parameters").contents = Contents::Bytes(parameters);
        image.item("disk_size").contents = Contents::Bytes(image.size.to_le_bytes().into());
        image.item("logical_sector").contents = Contents::Bytes(sector.to_le_bytes().into());
        (image.block_size, image.logical_sector, image.size) = (1 << 20, 512, 2 * MIB);
    }
    for n in 0..input.below(8) {
        let id = match input.below(4) {
            0 => *input.pick(&KNOWN),
            _ => Uuid::from_u128(u128::from(input.below(5)) + 1),
        };
        let flags = match input.below(4) {
            0..2 => IS_USER,
            2 => *input.pick(&[0, IS_VIRTUAL_DISK, IS_REQUIRED, IS_USER | IS_REQUIRED]),
            _ => input.below(16) as u32,
        };
        let contents = Contents::Bytes(input.bytes(60));
        image.metadata.items.push(Item::new(&n.to_string(), id, flags, contents));
    }
    for _ in 0..input.below(3) {
        let n = input.below(image.metadata.items.len() as u64) as usize;
        let item = &mut image.metadata.items[n];
        match input.below(5) {
            0 => item.offset = Some((64 << 10) + input.below(2000) as u32),
            1 => item.offset = Some(input.number() as u32 % (2 << 20)),
            2 => item.length = Some(input.number() as u32),
            3 => item.flags = input.number() as u32,
            _ => item.id = *input.pick(&KNOWN),
        }
    }
    if input.chance(1, 8) {
        let n = input.below(image.metadata.items.len() as u64) as usize;
        image.metadata.items.remove(n);
    }
    if input.chance(1, 8) {
        image.metadata.entry_count = Some(input.number() as u16);
    }
    for _ in 0..input.below(4) {
        let key = *input.pick(&KEYS);
        let value = match input.below(3) {
            0 => braced(Uuid::from_u128(input.below(3).into())),
            1 => String::from_utf8_lossy(&input.bytes(40)).into_owned(),
            _ => r"..\up\parent.vhdx".to_owned(),
        };
        match input.chance(1, 2) {
            true => image.locator.pairs.push((key.to_owned(), value)),
            false => drop(image.locator.set(key, value)),
        }
    }
    if input.chance(1, 8) {
        image.locator.count = Some(input.number() as u16);
    }
    if has_parent && input.chance(1, 4) {
        let mut bytes = image.locator.bytes();
        for _ in 0..1 + input.below(2) {
            let (at, with) = (input.below(bytes.len() as u64) as usize, input.bytes(4));
            let end = bytes.len().min(at + with.len());
            bytes[at..end].copy_from_slice(&with[..end - at]);
        }
        let at = image.metadata.items.iter().position(|item| item.contents == Contents::Locator);
        if let Some(at) = at {
            image.metadata.items[at].contents = Contents::Bytes(bytes);
        }
    }
    image
}
