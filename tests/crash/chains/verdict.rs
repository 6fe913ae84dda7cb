//! Judges whether what a crash left of a chain is allowed, and whether the next process can complete it.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use avhdx::ops::Merge;
use avhdx::{DiffChain, Disk, ErrorKind, MergeState, OpenOptions};
use avhdx_testkit::naive::Chain;

use super::history::{History, Point, Tip, model_of};
use crate::model::{Segment, UNIT};
use crate::sim::{Bytes, Files, SimHost};
use crate::verdict::{layer, open, options};

type Read = Vec<(u64, Vec<u8>)>;

/// A tip that opens with allowed contents.
pub struct Found {
    pub tip: Tip,
    layers: Vec<PathBuf>,
    read: Read,
    size: u64,
}

/// Judges an outcome of this cut, and returns its tips.
pub fn judge(history: &History, files: &Files, cut: usize) -> Result<Vec<Found>, String> {
    let mut found = Vec::new();
    let mut others = Vec::new();
    let host = SimHost::new(files.clone());
    for name in files.names.keys().filter(|name| !is_temporary(name)) {
        match options(&host).open(name) {
            Ok(chain) => {
                let (tip, read) = known(history, &chain, name, cut)?;
                let layers = naive(files, &chain, &read)?;
                let size = chain.geometry().size;
                match tip {
                    Some(tip) => found.push(Found { tip: tip.clone(), layers, read, size }),
                    None => others.push(name.clone()),
                }
            }
            Err(error) => {
                let is_under_way = history.begun.is_some_and(|begun| begun < cut);
                let is_one_of = |files: &[PathBuf]| is_under_way && files.contains(name);
                let may = match error.kind() {
                    ErrorKind::Unfinished => is_one_of(&history.targets),
                    ErrorKind::Merged => is_one_of(&history.merged),
                    // Not yet linked to the parent's new identity, or merged into a parent that was written to since.
                    ErrorKind::ParentMismatch => {
                        let is_made = |tip: &Tip| tip.path == *name && tip.done < cut;
                        is_one_of(&history.merged)
                            || is_one_of(&history.made) && !history.tips.iter().any(is_made)
                    }
                    _ => false,
                };
                if !may {
                    return Err(format!("{}: {error}", name.display()));
                }
            }
        }
    }
    if host.files().sum() != files.sum() {
        return Err("opening for reading changed a file".into());
    }
    for (at, path) in &history.gone {
        if *at < cut && files.names.contains_key(path) {
            return Err(format!("{} is there again", path.display()));
        }
    }
    let allowed = history.tips_at(cut);
    if found.is_empty() {
        return Err(format!("none of {} tips opens and reads right", allowed.len()));
    }
    // A merged file that has left the chain must not be used as a tip.
    for merged in &history.merged {
        let is_left = found.iter().any(|found| !found.layers.contains(merged));
        if is_left && others.contains(merged) {
            return Err(format!("{} opens, and its chain is without it", merged.display()));
        }
    }
    Ok(found)
}

/// The disk must be one that the file may hold: a tip's, or a point's.
fn known<'a>(
    history: &'a History,
    chain: &DiffChain,
    name: &Path,
    cut: usize,
) -> Result<(Option<&'a Tip>, Read), String> {
    let size = chain.geometry().size;
    let mut wrong = Vec::new();
    for tip in history.tips_at(cut).iter().rev().filter(|tip| tip.path == name) {
        let model = &history.models[tip.model];
        let expected = model.expected(&model.segments(), cut).segments;
        let read = read(chain, &expected)?;
        let refused = expected.iter().zip(&read).find_map(|(may, (_, is))| may.refuses(is));
        match refused {
            None if size == model.size => return Ok((Some(tip), read)),
            None => wrong.push(format!("a size of {size:#x}")),
            Some(at) => wrong.push(format!("other bytes at {at:#x} than those of the tip")),
        }
    }
    for (_, point) in history.points.iter().filter(|(path, _)| path == name) {
        let model = &history.models[0];
        let segments: Vec<Segment> =
            model.expected(&model.segments(), cut).segments.into_iter().collect();
        let read = read(chain, &segments)?;
        let refused = read.iter().find(|(at, is)| {
            let mut may = vec![0; is.len()];
            point.bytes.read(*at, &mut may);
            may != *is
        });
        match refused {
            None if size == point.size => return Ok((None, read)),
            None => wrong.push(format!("a size of {size:#x}")),
            Some((at, _)) => wrong.push(format!("other bytes in {at:#x} than those of a point")),
        }
    }
    let wrong = if wrong.is_empty() { "no point in time".into() } else { wrong.join(", ") };
    Err(format!("{} opens as {wrong}", name.display()))
}

/// Reads the segments, which may extend beyond the end of a smaller disk.
fn read(chain: &DiffChain, segments: &[Segment]) -> Result<Read, String> {
    let size = chain.geometry().size;
    let mut all = Vec::new();
    for Segment { range, .. } in segments.iter().filter(|segment| segment.range.start < size) {
        let mut bytes = vec![0; (range.end.min(size) - range.start) as usize];
        let done = chain.read_at(&mut bytes, range.start);
        done.map_err(|error| format!("read at {:#x}: {error}", range.start))?;
        all.push((range.start, bytes));
    }
    Ok(all)
}

/// The files of the chain, each of which is sound, with the same contents according to the naive reader.
fn naive(files: &Files, chain: &DiffChain, read: &Read) -> Result<Vec<PathBuf>, String> {
    let paths: Vec<PathBuf> = chain.layers().into_iter().filter_map(|layer| layer.path).collect();
    let layers = paths.iter().rev().map(|path| {
        let layer = layer(files, path)?;
        match layer.faults() {
            faults if faults.is_empty() => Ok(layer),
            faults => Err(format!("{}: {}", path.display(), faults.join("; "))),
        }
    });
    let naive = Chain(layers.collect::<Result<_, String>>()?);
    for (at, bytes) in read {
        let last = (bytes.len() as u64 - 1) / UNIT * UNIT;
        for within in [0, last / 2 / UNIT * UNIT, last] {
            let len = (bytes.len() as u64 - within).min(UNIT) as usize;
            let unit = naive.read(paths.len() - 1, at + within, len)?;
            if unit != bytes[within as usize..][..len] {
                return Err(format!("the naive reader sees other bytes at {:#x}", at + within));
            }
        }
    }
    Ok(paths)
}

/// Completes marked merges, writes to the tip, and checks that everything is there and no mark is left.
pub fn go_on(files: &Files, found: &Found) -> Result<(), String> {
    let host = SimHost::new(files.clone());
    let mut tip = complete(&host, &found.tip.path)?;
    let left = abandoned(&host, &tip)?;
    for file in left {
        let renamed = clear(&host, &file)?;
        if !host.files().names.contains_key(&tip) {
            tip = renamed.ok_or("the tip has no name left")?;
        }
    }
    let chain = open(&host, &tip, true)?;
    chain.write_at(&[0xC7; UNIT as usize], 0).map_err(|error| format!("a write: {error}"))?;
    chain.close().map_err(|error| format!("a close: {error}"))?;
    drop(chain);
    let files = host.files();
    let chain = open(&host, &tip, false)?;
    if let Some(warning) = chain.warnings().first() {
        return Err(format!("after all: {warning}"));
    }
    let mut expected = found.read.clone();
    let first = expected.iter_mut().find(|(at, _)| *at == 0).ok_or("the first block is watched")?;
    first.1[..UNIT as usize].fill(0xC7);
    if chain.geometry().size != found.size {
        return Err("the disk has another size after all".into());
    }
    for (at, bytes) in &expected {
        let mut now = vec![0; bytes.len()];
        chain.read_at(&mut now, *at).map_err(|error| error.to_string())?;
        if now != *bytes {
            return Err(format!("after all the disk reads otherwise at {at:#x}"));
        }
    }
    for path in naive(&files, &chain, &expected)? {
        if mark(&host, &path)?.is_some() {
            return Err(format!("{} still has its mark", path.display()));
        }
    }
    Ok(())
}

/// Resumes the merges of a chain, and returns the path of its tip.
fn complete(host: &SimHost, tip: &Path) -> Result<PathBuf, String> {
    let chain = open(host, tip, true)?;
    loop {
        let layers = chain.layers();
        let mut marked = None;
        for layer in &layers {
            let path = layer.path.as_ref().ok_or("a layer without a path")?;
            let state = mark(host, path)?;
            let is_begun = matches!(state, Some(MergeState::Merging | MergeState::Spent));
            if is_begun || is_requested(host, path)? {
                marked = Some((layer.id, path.clone()));
            }
        }
        let Some((id, path)) = marked else {
            chain.close().map_err(|error| error.to_string())?;
            return layers.into_iter().next().and_then(|tip| tip.path).ok_or("no tip".into());
        };
        let done = Merge::resume(id).run(&chain);
        let done = done.map_err(|error| format!("resume {}: {error}", path.display()))?;
        if let Some(warning) = done.warnings.first() {
            return Err(format!("resume {}: {warning}", path.display()));
        }
        // The tip may have got the name of what was merged.
        let is_left = |removed: &&PathBuf| host.files().names.contains_key(*removed);
        if let Some(left) = done.removed.iter().find(is_left) {
            return Err(format!("{} was not removed", left.display()));
        }
        if done.removed.is_empty() {
            return Err(format!("resume {}: nothing was removed", path.display()));
        }
    }
}

/// Spent files that their chain no longer contains.
fn abandoned(host: &SimHost, tip: &Path) -> Result<Vec<PathBuf>, String> {
    let chain = open(host, tip, false)?;
    let layers: HashSet<PathBuf> =
        chain.layers().into_iter().filter_map(|layer| layer.path).collect();
    let mut spent = Vec::new();
    for name in host.files().names.keys().filter(|name| !is_temporary(name)) {
        if !layers.contains(name) && mark(host, name)? == Some(MergeState::Spent) {
            spent.push(name.clone());
        }
    }
    Ok(spent)
}

/// Removes a spent file as its owner would. Returns the tip's path, which may have become that of the spent file.
fn clear(host: &SimHost, file: &Path) -> Result<Option<PathBuf>, String> {
    let chain = options(host).unfinished(true).writable(true).open(file);
    // Its parent was written to since, so that it can only be removed.
    if chain.as_ref().is_err_and(|error| error.kind() == ErrorKind::ParentMismatch) {
        let error = options(host).open(file).err().map(|error| error.kind());
        return if error == Some(ErrorKind::Merged) {
            Ok(None)
        } else {
            Err(format!("{} is spent, and refused with {error:?}", file.display()))
        };
    }
    let chain = chain.map_err(|error| format!("clear {}: {error}", file.display()))?;
    let done = Merge::resume(chain.tip().id()).run(&chain);
    let done = done.map_err(|error| format!("clear {}: {error}", file.display()))?;
    chain.close().map_err(|error| error.to_string())?;
    match done.removed.iter().find(|file| host.files().names.contains_key(*file)) {
        Some(left) => Err(format!("{} is still there", left.display())),
        None => Ok(done.tip),
    }
}

/// Records the completion of an outcome's unfinished merges; `None` if there are none.
pub fn resumed(
    history: &History,
    files: &Files,
    found: &Found,
    all: &[Found],
) -> Result<Option<History>, String> {
    let host = SimHost::new(files.clone());
    host.record();
    let tip = complete(&host, &found.tip.path)?;
    let events = host.events();
    if events.is_empty() {
        return Ok(None);
    }
    let (mut models, mut tips) = (Vec::new(), Vec::new());
    for one in std::iter::once(found).chain(all.iter().filter(|one| one.tip.path != found.tip.path))
    {
        let mut bytes = Bytes::default();
        one.read.iter().for_each(|(at, read)| bytes.write(*at, read));
        let watched = one.read.iter().map(|(at, read)| *at..at + read.len() as u64).collect();
        // The tip in use is a tip from the start, as are the other possible ones.
        let done = if models.is_empty() { 0 } else { usize::MAX };
        tips.push(Tip { begun: 0, done, model: models.len(), ..one.tip.clone() });
        models.push(model_of(&Point { size: one.size, bytes }, watched));
    }
    for parent in &history.keeping {
        tips.push(Tip { path: parent.clone(), begun: 0, done: usize::MAX, model: 0 });
    }
    tips.push(Tip { path: tip, begun: 0, done: usize::MAX, model: 0 });
    let history = history.clone();
    let (start, gone) = (files.clone(), Vec::new());
    Ok(Some(History { start, events, models, tips, begun: Some(0), gone, from: 1, ..history }))
}

fn mark(host: &SimHost, path: &Path) -> Result<Option<MergeState>, String> {
    let options: OpenOptions = options(host);
    let image = options.open_image(path).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(image.merge_mark().map(|mark| mark.state))
}

fn is_requested(host: &SimHost, path: &Path) -> Result<bool, String> {
    let image = options(host).open_image(path);
    let image = image.map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(image.merge_request().is_some())
}

fn is_temporary(name: &Path) -> bool {
    name.extension().is_some_and(|extension| extension == "tmp")
}
