//! `mooring metrics`: one scrape of the node, on standard output or for whoever asks over HTTP.

use std::{io::Write, net::SocketAddr, path::PathBuf, sync::Arc};

use anyhow::{Context, Result};
use mooring::options;

use crate::{
    args::MetricsArgs,
    exit::{CouldNot, Exit},
    node,
};

mod expose;
pub mod families;
mod samples;
mod scrape;
mod serve;
mod sums;

/// Where a node's numbers are.
struct Places {
    state_roots: Vec<PathBuf>,
    run_roots: Vec<PathBuf>,
}

pub fn run(args: &MetricsArgs, out: &mut dyn Write) -> Result<Exit> {
    node::need_root("metrics")?;
    let places = Places::of(args)?;
    let runtime = node::runtime()?;
    let served = runtime.block_on(async {
        match args.listen {
            Some(address) => serve(address, places, args.pods).await,
            None => once(&places, args.pods, out).await,
        }
    });
    runtime.shutdown_background();
    served
}

async fn once(places: &Places, pods: bool, out: &mut dyn Write) -> Result<Exit> {
    let seen = scrape::scrape(places, pods).await?;
    let sums = sums::Sums::now(&seen);
    write!(out, "{}", expose::text(samples::of(&seen, &sums, pods), expose::Format::OpenMetrics)?)?;
    Ok(if seen.complaints.is_empty() { Exit::Clean } else { Exit::Findings })
}

async fn serve(address: SocketAddr, places: Places, pods: bool) -> Result<Exit> {
    let listener = tokio::net::TcpListener::bind(address).await;
    let listener = listener.map_err(|error| CouldNot(format!("listen on {address}: {error}")))?;
    let address = listener.local_addr().context("find the address")?;
    // Whoever started this may have asked for any port.
    eprintln!("mooring: metrics at http://{address}/metrics");
    let source = Arc::new(serve::Source::new(places, pods));
    tokio::select! {
        () = serve::serve(listener, source) => {}
        ended = asked_to_end() => ended.context("watch for signals")?,
    }
    Ok(Exit::Clean)
}

/// Waits for SIGTERM or SIGINT.
async fn asked_to_end() -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

impl Places {
    fn of(args: &MetricsArgs) -> Result<Self, CouldNot> {
        let given = &args.roots.state_root;
        let usual = options::Options::default();
        let with = |given: &[PathBuf], node: Result<Vec<PathBuf>, options::Error>, usual| {
            if !given.is_empty() {
                return Ok(given.to_vec());
            }
            let mut all = node.map_err(|error| CouldNot(error.to_string()))?;
            if !all.contains(&usual) {
                all.push(usual);
            }
            Ok(all)
        };
        Ok(Self {
            state_roots: with(given, options::state_roots(), usual.state_root)?,
            run_roots: with(&args.run_root, options::run_roots(), usual.run_root)?,
        })
    }
}
