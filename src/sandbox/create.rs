//! CreateSandbox: reads what the client wants and opens the journal. Nothing is acquired yet.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::{
    Error, Pod, Sandbox, State, blocking,
    config::PodConfig,
    recover::{RecoverError, Recovery, Remains, Unheard},
};
use crate::{
    mounts::Mount,
    network::netns,
    options::{AnyValue, NetworkOwner},
    resources::PLAN,
    sys::{boot::BootId, namespaces},
    teardown::{
        Executor,
        journal::{self, About, JournalError, Store},
    },
};

/// How long a creation waits for whoever still takes down an earlier sandbox of its name.
const EARLIER: Duration = Duration::from_secs(30);

/// What a client passes to CreateSandbox.
#[derive(Clone, Debug, Default)]
pub struct CreateRequest {
    pub bundle: PathBuf,
    /// A root file system for the sandbox itself.
    pub rootfs: Vec<Mount>,
    /// The configuration; none means the spec in the bundle.
    pub options: Option<AnyValue>,
    /// The network namespace that the client made.
    pub netns_path: Option<PathBuf>,
    pub annotations: BTreeMap<String, String>,
}

/// Where a pod's network comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Network {
    Host,
    /// The client made the namespace and attaches it; the shim only joins.
    Client(PathBuf),
    /// The client made the namespace, the shim attaches it.
    Attach(PathBuf),
    /// The shim makes the namespace and attaches it.
    Own,
}

impl Network {
    /// The file that the pod's namespace is pinned at, which is `own` where the shim makes it; none on the node's network.
    pub(super) fn path<'a>(&'a self, own: &'a Path) -> Option<&'a Path> {
        match self {
            Self::Host => None,
            Self::Client(path) | Self::Attach(path) => Some(path),
            Self::Own => Some(own),
        }
    }

    fn decide(
        owner: NetworkOwner,
        config: &PodConfig,
        given: Option<PathBuf>,
    ) -> Result<Self, Error> {
        let path = given.or_else(|| config.netns_path.clone());
        if let (true, Some(path)) = (config.host_network, &path) {
            let path = path.display();
            return Err(Error::Invalid(format!(
                "network namespace {path} given for a pod in the node's network"
            )));
        }
        match (config.host_network, path, owner) {
            (true, ..) => Ok(Self::Host),
            // Never silently in the node's network.
            (false, None, NetworkOwner::Client) => Err(Error::Invalid(
                "the network is the client's (NetworkOwner), and it gave no network namespace"
                    .into(),
            )),
            (false, None, _) => Ok(Self::Own),
            (false, Some(path), NetworkOwner::Shim) => Ok(Self::Attach(path)),
            (false, Some(path), _) => Ok(Self::Client(path)),
        }
    }
}

impl Sandbox {
    /// Creates the sandbox. It holds nothing but its journal afterwards.
    pub async fn create(self: &Arc<Self>, request: CreateRequest) -> Result<(), Error> {
        self.telemetry.timed("sandbox_create", self.create_now(request)).await
    }

    async fn create_now(self: &Arc<Self>, request: CreateRequest) -> Result<(), Error> {
        let _life = self.lifecycle.lock().await;
        if self.is_created() {
            return Err(Error::AlreadyExists);
        }
        if !request.rootfs.is_empty() {
            // Nothing of a pod without pause container runs from a root file system of its own.
            log::info!(
                "sandbox {}: its {} root file system mounts are not needed",
                self.id(),
                request.rootfs.len()
            );
        }
        self.finish_an_earlier_one().await?;
        let sandbox = Arc::clone(self);
        let pod = blocking(move || sandbox.read_and_record(request)).await??;
        *self.state() = State::Created(Arc::new(pod));
        Ok(())
    }

    /// Completes the teardown of an earlier sandbox of this name, if there is one that nobody completed: its journal
    /// is all that knows what it held.
    async fn finish_an_earlier_one(&self) -> Result<(), Error> {
        let state_dir = self.env.state_dir();
        let folder = state_dir.clone();
        if !blocking(move || journal::exists(&folder)).await? {
            return Ok(());
        }
        log::warn!(
            "sandbox {}: an earlier sandbox of this name was not released completely; doing it now",
            self.id()
        );
        let recovery = Recovery {
            reaper: self.env.reaper.clone(),
            containerd: Arc::clone(&self.env.containerd),
            plugins: Arc::clone(&self.env.plugins),
            listener: Arc::new(Unheard),
        };
        // The record beside it is this shim's own, and stays.
        let remains = Remains { state_dir: state_dir.clone(), shim: None, patience: EARLIER };
        match recovery.finish(remains).await {
            Ok(_) => Ok(()),
            Err(RecoverError::Journal(error @ JournalError::Foreign { .. })) => {
                log::error!("sandbox {}: {error}; it is set aside", self.id());
                Ok(blocking(move || journal::set_aside(&state_dir)).await??)
            }
            Err(error) => Err(Error::Earlier(error)),
        }
    }

    fn read_and_record(&self, request: CreateRequest) -> Result<Pod, Error> {
        let options =
            request.options.as_ref().map(|any| (any.type_url.as_str(), any.value.as_slice()));
        let mut config = PodConfig::read(options, &request.bundle)?;
        config.add_capabilities_of(&request.annotations)?;
        let given = request.netns_path.filter(|path| !path.as_os_str().is_empty());
        let network = Network::decide(self.env.options.network_owner, &config, given)?;
        if let Network::Client(path) | Network::Attach(path) = &network {
            netns::check(path)?;
            // With it the pod's network, and its kernel parameters, would be the node's.
            if namespaces::is_the_nodes(path, "net").map_err(|error| unknown(path, &error))? {
                return Err(unknown(path, &"it is the node's own"));
            }
        }
        let created_at = SystemTime::now();
        let boot = BootId::current()
            .map_err(|error| Error::Internal(format!("find out which boot this is: {error}")))?;
        let about = About {
            namespace: self.env.namespace.clone(),
            id: self.env.id.clone(),
            bundle: request.bundle.clone(),
            grpc_address: self.env.grpc_address.clone(),
            created_at,
            run_dir: self.env.run_dir(),
            shim: i32::try_from(std::process::id()).ok(),
            boot: Some(boot),
        };
        let store = Arc::new(Store::create(&self.env.state_dir(), about)?);
        Ok(Pod {
            config,
            network,
            bundle: request.bundle,
            annotations: request.annotations,
            teardown: Executor::new(PLAN, Arc::clone(&store)),
            store,
            created_at,
            volumes: tokio::sync::Mutex::default(),
        })
    }
}

fn unknown(path: &Path, why: &dyn std::fmt::Display) -> Error {
    Error::Invalid(format!("network namespace {} cannot be a pod's: {why}", path.display()))
}

#[cfg(test)]
mod tests {
    use k8s_cri::v1::PodSandboxConfig;

    use super::*;

    fn pod(host_network: bool) -> PodConfig {
        PodConfig { host_network, ..PodConfig::from_cri(&PodSandboxConfig::default()).unwrap() }
    }

    #[test]
    fn whoever_brings_the_namespace_owns_the_network() {
        let path = || Some(PathBuf::from("/run/netns/x"));
        let decide = |owner, host, given| Network::decide(owner, &pod(host), given).unwrap();
        assert_eq!(
            decide(NetworkOwner::Auto, false, path()),
            Network::Client("/run/netns/x".into())
        );
        assert_eq!(decide(NetworkOwner::Auto, false, None), Network::Own);
        assert_eq!(decide(NetworkOwner::Auto, true, None), Network::Host);
        assert_eq!(decide(NetworkOwner::Client, true, None), Network::Host);
        assert!(Network::decide(NetworkOwner::Client, &pod(false), None).is_err());
        assert_eq!(decide(NetworkOwner::Shim, false, None), Network::Own);
        assert_eq!(
            decide(NetworkOwner::Shim, false, path()),
            Network::Attach("/run/netns/x".into())
        );
        assert!(Network::decide(NetworkOwner::Auto, &pod(true), path()).is_err());
    }
}
