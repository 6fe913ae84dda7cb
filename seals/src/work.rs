//! Work on several threads whose results come in the order of the tasks.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::mpsc::{Receiver, RecvError, channel};
use std::sync::{Mutex, PoisonError};
use std::thread;

use avhdx::{Error, ErrorKind, Result};

/// How many tasks are ahead of the oldest that is not complete, for each thread.
const AHEAD: u64 = 4;

/// What comes next.
pub(crate) enum Next<T, R> {
    /// Work for a thread.
    Task(T),
    /// A result that takes no work.
    Done(R),
}

/// Runs tasks on so many threads, and passes the results on in order.
pub(crate) fn in_order<T: Send, R: Send>(
    threads: usize,
    mut next: impl FnMut() -> Result<Option<Next<T, R>>>,
    work: impl Fn(T) -> Result<R> + Sync,
    mut take: impl FnMut(R) -> Result<()>,
) -> Result<()> {
    let (give, tasks) = channel::<(u64, T)>();
    let (finish, finished) = channel();
    let (tasks, work) = (Mutex::new(tasks), &work);
    thread::scope(|scope| {
        let tasks = &tasks;
        for _ in 0..threads.max(1) {
            let finish = finish.clone();
            scope.spawn(move || {
                while let Ok((number, task)) = receive(tasks) {
                    let result = catch_unwind(AssertUnwindSafe(|| work(task)));
                    if finish.send((number, result)).is_err() {
                        break;
                    }
                }
            });
        }
        // Dropped at the end, which ends the threads.
        let give = give;
        let (mut given, mut taken, mut is_all) = (0, 0, false);
        let mut waiting: BTreeMap<u64, R> = BTreeMap::new();
        loop {
            while !is_all && given - taken < AHEAD * threads.max(1) as u64 {
                match next()? {
                    None => is_all = true,
                    Some(Next::Done(result)) => {
                        waiting.insert(given, result);
                        given += 1;
                    }
                    Some(Next::Task(task)) => {
                        let is_given = give.send((given, task)).is_ok();
                        debug_assert!(is_given, "the threads wait for tasks");
                        given += 1;
                    }
                }
            }
            if let Some(result) = waiting.remove(&taken) {
                taken += 1;
                take(result)?;
            } else if is_all && taken == given {
                return Ok(());
            } else {
                let (number, result) = finished.recv().map_err(Error::other)?;
                let result: Result<R> = result.unwrap_or_else(repeat);
                waiting.insert(number, result?);
            }
        }
    })
}

fn receive<T>(tasks: &Mutex<Receiver<T>>) -> Result<T, RecvError> {
    tasks.lock().unwrap_or_else(PoisonError::into_inner).recv()
}

fn repeat<R>(panic: Box<dyn Any + Send>) -> R {
    resume_unwind(panic)
}

/// The number of threads that is used if none is asked for.
pub(crate) fn default_threads() -> usize {
    thread::available_parallelism().map_or(2, |threads| threads.get().max(2))
}

type Callback<'a> = dyn FnMut(u64, u64) -> ControlFlow<()> + Send + 'a;

/// The caller's callback, if there is one.
#[derive(Default)]
pub(crate) struct Listener<'a>(Option<Box<Callback<'a>>>);

impl<'a> Listener<'a> {
    pub(crate) fn new(on: impl FnMut(u64, u64) -> ControlFlow<()> + Send + 'a) -> Self {
        Self(Some(Box::new(on)))
    }

    /// Tells how many bytes of disks are done; a request to stop becomes an error.
    pub(crate) fn report(&mut self, done: u64, total: u64) -> Result<()> {
        match self.0.as_mut().map(|on| on(done, total)) {
            Some(ControlFlow::Break(())) => {
                Err(Error::new(ErrorKind::Cancelled, "op.cancelled", "stopped as asked"))
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Debug for Listener<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Listener").field(&self.0.is_some()).finish()
    }
}
