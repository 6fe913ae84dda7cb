//! Determines which layer holds which bytes of a disk.
//!
//! The disk is divided into spans, none longer than a block of any layer. The answer for a span is a list of runs of
//! sectors. If it is not cached, the layers are asked one by one, only as far down as the sectors being read require,
//! but each about the whole span, which costs no more. Sectors that no layer answered for stay open, and the next
//! reader that needs them continues from there.
//!
//! Layers do not change, except for a tip that is open for writing. A write that changes which layer holds some bytes
//! invalidates the answers for their spans before it returns, and answers being determined at that moment are not
//! cached. While a tip keeps changing, only answers about the layers below it are cached.
//!
//! Errors are not cached: if a layer fails for any part of a span, the span stays open from that layer on, and each
//! read asks the layers again.

#[cfg(all(test, not(loom)))]
mod tests;

use super::layers::{Layer, Layers};
use crate::answers::{
    Answer, AnswerKey, AnswerTable, Owner, PackedRun, PackedSpan, Sectors, SpanBits, SpanBuilder,
    SpanOwner,
};
use crate::error::Result;
use crate::tables::{FromFile, PageSource};
use crate::types::DiskOffset;

/// Number of runs per lookup.
const AT_ONCE: usize = 16;

/// A run of bytes of the disk with one answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    pub(crate) at: DiskOffset,
    pub(crate) len: u64,
    /// Open if the bytes belong to a parent below all layers.
    pub(crate) answer: Answer,
}

/// Receives the runs of a range in order.
pub(super) trait Sink {
    fn take(&mut self, run: Run) -> Result<()>;
}

impl<'a> Layers<'a> {
    /// Passes on the first runs of the `len` bytes at `at`, and returns the number of bytes covered. The bytes must
    /// lie within the disk and not be empty.
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

    /// The answer for all of these bytes, if they have a single one and it is cached.
    #[inline]
    pub(super) fn known(self, at: DiskOffset, len: u64) -> Option<Answer> {
        if len == 0 {
            return None;
        }
        let query = self.query(0, at, len)?;
        if query.end - query.from < len {
            return None;
        }
        let asked = (query.first_sector(), query.last_sector());
        let run = query.answers.find_one(query.key, query.sectors(), asked)?;
        let answer = query.answer(run, query.from);
        if matches!(answer, Answer::Open { .. }) {
            return None;
        }
        self.hit();
        Some(answer)
    }

    /// As [`ask`](Self::ask), for a tip that is being written: an answer about the tip would soon be invalid, but the
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

    /// The run at the start of these bytes, which must not be empty.
    ///
    /// A run may be much longer than a span; answers for each of its spans would waste cache space.
    pub(super) fn first_run(self, at: DiskOffset, len: u64) -> Result<Run> {
        let query = self.query(0, at, len);
        if let Some(query) = &query {
            // A run up to the end of its span may continue in the next one, which is not examined here.
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
            // The run is known: failures elsewhere in the span do not affect the caller.
            drop(Query { end: query.from + run.len, ..query }.learn(FromFile));
        }
        Ok(run)
    }

    /// The run at the start of these bytes, found by asking the layers from `first` on one by one. The bytes must not
    /// be empty.
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

    /// The query for these bytes, as far as they lie in one span, to the layers from `first` on; `None` if its answer
    /// cannot be cached.
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

/// A query for bytes of one span.
struct Query<'a> {
    answers: &'a AnswerTable,
    /// The layers to ask. The first of them has the number `first` among all layers.
    layers: &'a [Layer],
    first: usize,
    key: AnswerKey,
    start: DiskOffset,
    /// Bytes of a regular span, and of this one: the last may be shorter.
    full_span: u64,
    span: u64,
    sector_shift: u32,
    /// Start and end of the bytes, relative to the span.
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

    /// The offset of a sector within the span.
    fn within(&self, sector: u64) -> u64 {
        sector << self.sector_shift
    }

    fn sectors(&self) -> Sectors {
        Sectors { in_span: self.full_span >> self.sector_shift, shift: self.sector_shift }
    }

    /// Looks up the run at the start of the bytes and those that follow, as many as fit into `found`.
    #[inline]
    fn find(&self, found: &mut [PackedRun]) -> usize {
        let asked = (self.first_sector(), self.last_sector());
        self.answers.find(self.key, self.sectors(), asked, found)
    }

    /// The cached run at the start of the bytes, if any, and whether it ends before the bytes do.
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

    /// Passes on the cached runs, and returns the number of bytes covered.
    #[inline]
    fn hand_on_known(&self, sink: &mut impl Sink) -> Result<u64> {
        let mut runs = [PackedRun::default(); AT_ONCE + 1];
        let count = self.find(&mut runs);
        self.hand_on_found(&runs[..count], sink)
    }

    /// Passes on the runs that were looked up, and returns the number of bytes covered.
    #[inline]
    fn hand_on_found(&self, runs: &[PackedRun], sink: &mut impl Sink) -> Result<u64> {
        match runs.get(AT_ONCE) {
            // The extra run only marks the end of the one before it.
            Some(extra) => self.hand_on(&runs[..AT_ONCE], self.within(extra.start()), sink),
            None => self.hand_on(runs, self.end, sink),
        }
    }

    /// Passes on runs up to `end` or the first open one, and returns the number of bytes covered. The first run
    /// contains the first byte.
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

    /// The answer of a run for the byte at `at` in the span, with layers counted from the first of all.
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

    /// Whether layers remain to be asked.
    #[inline]
    fn is_open(&self, answer: &Answer) -> bool {
        matches!(answer, Answer::Open { depth } if *depth < self.first + self.layers.len())
    }

    /// Asks the layers, and caches their answers.
    #[cold]
    fn find_out<S: PageSource>(&self, source: S, sink: &mut impl Sink) -> Result<u64, S::Stop> {
        let span = self.learn(source)?;
        let mut runs = [PackedRun::default(); AT_ONCE + 1];
        let asked = (self.first_sector(), self.last_sector());
        let count = span.find(self.sectors(), asked, &mut runs);
        let handed_on = self.hand_on_found(&runs[..count], sink)?;
        if handed_on > 0 {
            return Ok(handed_on);
        }
        // A layer cannot answer for the whole span, but perhaps for these bytes. Otherwise, returns its error or the
        // page that the source lacks.
        let layers = Layers { layers: self.layers, tally: None };
        let run = layers.walk(source, 0, self.start + self.from, self.end - self.from)?;
        Ok(hand_on(run.below(self.first), sink)?)
    }

    /// The span's runs. All requested sectors have an answer, unless a layer cannot answer for the whole span.
    ///
    /// # Errors
    /// If the host fails to read a table that the requested sectors need.
    fn learn<S: PageSource>(&self, source: S) -> Result<PackedSpan, S::Stop> {
        let top = &self.layers[0];
        // Changes after this point may be missing from the answer.
        let changes = top.changes();
        let still = || top.changes() == changes;
        let known = self.known();
        let mut here = SpanBits::new();
        let whole = match known {
            None => self.ask_whole(source, &mut here)?,
            Some(_) => Whole::Not(0, None),
        };
        let (asked, next) = match whole {
            Whole::Not(asked, next) => (asked, next),
            Whole::Run(run) => {
                top.budget().keep_answer(self.key, 0, &[run.word()], still);
                return Ok(PackedSpan::one(run));
            }
        };
        let before = known.as_deref().map_or(0, depth);
        if let (Some(known), usize::MAX) = (&known, before) {
            // Another thread has found all of it since this one looked.
            return Ok(PackedSpan::list(known));
        }
        let known = known.unwrap_or_else(|| vec![PackedRun::open(0, asked)]);
        let (span, is_news) = self.ask_each(source, &known, before, next, &mut here)?;
        if is_news {
            top.budget().keep_answer(self.key, span.form, &span.words, still);
        }
        Ok(span)
    }

    /// All cached runs of the span.
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

    /// Asks layers while each has one answer for the whole span.
    fn ask_whole<S: PageSource>(&self, source: S, here: &mut SpanBits) -> Result<Whole, S::Stop> {
        for (depth, layer) in self.layers.iter().enumerate() {
            if layer.layout().size().saturating_sub(self.start.0) < self.span {
                return Ok(Whole::Not(depth, None));
            }
            let run = match layer.resolve_span(source, self.start, self.span, here) {
                Ok(SpanOwner::One(Owner::Parent)) => continue,
                Ok(SpanOwner::One(Owner::Zero)) => Some(PackedRun::zero(0, Some(depth))),
                Ok(SpanOwner::One(Owner::Here(place))) => PackedRun::here(0, depth, place)
                    .filter(|_| PackedRun::here(0, depth, place + self.span).is_some()),
                Err(stop) if S::is_host_failure(&stop) => return Err(stop),
                Ok(mixed @ SpanOwner::Mixed(_)) => return Ok(Whole::Not(depth, Some(mixed))),
                Err(_) => None,
            };
            return Ok(run.map_or(Whole::Not(depth, None), Whole::Run));
        }
        Ok(Whole::Run(PackedRun::open(0, self.layers.len())))
    }

    /// The span's runs, continued from cached runs where those were left open after `before` layers, and whether more
    /// of them have an answer now or are known to have none there. `next` is the owner by the next layer, with the
    /// sectors `here`, if it is known. All requested sectors have an answer, unless a
    /// layer has failed. Asks at least twice as many layers as before while any sectors are open: a second reader goes
    /// twice as deep as the first, so a span is not walked again for each of many layers.
    fn ask_each<S: PageSource>(
        &self,
        source: S,
        known: &[PackedRun],
        before: usize,
        mut next: Option<SpanOwner>,
        here: &mut SpanBits,
    ) -> Result<(PackedSpan, bool), S::Stop> {
        let sectors = self.span >> self.sector_shift;
        let mut span = SpanBuilder::new(sectors, self.sector_shift, known);
        while let Some(layer) = self.layers.get(span.depth()) {
            let is_needed = span.is_open(self.first_sector(), self.last_sector() + 1);
            if !is_needed && (span.depth() >= 2 * before || !span.is_open(0, sectors)) {
                break;
            }
            let there = layer.layout().size().saturating_sub(self.start.0) >> self.sector_shift;
            let there = there.min(sectors);
            let owner = match (next.take(), there) {
                (Some(owner), _) => Ok(owner),
                (None, 0) => Ok(SpanOwner::One(Owner::Parent)),
                (None, _) => layer.resolve_span(source, self.start, self.within(there), here),
            };
            let owner = match owner {
                Ok(owner) => owner,
                Err(stop) if is_needed && S::is_host_failure(&stop) => return Err(stop),
                Err(_) => break,
            };
            if span.add(owner, here, there).is_none() {
                break;
            }
        }
        let is_news = span.depth() > before || !span.is_open(0, sectors);
        Ok((span.pack(self.sectors()), is_news))
    }
}

/// The answer for a whole span.
enum Whole {
    Run(PackedRun),
    /// There is none: this many layers deferred to the next one, which has this answer, if it is known.
    Not(usize, Option<SpanOwner>),
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

    /// The run with layers renumbered to follow this many others.
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

/// Number of layers that were asked before these runs were left open.
fn depth(runs: &[PackedRun]) -> usize {
    let depths = runs.iter().filter_map(|run| match run.answer() {
        Answer::Open { depth } => Some(depth),
        _ => None,
    });
    depths.min().unwrap_or(usize::MAX)
}
