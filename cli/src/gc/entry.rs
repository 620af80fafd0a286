//! What `mooring gc` says of each sandbox, as lines or as data.

use std::{
    io::Write,
    time::{Duration, SystemTime},
};

use anyhow::Result;
use mooring::sandbox::survey::Found;
use serde::Serialize;

use super::cni::{Detached, Network};
use crate::{
    args::{GcArgs, Output},
    exit::Exit,
    holdings::{self, Holding},
    span,
};

/// What became of a thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    ToBeFreed,
    Freed,
    NotFreed,
    NotTouched,
    NotOldEnough,
    InUse,
}

/// In the order in which they are counted.
const OUTCOMES: [(Outcome, &str); 6] = [
    (Outcome::ToBeFreed, "to be freed"),
    (Outcome::Freed, "freed"),
    (Outcome::NotFreed, "not freed"),
    (Outcome::NotTouched, "not touched"),
    (Outcome::NotOldEnough, "not old enough"),
    (Outcome::InUse, "in use"),
];

impl Outcome {
    /// Whether it has to be seen to.
    pub fn is_finding(self) -> bool {
        matches!(self, Self::ToBeFreed | Self::NotFreed | Self::NotTouched)
    }
}

/// A sandbox.
#[derive(Debug, Serialize)]
pub struct Entry {
    namespace: String,
    id: String,
    outcome: Outcome,
    /// For how long it has been left as it is.
    since_seconds: Option<u64>,
    shim: Option<i32>,
    folder: String,
    /// What is still held, in the order of release.
    holdings: Vec<Holding>,
    why: Option<String>,
}

impl Entry {
    /// Of what was found, before anything was done.
    pub fn of(found: &Found, outcome: Outcome, why: Option<String>) -> Self {
        let now = SystemTime::now();
        Self {
            namespace: found.namespace.to_string(),
            id: found.id.to_string(),
            outcome,
            since_seconds: found.written.map(|then| span::since(then, now).as_secs()),
            shim: found.shim.as_ref().map(|shim| shim.pid),
            folder: found.folder.display().to_string(),
            holdings: holdings::of(found),
            why,
        }
    }

    /// The line that it gets as soon as it is known; what is only counted has none.
    fn write(&self, args: &GcArgs, out: &mut dyn Write) -> Result<()> {
        let Self { namespace, id, .. } = self;
        let why = self.why.as_deref().unwrap_or_default();
        match self.outcome {
            Outcome::NotOldEnough | Outcome::InUse => {}
            Outcome::NotTouched => writeln!(out, "{namespace}/{id}: not touched: {why}")?,
            Outcome::NotFreed => writeln!(out, "{namespace}/{id}: {why}")?,
            Outcome::Freed if args.boot => {}
            Outcome::Freed => writeln!(out, "{namespace}/{id}: freed")?,
            Outcome::ToBeFreed => self.write_holdings(out)?,
        }
        Ok(())
    }

    fn write_holdings(&self, out: &mut dyn Write) -> Result<()> {
        let Self { namespace, id, .. } = self;
        let since = self.since_seconds.map(Duration::from_secs);
        let since = since.map(|length| format!(", left as it is for {}", span::rough(length)));
        let shim = self.shim.map(|pid| format!(" {pid}")).unwrap_or_default();
        writeln!(out, "{namespace}/{id}: its shim{shim} is gone{}", since.unwrap_or_default())?;
        for holding in &self.holdings {
            writeln!(out, "  {:<14} {}", holding.step, holding.what)?;
        }
        writeln!(out, "  {:<14} remove {}", "records", self.folder)?;
        Ok(())
    }
}

/// All that was found and done.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    sandboxes: Vec<Entry>,
    /// Attachments that were named.
    attachments: Vec<Detached>,
    /// Networks whose plugins are told which attachments are valid.
    networks: Vec<Network>,
}

impl Report {
    pub fn add(&mut self, entry: Entry, args: &GcArgs, out: &mut dyn Write) -> Result<()> {
        if args.output == Output::Table {
            entry.write(args, out)?;
        }
        self.sandboxes.push(entry);
        Ok(())
    }

    pub fn add_attachment(
        &mut self,
        one: Detached,
        args: &GcArgs,
        out: &mut dyn Write,
    ) -> Result<()> {
        if args.output == Output::Table {
            writeln!(out, "{one}")?;
        }
        self.attachments.push(one);
        Ok(())
    }

    pub fn add_network(&mut self, one: Network, args: &GcArgs, out: &mut dyn Write) -> Result<()> {
        if args.output == Output::Table {
            writeln!(out, "{one}")?;
        }
        self.networks.push(one);
        Ok(())
    }

    fn outcomes(&self) -> impl Iterator<Item = Outcome> {
        let sandboxes = self.sandboxes.iter().map(|one| one.outcome);
        let attachments = self.attachments.iter().map(|one| one.outcome);
        sandboxes.chain(attachments)
    }

    pub fn exit(&self) -> Exit {
        let findings = self.outcomes().any(Outcome::is_finding)
            // Whoever names one wants it gone.
            || self.attachments.iter().any(|one| one.outcome != Outcome::Freed);
        let refused = self.networks.iter().any(Network::is_finding);
        if findings || refused { Exit::Findings } else { Exit::Clean }
    }

    /// What is said at the end: the sums, or everything.
    pub fn end(&self, args: &GcArgs, out: &mut dyn Write) -> Result<()> {
        match args.output {
            Output::Json => writeln!(out, "{}", serde_json::to_string_pretty(self)?)?,
            Output::Table if args.boot => {}
            Output::Table => self.sums(args, out)?,
        }
        Ok(())
    }

    fn sums(&self, args: &GcArgs, out: &mut dyn Write) -> Result<()> {
        let count = |wanted: Outcome| self.outcomes().filter(|one| *one == wanted).count();
        let counted = OUTCOMES.iter().map(|(outcome, words)| (count(*outcome), words));
        let told: Vec<String> = counted
            .filter(|(count, _)| *count > 0)
            .map(|(count, words)| format!("{count} {words}"))
            .collect();
        if told.is_empty() {
            writeln!(out, "nothing is left")?;
        } else {
            writeln!(out, "{}", told.join(", "))?;
        }
        if count(Outcome::ToBeFreed) > 0 && !args.yes {
            writeln!(out, "\"mooring gc --yes\" frees it")?;
        }
        Ok(())
    }
}
