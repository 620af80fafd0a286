//! The bodies of the fuzz targets: what Mooring reads that others have written, under arbitrary input.
//!
//! A body takes bytes, has Mooring read them, and panics when something is not as it must be: not only that reading does
//! not panic itself, but that what was read and written again is the same, that an error says what it is about, and
//! that no name or path leads out of its folder. The files of `fuzz_targets/` hand libFuzzer's bytes to them, and the
//! tests here hand them the files of `seeds/`: docs/fuzzing.md.
#![forbid(unsafe_code)]
#![allow(clippy::expect_used, clippy::missing_panics_doc, reason = "a finding is a panic")]

mod bootstrap;
mod cni_config;
mod cni_result;
mod journal;
mod oci_spec;
mod options;
mod plugins;
mod pod;
mod pod_config;
mod records;
mod requests;
mod scratch;
mod wait;

pub use bootstrap::bootstrap;
pub use cni_config::cni_config;
pub use cni_result::cni_result;
pub use journal::journal;
pub use oci_spec::oci_spec;
pub use options::options;
pub use pod_config::pod_config;
pub use records::records;
pub use requests::requests;

/// The main of a target: libFuzzer's where cargo-fuzz builds it.
#[macro_export]
macro_rules! target {
    ($body:ident) => {
        #[cfg(fuzzing)]
        libfuzzer_sys::fuzz_target!(|input: &[u8]| mooring_fuzz::$body(input));

        #[cfg(not(fuzzing))]
        fn main() -> std::process::ExitCode {
            eprintln!("this is built without libFuzzer: \"make fuzz\" builds and runs it");
            std::process::ExitCode::FAILURE
        }
    };
}

#[cfg(test)]
mod seeds {
    use std::{fs, path::Path};

    /// Every file of the target's folder, in order, so that a panic names the one before whose end it came.
    fn replay(target: &str, body: fn(&[u8])) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(target);
        let mut seeds: Vec<_> =
            fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        seeds.sort();
        assert!(seeds.len() > 2, "{} has hardly a seed", folder.display());
        for seed in seeds {
            println!("{}", seed.display());
            body(&fs::read(&seed).unwrap());
        }
    }

    #[test]
    fn seeds_of_the_journal_hold() {
        replay("journal", super::journal);
    }

    #[test]
    fn seeds_of_the_records_hold() {
        replay("records", super::records);
    }

    #[test]
    fn seeds_of_cni_configurations_hold() {
        replay("cni_config", super::cni_config);
    }

    #[test]
    fn seeds_of_cni_results_hold() {
        replay("cni_result", super::cni_result);
    }

    #[test]
    fn seeds_of_the_options_hold() {
        replay("options", super::options);
    }

    #[test]
    fn seeds_of_the_bootstrap_input_hold() {
        replay("bootstrap", super::bootstrap);
    }

    #[test]
    fn seeds_of_pod_configurations_hold() {
        replay("pod_config", super::pod_config);
    }

    #[test]
    fn seeds_of_oci_specifications_hold() {
        replay("oci_spec", super::oci_spec);
    }

    #[test]
    fn seeds_of_requests_hold() {
        if super::requests::are_possible() {
            replay("requests", super::requests);
        } else {
            eprintln!("not run: this kernel cannot shut the services in");
        }
    }
}
