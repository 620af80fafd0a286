#![cfg_attr(fuzzing, no_main)]

mooring_fuzz::target!(oci_spec);
