//! The chain's own index: which layer answers for which sectors, found once.
//!
//! The disk as a stack of layers has it is cut into spans, none longer than a block of any of them. The answer for a span is a list of runs of sectors, a word each. The first who asks has the layers
//! asked one after the other, no further down than needed for the sectors that are read, but each of
//! them about the whole span: that costs it no more. What nobody above answered for is then left open,
//! and whoever needs it goes on from there.
//!
//! Layers cannot change, but for a tip that is open for writing. Whenever that changes in who answers, the
//! answers about the spans it concerns go, before the write returns; and one that was being found out at that
//! moment is not kept. While a tip changes all the time only what lies below it is kept.
//!
//! Nothing is remembered of errors: a layer that has one for any part of a span keeps the span open from
//! there on, and its reads walk through the layers as if there were no index.

use super::resolve::{Found, Place, Sink, walk};
use super::runs::Runs;
use super::stored::{Packed, Sectors};
use super::word::{self, Answer};
use super::{DiffChain, Link};
use crate::error::Result;
use crate::image::{Known, Load, Owner, Reach, SpanKey, Spans};
use crate::types::DiskOffset;

/// Runs that are looked up at once.
const AT_ONCE: usize = 16;

impl DiffChain {
    /// Hands on the runs that the `len` bytes at `at` start with, and says how many bytes that was. They lie
    /// within the disk and are not none.
    pub(super) fn some_runs<'a, R: Reach>(
        &'a self,
        reach: R,
        at: DiskOffset,
        len: u64,
        sink: &mut impl Sink<'a>,
    ) -> Result<u64, R::Stop> {
        let tip = self.tip();
        let Some(asked) = self.asked(self.tip, at, len) else {
            return Ok(sink.found(walk(reach, self.links(), at, len)?)?);
        };
        let known = asked.known(sink)?;
        match known {
            0 => self.tally.miss(),
            _ => self.tally.hit(),
        }
        match known {
            0 if !tip.is_writable() || tip.is_quiet() => asked.find_out(reach, sink),
            0 => self.beside_the_index(reach, at, len, sink),
            len => Ok(len),
        }
    }

    /// As [`some_runs`](Self::some_runs) for a tip that is just being written: to keep what it says would be
    /// in vain. The layers below it do not change.
    fn beside_the_index<'a, R: Reach>(
        &'a self,
        reach: R,
        at: DiskOffset,
        len: u64,
        sink: &mut impl Sink<'a>,
    ) -> Result<u64, R::Stop> {
        let tip = self.tip();
        let run = tip.resolve_with(reach, at, len)?;
        match run.owner {
            Owner::Here(place) => sink.data(tip, place, run.len)?,
            Owner::Zero => sink.zeros(Some(tip), run.len)?,
            Owner::Parent => {
                let Some(asked) = self.asked(self.tip + 1, at, run.len) else {
                    let layers = &self.layers[self.tip + 1..];
                    return Ok(sink.found(walk(reach, layers, at, run.len)?)?);
                };
                return match asked.known(sink)? {
                    0 => asked.find_out(reach, sink),
                    len => Ok(len),
                };
            }
        }
        Ok(run.len)
    }

    /// The one run that all of these bytes lie in, if that is known. They are not none.
    #[inline]
    pub(super) fn known_run(&self, at: DiskOffset, len: u64) -> Option<Found<'_>> {
        let asked = self.asked(self.tip, at, len)?;
        if asked.end - asked.from < len {
            return None;
        }
        match asked.first_run()? {
            (found, Ends::Later) => Some(found),
            (_, Ends::Here) => None,
        }
    }

    /// The run that these bytes start with, where it is known that it ends before they and their span do.
    pub(super) fn known_short_run(&self, at: DiskOffset, len: u64) -> Option<Found<'_>> {
        match self.asked(self.tip, at, len)?.first_run()? {
            (found, Ends::Here) => Some(found),
            (found, Ends::Later) => (found.len == len).then_some(found),
        }
    }

    /// Finds out, for those who come later, about a span of which it turned out that it has several runs.
    pub(super) fn learn(&self, at: DiskOffset, len: u64) {
        if let Some(asked) = self.asked(self.tip, at, len)
            && (!self.tip().is_writable() || self.tip().is_quiet())
        {
            asked.learn(Load);
        }
    }

    /// The question who answers for the first of these bytes, as many as lie in one span, as the layers from
    /// `from` on have them; `None` where nothing is kept of that.
    #[inline]
    pub(super) fn asked(&self, from: usize, at: DiskOffset, len: u64) -> Option<Asked<'_>> {
        let layers = &self.layers[from..];
        let Link { image: top, stack, span, .. } = layers.first()?;
        let size = top.layout().size();
        let is_worth_it = layers.len() > 1 || top.is_writable();
        if !is_worth_it || layers.len() > word::LAYERS || at.0 >= size {
            return None;
        }
        let spans = top.budget().spans()?;
        let span_shift = span.trailing_zeros();
        let number = at.0 >> span_shift;
        let key = SpanKey::new(*stack, number)?;
        let start = number << span_shift;
        Some(Asked {
            spans,
            layers,
            key,
            start: DiskOffset(start),
            full_span: *span,
            span: (*span).min(size - start),
            sector_shift: top.layout().sector_shift(),
            from: at.0 - start,
            end: (at.0 - start + len).min(*span).min(size - start),
        })
    }
}

/// Bytes of one span that are asked for.
pub(super) struct Asked<'a> {
    spans: &'a Spans,
    layers: &'a [Link],
    key: SpanKey,
    start: DiskOffset,
    /// Bytes of the spans of the disk, and of this one: the last may be shorter.
    full_span: u64,
    span: u64,
    sector_shift: u32,
    /// Where the bytes start and end, from the start of the span.
    from: u64,
    end: u64,
}

/// Whether a run ends before the bytes that are asked for do.
enum Ends {
    Here,
    Later,
}

impl<'a> Asked<'a> {
    fn first(&self) -> u64 {
        self.from >> self.sector_shift
    }

    fn last(&self) -> u64 {
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
    fn find(&self, found: &mut [u64]) -> usize {
        let looked = self.spans.look(self.key, |known| match known {
            Known::Word(run) => {
                found[0] = run;
                1
            }
            Known::Words { form, words } => {
                self.sectors().find(form, words, self.first(), self.last(), found)
            }
        });
        looked.unwrap_or_default()
    }

    /// The run that the bytes start with, if it is known.
    #[inline]
    fn first_run(&self) -> Option<(Found<'a>, Ends)> {
        let mut runs = [0; 2];
        let (end, ends) = match self.find(&mut runs) {
            0 => return None,
            1 => (self.end, Ends::Later),
            _ => (self.within(word::start(runs[1])), Ends::Here),
        };
        let place = self.place(runs[0], self.from)?;
        Some((Found { len: end - self.from, place }, ends))
    }

    /// Hands on the runs that are known, and says how many bytes that was.
    fn known(&self, sink: &mut impl Sink<'a>) -> Result<u64> {
        let mut runs = [0; AT_ONCE + 1];
        let count = self.find(&mut runs);
        match runs.split_at_checked(count).map_or(&runs[..], |(found, _)| found) {
            // One more than was to be looked up: it says where the one before it ends.
            [found @ .., next] if found.len() == AT_ONCE => {
                self.hand_on(found, self.within(word::start(*next)), sink)
            }
            found => self.hand_on(found, self.end, sink),
        }
    }

    /// Hands on runs up to `end`, or up to one that is open. The first has the first of the bytes. Says how
    /// many bytes that was.
    fn hand_on(&self, runs: &[u64], end: u64, sink: &mut impl Sink<'a>) -> Result<u64> {
        let mut at = self.from;
        for (i, run) in runs.iter().enumerate() {
            let next = runs.get(i + 1).map_or(end, |next| self.within(word::start(*next)));
            let next = next.min(end);
            match self.place(*run, at) {
                Some(Place::Data(image, place)) => sink.data(image, place, next - at)?,
                Some(Place::Zero(image)) => sink.zeros(image, next - at)?,
                None => break,
            }
            at = next;
            if at == end {
                break;
            }
        }
        Ok(at - self.from)
    }

    /// What a run says of the byte at `at` in the span, `None` if it is open.
    #[inline]
    fn place(&self, run: u64, at: u64) -> Option<Place<'a>> {
        match word::answer(run) {
            Answer::Here { layer, at: place } => {
                let skipped = at.saturating_sub(self.within(word::start(run)));
                Some(Place::Data(&self.layers.get(layer)?.image, place + skipped))
            }
            Answer::Zero { layer } => {
                Some(Place::Zero(layer.and_then(|n| Some(self.layers.get(n)?.image.as_ref()))))
            }
            Answer::Open { .. } => None,
        }
    }

    /// Asks the layers, and keeps what they say.
    #[cold]
    fn find_out<R: Reach>(&self, reach: R, sink: &mut impl Sink<'a>) -> Result<u64, R::Stop> {
        let words = self.learn(reach);
        let after = words.partition_point(|word| *word <= word::last_at(self.first()));
        let handed_on = self.hand_on(&words[after - 1..], self.end, sink)?;
        if handed_on > 0 {
            return Ok(handed_on);
        }
        // A layer has no answer for all of the span, but perhaps for these bytes, and the error if not, or
        // what is not within reach.
        let (at, len) = (self.start + self.from, self.end - self.from);
        Ok(sink.found(walk(reach, self.layers, at, len)?)?)
    }

    /// The span's runs. All that are asked for have an answer, unless a layer has none.
    fn learn(&self, reach: impl Reach) -> Vec<u64> {
        let top = &self.layers[0].image;
        // What changes from here on is perhaps not in the answer.
        let changes = top.changes();
        let known = self.spans.look(self.key, |known| match known {
            Known::Word(run) => vec![run],
            Known::Words { form, words } => self.sectors().unpack(form, words),
        });
        let words = self.ask(reach, known.as_deref());
        if depth(&words) > known.as_deref().map_or(0, depth) {
            let Packed { form, words } = self.sectors().pack(&words);
            let still = || top.changes() == changes;
            top.budget().keep_span(self.key, form, &words, still);
        }
        words
    }

    /// The span's runs, with those before them taken up where they were left open. All that are asked
    /// for have an answer, unless a layer has none.
    fn ask(&self, reach: impl Reach, known: Option<&[u64]>) -> Vec<u64> {
        let mut runs = Runs::new(self.span >> self.sector_shift, self.sector_shift, known);
        // Who comes a second time goes down at least twice as far, so that a span is not gone through
        // again for each of many layers.
        let goal = 2 * runs.depth();
        let sectors = self.span >> self.sector_shift;
        while let Some(link) = self.layers.get(runs.depth()) {
            let is_needed = runs.is_open(self.first(), self.last() + 1);
            if !is_needed && (runs.depth() >= goal || !runs.is_open(0, sectors)) {
                break;
            }
            if runs.ask(reach, &link.image, self.start).is_none() {
                break;
            }
        }
        if runs.depth() == self.layers.len() {
            runs.end();
        }
        runs.into_words()
    }
}

/// How many layers were asked before these runs were left open.
fn depth(words: &[u64]) -> usize {
    let depths = words.iter().filter_map(|word| match word::answer(*word) {
        Answer::Open { depth } => Some(depth),
        _ => None,
    });
    depths.min().unwrap_or(usize::MAX)
}
