//! `vm [--core] [--only TEXT,…] [--at-once N] [--release DIR] [--logs DIR] [--seconds N] [VARIANT…]`: the test programs on emulated
//! machines (see [`mooring_e2e::vm`]). `vm guest` is what runs in there.
#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use mooring_e2e::vm::host::{Wish, run};
use mooring_e2e::vm::{Variant, guest};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // The kernel gives its first process arguments of its own choice.
    let outcome = if std::process::id() == 1 || arguments == ["guest"] {
        guest::main()
    } else {
        wish(arguments).and_then(|wish| run(&wish))
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vm: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn wish(arguments: Vec<String>) -> Result<Wish> {
    let mut wish = Wish {
        variants: Vec::new(),
        at_once: 2,
        only: String::new(),
        core: false,
        release: concat!(env!("CARGO_MANIFEST_DIR"), "/../target/dist").into(),
        limit: Duration::from_mins(40),
        logs: None,
    };
    let mut words = arguments.into_iter();
    while let Some(word) = words.next() {
        let mut value = || words.next().with_context(|| format!("{word} wants a value"));
        match word.as_str() {
            "--core" => wish.core = true,
            "--only" => wish.only = value()?,
            "--at-once" => wish.at_once = value()?.parse()?,
            "--release" => wish.release = value()?.into(),
            "--logs" => wish.logs = Some(value()?.into()),
            "--seconds" => wish.limit = Duration::from_secs(value()?.parse()?),
            name => match Variant::named(name) {
                Some(variant) => wish.variants.push(variant),
                None => {
                    bail!("there is no variant {name:?}: {:?}", Variant::ALL.map(Variant::name))
                }
            },
        }
    }
    if wish.variants.is_empty() {
        wish.variants = Variant::ALL.to_vec();
    }
    if wish.at_once == 0 {
        bail!("--at-once is 1 or more");
    }
    if wish.core && !wish.only.is_empty() {
        bail!("--core and --only exclude each other");
    }
    Ok(wish)
}
