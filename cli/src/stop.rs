//! `mooring stop`: teardowns by hand. A living shim does its own; where there is none, its journal is completed here.

use std::{io::Write, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use mooring::{
    process::Reaper,
    sandbox::survey::{Found, Hands},
};
use tokio::{sync::Semaphore, sync::mpsc, task::JoinSet};

use crate::{account::Step, args::StopArgs, exit::Exit, node};

mod one;
mod view;

/// How many teardowns are under way at once.
const AT_ONCE: usize = 16;

/// What the view hears.
enum News {
    Step { which: usize, step: Step },
    Ended { which: usize, result: Result<(), one::NotStopped> },
}

pub fn run(args: &StopArgs, out: &mut dyn Write) -> Result<Exit> {
    node::need_root("stop")?;
    let looked = node::look(&args.roots.state_root)?;
    let chosen = choose(&looked, args)?;
    if chosen.is_empty() {
        looked.all()?;
        writeln!(out, "nothing to stop")?;
        return Ok(Exit::Clean);
    }
    node::show_warnings();
    let runtime = node::runtime()?;
    let stopped = runtime.block_on(stop_all(&chosen, args, out));
    // A release that hangs must not keep this process; its lock is let go with it, and its journal stays.
    runtime.shutdown_background();
    stopped
}

/// The sandboxes that are meant, each once.
fn choose<'a>(looked: &'a node::Looked, args: &StopArgs) -> Result<Vec<&'a Found>> {
    if args.ids.is_empty() {
        // Tasks without a sandbox are their client's.
        let sandboxes = looked.found.iter().filter(|one| {
            let theirs = args.namespace.as_ref().is_none_or(|name| one.namespace.as_str() == name);
            theirs && (one.journal.is_some() || one.hands != Hands::Shim)
        });
        return Ok(sandboxes.collect());
    }
    let mut chosen = Vec::<&Found>::new();
    for id in &args.ids {
        let found = looked.sandbox(args.namespace.as_deref(), id)?;
        if !chosen.iter().any(|one| one.folder == found.folder) {
            chosen.push(found);
        }
    }
    Ok(chosen)
}

async fn stop_all(chosen: &[&Found], args: &StopArgs, out: &mut dyn Write) -> Result<Exit> {
    let reaper = Reaper::start().context("watch for ended children")?;
    let (tell, mut news) = mpsc::unbounded_channel();
    let turns = Arc::new(Semaphore::new(AT_ONCE));
    let mut stops = JoinSet::new();
    for (which, found) in chosen.iter().enumerate() {
        let stop = one::Stop::of(found, args, &reaper);
        let (tell, turns) = (tell.clone(), Arc::clone(&turns));
        stops.spawn(async move {
            let _turn = turns.acquire().await;
            let of_step = tell.clone();
            let result = stop.run(|step| drop(of_step.send(News::Step { which, step }))).await;
            let _ = tell.send(News::Ended { which, result });
        });
    }
    drop(tell);
    let mut view = view::View::new(chosen);
    let mut failed = 0;
    loop {
        tokio::select! {
            one = news.recv() => match one {
                None => break,
                Some(News::Step { which, step }) => view.step(which, &step, out)?,
                Some(News::Ended { which, result }) => {
                    failed += usize::from(result.is_err());
                    view.ended(which, &result, out)?;
                }
            },
            _ = tokio::signal::ctrl_c() => {
                view.interrupted(out)?;
                return Ok(Exit::Findings);
            }
            () = tokio::time::sleep(Duration::from_millis(100)) => view.tick(),
        }
    }
    view.all_ended(chosen.len() - failed, failed, out)?;
    Ok(if failed == 0 { Exit::Clean } else { Exit::Findings })
}
