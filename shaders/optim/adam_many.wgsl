// An Adam or AdamW step of up to eight parameters that begin at element 0 of their buffers, in place: see `AdamStep`.
//
// Bindings: 0 to 7: gradients, 8 to 15: parameters, 16 to 23: averages of gradients, 24 to 31: averages of squares (unused ones: memory of their own, of any size).
// A workgroup has WORKGROUP EACH elements of one parameter. No workgroup memory.

/// Elements per invocation.
const EACH: u32 = 4u;

override WORKGROUP: u32 = 256u;

struct Params {
    // The first workgroup after each parameter's, and the parameters' sizes.
    ends_low: vec4<u32>,
    ends_high: vec4<u32>,
    sizes_low: vec4<u32>,
    sizes_high: vec4<u32>,
    decay: f32,
    shrink: f32,
    sign: f32,
    beta2: f32,
    one_minus_beta1: f32,
    one_minus_beta2: f32,
    step_size: f32,
    root_correction: f32,
    eps: f32,
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
@group(0) @binding(16) var<storage, read_write> m0: array<f32>;
@group(0) @binding(17) var<storage, read_write> m1: array<f32>;
@group(0) @binding(18) var<storage, read_write> m2: array<f32>;
@group(0) @binding(19) var<storage, read_write> m3: array<f32>;
@group(0) @binding(20) var<storage, read_write> m4: array<f32>;
@group(0) @binding(21) var<storage, read_write> m5: array<f32>;
@group(0) @binding(22) var<storage, read_write> m6: array<f32>;
@group(0) @binding(23) var<storage, read_write> m7: array<f32>;
@group(0) @binding(24) var<storage, read_write> v0: array<f32>;
@group(0) @binding(25) var<storage, read_write> v1: array<f32>;
@group(0) @binding(26) var<storage, read_write> v2: array<f32>;
@group(0) @binding(27) var<storage, read_write> v3: array<f32>;
@group(0) @binding(28) var<storage, read_write> v4: array<f32>;
@group(0) @binding(29) var<storage, read_write> v5: array<f32>;
@group(0) @binding(30) var<storage, read_write> v6: array<f32>;
@group(0) @binding(31) var<storage, read_write> v7: array<f32>;
var<immediate> params: Params;

// shared adam_moments
/// Parameter before its step, running averages of the gradient and of its square.
fn moments(gradient: f32, p: f32, m: f32, v: f32) -> vec3<f32> {
    let g = gradient * params.sign + params.decay * p;
    return vec3<f32>(p * params.shrink, m + (g - m) * params.one_minus_beta1, v * params.beta2 + params.one_minus_beta2 * g * g);
}

fn stepped(p: f32, m: f32, second: f32) -> f32 {
    return p - params.step_size * m / (sqrt(second) / params.root_correction + params.eps);
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
                let now = moments(g0[i], p0[i], m0[i], v0[i]);
                m0[i] = now.y;
                v0[i] = now.z;
                p0[i] = stepped(now.x, now.y, now.z);
            }
            case 1u: {
                let now = moments(g1[i], p1[i], m1[i], v1[i]);
                m1[i] = now.y;
                v1[i] = now.z;
                p1[i] = stepped(now.x, now.y, now.z);
            }
            case 2u: {
                let now = moments(g2[i], p2[i], m2[i], v2[i]);
                m2[i] = now.y;
                v2[i] = now.z;
                p2[i] = stepped(now.x, now.y, now.z);
            }
            case 3u: {
                let now = moments(g3[i], p3[i], m3[i], v3[i]);
                m3[i] = now.y;
                v3[i] = now.z;
                p3[i] = stepped(now.x, now.y, now.z);
            }
            case 4u: {
                let now = moments(g4[i], p4[i], m4[i], v4[i]);
                m4[i] = now.y;
                v4[i] = now.z;
                p4[i] = stepped(now.x, now.y, now.z);
            }
            case 5u: {
                let now = moments(g5[i], p5[i], m5[i], v5[i]);
                m5[i] = now.y;
                v5[i] = now.z;
                p5[i] = stepped(now.x, now.y, now.z);
            }
            case 6u: {
                let now = moments(g6[i], p6[i], m6[i], v6[i]);
                m6[i] = now.y;
                v6[i] = now.z;
                p6[i] = stepped(now.x, now.y, now.z);
            }
            default: {
                let now = moments(g7[i], p7[i], m7[i], v7[i]);
                m7[i] = now.y;
                v7[i] = now.z;
                p7[i] = stepped(now.x, now.y, now.z);
            }
        }
    }
}
