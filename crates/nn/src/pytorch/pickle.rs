//! Python's pickle format, as far as `torch.save` uses it: a program for a small stack machine.
//!
//! Nothing in it is executed. What Python would call is only noted, by its name and arguments, so that a file from anywhere can be
//! read. Values are plain numbers that refer to lists of the pickle: cycles and depth cost nothing.

use std::collections::HashMap;

/// A value of a pickle; text lies in the pickle itself, containers are numbers into [`Pickle`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Value<'a> {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(&'a str),
    /// Bytes, sets and numbers beyond 64 bits: nothing that weights are made of.
    Other,
    /// A list or tuple, see [`Pickle::lists`].
    List(usize),
    /// See [`Pickle::dicts`].
    Dict(usize),
    /// A class or function: its module and name, see [`Pickle::names`].
    Name(usize),
    /// What a class or function would make, see [`Pickle::calls`].
    Call(usize),
    /// Something outside of the pickle, by what identifies it: a storage of numbers.
    Outside(usize),
}

/// A pickle that has been read.
#[derive(Default)]
pub(super) struct Pickle<'a> {
    pub lists: Vec<Vec<Value<'a>>>,
    pub dicts: Vec<Vec<(Value<'a>, Value<'a>)>>,
    pub names: Vec<(&'a str, &'a str)>,
    /// The number of a name, and the arguments.
    pub calls: Vec<(usize, Value<'a>)>,
    /// What identifies the things outside, as a list.
    pub outside: Vec<Value<'a>>,
}

/// The longest pickle that is read: what it becomes in memory is a few dozen times as much.
pub(super) const LONGEST: usize = 32 << 20;

/// Reads one pickle at the beginning of `bytes`; also gives its length.
///
/// # Errors
/// What is wrong with it.
pub(super) fn parse<'a>(bytes: &'a [u8], pickle: &mut Pickle<'a>) -> Result<(Value<'a>, usize), String> {
    let mut machine = Machine {
        bytes: &bytes[..bytes.len().min(LONGEST)],
        at: 0,
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        copies: bytes.len(),
        pickle,
    };
    loop {
        let at = machine.at;
        match machine.step() {
            Ok(None) => {}
            Ok(Some(value)) => return Ok((value, machine.at)),
            Err(e) => return Err(format!("the pickle is damaged or of an unknown kind: at byte {at}, {e}")),
        }
    }
}

struct Machine<'a, 'p> {
    bytes: &'a [u8],
    at: usize,
    stack: Vec<Value<'a>>,
    marks: Vec<usize>,
    memo: HashMap<u64, Value<'a>>,
    /// How many pairs may still be copied from a list into a dict.
    copies: usize,
    pickle: &'p mut Pickle<'a>,
}

impl<'a> Machine<'a, '_> {
    /// Runs one instruction; the last one gives the result.
    fn step(&mut self) -> Result<Option<Value<'a>>, String> {
        let code = self.take(1)?[0];
        match code {
            b'.' => return self.pop().map(Some),
            0x80 => drop(self.take(1)?), // the version
            0x95 => drop(self.take(8)?), // the length of a frame
            b'(' => self.marks.push(self.stack.len()),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.pop_to_mark()?),
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
            }
            b'N' => self.stack.push(Value::None),
            0x88 => self.stack.push(Value::Bool(true)),
            0x89 => self.stack.push(Value::Bool(false)),
            b'K' | b'M' | b'J' | 0x8a | 0x8b | b'G' => {
                let number = self.number(code)?;
                self.stack.push(number);
            }
            b'X' | 0x8c | 0x8d | b'U' | b'T' => {
                let text = self.text(code)?;
                self.stack.push(Value::Text(text));
            }
            b'C' | b'B' | 0x8e => {
                let len = self.length(code)?;
                self.take(len)?;
                self.stack.push(Value::Other);
            }
            0x8f => self.stack.push(Value::Other),
            0x90 => drop(self.pop_to_mark()?), // into the set below
            0x91 => {
                self.pop_to_mark()?;
                self.stack.push(Value::Other);
            }
            b']' | b')' => self.push_list(Vec::new()),
            b'l' | b't' => {
                let items = self.pop_to_mark()?;
                self.push_list(items);
            }
            0x85..=0x87 => {
                let mut items = (0x85..=code).map(|_| self.pop()).collect::<Result<Vec<_>, _>>()?;
                items.reverse();
                self.push_list(items);
            }
            b'a' => {
                let item = self.pop()?;
                self.extend_list(vec![item])?;
            }
            b'e' => {
                let items = self.pop_to_mark()?;
                self.extend_list(items)?;
            }
            b'}' => self.push_dict(),
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.extend_dict(vec![key, value])?;
            }
            b'u' => {
                let items = self.pop_to_mark()?;
                self.extend_dict(items)?;
            }
            b'q' | b'r' | 0x94 => {
                let place = match code {
                    0x94 => self.memo.len() as u64,
                    _ => self.unsigned(if code == b'q' { 1 } else { 4 })?,
                };
                let top = self.top()?;
                self.memo.insert(place, top);
            }
            b'h' | b'j' => {
                let place = self.unsigned(if code == b'h' { 1 } else { 4 })?;
                let value = *self.memo.get(&place).ok_or("a value is used that was not stored")?;
                self.stack.push(value);
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.push_name(module, name);
            }
            0x93 => match (self.pop()?, self.pop()?) {
                (Value::Text(name), Value::Text(module)) => self.push_name(module, name),
                _ => return Err("a name is not text".into()),
            },
            b'R' | 0x81 => {
                let (arguments, callee) = (self.pop()?, self.pop()?);
                self.call(callee, arguments)?;
            }
            b'b' => drop(self.pop()?), // the attributes of the object below, such as _metadata
            b'Q' => {
                let id = self.pop()?;
                self.pickle.outside.push(id);
                self.stack.push(Value::Outside(self.pickle.outside.len() - 1));
            }
            _ => return Err(format!("instruction {code:#04x} is none that torch.save writes")),
        }
        Ok(None)
    }

    fn call(&mut self, callee: Value<'a>, arguments: Value<'a>) -> Result<(), String> {
        let Value::Name(name) = callee else { return Err("something is called that has no name".into()) };
        match self.pickle.names[name] {
            ("collections", "OrderedDict" | "Counter") => self.new_dict(arguments)?,
            ("collections", "defaultdict") => self.push_dict(), // its argument makes values that are missing
            _ => {
                self.pickle.calls.push((name, arguments));
                self.stack.push(Value::Call(self.pickle.calls.len() - 1));
            }
        }
        Ok(())
    }

    /// A dict from the arguments of its class: none, a dict, or a list of pairs, as Python 2 wrote an OrderedDict.
    fn new_dict(&mut self, arguments: Value<'a>) -> Result<(), String> {
        let Value::List(arguments) = arguments else {
            return Err("a class is called without arguments".into());
        };
        match self.pickle.lists[arguments][..] {
            [] => self.push_dict(),
            [Value::Dict(dict)] => self.stack.push(Value::Dict(dict)),
            [Value::List(pairs)] => {
                let mut items = Vec::new();
                for &pair in &self.pickle.lists[pairs] {
                    let Value::List(pair) = pair else {
                        return Err("a dict is made of what are no pairs".into());
                    };
                    let [key, value] = self.pickle.lists[pair][..] else {
                        return Err("a dict is made of what are no pairs".into());
                    };
                    items.extend([key, value]);
                    // A list that is named again and again could make a small file endless.
                    self.copies = self.copies.checked_sub(1).ok_or("it is too long")?;
                }
                self.push_dict();
                self.extend_dict(items)?;
            }
            _ => return Err("a dict is made of what is none".into()),
        }
        Ok(())
    }

    fn push_list(&mut self, items: Vec<Value<'a>>) {
        self.pickle.lists.push(items);
        self.stack.push(Value::List(self.pickle.lists.len() - 1));
    }

    fn push_dict(&mut self) {
        self.pickle.dicts.push(Vec::new());
        self.stack.push(Value::Dict(self.pickle.dicts.len() - 1));
    }

    fn push_name(&mut self, module: &'a str, name: &'a str) {
        self.pickle.names.push((module, name));
        self.stack.push(Value::Name(self.pickle.names.len() - 1));
    }

    fn extend_list(&mut self, items: Vec<Value<'a>>) -> Result<(), String> {
        match self.top()? {
            Value::List(list) => self.pickle.lists[list].extend(items),
            Value::Call(_) | Value::Other => {} // of a class that nobody asks about
            _ => return Err("something is appended to what is no list".into()),
        }
        Ok(())
    }

    fn extend_dict(&mut self, items: Vec<Value<'a>>) -> Result<(), String> {
        match self.top()? {
            Value::Dict(dict) => {
                if !items.len().is_multiple_of(2) {
                    return Err("a key has no value".into());
                }
                self.pickle.dicts[dict].extend(items.chunks_exact(2).map(|pair| (pair[0], pair[1])));
            }
            Value::Call(_) => {} // of a class that nobody asks about
            _ => return Err("something is put into what is no dict".into()),
        }
        Ok(())
    }

    // ---- the stack -------------------------------------------------------------------------------------------------------

    fn top(&self) -> Result<Value<'a>, String> {
        self.stack.last().copied().ok_or_else(|| "the stack is empty".into())
    }

    fn pop(&mut self) -> Result<Value<'a>, String> {
        let mark = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= mark {
            return Err("the stack is empty".into());
        }
        self.stack.pop().ok_or_else(|| "the stack is empty".into())
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Value<'a>>, String> {
        let mark = self.marks.pop().ok_or("a mark is missing")?;
        Ok(self.stack.split_off(mark))
    }

    // ---- the bytes -------------------------------------------------------------------------------------------------------

    fn take(&mut self, n: usize) -> Result<&'a [u8], String> {
        let end = self.at.checked_add(n).filter(|&end| end <= self.bytes.len());
        let end = end.ok_or(if self.bytes.len() == LONGEST { "it is too long" } else { "it ends" })?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    /// A little-endian number of `n` bytes, at most 8.
    fn unsigned(&mut self, n: usize) -> Result<u64, String> {
        Ok(self.take(n)?.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte)))
    }

    fn number(&mut self, code: u8) -> Result<Value<'a>, String> {
        Ok(match code {
            b'K' => Value::Int(self.unsigned(1)? as i64),
            b'M' => Value::Int(self.unsigned(2)? as i64),
            b'J' => Value::Int(i64::from(self.unsigned(4)? as u32 as i32)),
            b'G' => Value::Float(f64::from_bits(self.unsigned(8)?.swap_bytes())),
            _ => {
                let len = self.unsigned(if code == 0x8a { 1 } else { 4 })? as usize;
                let bytes = self.take(len)?;
                match bytes.last() {
                    None => Value::Int(0),
                    Some(_) if len > 8 => Value::Other,
                    Some(last) => {
                        let fill = if last >> 7 == 1 { 0xff } else { 0 };
                        let mut all = [fill; 8];
                        all[..len].copy_from_slice(bytes);
                        Value::Int(i64::from_le_bytes(all))
                    }
                }
            }
        })
    }

    /// How many bytes follow.
    fn length(&mut self, code: u8) -> Result<usize, String> {
        let width = match code {
            0x8c | b'U' | b'C' => 1,
            0x8d | 0x8e => 8,
            _ => 4,
        };
        usize::try_from(self.unsigned(width)?).map_err(|_| "it ends".into())
    }

    fn text(&mut self, code: u8) -> Result<&'a str, String> {
        let len = self.length(code)?;
        std::str::from_utf8(self.take(len)?).map_err(|_| "a text is not UTF-8".into())
    }

    fn line(&mut self) -> Result<&'a str, String> {
        let rest = &self.bytes[self.at..];
        let len = rest.iter().position(|&b| b == b'\n').ok_or("it ends")?;
        let line = self.take(len + 1)?;
        std::str::from_utf8(&line[..len]).map_err(|_| "a name is not UTF-8".into())
    }
}
