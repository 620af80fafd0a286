//! Compiles the messages of the protos, each into a file of its own for `include!`.
#![allow(clippy::expect_used)] // A build that fails says why in this way.

use std::{env, fs, path::PathBuf};

use ttrpc_codegen::{Codegen, Customize, ProtobufCustomize};

const PROTOS: &[&str] = &["protos/mooring/v1/inspect.proto", "protos/nri.proto"];

fn main() {
    println!("cargo:rerun-if-changed=protos");
    let out = PathBuf::from(env::var("OUT_DIR").expect("cargo sets OUT_DIR")).join("protos");
    fs::create_dir_all(&out).expect("make a folder for the messages");
    Codegen::new()
        .out_dir(&out)
        .include("protos")
        .inputs(PROTOS)
        .rust_protobuf()
        .customize(Customize { async_all: true, ..Customize::default() })
        // Without descriptors, which an idle shim would keep in memory.
        .rust_protobuf_customize(ProtobufCustomize::default().lite_runtime(true).btreemaps(true))
        .run()
        .expect("compile the messages");
    for file in fs::read_dir(&out).expect("list the messages") {
        let path = file.expect("list the messages").path();
        let text = fs::read_to_string(&path).expect("read the messages");
        // The crate forbids unsafe code, and an attribute of a file cannot be included.
        let inner = |line: &&str| !line.starts_with("#![") && !line.starts_with("//!");
        let text: Vec<&str> = text.lines().filter(inner).collect();
        fs::write(&path, text.join("\n")).expect("write the messages");
    }
}
