//! Gradient checkpointing: what a segment's operations save is thrown away and computed again when the backward pass needs it.
//!
//! The segment's nodes, edges and rules are recorded as ever; only their saved tensors are missing. The first node that wants its own
//! runs the segment once more, with recording on, and what the operations of that run save is handed to the nodes by its position.
//! So gradients, their order and their sums are those of the plain graph, wherever they go: parameters, captured tensors,
//! second derivatives. A segment inside a segment keeps its inputs as one more saved entry of the outer one.

use super::mode::{GradMode, is_grad_enabled};
use super::node::{History, Saved, SavedTensors};
use crate::autocast::{Autocast, autocast_dtype};
use crate::random::{Generator, GeneratorState, rng_state, with_generator};
use crate::tensor::Tensor;
use smallvec::SmallVec;
use std::cell::RefCell;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Runs `f` without keeping what its operations save for the backward pass, which runs it a second time instead:
/// [`torch.utils.checkpoint`](https://docs.pytorch.org/docs/stable/checkpoint.html). Less memory, more time, the same gradients.
///
/// `f` must do the same both times. Random numbers are the same by themselves, and so is [`autocast`](crate::autocast()); what `f` changes outside
/// (running statistics) is changed twice. A model inside is captured as another handle: `let block = self.block.clone();`.
///
/// ```
/// use orkest_core::{Device, Tensor, checkpoint};
/// let x = Tensor::randn([8, 16], &Device::cpu()).requires_grad_(true);
/// let w = Tensor::randn([16, 16], &Device::cpu()).requires_grad_(true);
/// let weight = w.clone();
/// let y = checkpoint(move |x| x[0].linear(&weight, None).gelu().dropout(0.1, true), &[&x]);
/// y.square().sum(..).backward();
/// assert!(x.grad().is_some() && w.grad().is_some());
/// ```
///
/// # Panics
/// In `backward`, if the second run of `f` records other operations than the first.
#[track_caller]
pub fn checkpoint<R>(f: impl Fn(&[Tensor]) -> R + Send + Sync + 'static, inputs: &[&Tensor]) -> R {
    let inputs: Vec<Tensor> = inputs.iter().map(|&t| t.clone()).collect();
    if !is_grad_enabled() {
        return f(&inputs);
    }
    let constants: Vec<Tensor> = inputs.iter().map(Tensor::detach).collect();
    let wants_grad = inputs.iter().map(Tensor::requires_grad).collect();
    let outer = CURRENT.with_borrow_mut(|current| current.as_mut().map(|c| c.add("checkpoint", &constants)));
    let f = Arc::new(f);
    let again = f.clone();
    let segment = Arc::new(Segment {
        run: Box::new(move |inputs: &[Tensor]| drop(again(inputs))),
        inputs: match outer {
            Some((outer, entry)) => Source::Entry(outer, entry),
            None => Source::Kept(constants),
        },
        wants_grad,
        random: Box::new(rng_state()),
        autocast: autocast_dtype(),
        entries: Mutex::default(),
        recomputed: Mutex::default(),
    });
    let _recording = Recording::start(Current { segment, collected: None });
    f(&inputs)
}

/// A checkpointed call, shared by the nodes that were recorded in it.
pub(crate) struct Segment {
    run: Box<dyn Fn(&[Tensor]) + Send + Sync>,
    inputs: Source,
    wants_grad: Vec<bool>,
    random: Box<GeneratorState>,
    autocast: Option<crate::DType>,
    /// The operations that saved something, in order.
    entries: Mutex<Vec<&'static str>>,
    /// What they saved when the segment ran again, until it is fetched.
    recomputed: Mutex<Vec<Option<Vec<Tensor>>>>,
}

/// Where the inputs of a segment are.
enum Source {
    Kept(Vec<Tensor>),
    /// An entry of the segment around this one.
    Entry(Arc<Segment>, usize),
}

impl Segment {
    /// What an operation saved. Unless `keep`, it is not kept for another time.
    #[track_caller]
    pub fn fetch(self: &Arc<Segment>, entry: usize, keep: bool) -> Vec<Tensor> {
        let mut recomputed = lock(&self.recomputed);
        if recomputed.get(entry).is_none_or(Option::is_none) {
            *recomputed = self.recompute();
        }
        let slot = &mut recomputed[entry];
        let tensors = if keep { slot.clone() } else { slot.take() };
        tensors.expect("it was there or has just been computed")
    }

    #[track_caller]
    fn recompute(self: &Arc<Segment>) -> Vec<Option<Vec<Tensor>>> {
        let inputs = match &self.inputs {
            Source::Kept(inputs) => inputs.clone(),
            Source::Entry(outer, entry) => outer.fetch(*entry, false),
        };
        let leaves = inputs.into_iter().zip(&self.wants_grad);
        let inputs: Vec<Tensor> =
            leaves.map(|(t, &wants)| if wants { t.requires_grad_(true) } else { t }).collect();
        let mut generator = Generator::default();
        generator.set_state((*self.random).clone());

        let _grad = GradMode::set(true);
        let _autocast = Autocast::set(self.autocast);
        let recording = Recording::start(Current { segment: self.clone(), collected: Some(Vec::new()) });
        with_generator(&mut generator, || (self.run)(&inputs));
        let collected = recording.finish();

        let names: Vec<&str> = collected.iter().map(|(op, _)| *op).collect();
        let expected = lock(&self.entries);
        if names != *expected {
            let place = names.iter().zip(&*expected).take_while(|(a, b)| a == b).count();
            let at = |list: &[&'static str]| list.get(place).copied().unwrap_or("nothing more");
            let second = names.get(place).copied().unwrap_or("nothing more");
            panic!(
                "checkpoint: the function must do the same when it runs again, but operation {place} was {} and is {second} now",
                at(&expected)
            );
        }
        collected.into_iter().map(|(_, tensors)| Some(tensors)).collect()
    }
}

/// The segment that is running on this thread.
struct Current {
    segment: Arc<Segment>,
    /// What operations saved so far, if the segment is running again.
    collected: Option<Vec<(&'static str, Vec<Tensor>)>>,
}

impl Current {
    /// One more entry: its number.
    fn add(&mut self, op: &'static str, tensors: &[Tensor]) -> (Arc<Segment>, usize) {
        let entry = match &mut self.collected {
            Some(collected) => {
                collected.push((op, tensors.to_vec()));
                collected.len() - 1
            }
            None => {
                let mut entries = lock(&self.segment.entries);
                entries.push(op);
                entries.len() - 1
            }
        };
        (self.segment.clone(), entry)
    }
}

thread_local! {
    static CURRENT: RefCell<Option<Current>> = const { RefCell::new(None) };
}

/// Makes a segment the running one until it is dropped, also by a panic.
struct Recording {
    outer: Option<Current>,
}

impl Recording {
    fn start(current: Current) -> Recording {
        Recording { outer: CURRENT.replace(Some(current)) }
    }

    /// What was collected.
    fn finish(self) -> Vec<(&'static str, Vec<Tensor>)> {
        CURRENT.take().and_then(|current| current.collected).unwrap_or_default()
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        drop(CURRENT.replace(self.outer.take()));
    }
}

/// What a node keeps of what its operation saved: inside a segment only where to find it.
pub(crate) fn keep(op: &'static str, saved: SmallVec<[Saved; 2]>) -> SavedTensors {
    CURRENT.with_borrow_mut(|current| {
        let Some(current) = current.as_mut().filter(|_| !saved.is_empty()) else {
            return SavedTensors::Kept(saved);
        };
        if let Some(collected) = &mut current.collected {
            // This node belongs to a graph that nobody will walk.
            collected.push((op, saved.iter().map(|s| s.tensor.detach()).collect()));
            return SavedTensors::Freed;
        }
        let (segment, entry) = current.add(op, &[]);
        let places = saved.iter().map(|s| (s.tensor.history().clone(), s.output)).collect();
        SavedTensors::Recomputed { segment, entry, places }
    })
}

/// Saved tensors with the histories that the first run gave them.
pub(crate) fn with_histories(
    tensors: Vec<Tensor>,
    places: &[(History, Option<u32>)],
) -> SmallVec<[Saved; 2]> {
    let saved = |(tensor, (history, output)): (Tensor, &(History, Option<u32>))| Saved {
        tensor: tensor.with_history(history.clone()),
        output: *output,
    };
    tensors.into_iter().zip(places).map(saved).collect()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        BackwardOptions, DType, Device, Generator, Param, autocast, grad, manual_seed, no_grad,
        with_generator,
    };
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn wave(shape: &[usize]) -> Tensor {
        let n: usize = shape.iter().product();
        (Tensor::arange(0.0, n as f64, 1.0, (DType::F32, &Device::reference())) * 0.7).sin().reshape(shape)
    }

    /// Gradients of a small net, its middle run by `segment`.
    fn gradients(segment: impl Fn(&Tensor, &Param) -> Tensor) -> Vec<Vec<f32>> {
        let x = wave(&[3, 4]).requires_grad_(true);
        let w = Param::new(wave(&[4, 4]));
        let y = segment(&(&x * 2.0), &w);
        (y.softmax(-1) * wave(&[3, 4]) + w.tensor().sum(..)).sum(..).backward();
        [x.grad(), w.grad()].map(|g| g.unwrap().to_vec().unwrap()).into()
    }

    fn block(x: &Tensor, w: &Param) -> Tensor {
        let h = x.linear(&w.tensor(), None).tanh().dropout(0.5, true);
        h.exp() * &h + (&h * &Tensor::rand(4, &Device::reference()))
    }

    #[test]
    fn gradients_are_those_of_the_plain_graph() {
        with_generator(&mut Generator::new(3), || {
            // other tests draw meanwhile
            let plain = gradients(block);
            let after = Tensor::rand(2, ()).to_vec::<f32>().unwrap();
            manual_seed(3);
            let checkpointed = gradients(|x, w| {
                let w = w.clone();
                checkpoint(move |x| block(&x[0], &w), &[x])
            });
            assert_eq!(checkpointed, plain);
            assert_eq!(
                Tensor::rand(2, ()).to_vec::<f32>().unwrap(),
                after,
                "the second run draws from elsewhere"
            );
        });
    }

    #[test]
    fn segments_inside_segments() {
        let two = |x: &Tensor, w: &Param| block(&block(x, w).tanh(), w);
        with_generator(&mut Generator::new(4), || {
            // other tests draw meanwhile
            let plain = gradients(two);
            manual_seed(4);
            let nested = gradients(|x, w| {
                let w = w.clone();
                let outer = move |x: &[Tensor]| {
                    let (v, u) = (w.clone(), w.clone());
                    let inner = checkpoint(move |x| block(&x[0], &v), &[&x[0]]).tanh();
                    checkpoint(move |x| block(&x[0], &u), &[&inner])
                };
                checkpoint(outer, &[x])
            });
            assert_eq!(nested, plain);
        });
    }

    #[test]
    fn the_function_runs_twice_and_again_only_if_asked() {
        let runs = Arc::new(AtomicUsize::new(0));
        let count = runs.clone();
        let x = wave(&[4]).requires_grad_(true);
        let f = move |x: &[Tensor]| {
            count.fetch_add(1, Ordering::Relaxed);
            x[0].exp().sin()
        };
        let y = checkpoint(f, &[&x]).sum(..);
        assert_eq!(runs.load(Ordering::Relaxed), 1);
        let keep = BackwardOptions { retain_graph: true, ..Default::default() };
        y.backward_with(None, keep);
        y.backward_with(None, keep);
        assert_eq!(runs.load(Ordering::Relaxed), 2);
        y.backward();
        assert_eq!(runs.load(Ordering::Relaxed), 2);
        let expected = (x.exp().cos() * x.exp() * 3.0).to_vec::<f32>().unwrap();
        let found = x.grad().unwrap().to_vec::<f32>().unwrap();
        assert!(expected.iter().zip(&found).all(|(a, b)| (a - b).abs() < 1e-5), "{expected:?} {found:?}");
    }

    #[test]
    fn second_derivatives_and_captured_tensors() {
        let x = Tensor::new([0.5f64, -1.5], &Device::reference()).requires_grad_(true);
        let scale = &x * 2.0; // in the middle of the graph, and captured
        let run = |checkpointed: bool| {
            let captured = scale.clone();
            let f = move |x: &[Tensor]| (x[0].exp() * &captured).tanh();
            let y = if checkpointed { checkpoint(f, &[&x]) } else { f(std::slice::from_ref(&x)) };
            let options = BackwardOptions { create_graph: true, ..Default::default() };
            let first = grad(&[&y.sum(..)], &[&x], options)[0].clone().unwrap();
            let second = grad(&[&first.sum(..)], &[&x], options)[0].clone().unwrap();
            (first.to_vec::<f64>().unwrap(), second.to_vec::<f64>().unwrap())
        };
        assert_eq!(run(true), run(false));
    }

    #[test]
    fn autocast_is_as_it_was() {
        let run = |checkpointed: bool| {
            let (x, w) = (wave(&[2, 4]).requires_grad_(true), wave(&[4, 4]).requires_grad_(true));
            let weight = w.clone();
            let f = move |x: &[Tensor]| x[0].linear(&weight, None).gelu();
            let input = x.clone();
            let y =
                autocast(DType::BF16, || if checkpointed { checkpoint(f, &[&input]) } else { f(&[input]) });
            y.sum(..).backward();
            [x.grad(), w.grad()].map(|g| g.unwrap().to_vec::<f32>().unwrap())
        };
        assert_eq!(run(true), run(false));
    }

    #[test]
    fn nothing_is_special_without_gradients() {
        let y = no_grad(|| checkpoint(|x| &x[0] + 1.0, &[&wave(&[2])]));
        assert!(!y.requires_grad());
    }

    #[test]
    #[should_panic = "operation 0 was exp and is sin now"]
    fn a_function_that_changes_its_mind_is_caught() {
        let runs = AtomicUsize::new(0);
        let f = move |x: &[Tensor]| match runs.fetch_add(1, Ordering::Relaxed) {
            0 => x[0].exp(),
            _ => x[0].sin(),
        };
        checkpoint(f, &[&wave(&[2]).requires_grad_(true)]).sum(..).backward();
    }
}
