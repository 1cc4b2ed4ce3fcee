//! Threads that read batches ahead.
//!
//! With `n` workers, batch `i` belongs to worker `i mod n`, which puts its batches into a queue of its own. Taking from the queues in
//! turn gives the batches in order, whoever is faster.

use crate::loader::{Job, LoadError};
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

pub(crate) struct Workers<B> {
    queues: Vec<Receiver<Result<B, LoadError>>>,
    threads: Vec<JoinHandle<()>>,
    start: usize,
}

impl<B: Send + 'static> Workers<B> {
    /// Starts `n` workers that read the batches from `start` on.
    pub fn spawn(job: Arc<Job<B>>, n: usize, prefetch: usize, start: usize) -> Workers<B> {
        let mut workers = Workers { queues: Vec::new(), threads: Vec::new(), start };
        for w in 0..n.min(job.len - start) {
            let (sender, receiver) = sync_channel(prefetch.min(job.len)); // memory for all places is taken at once
            let job = job.clone();
            let work = move || work(&job, (start + w..job.len).step_by(n), &sender);
            let thread = thread::Builder::new().name(format!("orkest-data-{w}")).spawn(work);
            workers.queues.push(receiver);
            workers.threads.push(thread.expect("the system can start a thread"));
        }
        workers
    }

    /// Waits for a batch; they must be asked for in order.
    pub fn next(&mut self, batch: usize) -> Result<B, LoadError> {
        let queue = &self.queues[(batch - self.start) % self.queues.len()];
        queue.recv().unwrap_or_else(|_| Err(LoadError { batch, source: "the worker has ended".into() }))
    }
}

impl<B> Drop for Workers<B> {
    /// Waits for the workers: each ends when it finds nobody listening, after the batch that it is reading.
    fn drop(&mut self) {
        self.queues.clear();
        for thread in self.threads.drain(..) {
            let _ = thread.join(); // panics were caught and reported
        }
    }
}

fn work<B>(job: &Job<B>, batches: impl Iterator<Item = usize>, queue: &SyncSender<Result<B, LoadError>>) {
    for batch in batches {
        let loaded = catch_unwind(AssertUnwindSafe(|| job.load(batch))).unwrap_or_else(|panic| {
            let source = format!("a worker panicked: {}", message(&*panic)).into();
            Err(LoadError { batch, source })
        });
        let failed = loaded.is_err();
        if queue.send(loaded).is_err() || failed {
            return;
        }
    }
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a message")
}
