//! What an ADD gives.

use std::net::IpAddr;

use serde::Deserialize;
use serde_json::Value;

/// An interface that plugins made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Interface {
    pub name: String,
    /// Its hardware address; may be empty.
    pub mac: String,
    /// The namespace it is in; empty on the host's side.
    pub sandbox: String,
}

/// An address that plugins assigned.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Address {
    /// The address with its prefix length, as the plugin wrote it.
    pub address: String,
    /// The gateway, if it has one.
    pub gateway: Option<String>,
    /// The index of its interface.
    pub interface: Option<usize>,
}

impl Address {
    /// The address without its prefix length.
    pub fn ip(&self) -> Option<IpAddr> {
        self.address.split('/').next()?.parse().ok()
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct NetworkResult {
    pub network: String,
    /// The pod's interface in it.
    pub ifname: String,
    /// The interfaces that were made, the host's side too.
    pub interfaces: Vec<Interface>,
    /// The addresses that were assigned.
    pub addresses: Vec<Address>,
    pub result: Value,
}

impl NetworkResult {
    pub(crate) fn new(network: &str, ifname: &str, result: &Value) -> Self {
        Self {
            network: network.to_owned(),
            ifname: ifname.to_owned(),
            interfaces: entries(result.get("interfaces")),
            addresses: entries(result.get("ips")),
            result: result.clone(),
        }
    }

    /// The pod's own addresses in this network.
    pub fn ips(&self) -> impl Iterator<Item = IpAddr> {
        self.addresses.iter().filter(|address| self.is_in_pod(address)).filter_map(Address::ip)
    }

    /// An address without interface is the pod's.
    fn is_in_pod(&self, address: &Address) -> bool {
        let interface = address.interface.and_then(|index| self.interfaces.get(index));
        interface.is_none_or(|interface| !interface.sandbox.is_empty())
    }
}

/// What all networks of an attachment gave, in the order of ADD.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AddResult {
    pub networks: Vec<NetworkResult>,
}

impl AddResult {
    /// The pod's addresses: those in its first network, which is its default one.
    pub fn ips(&self) -> Vec<IpAddr> {
        self.networks.first().map(|network| network.ips().collect()).unwrap_or_default()
    }
}

/// Entries that are not as the specification has them are left out: the plugin's result is passed on all the same.
fn entries<T: serde::de::DeserializeOwned>(list: Option<&Value>) -> Vec<T> {
    let list = list.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    list.iter().filter_map(|entry| T::deserialize(entry).ok()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_pods_addresses_are_those_inside() {
        let result = json!({
            "cniVersion": "1.0.0",
            "interfaces": [
                {"name": "br0", "mac": "aa"},
                {"name": "eth0", "mac": "bb", "sandbox": "/run/netns/x"},
            ],
            "ips": [
                {"address": "192.0.2.1/24", "interface": 0},
                {"address": "192.0.2.7/24", "gateway": "192.0.2.1", "interface": 1},
                {"address": "2001:db8::7/64"},
                "nonsense",
            ],
        });
        let network = NetworkResult::new("node", "eth0", &result);
        let ips: Vec<_> = network.ips().map(|ip| ip.to_string()).collect();
        assert_eq!(ips, ["192.0.2.7", "2001:db8::7"]);
    }

    #[test]
    fn a_result_without_addresses_is_a_result() {
        let network = NetworkResult::new("node", "eth0", &json!({}));
        assert_eq!(network.ips().count(), 0);
    }
}
