// An SGD step of up to eight parameters that begin at element 0 of their buffers, in place: see `SgdStep`.
//
// Bindings: 0 to 7: gradients, 8 to 15: parameters, 16 to 23: momentum buffers (unused ones: memory of their own, of any
// size; all of them without MOMENTUM).
// A workgroup has WORKGROUP EACH elements of one parameter. No workgroup memory.

// variant
const MOMENTUM: bool = true;
// end variant

/// Elements per invocation.
const EACH: u32 = 4u;

override WORKGROUP: u32 = 256u;

struct Params {
    // The first workgroup after each parameter's, and the parameters' sizes.
    ends_low: vec4<u32>,
    ends_high: vec4<u32>,
    sizes_low: vec4<u32>,
    sizes_high: vec4<u32>,
    lr: f32,
    sign: f32,
    decay: f32,
    momentum: f32,
    undamped: f32,
    nesterov: u32,
    first: u32,
}

@group(0) @binding(0) var<storage, read> g0: array<f32>;
@group(0) @binding(1) var<storage, read> g1: array<f32>;
@group(0) @binding(2) var<storage, read> g2: array<f32>;
@group(0) @binding(3) var<storage, read> g3: array<f32>;
@group(0) @binding(4) var<storage, read> g4: array<f32>;
@group(0) @binding(5) var<storage, read> g5: array<f32>;
@group(0) @binding(6) var<storage, read> g6: array<f32>;
@group(0) @binding(7) var<storage, read> g7: array<f32>;
@group(0) @binding(8) var<storage, read_write> p0: array<f32>;
@group(0) @binding(9) var<storage, read_write> p1: array<f32>;
@group(0) @binding(10) var<storage, read_write> p2: array<f32>;
@group(0) @binding(11) var<storage, read_write> p3: array<f32>;
@group(0) @binding(12) var<storage, read_write> p4: array<f32>;
@group(0) @binding(13) var<storage, read_write> p5: array<f32>;
@group(0) @binding(14) var<storage, read_write> p6: array<f32>;
@group(0) @binding(15) var<storage, read_write> p7: array<f32>;
@group(0) @binding(16) var<storage, read_write> b0: array<f32>;
@group(0) @binding(17) var<storage, read_write> b1: array<f32>;
@group(0) @binding(18) var<storage, read_write> b2: array<f32>;
@group(0) @binding(19) var<storage, read_write> b3: array<f32>;
@group(0) @binding(20) var<storage, read_write> b4: array<f32>;
@group(0) @binding(21) var<storage, read_write> b5: array<f32>;
@group(0) @binding(22) var<storage, read_write> b6: array<f32>;
@group(0) @binding(23) var<storage, read_write> b7: array<f32>;
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
    var slot = 0u;
    var begin = 0u;
    for (var i = 0u; i < 4u; i += 1u) {
        if (number >= params.ends_low[i]) {
            slot = i + 1u;
            begin = params.ends_low[i];
        }
    }
    for (var i = 0u; i < 4u; i += 1u) {
        if (number >= params.ends_high[i]) {
            slot = i + 5u;
            begin = params.ends_high[i];
        }
    }
    var n = 0u;
    if (slot < 4u) {
        n = params.sizes_low[slot];
    } else if (slot < 8u) {
        n = params.sizes_high[slot - 4u];
    }
    for (var j = 0u; j < EACH; j += 1u) {
        let i = ((number - begin) * EACH + j) * WORKGROUP + local;
        if (i >= n) {
            return;
        }
        switch slot {
            case 0u: {
                var before = 0.0;
                if (MOMENTUM) {
                    before = b0[i];
                }
                let now = step(g0[i], p0[i], before);
                p0[i] = now.x;
                if (MOMENTUM) {
                    b0[i] = now.y;
                }
            }
            case 1u: {
                var before = 0.0;
                if (MOMENTUM) {
                    before = b1[i];
                }
                let now = step(g1[i], p1[i], before);
                p1[i] = now.x;
                if (MOMENTUM) {
                    b1[i] = now.y;
                }
            }
            case 2u: {
                var before = 0.0;
                if (MOMENTUM) {
                    before = b2[i];
                }
                let now = step(g2[i], p2[i], before);
                p2[i] = now.x;
                if (MOMENTUM) {
                    b2[i] = now.y;
                }
            }
            case 3u: {
                var before = 0.0;
                if (MOMENTUM) {
                    before = b3[i];
                }
                let now = step(g3[i], p3[i], before);
                p3[i] = now.x;
                if (MOMENTUM) {
                    b3[i] = now.y;
                }
            }
            case 4u: {
                var before = 0.0;
                if (MOMENTUM) {
                    before = b4[i];
                }
                let now = step(g4[i], p4[i], before);
                p4[i] = now.x;
                if (MOMENTUM) {
                    b4[i] = now.y;
                }
            }
            case 5u: {
                var before = 0.0;
                if (MOMENTUM) {
                    before = b5[i];
                }
                let now = step(g5[i], p5[i], before);
                p5[i] = now.x;
                if (MOMENTUM) {
                    b5[i] = now.y;
                }
            }
            case 6u: {
                var before = 0.0;
                if (MOMENTUM) {
                    before = b6[i];
                }
                let now = step(g6[i], p6[i], before);
                p6[i] = now.x;
                if (MOMENTUM) {
                    b6[i] = now.y;
                }
            }
            default: {
                var before = 0.0;
                if (MOMENTUM) {
                    before = b7[i];
                }
                let now = step(g7[i], p7[i], before);
                p7[i] = now.x;
                if (MOMENTUM) {
                    b7[i] = now.y;
                }
            }
        }
    }
}
