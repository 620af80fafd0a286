//! Which program is run, and with which environment.

use std::{
    collections::HashSet,
    ffi::{CStr, CString},
    path::Path,
};

use rustix::{fs::Access, io::Errno};

use super::{Ready, read_of_container};
use crate::{
    error::{Error, Result},
    spec::Process,
};

/// The program of a process, looked for as its user and where it will run.
pub(super) fn of(process: &Process) -> Result<Ready> {
    let name = process.args.first().map(String::as_str).unwrap_or_default();
    let path = find(name, path_of(&process.env))?;
    let text = |text: &str| {
        CString::new(text).map_err(|_| Error::invalid("an argument or a variable with a zero byte"))
    };
    let mut environment = Vec::with_capacity(process.env.len() + 1);
    for one in set_once(&process.env).into_iter().filter(|one| *one != "HOME=") {
        environment.push(text(one)?);
    }
    if !environment.iter().any(|one| one.as_bytes().starts_with(b"HOME=")) {
        let passwd = read_of_container(Path::new("/etc/passwd")).unwrap_or_default();
        let home = home_in(&passwd, process.user.uid).unwrap_or("/");
        environment.push(text(&format!("HOME={home}"))?);
    }
    let arguments = process.args.iter().map(|one| text(one)).collect::<Result<_>>()?;
    Ok(Ready { path: text(&path)?, arguments, environment })
}

/// Each variable once, with the value that it was given last: programs look at the first.
fn set_once(environment: &[String]) -> Vec<&str> {
    let name = |one: &str| one.split_once('=').map_or(one.len(), |(name, _)| name.len());
    let mut seen = HashSet::new();
    let all = environment.iter().map(String::as_str).rev();
    let mut last: Vec<&str> = all.filter(|one| seen.insert(one.get(..name(one)))).collect();
    last.reverse();
    last
}

fn path_of(environment: &[String]) -> &str {
    environment.iter().rev().find_map(|one| one.strip_prefix("PATH=")).unwrap_or_default()
}

/// As a shell finds programs. The words for one that is not there are what clients look for.
fn find(name: &str, path: &str) -> Result<String> {
    let failed = |why: &str| Err(Error::invalid(format!("exec: {name:?}: {why}")));
    if name.is_empty() {
        return failed("no command");
    }
    if name.contains('/') {
        return match is_program(name) {
            Ok(()) => Ok(name.to_owned()),
            Err(errno) => failed(&format!("stat {name}: {}", words(errno))),
        };
    }
    let mut denied = false;
    for folder in path.split(':') {
        let file = if folder.is_empty() { format!("./{name}") } else { format!("{folder}/{name}") };
        match is_program(&file) {
            Ok(()) => return Ok(file),
            Err(errno) => denied |= errno == Errno::ACCESS,
        }
    }
    failed(if denied { "permission denied" } else { "executable file not found in $PATH" })
}

/// Why a program that was found does not run.
pub(super) fn failed(path: &CStr, why: &std::io::Error) -> Error {
    let why = Errno::from_io_error(why).map_or_else(|| why.to_string(), words);
    Error::invalid(format!("exec {}: {why}", path.to_string_lossy()))
}

fn words(errno: Errno) -> String {
    match errno {
        Errno::NOENT => "no such file or directory".into(),
        Errno::ACCESS => "permission denied".into(),
        Errno::ISDIR => "is a directory".into(),
        other => std::io::Error::from(other).to_string(),
    }
}

fn is_program(path: &str) -> std::result::Result<(), Errno> {
    let about = rustix::fs::stat(path)?;
    if rustix::fs::FileType::from_raw_mode(about.st_mode).is_dir() {
        return Err(Errno::ISDIR);
    }
    // With the rights of now, which are those of the program.
    let flags = rustix::fs::AtFlags::EACCESS;
    match rustix::fs::accessat(rustix::fs::CWD, path, Access::EXEC_OK, flags) {
        // A filter or an old kernel that does not know the question: exec will answer it.
        Err(Errno::NOSYS | Errno::PERM) => Ok(()),
        other => other,
    }
}

/// The home of a user in the text of a passwd.
fn home_in(passwd: &str, uid: u32) -> Option<&str> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':').skip(2);
        let id: u32 = fields.next()?.trim().parse().ok()?;
        let home = fields.nth(2)?;
        (id == uid && !home.is_empty()).then_some(home)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_as_a_shell_does() {
        assert!(find("sh", "/nowhere:/bin").unwrap().ends_with("/bin/sh"));
        let error = find("no-such-program", "/bin").unwrap_err().to_string();
        assert_eq!(error, r#"exec: "no-such-program": executable file not found in $PATH"#);
        let error = find("/no/such", "").unwrap_err().to_string();
        assert!(error.contains("no such file or directory"), "{error}");
        let error = find("/etc", "").unwrap_err().to_string();
        assert!(error.contains("is a directory"), "{error}");
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = find(&file.path().display().to_string(), "").unwrap_err().to_string();
        assert!(error.contains("permission denied"), "{error}");
        assert!(find("", "/bin").is_err());
    }

    #[test]
    fn a_variable_is_what_it_was_set_to_last() {
        let given = ["A=1", "AB=2", "A=3", "HOME=/x", "A", "HOME="].map(str::to_owned);
        assert_eq!(set_once(&given), ["AB=2", "A", "HOME="]);
    }

    #[test]
    fn the_home_is_the_users() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbroken\na:x:7:7::/home/a:\nb:x:8:8:::\n";
        assert_eq!(home_in(passwd, 0), Some("/root"));
        assert_eq!(home_in(passwd, 7), Some("/home/a"));
        assert_eq!(home_in(passwd, 8), None);
    }
}
