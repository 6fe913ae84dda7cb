//! The one way to ask which layer has the bytes of a disk.
//!
//! The disk is cut into spans, none longer than a block of any layer. The answer for a span is a list of runs of
//! sectors. Where it is known it is looked up. Else the layers are asked one after the other, no further down than
//! needed for the sectors that are read, but each of them about the whole span: that costs no more. What no layer
//! answered for is left open, and the next reader who needs it goes on from there.
//!
//! Layers do not change, except for a tip that is open for writing. A write that changes which layer has some bytes
//! drops the answers about their spans before it returns, and an answer that was being found at that moment is not
//! kept. While a tip changes all the time only what lies below it is kept.
//!
//! Errors are not remembered: a layer that has one for any part of a span leaves the span open from there on, and
//! reads of it ask the layers each time.

#[cfg(all(test, not(loom)))]
mod tests;

use super::layers::{Layer, Layers};
use crate::answers::{
    Answer, AnswerKey, AnswerTable, Owner, PackedRun, PackedSpan, SPAN_WORDS, Sectors, SpanBuilder,
    SpanOwner,
};
use crate::error::Result;
use crate::tables::{FromFile, PageSource};
use crate::types::DiskOffset;

/// Runs that are looked up at once.
const AT_ONCE: usize = 16;

/// Bytes of the disk in a row for which one layer answers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    pub(crate) at: DiskOffset,
    pub(crate) len: u64,
    /// Open where the bytes are those of a parent below all layers.
    pub(crate) answer: Answer,
}

/// Takes the runs of a range in order.
pub(super) trait Sink {
    fn take(&mut self, run: Run) -> Result<()>;
}

impl<'a> Layers<'a> {
    /// Hands on the runs that the `len` bytes at `at` start with, and says how many bytes that was. They lie
    /// within the disk and are not none.
    #[inline]
    pub(super) fn ask<S: PageSource>(
        self,
        source: S,
        at: DiskOffset,
        len: u64,
        sink: &mut impl Sink,
    ) -> Result<u64, S::Stop> {
        let Some(query) = self.query(0, at, len) else {
            return Ok(hand_on(self.walk(source, 0, at, len)?, sink)?);
        };
        let known = query.hand_on_known(sink)?;
        if known > 0 {
            self.hit();
            return Ok(known);
        }
        self.miss();
        if self.tip().is_quiet() {
            query.find_out(source, sink)
        } else {
            self.ask_below_tip(source, at, len, sink)
        }
    }

    /// As [`ask`](Self::ask) for a tip that is just being written: an answer of its own would be dropped soon. The
    /// layers below it do not change.
    #[cold]
    fn ask_below_tip<S: PageSource>(
        self,
        source: S,
        at: DiskOffset,
        len: u64,
        sink: &mut impl Sink,
    ) -> Result<u64, S::Stop> {
        let run = self.tip().resolve_with(source, at, len)?;
        if run.owner != Owner::Parent || self.layers.len() == 1 {
            return Ok(hand_on(Run::of_layer(0, at, run.len, run.owner), sink)?);
        }
        let Some(query) = self.query(1, at, run.len) else {
            return Ok(hand_on(self.walk(source, 1, at, run.len)?, sink)?);
        };
        match query.hand_on_known(sink)? {
            0 => query.find_out(source, sink),
            known => Ok(known),
        }
    }

    /// The run that these bytes start with. They are not none.
    ///
    /// A run may be much longer than a span, and answers about each of its spans are not worth their place.
    pub(super) fn first_run(self, at: DiskOffset, len: u64) -> Result<Run> {
        let query = self.query(0, at, len);
        if let Some(query) = &query {
            // One that goes on to the end of its span may go on behind it, which is not known here.
            if let Some((run, ends)) = query.first_known()
                && (ends || run.len == len)
            {
                self.hit();
                return Ok(run);
            }
            self.miss();
        }
        let run = self.walk(FromFile, 0, at, len)?;
        if let Some(query) = query
            && query.from + run.len < query.span
            && self.tip().is_quiet()
        {
            Query { end: query.from + run.len, ..query }.learn(FromFile);
        }
        Ok(run)
    }

    /// The run that these bytes start with, as the layers from `first` on have it, which are asked one after the other.
    /// The bytes are not none.
    fn walk<S: PageSource>(
        self,
        source: S,
        first: usize,
        at: DiskOffset,
        mut len: u64,
    ) -> Result<Run, S::Stop> {
        let mut depth = first;
        for layer in &self.layers[first..] {
            let size = layer.layout().size();
            if at.0 >= size {
                return Ok(Run { at, len, answer: Answer::Zero { layer: None } });
            }
            len = len.min(size - at.0);
            let run = layer.resolve_with(source, at, len)?;
            len = run.len;
            if run.owner != Owner::Parent {
                return Ok(Run::of_layer(depth, at, len, run.owner));
            }
            depth += 1;
        }
        Ok(Run { at, len, answer: Answer::Open { depth } })
    }

    /// The question which of the layers from `first` on have these bytes, as many as lie in one span; `None` where
    /// nothing is kept of that.
    #[inline]
    fn query(self, first: usize, at: DiskOffset, len: u64) -> Option<Query<'a>> {
        let layers = &self.layers[first..];
        let Layer { image: top, stack, span, .. } = layers.first()?;
        let size = top.layout().size();
        if *stack == 0 || layers.len() > PackedRun::LAYERS || at.0 >= size {
            return None;
        }
        let answers = top.budget().answers()?;
        let span_shift = span.trailing_zeros();
        let number = at.0 >> span_shift;
        let key = AnswerKey::new(*stack, number)?;
        let start = number << span_shift;
        let here = (*span).min(size - start);
        Some(Query {
            answers,
            layers,
            first,
            key,
            start: DiskOffset(start),
            full_span: *span,
            span: here,
            sector_shift: top.layout().sector_shift(),
            from: at.0 - start,
            end: (at.0 - start + len).min(here),
        })
    }
}

/// Bytes of one span that are asked for.
struct Query<'a> {
    answers: &'a AnswerTable,
    /// Those that are asked, of which the first is this one of all.
    layers: &'a [Layer],
    first: usize,
    key: AnswerKey,
    start: DiskOffset,
    /// Bytes of the spans of the disk, and of this one: the last may be shorter.
    full_span: u64,
    span: u64,
    sector_shift: u32,
    /// Where the bytes start and end, from the start of the span.
    from: u64,
    end: u64,
}

impl Query<'_> {
    fn first_sector(&self) -> u64 {
        self.from >> self.sector_shift
    }

    fn last_sector(&self) -> u64 {
        (self.end - 1) >> self.sector_shift
    }

    /// Where a sector of the span starts.
    fn within(&self, sector: u64) -> u64 {
        sector << self.sector_shift
    }

    fn sectors(&self) -> Sectors {
        Sectors { in_span: self.full_span >> self.sector_shift, shift: self.sector_shift }
    }

    /// Looks up the run that the bytes start with and those that follow, as many as `found` has room for.
    #[inline]
    fn find(&self, found: &mut [PackedRun]) -> usize {
        let asked = (self.first_sector(), self.last_sector());
        self.answers.find(self.key, self.sectors(), asked, found)
    }

    /// The run that the bytes start with, if it is known, and whether it ends before the bytes do.
    fn first_known(&self) -> Option<(Run, bool)> {
        let mut runs = [PackedRun::default(); 2];
        let (end, ends) = match self.find(&mut runs) {
            0 => return None,
            1 => (self.end, false),
            _ => (self.within(runs[1].start()), true),
        };
        let answer = self.answer(runs[0], self.from);
        let run = Run { at: self.start + self.from, len: end - self.from, answer };
        (!self.is_open(&answer)).then_some((run, ends))
    }

    /// Hands on the runs that are known, and says how many bytes that was.
    #[inline]
    fn hand_on_known(&self, sink: &mut impl Sink) -> Result<u64> {
        let mut runs = [PackedRun::default(); AT_ONCE + 1];
        match self.find(&mut runs) {
            // Most reads lie in one run.
            1 => self.hand_on(&runs[..1], self.end, sink),
            // One more than was to be looked up: it says where the one before it ends.
            count if count > AT_ONCE => {
                self.hand_on(&runs[..AT_ONCE], self.within(runs[AT_ONCE].start()), sink)
            }
            count => self.hand_on(&runs[..count], self.end, sink),
        }
    }

    /// Hands on runs up to `end`, or up to one that is open. The first has the first of the bytes. Says how
    /// many bytes that was.
    fn hand_on(&self, runs: &[PackedRun], end: u64, sink: &mut impl Sink) -> Result<u64> {
        let mut at = self.from;
        for (i, run) in runs.iter().enumerate() {
            let next = runs.get(i + 1).map_or(end, |next| self.within(next.start()));
            let next = next.min(end);
            let answer = self.answer(*run, at);
            if self.is_open(&answer) {
                break;
            }
            sink.take(Run { at: self.start + at, len: next - at, answer })?;
            at = next;
            if at == end {
                break;
            }
        }
        Ok(at - self.from)
    }

    /// What a run says of the byte at `at` in the span, layers counted from the first of all.
    #[inline]
    fn answer(&self, run: PackedRun, at: u64) -> Answer {
        match run.answer() {
            Answer::Here { layer, at: place } => {
                let skipped = at.saturating_sub(self.within(run.start()));
                Answer::Here { layer: self.first + layer, at: place + skipped }
            }
            Answer::Zero { layer } => Answer::Zero { layer: layer.map(|n| self.first + n) },
            Answer::Open { depth } => Answer::Open { depth: self.first + depth },
        }
    }

    /// Whether layers are left to be asked.
    #[inline]
    fn is_open(&self, answer: &Answer) -> bool {
        matches!(answer, Answer::Open { depth } if *depth < self.first + self.layers.len())
    }

    /// Asks the layers, and keeps what they say.
    #[cold]
    fn find_out<S: PageSource>(&self, source: S, sink: &mut impl Sink) -> Result<u64, S::Stop> {
        let runs = self.learn(source);
        let runs = runs.as_slice();
        let after = runs.partition_point(|run| run.start() <= self.first_sector());
        let handed_on = self.hand_on(&runs[after - 1..], self.end, sink)?;
        if handed_on > 0 {
            return Ok(handed_on);
        }
        // A layer has no answer for all of the span, but perhaps for these bytes, and the error if not, or
        // what its source does not have.
        let layers = Layers { layers: self.layers, tally: None };
        let run = layers.walk(source, 0, self.start + self.from, self.end - self.from)?;
        Ok(hand_on(run.below(self.first), sink)?)
    }

    /// The span's runs. All that are asked for have an answer, unless a layer has none.
    fn learn(&self, source: impl PageSource) -> Learned {
        let top = &self.layers[0];
        // What changes from here on is perhaps not in the answer.
        let changes = top.changes();
        let still = || top.changes() == changes;
        let known = self.known();
        let (asked, run) = match known {
            None => self.ask_whole(source),
            Some(_) => (0, None),
        };
        if let Some(run) = run {
            top.budget().keep_answer(self.key, 0, &[run.word()], still);
            return Learned::One([run]);
        }
        let before = known.as_deref().map_or(0, depth);
        let known = known.unwrap_or_else(|| vec![PackedRun::open(0, asked)]);
        let runs = self.ask_each(source, &known, 2 * before);
        if depth(&runs) > before {
            let PackedSpan { form, words } = self.sectors().pack(&runs);
            top.budget().keep_answer(self.key, form, &words, still);
        }
        Learned::Many(runs)
    }

    /// All runs that are known.
    fn known(&self) -> Option<Vec<PackedRun>> {
        let sectors = self.sectors();
        let all = (0, sectors.in_span - 1);
        let mut first = [PackedRun::default(); AT_ONCE + 1];
        let count = self.answers.find(self.key, sectors, all, &mut first);
        if count < first.len() {
            return (count > 0).then(|| first[..count].to_vec());
        }
        let mut runs = vec![PackedRun::default(); sectors.in_span as usize];
        let count = self.answers.find(self.key, sectors, all, &mut runs);
        runs.truncate(count);
        (count > 0).then_some(runs)
    }

    /// Asks the layers as long as each has one answer for the whole span. Says how many left it to the next, and the
    /// run, if one of the others answered for it.
    fn ask_whole(&self, source: impl PageSource) -> (usize, Option<PackedRun>) {
        let mut here = [0; SPAN_WORDS];
        for (depth, layer) in self.layers.iter().enumerate() {
            if layer.layout().size().saturating_sub(self.start.0) < self.span {
                return (depth, None);
            }
            let run = match layer.resolve_span(source, self.start, self.span, &mut here) {
                Ok(SpanOwner::One(Owner::Parent)) => continue,
                Ok(SpanOwner::One(Owner::Zero)) => Some(PackedRun::zero(0, Some(depth))),
                Ok(SpanOwner::One(Owner::Here(place))) => PackedRun::here(0, depth, place)
                    .filter(|_| PackedRun::here(0, depth, place + self.span).is_some()),
                Ok(SpanOwner::Mixed(_)) | Err(_) => None,
            };
            return (depth, run);
        }
        (self.layers.len(), Some(PackedRun::open(0, self.layers.len())))
    }

    /// The span's runs, with those that are known taken up where they were left open. All that are asked for have an
    /// answer, unless a layer has none. Goes down to `goal` at least as long as any are open: a second reader goes
    /// twice as far as the first, so that a span is not gone through again for each of many layers.
    fn ask_each(
        &self,
        source: impl PageSource,
        known: &[PackedRun],
        goal: usize,
    ) -> Vec<PackedRun> {
        let sectors = self.span >> self.sector_shift;
        let mut span = SpanBuilder::new(sectors, self.sector_shift, known);
        let mut here = [0; SPAN_WORDS];
        while let Some(layer) = self.layers.get(span.depth()) {
            let is_needed = span.is_open(self.first_sector(), self.last_sector() + 1);
            if !is_needed && (span.depth() >= goal || !span.is_open(0, sectors)) {
                break;
            }
            let there = layer.layout().size().saturating_sub(self.start.0) >> self.sector_shift;
            let there = there.min(sectors);
            let owner = match there {
                0 => Ok(SpanOwner::One(Owner::Parent)),
                _ => layer.resolve_span(source, self.start, self.within(there), &mut here),
            };
            let Ok(owner) = owner else { break };
            if span.add(owner, &here, there).is_none() {
                break;
            }
        }
        span.into_runs()
    }
}

/// The runs of a span.
enum Learned {
    One([PackedRun; 1]),
    Many(Vec<PackedRun>),
}

impl Learned {
    fn as_slice(&self) -> &[PackedRun] {
        match self {
            Self::One(run) => run,
            Self::Many(runs) => runs,
        }
    }
}

impl Run {
    fn of_layer(layer: usize, at: DiskOffset, len: u64, owner: Owner) -> Self {
        let answer = match owner {
            Owner::Here(at) => Answer::Here { layer, at },
            Owner::Zero => Answer::Zero { layer: Some(layer) },
            Owner::Parent => Answer::Open { depth: layer + 1 },
        };
        Self { at, len, answer }
    }

    /// The run where so many layers come before those that were asked.
    fn below(self, layers: usize) -> Self {
        let answer = match self.answer {
            Answer::Here { layer, at } => Answer::Here { layer: layers + layer, at },
            Answer::Zero { layer } => Answer::Zero { layer: layer.map(|n| layers + n) },
            Answer::Open { depth } => Answer::Open { depth: layers + depth },
        };
        Self { answer, ..self }
    }
}

fn hand_on(run: Run, sink: &mut impl Sink) -> Result<u64> {
    sink.take(run)?;
    Ok(run.len)
}

/// How many layers were asked before these runs were left open.
fn depth(runs: &[PackedRun]) -> usize {
    let depths = runs.iter().filter_map(|run| match run.answer() {
        Answer::Open { depth } => Some(depth),
        _ => None,
    });
    depths.min().unwrap_or(usize::MAX)
}
