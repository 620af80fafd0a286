//! Reading a specification.

use std::{fs, path::Path};

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{
    error::{Doing, Error, Result},
    spec::{Process, Resources, Spec},
};

/// Go writes `null` where there is nothing: the same as no field at all.
fn without_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, field| !field.is_null());
            fields.values_mut().for_each(without_nulls);
        }
        Value::Array(list) => list.iter_mut().for_each(without_nulls),
        _ => {}
    }
}

fn read<T: DeserializeOwned>(what: &str, text: &[u8]) -> Result<T> {
    let failed = |error: serde_json::Error| {
        // A field that is not known is something that is not supported.
        Error::unsupported(format!("this {what}: {error}"))
    };
    let mut value: Value = serde_json::from_slice(text).map_err(failed)?;
    without_nulls(&mut value);
    serde_json::from_value(value).map_err(failed)
}

pub fn parse(text: &[u8]) -> Result<Spec> {
    read("specification", text)
}

pub fn spec(bundle: &Path) -> Result<Spec> {
    let path = bundle.join("config.json");
    parse(&fs::read(&path).doing_at("read", &path)?)
}

pub fn process(path: &Path) -> Result<Process> {
    read("process", &fs::read(path).doing_at("read", path)?)
}

/// The resources of an update.
pub fn resources(text: &[u8]) -> Result<Resources> {
    read("list of resources", text)
}
