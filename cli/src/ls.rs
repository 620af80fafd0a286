//! `mooring ls`: every sandbox of every namespace of containerd, from journals and records alone.

use std::{fs, io::Write, path::Path, time::SystemTime};

use anyhow::Result;
use comfy_table::Table;
use mooring::{
    container::{Record, is_alive},
    inspect,
    resources::Resource,
    sandbox::survey::{Found, Hands},
    sys::{boot, memory},
    teardown::journal::{Journal, Stage},
};
use serde::Serialize;

use crate::{
    args::{ListArgs, Output},
    exit::Exit,
    holdings::tag,
    node, span,
};

/// How much of a long id is shown, as crictl has it.
const SHORT: usize = 13;

/// What a sandbox is about, as far as can be told from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Created,
    Ready,
    Stopping,
    Stopped,
    /// Its shim serves tasks without a sandbox.
    Tasks,
    /// Its shim is gone, and another process finishes for it.
    Finishing,
    /// Its shim is gone, and nobody works on it.
    Left,
    /// Whose it is cannot be told.
    Unsure,
}

#[derive(Debug, Serialize)]
struct Row {
    namespace: String,
    id: String,
    state: State,
    age_seconds: Option<u64>,
    /// The runtime type's name, where the bundle or the shim still tells.
    handler: Option<String>,
    keeper: Option<String>,
    /// Whether the shim made the pod's network. Else it is the client's, or the node's.
    network: Option<&'static str>,
    containers: Vec<Container>,
    shim: Option<Shim>,
    waits_for: Option<Waits>,
    /// Why it cannot be told whose it is.
    doubts: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Container {
    id: String,
    pid: Option<i32>,
    runs: bool,
}

#[derive(Debug, Serialize)]
struct Shim {
    pid: i32,
    alive: bool,
    /// Its proportional share of memory.
    pss_bytes: Option<u64>,
}

/// The teardown's step under way, or the one at which it was interrupted.
#[derive(Debug, Serialize)]
struct Waits {
    step: String,
    seconds: Option<u64>,
}

pub fn run(args: &ListArgs, out: &mut dyn Write) -> Result<Exit> {
    node::need_root("ls")?;
    let looked = node::look(&args.roots.state_root)?;
    let now = SystemTime::now();
    let mut rows: Vec<Row> = looked.found.iter().map(|one| Row::of(one, now)).collect();
    rows.retain(|row| args.namespace.as_ref().is_none_or(|wanted| row.namespace == *wanted));
    match args.output {
        Output::Json => writeln!(out, "{}", serde_json::to_string_pretty(&rows)?)?,
        Output::Table => writeln!(out, "{}", table(&rows, args.no_trunc))?,
    }
    looked.all()?;
    Ok(Exit::Clean)
}

impl Row {
    fn of(found: &Found, now: SystemTime) -> Self {
        let since = |then: Option<SystemTime>| then.map(|then| span::since(then, now).as_secs());
        let journal = found.journal.as_ref();
        let shim = found.shim.as_ref().map(|shim| {
            let alive = shim.is_alive().unwrap_or(false);
            let pss = || memory::pss(u32::try_from(shim.pid).ok()?).ok();
            let pss_bytes = if alive { pss() } else { None };
            Shim { pid: shim.pid, alive, pss_bytes }
        });
        let held =
            |entry: &&mooring::teardown::journal::Entry<Resource>| entry.stage != Stage::Released;
        let entries = journal.into_iter().flat_map(|journal| journal.entries.iter().filter(held));
        let ours = entries
            .clone()
            .any(|one| matches!(one.resource, Resource::Netns(_) | Resource::Network(_)));
        let keeper = entries.clone().find_map(|entry| match &entry.resource {
            Resource::Keeper(record) => tag(record),
            _ => None,
        });
        let step = journal.and_then(|journal| journal.current.clone());
        Self {
            namespace: found.namespace.to_string(),
            id: found.id.to_string(),
            state: State::of(found),
            age_seconds: since(journal.map(|it| it.about.created_at).or(found.written)),
            handler: handler_of(found),
            keeper,
            network: journal.map(|_| if ours { "shim" } else { "client" }),
            containers: found.containers.iter().map(Container::of).collect(),
            shim,
            waits_for: step.map(|step| Waits { step, seconds: since(found.written) }),
            doubts: match &found.hands {
                Hands::Unsure(doubts) => doubts.clone(),
                _ => Vec::new(),
            },
        }
    }

    fn cells(&self, whole: bool) -> Vec<String> {
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        let long = self.id.len() == 64 && self.id.bytes().all(|byte| byte.is_ascii_hexdigit());
        let id = if long && !whole { self.id.get(..SHORT).unwrap_or(&self.id) } else { &self.id };
        let seconds = std::time::Duration::from_secs;
        let running = self.containers.iter().filter(|one| one.runs).count();
        let waits = self.waits_for.as_ref().map(|waits| match waits.seconds {
            Some(length) => format!("{} ({})", waits.step, span::rough(seconds(length))),
            None => waits.step.clone(),
        });
        let doubts = (!self.doubts.is_empty()).then(|| self.doubts.join("; "));
        vec![
            self.namespace.clone(),
            id.to_owned(),
            tag(&self.state).unwrap_or_default(),
            or_dash(self.age_seconds.map(|length| span::rough(seconds(length)))),
            or_dash(self.handler.clone()),
            or_dash(self.keeper.clone()),
            or_dash(self.network.map(str::to_owned)),
            format!("{running}/{}", self.containers.len()),
            or_dash(self.shim.as_ref().map(|shim| {
                if shim.alive { shim.pid.to_string() } else { format!("{} gone", shim.pid) }
            })),
            or_dash(self.shim.as_ref().and_then(|shim| shim.pss_bytes).map(kib)),
            or_dash(doubts.or(waits)),
        ]
    }
}

impl Container {
    fn of(record: &Record) -> Self {
        let (pid, runs) = init_of(record);
        Self { id: record.id.to_string(), pid, runs }
    }
}

/// The process of a recorded container, and whether it runs.
pub fn init_of(record: &Record) -> (Option<i32>, bool) {
    let rebooted = boot::is_over(record.boot.as_ref()).unwrap_or(false);
    let init = record.init.filter(|_| !rebooted);
    let runs = init.is_some_and(|one| is_alive(one.pid, one.start_time).unwrap_or(false));
    (init.map(|one| one.pid), runs)
}

impl State {
    /// As journal and records have it.
    pub fn of(found: &Found) -> Self {
        match (&found.hands, &found.journal) {
            (Hands::Unsure(_), _) => Self::Unsure,
            (Hands::Nobody, _) => Self::Left,
            (Hands::Locked, _) => Self::Finishing,
            (Hands::Shim, None) => Self::Tasks,
            (Hands::Shim, Some(journal)) => state_by(journal),
        }
    }

    /// As the shim has it.
    pub fn said(state: inspect::State) -> Self {
        match state {
            inspect::State::TASKS => Self::Tasks,
            inspect::State::CREATED => Self::Created,
            inspect::State::READY => Self::Ready,
            inspect::State::STOPPING => Self::Stopping,
            inspect::State::STOPPED => Self::Stopped,
        }
    }
}

fn state_by(journal: &Journal<Resource>) -> State {
    let holds_namespaces = journal
        .entries
        .iter()
        .any(|entry| entry.stage == Stage::Held && matches!(entry.resource, Resource::Keeper(_)));
    if journal.closed {
        State::Stopped
    } else if journal.current.is_some() || !journal.done.is_empty() {
        State::Stopping
    } else if holds_namespaces {
        State::Ready
    } else {
        State::Created
    }
}

fn table(rows: &[Row], whole: bool) -> String {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header([
        "NAMESPACE",
        "ID",
        "STATE",
        "AGE",
        "HANDLER",
        "KEEPER",
        "NETWORK",
        "CONTAINERS",
        "SHIM",
        "PSS",
        "WAITS FOR",
    ]);
    for row in rows {
        table.add_row(row.cells(whole));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}

/// The runtime type's name, where the bundle or the living shim still tells.
pub fn handler_of(found: &Found) -> Option<String> {
    let bundle = found.journal.as_ref().map(|journal| &journal.about.bundle);
    let living = found.shim.as_ref().filter(|shim| shim.is_alive().unwrap_or(false));
    bundle
        .and_then(|bundle| program_in(bundle))
        .or_else(|| program_of(living?.pid))
        .and_then(|program| handler(&program))
}

/// The program of a shim, as containerd writes it into the bundle.
fn program_in(bundle: &Path) -> Option<String> {
    fs::read_to_string(bundle.join("shim-binary-path")).ok()
}

fn program_of(pid: i32) -> Option<String> {
    let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    String::from_utf8(line.split(|byte| *byte == 0).next()?.to_vec()).ok()
}

/// `mooring` or `mooring-PROFILE`, of a program's path.
fn handler(program: &str) -> Option<String> {
    let name = Path::new(program.trim()).file_name()?.to_str()?;
    let name = name.strip_prefix("containerd-shim-")?.strip_suffix("-v1")?;
    name.starts_with("mooring").then(|| name.to_owned())
}

fn kib(bytes: u64) -> String {
    format!("{} KiB", bytes >> 10)
}

#[cfg(test)]
mod tests;
