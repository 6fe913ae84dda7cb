//! Folders within each other that all hold the same names, each one all of the folders: an image of a few MiB with a
//! hundred thousand names on the way down.

use std::collections::BTreeMap;

use crate::images::{self, Model};

const BLOCK: usize = 1024;
/// How many folders there are, and the length of their names.
const FOLDERS: u32 = 40;
const NAME: usize = 200;
/// The blocks of each folder: those with the folders, and one with other names, again and again.
const WITH_FOLDERS: usize = 10;
const BLOCKS: usize = 32;

/// The image; `None` without the tool.
pub fn same_in_each_other() -> Option<Vec<u8>> {
    let mut model = BTreeMap::from([("large.bin".into(), Model::File(vec![7; 12 * BLOCK]))]);
    model.extend((0..FOLDERS).map(|number| (format!("folder {number}"), Model::Folder)));
    let mut image = images::ext_of(&model, "ext2", "1024", "^resize_inode")?;
    let tree = images::tree(&image);
    let number = |path: &str| tree.lookup(path.as_bytes()).unwrap().id().unwrap() as usize;
    let file = number("large.bin");
    let folders: Vec<usize> =
        (0..FOLDERS).map(|folder| number(&format!("folder {folder}"))).collect();
    let number_at = |image: &[u8], at: usize| {
        u32::from_le_bytes(image[at..at + 4].try_into().unwrap()) as usize
    };
    // Superblock, descriptors and tables of inodes, as their format has them.
    let inode = |image: &[u8], number: usize| {
        let of_group = number_at(image, BLOCK + 40);
        let len = number_at(image, BLOCK + 88) & 0xFFFF;
        let (group, index) = ((number - 1) / of_group, (number - 1) % of_group);
        number_at(image, 2 * BLOCK + group * 32 + 8) * BLOCK + index * len
    };
    let at = inode(&image, file) + 40;
    let blocks: Vec<usize> = (0..12).map(|block| number_at(&image, at + 4 * block)).collect();
    let entry = |inode: usize, name: &str, len: usize| {
        let head = [&(inode as u32).to_le_bytes()[..], &(len as u16).to_le_bytes()];
        let mut entry = [&head.concat()[..], &[name.len() as u8, 0], name.as_bytes()].concat();
        entry.resize(len, 0);
        entry
    };
    for (block, folders) in blocks.iter().zip(folders.chunks(FOLDERS as usize / WITH_FOLDERS)) {
        let mut bytes = Vec::new();
        for folder in folders {
            let name = format!("{folder:0>NAME$}");
            let is_last = Some(folder) == folders.last();
            let len = if is_last { BLOCK - bytes.len() } else { 8 + NAME };
            bytes.extend(entry(*folder, &name, len));
        }
        image[block * BLOCK..][..BLOCK].copy_from_slice(&bytes);
    }
    let (others, indirect) = (blocks[WITH_FOLDERS], blocks[WITH_FOLDERS + 1]);
    let names: Vec<u8> = (0..84).flat_map(|n| entry(file, &format!("x{n}"), 12)).collect();
    image[others * BLOCK..][..names.len()].copy_from_slice(&names);
    let rest = BLOCK - names.len();
    image[(others + 1) * BLOCK - rest..][..rest].copy_from_slice(&entry(file, "last", rest));
    let pointers = (others as u32).to_le_bytes().repeat(BLOCK / 4);
    image[indirect * BLOCK..][..BLOCK].copy_from_slice(&pointers);
    for folder in folders {
        let at = inode(&image, folder);
        image[at + 4..at + 8].copy_from_slice(&((BLOCKS * BLOCK) as u32).to_le_bytes());
        for pointer in 0..15 {
            let block = match pointer {
                0..WITH_FOLDERS => blocks[pointer],
                WITH_FOLDERS..12 => others,
                12 => indirect,
                _ => 0,
            };
            image[at + 40 + 4 * pointer..][..4].copy_from_slice(&(block as u32).to_le_bytes());
        }
    }
    Some(image)
}
