//! Sequences of different lengths: PyTorch's `torch.nn.utils.rnn`.

use orkest_core::{Device, Tensor};
use std::sync::Arc;

/// Sequences of different lengths without padding, as recurrent layers read and write them: PyTorch's
/// [`PackedSequence`](https://docs.pytorch.org/docs/stable/generated/torch.nn.utils.rnn.PackedSequence.html).
///
/// The rows of step 0 come first, then those of step 1, and so on; within a step the longest sequence is first. Made by
/// [`pack_padded_sequence`] and [`pack_sequence`], read by [`pad_packed_sequence`].
#[derive(Clone, Debug)]
pub struct PackedSequence {
    data: Tensor,
    pub(super) batch_sizes: Arc<[usize]>,
    /// Which sequence comes where, and where each sequence is.
    order: Option<(Tensor, Tensor)>,
}

impl PackedSequence {
    /// The rows: `[sum of lengths, ..]`.
    pub fn data(&self) -> &Tensor {
        &self.data
    }

    /// The same sequences with other rows, for what is done to each row by itself.
    ///
    /// # Panics
    /// If there are more or fewer rows.
    #[track_caller]
    pub fn with_data(&self, data: Tensor) -> PackedSequence {
        let rows = self.data.size(0);
        assert!(data.size(0) == rows, "PackedSequence: {rows} rows are needed. data: {}", data.describe());
        PackedSequence { data, ..self.clone() }
    }

    /// The number of rows of each step, which never grows.
    pub fn batch_sizes(&self) -> &[usize] {
        &self.batch_sizes
    }

    /// The number of the sequence that is in each place, by decreasing length; `None` where they came in this order.
    pub fn sorted_indices(&self) -> Option<&Tensor> {
        self.order.as_ref().map(|(sorted, _)| sorted)
    }

    /// The place of each sequence; `None` where they came in order.
    pub fn unsorted_indices(&self) -> Option<&Tensor> {
        self.order.as_ref().map(|(_, unsorted)| unsorted)
    }

    /// The same on `device`.
    #[track_caller]
    pub fn to(&self, device: &Device) -> PackedSequence {
        let order = self.order.as_ref().map(|(a, b)| (a.to(device), b.to(device)));
        PackedSequence { data: self.data.to(device), batch_sizes: self.batch_sizes.clone(), order }
    }
}

/// Lengths of sequences: numbers, or an integer tensor of them on any device.
pub trait Lengths: private::Sealed {
    #[doc(hidden)]
    fn to_lengths(&self) -> Vec<usize>;
}

mod private {
    pub trait Sealed {}
    impl<T: Sealed + ?Sized> Sealed for &T {}
    impl Sealed for [usize] {}
    impl Sealed for Vec<usize> {}
    impl<const N: usize> Sealed for [usize; N] {}
    impl Sealed for orkest_core::Tensor {}
}

impl<T: Lengths + ?Sized> Lengths for &T {
    #[track_caller]
    fn to_lengths(&self) -> Vec<usize> {
        (**self).to_lengths()
    }
}

impl Lengths for [usize] {
    fn to_lengths(&self) -> Vec<usize> {
        self.to_vec()
    }
}

impl Lengths for Vec<usize> {
    fn to_lengths(&self) -> Vec<usize> {
        self.clone()
    }
}

impl<const N: usize> Lengths for [usize; N] {
    fn to_lengths(&self) -> Vec<usize> {
        self.to_vec()
    }
}

impl Lengths for Tensor {
    #[track_caller]
    fn to_lengths(&self) -> Vec<usize> {
        let lengths = match self.rank() {
            1 => self.to_vec::<i64>(),
            _ => panic!("lengths: one dimension is needed. lengths: {}", self.describe()),
        };
        let lengths = lengths.unwrap_or_else(|e| panic!("lengths: {e}. lengths: {}", self.describe()));
        lengths.into_iter().map(|n| n.max(0) as usize).collect()
    }
}

/// Packs padded sequences, leaving the padding out: PyTorch's
/// [`pack_padded_sequence`](https://docs.pytorch.org/docs/stable/generated/torch.nn.utils.rnn.pack_padded_sequence.html).
///
/// With `enforce_sorted` the sequences must come by decreasing length; else they are sorted, and layers give their states back in the
/// order of the input.
///
/// # Shapes
/// - input: `[steps, batch, ..]`, or `[batch, steps, ..]` if `batch_first`
/// - `lengths`: one for each sequence, from 1 to `steps`
///
/// ```
/// use orkest_core::tensor;
/// use orkest_nn::{pack_padded_sequence, pad_packed_sequence};
/// let padded = tensor![[1.0, 2.0, 0.0], [3.0, 0.0, 0.0], [4.0, 5.0, 6.0]];
/// let packed = pack_padded_sequence(&padded, [2, 1, 3], true, false);
/// assert_eq!(packed.data().to_vec::<f32>().unwrap(), [4.0, 1.0, 3.0, 5.0, 2.0, 6.0]);
/// assert_eq!(packed.batch_sizes(), [3, 2, 1]);
/// let (back, lengths) = pad_packed_sequence(&packed, true, 0.0, None);
/// assert_eq!((back.to_vec::<f32>().unwrap(), lengths), (padded.to_vec().unwrap(), vec![2, 1, 3]));
/// ```
///
/// # Panics
/// If a length is 0 or too large, there are not as many as sequences, or they are not sorted and `enforce_sorted` is set.
#[track_caller]
pub fn pack_padded_sequence(
    input: &Tensor,
    lengths: impl Lengths,
    batch_first: bool,
    enforce_sorted: bool,
) -> PackedSequence {
    const OP: &str = "pack_padded_sequence";
    let lengths = lengths.to_lengths();
    assert!(input.rank() >= 2, "{OP}: an input [steps, batch, ..] is needed. input: {}", input.describe());
    let (steps, batch) =
        if batch_first { (input.size(1), input.size(0)) } else { (input.size(0), input.size(1)) };
    if lengths.len() != batch || batch == 0 {
        panic!("{OP}: {} lengths for {batch} sequences. input: {}", lengths.len(), input.describe());
    }
    if let Some(i) = lengths.iter().position(|n| *n == 0 || *n > steps) {
        panic!(
            "{OP}: sequence {i} has length {}, not from 1 to {steps}. input: {}",
            lengths[i],
            input.describe()
        );
    }
    let sorted = lengths.is_sorted_by(|a, b| a >= b);
    assert!(
        sorted || !enforce_sorted,
        "{OP}: lengths {lengths:?} do not decrease; set enforce_sorted to false"
    );

    let mut order: Vec<usize> = (0..batch).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(lengths[i]));
    let batch_sizes: Arc<[usize]> =
        (0..lengths[order[0]]).map(|t| order.partition_point(|&i| lengths[i] > t)).collect();
    let position = |t: usize, i: usize| if batch_first { i * steps + t } else { t * batch + i };
    let rows: Vec<i64> = (batch_sizes.iter().enumerate())
        .flat_map(|(t, &n)| order[..n].iter().map(move |&i| position(t, i) as i64))
        .collect();
    let device = input.device();
    let data = input.flatten(0, 1).index_select(0, &indices(&rows, device));
    let order = (!enforce_sorted).then(|| {
        let mut back = vec![0; batch];
        order.iter().enumerate().for_each(|(place, &i)| back[i] = place as i64);
        let order: Vec<i64> = order.iter().map(|&i| i as i64).collect();
        (indices(&order, device), indices(&back, device))
    });
    PackedSequence { data, batch_sizes, order }
}

fn indices(values: &[i64], device: &Device) -> Tensor {
    Tensor::from_slice(values, values.len(), device)
}

/// The padded sequences again, and their lengths: PyTorch's
/// [`pad_packed_sequence`](https://docs.pytorch.org/docs/stable/generated/torch.nn.utils.rnn.pad_packed_sequence.html).
///
/// They are padded to the longest of them, or to `total_length`, which several devices that each have a part of a batch can agree on.
///
/// # Shapes
/// - output: `[steps, batch, ..]`, or `[batch, steps, ..]` if `batch_first`
///
/// # Panics
/// If `total_length` is less than the length of a sequence.
#[track_caller]
pub fn pad_packed_sequence(
    sequence: &PackedSequence,
    batch_first: bool,
    padding_value: f64,
    total_length: Option<usize>,
) -> (Tensor, Vec<usize>) {
    let PackedSequence { data, batch_sizes, order } = sequence;
    let (longest, batch) = (batch_sizes.len(), batch_sizes[0]);
    let steps = total_length.unwrap_or(longest);
    assert!(
        steps >= longest,
        "pad_packed_sequence: total_length {steps} is less than the longest sequence, {longest}"
    );
    // Row `rows` is the padding.
    let rows = data.size(0);
    let mut from = vec![rows as i64; steps * batch];
    let mut row = 0;
    for (t, &n) in batch_sizes.iter().enumerate() {
        for place in 0..n {
            from[if batch_first { place * steps + t } else { t * batch + place }] = row;
            row += 1;
        }
    }
    let padding = Tensor::full(data.shape().with(0, 1), padding_value, (data.dtype(), data.device()));
    let with_padding = Tensor::cat(&[data, &padding], 0);
    let sizes = if batch_first { [batch, steps] } else { [steps, batch] };
    let padded = with_padding.rows(&Tensor::from_slice(&from, sizes, data.device()));
    let lengths: Vec<usize> = (0..batch).map(|place| batch_sizes.partition_point(|&n| n > place)).collect();
    let Some((_, back)) = order else { return (padded, lengths) };
    let places = back.to_lengths();
    (padded.index_select(if batch_first { 0 } else { 1 }, back), places.iter().map(|&p| lengths[p]).collect())
}

/// Stacks sequences of different lengths along a new dimension, the shorter ones padded at the end: PyTorch's
/// [`pad_sequence`](https://docs.pytorch.org/docs/stable/generated/torch.nn.utils.rnn.pad_sequence.html).
///
/// # Shapes
/// - sequences: `[length, ..]` each
/// - output: `[longest, batch, ..]`, or `[batch, longest, ..]` if `batch_first`
///
/// # Panics
/// If there is none, or they differ in more than the length.
#[track_caller]
pub fn pad_sequence(sequences: &[Tensor], batch_first: bool, padding_value: f64) -> Tensor {
    let longest = sequences.iter().map(|s| s.size(0)).max();
    let longest = longest.unwrap_or_else(|| panic!("pad_sequence: there is no sequence"));
    let padded: Vec<Tensor> = sequences
        .iter()
        .map(|s| match longest - s.size(0) {
            0 => s.clone(),
            missing => {
                let padding =
                    Tensor::full(s.shape().with(0, missing), padding_value, (s.dtype(), s.device()));
                Tensor::cat(&[s, &padding], 0)
            }
        })
        .collect();
    Tensor::stack(&padded, if batch_first { 0 } else { 1 })
}

/// Packs sequences of different lengths: PyTorch's
/// [`pack_sequence`](https://docs.pytorch.org/docs/stable/generated/torch.nn.utils.rnn.pack_sequence.html).
///
/// # Shapes
/// - sequences: `[length, ..]` each
///
/// # Panics
/// As [`pad_sequence`] and [`pack_padded_sequence`].
#[track_caller]
pub fn pack_sequence(sequences: &[Tensor], enforce_sorted: bool) -> PackedSequence {
    let lengths: Vec<usize> = sequences.iter().map(|s| s.size(0)).collect();
    pack_padded_sequence(&pad_sequence(sequences, false, 0.0), &lengths, false, enforce_sorted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gradients_of_packed_rows_go_to_their_places_and_none_to_padding() {
        let x = Tensor::ones([2, 3], &Device::cpu()).requires_grad_(true);
        let packed = pack_padded_sequence(&x, [1, 3], true, false);
        let weights = Tensor::new([1.0f32, 2.0, 3.0, 4.0], &Device::cpu());
        (packed.data() * weights).sum(..).backward();
        assert_eq!(x.grad().unwrap().to_vec::<f32>().unwrap(), [2.0, 0.0, 0.0, 1.0, 3.0, 4.0]);
    }

    #[test]
    fn lengths_may_be_a_tensor() {
        let (x, lengths) = (Tensor::zeros([2, 4], &Device::cpu()), Tensor::new([4i64, 2], &Device::cpu()));
        assert_eq!(pack_padded_sequence(&x, &lengths, true, true).batch_sizes(), [2, 2, 1, 1]);
    }

    #[test]
    #[should_panic(expected = "sequence 1 has length 0, not from 1 to 4")]
    fn a_sequence_without_steps_is_refused() {
        pack_padded_sequence(&Tensor::zeros([2, 4], &Device::cpu()), [4, 0], true, true);
    }

    #[test]
    #[should_panic(expected = "lengths [2, 4] do not decrease; set enforce_sorted to false")]
    fn unsorted_lengths_are_refused_where_sorted_ones_are_promised() {
        pack_padded_sequence(&Tensor::zeros([2, 4], &Device::cpu()), [2, 4], true, true);
    }

    #[test]
    #[should_panic(expected = "total_length 2 is less than the longest sequence, 4")]
    fn a_total_length_cannot_cut() {
        let packed = pack_padded_sequence(&Tensor::zeros([2, 4], &Device::cpu()), [4, 2], true, true);
        pad_packed_sequence(&packed, true, 0.0, Some(2));
    }
}
