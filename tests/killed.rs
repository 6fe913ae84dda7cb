//! A writing process is killed again and again: nothing it flushed is lost.
#![cfg(unix)]
#![allow(clippy::disallowed_methods)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use avhdx::ops::{Check, Pace, Rebase};
use avhdx::{CreateOptions, DiffChain, Disk, OpenOptions};
use avhdx_testkit::naive;
use avhdx_testkit::rng::{Rng, pattern};

const MIB: u64 = 1 << 20;
const SECTOR: usize = 512;
const SIZE: u64 = 8 * MIB;
const KILLS: u64 = 50;
/// How often a rebase is killed, in the short form and in the long one.
const REBASES: u64 = 4;
const MOST_REBASES: u64 = 30;
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
    let (base, child, other, words) =
        (at("base.vhdx"), at("child.avhdx"), at("other.vhdx"), at("words"));
    let disk = make_chain(&base, &child);
    let image = CreateOptions::dynamic(SIZE).block_size(MIB as u32).create(&other).unwrap();
    image.write_at(&disk[MIB as usize..][..MIB as usize / 2], MIB).unwrap();
    image.write_at(&[9; 3 << 20], 4 * MIB).unwrap();
    image.close().unwrap();
    drop(image);
    let template = std::fs::read(&child).unwrap();
    let is_long = std::env::var_os("AVHDX_LONG").is_some_and(|value| value == "1");
    let kills = if is_long { MOST_REBASES } else { REBASES };
    let mut links = [0, 0];
    let reads = |what: &str| {
        let chain = DiffChain::open(&child).unwrap_or_else(|error| panic!("{what}: {error}"));
        let mut now = vec![0; SIZE as usize];
        chain.read_at(&mut now, 0).unwrap();
        assert!(now == disk, "{what}: the disk is another");
        let below = chain.layers()[1].path.clone().unwrap();
        let seen = naive::Chain::open([&below, &child]).unwrap().flat(1).unwrap();
        assert!(seen == disk, "{what}: the naive reader sees something else");
        let findings = Check::new().run(&child).unwrap();
        assert!(findings.is_sound(), "{what}: {findings:?}");
    };
    for kill in 0..kills {
        std::fs::write(&child, &template).unwrap();
        std::fs::write(&words, "").unwrap();
        // At once, on its way, or once it is over.
        kill_after("rebase_that_is_killed", &child, &words, kill, [0, 2, 4, 50][kill as usize % 4]);
        reads(&format!("kill {kill}"));
        let done = Rebase::new(&other).run(&child).unwrap();
        links[usize::from(done.was_parent)] += 1;
        reads(&format!("after kill {kill}"));
        assert!(Rebase::new(&other).run(&child).unwrap().was_parent);
    }
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
