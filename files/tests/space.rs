//! Space that nothing uses, beside what the tools of each file system say of it.
#![allow(clippy::disallowed_methods)] // the tools work on files

use std::ops::Range;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use avhdx::RawDisk;
use avhdx::storage::{Access, Host, LocalHost};
use avhdx_files::{FileSystem, Volumes};

use crate::images::{self, MIB, Model, tree};

fn free(tree: &FileSystem) -> Vec<Range<u64>> {
    let mut found = Vec::new();
    let sum = tree.free(&mut |range| found.push(range)).unwrap();
    assert_eq!(found.iter().map(|range| range.end - range.start).sum::<u64>(), sum);
    assert!(found.windows(2).all(|pair| pair[0].end < pair[1].start), "in order and joined");
    found
}

/// What a tool prints of an image.
fn said(tool: &str, args: &[&str], image: &Path) -> Option<String> {
    let output = Command::new(images::tool(tool)?).args(args).arg(image).output().unwrap();
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn number_behind(text: &str, word: &str) -> u64 {
    let rest = text.split(word).nth(1).unwrap_or_else(|| panic!("{word} in {text}"));
    rest.split_whitespace().next().unwrap().parse().unwrap()
}

/// The free blocks that `dumpe2fs` lists for each group, joined, in bytes. Of the last cluster, it lists the first block.
fn by_dumpe2fs(image: &Path, block: u64, cluster: u64) -> Option<Vec<Range<u64>>> {
    let text = said("dumpe2fs", &[], image)?;
    let mut all: Vec<Range<u64>> = Vec::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("  Free blocks: ")) {
        for run in line.split(", ").filter(|run| !run.is_empty()) {
            let (first, last) = run.split_once('-').unwrap_or((run, run));
            let [first, last]: [u64; 2] = [first, last].map(|number| number.parse().unwrap());
            let run = first * block..(last + cluster) * block;
            match all.last_mut() {
                Some(before) if before.end == run.start => before.end = run.end,
                _ => all.push(run),
            }
        }
    }
    Some(all)
}

#[test]
fn free_blocks_of_ext_are_those_that_dumpe2fs_lists() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    let volumes: [(&str, u64, u64, &str); 8] = [
        ("ext4", 4096, 1200, ""),
        ("ext4", 1024, 300, ""),
        ("ext4", 1024, 120, "^flex_bg,^resize_inode"),
        ("ext4", 1024, 200, "^flex_bg,^64bit,^metadata_csum,uninit_bg"),
        ("ext4", 4096, 900, "meta_bg,^resize_inode"),
        ("ext4", 4096, 700, "bigalloc,sparse_super2,^resize_inode"),
        ("ext4", 1024, 200, "bigalloc,^resize_inode"),
        ("ext2", 1024, 100, "^sparse_super,^resize_inode"),
    ];
    for (kind, block, mib, features) in volumes {
        let what = format!("{kind} of {mib} MiB, {features:?}");
        std::fs::File::create(&image).unwrap().set_len(mib * MIB).unwrap();
        let block_text = block.to_string();
        let mut args = vec!["-q", "-F", "-t", kind, "-b", &block_text];
        if !features.is_empty() {
            args.extend(["-O", features]);
        }
        args.push(image.to_str().unwrap());
        if images::run("mkfs.ext4", &args).is_none() {
            return;
        }
        // A few files in the groups behind.
        for number in 0..3 {
            let request = format!("write {} f{number}", file!());
            let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
            let tool = images::tool("debugfs").unwrap();
            let mut command = Command::new(tool);
            command.current_dir(root).args(["-w", "-R", &request]).arg(&image);
            assert!(command.output().unwrap().status.success(), "{what}");
        }
        let file = LocalHost.open(&image, Access::Read).unwrap();
        let disk = Arc::new(RawDisk::new(file).unwrap());
        let volumes = Volumes::of(disk).unwrap();
        let tree = volumes.select(None).unwrap().open().unwrap();
        let cluster = if features.contains("bigalloc") { 16 } else { 1 };
        let Some(expected) = by_dumpe2fs(&image, block, cluster) else { return };
        assert!(free(&tree) == expected, "{what}");
        let sum = expected.iter().map(|range| range.end - range.start).sum::<u64>();
        assert_eq!(tree.verified_free(&mut |_| {}).unwrap(), sum, "{what}");
        assert_eq!(tree.capacity(), mib * MIB, "{what}");
    }
}

/// Whatever lies in free space is of no file.
#[test]
fn no_file_is_in_free_space() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    let images = [
        images::ext("ext4", "4096"),
        images::ext("ext2", "1024"),
        images::fat("12"),
        images::fat("16"),
        images::fat("32"),
        images::ntfs().cloned(),
    ];
    for mut image in images.into_iter().flatten() {
        let opened = tree(&image);
        let kind = opened.kind().to_owned();
        let free = free(&opened);
        std::fs::write(&path, &image).unwrap();
        let sum: u64 = free.iter().map(|range| range.end - range.start).sum();
        match &kind[..] {
            "NTFS" => {
                let Some(text) = said("ntfsinfo", &["-m"], &path) else { continue };
                assert_eq!(sum, number_behind(&text, "Free Clusters:") * 4096);
            }
            "ext2" | "ext4" => {}
            _ => {
                let Some(text) = said("fsck.vfat", &["-n", "-v"], &path) else { continue };
                let (used, all) = text.trim().rsplit_once('/').unwrap();
                let all = all.split_whitespace().next().unwrap().parse::<u64>().unwrap();
                let used = used.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap();
                let cluster = opened.capacity() / all;
                assert_eq!(sum, (all - used) * cluster, "{kind}");
            }
        }
        for range in free {
            image[range.start as usize..range.end as usize].fill(0xA5);
        }
        let tree = tree(&image);
        for (file, model) in images::model() {
            let Model::File(bytes) = model else { continue };
            let found = tree.lookup(file.as_bytes()).unwrap();
            let found = tree.open(&found, None).unwrap().read_to_end(MIB).unwrap();
            assert!(found == bytes, "{kind}: {file}");
        }
    }
}
