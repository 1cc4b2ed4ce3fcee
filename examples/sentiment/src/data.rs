//! Reads reviews, cleans them as the article does, and turns them into numbers.

use anyhow::{Result, bail};
use orkest::data::{Field, Table, TableOptions};
use orkest::prelude::*;
use std::collections::HashMap;
use std::path::Path;

/// One cleaned review.
pub struct Review {
    pub text: String,
    /// 1 for positive, 0 for negative.
    pub label: i64,
    /// Characters in the text.
    pub review_length: usize,
    /// Words in the text.
    pub word_count: usize,
}

impl Review {
    fn new(text: String, label: i64) -> Review {
        let (review_length, word_count) = (text.chars().count(), text.split_whitespace().count());
        Review { text, label, review_length, word_count }
    }
}

/// The reviews that come with the program.
pub fn embedded() -> Result<Vec<Review>> {
    reviews(include_bytes!("../data/reviews.csv"), Format::Reviews, "the embedded reviews")
}

/// Reads a file: `.csv` has the columns `review_text` and `rating`, `.tsv` the columns `sentence` and `label`.
pub fn read(path: &Path) -> Result<Vec<Review>> {
    let name = path.display().to_string();
    let format = match path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase).as_deref() {
        Some("csv") => Format::Reviews,
        Some("tsv") => Format::Sentences,
        _ => bail!("{name}: the extension must be .csv (review_text, rating) or .tsv (sentence, label)"),
    };
    clean(format, &format.options().read(path)?, &name)
}

#[derive(Clone, Copy, PartialEq)]
enum Format {
    Reviews,
    Sentences,
}

impl Format {
    fn options(self) -> TableOptions {
        match self {
            Format::Reviews => TableOptions::csv(),
            Format::Sentences => TableOptions::tsv().quoting(false),
        }
    }
}

fn reviews(bytes: &[u8], format: Format, name: &str) -> Result<Vec<Review>> {
    clean(format, &format.options().parse(bytes, name)?, name)
}

/// Fills what is missing and decides what is positive.
fn clean(format: Format, table: &Table, name: &str) -> Result<Vec<Review>> {
    let (texts, labels) = match format {
        Format::Reviews => {
            let texts = table.optional::<String>("review_text")?;
            let ratings = table.optional::<f64>("rating")?;
            if let Some(row) = ratings.iter().position(|r| r.is_some_and(f64::is_infinite)) {
                return Err(table.error(row, "rating is infinite").into());
            }
            // A column without any rating has no median: nothing in it is positive.
            let median = median(ratings.iter().flatten().copied().collect());
            let positive = ratings.iter().map(|r| r.or(median).is_some_and(|r| r >= 4.0)).collect();
            (texts.into_iter().map(Option::unwrap_or_default).collect(), positive)
        }
        Format::Sentences => (
            table.column::<String>("sentence")?,
            table.column::<Label>("label")?.iter().map(|l| l.0).collect(),
        ),
    };
    if table.is_empty() {
        bail!("{name}: has no rows below its header");
    }
    let labels: Vec<bool> = labels;
    Ok(texts.into_iter().zip(labels).map(|(text, positive)| Review::new(text, positive.into())).collect())
}

/// 1 for a positive sentence, 0 for a negative one.
struct Label(bool);

impl Field for Label {
    const EXPECTED: &'static str = "0 or 1";

    fn parse(text: &str) -> Option<Label> {
        match text.parse() {
            Ok(0.0) => Some(Label(false)),
            Ok(1.0) => Some(Label(true)),
            _ => None,
        }
    }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        n if n % 2 == 1 => Some(values[middle]),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}

/// The article's three summary lines.
pub fn summary(reviews: &[Review]) -> String {
    let positive = reviews.iter().filter(|r| r.label == 1).count();
    let length = reviews.iter().map(|r| r.review_length).sum::<usize>() as f64 / reviews.len() as f64;
    format!(
        "Dataset: {} reviews\nPositive: {positive} | Negative: {}\nAvg review length: {length:.0} chars",
        reviews.len(),
        reviews.len() - positive,
    )
}

/// Words and their numbers. 0 pads short texts, 1 stands for every unknown word.
pub struct Vocabulary {
    words: Vec<String>,
    numbers: HashMap<String, i64>,
    /// Texts are cut or padded to this many words.
    pub max_len: usize,
}

impl Vocabulary {
    pub const PAD: i64 = 0;
    pub const UNKNOWN: i64 = 1;

    /// The most frequent words, at most `size` numbers in all; of equally frequent ones the first seen. Texts will be as long as the
    /// longest review, but at most `max_len` words.
    pub fn build(reviews: &[&Review], size: usize, max_len: usize) -> Vocabulary {
        let longest = reviews.iter().map(|r| r.word_count).max().unwrap_or(0).clamp(1, max_len);
        let mut counts: HashMap<String, (usize, usize)> = HashMap::new(); // word → (count, order of first sight)
        for word in reviews.iter().flat_map(|r| words(&r.text)) {
            let seen = counts.len();
            counts.entry(word).or_insert((0, seen)).0 += 1;
        }
        let mut ranked: Vec<(String, (usize, usize))> = counts.into_iter().collect();
        ranked.sort_by_key(|(_, (count, seen))| (std::cmp::Reverse(*count), *seen));
        ranked.truncate(size.saturating_sub(2));
        Vocabulary::from_words(ranked.into_iter().map(|(word, _)| word).collect(), longest)
    }

    /// From the words numbered 2, 3, ..
    pub fn from_words(words: Vec<String>, max_len: usize) -> Vocabulary {
        let numbers = words.iter().enumerate().map(|(i, w)| (w.clone(), i as i64 + 2)).collect();
        Vocabulary { words, numbers, max_len }
    }

    /// The words numbered 2, 3, ..
    pub fn words(&self) -> &[String] {
        &self.words
    }

    /// How many numbers there are, with padding and the unknown word.
    pub fn len(&self) -> usize {
        self.words.len() + 2
    }

    /// The numbers of a text's words, cut or padded to `max_len`.
    pub fn encode(&self, text: &str) -> Vec<i64> {
        let known = |word: String| self.numbers.get(&word).copied().unwrap_or(Self::UNKNOWN);
        let mut numbers: Vec<i64> = words(text).map(known).take(self.max_len).collect();
        numbers.resize(self.max_len, Self::PAD);
        numbers
    }
}

/// Lower-case words without the punctuation around them; punctuation that stands alone counts as a word.
fn words(text: &str) -> impl Iterator<Item = String> + '_ {
    text.split_whitespace().map(|word| {
        let bare = word.trim_matches(|c: char| !c.is_alphanumeric());
        if bare.is_empty() { word.to_lowercase() } else { bare.to_lowercase() }
    })
}

/// Encoded reviews: `[reviews, max_len]` inputs and `[reviews]` labels.
pub fn dataset(reviews: &[&Review], vocabulary: &Vocabulary, device: &Device) -> TensorDataset {
    let numbers: Vec<i64> = reviews.iter().flat_map(|r| vocabulary.encode(&r.text)).collect();
    let labels: Vec<i64> = reviews.iter().map(|r| r.label).collect();
    let inputs = Tensor::from_slice(&numbers, [reviews.len(), vocabulary.max_len], device);
    TensorDataset::new((inputs, Tensor::from_slice(&labels, reviews.len(), device)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cleaning_gives_pandas_numbers() {
        // Run through the article's block in pandas: median 3.5, three positives, mean length 6.
        let csv = "review_text,rating\ngreat,5\nNA,4\n\"bad, \"\"really\"\"\nbad\",1\n\"é🙂 x  y\",\nok,3\n,2\nfine,4\n";
        let cleaned = reviews(csv.as_bytes(), Format::Reviews, "test").unwrap();
        assert_eq!(cleaned.iter().map(|r| r.label).collect::<Vec<_>>(), [1, 1, 0, 0, 0, 0, 1]);
        assert_eq!(cleaned.iter().map(|r| r.review_length).collect::<Vec<_>>(), [5, 0, 17, 7, 2, 0, 4]);
        assert_eq!(cleaned.iter().map(|r| r.word_count).collect::<Vec<_>>(), [1, 0, 3, 3, 1, 0, 1]);
        assert_eq!(
            summary(&cleaned),
            "Dataset: 7 reviews\nPositive: 3 | Negative: 4\nAvg review length: 5 chars"
        );
    }

    #[test]
    fn bad_rows_are_named() {
        let message = |csv: &[u8], format| reviews(csv, format, "x").err().unwrap().to_string();
        assert_eq!(
            message(b"review_text,rating\na,5\nb,many\n", Format::Reviews),
            "x, line 3: rating \"many\" is not a number"
        );
        assert!(message(b"review_text\na\n", Format::Reviews).contains("column \"rating\" is missing"));
        assert_eq!(message(b"sentence\tlabel\n", Format::Sentences), "x: has no rows below its header");
        assert_eq!(
            message(b"sentence\tlabel\nfine\tyes\n", Format::Sentences),
            "x, line 2: label \"yes\" is not 0 or 1"
        );
        assert_eq!(
            message(b"sentence\tlabel\n\xff\xfe\t1\n", Format::Sentences),
            "x, line 2: is not valid UTF-8 text"
        );
    }

    #[test]
    fn words_are_ranked_by_count_then_first_sight() {
        let review = |text: &str| Review::new(text.into(), 1);
        let all = [review("good good, Bad"), review("bad ugly ..."), review("ugly good")];
        let vocabulary = Vocabulary::build(&all.iter().collect::<Vec<_>>(), 5, 4);
        assert_eq!(vocabulary.words(), ["good", "bad", "ugly"]);
        // Three words are the longest text here.
        assert_eq!(vocabulary.encode("UGLY and"), [4, Vocabulary::UNKNOWN, Vocabulary::PAD]);
        assert_eq!(vocabulary.encode("bad good ugly good"), [3, 2, 4]);
    }
}
