// y[i][j] = x[index[i][j]][j] along one dimension, moved as bits; index_select is this with an index of stride 0 along the others.
//
// Bindings: 0: x, 1: index, 2: y (row-major), 3: fault. One invocation per element of y. An index out of range gives 0 and is
// reported. If x is a window, the rows from `first` of `size`, only what points into it is written. No workgroup memory.

// variant
alias elem = u32;
// end variant

override WORKGROUP: u32 = 256u;

struct Params {
    shape: vec4<u32>,
    index_strides: vec4<i32>,
    x_strides: vec4<i32>,
    n: u32,
    index_offset: u32,
    x_offset: u32,
    step: i32,
    size: u32,
    code: u32,
    first: u32,
    count: u32,
}

// shared fault
struct Fault {
    state: atomic<u32>,
    op: u32,
    index: i32,
    size: u32,
}
// end shared

@group(0) @binding(0) var<storage, read> x: array<elem>;
@group(0) @binding(1) var<storage, read> indices: array<i32>;
@group(0) @binding(2) var<storage, read_write> y: array<elem>;
@group(0) @binding(3) var<storage, read_write> fault: Fault;
var<immediate> params: Params;

// shared coordinates
/// The coordinates of element i in row-major order.
fn coordinates(i: u32, shape: vec4<u32>) -> vec4<i32> {
    let r3 = i / shape.w;
    let r2 = r3 / shape.z;
    let r1 = r2 / shape.y;
    return vec4<i32>(vec4<u32>(r1, r2 - r1 * shape.y, r3 - r2 * shape.z, i - r3 * shape.w));
}

/// Where the element at these coordinates lies.
fn position(at: vec4<i32>, strides: vec4<i32>, offset: u32) -> u32 {
    let steps = at * strides;
    return u32(i32(offset) + steps.x + steps.y + steps.z + steps.w);
}
// end shared

// shared report_fault
/// Notes an index out of range, unless a fault is noted already. A weak compare-and-exchange may fail for no reason; this does not.
fn report_fault(index: i32) {
    if (atomicOr(&fault.state, 1u) == 0u) {
        fault.op = params.code;
        fault.index = index;
        fault.size = params.size;
    }
}
// end shared

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let i = (group.x + groups.x * (group.y + groups.y * group.z)) * WORKGROUP + local;
    if (i >= params.n) {
        return;
    }
    let at = coordinates(i, params.shape);
    let index = indices[position(at, params.index_strides, params.index_offset)];
    if (index < 0 || u32(index) >= params.size) {
        report_fault(index);
        y[i] = elem();
        return;
    }
    let row = u32(index) - params.first;
    if (row < params.count) {
        y[i] = x[u32(i32(position(at, params.x_strides, params.x_offset)) + i32(row) * params.step)];
    }
}
