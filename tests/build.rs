//! Compiles messages without protoc: CRI's for `lab cri`, out of the file that k8s-cri itself is made of, and NRI's for the
//! plugin of the tests.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use prost_reflect::prost::Message;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    let protos = folder_of("k8s-cri")?.join("proto");
    let set = protox::compile(["v1.proto"], [&protos])?;
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("no OUT_DIR")?);
    fs::write(out.join("cri.bin"), set.encode_to_vec())?;
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../protos");
    println!("cargo::rerun-if-changed={}", own.join("nri.proto").display());
    let set = protox::compile(["nri.proto"], [&own])?;
    Ok(fs::write(out.join("nri.bin"), set.encode_to_vec())?)
}

/// Where cargo has a package's sources.
fn folder_of(package: &str) -> Result<PathBuf, Box<dyn Error>> {
    let output = Command::new(env::var_os("CARGO").ok_or("no CARGO")?)
        .args(["metadata", "--format-version=1", "--locked", "--filter-platform"])
        .arg(env::var_os("TARGET").ok_or("no TARGET")?)
        .output()?;
    if !output.status.success() {
        return Err(format!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"].as_array().ok_or("no packages")?;
    let found = packages.iter().find(|one| one["name"] == package).ok_or("no such package")?;
    let manifest = Path::new(found["manifest_path"].as_str().ok_or("no manifest")?);
    Ok(manifest.parent().ok_or("no folder")?.to_owned())
}
