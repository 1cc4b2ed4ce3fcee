// An Adam or AdamW step of one parameter, in place: see `AdamStep`.
//
// Bindings: 0: gradient, 1: parameter, 2: average of gradients m, 3: average of squares v, 4: largest v so far (anything without AMSGRAD).
// An invocation has EACH elements. No workgroup memory.

// variant
alias elem = f32;
fn load_elem(x: elem) -> f32 { return x; }
fn store_elem(x: f32) -> elem { return x; }
const AMSGRAD: bool = false;
// end variant

/// Elements per invocation.
const EACH: u32 = 4u;

override WORKGROUP: u32 = 256u;

struct Params {
    n: u32,
    g_offset: u32,
    p_offset: u32,
    m_offset: u32,
    v_offset: u32,
    most_offset: u32,
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

@group(0) @binding(0) var<storage, read> g: array<elem>;
@group(0) @binding(1) var<storage, read_write> p: array<elem>;
@group(0) @binding(2) var<storage, read_write> m: array<elem>;
@group(0) @binding(3) var<storage, read_write> v: array<elem>;
@group(0) @binding(4) var<storage, read_write> most: array<elem>;
var<immediate> params: Params;

// shared is_nan
fn is_nan(x: f32) -> bool {
    return (bitcast<u32>(x) & 0x7fffffffu) > 0x7f800000u;
}
// end shared

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
    for (var j = 0u; j < EACH; j += 1u) {
        let i = (number * EACH + j) * WORKGROUP + local;
        if (i >= params.n) {
            return;
        }
        let p_at = params.p_offset + i;
        let m_at = params.m_offset + i;
        let v_at = params.v_offset + i;
        let now = moments(load_elem(g[params.g_offset + i]), load_elem(p[p_at]), load_elem(m[m_at]), load_elem(v[v_at]));
        m[m_at] = store_elem(now.y);
        v[v_at] = store_elem(now.z);
        var second = now.z;
        if (AMSGRAD) {
            let before = load_elem(most[params.most_offset + i]);
            second = select(max(before, second), before + second, is_nan(before) || is_nan(second));
            most[params.most_offset + i] = store_elem(second);
        }
        p[p_at] = store_elem(stepped(now.x, now.y, second));
    }
}
