//! `EditMetadata`, with the naive reader as the judge, over every crash.

use std::io;
use std::sync::{Arc, Mutex};

use avhdx::ops::EditMetadata;
use avhdx::storage::{LockMode, LockOutcome, MemStorage, Storage};
use avhdx::uuid::Uuid;
use avhdx::{Disk, ErrorKind, OpenOptions, VhdxFile};
use avhdx_testkit::build::{Block, Contents, Data, IS_USER, Image, Item, write_chain};
use avhdx_testkit::naive::Layer;
use avhdx_testkit::rng::Rng;

const NOTE: Uuid = Uuid::from_u128(0x5ac1_c0de_0000_4000_8000_0000_0000_0001);
const OTHER: Uuid = Uuid::from_u128(0x5ac1_c0de_0000_4000_8000_0000_0000_0002);
const DISK_ID: Uuid = Uuid::from_u128(0xbeca_12ab_b2e6_4523_93ef_c309_e000_c746);
const PHYSICAL_SECTOR: Uuid = Uuid::from_u128(0xcda3_48c7_445d_4471_9cc9_e988_5251_c556);

/// What a session did to the file.
#[derive(Clone, Debug)]
enum Event {
    Write(u64, Vec<u8>),
    Length(u64),
    Flush,
}

/// A file in memory that keeps what is done to it.
#[derive(Debug)]
struct Recorded {
    file: MemStorage,
    events: Mutex<Vec<Event>>,
}

impl Recorded {
    fn of(image: &Image) -> Arc<Self> {
        Self::from_bytes(image.to_bytes())
    }

    fn from_bytes(bytes: Vec<u8>) -> Arc<Self> {
        Arc::new(Self { file: MemStorage::new(bytes), events: Mutex::default() })
    }

    fn open(self: &Arc<Self>) -> VhdxFile {
        let options = OpenOptions::new().writable(true);
        options.open_file(Arc::clone(self) as Arc<dyn Storage>).unwrap()
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.file.len().unwrap() as usize];
        self.file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    fn note(&self, event: Event) {
        self.events.lock().unwrap().push(event);
    }
}

impl Storage for Recorded {
    fn name(&self) -> &str {
        "recorded"
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buf, offset)
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.note(Event::Write(offset, buf.to_vec()));
        self.file.write_at(buf, offset)
    }
    fn flush(&self) -> io::Result<()> {
        self.note(Event::Flush);
        self.file.flush()
    }
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.note(Event::Length(len));
        self.file.set_len(len)
    }
    fn try_lock(&self, mode: LockMode) -> io::Result<LockOutcome> {
        self.file.try_lock(mode)
    }
}

/// The items of an image, and its identity.
type Seen = (Vec<(Uuid, u32, Vec<u8>)>, Uuid);

fn seen(bytes: Vec<u8>) -> Seen {
    let layer = Layer::from_bytes(bytes).unwrap();
    let mut items = layer.items.clone();
    items.sort();
    (items, layer.data_write_guid)
}

fn contents(seen: &Seen, item: Uuid) -> Option<&[u8]> {
    seen.0.iter().find(|(guid, ..)| *guid == item).map(|(.., bytes)| &bytes[..])
}

fn noted() -> Image {
    let mut image = Image::dynamic(4 << 20);
    image.put(1, Block::full(Data::Pattern(5)));
    image.metadata.items.push(Item::new("other", OTHER, 3, Contents::Bytes(vec![9; 40])));
    image
}

#[test]
fn items_and_properties_are_set_and_nothing_else_changes() {
    let file = Recorded::of(&noted());
    let before = seen(file.bytes());
    let image = file.open();
    let id = Uuid::from_u128(77);
    let edit = EditMetadata::new().set(NOTE, "a note").set(OTHER, vec![1; 9000]);
    edit.disk_id(id).physical_sector(512).run(&image).unwrap();
    assert_eq!(image.user_item(NOTE).unwrap(), b"a note");
    assert_eq!(image.info().disk_id, id);
    image.close().unwrap();
    drop(image);

    let after = seen(file.bytes());
    assert_eq!(contents(&after, NOTE), Some(&b"a note"[..]));
    assert_eq!(contents(&after, DISK_ID), Some(&id.to_bytes_le()[..]));
    assert_eq!(contents(&after, PHYSICAL_SECTOR), Some(&512_u32.to_le_bytes()[..]));
    // The flags of an item stay, those of a new one are IsUser.
    let flags = |item: Uuid| after.0.iter().find(|(guid, ..)| *guid == item).unwrap().1;
    assert_eq!((flags(OTHER), flags(NOTE)), (3, IS_USER));
    assert_eq!((after.1, after.0.len()), (before.1, before.0.len() + 1));

    let image = file.open();
    assert_eq!(image.geometry().physical_sector, 512);
    assert_eq!(image.user_item(OTHER).unwrap(), vec![1; 9000]);
    EditMetadata::new().remove(NOTE).remove(OTHER).run(&image).unwrap();
    let error = image.user_item(NOTE).unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::InvalidInput, "metadata.no-item"));
    let items = image.info().metadata;
    assert!(items.iter().all(|item| !item.is_user), "{items:?}");
    assert_eq!(image.count_blocks().unwrap().fully_present, 1);
}

#[test]
fn what_the_format_does_not_allow_is_refused_and_changes_nothing() {
    let mut image = noted();
    image.metadata.items.extend(
        (1..=1023).map(|n| {
            Item::new("one of many", Uuid::from_u128(n), IS_USER, Contents::Bytes(vec![1]))
        }),
    );
    let file = Recorded::of(&image);
    let before = file.bytes();
    let image = file.open();
    let (input, unsupported) = (ErrorKind::InvalidInput, ErrorKind::Unsupported);
    let mark = "21898540-3963-47d4-a9ed-35ef1adeb3c0".parse().unwrap();
    let long = vec![1; (1 << 20) + 1];
    for (edit, kind, code) in [
        (EditMetadata::new().set(NOTE, "x"), unsupported, "metadata.full"),
        (EditMetadata::new().set(OTHER, long), input, "metadata.item-size"),
        (EditMetadata::new().set(OTHER, vec![1; 1 << 20]), unsupported, "metadata.full"),
        (EditMetadata::new().remove(NOTE), input, "metadata.no-item"),
        (EditMetadata::new().set(mark, "x"), input, "metadata.mark"),
        (EditMetadata::new().remove(mark), input, "metadata.mark"),
        (EditMetadata::new().physical_sector(1024), input, "metadata.edit-sector"),
    ] {
        for error in [edit.forecast(&image).unwrap_err(), edit.run(&image).unwrap_err()] {
            assert_eq!((error.kind(), error.code()), (kind, code));
            assert_eq!(error.file(), Some("recorded"));
        }
    }
    assert!(file.bytes() == before);
    // In the place of another there is room for one.
    let edit = EditMetadata::new().remove(OTHER).set(NOTE, "x");
    assert_eq!(edit.forecast(&image).unwrap().written % 4096, 0);
    assert!(file.bytes() == before, "a check changes nothing");
    edit.run(&image).unwrap();
    let reading = OpenOptions::new().open_file(Arc::clone(&file) as Arc<dyn Storage>);
    let error = EditMetadata::new().remove(NOTE).run(&reading.unwrap()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ReadOnly);
}

#[test]
fn an_image_with_children_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let base = Image::dynamic(4 << 20);
    let paths = write_chain(folder.path(), &[base.clone(), base.new_child()]);
    let error = OpenOptions::new().writable(true).open_image(&paths[0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::HasChildren);
    let child = OpenOptions::new().writable(true).open_image(&paths[1]).unwrap();
    EditMetadata::new().set(NOTE, "x").run(&child).unwrap();
    child.close().unwrap();
    drop(child);
    assert_eq!(VhdxFile::open(&paths[1]).unwrap().user_item(NOTE).unwrap(), b"x");
}

/// After a crash at any point, with any of the unflushed writes lost, all of the changes are there or none.
#[test]
fn a_crash_leaves_all_of_a_change_or_nothing() {
    let file = Recorded::of(&noted());
    let start = file.bytes();
    let old = seen(start.clone());
    let image = file.open();
    let edit = EditMetadata::new().set(NOTE, vec![7; 30_000]).remove(OTHER);
    edit.disk_id(Uuid::from_u128(77)).physical_sector(512).run(&image).unwrap();
    let durable = file.events.lock().unwrap().len();
    image.close().unwrap();
    drop(image);
    let new = seen(file.bytes());
    assert_ne!(old.0, new.0);
    let events = file.events.lock().unwrap().clone();

    let mut rng = Rng::new(3);
    let mut outcomes = [0; 2];
    for cut in 0..=events.len() {
        let flushed = events[..cut].iter().rposition(|event| matches!(event, Event::Flush));
        let flushed = flushed.unwrap_or(0);
        for _ in 0..12 {
            let mut bytes = start.clone();
            for (n, event) in events[..cut].iter().enumerate() {
                let is_lost = n >= flushed && rng.chance(1, 2);
                match event {
                    Event::Length(len) if !is_lost => bytes.resize(*len as usize, 0),
                    Event::Write(at, written) => {
                        // Torn between sectors.
                        for (k, sector) in written.chunks(512).enumerate() {
                            let at = *at as usize + k * 512;
                            if (n < flushed || rng.chance(1, 2)) && at + sector.len() <= bytes.len()
                            {
                                bytes[at..at + sector.len()].copy_from_slice(sector);
                            }
                        }
                    }
                    _ => {}
                }
            }
            let found = seen(bytes.clone());
            let is_new = found.0 == new.0;
            assert!(is_new || found.0 == old.0, "a mixture after {cut} of {}", events.len());
            assert_eq!(found.1, old.1, "the identity stays");
            assert!(cut < durable || is_new, "a change that had returned is lost");
            outcomes[usize::from(is_new)] += 1;
            // The crate sees what the naive reader sees, and goes on from there.
            let image = Recorded::from_bytes(bytes).open();
            assert_eq!(image.user_item(NOTE).is_ok(), is_new);
            assert_eq!(image.geometry().physical_sector, if is_new { 512 } else { 4096 });
        }
    }
    assert!(outcomes.iter().all(|outcomes| *outcomes > 20), "{outcomes:?}");
}
