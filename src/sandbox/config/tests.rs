use super::*;

fn bundle_with(spec: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), spec).unwrap();
    folder
}

#[test]
fn options_of_an_unknown_type_are_named() {
    let error = PodConfig::read(Some(("example.Other", b"")), Path::new("/")).unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(error.to_string().contains("example.Other"));
}

#[test]
fn a_bundle_without_spec_and_a_spec_that_is_none_are_refused() {
    let empty = tempfile::tempdir().unwrap();
    let error = PodConfig::read(None, empty.path()).unwrap_err();
    assert!(matches!(error, ConfigError::Nothing(_)), "{error}");
    for text in ["", "no json", "[]", "3", r#"{"linux": 7}"#] {
        let error = PodConfig::read(None, bundle_with(text).path()).unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{text}: {error}");
    }
}

#[test]
fn a_spec_that_lists_no_network_namespace_means_the_nodes() {
    let spec = r#"{"ociVersion":"1.0.2","linux":{"namespaces":[{"type":"ipc"},{"type":"uts"}]}}"#;
    let config = PodConfig::read(None, bundle_with(spec).path()).unwrap();
    assert!(config.host_network && config.own_uts);
    assert_eq!((config.ipc, config.pid), (Scope::Pod, Scope::Container));
    let config = PodConfig::read(None, bundle_with(r#"{"ociVersion":"1.0.2"}"#).path()).unwrap();
    assert!(!config.host_network && config.own_uts);
}

#[test]
fn cri_modes_become_scopes() {
    let namespaces = cri::NamespaceOption { network: 2, pid: 1, ipc: 0, ..Default::default() };
    let security = cri::LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces),
        ..Default::default()
    };
    let linux =
        cri::LinuxPodSandboxConfig { security_context: Some(security), ..Default::default() };
    let config =
        PodConfig::from_cri(&cri::PodSandboxConfig { linux: Some(linux), ..Default::default() })
            .unwrap();
    assert!(config.host_network && !config.own_uts);
    assert_eq!((config.ipc, config.pid), (Scope::Pod, Scope::Container));
    assert!(config.sysctls_with_defaults().is_empty());
}

#[test]
fn defaults_yield_to_what_the_pod_sets() {
    let mut config = PodConfig::from_cri(&cri::PodSandboxConfig::default()).unwrap();
    config.sysctls.insert("net.ipv4.ip_unprivileged_port_start".into(), "1000".into());
    let all = config.sysctls_with_defaults();
    assert_eq!(all["net.ipv4.ip_unprivileged_port_start"], "1000");
    assert_eq!(all["net.ipv4.ping_group_range"], "0 2147483647");
}

#[test]
fn ports_and_bandwidth_reach_cni() {
    let mut config = cri::PodSandboxConfig::default();
    config.port_mappings.push(cri::PortMapping {
        protocol: 1,
        container_port: 53,
        host_port: 5353,
        host_ip: String::new(),
    });
    config.port_mappings.push(cri::PortMapping { container_port: 80, ..Default::default() });
    config.annotations.insert("kubernetes.io/ingress-bandwidth".into(), "10M".into());
    let capabilities = PodConfig::from_cri(&config).unwrap().capabilities;
    assert_eq!(capabilities["portMappings"].as_array().unwrap().len(), 1);
    assert_eq!(capabilities["portMappings"][0]["protocol"], "udp");
    assert_eq!(capabilities["bandwidth"]["ingressRate"], 10_000_000);
}

#[test]
fn quantities_are_read_as_kubernetes_writes_them() {
    assert_eq!(quantity("1Ki"), Some(1024));
    assert_eq!(quantity("1.5k"), Some(1500));
    assert_eq!(quantity("ten"), None);
    assert_eq!(quantity("-1"), None);
}
fn with_namespaces(options: cri::NamespaceOption) -> Result<PodConfig, ConfigError> {
    let security =
        cri::LinuxSandboxSecurityContext { namespace_options: Some(options), ..Default::default() };
    let linux =
        cri::LinuxPodSandboxConfig { security_context: Some(security), ..Default::default() };
    PodConfig::from_cri(&cri::PodSandboxConfig { linux: Some(linux), ..Default::default() })
}

#[test]
fn a_pod_whose_containers_have_ipc_namespaces_of_their_own_has_one_all_the_same() {
    for mode in [0, 1, 3, 77] {
        let options = cri::NamespaceOption { ipc: mode, ..Default::default() };
        assert_eq!(with_namespaces(options).unwrap().ipc, Scope::Pod, "{mode}");
    }
}

#[test]
fn user_namespaces_are_the_pods_with_mappings_or_the_nodes_without() {
    let line = cri::IdMapping { host_id: 1000, container_id: 0, length: 10 };
    let empty = cri::IdMapping { length: 0, ..line };
    for (mode, uids, gids, good) in [
        (0, vec![line], vec![line], true),
        (2, vec![], vec![], true),
        (0, vec![], vec![], false),
        (0, vec![line], vec![], false),
        (0, vec![], vec![line], false),
        (0, vec![line, line], vec![line], false),
        (0, vec![empty], vec![line], false),
        (1, vec![], vec![], false),
        (1, vec![line], vec![line], false),
        (2, vec![line], vec![], false),
        (2, vec![], vec![line], false),
        (3, vec![], vec![], false),
        (3, vec![line], vec![line], false),
        (9, vec![], vec![], false),
    ] {
        let users = cri::UserNamespace { mode, uids, gids };
        let said = format!("{users:?}");
        let options = cri::NamespaceOption { userns_options: Some(users), ..Default::default() };
        match with_namespaces(options) {
            Ok(config) => assert!(good && config.user.is_some() == (mode == 0), "{said}"),
            Err(error) => {
                assert!(!good, "{said}: {error}");
                assert_eq!(error.code(), Code::InvalidArgument);
            }
        }
    }
}

#[test]
fn a_spec_is_refused_as_an_oci_runtime_refuses_it() {
    for (spec, word) in [
        (r#""hostname":"x","linux":{"namespaces":[{"type":"ipc"}]}"#, "hostname"),
        (r#""domainname":"x","linux":{"namespaces":[{"type":"ipc"}]}"#, "domain name"),
        (r#""linux":{"sysctl":{"kernel.panic":"1"}}"#, "kernel.panic"),
        (r#""linux":{"namespaces":[],"sysctl":{"net.ipv4.ip_forward":"1"}}"#, "net.ipv4"),
        (r#""linux":{"namespaces":[{"type":"user"}]}"#, "UID mappings"),
        (
            r#""linux":{"uidMappings":[{"containerID":0,"hostID":1,"size":1}],"namespaces":[]}"#,
            "user namespace",
        ),
        (r#""linux":{"namespaces":[{"type":"ipc","path":"/proc/1/ns/ipc"}]}"#, "/proc/1/ns/ipc"),
    ] {
        let spec = format!(r#"{{"ociVersion":"1.0.2",{spec}}}"#);
        let error = PodConfig::read(None, bundle_with(&spec).path()).unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{spec}: {error}");
        assert!(error.to_string().contains(word), "{spec}: {error}");
    }
    let spec = r#"{"ociVersion":"1.0.2","domainname":"nis"}"#;
    let config = PodConfig::read(None, bundle_with(spec).path()).unwrap();
    assert_eq!(config.sysctls["kernel.domainname"], "nis");
}
