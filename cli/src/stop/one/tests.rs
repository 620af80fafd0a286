use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use async_trait::async_trait;
use containerd_shim_protos::{
    sandbox_api::StopSandboxResponse,
    sandbox_async::{Sandbox, create_sandbox},
    ttrpc::asynchronous::{Server, TtrpcContext, transport::Listener},
};
use mooring::{id::Id, sandbox::daemon_record::DaemonRecord};

use super::*;

/// A shim of a release that knows containerd's calls alone.
#[derive(Default)]
struct Earlier {
    stops: AtomicU32,
}

#[async_trait]
impl Sandbox for Earlier {
    async fn stop_sandbox(
        &self,
        _: &TtrpcContext,
        request: StopSandboxRequest,
    ) -> ttrpc::Result<StopSandboxResponse> {
        assert_eq!(request.sandbox_id, "web");
        self.stops.fetch_add(1, Ordering::SeqCst);
        Ok(StopSandboxResponse::new())
    }
}

async fn serve(socket: &Path, shim: Arc<Earlier>) -> Server {
    let listener = Listener::bind(format!("unix://{}", socket.display())).unwrap();
    let mut server =
        Server::new().add_listener(listener).register_service(create_sandbox(shim as _));
    server.start().await.unwrap();
    server
}

fn found(folder: &Path, hands: Hands) -> Found {
    Found {
        namespace: Id::new("ns").unwrap(),
        id: Id::new("web").unwrap(),
        folder: folder.join("ns/web"),
        shim: Some(DaemonRecord::of_this_process(&folder.join("s")).unwrap()),
        journal: None,
        containers: Vec::new(),
        written: None,
        hands,
    }
}

#[tokio::test]
async fn a_shim_of_an_earlier_release_is_asked_as_containerd_asks_it() {
    let folder = tempfile::tempdir().unwrap();
    let shim = Arc::new(Earlier::default());
    let _server = serve(&folder.path().join("s"), Arc::clone(&shim)).await;
    let reaper = Reaper::start().unwrap();
    let stop = Stop::of(&found(folder.path(), Hands::Shim), &StopArgs::default(), &reaper);
    stop.run(|step| panic!("it tells no steps: {step:?}")).await.unwrap();
    assert_eq!(shim.stops.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn what_is_not_understood_is_not_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let reaper = Reaper::start().unwrap();
    let unsure = Hands::Unsure(vec!["journal x has version 99".into()]);
    let args = StopArgs { force: true, ..StopArgs::default() };
    let stop = Stop::of(&found(folder.path(), unsure), &args, &reaper);
    let error = stop.run(|_| {}).await.unwrap_err().to_string();
    assert_eq!(error, "not touched: journal x has version 99");
}
