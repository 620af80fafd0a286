//! What containerd's clients write for a stream.

use std::path::PathBuf;

use super::super::Error;

/// A log program: `binary://PATH?key=value…`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Program {
    pub(super) path: PathBuf,
    pub(super) arguments: Vec<String>,
    /// Whether it must say that it is ready by a byte; otherwise closing the pipe says so too.
    pub(super) speaks: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Nothing,
    Fifo(PathBuf),
    File(PathBuf),
    Binary(Program),
}

pub(super) fn parse(uri: &str) -> Result<Target, Error> {
    if uri.is_empty() {
        return Ok(Target::Nothing);
    }
    let invalid = |what: &str| Error::Invalid(format!("stream {uri:?}: {what}"));
    let Some((scheme, rest)) = uri.split_once("://") else {
        return if uri.starts_with('/') {
            Ok(Target::Fifo(uri.into()))
        } else {
            Err(invalid("no absolute path"))
        };
    };
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let path = decode(path)
        .filter(|path| path.starts_with('/'))
        .ok_or_else(|| invalid("no absolute path"))?;
    match scheme {
        "fifo" => Ok(Target::Fifo(path.into())),
        "file" => Ok(Target::File(path.into())),
        "binary" | "binary-v2" => {
            let mut arguments = Vec::new();
            for pair in query.split('&').filter(|pair| !pair.is_empty()) {
                let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                for part in [key, value] {
                    let part =
                        decode(&part.replace('+', " ")).ok_or_else(|| invalid("bad escape"))?;
                    arguments.push(part);
                }
            }
            // A value that was not given is no argument.
            arguments = arguments
                .chunks(2)
                .flat_map(|pair| {
                    pair.iter().enumerate().filter(|(at, part)| *at == 0 || !part.is_empty())
                })
                .map(|(_, part)| part.clone())
                .collect();
            Ok(Target::Binary(Program {
                path: path.into(),
                arguments,
                speaks: scheme == "binary-v2",
            }))
        }
        _ => Err(invalid("unknown scheme")),
    }
}

fn decode(text: &str) -> Option<String> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let digits = [bytes.next()?, bytes.next()?];
            let digits = std::str::from_utf8(&digits)
                .ok()
                .filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()))?;
            decoded.push(u8::from_str_radix(digits, 16).ok()?);
        } else {
            decoded.push(byte);
        }
    }
    String::from_utf8(decoded).ok().filter(|text| !text.contains('\0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_is_known() {
        assert_eq!(parse("").unwrap(), Target::Nothing);
        assert_eq!(parse("/run/a").unwrap(), Target::Fifo("/run/a".into()));
        assert_eq!(parse("file:///var/log/a%20b").unwrap(), Target::File("/var/log/a b".into()));
        let Target::Binary(program) = parse("binary-v2:///bin/log?a=1&b=x+y&c").unwrap() else {
            panic!()
        };
        assert_eq!(program.arguments, ["a", "1", "b", "x y", "c"]);
        assert!(program.speaks);
    }

    #[test]
    fn nonsense_is_refused() {
        for uri in ["a", "file://a", "http:///x", "file:///%zz", "file:///%0", "file:///%00"] {
            assert!(parse(uri).is_err(), "{uri}");
        }
    }
}
