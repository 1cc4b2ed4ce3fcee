//! The article's model and its training, and how both end up in files.

use crate::data::{PAD, vocab_of, words_in_order};
use anyhow::{Context, Result, ensure};
use orkest::data::progress;
use orkest::prelude::*;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::Path;

/// Reads a text word by word and judges what it remembers at the end.
#[derive(Module)]
pub struct TextClassifier {
    embedding: Embedding,
    lstm: LSTM,
    classifier: Linear,
    literal: bool,
}

impl TextClassifier {
    pub fn new(vocab_size: usize, embed_dim: usize, hidden_dim: usize) -> Self {
        Self {
            embedding: Embedding::new(vocab_size, embed_dim).padding_idx(0),
            lstm: LSTM::new(embed_dim, hidden_dim).batch_first(),
            classifier: Linear::new(hidden_dim, 2),
            literal: false,
        }
    }

    /// Reads the padding too, as the article's code does. What is left of a short text after a hundred steps is next to nothing.
    pub fn literal(mut self, literal: bool) -> Self {
        self.literal = literal;
        self
    }

    /// `[batch, words]` word numbers → `[batch, classes]` logits.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let (_, (hidden, _)) = if self.literal {
            let embedded = self.embedding.forward(x);
            let (output, state) = self.lstm.forward(&embedded, None);
            (output, state)
        } else {
            let lengths = x.ne(PAD).sum(1).maximum(1); // a text without words is one step of padding
            let words = pack_padded_sequence(x, &lengths, true, false);
            let embedded = words.with_data(self.embedding.forward(words.data()));
            let (output, state) = self.lstm.forward(&embedded, None);
            (output.data().clone(), state)
        };
        self.classifier.forward(&hidden.squeeze(0))
    }
}

/// The mean loss of the last epoch.
pub fn train_model(model: &TextClassifier, train_loader: &DataLoader, epochs: usize, lr: f64) -> Result<f64> {
    let criterion = CrossEntropyLoss::new();
    let mut optimizer = Adam::new(model.parameters(), lr);
    let mut mean_loss = f64::NAN;
    for epoch in 0..epochs {
        let (mut total_loss, mut correct, mut total) = (0.0, 0.0, 0);
        model.train();
        for (inputs, labels) in progress(train_loader, format!("Epoch {}/{epochs}", epoch + 1)) {
            optimizer.zero_grad();
            let outputs = model.forward(&inputs);
            let loss = criterion.forward(&outputs, &labels);
            loss.backward();
            optimizer.step();
            total_loss += loss.item()?;
            correct += outputs.argmax(1).eq(&labels).sum(..).item()?;
            total += labels.size(0);
        }
        ensure!(
            total_loss.is_finite(),
            "the loss became {total_loss} in epoch {}; a smaller --lr may help",
            epoch + 1
        );
        let accuracy = correct / total as f64;
        println!("Epoch {}/{epochs} - Loss: {total_loss:.4}, Accuracy: {accuracy:.3}", epoch + 1);
        mean_loss = total_loss / train_loader.len() as f64;
    }
    Ok(mean_loss)
}

/// The share of texts that the model judges right.
pub fn accuracy(model: &TextClassifier, loader: &DataLoader) -> Result<f64> {
    model.eval();
    let mut correct = 0.0;
    for (inputs, labels) in loader {
        correct += no_grad(|| model.forward(&inputs)).argmax(1).eq(&labels).sum(..).item()?;
    }
    Ok(correct / loader.dataset_len() as f64)
}

/// The sizes the article uses.
const EMBED_DIM: usize = 64;
const HIDDEN_DIM: usize = 128;

/// A new model for a vocabulary.
pub fn build(vocab: &HashMap<String, i64>, literal: bool) -> TextClassifier {
    TextClassifier::new(vocab.len() + 2, EMBED_DIM, HIDDEN_DIM).literal(literal)
}

/// Writes `text_classifier.safetensors` and `vocabulary.json` into `folder`.
pub fn save(
    model: &TextClassifier,
    vocab: &HashMap<String, i64>,
    max_len: usize,
    folder: &Path,
) -> Result<()> {
    let json = json!({ "max_len": max_len, "literal": model.literal, "words": words_in_order(vocab) });
    let json = json.to_string();
    orkest::write_file(folder.join("vocabulary.json"), |out| write!(out, "{json}"))?;
    let mut state = model.state_dict();
    state.metadata.insert("vocabulary".into(), fingerprint(&json));
    state.save(folder.join("text_classifier.safetensors"))?;
    Ok(())
}

/// Reads what [`save`] wrote: the model, its vocabulary, and how many words of a text it reads.
pub fn load(folder: &Path) -> Result<(TextClassifier, HashMap<String, i64>, usize)> {
    let path = folder.join("vocabulary.json");
    let text =
        std::fs::read_to_string(&path).with_context(|| format!("{}: cannot be read", path.display()))?;
    let (vocab, max_len, literal) =
        parse(&text).with_context(|| format!("{}: is damaged", path.display()))?;
    let model = build(&vocab, literal);
    load_weights(&model, &folder.join("text_classifier.safetensors"), &text)?;
    Ok((model, vocab, max_len))
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

fn parse(text: &str) -> Result<(HashMap<String, i64>, usize, bool)> {
    let json: Value = serde_json::from_str(text)?;
    let max_len = json["max_len"].as_u64().filter(|n| (1..=1 << 20).contains(n));
    let literal = json["literal"].as_bool().context("literal is neither true nor false")?;
    let words = json["words"].as_array().context("words are missing")?;
    let words = words.iter().map(|w| w.as_str().map(String::from)).collect::<Option<Vec<_>>>();
    let vocab = vocab_of(words.context("a word is no text")?)?;
    Ok((vocab, max_len.context("max_len is missing or no length")? as usize, literal))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::encode_texts;

    fn vocab() -> HashMap<String, i64> {
        vocab_of(["good", "bad", "film"].map(String::from).into()).unwrap()
    }

    #[test]
    fn padding_changes_nothing_unless_taken_literally() {
        manual_seed(0);
        let vocab = vocab();
        let texts = ["good film", "bad", ""];
        let [short, long] = [2, 30].map(|max_len| encode_texts(texts, &vocab, max_len));
        let model = build(&vocab, false);
        // How many rows a product has decides how its sums are cut, hence the last digit.
        let apart = |a: &Tensor, b: &Tensor| (a - b).abs().max(..).item().unwrap();
        let packed = model.forward(&short);
        assert!(apart(&packed, &model.forward(&long)) < 1e-6);
        let model = model.literal(true);
        assert!(apart(&model.forward(&short), &model.forward(&long)) > 1e-4);
        let first = |logits: &Tensor| logits.select(0, 0);
        assert!(
            apart(&first(&model.forward(&short)), &first(&packed)) < 1e-6,
            "the first text fills its row"
        );
    }

    #[test]
    fn names_in_the_file_are_pytorchs() {
        let names: Vec<String> = build(&vocab(), false).state_dict().keys().map(String::from).collect();
        assert_eq!(
            names,
            [
                "embedding.weight",
                "lstm.weight_ih_l0",
                "lstm.weight_hh_l0",
                "lstm.bias_ih_l0",
                "lstm.bias_hh_l0",
                "classifier.weight",
                "classifier.bias"
            ]
        );
    }

    #[test]
    fn what_was_saved_judges_as_before() {
        manual_seed(0);
        let (folder, vocab) = (tempfile::tempdir().unwrap(), vocab());
        let model = build(&vocab, false);
        save(&model, &vocab, 7, folder.path()).unwrap();
        let (loaded, words, max_len) = load(folder.path()).unwrap();
        assert_eq!((words, max_len), (vocab.clone(), 7));
        let x = encode_texts(["a good film", "bad film"], &vocab, max_len);
        assert_eq!(loaded.forward(&x).to_vec::<f32>().unwrap(), model.forward(&x).to_vec::<f32>().unwrap());

        // The vocabulary of another training, as after a crash between the two files.
        let other = r#"{"max_len":7,"literal":false,"words":["bad","good","film"]}"#;
        std::fs::write(folder.path().join("vocabulary.json"), other).unwrap();
        let error = format!("{:#}", load(folder.path()).err().unwrap());
        assert!(error.ends_with("was stored with another vocabulary.json; train again"), "{error}");

        std::fs::write(
            folder.path().join("vocabulary.json"),
            r#"{"max_len":7,"literal":false,"words":["a","a"]}"#,
        )
        .unwrap();
        let error = format!("{:#}", load(folder.path()).err().unwrap());
        assert!(error.ends_with("vocabulary.json: is damaged: a word is there twice"), "{error}");
    }
}
