//! Loose blocks that are placed by what others know of them.

use avhdx::Disk;
use avhdx::ops::{Grade, Placement, Ruin};
use avhdx_testkit::build::{Block, Data, Image};

use crate::damaged::{rescue, zero};
use crate::judge::judge;

const MIB: u64 = 1 << 20;

/// An image of twelve blocks without its table, the disk that it was, and where its first block lies.
fn without_table() -> (Ruin, Vec<u8>, u64) {
    let mut image = Image::dynamic(24 * MIB);
    image.block_size = 2 << 20;
    for block in 0..12 {
        image.put(block, Block::full(Data::Pattern(block)));
    }
    let mut bytes = image.to_bytes();
    zero(&mut bytes, image.layout().get("bat"));
    let ruin = rescue(bytes).unwrap();
    let first = ruin.loose(0).unwrap().ranges()[0].start;
    (ruin, image.flat(None), first)
}

fn hit(file_offset: u64, disk_offset: u64, grade: Grade) -> Placement {
    Placement { file_offset, disk_offset, grade, evidence: "a hit of the test".into() }
}

fn grade_at(ruin: &Ruin, offset: u64) -> Grade {
    ruin.pieces().find(|piece| piece.range.contains(&offset)).unwrap().grade
}

#[test]
fn a_block_lies_where_any_of_its_bytes_do() {
    let (mut ruin, flat, first) = without_table();
    assert_eq!(ruin.loose(0).unwrap().ranges(), [first..first + 24 * MIB]);
    let mut bytes = [0; 512];
    ruin.loose(0).unwrap().read_at(&mut bytes, first + 7 * MIB).unwrap();
    assert_eq!(bytes, flat[7 << 20..][..512]);
    assert!(ruin.place(0, &hit(first + 7 * MIB + 512, 7 * MIB + 512, Grade::Sure)));
    assert_eq!(grade_at(&ruin, 6 * MIB), Grade::Sure);
    assert_eq!(grade_at(&ruin, 8 * MIB), Grade::Lost);
    let share = judge(&ruin, &flat, "one block");
    assert_eq!(share.sure, 2 * MIB);
    let left = [first..first + 6 * MIB, first + 8 * MIB..first + 24 * MIB];
    assert_eq!(ruin.loose(0).unwrap().ranges(), left);
}

#[test]
fn blocks_between_two_sure_ones_are_guessed() {
    let (mut ruin, flat, first) = without_table();
    assert!(ruin.place(0, &hit(first + 2 * MIB, 2 * MIB, Grade::Sure)));
    assert!(ruin.place(0, &hit(first + 13 * MIB, 13 * MIB, Grade::Sure)));
    assert_eq!(ruin.interpolate(), 4);
    let share = judge(&ruin, &flat, "between");
    assert_eq!(share.sure, 4 * MIB);
    for block in 2..6 {
        assert_eq!(grade_at(&ruin, block * 2 * MIB), Grade::Guessed);
        let mut bytes = vec![0; 2 << 20];
        ruin.read_at(&mut bytes, block * 2 * MIB).unwrap();
        assert!(bytes == flat[(block as usize) << 21..][..2 << 20]);
    }
    assert_eq!(grade_at(&ruin, 0), Grade::Lost);
}

#[test]
fn sure_beats_guessed_and_equals_make_each_other_guessed() {
    let (mut ruin, flat, first) = without_table();
    // A wrong guess, and what is sure of the same bytes of the file.
    assert!(ruin.place(0, &hit(first, 10 * MIB, Grade::Guessed)));
    assert!(ruin.place(0, &hit(first, 0, Grade::Sure)));
    assert_eq!((grade_at(&ruin, 0), grade_at(&ruin, 10 * MIB)), (Grade::Sure, Grade::Lost));
    assert!(!ruin.place(0, &hit(first, 12 * MIB, Grade::Guessed)));
    assert_eq!(grade_at(&ruin, 0), Grade::Sure);
    judge(&ruin, &flat, "sure over guessed");
    // Two that are sure of different places for one block.
    assert!(ruin.place(0, &hit(first + 4 * MIB, 4 * MIB, Grade::Sure)));
    assert!(!ruin.place(0, &hit(first + 8 * MIB, 4 * MIB, Grade::Sure)));
    assert_eq!(grade_at(&ruin, 4 * MIB), Grade::Guessed);
    assert!(ruin.place(0, &hit(first + 4 * MIB, 4 * MIB, Grade::Sure)));
    assert_eq!(grade_at(&ruin, 4 * MIB), Grade::Guessed, "contested once");
}

#[test]
fn what_cannot_be_is_refused() {
    let (mut ruin, _, first) = without_table();
    for (file, disk) in [
        (first + 512, 0),
        (first, 512),
        (0, 0),
        (2 * MIB, 2 * MIB),
        (first, 24 * MIB),
        (first + 24 * MIB, 0),
        (u64::MAX, u64::MAX),
    ] {
        assert!(!ruin.place(0, &hit(file, disk, Grade::Sure)), "{file:#x} at {disk:#x}");
    }
    assert!(!ruin.place(0, &hit(first, 0, Grade::Lost)));
    assert!(!ruin.place(1, &hit(first, 0, Grade::Sure)));
    // What an entry of the table says stays.
    let mut image = Image::dynamic(8 * MIB);
    image.put(0, Block::full(Data::Pattern(1)));
    let mut ruin = rescue(image.to_bytes()).unwrap();
    let at = image.layout().get("payload:0").start;
    assert!(!ruin.place(0, &hit(at, 4 * MIB, Grade::Sure)));
    assert!(!ruin.place(0, &hit(at, 0, Grade::Sure)));
}
