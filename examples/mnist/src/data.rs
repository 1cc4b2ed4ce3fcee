//! Pictures of digits: from the files of MNIST, or generated.

use crate::digits;
use anyhow::{Context, Result, ensure};
use orkest::data::{TensorDataset, read_idx};
use orkest::{DType, Tensor};
use std::path::{Path, PathBuf};

/// Height and width of a picture.
pub const SIZE: usize = 28;
/// Pictures that are held out where there is no file for them.
const HELD_OUT: usize = 1000;
/// Pictures that are generated for training.
const GENERATED: usize = 3000;

/// Pictures `[n, 28, 28]`, 0 for paper and 255 for ink, and the digits they show `[n]`.
pub struct Pictures {
    pub ink: Tensor,
    pub labels: Tensor,
}

/// What to learn from, and what to be judged on.
pub struct Split {
    pub training: Pictures,
    pub held_out: Pictures,
}

impl Pictures {
    pub fn len(&self) -> usize {
        self.labels.numel()
    }

    /// `count` of them, from number `start`.
    pub fn part(&self, start: usize, count: usize) -> Pictures {
        Pictures { ink: self.ink.narrow(0, start, count), labels: self.labels.narrow(0, start, count) }
    }

    /// As the network sees them: `[n, 1, 28, 28]`, with MNIST's mean at 0 and its standard deviation 1.
    pub fn dataset(&self) -> TensorDataset {
        let inputs = (self.ink.to_dtype(DType::F32) / 255.0 - 0.1307) / 0.3081;
        TensorDataset::new((inputs.unsqueeze(1), self.labels.clone()))
    }
}

/// Digits drawn by the program, from the default random generator.
pub fn generated() -> Result<Split> {
    let all = digits::draw(GENERATED + HELD_OUT)?;
    Ok(Split { training: all.part(0, GENERATED), held_out: all.part(GENERATED, HELD_OUT) })
}

/// Reads a folder with MNIST's files, gzipped or not: with `train-*` and `t10k-*`, the second are held out, else the last 1,000
/// pictures of those that are there.
pub fn read(folder: &Path) -> Result<Split> {
    ensure!(folder.is_dir(), "{}: is no folder; one with MNIST's files is expected", folder.display());
    let (train, test) = (set(folder, "train")?, set(folder, "t10k")?);
    if let (Some(training), Some(held_out)) = (train.as_ref(), test.as_ref()) {
        return Ok(Split {
            training: training.part(0, training.len()),
            held_out: held_out.part(0, held_out.len()),
        });
    }
    let all = train.or(test).with_context(|| {
        format!(
            "{}: has neither train-images-idx3-ubyte nor t10k-images-idx3-ubyte (or the same with .gz)",
            folder.display()
        )
    })?;
    ensure!(
        all.len() > HELD_OUT,
        "{}: {} pictures are too few, {HELD_OUT} are held out",
        folder.display(),
        all.len()
    );
    let rest = all.len() - HELD_OUT;
    Ok(Split { training: all.part(0, rest), held_out: all.part(rest, HELD_OUT) })
}

/// The pictures of one of the two sets, if its file is there.
fn set(folder: &Path, name: &str) -> Result<Option<Pictures>> {
    let Some(images) = find(folder, &format!("{name}-images-idx3-ubyte")) else { return Ok(None) };
    let labels_name = format!("{name}-labels-idx1-ubyte");
    let labels = find(folder, &labels_name)
        .with_context(|| format!("{}: {labels_name} is missing", folder.display()))?;
    let (ink, digits) = (read_idx(&images)?, read_idx(&labels)?);
    ensure!(
        ink.dtype() == DType::U8 && ink.rank() == 3 && ink.shape()[1..] == [SIZE, SIZE],
        "{}: bytes [n, {SIZE}, {SIZE}] are expected, not {} {}",
        images.display(),
        ink.dtype(),
        ink.shape()
    );
    ensure!(
        digits.dtype() == DType::U8 && *digits.shape() == [ink.size(0)],
        "{}: one byte for each of the {} pictures is expected, not {} {}",
        labels.display(),
        ink.size(0),
        digits.dtype(),
        digits.shape()
    );
    let unknown = digits.to_vec::<u8>()?.into_iter().find(|&digit| digit > 9);
    if let Some(label) = unknown {
        anyhow::bail!("{}: label {label} is no digit", labels.display());
    }
    Ok(Some(Pictures { ink, labels: digits.to_dtype(DType::I64) }))
}

/// The file of this name, gzipped or not; some archives write a dot for the second hyphen.
fn find(folder: &Path, name: &str) -> Option<PathBuf> {
    let dotted = name.replace("-idx", ".idx");
    [name, &format!("{name}.gz"), &dotted, &format!("{dotted}.gz")]
        .into_iter()
        .map(|name| folder.join(name))
        .find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An IDX file of bytes.
    fn write(path: &Path, sizes: &[u32], data: &[u8]) {
        let mut bytes = vec![0, 0, 8, sizes.len() as u8];
        bytes.extend(sizes.iter().flat_map(|size| size.to_be_bytes()));
        bytes.extend(data);
        std::fs::write(path, bytes).unwrap();
    }

    /// `n` pictures whose first pixel tells their number modulo 200; the label is that modulo 10.
    fn write_set(folder: &Path, name: &str, n: u32) {
        let mut ink = vec![0; n as usize * SIZE * SIZE];
        ink.iter_mut().step_by(SIZE * SIZE).enumerate().for_each(|(i, pixel)| *pixel = (i % 200) as u8);
        let labels: Vec<u8> = (0..n).map(|i| (i % 200 % 10) as u8).collect();
        write(&folder.join(format!("{name}-images-idx3-ubyte")), &[n, SIZE as u32, SIZE as u32], &ink);
        write(&folder.join(format!("{name}-labels.idx1-ubyte")), &[n], &labels);
    }

    #[test]
    fn the_last_thousand_are_held_out_unless_there_is_a_file_for_them() {
        let folder = tempfile::tempdir().unwrap();
        write_set(folder.path(), "t10k", 1003);
        let split = read(folder.path()).unwrap();
        assert_eq!((split.training.len(), split.held_out.len()), (3, 1000));
        assert_eq!(split.held_out.ink.select(0, 0).to_vec::<u8>().unwrap()[0], 3);
        assert_eq!(split.held_out.labels.to_vec::<i64>().unwrap()[..3], [3, 4, 5]);
        write_set(folder.path(), "train", 7);
        let split = read(folder.path()).unwrap();
        assert_eq!((split.training.len(), split.held_out.len()), (7, 1003));
    }

    #[test]
    fn what_is_wrong_with_files_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let message = || read(folder.path()).err().unwrap().to_string();
        assert!(message().contains("has neither train-images-idx3-ubyte nor t10k-images-idx3-ubyte"));
        write_set(folder.path(), "t10k", 1000);
        assert!(message().ends_with("1000 pictures are too few, 1000 are held out"));
        write(&folder.path().join("t10k-labels.idx1-ubyte"), &[3], &[1, 2, 3]);
        assert!(
            message().contains("one byte for each of the 1000 pictures is expected, not u8 [3]"),
            "{}",
            message()
        );
        write(&folder.path().join("t10k-images-idx3-ubyte"), &[3, 2, 2], &[0; 12]);
        assert!(message().contains("bytes [n, 28, 28] are expected, not u8 [3, 2, 2]"), "{}", message());
        write(&folder.path().join("t10k-images-idx3-ubyte"), &[3, 28, 28], &[0; 3 * 784]);
        write(&folder.path().join("t10k-labels.idx1-ubyte"), &[3], &[1, 2, 10]);
        assert!(message().ends_with("label 10 is no digit"));
    }

    #[test]
    fn the_network_sees_one_channel_around_zero() {
        let split = generated().unwrap();
        let (inputs, _) = split.training.dataset().tensors().clone();
        assert_eq!(*inputs.shape(), [GENERATED, 1, SIZE, SIZE]);
        let mean = inputs.mean(..).item().unwrap();
        assert!(mean.abs() < 0.3, "generated digits have about as much ink as MNIST's, not a mean of {mean}");
    }
}
