// y[index[i][j]][j] = (ADD: +=) src[i][j] along one dimension, in place. Colliding elements act in ascending order of i: every
// element of y has one invocation that writes it, so the result is always the same.
//
// Bindings: 0: index, 1: src, 2: order, 3: y, 4: fault. A lane is one combination of the other coordinates. `lanes`: one
// invocation per lane walks over all of its indices; order is not read. `segments`: index is sorted along each lane and order has
// the positions that the sorted indices come from; one invocation per lane and sorted position, lanes side by side, of which the
// first of every run of equal indices walks over the run. An index out of range is skipped and reported, and with CHECK a
// sum that needs more than 32 bits is reported. No workgroup memory.

// variant
alias elem = f32;
fn load_elem(x: elem) -> f32 { return x; }
fn store_elem(x: f32) -> elem { return x; }
const ADD: bool = true;
const CHECK: bool = false;
// end variant

override WORKGROUP: u32 = 256u;

struct Params {
    shape: vec4<u32>,
    index_strides: vec4<i32>,
    src_strides: vec4<i32>,
    y_strides: vec4<i32>,
    lanes: u32,
    n: u32,
    index_offset: u32,
    src_offset: u32,
    y_offset: u32,
    index_step: i32,
    src_step: i32,
    y_step: i32,
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

@group(0) @binding(0) var<storage, read> indices: array<i32>;
@group(0) @binding(1) var<storage, read> src: array<elem>;
@group(0) @binding(2) var<storage, read> order: array<i32>;
@group(0) @binding(3) var<storage, read_write> y: array<elem>;
@group(0) @binding(4) var<storage, read_write> fault: Fault;
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

// shared report_overflow
/// Whether a result computed in 32 bits is not the one that was meant, of which this is an estimate in f32: wrapping around moves it
/// by 2^32, rounding by far less.
fn exceeds(result: f32, estimate: f32) -> bool {
    return abs(result - estimate) > 1073741824.0;
}

/// Notes a result that needs more than 32 bits, unless a fault is noted already.
fn report_overflow() {
    if (atomicOr(&fault.state, 1u) == 0u) {
        fault.op = params.code | 0x40000000u;
    }
}
// end shared

/// Element i of the lane that begins at base.
fn step_to(base: u32, i: u32, step: i32) -> u32 {
    return u32(i32(base) + i32(i) * step);
}

@compute @workgroup_size(WORKGROUP)
fn lanes(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let lane = (group.x + groups.x * (group.y + groups.y * group.z)) * WORKGROUP + local;
    if (lane >= params.lanes) {
        return;
    }
    let at = coordinates(lane, params.shape);
    let index_base = position(at, params.index_strides, params.index_offset);
    let src_base = position(at, params.src_strides, params.src_offset);
    let y_base = position(at, params.y_strides, params.y_offset);
    for (var i = 0u; i < params.n; i += 1u) {
        let index = indices[step_to(index_base, i, params.index_step)];
        if (index < 0 || u32(index) >= params.size) {
            report_fault(index);
            continue;
        }
        let row = u32(index) - params.first;
        if (row >= params.count) {
            continue;
        }
        let to = step_to(y_base, row, params.y_step);
        var value = load_elem(src[step_to(src_base, i, params.src_step)]);
        if (ADD) {
            let before = load_elem(y[to]);
            if (CHECK && exceeds(f32(before + value), f32(before) + f32(value))) {
                report_overflow();
            }
            value = before + value;
        }
        y[to] = store_elem(value);
    }
}

@compute @workgroup_size(WORKGROUP)
fn segments(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let number = (group.x + groups.x * (group.y + groups.y * group.z)) * WORKGROUP + local;
    let first = number / params.lanes;
    if (first >= params.n) {
        return;
    }
    let at = coordinates(number - first * params.lanes, params.shape);
    let index_base = position(at, params.index_strides, params.index_offset);
    let index = indices[step_to(index_base, first, params.index_step)];
    if (first > 0u && indices[step_to(index_base, first - 1u, params.index_step)] == index) {
        return;
    }
    if (index < 0 || u32(index) >= params.size) {
        report_fault(index);
        return;
    }
    let row = u32(index) - params.first;
    if (row >= params.count) {
        return;
    }
    let src_base = position(at, params.src_strides, params.src_offset);
    let to = step_to(position(at, params.y_strides, params.y_offset), row, params.y_step);
    var value = load_elem(y[to]);
    for (var i = first; i < params.n; i += 1u) {
        let entry = step_to(index_base, i, params.index_step);
        if (indices[entry] != index) {
            break;
        }
        let next = load_elem(src[step_to(src_base, u32(order[entry]), params.src_step)]);
        if (ADD) {
            if (CHECK && exceeds(f32(value + next), f32(value) + f32(next))) {
                report_overflow();
            }
            value += next;
        } else {
            value = next;
        }
    }
    y[to] = store_elem(value);
}
