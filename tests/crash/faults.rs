//! A failing host: each step of each workload in turn, in every way in which a host can fail it.
//!
//! The required result depends only on the step, the call in progress and the structure at the offset, as the
//! naive reader knows it: a failed payload write or a failed growth fails only that call, any
//! other failure poisons the image.

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;

use avhdx::ErrorKind;

use crate::outcomes::Explorer;
use crate::sim::{Arrived, Files, Refusal, SimHost, Step};
use crate::verdict;

/// The errors of a broken disk and of a full one.
pub const EIO: i32 = 5;
pub const ENOSPC: i32 = 28;

/// Which step of a history fails, and how.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Counted from where each history is explored.
    pub step: usize,
    pub code: i32,
    pub way: Way,
    /// Whether the machine gives up a failed write instead of trying again.
    pub gives_up: bool,
}

/// How a step fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Once, without any effect.
    Once,
    /// Once, with half of its effect.
    Half,
    /// Once, with all of its effect.
    All,
    /// With all later steps of its kind, until the host recovers.
    Lasting,
    /// With the loss of everything written since the last flush.
    Losing,
}

/// The call that the user of the disk made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    Open,
    Create,
    Read,
    /// A write, zeros or a discard.
    Change,
    /// A flush or the end of a session.
    Flush,
}

/// The result of a call.
#[derive(Debug)]
pub enum Met<T> {
    Done(T),
    /// It failed, and the image remains usable.
    Alone,
    /// It failed, and the image is poisoned.
    Poisoned,
}

/// The kind of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Read,
    Write,
    Length,
    Flush,
    Names,
}

/// The required result of a failed step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Must {
    /// The call fails alone.
    FailAlone,
    /// The call fails alone, or succeeds with a smaller step of the same kind.
    FailOrDoWithLess,
    /// The call fails alone, or succeeds by what else it knows.
    FailOrDoWithout,
    /// The call fails and the image is poisoned.
    Poison,
}

/// Makes steps of one history fail, and checks the results.
#[derive(Debug)]
pub struct Faults {
    plan: Option<Plan>,
    start: Arc<Files>,
    tip: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The kinds of the steps so far.
    steps: Vec<Kind>,
    /// Steps before this one are not counted.
    from: usize,
    /// How many steps changed something.
    touched: usize,
    calls: HashMap<ThreadId, Trace>,
    /// How many calls were started.
    begun: usize,
    /// The step that failed first.
    fired: Option<Step>,
    /// The position of that step in the record.
    fired_at: usize,
    is_lifted: bool,
    /// Whether a step failed that poisons the image, even if its call has not returned.
    is_poisoning: bool,
    is_poisoned: bool,
    was_reopened: bool,
    is_finished: bool,
    tally: Tally,
    places: Option<Places>,
}

/// Counts of histories with a failed step.
#[derive(Debug, Default)]
pub struct Tally {
    pub fired: usize,
    /// Calls that failed alone.
    pub alone: usize,
    /// Calls that poisoned the image.
    pub poisoned: usize,
    /// Calls that succeeded with less.
    pub less: usize,
    /// Failed opens and creates.
    pub unopened: usize,
    /// Outcomes of crashes after the failure.
    pub crashed: usize,
    pub complaints: Vec<String>,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.fired += other.fired;
        self.alone += other.alone;
        self.poisoned += other.poisoned;
        self.less += other.less;
        self.unopened += other.unopened;
        self.crashed += other.crashed;
        self.complaints.extend(other.complaints);
    }
}

/// The progress of a call.
#[derive(Debug)]
struct Trace {
    call: Call,
    /// Whether the last change of the file was in the headers or the log.
    is_in_log: bool,
    /// Whether a commit is in progress.
    is_committing: bool,
    refused: Option<(Step, Must)>,
    /// Whether another change of the length followed the refused one.
    tried_less: bool,
}

/// The places of the structures in the tip's file.
#[derive(Clone, Copy, Debug)]
struct Places {
    file: usize,
    log: (u64, u64),
    structures_end: u64,
}

thread_local! {
    static PLANNED: RefCell<Option<Planned>> = const { RefCell::new(None) };
}

/// The plan for the histories that this thread records, and those recorded so far.
struct Planned {
    plan: Option<Plan>,
    /// For each history by number, the step to count from if it is to have a failure.
    chosen: Vec<Option<usize>>,
    made: Vec<Arc<Faults>>,
}

/// The steps of a history.
#[derive(Debug)]
pub struct Steps {
    pub kinds: Vec<Kind>,
    pub from: usize,
    /// Whether it was completed.
    pub is_finished: bool,
}

/// Records without a failure and returns the steps of each history.
pub fn count(record: impl FnOnce()) -> Vec<Steps> {
    let made = with(None, Vec::new(), record);
    let steps = made.iter().map(|faults| {
        let mut state = faults.state();
        let kinds = std::mem::take(&mut state.steps);
        Steps { kinds, from: state.from, is_finished: state.is_finished }
    });
    steps.collect()
}

/// Records with a failure in each of the chosen histories.
pub fn fail(plan: Plan, chosen: Vec<Option<usize>>, record: impl FnOnce()) -> Tally {
    let mut tally = Tally::default();
    for faults in with(Some(plan), chosen, record) {
        tally += std::mem::take(&mut faults.state().tally);
    }
    tally
}

fn with(plan: Option<Plan>, chosen: Vec<Option<usize>>, record: impl FnOnce()) -> Vec<Arc<Faults>> {
    PLANNED.set(Some(Planned { plan, chosen, made: Vec::new() }));
    record();
    PLANNED.take().map(|planned| planned.made).unwrap_or_default()
}

impl Faults {
    /// Takes this thread's plan for its next history.
    pub fn planned(host: &SimHost, start: &Arc<Files>, tip: &Path) -> Option<Arc<Self>> {
        let faults = PLANNED.with_borrow_mut(|planned| {
            let planned = planned.as_mut()?;
            let from = planned.chosen.get(planned.made.len()).copied().flatten();
            let plan = planned.plan.zip(from);
            let faults = Arc::new(Self {
                plan: plan.map(|(plan, from)| Plan { step: from + plan.step, ..plan }),
                start: Arc::clone(start),
                tip: tip.to_owned(),
                state: Mutex::default(),
            });
            planned.made.push(Arc::clone(&faults));
            Some(faults)
        })?;
        let asked = Arc::clone(&faults);
        host.refuse(move |host, step| asked.meet(host, step));
        Some(faults)
    }

    /// Makes a call and checks its result.
    pub fn watch<T>(
        &self,
        host: &SimHost,
        call: Call,
        run: impl FnOnce() -> avhdx::Result<T>,
    ) -> Met<T> {
        let me = std::thread::current().id();
        self.locate(host);
        let trace = Trace {
            call,
            is_in_log: false,
            is_committing: false,
            refused: None,
            tried_less: false,
        };
        {
            let mut state = self.state();
            state.begun += 1;
            state.calls.insert(me, trace);
        }
        let result = run();
        let mut state = self.state();
        let Some(Trace { refused, tried_less, .. }) = state.calls.remove(&me) else {
            unreachable!("nobody else takes it")
        };
        let error = match (result, refused) {
            (Ok(done), None) => return Met::Done(done),
            (Ok(done), Some((_, Must::FailOrDoWithLess))) if tried_less => {
                state.tally.less += 1;
                return Met::Done(done);
            }
            (Ok(done), Some((_, Must::FailOrDoWithout))) => {
                state.tally.less += 1;
                return Met::Done(done);
            }
            (Ok(done), Some((step, _))) => {
                state.complain(format!("{call:?} returned no error after {step:?} failed"));
                return Met::Done(done);
            }
            (Err(error), None) if error.kind() == ErrorKind::Poisoned && state.is_poisoning => {
                state.is_poisoned = true;
                return Met::Poisoned;
            }
            // The tables may have been lost by the time they were read.
            (Err(_), None) if state.is_poisoning && state.has_lost_writes(self.plan) => {
                return Met::Poisoned;
            }
            (Err(error), None) => {
                state.complain(format!("{call:?}: {error}, and nothing had failed"));
                return Met::Alone;
            }
            (Err(error), Some(_)) => error,
        };
        let code = self.plan.map(|plan| plan.code);
        let source = std::error::Error::source(&error);
        let source = source.and_then(|source| source.downcast_ref::<std::io::Error>());
        let is_named = source.is_some_and(|source| source.raw_os_error() == code);
        if error.kind() != ErrorKind::Io || !is_named {
            state.complain(format!("{call:?}: {error} ({source:?}), not what the host said"));
        }
        match (call, refused) {
            (Call::Open | Call::Create, _) => {
                state.tally.unopened += 1;
                Met::Alone
            }
            (_, Some((_, Must::Poison))) => {
                state.tally.poisoned += 1;
                state.is_poisoned = true;
                Met::Poisoned
            }
            _ => {
                state.tally.alone += 1;
                Met::Alone
            }
        }
    }

    /// Checks that a poisoned image refuses a call and does not touch the file.
    pub fn must_refuse(&self, what: &str, run: &dyn Fn() -> avhdx::Result<()>) {
        self.must_be_quiet(what, || match run() {
            Err(error) if error.kind() == ErrorKind::Poisoned => {}
            other => self.complain(format!("{what} to a poisoned image: {other:?}")),
        });
    }

    pub fn must_be_quiet(&self, what: &str, run: impl FnOnce()) {
        let alone = self.alone();
        let before = self.state().touched;
        run();
        if self.is_still(alone) && self.state().touched != before {
            self.complain(format!("{what} to a poisoned image touched the file"));
        }
    }

    pub fn complain(&self, why: String) {
        self.state().complain(why);
    }

    pub fn has_fired(&self) -> bool {
        self.state().fired.is_some()
    }

    /// The position of the failed step in the record, if the record is complete.
    pub fn fired_at(&self) -> Option<usize> {
        let state = self.state();
        // A new length that took effect despite the error confuses the checks of the log.
        let is_longer = matches!(state.fired, Some(Step::SetLen { .. }))
            && self.plan.is_some_and(|plan| plan.way == Way::All);
        let is_known = state.fired.is_some() && !state.has_lost_writes(self.plan) && !is_longer;
        is_known.then_some(state.fired_at)
    }

    pub fn is_poisoned(&self) -> bool {
        self.state().is_poisoned
    }

    /// Records that the image is reopened; returns whether it was poisoned.
    pub fn reopened(&self) -> bool {
        let mut state = self.state();
        state.is_poisoning = false;
        state.was_reopened = true;
        std::mem::take(&mut state.is_poisoned)
    }

    /// Whether the host is still failing.
    pub fn lasts(&self) -> bool {
        let state = self.state();
        self.plan.is_some_and(|plan| plan.way == Way::Lasting) && !state.is_lifted
    }

    pub fn only_growth_fails(&self) -> bool {
        matches!(self.state().fired, Some(Step::SetLen { .. }))
    }

    /// Lets the host recover; returns whether the machine repeats what failed.
    pub fn lift_and_try_again(&self) -> bool {
        self.state().is_lifted = true;
        self.plan.is_none_or(|plan| !plan.gives_up)
    }

    /// Whether writes were lost that a process may still see in its tables.
    pub fn has_lost_writes(&self) -> bool {
        self.state().has_lost_writes(self.plan)
    }

    /// The number of calls so far if none is in progress.
    pub fn alone(&self) -> Option<usize> {
        let state = self.state();
        state.calls.is_empty().then_some(state.begun)
    }

    /// Whether no call has started since.
    pub fn is_still(&self, alone: Option<usize>) -> bool {
        alone.is_some_and(|begun| self.state().begun == begun)
    }

    pub fn look_from_here(&self) {
        let mut state = self.state();
        state.from = state.steps.len();
    }

    pub fn finish(&self, host: &SimHost) {
        host.refuse(|_, _| None);
        self.state().is_finished = true;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Finds the structures of the file once it exists.
    fn locate(&self, host: &SimHost) {
        if self.plan.is_none() || self.state().places.is_some() {
            return;
        }
        let files = host.files();
        let Some(file) = files.names.get(&self.tip) else { return };
        let Ok(layer) = verdict::layer(&files, &self.tip) else { return };
        let (log, structures_end) = (layer.log(), layer.structures_end());
        let log = (log.start, log.end);
        self.state().places = Some(Places { file: *file, log, structures_end });
    }

    /// Decides whether a step fails.
    fn meet(&self, host: &SimHost, step: Step) -> Option<Refusal> {
        let kind = Kind::of(step)?;
        let me = std::thread::current().id();
        let mut state = self.state();
        let number = state.steps.len();
        state.steps.push(kind);
        state.touched += usize::from(kind != Kind::Read);
        let plan = self.plan?;
        let places = state.places;
        if let Some(trace) = state.calls.get_mut(&me) {
            trace.note(step, places);
        }
        let is_now = match state.fired {
            None => number == plan.step,
            // A file that cannot be read at all is of no interest.
            Some(Step::Read { .. }) => false,
            Some(first) => {
                plan.way == Way::Lasting && !state.is_lifted && Kind::of(first) == Some(kind)
            }
        };
        if !is_now {
            return None;
        }
        if state.fired.is_none() {
            state.fired = Some(step);
            state.fired_at = host.mark();
            state.tally.fired += 1;
        }
        let Some(trace) = state.calls.get_mut(&me) else {
            let what = format!("{step:?} happened in no call of the user");
            state.complain(what);
            return None;
        };
        let must = trace.must(step, places, || {
            let layer = verdict::layer(&host.files(), &self.tip).ok();
            layer.and_then(|layer| layer.bitmaps().ok()).unwrap_or_default()
        });
        trace.refused.get_or_insert((step, must));
        trace.tried_less = false;
        state.is_poisoning |= must == Must::Poison;
        drop(state);
        if plan.way == Way::Losing && kind == Kind::Flush {
            host.lose(Explorer::durable((*self.start).clone(), &host.events()));
        }
        let arrived = match plan.way {
            Way::Once | Way::Lasting | Way::Losing => Arrived::Nothing,
            Way::Half => Arrived::Half,
            Way::All => Arrived::All,
        };
        Some(Refusal { code: plan.code, arrived })
    }
}

impl State {
    fn has_lost_writes(&self, plan: Option<Plan>) -> bool {
        let is_losing = plan.is_some_and(|plan| plan.way == Way::Losing);
        is_losing && matches!(self.fired, Some(Step::Flush(_)))
    }

    fn complain(&mut self, why: String) {
        let what = format!("{:?} failed: {why}", self.fired);
        self.tally.complaints.push(what);
    }
}

impl Trace {
    fn note(&mut self, step: Step, places: Option<Places>) {
        match step {
            Step::Write { at, .. } => {
                let log = places.map_or((0, 0), |places| places.log);
                let is_header = HEADERS.contains(&at);
                self.is_in_log = is_header || (log.0..log.1).contains(&at);
                // A change writes headers only at the start of a session.
                self.is_committing &= !is_header;
            }
            Step::SetLen { .. } => {
                self.is_in_log = false;
                self.tried_less = true;
            }
            // A session starts with flushes before and after its first log entry and after each of
            // its headers; the first flush of a commit follows any other step.
            Step::Flush(_) => self.is_committing |= !self.is_in_log,
            _ => {}
        }
    }

    fn must(&self, step: Step, places: Option<Places>, bitmaps: impl FnOnce() -> Vec<u64>) -> Must {
        match (self.call, step) {
            (Call::Open | Call::Create | Call::Read, _) => Must::FailAlone,
            (Call::Flush, _) => Must::Poison,
            // A parent's tables may tell that one flush is enough; two always are.
            (Call::Change, Step::Read { file, .. })
                if !self.is_committing && places.is_some_and(|places| file != places.file) =>
            {
                Must::FailOrDoWithout
            }
            (Call::Change, Step::Read { .. }) if !self.is_committing => Must::FailAlone,
            (Call::Change, Step::SetLen { .. }) => Must::FailOrDoWithLess,
            (Call::Change, Step::Write { file, at, .. }) if !self.is_committing => {
                let is_payload = places.is_some_and(|places| {
                    file == places.file
                        && at >= places.structures_end
                        && !bitmaps().iter().any(|bitmap| (*bitmap..bitmap + MIB).contains(&at))
                });
                if is_payload { Must::FailAlone } else { Must::Poison }
            }
            (Call::Change, _) => Must::Poison,
        }
    }
}

/// The range of both headers.
const HEADERS: std::ops::Range<u64> = 64 << 10..192 << 10;
const MIB: u64 = 1 << 20;

impl Kind {
    fn of(step: Step) -> Option<Self> {
        match step {
            Step::Read { .. } => Some(Self::Read),
            Step::Write { .. } => Some(Self::Write),
            Step::SetLen { .. } => Some(Self::Length),
            Step::Flush(_) => Some(Self::Flush),
            Step::Flushed(_) => None,
            Step::Name | Step::Sync => Some(Self::Names),
        }
    }
}
