//! The loader: chooses, reads, joins, moves. Threads are in `workers.rs`, what a saved position holds in `position.rs`.

use crate::position::{Epoch, Numbers, Position};
use crate::workers::Workers;
use crate::{
    BoxError, Collate, CollateFn, Dataset, RandomSampler, Result, Sampler, SequentialSampler, ToDevice,
};
use orkest_core::random::with_default_generator;
use orkest_core::{Device, Generator, Tensor, with_generator};
use serde_json::Value;
use std::fmt;
use std::iter::FusedIterator;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Goes through a data set in batches: PyTorch's `DataLoader`, which draws the same numbers and gives the same order.
///
/// `B` is what a batch is: `(Tensor, Tensor)`, inputs and labels, unless the data set says otherwise.
///
/// ```
/// use orkest_core::{Device, Tensor};
/// use orkest_data::{DataLoader, TensorDataset};
///
/// fn train(train_loader: &DataLoader) {
///     for epoch in 0..2 {
///         for (inputs, labels) in train_loader {
///             assert_eq!((inputs.shape(), labels.shape()), (&[5, 3].into(), &[5].into()));
///         }
///     }
/// }
///
/// let dataset = TensorDataset::new((Tensor::rand([20, 3], ()), Tensor::randint(0, 2, 20, ())));
/// let train_loader = DataLoader::new(dataset).batch_size(5).shuffle(true).device(&Device::cpu());
/// assert_eq!(train_loader.len(), 4);
/// train(&train_loader);
/// ```
///
/// # Random numbers
///
/// An epoch draws one number from the default generator, and with `shuffle` a second one, the seed of its order, as PyTorch
/// does. What [`Dataset::get`] and the collate function draw (augmentation) comes from a generator per batch, seeded with the
/// first number: so it is the same for any number of workers, and the default generator does not notice.
///
/// # Errors and panics
///
/// In a `for` loop, an item that cannot be read panics at the loop's line. [`DataLoader::try_iter`] gives results instead. Either
/// way the epoch is over then and all workers have ended. A panic in a worker is reported in the same way.
pub struct DataLoader<B = (Tensor, Tensor)> {
    read: Arc<Read<B>>,
    dataset_len: usize,
    batch_size: usize,
    drop_last: bool,
    sampler: Box<dyn Sampler>,
    order: Order,
    generator: Option<Mutex<Generator>>,
    num_workers: usize,
    prefetch_factor: usize,
    device: Option<(Device, fn(B, &Device) -> orkest_core::Result<B>)>,
    /// Where the next epoch begins, if somewhere else than at the start.
    resume: Mutex<Option<Position>>,
    /// The epoch begun last, unless it was finished.
    current: Mutex<Option<Arc<Epoch>>>,
}

/// Reads the items at some indices and joins them.
pub(crate) type Read<B> = dyn Fn(&[usize]) -> Result<B> + Send + Sync;

/// Where the sampler came from.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Order {
    Sequential,
    Shuffled,
    Given,
}

impl<B: Send + 'static> DataLoader<B> {
    /// Batches of one item in the data set's order; the methods below change that.
    pub fn new<D>(dataset: D) -> DataLoader<B>
    where
        D: Dataset + 'static,
        D::Item: Collate<Batch = B>,
    {
        let len = dataset.len();
        DataLoader::from_read(len, Arc::new(move |indices: &[usize]| dataset.batch(indices)))
    }

    /// With a function that joins items into a batch, or [`pad_collate`](crate::pad_collate).
    ///
    /// ```
    /// use orkest_data::{DataLoader, ListDataset};
    /// let words = ListDataset::new(["a", "b", "c"]);
    /// let loader = DataLoader::with_collate(words, |words: Vec<&str>| Ok(words.join("+"))).batch_size(2);
    /// assert_eq!(loader.iter().collect::<Vec<_>>(), ["a+b", "c"]);
    /// ```
    pub fn with_collate<D, F>(dataset: D, collate: F) -> DataLoader<B>
    where
        D: Dataset + 'static,
        F: CollateFn<D::Item, Batch = B> + Send + Sync + 'static,
    {
        let len = dataset.len();
        let read = move |indices: &[usize]| collate.collate(crate::dataset::items(&dataset, indices)?);
        DataLoader::from_read(len, Arc::new(read))
    }

    fn from_read(dataset_len: usize, read: Arc<Read<B>>) -> DataLoader<B> {
        DataLoader {
            read,
            dataset_len,
            batch_size: 1,
            drop_last: false,
            sampler: Box::new(SequentialSampler::new(dataset_len)),
            order: Order::Sequential,
            generator: None,
            num_workers: 0,
            prefetch_factor: 2,
            device: None,
            resume: Mutex::new(None),
            current: Mutex::new(None),
        }
    }

    /// Items per batch, 1 by default; the last batch has what is left.
    ///
    /// # Panics
    /// If it is 0.
    #[track_caller]
    pub fn batch_size(mut self, batch_size: usize) -> Self {
        assert!(batch_size > 0, "DataLoader: batch_size must be at least 1");
        self.batch_size = batch_size;
        self
    }

    /// A new random order in every epoch.
    ///
    /// # Panics
    /// If the loader has a sampler.
    #[track_caller]
    pub fn shuffle(mut self, shuffle: bool) -> Self {
        assert!(
            self.order != Order::Given,
            "DataLoader: a sampler already chooses the order; shuffle cannot"
        );
        self.order = if shuffle { Order::Shuffled } else { Order::Sequential };
        self.sampler = match shuffle {
            true => Box::new(RandomSampler::new(self.dataset_len)),
            false => Box::new(SequentialSampler::new(self.dataset_len)),
        };
        self
    }

    /// Lets a sampler choose the items of an epoch.
    ///
    /// # Panics
    /// If the loader shuffles.
    #[track_caller]
    pub fn sampler(mut self, sampler: impl Sampler + 'static) -> Self {
        assert!(
            self.order != Order::Shuffled,
            "DataLoader: shuffle already chooses the order; a sampler cannot"
        );
        (self.sampler, self.order) = (Box::new(sampler), Order::Given);
        self
    }

    /// Leaves out a last batch that is smaller than the others.
    pub fn drop_last(mut self, drop_last: bool) -> Self {
        self.drop_last = drop_last;
        self
    }

    /// Draws the order from this generator instead of the default one.
    pub fn generator(mut self, generator: Generator) -> Self {
        self.generator = Some(Mutex::new(generator));
        self
    }

    /// Threads that read ahead; with 0, the default, batches are read when they are asked for. The batches are the same.
    pub fn num_workers(mut self, num_workers: usize) -> Self {
        self.num_workers = num_workers;
        self
    }

    /// How many batches each worker reads ahead; 2 by default.
    ///
    /// # Panics
    /// If it is 0.
    #[track_caller]
    pub fn prefetch_factor(mut self, prefetch_factor: usize) -> Self {
        assert!(prefetch_factor > 0, "DataLoader: prefetch_factor must be at least 1");
        self.prefetch_factor = prefetch_factor;
        self
    }

    /// Moves every batch to a device.
    pub fn device(mut self, device: &Device) -> Self
    where
        B: ToDevice,
    {
        self.device = Some((device.clone(), B::to_device));
        self
    }

    /// The number of batches in an epoch.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        match self.drop_last {
            true => self.sampler.len() / self.batch_size,
            false => self.sampler.len().div_ceil(self.batch_size),
        }
    }

    /// True if an epoch has no batches.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The number of items in the data set: `len(loader.dataset)`.
    pub fn dataset_len(&self) -> usize {
        self.dataset_len
    }

    /// The batches of an epoch: what a `for` loop over `&loader` goes through.
    pub fn iter(&self) -> Batches<'_, B> {
        Batches(self.try_iter())
    }

    /// The batches of an epoch as results. After an error there are no more.
    ///
    /// ```
    /// use orkest_data::{DataLoader, Dataset, ListDataset, LoadError};
    /// # fn main() {
    /// let numbers = ListDataset::new(["1", "2", "three"]).map(|text| Ok(text.parse::<i64>()?));
    /// let loader = DataLoader::new(numbers).batch_size(2);
    /// let sum = || -> Result<f64, LoadError> {
    ///     let mut sum = 0.0;
    ///     for batch in loader.try_iter() {
    ///         sum += batch?.sum(..).item().unwrap();
    ///     }
    ///     Ok(sum)
    /// };
    /// assert_eq!(sum().unwrap_err().to_string(), "DataLoader: batch 1: item 2: invalid digit found in string");
    /// # }
    /// ```
    pub fn try_iter(&self) -> TryBatches<'_, B> {
        let position = lock(&self.resume).take().unwrap_or_else(|| Position {
            // PyTorch draws this seed of its workers in every epoch, with or without workers.
            base_seed: self.draw(seed),
            numbers: None,
            batch: 0,
        });
        let epoch = Arc::new(Epoch::new(position));
        *lock(&self.current) = Some(epoch.clone());
        let mut batches = TryBatches { loader: self, len: self.len(), epoch, job: None, workers: None };
        if self.num_workers > 0 && batches.remaining() > 0 {
            let (job, start) = (batches.job(), batches.epoch.batch());
            batches.workers = Some(Workers::spawn(job, self.num_workers, self.prefetch_factor, start));
        }
        batches
    }

    /// Where the loader is, as JSON: after a `load_state_dict` the next loop goes on with the batch that would have been next.
    ///
    /// What the default generator has drawn meanwhile is not part of it: that is
    /// [`rng_state`](orkest_core::rng_state). With both, a resumed run sees exactly what an uninterrupted one sees.
    ///
    /// ```
    /// use orkest_core::{Tensor, manual_seed, rng_state, set_rng_state};
    /// use orkest_data::{DataLoader, ListDataset};
    ///
    /// let loader = || DataLoader::new(ListDataset::new((0..5i64).collect::<Vec<_>>())).shuffle(true);
    /// let rest = |loader: &DataLoader<Tensor>| loader.iter().map(|b| b.item().unwrap()).collect::<Vec<_>>();
    ///
    /// let first = loader();
    /// let mut batches = first.iter();
    /// batches.next();
    /// batches.next();
    /// let saved = (first.state_dict(), rng_state());
    /// let expected: Vec<f64> = batches.map(|b| b.item().unwrap()).collect();
    ///
    /// manual_seed(12345); // another process
    /// let second = loader();
    /// set_rng_state(saved.1);
    /// second.load_state_dict(&saved.0).unwrap();
    /// assert_eq!(rest(&second), expected);
    /// assert_eq!(rest(&second).len(), 5); // the next epoch is whole
    /// ```
    pub fn state_dict(&self) -> Value {
        let resume = lock(&self.resume).clone();
        let position = resume.or_else(|| lock(&self.current).as_ref().map(|epoch| epoch.position()));
        let generator = self.generator.as_ref().map(|g| lock(g).state());
        crate::position::to_json(position.as_ref(), generator.as_ref(), self.dataset_len, self.batch_size)
    }

    /// Goes on where [`DataLoader::state_dict`] was taken.
    ///
    /// # Errors
    /// If it is no such state, or that of a loader over another number of items, with another batch size, or with a generator
    /// where this one has none; then nothing has changed.
    pub fn load_state_dict(&self, state: &Value) -> orkest_core::Result<()> {
        let (position, generator) = crate::position::from_json(state, self.dataset_len, self.batch_size)?;
        match (&self.generator, generator) {
            (Some(mine), Some(state)) => lock(mine).set_state(state),
            (None, None) => {}
            _ => return Err(orkest_core::Error::Data(
                "DataLoader: only one of the loaders, the saved one and this one, has a generator of its own"
                    .into(),
            )),
        }
        *lock(&self.current) = None;
        *lock(&self.resume) = position;
        Ok(())
    }

    /// A number from the loader's generator or else the default one.
    fn draw<R>(&self, draw: impl FnOnce(&mut Generator) -> R) -> R {
        match &self.generator {
            Some(generator) => draw(&mut lock(generator)),
            None => with_default_generator(draw),
        }
    }

    /// Where the numbers of an epoch's order come from.
    fn numbers(&self) -> Numbers {
        match &self.generator {
            _ if self.order == Order::Sequential => Numbers::Sequential,
            Some(generator) => Numbers::State(Box::new(lock(generator).state())),
            None => Numbers::Seed(self.draw(seed)),
        }
    }

    /// The items of an epoch. The first time, a generator of the loader's own moves on.
    fn sample(&self, epoch: &Epoch) -> Vec<usize> {
        let first = epoch.numbers().is_none();
        let mut generator = match epoch.numbers_or(|| self.numbers()) {
            Numbers::Sequential => Generator::default(),
            Numbers::Seed(seed) => Generator::new(seed),
            Numbers::State(state) => {
                let mut generator = Generator::default();
                generator.set_state(*state);
                generator
            }
        };
        let order = self.sampler.sample(&mut generator);
        if let (true, Some(own), true) = (first, &self.generator, self.order != Order::Sequential) {
            lock(own).set_state(generator.state());
        }
        order
    }
}

/// A seed as `torch.empty((), dtype=torch.int64).random_()` draws it.
fn seed(generator: &mut Generator) -> u64 {
    generator.random_u64() & i64::MAX as u64
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that is locked here is ever half changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All that is needed to read any batch of an epoch, on any thread.
pub(crate) struct Job<B> {
    read: Arc<Read<B>>,
    order: Vec<usize>,
    batch_size: usize,
    base_seed: u64,
    pub len: usize,
}

impl<B> Job<B> {
    /// Reads a batch, with random numbers of its own.
    pub fn load(&self, batch: usize) -> Result<B, LoadError> {
        let start = batch * self.batch_size;
        let end = (start + self.batch_size).min(self.order.len());
        let mut generator = Generator::new(self.base_seed.wrapping_add(batch as u64));
        with_generator(&mut generator, || (self.read)(&self.order[start..end]))
            .map_err(|source| LoadError { batch, source })
    }
}

/// The batches of an epoch as results: [`DataLoader::try_iter`].
pub struct TryBatches<'a, B> {
    loader: &'a DataLoader<B>,
    len: usize,
    epoch: Arc<Epoch>,
    /// Made when the first batch is asked for: PyTorch draws the order then, and not earlier.
    job: Option<Arc<Job<B>>>,
    workers: Option<Workers<B>>,
}

impl<B: Send + 'static> TryBatches<'_, B> {
    fn remaining(&self) -> usize {
        self.len.saturating_sub(self.epoch.batch())
    }

    fn job(&mut self) -> Arc<Job<B>> {
        let (loader, epoch, len) = (self.loader, &self.epoch, self.len);
        let make = || {
            Arc::new(Job {
                read: loader.read.clone(),
                order: loader.sample(epoch),
                batch_size: loader.batch_size,
                base_seed: epoch.base_seed,
                len,
            })
        };
        self.job.get_or_insert_with(make).clone()
    }

    fn load(&mut self, batch: usize) -> Result<B, LoadError> {
        let loaded = match &mut self.workers {
            Some(workers) => workers.next(batch)?,
            None => self.job().load(batch)?,
        };
        match &self.loader.device {
            Some((device, to_device)) => {
                to_device(loaded, device).map_err(|e| LoadError { batch, source: e.into() })
            }
            None => Ok(loaded),
        }
    }

    /// Ends the epoch: there is nothing to go on with.
    fn finish(&mut self) {
        self.len = 0;
        self.workers = None;
        let mut current = lock(&self.loader.current);
        if current.as_ref().is_some_and(|epoch| Arc::ptr_eq(epoch, &self.epoch)) {
            *current = None;
        }
    }
}

impl<B: Send + 'static> Iterator for TryBatches<'_, B> {
    type Item = Result<B, LoadError>;

    fn next(&mut self) -> Option<Self::Item> {
        let batch = self.epoch.batch();
        if batch >= self.len {
            self.finish();
            return None;
        }
        let loaded = self.load(batch);
        match loaded {
            Ok(_) => self.epoch.advance(),
            Err(_) => self.finish(),
        }
        Some(loaded)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        // An error ends the epoch early.
        (0, Some(self.remaining()))
    }
}

impl<B: Send + 'static> FusedIterator for TryBatches<'_, B> {}

/// The batches of an epoch: [`DataLoader::iter`].
pub struct Batches<'a, B>(TryBatches<'a, B>);

impl<B: Send + 'static> Iterator for Batches<'_, B> {
    type Item = B;

    #[track_caller]
    fn next(&mut self) -> Option<B> {
        match self.0.next()? {
            Ok(batch) => Some(batch),
            Err(e) => panic!("{e} (try_iter() gives errors as values)"),
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let remaining = self.0.remaining();
        (remaining, Some(remaining))
    }
}

impl<B: Send + 'static> ExactSizeIterator for Batches<'_, B> {}
impl<B: Send + 'static> FusedIterator for Batches<'_, B> {}

impl<'a, B: Send + 'static> IntoIterator for &'a DataLoader<B> {
    type Item = B;
    type IntoIter = Batches<'a, B>;

    fn into_iter(self) -> Batches<'a, B> {
        self.iter()
    }
}

impl<B> fmt::Debug for DataLoader<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DataLoader")
            .field("dataset_len", &self.dataset_len)
            .field("batch_size", &self.batch_size)
            .field("order", &self.order)
            .field("drop_last", &self.drop_last)
            .field("num_workers", &self.num_workers)
            .finish_non_exhaustive()
    }
}

/// A batch that could not be made.
#[derive(Debug)]
pub struct LoadError {
    pub(crate) batch: usize,
    pub(crate) source: BoxError,
}

impl LoadError {
    /// The number of the batch in its epoch, from 0.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// What the data set answered.
    pub fn into_cause(self) -> BoxError {
        match self.source.downcast::<crate::dataset::ItemError>() {
            Ok(item) => item.source,
            Err(source) => source,
        }
    }
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DataLoader: batch {}: {}", self.batch, self.source)
    }
}

impl std::error::Error for LoadError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.source() // its text is part of this one's
    }
}

impl From<LoadError> for orkest_core::Error {
    fn from(e: LoadError) -> orkest_core::Error {
        orkest_core::Error::Data(e.to_string())
    }
}
