//! The chain's own index: which layer answers for which sectors, found once.
//!
//! The disk as a stack of layers has it is cut into spans, none longer than a block of any of them. The answer
//! for a span is a list of runs of sectors, a word each. The first who asks has the layers asked one after the
//! other, no further down than needed for the sectors that are read, but each of them about the whole span:
//! that costs it no more. What nobody above answered for is then left open, and whoever needs it goes on from
//! there.
//!
//! Layers cannot change, but for a tip that is open for writing. Whenever that changes in who answers, the
//! answers about the spans it concerns go, before the write returns; and one that was being found out at that
//! moment is not kept. While a tip changes all the time only what lies below it is kept.
//!
//! Nothing is remembered of errors: a layer that has one for any part of a span keeps the span open from
//! there on, and its reads walk through the layers as if there were no index.

use super::resolve::{Found, Place, Sink, walk};
use crate::answers::{Answer, Known, Packed, Runs, Sectors, SpanKey, Spans, word};
use crate::chain::{Link, Stack};
use crate::error::Result;
use crate::image::Owner;
use crate::tables::{Load, Reach};
use crate::types::DiskOffset;

/// Runs that are looked up at once.
const AT_ONCE: usize = 16;

impl Stack {
    /// Hands on the runs that the `len` bytes at `at` start with, and says how many bytes that was. They lie
    /// within the disk and are not none.
    pub(crate) fn some_runs<'a, R: Reach>(
        &'a self,
        reach: R,
        at: DiskOffset,
        len: u64,
        sink: &mut impl Sink<'a>,
    ) -> Result<u64, R::Stop> {
        let Some(asked) = self.asked(self.tip, at, len) else {
            return Ok(sink.found(walk(reach, self.links(), at, len)?)?);
        };
        let known = asked.known(sink)?;
        if known > 0 {
            self.tally.hit();
            return Ok(known);
        }
        self.tally.miss();
        if self.tip().is_quiet() {
            asked.find_out(reach, sink)
        } else {
            self.beside_the_index(reach, at, len, sink)
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
    pub(crate) fn known_run(&self, at: DiskOffset, len: u64) -> Option<Found<'_>> {
        let asked = self.asked(self.tip, at, len)?;
        if asked.end - asked.from < len {
            return None;
        }
        match asked.first_run()? {
            (found, Ends::Later) => Some(found),
            (_, Ends::Here) => None,
        }
    }

    /// The run that these bytes start with. They are not none.
    pub(crate) fn first_run(&self, at: DiskOffset, len: u64) -> Result<Found<'_>> {
        let asked = self.asked(self.tip, at, len);
        if let Some(asked) = &asked {
            // One that goes on to the end of its span may go on behind it, which is not known here.
            if let Some((found, ends)) = asked.first_run()
                && (matches!(ends, Ends::Here) || found.len == len)
            {
                self.tally.hit();
                return Ok(found);
            }
            self.tally.miss();
        }
        // Long runs need not be remembered piece by piece.
        let found = walk(Load, self.links(), at, len)?;
        if let Some(asked) = asked
            && asked.from + found.len < asked.span
            && self.tip().is_quiet()
        {
            Asked { end: asked.from + found.len, ..asked }.learn(Load);
        }
        Ok(found)
    }

    /// The question who answers for the first of these bytes, as many as lie in one span, as the layers from
    /// `from` on have them; `None` where nothing is kept of that.
    #[inline]
    pub(crate) fn asked(&self, from: usize, at: DiskOffset, len: u64) -> Option<Asked<'_>> {
        let layers = &self.layers[from..];
        let Link { image: top, stack, span, .. } = layers.first()?;
        let size = top.layout().size();
        let is_worth_it = layers.len() > 1 || top.is_written();
        if !is_worth_it || layers.len() > word::LAYERS || at.0 >= size {
            return None;
        }
        let spans = top.budget().spans()?;
        let span_shift = span.trailing_zeros();
        let number = at.0 >> span_shift;
        let key = SpanKey::new(*stack, number)?;
        let start = number << span_shift;
        let here = (*span).min(size - start);
        Some(Asked {
            spans,
            layers,
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
pub(crate) struct Asked<'a> {
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
        match &runs[..count] {
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
        let after = words.partition_point(|word| word::start(*word) <= self.first());
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

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::mpsc::channel;
    use std::thread::scope;
    use std::time::Duration;

    use super::*;
    use crate::disk::Zeroing;
    use crate::tables::{Budget, Page};
    use crate::types::{FileOffset, MIB};
    use crate::{CreateOptions, DiffChain, Disk, LayerId, OpenOptions};

    /// Longer than what is not kept waiting takes.
    const PATIENCE: Duration = Duration::from_millis(100);

    /// A child open for writing over a base of one byte's value: its first block has the first sector of its
    /// own, and more of them than that are known to the index.
    fn pair(folder: &tempfile::TempDir) -> DiffChain {
        let paths = ["base.vhdx", "child.avhdx"].map(|name| folder.path().join(name));
        let base = CreateOptions::dynamic(8 * MIB).block_size(1 << 20).create(&paths[0]).unwrap();
        base.write_at(&[1; 2 << 20], 0).unwrap();
        base.close().unwrap();
        let child = CreateOptions::child_of(&base).unwrap().block_size(1 << 20);
        drop(base);
        drop(child.create(&paths[1]).unwrap());
        let options = OpenOptions::new().writable(true).budget(Budget::new(8 << 20));
        let chain = options.open(&paths[1]).unwrap();
        chain.write_at(&[2; 512], 0).unwrap();
        chain
    }

    fn byte(chain: &DiffChain, sector: u64) -> u8 {
        let mut bytes = [0xAA; 512];
        chain.read_at(&mut bytes, sector * 512).unwrap();
        assert!(bytes.iter().all(|byte| *byte == bytes[0]));
        bytes[0]
    }

    fn asked(stack: &Stack, at: u64, len: u64) -> Asked<'_> {
        stack.asked(stack.tip, DiskOffset(at), len).unwrap()
    }

    /// Does something when it comes to the tables of this layer.
    #[derive(Clone, Copy)]
    struct Before<'a>(LayerId, &'a dyn Fn());

    impl Reach for Before<'_> {
        type Stop = crate::Error;

        fn is_proven(self) -> bool {
            true
        }

        fn page<T>(
            self,
            image: &crate::image::Core,
            at: FileOffset,
            epoch: crate::tables::Epoch,
            look: impl FnOnce(&Page) -> T,
        ) -> Result<T> {
            if image.id() == self.0 {
                (self.1)();
            }
            Load.page(image, at, epoch, look)
        }
    }

    /// What is known in part when a write begins is not gone on with and kept when it is over.
    #[test]
    fn what_is_found_out_from_what_was_known_before_a_change_is_not_kept() {
        let folder = tempfile::tempdir().unwrap();
        let chain = pair(&folder);
        // Who asked for the first sector left the others open.
        asked(&chain.stack(), 0, 512).learn(Load);
        assert!(chain.stack().known_run(DiskOffset(0), 512).is_some());
        assert!(chain.stack().known_run(DiskOffset(512), 512).is_none());
        let base = chain.images().last().unwrap().id();
        scope(|scope| {
            // The writer comes as far as to where answers go.
            let tip = chain.tip();
            let mut held = Some(tip.budget().spans().unwrap().hold());
            let (done, writer) = channel();
            let chain = &chain;
            scope.spawn(move || done.send(chain.write_at(&[3; 4096], 4096)));
            std::thread::sleep(PATIENCE);
            let go_on = std::cell::RefCell::new(&mut held);
            asked(&chain.stack(), 512, 512).learn(Before(base, &|| {
                if go_on.borrow_mut().take().is_some() {
                    writer.recv().unwrap().unwrap();
                }
            }));
            assert!(held.is_none(), "the base was asked");
        });
        assert_eq!([0, 1, 7, 8, 15, 16].map(|sector| byte(&chain, sector)), [2, 1, 1, 3, 3, 1]);
    }

    /// A change that another made a moment ago, so that there is nothing left to do, is seen when one returns
    /// all the same.
    #[test]
    fn nobody_returns_before_answers_go_that_another_made_wrong() {
        type Change = fn(&DiffChain);
        let cases: [(u64, u8, Change, Change); 3] = [
            (
                8,
                3,
                |c| c.write_at(&[3; 4096], 4096).unwrap(),
                |c| c.write_at(&[3; 4096], 4096).unwrap(),
            ),
            // The last sectors make it a whole block.
            (
                8,
                3,
                |c| c.write_at(&[3; MIB as usize - 512], 512).unwrap(),
                |c| c.write_at(&[3; 512], 4096).unwrap(),
            ),
            (
                0,
                0,
                |c| c.discard(0..MIB).unwrap(),
                |c| c.write_zeroes(0..512, Zeroing::KeepSpace).unwrap(),
            ),
        ];
        for (i, (sector, expected, first, second)) in cases.into_iter().enumerate() {
            let folder = tempfile::tempdir().unwrap();
            let chain = pair(&folder);
            asked(&chain.stack(), 0, MIB).learn(Load);
            assert!(chain.stack().known_run(DiskOffset(sector * 512), 512).is_some());
            let found = scope(|scope| {
                let tip = chain.tip();
                let held = tip.budget().spans().unwrap().hold();
                let chain = &chain;
                scope.spawn(move || first(chain));
                std::thread::sleep(PATIENCE);
                let second = scope.spawn(move || {
                    second(chain);
                    byte(chain, sector)
                });
                std::thread::sleep(PATIENCE);
                drop(held);
                second.join().unwrap()
            });
            assert_eq!(found, expected, "case {i}");
        }
    }
}
