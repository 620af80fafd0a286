//! `mooring gc`: what shims have left that are gone, and its release by the code that their own teardown is.

mod cni;
mod entry;

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
    network::{CniPlugins, ExecPlugins},
    process::Reaper,
    sandbox::{
        recover::{Recovery, Unheard},
        survey::{Found, Hands},
        sweep::free,
    },
};

use crate::{
    args::GcArgs,
    containerd_config::ContainerdConfig,
    doctor::{places::Places, world::World},
    exit::Exit,
    node, span,
};
use entry::{Entry, Outcome, Report};

pub fn run(args: &GcArgs, out: &mut dyn Write) -> Result<Exit> {
    node::need_root("gc")?;
    let mut report = Report::default();
    let frees = args.yes || args.boot;
    if frees {
        node::show_warnings();
    }
    let looked = node::look(&args.roots.state_root)?;
    if args.attachment.is_empty() {
        let runtime = node::runtime()?;
        let all = runtime.block_on(sandboxes(&looked.found, frees, args, &mut report, out));
        // A release that hangs must not keep this process; its lock is let go with it, and its journal stays.
        runtime.shutdown_background();
        all?;
    }
    if args.cni || !args.attachment.is_empty() {
        attachments(args, &mut report, out)?;
    }
    report.end(args, out)?;
    looked.all()?;
    Ok(report.exit())
}

/// Frees each sandbox that is nobody's, or says what would be freed.
async fn sandboxes(
    found: &[Found],
    frees: bool,
    args: &GcArgs,
    report: &mut Report,
    out: &mut dyn Write,
) -> Result<()> {
    let reaper = Reaper::start().context("watch for ended children")?;
    for one in found {
        let entry = match chosen(one, args) {
            Some((outcome, why)) => Entry::of(one, outcome, why),
            None if frees => freed(one, &reaper).await,
            None => Entry::of(one, Outcome::ToBeFreed, None),
        };
        report.add(entry, args, out)?;
    }
    Ok(())
}

/// Why a sandbox is not to be freed; nothing where it is.
fn chosen(found: &Found, args: &GcArgs) -> Option<(Outcome, Option<String>)> {
    match &found.hands {
        Hands::Nobody if is_old_enough(found, args.older_than) => None,
        Hands::Nobody => Some((Outcome::NotOldEnough, None)),
        hands => Some(in_hands(hands)),
    }
}

fn in_hands(hands: &Hands) -> (Outcome, Option<String>) {
    match hands {
        Hands::Unsure(doubts) => (Outcome::NotTouched, Some(doubts.join("; "))),
        _ => (Outcome::InUse, None),
    }
}

/// By when it was last written to: a shim that lives for long and dies now has left something new.
fn is_old_enough(found: &Found, wanted: Option<Duration>) -> bool {
    let Some(wanted) = wanted else { return true };
    let now = SystemTime::now();
    found.written.is_some_and(|then| span::since(then, now) >= wanted)
}

async fn freed(one: &Found, reaper: &Reaper) -> Entry {
    // What it held is told as it was before.
    let of = |outcome, why| Entry::of(one, outcome, why);
    match free(one, &recovery(one, reaper)).await {
        Ok(Hands::Nobody) => of(Outcome::Freed, None),
        Ok(hands) => {
            let (outcome, why) = in_hands(&hands);
            of(outcome, why)
        }
        Err(error) => of(Outcome::NotFreed, Some(error.to_string())),
    }
}

/// What of CNI is nobody's: of the containers that are named, or in all networks of Mooring's.
fn attachments(args: &GcArgs, report: &mut Report, out: &mut dyn Write) -> Result<()> {
    let config = ContainerdConfig::read(&args.containerd.containerd_config);
    let places = Places::find(&args.roots, &args.containerd, &config);
    let world = World::gather(places, false, SystemTime::now())?;
    let runtime = node::runtime()?;
    let (detached, networks) = runtime.block_on(async {
        let reaper = Reaper::start().context("watch for ended children")?;
        let plugins = ExecPlugins::new(reaper);
        let plugins = args.yes.then_some(&plugins as &dyn CniPlugins);
        let mut detached = Vec::new();
        for id in &args.attachment {
            detached.extend(cni::detach(&world, id, plugins).await);
        }
        let networks = if args.cni { cni::collect(&world, plugins).await } else { Vec::new() };
        anyhow::Ok((detached, networks))
    })?;
    for one in detached {
        report.add_attachment(one, args, out)?;
    }
    for one in networks {
        report.add_network(one, args, out)?;
    }
    Ok(())
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
