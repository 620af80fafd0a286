//! A shim that containerd calls gone, and that lives.
//!
//! containerd gives a shim up when it loses its connection, when a client loses patience in mid-start, and for one
//! container of a group when that is deleted. A shim that answers on its socket is never killed for that: it is asked to
//! let go what containerd has given up, and ends by itself when nothing else is left.

use std::time::Duration;

use containerd_shim_protos::{
    api::{ConnectRequest, DeleteRequest, KillRequest, ShutdownRequest, StateRequest, WaitRequest},
    sandbox_api::ShutdownSandboxRequest,
    sandbox_async::SandboxClient,
    shim_async::TaskClient,
    ttrpc::{
        self, Code,
        asynchronous::{Client, transport::Socket},
        context::with_duration,
    },
};
use mooring::{id::Id, sandbox::daemon_record::DaemonRecord};
use thiserror::Error;
use tokio::{net::UnixStream, time::timeout};

/// How long a living shim may take to answer anything at all.
const PROBE: Duration = Duration::from_secs(3);
/// How long it may take to let go one container, and the whole sandbox.
const CONTAINER: Duration = Duration::from_mins(1);
const SANDBOX: Duration = Duration::from_mins(3);

/// A shim that lives and answers.
pub struct Living {
    client: Client,
}

/// It answers, and does not do as it is asked.
#[derive(Debug, Error)]
#[error("the shim lives, asked to {action} it says: {source}")]
pub struct Refused {
    action: &'static str,
    source: ttrpc::Error,
}

impl Living {
    /// The shim of `record`, if it lives, is the one behind its socket, and answers. Where that cannot be found out it
    /// does not answer.
    pub async fn find(record: &DaemonRecord, id: &Id) -> Option<Self> {
        if !record.is_alive().ok()? {
            return None;
        }
        timeout(PROBE, async {
            let stream = UnixStream::connect(record.socket.as_ref()?).await.ok()?;
            if stream.peer_cred().ok()?.pid() != Some(record.pid) {
                return None;
            }
            let client = Client::new(Socket::new(stream));
            // Answered at once, whatever it has to do.
            let request = StateRequest { id: id.to_string(), ..StateRequest::default() };
            match TaskClient::new(client.clone()).state(with_duration(PROBE), &request).await {
                Ok(_) | Err(ttrpc::Error::RpcStatus(_)) => Some(Self { client }),
                Err(_) => None,
            }
        })
        .await
        .ok()
        .flatten()
    }

    /// Has it take its sandbox down and end.
    pub async fn let_go_sandbox(&self, id: &Id) -> Result<(), Refused> {
        let request = ShutdownSandboxRequest { sandbox_id: id.to_string(), ..Default::default() };
        let sandbox = SandboxClient::new(self.client.clone());
        let answer = sandbox.shutdown_sandbox(with_duration(SANDBOX), &request).await;
        done("shut down", answer)
    }

    /// Has it kill and delete one container, and end if that was its last.
    pub async fn let_go_container(&self, id: &Id) -> Result<(), Refused> {
        let task = TaskClient::new(self.client.clone());
        let (id, limit) = (id.to_string(), || with_duration(CONTAINER));
        // A creation that is under way is waited for.
        let request = ConnectRequest { id: id.clone(), ..Default::default() };
        done("settle a container", task.connect(limit(), &request).await)?;
        let request = KillRequest { id: id.clone(), signal: 9, all: true, ..Default::default() };
        done("kill a container", task.kill(limit(), &request).await)?;
        let request = WaitRequest { id: id.clone(), ..Default::default() };
        done("wait for a container", task.wait(limit(), &request).await)?;
        let request = DeleteRequest { id: id.clone(), ..Default::default() };
        done("delete a container", task.delete(limit(), &request).await)?;
        let request = ShutdownRequest { id, ..Default::default() };
        done("end", task.shutdown(limit(), &request).await)
    }
}

/// What is not there has been let go; so has everything when the shim ends in mid-call, and then it is seen.
fn done<T>(action: &'static str, answer: ttrpc::Result<T>) -> Result<(), Refused> {
    match answer {
        Ok(_) => Ok(()),
        Err(ttrpc::Error::RpcStatus(status)) if status.code() == Code::NOT_FOUND => Ok(()),
        Err(source) => Err(Refused { action, source }),
    }
}
