//! containerd over gRPC, connected at the first call.

use std::{
    collections::BTreeMap,
    future::Future,
    path::PathBuf,
    sync::{Mutex, PoisonError},
    time::SystemTime,
};

use async_trait::async_trait;
use containerd_client::{
    services::v1::{
        CreateRequest, DeleteRequest, DeleteTaskRequest, GetImageRequest, GetRequest, KillRequest,
        ListContainersRequest, ReadContentRequest, WaitRequest,
        containers_client::ContainersClient,
        content_client::ContentClient,
        images_client::ImagesClient,
        leases_client::LeasesClient,
        sandbox::{StoreGetRequest, store_client::StoreClient},
        snapshots::{
            MountsRequest, RemoveSnapshotRequest, ViewSnapshotRequest,
            snapshots_client::SnapshotsClient,
        },
        tasks_client::TasksClient,
    },
    types,
    types::v1::Status as WireStatus,
};
use prost_types::Timestamp;
use tokio::time::{Instant, timeout_at};
use tonic::{Request, metadata::AsciiMetadataValue, transport::Channel};

use super::{
    Containerd, Error, Image, TaskExit, TaskStatus, View,
    failure::{Failure, with_causes},
    image,
};
use crate::{id::Id, mounts::Mount, released::Released, telemetry::trace::Span};

/// Containers of Mooring: whatever the name that its runtime type or its program's path has.
const OF_MOORING: &str = "runtime.name~=mooring";
/// containerd answers with messages of up to this size.
const LARGEST_MESSAGE: usize = 16 << 20;
/// Manifests and configurations are some kilobytes; what is larger is none.
const LARGEST_DOCUMENT: usize = 8 << 20;
/// An index may lead to an index, but not for ever.
const DEEPEST_INDEX: usize = 4;

/// containerd behind its socket. It holds no connection before the first call nor after [`Containerd::disconnect`].
pub struct Grpc {
    socket: PathBuf,
    namespace: Id,
    channel: Mutex<Option<Channel>>,
}

impl Grpc {
    /// `address` is the socket's path, as containerd passes it to shims (with or without `unix://`).
    pub fn new(address: &str, namespace: Id) -> Self {
        let socket = address.strip_prefix("unix://").unwrap_or(address).into();
        Self { socket, namespace, channel: Mutex::new(None) }
    }

    /// Does one call with the connection, within the deadline.
    async fn call<T, F>(
        &self,
        call: String,
        deadline: Instant,
        body: impl FnOnce(Channel) -> F + Send,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Failure>> + Send,
    {
        let answer = timeout_at(deadline, async {
            let channel = self.connected().await?;
            body(channel).await
        })
        .await;
        match answer {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(failure)) => Err(failure.of(call)),
            Err(_) => Err(Error::DeadlineExceeded { call }),
        }
    }

    async fn connected(&self) -> Result<Channel, Failure> {
        let known = self.channel.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(channel) = known {
            return Ok(channel);
        }
        let fresh = containerd_client::connect(&self.socket).await.map_err(|error| {
            let socket = self.socket.display();
            Failure::Unavailable(format!("connect to {socket}: {}", with_causes(&error)))
        })?;
        // Two first calls at once make two connections; the later one serves both afterwards.
        *self.channel.lock().unwrap_or_else(PoisonError::into_inner) = Some(fresh.clone());
        Ok(fresh)
    }

    fn request<T>(&self, message: T) -> Result<Request<T>, Failure> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("containerd-namespace", header(self.namespace.as_str())?);
        if let Some(context) = Span::current().context() {
            request.metadata_mut().insert("traceparent", header(&context.traceparent())?);
            if let Some(state) = &context.state {
                request.metadata_mut().insert("tracestate", header(state)?);
            }
        }
        Ok(request)
    }
}

fn header(text: &str) -> Result<AsciiMetadataValue, Failure> {
    text.parse().map_err(|_| Failure::Invalid(format!("{text:?} cannot be a gRPC header")))
}

/// A time from the wire; an impossible one is the epoch.
fn time(stamp: Option<Timestamp>) -> SystemTime {
    stamp.and_then(|stamp| stamp.try_into().ok()).unwrap_or(SystemTime::UNIX_EPOCH)
}

fn mounts(wire: Vec<types::Mount>) -> Vec<Mount> {
    wire.into_iter()
        .map(|mount| Mount {
            kind: mount.r#type,
            source: mount.source,
            target: (!mount.target.is_empty()).then(|| mount.target.into()),
            options: mount.options,
        })
        .collect()
}

/// For a release, the thing's absence is success.
fn released(answer: Result<(), Error>) -> Result<Released, Error> {
    match answer {
        Ok(()) => Ok(Released::Done),
        Err(Error::NotFound { .. }) => Ok(Released::AlreadyGone),
        Err(error) => Err(error),
    }
}

impl Grpc {
    async fn document(&self, channel: &Channel, digest: &str) -> Result<Vec<u8>, Failure> {
        let request = ReadContentRequest { digest: digest.to_owned(), offset: 0, size: 0 };
        let mut client =
            ContentClient::new(channel.clone()).max_decoding_message_size(LARGEST_MESSAGE);
        let mut stream = client.read(self.request(request)?).await?.into_inner();
        let mut document = Vec::new();
        while let Some(part) = stream.message().await? {
            document.extend(part.data);
            if document.len() > LARGEST_DOCUMENT {
                return Err(Failure::Invalid(format!("content {digest} is too large")));
            }
        }
        Ok(document)
    }

    async fn resolve(&self, channel: Channel, reference: &str) -> Result<Image, Failure> {
        let request = self.request(GetImageRequest { name: reference.to_owned() })?;
        let found = ImagesClient::new(channel.clone()).get(request).await?.into_inner();
        let digest = found
            .image
            .and_then(|image| image.target)
            .map(|target| target.digest)
            .ok_or_else(|| Failure::NotFound("the image has no content".to_owned()))?;
        let host = image::host();
        let mut at = digest.clone();
        for _ in 0..DEEPEST_INDEX {
            let document = self.document(&channel, &at).await?;
            let wrong = |reason: image::Wrong| Failure::Invalid(format!("content {at}: {reason}"));
            match image::next(&document, &host).map_err(wrong)? {
                image::Next::Document(next) => at = next.digest,
                image::Next::Config(config) => {
                    let content = self.document(&channel, &config.digest).await?;
                    let chain = image::chain_of_config(&content).map_err(|reason| {
                        Failure::Invalid(format!("content {}: {reason}", config.digest))
                    })?;
                    return Ok(Image { digest, chain });
                }
            }
        }
        Err(Failure::Invalid(format!("index {digest} leads from index to index")))
    }
}

#[async_trait]
impl Containerd for Grpc {
    async fn containers_of(&self, sandbox: &Id, deadline: Instant) -> Result<Vec<Id>, Error> {
        let call = format!("list containers of sandbox {:?}", sandbox.as_str());
        self.call(call, deadline, |channel| async move {
            let filters = vec![OF_MOORING.to_owned()];
            let mut client =
                ContainersClient::new(channel).max_decoding_message_size(LARGEST_MESSAGE);
            let request = self.request(ListContainersRequest { filters })?;
            let mut stream = client.list_stream(request).await?.into_inner();
            let mut ids = Vec::new();
            // Records carry whole specs: one is in memory at a time, and only its id stays.
            while let Some(item) = stream.message().await? {
                let Some(container) = item.container.filter(|one| one.sandbox == sandbox.as_str())
                else {
                    continue;
                };
                match Id::new(container.id) {
                    Ok(id) => ids.push(id),
                    Err(error) => log::warn!("containerd lists a container whose {error}"),
                }
            }
            Ok(ids)
        })
        .await
    }

    async fn kill_task(
        &self,
        container: &Id,
        signal: u32,
        all: bool,
        deadline: Instant,
    ) -> Result<(), Error> {
        let call = format!("kill task {:?} with signal {signal}", container.as_str());
        self.call(call, deadline, |channel| async move {
            let request = KillRequest {
                container_id: container.to_string(),
                exec_id: String::new(),
                signal,
                all,
            };
            TasksClient::new(channel).kill(self.request(request)?).await?;
            Ok(())
        })
        .await
    }

    async fn wait_task(&self, container: &Id, deadline: Instant) -> Result<TaskExit, Error> {
        let call = format!("wait for task {:?}", container.as_str());
        self.call(call, deadline, |channel| async move {
            let request =
                WaitRequest { container_id: container.to_string(), exec_id: String::new() };
            let exit = TasksClient::new(channel).wait(self.request(request)?).await?.into_inner();
            Ok(TaskExit { status: exit.exit_status, exited_at: time(exit.exited_at) })
        })
        .await
    }

    async fn task_status(&self, container: &Id, deadline: Instant) -> Result<TaskStatus, Error> {
        let call = format!("get task {:?}", container.as_str());
        self.call(call, deadline, |channel| async move {
            let request =
                GetRequest { container_id: container.to_string(), exec_id: String::new() };
            let answer = TasksClient::new(channel).get(self.request(request)?).await?.into_inner();
            let Some(process) = answer.process else {
                return Err(Failure::NotFound("an empty answer".to_owned()));
            };
            Ok(match process.status() {
                WireStatus::Unknown => TaskStatus::Unknown,
                WireStatus::Created => TaskStatus::Created,
                WireStatus::Running => TaskStatus::Running,
                WireStatus::Stopped => TaskStatus::Stopped(TaskExit {
                    status: process.exit_status,
                    exited_at: time(process.exited_at),
                }),
                WireStatus::Paused => TaskStatus::Paused,
                WireStatus::Pausing => TaskStatus::Pausing,
            })
        })
        .await
    }

    async fn delete_task(&self, container: &Id, deadline: Instant) -> Result<TaskExit, Error> {
        let call = format!("delete task {:?}", container.as_str());
        self.call(call, deadline, |channel| async move {
            let request =
                self.request(DeleteTaskRequest { container_id: container.to_string() })?;
            let exit = TasksClient::new(channel).delete(request).await?.into_inner();
            Ok(TaskExit { status: exit.exit_status, exited_at: time(exit.exited_at) })
        })
        .await
    }

    async fn create_lease(
        &self,
        id: &str,
        labels: &BTreeMap<String, String>,
        deadline: Instant,
    ) -> Result<(), Error> {
        self.call(format!("create lease {id:?}"), deadline, |channel| async move {
            let labels = labels.clone().into_iter().collect();
            let request = CreateRequest { id: id.to_owned(), labels };
            LeasesClient::new(channel).create(self.request(request)?).await?;
            Ok(())
        })
        .await
    }

    async fn delete_lease(&self, id: &str, deadline: Instant) -> Result<Released, Error> {
        let call = format!("delete lease {id:?}");
        let answer = self.call(call, deadline, |channel| async move {
            let request = DeleteRequest { id: id.to_owned(), sync: false };
            LeasesClient::new(channel).delete(self.request(request)?).await?;
            Ok(())
        });
        released(answer.await)
    }

    async fn knows_sandbox(&self, sandbox: &Id, deadline: Instant) -> Result<bool, Error> {
        let call = format!("get the record of sandbox {:?}", sandbox.as_str());
        let answer = self.call(call, deadline, |channel| async move {
            let request = StoreGetRequest { sandbox_id: sandbox.to_string() };
            StoreClient::new(channel).get(self.request(request)?).await?;
            Ok(())
        });
        match answer.await {
            Ok(()) => Ok(true),
            Err(Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn image_chain(&self, reference: &str, deadline: Instant) -> Result<Image, Error> {
        self.call(format!("resolve image {reference:?}"), deadline, |channel| {
            self.resolve(channel, reference)
        })
        .await
    }

    async fn view_snapshot(&self, view: &View, deadline: Instant) -> Result<Vec<Mount>, Error> {
        let call =
            format!("view snapshot {:?} as {:?} by {}", view.parent, view.key, view.snapshotter);
        let made = self.call(call, deadline, |channel| async move {
            let mut request = self.request(ViewSnapshotRequest {
                snapshotter: view.snapshotter.clone(),
                key: view.key.clone(),
                parent: view.parent.clone(),
                ..ViewSnapshotRequest::default()
            })?;
            if let Some(lease) = &view.lease {
                request.metadata_mut().insert("containerd-lease", header(lease)?);
            }
            let mut client = SnapshotsClient::new(channel);
            Ok(mounts(client.view(request).await?.into_inner().mounts))
        });
        match made.await {
            // Made before a crash.
            Err(Error::AlreadyExists { .. }) => {}
            Err(Error::NotFound { call, message }) if message.contains(&view.parent) => {
                let message = format!(
                    "the image is not unpacked for snapshotter {:?}: {message}",
                    view.snapshotter
                );
                return Err(Error::NotFound { call, message });
            }
            answer => return answer,
        }
        let call = format!("get mounts of snapshot {:?} by {}", view.key, view.snapshotter);
        self.call(call, deadline, |channel| async move {
            let request = self.request(MountsRequest {
                snapshotter: view.snapshotter.clone(),
                key: view.key.clone(),
            })?;
            let mut client = SnapshotsClient::new(channel);
            Ok(mounts(client.mounts(request).await?.into_inner().mounts))
        })
        .await
    }

    async fn remove_snapshot(
        &self,
        snapshotter: &str,
        key: &str,
        deadline: Instant,
    ) -> Result<Released, Error> {
        let call = format!("remove snapshot {key:?} of {snapshotter}");
        let answer = self.call(call, deadline, |channel| async move {
            let request =
                RemoveSnapshotRequest { snapshotter: snapshotter.to_owned(), key: key.to_owned() };
            SnapshotsClient::new(channel).remove(self.request(request)?).await?;
            Ok(())
        });
        released(answer.await)
    }

    async fn disconnect(&self) {
        self.channel.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::{io::AsyncReadExt, net::UnixListener};

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(5)
    }

    fn id() -> Id {
        Id::new("c1").unwrap()
    }

    fn at(folder: &tempfile::TempDir) -> (String, Grpc) {
        let socket = folder.path().join("s").to_str().unwrap().to_owned();
        let grpc = Grpc::new(&format!("unix://{socket}"), Id::new("test").unwrap());
        (socket, grpc)
    }

    #[tokio::test]
    async fn nobody_behind_the_socket_is_unavailable_and_may_be_tried_again() {
        let folder = tempfile::tempdir().unwrap();
        let (socket, grpc) = at(&folder);
        let error = grpc.kill_task(&id(), 9, true, soon()).await.unwrap_err();
        assert!(error.is_retryable(), "{error}");
        let text = error.to_string();
        assert!(text.starts_with("kill task \"c1\" with signal 9: "), "{text}");
        assert!(text.contains(&socket) && text.contains("No such file"), "{text}");
        // A socket that nobody listens on any more.
        drop(UnixListener::bind(&socket).unwrap());
        let error = grpc.kill_task(&id(), 9, true, soon()).await.unwrap_err();
        assert!(error.is_retryable(), "{error}");
    }

    #[tokio::test]
    async fn a_silent_containerd_is_cut_by_the_deadline() {
        let folder = tempfile::tempdir().unwrap();
        let (socket, grpc) = at(&folder);
        let _silent = UnixListener::bind(&socket).unwrap();
        let deadline = Instant::now() + Duration::from_millis(50);
        let error = grpc.wait_task(&id(), deadline).await.unwrap_err();
        assert!(matches!(error, Error::DeadlineExceeded { .. }), "{error}");
        assert!(error.to_string().contains("wait for task \"c1\""), "{error}");
    }

    #[tokio::test]
    async fn a_connection_closed_in_mid_call_may_be_tried_again() {
        let folder = tempfile::tempdir().unwrap();
        let (socket, grpc) = at(&folder);
        let listener = UnixListener::bind(&socket).unwrap();
        let server = tokio::spawn(async move {
            for _ in 0..2 {
                let (mut stream, _) = listener.accept().await.unwrap();
                // The preface and the request, then no more.
                let mut buffer = [0; 4096];
                let _ = stream.read(&mut buffer).await;
                tokio::time::sleep(Duration::from_millis(20)).await;
                let _ = stream.read(&mut buffer).await;
            }
        });
        let error = grpc.task_status(&id(), soon()).await.unwrap_err();
        assert!(error.is_retryable(), "{error}");
        grpc.disconnect().await;
        let error = grpc.task_status(&id(), soon()).await.unwrap_err();
        assert!(error.is_retryable(), "{error}");
        server.await.unwrap();
    }

    #[test]
    fn a_time_that_cannot_be_is_the_epoch() {
        assert_eq!(time(None), SystemTime::UNIX_EPOCH);
        let late = Timestamp { seconds: i64::MAX, nanos: 1 };
        let _ = time(Some(late));
    }
}
