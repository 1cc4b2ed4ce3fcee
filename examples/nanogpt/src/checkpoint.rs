//! Everything that a run needs to go on as if it had never stopped, in one file that is replaced at once.
//!
//! Weights, the optimizer's memory, the state of the random numbers (and so the place in the data, which is drawn at random), the
//! losses so far, and the options. The learning rate follows from the step.

use crate::data::{Corpus, Vocabulary, fnv};
use crate::model::{GPT, GPTConfig};
use crate::train::Settings;
use anyhow::{Context, Result, bail, ensure};
use orkest::nn::StateDict;
use orkest::optim::OptimizerState;
use orkest::prelude::*;
use orkest::random::GeneratorState;
use orkest::{rng_state, set_rng_state};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// How far training is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Progress {
    /// The training loss of each step.
    pub losses: Vec<f64>,
    /// Steps and the estimates of the validation loss after them.
    pub evaluations: Vec<(usize, f64)>,
}

impl Progress {
    /// How many steps have been taken.
    pub fn step(&self) -> usize {
        self.losses.len()
    }

    /// The mean loss of the last steps.
    pub fn recent(&self) -> f64 {
        let last = &self.losses[self.losses.len().saturating_sub(20)..];
        last.iter().sum::<f64>() / last.len() as f64
    }

    /// Takes over the losses of the last steps.
    pub fn record(&mut self, losses: &mut Vec<Tensor>, trace: bool) -> Result<()> {
        let values = Tensor::stack(losses, 0).to_vec::<f32>()?;
        losses.clear();
        for loss in values {
            let step = self.losses.len() + 1;
            ensure!(loss.is_finite(), "the loss became {loss} in step {step}; a smaller --lr may help");
            if trace {
                println!("step {step} loss {:.17}", f64::from(loss));
            }
            self.losses.push(f64::from(loss));
        }
        Ok(())
    }
}

/// Where `--save` keeps the checkpoint.
pub fn file_in(folder: &Path) -> PathBuf {
    folder.join("checkpoint.safetensors")
}

/// Writes the file: whoever reads it, also after a crash, finds the old checkpoint or the new one.
pub fn save(
    file: &Path,
    model: &GPT,
    optimizer: &AdamW,
    progress: &Progress,
    settings: &Settings,
    corpus: &Corpus,
) -> Result<()> {
    let mut all = StateDict::new();
    for (name, tensor) in model.state_dict() {
        all.insert(format!("model.{name}"), tensor);
    }
    let optimizer = optimizer.state_dict().to_state_dict();
    all.metadata.extend(optimizer.metadata.clone());
    for (name, tensor) in optimizer {
        all.insert(format!("optimizer.{name}"), tensor);
    }
    let cpu = Device::cpu();
    let random = rng_state();
    all.insert("random.words", Tensor::new(random.words.map(i64::from), &cpu));
    all.insert("losses", Tensor::new(progress.losses.clone(), (DType::F64, &cpu)));
    let evaluations: Vec<f64> =
        progress.evaluations.iter().flat_map(|&(step, loss)| [step as f64, loss]).collect();
    all.insert("evaluations", Tensor::new(evaluations, (DType::F64, &cpu)));
    let about = json!({
        "options": settings.to_json(),
        "text": format!("{:016x}", corpus.fingerprint()),
        "characters": corpus.vocabulary.text(),
        "random": {
            "seed": random.seed,
            "position": random.position,
            "next_normal": random.next_normal.map(f64::to_bits),
            "philox_offset": random.philox_offset,
        },
    });
    all.metadata.insert("nanogpt".into(), about.to_string());
    let checksum = checksum(&all)?;
    all.metadata.insert("checksum".into(), checksum);
    Ok(all.save(file)?)
}

/// Continues a run: changes model, optimizer and random numbers to what they were, and returns how far it was.
pub fn load(
    file: &Path,
    model: &GPT,
    optimizer: &mut AdamW,
    settings: &Settings,
    corpus: &Corpus,
) -> Result<Progress> {
    let mut read = || -> Result<Progress> {
        let (all, about) = open(file)?;
        for (option, now) in &settings.to_json() {
            let then = &about["options"][option];
            ensure!(
                then == now,
                "it was made with --{option} {then}, not {now}; give the same options to resume"
            );
        }
        let text = format!("{:016x}", corpus.fingerprint());
        ensure!(
            about["text"] == text.as_str(),
            "it was made with another text; give the same --data to resume"
        );
        let random =
            random_state(&all, &about["random"]).context("the state of the random numbers is incomplete")?;
        let losses = all.get("losses").context("the losses are missing")?.to_vec::<f64>()?;
        let evaluations = all.get("evaluations").context("the evaluations are missing")?.to_vec::<f64>()?;
        let mut memory = part(&all, "optimizer.");
        memory.metadata = all.metadata.clone();
        optimizer.load_state_dict(&OptimizerState::from_state_dict(&memory)?)?;
        model.load_state_dict(&part(&all, "model."), true)?;
        set_rng_state(random);
        let evaluations = evaluations.chunks_exact(2).map(|pair| (pair[0] as usize, pair[1])).collect();
        Ok(Progress { losses, evaluations })
    };
    read().with_context(|| format!("cannot resume from {}", file.display()))
}

/// The model of a checkpoint and its characters, to write with.
pub fn load_model(file: &Path) -> Result<(GPT, Vocabulary)> {
    let read = || -> Result<(GPT, Vocabulary)> {
        let (all, about) = open(file)?;
        let vocabulary = Vocabulary::of(about["characters"].as_str().context("the characters are missing")?);
        let options = &about["options"];
        let size = |name: &str| {
            let size = options[name].as_u64().filter(|&n| (1..1 << 24).contains(&n));
            size.map(|n| n as usize).with_context(|| format!("--{name} is {}", options[name]))
        };
        let config = GPTConfig {
            block_size: size("block")?,
            vocab_size: vocabulary.len(),
            n_layer: size("layers")?,
            n_head: size("heads")?,
            n_embd: size("width")?,
            dropout: 0.0,
            bias: options["bias"].as_bool().context("--bias is missing")?,
        };
        let model = GPT::new(config);
        model.load_state_dict(&part(&all, "model."), true)?;
        Ok((model, vocabulary))
    };
    read().with_context(|| format!("cannot use {}", file.display()))
}

/// The checked content of the file.
fn open(file: &Path) -> Result<(StateDict, Value)> {
    let mut all = load_safetensors(file)?;
    let Some(stored) = all.metadata.remove("checksum") else { bail!("it is no checkpoint of nanogpt") };
    all.metadata.remove("format"); // which saving adds
    ensure!(stored == checksum(&all)?, "the file is damaged: its checksum does not fit its content");
    let about = all.metadata.get("nanogpt").context("it is no checkpoint of nanogpt")?;
    let about = serde_json::from_str(about)?;
    Ok((all, about))
}

/// Of names, values and metadata.
fn checksum(all: &StateDict) -> Result<String> {
    let mut entries: Vec<(&str, &Tensor)> = all.iter().collect();
    entries.sort_unstable_by_key(|(name, _)| *name);
    let mut parts: Vec<u64> = Vec::new();
    for (name, tensor) in entries {
        parts.push(fnv(name.bytes()));
        parts.push(fnv(tensor.to_bytes()?));
    }
    for (name, value) in &all.metadata {
        parts.push(fnv(name.bytes().chain(value.bytes())));
    }
    Ok(format!("{:016x}", fnv(parts.into_iter().flat_map(u64::to_le_bytes))))
}

/// The entries whose names begin with `prefix`, without it.
fn part(all: &StateDict, prefix: &str) -> StateDict {
    all.iter().filter_map(|(name, t)| Some((name.strip_prefix(prefix)?, t.clone()))).collect()
}

fn random_state(all: &StateDict, about: &Value) -> Option<GeneratorState> {
    let words: Vec<u32> = all
        .get("random.words")?
        .to_vec::<i64>()
        .ok()?
        .into_iter()
        .map(|w| u32::try_from(w).ok())
        .collect::<Option<_>>()?;
    Some(GeneratorState {
        seed: about["seed"].as_u64()?,
        words: words.try_into().ok()?,
        position: u32::try_from(about["position"].as_u64()?).ok()?,
        next_normal: about["next_normal"].as_u64().map(f64::from_bits),
        philox_offset: about["philox_offset"].as_u64()?,
    })
}
