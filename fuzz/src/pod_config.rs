//! CRI's `PodSandboxConfig`, as the options of CreateSandbox.

use std::path::Path;

use mooring::{
    error::{Code, Coded},
    sandbox::config::{CRI_CONFIG_TYPE, PodConfig},
};

use crate::pod::is_safe;

pub fn pod_config(input: &[u8]) {
    let read = |url: &str| PodConfig::read(Some((url, input)), Path::new("/nonexistent"));
    match read(CRI_CONFIG_TYPE) {
        Ok(config) => {
            is_safe(&config);
            let again = read(&format!("types.example/{CRI_CONFIG_TYPE}"));
            assert_eq!(again.ok(), Some(config), "the same message, another pod");
        }
        Err(error) => {
            assert_eq!(error.code(), Code::InvalidArgument, "{error}");
            assert!(!error.to_string().is_empty());
        }
    }
    assert!(read("example.Other").is_err());
}
