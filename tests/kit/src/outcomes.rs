//! What a crash can leave behind: for every cut of a history, the outcomes that a host may make of the
//! unflushed changes.

use avhdx_testkit::rng::Rng;

use crate::sim::{Bytes, Event, Files, NameChange};
use crate::stale::Grown;

/// How far to explore.
#[derive(Clone, Copy, Debug)]
pub struct Depth {
    /// Up to this many pending changes, every subset is tried.
    pub exhaustive: u32,
    /// Beyond that, this many subsets per cut.
    pub samples: u64,
    /// How many outcomes per cut have torn writes.
    pub torn: u64,
}

/// One way in which a crash can end.
#[derive(Debug)]
pub struct Outcome<'a> {
    /// The files that the crash left.
    pub files: Files,
    /// How many events had happened.
    pub cut: usize,
    /// The pending changes that were kept, in the order of their arrival.
    pub kept: &'a [usize],
    /// Those of them that were torn, with the units that arrived.
    pub torn: &'a [Torn],
}

/// A write, and for each of its units whether it arrived.
pub type Torn = (usize, Vec<bool>);

/// Walks along a history.
pub struct Explorer<'a> {
    events: &'a [Event],
    depth: Depth,
    rng: Rng,
    /// What is durable at the cut.
    durable: Files,
    /// The unflushed changes before the cut.
    pending: Vec<usize>,
    /// Where lost writes leave stale bytes.
    grown: Grown,
}

/// The unit that arrives as a whole or not at all, in bytes.
pub const UNIT: usize = 512;

impl<'a> Explorer<'a> {
    /// All outcomes of the events, from the files that they started with.
    pub fn new(start: Files, events: &'a [Event], depth: Depth, seed: u64) -> Self {
        let grown = Grown::since(&start);
        Self { events, depth, rng: Rng::new(seed), durable: start, pending: Vec::new(), grown }
    }

    /// Shows every outcome of every cut from `from` on. `epoch` identifies the requirements on the outcomes of a cut:
    /// if they change between two cuts, outcomes that were shown before are shown again.
    pub fn run(
        &mut self,
        from: usize,
        epoch: &dyn Fn(usize) -> u64,
        show: &mut dyn FnMut(Outcome<'_>),
    ) {
        if from == 0 {
            self.cut(0, None, show);
        }
        for (i, event) in self.events.iter().enumerate() {
            let newest = match event {
                Event::Write(..) | Event::SetLen(..) | Event::Name(_) => {
                    self.pending.push(i);
                    Some(i)
                }
                Event::FlushEnd(file, start) => {
                    self.settle(*start, |event| file_of(event) == Some(*file));
                    None
                }
                Event::SyncEnd(start) => {
                    self.settle(*start, |event| file_of(event).is_none());
                    None
                }
                Event::Mark if epoch(i) != epoch(i + 1) || i + 1 == from => None,
                Event::Mark | Event::FlushStart(_) | Event::SyncStart => continue,
            };
            if i + 1 >= from {
                self.cut(i + 1, newest, show);
            }
        }
    }

    /// Only what is durable at the end.
    pub fn durable(start: Files, events: &'a [Event]) -> Files {
        let depth = Depth { exhaustive: 0, samples: 0, torn: 0 };
        let mut it = Self::new(start, events, depth, 0);
        it.run(usize::MAX, &|_| 0, &mut |_| {});
        it.durable
    }

    /// One outcome of a crash after `cut` events. `fate` is asked about each pending change, of so many units: which
    /// of them arrived, or none of the change.
    pub fn one(
        start: Files,
        events: &'a [Event],
        cut: usize,
        fate: &mut dyn FnMut(usize) -> Option<Vec<bool>>,
    ) -> Files {
        let depth = Depth { exhaustive: 0, samples: 0, torn: 0 };
        let mut it = Self::new(start, &events[..cut], depth, 0);
        it.run(usize::MAX, &|_| 0, &mut |_| {});
        let (mut kept, mut torn) = (Vec::new(), Vec::new());
        for i in it.pending.clone() {
            let units = it.units(i);
            let Some(arrived) = fate(units) else { continue };
            kept.push(i);
            if units > 1 && arrived.contains(&false) {
                torn.push((i, arrived));
            }
        }
        let mut files = Files::default();
        it.show(cut, &kept, &torn, false, &mut |outcome| files = outcome.files);
        files
    }

    /// Makes the changes before `start` durable.
    fn settle(&mut self, start: usize, is_meant: impl Fn(&Event) -> bool) {
        let events = self.events;
        let (durable, grown) = (&mut self.durable, &mut self.grown);
        self.pending.retain(|i| {
            let is_settled = *i < start && is_meant(&events[*i]);
            if is_settled {
                durable.apply(&events[*i]);
                grown.settle(&events[*i]);
            }
            !is_settled
        });
    }

    /// Shows the outcomes of one cut; if a change is new since the last cut, those that contain it.
    fn cut(&mut self, cut: usize, newest: Option<usize>, show: &mut dyn FnMut(Outcome<'_>)) {
        let others: Vec<usize> =
            self.pending.iter().copied().filter(|i| Some(*i) != newest).collect();
        if others.len() as u32 + u32::from(newest.is_some()) <= self.depth.exhaustive {
            for mask in 0..1_u64 << others.len() {
                self.keep(cut, &pick(&others, newest, |i| mask >> i & 1 == 1), show);
            }
        } else {
            self.keep(cut, &pick(&others, newest, |_| true), show);
            self.keep(cut, &pick(&others, newest, |_| false), show);
            for _ in 0..self.depth.samples {
                let kept = self.some_of(&others, newest);
                self.keep(cut, &kept, show);
            }
        }
        for _ in 0..self.depth.torn {
            let kept = self.some_of(&others, newest);
            let mut long: Vec<usize> =
                kept.iter().copied().filter(|i| self.units(*i) > 1).collect();
            if long.is_empty() {
                continue;
            }
            // Usually a single write, the newest as often as all others together; sometimes several.
            if !self.rng.chance(1, 4) {
                let one = match newest.filter(|i| long.contains(i) && self.rng.chance(1, 2)) {
                    Some(newest) => newest,
                    None => long[self.rng.below(long.len() as u64) as usize],
                };
                long = vec![one];
            }
            let torn: Vec<Torn> = long.into_iter().map(|i| (i, self.tear(self.units(i)))).collect();
            self.show(cut, &kept, &torn, false, show);
        }
    }

    /// A random subset of the changes, with all and none more likely than others.
    fn some_of(&mut self, others: &[usize], newest: Option<usize>) -> Vec<usize> {
        let often = self.rng.below(5);
        let rng = &mut self.rng;
        pick(others, newest, |_| rng.chance(often, 4))
    }

    fn tear(&mut self, units: usize) -> Vec<bool> {
        let at = 1 + self.rng.below(units as u64 - 1) as usize;
        match self.rng.below(3) {
            0 => (0..units).map(|unit| unit < at).collect(),
            1 => (0..units).map(|unit| unit >= at).collect(),
            _ => (0..units).map(|_| self.rng.chance(1, 2)).collect(),
        }
    }

    /// Shows the result of the kept changes in their order, and if they overlap, also in the reverse order.
    fn keep(&self, cut: usize, kept: &[usize], show: &mut dyn FnMut(Outcome<'_>)) {
        self.show(cut, kept, &[], false, show);
        let ranges = || kept.iter().filter_map(|i| self.range(*i));
        let overlap = ranges().enumerate().any(|(n, (file, start, end))| {
            ranges().skip(n + 1).any(|(f, s, e)| f == file && s < end && start < e)
        });
        if overlap {
            self.show(cut, kept, &[], true, show);
        }
    }

    fn show(
        &self,
        cut: usize,
        kept: &[usize],
        torn: &[Torn],
        is_reversed: bool,
        show: &mut dyn FnMut(Outcome<'_>),
    ) {
        let mut files = self.durable.clone();
        let (writes, rest): (Vec<usize>, Vec<usize>) =
            kept.iter().partition(|i| is_reversed && self.range(**i).is_some());
        let order: Vec<usize> = rest.into_iter().chain(writes.into_iter().rev()).collect();
        let mut stale = self.grown.stale(self.events, &self.pending, &order, torn, &self.durable);
        for i in order {
            stale.show_before(&mut files, i);
            let torn = torn.iter().find(|(torn, _)| *torn == i);
            match (torn, &self.events[i]) {
                (Some((_, arrived)), Event::Write(file, chunk)) => {
                    tear_into(files.file_mut(*file), chunk.at, &chunk.data, arrived);
                }
                (_, event) => files.apply(event),
            }
        }
        stale.show_rest(&mut files);
        show(Outcome { files, cut, kept, torn });
    }

    fn range(&self, i: usize) -> Option<(usize, u64, u64)> {
        match &self.events[i] {
            Event::Write(file, chunk) => Some((*file, chunk.at, chunk.end())),
            _ => None,
        }
    }

    fn units(&self, i: usize) -> usize {
        match &self.events[i] {
            Event::Write(_, chunk) => {
                let first = chunk.at / UNIT as u64;
                (chunk.end().div_ceil(UNIT as u64) - first) as usize
            }
            _ => 0,
        }
    }
}

fn pick(
    others: &[usize],
    newest: Option<usize>,
    mut is_kept: impl FnMut(usize) -> bool,
) -> Vec<usize> {
    let mut kept = Vec::with_capacity(others.len() + 1);
    kept.extend(others.iter().enumerate().filter(|(n, _)| is_kept(*n)).map(|(_, i)| *i));
    kept.extend(newest);
    kept
}

/// Writes the units of `data` that arrived.
fn tear_into(file: &mut Bytes, at: u64, data: &[u8], arrived: &[bool]) {
    let first = at / UNIT as u64;
    for (n, _) in arrived.iter().enumerate().filter(|(_, arrived)| **arrived) {
        let start = ((first + n as u64) * UNIT as u64).max(at);
        let end = ((first + n as u64 + 1) * UNIT as u64).min(at + data.len() as u64);
        file.write(start, &data[(start - at) as usize..(end - at) as usize]);
    }
}

/// The file whose flush makes a change durable; none for names.
fn file_of(event: &Event) -> Option<usize> {
    match event {
        Event::Write(file, _) | Event::SetLen(file, _) => Some(*file),
        _ => None,
    }
}

/// Describes an event in a word.
pub fn describe(event: &Event) -> String {
    match event {
        Event::Write(file, chunk) => {
            format!("write #{file} {:#x}+{:#x}", chunk.at, chunk.data.len())
        }
        Event::SetLen(file, len) => format!("length #{file} {len:#x}"),
        Event::Name(NameChange::Create(path, file)) => format!("create {} #{file}", path.display()),
        Event::Name(NameChange::Rename(from, to, file)) => {
            format!("rename {} to {} #{file}", from.display(), to.display())
        }
        Event::Name(NameChange::Exchange(one, other, (a, b))) => {
            format!("exchange {} #{a} and {} #{b}", one.display(), other.display())
        }
        Event::Name(NameChange::Remove(path)) => format!("remove {}", path.display()),
        Event::FlushStart(file) => format!("flush #{file}"),
        Event::FlushEnd(file, _) => format!("flushed #{file}"),
        Event::SyncStart => "sync of names".into(),
        Event::SyncEnd(_) => "synced names".into(),
        Event::Mark => "mark".into(),
    }
}
