//! `mooring gc`: what shims have left that are gone, and its release by the code that their own teardown is.

use std::{
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result};
use mooring::{
    containerd::Grpc,
    id::Id,
    network::ExecPlugins,
    process::Reaper,
    sandbox::{
        recover::{Recovery, Unheard},
        survey::{Found, Hands},
        sweep::free,
    },
};

use crate::{args::GcArgs, exit::Exit, holdings, node, span};

/// What was found, and what became of it.
#[derive(Debug, Default)]
struct Tally {
    in_use: usize,
    younger: usize,
    would_free: usize,
    freed: usize,
    failed: usize,
    unsure: usize,
}

pub fn run(args: &GcArgs, out: &mut dyn Write) -> Result<Exit> {
    node::need_root("gc")?;
    let looked = node::look(&args.roots.state_root)?;
    let found = &looked.found;
    let tally = if args.yes || args.boot {
        node::show_warnings();
        let runtime = node::runtime()?;
        let tally = runtime.block_on(free_all(found, args, out));
        // A release that hangs must not keep this process; its lock is let go with it, and its journal stays.
        runtime.shutdown_background();
        tally?
    } else {
        show_all(found, args, out)?
    };
    if !args.boot {
        tally.tell(args, out)?;
    }
    looked.all()?;
    Ok(tally.exit())
}

impl Tally {
    fn exit(&self) -> Exit {
        if self.would_free + self.failed + self.unsure == 0 { Exit::Clean } else { Exit::Findings }
    }

    fn tell(&self, args: &GcArgs, out: &mut dyn Write) -> Result<()> {
        let counts = [
            (self.would_free, "to be freed"),
            (self.freed, "freed"),
            (self.failed, "not freed"),
            (self.unsure, "not touched"),
            (self.younger, "not old enough"),
            (self.in_use, "in use"),
        ];
        let told: Vec<String> = counts
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, what)| format!("{count} {what}"))
            .collect();
        if told.is_empty() {
            writeln!(out, "nothing is left")?;
        } else {
            writeln!(out, "{}", told.join(", "))?;
        }
        if self.would_free > 0 && !args.yes {
            writeln!(out, "\"mooring gc --yes\" frees it")?;
        }
        Ok(())
    }

    /// Whether what was found is to be freed. Counts and names what is not.
    fn is_chosen(&mut self, found: &Found, args: &GcArgs, out: &mut dyn Write) -> Result<bool> {
        match &found.hands {
            Hands::Shim | Hands::Locked => self.in_use += 1,
            Hands::Unsure(doubts) => {
                self.unsure += 1;
                not_touched(found, doubts, out)?;
            }
            Hands::Nobody if !is_old_enough(found, args.older_than) => self.younger += 1,
            Hands::Nobody => return Ok(true),
        }
        Ok(false)
    }
}

fn not_touched(found: &Found, doubts: &[String], out: &mut dyn Write) -> Result<()> {
    let Found { namespace, id, .. } = found;
    writeln!(out, "{namespace}/{id}: not touched: {}", doubts.join("; "))?;
    Ok(())
}

/// By when it was last written to: a shim that lives for long and dies now has left something new.
fn is_old_enough(found: &Found, wanted: Option<Duration>) -> bool {
    let Some(wanted) = wanted else { return true };
    let now = SystemTime::now();
    found.written.is_some_and(|then| span::since(then, now) >= wanted)
}

fn show_all(found: &[Found], args: &GcArgs, out: &mut dyn Write) -> Result<Tally> {
    let mut tally = Tally::default();
    let now = SystemTime::now();
    for one in found {
        if tally.is_chosen(one, args, out)? {
            tally.would_free += 1;
            show(one, now, out)?;
        }
    }
    Ok(tally)
}

fn show(found: &Found, now: SystemTime, out: &mut dyn Write) -> Result<()> {
    let Found { namespace, id, .. } = found;
    let since = found.written.map(|then| format!(", left as it is for {}", span::ago(then, now)));
    let shim = found.shim.as_ref().map(|shim| format!(" {}", shim.pid)).unwrap_or_default();
    writeln!(out, "{namespace}/{id}: its shim{shim} is gone{}", since.unwrap_or_default())?;
    for holding in holdings::of(found) {
        writeln!(out, "  {:<14} {}", holding.step, holding.what)?;
    }
    writeln!(out, "  {:<14} remove {}", "records", found.folder.display())?;
    Ok(())
}

async fn free_all(found: &[Found], args: &GcArgs, out: &mut dyn Write) -> Result<Tally> {
    let mut tally = Tally::default();
    let reaper = Reaper::start().context("watch for ended children")?;
    for one in found {
        if !tally.is_chosen(one, args, out)? {
            continue;
        }
        let Found { namespace, id, .. } = one;
        match free(one, &recovery(one, &reaper)).await {
            Ok(Hands::Nobody) => {
                tally.freed += 1;
                if !args.boot {
                    writeln!(out, "{namespace}/{id}: freed")?;
                }
            }
            Ok(Hands::Shim | Hands::Locked) => tally.in_use += 1,
            Ok(Hands::Unsure(doubts)) => {
                tally.unsure += 1;
                not_touched(one, &doubts, out)?;
            }
            Err(error) => {
                tally.failed += 1;
                writeln!(out, "{namespace}/{id}: {error}")?;
            }
        }
    }
    Ok(tally)
}

/// What finishes for the shim of `found`.
pub fn recovery(found: &Found, reaper: &Reaper) -> Recovery {
    // Some journals do not say whose they are.
    let told = found.journal.as_ref().map(|journal| journal.about.grpc_address.clone());
    let address = told.filter(|path| !path.as_os_str().is_empty());
    let address = address.unwrap_or_else(|| PathBuf::from(node::CONTAINERD));
    Recovery {
        reaper: reaper.clone(),
        containerd: containerd(&address, &found.namespace),
        plugins: Arc::new(ExecPlugins::new(reaper.clone())),
        listener: Arc::new(Unheard),
    }
}

fn containerd(address: &Path, namespace: &Id) -> Arc<Grpc> {
    Arc::new(Grpc::new(&address.to_string_lossy(), namespace.clone()))
}

#[cfg(test)]
mod tests;
