//! A writing process is killed again and again: nothing it flushed is lost.
#![cfg(unix)]
#![allow(clippy::disallowed_methods)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use avhdx::ops::{Check, Compact, Pace, Rebase, Resize};
use avhdx::{CreateOptions, DiffChain, Disk, OpenOptions};
use avhdx_testkit::build::{Block, Data, Image};
use avhdx_testkit::naive;
use avhdx_testkit::rng::{Rng, pattern};

const MIB: u64 = 1 << 20;
const SECTOR: usize = 512;
const SIZE: u64 = 8 * MIB;
const KILLS: u64 = 50;
/// How often an operation is killed, in the short form and in the long one.
const OPERATIONS: u64 = 4;
const MOST_OPERATIONS: u64 = 30;
/// Size of a disk whose table needs more than 1 MiB, and of one that loses data.
const LARGE: u64 = 150 << 30;
const SMALL: u64 = 6 * MIB;
/// The report has at least so many bytes once an operation is over.
const END: u64 = 10_000;
/// Tell the killed process its image, its report file and its seed.
const IMAGE: &str = "AVHDX_KILLED_IMAGE";
const WORDS: &str = "AVHDX_KILLED_WORDS";
const SEED: &str = "AVHDX_KILLED_SEED";

#[test]
fn fifty_kills_lose_nothing_that_was_flushed() {
    // On a disk: in memory no flush takes long enough to be killed in.
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let at = |name: &str| folder.path().join(name);
    let (base, child, words) = (at("base.vhdx"), at("child.avhdx"), at("words"));
    let mut disk = make_chain(&base, &child);
    let parent_before = std::fs::read(&base).unwrap();
    let mut rng = Rng::new(17);
    let (mut writes, mut flushes, mut in_flight) = (0, 0, 0);
    for kill in 0..KILLS {
        std::fs::write(&words, "").unwrap();
        // Sometimes at once, so that some die while they replay the log of the one before.
        let patience = if rng.chance(1, 5) { 0 } else { 1 + rng.below(3000) };
        write_until_killed(&child, &words, kill, patience);
        let mut allowed = Allowed::new(&disk);
        for line in std::fs::read_to_string(&words).unwrap().lines() {
            allowed.hear(line);
        }
        let chain = DiffChain::open(&child).unwrap_or_else(|error| panic!("kill {kill}: {error}"));
        let mut now = vec![0; SIZE as usize];
        chain.read_at(&mut now, 0).unwrap();
        allowed.judge(&now, kill);
        let findings = Check::new().run(&child).unwrap();
        assert!(findings.is_sound(), "kill {kill}: {findings:?}");
        drop(chain);
        let seen = naive::Chain::open([&base, &child]).unwrap().flat(1).unwrap();
        assert!(seen == now, "kill {kill}: the naive reader sees something else");
        writes += allowed.writes;
        flushes += allowed.flushes;
        in_flight += u64::from(allowed.is_flushing);
        disk = now;
    }
    assert!(std::fs::read(&base).unwrap() == parent_before, "the parent changed");
    println!("{KILLS} kills, {in_flight} of them in a flush, {writes} writes, {flushes} flushes");
    assert!(flushes > KILLS && in_flight > 0);
}

/// A rebase is killed, and run again: the disk is the same after each.
#[test]
fn kills_of_a_rebase_leave_the_disk_as_it_is() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let at = |name: &str| folder.path().join(name);
    let (base, child, other) = (at("base.vhdx"), at("child.avhdx"), at("other.vhdx"));
    let disk = make_chain(&base, &child);
    let image = CreateOptions::dynamic(SIZE).block_size(MIB as u32).create(&other).unwrap();
    image.write_at(&disk[MIB as usize..][..MIB as usize / 2], MIB).unwrap();
    image.write_at(&[9; 3 << 20], 4 * MIB).unwrap();
    image.close().unwrap();
    drop(image);
    let mut links = [0, 0];
    let reads = |what: &str| reads_as(&child, &disk, what);
    // At once, on its way, or once it is over.
    let patience = |kill| [0, 2, 4, 50][kill as usize % 4];
    killed("rebase_that_is_killed", &child, patience, |kill, _| {
        reads(&format!("kill {kill}"));
        let done = Rebase::new(&other).run(&child).unwrap();
        links[usize::from(done.was_parent)] += 1;
        reads(&format!("after kill {kill}"));
        assert!(Rebase::new(&other).run(&child).unwrap().was_parent);
    });
    assert!(links.iter().all(|links| *links > 0), "{links:?} kills left the old and the new link");
}

/// The rebase to be killed. Does nothing without its image.
#[test]
fn rebase_that_is_killed() {
    let (Some(image), Some(words)) = (std::env::var_os(IMAGE), std::env::var_os(WORDS)) else {
        return;
    };
    let words = std::fs::File::options().append(true).open(words).unwrap();
    let pace = Pace::new();
    pace.limit(Some(40 << 20));
    let base = Path::new(&image).with_file_name("other.vhdx");
    let rebase = Rebase::new(base).pace(pace).on_progress(|_| {
        (&words).write_all(b".").unwrap();
        std::ops::ControlFlow::Continue(())
    });
    rebase.run(image).unwrap();
    // All is done: to be killed now.
    (&words).write_all(&[b'.'; 100]).unwrap();
    std::thread::sleep(Duration::from_secs(60));
}

/// A compaction is killed, and run again: the disk is the same after each, and the file as short as without a kill.
#[test]
fn kills_of_a_compaction_leave_the_disk_as_it_is() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let at = |name: &str| folder.path().join(name);
    let (base, child) = (at("base.vhdx"), at("child.avhdx"));
    let (below, tip) = wasteful();
    std::fs::write(&base, below.to_bytes()).unwrap();
    let template = tip.to_bytes();
    let disk = tip.flat(Some(&below.flat(None)));
    let reads = |what: &str| reads_as(&child, &disk, what);
    let open = || OpenOptions::new().writable(true).open(&child).unwrap();
    let compact = || {
        let chain = open();
        let done = Compact::new().content(true).run(&chain).unwrap();
        chain.close().unwrap();
        done
    };
    std::fs::write(&child, &template).unwrap();
    let least = compact();
    assert!(least.moved > 0 && least.content > Some(0), "{least:?}");
    std::fs::write(&child, &template).unwrap();
    let (mut left, mut none_left) = (0, 0);
    // At once, on its way, or once it is over.
    let patience = |kill| [0, 6, 20, END][kill as usize % 4] + kill / 4;
    killed("compaction_that_is_killed", &child, patience, |kill, _| {
        reads(&format!("kill {kill}"));
        match std::fs::metadata(&child).unwrap().len() == least.file_len {
            true => none_left += 1,
            false => left += 1,
        }
        assert_eq!(compact().file_len, least.file_len, "after kill {kill}");
        reads(&format!("after kill {kill}"));
        assert_eq!(std::fs::metadata(&child).unwrap().len(), least.file_len);
    });
    assert!(left > 0 && none_left > 0, "{left} on their way, {none_left} done");
}

/// The compaction to be killed. Does nothing without its image.
#[test]
fn compaction_that_is_killed() {
    let (Some(image), Some(words)) = (std::env::var_os(IMAGE), std::env::var_os(WORDS)) else {
        return;
    };
    let words = std::fs::File::options().append(true).open(words).unwrap();
    let chain = OpenOptions::new().writable(true).open(image).unwrap();
    let pace = Pace::new();
    pace.limit(Some(100 << 20));
    let compact = Compact::new().content(true).pace(pace).on_progress(|_| {
        (&words).write_all(b".").unwrap();
        std::ops::ControlFlow::Continue(())
    });
    compact.run(&chain).unwrap();
    chain.close().unwrap();
    // All is done: to be killed now.
    (&words).write_all(&[b'.'; 2 * END as usize]).unwrap();
    std::thread::sleep(Duration::from_secs(60));
}

/// Resizes are killed, one that moves the table or one that cuts data off: the disk has the old or the new size, and can
/// be resized again.
#[test]
fn kills_of_a_resize_leave_the_old_or_the_new_disk() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let at = |name: &str| folder.path().join(name);
    let (base, child) = (at("base.vhdx"), at("child.avhdx"));
    let (below, tip) = wasteful();
    std::fs::write(&base, below.to_bytes()).unwrap();
    std::fs::write(&child, tip.to_bytes()).unwrap();
    let disk = tip.flat(Some(&below.flat(None)));
    // The disk after so many resizes; the rest of it is zeros.
    let after = |resizes: usize| {
        let whole = if resizes < 2 { SIZE } else { SMALL };
        let size = [SIZE, LARGE, SMALL][if resizes < 3 { resizes } else { 2 - resizes % 2 }];
        (size, &disk[..whole as usize])
    };
    let reads = |what: &str, may: &[(u64, &[u8])]| {
        let chain = DiffChain::open(&child).unwrap_or_else(|error| panic!("{what}: {error}"));
        let size = chain.geometry().size;
        let mut now = vec![0xAA; size.min(SIZE) as usize];
        chain.read_at(&mut now, 0).unwrap();
        let is = |(len, data): &(u64, &[u8])| {
            let (same, zeros) = now.split_at(data.len().min(now.len()));
            *len == size && same == *data && zeros.iter().all(|byte| *byte == 0)
        };
        assert!(may.iter().any(is), "{what}: neither the old nor the new disk, {size}");
        let mut end = vec![0xAA; MIB as usize];
        chain.read_at(&mut end, size - MIB).unwrap();
        let naive = naive::Chain::open([&base, &child]).unwrap();
        assert!(naive.read(1, 0, now.len()).unwrap() == now, "{what}: read naively");
        assert!(naive.read(1, size - MIB, MIB as usize).unwrap() == end, "{what}: read naively");
        let findings = Check::new().run(&child).unwrap();
        assert!(findings.is_sound(), "{what}: {findings:?}");
        size
    };
    let mut seen = std::collections::BTreeSet::new();
    // In the first resize, the second, or later.
    let patience = |kill| [1, 3, 4, 5][kill as usize % 4] + kill / 4;
    killed("resize_that_is_killed", &child, patience, |kill, said| {
        let count = |letter: &str| said.matches(letter).count();
        let may = [after(count("e")), after(count("b"))];
        seen.insert(reads(&format!("kill {kill}, {said}"), &may));
        let chain = OpenOptions::new().writable(true).open(&child).unwrap();
        Resize::to(LARGE).run(&chain).unwrap();
        Resize::to(SMALL).shrink(true).run(&chain).unwrap();
        chain.close().unwrap();
        drop(chain);
        reads(&format!("after kill {kill}"), &[after(2)]);
    });
    assert!(seen.len() > 1, "only disks of {seen:?} bytes");
}

/// The resizes to be killed. Does nothing without its image.
#[test]
fn resize_that_is_killed() {
    let (Some(image), Some(words)) = (std::env::var_os(IMAGE), std::env::var_os(WORDS)) else {
        return;
    };
    let words = std::fs::File::options().append(true).open(words).unwrap();
    let chain = OpenOptions::new().writable(true).open(image).unwrap();
    for size in [LARGE, SMALL].into_iter().cycle() {
        (&words).write_all(b"b").unwrap();
        Resize::to(size).shrink(true).run(&chain).unwrap();
        (&words).write_all(b"e").unwrap();
    }
}

/// The process to be killed. Does nothing without its image.
#[test]
fn process_that_is_killed() {
    let (Some(image), Some(words)) = (std::env::var_os(IMAGE), std::env::var_os(WORDS)) else {
        return;
    };
    let words = std::fs::File::options().append(true).open(words).unwrap();
    let say = |word: String| (&words).write_all(word.as_bytes()).unwrap();
    let seed: u64 = std::env::var(SEED).unwrap().parse().unwrap();
    let mut rng = Rng::new(seed);
    let mut chain = OpenOptions::new().writable(true).open(&image).unwrap();
    for write in 0_u64.. {
        let len = if rng.chance(1, 10) { 2 * MIB } else { (1 + rng.below(64)) * SECTOR as u64 };
        let at = rng.below((SIZE - len) / SECTOR as u64 + 1) * SECTOR as u64;
        if rng.chance(1, 8) {
            say(format!("discard {at} {len}\n"));
            chain.discard(at..at + len).unwrap();
        } else {
            let seed = seed << 32 | write;
            say(format!("write {seed} {at} {len}\n"));
            let mut bytes = vec![0; len as usize];
            pattern(seed, at, &mut bytes);
            chain.write_at(&bytes, at).unwrap();
        }
        if rng.chance(1, 40) {
            say("flush\n".into());
            chain.close().unwrap();
            say("flushed\n".into());
            drop(chain);
            chain = OpenOptions::new().writable(true).open(&image).unwrap();
        } else if rng.chance(1, 4) {
            say("flush\n".into());
            chain.flush().unwrap();
            say("flushed\n".into());
        }
    }
}

/// Kills an operation on an image again and again, each time on the image as it is now, once its report has as many bytes
/// as the patience for that kill; has `judge` look at what each kill left, with the report.
fn killed(
    test: &str,
    image: &Path,
    patience: impl Fn(u64) -> u64,
    mut judge: impl FnMut(u64, &str),
) {
    let (template, words) = (std::fs::read(image).unwrap(), image.with_file_name("words"));
    for kill in 0..operations() {
        std::fs::write(image, &template).unwrap();
        std::fs::write(&words, "").unwrap();
        kill_after(test, image, &words, kill, patience(kill));
        judge(kill, &std::fs::read_to_string(&words).unwrap());
    }
}

/// Fails unless the disk reads so, also naively, and its image is sound.
fn reads_as(child: &Path, disk: &[u8], what: &str) {
    let chain = DiffChain::open(child).unwrap_or_else(|error| panic!("{what}: {error}"));
    let mut now = vec![0; disk.len()];
    chain.read_at(&mut now, 0).unwrap();
    assert!(now == disk, "{what}: the disk is another");
    let below = chain.layers()[1].path.clone().unwrap();
    let seen = naive::Chain::open([&*below, child]).unwrap().flat(1).unwrap();
    assert!(seen == disk, "{what}: the naive reader sees something else");
    let findings = Check::new().run(child).unwrap();
    assert!(findings.is_sound(), "{what}: {findings:?}");
}

/// Runs a writing process until its report has this many bytes.
fn write_until_killed(image: &Path, words: &PathBuf, seed: u64, patience: u64) {
    kill_after("process_that_is_killed", image, words, seed, patience);
}

/// Runs one of these tests as a process until its report has this many bytes.
fn kill_after(test: &str, image: &Path, words: &PathBuf, seed: u64, patience: u64) {
    let mut process = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact"])
        .env(IMAGE, image)
        .env(WORDS, words)
        .env(SEED, seed.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let started = Instant::now();
    while std::fs::metadata(words).unwrap().len() < patience {
        if let Some(status) = process.try_wait().unwrap() {
            panic!("the process ended by itself: {status}");
        }
        assert!(started.elapsed() < Duration::from_secs(60), "the process says nothing");
        std::thread::sleep(Duration::from_micros(200));
    }
    process.kill().unwrap();
    process.wait().unwrap();
}

/// The contents that each sector may have.
struct Allowed {
    sectors: Vec<Vec<[u8; SECTOR]>>,
    writes: u64,
    flushes: u64,
    is_flushing: bool,
}

impl Allowed {
    fn new(disk: &[u8]) -> Self {
        let sectors = disk.as_chunks::<SECTOR>().0.iter().map(|sector| vec![*sector]).collect();
        Self { sectors, writes: 0, flushes: 0, is_flushing: false }
    }

    /// Processes a line that the process wrote before or after an action.
    fn hear(&mut self, line: &str) {
        let mut words = line.split(' ');
        let verb = words.next().unwrap();
        let numbers: Vec<u64> = words.map(|word| word.parse().unwrap()).collect();
        let (at, bytes) = match verb {
            "write" => {
                let mut bytes = vec![0; numbers[2] as usize];
                pattern(numbers[0], numbers[1], &mut bytes);
                (numbers[1], bytes)
            }
            "discard" => (numbers[0], vec![0; numbers[1] as usize]),
            "flush" => {
                self.is_flushing = true;
                return;
            }
            "flushed" => {
                self.is_flushing = false;
                self.flushes += 1;
                for sector in &mut self.sectors {
                    sector.drain(..sector.len() - 1);
                }
                return;
            }
            other => panic!("{other:?}"),
        };
        self.writes += 1;
        let first = at as usize / SECTOR;
        for (n, sector) in bytes.as_chunks::<SECTOR>().0.iter().enumerate() {
            self.sectors[first + n].push(*sector);
        }
    }

    fn judge(&self, disk: &[u8], kill: u64) {
        for (n, sector) in disk.as_chunks::<SECTOR>().0.iter().enumerate() {
            let may = &self.sectors[n];
            assert!(
                may.contains(sector),
                "kill {kill}: sector {n} reads none of the {} that it may",
                may.len()
            );
        }
    }
}

fn operations() -> u64 {
    let is_long = std::env::var_os("AVHDX_LONG").is_some_and(|value| value == "1");
    if is_long { MOST_OPERATIONS } else { OPERATIONS }
}

/// A base, and a child with holes, zeros, parts of blocks, and blocks that the base shows too.
fn wasteful() -> (Image, Image) {
    let mut base = Image::dynamic(SIZE);
    for block in 0..8 {
        base.put(block, Block::full(Data::Pattern(block + 1)));
    }
    let mut child = base.new_child();
    child.parent_path(".\\base.vhdx");
    for block in 0..8 {
        let block_of = match block % 4 {
            0 => Block::full(Data::Pattern(100 + block)),
            1 => Block::partial_runs(Data::Pattern(200 + block), &[(3, 400), (900, 8)]),
            2 => Block::full(Data::Zeros),
            _ => Block::full(Data::Pattern(block + 1)),
        };
        child.put(block, block_of);
    }
    child.gap = MIB;
    child.bitmap_at.insert(0, 40 * MIB);
    (base, child)
}

/// Creates a base with data in every block and an empty child; returns the contents of the disk.
fn make_chain(base: &Path, child: &Path) -> Vec<u8> {
    let mut disk = vec![0; SIZE as usize];
    let parent = CreateOptions::dynamic(SIZE).block_size(MIB as u32).create(base).unwrap();
    for at in (0..SIZE).step_by(MIB as usize) {
        let bytes = &mut disk[at as usize..][..700 << 10];
        pattern(900, at, bytes);
        parent.write_at(bytes, at).unwrap();
    }
    parent.close().unwrap();
    CreateOptions::child_of(&parent).unwrap().create(child).unwrap().close().unwrap();
    disk
}
