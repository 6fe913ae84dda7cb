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
use super::stored::{Packed, Sectors};
use super::word::{self, Answer};
use super::{DiffChain, Link};
use crate::error::Result;
use crate::image::{Known, Load, MIXED_WORDS, Owner, Piece, Reach, SpanKey, Spans, VhdxFile};
use crate::types::{DiskOffset, FileOffset};

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
        match asked.known(sink)? {
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
    fn asked(&self, from: usize, at: DiskOffset, len: u64) -> Option<Asked<'_>> {
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
struct Asked<'a> {
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
        let goal = 2 * runs.depth;
        let asked = bits_from(self.first()).zip_with(bits_from(self.last() + 1), |a, b| a & !b);
        while let Some(link) = self.layers.get(runs.depth) {
            let is_needed = !runs.open.zip_with(asked, |open, asked| open & asked).is_empty();
            if !is_needed && (runs.depth >= goal || runs.open.is_empty()) {
                break;
            }
            if runs.ask(reach, &link.image, self.start).is_none() {
                break;
            }
        }
        if runs.depth == self.layers.len() {
            // The base's parent, which it does not have.
            runs.take_zeros(bits_from(0), None);
        }
        runs.into_words()
    }
}

/// The runs of a span while they are found.
struct Runs {
    sector_shift: u32,
    /// Sectors of the span.
    sectors: u64,
    /// Layers that were asked.
    depth: usize,
    /// Sectors that none of these answered for.
    open: Bits,
    /// The first sector and the answer of each other run, in no order.
    words: Vec<u64>,
}

impl Runs {
    /// Of a span of which this is known.
    fn new(sectors: u64, sector_shift: u32, known: Option<&[u64]>) -> Self {
        let all = bits_from(0).zip_with(bits_from(sectors), |a, b| a & !b);
        let mut new = Self { sector_shift, sectors, depth: 0, open: all, words: Vec::new() };
        let Some(known) = known else { return new };
        new.open = Bits::NONE;
        for (i, word) in known.iter().enumerate() {
            let Answer::Open { depth } = word::answer(*word) else {
                new.words.push(*word);
                continue;
            };
            new.depth = depth;
            let end = known.get(i + 1).map_or(sectors, |next| word::start(*next));
            let run = bits_from(word::start(*word)).zip_with(bits_from(end), |a, b| a & !b);
            new.open = new.open.zip_with(run, |a, b| a | b);
        }
        new
    }

    /// Asks the next layer about the span, which starts there. `None` where it cannot say for all of it.
    fn ask(&mut self, reach: impl Reach, image: &VhdxFile, start: DiskOffset) -> Option<()> {
        let there = image.layout().size().saturating_sub(start.0);
        let there = there.min(self.sectors << self.sector_shift);
        if there > 0 {
            let mut here = Bits::NONE;
            let piece = image.resolve_piece(reach, start, there, &mut here.0).ok()?;
            let inside = bits_from(there >> self.sector_shift);
            let inside = self.open.zip_with(inside, |open, beyond| open & !beyond);
            match piece {
                Piece::All(Owner::Parent) => {}
                Piece::All(Owner::Zero) => self.take_zeros(inside, Some(self.depth)),
                Piece::All(Owner::Here(place)) => self.take(inside, place)?,
                Piece::Mixed(place) => self.take(inside.zip_with(here, |a, b| a & b), place)?,
            }
        }
        // What lies past the end of a layer never shows through from below it.
        self.take_zeros(bits_from(there >> self.sector_shift), None);
        self.depth += 1;
        Some(())
    }

    /// Notes that the layer being asked has these sectors, the span's first one at `place`. `None` where that
    /// is too far out for a word.
    fn take(&mut self, sectors: Bits, place: FileOffset) -> Option<()> {
        let (layer, shift) = (self.depth, self.sector_shift);
        // Far enough for all of them.
        word::here(0, layer, place + (self.sectors << shift))?;
        let words = sectors.starts();
        self.words.extend(words.filter_map(|at| word::here(at, layer, place + (at << shift))));
        self.open = self.open.zip_with(sectors, |open, taken| open & !taken);
        Some(())
    }

    /// Notes that these sectors, as far as they are open, are zeros because that layer says so or none.
    fn take_zeros(&mut self, sectors: Bits, layer: Option<usize>) {
        let sectors = self.open.zip_with(sectors, |a, b| a & b);
        self.words.extend(sectors.starts().map(|at| word::zero(at, layer)));
        self.open = self.open.zip_with(sectors, |open, taken| open & !taken);
    }

    /// One word for each run, in order.
    fn into_words(mut self) -> Vec<u64> {
        self.words.extend(self.open.starts().map(|at| word::open(at, self.depth)));
        self.words.sort_unstable();
        self.words.dedup_by(|next, run| word::continues(*run, *next, self.sector_shift));
        self.words
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

/// A bit for each sector that a span may have.
#[derive(Clone, Copy)]
struct Bits([u64; MIXED_WORDS]);

impl Bits {
    const NONE: Self = Self([0; MIXED_WORDS]);

    fn zip_with(self, other: Self, by: impl Fn(u64, u64) -> u64) -> Self {
        Self(std::array::from_fn(|i| by(self.0[i], other.0[i])))
    }

    fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    /// The first sector of each run of bits that are set.
    fn starts(&self) -> impl Iterator<Item = u64> {
        let mut before = 0;
        let words = self.0.into_iter().enumerate();
        words.flat_map(move |(i, word)| {
            let mut starts = word & !(word << 1 | before);
            before = word >> 63;
            std::iter::from_fn(move || {
                let bit = (starts != 0).then(|| starts.trailing_zeros())?;
                starts &= starts - 1;
                Some(i as u64 * 64 + u64::from(bit))
            })
        })
    }
}

/// All sectors from this one on.
fn bits_from(sector: u64) -> Bits {
    let word = |i: usize| match sector.saturating_sub(i as u64 * 64) {
        0 => u64::MAX,
        bit @ 1..64 => u64::MAX << bit,
        _ => 0,
    };
    Bits(std::array::from_fn(word))
}
