//! Edits of the metadata and identities of sessions, checked with the testkit's naive reader.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use avhdx_testkit::build::{Block, Contents, Data, Image, Item};
use avhdx_testkit::naive::{Layer, Says};
use uuid::Uuid;

use super::ItemEdit;
use crate::error::ErrorKind;
use crate::format::metadata::ItemFlags;
use crate::storage::{MemStorage, Storage};
use crate::write::{LinkPaths, locator_edit};
use crate::{Disk, MergeMark, MergeState, OpenOptions, VhdxFile};

const NOTE: Uuid = Uuid::from_u128(0x1234_5678_9abc_def0_1111_2222_3333_4444);
const OTHER: Uuid = Uuid::from_u128(0x4321_5678_9abc_def0_1111_2222_3333_4444);

/// A file in memory that counts its flushes and can be inspected while it is in use.
#[derive(Debug)]
struct Watched(MemStorage, AtomicU64);

impl Storage for Watched {
    fn name(&self) -> &str {
        self.0.name()
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buf, offset)
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_at(buf, offset)
    }
    fn flush(&self) -> io::Result<()> {
        self.1.fetch_add(1, Ordering::SeqCst);
        self.0.flush()
    }
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
}

impl Watched {
    fn new(image: &Image) -> Arc<Self> {
        Arc::new(Self(MemStorage::new(image.to_bytes()), AtomicU64::new(0)))
    }

    /// The file as the naive reader sees it now.
    fn layer(&self) -> Layer {
        // In one read, because the file may grow or shrink meanwhile.
        let bytes = loop {
            let mut bytes = vec![0; self.len().unwrap() as usize + (8 << 20)];
            let len = self.read_at(&mut bytes, 0).unwrap();
            if len < bytes.len() {
                bytes.truncate(len);
                break bytes;
            }
            // The file grew by more than that in between.
        };
        Layer::from_bytes(bytes).unwrap()
    }

    fn open(self: &Arc<Self>) -> VhdxFile {
        let options = OpenOptions::new().writable(true);
        options.open_file(Arc::clone(self) as Arc<dyn Storage>).unwrap()
    }
}

fn note(bytes: &[u8]) -> ItemEdit {
    ItemEdit::Set { item: NOTE, flags: ItemFlags::USER, bytes: bytes.to_vec() }
}

fn found(layer: &Layer, item: Uuid, flags: u32) -> Option<Vec<u8>> {
    let mut items = layer.items.iter().filter(|(guid, other, _)| (*guid, *other) == (item, flags));
    let found = items.next().map(|(.., bytes)| bytes.clone());
    assert!(items.next().is_none(), "twice");
    found
}

#[test]
fn items_are_added_replaced_and_removed_durably_and_children_still_know_the_image() {
    let mut image = Image::dynamic(4 << 20);
    image.put(1, Block::full(Data::Pattern(5)));
    // The same GUID as a user item and as a system item.
    let both = Item::new("disk", NOTE, 2, Contents::Bytes(vec![9; 40]));
    image.metadata.items.push(both);
    let file = Watched::new(&image);
    let disk = file.open();
    let before = file.layer();
    let known = disk.data_write_guid();
    let others = |layer: &Layer| -> Vec<_> {
        let other = |(guid, flags, _): &&(Uuid, u32, Vec<u8>)| (*guid, *flags) != (NOTE, 1);
        layer.items.iter().filter(other).cloned().collect()
    };
    // Growing, shrinking, unchanged, empty, and across pages.
    for len in [10, 10, 5000, 4096, 3, 0, 200_000, 17] {
        let bytes: Vec<u8> = (0..len).map(|i| (i * 7 + len) as u8).collect();
        disk.its_writer().edit_metadata(&[note(&bytes)]).unwrap();
        // Without a later flush: as after a crash.
        let layer = file.layer();
        assert_eq!(found(&layer, NOTE, 1), Some(bytes));
        assert_eq!(others(&layer), others(&before));
        assert_eq!(layer.data_write_guid, known);
        assert_eq!(disk.disk_items().unwrap().len(), 1);
        let infos = disk.info().metadata;
        assert_eq!(infos.len(), layer.items.len());
        assert_eq!(infos.last().map(|info| (info.guid, info.length)), Some((NOTE, len as u32)));
    }
    disk.its_writer().edit_metadata(&[ItemEdit::Remove { item: NOTE, is_user: true }]).unwrap();
    disk.its_writer().edit_metadata(&[ItemEdit::Remove { item: OTHER, is_user: true }]).unwrap();
    assert_eq!(file.layer().items, before.items);
    assert_eq!(disk.data_write_guid(), known);
    disk.close().unwrap();
    drop(disk);
    let layer = file.layer();
    assert!(!layer.log_is_pending());
    assert_eq!((layer.items, layer.data_write_guid), (before.items, known));
    assert_eq!(file.open().count_blocks().unwrap().fully_present, 1);
}

#[test]
fn an_edit_that_changes_nothing_writes_nothing() {
    let file = Watched::new(&Image::dynamic(4 << 20));
    let disk = file.open();
    disk.its_writer().edit_metadata(&[note(b"x")]).unwrap();
    let flushes = file.1.load(Ordering::SeqCst);
    disk.its_writer().edit_metadata(&[note(b"x")]).unwrap();
    disk.its_writer().edit_metadata(&[ItemEdit::Remove { item: OTHER, is_user: true }]).unwrap();
    disk.its_writer().edit_metadata(&[]).unwrap();
    assert_eq!(file.1.load(Ordering::SeqCst), flushes);
    disk.its_writer().edit_metadata(&[note(b"y")]).unwrap();
    assert!(file.1.load(Ordering::SeqCst) - flushes <= 2, "one commit");
}

#[test]
fn a_full_region_and_items_that_make_no_sense_change_nothing() {
    let file = Watched::new(&Image::dynamic(4 << 20));
    let disk = file.open();
    let before = file.layer().items;
    let set = |item, bytes| ItemEdit::Set { item, flags: ItemFlags::USER, bytes };
    let refused = |edits: &[ItemEdit]| {
        let error = disk.its_writer().edit_metadata(edits).unwrap_err();
        assert_eq!(file.layer().items, before);
        (error.kind(), error.code())
    };
    let (unsupported, damaged) = (ErrorKind::Unsupported, ErrorKind::Damaged);
    assert_eq!(refused(&[set(NOTE, vec![1; 1 << 20])]), (unsupported, "metadata.full"));
    let large = [set(NOTE, vec![1; 500_000]), set(OTHER, vec![1; 500_000])];
    assert_eq!(refused(&large), (unsupported, "metadata.full"));
    // The longest item that fits is the one that the refusal names.
    let longest = |bytes: Vec<u8>| {
        let error = disk.its_writer().edit_metadata(&[set(NOTE, bytes)]).unwrap_err();
        assert_eq!(error.found(), Some("1048576 bytes"));
        let (most, of) = error.expected().unwrap().split_once(", ").unwrap();
        assert_eq!(of, "in a region of 1048576");
        most.strip_prefix("at most ").unwrap().parse::<usize>().unwrap()
    };
    let most = longest(vec![1; 1 << 20]);
    assert_eq!(refused(&[set(NOTE, vec![1; most + 1])]), (unsupported, "metadata.full"));
    let other = Watched::new(&Image::dynamic(4 << 20)).open();
    other.its_writer().edit_metadata(&[set(NOTE, vec![1; most])]).unwrap();
    let twice = [note(b"a"), note(b"b")];
    assert_eq!(refused(&twice), (damaged, "metadata.duplicate"));
    let required = [ItemEdit::Set { item: NOTE, flags: ItemFlags::REQUIRED, bytes: vec![1] }];
    assert_eq!(refused(&required), (unsupported, "metadata.unknown-required"));
    let gone =
        [ItemEdit::Remove { item: crate::format::metadata::VIRTUAL_DISK_ID, is_user: false }];
    assert_eq!(refused(&gone).1, "metadata.missing");
    let many: Vec<ItemEdit> = (1..=1025).map(|i| set(Uuid::from_u128(i), vec![1])).collect();
    assert_eq!(refused(&many), (damaged, "metadata.user-count"));
    disk.its_writer().edit_metadata(&[set(NOTE, vec![1; 400_000])]).unwrap();
    assert_eq!(found(&file.layer(), NOTE, 1), Some(vec![1; 400_000]));
    // If the region has room, the log entry may not.
    let mut image = Image::dynamic(4 << 20);
    (image.metadata_length, image.bat_offset) = (3 << 20, 8 << 20);
    let disk = Watched::new(&image).open();
    let error = disk.its_writer().edit_metadata(&[set(NOTE, vec![1; 1 << 20])]).unwrap_err();
    assert_eq!((error.kind(), error.code()), (unsupported, "metadata.edit-size"));
    disk.its_writer().edit_metadata(&[set(NOTE, vec![1; 1_000_000])]).unwrap();
}

#[test]
fn a_link_is_changed_with_all_else_kept() {
    let mut image = Image::child(4 << 20, Uuid::from_u128(1));
    image.parent_path(r".\base.vhdx");
    image.locator.set("of somebody else", "a value");
    let file = Watched::new(&image);
    let disk = file.open();
    let known = disk.data_write_guid();
    let pairs = |layer: Layer| layer.locator;
    let mut expected = pairs(file.layer());
    let (new, second) = (Uuid::from_u128(0xAB), Uuid::from_u128(0xCD));
    disk.its_writer().relink(new, Some(second), LinkPaths::Keep).unwrap();
    let linkage = expected.iter_mut().find(|(key, _)| key == "parent_linkage").unwrap();
    linkage.1 = "{00000000-0000-0000-0000-0000000000ab}".into();
    let one = expected.clone();
    expected.push(("parent_linkage2".into(), "{00000000-0000-0000-0000-0000000000cd}".into()));
    assert_eq!(pairs(file.layer()), expected);
    let link = disk.parent_link().unwrap().unwrap();
    assert_eq!((link.linkage, link.linkage2), (new, Some(second)));
    disk.its_writer().relink(new, None, LinkPaths::Keep).unwrap();
    assert_eq!(pairs(file.layer()), one);
    assert_eq!(disk.data_write_guid(), known);
    let base = Watched::new(&Image::dynamic(4 << 20)).open();
    assert_eq!(
        base.its_writer().relink(new, None, LinkPaths::Keep).unwrap_err().code(),
        "link.no-parent"
    );
}

struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn edits_and_writes_do_not_disturb_each_other() {
    const ROUNDS: u64 = 60;
    let file = Watched::new(&Image::dynamic(64 << 20));
    let disk = file.open();
    let is_done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Stops the other threads even if this one panics.
            let _over = Over(&is_done);
            for i in 0..ROUNDS {
                let bytes = vec![i as u8; (i * 331 % 9000) as usize + 1];
                disk.its_writer().edit_metadata(&[note(&bytes)]).unwrap();
                let layer = file.layer();
                assert_eq!(found(&layer, NOTE, 1), Some(bytes));
            }
        });
        scope.spawn(|| {
            let mut i = 0;
            while !is_done.load(Ordering::SeqCst) {
                disk.write_at(&[i as u8 | 1; 600], (i % 60) << 20).unwrap();
                if i % 7 == 0 {
                    disk.flush().unwrap();
                }
                if i % 31 == 0 {
                    disk.close().unwrap();
                }
                i += 1;
            }
        });
        scope.spawn(|| {
            while !is_done.load(Ordering::SeqCst) {
                let id = disk.hand_out_identity().unwrap();
                assert!(!id.is_nil());
                // Leaves time to the other threads.
                std::thread::sleep(Duration::from_millis(1));
            }
        });
    });
    disk.close().unwrap();
    let mut here = vec![0; 64 << 20];
    disk.read_at(&mut here, 0).unwrap();
    let naive = avhdx_testkit::naive::Chain(vec![file.layer()]);
    assert!(naive.flat(0).unwrap() == here);
}

#[test]
fn an_identity_that_was_handed_out_is_of_no_later_bytes() {
    let file = Watched::new(&Image::dynamic(4 << 20));
    let disk = file.open();
    let first = disk.data_write_guid();
    assert_eq!(disk.hand_out_identity().unwrap(), first, "nothing was written");
    disk.write_at(&[1; 512], 0).unwrap();
    let second = disk.data_write_guid();
    assert_ne!(second, first);
    disk.write_at(&[2; 512], 0).unwrap();
    assert_eq!(disk.hand_out_identity().unwrap(), second);
    // The data with that identity is durable.
    let naive = avhdx_testkit::naive::Chain(vec![file.layer()]);
    assert_eq!(naive.0[0].data_write_guid, second);
    assert_eq!(naive.read(0, 0, 512).unwrap(), [2; 512]);
    // In the same session, with a log in use.
    disk.write_at(&[3; 512], 0).unwrap();
    let third = disk.data_write_guid();
    assert!(third != second && third != first);
    assert_eq!(file.layer().data_write_guid, third, "before the bytes");
    disk.write_at(&[4; 512], 0).unwrap();
    assert_eq!(disk.data_write_guid(), third);
    disk.write_zeroes(0..1 << 20, crate::Zeroing::MayUnmap).unwrap();
    assert_eq!(disk.hand_out_identity().unwrap(), third);
    disk.write_zeroes(0..1 << 20, crate::Zeroing::MayUnmap).unwrap();
    assert_eq!(disk.data_write_guid(), third, "zeros already");
    disk.write_zeroes(1 << 20..2 << 20, crate::Zeroing::MayUnmap).unwrap();
    assert_eq!(disk.data_write_guid(), third, "zeros already");
    assert_eq!(disk.its_writer().hand_out_frozen_identity().unwrap(), third);
    disk.write_at(&[5; 512], 0).unwrap();
    assert_ne!(disk.data_write_guid(), third);
    // A frozen image can still be marked.
    let frozen = disk.its_writer().freeze(|| disk.its_writer().hand_out_frozen_identity()).unwrap();
    disk.its_writer().edit_metadata(&[note(b"frozen")]).unwrap();
    let layer = file.layer();
    assert_eq!((layer.data_write_guid, found(&layer, NOTE, 1)), (frozen, Some(b"frozen".to_vec())));
    disk.its_writer().thaw();
    disk.write_at(&[6; 512], 0).unwrap();
    assert_ne!(disk.data_write_guid(), frozen);
}

#[test]
fn the_next_identity_is_taken_by_the_next_visible_change_or_at_once() {
    let file = Watched::new(&Image::dynamic(4 << 20));
    let disk = file.open();
    let (first, next) = (disk.data_write_guid(), Uuid::from_u128(77));
    disk.its_writer().set_next_identity(next);
    disk.its_writer().edit_metadata(&[note(b"hidden")]).unwrap();
    assert_eq!(file.layer().data_write_guid, first);
    disk.write_at(&[1; 512], 0).unwrap();
    assert_eq!((disk.data_write_guid(), file.layer().data_write_guid), (next, next));
    disk.close().unwrap();
    disk.write_at(&[2; 512], 0).unwrap();
    assert!(![first, next].contains(&disk.data_write_guid()), "taken once");

    for before in [|_: &VhdxFile| {}, |disk: &VhdxFile| disk.write_at(&[9], 9).unwrap()] {
        before(&disk);
        let third = Uuid::new_v4();
        disk.its_writer().set_next_identity(third);
        disk.its_writer().begin_with_next_identity().unwrap();
        assert_eq!(file.layer().data_write_guid, third);
        disk.write_at(&[3; 512], 0).unwrap();
        assert_eq!(disk.data_write_guid(), third);
        disk.close().unwrap();
    }
    let read_only = OpenOptions::new().open_file(file as Arc<dyn Storage>).unwrap();
    assert!(read_only.writer().is_none());
}

#[test]
fn a_child_made_of_an_image_in_use_knows_it_until_it_changes() {
    let folder = tempfile::tempdir().unwrap();
    let (base, child) = (folder.path().join("b.vhdx"), folder.path().join("c.avhdx"));
    let disk = crate::CreateOptions::dynamic(4 << 20).block_size(1 << 20).create(&base).unwrap();
    disk.write_at(&[1; 512], 0).unwrap();
    crate::CreateOptions::child_of(&disk).unwrap().create(&child).unwrap().close().unwrap();
    // In the same session, with a log in use.
    let open = OpenOptions::new().lock(crate::Lock::None);
    let mut sector = [0; 512];
    open.open(&child).unwrap().read_at(&mut sector, 0).unwrap();
    assert_eq!(sector, [1; 512]);
    disk.write_at(&[2; 512], 0).unwrap();
    for _ in 0..2 {
        let error = open.open(&child).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ParentMismatch, "{error}");
        disk.close().unwrap();
    }
}

fn merge_mark(state: MergeState) -> MergeMark {
    let name = "other.avhdx".into();
    MergeMark { state, other: OTHER, name, low_space: true, moved: None }
}

/// The bytes of a merge mark in the documented layout.
fn merge_bytes(state: u8) -> Vec<u8> {
    let head = [1, 0, state, 1, 11, 0, 0, 0];
    [&head[..], &OTHER.to_bytes_le(), b"other.avhdx"].concat()
}

const MERGE: Uuid = Uuid::from_u128(0x917330e3_c6a3_4d5f_913e_f0fa001aaec7);
const CHECKPOINT: Uuid = Uuid::from_u128(0x21898540_3963_47d4_a9ed_35ef1adeb3c0);

#[test]
fn marks_are_set_and_removed_and_change_with_a_link_at_once() {
    let mut image = Image::child(4 << 20, Uuid::from_u128(1));
    image.parent_path(r".\base.vhdx");
    let file = Watched::new(&image);
    let disk = file.open();
    assert_eq!((disk.merge_mark(), disk.checkpoint()), (None, None));
    let link = locator_edit(&disk, Uuid::from_u128(2), Some(OTHER), LinkPaths::Keep).unwrap();
    let flushes = file.1.load(Ordering::SeqCst);
    let mark = merge_mark(MergeState::Merging);
    disk.its_writer().edit_metadata(&[ItemEdit::merge_mark(Some(&mark)), link]).unwrap();
    let first = file.1.load(Ordering::SeqCst) - flushes;
    assert_eq!(found(&file.layer(), MERGE, 1), Some(merge_bytes(1)));
    assert_eq!(disk.merge_mark(), Some(mark));
    let of_link = disk.parent_link().unwrap().unwrap();
    assert_eq!((of_link.linkage, of_link.linkage2), (Uuid::from_u128(2), Some(OTHER)));
    for (state, number) in [(MergeState::Spent, 2), (MergeState::Target, 3)] {
        let mark = merge_mark(state);
        disk.its_writer().edit_metadata(&[ItemEdit::merge_mark(Some(&mark))]).unwrap();
        assert_eq!(found(&file.layer(), MERGE, 1), Some(merge_bytes(number)));
        assert_eq!((disk.merge_mark(), disk.info().merge), (Some(mark.clone()), Some(mark)));
    }
    assert!(file.1.load(Ordering::SeqCst) - flushes <= first + 4, "two flushes each");
    disk.its_writer().edit_metadata(&[ItemEdit::merge_mark(None)]).unwrap();
    assert_eq!((found(&file.layer(), MERGE, 1), disk.merge_mark()), (None, None));
    drop(disk);
    assert_eq!(file.layer().items.len(), 6);
}

#[test]
fn a_checkpoint_is_named_in_the_child_and_in_no_child_of_that() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let base = crate::CreateOptions::dynamic(4 << 20).create(path("b.vhdx")).unwrap();
    let time = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let options = crate::CreateOptions::child_of(&base).unwrap();
    let child = options.clone().checkpoint("vor dem Umbau ä", time + Duration::from_millis(7));
    let child = child.create(path("c.avhdx")).unwrap();
    let mark = child.checkpoint().unwrap();
    assert_eq!((mark.label.as_str(), mark.time), ("vor dem Umbau ä", time));
    assert_eq!(child.info().checkpoint, Some(mark));
    child
        .its_writer()
        .edit_metadata(&[ItemEdit::merge_mark(Some(&merge_mark(MergeState::Merging)))])
        .unwrap();
    let above = crate::CreateOptions::child_of(&child).unwrap().create(path("d.avhdx")).unwrap();
    assert_eq!((above.checkpoint(), above.merge_mark()), (None, None));
    child.close().unwrap();
    let naive = Layer::open(path("c.avhdx")).unwrap();
    let label = "vor dem Umbau ä".as_bytes();
    let head = [1, 0, 0, 0, 16, 0, 0, 0, 0x00, 0xF1, 0x53, 0x65, 0, 0, 0, 0];
    assert_eq!(found(&naive, CHECKPOINT, 1), Some([&head[..], label].concat()));
    let long = options.checkpoint("x".repeat(4097), time);
    let error = long.create(path("e.avhdx")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}

#[test]
fn marks_that_make_no_sense_are_said_and_pass_for_none() {
    let mut rng = avhdx_testkit::rng::Rng::new(3);
    for round in 0..200 {
        let mut bytes = merge_bytes(3);
        if round > 0 {
            for _ in 0..=rng.below(3) {
                let at = rng.below(bytes.len() as u64) as usize;
                bytes[at] = rng.below(256) as u8;
            }
            bytes.truncate(rng.below(2 * bytes.len() as u64) as usize);
        }
        let mut image = Image::dynamic(4 << 20);
        for item in [MERGE, CHECKPOINT] {
            image.metadata.items.push(Item::new("mark", item, 1, Contents::Bytes(bytes.clone())));
        }
        // Not a user item, so not a mark.
        image.metadata.items.push(Item::new("else", MERGE, 0, Contents::Bytes(bytes)));
        let disk = Watched::new(&image).open();
        let said = disk.warnings().iter().filter(|warning| warning.code == "mark.unreadable");
        let none =
            usize::from(disk.merge_mark().is_none()) + usize::from(disk.checkpoint().is_none());
        assert_eq!(said.count(), none, "{:?}", disk.warnings());
        assert!(round > 0 || disk.merge_mark() == Some(merge_mark(MergeState::Target)));
    }
}

const MIB: u64 = 1 << 20;

/// A parent with data everywhere, below the images that are resized.
fn parent(size: u64) -> Image {
    let mut parent = Image::dynamic(size);
    for block in 0..size.div_ceil(MIB) {
        parent.put(block, Block::full(Data::Pattern(100 + block)));
    }
    parent
}

/// The contents of the disk of these images, base first, by the naive reader.
fn flat(images: Vec<Layer>) -> Vec<u8> {
    let tip = images.len() - 1;
    avhdx_testkit::naive::Chain(images).flat(tip).unwrap()
}

/// Resizes an image and checks that the naive reader finds the same bytes, and zeros behind them.
fn resized(image: &Image, below: Option<&Image>, new: u64) -> Arc<Watched> {
    let below: Vec<Layer> =
        below.iter().map(|image| Layer::from_bytes(image.to_bytes()).unwrap()).collect();
    let with = |layer: Layer| [below.clone(), vec![layer]].concat();
    let file = Watched::new(image);
    let mut expected = flat(with(file.layer()));
    expected.resize(new as usize, 0);
    let disk = file.open();
    let known = disk.data_write_guid();
    disk.its_writer().resize(new).unwrap();
    assert_eq!(disk.write_at(&[1], 0).unwrap_err().code(), "image.frozen");
    let layer = file.layer();
    assert!(!layer.log_is_pending());
    assert_eq!(layer.faults(), [""; 0]);
    assert_eq!(layer.size, new);
    let of_file = layer.data_write_guid;
    assert_eq!(of_file == known, new == image.size, "another disk has another identity");
    let now = flat(with(layer));
    if now != expected {
        let at = (0..new as usize).find(|at| now[*at] != expected[*at]).unwrap();
        panic!("{} to {new}: {} for {} at {at:#x}", image.size, now[at], expected[at]);
    }
    let disk = VhdxFile::own(disk.its_writer().reopen().unwrap().into());
    assert_eq!((disk.geometry().size, disk.data_write_guid()), (new, of_file));
    // The writer continues to work. Without the parent, only whole sectors can be written.
    let (unit, len) = if below.is_empty() { (1, 700) } else { (512, 1024) };
    for (seed, at) in [(7, 0), (8, new / 2), (9, new - len)] {
        let at = at / unit * unit;
        disk.write_at(&vec![seed; len as usize], at).unwrap();
        expected[at as usize..][..len as usize].fill(seed);
    }
    assert_eq!(disk.data_write_guid(), of_file, "which nobody else knows");
    drop(disk);
    let layer = file.layer();
    assert_eq!(layer.faults(), [""; 0]);
    assert!(flat(with(layer)) == expected, "{} to {new}, written", image.size);
    file
}

#[test]
fn a_disk_of_another_size_holds_the_same_bytes_and_zeros_behind_them() {
    let half = MIB / 2;
    let parent = parent(10 * MIB);
    let sizes = [3 * MIB, 3 * MIB + half, 4 * MIB + 4096, 9 * MIB + half];
    let all: Vec<bool> = vec![true; 2048];
    let some: Vec<bool> = (0..2048).map(|i| i % 7 < 3).collect();
    for old in sizes {
        let last = (old - 1) / MIB;
        for new in sizes {
            for block in [
                None,
                Some(Block::full(Data::Pattern(1))),
                Some(Block::bare(2)),
                Some(Block::bare(3)),
                Some(Block::partial(Data::Pattern(1), some.clone())),
                Some(Block::partial(Data::Pattern(1), all.clone())),
            ] {
                let is_partial = block.as_ref().is_some_and(|block| block.state == 7);
                let mut child = Image::child(old, parent.data_write_guid());
                child.parent_path(r".\base.vhdx");
                child.put(1, Block::partial(Data::Pattern(3), some.clone()));
                let mut dynamic = Image::dynamic(old);
                dynamic.put(0, Block::full(Data::Pattern(4)));
                if let Some(block) = &block {
                    child.put(last, block.clone());
                    dynamic.put(last, block.clone());
                }
                resized(&child, Some(&parent), new);
                if !is_partial {
                    resized(&dynamic, None, new);
                }
                if let Some(block) = block.filter(|block| block.state == 6) {
                    let mut fixed = Image::fixed(old);
                    fixed.put(last, block);
                    let disk = resized(&fixed, None, new).open();
                    let counts = disk.count_blocks().unwrap();
                    assert_eq!(counts.fully_present, counts.blocks);
                }
            }
        }
    }
}

#[test]
fn a_last_block_of_which_the_file_is_cut_does_not_take_what_comes_behind_it() {
    for state in [6, 7] {
        let mut base = Image::dynamic(12 * MIB);
        (base.block_size, base.size) = (4 << 20, 9 * MIB);
        base.put(2, Block::full(Data::Pattern(1)));
        let parent = parent(14 * MIB);
        let mut image = base.clone();
        if state == 7 {
            image = Image::child(9 * MIB, parent.data_write_guid());
            image.parent_path(r".\base.vhdx");
            image.block_size = 4 << 20;
            image.put(2, Block::partial_runs(Data::Pattern(1), &[(3, 50)]));
        }
        // Beyond the end of the disk the block has data, or the file ends.
        let whole = image.to_bytes().len() as u64;
        for cut in [0, 2, 3] {
            image.file_length = Some(whole - cut * MIB);
            for new in [10 * MIB, 24 * MIB] {
                resized(&image, (state == 7).then_some(&parent), new);
            }
        }
    }
}

#[test]
fn a_table_that_gets_too_long_moves_with_the_size() {
    for has_parent in [false, true] {
        // A table of 1 MiB holds entries for less than 128 GiB in blocks of 1 MiB.
        let old = (100 << 30) + MIB / 2;
        let last = old / MIB;
        let mut image = match has_parent {
            true => Image::child(old, Uuid::from_u128(1)),
            false => Image::dynamic(old),
        };
        image.parent_path(r".\base.vhdx");
        let block = match has_parent {
            true => Block::partial_runs(Data::Pattern(2), &[(0, 1000)]),
            false => Block::full(Data::Pattern(2)),
        };
        for at in [0, 4095, 4096, 70_000, last] {
            image.put(at, block.clone());
        }
        for new in [(140 << 30) + 512, 300 << 30] {
            let file = Watched::new(&image);
            let before = file.layer();
            let disk = file.open();
            disk.its_writer().resize(new).unwrap();
            let after = file.layer();
            assert_eq!(after.faults(), [""; 0]);
            assert_eq!((after.size, before.size), (new, old));
            let disk = VhdxFile::own(disk.its_writer().reopen().unwrap().into());
            assert!(disk.info().region_tables.iter().all(|table| {
                let bat = table.as_ref().unwrap().iter().find(|entry| entry.name == Some("BAT"));
                bat.is_some_and(|bat| u64::from(bat.length) >= new / MIB * 8)
            }));
            let block_of = |block: u64| -> Vec<_> {
                (0..2048).step_by(31).map(|i| after.says(block * 2048 + i)).collect()
            };
            let mut blocks: Vec<u64> = (0..old / MIB).step_by(997).collect();
            blocks.extend([0, 4095, 4096, 70_000]);
            for block in blocks {
                let was: Vec<_> =
                    (0..2048).step_by(31).map(|i| before.says(block * 2048 + i)).collect();
                assert_eq!(block_of(block), was, "block {block}");
            }
            let nothing = if has_parent { Says::Zero } else { Says::NotHere };
            let behind = (last + 1..new / MIB).step_by(211).flat_map(block_of);
            for says in behind.chain([after.says(new / 512 - 1)]) {
                assert_eq!(says, Ok(nothing));
            }
            // The rest of the former last block.
            let naive = avhdx_testkit::naive::Chain(vec![after.clone()]);
            for sector in [old / 512, old / 512 + 1, (last + 1) * 2048 - 1] {
                if has_parent {
                    assert_ne!(after.says(sector), Ok(Says::NotHere));
                }
                assert_eq!(naive.read(0, sector * 512, 512).unwrap(), [0; 512]);
                let mut bytes = [1; 512];
                disk.read_at(&mut bytes, sector * 512).unwrap();
                assert_eq!(bytes, [0; 512]);
            }
            disk.write_at(&[5; 512], new - 512).unwrap();
            disk.close().unwrap();
            assert_eq!(file.layer().faults(), [""; 0]);
            // And back again.
            disk.its_writer().resize(old).unwrap();
            let again = file.layer();
            assert_eq!(again.faults(), [""; 0]);
            for sector in [0, 999, 1000, 4095 * 2048, 4096 * 2048 + 5, 70_000 * 2048] {
                match has_parent {
                    true => assert_eq!(again.says(sector), after.says(sector)),
                    false => assert_eq!(
                        avhdx_testkit::naive::Chain(vec![again.clone()]).read(0, sector * 512, 512),
                        naive.read(0, sector * 512, 512)
                    ),
                }
            }
        }
    }
}

#[test]
fn sizes_that_the_format_does_not_have_are_refused_and_change_nothing() {
    let file = Watched::new(&Image::dynamic(4 << 20));
    let disk = file.open();
    for size in [0, 1, 5 * MIB + 256, (64 << 40) + 512, u64::MAX] {
        let error = disk.its_writer().resize(size).unwrap_err();
        assert_eq!((error.kind(), error.code()), (ErrorKind::InvalidInput, "resize.size"));
    }
    assert_eq!(file.1.load(Ordering::SeqCst), 0);
    disk.write_at(&[1], 0).unwrap();
    let known = disk.data_write_guid();
    disk.its_writer().resize(4 << 20).unwrap();
    assert_eq!(disk.data_write_guid(), known);
    // The largest size of the format.
    let mut image = Image::dynamic(1 << 30);
    image.block_size = 256 << 20;
    let file = Watched::new(&image);
    file.open().its_writer().resize(64 << 40).unwrap();
    let layer = file.layer();
    assert_eq!((layer.size, layer.faults()), (64 << 40, vec![]));
    let disk = file.open();
    disk.write_at(&[1; 512], (64 << 40) - 512).unwrap();
    drop(disk);
    assert_eq!(file.layer().faults(), [""; 0]);
}
