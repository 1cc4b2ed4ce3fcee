//! Layers start with PyTorch's numbers for the same seed.

use orkest_core::{Device, Param, Tensor, manual_seed};
use orkest_nn::{Embedding, Linear};

/// `torch.manual_seed(7)`, then the layers of the test in this order; the bits of the f32 values.
const LINEAR_WEIGHT: [u32; 15] = [
    1023402482, 3196710558, 1041355306, 1041215964, 3195323150, 3179890051, 3196461973, 1038984765,
    3187062348, 1050729656, 1050839945, 1027250906, 3192077206, 3196484981, 3175688844,
];
const LINEAR_BIAS: [u32; 3] = [3187728651, 1045026897, 3200484604];
const WITHOUT_BIAS: [u32; 6] = [1053978514, 1045133727, 1041613018, 1034115146, 1049630895, 1057472247];

#[test]
fn layers_draw_what_pytorch_draws() {
    manual_seed(7);
    let linear = Linear::new(5, 3);
    let small = Embedding::new(3, 2).padding_idx(1);
    let without_bias = Linear::without_bias(3, 2);
    let after = Tensor::rand(1, &Device::cpu());
    let large = Embedding::new(5, 4);

    let bits = |p: &Param| p.value().to_vec::<f32>().unwrap().iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&linear.weight), LINEAR_WEIGHT);
    assert_eq!(bits(linear.bias.as_ref().unwrap()), LINEAR_BIAS);
    assert_eq!(bits(&without_bias.weight), WITHOUT_BIAS);
    assert_eq!(after.to_vec::<f32>().unwrap(), [0.388_741_97]);

    // Normal numbers go through a logarithm and a cosine: PyTorch promises them to 2 units in the last place here.
    let near = |p: &Param, expected: &[f32]| {
        for (a, b) in p.value().to_vec::<f32>().unwrap().iter().zip(expected) {
            assert!(a.to_bits().abs_diff(b.to_bits()) <= 2, "{a} is not {b}");
        }
    };
    near(&small.weight, &[0.021201378, -0.36019382, 0.0, 0.0, 0.49633223, 0.119600035]);
    let large_weight = [
        -0.66186756,
        -0.82845205,
        -0.6056803,
        -0.13543689,
        -1.1668941,
        0.36357585,
        -0.3156411,
        -0.5320789,
        0.29914185,
        -1.4204445,
        -0.16345488,
        0.1332398,
        -0.14426184,
        1.6120467,
        1.5671237,
        -0.93883914,
        -1.2369686,
        -0.0625674,
        0.449_509_4,
        -0.8857972,
    ];
    near(&large.weight, &large_weight);
}
