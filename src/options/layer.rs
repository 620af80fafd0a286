//! One source of options: what it says, and what it leaves to others.

use toml::{Table, Value};

use super::{
    Error, Options,
    keys::{KEYS, WITHOUT_EFFECT},
    value::Wrong,
};

/// Values of keys, and where they were found.
#[derive(Debug, Default)]
pub(super) struct Layer {
    pub values: Table,
    pub place: String,
}

impl Layer {
    /// Reads TOML that was found in `place`.
    pub fn parse(text: &str, place: &str) -> Result<Self, Error> {
        let wrong = |source| Error::Toml { place: place.to_owned(), source: Box::new(source) };
        Ok(Self { values: toml::from_str(text).map_err(wrong)?, place: place.to_owned() })
    }

    /// Puts what this layer says over `options`. Answers one text for each key that is not known.
    pub fn apply(&self, options: &mut Options) -> Result<Vec<String>, Error> {
        let mut unknown = Vec::new();
        for (name, value) in &self.values {
            if let Some(key) = KEYS.iter().find(|key| key.name == name) {
                (key.set)(options, value).map_err(|reason| self.wrong(key.name, reason))?;
            } else if !WITHOUT_EFFECT.contains(&name.as_str()) {
                unknown.push(format!("unknown option {name:?} in {}", self.place));
            }
        }
        Ok(unknown)
    }

    fn wrong(&self, key: &'static str, reason: Wrong) -> Error {
        Error::Value { key, place: self.place.clone(), reason }
    }

    /// Adds a value, unless it is the one that protobuf has for a field that is not given.
    pub fn given(&mut self, key: &str, value: impl Into<Value>) {
        let value = value.into();
        let none = match &value {
            Value::Boolean(flag) => !flag,
            Value::Integer(number) => *number == 0,
            Value::String(text) => text.is_empty(),
            _ => false,
        };
        if !none {
            self.values.insert(key.to_owned(), value);
        }
    }
}
