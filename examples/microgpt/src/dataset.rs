//! Names in random order, and the numbers that stand for their letters.

use crate::Random;
use anyhow::{Context, Result, ensure};
use std::path::Path;

/// What the model learns from.
pub struct Dataset {
    /// The names, shuffled.
    pub docs: Vec<String>,
    /// The letters that occur, sorted: a letter's position is its token.
    pub letters: Vec<char>,
}

impl Dataset {
    /// The lines of a file, or the names that come with the program.
    ///
    /// # Errors
    /// If the file cannot be read or has no names.
    pub fn new(path: Option<&Path>, random: &mut Random) -> Result<Dataset> {
        let Some(path) = path else { return Dataset::from_text(include_str!("../data/names.txt"), random) };
        let name = path.display();
        let text = std::fs::read_to_string(path).with_context(|| format!("{name}: cannot be read"))?;
        Dataset::from_text(&text, random).with_context(|| name.to_string())
    }

    /// The lines of a text without the white space around them; empty ones do not count.
    ///
    /// # Errors
    /// If nothing is left.
    pub fn from_text(text: &str, random: &mut Random) -> Result<Dataset> {
        let lines = text.split(['\n', '\r']).map(str::trim);
        let mut docs: Vec<String> = lines.filter(|line| !line.is_empty()).map(str::to_owned).collect();
        ensure!(!docs.is_empty(), "there are no names, one per line, to learn from");
        random.shuffle(&mut docs);
        let mut letters: Vec<char> = docs.iter().flat_map(|doc| doc.chars()).collect();
        letters.sort_unstable();
        letters.dedup();
        Ok(Dataset { docs, letters })
    }

    /// The token at both ends of every name ("beginning of sequence").
    pub fn bos(&self) -> usize {
        self.letters.len()
    }

    /// The number of tokens.
    pub fn vocab_size(&self) -> usize {
        self.letters.len() + 1
    }

    /// The tokens of the name that a step learns from.
    pub fn tokens(&self, step: usize) -> Vec<i64> {
        let token = |letter| self.letters.partition_point(|l| *l < letter) as i64;
        let (bos, doc) = (self.bos() as i64, &self.docs[step % self.docs.len()]);
        [bos].into_iter().chain(doc.chars().map(token)).chain([bos]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Seed;

    #[test]
    fn a_name_stands_between_two_ends() {
        let data = Dataset::from_text("  cab\r\n\n", &mut Random::new(&Seed::from(1))).unwrap();
        assert_eq!((data.letters.as_slice(), data.vocab_size()), (&['a', 'b', 'c'][..], 4));
        assert_eq!(data.tokens(0), [3, 2, 0, 1, 3]);
        assert_eq!(data.tokens(5), data.tokens(0)); // again from the start
    }

    #[test]
    fn files_without_names_are_refused_by_name() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = Dataset::new(Some(file.path()), &mut Random::new(&Seed::from(1))).err().unwrap();
        let message = format!("{error:#}");
        assert!(
            message.contains("no names") && message.contains(&*file.path().to_string_lossy()),
            "{message}"
        );
    }
}
