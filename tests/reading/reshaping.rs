//! A chain is reshaped: put on another base, grown, compacted, shrunk. After every step a flat model, the crate, the
//! naive reader and, where they can read it, libvhdi, 7-Zip and QEMU agree on the disk's past and present.

use std::fs;
use std::ops::Range;

use avhdx::ops::{Checkpoint, Compact, Diff, EditMetadata, Export, Rebase, Resize};
use avhdx::{CreateOptions, DiffChain, Disk, OpenOptions};
use avhdx_testkit::bytes::is_zero;
use uuid::Uuid;

use super::story::{BLOCK, SIZE, Story, open, path_of};
use crate::common::MIB;

const SECTOR: usize = 512;

/// The sectors in which two disks differ, as ranges of bytes.
fn differing(a: &[u8], b: &[u8]) -> Vec<Range<u64>> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for (n, (a, b)) in a.chunks(SECTOR).zip(b.chunks(SECTOR)).enumerate() {
        let (start, end) = ((n * SECTOR) as u64, ((n + 1) * SECTOR) as u64);
        match ranges.last_mut() {
            _ if a == b => {}
            Some(last) if last.end == start => last.end = end,
            _ => ranges.push(start..end),
        }
    }
    ranges
}

#[test]
fn a_chain_is_reshaped() {
    let mut story = Story::new();
    let base = story.at("vm/web.vhdx");
    CreateOptions::dynamic(SIZE).block_size(BLOCK).create(&base).unwrap().close().unwrap();
    story.points.insert(base.clone(), vec![0; SIZE as usize]);
    let chain = open(&base);
    story.write(&chain);
    for label in ["monday", "tuesday"] {
        let before = chain.layers()[0].path.clone().unwrap();
        let made = Checkpoint::new().label(label).block_size(BLOCK).run(&chain).unwrap();
        story.inherit(&made.path, &before);
        story.write(&chain);
    }

    // What differs between the three points, from tables that tell sectors apart and from bytes.
    let points: Vec<_> = chain.layers().into_iter().rev().collect();
    for (a, b) in [(0, 1), (1, 2), (0, 2), (2, 0)] {
        let views = [a, b].map(|n: usize| chain.view(points[n].id).unwrap());
        let model = [a, b].map(|n: usize| &story.points[points[n].path.as_ref().unwrap()]);
        let expected = differing(model[0], model[1]);
        let found = Diff::new().content(true).run(&views[0], &views[1]).unwrap();
        assert_eq!(found.collect::<Result<Vec<_>, _>>().unwrap(), expected, "{a} and {b}");
        let tables = Diff::new().run(&views[0], &views[1]).unwrap();
        let tables: Vec<_> = tables.map(Result::unwrap).collect();
        let is_there = |range: &Range<u64>| {
            tables.iter().any(|listed| listed.start <= range.start && range.end <= listed.end)
        };
        assert!(expected.iter().all(is_there), "{a} and {b}: {expected:?} in {tables:?}");
    }
    let tip = path_of(&chain, points[2].id);
    let old_parent = path_of(&chain, points[1].id);
    chain.close().unwrap();
    drop(chain);
    story.all_agree(&tip, "two checkpoints");

    // An item of a user, and another identity of the disk: not a byte of it changes.
    let image = OpenOptions::new().writable(true).open_image(&tip).unwrap();
    let item = Uuid::from_u128(0x1701);
    EditMetadata::new().set(item, "of the story").disk_id(Uuid::from_u128(7)).run(&image).unwrap();
    image.close().unwrap();
    drop(image);
    story.all_agree(&tip, "another identity of the disk");

    // The oldest point becomes an image of its own, on which other things are written.
    let new_base = story.at("vm/new.vhdx");
    let chain = DiffChain::open(&base).unwrap();
    let image = CreateOptions::dynamic(SIZE).block_size(2 * BLOCK).create(&new_base).unwrap();
    Export::new().onto(&chain, &image).unwrap();
    image.close().unwrap();
    drop((image, chain));
    story.inherit(&new_base, &base);
    let chain = open(&new_base);
    story.write(&chain);
    chain.close().unwrap();
    drop(chain);
    story.all_agree(&new_base, "a new base");

    // The tip goes to the new base, and its old parents stay what they are.
    let rebased = Rebase::new(&new_base).run(&tip).unwrap();
    assert!(rebased.written > 0 && !rebased.was_parent, "{rebased:?}");
    assert_eq!(fs::canonicalize(&rebased.parent).unwrap(), fs::canonicalize(&new_base).unwrap());
    story.all_agree(&tip, "on a new base");
    story.all_agree(&old_parent, "what it lay on before");
    assert_eq!(DiffChain::open(&tip).unwrap().layers().len(), 2);
    let again = Rebase::new(&new_base).run(&tip).unwrap();
    assert!(again.was_parent && again.written == 0, "{again:?}");

    // The disk grows while it is in use, past the end of its parent.
    let chain = open(&tip);
    let grown = Resize::to(SIZE + 8 * MIB + 4096).run(&chain).unwrap();
    assert_eq!((grown.from, grown.to), (SIZE, chain.geometry().size));
    story.is_beyond_libvhdi = true;
    story.points.get_mut(&tip).unwrap().resize(grown.to as usize, 0);
    story.agree(&chain, "grown");
    story.write(&chain);
    story.write(&chain);
    story.agree(&chain, "written behind the old end");

    // Half of it becomes zeros, some written as data; a part becomes what the parent has.
    let below = story.points[&new_base].clone();
    let disk = story.points.get_mut(&tip).unwrap();
    for block in (0..disk.len() as u64 / MIB).step_by(2) {
        let at = block * MIB;
        let bytes = &mut disk[at as usize..(at + MIB) as usize];
        match below.get(at as usize..(at + MIB) as usize) {
            Some(parents) if block % 4 == 0 => bytes.copy_from_slice(parents),
            _ => bytes.fill(0),
        }
        chain.write_at(bytes, at).unwrap();
    }
    chain.flush().unwrap();
    story.agree(&chain, "zeros and bytes of the parent");

    // Compact in use: the outcome is what was foretold.
    let compact = Compact::new().content(true);
    let forecast = compact.forecast(&chain).unwrap();
    let done = compact.run(&chain).unwrap();
    assert_eq!(done, forecast.outcome);
    assert!(done.content.is_some_and(|bytes| bytes >= 6 * MIB), "{done:?}");
    assert!(done.file_len < done.file_len_before, "{done:?}");
    story.agree(&chain, "compacted");
    chain.close().unwrap();
    drop(chain);
    assert_eq!(fs::metadata(&tip).unwrap().len(), done.file_len);
    story.all_agree(&tip, "compacted and closed");

    // A shrink over data needs consent.
    let chain = open(&tip);
    story.write(&chain);
    // 7-Zip opens no disk that ends within 4 KiB.
    let size = 5 * MIB + 4096;
    assert!(!is_zero(&story.points[&tip][size as usize..]));
    let refused = Resize::to(size).run(&chain).unwrap_err();
    assert_eq!(refused.kind(), avhdx::ErrorKind::WouldLose, "{refused}");
    story.agree(&chain, "a refused shrink");
    Resize::to(size).shrink(true).run(&chain).unwrap();
    story.points.get_mut(&tip).unwrap().truncate(size as usize);
    story.agree(&chain, "shrunk");
    let done = Compact::new().run(&chain).unwrap();
    assert!(done.file_len < done.file_len_before, "{done:?}");
    story.agree(&chain, "shrunk and compacted");
    chain.close().unwrap();
    drop(chain);
    story.all_agree(&tip, "shrunk and closed");
    story.flatten(&tip, "the end");
    story.all_agree(&old_parent, "the end of the old chain");
    println!("layers that agreed with the model: {:?}", story.compared);
}
