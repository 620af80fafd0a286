//! Random pods of the sandbox service, whose network is the shim's.

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::guest::{Cut, Guest};
use crate::faults::kill_shim;
use crate::life::{Kind, Life};
use crate::plugins::{CHAIN, Plugins};
use crate::random::Random;

/// A kind of pod, and how people call it.
pub fn kind(random: &mut Random) -> (Kind, String) {
    let (kind, name) = match random.below(3) {
        0 => (Kind::OwnNetwork, "own network"),
        1 => (Kind::ImageVolume, "an image volume"),
        _ => (Kind::UserNamespace, "user namespace"),
    };
    (kind, format!("sandbox service, {name}"))
}

/// Its life up to where it shall end.
pub async fn live(
    plugins: &Plugins,
    life: &mut Life,
    guest: &mut Guest,
    random: &mut Random,
) -> Result<(), Cut> {
    if random.percent(10) {
        plugin_fault(plugins, life.id(), "ADD", guest, random);
    }
    guest.call("StartSandbox", life.run()).await?;
    guest.call("StartContainer", life.container()).await?;
    for number in 0..random.below(5) {
        act(life, number, guest, random).await?;
    }
    match random.below(10) {
        0 => {
            guest.hurt("shim killed");
            let _ = kill_shim(life.id());
        }
        1 if life.task().is_none() => {
            guest.hurt("holder killed");
            let holder = i32::try_from(life.pid()).unwrap_or(0);
            if holder > 1 {
                let _ = kill(Pid::from_raw(holder), Signal::SIGKILL);
            }
            guest.call("WaitSandbox", async { Ok(life.client().wait().await?) }).await?;
        }
        2 => plugin_fault(plugins, life.id(), "DEL", guest, random),
        _ => {}
    }
    if let Some(task) = life.task()
        && random.percent(50)
    {
        let killed = async {
            task.kill(9).await?;
            let code = task.wait().await?;
            ensure!(code == 137, "a killed task ended with {code}");
            Ok(())
        };
        guest.call("exit", killed).await?;
    }
    guest.call("StopSandbox", life.stop()).await
}

async fn act(life: &Life, number: u64, guest: &mut Guest, random: &mut Random) -> Result<(), Cut> {
    let status = async { life.client().status().await.context("status") };
    let Some(task) = life.task() else {
        return guest.call("SandboxStatus", status).await.map(drop);
    };
    match random.below(4) {
        0 => guest.call("SandboxStatus", status).await.map(drop),
        1 => {
            let metrics = async { life.client().metrics().await.context("metrics") };
            guest.call("SandboxMetrics", metrics).await.map(drop)
        }
        2 => {
            let pause = async {
                task.pause().await?;
                Ok(task.resume().await?)
            };
            guest.call("pause and resume", pause).await
        }
        _ => {
            let ran = async {
                let script = ["/bin/sh", "-c", "exit 5"];
                let code = task.exec(&format!("{}-{number}", task.id), &script).await?;
                ensure!(code == 5, "an exec ended with {code}");
                Ok(())
            };
            guest.call("exec", ran).await
        }
    }
}

/// The pod's own network has a bad day, once or twice.
fn plugin_fault(
    plugins: &Plugins,
    id: &str,
    command: &str,
    guest: &mut Guest,
    random: &mut Random,
) {
    let (fault, kind) = match random.below(4) {
        0 => ("plugin fails", "fail 1"),
        1 => ("plugin fails", "fail 2"),
        2 => ("plugin dies", "die 1"),
        _ => ("plugin hangs", "hang 1"),
    };
    let plugin = if random.percent(50) { CHAIN[0] } else { CHAIN[1] };
    guest.hurt(fault);
    let _ = plugins.fault_of(id, plugin, command, kind);
}

/// Nothing of it is left to fail the next one.
pub fn mend(plugins: &Plugins, id: &str) {
    for plugin in CHAIN {
        for command in ["ADD", "DEL"] {
            plugins.mend(plugin, &format!("{command}.{id}"));
        }
    }
}

/// An exec in a pod that stays.
pub async fn exec(life: &Life, name: String) -> Result<()> {
    let task = life.task().context("no task")?;
    let code = task.exec(&name, &["/bin/sh", "-c", "exit 5"]).await?;
    ensure!(code == 5, "an exec ended with {code}");
    Ok(())
}
