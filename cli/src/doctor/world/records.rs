//! What containerd says of itself, in every one of its namespaces.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::Duration,
};

use containerd_client::services::v1::{
    ListContainersRequest, ListNamespacesRequest, ListRequest, ListTasksRequest, PluginsRequest,
    containers_client::ContainersClient,
    introspection_client::IntrospectionClient,
    leases_client::LeasesClient,
    namespaces_client::NamespacesClient,
    sandbox::{StoreListRequest, store_client::StoreClient},
    snapshots::{ListSnapshotsRequest, snapshots_client::SnapshotsClient},
    tasks_client::TasksClient,
    version_client::VersionClient,
};
use serde_json::Value;
use tonic::{Request, Status, metadata::AsciiMetadataValue, transport::Channel};

/// How long all of it may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// containerd answers with messages of up to this size.
const LARGEST_MESSAGE: usize = 16 << 20;
const SNAPSHOTTER: &str = "io.containerd.snapshotter.v1";
/// How the snapshots of Mooring's image volumes begin.
const OURS: &str = "mooring-";

/// A thing of one of containerd's namespaces.
pub type Named = (String, String);

#[derive(Debug, Default)]
pub struct Records {
    pub version: String,
    pub containers: BTreeSet<Named>,
    pub tasks: BTreeSet<Named>,
    pub sandboxes: BTreeSet<Named>,
    pub leases: Vec<Lease>,
    /// Namespace, snapshotter, key: of Mooring's image volumes alone.
    pub snapshots: Vec<(String, String, String)>,
    /// The network namespaces that containers' specifications and CRI's sandboxes name.
    pub netns: BTreeSet<PathBuf>,
}

#[derive(Debug)]
pub struct Lease {
    pub namespace: String,
    pub id: String,
    /// Whether it ends by itself.
    pub expires: bool,
    pub created: Option<std::time::SystemTime>,
}

/// Asks for everything, or says why that was not possible.
pub fn ask(address: &Path) -> Result<Records, String> {
    let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", address.display());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| failed(&error))?;
    runtime.block_on(async {
        let all = async {
            let channel = containerd_client::connect(address);
            let channel =
                channel.await.map_err(|error| failed(&anyhow::Error::from(error).root_cause()))?;
            read(channel).await.map_err(|status| failed(&status.message()))
        };
        match tokio::time::timeout(PATIENCE, all).await {
            Ok(answer) => answer,
            Err(_) => Err(failed(&format!("no answer within {} s", PATIENCE.as_secs()))),
        }
    })
}

async fn read(channel: Channel) -> Result<Records, Status> {
    let version = VersionClient::new(channel.clone()).version(()).await?.into_inner().version;
    let mut records = Records { version, ..Records::default() };
    let snapshotters = snapshotters(&channel).await?;
    let mut client = NamespacesClient::new(channel.clone());
    let list = client.list(ListNamespacesRequest::default()).await?.into_inner();
    for namespace in list.namespaces {
        records.add(&channel, &namespace.name, &snapshotters).await?;
    }
    Ok(records)
}

async fn snapshotters(channel: &Channel) -> Result<Vec<String>, Status> {
    let filters = vec![format!("type=={SNAPSHOTTER}")];
    let mut client = IntrospectionClient::new(channel.clone());
    let plugins = client.plugins(PluginsRequest { filters }).await?.into_inner().plugins;
    let usable = plugins.into_iter().filter(|plugin| plugin.init_err.is_none());
    Ok(usable.map(|plugin| plugin.id).collect())
}

impl Records {
    async fn add(
        &mut self,
        channel: &Channel,
        namespace: &str,
        snapshotters: &[String],
    ) -> Result<(), Status> {
        let named = |id: String| (namespace.to_owned(), id);
        let mut client =
            ContainersClient::new(channel.clone()).max_decoding_message_size(LARGEST_MESSAGE);
        let request = within(namespace, ListContainersRequest::default())?;
        let mut stream = client.list_stream(request).await?.into_inner();
        while let Some(item) = stream.message().await? {
            let Some(container) = item.container else { continue };
            let spec = container.spec.map(|any| any.value).unwrap_or_default();
            self.netns.extend(netns_of(&spec));
            self.containers.insert(named(container.id));
        }
        let mut client = TasksClient::new(channel.clone());
        let tasks = client.list(within(namespace, ListTasksRequest::default())?).await?;
        self.tasks.extend(tasks.into_inner().tasks.into_iter().map(|task| named(task.id)));
        let mut client = StoreClient::new(channel.clone());
        let list = client.list(within(namespace, StoreListRequest::default())?).await?;
        for sandbox in list.into_inner().list {
            for any in sandbox.spec.iter().chain(sandbox.extensions.values()) {
                self.netns.extend(netns_of(&any.value));
            }
            self.sandboxes.insert(named(sandbox.sandbox_id));
        }
        let mut client = LeasesClient::new(channel.clone());
        let list = client.list(within(namespace, ListRequest::default())?).await?;
        self.leases.extend(list.into_inner().leases.into_iter().map(|lease| Lease {
            namespace: namespace.to_owned(),
            expires: lease.labels.contains_key("containerd.io/gc.expire"),
            created: lease.created_at.and_then(|stamp| stamp.try_into().ok()),
            id: lease.id,
        }));
        for snapshotter in snapshotters {
            let mut client = SnapshotsClient::new(channel.clone());
            let request =
                ListSnapshotsRequest { snapshotter: snapshotter.clone(), filters: Vec::new() };
            let mut stream = client.list(within(namespace, request)?).await?.into_inner();
            while let Some(page) = stream.message().await? {
                let ours = page.info.into_iter().filter(|info| info.name.starts_with(OURS));
                let snapshot = |key: String| (namespace.to_owned(), snapshotter.clone(), key);
                self.snapshots.extend(ours.map(|info| snapshot(info.name)));
            }
        }
        Ok(())
    }
}

fn within<T>(namespace: &str, message: T) -> Result<Request<T>, Status> {
    let mut request = Request::new(message);
    let namespace: AsciiMetadataValue = namespace
        .parse()
        .map_err(|_| Status::invalid_argument(format!("{namespace:?} cannot be a gRPC header")))?;
    request.metadata_mut().insert("containerd-namespace", namespace);
    Ok(request)
}

/// The network namespaces that an OCI specification or CRI's description of a sandbox names.
fn netns_of(json: &[u8]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    if let Ok(value) = serde_json::from_slice::<Value>(json) {
        let spaces = value.pointer("/linux/namespaces").and_then(Value::as_array);
        for space in spaces.into_iter().flatten() {
            if space.get("type").and_then(Value::as_str) == Some("network") {
                found.extend(space.get("path").and_then(Value::as_str));
            }
        }
        for place in ["/Metadata/NetNSPath", "/NetNSPath"] {
            found.extend(value.pointer(place).and_then(Value::as_str));
        }
        return found.into_iter().map(|path| plain(Path::new(path))).collect();
    }
    Vec::new()
}

/// `/var/run` is `/run`, and both are written.
pub fn plain(path: &Path) -> PathBuf {
    path.strip_prefix("/var/run")
        .map_or_else(|_| path.to_owned(), |rest| Path::new("/run").join(rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_are_read_from_specifications_and_from_cris_sandboxes() {
        let spec = br#"{"linux":{"namespaces":[{"type":"pid"},{"type":"network","path":"/var/run/netns/a"}]}}"#;
        assert_eq!(netns_of(spec), [PathBuf::from("/run/netns/a")]);
        let cri = br#"{"Version":"v1","Metadata":{"ID":"x","NetNSPath":"/var/run/netns/b"}}"#;
        assert_eq!(netns_of(cri), [PathBuf::from("/run/netns/b")]);
        assert!(netns_of(b"no json").is_empty() && netns_of(b"[1]").is_empty());
    }
}
