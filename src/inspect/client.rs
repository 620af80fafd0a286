//! Asks a shim over its socket.

use std::{path::PathBuf, time::Duration};

use thiserror::Error;
use tokio::{net::UnixStream, time::timeout};
use ttrpc::{
    Code,
    asynchronous::{Client, ClientStreamReceiver, transport::Socket},
    context::{self, with_duration},
};

use super::{
    GetRequest, GetResponse, InspectClient, StopRequest, VersionRequest, WatchRequest,
    WatchResponse,
};
use crate::{id::Id, sandbox::daemon_record::DaemonRecord};

/// How long a shim may take to be connected to.
const CONNECT: Duration = Duration::from_secs(2);
/// How much later than the caller's patience the call's own deadline is: it never decides.
const MARGIN: Duration = Duration::from_secs(1);
/// What ttrpc's server says of a service that it does not have; the code is `InvalidArgument`.
const NO_SERVICE: &str = "service does not exist";

/// A shim that lives.
#[derive(Clone)]
pub struct Shim {
    connection: Client,
    client: InspectClient,
}

/// A shim was not asked, or did not answer as it should.
#[derive(Debug, Error)]
pub enum AskError {
    /// Its record names no process that lives.
    #[error("the shim is gone")]
    Gone,
    /// Somebody else listens where it should.
    #[error("process {found} listens at {}, not the shim {wanted}", socket.display())]
    Another { socket: PathBuf, wanted: i32, found: i32 },
    #[error("connect to {}: {source}", socket.display())]
    Connect { socket: PathBuf, source: std::io::Error },
    /// It is of a release that cannot be asked this.
    #[error("the shim is of another release, which does not know the call {call}")]
    Unknown { call: &'static str },
    #[error("the shim does not answer within {} s", .0.as_secs_f64())]
    Silent(Duration),
    /// It says no.
    #[error("{0}")]
    Refused(String),
    /// What was asked for is not done within the time that it was given.
    #[error("{0}")]
    NotYet(String),
    #[error("{call}: {source}")]
    Rpc { call: &'static str, source: ttrpc::Error },
}

impl Shim {
    /// The shim of `record`: the process behind its socket, and no other.
    pub async fn find(record: &DaemonRecord) -> Result<Self, AskError> {
        let (true, Some(socket)) = (record.is_alive().unwrap_or(false), &record.socket) else {
            return Err(AskError::Gone);
        };
        let connected = timeout(CONNECT, UnixStream::connect(socket)).await;
        let failed = |source| AskError::Connect { socket: socket.clone(), source };
        let stream = connected.map_err(|_| AskError::Silent(CONNECT))?.map_err(failed)?;
        let found = stream.peer_cred().map_err(failed)?.pid().unwrap_or_default();
        if found != record.pid {
            return Err(AskError::Another { socket: socket.clone(), wanted: record.pid, found });
        }
        let connection = Client::new(Socket::new(stream));
        Ok(Self { client: InspectClient::new(connection.clone()), connection })
    }

    /// The connection to it, for calls of other services.
    pub fn connection(&self) -> Client {
        self.connection.clone()
    }

    /// Its release.
    pub async fn version(&self, limit: Duration) -> Result<String, AskError> {
        let request = VersionRequest::new();
        let answer = self.client.version(with_duration(limit + MARGIN), &request);
        within("Version", limit, answer).await.map(|answer| answer.version)
    }

    /// All that it knows.
    pub async fn get(&self, limit: Duration) -> Result<GetResponse, AskError> {
        let request = GetRequest::new();
        let answer = self.client.get(with_duration(limit + MARGIN), &request);
        within("Get", limit, answer).await
    }

    /// Takes the sandbox down, or joins whoever does, and waits for the end: for `limit` at most, where there is one.
    pub async fn stop(&self, id: &Id, limit: Option<Duration>) -> Result<(), AskError> {
        let timeout = limit.map_or(0, |limit| i64::try_from(limit.as_nanos()).unwrap_or(i64::MAX));
        let request = StopRequest { id: id.to_string(), timeout, ..StopRequest::default() };
        let answer = self.client.stop(context::with_timeout(0), &request).await;
        answer.map(drop).map_err(|error| AskError::of("Stop", error))
    }

    /// Follows the teardown's steps.
    pub async fn watch(&self) -> Result<Steps, AskError> {
        let stream = self.client.watch(context::with_timeout(0), &WatchRequest::new()).await;
        stream.map(Steps).map_err(|error| AskError::of("Watch", error))
    }
}

/// The steps of a teardown, as they begin and end.
pub struct Steps(ClientStreamReceiver<WatchResponse>);

impl Steps {
    /// The next; nothing once the shim has ended.
    pub async fn next(&mut self) -> Result<Option<WatchResponse>, AskError> {
        match self.0.recv().await {
            Err(ttrpc::Error::LocalClosed | ttrpc::Error::RemoteClosed | ttrpc::Error::Eof) => {
                Ok(None)
            }
            other => other.map_err(|error| AskError::of("Watch", error)),
        }
    }
}

/// A shim that hangs does not answer at its deadline either.
async fn within<T>(
    call: &'static str,
    limit: Duration,
    answer: impl Future<Output = ttrpc::Result<T>>,
) -> Result<T, AskError> {
    match timeout(limit, answer).await {
        Err(_) => Err(AskError::Silent(limit)),
        Ok(answer) => answer.map_err(|error| AskError::of(call, error)),
    }
}

impl AskError {
    fn of(call: &'static str, error: ttrpc::Error) -> Self {
        match error {
            ttrpc::Error::RpcStatus(status)
                if status.code() == Code::UNIMPLEMENTED || status.message.ends_with(NO_SERVICE) =>
            {
                Self::Unknown { call }
            }
            ttrpc::Error::RpcStatus(status) if status.code() == Code::DEADLINE_EXCEEDED => {
                Self::NotYet(status.message)
            }
            ttrpc::Error::RpcStatus(status) => Self::Refused(status.message),
            source => Self::Rpc { call, source },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, path::Path};

    use ttrpc::asynchronous::{Server, transport::Listener};

    use super::*;

    async fn serve(socket: &Path) -> Server {
        let listener = Listener::bind(format!("unix://{}", socket.display())).unwrap();
        let mut server = Server::new().add_listener(listener).register_service(HashMap::new());
        server.start().await.unwrap();
        server
    }

    #[tokio::test]
    async fn only_the_shim_of_the_record_is_asked() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("s");
        let own = DaemonRecord::of_this_process(&socket).unwrap();
        assert!(matches!(Shim::find(&own).await, Err(AskError::Connect { .. })));
        let _server = serve(&socket).await;
        assert!(Shim::find(&own).await.is_ok());

        let gone = DaemonRecord { start_time: own.start_time + 1, ..own.clone() };
        assert!(matches!(Shim::find(&gone).await, Err(AskError::Gone)));
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let start_time = crate::sys::identity::start_time(pid).unwrap().unwrap();
        let another = DaemonRecord { pid, start_time, ..own };
        let answer = Shim::find(&another).await;
        child.kill().unwrap();
        // Another test's reaper may have been quicker.
        let _ = child.wait();
        assert!(matches!(answer, Err(AskError::Another { .. })), "its socket is this process's");
    }

    #[tokio::test]
    async fn a_release_that_cannot_be_asked_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("s");
        let _server = serve(&socket).await;
        let shim = Shim::find(&DaemonRecord::of_this_process(&socket).unwrap()).await.unwrap();
        let limit = Duration::from_secs(10);
        assert!(matches!(shim.get(limit).await, Err(AskError::Unknown { call: "Get" })));
        assert!(matches!(shim.version(limit).await, Err(AskError::Unknown { .. })));
        let id = Id::new("a").unwrap();
        assert!(matches!(shim.stop(&id, None).await, Err(AskError::Unknown { .. })));
        let mut steps = shim.watch().await.unwrap();
        assert!(matches!(steps.next().await, Err(AskError::Unknown { call: "Watch" })));
    }
}
