//! What an operation costs besides computing, in calls of the allocator. `orkest-bench --overhead` has the times.

use orkest::prelude::*;
use orkest_tests as _;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// Counts the allocations of each thread.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: everything is passed on to the system's allocator; the counter is a plain number that needs no memory of its own.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promises are those that `System` wants.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above; `pointer` is from `alloc`, that is from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations of one call, once caches are warm.
fn allocations<R>(f: impl Fn() -> R) -> usize {
    (0..10).for_each(|_| drop(f()));
    let before = ALLOCATIONS.get();
    drop(f());
    ALLOCATIONS.get() - before
}

#[test]
fn a_result_is_two_allocations() {
    let device = Device::cpu();
    let (a, b) = (Tensor::randn([4, 8], &device), Tensor::randn([8], &device));
    let (w, leaf) = (Tensor::randn([8, 8], &device), a.clone().requires_grad_(true));
    // The tensor and the handle of its memory; the memory itself is recycled.
    let results: [(&str, &dyn Fn() -> Tensor); 11] = [
        ("add", &|| &a + &a),
        ("add, broadcast", &|| &a + &b),
        ("mul by a number", &|| &a * 2.0),
        ("relu", &|| a.relu()),
        ("comparison", &|| a.gt(&b)),
        ("softmax", &|| a.softmax(-1)),
        ("sum", &|| a.sum_keepdim(1)),
        ("matmul", &|| a.matmul(&w)),
        ("linear", &|| a.linear(&w, Some(&b))),
        ("zeros", &|| Tensor::zeros([8], &device)),
        ("without a graph", &|| no_grad(|| &leaf * &b)),
    ];
    for (name, f) in results {
        assert_eq!(allocations(f), 2, "{name}");
    }
    // At the place of an operand that nobody needs, only the tensor.
    assert_eq!(allocations(|| &a * 2.0 + &b), 3);
    assert_eq!(allocations(|| &b - &a * 2.0), 3);
}

#[test]
fn a_view_is_one_allocation() {
    let a = Tensor::randn([4, 8], &Device::cpu());
    let views: [(&str, &dyn Fn() -> Tensor); 9] = [
        ("reshape", &|| a.reshape((8, -1))),
        ("view", &|| a.view([2, 2, 8])),
        ("flatten", &|| a.flatten(0, 1)),
        ("transpose", &|| a.transpose(0, 1)),
        ("unsqueeze", &|| a.unsqueeze(0)),
        ("expand", &|| a.expand([3, 4, 8])),
        ("narrow", &|| a.narrow(1, 2, 4)),
        ("select", &|| a.select(0, 1)),
        ("index", &|| a.i((1, 2..4))),
    ];
    for (name, f) in views {
        assert_eq!(allocations(f), 1, "{name}");
    }
    assert_eq!(allocations(|| a.clone()), 0);
}

#[test]
fn the_graph_is_one_allocation_per_operation() {
    let device = Device::cpu();
    let (a, b) = (Tensor::randn([4, 8], &device), Tensor::randn([8], &device));
    let leaf = a.clone().requires_grad_(true);
    assert_eq!(allocations(|| &leaf + &b), 3);
    assert_eq!(allocations(|| &leaf * &b), 3);
    assert_eq!(allocations(|| leaf.reshape([8, 4])), 2);
    // Its own output, which the gradient needs, is kept without its history: a tensor more.
    assert_eq!(allocations(|| leaf.relu()), 4);
}

#[test]
fn one_more_operation_in_a_backward_pass_is_one_more_result() {
    let device = Device::cpu();
    let leaf = Tensor::randn([8], &device).requires_grad_(true);
    let seed = Tensor::ones([8], &device);
    let chain = |length: usize| {
        allocations(|| {
            let y = (0..length).fold(leaf.clone(), |x, _| x * 0.5);
            y.backward_with(Some(&seed), BackwardOptions::default());
            leaf.zero_grad();
        })
    };
    // Two forwards, because each takes the place of the one before, and the gradient's two.
    assert_eq!(chain(40) - chain(20), 20 * 4);
}
