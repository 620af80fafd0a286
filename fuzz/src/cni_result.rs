//! What a CNI plugin prints.

use mooring::{
    network::{
        AttachRequest, Operation, PluginError, Settings, attach, cached_attachments, detach, plan,
        understand,
    },
    process::{Exit, Output},
};
use serde_json::Value;

use crate::{plugins::Plugins, scratch, wait::wait};

/// The longest that an error may be, in bytes: it goes into messages and logs.
const LONGEST: usize = 10 << 10;
const LIST: &[u8] = br#"{"cniVersion": "1.0.0", "name": "node", "plugins": [{"type": "bridge"}, {"type": "portmap"}]}"#;

pub fn cni_result(input: &[u8]) {
    let output = |status| Output {
        exit: Exit { pid: 1, status, at: std::time::SystemTime::UNIX_EPOCH },
        stdout: input.to_vec(),
        stderr: Vec::new(),
    };
    let died = understand(Operation::Add, &output(1)).expect_err("it said that it failed");
    assert!(matches!(died, PluginError::Reported { .. } | PluginError::Died { .. }), "{died}");
    assert!(died.to_string().len() < LONGEST);
    assert!(matches!(understand(Operation::Del, &output(0)), Ok(None)));
    match understand(Operation::Add, &output(0)) {
        Ok(result) => is_kept(result.expect("an ADD has a result")),
        Err(error) => {
            assert!(matches!(error, PluginError::Garbage { .. }), "{error}");
            assert!(error.to_string().len() < LONGEST);
        }
    }
}

/// The result of a network is kept beside its record, given to every DEL, and gone with it.
fn is_kept(result: Value) {
    let folder = scratch::folder();
    let settings = Settings {
        conf_dir: folder.join("net.d"),
        cache_dir: folder.join("cni"),
        loopback: false,
        ..Settings::default()
    };
    scratch::write(&settings.conf_dir.join("10-node.conflist"), LIST);
    let request = AttachRequest { container_id: "pod".into(), ..AttachRequest::default() };
    let mut record = plan(&settings, request).expect("the list is a good one");
    let plugins = Plugins::giving(Some(result));
    let added = wait(attach(&plugins, &mut record, None)).expect("all plugins succeed");
    let _ = added.ips();
    let kept = added.networks.first().map(|network| network.result.clone());
    let (cached, problems) = cached_attachments(&settings.cache_dir);
    assert!(problems.is_empty(), "{problems:?}");
    assert_eq!(cached.first().map(|attachment| attachment.result.clone()), Some(kept.clone()));
    plugins.take();
    wait(detach(&plugins, &record, false, None)).expect("all plugins succeed");
    let calls = plugins.take();
    assert_eq!(calls.len(), 2);
    assert!(calls.iter().all(|call| call.config.get("prevResult") == kept.as_ref()));
    assert!(scratch::files(&settings.cache_dir).is_empty());
}
