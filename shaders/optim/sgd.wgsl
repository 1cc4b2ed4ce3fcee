// An SGD step of one parameter, in place: see `SgdStep`.
//
// Bindings: 0: gradient, 1: parameter, 2: momentum buffer (anything without MOMENTUM). An invocation has EACH elements.
// No workgroup memory.

// variant
alias elem = f32;
fn load_elem(x: elem) -> f32 { return x; }
fn store_elem(x: f32) -> elem { return x; }
const MOMENTUM: bool = true;
// end variant

/// Elements per invocation.
const EACH: u32 = 4u;

override WORKGROUP: u32 = 256u;

struct Params {
    n: u32,
    g_offset: u32,
    p_offset: u32,
    b_offset: u32,
    lr: f32,
    sign: f32,
    decay: f32,
    momentum: f32,
    undamped: f32,
    nesterov: u32,
    first: u32,
}

@group(0) @binding(0) var<storage, read> g: array<elem>;
@group(0) @binding(1) var<storage, read_write> p: array<elem>;
@group(0) @binding(2) var<storage, read_write> b: array<elem>;
var<immediate> params: Params;

// shared sgd_step
/// Parameter and momentum buffer after a step.
fn step(gradient: f32, p: f32, buffer: f32) -> vec2<f32> {
    let g = gradient * params.sign + params.decay * p;
    let b = select(params.momentum * buffer + params.undamped * g, g, params.first != 0u || params.momentum == 0.0);
    return vec2<f32>(p - params.lr * select(b, g + params.momentum * b, params.nesterov != 0u), b);
}
// end shared

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let number = group.x + groups.x * (group.y + groups.y * group.z);
    for (var j = 0u; j < EACH; j += 1u) {
        let i = (number * EACH + j) * WORKGROUP + local;
        if (i >= params.n) {
            return;
        }
        var before = 0.0;
        if (MOMENTUM) {
            before = load_elem(b[params.b_offset + i]);
        }
        let now = step(load_elem(g[params.g_offset + i]), load_elem(p[params.p_offset + i]), before);
        p[params.p_offset + i] = store_elem(now.x);
        if (MOMENTUM) {
            b[params.b_offset + i] = store_elem(now.y);
        }
    }
}
