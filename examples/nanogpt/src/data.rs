//! Characters as tokens, and batches of them.

use anyhow::{Context, Result, ensure};
use orkest::prelude::*;
use orkest::random::Generator;
use std::path::Path;

/// Twenty-one of Shakespeare's sonnets (1609).
const SONNETS: &str = include_str!("../data/sonnets.txt");

/// The text of a file, or the one that is part of the program.
pub fn read(path: Option<&Path>) -> Result<String> {
    match path {
        Some(path) => std::fs::read_to_string(path).with_context(|| path.display().to_string()),
        None => Ok(SONNETS.into()),
    }
}

/// The characters of a text in order; a character's token is its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Vocabulary(Vec<char>);

impl Vocabulary {
    pub fn of(text: &str) -> Vocabulary {
        let mut characters: Vec<char> = text.chars().collect();
        characters.sort_unstable();
        characters.dedup();
        Vocabulary(characters)
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn encode(&self, text: &str) -> Result<Vec<i64>> {
        let token = |c: char| {
            let place = self.0.binary_search(&c).ok();
            place.map(|p| p as i64).with_context(|| format!("the model does not know the character {c:?}"))
        };
        text.chars().map(token).collect()
    }

    pub fn decode(&self, tokens: &[i64]) -> String {
        tokens.iter().filter_map(|&t| self.0.get(usize::try_from(t).ok()?)).collect()
    }

    /// All characters.
    pub fn text(&self) -> String {
        self.0.iter().collect()
    }
}

/// A text as tokens: nine tenths to learn from, the last tenth to be judged on.
pub struct Corpus {
    pub vocabulary: Vocabulary,
    pub train: Vec<i64>,
    pub validation: Vec<i64>,
}

impl Corpus {
    pub fn new(text: &str, block_size: usize) -> Result<Corpus> {
        let vocabulary = Vocabulary::of(text);
        let mut train = vocabulary.encode(text)?;
        let validation = train.split_off((train.len() as f64 * 0.9) as usize);
        ensure!(
            validation.len() > block_size,
            "the text has {} characters; its last tenth must be longer than the block of {block_size}",
            train.len() + validation.len()
        );
        Ok(Corpus { vocabulary, train, validation })
    }

    /// A number that other texts hardly have too (FNV-1a).
    pub fn fingerprint(&self) -> u64 {
        let bytes = self.train.iter().chain(&self.validation).flat_map(|t| (*t as u32).to_le_bytes());
        fnv(bytes.chain(self.vocabulary.text().into_bytes()))
    }
}

/// The hash FNV-1a.
pub fn fnv(bytes: impl IntoIterator<Item = u8>) -> u64 {
    bytes
        .into_iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, b| (hash ^ u64::from(b)).wrapping_mul(0x100_0000_01b3))
}

/// Inputs and targets, both `[batch_size, block_size]`: random pieces of the text, and the same pieces one character further.
pub fn get_batch(
    tokens: &[i64],
    block_size: usize,
    batch_size: usize,
    generator: &mut Generator,
    device: &Device,
) -> (Tensor, Tensor) {
    let starts = generator.randint(0, (tokens.len() - block_size) as i64, batch_size);
    let pieces = |shift: usize| {
        let piece = |&start: &i64| &tokens[start as usize + shift..][..block_size];
        let values: Vec<i64> = starts.iter().flat_map(piece).copied().collect();
        Tensor::from_slice(&values, [batch_size, block_size], device)
    };
    (pieces(0), pieces(1))
}

/// The whole text in pieces of `block_size` (the last one may be shorter), `batch_size` of them at a time.
pub fn all_batches<'a>(
    tokens: &'a [i64],
    block_size: usize,
    batch_size: usize,
    device: &'a Device,
) -> impl Iterator<Item = (Tensor, Tensor)> + 'a {
    let pairs = tokens.len() - 1;
    let full = pairs / block_size;
    let rest = (!pairs.is_multiple_of(block_size)).then_some((full * block_size, 1, pairs % block_size));
    let batches = (0..full).step_by(batch_size).map(move |first| {
        let rows = batch_size.min(full - first);
        (first * block_size, rows, block_size)
    });
    batches.chain(rest).map(move |(start, rows, length)| {
        let from = |start| Tensor::from_slice(&tokens[start..][..rows * length], [rows, length], device);
        (from(start), from(start + 1))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_come_back() {
        let vocabulary = Vocabulary::of("hello, wörld\n");
        let tokens = vocabulary.encode("röd, hell\n").unwrap();
        assert_eq!(vocabulary.decode(&tokens), "röd, hell\n");
        assert_eq!(vocabulary.text(), "\n ,dehlorwö");
        let message = vocabulary.encode("hex").unwrap_err().to_string();
        assert_eq!(message, "the model does not know the character 'x'");
    }

    #[test]
    fn targets_are_one_character_further() {
        let tokens: Vec<i64> = (0..50).collect();
        let mut generator = Generator::new(0);
        let (x, y) = get_batch(&tokens, 8, 4, &mut generator, &Device::cpu());
        // torch.manual_seed(0); torch.randint(50 - 8, (4,))
        assert_eq!(x.select(1, 0).to_vec::<i64>().unwrap(), [32, 3, 35, 30]);
        assert_eq!((&y - &x).to_vec::<i64>().unwrap(), [1; 32]);
    }

    #[test]
    fn every_character_but_the_first_is_predicted_once() {
        let tokens: Vec<i64> = (0..30).collect();
        let cpu = Device::cpu();
        let mut targets = Vec::new();
        let mut shapes = Vec::new();
        for (x, y) in all_batches(&tokens, 4, 3, &cpu) {
            assert!((&y - &x).to_vec::<i64>().unwrap().iter().all(|&d| d == 1));
            shapes.push(x.shape().to_vec());
            targets.extend(y.to_vec::<i64>().unwrap());
        }
        assert_eq!(targets, tokens[1..]);
        assert_eq!(shapes, [[3, 4], [3, 4], [1, 4], [1, 1]]);
    }

    #[test]
    fn the_sonnets_are_enough_to_learn_from() {
        let corpus = Corpus::new(&read(None).unwrap(), 64).unwrap();
        assert!(corpus.train.len() > 9_000 && corpus.vocabulary.len() < 80);
        let other = Corpus::new(&read(None).unwrap().replace("summer", "winter"), 64).unwrap();
        assert_ne!(corpus.fingerprint(), other.fingerprint());
        assert!(Corpus::new("too short", 64).is_err());
    }
}
