//! What a chain that keeps answers about the image must know of its changes.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

use crate::answers::AnswerKey;
use crate::tables::Budget;

/// Questions in a row that must come without a change between them before answers are worth keeping.
const QUIET: u64 = 8;

/// Counts the changes in who answers for a place, and has the answers forgotten that they concern.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    /// What answers are kept under, and the bytes that each is about. More than one only while a chain changes
    /// from one stack of layers to another.
    kept: RwLock<Vec<(u64, u64)>>,
    changes: AtomicU64,
    /// The number of changes at the last question that no answer was known to, and such questions since.
    seen: AtomicU64,
    questions: AtomicU64,
}

impl Watch {
    pub(crate) fn start(&self, stack: u64, span: u64) {
        let mut kept = self.kept.write().unwrap_or_else(PoisonError::into_inner);
        if !kept.contains(&(stack, span)) {
            kept.push((stack, span));
        }
    }

    /// Nobody asks for what is kept under other numbers any more.
    pub(crate) fn only(&self, stack: u64) {
        let mut kept = self.kept.write().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|(other, _)| *other == stack);
    }

    /// A number that rises with each change.
    pub(crate) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// Whether several questions came since the last change, this one counted.
    pub(crate) fn is_quiet(&self) -> bool {
        let now = self.changes.load(Ordering::Relaxed);
        if self.seen.swap(now, Ordering::Relaxed) != now {
            self.questions.store(0, Ordering::Relaxed);
        }
        self.questions.fetch_add(1, Ordering::Relaxed) >= QUIET
    }

    /// Has forgotten what was known of these bytes of the disk: the tables say something else by now, which
    /// nobody has seen yet. Who found something out before the number rose either kept it before that and
    /// it goes, or does not keep it.
    pub(crate) fn changed(&self, budget: &Budget, bytes: Range<u64>) {
        let count = || _ = self.changes.fetch_add(1, Ordering::AcqRel);
        // Held until the number has risen: what is kept under a stack that comes later is found out later.
        let kept = self.kept.read().unwrap_or_else(PoisonError::into_inner);
        let Some(answers) = budget.answers().filter(|_| !kept.is_empty()) else { return count() };
        let keys = kept.iter().flat_map(|(stack, span)| {
            let numbers = bytes.start / span..bytes.end.div_ceil(*span);
            numbers.filter_map(|number| AnswerKey::new(*stack, number))
        });
        answers.drop_answers(keys, count);
    }
}
