//! A real file, written by a process under strace: whether each flush waits for the disk, and
//! what a crash at any point of that run would have left behind.
#![allow(clippy::disallowed_methods)]

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use avhdx::{CreateOptions, DiffChain, Disk, OpenOptions};
use avhdx_testkit::rng::Rng;
use uuid::Uuid;

use crate::driver::{KIB, MIB, Recorded, path, pattern};
use crate::explore::{Effort, Tally, explore};
use crate::model::Model;
use crate::outcomes::Depth;
use crate::sim::{Bytes, Chunk, Event, Files};
use crate::verdict::{self, Judge};

const SIZE: u64 = 6 * MIB;
const BLOCK: u64 = 2 * MIB;
/// Tell the watched process its image and its report file.
const IMAGE: &str = "AVHDX_TRACED_IMAGE";
const WORDS: &str = "AVHDX_TRACED_WORDS";

#[test]
fn a_crash_of_a_real_run_loses_nothing_that_was_flushed() {
    let Some(traced) = Traced::run() else { return };
    let recorded = traced.recorded();
    assert_eq!(
        recorded.end.files[1].sum(),
        traced.after.sum(),
        "the trace is not all that was done to the file"
    );
    let depth = Depth { exhaustive: 8, samples: 20, torn: 20 };
    let mut tally = Tally::default();
    explore(&recorded, Effort { depth, each: 1, second: 101, first_only: false }, &mut tally);
    println!(
        "a real run: {} events, {} cuts, {} distinct outcomes, {} failures",
        recorded.events.len(),
        tally.cuts,
        tally.distinct(),
        tally.failures.len()
    );
    assert!(tally.failures.is_empty(), "{}", tally.failures[0]);
    assert!(tally.distinct() > 500, "only {} outcomes", tally.distinct());
}

#[test]
fn a_flush_of_a_real_file_waits_for_the_disk() {
    let Some(traced) = Traced::run() else { return };
    let (mut unflushed, mut flushes) = (None, 0);
    for call in &traced.calls {
        match call {
            Call::Write { at, .. } => unflushed = Some(format!("a write at {at:#x}")),
            Call::SetLen(len) => unflushed = Some(format!("a change of length to {len}")),
            Call::Flush => unflushed = None,
            Call::Word(word) if word == "flushed" || word == "closed" => {
                flushes += 1;
                assert_eq!(unflushed, None, "before flush {flushes} returned");
            }
            Call::Word(_) => {}
        }
    }
    println!("{flushes} flushes, each after the fdatasync of all that was written");
    assert!(flushes >= 10);
}

/// The process to be watched. Does nothing without its image.
#[test]
fn process_that_is_traced() {
    let (Some(image), Some(words)) = (std::env::var_os(IMAGE), std::env::var_os(WORDS)) else {
        return;
    };
    let words = std::fs::File::options().append(true).open(words).unwrap();
    let say = |word: String| (&words).write_all(word.as_bytes()).unwrap();
    let open = || {
        let chain = OpenOptions::new().writable(true).open(&image).unwrap();
        say(format!("opened {}", chain.tip().data_write_guid()));
        chain
    };
    let mut rng = Rng::new(5);
    let mut chain = open();
    for seed in 0..60 {
        let len = if rng.chance(1, 12) { BLOCK } else { (1 + rng.below(24)) * 512 };
        let at = match len {
            BLOCK => rng.below(SIZE / BLOCK) * BLOCK,
            _ => rng.below((SIZE - len) / 512) * 512,
        };
        if rng.chance(1, 9) {
            say(format!("discarding {at} {len}"));
            chain.discard(at..at + len).unwrap();
        } else {
            say(format!("writing {seed} {at} {len}"));
            chain.write_at(&pattern(seed, at, len), at).unwrap();
        }
        say("done".into());
        match rng.below(12) {
            0..4 => {
                say("flushing".into());
                chain.flush().unwrap();
                say("flushed".into());
            }
            4 => {
                say("closing".into());
                chain.close().unwrap();
                say("closed".into());
                drop(chain);
                chain = open();
            }
            _ => {}
        }
    }
    say("closing".into());
    chain.close().unwrap();
    say("closed".into());
}

/// The process seen from outside.
struct Traced {
    before: Files,
    disk: Bytes,
    calls: Vec<Call>,
    after: Bytes,
}

/// A system call that returned.
enum Call {
    Write { at: u64, data: Vec<u8> },
    SetLen(u64),
    Flush,
    Word(String),
}

impl Traced {
    /// `None` if strace is missing, which with `AVHDX_INTEROP=1` is a failure.
    fn run() -> Option<Self> {
        if Command::new("strace").arg("-V").output().is_err() {
            let wanted = std::env::var_os("AVHDX_INTEROP").is_some_and(|value| value == "1");
            assert!(!wanted, "AVHDX_INTEROP=1, but strace is not to be found");
            eprintln!("skipped: strace is not to be found");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let disk = make_chain(&at("base.vhdx"), &at("child.avhdx"));
        let mut before = Files::default();
        for (number, name) in ["base.vhdx", "child.avhdx"].into_iter().enumerate() {
            before.files.push(bytes_of(&at(name)));
            before.names.insert(path(name), number);
        }
        std::fs::write(at("words"), "").unwrap();
        let out = Command::new("strace")
            .args(["-f", "-y", "-xx", "-s", "4194304", "-o"])
            .arg(at("trace"))
            .args([
                "-e",
                "trace=pwrite64,pwritev,pwritev2,write,ftruncate,fallocate,fdatasync,fsync",
            ])
            .arg(std::env::current_exe().unwrap())
            .args(["real::process_that_is_traced", "--exact", "--test-threads=1"])
            .env(IMAGE, at("child.avhdx"))
            .env(WORDS, at("words"))
            .output()
            .unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let trace = std::fs::read_to_string(at("trace")).unwrap();
        let calls = calls(&trace, &at("child.avhdx"), &at("words"));
        Some(Self { before, disk, calls, after: bytes_of(&at("child.avhdx")) })
    }

    /// The run as a history of the simulated host.
    fn recorded(&self) -> Recorded {
        let mut model = Model::new(self.disk.clone(), SIZE, BLOCK);
        let mut events = Vec::new();
        let mut end = self.before.clone();
        let (mut write, mut flush) = (0, 0);
        let mut happen = |event: Event, events: &mut Vec<Event>| {
            end.apply(&event);
            events.push(event);
        };
        for call in &self.calls {
            let now = events.len();
            match call {
                Call::Write { at, data } => {
                    let chunk = Arc::new(Chunk::new(*at, data));
                    // Growth is a separate change: the host may keep it and lose the data.
                    let is_longer = chunk.end() > length(&events, &self.before);
                    if is_longer {
                        happen(Event::SetLen(1, chunk.end()), &mut events);
                    }
                    happen(Event::Write(1, chunk), &mut events);
                }
                Call::SetLen(len) => happen(Event::SetLen(1, *len), &mut events),
                Call::Flush => {
                    happen(Event::FlushStart(1), &mut events);
                    happen(Event::FlushEnd(1, now), &mut events);
                }
                Call::Word(word) => {
                    happen(Event::Mark, &mut events);
                    let mut words = word.split(' ');
                    let verb = words.next().unwrap();
                    let numbers = |words: std::str::Split<'_, char>| -> Vec<u64> {
                        words.map(|word| word.parse().unwrap()).collect()
                    };
                    match verb {
                        "opened" => {
                            model.opened(now, Uuid::parse_str(words.next().unwrap()).unwrap());
                        }
                        "writing" => {
                            let numbers = numbers(words);
                            let data = pattern(numbers[0], numbers[1], numbers[2]);
                            write = model.begin(now, numbers[1], &data);
                        }
                        "discarding" => {
                            let numbers = numbers(words);
                            write = model.begin(now, numbers[0], &vec![0; numbers[1] as usize]);
                        }
                        "done" => model.done(write, now),
                        "flushing" | "closing" => flush = now,
                        "flushed" | "closed" => model.flushed(flush, now),
                        other => panic!("{other:?}"),
                    }
                }
            }
        }
        let parents = vec![verdict::layer(&self.before, &path("base.vhdx")).unwrap()];
        let judge = Judge { tip: path("child.avhdx"), parents };
        let start = self.before.clone();
        Recorded { start, events, model, judge, end, from: 0, failed_at: None }
    }
}

fn length(events: &[Event], before: &Files) -> u64 {
    let last = events.iter().rev().find_map(|event| match event {
        Event::SetLen(_, len) => Some(*len),
        _ => None,
    });
    last.unwrap_or_else(|| before.files[1].len())
}

/// Creates a base with data in every block and an empty child; returns the contents of the disk.
fn make_chain(base: &Path, child: &Path) -> Bytes {
    let mut disk = Bytes::default();
    let options = CreateOptions::dynamic(SIZE).block_size(BLOCK as u32);
    let parent = options.create(base).unwrap();
    for at in (0..SIZE).step_by(MIB as usize) {
        let bytes = pattern(900, at, 300 * KIB);
        parent.write_at(&bytes, at).unwrap();
        disk.write(at, &bytes);
    }
    parent.close().unwrap();
    drop(parent);
    let parent = DiffChain::open(base).unwrap();
    let made = CreateOptions::child_of(&parent.tip()).unwrap().create(child);
    made.unwrap().close().unwrap();
    disk
}

fn bytes_of(path: &Path) -> Bytes {
    let contents = std::fs::read(path).unwrap();
    let mut bytes = Bytes::default();
    bytes.write(0, &contents);
    bytes
}

/// Extracts the calls on two files from a trace: the image and the report file.
fn calls(trace: &str, image: &Path, words: &Path) -> Vec<Call> {
    let image = image.canonicalize().unwrap();
    let words = words.canonicalize().unwrap();
    let mut names: HashMap<String, PathBuf> = HashMap::new();
    let mut calls = Vec::new();
    for line in trace.lines() {
        let Some((_, call)) = line.split_once(' ') else { continue };
        let call = call.trim_start();
        let Some((name, rest)) = call.split_once('(') else { continue };
        // A file descriptor and its path: 3</tmp/…>, the path in hexadecimal.
        let Some((descriptor, rest)) = rest.split_once('>') else { continue };
        let Some((_, written)) = descriptor.split_once('<') else { continue };
        let file = names
            .entry(written.to_owned())
            .or_insert_with(|| PathBuf::from(as_os_str(&unescaped(written))));
        if *file != image && *file != words {
            continue;
        }
        let (arguments, result) = rest.rsplit_once(" = ").unwrap_or_else(|| panic!("{call}"));
        let arguments = arguments.trim_start_matches(", ").trim_end().trim_end_matches(')');
        assert!(!result.starts_with('-'), "{name} failed: {result}");
        let mut arguments: Vec<&str> = arguments.split(", ").collect();
        let mut last = || arguments.pop().unwrap();
        let number = |argument: &str| argument.parse::<u64>().unwrap();
        match name {
            "write" => {
                let _length = last();
                let word = unescaped(last().trim_matches('"'));
                calls.push(Call::Word(String::from_utf8(word).unwrap()));
            }
            "pwrite64" => {
                let (at, len) = (number(last()), number(last()));
                assert_eq!(result.parse(), Ok(len), "a short write");
                let data = unescaped(last().trim_matches('"'));
                assert_eq!(data.len() as u64, len, "strace cut a write");
                calls.push(Call::Write { at, data });
            }
            "ftruncate" => calls.push(Call::SetLen(number(last()))),
            "fdatasync" | "fsync" => calls.push(Call::Flush),
            other => panic!("nothing here knows what {other} does: {rest:.100}"),
        }
    }
    calls
}

fn as_os_str(bytes: &[u8]) -> &OsStr {
    std::os::unix::ffi::OsStrExt::from_bytes(bytes)
}

/// Decodes bytes that strace prints as `\x41\x42`.
fn unescaped(text: &str) -> Vec<u8> {
    if !text.starts_with("\\x") {
        return text.as_bytes().to_vec();
    }
    let digits = text.as_bytes().as_chunks::<4>().0;
    let digit = |byte: u8| (byte as char).to_digit(16).unwrap() as u8;
    digits.iter().map(|[_, _, high, low]| digit(*high) << 4 | digit(*low)).collect()
}
