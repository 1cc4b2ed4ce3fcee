// Several elementwise kernels at once: what each of them does to an element, one after the other. As it stands: y = x.
//
// Bindings: the inputs, then the outputs; an input that is written, too, is one of these. ITEMS elements per invocation. No workgroup
// memory. The lines between the marks are written for each program (`program.rs`): functions of the kernels' own files, and a loop
// over the elements that calls them.

override WORKGROUP: u32 = 256u;
/// Elements per invocation.
override ITEMS: u32 = 1u;

// begin bindings
struct Params {
    n: u32,
    zero: u32,
    at_0: u32,
    at_1: u32,
}

@group(0) @binding(0) var<storage, read> buffer_0: array<f32>;
@group(0) @binding(1) var<storage, read_write> buffer_1: array<f32>;
// end bindings
var<immediate> params: Params;

// begin functions
// end functions

/// A result as another kernel would find it: rounded, and not part of an expression that compilers take liberties with, such as rounding
/// once for a product and a sum. They do not know that `zero` is 0.
fn kept_f32(x: f32) -> f32 {
    return bitcast<f32>(bitcast<u32>(x) ^ params.zero);
}

/// Where element i of the result has its element of an operand with `period.y` elements, each repeated `period.x` times in a row, and
/// all that again and again: in y. In x, the number of the repetition.
fn repeated(i: u32, period: vec2<u32>) -> vec2<u32> {
    let y = i / period.x;
    return vec2<u32>(i - y * period.x, y % period.y);
}

/// The same `step` elements further on; step is what `repeated` is for that number.
fn stepped(at: vec2<u32>, step: vec2<u32>, period: vec2<u32>) -> vec2<u32> {
    var next = at + step;
    let over = next.x >= period.x;
    next -= select(vec2<u32>(), vec2<u32>(period.x, 0u), over);
    next.y += select(0u, 1u, over);
    return next - select(vec2<u32>(), vec2<u32>(0u, period.y), next.y >= period.y);
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let first = (group.x + groups.x * (group.y + groups.y * group.z)) * WORKGROUP * ITEMS;
    let end = min(params.n, first + WORKGROUP * ITEMS);
    // begin places
    // end places
    for (var i = first + local; i < end; i += WORKGROUP) {
        // begin steps
        let x_0 = buffer_0[params.at_0 + i];
        buffer_1[params.at_1 + i] = x_0;
        // end steps
    }
}
