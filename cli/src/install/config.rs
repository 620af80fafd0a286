//! containerd's configuration: what is in it of handlers, and what has to be added for Mooring's.
//!
//! The handler is a file of its own, which the configuration imports. An imported file must not be of a later version
//! than the one that imports it (containerd 2.3), and is merged into it key by key (2.0 and later).

use std::{
    fmt,
    path::{Path, PathBuf},
};

use glob::{MatchOptions, Pattern};
use toml_edit::{Array, Document, DocumentMut, Item, TableLike, Value};

/// The handler's name, which a `RuntimeClass` names.
pub const HANDLER: &str = "mooring";
const RUNTIME_TYPE: &str = "io.containerd.mooring.v1";
pub const SANDBOXER: &str = "shim";
/// The name of the handler's file.
pub const FILE: &str = "mooring.toml";
/// Where it goes, and how it is imported, where no import leads to a place for it: a pattern, so that a file that somebody
/// removes keeps no containerd from starting, and one that finds no file of anybody else.
const FOLDER: &str = "conf.d";
const IMPORT: &str = "conf.d/mooring*.toml";
/// The version of a configuration that is made anew.
const NEWEST: i64 = 3;

/// A configuration that cannot be used, and where.
#[derive(Debug)]
pub struct Unusable {
    pub file: PathBuf,
    /// Line and column, counted from 1.
    pub at: Option<(usize, usize)>,
    pub reason: String,
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some((line, column)) = self.at {
            write!(f, ", line {line}, column {column}")?;
        }
        write!(f, ": {}", self.reason)
    }
}

impl std::error::Error for Unusable {}

/// A configuration file that was read.
#[derive(Debug)]
pub struct Config {
    path: PathBuf,
    document: Document<String>,
}

/// What a file says of the handler.
#[derive(Debug, PartialEq, Eq)]
pub enum Handler {
    Absent,
    /// As this tool would write it.
    Ours,
}

impl Config {
    /// Reads a file that was found at `path`; none there is an empty one.
    pub fn parse(path: &Path, text: Option<Vec<u8>>) -> Result<Self, Unusable> {
        let unusable = |at, reason| Unusable { file: path.to_owned(), at, reason };
        let text = String::from_utf8(text.unwrap_or_default())
            .map_err(|_| unusable(None, "it is no text in UTF-8".into()))?;
        let document = Document::parse(text.clone()).map_err(|error| {
            let at = error.span().map(|span| position(&text, span.start));
            unusable(at, error.message().trim().to_owned())
        })?;
        Ok(Self { path: path.to_owned(), document })
    }

    pub fn text(&self) -> &str {
        self.document.raw()
    }

    /// Whether it has a list of imports, be it empty.
    pub fn has_imports(&self) -> bool {
        self.document.contains_key("imports")
    }

    /// What it says at a place, key by key.
    pub fn item(&self, path: &[&str]) -> Option<&Item> {
        let (first, rest) = path.split_first()?;
        let mut item = self.document.get(first)?;
        for key in rest {
            item = item.get(key)?;
        }
        Some(item)
    }

    fn unusable(&self, item: Option<&Item>, reason: impl Into<String>) -> Unusable {
        let text = self.document.raw();
        let at = item.and_then(Item::span).map(|span| position(text, span.start));
        Unusable { file: self.path.clone(), at, reason: reason.into() }
    }

    /// The version of the configuration's form. A file without one that configures no plugins is of any.
    pub fn version(&self) -> Result<i64, Unusable> {
        match self.document.get("version") {
            None if self.document.contains_key("plugins") => Err(self.unusable(
                None,
                "it has no \"version\", so its plugins are configured as in containerd 1.x: \"containerd config migrate\" \
                 prints it for this containerd",
            )),
            None => Ok(NEWEST),
            Some(item) => match item.as_integer() {
                Some(version @ 2..=4) => Ok(version),
                Some(version) => Err(self.unusable(
                    Some(item),
                    format!("its version is {version}; 2, 3 and 4 are known: see \"containerd config migrate\""),
                )),
                None => Err(self.unusable(Some(item), "its version is no number")),
            },
        }
    }

    /// The files that it imports: patterns, as it has them.
    pub fn imports(&self) -> Result<Vec<String>, Unusable> {
        let Some(item) = self.document.get("imports") else { return Ok(Vec::new()) };
        let texts = item.as_array().map(|list| {
            list.iter().map(|one| one.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>()
        });
        texts.flatten().ok_or_else(|| self.unusable(Some(item), "\"imports\" is no list of texts"))
    }

    /// What it says of the handler; saying something else is an error.
    pub fn handler(&self) -> Result<Handler, Unusable> {
        let plugins = self.document.get("plugins").and_then(Item::as_table_like);
        let found = plugins.into_iter().flat_map(TableLike::iter).find_map(|(_, plugin)| {
            let runtimes = plugin.get("containerd")?.get("runtimes")?;
            runtimes.get(HANDLER)
        });
        let Some(found) = found else { return Ok(Handler::Absent) };
        let says = |key| found.get(key).and_then(Item::as_str);
        if says("runtime_type") == Some(RUNTIME_TYPE) && says("sandboxer") == Some(SANDBOXER) {
            return Ok(Handler::Ours);
        }
        Err(self.unusable(
            Some(found),
            format!("it has a handler \"{HANDLER}\" already, and not with runtime_type = '{RUNTIME_TYPE}' and sandboxer = '{SANDBOXER}'"),
        ))
    }

    /// The name under which CRI is disabled in it.
    pub fn disabled_cri(&self) -> Option<String> {
        disabled_cri(self.document.get("disabled_plugins"))
    }

    /// Where the handler's file goes: into the folder of the first import that finds it there, else beside the
    /// configuration, with the import that has to be added.
    pub fn place(&self) -> Result<(PathBuf, Option<&'static str>), Unusable> {
        let beside = self.path.parent().unwrap_or(Path::new("/"));
        for import in self.imports()? {
            let pattern = beside.join(&import);
            let Some(folder) = pattern.parent() else { continue };
            // A folder that is a pattern itself names no place.
            let plain = !folder.to_string_lossy().contains(['*', '?', '[']);
            let file = folder.join(FILE);
            if plain && matches(&pattern, &file) {
                return Ok((file, None));
            }
        }
        Ok((beside.join(FOLDER).join(FILE), Some(IMPORT)))
    }

    /// The configuration with one import more; everything else stays as it is written.
    pub fn importing(&self, import: &str) -> Result<String, Unusable> {
        let mut document = self.document.clone().into_mut();
        if document.is_empty() {
            document.insert("version", toml_edit::value(NEWEST));
        }
        let item = document.entry("imports").or_insert_with(|| toml_edit::value(Array::new()));
        let list =
            item.as_array_mut().ok_or_else(|| self.unusable(None, "\"imports\" is no list"))?;
        list.push(import);
        self.checked(&document)
    }

    /// The configuration without an import; without the list, too, where that is empty then and was not there before.
    pub fn without(&self, import: &str, drop_list: bool) -> Result<String, Unusable> {
        let mut document = self.document.clone().into_mut();
        if let Some(list) = document.get_mut("imports").and_then(Item::as_array_mut) {
            list.retain(|one| one.as_str() != Some(import));
            if list.is_empty() && drop_list {
                document.remove("imports");
            }
        }
        self.checked(&document)
    }

    /// The edited text, once it is seen to say the same of everything else.
    fn checked(&self, edited: &DocumentMut) -> Result<String, Unusable> {
        let text = edited.to_string();
        let again = Self::parse(&self.path, Some(text.clone().into_bytes()))?;
        let rest = |document: &Document<String>| {
            let rest = document.iter().filter(|(key, _)| !["imports", "version"].contains(key));
            let rest: Vec<String> =
                rest.map(|(key, item)| format!("{key}:{}", said(item))).collect();
            rest.join(",")
        };
        if rest(&again.document) != rest(&self.document) {
            return Err(
                self.unusable(None, "it cannot be edited without changing what else it says")
            );
        }
        Ok(text)
    }
}

/// The name of CRI in a list of plugins that are disabled.
pub fn disabled_cri(plugins: Option<&Item>) -> Option<String> {
    let all = plugins?.as_array()?;
    let cri = |name: &&str| {
        *name == "cri"
            || name.starts_with("io.containerd.cri.")
            || *name == "io.containerd.grpc.v1.cri"
    };
    all.iter().filter_map(Value::as_str).find(cri).map(str::to_owned)
}

/// What an item says, without how it is written.
fn said(item: &Item) -> String {
    match item.as_table_like() {
        Some(table) => {
            let mut all: Vec<String> =
                table.iter().map(|(key, item)| format!("{key:?}:{}", said(item))).collect();
            all.sort();
            format!("{{{}}}", all.join(","))
        }
        None => item.to_string().trim().to_owned(),
    }
}

/// Whether an import leads to a file, by the rules of Go's `filepath.Glob`.
pub fn matches(pattern: &Path, file: &Path) -> bool {
    let options = MatchOptions { require_literal_separator: true, ..MatchOptions::new() };
    let pattern = pattern.to_str().and_then(|text| Pattern::new(text).ok());
    pattern.is_some_and(|pattern| pattern.matches_path_with(file, options))
}

/// The handler's file for a configuration of this version.
pub fn drop_in(version: i64) -> String {
    let plugin =
        if version == 2 { "io.containerd.grpc.v1.cri" } else { "io.containerd.cri.v1.runtime" };
    format!(
        "# The runtime handler \"{HANDLER}\": made by \"mooring install\", and removed by \"mooring uninstall\".\n\
         version = {version}\n\
         \n\
         [plugins.\"{plugin}\".containerd.runtimes.{HANDLER}]\n  \
         runtime_type = '{RUNTIME_TYPE}'\n  \
         # Mooring itself is the sandbox: no pause container.\n  \
         sandboxer = '{SANDBOXER}'\n"
    )
}

/// Line and column of a place in a text, counted from 1.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    (line, column)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATH: &str = "/etc/containerd/config.toml";

    fn config(text: &str) -> Config {
        Config::parse(PATH.as_ref(), Some(text.into())).unwrap()
    }

    #[test]
    fn what_cannot_be_parsed_is_told_with_its_place() {
        let error =
            Config::parse(PATH.as_ref(), Some("version = 3\nimports = [\n\"a\"\n[x]\n".into()));
        let error = error.unwrap_err().to_string();
        assert!(error.starts_with("/etc/containerd/config.toml, line "), "{error}");
        let error = Config::parse(PATH.as_ref(), Some(vec![0xff])).unwrap_err().to_string();
        assert!(error.contains("UTF-8"), "{error}");
        for (text, reason) in [
            ("version = 1", "its version is 1"),
            ("version = 5", "its version is 5"),
            ("version = '3'", "no number"),
            ("[plugins.cri]\n", "has no \"version\""),
        ] {
            let error = config(text).version().unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
        for text in ["imports = 'x'", "imports = [1]"] {
            let error = config(text).imports().unwrap_err().to_string();
            assert!(error.contains("no list of texts"), "{text}: {error}");
        }
        assert_eq!(config("disabled_plugins = ['cri']").version().unwrap(), 3);
    }

    #[test]
    fn an_import_is_added_and_taken_away_and_nothing_else_changes() {
        for text in [
            "",
            "version = 2\n",
            "# of the node\nversion = 3 # the newest\n\n[plugins.'a'.b]\n  c = 1 # why\n",
            "[plugins]\n[plugins.a]\n",
            "version = 3\nimports = ['/x/*.toml'] # others\n[debug]\nlevel = 'info'\n",
            "imports = [\n  '/x/*.toml',\n]\nversion = 3",
            "version = 3\r\n[debug]\r\nlevel = 'info'\r\n",
        ] {
            let before = config(text);
            let edited = config(&before.importing(IMPORT).unwrap());
            assert!(edited.imports().unwrap().contains(&IMPORT.to_owned()), "{text}");
            let had_list = text.contains("imports");
            let restored = edited.without(IMPORT, !had_list).unwrap();
            // How a line ends is not kept.
            let wanted = format!("{}\n", text.replace("\r\n", "\n").trim_end());
            if !text.is_empty() {
                assert_eq!(restored, wanted, "in between: {}", edited.text());
            }
        }
    }

    #[test]
    fn the_file_goes_where_an_import_finds_it() {
        for (imports, place, added) in [
            ("", "/etc/containerd/conf.d/mooring.toml", true),
            ("'/etc/containerd/conf.d/*.toml'", "/etc/containerd/conf.d/mooring.toml", false),
            ("'/a/*.conf', '/b/m*.toml'", "/b/mooring.toml", false),
            ("'sub/*'", "/etc/containerd/sub/mooring.toml", false),
            ("'/c/*/mooring.toml'", "/etc/containerd/conf.d/mooring.toml", true),
            ("'/c/other.toml'", "/etc/containerd/conf.d/mooring.toml", true),
        ] {
            let (found, import) = config(&format!("imports = [{imports}]")).place().unwrap();
            assert_eq!((found.to_str().unwrap(), import.is_some()), (place, added), "{imports}");
        }
        assert!(!matches("/etc/*.toml".as_ref(), "/etc/a/b.toml".as_ref()));
    }

    #[test]
    fn a_handler_of_another_kind_is_not_taken_over() {
        assert_eq!(config("").handler().unwrap(), Handler::Absent);
        for version in [2, 3, 4] {
            assert_eq!(config(&drop_in(version)).handler().unwrap(), Handler::Ours);
        }
        let text = drop_in(3).replace("mooring.v1", "kata.v2");
        let error = config(&text).handler().unwrap_err().to_string();
        assert!(error.contains("has a handler \"mooring\" already"), "{error}");
    }
}
