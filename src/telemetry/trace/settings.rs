//! What OpenTelemetry's environment variables ask for. What is not supported is named, and never silently something else.
//!
//! Off, without a word, where no endpoint is set: so does containerd. Values are not shown in warnings, since headers and
//! addresses may hold secrets.

use std::{collections::BTreeMap, time::Duration};

use super::{
    otlp::Format,
    sampler::Sampler,
    span::{Attribute, Value},
};

const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
const TRACES_ENDPOINT: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
/// What is appended to an endpoint of all signals.
const PATH: &str = "v1/traces";
const TIMEOUT: Duration = Duration::from_secs(10);
/// Every variable that has a meaning here.
const KNOWN: [&str; 16] = [
    ENDPOINT,
    TRACES_ENDPOINT,
    "OTEL_EXPORTER_OTLP_PROTOCOL",
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
    "OTEL_EXPORTER_OTLP_HEADERS",
    "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
    "OTEL_EXPORTER_OTLP_TIMEOUT",
    "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT",
    "OTEL_EXPORTER_OTLP_INSECURE",
    "OTEL_EXPORTER_OTLP_TRACES_INSECURE",
    "OTEL_PROPAGATORS",
    "OTEL_RESOURCE_ATTRIBUTES",
    "OTEL_SDK_DISABLED",
    "OTEL_SERVICE_NAME",
    "OTEL_TRACES_EXPORTER",
    "OTEL_TRACES_SAMPLER",
];
const SAMPLER_ARGUMENT: &str = "OTEL_TRACES_SAMPLER_ARG";
/// Parts of the names of variables that are about something else than a shim's traces.
const OTHERS: [&str; 5] = ["METRIC", "LOG", "PROFIL", "_GO_", "_BLRP_"];

/// Where spans go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// A name or an address, which has no brackets.
    pub host: String,
    pub port: u16,
    /// With the query, if there is one.
    pub path: String,
}

/// What traces are to be like.
#[derive(Clone, PartialEq)]
pub struct Settings {
    pub endpoint: Endpoint,
    pub format: Format,
    /// Names and values of further headers. Values are secrets.
    pub headers: Vec<(String, String)>,
    /// How long one request may take.
    pub timeout: Duration,
    pub sampler: Sampler,
    /// Whether a call's `traceparent` is heeded.
    pub heeds_parent: bool,
    pub service: Option<String>,
    pub resource: Vec<Attribute>,
}

/// What the environment says.
#[derive(Default)]
pub struct Found {
    /// Nothing where no traces are wanted, or none can be sent.
    pub settings: Option<Settings>,
    pub warnings: Vec<String>,
}

impl Found {
    /// Reads the variables; those of other names are passed over.
    pub fn in_variables(all: impl IntoIterator<Item = (String, String)>) -> Self {
        // An empty value is the same as none.
        let wanted = |(name, value): &(String, String)| {
            name.starts_with("OTEL_") && !value.trim().is_empty()
        };
        let all = all.into_iter().filter(wanted).collect();
        let mut reader = Reader { all, warnings: Vec::new() };
        let settings = reader.read();
        Self { settings, warnings: reader.warnings }
    }
}

struct Reader {
    all: BTreeMap<String, String>,
    warnings: Vec<String>,
}

impl Reader {
    fn read(&mut self) -> Option<Settings> {
        let (name, endpoint) = self.first([TRACES_ENDPOINT, ENDPOINT])?;
        if let Some(disabled) = self.get("OTEL_SDK_DISABLED") {
            if disabled.eq_ignore_ascii_case("true") {
                return None;
            }
            if !disabled.eq_ignore_ascii_case("false") {
                self.warn("OTEL_SDK_DISABLED is neither true nor false: false is assumed");
            }
        }
        match self.get("OTEL_TRACES_EXPORTER").as_deref() {
            None | Some("otlp") => {}
            Some("none") => return None,
            Some(_) => return self.off("OTEL_TRACES_EXPORTER", "names another exporter than otlp"),
        }
        let format = match self.first_of("PROTOCOL") {
            None => Format::Protobuf,
            Some((_, text)) if text == "http/protobuf" => Format::Protobuf,
            Some((_, text)) if text == "http/json" => Format::Json,
            Some((name, _)) => {
                return self.off(name, "names a protocol other than http/protobuf and http/json");
            }
        };
        let endpoint = match Endpoint::parse(&endpoint, name == ENDPOINT) {
            Ok(endpoint) => endpoint,
            Err(why) => return self.off(name, why),
        };
        let settings = Settings {
            endpoint,
            format,
            headers: self.headers(),
            timeout: self.timeout(),
            sampler: self.sampler(),
            heeds_parent: self.heeds_parent(),
            service: self.get("OTEL_SERVICE_NAME"),
            resource: self.resource(),
        };
        self.name_the_unknown();
        Some(settings)
    }

    fn get(&self, name: &str) -> Option<String> {
        self.all.get(name).map(|value| value.trim().to_owned())
    }

    fn first(&self, names: [&'static str; 2]) -> Option<(&'static str, String)> {
        names.into_iter().find_map(|name| Some((name, self.get(name)?)))
    }

    /// The variable of traces alone, or that of all signals.
    fn first_of(&self, what: &str) -> Option<(&'static str, String)> {
        let mut names = KNOWN.into_iter().filter(|name| name.ends_with(what));
        let (all, traces) = (names.next()?, names.next()?);
        self.first([traces, all])
    }

    fn warn(&mut self, text: impl Into<String>) {
        self.warnings.push(format!("traces: {}", text.into()));
    }

    fn off(&mut self, name: &str, why: &str) -> Option<Settings> {
        self.warn(format!("{name} {why}: none are sent"));
        None
    }

    fn timeout(&mut self) -> Duration {
        let Some((name, text)) = self.first_of("TIMEOUT") else { return TIMEOUT };
        match text.parse() {
            Ok(millis) if millis > 0 => Duration::from_millis(millis),
            _ => {
                self.warn(format!("{name} is no number of milliseconds: 10 s are assumed"));
                TIMEOUT
            }
        }
    }

    fn sampler(&mut self) -> Sampler {
        let argument = self.get(SAMPLER_ARGUMENT);
        let Some(name) = self.get("OTEL_TRACES_SAMPLER") else { return Sampler::default() };
        match Sampler::named(&name, argument.as_deref()) {
            Ok(sampler) => sampler,
            Err(why) => {
                let which = if Sampler::named(&name, None).is_ok() {
                    SAMPLER_ARGUMENT
                } else {
                    "OTEL_TRACES_SAMPLER"
                };
                self.warn(format!("{which} {why}: parentbased_always_on is assumed"));
                Sampler::default()
            }
        }
    }

    fn heeds_parent(&mut self) -> bool {
        let Some(names) = self.get("OTEL_PROPAGATORS") else { return true };
        let mut names = names.split(',').map(str::trim);
        if names.clone().any(|name| !matches!(name, "tracecontext" | "baggage" | "none")) {
            self.warn("OTEL_PROPAGATORS: tracecontext alone is supported");
        }
        names.any(|name| name == "tracecontext")
    }

    fn headers(&mut self) -> Vec<(String, String)> {
        let Some((name, text)) = self.first_of("HEADERS") else { return Vec::new() };
        let is_name = |key: &str| {
            let is_token =
                |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
            !key.is_empty() && key.bytes().all(is_token)
        };
        let is_value =
            |value: &str| value.bytes().all(|byte| matches!(byte, b'\t' | b' '..=b'~' | 0x80..));
        match pairs(&text) {
            Some(all) if all.iter().all(|(key, value)| is_name(key) && is_value(value)) => all,
            _ => {
                self.warn(format!("{name} is no list of name=value: no header is sent"));
                Vec::new()
            }
        }
    }

    fn resource(&mut self) -> Vec<Attribute> {
        let Some(text) = self.get("OTEL_RESOURCE_ATTRIBUTES") else { return Vec::new() };
        let Some(all) = pairs(&text) else {
            self.warn("OTEL_RESOURCE_ATTRIBUTES is no list of key=value, and has no effect");
            return Vec::new();
        };
        all.into_iter().map(|(key, value)| (key.into(), Value::Text(value))).collect()
    }

    /// What somebody has set and is not heeded.
    fn name_the_unknown(&mut self) {
        let is_unknown = |name: &&String| {
            !KNOWN.contains(&name.as_str())
                && *name != SAMPLER_ARGUMENT
                && !OTHERS.iter().any(|part| name.contains(part))
        };
        let unknown: Vec<&str> = self.all.keys().filter(is_unknown).map(String::as_str).collect();
        if !unknown.is_empty() {
            let names = unknown.join(", ");
            self.warn(format!("not supported, and without effect: {names}"));
        }
    }
}

/// A list of `key=value`, with `%XX` in keys and values.
fn pairs(text: &str) -> Option<Vec<(String, String)>> {
    let pair = |text: &str| {
        let (key, value) = text.split_once('=')?;
        Some((decoded(key.trim())?, decoded(value.trim())?)).filter(|(key, _)| !key.is_empty())
    };
    text.split(',').map(str::trim).filter(|one| !one.is_empty()).map(pair).collect()
}

fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(if byte == b'%' {
            let digit = |byte: u8| char::from(byte).to_digit(16);
            let (high, low) = (digit(rest.next()?)?, digit(rest.next()?)?);
            u8::try_from(high << 4 | low).ok()?
        } else {
            byte
        });
    }
    String::from_utf8(bytes).ok()
}

impl Endpoint {
    /// Reads a URL; to one `of_all` signals the path of traces is added.
    fn parse(url: &str, of_all: bool) -> Result<Self, &'static str> {
        let Some((scheme, rest)) = url.split_once("://") else { return Err("is no URL") };
        if scheme.eq_ignore_ascii_case("https") {
            return Err(
                "asks for https, which is not supported (a collector on the node takes http)",
            );
        }
        if !scheme.eq_ignore_ascii_case("http") {
            return Err("is no http URL");
        }
        let rest = rest.split('#').next().unwrap_or_default();
        if !rest.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("is no URL");
        }
        let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        if authority.contains('@') {
            return Err("has a user in it, which is not supported (OTEL_EXPORTER_OTLP_HEADERS is)");
        }
        let (host, port) = match authority.strip_prefix('[') {
            Some(inner) => {
                let (host, port) = inner.split_once(']').ok_or("is no URL")?;
                (host, port.strip_prefix(':').or(port.is_empty().then_some("")).ok_or("is no URL")?)
            }
            None => authority.split_once(':').unwrap_or((authority, "")),
        };
        let port = if port.is_empty() { Ok(80) } else { port.parse() };
        let port = port.map_err(|_| "has no valid port")?;
        if host.is_empty() || port == 0 {
            return Err("names no host");
        }
        let path = match (path, of_all) {
            (path, true) => {
                let (path, query) = path.split_at(path.find('?').unwrap_or(path.len()));
                format!("{}/{PATH}{query}", path.strip_suffix('/').unwrap_or(path))
            }
            (path, false) if path.starts_with('/') => path.to_owned(),
            (path, false) => format!("/{path}"),
        };
        Ok(Self { host: host.to_owned(), port, path })
    }

    /// The host as it stands in a URL and in a header.
    pub fn authority(&self) -> String {
        let Self { host, port, .. } = self;
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn found(variables: &[(&str, &str)]) -> Found {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Found::in_variables(variables.iter().map(owned))
    }

    fn with(name: &str, value: &str) -> Found {
        found(&[(ENDPOINT, "http://localhost:4318"), (name, value)])
    }

    #[test]
    fn without_an_endpoint_there_are_no_traces_and_no_word() {
        for variables in [
            &[][..],
            &[(ENDPOINT, " ")],
            &[("OTEL_SERVICE_NAME", "a"), ("OTEL_BSP_MAX_QUEUE_SIZE", "1")],
            &[(ENDPOINT, "http://a"), ("OTEL_SDK_DISABLED", "TRUE")],
            &[(ENDPOINT, "https://a"), ("OTEL_TRACES_EXPORTER", "none")],
        ] {
            let Found { settings, warnings } = found(variables);
            assert!(settings.is_none() && warnings.is_empty(), "{variables:?}: {warnings:?}");
        }
    }

    #[test]
    fn the_endpoint_of_traces_is_taken_as_it_is_and_that_of_all_is_extended() {
        let endpoint = |name, url| {
            let Endpoint { host, port, path } = found(&[(name, url)]).settings.unwrap().endpoint;
            (host, port, path)
        };
        let is = |host: &str, port, path: &str| (host.to_owned(), port, path.to_owned());
        assert_eq!(endpoint(ENDPOINT, "http://a:4318"), is("a", 4318, "/v1/traces"));
        assert_eq!(endpoint(ENDPOINT, "HTTP://a/b/?c=d#e"), is("a", 80, "/b/v1/traces?c=d"));
        assert_eq!(endpoint(TRACES_ENDPOINT, "http://[::1]:1"), is("::1", 1, "/"));
        assert_eq!(endpoint(TRACES_ENDPOINT, "http://10.0.0.1/x?y"), is("10.0.0.1", 80, "/x?y"));
        let both = found(&[(ENDPOINT, "http://a"), (TRACES_ENDPOINT, "http://b")]);
        let endpoint = both.settings.unwrap().endpoint;
        assert_eq!((&*endpoint.host, endpoint.authority()), ("b", "b:80".to_owned()));
    }

    #[test]
    fn what_cannot_be_done_is_named_without_its_value() {
        for (name, value, words) in [
            (ENDPOINT, "https://secret:443", "asks for https"),
            (ENDPOINT, "secret:4317", "is no URL"),
            (ENDPOINT, "unix:///secret", "is no http URL"),
            (ENDPOINT, "http://secret:pass@a", "has a user in it"),
            (ENDPOINT, "http://a:secret", "has no valid port"),
            (ENDPOINT, "http://:80", "names no host"),
            (ENDPOINT, "http://a/\r\nsecret", "is no URL"),
            (TRACES_ENDPOINT, "http://[::1", "is no URL"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "names a protocol other"),
            ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "grpc", "names a protocol other"),
            ("OTEL_TRACES_EXPORTER", "zipkin", "names another exporter"),
        ] {
            let Found { settings, warnings } = with(name, value);
            assert!(settings.is_none(), "{name}={value}");
            let [warning] = &warnings[..] else { panic!("{warnings:?}") };
            assert!(warning.contains(name) && warning.contains(words), "{warning}");
            assert!(!warning.contains("secret"), "{warning}");
        }
    }

    #[test]
    fn what_is_not_understood_is_named_and_the_default_holds() {
        let plain = with("OTEL_SDK_DISABLED", "false").settings.unwrap();
        for (name, value, words) in [
            ("OTEL_SDK_DISABLED", "perhaps", "neither true nor false"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon", "no number of milliseconds"),
            ("OTEL_TRACES_SAMPLER", "jaeger_remote", "is not supported"),
            ("OTEL_RESOURCE_ATTRIBUTES", "a=b,c", "no list of key=value"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "a=%0d%0aSecret: b", "no list of name=value"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "a b=c", "no list of name=value"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip", "not supported"),
            ("OTEL_BSP_SCHEDULE_DELAY", "1", "not supported"),
        ] {
            let Found { settings, warnings } = with(name, value);
            assert!(settings == Some(plain.clone()), "{name}={value}");
            let [warning] = &warnings[..] else { panic!("{warnings:?}") };
            assert!(warning.contains(name) && warning.contains(words), "{warning}");
        }
        let other = with("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "https://a");
        assert!(other.settings == Some(plain) && other.warnings.is_empty());
        let Found { settings, warnings } = found(&[
            (ENDPOINT, "http://a"),
            ("OTEL_TRACES_SAMPLER", "traceidratio"),
            (SAMPLER_ARGUMENT, "2"),
        ]);
        assert_eq!(settings.unwrap().sampler, Sampler::default());
        assert!(warnings[0].contains(SAMPLER_ARGUMENT), "{warnings:?}");
    }

    #[test]
    fn everything_that_is_supported_has_its_effect() {
        let Found { settings, warnings } = found(&[
            (ENDPOINT, "http://a"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "not=this"),
            ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "api-key=a%20b , x=y=z"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "250"),
            ("OTEL_PROPAGATORS", "baggage"),
            ("OTEL_SERVICE_NAME", "shim"),
            ("OTEL_RESOURCE_ATTRIBUTES", "k8s.node.name=n1,a=%C3%A9"),
            ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
            (SAMPLER_ARGUMENT, "0.5"),
        ]);
        let settings = settings.unwrap();
        assert!(warnings.is_empty(), "{warnings:?}");
        assert_eq!(settings.format, Format::Json);
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(settings.headers, [pair("api-key", "a b"), pair("x", "y=z")]);
        assert_eq!(settings.timeout, Duration::from_millis(250));
        assert!(!settings.heeds_parent);
        assert_eq!(settings.service.as_deref(), Some("shim"));
        assert_eq!(settings.resource[1], ("a".into(), "é".into()));
        assert_eq!(settings.sampler, Sampler::OfParent(Box::new(Sampler::Ratio(0.5))));
    }

    proptest! {
        #[test]
        fn no_value_makes_reading_panic_or_gets_into_the_request(
            url in "(http://)?[a-z:/\\[\\]?@#\r\n \u{e9}0-9]{0,20}", list in "[a=,% \r\n\u{e9}]{0,20}", which in 0_usize..16,
        ) {
            let url_found = found(&[(ENDPOINT, &url), (KNOWN[which], &list)]);
            if let Some(settings) = url_found.settings {
                prop_assert!(settings.endpoint.path.starts_with('/'));
                let line = format!("{} {}", settings.endpoint.path, settings.endpoint.authority());
                prop_assert!(line.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' '));
                for (name, value) in settings.headers {
                    prop_assert!(![name, value].concat().contains(['\r', '\n']));
                }
            }
        }
    }
}
