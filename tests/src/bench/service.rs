//! Sandboxes of the Sandbox API, for which the shim runs CNI itself. Their client has no peer: the shim of runc makes no
//! network.

use anyhow::{Context, Result};

use super::floor::timed as timed_floor;
use super::{Bench, Section, Unit, timed};
use crate::services::{Client, sandbox_spec};
use crate::suite::Handler;

impl Bench {
    pub(super) async fn service(&mut self) -> Result<()> {
        for round in 0..=self.plan.rounds {
            for handler in self.shims().into_iter().filter(|one| one.is_mooring()) {
                for (name, host) in [("own network", false), ("node's network", true)] {
                    for (call, ms) in self.sandbox(handler, host).await? {
                        // The first pays for caches.
                        if round > 0 {
                            let name = format!("{name}: {call}");
                            self.table.add(Section::Service, &name, Unit::Ms, handler, ms);
                        }
                    }
                }
            }
            let (start, stop) = self
                .floor
                .run(|floor| {
                    let (space, start) = timed_floor(|| floor.attach_network())?;
                    let ((), stop) = timed_floor(|| floor.detach_network(&space))?;
                    Ok((start, stop))
                })
                .await?;
            if round > 0 {
                self.table.floor(Section::Service, "own network: StartSandbox", Unit::Ms, start);
                self.table.floor(Section::Service, "own network: StopSandbox", Unit::Ms, stop);
            }
        }
        Ok(())
    }

    async fn sandbox(&self, handler: Handler, host: bool) -> Result<Vec<(&'static str, f64)>> {
        let mut laps = Vec::new();
        let client = Client::new(&self.case(handler));
        let hostname = if host { "" } else { client.id.as_str() };
        let spec = sandbox_spec(hostname, host);
        client.record(&spec).await.context("record the sandbox")?;
        let create = async { client.create(&spec, None, "").await.context("CreateSandbox") };
        laps.push(("CreateSandbox", timed(create).await?.1));
        let start = async { client.start().await.map(drop).context("StartSandbox") };
        laps.push(("StartSandbox", timed(start).await?.1));
        let stop = async { client.stop().await.context("StopSandbox") };
        laps.push(("StopSandbox", timed(stop).await?.1));
        let shutdown = async { client.shutdown().await.context("ShutdownSandbox") };
        laps.push(("ShutdownSandbox", timed(shutdown).await?.1));
        client.forget().await.context("forget the sandbox")?;
        Ok(laps)
    }
}
