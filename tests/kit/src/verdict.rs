//! Judges whether an outcome is allowed, using the crate, and the naive reader and checker, which
//! share no code with it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use avhdx::{Budget, DiffChain, Disk, OpenOptions};
use avhdx_testkit::naive::{Chain, Layer};
use uuid::Uuid;

use crate::model::{Expected, UNIT};
use crate::sim::{Files, STALE, SimHost, Sum};

/// Memory for tables per opened outcome; for reading, so little that everything is evicted.
const BUDGET: usize = 1 << 18;
const TINY_BUDGET: usize = 2 << 10;
/// How many units the naive reader samples per segment, and in total.
const SAMPLES: u64 = 8;
const MOST_SAMPLES: u64 = 400;

/// Judges the outcomes of one history.
#[derive(Clone, Debug)]
pub struct Judge {
    /// The image that is written.
    pub tip: PathBuf,
    /// The layers below it, base first, which do not change.
    pub parents: Vec<Layer>,
}

impl Judge {
    /// Returns whether there is an image, or what is wrong with the outcome.
    pub fn judge(&self, files: &Files, expected: &Expected) -> Result<bool, String> {
        if files.file(&self.tip).is_none() {
            return if expected.exists { Err("the image is gone".into()) } else { Ok(false) };
        }
        let sum = files.sum();
        let (read, guid) = self.read_only(files, expected)?;
        self.naive(files, expected, &read, sum.exact)?;
        let recovered = self.writable(files, expected, &read, guid)?;
        if recovered.sum() != sum {
            let layer = self.naive(&recovered, expected, &read, sum.exact)?;
            if layer.log_is_pending() {
                return Err("the log is not empty after an open for writing".into());
            }
        }
        if let Some((before, old)) = &expected.before
            && guid == *old
            && before.iter().zip(&read).any(|(before, now)| **before != **now)
        {
            return Err("the disk changed and DataWriteGuid did not".into());
        }
        Ok(true)
    }

    fn read_only(
        &self,
        files: &Files,
        expected: &Expected,
    ) -> Result<(Vec<Vec<u8>>, Uuid), String> {
        let host = SimHost::new(files.clone());
        let chain = open(&host, &self.tip, false)?;
        let read = read_all(&chain, expected)?;
        for (segment, read) in expected.segments.iter().zip(&read) {
            if let Some(at) = segment.refuses(read) {
                return Err(self.explain(at, files, expected));
            }
        }
        let guid = chain.tip().data_write_guid();
        drop(chain);
        if host.files().sum() != files.sum() {
            return Err("opening for reading changed a file".into());
        }
        Ok((read, guid))
    }

    /// Describes the bytes at `at`, if they are recognized.
    fn explain(&self, at: u64, files: &Files, expected: &Expected) -> String {
        let chain = self.chain(files);
        let who = chain.as_ref().map(|chain| chain.who(chain.0.len() - 1, at / chain.0[0].sector));
        let unit = chain.as_ref().map(|chain| chain.read(chain.0.len() - 1, at, UNIT as usize));
        let what = match &unit {
            Ok(Ok(unit)) if unit.iter().all(|byte| *byte == 0) => "zeros",
            Ok(Ok(unit)) if unit.chunks(STALE.len()).any(|word| *word == STALE) => "stale bytes",
            Ok(Ok(unit)) if expected.segments.iter().any(|segment| segment.knows(unit)) => {
                "what another place may be"
            }
            _ => "other bytes",
        };
        let segment = expected.segments.iter().find(|segment| segment.range.contains(&at));
        let may = segment.map_or(0, |segment| segment.either.len());
        format!("the disk at {at:#x} reads {what}, none of {may} that it may be; {who:?}")
    }

    fn writable(
        &self,
        files: &Files,
        expected: &Expected,
        read: &[Vec<u8>],
        guid: Uuid,
    ) -> Result<Files, String> {
        let host = SimHost::new(files.clone());
        let chain = open(&host, &self.tip, true)?;
        if read_all(&chain, expected)? != *read {
            return Err("opened for writing the disk reads otherwise".into());
        }
        if chain.tip().data_write_guid() != guid {
            return Err("a replay changed DataWriteGuid".into());
        }
        drop(chain);
        Ok(host.files())
    }

    /// Compares samples of what the crate read with the naive reader, and checks the rules.
    fn naive(
        &self,
        files: &Files,
        expected: &Expected,
        read: &[Vec<u8>],
        seed: u64,
    ) -> Result<Layer, String> {
        let chain = self.chain(files)?;
        let tip = chain.0.len() - 1;
        let segments = expected.segments.len() as u64;
        let part = (segments * SAMPLES).div_ceil(MOST_SAMPLES);
        for (n, (segment, read)) in expected.segments.iter().zip(read).enumerate() {
            if !(n as u64 + seed).is_multiple_of(part) {
                continue;
            }
            let units = read.len() as u64 / UNIT;
            for i in 0..units.min(SAMPLES) {
                let unit = match i {
                    0 => 0,
                    1 => units - 1,
                    _ => (seed.rotate_left(7 * i as u32) ^ n as u64) % units,
                };
                let at = segment.range.start + unit * UNIT;
                let bytes = chain.read(tip, at, UNIT as usize)?;
                if bytes != read[(unit * UNIT) as usize..][..UNIT as usize] {
                    return Err(format!("the naive reader sees other bytes at {at:#x}"));
                }
            }
        }
        let layer = chain.0.into_iter().next_back().ok_or("no layer")?;
        match layer.faults() {
            faults if faults.is_empty() => Ok(layer),
            faults => Err(format!("the naive checker: {}", faults.join("; "))),
        }
    }

    fn chain(&self, files: &Files) -> Result<Chain, String> {
        let mut layers = self.parents.clone();
        layers.push(layer(files, &self.tip).map_err(|error| format!("naive reader: {error}"))?);
        Ok(Chain(layers))
    }

    /// The checksum of everything that is not payload.
    pub fn sum_of_metadata(&self, files: &Files, payload: &[std::ops::Range<u64>]) -> Sum {
        files.sum_but(|path, bytes| {
            let payload = payload.iter().filter(|_| path == self.tip);
            payload.fold(Sum::default(), |sum, range| sum ^ bytes.sum_within(range.clone()))
        })
    }
}

/// The naive reader's view of a file.
pub fn layer(files: &Files, path: &Path) -> Result<Layer, String> {
    let bytes = files.file(path).ok_or("no such file")?.clone();
    Layer::from_source(Arc::new(bytes))
}

/// Opens the chain of a tip on a simulated host.
///
/// # Errors
///
/// The refusal, as text.
pub fn open(host: &SimHost, tip: &Path, writable: bool) -> Result<DiffChain, String> {
    let budget = Budget::new(if writable { BUDGET } else { TINY_BUDGET });
    let opened = options(host).budget(budget).writable(writable).open(tip);
    opened.map_err(|error| format!("open (writable: {writable}): {error}"))
}

/// How every chain of a simulated host is opened.
pub fn options(host: &SimHost) -> OpenOptions {
    OpenOptions::new()
        .host(Arc::new(host.clone()))
        .budget(Budget::new(BUDGET))
        .orphan_children(true)
}

fn read_all(chain: &DiffChain, expected: &Expected) -> Result<Vec<Vec<u8>>, String> {
    let read = |segment: &crate::model::Segment| {
        let mut bytes = vec![0; (segment.range.end - segment.range.start) as usize];
        let done = chain.read_at(&mut bytes, segment.range.start);
        done.map_err(|error| format!("read at {:#x}: {error}", segment.range.start))?;
        Ok(bytes)
    };
    expected.segments.iter().map(read).collect()
}
