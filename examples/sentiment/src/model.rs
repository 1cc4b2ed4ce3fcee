//! The article's classifier, and how it is stored.

use crate::data::Vocabulary;
use anyhow::{Context, Result, ensure};
use orkest::prelude::*;
use serde_json::{Value, json};
use std::path::Path;

/// Averages the embeddings of a text's words and judges the average with two linear layers.
#[derive(Module)]
pub struct SentimentClassifier {
    embedding: Embedding,
    fc1: Linear,
    fc2: Linear,
    dropout: Dropout,
}

impl SentimentClassifier {
    pub fn new(vocab_size: usize, embed_dim: usize, hidden_dim: usize, output_dim: usize) -> Self {
        Self {
            embedding: Embedding::new(vocab_size, embed_dim),
            fc1: Linear::new(embed_dim, hidden_dim),
            fc2: Linear::new(hidden_dim, output_dim),
            dropout: Dropout::new(0.3),
        }
    }

    /// `[batch, words]` word numbers → `[batch, classes]` logits.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let embedded = self.embedding.forward(x).mean(1);
        let hidden = self.dropout.forward(&self.fc1.forward(&embedded).relu());
        self.fc2.forward(&hidden)
    }
}

/// The sizes the article uses.
const EMBED_DIM: usize = 128;
const HIDDEN_DIM: usize = 256;
const CLASSES: usize = 2;

/// The article's model for a vocabulary.
pub fn build(vocabulary: &Vocabulary) -> SentimentClassifier {
    SentimentClassifier::new(vocabulary.len(), EMBED_DIM, HIDDEN_DIM, CLASSES)
}

/// Writes `model.safetensors` and `vocabulary.json` into `folder`.
pub fn save(model: &SentimentClassifier, vocabulary: &Vocabulary, folder: &Path) -> Result<()> {
    let json = json!({ "max_len": vocabulary.max_len, "words": vocabulary.words() }).to_string();
    orkest::write_file(folder.join("vocabulary.json"), |out| write!(out, "{json}"))?;
    let mut state = model.state_dict();
    state.metadata.insert("vocabulary".into(), fingerprint(&json));
    state.save(folder.join("model.safetensors"))?;
    Ok(())
}

/// Reads what [`save`] wrote.
pub fn load(folder: &Path) -> Result<(SentimentClassifier, Vocabulary)> {
    let path = folder.join("vocabulary.json");
    let text =
        std::fs::read_to_string(&path).with_context(|| format!("{}: cannot be read", path.display()))?;
    let vocabulary = parse_vocabulary(&text).with_context(|| format!("{}: is damaged", path.display()))?;
    let model = build(&vocabulary);
    load_weights(&model, &folder.join("model.safetensors"), &text)?;
    Ok((model, vocabulary))
}

/// A number that other texts hardly have too (FNV-1a). It is stored with the weights: a crash between two files, or a copy of one of
/// them, would else leave weights whose words have other numbers.
fn fingerprint(text: &str) -> String {
    let hash = text
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, b| (hash ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    format!("{hash:016x}")
}

/// Reads weights that were stored with a vocabulary.
fn load_weights(model: &impl Module, file: &Path, vocabulary: &str) -> Result<()> {
    let state = load_safetensors(file)?;
    if let Some(stored) = state.metadata.get("vocabulary") {
        ensure!(
            *stored == fingerprint(vocabulary),
            "{}: was stored with another vocabulary.json; train again",
            file.display()
        );
    }
    model.load_state_dict(&state, true).with_context(|| file.display().to_string())?;
    Ok(())
}

fn parse_vocabulary(text: &str) -> Result<Vocabulary> {
    let json: Value = serde_json::from_str(text)?;
    let max_len = json["max_len"]
        .as_u64()
        .filter(|n| (1..=1 << 20).contains(n))
        .context("max_len is missing or no length")?;
    let words = json["words"].as_array().context("words are missing")?;
    let words = words.iter().map(|w| w.as_str().map(String::from)).collect::<Option<Vec<_>>>();
    Ok(Vocabulary::from_words(words.context("a word is no text")?, max_len as usize))
}
