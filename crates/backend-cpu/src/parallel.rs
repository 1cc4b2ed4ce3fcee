//! A small fork-join pool: the caller works too, and nobody waits for a worker that has nothing to do.
//!
//! Every thread has a share of the tasks, which lie side by side, and takes them one by one from a counter; who has done his own
//! takes from the others'. So a worker that wakes up late (or never, on a busy machine) costs nothing, and as a rule the same
//! thread works on the same part of a tensor in one operation after the other and finds it in its cache. Only one operation
//! uses the pool at a time; one that finds it taken, from inside a task or from another thread of the program, runs on its own
//! thread. Who runs a task never changes what it computes.

use orkest_core::{Error, Result};
use std::any::Any;
use std::cell::UnsafeCell;
use std::num::NonZero;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, fence};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// How long an idle worker looks for work before it sleeps: waking a sleeper costs the caller a system call of several
/// microseconds, and operations of a training step follow one another faster than this.
const SPIN: Duration = Duration::from_micros(40);

/// Ranges per thread in [`ranges`]: some slack lets a fast thread take from a slow one.
const RANGES_PER_THREAD: usize = 4;

/// The number of threads that take part in one operation, the caller included.
pub fn num_threads() -> usize {
    static COUNT: OnceLock<usize> = OnceLock::new();
    *COUNT.get_or_init(|| requested_threads().unwrap_or(None).unwrap_or_else(default_threads))
}

/// The value of `ORKEST_NUM_THREADS`, if set.
pub(crate) fn requested_threads() -> Result<Option<usize>> {
    match std::env::var("ORKEST_NUM_THREADS") {
        Ok(text) if !text.trim().is_empty() => match text.trim().parse() {
            Ok(n) if (1..=1024).contains(&n) => Ok(Some(n)),
            _ => Err(Error::Device(format!(
                "ORKEST_NUM_THREADS={text}: expected a number of threads from 1 to 1024"
            ))),
        },
        _ => Ok(None),
    }
}

/// Two threads on one core share its vector units: count cores where Linux tells.
fn default_threads() -> usize {
    let available = thread::available_parallelism().map_or(1, NonZero::get);
    let mut siblings: Vec<String> = (0..1024)
        .map_while(|cpu| {
            std::fs::read_to_string(format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"))
                .ok()
        })
        .collect();
    siblings.sort();
    siblings.dedup();
    if siblings.is_empty() { available } else { available.min(siblings.len()) }
}

/// Runs `f(0)`, `f(1)` .. `f(tasks - 1)`, on several threads if there are any; returns when all are done.
///
/// ```
/// use std::sync::atomic::{AtomicUsize, Ordering};
/// let sum = AtomicUsize::new(0);
/// orkest_cpu::parallel::for_each(10, |i| _ = sum.fetch_add(i, Ordering::Relaxed));
/// assert_eq!(sum.into_inner(), 45);
/// ```
///
/// # Panics
/// With the panic of a task, after all others have stopped.
pub fn for_each(tasks: usize, f: impl Fn(usize) + Sync) {
    run_tasks(tasks, &f);
}

/// Not generic: every loop over tasks is compiled once, where it is written.
fn run_tasks(tasks: usize, f: Task<'_>) {
    if tasks > 1 && num_threads() > 1 {
        let pool = Pool::global();
        if let Some(_taken) = pool.try_take() {
            return pool.run(tasks, f);
        }
    }
    (0..tasks).for_each(f);
}

/// Cuts `0..len` into ranges of at least `grain` and runs `f` on each; all at once on this thread if `len <= grain`.
///
/// Where the cuts are depends on the number of threads: not for sums.
pub fn ranges(len: usize, grain: usize, f: impl Fn(Range<usize>) + Sync) {
    run_ranges(len, grain, &f);
}

fn run_ranges(len: usize, grain: usize, f: &(dyn Fn(Range<usize>) + Sync)) {
    let grain = grain.max(1);
    let threads = num_threads();
    if len <= grain || threads == 1 {
        if len > 0 {
            f(0..len);
        }
        return;
    }
    // Rounded, so that ranges start at cache lines where the data does.
    let size = len.div_ceil(threads * RANGES_PER_THREAD).max(grain).next_multiple_of(64.min(grain));
    run_tasks(len.div_ceil(size), &|i| f(i * size..((i + 1) * size).min(len)));
}

/// On its own cache line, so that spinning on one does not slow the others.
#[repr(align(128))]
struct Line<T>(T);

type Task<'a> = &'a (dyn Fn(usize) + Sync);

struct Pool {
    /// Held by the operation that uses the pool.
    taken: Line<AtomicBool>,
    /// The door to the current job: `number << 32 | open << 31 | workers inside`.
    gate: Line<AtomicU64>,
    job: UnsafeCell<Job>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    crew: OnceLock<Crew>,
}

/// Who works: the threads besides the caller, and for each thread, the caller first, the next task of its share.
struct Crew {
    workers: Vec<Worker>,
    next: Vec<Line<AtomicUsize>>,
}

/// Written by the caller while the gate is closed and nobody is inside, read by those inside.
#[derive(Clone, Copy)]
struct Job {
    tasks: usize,
    /// How many shares there are: one for each thread, but none without a task.
    shares: usize,
    run: Task<'static>,
}

impl Job {
    /// The first task of a share.
    fn start(&self, share: usize) -> usize {
        self.tasks * share / self.shares
    }
}

struct Worker {
    thread: Thread,
    sleeping: &'static Line<AtomicBool>,
}

const OPEN: u64 = 1 << 31;
const INSIDE: u64 = OPEN - 1;

// SAFETY: `job` is guarded by `gate` as its doc says; everything else is Sync.
unsafe impl Sync for Pool {}

struct Taken<'a>(&'a Pool);

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.0.taken.0.store(false, Release);
    }
}

impl Pool {
    fn global() -> &'static Pool {
        static POOL: Pool = Pool {
            taken: Line(AtomicBool::new(false)),
            gate: Line(AtomicU64::new(0)),
            job: UnsafeCell::new(Job { tasks: 0, shares: 1, run: &|_| {} }),
            panic: Mutex::new(None),
            crew: OnceLock::new(),
        };
        &POOL
    }

    fn try_take(&self) -> Option<Taken<'_>> {
        // Lazily: a guard made in vain would release the pool under its user.
        (!self.taken.0.load(Relaxed) && !self.taken.0.swap(true, Acquire)).then(|| Taken(self))
    }

    /// Threads start with the first operation that is large enough. One that the system refuses is done without.
    fn crew(&'static self) -> &'static Crew {
        self.crew.get_or_init(|| {
            let next = (0..num_threads()).map(|_| Line(AtomicUsize::new(0))).collect();
            let workers = (1..num_threads())
                .map_while(|i| {
                    let sleeping: &'static Line<AtomicBool> =
                        Box::leak(Box::new(Line(AtomicBool::new(false))));
                    let worker = thread::Builder::new().name(format!("orkest-cpu-{i}"));
                    let handle = worker.spawn(move || self.work(i, sleeping)).ok()?;
                    Some(Worker { thread: handle.thread().clone(), sleeping })
                })
                .collect();
            Crew { workers, next }
        })
    }

    /// The caller's side: open the gate, work, close it, wait for those inside. The caller holds `taken`.
    fn run(&'static self, tasks: usize, f: Task<'_>) {
        let Crew { workers, next } = self.crew();
        // SAFETY: the lifetime is extended only as far as the end of this function, which does not return or unwind before the
        // last worker has left.
        let run = unsafe { std::mem::transmute::<Task<'_>, Task<'static>>(f) };
        let job = Job { tasks, shares: tasks.min(workers.len() + 1), run };
        for (share, next) in next[..job.shares].iter().enumerate() {
            next.0.store(job.start(share), Relaxed);
        }
        // SAFETY: the gate is closed and nobody is inside: the previous job waited for that.
        unsafe { *self.job.get() = job };
        let number = (self.gate.0.load(Relaxed) >> 32).wrapping_add(1);
        self.gate.0.store((number << 32) | OPEN, SeqCst);
        // Pairs with the fence in `work`: either the sleeper sees the open gate or we see that it sleeps.
        fence(SeqCst);
        for worker in workers.iter().filter(|w| w.sleeping.0.load(Relaxed)).take(tasks - 1) {
            if worker.sleeping.0.swap(false, SeqCst) {
                worker.thread.unpark();
            }
        }
        self.claim(&job, next, 0);
        self.gate.0.fetch_and(!OPEN, SeqCst);
        let mut looks = 0u32;
        while self.gate.0.load(Acquire) & INSIDE != 0 {
            looks += 1;
            if looks < 10_000 { std::hint::spin_loop() } else { thread::yield_now() }
        }
        let panic = self.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(panic) = panic {
            // `taken` is released by its guard as this unwinds.
            resume_unwind(panic);
        }
    }

    /// Runs tasks until none is left, those of the thread's own share first. A panic ends the job early and is kept for the caller.
    fn claim(&self, job: &Job, next: &[Line<AtomicUsize>], thread: usize) {
        let work = || {
            for i in 0..job.shares {
                let share = (thread + i) % job.shares;
                let (next, end) = (&next[share].0, job.start(share + 1));
                // Looking costs less than taking, where others take too.
                while next.load(Relaxed) < end {
                    let task = next.fetch_add(1, Relaxed);
                    if task < end {
                        (job.run)(task);
                    }
                }
            }
        };
        if let Err(panic) = catch_unwind(AssertUnwindSafe(work)) {
            for next in &next[..job.shares] {
                next.0.store(job.tasks, Relaxed);
            }
            self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic);
        }
    }

    /// A worker's life.
    fn work(&'static self, thread: usize, sleeping: &Line<AtomicBool>) {
        let mut done = 0;
        loop {
            let gate = self.wait(done, sleeping);
            done = gate >> 32;
            if self.gate.0.compare_exchange(gate, gate + 1, Acquire, Relaxed).is_err() {
                // Somebody else went in or the gate closed; look again, for the same job if it is still open.
                done = done.wrapping_sub(1);
                continue;
            }
            // SAFETY: we are inside, so the job stays as it is until we leave.
            let job = unsafe { &*self.job.get() };
            self.claim(job, &self.crew().next, thread);
            self.gate.0.fetch_sub(1, Release);
        }
    }

    /// Waits for an open gate with a number other than `done`.
    fn wait(&self, done: u64, sleeping: &Line<AtomicBool>) -> u64 {
        let fresh = || {
            let gate = self.gate.0.load(Acquire);
            (gate & OPEN != 0 && gate >> 32 != done).then_some(gate)
        };
        loop {
            let start = Instant::now();
            while start.elapsed() < SPIN {
                for _ in 0..64 {
                    if let Some(gate) = fresh() {
                        return gate;
                    }
                    std::hint::spin_loop();
                }
            }
            sleeping.0.store(true, SeqCst);
            fence(SeqCst);
            while sleeping.0.load(SeqCst) {
                if let Some(gate) = fresh() {
                    sleeping.0.store(false, SeqCst);
                    return gate;
                }
                thread::park();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    #[test]
    fn every_task_runs_once() {
        for tasks in [0, 1, 2, 3, 100, 1000] {
            let counts: Vec<AtomicU32> = (0..tasks).map(|_| AtomicU32::new(0)).collect();
            for_each(tasks, |i| {
                counts[i].fetch_add(1, Relaxed);
            });
            assert!(counts.iter().all(|c| c.load(Relaxed) == 1), "{tasks}");
        }
    }

    #[test]
    fn ranges_cover_everything_once() {
        for (len, grain) in [(0, 1), (1, 1), (1000, 1), (1000, 7), (1000, 1000), (100_001, 64)] {
            let counts: Vec<AtomicU32> = (0..len).map(|_| AtomicU32::new(0)).collect();
            ranges(len, grain, |r| {
                for i in r {
                    counts[i].fetch_add(1, Relaxed);
                }
            });
            assert!(counts.iter().all(|c| c.load(Relaxed) == 1), "{len} {grain}");
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        for _ in 0..20 {
            let caught = catch_unwind(|| for_each(64, |i| assert!(i != 13, "thirteen")));
            let message = *caught.unwrap_err().downcast::<&str>().unwrap();
            assert_eq!(message, "thirteen");
            every_task_runs_once();
        }
    }

    #[test]
    fn nested_and_concurrent_calls_finish() {
        let total = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        for_each(8, |_| for_each(4, |_| _ = total.fetch_add(1, Relaxed)));
                    }
                });
            }
        });
        assert_eq!(total.load(Relaxed), 4 * 200 * 32);
    }

    #[test]
    fn sleeping_workers_wake_up() {
        for _ in 0..50 {
            thread::sleep(Duration::from_micros(300));
            every_task_runs_once();
        }
    }
}
