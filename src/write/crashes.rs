//! Crashes at every point of an edit of the metadata and of a resize, with every part of the
//! unflushed writes lost: the image is that before or after a step, to the testkit's naive reader
//! and to the crate. Uses the simulated host and the outcomes of the test kit.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use avhdx_testkit::build::{Block, Data, Image};
use avhdx_testkit::naive::{Chain, Layer};
use uuid::Uuid;

use super::ItemEdit;
use crate::format::metadata::ItemFlags;
use crate::outcomes::{Depth, Explorer};
use crate::sim::{Event, FOLDER, Files, SimHost};
use crate::storage::Host;
use crate::write::{LinkPaths, locator_edit};
use crate::{Budget, Disk, MergeMark, MergeState, OpenOptions, VhdxFile, Zeroing};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const DEPTH: Depth = Depth { exhaustive: 10, samples: 40, torn: 40 };
/// The depth for histories with many writes.
const DEPTH_OF_MANY: Depth = Depth { exhaustive: 6, samples: 8, torn: 8 };
/// Minimum of outcomes over all histories together.
const ENOUGH: usize = 200;

/// The visible state of an image, except its identity.
#[derive(Clone, Debug, PartialEq)]
struct Seen {
    size: u64,
    items: Vec<(Uuid, u32, Vec<u8>)>,
    /// Sectors of the disk with their offsets.
    sectors: Vec<(u64, Vec<u8>)>,
}

/// A step of a history: the state after it, and when it began and returned.
struct Step {
    begun: usize,
    done: usize,
    after: Seen,
}

/// Images on a host, the last of which is changed step by step.
struct History {
    host: SimHost,
    start: Files,
    tip: PathBuf,
    below: Vec<Layer>,
    /// Offsets on the disk to compare.
    places: Vec<u64>,
    steps: Vec<Step>,
    /// When an identity became known, the identity, and the state it stands for.
    known: Vec<(usize, Uuid, Seen)>,
}

impl History {
    /// Takes `images` from the base up, and the offsets to compare.
    fn new(images: &[Image], places: impl IntoIterator<Item = u64>) -> Self {
        let host = SimHost::new(Files::default());
        let name = |i: usize| Path::new(FOLDER).join(["base.vhdx", "child.avhdx"][i]);
        for (i, image) in images.iter().enumerate() {
            let file = host.create_new(&name(i)).unwrap();
            file.write_at(&image.to_bytes(), 0).unwrap();
        }
        let below = images[..images.len() - 1].iter();
        let below = below.map(|image| Layer::from_bytes(image.to_bytes()).unwrap()).collect();
        let start = host.files();
        let tip = name(images.len() - 1);
        let places = places.into_iter().collect();
        let mut it = Self { host, start, tip, below, places, steps: Vec::new(), known: Vec::new() };
        let (seen, identity) = it.look(&it.start).unwrap();
        it.known.push((0, identity, seen.clone()));
        it.steps.push(Step { begun: 0, done: 0, after: seen });
        it.host.record();
        it
    }

    fn open(&self) -> VhdxFile {
        let options = OpenOptions::new().writable(true).host(Arc::new(self.host.clone()));
        options.orphan_children(true).open_image(&self.tip).unwrap()
    }

    /// Takes a step that is durable when it returns.
    fn step(&mut self, take: impl FnOnce()) {
        let begun = self.host.mark();
        take();
        let done = self.host.mark();
        let (after, _) = self.look(&self.host.files()).unwrap();
        self.steps.push(Step { begun, done, after });
    }

    /// Records that the present identity of the image is known elsewhere.
    fn known(&mut self, identity: Uuid) {
        let (seen, now) = self.look(&self.host.files()).unwrap();
        assert_eq!(now, identity);
        self.known.push((self.host.mark(), identity, seen));
    }

    /// The state of the image by the naive reader.
    fn look(&self, files: &Files) -> Result<(Seen, Uuid), String> {
        let bytes = files.file(&self.tip).ok_or("no file")?.clone();
        let tip = Layer::from_source(Arc::new(bytes))?;
        match tip.faults() {
            faults if faults.is_empty() => {}
            faults => return Err(faults.join("; ")),
        }
        let (size, items, identity) = (tip.size, tip.items.clone(), tip.data_write_guid);
        let chain = Chain([self.below.clone(), vec![tip]].concat());
        let places = self.places.iter().copied().filter(|at| at + 512 <= size);
        let sector = |at| Ok((at, chain.read(chain.0.len() - 1, at, 512)?));
        let sectors = places.map(sector).collect::<Result<_, String>>()?;
        Ok((Seen { size, items, sectors }, identity))
    }

    /// Judges one outcome of a crash whose last step is one of `steps`.
    fn judge(&self, files: &Files, cut: usize, steps: &[Step]) -> Result<(), String> {
        let (seen, identity) = self.look(files)?;
        if !steps.iter().any(|step| step.after == seen) {
            return Err(format!("{:?} is of no step", (seen.size, &seen.items, identity)));
        }
        for (_, known, then) in self.known.iter().filter(|(from, ..)| *from <= cut) {
            let is_same = (seen.size, &seen.sectors) == (then.size, &then.sectors);
            if identity == *known && !is_same {
                return Err("another disk by the same identity".into());
            }
        }
        for writable in [false, true] {
            let host = SimHost::new(files.clone());
            let options = OpenOptions::new().writable(writable).orphan_children(true);
            let options = options.host(Arc::new(host.clone())).budget(Budget::new(1 << 18));
            let image = options.open_image(&self.tip).map_err(|error| error.to_string())?;
            if image.geometry().size != seen.size || image.info().metadata.len() != seen.items.len()
            {
                return Err(format!("the crate sees {:?}", image.geometry()));
            }
            for (at, sector) in &seen.sectors {
                let mut bytes = vec![0; 512];
                match image.read_at(&mut bytes, *at) {
                    Ok(()) if bytes != *sector => return Err(format!("other bytes at {at:#x}")),
                    Err(error) if error.kind() != crate::ErrorKind::ParentRequired => {
                        return Err(error.to_string());
                    }
                    _ => {}
                }
            }
            drop(image);
            if self.look(&host.files())? != (seen.clone(), identity) {
                return Err(format!("opened (writable: {writable}) it is another"));
            }
        }
        Ok(())
    }

    /// Judges all outcomes and returns their number.
    fn explore(&self, what: &str) -> usize {
        self.explore_events(what, 0, &self.host.events(), DEPTH)
    }

    /// Judges the outcomes of the last step, from its start to shortly after the largest write,
    /// which has most pages of its log entry.
    fn explore_entries(&self, what: &str) -> usize {
        let events = self.host.events();
        let from = self.steps.last().map_or(0, |step| step.begun);
        let is_entry =
            |event: &Event| matches!(event, Event::Write(_, chunk) if chunk.data.len() > 1 << 18);
        let entry = events[from..].iter().position(is_entry).unwrap() + from;
        self.explore_events(what, from, &events[..entry + 12], DEPTH_OF_MANY)
    }

    fn explore_events(&self, what: &str, from: usize, events: &[Event], depth: Depth) -> usize {
        let mut seen = HashSet::new();
        let mut explorer = Explorer::new(self.start.clone(), events, depth, 42);
        let last_done = |cut: usize| self.steps.iter().rposition(|s| s.done < cut.max(1));
        let epoch = |cut: usize| last_done(cut).unwrap_or(0) as u64;
        explorer.run(from, &epoch, &mut |outcome| {
            let first = epoch(outcome.cut) as usize;
            if !seen.insert((outcome.files.sum().exact, first)) {
                return;
            }
            let begun = self.steps.iter().filter(|step| step.begun <= outcome.cut).count();
            if let Err(why) = self.judge(&outcome.files, outcome.cut, &self.steps[first..begun]) {
                panic!(
                    "{what}: event {} of {}, kept {:?}, torn {}: {why}",
                    outcome.cut,
                    events.len(),
                    outcome.kept,
                    outcome.torn.len()
                );
            }
        });
        println!("{what}: {} events, {} outcomes", events.len(), seen.len());
        seen.len()
    }
}

fn base(size: u64, blocks: u64) -> Image {
    let mut base = Image::dynamic(size);
    for block in 0..blocks {
        base.put(block, Block::full(Data::Pattern(block + 50)));
    }
    base
}

fn child(size: u64, base: &Image) -> Image {
    let mut child = Image::child(size, base.data_write_guid());
    child.parent_path(r".\base.vhdx");
    child
}

/// Sectors around these offsets.
fn around(places: &[u64]) -> Vec<u64> {
    let near = |at: &u64| [at.saturating_sub(512), *at, at + 512, at + 2 * MIB];
    places.iter().flat_map(near).collect()
}

fn note(guid: u128, len: usize) -> ItemEdit {
    let bytes = (0..len).map(|i| (i * 13 + len) as u8).collect();
    ItemEdit::Set { item: Uuid::from_u128(guid), flags: ItemFlags::USER, bytes }
}

#[test]
fn an_edit_of_the_metadata_is_whole_or_not_there() {
    let base = base(4 * MIB, 4);
    let mut child = child(4 * MIB, &base);
    child.put(1, Block::partial_runs(Data::Pattern(1), &[(0, 9)]));
    let mut history = History::new(&[base, child], around(&[0, MIB, 2 * MIB, 3 * MIB]));
    let image = history.open();
    let link =
        || locator_edit(&image, Uuid::from_u128(5), Some(Uuid::from_u128(6)), LinkPaths::Keep);
    let mark = MergeMark {
        state: MergeState::Merging,
        other: Uuid::from_u128(6),
        name: "base.vhdx".into(),
        low_space: false,
        moved: None,
    };
    history.step(|| {
        image
            .its_writer()
            .edit_metadata(&[link().unwrap(), ItemEdit::merge_mark(Some(&mark))])
            .unwrap();
    });
    // Several pages, together with pages of the tables.
    history.step(|| image.its_writer().edit_metadata(&[note(1, 9000), note(2, 100)]).unwrap());
    history.step(|| {
        image.write_at(&[7; 512], 2 * MIB).unwrap();
        image.flush().unwrap();
    });
    history.step(|| image.its_writer().edit_metadata(&[note(1, 5000), note(3, 6000)]).unwrap());
    history.step(|| {
        let link = locator_edit(&image, Uuid::from_u128(7), None, LinkPaths::Keep).unwrap();
        let gone = ItemEdit::Remove { item: Uuid::from_u128(1), is_user: true };
        image.its_writer().edit_metadata(&[link, gone, ItemEdit::merge_mark(None)]).unwrap();
    });
    history.step(|| image.close().unwrap());
    drop(image);
    assert!(history.explore("edits") > ENOUGH);
}

#[test]
fn an_identity_that_is_known_is_of_one_disk_whatever_a_crash_leaves() {
    // Other writes of a step may be lost in part, so only this sector is compared.
    let mut history = History::new(&[base(4 * MIB, 2)], [0]);
    let image = history.open();
    for seed in 1..4 {
        history.step(|| {
            image.write_at(&[seed; 512], 0).unwrap();
            image.write_at(&[seed; 512], 2 * MIB).unwrap();
            image.flush().unwrap();
        });
        let identity = image.hand_out_identity().unwrap();
        history.known(identity);
    }
    history.step(|| image.close().unwrap());
    drop(image);
    assert!(history.explore("identities") > ENOUGH / 8);
}

#[test]
fn a_resize_leaves_a_disk_of_the_one_size_or_the_other() {
    let half = MIB / 2;
    let sizes =
        [(3 * MIB + half, 6 * MIB + 512), (6 * MIB + half, 2 * MIB + half), (4 * MIB, 5 * MIB)];
    let mut outcomes = 0;
    for (old, new) in sizes {
        let places = || around(&[0, MIB, 2 * MIB, 3 * MIB, old, new, 5 * MIB, old.min(new) + 1024]);
        let base = base(8 * MIB, 8);
        let last = (old - 1) / MIB;
        for block in [
            None,
            Some(Block::full(Data::Pattern(1))),
            Some(Block::partial_runs(Data::Pattern(1), &[(0, 30), (1020, 900)])),
        ] {
            let mut images = vec![base.clone(), child(old, &base)];
            images[1].put(1, Block::partial_runs(Data::Pattern(2), &[(5, 70)]));
            if let Some(block) = &block {
                images[1].put(last, block.clone());
            }
            outcomes += there_and_back(&images, places(), &[new]);
            let Some(block) = block.filter(|block| block.state == 6) else { continue };
            for mut alone in [Image::dynamic(old), Image::fixed(old)] {
                alone.put(last, block.clone());
                outcomes += there_and_back(&[alone], places(), &[new, old]);
            }
        }
    }
    assert!(outcomes > ENOUGH, "{outcomes}");
}

#[test]
fn a_resize_that_moves_the_table_leaves_a_disk_of_the_one_size_or_the_other() {
    let (old, new) = (100 * GIB + MIB / 2, 129 * GIB);
    let last = old / MIB;
    let places = || around(&[0, 4096 * MIB, 70 * GIB, last * MIB, old, 128 * GIB]);
    let mut dynamic = Image::dynamic(old);
    let base = base(130 * GIB, 3);
    let mut child = child(old, &base);
    for block in [0, 4096, last] {
        dynamic.put(block, Block::full(Data::Pattern(block)));
        child.put(block, Block::partial_runs(Data::Pattern(block), &[(0, 900)]));
    }
    let outcomes = there_and_back(&[dynamic], places(), &[new])
        + there_and_back(&[base, child], places(), &[new]);
    assert!(outcomes > ENOUGH, "{outcomes}");
}

/// Pages that an entry of a 1 MiB log holds. More changes than that are flushed at once.
const MOST: u64 = 252;

/// Changes `pages` pages of the table without a flush.
fn change_pages(image: &VhdxFile, pages: u64) {
    for page in 0..pages {
        let entry = page * 512 + 100;
        let at = (entry - entry / 4097) * MIB;
        image.write_zeroes(at..at + MIB, Zeroing::MayUnmap).unwrap();
    }
}

#[test]
fn an_edit_that_shares_its_commit_with_many_pages_is_whole_or_not_there() {
    let base = base(132 * GIB, 1);
    let child = child(132 * GIB, &base);
    // The other changes may be lost, so no sector is compared.
    let mut history = History::new(&[base, child], []);
    let image = history.open();
    history.step(|| image.its_writer().edit_metadata(&[note(1, 100)]).unwrap());
    history.step(|| {
        change_pages(&image, MOST - 1);
        image.its_writer().edit_metadata(&[note(1, 9000), note(2, 100)]).unwrap();
    });
    drop(image);
    assert!(history.explore_entries("an edit and many pages") > ENOUGH / 8);
}

#[test]
fn a_resize_after_many_changes_leaves_a_disk_of_the_one_size_or_the_other() {
    let (small, large) = (130 * GIB + MIB / 2, 131 * GIB);
    let (last, behind) = (small / MIB, small / MIB + 100);
    let mut base = base(132 * GIB, 1);
    for block in [last, behind, behind + 1] {
        base.put(block, Block::full(Data::Pattern(block)));
    }
    for (old, new) in [(small, large), (large, small)] {
        let mut child = child(old, &base);
        child.put(last, Block::partial_runs(Data::Pattern(1), &[(0, 30), (1020, 900)]));
        if old == large {
            // Each in another page of the table.
            child.put(behind, Block::full(Data::Pattern(2)));
            child.put(large / MIB - 1, Block::full(Data::Pattern(3)));
        }
        let mut history = History::new(&[base.clone(), child], around(&[small, behind * MIB]));
        let image = history.open();
        history.step(|| image.its_writer().edit_metadata(&[note(1, 100)]).unwrap());
        history.step(|| {
            change_pages(&image, MOST - 2);
            // In a page that the resize changes too.
            image.write_zeroes((last - 3) * MIB..(last - 2) * MIB, Zeroing::MayUnmap).unwrap();
            image.its_writer().resize(new).unwrap();
        });
        drop(image);
        let what = format!("many pages, and {old} to {new}");
        assert!(history.explore_entries(&what) > ENOUGH / 8);
    }
}

/// Resizes once for each size, then writes.
fn there_and_back(images: &[Image], places: Vec<u64>, sizes: &[u64]) -> usize {
    let mut history = History::new(images, places);
    let mut image = history.open();
    for size in sizes {
        let mut after = None;
        history.step(|| {
            image.its_writer().resize(*size).unwrap();
            after = Some(image.its_writer().reopen().unwrap());
        });
        image = VhdxFile::own(after.unwrap().into());
    }
    let end = sizes[sizes.len() - 1];
    history.step(|| {
        image.write_at(&[9; 512], end - 512).unwrap();
        image.flush().unwrap();
    });
    let table = |files: &Files| {
        files.file(&history.tip).map(|file| {
            let layer = Layer::from_source(Arc::new(file.clone())).unwrap();
            layer.structures_end()
        })
    };
    let is_moved = table(&history.start) != table(&history.host.files());
    assert_eq!(is_moved, end > 100 * GIB, "whether the table lies elsewhere");
    drop(image);
    history.explore(&format!("{} to {sizes:?}", images[images.len() - 1].size))
}

/// Of two headers in flight a crash may leave neither.
#[test]
fn a_header_is_durable_before_the_other_is_written() {
    let image = Image::dynamic(4 * MIB);
    let history = History::new(&[image], [0]);
    let file = history.open();
    // The first change is hidden and begins the log; the next one needs another identity at once.
    file.its_writer().prepare_hidden_change().unwrap();
    file.write_at(&[1; 512], 0).unwrap();
    file.flush().unwrap();
    file.close().unwrap();
    let (mut in_flight, mut headers) = ([false; 2], 0);
    for event in history.host.events() {
        match event {
            Event::Write(_, chunk) => {
                let slot = match chunk.at {
                    0x1_0000 => 0,
                    0x2_0000 => 1,
                    _ => continue,
                };
                assert!(!in_flight[1 - slot], "header {headers} is written over one in flight");
                in_flight[slot] = true;
                headers += 1;
            }
            Event::FlushEnd(..) => in_flight = [false; 2],
            _ => {}
        }
    }
    assert_eq!(headers, 6, "two for the log, two for the identity, two for the end");
}
