//! Volumes that lie: no reader panics past the boundary, goes on without end or takes memory without bound.
//!
//! Bytes that a whole look at a sound volume reads are where structures are; they are changed a few at a time. The one
//! test of this program measures the memory of the process.

#[allow(dead_code)] // what the other program uses
mod images;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use avhdx::{Disk, Error, Extent, Geometry, Result};
use avhdx_files::{Kind, Options, Volumes, silence_caught_panics};
use avhdx_testkit::rng::Rng;
use peak_alloc::PeakAlloc;

use images::{MIB, Model, Mounted, model};

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// How much memory a look may take: pages that are kept, a list of a folder, a piece of a file.
const MOST_MEMORY: usize = 64 << 20;
/// How long a look may take, on a machine that does other things too.
const MOST_TIME: Duration = Duration::from_secs(20);
const MOST_ENTRIES: usize = 4000;

/// A volume with other bytes in some places.
struct Patched {
    sound: Arc<Vec<u8>>,
    patches: Vec<(usize, Vec<u8>)>,
}

impl Disk for Patched {
    fn geometry(&self) -> Geometry {
        Geometry::new(self.sound.len() as u64, 512, 512)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.geometry().check_range(offset, buf.len() as u64)?;
        let start = offset as usize;
        buf.copy_from_slice(&self.sound[start..start + buf.len()]);
        for (at, bytes) in &self.patches {
            for (at, byte) in (*at..).zip(bytes) {
                if let Some(place) = at.checked_sub(start).and_then(|at| buf.get_mut(at)) {
                    *place = *byte;
                }
            }
        }
        Ok(())
    }

    fn next_extent(&self, _: Range<u64>) -> Result<Option<Extent>> {
        Err(Error::read_only())
    }
}

/// What a look met: how many files it read whole, and the codes of errors.
#[derive(Default)]
struct Met {
    whole: usize,
    codes: BTreeSet<&'static str>,
}

impl Met {
    fn note<T>(&mut self, result: avhdx_files::Result<T>) -> Option<T> {
        result.map_err(|error| self.codes.insert(error.code())).ok()
    }
}

/// Looks at everything that a volume shows, at the beginning and the end of each file.
fn look(disk: Arc<dyn Disk>, touched: &mut Vec<Range<u64>>) -> Met {
    let mut met = Met::default();
    let Some(volumes) = met.note(Volumes::of(disk)) else { return met };
    for volume in volumes.iter() {
        let options = Options::default().record(true).system(true);
        let Some(tree) = met.note(volume.open_with(options)) else { continue };
        let root = tree.root();
        // The bytes of files are no structures.
        let mut found = Vec::new();
        if let Some(root) = met.note(root) {
            for entry in tree.walk(&root).take(MOST_ENTRIES) {
                found.extend(met.note(entry));
            }
        }
        for path in [&b"SMALL.txt"[..], b"many/../a/level 0", b"to small"] {
            met.note(tree.resolve(path));
        }
        for entry in &found {
            met.note(tree.streams(entry));
            if entry.kind() == Some(Kind::Link) {
                met.note(tree.target(entry));
            }
        }
        met.note(tree.check_clean());
        met.note(tree.verified_free(&mut |_| {}));
        touched.extend(tree.touched());
        for entry in found.iter().filter(|entry| entry.kind() == Some(Kind::File)) {
            let Some(mut file) = met.note(tree.open(entry, None)) else { continue };
            let size = file.size();
            let mut piece = vec![0; size.min(100_000) as usize];
            let len = piece.len() as u64;
            let begun = met.note(file.read_at(&mut piece, 0)).is_some();
            let ended = met.note(file.read_at(&mut piece, size - len)).is_some();
            file.hole_end(size / 2);
            met.whole += usize::from(begun && ended);
        }
    }
    met
}

/// Changes a few bytes where structures are.
fn patches(rng: &mut Rng, sound: &[u8], places: &[Range<u64>]) -> Vec<(usize, Vec<u8>)> {
    let place = |rng: &mut Rng| {
        let range = &places[rng.below(places.len() as u64) as usize];
        let at = range.start + rng.below(range.end - range.start);
        // Most structures begin with what counts.
        if rng.chance(1, 3) {
            (range.start + rng.below(64).min(range.end - range.start - 1)) as usize
        } else {
            at as usize
        }
    };
    let mut patches = Vec::new();
    for _ in 0..=rng.below(3) {
        let at = place(rng);
        let width = 1 << rng.below(4);
        let at = if rng.chance(3, 4) { at / width * width } else { at };
        let width = width.min(sound.len() - at);
        let old = &sound[at..at + width];
        let number = old.iter().rev().fold(0u64, |number, byte| number << 8 | u64::from(*byte));
        let new = match rng.below(9) {
            0 => 0,
            1 => 1,
            2 => u64::MAX,
            3 => u64::MAX >> 1,
            4 => number.wrapping_add(1),
            5 => number.wrapping_sub(1),
            6 => number ^ 1 << rng.below(8 * width as u64),
            7 => rng.next_u64(),
            _ => {
                let from = place(rng);
                let len = (1 << rng.below(10)).min(sound.len() - from.max(at));
                patches.push((at, sound[from..from + len].to_vec()));
                continue;
            }
        };
        patches.push((at, new.to_le_bytes()[..width].to_vec()));
    }
    patches
}

/// Few files of each kind.
fn few() -> BTreeMap<String, Model> {
    let mut few = model();
    few.retain(|path, _| !path.starts_with("many/") || path.contains("1.d") || path.contains("20"));
    few
}

fn sound() -> Vec<(&'static str, Vec<u8>)> {
    let mut links = few();
    links.extend([
        ("to small".into(), Model::Link("a/../small.txt".into())),
        ("circle".into(), Model::Link("circle".into())),
    ]);
    let mut sound = Vec::new();
    for (name, kind, features) in [
        ("ext2", "ext2", "^resize_inode"),
        ("ext3", "ext3", "^resize_inode"),
        // Checksums would refuse each change before it counts.
        ("ext4", "ext4", "^metadata_csum,^resize_inode"),
    ] {
        sound.extend(images::ext_of(&links, kind, "1024", features).map(|image| (name, image)));
    }
    for (name, bits) in [("FAT12", "12"), ("FAT16", "16"), ("FAT32", "32")] {
        sound.extend(images::fat_of(&few(), bits).map(|image| (name, image)));
    }
    let ntfs = || {
        let mounted = Mounted::new(8 * MIB, "1024")?;
        mounted.set("", "ntfs_attrib_be", &[0, 0, 0x08, 0x10]);
        mounted.fill(&links);
        Some(mounted.finish())
    };
    sound.extend(ntfs().map(|image| ("NTFS", image)));
    sound
}

/// A sound disk by its name, and the places of its structures; none where a look tells them.
type Sound = (&'static str, Vec<u8>, Vec<Range<u64>>);

/// Disks with tables.
fn tables() -> Vec<Sound> {
    let Some(volume) = images::fat_of(&few(), "12") else { return Vec::new() };
    let with_volumes = |script: &str, at: &[u64]| {
        let mut disk = images::table(script)?;
        for at in at {
            disk[(at * MIB) as usize..][..volume.len()].copy_from_slice(&volume);
        }
        Some(disk)
    };
    let gpt = "label: gpt\nstart=2048, size=8192\nstart=12288, size=8192\n";
    let gpt = with_volumes(gpt, &[1, 6]);
    let copies = |len: u64| {
        vec![0..512, 512..604, 1024..1408, len - 33 * 512..len - 32 * 512, len - 512..len - 420]
    };
    let mbr = "label: dos\n1: start=2048, size=8192, type=c\n2: start=10240, size=51200, type=5\n\
               5: start=12288, size=8192, type=c\n6: start=22528, size=8192, type=c\n";
    let mbr = with_volumes(mbr, &[1, 6, 11]);
    let tables = |disk: &[u8]| {
        let sectors = (0..disk.len() as u64).step_by(512);
        let is_table = |at: &u64| {
            let sector = &disk[*at as usize..][..512];
            sector[510..] == [0x55, 0xAA] && sector[..3] == [0; 3]
        };
        sectors.filter(is_table).map(|at| at + 446..at + 512).collect::<Vec<_>>()
    };
    let gpt = gpt.map(|disk| ("GPT", copies(disk.len() as u64), disk));
    let mbr = mbr.map(|disk| ("MBR", tables(&disk), disk));
    gpt.into_iter().chain(mbr).map(|(name, places, disk)| (name, disk, places)).collect()
}

#[test]
fn volumes_that_lie_are_errors_at_most() {
    silence_caught_panics();
    let is_long = std::env::var_os("AVHDX_LONG").is_some_and(|value| value == "1");
    let (mut rng, cases) = (Rng::new(20), if is_long { 15_000 } else { 150 });
    let volumes = sound().into_iter().map(|(name, image)| (name, image, Vec::new()));
    for (name, image, places) in volumes.chain(tables()) {
        let sound = Arc::new(image);
        let disk = |patches| Arc::new(Patched { sound: Arc::clone(&sound), patches });
        let mut touched = Vec::new();
        let met = look(disk(Vec::new()), &mut touched);
        assert!(met.whole >= 30, "{name}: {} files", met.whole);
        // Of a disk with a table, the table is what lies.
        let touched = if places.is_empty() { touched } else { places };
        assert!(touched.len() > 2, "{name}: {touched:?}");
        let in_order: BTreeSet<_> =
            ["files.link", "files.not-found", "ntfs.record", "files.stream", "files.volume-kind"]
                .into();
        assert!(met.codes.is_subset(&in_order), "{name}: {:?}", met.codes);
        let (mut codes, mut changed, start) = (BTreeMap::<_, usize>::new(), 0, Instant::now());
        for case in 0..cases {
            let patches = patches(&mut rng, &sound, &touched);
            let said = format!("{name}, case {case}: {patches:x?}");
            let (before, begun) = (ALLOCATOR.current_usage(), Instant::now());
            ALLOCATOR.reset_peak_usage();
            let met = look(disk(patches), &mut Vec::new());
            let taken = ALLOCATOR.peak_usage().saturating_sub(before);
            assert!(taken < MOST_MEMORY, "{said}: {taken} bytes of memory");
            assert!(begun.elapsed() < MOST_TIME, "{said}: {:?}", begun.elapsed());
            assert!(!met.codes.contains("files.panic"), "{said}: a panic");
            changed += usize::from(!met.codes.is_subset(&in_order));
            for code in met.codes {
                *codes.entry(code).or_default() += 1;
            }
        }
        println!("{name}: {cases} cases in {:?}: {codes:?}", start.elapsed());
        assert!(changed > cases / 20, "{name}: only {changed} changes were noticed");
    }
}
