//! Files by chance, and what happens to them between points in time.

use std::collections::BTreeSet;

use avhdx_testkit::rng::{Rng, pattern};

/// Seconds and nanoseconds since 1970.
pub type Time = (i64, u32);

/// What changes the files of a volume.
pub trait Hand {
    fn write(&mut self, path: &str, bytes: &[u8]);
    fn resize(&mut self, path: &str, len: u64);
    fn patch(&mut self, path: &str, at: u64, bytes: &[u8]);
    fn delete(&mut self, path: &str);
    fn rename(&mut self, from: &str, to: &str);
    fn make(&mut self, folder: &str);
    fn remove(&mut self, folder: &str);
    fn set_time(&mut self, path: &str, time: Time);
    /// Further names, links and permissions, where there are any.
    fn link(&mut self, _path: &str, _name: &str) {}
    fn symlink(&mut self, _target: &str, _name: &str) {}
    fn set_mode(&mut self, _path: &str, _mode: u32) {}
}

/// The names there are.
pub struct Files {
    rng: Rng,
    times: &'static [Time],
    folders: Vec<String>,
    files: BTreeSet<String>,
    count: u64,
}

fn name(number: u64) -> String {
    match number % 10 {
        0 => format!("{number} file.dat"),
        1 => format!("{number} ünïcödé € 文件.txt"),
        2 => format!("{number} {}", "has a long name".repeat(12)),
        3 => format!("UP{number}.TXT"),
        4 => format!("{number} it's & $(odd)"),
        5 => format!(".hidden{number}"),
        6 => format!("low{number}.txt"),
        7 => format!(" {number}  two spaces"),
        8 => format!("{number} ☺"),
        _ => format!("{number}.a.b.c.tar.gz"),
    }
}

impl Files {
    pub fn new(seed: u64, times: &'static [Time]) -> Self {
        let folders = vec![String::new()];
        Self { rng: Rng::new(seed), times, folders, files: BTreeSet::new(), count: 0 }
    }

    fn bytes(&mut self) -> Vec<u8> {
        let len = match self.rng.below(40) {
            0 => 0,
            1 => self.rng.below(200_000),
            2..10 => self.rng.below(9_000),
            10..20 => self.rng.below(500),
            _ => self.rng.below(2_500),
        };
        let mut bytes = vec![0; len as usize];
        let seed = self.rng.next_u64();
        if seed.is_multiple_of(3) {
            // What compression makes shorter.
            bytes.iter_mut().zip(0u64..).for_each(|(byte, at)| *byte = (at / 7 % 11) as u8);
            bytes.extend(seed.to_le_bytes());
        } else {
            pattern(seed, 0, &mut bytes);
        }
        bytes
    }

    fn a_folder(&mut self) -> String {
        let index = self.rng.below(self.folders.len() as u64) as usize;
        self.folders[index].clone()
    }

    fn new_path(&mut self) -> String {
        self.count += 1;
        format!("{}{}", self.a_folder(), name(self.count))
    }

    fn add(&mut self, hand: &mut dyn Hand) {
        let path = self.new_path();
        let bytes = self.bytes();
        hand.write(&path, &bytes);
        if self.rng.chance(1, 3) {
            hand.set_time(&path, self.times[self.rng.below(self.times.len() as u64) as usize]);
        }
        if self.rng.chance(1, 10) {
            hand.set_mode(&path, 0o400 | self.rng.below(0o400) as u32);
        }
        self.files.insert(path);
    }

    fn add_folder(&mut self, hand: &mut dyn Hand, path: String) {
        hand.make(&path);
        self.folders.push(path + "/");
    }

    /// The files of the oldest point in time.
    pub fn fill(&mut self, hand: &mut dyn Hand, count: u64) {
        for number in 0..count / 60 + 3 {
            self.add_folder(hand, format!("folder {number}"));
        }
        // A folder with many names, and many folders within each other.
        self.add_folder(hand, "many".into());
        let mut deep = String::from("deep");
        for level in 0..40 {
            self.add_folder(hand, deep.clone());
            deep += &format!("/{level}");
        }
        for number in 0..count / 5 {
            // mtools takes as long as all names that begin alike, squared.
            let path = format!("many/{number} of many");
            hand.write(&path, path.as_bytes());
            self.files.insert(path);
        }
        while (self.files.len() as u64) < count {
            self.add(hand);
        }
        for number in 0..count / 50 {
            hand.symlink(&format!("../folder {number}/x"), &format!("link to {number}"));
        }
    }

    /// What happens until the next point in time.
    pub fn change(&mut self, hand: &mut dyn Hand, round: u64) {
        let all: Vec<String> = self.files.iter().cloned().collect();
        let mut rest = Vec::new();
        for path in all {
            match self.rng.below(24) {
                0 => {
                    hand.delete(&path);
                    self.files.remove(&path);
                }
                1 => {
                    let folder = &path[..path.rfind('/').map_or(0, |at| at + 1)];
                    // mtools fails where a name gets so long.
                    self.count += if self.count % 10 == 1 { 2 } else { 1 };
                    let to = format!("{folder}{}", name(self.count));
                    hand.rename(&path, &to);
                    self.files.remove(&path);
                    self.files.insert(to);
                }
                _ => rest.push(path),
            }
        }
        let gone = format!("folder {round}/");
        hand.remove(gone.trim_end_matches('/'));
        self.folders.retain(|folder| *folder != gone);
        self.files.retain(|path| !path.starts_with(&gone));
        hand.rename(&format!("folder {}", round + 3), &format!("renamed {round}"));
        let (from, to) = (format!("folder {}/", round + 3), format!("renamed {round}/"));
        for folder in &mut self.folders {
            if *folder == from {
                folder.clone_from(&to);
            }
        }
        let moved = |path: String| match path.strip_prefix(&from) {
            Some(rest) => format!("{to}{rest}"),
            None => path,
        };
        self.files = std::mem::take(&mut self.files).into_iter().map(moved).collect();
        for path in rest.into_iter().map(moved).collect::<Vec<_>>() {
            if path.starts_with(&gone) {
                continue;
            }
            match self.rng.below(20) {
                0 => {
                    let bytes = self.bytes();
                    hand.write(&path, &bytes);
                }
                1 => hand.resize(&path, self.rng.below(1000)),
                2 => hand.resize(&path, 1000 + self.rng.below(100_000)),
                3 => {
                    let at = self.rng.below(5000);
                    hand.patch(&path, at, format!("round {round}").repeat(20).as_bytes());
                }
                4 => {
                    self.count += 1;
                    hand.link(&path, &format!("many/another {}", self.count));
                }
                5 => hand.set_mode(&path, 0o400 | self.rng.below(0o400) as u32),
                6 => {
                    let time = self.times[self.rng.below(self.times.len() as u64) as usize];
                    hand.set_time(&path, time);
                }
                _ => {}
            }
        }
        self.add_folder(hand, format!("new {round}"));
        for _ in 0..self.files.len() / 20 {
            self.add(hand);
        }
    }
}
