//! Labelled sentences, and words as numbers.

use anyhow::{Context, Result, bail};
use orkest::data::{ListDataset, TableOptions};
use orkest::prelude::*;
use std::collections::HashMap;
use std::path::Path;

/// The number that pads short texts, and the one of all words that are not in the vocabulary.
pub const PAD: i64 = 0;
pub const UNK: i64 = 1;

/// A sentence, and 1 if it is positive.
pub type Sample = (String, i64);

/// The sentences that come with the program.
pub fn embedded() -> Result<Vec<Sample>> {
    let table = tsv().parse(include_bytes!("../data/phrases.tsv"), "the embedded phrases")?;
    samples(&table)
}

/// Reads a file of lines with a sentence, a tab, and 0 or 1, below a line that names the columns `sentence` and `label`.
pub fn read(path: &Path) -> Result<Vec<Sample>> {
    samples(&tsv().read(path)?)
}

/// A quote is a character like any other, as in the files of GLUE.
fn tsv() -> TableOptions {
    TableOptions::tsv().quoting(false)
}

fn samples(table: &orkest::data::Table) -> Result<Vec<Sample>> {
    let (texts, labels) = (table.column::<String>("sentence")?, table.column::<i64>("label")?);
    if let Some(row) = labels.iter().position(|label| !(0..2).contains(label)) {
        return Err(table.error(row, format!("label {} is not 0 or 1", labels[row])).into());
    }
    if texts.is_empty() {
        bail!(table.error(0, "there are no sentences"));
    }
    Ok(texts.into_iter().zip(labels).collect())
}

/// Splits at random: nine tenths to learn from, one to be judged on.
pub fn hold_out_a_tenth(samples: Vec<Sample>) -> Result<(Vec<Sample>, Vec<Sample>)> {
    if samples.len() < 10 {
        bail!("{} sentences are too few to hold out a tenth of them; give --eval", samples.len());
    }
    let [training, held_out] = random_split(ListDataset::new(samples), [0.9, 0.1]);
    let all =
        |part: &dyn Dataset<Item = Sample>| (0..part.len()).map(|i| part.get(i)).collect::<Result<_, _>>();
    let parts = all(&training).and_then(|training| Ok((training, all(&held_out)?)));
    parts.map_err(anyhow::Error::from_boxed)
}

/// Numbers from 2 for the most frequent words of `texts`; of equally frequent ones the first seen.
pub fn build_vocab<'a>(texts: impl IntoIterator<Item = &'a str>, max_vocab: usize) -> HashMap<String, i64> {
    let mut counts: HashMap<String, (usize, usize)> = HashMap::new(); // word → (count, order of first sight)
    for word in texts.into_iter().flat_map(words) {
        let seen = counts.len();
        counts.entry(word).or_insert((0, seen)).0 += 1;
    }
    let mut ranked: Vec<(String, (usize, usize))> = counts.into_iter().collect();
    ranked.sort_by_key(|(_, (count, seen))| (std::cmp::Reverse(*count), *seen));
    ranked.into_iter().take(max_vocab).zip(2..).map(|((word, _), number)| (word, number)).collect()
}

/// The numbers of each text's words, cut and padded to `max_len`: `[texts, max_len]`.
pub fn encode_texts<'a>(
    texts: impl IntoIterator<Item = &'a str>,
    vocab: &HashMap<String, i64>,
    max_len: usize,
) -> Tensor {
    let mut encoded = Vec::new();
    let mut count = 0;
    for text in texts {
        let tokens = words(text).map(|word| vocab.get(&word).copied().unwrap_or(UNK)).take(max_len);
        encoded.extend(tokens);
        count += 1;
        encoded.resize(count * max_len, PAD);
    }
    Tensor::from_slice(&encoded, [count, max_len], ())
}

fn words(text: &str) -> impl Iterator<Item = String> {
    text.to_lowercase().split_whitespace().map(String::from).collect::<Vec<_>>().into_iter()
}

/// Encoded sentences with their labels, in batches.
pub fn loader(
    samples: &[Sample],
    vocab: &HashMap<String, i64>,
    max_len: usize,
    batch_size: usize,
    device: &Device,
) -> DataLoader {
    let inputs = encode_texts(samples.iter().map(|(text, _)| text.as_str()), vocab, max_len);
    let labels: Vec<i64> = samples.iter().map(|(_, label)| *label).collect();
    let dataset = TensorDataset::new((inputs, Tensor::from_slice(&labels, labels.len(), ())));
    DataLoader::new(dataset).batch_size(batch_size).device(device)
}

/// The vocabulary as it is stored: the words numbered 2, 3, ..
pub fn words_in_order(vocab: &HashMap<String, i64>) -> Vec<&str> {
    let mut words: Vec<(&str, i64)> = vocab.iter().map(|(word, number)| (word.as_str(), *number)).collect();
    words.sort_by_key(|(_, number)| *number);
    words.into_iter().map(|(word, _)| word).collect()
}

/// The vocabulary of stored words.
pub fn vocab_of(words: Vec<String>) -> Result<HashMap<String, i64>> {
    let count = words.len();
    let vocab: HashMap<String, i64> = words.into_iter().zip(2..).collect();
    (vocab.len() == count).then_some(vocab).context("a word is there twice")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_numbered_by_count_then_first_sight() {
        // Counter(...).most_common(3) in CPython: [('b', 3), ('a', 2), ('c', 2)]
        let vocab = build_vocab(["a B c", "b  a", "d c\tb"], 3);
        assert_eq!(words_in_order(&vocab), ["b", "a", "c"]);
        assert_eq!(vocab["b"], 2);
    }

    #[test]
    fn texts_are_cut_and_padded() {
        let vocab = build_vocab(["good bad"], 10);
        let encoded = encode_texts(["GOOD film", "", "bad bad bad bad"], &vocab, 3);
        assert_eq!(encoded.shape(), &[3, 3]);
        assert_eq!(encoded.to_vec::<i64>().unwrap(), [2, UNK, PAD, PAD, PAD, PAD, 3, 3, 3]);
    }

    #[test]
    fn a_wrong_label_is_named() {
        let message = |text: &str| samples(&tsv().parse(text, "x.tsv").unwrap()).unwrap_err().to_string();
        assert_eq!(message("sentence\tlabel\nfine\t1\nso so\t2\n"), "x.tsv, line 3: label 2 is not 0 or 1");
        assert!(message("sentence\tlabel\n").contains("there are no sentences"));
        assert!(message("sentence\nfine\n").contains("label"));
    }

    #[test]
    fn quotes_belong_to_the_text() {
        let table = tsv().parse("sentence\tlabel\n`` a \"b\tc\" 's\t1\n", "x.tsv");
        assert!(table.is_err(), "three fields");
        let read = samples(&tsv().parse("sentence\tlabel\n\"so\" \"good\t1\n", "x.tsv").unwrap()).unwrap();
        assert_eq!(read, [("\"so\" \"good".to_string(), 1)]);
    }

    #[test]
    fn the_parts_are_all_there_is() {
        manual_seed(1);
        let all: Vec<Sample> = (0..25).map(|i| (i.to_string(), i % 2)).collect();
        let (training, held_out) = hold_out_a_tenth(all.clone()).unwrap();
        assert_eq!((training.len(), held_out.len()), (23, 2));
        let mut together = [training, held_out].concat();
        together.sort_by_key(|(text, _)| text.parse::<i64>().unwrap());
        assert_eq!(together, all);
    }
}
