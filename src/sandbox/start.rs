//! StartSandbox: the list of acquisitions. Whatever fails, the plan takes back what was acquired.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::time::Instant;

use super::{Error, Pod, Sandbox, State, blocking, config::Scope, create::Network};
use crate::{
    cgroup::{self, Cgroup},
    keeper::{Keeper, Net, Preference, User, Wanted},
    mounts::{files, kernel::System, shm},
    network::{self, netns},
    resources::Resource,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Started {
    /// The number under /proc whose namespaces are the pod's; 0 where nothing but their mounts stands for it.
    pub pid: u32,
    /// When the sandbox was created.
    pub created_at: SystemTime,
}

/// The folder of the pod's that its namespaces are pinned in.
const PINS: &str = "ns";

/// How long the keeper of a start that failed may take to end.
const END: Duration = Duration::from_secs(10);

impl Sandbox {
    /// Starts the sandbox: cgroup, files, /dev/shm, namespaces, network.
    pub async fn start(self: &Arc<Self>) -> Result<Started, Error> {
        self.telemetry.timed("sandbox_start", self.start_now()).await
    }

    async fn start_now(self: &Arc<Self>) -> Result<Started, Error> {
        let _life = self.lifecycle.lock().await;
        let pod = match &*self.state() {
            State::Created(pod) => Arc::clone(pod),
            State::Empty => return Err(Error::NotFound),
            State::Ready { .. } => return Err(Error::Precondition("it is started already".into())),
            State::Down { .. } | State::Stopped { .. } => {
                return Err(Error::Precondition("it has been stopped".into()));
            }
        };
        match self.bring_up(&pod).await {
            Ok(keeper) => {
                let pid = keeper.pid();
                self.watch(&keeper);
                *self.state() = State::Ready { pod: Arc::clone(&pod), pid, keeper: Some(keeper) };
                Ok(Started { pid, created_at: pod.created_at })
            }
            Err(error) => {
                self.door.close();
                *self.state() = State::Down { pod: Arc::clone(&pod), pid: 0 };
                if let Err(left) = self.take_down(&pod).await {
                    log::error!(
                        "sandbox {}: release what a failed start acquired: {left}",
                        self.id()
                    );
                }
                Err(error)
            }
        }
    }

    async fn bring_up(&self, pod: &Arc<Pod>) -> Result<Keeper, Error> {
        self.still_wanted()?;
        let (id, run_dir) = (self.id().clone(), self.env.run_dir());
        let local = Arc::clone(pod);
        let needs_process = wanted(pod, Net::Host).needs_process();
        let own_path = netns::path_for(netns::DEFAULT_DIR.as_ref(), &self.env.namespace, &id);
        let at = own_path.clone();
        let made = blocking(move || local.acquire_local(&run_dir, needs_process, &at));
        let net = made.await??;
        self.still_wanted()?;

        let mut wanted = wanted(pod, net);
        let inside_user = wanted.net == Net::New;
        if inside_user && pod.config.user.is_none() {
            wanted.net = Net::Host;
        }
        if self.env.options.keeper == Preference::Pinned {
            wanted.pins = Some(self.env.run_dir().join(PINS));
        }
        let entry = pod.intend(Resource::Keeper(wanted.planned())).await?;
        let keeper = Keeper::start(wanted, &self.env.reaper, self.env.holder).await?;
        let finished = self.finish(pod, &keeper, entry, inside_user, own_path).await;
        match finished {
            Ok(()) => Ok(keeper),
            Err(error) => {
                // The plan's own step finds nothing any more; the keeper is known only here.
                if let Err(left) = keeper.end(Instant::now() + END).await {
                    log::warn!("sandbox {}: {left}", self.id());
                }
                Err(error)
            }
        }
    }

    /// What needs the keeper to be there: its record, its cgroup, and the network.
    async fn finish(
        &self,
        pod: &Arc<Pod>,
        keeper: &Keeper,
        entry: usize,
        pin: bool,
        own_path: PathBuf,
    ) -> Result<(), Error> {
        pod.held(entry, Resource::Keeper(keeper.record())).await?;
        self.still_wanted()?;
        if let Keeper::Holder(_) = keeper {
            self.settle_holder(pod, keeper.pid()).await?;
        }
        if pin {
            let source = format!("/proc/{}/ns/net", keeper.pid());
            let local = Arc::clone(pod);
            let path = own_path.clone();
            blocking(move || -> Result<(), Error> {
                let store = &local.store;
                let record = netns::NetnsRecord { path: path.clone() };
                let entry = store.intend(Resource::Netns(record))?;
                let namespace = netns::open(source.as_ref())?;
                let record = netns::pin(&path, std::os::fd::AsFd::as_fd(&namespace))?;
                store.held(entry, Resource::Netns(record))?;
                Ok(())
            })
            .await??;
        }
        match &pod.network {
            Network::Own => self.attach(pod, own_path).await?,
            Network::Attach(path) => self.attach(pod, path.clone()).await?,
            Network::Host | Network::Client(_) => {}
        }
        self.announce(pod, keeper).await
    }

    /// The holder belongs in the pod's cgroup, and is the last that the kernel should kill for memory.
    async fn settle_holder(&self, pod: &Arc<Pod>, pid: u32) -> Result<(), Error> {
        let (id, parent) = (self.id().clone(), pod.config.cgroup_parent.clone());
        let local = Arc::clone(pod);
        blocking(move || -> Result<(), Error> {
            if !parent.is_empty() {
                let path = format!("{}/{id}", cgroup::pod::parent_path(&parent)?);
                let group = local.acquire_cgroup(&path)?;
                group.set_shares(2)?;
                cgroup::pod::join(&group, pid)?;
            }
            match std::fs::write(format!("/proc/{pid}/oom_score_adj"), "-998") {
                // Without CAP_SYS_RESOURCE on the node (kind, a rootless containerd) nobody may, and every pod would say so.
                Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                    log::debug!("sandbox {id}: set oom_score_adj of the holder: {error}");
                }
                Err(error) => {
                    log::warn!("sandbox {id}: set oom_score_adj of the holder: {error}");
                }
                Ok(()) => {}
            }
            Ok(())
        })
        .await?
    }

    async fn attach(&self, pod: &Arc<Pod>, path: PathBuf) -> Result<(), Error> {
        self.still_wanted()?;
        let settings = self.env.options.network.clone();
        let config = &pod.config;
        let args = network::kubernetes_args(
            &config.namespace,
            &config.name,
            &config.uid,
            self.id().as_str(),
        );
        let request = network::AttachRequest {
            container_id: self.id().to_string(),
            netns: path,
            args: if config.name.is_empty() {
                vec![("IgnoreUnknown".into(), "1".into())]
            } else {
                args
            },
            capabilities: config.capabilities.clone(),
        };
        let mut record = blocking(move || network::plan(&settings, request)).await??;
        let entry = pod.intend(Resource::Network(Box::new(record.clone()))).await?;
        let attaching = network::attach(&*self.env.plugins, &mut record, None);
        let attached = self.telemetry.timed("network_create", attaching).await;
        match attached {
            Ok(_) => pod.held(entry, Resource::Network(Box::new(record))).await,
            Err(error) => {
                // The start fails by what the plugin says; the teardown goes by what is known in memory.
                if let Err(unwritten) = pod.update(entry, Resource::Network(Box::new(record))).await
                {
                    log::warn!("sandbox {}: {unwritten}", self.id());
                }
                Err(error.into())
            }
        }
    }

    /// A stop that came meanwhile ends the start at its next step.
    pub(super) fn still_wanted(&self) -> Result<(), Error> {
        if self.door.is_closed() {
            return Err(Error::Precondition("the sandbox is being stopped".into()));
        }
        Ok(())
    }

    /// A holder that ends by itself ends the sandbox.
    fn watch(self: &Arc<Self>, keeper: &Keeper) {
        let Some(mut exited) = keeper.exited() else { return };
        let sandbox = Arc::downgrade(self);
        tokio::spawn(async move {
            let exit = exited.wait().await;
            let Some(sandbox) = sandbox.upgrade() else { return };
            let mut state = sandbox.state();
            if let State::Ready { pod, pid, .. } = &*state {
                log::warn!(
                    "sandbox {}: its holder ended with status {}",
                    sandbox.id(),
                    exit.status
                );
                *state = State::Down { pod: Arc::clone(pod), pid: *pid };
            }
            drop(state);
            sandbox.ended(exit.status.unsigned_abs());
        });
    }
}

impl Pod {
    /// Acquires what needs no other process: cgroup, files, /dev/shm, network namespace. Blocks.
    fn acquire_local(
        &self,
        run_dir: &std::path::Path,
        needs_process: bool,
        own_path: &std::path::Path,
    ) -> Result<Net, Error> {
        let store = &self.store;
        if !self.config.cgroup_parent.is_empty() {
            self.acquire_cgroup(&cgroup::pod::parent_path(&self.config.cgroup_parent)?)?;
        }
        let owner = self.config.root_on_node();
        let request = files::FilesRequest {
            hostname: self.config.hostname.clone(),
            dns: self.config.dns.clone(),
            owner,
        };
        let entry = store.intend(Resource::Files(files::FilesRecord::in_dir(run_dir)))?;
        let record = files::acquire(run_dir, &request)?;
        store.held(entry, Resource::Files(record))?;
        if self.config.ipc == Scope::Pod {
            let planned = shm::ShmRecord::in_dir(run_dir);
            let entry = store.intend(Resource::Shm(planned))?;
            let record = shm::acquire(&System, run_dir, self.config.shm_size)?;
            if let Some((user, group)) = owner
                && let Err(error) = std::os::unix::fs::chown(&record.path, Some(user), Some(group))
            {
                // Everybody may write to it all the same.
                log::warn!("change the owner of {}: {error}", record.path.display());
            }
            store.held(entry, Resource::Shm(record))?;
        }
        Ok(match &self.network {
            Network::Host => Net::Host,
            Network::Client(path) | Network::Attach(path) => Net::Join(path.clone()),
            // Its owner must be the pod's user namespace: made inside, pinned afterwards.
            Network::Own if needs_process && self.config.user.is_some() => Net::New,
            Network::Own => {
                let planned = netns::NetnsRecord { path: own_path.to_owned() };
                let entry = store.intend(Resource::Netns(planned))?;
                let record = netns::acquire(own_path)?;
                store.held(entry, Resource::Netns(record))?;
                Net::Join(own_path.to_owned())
            }
        })
    }

    fn acquire_cgroup(&self, path: &str) -> Result<Cgroup, Error> {
        let planned = cgroup::pod::plan(path)?;
        let entry = self.store.intend(Resource::Cgroup(planned))?;
        let (group, record) = cgroup::pod::acquire(path)?;
        self.store.held(entry, Resource::Cgroup(record))?;
        Ok(group)
    }

    pub(super) async fn intend(&self, resource: Resource) -> Result<usize, Error> {
        let store = Arc::clone(&self.store);
        Ok(blocking(move || store.intend(resource)).await??)
    }

    pub(super) async fn held(&self, entry: usize, resource: Resource) -> Result<(), Error> {
        let store = Arc::clone(&self.store);
        Ok(blocking(move || store.held(entry, resource)).await??)
    }

    pub(super) async fn released(&self, entry: usize) -> Result<(), Error> {
        let store = Arc::clone(&self.store);
        Ok(blocking(move || store.released(entry)).await??)
    }

    async fn update(&self, entry: usize, resource: Resource) -> Result<(), Error> {
        let store = Arc::clone(&self.store);
        Ok(blocking(move || store.update(entry, resource)).await??)
    }
}

/// What a pod's keeper is to hold.
fn wanted(pod: &Pod, net: Net) -> Wanted {
    let config = &pod.config;
    let user = match (&config.user, &net) {
        (None, _) => User::Host,
        (Some(_), Net::Join(_)) => User::OwnerOfNet,
        (Some((uids, gids)), _) => User::New { uids: uids.clone(), gids: gids.clone() },
    };
    let uts = config.own_uts.then(|| config.hostname.clone().unwrap_or_else(node_name));
    Wanted {
        pins: None,
        net,
        user,
        ipc: config.ipc == Scope::Pod,
        uts,
        shared_pid: config.pid == Scope::Pod,
        sysctls: config.sysctls_with_defaults(),
    }
}

pub(super) fn node_name() -> String {
    nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default()
}
