#![cfg_attr(fuzzing, no_main)]

mooring_fuzz::target!(cni_config);
