//! Builds the holder, the tiny static program that the shim carries inside itself.
#![allow(clippy::expect_used)] // A build that fails says why in this way.

use std::{env, path::PathBuf, process::Command};

fn main() {
    println!("cargo:rerun-if-changed=holder/main.rs");
    let out = PathBuf::from(env::var("OUT_DIR").expect("cargo sets OUT_DIR")).join("holder");
    let rustc = env::var("RUSTC").expect("cargo sets RUSTC");
    let target = env::var("TARGET").expect("cargo sets TARGET");
    let mut build = Command::new(rustc);
    build.args([
        "--edition",
        "2024",
        "--crate-type",
        "bin",
        "--crate-name",
        "holder",
        "--target",
        &target,
    ]);
    for option in [
        "panic=abort",
        "opt-level=s",
        "relocation-model=static",
        "strip=symbols",
        "codegen-units=1",
    ] {
        build.args(["-C", option]);
    }
    let linker = "link-args=-nostartfiles -nostdlib -static -no-pie -Wl,--build-id=none -Wl,-z,norelro -Wl,-z,noexecstack -Wl,-z,noseparate-code";
    build.args(["-C", linker]);
    build.arg("holder/main.rs").arg("-o").arg(&out);
    let status = build.status().expect("run rustc for the holder");
    assert!(status.success(), "the holder does not build");
}
