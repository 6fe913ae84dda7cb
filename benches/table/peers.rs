//! Other readers of the same chains, each timed by its own clock, and the figures of the chart.
//!
//! All take part in the same rounds, so that other load affects all alike. There are
//! as many bare reads as ours; slower readers do fewer. libvhdi and dissect.hypervisor read the same files,
//! through Python. QEMU reads VHDX only without parents; besides its VHDX driver, its own format qcow2 takes part, as a
//! chain with the same owners by cluster of 64 KiB.

use std::fmt::Write as _;
use std::fs;
use std::hint::black_box;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use avhdx::Disk;

use crate::images::{Chain, KIB, MIB, Owners, PAGE, Reads, Shape};
use crate::report::{Report, Row};
use crate::stats::{Contender, Times, rounds, timed};
use crate::{Result, Run};

pub const DEPTHS: [usize; 4] = [1, 4, 16, 64];
/// The cluster size of a qcow2 image.
const CLUSTER: u64 = 64 * KIB;

/// One point of the chart.
pub struct Point {
    pub series: String,
    pub depth: usize,
    /// The time of a read in µs.
    pub micros: f64,
}

#[derive(Clone, Copy, PartialEq)]
enum Peer {
    Libvhdi,
    Dissect,
    QemuVhdx,
    QemuQcow2,
}

impl Peer {
    const ALL: [Self; 4] = [Self::Libvhdi, Self::Dissect, Self::QemuVhdx, Self::QemuQcow2];

    fn name(self) -> &'static str {
        match self {
            Self::Libvhdi => "libvhdi (Python)",
            Self::Dissect => "dissect.hypervisor",
            Self::QemuVhdx => "QEMU, VHDX",
            Self::QemuQcow2 => "QEMU, qcow2",
        }
    }

    /// How many reads to do in a round, given the speed of the peer.
    fn count(self, run: &Run, depth: usize) -> usize {
        let most = match self {
            Self::Libvhdi | Self::Dissect => (8000 / depth).clamp(100, 2000),
            Self::QemuVhdx | Self::QemuQcow2 => 10_000,
        };
        if run.options.quick { most / 20 } else { most }
    }
}

pub fn run(run: &Run, report: &mut Report) -> Result<Vec<Point>> {
    report.section(
        "Other readers, random 4 KiB, by cluster of 64 KiB; ratio = their time / own time",
    );
    let mut points = Vec::new();
    let size = (run.options.mib * MIB).min(256 * MIB);
    for depth in DEPTHS {
        let beside = format!("depth {depth} beside bare, for the chart");
        let peers = Peer::ALL.map(|peer| (peer, format!("depth {depth} beside {}", peer.name())));
        if !report.wants(&beside) && !peers.iter().any(|(_, work)| report.wants(work)) {
            continue;
        }
        let chain = run.chain(Shape::new(size, depth, Owners::Runs(CLUSTER)))?;
        // QEMU's VHDX driver does not support parents.
        let wanted = peers
            .iter()
            .filter(|(peer, work)| report.wants(work) && (*peer != Peer::QemuVhdx || depth == 1));
        let mut started = Vec::new();
        for (peer, work) in wanted.collect::<Vec<_>>() {
            match Started::new(run, &chain, *peer)? {
                Ok(theirs) => started.push((work, theirs)),
                Err(why) => report.left_out(work, &why),
            }
        }
        let reads = chain.random()?;
        chain.check(&reads)?;
        let times = in_turns(run, &chain, &reads, &mut started)?;
        let ops = reads.of_round(0, run.options.sample).len();
        if report.wants(&beside) {
            let row = Row::new(&beside, 1, &times.of(&[(1, ops), (2, ops), (3, ops)]), None);
            for (series, micros) in [("avhdx", row.own), ("bare pread", row.bare)] {
                points.push(Point { series: series.into(), depth, micros });
            }
            report.row(Row { ops, ..row });
        }
        for (at, (work, started)) in started.into_iter().enumerate() {
            let count = started.list.count;
            let row = Row::new(work, 1, &times.of(&[(5 + at, count), (2, ops)]), Some(1.0));
            let name = started.peer.name();
            points.push(Point { series: name.into(), depth, micros: row.bare });
            let note = format!("bare: {name} {}{}", started.theirs.stop()?, started.right);
            report.row(Row { ops: count, ..row }.note(note));
        }
        chain.remove()?;
    }
    Ok(points)
}

/// Rounds of bare reads, own, bare again, and each peer. Around the first three there are reads that do not
/// count, because other programs leave the processor's caches cold.
fn in_turns(
    run: &Run,
    chain: &Chain,
    reads: &Reads,
    started: &mut [(&String, Started)],
) -> Result<Times> {
    let which = |round| reads.of_round(round, run.options.sample);
    let bare = || -> Contender<'_> {
        let mut buf = vec![0; PAGE as usize];
        Box::new(move |round| {
            timed(|| Ok(chain.read_bare(reads, which(round), black_box(&mut buf))?))
        })
    };
    let mut buf = vec![0; PAGE as usize];
    let own: Contender<'_> =
        Box::new(move |round| timed(|| chain.read_ours(reads, which(round), black_box(&mut buf))));
    let mut contenders = vec![bare(), bare(), own, bare(), bare()];
    for (_, Started { theirs, list, .. }) in started {
        contenders.push(Box::new(|round| Ok(theirs.read(round, list)?.0)));
    }
    rounds(run.options.rounds, contenders)
}

/// A peer that has read once.
struct Started {
    peer: Peer,
    theirs: Theirs,
    list: Strided,
    /// Whether its bytes are right, if known.
    right: &'static str,
}

impl Started {
    /// Starts the peer, or returns the reason why it is unavailable.
    fn new(run: &Run, chain: &Chain, peer: Peer) -> Result<Result<Self, String>> {
        let list = Strided::over(chain.shape.size, peer.count(run, chain.shape.depth));
        let mut theirs = match Theirs::start(run, chain, peer, &list)? {
            Ok(theirs) => theirs,
            Err(why) => return Ok(Err(why)),
        };
        let crc = match theirs.read(0, &list) {
            Ok((_, crc)) => crc,
            Err(why) => return Ok(Err(why)),
        };
        let mut ours = Crc::default();
        let mut buf = vec![0; PAGE as usize];
        for at in list.offsets(0) {
            chain.disk.read_at(&mut buf, at)?;
            ours.add(&buf);
        }
        let right = match crc {
            Some(crc) if crc != ours.sum() => ", its bytes DIFFER",
            Some(_) => ", the same bytes",
            None => "",
        };
        Ok(Ok(Self { peer, theirs, list, right }))
    }
}

/// Reads at a fixed stride, wrapping around, as QEMU can be told to do.
struct Strided {
    pages: u64,
    stride: u64,
    count: usize,
}

impl Strided {
    fn over(size: u64, count: usize) -> Self {
        let pages = size / PAGE;
        Self { pages, stride: coprime((pages as f64 * 0.618) as u64, pages), count }
    }

    fn first(&self, round: usize) -> u64 {
        (round * self.count) as u64
    }

    fn offsets(&self, round: usize) -> Vec<u64> {
        let numbers = self.first(round)..self.first(round) + self.count as u64;
        numbers.map(|number| number * self.stride % self.pages * PAGE).collect()
    }
}

/// A running peer.
enum Theirs {
    /// One process for all rounds, which has read everything once.
    Python { version: String, child: Child, lines: BufReader<ChildStdout> },
    /// A process for each round.
    Qemu { format: &'static str, tip: PathBuf, built: Option<PathBuf> },
}

impl Theirs {
    fn start(run: &Run, chain: &Chain, peer: Peer, list: &Strided) -> Result<Result<Self, String>> {
        let reader = match peer {
            Peer::Libvhdi => "pyvhdi",
            Peer::Dissect => "dissect",
            Peer::QemuVhdx => {
                let tip = chain.tip().into();
                return Ok(Ok(Self::Qemu { format: "vhdx", tip, built: None }));
            }
            Peer::QemuQcow2 => {
                let Some(tip) = qcow2_chain(run, chain) else {
                    return Ok(Err("qemu-img and qemu-io are not here".into()));
                };
                let tip = tip?;
                let built = tip.parent().map(PathBuf::from);
                return Ok(Ok(Self::Qemu { format: "qcow2", tip, built }));
            }
        };
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/table/peers.py");
        let mut command = Command::new("python3");
        let numbers = [PAGE, chain.shape.size, list.stride].map(|number| number.to_string());
        command.arg(script).arg(reader).args(numbers).args(chain.paths());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) => return Ok(Err(format!("python3: {error}"))),
        };
        let mut lines = BufReader::new(child.stdout.take().ok_or("no output")?);
        let mut version = String::new();
        lines.read_line(&mut version)?;
        if version.is_empty() {
            let output = child.wait_with_output()?;
            return Ok(Err(last_line("python3", &output.stderr)));
        }
        Ok(Ok(Self::Python { version: version.trim().into(), child, lines }))
    }

    /// The time of a round, and the checksum of its bytes if the peer computes it.
    fn read(&mut self, round: usize, list: &Strided) -> Result<(Duration, Option<u32>), String> {
        match self {
            Self::Python { child, lines, .. } => {
                let stdin = child.stdin.as_mut().ok_or("no input")?;
                let asked = writeln!(stdin, "{} {}", list.first(round), list.count);
                let mut line = String::new();
                let told = asked.and_then(|()| lines.read_line(&mut line));
                told.map_err(|error| error.to_string())?;
                let (seconds, crc) = line.trim().split_once(' ').ok_or("it stopped reading")?;
                let seconds: f64 = seconds.parse().map_err(|_| "it printed no time")?;
                Ok((Duration::from_secs_f64(seconds), crc.parse().ok()))
            }
            Self::Qemu { format, tip, .. } => {
                let mut command = Command::new("qemu-img");
                command.args(["bench", "-U", "-f", format, "-d", "1", "-s", "4096"]);
                command.args(["-c", &list.count.to_string()]);
                command.args(["-S", &(list.stride * PAGE).to_string()]);
                command.args(["-o", &list.offsets(round)[0].to_string()]).arg(tip);
                let text = output(&mut command, "")?;
                let seconds = text.lines().find_map(|line| {
                    line.strip_prefix("Run completed in ")?.split(' ').next()?.parse::<f64>().ok()
                });
                Ok((Duration::from_secs_f64(seconds.ok_or("it printed no time")?), None))
            }
        }
    }

    /// Stops the peer; returns its version.
    fn stop(self) -> Result<String> {
        match self {
            Self::Python { version, mut child, .. } => {
                drop(child.stdin.take());
                child.wait()?;
                Ok(version)
            }
            Self::Qemu { built, .. } => {
                built.map_or(Ok(()), fs::remove_dir_all)?;
                let version = output(Command::new("qemu-img").arg("--version"), "")?;
                Ok(version.split_whitespace().nth(2).unwrap_or_default().into())
            }
        }
    }
}

/// The output of a program, or the last line of its error output.
fn output(command: &mut Command, input: &str) -> Result<String, String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let missing = |error| format!("{name}: {error}");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(missing)?;
    if let Some(mut stdin) = child.stdin.take() {
        // If the program exits early, its error output says why.
        _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(missing)?;
    if !output.status.success() {
        return Err(last_line(&name, &output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn last_line(name: &str, stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    format!("{name}: {}", text.trim().lines().last().unwrap_or("failed"))
}

/// The tip of a qcow2 chain in which the same layers hold the same clusters; `None` without QEMU.
pub fn qcow2_chain(run: &Run, chain: &Chain) -> Option<Result<PathBuf>> {
    for program in ["qemu-img", "qemu-io"] {
        output(Command::new(program).arg("--version"), "").ok()?;
    }
    let build = || -> Result<PathBuf> {
        let folder = run.folder.path().join("qcow2");
        fs::create_dir(&folder)?;
        let path = |layer| folder.join(format!("l{layer}.qcow2"));
        for layer in 0..chain.shape.depth {
            let mut create = Command::new("qemu-img");
            create.args(["create", "-q", "-f", "qcow2"]);
            if layer > 0 {
                create.arg("-b").arg(path(layer - 1)).args(["-F", "qcow2"]);
            }
            create.arg(path(layer)).arg(chain.shape.size.to_string());
            output(&mut create, "")?;
            let mut script = String::new();
            for at in (0..chain.shape.size).step_by(CLUSTER as usize) {
                if chain.asked(at) == chain.shape.depth - layer {
                    _ = writeln!(script, "write -q -P {} {at} {CLUSTER}", layer + 1);
                }
            }
            let mut write = Command::new("qemu-io");
            output(write.args(["-t", "unsafe", "-f", "qcow2"]).arg(path(layer)), &script)?;
        }
        Ok(path(chain.shape.depth - 1))
    };
    Some(build())
}

/// The next number that is coprime to `of`.
fn coprime(number: u64, of: u64) -> u64 {
    fn factor(a: u64, b: u64) -> u64 {
        if b == 0 { a } else { factor(b, a % b) }
    }
    (number.max(1)..).find(|number| factor(*number, of) == 1).unwrap_or(1)
}

/// CRC-32 as in zlib, bit by bit.
struct Crc(u32);

impl Default for Crc {
    fn default() -> Self {
        Self(!0)
    }
}

impl Crc {
    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 ^= u32::from(*byte);
            for _ in 0..8 {
                self.0 = (self.0 >> 1) ^ (0xEDB8_8320 & (self.0 & 1).wrapping_neg());
            }
        }
    }

    fn sum(&self) -> u32 {
        !self.0
    }
}
