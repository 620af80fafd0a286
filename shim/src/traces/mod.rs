//! Traces of this process, for OpenTelemetry, where its environment variables ask for them.

mod exporter;
mod http;

use std::{env, sync::Arc, time::Duration};

use mooring::{
    id::Id,
    telemetry::trace::{Attribute, Found, Settings, Sink, Tracer},
};

use self::exporter::Exporter;

/// What a shim calls itself where nobody has named it.
const SERVICE: &str = "containerd-shim-mooring-v1";

/// The spans of this process, on their way.
#[derive(Clone)]
pub struct Traces {
    pub tracer: Tracer,
    /// Whether a call's own trace is gone on with.
    pub heeds_parent: bool,
    exporter: Arc<Exporter>,
}

impl Traces {
    /// Nothing, and no memory, where no traces are wanted. They are sent for as long as the tokio runtime that this is
    /// called in lives. What is asked for in vain is said to `warn`.
    pub fn start(namespace: &Id, warn: impl Fn(&str)) -> Option<Self> {
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            // What is no text has no meaning to OpenTelemetry.
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        let Found { settings, warnings } = Found::in_variables(env::vars_os().filter_map(text));
        for warning in &warnings {
            warn(warning);
        }
        let settings = settings?;
        let (sampler, heeds_parent) = (settings.sampler.clone(), settings.heeds_parent);
        let resource = resource(&settings, namespace);
        let exporter = Exporter::start(settings, resource);
        let tracer = Tracer::new(sampler, Arc::clone(&exporter) as Arc<dyn Sink>);
        Some(Self { tracer, heeds_parent, exporter })
    }

    /// Waits until everything is sent, at most for `limit`. Nothing is waited for that comes later.
    pub async fn drain(&self, limit: Duration) {
        self.exporter.drain(limit).await;
    }
}

/// What all spans of this process have in common. What the variables say of it counts more.
fn resource(settings: &Settings, namespace: &Id) -> Vec<Attribute> {
    let mut all = settings.resource.clone();
    if let Some(service) = &settings.service {
        all.retain(|(key, _)| key != "service.name");
        all.push(("service.name".into(), service.as_str().into()));
    }
    let node = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    let own: [Attribute; 5] = [
        ("service.name".into(), SERVICE.into()),
        ("process.executable.name".into(), env!("CARGO_PKG_NAME").into()),
        ("process.pid".into(), i64::from(std::process::id()).into()),
        ("host.name".into(), node.unwrap_or_default().into()),
        ("containerd.namespace".into(), namespace.as_str().into()),
    ];
    for (key, value) in own {
        if !all.iter().any(|(known, _)| *known == key) {
            all.push((key, value));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variables_count_more_than_what_is_known_here() {
        let of = |variables: &[(&str, &str)]| {
            let endpoint = [("OTEL_EXPORTER_OTLP_ENDPOINT", "http://a")];
            let all = endpoint.iter().chain(variables);
            let all = all.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            let settings = Found::in_variables(all).settings.unwrap();
            let all = resource(&settings, &Id::new("k8s.io").unwrap());
            let mut services = all.into_iter().filter(|(key, _)| key == "service.name");
            let service = services.next().unwrap().1;
            assert_eq!(services.next(), None);
            service
        };
        assert_eq!(of(&[]), SERVICE.into());
        let attributes = ("OTEL_RESOURCE_ATTRIBUTES", "service.name=a,x=y");
        assert_eq!(of(&[attributes]), "a".into());
        assert_eq!(of(&[attributes, ("OTEL_SERVICE_NAME", "b")]), "b".into());
    }
}
