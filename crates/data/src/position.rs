//! Where a loader is in its epoch: enough to make the same order again and go on in its midst.

use crate::loader::lock;
use orkest_core::random::GeneratorState;
use orkest_core::{Error, Result};
use serde_json::{Value, json};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A place in an epoch, as it is saved.
#[derive(Clone, Debug)]
pub(crate) struct Position {
    /// Seeds what data sets draw.
    pub base_seed: u64,
    /// Where the order comes from, once it has been drawn.
    pub numbers: Option<Numbers>,
    /// The next batch.
    pub batch: usize,
}

/// Where an order comes from.
#[derive(Clone, Debug)]
pub(crate) enum Numbers {
    Sequential,
    Seed(u64),
    State(Box<GeneratorState>),
}

/// An epoch that is being gone through: the iterator moves it on, the loader can look at it.
pub(crate) struct Epoch {
    pub base_seed: u64,
    numbers: Mutex<Option<Numbers>>,
    batch: AtomicUsize,
}

impl Epoch {
    pub fn new(position: Position) -> Epoch {
        Epoch {
            base_seed: position.base_seed,
            numbers: Mutex::new(position.numbers),
            batch: AtomicUsize::new(position.batch),
        }
    }

    pub fn position(&self) -> Position {
        Position { base_seed: self.base_seed, numbers: self.numbers(), batch: self.batch() }
    }

    pub fn numbers(&self) -> Option<Numbers> {
        lock(&self.numbers).clone()
    }

    pub fn numbers_or(&self, draw: impl FnOnce() -> Numbers) -> Numbers {
        lock(&self.numbers).get_or_insert_with(draw).clone()
    }

    /// The next batch.
    pub fn batch(&self) -> usize {
        self.batch.load(Ordering::Relaxed)
    }

    pub fn advance(&self) {
        self.batch.fetch_add(1, Ordering::Relaxed);
    }
}

pub(crate) fn to_json(
    position: Option<&Position>,
    generator: Option<&GeneratorState>,
    dataset_len: usize,
    batch_size: usize,
) -> Value {
    let position = position.map(|p| {
        let numbers = match &p.numbers {
            None => Value::Null,
            Some(Numbers::Sequential) => json!("sequential"),
            Some(Numbers::Seed(seed)) => json!(seed),
            Some(Numbers::State(state)) => generator_to_json(state),
        };
        json!({ "base_seed": p.base_seed, "numbers": numbers, "batch": p.batch })
    });
    json!({
        "dataset_len": dataset_len,
        "batch_size": batch_size,
        "position": position,
        "generator": generator.map(generator_to_json),
    })
}

pub(crate) fn from_json(
    state: &Value,
    dataset_len: usize,
    batch_size: usize,
) -> Result<(Option<Position>, Option<GeneratorState>)> {
    for (name, mine) in [("dataset_len", dataset_len), ("batch_size", batch_size)] {
        let saved = state[name].as_u64().ok_or_else(|| no_state(name))?;
        if saved != mine as u64 {
            return Err(Error::Data(format!(
                "DataLoader: the saved state is of a loader with {name} {saved}, this one's is {mine}"
            )));
        }
    }
    let generator = match &state["generator"] {
        Value::Null => None,
        json => Some(generator_from_json(json).ok_or_else(|| no_state("generator"))?),
    };
    let position = match &state["position"] {
        Value::Null => None,
        json => Some(position_from_json(json).ok_or_else(|| no_state("position"))?),
    };
    Ok((position, generator))
}

fn no_state(name: &str) -> Error {
    Error::Data(format!("no state of a DataLoader: {name} is missing or damaged"))
}

fn position_from_json(json: &Value) -> Option<Position> {
    let numbers = match &json["numbers"] {
        Value::Null => None,
        Value::String(s) if s == "sequential" => Some(Numbers::Sequential),
        Value::Number(seed) => Some(Numbers::Seed(seed.as_u64()?)),
        state => Some(Numbers::State(Box::new(generator_from_json(state)?))),
    };
    Some(Position {
        base_seed: json["base_seed"].as_u64()?,
        numbers,
        batch: usize::try_from(json["batch"].as_u64()?).ok()?,
    })
}

fn generator_to_json(state: &GeneratorState) -> Value {
    json!({
        "seed": state.seed,
        "words": state.words[..],
        "position": state.position,
        // As bits: it has to come back exactly.
        "next_normal": state.next_normal.map(f64::to_bits),
        "philox_offset": state.philox_offset,
    })
}

fn generator_from_json(json: &Value) -> Option<GeneratorState> {
    let word = |v: &Value| u32::try_from(v.as_u64()?).ok();
    let words: Vec<u32> = json["words"].as_array()?.iter().map(word).collect::<Option<_>>()?;
    Some(GeneratorState {
        seed: json["seed"].as_u64()?,
        words: words.try_into().ok()?,
        position: word(&json["position"])?,
        next_normal: match &json["next_normal"] {
            Value::Null => None,
            bits => Some(f64::from_bits(bits.as_u64()?)),
        },
        philox_offset: json["philox_offset"].as_u64()?,
    })
}
