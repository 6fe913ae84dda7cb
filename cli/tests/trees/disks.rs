//! Disks with several volumes, at several points in time, and what the program shows of them.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;

use crate::changes::{Files, Hand, Time};
use crate::fat::{self, Copied};
use crate::hosted::{self, Mounted};
use crate::ntfs;
use crate::program::{avhdx, tool, tool_with, write};
use crate::truth::{Fact, Facts, What, walk, written};

const MIB: u64 = 1 << 20;
/// Pieces in which a changed volume is compared with what it was, and how far changes are from each other that are
/// written at once.
const PIECE: usize = 16 << 10;
const GAP: usize = 512 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    Gpt,
    Mbr,
}

/// A file system, with how it is made.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    Ntfs { cluster: u64 },
    Fat(u32),
    Ext(&'static str, &'static [&'static str]),
}

/// Moments that each kind of file system keeps, as far as they can be.
const NTFS_TIMES: &[Time] = &[
    (-11_644_300_000, 100),
    (-86_401, 0),
    (-1, 999_999_900),
    (0, 1_234_500),
    (1_600_000_000, 123_456_700),
    (2_147_483_648, 0),
    (4_294_967_296, 900_000_000),
    (253_402_200_000, 999_999_900),
];
const EXT_TIMES: &[Time] = &[
    (-2_147_483_648, 0),
    (-86_401, 500_000_001),
    (-1, 999_999_999),
    (0, 1),
    (1_600_000_000, 123_456_789),
    (2_147_483_648, 0),
    (4_294_967_296, 987_654_321),
    (15_032_385_534, 999_999_999),
];
/// To mtools, 2100 is a leap year.
const FAT_TIMES: &[Time] = &[
    (315_532_800, 0),
    (951_782_400, 0),
    (1_600_000_002, 0),
    (2_147_483_648, 0),
    (4_102_444_798, 0),
];

/// A volume, in a file of its own too.
struct Volume {
    kind: Kind,
    number: u32,
    at: u64,
    image: PathBuf,
    /// What a volume of FAT holds, on this machine.
    shadow: TempDir,
    files: Files,
    shown: ntfs::Shown,
    /// What other readers have at each point in time, the oldest first.
    points: Vec<Facts>,
}

/// A disk in a chain.
pub struct Made {
    folder: TempDir,
    volumes: Vec<Volume>,
    points: u64,
}

impl Made {
    /// Makes a disk with file systems of so many files.
    pub fn new(scheme: Scheme, sector: u64, kinds: &[Kind], count: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut volumes = Vec::new();
        let mut at = MIB;
        for (index, kind) in kinds.iter().enumerate() {
            let number = match scheme {
                Scheme::Gpt => index + 1,
                // Two primary ones and the logical ones.
                Scheme::Mbr => index + if index < 2 { 1 } else { 3 },
            };
            at += if number > 4 { MIB } else { 0 };
            let volume = Volume::new(folder.path(), *kind, number as u32, at, sector, count);
            at += std::fs::metadata(&volume.image).unwrap().len();
            volumes.push(volume);
        }
        let flat = folder.path().join("flat.raw");
        File::create(&flat).unwrap().set_len(at + 8 * MIB).unwrap();
        table(&flat, scheme, sector, &volumes);
        let file = File::options().write(true).open(&flat).unwrap();
        for volume in &volumes {
            for (at, bytes) in changes(&volume.image, None) {
                file.write_all_at(&bytes, volume.at + at).unwrap();
            }
        }
        let made = Self { folder, volumes, points: 1 };
        let (sector, to) = (sector.to_string(), made.image(0));
        let args = ["convert", "-q", "-f", "raw", "-O", "vhdx", "--block", "1M", "--sector"];
        let paths = [flat.as_os_str(), to.as_os_str()];
        let args = args.iter().map(AsRef::as_ref).chain([sector.as_ref()]).chain(paths);
        avhdx(&args.collect::<Vec<_>>(), &[0]);
        std::fs::remove_file(flat).unwrap();
        made
    }

    fn image(&self, point: u64) -> PathBuf {
        let name = if point == 0 { "disk.vhdx".into() } else { format!("disk_{point}.avhdx") };
        self.folder.path().join(name)
    }

    /// Keeps the state as a point in time, and changes the files.
    pub fn checkpoint(&mut self) {
        let (tip, next) = (self.image(self.points - 1), self.image(self.points));
        let args = ["checkpoint".as_ref(), "-q".as_ref(), tip.as_os_str(), "--path".as_ref()];
        avhdx(&[&args[..], &[next.as_os_str()]].concat(), &[0]);
        for volume in &mut self.volumes {
            let old = volume.image.with_extension("old");
            std::fs::copy(&volume.image, &old).unwrap();
            volume.change(self.points);
            for (at, bytes) in changes(&volume.image, Some(&old)) {
                write(&next, volume.at + at, &bytes);
            }
            std::fs::remove_file(old).unwrap();
        }
        self.points += 1;
    }

    /// Compares what the program shows of each point with what other readers have there, and the versions of some files.
    pub fn compare(&self, looked: usize) {
        let tip = self.image(self.points - 1);
        for volume in &self.volumes {
            for (point, facts) in volume.points.iter().enumerate() {
                let said = format!("{:?}, point {point} of {}", volume.kind, self.points);
                let selected = format!("{}@-{}", tip.display(), self.points as usize - 1 - point);
                volume.compare_copy(&selected, facts, &said);
                volume.compare_list(&selected, facts, point as u64, &said);
            }
            volume.compare_versions(tip.to_str().unwrap(), looked);
        }
    }
}

impl Volume {
    fn new(folder: &Path, kind: Kind, number: u32, at: u64, sector: u64, count: u64) -> Self {
        let image = folder.join(format!("volume{number}"));
        let len = count * 24 * 1024;
        let (len, times) = match kind {
            Kind::Ntfs { cluster } => (32 * MIB + len + count * cluster * 2, NTFS_TIMES),
            Kind::Ext(..) => (48 * MIB + len, EXT_TIMES),
            // Fewer clusters are FAT12, more are FAT32.
            Kind::Fat(16) => (24 * MIB + len.min(200 * MIB), FAT_TIMES),
            Kind::Fat(_) => (MIB * if sector == 512 { 64 } else { 300 } + len, FAT_TIMES),
        };
        let len = len.next_multiple_of(MIB);
        File::create(&image).unwrap().set_len(len).unwrap();
        let sector_text = sector.to_string();
        let path = image.to_str().unwrap();
        let label = format!("VOLUME {number}");
        match kind {
            Kind::Ntfs { cluster } => {
                let start = (at / sector).to_string();
                let cluster = cluster.to_string();
                let place = ["-p", &start, "-H", "16", "-S", "63", "-s", &sector_text];
                let args = ["-q", "-F", "-f", "-L", &label, "-c", &cluster];
                tool("mkntfs", &[&args[..], &place, &[path]].concat());
            }
            Kind::Ext(kind, more) => {
                let args = ["-q", "-F", "-L", &label, "-t", kind];
                tool("mkfs.ext4", &[&args[..], more, &[path]].concat());
            }
            Kind::Fat(bits) => {
                let clusters = if bits == 16 { 60_000 } else { 500_000 };
                let each = (len / clusters / sector).next_power_of_two().to_string();
                let bits = bits.to_string();
                let args = ["-F", &bits, "-S", &sector_text, "-s", &each, "-n", &label];
                let root = if bits == "16" { &["-r", "8192"][..] } else { &[] };
                tool("mkfs.vfat", &[&args[..], root, &[path]].concat());
            }
        }
        let shadow = tempfile::tempdir().unwrap();
        let files = Files::new(u64::from(number) + sector, times);
        let (shown, points) = (ntfs::Shown::new(), Vec::new());
        let mut volume = Self { kind, number, at, image, shadow, files, shown, points };
        match kind {
            Kind::Ntfs { cluster } => {
                let mut mounted = Mounted::ntfs(&volume.image, false);
                volume.files.fill(&mut mounted, count);
                volume.shown = ntfs::oddities(&mounted.at, cluster <= 4096);
            }
            Kind::Ext(kind, _) => {
                let mut mounted = Mounted::ext(&volume.image, false);
                volume.files.fill(&mut mounted, count);
                hosted::oddities(&mounted.at, kind == "ext4");
            }
            Kind::Fat(_) => {
                let mut copied = Copied::new(&volume.image, volume.shadow.path());
                volume.files.fill(&mut copied, count);
            }
        }
        volume.look();
        volume
    }

    fn change(&mut self, round: u64) {
        match self.kind {
            Kind::Ntfs { cluster } => {
                let mut mounted = Mounted::ntfs(&self.image, false);
                self.files.change(&mut mounted, round);
                ntfs::change(&mounted.at, round, cluster <= 4096);
            }
            Kind::Ext(..) => {
                let mut mounted = Mounted::ext(&self.image, false);
                self.files.change(&mut mounted, round);
                let name = format!("pieces {round}");
                mounted.rename("pieces", &name);
                mounted.patch(&name, 1_000_000, &[round as u8; 50_000]);
                mounted.rename(&name, "pieces");
            }
            Kind::Fat(_) => {
                let mut copied = Copied::new(&self.image, self.shadow.path());
                self.files.change(&mut copied, round);
            }
        }
        self.look();
    }

    /// Takes what other readers have.
    fn look(&mut self) {
        let mut facts = match self.kind {
            Kind::Ntfs { .. } => {
                let mounted = Mounted::ntfs(&self.image, true);
                let mut facts = walk(&mounted.at);
                for (path, fact) in facts.iter_mut().filter(|(_, fact)| fact.modified.0 <= 0) {
                    fact.modified = ntfs::modified(&mounted.at, path);
                }
                facts
            }
            Kind::Ext(..) => walk(&Mounted::ext(&self.image, true).at),
            Kind::Fat(_) => walk(fat::copied(&self.image).path()),
        };
        for (path, what) in &self.shown {
            facts.get_mut(path).unwrap().what.clone_from(what);
        }
        self.points.push(facts);
    }

    /// Whether a copy has it, by what it is and by its name.
    fn is_copied(path: &[u8], what: &What) -> bool {
        let fits = path.split(|byte| *byte == b'/').all(|name| name.len() <= 255);
        fits && !matches!(what, What::Special(_) | What::Refused(_))
    }

    fn compare_copy(&self, image: &str, facts: &Facts, said: &str) {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        let number = self.number.to_string();
        let args = ["cp", "-q", "--json", image, "-p", &number, "-r", "/", out.to_str().unwrap()];
        let output = avhdx(&args, &[0, 8]);
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        let left_out = facts.iter().filter(|(path, fact)| !Self::is_copied(path, &fact.what));
        let warned = String::from_utf8_lossy(&output.stderr);
        assert_eq!(answer["left_out"], left_out.count(), "{said}: {warned}");
        let mut found = walk(&out);
        for (path, fact) in facts.iter().filter(|(path, fact)| Self::is_copied(path, &fact.what)) {
            let shown = String::from_utf8_lossy(path);
            let copy = found.remove(path);
            let copy = copy.unwrap_or_else(|| panic!("{said}: {shown:?} is missing: {fact:?}"));
            assert_eq!(copy.what, fact.what, "{said}: {shown:?}");
            // The other reader of FAT gives folders the time at which it read them.
            let is_read = matches!((self.kind, &fact.what), (Kind::Fat(_), What::Folder));
            if !is_read && copy.modified != fact.modified {
                let kept = hosted::kept_time(folder.path(), fact.modified);
                assert_eq!(copy.modified, kept, "{said}: {shown:?}");
            }
            if matches!(self.kind, Kind::Ext(..)) && !matches!(fact.what, What::Link(_)) {
                assert_eq!(copy.mode, fact.mode & 0o777, "{said}: {shown:?}");
            }
        }
        assert!(found.is_empty(), "{said}: there are more: {:?}", found.keys());
    }

    fn compare_list(&self, image: &str, facts: &Facts, point: u64, said: &str) {
        let number = self.number.to_string();
        let output = avhdx(&["ls", "-q", "--json", image, "-p", &number, "-R"], &[0]);
        let text = String::from_utf8(output.stdout).unwrap();
        let mut left: BTreeMap<&[u8], _> =
            facts.iter().map(|(path, fact)| (&path[..], fact)).collect();
        let mut streams = Vec::new();
        for line in text.lines() {
            let line: Value = serde_json::from_str(line).unwrap();
            let path = match line["path_hex"].as_str() {
                Some(hex) => unhex(hex),
                None => line["path"].as_str().unwrap().as_bytes().to_vec(),
            };
            let fact = left.remove(&path[..]);
            let fact = fact.unwrap_or_else(|| panic!("{said}: {line} is too much, or twice"));
            let is_link = matches!(fact.what, What::Link(_));
            let kind = match &fact.what {
                What::File { .. } | What::Refused(_) => "file",
                What::Folder => "folder",
                What::Link(_) => "link",
                What::Special(kind) => kind,
            };
            assert_eq!(line["kind"], kind, "{said}: {line} {fact:?}");
            if let What::File { size, .. } = fact.what {
                assert_eq!(line["size"], size, "{said}: {line}");
            }
            if let What::Link(target) = &fact.what {
                assert_eq!(line["target"], *String::from_utf8_lossy(target), "{said}: {line}");
            }
            let refused = match fact.what {
                What::Refused(code) => Value::from(code),
                _ => Value::Null,
            };
            assert_eq!(line["refused"], refused, "{said}: {line}");
            let is_of_fat = matches!(self.kind, Kind::Fat(_));
            if !(is_of_fat && fact.what == What::Folder) {
                assert_eq!(line["modified"], written(fact.modified), "{said}: {line}");
            }
            if !is_of_fat {
                assert_eq!(line["id"], fact.inode, "{said}: {line}");
            }
            if matches!(self.kind, Kind::Ext(..)) {
                assert_eq!(line["links"], fact.links, "{said}: {line}");
                let mode = if is_link { "0777".into() } else { format!("{:04o}", fact.mode) };
                assert_eq!(line["mode"], mode, "{said}: {line}");
            }
            for stream in line["streams"].as_array().into_iter().flatten() {
                let name = stream["name"].as_str().unwrap().to_owned();
                streams.push((
                    line["path"].as_str().unwrap().to_owned(),
                    name,
                    stream["size"].clone(),
                ));
            }
        }
        assert!(left.is_empty(), "{said}: not listed: {left:?}");
        if let Kind::Ntfs { .. } = self.kind {
            let expected = ntfs::streams(point);
            let expected =
                expected.into_iter().map(|(path, name, size)| (path.into(), name, size.into()));
            streams.sort_by(|a, b| (&a.0, &a.1).cmp(&(&b.0, &b.1)));
            assert_eq!(streams, expected.collect::<Vec<_>>(), "{said}");
        }
    }

    /// What is at a path, in whatever case it is written where that is the same.
    fn fact<'f>(&self, facts: &'f Facts, path: &str) -> Option<&'f Fact> {
        let folded = |path: &[u8]| String::from_utf8_lossy(path).to_uppercase();
        let is_same = |other: &[u8]| folded(other) == path.to_uppercase();
        facts.get(path.as_bytes()).or_else(|| match self.kind {
            Kind::Ext(..) => None,
            _ => facts.iter().find(|(other, _)| is_same(other)).map(|(_, fact)| fact),
        })
    }

    /// Compares the versions of files, of those first whose bytes changed.
    fn compare_versions(&self, tip: &str, looked: usize) {
        let mut paths: Vec<&Vec<u8>> = self.points.iter().flat_map(Facts::keys).collect();
        paths.sort();
        paths.dedup();
        // A backslash separates names in what is typed, a colon begins a stream.
        let is_ntfs = matches!(self.kind, Kind::Ntfs { .. });
        let can_be_typed = |path: &&Vec<u8>| {
            std::str::from_utf8(path).is_ok() && !(is_ntfs && path.contains(&b'\\'))
        };
        paths.retain(can_be_typed);
        let states = |path: &Vec<u8>| {
            let mut states: Vec<_> =
                self.points.iter().map(|facts| facts.get(path).map(|fact| &fact.what)).collect();
            states.dedup();
            states.len()
        };
        let is_file = |path: &&&Vec<u8>| {
            let mut facts = self.points.iter().filter_map(|facts| facts.get(**path));
            facts.all(|fact| matches!(fact.what, What::File { .. } | What::Folder))
        };
        let mut some: Vec<&Vec<u8>> =
            paths.iter().filter(is_file).copied().filter(|path| states(path) > 1).collect();
        some.sort_by_key(|path| std::cmp::Reverse(states(path)));
        some.truncate(looked * 3 / 4);
        let step = paths.len() / (looked - some.len());
        some.extend(paths.iter().filter(is_file).copied().step_by(step.max(1)));
        some.truncate(looked);
        for path in some {
            let path = std::str::from_utf8(path).unwrap();
            let number = self.number.to_string();
            // With a slash, a name is no flag.
            let typed = format!("/{path}");
            let output = avhdx(&["versions", "-q", "--json", tip, "-p", &number, &typed], &[0]);
            let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
            let versions = answer["versions"].as_array().unwrap();
            assert_eq!(versions.len(), self.points.len());
            for version in versions {
                let back: usize = version["selector"].as_str().unwrap()[2..].parse().unwrap();
                let facts = &self.points[self.points.len() - 1 - back];
                let said = format!("{:?}: {path:?}: {version}", self.kind);
                let fact = self.fact(facts, path);
                let (kind, size, sha256) = match fact.map(|fact| &fact.what) {
                    None => (Value::Null, Value::Null, Value::Null),
                    Some(What::File { size, sha256 }) => {
                        ("file".into(), Value::from(*size), Value::from(sha256.clone()))
                    }
                    Some(_) => ("folder".into(), Value::Null, Value::Null),
                };
                let found = [&version["kind"], &version["size"], &version["sha256"]];
                assert_eq!(found, [&kind, &size, &sha256], "{said}");
                if let Some(fact) = fact.filter(|_| kind == "file") {
                    assert_eq!(version["modified"], written(fact.modified), "{said}");
                }
            }
        }
    }
}

fn unhex(text: &str) -> Vec<u8> {
    let digits = (0..text.len()).step_by(2);
    digits.map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

/// Writes a partition table with the volumes.
fn table(flat: &Path, scheme: Scheme, sector: u64, volumes: &[Volume]) {
    let mut script =
        String::from(if scheme == Scheme::Gpt { "label: gpt\n" } else { "label: dos\n" });
    let end = std::fs::metadata(flat).unwrap().len() / sector - 2048;
    for volume in volumes {
        let len = std::fs::metadata(&volume.image).unwrap().len() / sector;
        let (number, start) = (volume.number, volume.at / sector);
        if number == 5 {
            let start = start - MIB / sector;
            script += &format!("3: start={start}, size={}, type=f\n", end - start);
        }
        let kind = match (scheme, volume.kind) {
            (Scheme::Gpt, Kind::Ext(..)) => "0FC63DAF-8483-4772-8E79-3D69D8477DE4",
            (Scheme::Gpt, _) => "EBD0A0A2-B9E5-4433-87C0-68B6B72699C7",
            (_, Kind::Ext(..)) => "83",
            (_, Kind::Ntfs { .. }) => "7",
            (_, Kind::Fat(_)) => "c",
        };
        script += &format!("{number}: start={start}, size={len}, type={kind}\n");
    }
    if sector == 512 {
        tool_with("sfdisk", &["-q".as_ref(), flat.as_os_str()], &script);
        return;
    }
    let args = ["-f", "--show", "-b", "4096", flat.to_str().unwrap()];
    let device = String::from_utf8(tool("losetup", &args)).unwrap();
    let device = device.trim();
    tool_with("sfdisk", &["-q", "--no-reread", "--no-tell-kernel", device], &script);
    tool("losetup", &["-d", device]);
}

/// The ranges in which a volume is not what it was, or not zeros.
fn changes(image: &Path, old: Option<&Path>) -> Vec<(u64, Vec<u8>)> {
    let new = std::fs::read(image).unwrap();
    let old = old.map(|old| std::fs::read(old).unwrap());
    let zeros = vec![0; PIECE];
    let was = |at: usize, len: usize| old.as_ref().map_or(&zeros[..len], |old| &old[at..at + len]);
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    for (at, piece) in (0..).step_by(PIECE).zip(new.chunks(PIECE)) {
        if piece == was(at, piece.len()) {
            continue;
        }
        match ranges.last_mut() {
            Some((_, end)) if at - *end <= GAP => *end = at + piece.len(),
            _ => ranges.push((at, at + piece.len())),
        }
    }
    ranges.into_iter().map(|(start, end)| (start as u64, new[start..end].to_vec())).collect()
}
