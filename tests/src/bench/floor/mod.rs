//! The floor: the same CNI plugins, OCI runtime calls and system calls that a pod takes, done bare. What a row has
//! above it is what containerd and the shim add.

mod cni;
mod oci;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::resource::{UsageWho, getrusage};

use self::cni::{Attached, Cni, joined, make_netns, remove_netns};
use self::oci::{Bare, Model};
use crate::cri::{ContainerSpec, PodSpec};
use crate::suite::Case;

/// What it takes.
pub struct Floor {
    cni: Cni,
    model: Model,
    number: AtomicU32,
}

/// Laps of one life, each with its name and its milliseconds.
pub type Laps = Vec<(&'static str, f64)>;

/// The time of something, in milliseconds.
pub fn timed<T>(what: impl FnOnce() -> Result<T>) -> Result<(T, f64)> {
    let since = Instant::now();
    let done = what()?;
    Ok((done, milliseconds(since.elapsed())))
}

/// As the table has it.
pub fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// CPU time of the children that were waited for, in milliseconds: those of the floor, while nothing else has any.
pub fn children() -> Result<f64> {
    let used = getrusage(UsageWho::RUSAGE_CHILDREN).context("ask what children have used")?;
    let ms = |time: nix::sys::time::TimeVal| {
        #[expect(clippy::cast_precision_loss)]
        let ms = time.tv_sec() as f64 * 1000.0 + time.tv_usec() as f64 / 1000.0;
        ms
    };
    Ok(ms(used.user_time()) + ms(used.system_time()))
}

/// A pod's network, without pod.
pub struct Space {
    name: String,
    netns: PathBuf,
    attached: Attached,
}

/// What one life of the floor has used of the CPU, in milliseconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Used {
    /// CNI plugins, with what they run.
    pub plugins: f64,
    /// The OCI runtime.
    pub runtime: f64,
}

impl Floor {
    /// Learns from a real pod what a container is made of.
    pub async fn of(case: &Case) -> Result<Arc<Self>> {
        let pod = PodSpec::new(case).run().await?;
        let container = pod.start(&ContainerSpec::idle("main")).await?;
        let model = Model::of(&case.node, &container.id).context("learn what a container is")?;
        pod.end().await?;
        let cni = Cni::of(&case.node).context("read the network's configuration")?;
        Ok(Arc::new(Self { cni, model, number: AtomicU32::new(0) }))
    }

    /// Does something of it where blocking disturbs nobody.
    pub async fn run<T: Send + 'static>(
        self: &Arc<Self>,
        what: impl FnOnce(&Self) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let own = Arc::clone(self);
        tokio::task::spawn_blocking(move || what(&own)).await?.context("the floor")
    }

    fn unique(&self) -> String {
        format!("floor-{}", self.number.fetch_add(1, Ordering::Relaxed))
    }

    /// A namespace with everything that the plugins make.
    pub fn attach(&self) -> Result<Space> {
        let name = self.unique();
        let netns = make_netns(&name)?;
        let attached = self.cni.add(&name, &netns)?;
        Ok(Space { name, netns, attached })
    }

    /// Its end.
    pub fn detach(&self, space: &Space) -> Result<()> {
        self.cni.del(&space.attached)?;
        remove_netns(&space.netns)
    }

    /// The same network as a shim does it that sets `lo` up by itself: its system calls are too small to show.
    pub fn attach_network(&self) -> Result<Space> {
        let name = self.unique();
        let netns = make_netns(&name)?;
        let attached = self.cni.add_network(&name, &netns)?;
        Ok(Space { name, netns, attached })
    }

    /// Its end.
    pub fn detach_network(&self, space: &Space) -> Result<()> {
        self.cni.del_network(&space.attached, &space.netns)?;
        remove_netns(&space.netns)
    }

    /// A container in a pod's network.
    pub fn container<'a>(&'a self, space: &Space) -> Result<Bare<'a>> {
        self.model.start(&space.name, &self.unique(), &space.netns)
    }

    /// One pod's life, by the calls of CRI that would take it there.
    pub fn life(&self) -> Result<Laps> {
        let mut laps = Laps::new();
        let (space, ms) = timed(|| self.attach())?;
        laps.push(("RunPodSandbox", ms));
        let (container, ms) = timed(|| self.container(&space))?;
        laps.push(("StartContainer", ms));
        let ((), ms) = timed(|| container.exec(&["/bin/true"]))?;
        laps.push(("ExecSync", ms));
        let ((), ms) = timed(|| container.update())?;
        laps.push(("UpdateContainerResources", ms));
        let (_, ms) = timed(|| container.statistics(&space.name))?;
        laps.push(("ContainerStats", ms));
        let ((), ms) = timed(|| container.stop(&space.name))?;
        laps.push(("StopContainer", ms));
        let running = self.container(&space)?;
        let ((), ms) = timed(|| {
            running.stop(&space.name)?;
            self.detach(&space)
        })?;
        laps.push(("StopPodSandbox", ms));
        let ((), ms) = timed(|| self.cni.del_again(&space.attached))?;
        laps.push(("RemovePodSandbox", ms));
        self.model.forget(&space.name)?;
        Ok(laps)
    }

    /// What a life of one container without any further call uses of the CPU.
    pub fn use_of_a_life(&self) -> Result<Used> {
        let begin = children()?;
        let space = self.attach()?;
        let attached = children()?;
        let container = self.container(&space)?;
        container.stop(&space.name)?;
        let stopped = children()?;
        self.detach(&space)?;
        self.cni.del_again(&space.attached)?;
        let end = children()?;
        self.model.forget(&space.name)?;
        Ok(Used { plugins: attached - begin + end - stopped, runtime: stopped - attached })
    }

    /// A pod with so many containers: started one after another, stopped all at once.
    pub fn pod_of(&self, count: usize) -> Result<(f64, f64)> {
        let ((space, all), start) = timed(|| {
            let space = self.attach()?;
            let all = (0..count).map(|_| self.container(&space)).collect::<Result<Vec<_>>>()?;
            Ok((space, all))
        })?;
        let ((), stop) = timed(|| {
            at_once(all, |container| container.stop(&space.name))?;
            self.detach(&space)
        })?;
        self.model.forget(&space.name)?;
        Ok((start, stop))
    }

    /// So many pods with a container each, all at once: the time until all were there, gone, and detached once more.
    pub fn crowd(&self, count: usize) -> Result<[f64; 3]> {
        let (all, start) = timed(|| {
            at_once((0..count).collect(), |_| {
                let space = self.attach()?;
                let container = self.container(&space)?;
                Ok((space, container))
            })
        })?;
        let (spaces, stop) = timed(|| {
            at_once(all, |(space, container)| {
                container.stop(&space.name)?;
                self.detach(&space)?;
                Ok(space)
            })
        })?;
        let (spaces, remove) = timed(|| {
            at_once(spaces, |space| {
                self.cni.del_again(&space.attached)?;
                Ok(space)
            })
        })?;
        for space in spaces {
            self.model.forget(&space.name)?;
        }
        Ok([start, stop, remove])
    }

    /// So many execs in one container at once.
    pub fn execs(&self, rounds: usize, count: usize) -> Result<Vec<f64>> {
        let space = self.attach()?;
        let container = self.container(&space)?;
        let mut times = Vec::new();
        for _ in 0..rounds {
            let all = (0..count).collect();
            let (_, ms) = timed(|| at_once(all, |_| container.exec(&["/bin/true"])))?;
            times.push(ms);
        }
        container.stop(&space.name)?;
        self.detach(&space)?;
        self.model.forget(&space.name)?;
        Ok(times)
    }
}

/// Does the same with all of them, each in a thread of its own.
fn at_once<T: Send, R: Send>(all: Vec<T>, what: impl Fn(T) -> Result<R> + Sync) -> Result<Vec<R>> {
    thread::scope(|scope| {
        let what = &what;
        let threads: Vec<_> = all.into_iter().map(|one| scope.spawn(move || what(one))).collect();
        threads.into_iter().map(joined).collect()
    })
}
