//! What a pod asks of plugins that declare a capability, in the form of CNI's conventions (`runtimeConfig`).

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr},
};

use serde::Serialize;
use serde_json::{Map, Value};
use thiserror::Error;

use crate::error::{Code, Coded};

/// The annotation that asks for port mappings where no pod configuration can:
/// `[HOST_IP:]HOST_PORT:POD_PORT[/PROTOCOL]`, joined by commas; an IPv6 address stands in brackets.
pub const PORT_MAPPINGS: &str = "io.mooring.network/port-mappings";
/// Kubernetes' annotation for the bandwidth towards the pod, a quantity in bits per second.
pub const INGRESS_BANDWIDTH: &str = "kubernetes.io/ingress-bandwidth";
/// Kubernetes' annotation for the bandwidth from the pod.
pub const EGRESS_BANDWIDTH: &str = "kubernetes.io/egress-bandwidth";

/// The bounds that Kubernetes sets for bandwidths.
const BANDWIDTHS: std::ops::RangeInclusive<u64> = 1_000..=1_000_000_000_000_000;

/// A text that asks for something is not understood.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{what} {text:?} is not valid")]
pub struct InvalidCapability {
    what: &'static str,
    text: String,
}

impl Coded for InvalidCapability {
    fn code(&self) -> Code {
        Code::InvalidArgument
    }
}

/// A port of the node that leads to one of the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    /// The node's port.
    pub host_port: u16,
    /// The pod's port.
    pub container_port: u16,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// The node's address that it is limited to; empty for all.
    #[serde(rename = "hostIP", skip_serializing_if = "String::is_empty")]
    pub host_ip: String,
}

/// Limits in bits per second; bursts in bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Bandwidth {
    /// Towards the pod; 0 is no limit.
    pub ingress_rate: u64,
    /// How much may come at once.
    pub ingress_burst: u64,
    /// From the pod; 0 is no limit.
    pub egress_rate: u64,
    /// How much may go at once.
    pub egress_burst: u64,
}

/// The pod's name resolution.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Dns {
    /// Name servers.
    pub servers: Vec<String>,
    /// Search domains.
    pub searches: Vec<String>,
    /// Resolver options.
    pub options: Vec<String>,
}

/// Everything that a pod can ask of its networks. What is empty is not mentioned to any plugin.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Capabilities {
    /// Ports of the node.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub port_mappings: Vec<PortMapping>,
    /// Limits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Bandwidth>,
    /// Addresses that the pod wants, with or without prefix length.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<String>,
    /// The hardware address that the pod wants.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Name resolution.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns: Option<Dns>,
    /// The pod's cgroup.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup_path: Option<String>,
    /// The pod's annotations.
    #[serde(
        rename = "io.kubernetes.cri.pod-annotations",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub pod_annotations: BTreeMap<String, String>,
}

impl Capabilities {
    /// What a pod's annotations ask for: [`PORT_MAPPINGS`], [`INGRESS_BANDWIDTH`], [`EGRESS_BANDWIDTH`]; all
    /// annotations are handed on too.
    pub fn from_annotations<'a>(
        annotations: impl IntoIterator<Item = (&'a String, &'a String)>,
    ) -> Result<Self, InvalidCapability> {
        let pod_annotations: BTreeMap<_, _> =
            annotations.into_iter().map(|(key, value)| (key.clone(), value.clone())).collect();
        let get = |key| pod_annotations.get(key).map(String::as_str);
        let port_mappings = match get(PORT_MAPPINGS) {
            Some(text) => text
                .split(',')
                .map(str::trim)
                .filter(|part| !part.is_empty())
                .map(PortMapping::parse)
                .collect::<Result<_, _>>()?,
            None => Vec::new(),
        };
        let bandwidth = Bandwidth::from_limits(get(INGRESS_BANDWIDTH), get(EGRESS_BANDWIDTH))?;
        Ok(Self { port_mappings, bandwidth, pod_annotations, ..Self::default() })
    }

    /// The form that plugins are told, by capability.
    pub fn into_map(self) -> Map<String, Value> {
        // Strings, numbers and lists: there is nothing in it that could fail.
        match serde_json::to_value(self) {
            Ok(Value::Object(map)) => map,
            _ => Map::new(),
        }
    }
}

impl PortMapping {
    /// Reads `[HOST_IP:]HOST_PORT:POD_PORT[/PROTOCOL]`.
    pub fn parse(text: &str) -> Result<Self, InvalidCapability> {
        Self::read(text)
            .ok_or_else(|| InvalidCapability { what: "port mapping", text: text.to_owned() })
    }

    fn read(text: &str) -> Option<Self> {
        let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let protocol = protocol.to_ascii_lowercase();
        let (rest, container_port) = ports.rsplit_once(':')?;
        let (host_ip, host_port) = rest.rsplit_once(':').unwrap_or(("", rest));
        let bare = host_ip.strip_prefix('[').and_then(|ip| ip.strip_suffix(']'));
        let host_ip = match (bare, host_ip) {
            (None, "") => String::new(),
            (Some(ip), _) => ip.parse::<Ipv6Addr>().ok()?.to_string(),
            (None, ip) => ip.parse::<Ipv4Addr>().ok()?.to_string(),
        };
        let port = |text: &str| text.parse().ok().filter(|port| *port > 0);
        let known = matches!(protocol.as_str(), "tcp" | "udp" | "sctp");
        known.then_some(Self {
            host_port: port(host_port)?,
            container_port: port(container_port)?,
            protocol,
            host_ip,
        })
    }
}

impl Bandwidth {
    /// Limits from Kubernetes' quantities, such as `10M`; none if neither is given.
    pub fn from_limits(
        ingress: Option<&str>,
        egress: Option<&str>,
    ) -> Result<Option<Self>, InvalidCapability> {
        if ingress.is_none() && egress.is_none() {
            return Ok(None);
        }
        let limit = |text: Option<&str>| match text {
            // A limit comes with the largest burst that the kernel's queue takes.
            Some(text) => Ok((bandwidth(text)?, u64::from(u32::MAX))),
            None => Ok((0, 0)),
        };
        let (ingress_rate, ingress_burst) = limit(ingress)?;
        let (egress_rate, egress_burst) = limit(egress)?;
        Ok(Some(Self { ingress_rate, ingress_burst, egress_rate, egress_burst }))
    }
}

fn bandwidth(text: &str) -> Result<u64, InvalidCapability> {
    quantity(text)
        .filter(|rate| BANDWIDTHS.contains(rate))
        .ok_or_else(|| InvalidCapability { what: "bandwidth", text: text.to_owned() })
}

/// A Kubernetes quantity, rounded up: digits, perhaps with a fraction, and a decimal or binary suffix or an exponent.
fn quantity(text: &str) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = format!("{whole}{fraction}");
    if digits.is_empty() || digits.len() > 30 || fraction.contains('.') {
        return None;
    }
    let digits: u128 = digits.parse().ok()?;
    let (multiplier, divisor): (u128, u128) = match suffix {
        "m" => (1, 1_000),
        "" => (1, 1),
        "k" => (1_000, 1),
        "M" => (1_000_000, 1),
        "G" => (1_000_000_000, 1),
        "T" => (1_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000, 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        exponent => {
            let power = exponent.strip_prefix(['e', 'E'])?;
            (10_u128.checked_pow(power.trim_start_matches('+').parse().ok()?)?, 1)
        }
    };
    let scale = 10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let value = digits.checked_mul(multiplier)?.div_ceil(scale.checked_mul(divisor)?);
    u64::try_from(value).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn annotations(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn annotations_become_what_plugins_read() {
        let annotations = annotations(&[
            (PORT_MAPPINGS, "8080:80, 127.0.0.1:53:5353/UDP,[2001:db8::1]:443:8443"),
            (INGRESS_BANDWIDTH, "10M"),
        ]);
        let map = Capabilities::from_annotations(&annotations).unwrap().into_map();
        assert_eq!(
            map["portMappings"],
            json!([
                {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
                {"hostPort": 53, "containerPort": 5353, "protocol": "udp", "hostIP": "127.0.0.1"},
                {"hostPort": 443, "containerPort": 8443, "protocol": "tcp", "hostIP": "2001:db8::1"},
            ])
        );
        assert_eq!(
            map["bandwidth"],
            json!({"ingressRate": 10_000_000, "ingressBurst": u32::MAX, "egressRate": 0, "egressBurst": 0})
        );
        assert_eq!(map["io.kubernetes.cri.pod-annotations"][INGRESS_BANDWIDTH], "10M");
    }

    #[test]
    fn a_pod_that_asks_for_nothing_says_nothing() {
        assert!(Capabilities::default().into_map().is_empty());
        assert!(Capabilities::from_annotations(&BTreeMap::new()).unwrap().into_map().is_empty());
    }

    #[test]
    fn port_mappings_that_make_no_sense_are_refused() {
        for text in
            ["", "80", "0:80", "80:0", "80:80/icmp", "x:80", "1:2:3:4", "host:1:2", "70000:1"]
        {
            assert!(PortMapping::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn quantities_are_kubernetes() {
        for (text, value) in [
            ("1000", 1_000),
            ("1k", 1_000),
            ("1.5M", 1_500_000),
            ("1Ki", 1_024),
            ("2e3", 2_000),
            ("1500000m", 1_500),
            ("0.5Gi", 1 << 29),
        ] {
            assert_eq!(quantity(text), Some(value), "{text}");
        }
        for text in ["", ".", "1.2.3", "-1", "1x", "M", "1ee3", "99999999999999999999P"] {
            assert_eq!(quantity(text), None, "{text:?}");
        }
        assert!(Bandwidth::from_limits(Some("999"), None).is_err());
        assert!(Bandwidth::from_limits(None, Some("2P")).is_err());
    }

    proptest! {
        #[test]
        fn no_text_is_too_strange_to_be_refused(text in ".*") {
            let _ = quantity(&text);
            let _ = PortMapping::parse(&text);
        }
    }
}
