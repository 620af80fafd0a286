//! From an image's documents to the name of the snapshot that has all of its layers.

use serde::Deserialize;
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::sys::architecture;

/// A reference from one document to another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub(super) struct Descriptor {
    #[serde(default, rename = "mediaType")]
    pub media_type: String,
    pub digest: String,
    #[serde(default)]
    pub platform: Option<Platform>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub(super) struct Platform {
    #[serde(default)]
    pub os: String,
    #[serde(default)]
    pub architecture: String,
    #[serde(default)]
    pub variant: String,
}

/// An index, or a manifest; which of them shows in what it has, since some have no media type.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Document {
    #[serde(default)]
    manifests: Vec<Descriptor>,
    #[serde(default)]
    config: Option<Descriptor>,
}

#[derive(Debug, Deserialize)]
struct Config {
    rootfs: RootFs,
}

#[derive(Debug, Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Vec<String>,
}

/// Where an image's document leads to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Another document (of an index).
    Document(Descriptor),
    /// The configuration (of a manifest).
    Config(Descriptor),
}

/// What is wrong with an image's document.
#[derive(Debug, Error)]
pub(super) enum Wrong {
    #[error("not a manifest: {0}")]
    Manifest(serde_json::Error),
    #[error("not a configuration: {0}")]
    Config(serde_json::Error),
    /// An index without this machine's platform.
    #[error("it has nothing for {os}/{architecture}")]
    Platform { os: String, architecture: String },
}

/// Reads an index or manifest.
pub(super) fn next(document: &[u8], host: &Platform) -> Result<Next, Wrong> {
    let document: Document = serde_json::from_slice(document).map_err(Wrong::Manifest)?;
    if let Some(config) = document.config {
        return Ok(Next::Config(config));
    }
    let mut candidates: Vec<_> = document
        .manifests
        .into_iter()
        .filter_map(|manifest| Some((rank(manifest.platform.as_ref(), host)?, manifest)))
        .collect();
    candidates.sort_by_key(|(rank, _)| *rank);
    let best = candidates.into_iter().next();
    best.map(|(_, manifest)| Next::Document(manifest)).ok_or_else(|| Wrong::Platform {
        os: host.os.clone(),
        architecture: host.architecture.clone(),
    })
}

/// How well a platform suits the host, the least is the best; `None` for not at all.
fn rank(platform: Option<&Platform>, host: &Platform) -> Option<u32> {
    // Some tools name no platform when there is only one.
    let Some(platform) = platform else { return Some(1000) };
    if platform.os != host.os || platform.architecture != host.architecture {
        return None;
    }
    let version = |text: &str| text.trim_start_matches('v').parse::<u32>().ok();
    match (version(&platform.variant), version(&host.variant)) {
        _ if platform.variant == host.variant => Some(0),
        (None, _) => Some(500),
        // The nearest variant below the host's own.
        (Some(theirs), Some(ours)) => ours.checked_sub(theirs),
        // A host that names no variant runs the basic one.
        (Some(theirs), None) => (theirs == basic(&host.architecture)).then_some(0),
    }
}

fn basic(architecture: &str) -> u32 {
    match architecture {
        "arm64" => 8,
        "arm" => 7,
        _ => 1,
    }
}

/// This machine, in the words of images.
pub(super) fn host() -> Platform {
    let architecture = architecture();
    let variant = if architecture == "arm" { "v7" } else { "" };
    Platform {
        os: "linux".to_owned(),
        architecture: architecture.to_owned(),
        variant: variant.to_owned(),
    }
}

/// The name of the snapshot with all layers of a configuration.
pub(super) fn chain_of_config(config: &[u8]) -> Result<String, Wrong> {
    let config: Config = serde_json::from_slice(config).map_err(Wrong::Config)?;
    Ok(chain(&config.rootfs.diff_ids))
}

/// Each name is made of the one below it and the layer's own digest.
fn chain(layers: &[String]) -> String {
    let mut layers = layers.iter();
    let first = layers.next().cloned().unwrap_or_default();
    layers.fold(first, |below, layer| {
        let hash = Sha256::digest(format!("{below} {layer}"));
        format!("sha256:{}", hex(&hash))
    })
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn amd64() -> Platform {
        Platform { os: "linux".into(), architecture: "amd64".into(), variant: String::new() }
    }

    fn index(platforms: &[(&str, &str, &str)]) -> Vec<u8> {
        let manifests: Vec<_> = platforms
            .iter()
            .enumerate()
            .map(|(n, (os, architecture, variant))| {
                serde_json::json!({
                    "digest": format!("sha256:{n}"),
                    "platform": {"os": os, "architecture": architecture, "variant": variant},
                })
            })
            .collect();
        serde_json::to_vec(&serde_json::json!({"manifests": manifests})).unwrap()
    }

    fn chosen(platforms: &[(&str, &str, &str)], host: &Platform) -> Option<String> {
        match next(&index(platforms), host) {
            Ok(Next::Document(manifest)) => Some(manifest.digest),
            _ => None,
        }
    }

    #[test]
    fn one_layer_is_its_own_chain_and_none_is_empty() {
        assert_eq!(chain(&[]), "");
        assert_eq!(chain(&["sha256:a".into()]), "sha256:a");
    }

    #[test]
    fn a_chain_hashes_the_chain_below_and_the_layer() {
        // printf 'sha256:a sha256:b' | sha256sum
        let layers: Vec<String> = ["sha256:a", "sha256:b", "sha256:c"].map(Into::into).into();
        let below = "sha256:970a948bffa8de94d6e22d747ba8c95030e6e546909f98f54e99a13005e173a8";
        assert_eq!(chain(&layers[..2]), below);
        let all = format!("sha256:{}", hex(&Sha256::digest(format!("{below} sha256:c"))));
        assert_eq!(chain(&layers), all);
    }

    #[test]
    fn the_hosts_platform_is_chosen() {
        let all = [("linux", "arm64", "v8"), ("windows", "amd64", ""), ("linux", "amd64", "")];
        assert_eq!(chosen(&all, &amd64()).unwrap(), "sha256:2");
        let arm64 = Platform { architecture: "arm64".into(), ..amd64() };
        assert_eq!(chosen(&all, &arm64).unwrap(), "sha256:0");
    }

    #[test]
    fn a_variant_that_the_host_cannot_run_is_not_chosen() {
        let v3_first = [("linux", "amd64", "v3"), ("linux", "amd64", "")];
        assert_eq!(chosen(&v3_first, &amd64()).unwrap(), "sha256:1");
        assert_eq!(chosen(&v3_first[..1], &amd64()), None);
        let arm = Platform { architecture: "arm".into(), variant: "v7".into(), ..amd64() };
        let arms = [("linux", "arm", "v5"), ("linux", "arm", "v8"), ("linux", "arm", "v6")];
        assert_eq!(chosen(&arms, &arm).unwrap(), "sha256:2");
    }

    #[test]
    fn attestations_are_no_images() {
        assert_eq!(chosen(&[("unknown", "unknown", "")], &amd64()), None);
    }

    #[test]
    fn a_manifest_leads_to_its_configuration() {
        let manifest = br#"{"config":{"mediaType":"x","digest":"sha256:c"},"layers":[]}"#;
        let Ok(Next::Config(config)) = next(manifest, &amd64()) else { panic!() };
        assert_eq!(config.digest, "sha256:c");
    }

    #[test]
    fn nonsense_is_an_error_and_says_so() {
        assert!(next(b"nonsense", &amd64()).is_err());
        assert!(next(b"{}", &amd64()).unwrap_err().to_string().contains("linux/amd64"));
        assert!(chain_of_config(b"{}").is_err());
    }
}
