//! What is written about the keys for people, made from the table of keys.
//!
//! The tests compare it with the files; `MOORING_WRITE_DOCS=1 cargo test -p mooring options::docs` writes them.

use std::{fmt::Write, fs, path::Path};

use super::{
    Options,
    keys::{KEYS, WITHOUT_EFFECT},
};

const PAGE: &str = "docs/options.md";
const HEAD: &str = "| key | default | meaning |\n|---|---|---|\n";
const BEGIN: &str = "<!-- options:begin -->\n";
const END: &str = "<!-- options:end -->\n";
const EXAMPLE: &str = "examples/config.toml";
const EXAMPLE_HEAD: &str = "\
# /etc/mooring/config.toml: what holds for every pod of this node. The same keys may stand in a runtime handler's
# \"options\" table of containerd's configuration, which wins over this file. Every value here is the default.
";
const WIDTH: usize = 115;

fn table() -> String {
    let defaults = Options::default();
    let mut text = HEAD.to_owned();
    for key in KEYS {
        writeln!(text, "| `{}` | `{}` | {} |", key.name, (key.show)(&defaults), key.meaning)
            .unwrap();
    }
    let [criu, ..] = WITHOUT_EFFECT;
    writeln!(text, "| `{criu}` | `\"\"` | read by containerd, which passes on what it names |")
        .unwrap();
    text
}

fn example() -> String {
    let defaults = Options::default();
    let mut text = EXAMPLE_HEAD.to_owned();
    for key in KEYS {
        let mut line = String::from("\n#");
        let mut width = 0;
        for word in key.meaning.split(' ') {
            if width + word.len() > WIDTH {
                line.push_str("\n#");
                width = 0;
            }
            line.extend([" ", word]);
            width += 1 + word.len();
        }
        writeln!(text, "{line}\n#{} = {}", key.name, (key.show)(&defaults)).unwrap();
    }
    text
}

/// Asserts that a file is what `write` makes of it, or makes it so.
fn keep(file: &str, write: impl FnOnce(&str) -> String) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    let found = fs::read_to_string(&path).unwrap();
    let wanted = write(&found);
    if std::env::var_os("MOORING_WRITE_DOCS").is_some() {
        fs::write(&path, wanted).unwrap();
    } else {
        let command = "MOORING_WRITE_DOCS=1 cargo test -p mooring options::docs";
        assert!(found == wanted, "{file} is not what the keys say; \"{command}\" writes it");
    }
}

#[test]
fn the_page_has_the_table_of_keys() {
    keep(PAGE, |page| {
        let (before, rest) = page.split_once(BEGIN).expect("the table's beginning is marked");
        let (_, after) = rest.split_once(END).expect("the table's end is marked");
        format!("{before}{BEGIN}{}{END}{after}", table())
    });
}

#[test]
fn the_example_file_has_every_key_at_its_default() {
    keep(EXAMPLE, |_| example());
    let text = example();
    let values = text.lines().filter_map(|line| line.strip_prefix('#'));
    let values: Vec<_> = values.filter(|line| !line.starts_with(' ')).collect();
    assert_eq!(values.len(), KEYS.len());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.toml");
    fs::write(&file, values.join("\n")).unwrap();
    assert_eq!(Options::load_from(&file, None, None).unwrap(), (Options::default(), vec![]));
}
