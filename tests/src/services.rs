//! containerd's own services, for clients that are not CRI.

use containerd_client::tonic::Request;
use containerd_client::tonic::metadata::AsciiMetadataValue;

/// A request in one of containerd's namespaces.
pub fn in_namespace<T>(namespace: &'static str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request
        .metadata_mut()
        .insert("containerd-namespace", AsciiMetadataValue::from_static(namespace));
    request
}
