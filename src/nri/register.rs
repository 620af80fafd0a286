//! What plugins may call: they register, and may ask for changes of containers at any time.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use async_trait::async_trait;
use futures_core::Stream;
use tokio::{io::DuplexStream, sync::oneshot};
use ttrpc::r#async::{Server, TtrpcContext, transport::Listener};

use super::api::{
    Empty, RegisterPluginRequest, UpdateContainersRequest, UpdateContainersResponse,
    services::{Runtime, create_runtime},
};

/// How a plugin calls itself.
pub(super) struct Registered {
    pub(super) name: String,
    pub(super) index: String,
}

/// Serves a plugin over its second connection; the answer comes when it has registered.
pub(super) async fn serve(
    connection: DuplexStream,
) -> ttrpc::Result<(Server, oneshot::Receiver<Registered>)> {
    let (sender, registered) = oneshot::channel();
    let service = Service { registered: Mutex::new(Some(sender)) };
    let mut server = Server::new()
        .add_listener(Listener::new(Once(Some(connection))))
        .register_service(create_runtime(Arc::new(service)));
    server.start().await?;
    Ok((server, registered))
}

/// A listener to which one client comes.
pub(super) struct Once(pub(super) Option<DuplexStream>);

impl Stream for Once {
    type Item = io::Result<DuplexStream>;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match self.0.take() {
            Some(connection) => Poll::Ready(Some(Ok(connection))),
            None => Poll::Pending,
        }
    }
}

struct Service {
    registered: Mutex<Option<oneshot::Sender<Registered>>>,
}

#[async_trait]
impl Runtime for Service {
    async fn register_plugin(
        &self,
        _: &TtrpcContext,
        request: RegisterPluginRequest,
    ) -> ttrpc::Result<Empty> {
        let waiting = self.registered.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(waiting) = waiting {
            // Nobody waits any more where it comes too late.
            let _ =
                waiting.send(Registered { name: request.plugin_name, index: request.plugin_idx });
        }
        Ok(Empty::default())
    }

    async fn update_containers(
        &self,
        _: &TtrpcContext,
        request: UpdateContainersRequest,
    ) -> ttrpc::Result<UpdateContainersResponse> {
        log::warn!(
            "an NRI plugin asks for {} updates and {} evictions of containers, which Mooring does not do",
            request.update.len(),
            request.evict.len()
        );
        Ok(UpdateContainersResponse {
            failed: request.update,
            ..UpdateContainersResponse::default()
        })
    }
}
