//! The loader as its users see it: PyTorch's order, the same batches for any number of workers, errors, resuming.
//!
//! The process-wide generator belongs to one test at a time here.

use orkest_core::random::with_default_generator;
use orkest_core::{DType, Device, Generator, Tensor, manual_seed, rng_state, set_rng_state};
use orkest_data::{
    DataLoader, Dataset, ListDataset, RandomSampler, Result, TensorDataset, pad_collate, progress,
};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

static GENERATOR: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    GENERATOR.lock().unwrap_or_else(PoisonError::into_inner)
}

fn numbers(n: i64) -> TensorDataset<Tensor> {
    TensorDataset::new(Tensor::arange(0, n, 1, ()))
}

fn epoch(loader: &DataLoader<Tensor>) -> Vec<Vec<i64>> {
    loader.iter().map(|batch| batch.to_vec().unwrap()).collect()
}

/// The next `torch.randint(0, 1000000, (1,))`: tells whether as many numbers have been drawn as in PyTorch.
fn next_number() -> i64 {
    with_default_generator(|g| g.randint(0, 1_000_000, 1)[0])
}

#[test]
fn reading_ahead_ends_with_the_epoch() {
    let _alone = alone();
    let loader =
        DataLoader::new(ListDataset::new(vec![1i64, 2, 3])).num_workers(2).prefetch_factor(usize::MAX);
    assert_eq!(loader.iter().map(|batch| batch.item().unwrap()).collect::<Vec<_>>(), [1.0, 2.0, 3.0]);
}

#[test]
fn a_shuffle_is_pytorchs_for_any_number_of_workers() {
    let _alone = alone();
    for workers in [0, 1, 2, 5] {
        manual_seed(7);
        let loader = DataLoader::new(numbers(10)).batch_size(3).shuffle(true).num_workers(workers);
        assert_eq!(loader.len(), 4);
        assert_eq!(epoch(&loader), [vec![3, 2, 7], vec![8, 6, 1], vec![5, 9, 0], vec![4]]);
        assert_eq!(epoch(&loader), [vec![1, 3, 5], vec![2, 8, 9], vec![6, 7, 4], vec![0]]);
        assert_eq!(epoch(&loader), [vec![9, 2, 7], vec![1, 6, 0], vec![3, 5, 4], vec![8]]);
        assert_eq!(next_number(), 296_008);
    }
}

#[test]
fn without_a_shuffle_an_epoch_draws_one_number_all_the_same() {
    let _alone = alone();
    manual_seed(7);
    let loader = DataLoader::new(numbers(4)).batch_size(3);
    for _ in 0..2 {
        assert_eq!(epoch(&loader), [vec![0, 1, 2], vec![3]]);
    }
    assert_eq!(next_number(), 953_283);
}

#[test]
fn a_generator_of_its_own_is_used_as_in_pytorch() {
    let _alone = alone();
    manual_seed(7);
    let loader = DataLoader::new(numbers(10)).batch_size(3).shuffle(true).generator(Generator::new(5));
    assert_eq!(epoch(&loader), [vec![7, 4, 8], vec![1, 2, 3], vec![6, 5, 9], vec![0]]);
    assert_eq!(epoch(&loader), [vec![2, 1, 6], vec![3, 5, 9], vec![4, 7, 8], vec![0]]);
    assert_eq!(epoch(&loader), [vec![4, 3, 2], vec![7, 9, 1], vec![6, 8, 5], vec![0]]);
    assert_eq!(next_number(), 741_615); // nothing was drawn here

    let even = DataLoader::new(numbers(8)).batch_size(4).shuffle(true).generator(Generator::new(5));
    assert_eq!(epoch(&even), [[7, 4, 1, 3], [2, 0, 6, 5]]);
    assert_eq!(epoch(&even), [[7, 6, 5, 2], [4, 3, 1, 0]]);
    assert_eq!(epoch(&even), [[6, 0, 3, 7], [5, 1, 4, 2]]);
}

#[test]
fn two_loaders_side_by_side_draw_in_pytorchs_order() {
    let _alone = alone();
    manual_seed(3);
    let loader = || DataLoader::new(numbers(5)).shuffle(true);
    let (a, b) = (loader(), loader());
    let pairs: Vec<_> = a.iter().zip(&b).map(|(x, y)| (x.item().unwrap(), y.item().unwrap())).collect();
    assert_eq!(pairs, [(2.0, 3.0), (4.0, 1.0), (0.0, 4.0), (3.0, 0.0), (1.0, 2.0)]);
}

#[test]
fn drop_last_leaves_out_the_small_batch() {
    let _alone = alone();
    manual_seed(7);
    let loader = DataLoader::new(numbers(10)).batch_size(3).shuffle(true).drop_last(true);
    assert_eq!((loader.len(), loader.dataset_len()), (3, 10));
    assert_eq!(epoch(&loader), [[3, 2, 7], [8, 6, 1], [5, 9, 0]]);
    let short = DataLoader::new(numbers(2)).batch_size(3).drop_last(true).num_workers(2);
    assert!(short.is_empty() && epoch(&short).is_empty());
    assert!(epoch(&DataLoader::new(numbers(0)).shuffle(true)).is_empty());
}

/// Draws a random number for every item.
struct Noisy;

impl Dataset for Noisy {
    type Item = (i64, Tensor);

    fn len(&self) -> usize {
        13
    }

    fn get(&self, index: usize) -> Result<(i64, Tensor)> {
        Ok((index as i64, Tensor::rand(2, ())))
    }
}

#[test]
fn random_items_are_the_same_for_any_number_of_workers() {
    let _alone = alone();
    let run = |workers: usize| {
        manual_seed(11);
        let loader = DataLoader::new(Noisy).batch_size(2).shuffle(true).num_workers(workers);
        let mut seen = Vec::new();
        for _ in 0..2 {
            for (index, noise) in &loader {
                seen.push((index.to_vec::<i64>().unwrap(), noise.to_vec::<f32>().unwrap()));
                next_number(); // the loop draws too
            }
        }
        (seen, next_number())
    };
    let expected = run(0);
    assert_ne!(expected.0[0].1, expected.0[1].1);
    assert_ne!(expected.0[0].1, expected.0[7].1);
    for workers in [1, 3, 20] {
        assert_eq!(run(workers), expected);
    }
}

#[test]
fn an_error_ends_the_epoch() {
    let _alone = alone();
    let texts: Vec<String> = (0..20).map(|i| if i == 9 { "nine".into() } else { i.to_string() }).collect();
    for workers in [0, 1, 3] {
        let read = Arc::new(AtomicUsize::new(0));
        let count = read.clone();
        let dataset = ListDataset::new(texts.clone()).map(move |text| {
            count.fetch_add(1, Ordering::Relaxed);
            Ok(text.parse::<i64>()?)
        });
        let loader = DataLoader::new(dataset).batch_size(2).num_workers(workers);
        let mut batches = loader.try_iter();
        for _ in 0..4 {
            batches.next().unwrap().unwrap();
        }
        let error = batches.next().unwrap().unwrap_err();
        assert_eq!(error.batch(), 4);
        assert_eq!(error.to_string(), "DataLoader: batch 4: item 9: invalid digit found in string");
        assert!(error.into_cause().is::<std::num::ParseIntError>());
        assert!(batches.next().is_none() && batches.next().is_none());
        let before = read.load(Ordering::Relaxed); // no worker is left that could go on reading
        std::thread::sleep(std::time::Duration::from_millis(5));
        assert_eq!(read.load(Ordering::Relaxed), before);
        assert!(loader.state_dict()["position"].is_null());
    }
}

#[test]
fn a_loop_panics_with_the_error_at_its_own_line() {
    let _alone = alone();
    let loader = DataLoader::new(ListDataset::new(["x"]).map(|text| Ok(text.parse::<i64>()?)));
    let panic = catch_unwind(AssertUnwindSafe(|| loader.iter().count())).unwrap_err();
    let message = panic.downcast_ref::<String>().unwrap();
    assert!(message.contains("batch 0: item 0: invalid digit") && message.contains("try_iter"), "{message}");
}

#[test]
fn a_panic_in_a_worker_reaches_the_user() {
    let _alone = alone();
    let dataset = ListDataset::new([1i64, 0, 3]).map(|x| Ok(100 / x));
    let loader = DataLoader::new(dataset).num_workers(2);
    let results: Vec<_> = loader.try_iter().collect();
    assert_eq!(results.len(), 2);
    assert_eq!(results[0].as_ref().unwrap().item().unwrap(), 100.0);
    let message = results[1].as_ref().unwrap_err().to_string();
    assert_eq!(message, "DataLoader: batch 1: a worker panicked: attempt to divide by zero");
}

#[test]
fn an_epoch_that_is_left_ends_its_workers() {
    let _alone = alone();
    let read = Arc::new(AtomicUsize::new(0));
    let count = read.clone();
    let dataset = ListDataset::new((0..1000i64).collect::<Vec<_>>()).map(move |x| {
        count.fetch_add(1, Ordering::Relaxed);
        Ok(x)
    });
    let loader = DataLoader::new(dataset).num_workers(2).prefetch_factor(3);
    assert_eq!(loader.iter().take(4).count(), 4);
    // What was taken, what fits into the queues, and one batch in each worker's hands.
    assert!(read.load(Ordering::Relaxed) <= 4 + 2 * 3 + 2);
    assert_eq!(loader.iter().count(), 1000);
}

#[test]
fn a_resumed_loader_goes_on_as_if_nothing_had_happened() {
    let _alone = alone();
    let make = |workers: usize, own: bool| {
        let loader = DataLoader::new(Noisy).batch_size(3).shuffle(true).num_workers(workers);
        if own { loader.generator(Generator::new(8)) } else { loader }
    };
    let rest = |loader: &DataLoader<(Tensor, Tensor)>, epochs: usize| {
        let batches = (0..epochs).flat_map(|_| loader.iter().collect::<Vec<_>>());
        let plain = |(x, y): (Tensor, Tensor)| (x.to_vec::<i64>().unwrap(), y.to_vec::<f32>().unwrap());
        batches.map(plain).collect::<Vec<_>>()
    };
    for (workers, own, done) in [(0, false, 0), (0, false, 2), (2, false, 3), (0, true, 2), (3, true, 5)] {
        manual_seed(21);
        let first = make(workers, own);
        let mut batches = first.iter();
        for _ in 0..done {
            batches.next();
        }
        let saved = (first.state_dict().to_string(), rng_state());
        drop(batches);

        let mut expected = Vec::new();
        for resumed_workers in [workers, 1] {
            manual_seed(99);
            let second = make(resumed_workers, own);
            set_rng_state(saved.1.clone());
            second.load_state_dict(&serde_json::from_str(&saved.0).unwrap()).unwrap();
            let seen = rest(&second, 3);
            if expected.is_empty() {
                manual_seed(21);
                let whole = make(workers, own);
                expected = rest(&whole, 3).split_off(done);
            }
            assert_eq!(seen, expected, "{workers} workers, own generator {own}, {done} batches done");
        }
    }
}

#[test]
fn a_state_of_something_else_is_refused() {
    let _alone = alone();
    let loader = DataLoader::new(numbers(10)).batch_size(3);
    let message = |state: &serde_json::Value| loader.load_state_dict(state).unwrap_err().to_string();
    assert!(message(&serde_json::json!({})).contains("dataset_len is missing"));
    let other = DataLoader::new(numbers(10)).batch_size(4).state_dict();
    assert!(message(&other).contains("batch_size 4, this one's is 3"));
    let own = DataLoader::new(numbers(10)).batch_size(3).generator(Generator::new(1)).state_dict();
    assert!(message(&own).contains("generator of its own"));
}

#[test]
fn samplers_choose_items() {
    let _alone = alone();
    let loader = DataLoader::new(numbers(5)).batch_size(4).sampler(RandomSampler::new(5).num_samples(12));
    assert_eq!(loader.len(), 3);
    let mut counts = [0; 5];
    epoch(&loader).concat().into_iter().for_each(|i| counts[i as usize] += 1);
    assert!(counts.iter().all(|n| (2..=3).contains(n)), "{counts:?}");
}

#[test]
fn batches_are_moved_to_the_device() {
    let _alone = alone();
    let device = Device::reference();
    let items = ListDataset::new([(vec![1i64, 2], "a"), (vec![3], "b")]);
    let loader = DataLoader::with_collate(items, pad_collate(9)).batch_size(2).device(&device).num_workers(1);
    let (tokens, lengths, names) = loader.iter().next().unwrap();
    assert_eq!((tokens.device(), lengths.device()), (&device, &device));
    assert_eq!(tokens.to_vec::<i64>().unwrap(), [1, 2, 3, 9]);
    assert_eq!(names, ["a", "b"]);
}

#[test]
fn batches_in_order_share_memory_with_the_data() {
    let _alone = alone();
    let x = Tensor::rand([6, 2], ());
    let loader = DataLoader::new(TensorDataset::new((x.clone(), Tensor::zeros(6, DType::I64)))).batch_size(4);
    let shapes: Vec<_> = progress(&loader, "test").map(|(x, y)| (x.shape().to_vec(), y.numel())).collect();
    assert_eq!(shapes, [(vec![4, 2], 4), (vec![2, 2], 2)]);
}
